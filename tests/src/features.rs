//! What NATTEN's tests miss: every dtype, kernels of 1, odd head dims, biases on even, strided and causal windows, rows
//! that see nothing, scales of zero and below, empty batches, cotangents of the logsumexp, single gradients, strided
//! tensors and chosen tiles. Each case is small; each is about one thing.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::{DType, OpRequest, PlanOptions, Problem, ProblemBuilder, Role};

use crate::case::Case;
use crate::data::{Data, hash};
use crate::memory::Layout;

/// The axis `len`, `kernel_size`, `stride`, `dilation`, causal or not.
pub(crate) const fn axis(
    len: usize,
    kernel_size: usize,
    stride: usize,
    dilation: usize,
    is_causal: bool,
) -> AxisParams {
    AxisParams::new(len, kernel_size).stride(stride).dilation(dilation).causal(is_causal)
}

/// A builder over windows.
///
/// # Panics
/// For windows that are none: a mistake of this crate.
pub(crate) fn windows(axes: &[AxisParams], dtype: DType) -> ProblemBuilder {
    let window = Neighborhood::new(axes).unwrap_or_else(|error| panic!("{axes:?}: {error}"));
    Problem::builder(window, dtype)
}

fn full(queries: usize, keys: usize, causal: Option<Alignment>, dtype: DType) -> ProblemBuilder {
    let window = Neighborhood::full(queries, keys, causal).unwrap_or_else(|error| panic!("{error}"));
    Problem::builder(window, dtype)
}

/// A case of a problem that builds.
///
/// # Panics
/// For a problem that is none: a mistake of this crate.
pub(crate) fn case(name: impl Into<String>, problem: ProblemBuilder) -> Case {
    let name = name.into();
    let problem = problem.build().unwrap_or_else(|error| panic!("{name}: {error}"));
    Case::new(name, problem)
}

/// One window of each rank, with everything mixed, and ordinary attention.
fn mixed(dtype: DType) -> [(&'static str, ProblemBuilder); 4] {
    let build = |problem: ProblemBuilder| problem.batch(2).heads(4).heads_kv(2).head_dim(24).head_dim_v(16);
    [
        ("1d", build(windows(&[axis(41, 8, 3, 2, true)], dtype))),
        ("2d", build(windows(&[axis(9, 4, 2, 2, false), axis(13, 5, 1, 1, true)], dtype))),
        (
            "3d",
            build(windows(
                &[axis(4, 3, 1, 1, true), axis(6, 2, 2, 3, false), axis(7, 5, 3, 1, false)],
                dtype,
            )),
        ),
        ("full", build(full(19, 33, None, dtype))),
    ]
}

/// Every case of this module.
pub(crate) fn feature_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    dtypes(&mut cases);
    kernels(&mut cases);
    head_dims(&mut cases);
    heads_and_tokens(&mut cases);
    biases(&mut cases);
    ordinary(&mut cases);
    scales(&mut cases);
    requests(&mut cases);
    layouts(&mut cases);
    tiles(&mut cases);
    cases
}

fn dtypes(cases: &mut Vec<Case>) {
    for dtype in DType::FLOATS {
        for (name, problem) in mixed(dtype) {
            cases.push(case(format!("feature-dtype-{dtype}-{name}"), problem));
            let tokens = case(format!("feature-dtype-{dtype}-{name}-extra"), problem_with_all(name, dtype));
            cases.push(tokens.grad_logsumexp());
        }
    }
}

/// The mixed problem of a name with additional tokens, and a bias if it can have one.
fn problem_with_all(name: &str, dtype: DType) -> ProblemBuilder {
    let [one, two, three, full] = mixed(dtype).map(|(_, problem)| problem.additional_tokens(5));
    match name {
        "1d" => one.relative_positional_bias(true),
        "2d" => two.relative_positional_bias(true),
        "3d" => three.relative_positional_bias(true),
        _ => full,
    }
}

