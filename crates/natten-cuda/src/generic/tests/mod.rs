//! The generic kernels on the host against the oracle: the conformance suite on [`host::HostKernels`].

mod host;

use natten_conformance::{Options, run_all};

/// Runs the cases whose names contain `filter`, where there is a compiler.
fn suite(filter: &str) {
    if std::process::Command::new("g++").arg("--version").output().is_err() {
        return;
    }
    let report =
        run_all(&host::HostKernels::new(), &Options::default().filter(filter).random(0), &mut |_| ());
    assert!(report.passed(), "{report}");
}

/// The cases that `NATTEN_HOST_KERNELS` names: the whole suite takes an hour, compiling.
#[test]
fn some_cases() {
    let filter = std::env::var("NATTEN_HOST_KERNELS").unwrap_or_else(|_| "program-all-odd-dims".to_owned());
    suite(&filter);
}
