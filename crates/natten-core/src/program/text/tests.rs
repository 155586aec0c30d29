//! What texts mean, what is wrong with those that mean nothing, and that printing is the way back.

use super::*;
use crate::dtype::DType;
use crate::error::Result;
use crate::program::expr::{Binary, Buffer, Graph, Index, Node, Type, Unary, Var};

mod round_trip;

fn captures() -> Vec<Capture> {
    let capture = |name: &str, shape: &[usize], dtype| Capture {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
        requires_grad: dtype != DType::I32,
    };
    vec![
        capture("slope", &[4], DType::F32),
        capture("table", &[4, 8], DType::F64),
        capture("document", &[64], DType::I32),
        capture("c", &[], DType::F32),
    ]
}

fn read_in(graph: &mut Graph, field: Field, text: &str, rank: usize) -> Result<Expr> {
    let captures = captures();
    parse(graph, &mut Spans::default(), field, text, &Scope { captures: &captures, rank, dim: None })
}

fn read(graph: &mut Graph, text: &str) -> Expr {
    read_in(graph, Field::Score, text, 2).unwrap_or_else(|error| panic!("{error}"))
}

fn written(graph: &Graph, expr: Expr) -> String {
    print(graph, expr, &captures(), &[])
}

/// Both texts are the same expression.
fn same(a: &str, b: &str) {
    let mut graph = Graph::new();
    let (x, y) = (read(&mut graph, a), read(&mut graph, b));
    assert_eq!(written(&graph, x), written(&graph, y), "{a} and {b}");
    assert_eq!(x, y);
}

