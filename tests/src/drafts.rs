//! Random programs, well-conditioned by construction: functions that are bounded or grow slowly, and whose derivatives
//! do, of numbers of the size of 1, and sums scaled to it. A [`Draft`] is drawn without knowing the problem, and
//! [`Draft::program`] makes a program of it.

use natten_core::program::{Capture, Program};
use natten_core::{DType, Result};
use proptest::prelude::*;

/// What a drawn program may have in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only what has derivatives of every order.
    Smooth,
    /// Kinks as well: absolute values, extremes.
    Kinks,
    /// Constants to derivatives as well: the gradient is not the derivative.
    Everything,
}

/// The texts of a program, coordinates written `{q1}`, without the number of its token axes.
#[derive(Clone, Debug)]
pub struct Draft {
    score: Option<String>,
    mask: Option<String>,
    row: String,
    post: Option<String>,
    mods: [Option<&'static str>; 3],
    vector: usize,
    matrix: [usize; 2],
    dtype: DType,
}

/// Functions of a number `a`.
const SMOOTH: [&str; 16] = [
    "tanh(a)",
    "sin(a)",
    "cos(a)",
    "(2*sigmoid(a) - 1)",
    "erf(a)",
    "softplus(a)/2",
    "exp(tanh(a))/2",
    "exp2(sin(a))/2",
    "expm1(tanh(a)/2)",
    "log(1 + a*a)/2",
    "log1p(a*a/2)",
    "log2(1.5 + sin(a))/2",
    "sqrt(0.25 + a*a)",
    "rsqrt(0.5 + a*a)",
    "powi(tanh(a), 3)",
    "-a",
];
const KINKED: [&str; 3] = ["abs(a)", "relu(a)", "select(0.25 < a, a, a/2 + 0.125)"];

/// Functions of two numbers `a` and `c`.
const PAIRS: [&str; 6] =
    ["(a + c)/1.5", "(a - c/2)", "a*tanh(c)", "a/(1 + c*c)", "(a + sin(c)/2)", "logaddexp(a, c)/1.5"];
const KINKED_PAIRS: [&str; 2] = ["min(a, c)", "max(a, c)"];

/// Functions of two integers `i` and `j`.
const INTEGERS: [&str; 12] = [
    "(i + j)",
    "(i - j)",
    "i*j",
    "i // j",
    "i % j",
    "min(i, j)",
    "max(i, j)",
    "abs(i - j)",
    "bitand(i, j)",
    "bitor(i, j)",
    "bitxor(i, j)",
    "shr(i, 1)",
];

/// Row functions that no preset is.
const ROWS: [&str; 8] = [
    "s = sum(x); sigmoid(x - tanh(s/8))",
    "s = sum(x*x); tanh(x)*rsqrt(1 + s*s/16)",
    "l = lse(x); x/(4 + softplus(l))",
    "s = sum(tanh(x)); l = lse(x); exp(x - l)*(1 + tanh(s/8)/2)",
    "s = sum(x*vector[k % 3]/2); t = sum(sin(x)); sigmoid(x - s/8)/(1 + softplus(t/8))",
    "s = sum(x); l = lse(2*x); tanh(x)*sin(s/8) + exp(2*x - l)*cos(s/16)",
    "l = lse(x + scalar); m = lse(-x); exp(x + scalar - l) - sigmoid(m)/9",
    "s = sum(x/2); x*(2 + sin(s))/9",
];
const KINKED_ROWS: [&str; 5] = [
    "m = max(x); exp(x - m)",
    "m = max(x); s = sum(relu(x)); sigmoid(x - m)/(1 + s)",
    "m = min(x*x); s = sum(abs(x)); x*exp(-m)/(1 + s)",
    "s = sum(relu(x)); m = max(-x); relu(x)/(1 + s) + tanh(m)/9",
    "l = lse(x); m = max(x); exp(x - l)*sigmoid(m - l)",
];
const PRESETS: [&str; 5] = ["softmax", "softmax1", "sigmoid", "identity", "softmax-sink:head"];
// Not l1: it divides by what may be anywhere near 0.
const KINKED_PRESETS: [&str; 3] = ["relu", "relu:2", "retention"];

/// Functions of vectors of any length.
const MODS: [&str; 4] = [
    "x*rsqrt(sum(x*x)/float(dim) + 0.1)*gain[d % 5]",
    "tanh(x) + x/4",
    "x*cos(float(d)/4)",
    "x*(1 + gain[(d + h) % 5]/2)",
];

/// `text` with one-letter names replaced.
fn with(text: &str, names: &[(char, &str)]) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric();
    let mut result = String::new();
    let mut rest = text.chars().peekable();
    let mut last = ' ';
    while let Some(c) = rest.next() {
        let stands_alone = !is_name(last) && !rest.peek().copied().is_some_and(is_name);
        match names.iter().find(|(name, _)| stands_alone && *name == c) {
            Some((_, replacement)) => result += replacement,
            None => result.push(c),
        }
        last = c;
    }
    result
}

