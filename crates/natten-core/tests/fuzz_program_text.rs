//! Fuzzes the text form of programs: any strings. Nothing may panic, and what is read must print as a text that reads
//! back as the same expression. Runs as a property test on stable, and under a fuzzer by `cargo bolero test`.

use bolero::check;
use natten_core::DType;
use natten_core::program::{Capture, Expr, Field, Graph, Node, Program, ProgramBuilder};

/// Words that texts are made of, so that most random texts get past the first word.
const WORDS: [&str; 48] = [
    "score",
    "x",
    "q",
    "k",
    "h",
    "q1",
    "k0",
    "d",
    "dim",
    "slope[",
    "table[",
    "document[",
    "c",
    "1",
    "2.5",
    "1e-3",
    "0",
    "inf",
    "true",
    "(",
    "(",
    "(",
    ")",
    ")",
    ")",
    "]",
    ",",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "<",
    "<=",
    "==",
    "&&",
    "||",
    "!",
    ";",
    "a =",
    "sum(",
    "max(",
    "lse(",
    "exp(",
    "select(",
    "powi(",
    "logaddexp(",
];

/// A score of these bytes: each is a leaf, wraps what came last, or joins the last two. Most are well-formed.
fn sentence(bytes: &[u8]) -> String {
    const LEAVES: [&str; 12] =
        ["score", "score", "q", "k", "h", "2", "0.5", "-1", "inf", "c", "slope[h]", "document[q - k]"];
    const WRAPS: [(&str, &str); 8] = [
        ("exp(", ")"),
        ("relu(", ")"),
        ("-(", ")"),
        ("abs(", ")"),
        ("float(", ")"),
        ("powi(", ", 2)"),
        ("select(random(7) < ", ", c, score)"),
        ("table[h, int(", ")]"),
    ];
    const JOINS: [(&str, &str, &str); 12] = [
        ("(", " + ", ")"),
        ("(", " - ", ")"),
        ("", "*", ""),
        ("(", "*", ")"),
        ("", "/", ""),
        ("(", " // ", ")"),
        ("", " % ", ""),
        ("max(", ", ", ")"),
        ("logaddexp(", ", ", ")"),
        ("select(", " < 1, score, ", ")"),
        ("select(!(q < k || ", " == 2), score, ", ")"),
        ("", " - ", ""),
    ];
    let mut parts = vec!["score".to_owned()];
    for byte in bytes {
        let (kind, pick) = (byte % 4, usize::from(byte / 4));
        match (kind, parts.pop()) {
            (0, Some(last)) => {
                let (open, close) = WRAPS[pick % WRAPS.len()];
                parts.push(format!("{open}{last}{close}"));
            }
            (1 | 2, Some(last)) if !parts.is_empty() => {
                let (open, between, close) = JOINS[pick % JOINS.len()];
                let first = parts.pop().unwrap_or_default();
                parts.push(format!("{open}{first}{between}{last}{close}"));
            }
            (_, last) => {
                parts.extend(last);
                parts.push(LEAVES[pick % LEAVES.len()].to_owned());
            }
        }
    }
    parts.join(" + ")
}

fn builder(rank: usize) -> ProgramBuilder {
    Program::builder(rank)
        .capture(Capture::new("slope", &[4], DType::F32))
        .capture(Capture::new("table", &[4, 8], DType::F64))
        .capture(Capture::new("document", &[64], DType::I32))
        .capture(Capture::new("c", &[], DType::F32))
}

/// Reads a text as a field's; where it is one, the program's own texts must give the same expressions.
fn read(rank: usize, field: Field, text: &str) {
    let program = match builder(rank).text(field, text).build() {
        Ok(program) => program,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let printed = program.to_string();
    let mut again = builder(rank);
    for line in printed.lines() {
        let (name, text) = line.split_once(": ").unwrap_or_else(|| panic!("{printed}"));
        let field = Field::ALL.into_iter().find(|field| field.name() == name);
        // What a text expands to may be beyond the limits.
        if text.len() > 1 << 16 || depth_of(text) > 256 {
            return;
        }
        again = again.text(field.unwrap_or_else(|| panic!("{printed}")), text);
    }
    let again = again.build().unwrap_or_else(|error| panic!("{text}\n{printed}\n{error}"));
    let mut graph = program.graph().clone();
    let copies = copy(&mut graph, again.graph());
    for field in Field::ALL {
        let copied: Vec<Expr> = again.roots(field).iter().map(|root| copies[root.index()]).collect();
        assert_eq!(copied, program.roots(field), "{text}\n{printed}\n{again}");
    }
    let stages = |program: &Program| -> Vec<_> {
        program.row().stages.iter().map(|stage| (stage.name.clone(), stage.reduce)).collect()
    };
    assert_eq!(stages(&again), stages(&program), "{printed}");
}

/// Every node of a graph, made again in another: the same there if it means the same.
fn copy(into: &mut Graph, from: &Graph) -> Vec<Expr> {
    let mut copies: Vec<Expr> = Vec::new();
    for (expr, node) in from.iter() {
        let of = |expr: &Expr| copies[expr.index()];
        let copy = match node {
            Node::Float(bits) => into.float(f64::from_bits(*bits)),
            Node::Int(value) => into.int(*value),
            Node::Bool(value) => into.bool(*value),
            Node::Var(var) => into.var(*var),
            Node::Index(index) => into.index(*index),
            Node::Load(buffer, index) => {
                let index: Vec<Expr> = index.iter().map(of).collect();
                into.load(*buffer, from.type_of(expr), &index)
            }
            Node::Unary(op, a) => into.unary(*op, of(a)),
            Node::Binary(op, a, b) => into.binary(*op, of(a), of(b)),
            Node::Compare(op, a, b) => into.compare(*op, of(a), of(b)),
            Node::Select(c, a, b) => into.select(of(c), of(a), of(b)),
            Node::Powi(a, exponent) => into.powi(of(a), *exponent),
            Node::Random(low, high) => into.random(of(low), of(high)),
            other => panic!("{other:?}"),
        };
        copies.push(copy);
    }
    copies
}

/// The deepest nesting of brackets.
fn depth_of(text: &str) -> usize {
    let (mut depth, mut deepest) = (0, 0);
    for c in text.chars() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[test]
fn any_string_is_read_or_refused() {
    check!().with_type::<(u8, u8, String)>().for_each(|(rank, field, text)| {
        read(usize::from(rank % 4), Field::ALL[usize::from(field % 8)], text);
    });
}

#[test]
fn any_words_are_read_or_refused() {
    check!().with_type::<(u8, u8, Vec<u8>)>().for_each(|(rank, field, words)| {
        let text: Vec<&str> = words.iter().map(|&word| WORDS[usize::from(word) % WORDS.len()]).collect();
        read(usize::from(rank % 4), Field::ALL[usize::from(field % 8)], &text.join(" "));
    });
}

#[test]
fn any_sentence_reads_back() {
    check!().with_type::<Vec<u8>>().for_each(|bytes| read(1, Field::Score, &sentence(bytes)));
}