/// Column and message of the error of a text.
fn error_in(field: Field, text: &str) -> (usize, String) {
    match read_in(&mut Graph::new(), field, text, 2) {
        Err(Error::Program { field: of, column, message, .. }) => {
            assert_eq!(of, field.name());
            (column, message)
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn refused(text: &str, column: usize, part: &str) {
    let (at, message) = error_in(Field::Score, text);
    assert!(at == column && message.contains(part), "{text}: column {at}: {message}");
}

fn row(graph: &mut Graph, text: &str) -> Result<ParsedRow> {
    parse_row(graph, &mut Spans::default(), text, &Scope { captures: &captures(), rank: 2, dim: None })
}

#[track_caller]
fn row_refused(text: &str, column: usize, part: &str) {
    match row(&mut Graph::new(), text) {
        Err(Error::Program { column: at, message, .. }) => {
            assert!(at == column && message.contains(part), "{text}: column {at}: {message}");
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn operators_bind_as_in_school() {
    same("score + 2*score*c - 1", "((score + ((2*score)*c)) - 1)");
    same("score - c - 1", "(score - c) - 1");
    same("score/c/2", "(score/c)/2");
    same("-score*c", "(-score)*c");
    same("select(q < k && k < 9 || q == 0, 1, 0)", "select(((q < k) && (k < 9)) || (q == 0), 1, 0)");
    same("select(!(q < k) && true, 1, 0)", "select(!(q < k), 1, 0)");
    same("select(q > k, 1, 0) + select(q >= k, 1, 0)", "select(k < q, 1, 0) + select(k <= q, 1, 0)");
    same("7 // 2 * 2 + 7 % 2 + -7 // 2", "3.0*2.0 + 1.0 - 4.0");
    same("1 / 2", "0.5");
    same("--score", "score");
    same(" \tscore\n+ 2.", "score+2e0");
    same(".5e1", "5.0");
}

#[test]
fn integers_become_numbers_where_they_meet_numbers() {
    same("score*q + 1", "score*float(q) + 1.0");
    same("q / k", "float(q)/float(k)");
    same("q // k % 3", "float((q // k) % 3)");
    same("exp(q)", "exp(float(q))");
    same("max(q, score)", "max(float(q), score)");
    same("select(q < score, q, c)", "select(float(q) < score, float(q), c)");
    same("floor(q) + int(k) + abs(-q)", "float(q + k + abs(q))");
    same("document[q]*2", "float(document[q]*2)");
    let mut graph = Graph::new();
    let floor = read(&mut graph, "q - k // 2");
    let Node::Unary(Unary::ToFloat, inner) = *graph.node(floor) else { panic!("{floor:?}") };
    assert_eq!(graph.type_of(inner), Type::I);
}

#[test]
fn functions_mean_what_they_are_called() {
    let mut graph = Graph::new();
    for (text, value) in [
        ("min(2, 1) + max(3, 4)", 5.0),
        ("powi(3, -2)*9", 1.0),
        ("logaddexp(0, 0)", std::f64::consts::LN_2),
        ("logaddexp(-inf, 3)", 3.0),
        ("logaddexp(3, -inf)", 3.0),
        ("logaddexp(-inf, -inf)", f64::NEG_INFINITY),
        ("logaddexp(inf, inf)", f64::INFINITY),
        ("relu(-1) + relu(2)", 2.0),
        ("bitand(6, 3) + 10*bitor(6, 3) + 100*bitxor(6, 3)", 572.0),
        ("shl(1, 4) + shr(-16, 2)", 12.0),
        ("int(-1.5)", -2.0),
        ("-2147483648", -2147483648.0),
        ("stop_grad(pi)", std::f64::consts::PI),
        ("select(true || q < k, 1, 2)", 1.0),
        ("-0.0", -0.0),
    ] {
        let expr = read(&mut graph, text);
        let found = graph.as_float(expr).unwrap_or_else(|| panic!("{text}: {}", written(&graph, expr)));
        assert_eq!(found.to_bits(), value.to_bits(), "{text}: {found}");
    }
    let relu = read(&mut graph, "relu(score)");
    assert!(matches!(graph.node(relu), Node::Select(..)));
    let seed = read(&mut graph, "random(18446744073709551614)");
    let (low, high) = (graph.int(-2), graph.int(-1));
    assert_eq!(*graph.node(seed), Node::Random(low, high));
    same("random(4294967296)", "random(0, 1)");
    for text in ["sum(x*x)", "half(x)*dim + pair(x)", "select(d < dim // 2, -half(x), half(x))*c"] {
        for field in [Field::QueryMod, Field::KeyMod, Field::ValueMod] {
            assert!(read_in(&mut graph, field, text, 2).is_ok());
        }
    }
}

#[test]
fn a_known_dim_is_a_number() {
    let mut graph = Graph::new();
    let mut read = |text: &str, dim| {
        let scope = Scope { captures: &[], rank: 1, dim };
        parse(&mut graph, &mut Spans::default(), Field::QueryMod, text, &scope)
    };
    assert_eq!(read("dim // 2", Some(64)).unwrap(), read("32", None).unwrap());
    assert!(read("half(x)", Some(7)).unwrap_err().to_string().contains("even head dim"));
}

#[test]
fn errors_point_at_their_place() {
    refused("score + foo", 9, "unknown name 'foo'");
    refused("score +", 8, "expected an expression, found the end");
    refused("", 1, "expected an expression");
    refused("score score", 7, "expected an operator or the end, found 'score'");
    refused("(score", 7, "expected ')', found the end");
    refused("score)", 6, "found ')'");
    refused("exp(score, 2)", 1, "exp takes 1 argument, not 2");
    refused("2 + select(q < k, 1)", 5, "select takes 3 arguments, not 2");
    refused("max(score)", 1, "max takes 2 arguments, not 1");
    refused("exp()", 1, "not 0");
    refused("exp + 1", 1, "'exp' is a function");
    refused("score(1)", 1, "'score' is not a function");
    refused("slope(h)", 1, "'slope' is a captured tensor");
    refused("slope", 1, "takes 1 indices, not 0");
    refused("slope[h, q]", 1, "takes 1 indices, not 2");
    refused("slope[score]", 7, "an index takes an integer, not a number");
    refused("slope[h", 8, "expected ']'");
    refused("c[h]", 1, "takes 0 indices, not 1");
    refused("score[h]", 1, "'score' has no elements");
    refused("score && c", 1, "'&&' takes a condition, not a number");
    refused("!score", 2, "'!' takes a condition");
    refused("score + (q < k)", 9, "'+' takes numbers, not a condition");
    refused("-(q < k)", 2, "'-' takes numbers");
    refused("select(q, 1, 2)", 8, "the first argument of select takes a condition");
    refused("q < k < h", 7, "comparisons do not chain");
    refused("score + (q == k != h)", 17, "comparisons do not chain");
    refused("bitand(score, 1)", 8, "bitand takes an integer, not a number");
    refused("powi(score, 2.0)", 13, "literal integer");
    refused("powi(score, q)", 13, "literal integer");
    refused("powi(score, 1 + 1)", 13, "literal integer");
    refused("powi(score, 2147483648)", 13, "literal integer");
    refused("powi(score)", 1, "powi takes 2 arguments, not 1");
    refused("random(q)", 1, "a literal seed");
    refused("random(1.5, 2)", 8, "random takes an integer");
    refused("random(18446744073709551616)", 8, "too large");
    refused("score + 2147483648", 9, "beyond the 32 bits");
    refused("1e999", 1, "too large");
    refused("score*2x", 7, "'2x' is not a number");
    refused("1.2.3", 1, "not a number");
    refused("1e", 1, "not a number");
    refused(".", 1, "not a number");
    refused("q < k", 1, "score must be a number");
    refused("q2 + 1", 1, "rank 2");
    refused("x", 1, "no meaning in score");
    refused("score + d", 9, "no meaning in score");
    refused("sum(score)", 1, "no meaning in score");
    refused("lse(score)", 1, "no meaning in score");
    refused("score**2", 6, "not an operator");
    refused("score^2", 6, "not an operator");
    refused("q & k", 3, "not an operator");
    refused("shl(q << 2)", 7, "not an operator");
    refused("score = 2", 7, "found '='");
    refused("score; 2", 6, "found ';'");
    refused("score $ 2", 7, "unexpected character");
    refused("\t\u{a0}ä", 3, "unexpected character 'ä'");
    refused("score +\n  foo", 11, "unknown name");
    assert_eq!(error_in(Field::Mask, "q + 1"), (1, "mask must be a condition, not an integer".to_owned()));
    assert_eq!(error_in(Field::QueryMod, "x*k").0, 3);
    assert_eq!(error_in(Field::KeyMod, "x*q1").0, 3);
    assert_eq!(error_in(Field::ValueMod, "x*random(1)").0, 3);
    assert_eq!(error_in(Field::Post, "score").0, 1);
}

#[test]
fn errors_show_the_line_and_a_way_out() {
    let show = |text: &str| read_in(&mut Graph::new(), Field::Score, text, 1).unwrap_err().to_string();
    assert_eq!(
        show("score + foo"),
        "score: unknown name 'foo' at column 9 (known names are slope table document c score b h hkv q k q0 k0 inf pi \
         true false)\n  score + foo\n          ^"
    );
    assert_eq!(
        show("score\n\t+ slpoe[h]\n+ 1"),
        "score: unknown name 'slpoe' at line 2, column 4 (did you mean 'slope'?)\n  \t+ slpoe[h]\n  \t  ^"
    );
    assert!(show("sigmod(score)").contains("did you mean 'sigmoid'?"));
    let long = show(&format!("{}foo{}", "score + ".repeat(20), " + score".repeat(20)));
    let lines: Vec<&str> = long.lines().collect();
    assert!(lines[1].starts_with("  …") && lines[1].chars().count() < 110, "{long}");
    let caret = lines[2].chars().count() - 1;
    assert_eq!(lines[1].chars().skip(caret).take(3).collect::<String>(), "foo");
}

#[test]
fn what_is_too_much_is_refused() {
    let nested = |depth: usize| format!("{}score{}", "(".repeat(depth), ")".repeat(depth));
    same(&nested(MAX_DEPTH), "score");
    refused(&nested(MAX_DEPTH + 1), MAX_DEPTH + 1, "nest deeper");
    refused(&"exp(".repeat(1000), MAX_DEPTH * 4 + 1, "nest deeper");
    refused(&"slope[".repeat(1000), MAX_DEPTH * 6 + 1, "nest deeper");
    refused(&" ".repeat(MAX_TEXT + 1), 1, "the limit is 65536");
    // Neither prefixes nor sums nest.
    same(&format!("{}score", "-".repeat(MAX_TEXT - 6)), "score");
    let sum = format!("score{}", " + exp(c)".repeat(7000));
    let mut graph = Graph::new();
    let expr = read(&mut graph, &sum);
    let text = written(&graph, expr);
    assert_eq!(read(&mut graph, &text), expr);
    // Doubled at every level: printing stops.
    let mut expr = graph.var(Var::Score);
    for _ in 0..64 {
        let (one, exp) = (graph.float(1.0), graph.unary(Unary::Exp, expr));
        let more = graph.add(expr, one);
        expr = graph.mul(more, exp);
    }
    let text = written(&graph, expr);
    assert!(text.ends_with('…') && text.len() < MAX_TEXT + 100);
    // These double too, but print as they are written.
    for text in
        [nested_call("relu(", ")"), nested_call("powi(1.0 - ", ", 2)"), nested_call("logaddexp(c, ", ")")]
    {
        let expr = read(&mut graph, &text);
        assert_eq!(written(&graph, expr).replace(' ', ""), text.replace(' ', ""));
    }
}

fn nested_call(open: &str, close: &str) -> String {
    format!("{}score{}", open.repeat(200), close.repeat(200))
}

#[test]
fn reserved_names_are_no_tensors() {
    for name in ["score", "x", "h", "hkv", "q2", "dim", "inf", "select", "logaddexp", "lse", "sum", "true"] {
        assert!(is_reserved(name) && check_name(name).is_err(), "{name}");
    }
    for name in ["", "2x", "a-b", "é", "a b", "a'"] {
        assert!(!is_reserved(name) && check_name(name).is_err(), "{name}");
    }
    for name in ["slope", "_", "x1", "SCORE", "sum2"] {
        assert!(check_name(name).is_ok(), "{name}");
    }
}

#[test]
fn rows_are_stages_and_a_weight() {
    let mut graph = Graph::new();
    let parsed = row(&mut graph, "a = sum(abs(x)); m = max(x*slope[h]);\n x / max(a, m)").unwrap();
    let (x, a, m) = (graph.var(Var::X), graph.var(Var::Stage(0)), graph.var(Var::Stage(1)));
    let names: Vec<(&str, Reduce)> =
        parsed.stages.iter().map(|(name, reduce, _)| (name.as_str(), *reduce)).collect();
    assert_eq!(names, [("a", Reduce::Sum), ("m", Reduce::Max)]);
    assert_eq!(*graph.node(parsed.stages[0].2), Node::Unary(Unary::Abs, x));
    let below = graph.binary(Binary::Max, a, m);
    assert_eq!(*graph.node(parsed.weight), Node::Binary(Binary::Div, x, below));
    let names = ["a".to_owned(), "m".to_owned()];
    assert_eq!(print(&graph, parsed.weight, &captures(), &names), "x/max(a, m)");
    assert!(row(&mut graph, "l = lse(x); exp(x - l)").is_ok());
    assert!(row(&mut graph, "l = min(q); x").is_ok());
    assert!(row(&mut graph, "sigmoid(x)").unwrap().stages.is_empty());

    row_refused("a = sum(x)", 11, "no weight");
    row_refused("a = sum(x);", 12, "no weight");
    row_refused("x; x", 1, "a statement before the last");
    row_refused("a = x; x", 5, "a stage must be");
    row_refused("a = exp(x); x", 5, "a stage must be");
    row_refused("a = sum; x", 5, "a stage must be");
    row_refused("a = sum(x) + 1; x", 12, "expected ';', found '+'");
    row_refused("a = max(x, 1); x", 5, "takes one expression");
    row_refused("a = sum(x); b2 = sum(x/a); x", 24, "unknown name 'a'");
    row_refused("a = sum(x); a = sum(x); x", 13, "'a' is taken");
    row_refused("slope = sum(x); x", 1, "'slope' is taken");
    row_refused("h = sum(x); x", 1, "'h' has a meaning");
    row_refused("2 = sum(x); x", 1, "expected a name");
    row_refused("a = sum(q < k); x", 9, "sum takes numbers");
    row_refused("a = sum(x); x/sum(x)", 15, "only at the head of a stage");
    row_refused("lse(x)", 1, "only at the head of a stage");
    row_refused("x/max(x)", 3, "max takes 2 arguments, not 1");
    row_refused("a = sum(sum(x)); x", 9, "only at the head of a stage");
    row_refused("score", 1, "no meaning in row");
    row_refused("x < 2", 1, "row must be a number");
    let many: String = (0..9).map(|at| format!("a{at} = sum(x); ")).collect();
    row_refused(&(many + "x"), 8 * 13 + 1, "more than 8 stages");
}

#[test]
fn spans_are_of_the_first_occurrence() {
    let (mut graph, mut spans) = (Graph::new(), Spans::default());
    let captures = captures();
    let scope = Scope { captures: &captures, rank: 1, dim: None };
    let text = "score - slope[h]*(q - k)";
    let expr = parse(&mut graph, &mut spans, Field::Score, text, &scope).unwrap();
    let of = |graph: &Graph, expr: Expr| {
        let span = spans.get(expr).unwrap_or_else(|| panic!("{}", written(graph, expr)));
        &text[span.start..span.end]
    };
    let Node::Binary(Binary::Sub, score, product) = *graph.node(expr) else { panic!("{expr:?}") };
    assert_eq!(of(&graph, expr), text);
    assert_eq!(of(&graph, score), "score");
    assert_eq!(of(&graph, product), "slope[h]*(q - k)");
    for argument in graph.node(product).arguments() {
        assert!(["slope[h]", "(q - k)"].contains(&of(&graph, argument)));
    }
}

#[test]
fn texts_print_as_they_are_written() {
    for text in [
        "score - slope[h]*float(abs(q - k))",
        "c*tanh(score/c)",
        "-(score + c)*2.0",
        "-score*c/2.0 - exp(-(2.0/score))",
        "c - score*exp(-score/c)",
        "-(score//c)*c - 1.0",
        "score*-2.5",
        "score - -inf",
        "(inf - inf)*score",
        "score/(c/2.0)/c",
        "score - (c - 1.0)",
        "select(!(q < k || q == 0) && (q < k || k != 1), relu(score), -1e-30)",
        "float(document[q] - (q - k))",
        "float(-(q%4)//3)",
        "powi(score - c, 2) + powi(score, 3) + score*score",
        "random(42)*random(q, -2147483648)",
        "logaddexp(score, c) + logaddexp(c, 2.0)",
        "table[h, q//2] + stop_grad(expm1(score))",
    ] {
        let mut graph = Graph::new();
        let expr = read(&mut graph, text);
        let again = written(&graph, expr);
        assert_eq!(read(&mut graph, &again), expr, "{text}: {again}");
        let letters = |text: &str| {
            let mut letters: Vec<char> = text.chars().collect();
            letters.sort_unstable();
            letters
        };
        // Sides of + and * may change places, nothing else.
        assert_eq!(letters(&again), letters(text), "{text}: {again}");
    }
}

#[test]
fn variables_of_derivatives_have_names() {
    let mut graph = Graph::new();
    let vars = [
        Var::Grad,
        Var::Shift,
        Var::Delta,
        Var::GradLogsumexp,
        Var::Stage(0),
        Var::Stage(1),
        Var::GradStage(0),
    ];
    let names = ["g", "shift", "delta", "grad_logsumexp", "a", "stage1", "grad_a"];
    for (var, name) in vars.into_iter().zip(names) {
        let expr = graph.var(var);
        assert_eq!(print(&graph, expr, &captures(), &["a".to_owned()]), name);
    }
    let tangent = graph.var(Var::Score.tangent().unwrap());
    let head = graph.index(Index::Head);
    let load = graph.load(Buffer { capture: 0, tangent: true }, Type::F, &[head]);
    let scalar = graph.load(Buffer { capture: 9, tangent: false }, Type::F, &[]);
    let product = graph.mul(load, scalar);
    let sum = graph.add(tangent, product);
    assert_eq!(written(&graph, sum), "score' + slope'[h]*capture9");
}

/// What several expressions share is written once, under the label of a root that is it, or under a name that no
/// captured tensor has.
#[test]
fn lists_write_once_what_is_shared() {
    let mut graph = Graph::new();
    let exprs = [
        "exp(score - slope[h])",
        "exp(score - slope[h])*tanh(c*score + 1)",
        "tanh(c*score + 1) - exp(score - slope[h])",
        "tanh(c*score + 1)",
        "slope[h]*(score - slope[h])",
    ]
    .map(|text| read(&mut graph, text));
    let roots: Vec<_> = ["weight", "grad_c +=", "c", "a[h]", "x"].into_iter().zip(exprs).collect();
    let mut captures = captures();
    let lines: Vec<String> = list(&graph, &roots, &captures, &[])
        .into_iter()
        .map(|lines| lines.into_iter().map(|(name, text)| format!("{name}: {text}; ")).collect())
        .collect();
    let expected = [
        "t1: score - slope[h]; weight: exp(t1); ",
        "t2: tanh(score*c + 1.0); grad_c +=: weight*t2; ",
        "c: t2 - weight; ",
        "a[h]: t2; ",
        "x: slope[h]*t1; ",
    ];
    assert_eq!(lines, expected);

    captures.push(Capture::new("t1", &[], DType::F32));
    captures.push(Capture::new("weight", &[], DType::F32));
    let lists = list(&graph, &roots, &captures, &[]);
    let names: Vec<&str> = lists[0].iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["t2", "weight"]);
    assert_eq!(lists[0][1].1, "exp(t2)");
}
