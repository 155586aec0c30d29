//! The unfused pair: `qk` and `av`, their tangents and gradients. Scores and weights lie in memory; the walks read them
//! where a fused operation would compute them.

use natten_core::{Op, Result, Role};

use super::mods::{put_input, put_operand};
use super::tensors::Places;
use super::{Builder, pieces, text};
use crate::family::Argument;

/// What takes the place of a program's functions: the numbers of the slots.
const FUNCTIONS: &str = "\
struct Nothing {};
template <bool IS_ADDITIONAL> struct OfSlots {
    static constexpr bool ADDITIONAL = IS_ADDITIONAL;
    static DEVICE Nothing fix_mask(const Tensors&, const Site&, const Row&) { return {}; }
    static DEVICE Nothing fix_weight(const Tensors&, const Site&, const Row&) { return {}; }
    static DEVICE Nothing fix_grad_score(const Tensors&, const Site&, const Row&) { return {}; }
    static DEVICE bool mask(const Tensors&, const Site&, const Row&, const Nothing&) { return true; }
    static DEVICE void weight(const Tensors& t, const Site& at, const Row&, const Pair&, const Nothing&, R* out) {
        out[0] = number(*slot_at(t.attention, at.b, at.h, at.qc, at.slot));
        if (t.tangent_attention.data) out[1] = number(*slot_at(t.tangent_attention, at.b, at.h, at.qc, at.slot));
    }
    static DEVICE void grad_score(const Tensors& t, const Site& at, const Row&, const Pair&, const Nothing&, R* out) {
        out[0] = number(*slot_at(t.grad_attention, at.b, at.h, at.qc, at.slot));
    }
};
typedef OfSlots<false> Window;
typedef OfSlots<true> Additional;
";

/// There are no stages.
const STAGES: &str = "\
DEVICE constexpr int stage_kind(int) { return SUM_STAGE; }
DEVICE constexpr bool is_swept(int) { return false; }
";

pub(super) fn build(builder: &mut Builder<'_>) -> Result<()> {
    let (problem, request) = (builder.problem, builder.request);
    let mut places = Places::default();
    for role in [Role::Query, Role::Key, Role::Value, Role::AdditionalKey, Role::AdditionalValue] {
        put_operand(builder, &mut places, role);
    }
    for role in [Role::Rpb, Role::Attention, Role::GradOutput, Role::GradAttention] {
        if problem.inputs_of(request.op).contains(role) {
            put_input(builder, &mut places, role);
        }
    }
    match request.op {
        Op::Qk => slots(builder, places, Role::Attention, 0),
        Op::QkJvp => slots(builder, places, Role::TangentAttention, 0),
        Op::QkBackward => {
            if request.wants.contains(Role::GradQuery) {
                queries(builder, &places, &["to_grad_query"], false);
            }
            keys(builder, &places, true);
            if request.wants.contains(Role::GradRpb) {
                bias(builder, &places);
            }
        }
        Op::Av | Op::AvJvp => {
            let (name, role) = match request.op {
                Op::Av => ("to_output", Role::Output),
                _ => ("to_output_t", Role::TangentOutput),
            };
            if let Some(place) = builder.bound(role) {
                places.put(name, place);
            }
            queries(builder, &places, &[name], true);
        }
        _ => {
            if request.wants.contains(Role::GradAttention) {
                slots(builder, places.clone(), Role::GradAttention, 1);
            }
            keys(builder, &places, false);
        }
    }
    Ok(())
}

/// Everything in front of a walk.
fn source(
    builder: &Builder<'_>,
    places: &Places,
    written: &[&str],
    defines: &[(&'static str, &str)],
) -> (String, Vec<Argument>) {
    let tangents = i32::from(builder.request.op.is_forward_mode()).to_string();
    let mut all = vec![("STAGES", "1".to_owned()), ("UNFUSED", "1".to_owned()), ("TANGENTS", tangents)];
    all.extend(defines.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let (tensors, arguments) = places.text(builder.problem, written);
    let text =
        builder.prelude(&all) + super::attention::STAGE_KINDS + &tensors + FUNCTIONS + STAGES + text::WALK;
    (text, arguments)
}

/// A number for every slot.
fn slots(builder: &mut Builder<'_>, mut places: Places, role: Role, kind: u8) {
    if let Some(place) = builder.bound(role) {
        places.put("to_attention", place);
    }
    let kind = kind.to_string();
    let (source, arguments) = source(builder, &places, &["to_attention"], &[("KIND", &kind)]);
    let count: u64 = builder.problem.shape(Role::Attention).iter().map(|&n| n as u64).product();
    builder.launch_blocks(
        source + text::SLOTS,
        "slots",
        count.div_ceil(128).min(i32::MAX as u64),
        128,
        arguments,
    );
}

/// The output, or the gradient of the queries.
fn queries(builder: &mut Builder<'_>, places: &Places, written: &[&str], is_output: bool) {
    let flag = |is: bool| if is { "1" } else { "0" };
    let defines = [
        ("SWEEP_STAGES", "0"),
        ("SWEEP_STAGE_TANGENTS", "0"),
        ("SWEEP_OUTPUT", flag(is_output)),
        ("SWEEP_GRAD_QUERY", flag(!is_output)),
        ("GRAD_STAGES", "0"),
        ("ONE_SWEEP", "0"),
        ("LOGSUMEXP", "-1"),
    ];
    let (source, arguments) = source(builder, places, written, &defines);
    let problem = builder.problem;
    let rows: u64 = problem.shape(Role::Output).iter().rev().skip(1).map(|&n| n as u64).product();
    builder.launch(source + text::QUERIES, "queries", rows, arguments);
}

/// The gradients of keys, or of values.
fn keys(builder: &mut Builder<'_>, places: &Places, of_keys: bool) {
    let (problem, request) = (builder.problem, builder.request);
    let flag = |is: bool| if is { "1" } else { "0" };
    let [written, additional] = match of_keys {
        true => [Role::GradKey, Role::GradAdditionalKey],
        false => [Role::GradValue, Role::GradAdditionalValue],
    };
    let names = [written, additional].map(|role| format!("to_{}", role.name()));
    let names = names.each_ref().map(String::as_str);
    let defines = [("KEY_GRADS", flag(of_keys)), ("VALUE_GRADS", flag(!of_keys))];
    let (source, arguments) = source(builder, places, &names, &defines);
    let source = source + text::KEYS;
    let heads = (problem.batch() * problem.heads_kv()) as u64;
    if request.wants.contains(written) {
        let tokens: u64 = problem.neighborhood().key_shape().iter().map(|&n| n as u64).product();
        builder.launch(source.clone(), "keys", heads * tokens, arguments.clone());
    }
    if request.wants.contains(additional) {
        builder.launch(source, "additional_keys", heads * problem.additional_tokens() as u64, arguments);
    }
}

/// The gradient of the bias.
fn bias(builder: &mut Builder<'_>, places: &Places) {
    builder.add_table(Role::GradRpb);
    let defines = [("SCATTER_BIAS", "1"), ("SCATTER_PAIRS", "1")];
    let (source, arguments) = source(builder, places, &[], &defines);
    let problem = builder.problem;
    let queries: usize = problem.neighborhood().query_shape().iter().product();
    let extents = [problem.batch(), problem.heads(), queries].map(|n| n as u64);
    let source = source + text::SCATTER;
    pieces::launch(builder, source, "scatter_pairs", arguments, Role::GradRpb, extents, [false, true, false]);
}