/// Those that are smooth and, unless only these are wanted, the others.
fn allowed(content: Content, smooth: &[&'static str], kinked: &[&'static str]) -> Vec<&'static str> {
    let kinked = if content == Content::Smooth { &[] } else { kinked };
    [smooth, kinked].concat()
}

fn integers() -> impl Strategy<Value = String> {
    let names = ["q", "k", "h", "hkv", "b", "{q0}", "{k0}", "{q1}", "{k1}", "{q2}", "{k2}"];
    let leaf = prop_oneof![
        1 => (0..7i32).prop_map(|value| value.to_string()),
        4 => prop::sample::select(names.to_vec()).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(2, 5, 2, |inner| {
        prop_oneof![
            5 => (prop::sample::select(INTEGERS.to_vec()), inner.clone(), inner.clone())
                .prop_map(|(text, i, j)| with(text, &[('i', &format!("({i})")), ('j', &format!("({j})"))])),
            1 => inner.prop_map(|at| format!("integers[({at}) % 5]")),
        ]
    })
}

fn conditions() -> impl Strategy<Value = String> {
    let compare = prop::sample::select(vec!["<=", "<", ">", "==", "!="]);
    let leaf = prop_oneof![
        2 => (-2..=6i32).prop_map(|room| format!("k - q <= {room}")),
        1 => (1..=4i32).prop_map(|reach| format!("abs({{q0}} - {{k0}}) < {reach}")),
        3 => (compare, integers(), integers()).prop_map(|(compare, i, j)| format!("{i} {compare} {j}")),
    ];
    leaf.prop_recursive(2, 3, 2, |inner| {
        prop_oneof![
            3 => (any::<bool>(), inner.clone(), inner.clone())
                .prop_map(|(all, a, b)| format!("(({a}) {} ({b}))", if all { "&&" } else { "||" })),
            1 => inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

/// Numbers of a variable: `score`, or a number that is always there.
fn numbers(content: Content, variable: &'static str) -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => Just(variable.to_owned()),
        1 => (1..=8u32).prop_map(|eighths| format!("{:?}", f64::from(eighths) / 8.0)),
        1 => integers().prop_map(|i| format!("sin(float({i}))")),
        1 => Just("scalar".to_owned()),
        1 => integers().prop_map(|i| format!("vector[{i}]")),
        2 => (integers(), integers()).prop_map(|(i, j)| format!("matrix[({i}) % 3, {j}]")),
        1 => (0..9u32).prop_map(|seed| format!("random({seed})")),
    ];
    let functions = prop::sample::select(allowed(content, &SMOOTH, &KINKED));
    let pairs = prop::sample::select(allowed(content, &PAIRS, &KINKED_PAIRS));
    leaf.prop_recursive(3, 6, 2, move |inner| {
        prop_oneof![
            4 => (functions.clone(), inner.clone())
                .prop_map(|(text, a)| with(text, &[('a', &format!("({a})"))])),
            4 => (pairs.clone(), inner.clone(), inner.clone())
                .prop_map(|(text, a, c)| with(text, &[('a', &format!("({a})")), ('c', &format!("({c})"))])),
            1 => (conditions(), inner.clone(), inner)
                .prop_map(|(condition, a, c)| format!("select({condition}, {a}, {c})")),
        ]
    })
}

fn rows(content: Content) -> impl Strategy<Value = String> {
    let mut presets = allowed(content, &PRESETS, &KINKED_PRESETS);
    if content == Content::Everything {
        presets.push("retention:detach");
    }
    let others = prop::sample::select(allowed(content, &ROWS, &KINKED_ROWS));
    prop_oneof![prop::sample::select(presets), others].prop_map(str::to_owned)
}

/// Programs of attention: scores, masks, rows, dropout, vector functions, captured tensors of every dtype.
pub fn drafts(content: Content) -> impl Strategy<Value = Draft> {
    // Not a number that could take the score away: scores that are all alike have no derivative where the largest counts.
    let score = numbers(content, "score").prop_map(|number| format!("0.7*score + {number}"));
    let score = prop::option::weighted(0.8, score);
    let mask = prop::option::weighted(0.4, conditions());
    let gate = numbers(content, "0.75").prop_map(|number| format!("1 + ({number})/2"));
    let dropout = (1..=6u32, 0..1u64 << 40).prop_map(|(tenths, seed)| {
        let p = f64::from(tenths) / 10.0;
        format!("select(random({seed}) >= {p:?}, {:?}, 0.0)", 1.0 / (1.0 - p))
    });
    let post = prop_oneof![3 => Just(None), 1 => gate.prop_map(Some), 1 => dropout.prop_map(Some)];
    let function = || prop::option::weighted(0.15, prop::sample::select(MODS.to_vec()));
    let mods = (function(), function(), function());
    let shapes = (1..=6usize, 1..=6usize, 1..=6usize);
    let dtype = prop_oneof![3 => Just(DType::F32), 1 => prop::sample::select(DType::FLOATS.to_vec())];
    (score, mask, rows(content), post, mods, shapes, dtype).prop_map(
        |(score, mask, row, post, (query, key, value), (vector, rows, columns), dtype)| Draft {
            score,
            mask,
            row,
            post,
            mods: [query, key, value],
            vector,
            matrix: [rows, columns],
            dtype,
        },
    )
}

/// Decays of linear attention, weak and strong, with vector functions and without.
pub fn decays() -> impl Strategy<Value = Draft> {
    let decay = prop::sample::select(vec![
        "0.0",
        "-50.0",
        "-softplus(matrix[h % 3, k])",
        "-exp(head[h])*sigmoid(vector[k % 4] + scalar)",
        "log(1 - exp2(-2 - float(h)))",
        "select(integers[k % 5] == 0, -50.0, -0.1*float(b + 1))",
    ]);
    (drafts(Content::Smooth), decay).prop_map(|(draft, decay)| Draft {
        score: Some(decay.to_owned()),
        mask: None,
        post: None,
        row: String::new(),
        ..draft
    })
}

impl Draft {
    /// The program for attention over `rank` token axes and with so many query heads. Of the captured tensors, named
    /// `scalar`, `vector`, `matrix`, `gain`, `head` and `integers`, it may use none.
    ///
    /// # Errors
    /// None for what is drawn; see [`ProgramBuilder::build`](natten_core::program::ProgramBuilder::build).
    pub fn program(&self, rank: usize, heads: usize) -> Result<Program> {
        let numbers: [(&str, &[usize]); 5] = [
            ("scalar", &[]),
            ("vector", &[self.vector]),
            ("matrix", &self.matrix),
            ("gain", &[5]),
            ("head", &[heads]),
        ];
        let mut builder = Program::builder(rank).capture(Capture::new("integers", &[5], DType::I32));
        for (name, shape) in numbers {
            builder = builder.capture(Capture::new(name, shape, self.dtype));
        }
        // A coordinate that is not there is the first one.
        let text = |text: &str| {
            (0..3).fold(text.to_owned(), |text, axis| {
                let there = if axis < rank { axis } else { 0 };
                text.replace(&format!("{{q{axis}}}"), &format!("q{there}"))
                    .replace(&format!("{{k{axis}}}"), &format!("k{there}"))
            })
        };
        let [query, key, value] = self.mods;
        // Without a row function this is a recurrence.
        builder = match (&self.score, self.row.as_str()) {
            (Some(decay), "") => builder.decay(decay.as_str()),
            (Some(score), row) => builder.score(text(score)).row(row),
            (None, row) => builder.row(row),
        };
        builder = self.mask.iter().fold(builder, |builder, mask| builder.mask(text(mask)));
        builder = self.post.iter().fold(builder, |builder, post| builder.post(text(post)));
        builder = query.iter().fold(builder, |builder, &f| builder.query_mod(f));
        builder = key.iter().fold(builder, |builder, &f| builder.key_mod(f));
        builder = value.iter().fold(builder, |builder, &f| builder.value_mod(f));
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_where_they_stand_alone() {
        assert_eq!(with("a*tanh(c) + abs(a)", &[('a', "(x)"), ('c', "1")]), "(x)*tanh(1) + abs((x))");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_drawn_is_a_program(draft in drafts(Content::Everything), decay in decays(), rank in 1..=3usize) {
            prop_assert!(draft.program(rank, 3).is_ok(), "{:?}", draft.program(rank, 3));
            prop_assert!(decay.program(1, 2).is_ok(), "{:?}", decay.program(1, 2));
        }
    }
}
