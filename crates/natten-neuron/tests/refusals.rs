//! What the backend may not refuse, and that it refuses the rest with a reason: every case of the suite is asked for.
//! That what is not refused is planned and right is what the suite itself shows, in `conformance`.

use std::collections::BTreeMap;

use natten_conformance::{Case, cases};
use natten_core::{Backend, DType, Error, Op, OpRequest};
use natten_neuron::NeuronBackend;

/// What has to run.
const FEATURES: [&str; 15] = [
    "1-D",
    "2-D",
    "3-D",
    "stride",
    "dilation",
    "causal window",
    "full",
    "full causal",
    "grouped heads",
    "values of another dim",
    "additional tokens",
    "bias table",
    "softcap",
    "sigmoid",
    "relu",
];

/// What has to run, as properties of a case: those of [`FEATURES`] that it has.
fn features(case: &Case) -> Vec<&'static str> {
    let problem = &case.problem;
    let neighborhood = problem.neighborhood();
    let axes = neighborhood.user_axes();
    let is_full = axes.iter().all(|axis| axis.params().is_none());
    let some_axis = |holds: fn(usize, usize) -> bool| {
        axes.iter().filter_map(|axis| axis.params()).any(|axis| holds(axis.stride, axis.dilation))
    };
    let is_causal = axes.iter().any(|axis| axis.is_causal());
    let is_plain = problem.program().is_plain_softmax();
    let has = |part: &str| case.name.starts_with(&format!("program-{part}"));
    let all = [
        ("1-D", is_plain && !is_full && axes.len() == 1),
        ("2-D", is_plain && axes.len() == 2),
        ("3-D", is_plain && axes.len() == 3),
        ("stride", is_plain && some_axis(|stride, _| stride > 1)),
        ("dilation", is_plain && some_axis(|_, dilation| dilation > 1)),
        ("causal window", is_plain && !is_full && is_causal),
        ("full", is_plain && is_full && !is_causal),
        ("full causal", is_plain && is_full && is_causal),
        ("grouped heads", is_plain && problem.heads_per_kv() > 1),
        ("values of another dim", is_plain && problem.head_dim() != problem.head_dim_v()),
        ("additional tokens", is_plain && problem.additional_tokens() > 0),
        ("bias table", is_plain && problem.has_rpb()),
        ("softcap", has("softcap")),
        ("sigmoid", has("row-sigmoid")),
        ("relu", has("row-relu")),
    ];
    all.into_iter().filter_map(|(name, holds)| holds.then_some(name)).collect()
}

/// The reasons that `docs/neuron.md` gives.
const REASONS: [&str; 15] = [
    "f64",
    "double-backward",
    "linear attention",
    "functions of vectors",
    "head dims",
    "there is no lowering of it",
    "Expm1 of scores",
    "Log1p of scores",
    "Floor of scores",
    "Sin of scores",
    "Cos of scores",
    "a load at a captured index",
    "random numbers of a captured seed",
    "ToInt of scores",
    "of captured numbers",
];

fn is_first_order(request: &OpRequest) -> bool {
    matches!(request.op, Op::Forward | Op::ForwardJvp | Op::Backward)
}

#[test]
fn nothing_that_must_run_is_refused() {
    let backend = NeuronBackend::default();
    let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for case in cases() {
        let dtype = case.problem.dtype();
        for request in &case.requests {
            let answer = backend.supports(&case.problem, request);
            let features =
                if dtype == DType::F64 || !is_first_order(request) { Vec::new() } else { features(&case) };
            for feature in &features {
                *seen.entry((feature, dtype.to_string())).or_default() += 1;
                *seen.entry((feature, request.op.name().to_owned())).or_default() += 1;
            }
            match answer {
                Ok(()) => {}
                Err(error @ Error::Unsupported { .. }) if features.is_empty() => {
                    let said = error.to_string();
                    assert!(REASONS.iter().any(|reason| said.contains(reason)), "{}: {said}", case.name);
                }
                Err(error) => panic!("{} {}: {error}", case.name, request.op),
            }
        }
    }
    // The suite has each of them in each dtype and operation, or the walk proves nothing.
    let each =
        ["f32", "f16", "bf16"].into_iter().chain([Op::Forward, Op::ForwardJvp, Op::Backward].map(Op::name));
    let missing: Vec<(&str, &str)> = FEATURES
        .into_iter()
        .flat_map(|feature| each.clone().map(move |kind| (feature, kind)))
        .filter(|&(feature, kind)| !seen.contains_key(&(feature, kind.to_owned())))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
