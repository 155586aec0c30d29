#![allow(clippy::print_stderr, reason = "which case ran is worth knowing where one is asked for")]
//! The conformance suite's cases, each family alone: what the planner would not choose on the device at hand is run all
//! the same, matrices as loops where the device has none.

use natten_conformance::{Case, cases, run_all, run_case};
use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::{DType, Error, OpRequest, PlanOptions, Problem, Role};

use crate::family::Family;
use crate::gpu::tests::REQUIRABLE;
use crate::sequence::Step;
use crate::target::{Matrices, Target};
use crate::{NAME, Options, WgpuBackend};

/// A device whose planner sees it as `edit` says.
fn backend(edit: impl FnOnce(&mut Target)) -> Option<WgpuBackend> {
    let mut backend = match WgpuBackend::new(&Options::from_environment()) {
        Ok(backend) => backend,
        Err(Error::Unavailable { .. }) => {
            let required = natten_conformance::required_backends(&REQUIRABLE).unwrap();
            assert!(!required.iter().any(|name| name == NAME), "there is no adapter");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    edit(backend.target_mut());
    Some(backend)
}

/// Runs the cases with one of these in their names: each has to be right, and of each kind some have to run. They are few:
/// a software driver takes a second for the compilation of a shader. `NATTEN_WGPU_CASES` says which to run instead.
fn run(cases: &[&str], edit: impl FnOnce(&mut Target)) {
    let Some(backend) = backend(edit) else { return };
    let only = std::env::var("NATTEN_WGPU_CASES").ok().filter(|only| !only.is_empty());
    let cases = only.as_deref().map_or_else(|| cases.to_vec(), |only| vec![only]);
    for filter in cases {
        let options = natten_conformance::Options::default().filter(filter).random(8);
        let report = run_all(&backend, &options, &mut |outcome| {
            if only.is_some() && !outcome.tensors.is_empty() {
                eprintln!("{} {:?}", outcome.case, outcome.failures);
            }
        });
        // What the family refuses is no failure, but something has to be left.
        assert!(report.passed(), "{filter}: {report}");
    }
}

fn matrices(target: &mut Target, edge: u32, lanes: u32) {
    target.family = Some(Family::Matrix);
    target.matrices = Some(Matrices { edge, lanes, is_native: false });
}

#[test]
fn matrices_of_16_pass_the_suite() {
    let cases = [
        "feature-dtype-f16-2d",
        "natten-31-dv-16-causal-xo-f16",
        "program-softmax-2d-extra-0-f16",
        "special-value-nan-2d-1-f16",
        "special-additional_value-nan-2d-f16",
    ];
    run(&cases, |target| matrices(target, 16, 64));
}

#[test]
fn matrices_of_8_pass_the_suite() {
    let cases = ["natten-31-dv-16-causal-ox-f16", "special-rpb-minus-inf-1d-f16"];
    run(&cases, |target| matrices(target, 8, 32));
}

/// f16 neither flushes small gradients nor overflows by large ones, and follows weights that grow along a row by many
/// orders of magnitude.
#[test]
fn matrices_take_gradients_of_any_size() {
    let Some(backend) = backend(|target| matrices(target, 16, 64)) else { return };
    let window = Neighborhood::full(70, 150, None).unwrap();
    let problem = Problem::builder(window, DType::F16).heads(2).head_dim(16).build().unwrap();
    for (of_queries, of_grads) in [(1.0, 1e-5), (1.0, 1e3), (8.0, 1.0)] {
        let case = Case::new(format!("gradients-{of_queries}-{of_grads}"), problem.clone())
            .requests([OpRequest::backward(&problem)]);
        let data = case.data.clone().deviation(Role::Query, of_queries).deviation(Role::GradOutput, of_grads);
        let outcome = run_case(&backend, &case.data(data));
        assert!(outcome.failures.is_empty() && !outcome.tensors.is_empty(), "{outcome}");
        assert!(outcome.refusals.is_empty(), "{outcome}");
    }
}

/// What is infinite or NaN goes to the pairs that see it and no others. The suite's cases have additional tokens.
#[test]
fn matrices_take_gradients_that_are_not_finite() {
    let Some(backend) = backend(|target| matrices(target, 16, 64)) else { return };
    let window = Neighborhood::new(&[AxisParams::new(40, 5).dilation(2)]).unwrap();
    let problem = Problem::builder(window, DType::F16).batch(2).heads(4).heads_kv(2).head_dim(8);
    let problem = problem.head_dim_v(6).build().unwrap();
    for role in [Role::Query, Role::Key, Role::Value, Role::GradOutput] {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let case = Case::new(format!("{role}-{value}"), problem.clone())
                .requests([OpRequest::backward(&problem)]);
            // No weight underflows.
            let data = case.data.clone().deviation(Role::Query, 0.5).deviation(Role::Key, 0.5);
            let outcome = run_case(&backend, &case.data(data).plant(role, &[1, 21, 1, 2], value));
            assert!(outcome.failures.is_empty() && outcome.refusals.is_empty(), "{outcome}");
        }
    }
}

/// Packed vectors of a part, forward and backward, where no binding would hold those of the whole.
#[test]
fn matrices_take_problems_in_parts() {
    let Some(backend) = backend(|target| {
        matrices(target, 16, 64);
        // The whole is too large for them, and the planner has the choice for each part.
        target.family = None;
        target.binding_bytes = 40 << 10;
    }) else {
        return;
    };
    let case = cases().into_iter().find(|case| case.name == "feature-dtype-f16-2d").unwrap();
    let requests = [OpRequest::forward(&case.problem), OpRequest::backward(&case.problem)];
    for request in &requests {
        let sequence =
            crate::generic::sequence(&case.problem, request, &PlanOptions::default(), backend.target())
                .unwrap();
        assert_eq!(sequence.family, "matrix", "{}", request.op);
        let parts = sequence.steps.into_iter().filter(|step| matches!(step, Step::Begin(_)));
        assert!(parts.count() > 1, "{}", request.op);
    }
    let outcome = run_case(&backend, &case.requests(requests));
    assert!(outcome.failures.is_empty() && outcome.refusals.is_empty(), "{outcome}");
}

#[test]
fn a_query_each_passes_the_suite() {
    run(&["feature-dtype-f32", "natten-11-causal-x-f32"], |target| target.family = Some(Family::Row));
}

const OF_TILES: [&str; 6] = [
    "feature-dtype-bf16-3d",
    "natten-11-dv-48-causal-o-bf16",
    "natten-13-causal-o-f32",
    "program-softmax-2d-extra-0-f16",
    "special-unseen-minus-inf-f32",
    "special-last-nan-bf16",
];

#[test]
fn subgroups_pass_the_suite() {
    run(&OF_TILES, |target| {
        target.family = Some(Family::Subgroup);
        // Planners leave it out on software drivers, which have subgroups all the same.
        let adapters = crate::Adapters::find();
        let adapter = adapters.pick(Options::from_environment().adapter.as_deref()).unwrap();
        target.subgroup = crate::adapters::subgroup(adapter);
        assert!(target.subgroup.is_some(), "the driver offers subgroups of several sizes, or none");
    });
}

#[test]
fn tiles_pass_the_suite() {
    run(&OF_TILES, |target| target.family = Some(Family::Tiled));
}

/// What browsers offer: shorter parts of wide vectors, and fewer rows.
#[test]
fn tiles_in_16_kib_pass_the_suite() {
    let cases = [
        "feature-head-dim-80-f32",
        "feature-head-dim-128-full-f16",
        "feature-head-dim-192-f16",
        "feature-extra-130-bf16",
    ];
    run(&cases, |target| {
        target.family = Some(Family::Tiled);
        target.workgroup_bytes = 16 << 10;
    });
}
