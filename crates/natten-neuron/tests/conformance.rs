//! The conformance suite on the simulated NeuronCore: everything that it does is right, and what it must do it does. Of
//! NATTEN's own tuples only some are here: `natten-conformance` runs all of them on every backend.

use natten_conformance::{Case, Options, Report, Status, cases, natten_cases, run_all, run_case};
use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem};
use natten_neuron::NeuronBackend;

fn on(filter: impl Fn(&Case) -> bool) -> Report {
    let backend = NeuronBackend::default();
    let outcomes = cases().iter().filter(|case| filter(case)).map(|case| run_case(&backend, case)).collect();
    Report::new("neuron", outcomes)
}

/// Every case of a kind passes, and but for f64 and chosen tiles nothing is refused.
fn passes(kind: &str) {
    check(&on(|case| case.name.starts_with(kind)));
}

fn check(report: &Report) {
    assert!(report.passed(), "{report}");
    let cases = cases();
    for outcome in &report.outcomes {
        let case = cases.iter().find(|case| case.name == outcome.case);
        let may_refuse = case
            .is_none_or(|case| case.problem.dtype() == DType::F64 || case.options != PlanOptions::default());
        let refused = outcome
            .refusals
            .iter()
            .filter(|refusal| !(refusal.op == Op::BackwardJvp || refusal.op.is_unfused()))
            .count();
        assert!(may_refuse || refused == 0, "{outcome}");
        assert!(may_refuse || outcome.status() == Status::Passed, "{outcome}");
    }
}

#[test]
fn golden() {
    passes("golden");
}

#[test]
fn features() {
    passes("feature");
}

#[test]
fn every_sixth_of_nattens_own() {
    let backend = NeuronBackend::default();
    let cases = natten_cases().into_iter().step_by(6);
    check(&Report::new("neuron", cases.map(|case| run_case(&backend, &case)).collect()));
}

#[test]
fn special_values() {
    passes("special");
}

/// Programs: what is refused is refused with a reason, and the rest is right.
#[test]
fn programs() {
    let report = on(|case| case.name.starts_with("program"));
    assert!(report.passed(), "{report}");
}

/// Random problems and programs, and attentions that are merged.
#[test]
fn random_and_merged() {
    for filter in ["random", "merge"] {
        let report = run_all(&NeuronBackend::default(), &Options::default().filter(filter), &mut |_| ());
        assert!(report.passed(), "{report}");
    }
}

/// Strips so long that only two tiles are at work at a time, and tiles whose lengths differ.
#[test]
fn long_strips() {
    let backend = NeuronBackend::default();
    for (queries, keys, causal) in [(260, 2500, None), (2300, 2300, Some(Alignment::TopLeft))] {
        let window = Neighborhood::full(queries, keys, causal).unwrap();
        let problem = Problem::builder(window, DType::F32).heads(2).head_dim(4).build().unwrap();
        let request = OpRequest::forward(&problem);
        let outcome = run_case(&backend, &Case::new(format!("long-{keys}"), problem).requests([request]));
        assert_eq!(outcome.status(), Status::Passed, "{outcome}");
    }
}
