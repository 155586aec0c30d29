//! Programs: every preset row, the score functions and masks that models have, loads of every kind, vector functions,
//! every function of the language, dead rows and tiles, and numbers that are not finite where they may not matter.
//! Each case runs forward, backward and the tangents of both, along every input.

use natten_core::geometry::Neighborhood;
use natten_core::program::{Capture, Program, ProgramBuilder};
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, ProblemBuilder, Role};

use crate::case::{Case, everything};
use crate::data::uniform;
use crate::features::{axis, case};
use crate::memory::Layout;

pub(crate) const HEADS: usize = 4;

/// Who sees whom, in a few variants.
#[derive(Clone)]
pub(crate) struct Grid {
    pub(crate) name: &'static str,
    pub(crate) window: Neighborhood,
}

impl Grid {
    fn queries(&self) -> usize {
        self.window.query_shape().iter().product()
    }

    fn keys(&self) -> usize {
        self.window.key_shape().iter().product()
    }

    /// Few of batch entries and heads where they are long, grouped heads, vectors of two lengths.
    pub(crate) fn problem(&self, dtype: DType) -> ProblemBuilder {
        let problem = Problem::builder(self.window.clone(), dtype);
        let problem = if self.queries() < 50 {
            problem.batch(2).heads(HEADS).heads_kv(2)
        } else {
            problem.heads(2).heads_kv(1)
        };
        problem.head_dim(8).head_dim_v(6)
    }
}

