//! The conformance suite on the simulated NeuronCore: what it must not refuse, and that everything it does is right.

use natten_conformance::{Case, Options, Report, Status, cases, run_all, run_case};
use natten_core::{DType, Op};
use natten_neuron::NeuronBackend;

fn on(filter: impl Fn(&Case) -> bool) -> Report {
    let backend = NeuronBackend::default();
    let outcomes = cases().iter().filter(|case| filter(case)).map(|case| run_case(&backend, case)).collect();
    Report::new("neuron", outcomes)
}

#[test]
fn features() {
    let report = on(|case| case.name.starts_with("feature"));
    assert!(report.passed(), "{report}");
}