fn kernels(cases: &mut Vec<Case>) {
    let grids: [(&str, Vec<AxisParams>); 14] = [
        ("1-1d", vec![axis(17, 1, 1, 1, false)]),
        ("1-1d-causal", vec![axis(17, 1, 1, 1, true)]),
        ("1-1d-dilated", vec![axis(17, 1, 1, 5, false)]),
        ("1-2d-rows", vec![axis(7, 1, 1, 1, false), axis(9, 3, 1, 1, false)]),
        ("1-2d-columns", vec![axis(7, 3, 1, 2, true), axis(9, 1, 1, 9, false)]),
        ("1-3d", vec![axis(3, 1, 1, 1, false), axis(4, 1, 1, 2, true), axis(5, 1, 1, 1, false)]),
        ("even-2", vec![axis(23, 2, 1, 1, false)]),
        ("even-2-strided", vec![axis(23, 2, 2, 3, false)]),
        ("even-6-causal", vec![axis(23, 6, 4, 1, true)]),
        ("even-2d", vec![axis(9, 4, 1, 1, false), axis(10, 6, 5, 1, false)]),
        ("blocked-ragged", vec![axis(11, 4, 4, 1, false), axis(14, 3, 3, 2, true)]),
        ("one-token", vec![axis(1, 1, 1, 1, false)]),
        ("one-token-axes", vec![axis(1, 1, 1, 1, true), axis(12, 5, 2, 1, false), axis(1, 1, 1, 1, false)]),
        ("many-boxes", vec![axis(1500, 33, 1, 3, false)]),
    ];
    for (name, axes) in grids {
        let kind = if name.starts_with('1') { "feature-kernel" } else { "feature-window" };
        let problem = windows(&axes, DType::F32).heads(2).head_dim(8);
        cases.push(case(format!("{kind}-{name}"), problem));
    }
    for dtype in [DType::F64, DType::F16, DType::Bf16] {
        let axes = [axis(5, 1, 1, 1, false), axis(6, 1, 1, 2, false)];
        cases.push(case(format!("feature-kernel-1-{dtype}"), windows(&axes, dtype).head_dim(8)));
    }
}

fn head_dims(cases: &mut Vec<Case>) {
    let axes = [axis(7, 3, 1, 1, false), axis(12, 5, 2, 1, true)];
    for (turn, dim) in [1, 2, 3, 5, 7, 9, 15, 17, 24, 31, 33, 48, 63, 65, 72, 80, 96, 127, 129, 160, 192, 256]
        .into_iter()
        .enumerate()
    {
        let dtype = DType::FLOATS[(turn + 1) % 4];
        cases.push(case(format!("feature-head-dim-{dim}-{dtype}"), windows(&axes, dtype).head_dim(dim)));
        let dtype = DType::FLOATS[(turn + 2) % 4];
        cases.push(case(
            format!("feature-head-dim-{dim}-{dtype}"),
            windows(&axes, dtype).heads(2).head_dim(dim),
        ));
    }
    // Those that kernels are specialised for, which the cuts of NATTEN's tuples leave few of.
    for dim in [16, 32, 64, 128] {
        for dtype in DType::FLOATS {
            let window = windows(&axes, dtype).heads(4).heads_kv(2).head_dim(dim).additional_tokens(3);
            cases.push(case(format!("feature-head-dim-{dim}-window-{dtype}"), window));
            let causal = full(70, 133, Some(Alignment::BottomRight), dtype).heads(2).head_dim(dim);
            cases.push(case(format!("feature-head-dim-{dim}-full-{dtype}"), causal));
        }
    }
    for (dim, dim_v) in [(8, 3), (3, 8), (1, 33), (33, 1), (64, 5), (16, 40), (128, 32), (40, 136)] {
        for dtype in [DType::F32, DType::Bf16] {
            let problem = windows(&axes, dtype).heads(2).heads_kv(1).head_dim(dim).head_dim_v(dim_v);
            cases.push(case(format!("feature-head-dims-{dim}-{dim_v}-{dtype}"), problem));
        }
    }
}

fn heads_and_tokens(cases: &mut Vec<Case>) {
    let axes = [axis(6, 3, 1, 1, false), axis(8, 4, 2, 2, true)];
    for heads_kv in [1, 2, 3, 6] {
        let problem = windows(&axes, DType::F32).batch(2).heads(6).heads_kv(heads_kv).head_dim(16);
        cases.push(case(format!("feature-heads-6-{heads_kv}"), problem));
    }
    for (tokens, dtype) in
        [(1, DType::F32), (7, DType::F64), (64, DType::F16), (130, DType::Bf16), (33, DType::F32)]
    {
        let problem = windows(&axes, dtype).batch(2).heads(4).heads_kv(2).head_dim(16).head_dim_v(24);
        let name = format!("feature-extra-{tokens}-{dtype}");
        cases.push(case(name, problem.additional_tokens(tokens)).grad_logsumexp());
    }
    let problem = full(9, 11, Some(Alignment::TopLeft), DType::F32).heads(2).head_dim(8).additional_tokens(3);
    cases.push(case("feature-extra-full-causal", problem));
    // Every row that sees no key still sees the additional ones.
    let problem =
        full(9, 4, Some(Alignment::BottomRight), DType::F32).heads(2).head_dim(8).additional_tokens(3);
    cases.push(case("feature-extra-empty-rows", problem));
}

