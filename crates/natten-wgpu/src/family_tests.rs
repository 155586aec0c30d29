#![allow(clippy::print_stderr, reason = "which case ran is worth knowing where one is asked for")]
//! The conformance suite's cases, each family alone: what the planner would not choose on the device at hand is run all
//! the same, matrices as loops where the device has none.

use natten_conformance::run_all;
use natten_core::Error;

use crate::family::Family;
use crate::target::{Matrices, Target};
use crate::{NAME, Options, WgpuBackend};

/// A software driver takes a second for the compilation of a shader.
const PARTS: u64 = 48;

/// Runs the cases with one of these in their names, one of so many
/// parts of them: each has to be right, and some have to run. The
/// variable `NATTEN_WGPU_CASES` says which cases instead, and takes all of them.
fn run(cases: &[&str], parts: u64, edit: impl FnOnce(&mut Target)) {
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
    let (cases, parts) = match &only {
        Some(only) => (vec![only.as_str()], 1),
        None => (cases.to_vec(), parts),
    };
    let mut ran = 0;
    for filter in &cases {
        let options = natten_conformance::Options::default().filter(*filter).random(32).part(0, parts);
        let report = run_all(&backend, &options, &mut |outcome| {
            if only.is_some() && !outcome.tensors.is_empty() {
                eprintln!("{} {:?}", outcome.case, outcome.failures);
            }
        });
        assert!(report.passed(), "{report}");
        ran += report.outcomes.iter().filter(|outcome| !outcome.tensors.is_empty()).count();
    }
    assert!(ran > 0, "the family did nothing of {cases:?}");
}

fn matrices(target: &mut Target, edge: u32) {
    target.family = Some(Family::Matrix);
    target.matrices = Some(Matrices { edge, lanes: 32, is_native: false });
}

#[test]
fn matrices_of_16_pass_the_suite() {
    run(&["natten", "special", "program-"], PARTS, |target| matrices(target, 16));
}

#[test]
fn matrices_of_8_pass_the_suite() {
    run(&["natten", "feature", "random"], PARTS, |target| matrices(target, 8));
}

#[test]
fn a_query_each_passes_the_suite() {
    run(&["natten", "feature"], PARTS, |target| target.family = Some(Family::Row));
}

#[test]
fn subgroups_pass_the_suite() {
    run(&["natten", "feature", "special", "program-"], PARTS, |target| {
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
    run(&["natten", "feature", "special", "program-"], PARTS, |target| target.family = Some(Family::Tiled));
}