/// Small ones: the three ranks, each window with a stride, a dilation and a causal axis, and ordinary attention.
pub(crate) fn small() -> Vec<Grid> {
    let windows: [(&'static str, &[_]); 3] = [
        ("1d", &[axis(21, 6, 2, 2, true)]),
        ("2d", &[axis(5, 3, 1, 1, false), axis(6, 3, 2, 2, true)]),
        ("3d", &[axis(3, 2, 1, 1, true), axis(3, 3, 1, 1, false), axis(4, 2, 2, 2, false)]),
    ];
    let windows = windows.map(|(name, axes)| (name, Neighborhood::new(axes)));
    let all = windows.into_iter().chain([("full", Neighborhood::full(11, 15, None))]);
    all.map(|(name, window)| Grid { name, window: window.unwrap_or_else(|error| panic!("{error}")) })
        .collect()
}

/// A sequence long enough for tiles that a mask leaves empty, cuts, and leaves full.
pub(crate) fn long() -> Grid {
    let window = Neighborhood::full(72, 100, None).unwrap_or_else(|error| panic!("{error}"));
    Grid { name: "long", window }
}

pub(crate) fn number(name: &str, shape: &[usize]) -> Capture {
    Capture::new(name, shape, DType::F32)
}

fn integer(name: &str, shape: &[usize]) -> Capture {
    Capture::new(name, shape, DType::I32)
}

pub(crate) fn built(program: ProgramBuilder) -> Program {
    program.build().unwrap_or_else(|error| panic!("{error}"))
}

/// Cases on their way into the list, dtypes in turn.
struct Cases {
    cases: Vec<Case>,
}

impl Cases {
    /// A program on some grids.
    fn add(
        &mut self,
        name: &str,
        grids: &[Grid],
        program: impl Fn(&Grid, ProgramBuilder) -> ProgramBuilder,
        finish: impl Fn(&Grid, Case) -> Case,
    ) {
        self.add_with(name, grids, |_, problem| problem, program, finish);
    }

    /// A program on some grids, of problems with more to them.
    fn add_with(
        &mut self,
        name: &str,
        grids: &[Grid],
        problem: impl Fn(&Grid, ProblemBuilder) -> ProblemBuilder,
        program: impl Fn(&Grid, ProgramBuilder) -> ProgramBuilder,
        finish: impl Fn(&Grid, Case) -> Case,
    ) {
        for grid in grids {
            let dtype = DType::FLOATS[self.cases.len() % 4];
            let program = built(program(grid, Program::builder(grid.window.rank())));
            let problem = problem(grid, grid.problem(dtype)).program(program);
            let name = format!("program-{name}-{}-{dtype}", grid.name);
            self.cases.push(finish(grid, case(name, problem).fused()));
        }
    }
}

fn as_is(_: &Grid, case: Case) -> Case {
    case
}

/// Every case of this module.
pub(crate) fn program_cases() -> Vec<Case> {
    let mut cases = Cases { cases: Vec::new() };
    scores(&mut cases);
    loads(&mut cases);
    masks(&mut cases);
    rows(&mut cases);
    posts(&mut cases);
    vectors(&mut cases);
    functions(&mut cases);
    everything_at_once(&mut cases);
    packed(&mut cases);
    requests(&mut cases);
    not_finite(&mut cases);
    crossed(&mut cases);
    cases.cases
}

fn scores(cases: &mut Cases) {
    let grids = small();
    cases.add("softcap", &grids, |_, p| p.score("4*tanh(score/4)"), as_is);
    cases.add(
        "softcap-captured",
        &grids[1..3],
        |_, p| p.capture(number("c", &[])).score("c*tanh(score/c)"),
        |_, case| case.fill("c", |_| 3.0),
    );
    cases.add(
        "alibi",
        &grids,
        |_, p| p.capture(number("slope", &[HEADS])).score("score - slope[h]*abs(q - k)"),
        |_, case| case.fill("slope", |head| (-(head as f64)).exp2()),
    );
    // Twice the logarithm of a sum over tiles: more than one of them, and the bias as large as scores are.
    cases.add(
        "alibi",
        &[long()],
        |_, p| p.capture(number("slope", &[HEADS])).score("score - slope[h]*abs(q - k)").mask("k <= q"),
        |_, case| case.fill("slope", |head| (-(head as f64)).exp2() / 4.0),
    );
}

/// Vectors of 16 bytes and multiples, in 16 bits: what kernels for matrix units want.
fn packed(cases: &mut Cases) {
    type Build = fn(&Grid, ProgramBuilder) -> ProgramBuilder;
    let programs: [(&str, Build); 3] = [
        ("softcap", |_, p| p.score("2*tanh(score/2)")),
        ("slope-causal", |_, p| {
            p.capture(number("slope", &[HEADS])).score("score - slope[h]*abs(q - k)/8").mask("k <= q")
        }),
        ("dense-bias", |grid, p| {
            p.capture(number("bias", &[HEADS, grid.queries(), grid.keys()])).score("score + bias[h, q, k]")
        }),
    ];
    for grid in small().into_iter().chain([long()]) {
        for (name, build) in programs {
            for dtype in [DType::F16, DType::Bf16] {
                let program = built(build(&grid, Program::builder(grid.window.rank())));
                let problem = grid.problem(dtype).head_dim(16).head_dim_v(24).program(program);
                let name = format!("program-packed-{name}-{}-{dtype}", grid.name);
                cases.cases.push(case(name, problem).fused());
            }
        }
    }
    // Additional tokens, which have neither function, behind keys that do.
    for grid in [small().swap_remove(1), long()] {
        for dtype in [DType::F16, DType::Bf16] {
            let program = built(programs[1].1(&grid, Program::builder(grid.window.rank())));
            let problem = grid.problem(dtype).head_dim(16).head_dim_v(24).program(program);
            let name = format!("program-packed-extra-{}-{dtype}", grid.name);
            cases.cases.push(case(name, problem.additional_tokens(75)).fused());
        }
    }
}

fn loads(cases: &mut Cases) {
    let grids = small();
    cases.add(
        "table-flat",
        &[grids[0].clone(), grids[3].clone()],
        |_, p| p.capture(number("t", &[HEADS, 21])).score("score + t[h, k - q + 10]"),
        as_is,
    );
    cases.add(
        "table-2d",
        &grids[1..2],
        |_, p| p.capture(number("t", &[HEADS, 5, 9])).score("score + t[h, k0 - q0 + 2, k1 - q1 + 4]"),
        as_is,
    );
    cases.add(
        "table-3d",
        &grids[2..3],
        |_, p| {
            p.capture(number("t", &[3, 5, 5])).score("score*(1 + t[k0 - q0 + 1, k1 - q1 + 2, k2 - q2 + 2]/4)")
        },
        as_is,
    );
    let dense = |grid: &Grid| number("bias", &[HEADS, grid.queries(), grid.keys()]);
    cases.add("dense-bias", &grids, |grid, p| p.capture(dense(grid)).score("score + bias[h, q, k]"), as_is);
    let batched = |grid: &Grid| number("bias", &[2, 1, grid.queries(), grid.keys()]);
    cases.add(
        "dense-bias-batched",
        &grids[..1],
        |grid, p| p.capture(batched(grid)).score("score + bias[b, h, q, k]"),
        as_is,
    );
    cases.add(
        "two-loads",
        &grids,
        |_, p| p.capture(number("t", &[HEADS, 5])).score("score*t[h, q % 5] + t[h, k % 5] - t[hkv, 2]"),
        as_is,
    );
    cases.add(
        "clamped",
        &grids[..2],
        |_, p| p.capture(number("t", &[7])).score("score + t[k - 9]*t[k + q - 5]"),
        as_is,
    );
    // Indices are out of range only where the mask hides the pair: the clamped element gets nothing from there.
    cases.add(
        "clamped-where-masked",
        &grids,
        |grid, p| {
            let t = number("t", &[grid.keys() - 3]);
            p.capture(t).score("score + t[k - 3]").mask("k >= 3")
        },
        as_is,
    );
    for dtype in [DType::F64, DType::F16, DType::Bf16] {
        let t = Capture::new("t", &[HEADS, 6], dtype);
        cases.add(
            &format!("captured-{dtype}"),
            &grids[..2],
            move |_, p| p.capture(t.clone()).score("score + t[h, k % 6]"),
            as_is,
        );
    }
    cases.add(
        "constant-and-not",
        &grids[..1],
        |_, p| {
            let p = p.capture(number("fixed", &[6]).constant()).capture(number("t", &[6]));
            p.score("score*fixed[k % 6] + t[q % 6]")
        },
        as_is,
    );
}

/// Loads of one tensor with an index at different axes, by which rows meet in an element: what runs beside each other must
/// not add to its gradient at once.
fn crossed(cases: &mut Cases) {
    let grids = small();
    let square = |grid: &Grid| number("t", &[grid.queries().max(HEADS); 2]);
    cases.add(
        "crossed-query-head",
        &grids,
        |grid, p| p.capture(square(grid)).score("score + t[q, h]*t[h, q]"),
        as_is,
    );
    cases.add(
        "crossed-coordinates",
        &grids[1..2],
        |_, p| {
            p.capture(number("t", &[HEADS, 6, 6])).score("score + t[h, q0, q1] - t[h, q1, q0]*t[h, k0, k1]")
        },
        as_is,
    );
    cases.add(
        "crossed-batch-head",
        &grids[..1],
        |_, p| p.capture(number("t", &[HEADS; 2])).score("score*t[b, h] + t[h, b]"),
        as_is,
    );
    cases.add(
        "crossed-vectors",
        &grids[..2],
        |grid, p| p.capture(square(grid)).query_mod("x*t[q, h] + t[h, q]"),
        as_is,
    );
}

fn masks(cases: &mut Cases) {
    let grids = small();
    let sequences = [grids[0].clone(), grids[3].clone(), long()];
    cases.add("mask-causal", &sequences, |_, p| p.mask("k <= q"), as_is);
    cases.add(
        "mask-document",
        &sequences,
        |grid, p| {
            let p = p.capture(integer("of_query", &[grid.queries()]));
            p.capture(integer("of_key", &[grid.keys()])).mask("of_query[q] == of_key[k]")
        },
        |_, case| case.fill("of_query", |q| (q / 5) as f64).fill("of_key", |k| ((k + 2) / 6) as f64),
    );
    cases.add(
        "mask-prefix",
        &sequences,
        |_, p| p.capture(integer("prefix", &[2])).mask("k <= q || k < prefix[b]"),
        |_, case| case.fill("prefix", |b| [4.0, 40.0][b]),
    );
    cases.add(
        "mask-blocks",
        &[grids[1].clone(), long()],
        |grid, p| {
            let blocks = integer("blocks", &[grid.queries().div_ceil(8), grid.keys().div_ceil(8)]);
            p.capture(blocks).mask("blocks[q // 8, k // 8] != 0")
        },
        |_, case| case.fill("blocks", |at| f64::from(uniform(5, at as u64) < 0.4)),
    );
    cases.add("mask-heads", &grids, |_, p| p.mask("h % 2 == 0 || k + b > q"), as_is);
    cases.add("mask-coordinates", &grids[1..3], |_, p| p.mask("abs(q0 - k0) + abs(q1 - k1) < 3"), as_is);
    cases.add(
        "mask-of-numbers",
        &grids[..2],
        |grid, p| p.capture(number("depth", &[grid.keys()])).mask("depth[k] < depth[q] + 0.5"),
        as_is,
    );
    // Rows without a key, tiles without a pair, and nothing at all, with a logsumexp and without.
    for row in ["softmax", "sigmoid", "retention"] {
        cases.add(&format!("mask-dead-rows-{row}"), &grids, move |_, p| p.mask("q % 3 != 1").row(row), as_is);
        cases.add(
            &format!("mask-dead-tiles-{row}"),
            &[long()],
            move |_, p| p.mask("q // 20 != 1 && (k < 30 || k >= 90)").row(row),
            as_is,
        );
        cases.add(
            &format!("mask-nothing-{row}"),
            &grids[..1],
            move |_, p| p.mask("k > q + 99").row(row),
            as_is,
        );
    }
    cases.add_with(
        "mask-dead-but-additional",
        &grids[..2],
        |_, problem| problem.additional_tokens(3),
        |_, p| p.mask("q % 2 == 0"),
        as_is,
    );
    // By a score of -inf: a mask too, of rows that have a logsumexp.
    cases.add("minus-inf", &sequences[..2], |_, p| p.score("select(k > q - 1, -inf, score)"), as_is);
}

fn rows(cases: &mut Cases) {
    let grids = small();
    for row in ["softmax1", "sigmoid", "relu", "relu:2", "identity", "retention", "retention:detach", "l1"] {
        let name = format!("row-{}", row.replace(':', "-"));
        // What l1 divides by is nowhere near 0: there nothing bounds what a rounding does.
        let score = if row == "l1" { "select(0 < score, score + 0.5, score)" } else { "2*score + 0.3" };
        cases.add(&name, &grids, |_, p| p.score(score).row(row), as_is);
        cases.add_with(
            &format!("{name}-extra"),
            &grids[1..2],
            |_, problem| problem.additional_tokens(5).relative_positional_bias(true),
            |_, p| if row == "l1" { p.score(score).row(row) } else { p.row(row) },
            as_is,
        );
    }
    let sink = number("sink", &[HEADS]);
    cases.add("row-softmax-sink", &grids, |_, p| p.capture(sink.clone()).row("softmax-sink"), as_is);
    let texts = [
        ("two-pass", "m = sum(x); sigmoid(x - m/8)"),
        ("two-pass-lse", "l = lse(x); sigmoid(x - l + 2)"),
        ("max", "m = max(x); exp(x - m)"),
        ("extremes", "m = max(x); n = min(x*x); a = sum(x*x); x*exp(n - m)/(1 + a)"),
        ("two-lse", "l = lse(x); m = lse(2*x); exp(x - l) - exp(2*x - m)/2"),
        ("scaled-softmax", "l = lse(x/2); exp(x/2 - l)*(1 + sin(l)/8)"),
        ("two-sums", "a = sum(relu(x)); c = sum(x*x); relu(x)/(1 + a) + x/(2 + c)"),
    ];
    for (name, text) in texts {
        cases.add(&format!("row-{name}"), &grids, |_, p| p.row(text), as_is);
        cases.add_with(
            &format!("row-{name}-extra"),
            &grids[..1],
            |_, problem| problem.additional_tokens(4),
            |_, p| p.row(text),
            as_is,
        );
    }
    cases.add(
        "row-of-captures",
        &grids[..2],
        |_, p| {
            let p = p.capture(number("t", &[6])).capture(number("g", &[HEADS]));
            p.row("a = sum(x*t[k % 6]); l = lse(x + g[h]); exp(x + g[h] - l) + x*t[q % 6]/(9 + a*a)")
        },
        as_is,
    );
    for (name, row) in [("retention", "retention"), ("two-pass", texts[0].1), ("softmax1", "softmax1")] {
        cases.add(
            &format!("row-{name}"),
            &[long()],
            |_, p| p.score("score/2").mask("k <= q").row(row),
            as_is,
        );
    }
}

fn posts(cases: &mut Cases) {
    let grids = small();
    cases.add("dropout", &grids, |_, p| p.dropout(0.3, 0x1_2345_6789), as_is);
    cases.add("dropout", &[long()], |_, p| p.dropout(0.5, 7).mask("k <= q"), as_is);
    let gates = |grid: &Grid| number("gate", &[grid.keys() + 3]);
    for row in ["softmax", "sigmoid", "m = sum(x); sigmoid(x - m/8)"] {
        let name = if row.contains(';') { "two-pass" } else { row };
        cases.add_with(
            &format!("dropout-gated-{name}"),
            &grids[..2],
            |_, problem| problem.additional_tokens(3),
            |grid, p| p.capture(gates(grid)).post("select(random(7) >= 0.25, 1/0.75, 0)*gate[k]").row(row),
            as_is,
        );
    }
    cases.add(
        "random-seed-captured",
        &grids[..2],
        |_, p| p.capture(integer("seed", &[2])).score("score + random(seed[0], seed[1])"),
        |_, case| case.fill("seed", |word| [7.0, -9.0][word]),
    );
}

fn vectors(cases: &mut Cases) {
    let grids = small();
    let rotate = |position: &str, swap: &str| {
        let angle = format!("float({position})*freq[d % 4]");
        let sign = if swap == "half" { "select(d < dim // 2, -1.0, 1.0)" } else { "float(2*(d % 2) - 1)" };
        format!("x*cos({angle}) + {sign}*{swap}(x)*sin({angle})")
    };
    for swap in ["half", "pair"] {
        cases.add(
            &format!("rotated-by-{swap}"),
            &grids,
            |_, p| {
                let p = p.capture(number("freq", &[4]));
                p.query_mod(rotate("q", swap)).key_mod(rotate("k", swap))
            },
            |_, case| case.fill("freq", |at| (-(at as f64)).exp2() / 2.0),
        );
    }
    cases.add_with(
        "rms-norm",
        &grids,
        |_, problem| problem.additional_tokens(2),
        |_, p| {
            let p = p.capture(number("gain_q", &[HEADS, 8])).capture(number("gain_k", &[8]));
            let norm = |gain: &str| format!("x*rsqrt(sum(x*x)/float(dim) + 0.01)*{gain}");
            p.query_mod(norm("gain_q[h, d]")).key_mod(norm("gain_k[d]"))
        },
        as_is,
    );
    cases.add(
        "value-mod",
        &grids,
        |_, p| p.capture(number("gain", &[2, 6])).value_mod("tanh(x)*gain[hkv, d] + pair(x)/4"),
        as_is,
    );
    cases.add(
        "all-mods",
        &grids[1..2],
        |_, p| {
            let p = p.capture(number("w", &[8])).query_mod("relu(x)*w[d]").key_mod("x - sum(x)/float(dim)");
            p.value_mod("x*exp(-float(k)/64)").row("sigmoid").score("score + w[(q + k) % 8]")
        },
        as_is,
    );
}

/// Every function of the language, with its derivatives, and integers.
fn functions(cases: &mut Cases) {
    let numbers = [
        ("neg-abs", "-abs(score)/2"),
        ("exp", "exp(score/4)"),
        ("exp2", "exp2(score/4)"),
        ("log", "log(1 + score*score)"),
        ("log2", "log2(1.5 + sin(score))"),
        ("expm1", "expm1(score/4)"),
        ("log1p", "log1p(score*score/2)"),
        ("sqrt", "sqrt(0.5 + score*score)"),
        ("rsqrt", "3*rsqrt(0.5 + score*score)"),
        ("tanh", "score - tanh(2*score)"),
        ("sigmoid", "4*sigmoid(score)"),
        ("softplus", "softplus(2*score)"),
        ("erf", "3*erf(score/2)"),
        ("sin-cos", "sin(score)*cos(2*score)"),
        ("floor", "score + floor(3.3*float(q % 4))/8"),
        ("stop-grad", "score*stop_grad(score)/2"),
        ("min-max", "min(max(score, -0.5), 0.75) + score/8"),
        ("powi", "powi(score, 3)/8 + powi(2 + cos(score), -2)"),
        ("mod", "(score + 40) % 7.5 + (score + 40) // 100"),
        ("relu", "relu(score) - relu(-score)/4"),
        ("logaddexp", "logaddexp(score, 0.5)"),
        ("shared", "2*score + tanh(2*score)"),
        ("division", "score/(1.5 + tanh(score))"),
        ("integers", "score*float(1 - 2*bitand(bitxor(q, k), 1)) + float(shl(q % 3, 1) - shr(k, 2))/8"),
        ("floor-integers", "score + float((q - k) // 3 - (q - k) % 5 + min(q, k) % 4 - max(b, h))/8"),
        ("int", "score + float(int(1.7*float(k - q) - 0.5) % 7 + bitor(q, 2) % 3)/8"),
        ("select", "select(q == k || !(k < q && h != 1), score, -score/2)"),
        ("conditions-of-scores", "select(score <= 0.25, score/2, score*score - 1/16)"),
        ("random", "score*(0.5 + random(3))"),
    ];
    let grid = [small().swap_remove(0)];
    for (name, text) in numbers {
        for _ in 0..2 {
            let name = format!("function-{name}");
            cases.add(&name, &grid, |_, p| p.score(text), as_is);
        }
    }
}

fn everything_at_once(cases: &mut Cases) {
    let grids = small();
    for row in ["softmax", "sigmoid", "retention", "m = sum(x); sigmoid(x - m/8)"] {
        let name = if row.contains(';') { "two-pass" } else { row };
        cases.add_with(
            &format!("all-{name}"),
            &grids[..3],
            |_, problem| problem.relative_positional_bias(true).additional_tokens(5),
            |grid, p| {
                let p = p.capture(number("slope", &[HEADS])).capture(integer("of", &[grid.keys()]));
                let p = p.capture(number("gain", &[8])).row(row).dropout(0.2, 11);
                p.score("3*tanh(score/3) - slope[h]*abs(q - k)/8")
                    .mask("k <= q && of[k] != of[q] + 1")
                    .query_mod("x*gain[d]")
            },
            |_, case| case.fill("of", |k| (k / 4) as f64),
        );
    }
    cases.add_with(
        "all-odd-dims",
        &grids,
        |_, problem| problem.heads_kv(1).head_dim(17).head_dim_v(33).additional_tokens(1).scale(Some(-0.25)),
        |_, p| p.score("5*tanh(score/5)").mask("k != q + 1"),
        as_is,
    );
    for (grid, layout) in
        grids.iter().zip([Layout::HeadsFirst, Layout::Reversed, Layout::Gapped, Layout::Gapped])
    {
        cases.add_with(
            &format!("layout-{}", layout.name()),
            std::slice::from_ref(grid),
            |_, problem| problem.additional_tokens(2),
            |grid, p| {
                let p = p.capture(number("bias", &[HEADS, grid.queries(), 5])).row("softmax-sink");
                p.capture(number("sink", &[HEADS])).score("score + bias[h, q, k % 5]")
            },
            |_, case| case.layout(layout),
        );
    }
    let tiles: [[&[usize]; 2]; 3] = [[&[1], &[1]], [&[5], &[64]], [&[64], &[16]]];
    for (turn, [query_tile, key_tile]) in tiles.into_iter().enumerate() {
        for row in ["softmax", "m = sum(x); sigmoid(x - m/8)"] {
            let name = if row == "softmax" { row } else { "two-pass" };
            cases.add(
                &format!("tiles-{turn}-{name}"),
                &[grids[0].clone(), long()],
                |_, p| {
                    let p = p.capture(number("t", &[9])).row(row).dropout(0.2, 3);
                    p.score("score + t[(k - q) % 9]").mask("k <= q + 4")
                },
                |_, case| case.options(PlanOptions::default().query_tile(query_tile).key_tile(key_tile)),
            );
        }
    }
    cases.add_with(
        "batch-0",
        &grids[..1],
        |_, problem| problem.batch(0),
        |_, p| p.capture(number("slope", &[HEADS])).score("score - slope[h]*abs(q - k)").mask("k <= q"),
        as_is,
    );
}

/// Some tangents, some results.
fn requests(cases: &mut Cases) {
    let grids = small();
    let alibi = |_: &Grid, p: ProgramBuilder| {
        p.capture(number("slope", &[HEADS])).score("score - slope[h]*abs(q - k)/4").mask("k <= q")
    };
    let given: [(&str, &[Role]); 5] = [
        ("query", &[Role::TangentQuery]),
        ("value", &[Role::TangentValue]),
        ("capture", &[Role::TangentCapture(0)]),
        ("grad-output", &[Role::TangentGradOutput]),
        ("additional", &[Role::TangentAdditionalKey, Role::TangentAdditionalValue, Role::TangentRpb]),
    ];
    for (name, given) in given {
        for row in ["softmax", "sigmoid", "m = sum(x); sigmoid(x - m/8)"] {
            let row_name = if row.contains(';') { "two-pass" } else { row };
            cases.add_with(
                &format!("tangent-of-{name}-{row_name}"),
                &grids[..1],
                |_, problem| problem.additional_tokens(2).relative_positional_bias(true),
                |grid, p| alibi(grid, p).row(row),
                |_, case| {
                    let problem = case.problem.clone();
                    let jvp = |op| problem.optional_inputs_of(op).contains(given[0]);
                    let forward =
                        jvp(Op::ForwardJvp).then(|| OpRequest::forward_jvp(&problem, given.to_vec()));
                    case.requests(
                        forward.into_iter().chain([OpRequest::backward_jvp(&problem, given.to_vec())]),
                    )
                },
            );
        }
    }
    for op in [Op::Backward, Op::BackwardJvp] {
        cases.add(&format!("single-results-{op}"), &grids[1..2], alibi, |_, case| {
            let every = everything(&case.problem, op);
            case.requests(every.wants.iter().map(|role| every.wanting([role])))
        });
    }
    cases.add("no-derivatives-wanted-of-captures", &grids[..1], alibi, |_, case| {
        let every = everything(&case.problem, Op::Backward);
        case.requests([every.wanting([Role::GradQuery, Role::GradKey, Role::GradValue])])
    });
}

/// NaN and infinities that no pair that counts touches.
fn not_finite(cases: &mut Cases) {
    let causal = Neighborhood::full(40, 40, None).unwrap_or_else(|error| panic!("{error}"));
    let square = Grid { name: "square", window: causal };
    for (name, value) in [("nan", f64::NAN), ("inf", f64::INFINITY), ("minus-inf", f64::NEG_INFINITY)] {
        for row in ["softmax", "sigmoid", "retention", "m = sum(x); sigmoid(x - m/8)"] {
            let row_name = if row.contains(';') { "two-pass" } else { row };
            cases.add(
                &format!("hidden-{name}-{row_name}"),
                std::slice::from_ref(&square),
                |_, p| {
                    let p = p.capture(number("t", &[40])).row(row);
                    p.score("score + t[k] + log(float(30 - k))").mask("k < 30 && k <= q && q != 7")
                },
                |_, case| {
                    let case = case.plant(Role::Key, &[0, 35, 1, 2], value);
                    let case = case.plant(Role::Value, &[1, 30, 0, 3], value);
                    let case = case.plant(Role::Query, &[0, 7, 2, 1], value);
                    case.plant(Role::GradOutput, &[1, 7, 0, 1], value).plant(Role::Capture(0), &[33], value)
                },
            );
        }
    }
    // Seen by some: it goes to whom it concerns.
    cases.add(
        "seen-nan",
        &[square],
        |_, p| p.mask("k <= q && k > q - 9"),
        |_, case| {
            case.plant(Role::Value, &[0, 20, 0, 3], f64::NAN).plant(Role::Key, &[1, 11, 1, 3], f64::NAN)
        },
    );
}