fn biases(cases: &mut Vec<Case>) {
    let grids: [(&str, Vec<AxisParams>); 8] = [
        ("1d-even", vec![axis(19, 6, 1, 1, false)]),
        ("1d-strided", vec![axis(19, 7, 5, 1, false)]),
        ("1d-causal-dilated", vec![axis(29, 5, 1, 3, true)]),
        ("1d-blocked-causal", vec![axis(19, 4, 4, 1, true)]),
        ("2d-even-strided", vec![axis(8, 4, 3, 1, false), axis(9, 2, 2, 1, false)]),
        ("2d-causal-both", vec![axis(8, 4, 2, 2, true), axis(9, 5, 3, 1, true)]),
        ("3d-mixed", vec![axis(4, 2, 2, 1, true), axis(6, 3, 1, 2, false), axis(5, 4, 3, 1, false)]),
        ("3d-one-token-axis", vec![axis(1, 1, 1, 1, false), axis(6, 3, 2, 1, true), axis(5, 5, 1, 1, false)]),
    ];
    for (turn, (name, axes)) in grids.into_iter().enumerate() {
        let dtype = DType::FLOATS[turn % 4];
        for additional in [0, 4] {
            let problem = windows(&axes, dtype).batch(2).heads(4).heads_kv(2).head_dim(8);
            let problem = problem.relative_positional_bias(true).additional_tokens(additional);
            let case = case(format!("feature-rpb-{name}-extra-{additional}-{dtype}"), problem);
            cases.push(if additional > 0 { case.grad_logsumexp() } else { case });
        }
    }
}

fn ordinary(cases: &mut Vec<Case>) {
    for (queries, keys) in [(1, 1), (1, 40), (40, 1), (17, 17), (13, 30), (30, 13), (65, 130)] {
        let directions = [
            ("both", None),
            ("top-left", Some(Alignment::TopLeft)),
            ("bottom-right", Some(Alignment::BottomRight)),
        ];
        for (turn, (name, causal)) in directions.into_iter().enumerate() {
            let dtype = DType::FLOATS[(queries + keys + turn) % 4];
            let problem = full(queries, keys, causal, dtype).batch(2).heads(4).heads_kv(2).head_dim(16);
            let name = format!("feature-full-{queries}x{keys}-{name}-{dtype}");
            cases.push(case(name, problem.head_dim_v(24)).grad_logsumexp());
        }
    }
}

fn scales(cases: &mut Vec<Case>) {
    let axes = [axis(6, 3, 1, 1, false), axis(9, 4, 2, 2, true)];
    for (turn, scale) in [0.0, -0.5, -3.0, 1e-3, 30.0].into_iter().enumerate() {
        for dtype in [DType::F32, DType::FLOATS[turn % 4]] {
            let problem = windows(&axes, dtype).heads(2).head_dim(16).additional_tokens(3).scale(Some(scale));
            let bias = problem.clone().relative_positional_bias(true);
            let name = format!("feature-scale-{scale}-{dtype}");
            if cases.iter().all(|case| case.name != name) {
                cases.push(case(&name, problem));
                cases.push(case(name + "-rpb", bias));
            }
        }
    }
    // Scores of some thousands: exp overflows unless the largest score of a row is taken off first.
    let problem = full(20, 30, None, DType::F32).head_dim(64).scale(Some(30.0));
    cases.push(case("feature-large-scores", problem));
    let large = case("feature-large-queries", windows(&axes, DType::F16).heads(2).head_dim(16));
    let data = Data::new(hash(&large.name)).deviation(Role::Query, 30.0);
    cases.push(large.data(data));
}

