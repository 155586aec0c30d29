//! The conformance suite's cases, each family alone: what the planner would not choose on the device at hand is run all
//! the same, matrices as loops where the device has none.

use natten_conformance::run_all;
use natten_core::Error;

use crate::family::Family;
use crate::target::{Matrices, Target};
use crate::{NAME, Options, WgpuBackend};

/// Runs the cases with `filter` in their names, and returns how many of them the family had some part in.
fn run(filter: &str, random: usize, edit: impl FnOnce(&mut Target)) -> Option<usize> {
    let mut backend = match WgpuBackend::new(&Options::from_environment()) {
        Ok(backend) => backend,
        Err(Error::Unavailable { .. }) => {
            let required = natten_conformance::required_backends(&["cpu", "cuda", "wgpu", "neuron"]).unwrap();
            assert!(!required.iter().any(|name| name == NAME), "there is no adapter");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    edit(backend.target_mut());
    let options = natten_conformance::Options::default().filter(filter).random(random);
    let report = run_all(&backend, &options, &mut |outcome| {
        if !outcome.tensors.is_empty() {
            eprintln!("{} {:?} {:?}", outcome.case, outcome.elapsed, outcome.failures)
        }
    });
    assert!(report.passed(), "{report}");
    Some(report.outcomes.iter().filter(|outcome| !outcome.tensors.is_empty()).count())
}

fn matrices(target: &mut Target, edge: u32) {
    target.family = Some(Family::Matrix);
    target.matrices = Some(Matrices { edge, lanes: 32, is_native: false });
}

#[test]
fn matrices_as_loops_pass_the_suite() {
    if let Ok(filter) = std::env::var("ONLY") {
        eprintln!("{:?}", run(&filter, 24, |target| matrices(target, 16)));
        return;
    }
    for (filter, edge) in [("natten", 16), ("feature", 8), ("special", 16), ("program-", 16), ("random", 8)] {
        if let Some(ran) = run(filter, 24, |target| matrices(target, edge)) {
            assert!(ran > 0, "{filter}: nothing ran");
        }
    }
}
