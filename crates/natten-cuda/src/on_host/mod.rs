//! The kernels that are written in plain C++ on the host, against the oracle: the conformance suite on
//! [`backend::HostKernels`].

mod backend;

use natten_conformance::{Options, run_all};

use crate::family::Family;
use crate::generic::{Generic, Tiled};
use crate::mma::Mma;

/// Runs the cases whose names contain `filter`, where there is a compiler. `NATTEN_REQUIRE_NVRTC=1`, which makes the other
/// compilers of kernels required, makes this one too.
fn suite(family: &'static dyn Family, gap: usize, filter: &str) {
    if std::process::Command::new("g++").arg("--version").output().is_err() {
        let is_required = std::env::var("NATTEN_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!is_required, "g++ is required to run the kernels on the host");
        return;
    }
    let report = run_all(
        &backend::HostKernels::new(family, gap),
        &Options::default().filter(filter).random(0),
        &mut |_| (),
    );
    assert!(report.passed(), "{report}");
}

/// The cases whose names contain what `NATTEN_HOST_KERNELS` says; one, where it says nothing: every kernel of every case
/// is compiled, and the whole suite takes an hour.
#[test]
fn some_cases() {
    let filter = std::env::var("NATTEN_HOST_KERNELS").unwrap_or_else(|_| "program-softcap-1d".to_owned());
    suite(&Generic, 2, &filter);
}

/// As [`some_cases`], with `NATTEN_HOST_TILES`.
#[test]
fn some_cases_on_tiles() {
    let filter = std::env::var("NATTEN_HOST_TILES").unwrap_or_else(|_| "program-softcap-1d".to_owned());
    suite(&Tiled, 1, &filter);
}

/// As [`some_cases`], with `NATTEN_HOST_MMA`.
#[test]
fn some_cases_on_tensor_cores() {
    let filter = std::env::var("NATTEN_HOST_MMA").unwrap_or_else(|_| "program-softcap-1d".to_owned());
    suite(&Mma, 1, &filter);
}
