//! The conformance suite on the adapter that `NATTEN_WGPU_ADAPTER` names, or the best one. Where there is none, the tests
//! say so; `NATTEN_REQUIRE=wgpu` makes that a failure. `NATTEN_WGPU_CASES` runs the cases whose names contain it.

#![allow(clippy::print_stderr, reason = "what ran where is worth knowing, and what was left out")]

use natten_conformance::{Options, run_all};
use natten_core::Backend;
use natten_wgpu::{Options as Choice, WgpuBackend};

fn backend() -> Option<WgpuBackend> {
    match WgpuBackend::new(&Choice::from_environment()) {
        Ok(backend) => Some(backend),
        Err(error) => {
            let required = natten_conformance::required_backends(&["cpu", "cuda", "wgpu", "neuron"]).unwrap();
            assert!(!required.iter().any(|name| name == "wgpu"), "wgpu is required: {error}");
            eprintln!("no adapter: {error}");
            None
        }
    }
}

fn suite(filter: &str) {
    let Some(backend) = backend() else { return };
    let only = std::env::var("NATTEN_WGPU_CASES").unwrap_or_default();
    let options = Options::default().filter(if only.is_empty() { filter.to_owned() } else { only });
    let report = run_all(&backend, &options, &mut |outcome| {
        if !outcome.failures.is_empty() {
            eprintln!("{outcome}");
        }
    });
    let refused = report.outcomes.iter().filter(|outcome| !outcome.refusals.is_empty()).count();
    let name = &backend.device().name;
    eprintln!("{filter}: {} cases on {name}, something of {refused} refused", report.outcomes.len());
    assert!(report.passed(), "{report}");
    for outcome in &report.outcomes {
        for refusal in &outcome.refusals {
            // What a device cannot hold, and what a software driver would get wrong.
            let is_known =
                ["gap", "llvmpipe ends the loops"].iter().any(|known| refusal.reason.contains(known));
            assert!(is_known, "{outcome}");
        }
    }
}

macro_rules! suites {
    ($($name:ident $filter:literal,)*) => {
        $(#[test]
        fn $name() {
            suite($filter);
        })*
    };
}

suites! {
    golden "golden",
    natten "natten",
    features "feature",
    special_values "special",
    merged "merge",
    programs "program-",
    linear "linear",
    unfused "unfused",
    random "random",
}