fn requests(cases: &mut Vec<Case>) {
    for (name, problem) in [("0", 0), ("3", 3)].map(|(name, batch)| {
        let axes = [axis(5, 3, 1, 1, true), axis(6, 2, 1, 2, false)];
        (name, windows(&axes, DType::F32).batch(batch).heads(2).head_dim(8).additional_tokens(2))
    }) {
        cases.push(
            case(format!("feature-batch-{name}"), problem.relative_positional_bias(true)).grad_logsumexp(),
        );
    }
    for (name, problem) in mixed(DType::F32) {
        cases.push(case(format!("feature-grad-logsumexp-{name}"), problem.clone()).grad_logsumexp());
        let case = case(format!("feature-wants-{name}"), problem_with_all(name, DType::F32));
        let forward = OpRequest::forward(&case.problem);
        let backward = OpRequest::backward(&case.problem);
        let mut wanted = vec![forward.wanting([Role::Output]), forward.wanting([Role::Logsumexp])];
        wanted.extend(backward.wants.iter().map(|role| backward.wanting([role])));
        wanted.push(backward.wanting([Role::GradKey, Role::GradValue]));
        wanted.push(backward.wanting([Role::GradQuery, Role::GradAdditionalValue]));
        cases.push(case.requests(wanted));
    }
}

fn layouts(cases: &mut Vec<Case>) {
    for layout in [Layout::HeadsFirst, Layout::Reversed, Layout::Gapped] {
        for (turn, (name, _)) in mixed(DType::F32).into_iter().enumerate() {
            for dtype in [DType::F32, [DType::Bf16, DType::F16, DType::F64, DType::Bf16][turn]] {
                // A head dim that fills no vector register: reading past it reads a gap.
                let problem = problem_with_all(name, dtype).head_dim(13).head_dim_v(7);
                let case = case(format!("feature-layout-{}-{name}-{dtype}", layout.name()), problem);
                cases.push(case.layout(layout).grad_logsumexp());
            }
        }
    }
}

/// Tile shapes of one rank: one token, an odd shape, a power of two, and more than there is.
type Shapes = [&'static [usize]; 4];

fn tiles(cases: &mut Vec<Case>) {
    let grids: [(&str, Vec<AxisParams>, Shapes); 3] = [
        ("1d", vec![axis(53, 9, 2, 2, true)], [&[1], &[5], &[16], &[64]]),
        (
            "2d",
            vec![axis(11, 4, 1, 1, false), axis(14, 5, 3, 2, true)],
            [&[1, 1], &[3, 5], &[1, 16], &[16, 16]],
        ),
        (
            "3d",
            vec![axis(5, 3, 1, 1, false), axis(6, 4, 2, 1, true), axis(7, 3, 1, 2, false)],
            [&[1, 1, 1], &[2, 3, 2], &[1, 2, 8], &[8, 8, 8]],
        ),
    ];
    for (name, axes, shapes) in grids.clone() {
        for (q, query_tile) in shapes.into_iter().enumerate() {
            for (k, key_tile) in shapes.into_iter().enumerate() {
                let problem =
                    windows(&axes, DType::F32).heads(2).heads_kv(1).head_dim(8).additional_tokens(3);
                let options = PlanOptions::default().query_tile(query_tile).key_tile(key_tile);
                cases.push(case(format!("feature-tiles-{name}-{q}{k}"), problem).options(options));
            }
        }
    }
    // Boxes of 64 and 128 queries, which kernels for matrix units have, of vectors that they take, and of keys that there are.
    let sizes: [&[[&[usize]; 2]]; 3] = [
        &[[&[64], &[16]], [&[128], &[20]]],
        &[[&[4, 16], &[5, 6]], [&[8, 8], &[3, 4]], [&[16, 8], &[11, 7]]],
        &[[&[4, 4, 4], &[2, 3, 4]], [&[2, 8, 4], &[4, 3, 2]]],
    ];
    for ((name, axes, _), sizes) in grids.iter().zip(sizes) {
        for (turn, [query_tile, key_tile]) in sizes.iter().enumerate() {
            let dtype = [DType::F16, DType::Bf16][turn % 2];
            let problem = windows(axes, dtype).heads(2).heads_kv(1).head_dim(16).additional_tokens(3 * turn);
            let options = PlanOptions::default().query_tile(query_tile).key_tile(key_tile);
            cases.push(case(format!("feature-tiles-packed-{name}-{turn}-{dtype}"), problem).options(options));
        }
    }
}
