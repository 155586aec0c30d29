#![allow(clippy::print_stderr, reason = "which case ran is worth knowing where one is asked for")]
//! The conformance suite's cases, each family alone: what the planner would not choose on the device at hand is run all
//! the same, matrices as loops where the device has none.

use natten_conformance::run_all;
use natten_core::Error;

use crate::family::Family;
use crate::target::{Matrices, Target};
use crate::{NAME, Options, WgpuBackend};

/// Runs the cases with one of these in their names: each has to be right, and of each kind some have to run. They are few:
/// a software driver takes a second for the compilation of a shader. `NATTEN_WGPU_CASES` says which to run instead.
fn run(cases: &[&str], edit: impl FnOnce(&mut Target)) {
    let mut backend = match WgpuBackend::new(&Options::from_environment()) {
        Ok(backend) => backend,
        Err(Error::Unavailable { .. }) => {
            let required = natten_conformance::required_backends(&["cpu", "cuda", "wgpu", "neuron"]).unwrap();
            assert!(!required.iter().any(|name| name == NAME), "there is no adapter");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    edit(backend.target_mut());
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

fn matrices(target: &mut Target, edge: u32) {
    target.family = Some(Family::Matrix);
    target.matrices = Some(Matrices { edge, lanes: 32, is_native: false });
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
    run(&cases, |target| matrices(target, 16));
}

#[test]
fn matrices_of_8_pass_the_suite() {
    let cases = ["natten-31-dv-16-causal-ox-f16", "special-rpb-minus-inf-1d-f16"];
    run(&cases, |target| matrices(target, 8));
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
