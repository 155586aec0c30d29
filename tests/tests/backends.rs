//! The suite on every backend that the facade's registry finds. `NATTEN_REQUIRE` names those that must be there.

use natten::{Backend, Registry, reference};
use natten_conformance::{Options, Report, Status, natten_cases, required_backends, run_all, run_case};

/// The parts that a backend refuses as a whole.
const REFUSED: [(&str, &str); 2] = [("neuron", "linear-"), ("neuron", "unfused-")];

/// Runs a part of the suite on every backend that is there, but on those that have a target of their own: the oracle, and
/// wgpu, whose crate knows what it can ask of a driver in software. What the CPU backend refuses is a failure too: it
/// claims to do everything.
fn on_every_backend(part: &str, run: impl Fn(&dyn Backend) -> Report) {
    let has_own_target = |name: &str| matches!(name, reference::NAME | "wgpu");
    for entry in Registry::probe().entries().iter().filter(|entry| !has_own_target(entry.name)) {
        let Ok(backend) = &entry.backend else {
            continue;
        };
        let report = run(&**backend);
        if REFUSED.contains(&(entry.name, part)) {
            let are_refused = report.outcomes.iter().all(|outcome| outcome.status() == Status::Refused);
            assert!(are_refused, "no longer refused as a whole:\n{report}");
            continue;
        }
        assert!(report.passed(), "{report}");
        for outcome in report.outcomes.iter().filter(|_| entry.name == "cpu") {
            assert_eq!(outcome.status(), Status::Passed, "{outcome}");
            assert!(outcome.refusals.is_empty(), "{outcome}");
        }
    }
}

fn suite(filter: &str) {
    on_every_backend(filter, |backend| run_all(backend, &Options::default().filter(filter), &mut |_| ()));
}

#[test]
fn required_backends_are_there() {
    let registry = Registry::probe();
    let known: Vec<&str> = registry.entries().iter().map(|entry| entry.name).collect();
    for name in required_backends(&known).unwrap() {
        if let Err(error) = registry.device(&name) {
            panic!("{name} is required: {error}");
        }
    }
}

#[test]
fn golden() {
    suite("golden");
}

#[test]
fn natten_where_value_dims_differ() {
    suite("-dv-");
}

#[test]
fn natten_where_they_do_not() {
    on_every_backend("natten", |backend| {
        let cases = natten_cases().into_iter().filter(|case| !case.name.contains("-dv-"));
        Report::new(backend.device().backend, cases.map(|case| run_case(backend, &case)).collect())
    });
}

#[test]
fn features() {
    suite("feature");
}

#[test]
fn special_values() {
    suite("special");
}

#[test]
fn merged() {
    suite("merge");
}

#[test]
fn programs() {
    suite("program-");
}

#[test]
fn linear_attention() {
    suite("linear-");
}

#[test]
fn unfused() {
    suite("unfused-");
}

#[test]
fn random() {
    suite("random");
}
