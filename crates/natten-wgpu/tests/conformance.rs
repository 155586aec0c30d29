//! The conformance suite on the adapter that `NATTEN_WGPU_ADAPTER` names, or the best one, with the driver's checks and
//! without. Where there is no adapter, the tests say so; `NATTEN_REQUIRE=wgpu` makes that a failure. `NATTEN_WGPU_CASES`
//! runs the cases whose names contain it.
//!
//! A driver in software compiles for a second and more where a case runs for a millisecond. There a share of the cases
//! runs: one of every kind, so that every operation, dtype, window and program has its turn. `NATTEN_WGPU_WHOLE=1` runs
//! all of them there too.

#![allow(clippy::print_stderr, reason = "what ran where is worth knowing, and what was left out")]

use std::collections::BTreeSet;

use natten_conformance::{Case, Options, Outcome, Report, cases, required_backends, run_all, run_case};
use natten_core::{Backend, DeviceKind};
use natten_wgpu::{Options as Choice, WgpuBackend};

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn backend(checked: bool) -> Option<WgpuBackend> {
    match WgpuBackend::new(&Choice::from_environment().checked(checked)) {
        Ok(backend) => Some(backend),
        Err(error) => {
            let required = required_backends(&["cpu", "cuda", "wgpu", "neuron"]).unwrap();
            assert!(!required.iter().any(|name| name == "wgpu"), "wgpu is required: {error}");
            eprintln!("no adapter: {error}");
            None
        }
    }
}

/// What cases of one kind have in common: the name without dtype and window, of NATTEN's tuples the number. The cases of
/// the unfused pair are few and quick: each is a kind of its own.
fn kind_of(name: &str) -> String {
    let words = name.split('-');
    let is_kind =
        |word: &&str| !matches!(*word, "1d" | "2d" | "3d" | "full" | "long" | "f64" | "f32" | "f16" | "bf16");
    let words: Vec<&str> = match name {
        _ if name.starts_with("natten") => words.take(2).collect(),
        _ if name.starts_with("unfused") => words.collect(),
        _ => words.filter(is_kind).collect(),
    };
    words.join("-")
}

/// One case of every kind, of every `every`-th kind, dtypes and windows in turn.
fn share(of: Vec<Case>, every: usize) -> Vec<Case> {
    let mut kinds: Vec<(String, Vec<Case>)> = Vec::new();
    for case in of {
        let kind = kind_of(&case.name);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, cases)) => cases.push(case),
            None => kinds.push((kind, vec![case])),
        }
    }
    let chosen = kinds.into_iter().step_by(every).enumerate();
    chosen
        .filter_map(|(turn, (_, mut cases))| {
            (!cases.is_empty()).then(|| cases.swap_remove(turn % cases.len()))
        })
        .collect()
}

fn cases_of(filter: &str) -> Vec<Case> {
    cases().into_iter().filter(|case| case.name.contains(filter)).collect()
}

fn suite(filter: &str, every: usize, checked: bool) {
    let Some(backend) = backend(checked) else { return };
    let mut progress = |outcome: &Outcome| {
        if !outcome.failures.is_empty() {
            eprintln!("{outcome}");
        }
    };
    let is_software = backend.device().kind != DeviceKind::Gpu;
    let is_whole = !is_software || variable("NATTEN_WGPU_WHOLE").is_some_and(|value| value == "1");
    let report = match variable("NATTEN_WGPU_CASES") {
        Some(only) => run_all(&backend, &Options::default().filter(only), &mut progress),
        None if is_whole => run_all(&backend, &Options::default().filter(filter), &mut progress),
        // These are not among the cases that are listed.
        None if matches!(filter, "merge" | "random") => {
            let options = Options::default().filter(filter).random(64 / every);
            run_all(&backend, &options, &mut progress)
        }
        None => {
            let cases = share(cases_of(filter), every);
            let outcomes = cases.iter().map(|case| run_case(&backend, case)).inspect(&mut progress);
            Report::new(backend.device().backend, outcomes.collect())
        }
    };
    let refused = report.outcomes.iter().filter(|outcome| !outcome.refusals.is_empty()).count();
    let name = &backend.device().name;
    eprintln!("{filter}: {} cases on {name}, something of {refused} refused", report.outcomes.len());
    assert!(report.passed(), "{report}");
    for outcome in &report.outcomes {
        for refusal in &outcome.refusals {
            // What the suite cannot lay out in a device's memory, and what a software driver would get wrong.
            let is_known =
                ["with gaps", "llvmpipe ends the loops"].iter().any(|known| refusal.reason.contains(known));
            assert!(is_known, "{outcome}");
        }
    }
}

/// Parts of the suite: what names begin with, and of how many kinds a driver in software takes one, without its checks
/// and with them.
macro_rules! suites {
    ($($name:ident $filter:literal $every:literal $every_checked:literal,)*) => {
        const PARTS: &[(&str, usize)] = &[$(($filter, $every),)*];

        mod trusted {
            $(#[test]
            fn $name() {
                super::suite($filter, $every, false);
            })*
        }

        mod checked {
            $(#[test]
            fn $name() {
                super::suite($filter, $every_checked, true);
            })*
        }
    };
}

suites! {
    golden "golden" 1 8,
    natten "natten" 2 16,
    features "feature" 4 32,
    special_values "special" 1 16,
    merged "merge" 1 1,
    programs "program-" 1 16,
    linear "linear" 1 8,
    unfused "unfused" 1 8,
    random "random" 4 32,
}

/// What a driver in software is given has every operation of every dtype and in every rank, and every program.
#[test]
fn shares_have_everything() {
    let shared: Vec<Case> =
        PARTS.iter().flat_map(|&(filter, every)| share(cases_of(filter), every)).collect();
    let facts = |cases: &[Case]| {
        let mut facts = BTreeSet::new();
        for case in cases {
            for request in &case.requests {
                facts.insert(format!("{} of {}", request.op, case.problem.dtype()));
                facts.insert(format!("{} in {} dimensions", request.op, case.problem.neighborhood().rank()));
            }
            if case.name.starts_with("program-") {
                facts.insert(kind_of(&case.name));
            }
        }
        facts
    };
    let missing: Vec<String> = facts(&cases()).difference(&facts(&shared)).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
}
