//! The kernels that are written in plain C++ on the host, against the oracle: the conformance suite on
//! [`backend::HostKernels`].

mod backend;

use natten_conformance::{Options, run_all};

use crate::family::Family;
use crate::generic::{Generic, Tiled};
use crate::mma::Mma;

/// Runs cases, where there is a compiler. `NATTEN_REQUIRE_NVRTC=1`, which makes the other compilers of kernels required,
/// makes this one too. Every kernel of every case is compiled, and all cases take an hour: those whose names contain one of
/// `few` run, or what the environment variable says. `NATTEN_HOST_RANDOM` adds so many random ones.
fn suite(family: &'static dyn Family, gap: usize, variable: &str, few: &[&str]) {
    if std::process::Command::new("g++").arg("--version").output().is_err() {
        let is_required = std::env::var("NATTEN_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!is_required, "g++ is required to run the kernels on the host");
        return;
    }
    let random = std::env::var("NATTEN_HOST_RANDOM").map_or(0, |count| count.parse().unwrap());
    let given = std::env::var(variable).ok();
    let filters = given.as_deref().map_or(few.to_vec(), |filter| vec![filter]);
    for filter in filters {
        let options = Options::default().filter(filter).random(random);
        let report = run_all(&backend::HostKernels::new(family, gap), &options, &mut |_| ());
        assert!(report.passed(), "{filter}: {report}");
    }
}

#[test]
fn kernels_that_walk_pairs_match_the_oracle() {
    suite(&Generic, 2, "NATTEN_HOST_KERNELS", &["program-softcap-1d"]);
}

#[test]
fn kernels_on_tiles_match_the_oracle() {
    suite(&Tiled, 1, "NATTEN_HOST_TILES", &["program-softcap-1d", "feature-dtype-f64"]);
}

#[test]
fn kernels_on_tensor_cores_match_the_oracle() {
    suite(&Mma, 1, "NATTEN_HOST_MMA", &["feature-dtype-bf16", "feature-rpb", "program-packed"]);
}
