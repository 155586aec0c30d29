//! Which tensors the operations of which problems have, and which problems are refused.

use super::*;
use crate::geometry::AxisParams;
use crate::program::Capture;

fn window() -> Neighborhood {
    Neighborhood::new(&[AxisParams::new(6, 3), AxisParams::new(7, 5)]).unwrap()
}

fn shapes(problem: &Problem, request: &OpRequest) -> Vec<(&'static str, Vec<usize>, bool)> {
    problem
        .tensors(request)
        .unwrap()
        .into_iter()
        .map(|s| (s.role.name(), s.shape.clone(), s.is_output))
        .collect()
}

#[test]
fn tensors_of_forward_and_backward() {
    let problem = Problem::builder(window(), DType::Bf16)
        .batch(2)
        .heads(4)
        .heads_kv(2)
        .head_dim(8)
        .head_dim_v(3)
        .additional_tokens(5)
        .relative_positional_bias(true)
        .build()
        .unwrap();
    let forward = shapes(&problem, &OpRequest::forward(&problem));
    let expected = [
        ("query", vec![2, 6, 7, 4, 8], false),
        ("key", vec![2, 6, 7, 2, 8], false),
        ("value", vec![2, 6, 7, 2, 3], false),
        ("rpb", vec![4, 5, 9], false),
        ("additional_key", vec![2, 5, 2, 8], false),
        ("additional_value", vec![2, 5, 2, 3], false),
        ("output", vec![2, 6, 7, 4, 3], true),
        ("logsumexp", vec![2, 6, 7, 4], true),
    ];
    assert_eq!(forward, expected);
    let backward = shapes(&problem, &OpRequest::backward(&problem).with_grad_logsumexp(true));
    let names: Vec<_> = backward.iter().map(|(name, _, out)| (*name, *out)).collect();
    assert_eq!(
        &names[6..10],
        [("output", false), ("logsumexp", false), ("grad_output", false), ("grad_logsumexp", false)]
    );
    assert_eq!(names.iter().filter(|(_, out)| *out).count(), 6);
    assert_eq!(problem.dtype_of(Role::Logsumexp), DType::F32);
}

fn names(problem: &Problem, request: &OpRequest) -> Vec<String> {
    let mark = |spec: &TensorSpec| if spec.is_output { "> " } else { "" };
    problem.tensors(request).unwrap().iter().map(|spec| format!("{}{}", mark(spec), spec.name())).collect()
}

#[test]
fn captured_tensors_go_by_their_names() {
    let program = Program::builder(2)
        .capture(Capture::new("slope", &[4], DType::F32))
        .capture(Capture::new("blocks", &[6, 7], DType::I32))
        .capture(Capture::new("idle", &[1], DType::F32))
        .score("score - slope[h] * abs(q0 - k0)")
        .mask("blocks[q0, q1] == blocks[k0, k1]")
        .row("sigmoid")
        .build()
        .unwrap();
    let problem =
        Problem::builder(window(), DType::Bf16).heads(4).head_dim(8).program(program).build().unwrap();
    assert_eq!(
        names(&problem, &OpRequest::backward(&problem)),
        [
            "query",
            "key",
            "value",
            "output",
            "grad_output",
            "slope",
            "blocks",
            "> grad_query",
            "> grad_key",
            "> grad_value",
            "> grad_slope"
        ],
        "no logsumexp, nothing of what is not used, no gradient of integers"
    );
    let tangents = [Role::TangentValue, Role::TangentCapture(0)];
    assert_eq!(
        names(&problem, &OpRequest::forward_jvp(&problem, tangents)),
        ["query", "key", "value", "tangent_value", "slope", "blocks", "tangent_slope", "> tangent_output"]
    );
    let second = OpRequest::backward_jvp(&problem, [Role::TangentGradOutput]);
    assert_eq!(
        names(&problem, &second)[7..],
        ["> grad2_query", "> grad2_key", "> grad2_value", "> grad2_grad_output", "> grad2_slope"]
            .map(String::from)
    );
    assert_eq!(problem.role("grad2_slope"), Some(Role::Grad2Capture(0)));
    assert_eq!((problem.role("slopes"), problem.role("query")), (None, Some(Role::Query)));
    assert_eq!(
        (problem.dtype_of(Role::GradCapture(0)), problem.shape(Role::TangentCapture(1))),
        (DType::F32, vec![6, 7])
    );
    for request in [
        OpRequest::forward_jvp(&problem, [Role::TangentCapture(1)]),
        OpRequest::forward_jvp(&problem, []),
        OpRequest::backward(&problem).with_grad_logsumexp(true),
        OpRequest::backward(&problem).wanting([Role::GradCapture(1)]),
        OpRequest::forward(&problem).wanting([Role::Logsumexp]),
        OpRequest::qk(&problem),
    ] {
        assert!(problem.tensors(&request).is_err(), "{request:?}");
    }
}

#[test]
fn double_backward_gives_what_its_cotangents_ask_for() {
    let problem = Problem::builder(window(), DType::F32).build().unwrap();
    let given = [Role::GradLogsumexp, Role::TangentGradLogsumexp, Role::TangentQuery];
    assert_eq!(
        names(&problem, &OpRequest::backward_jvp(&problem, given)),
        [
            "query",
            "key",
            "value",
            "grad_output",
            "grad_logsumexp",
            "tangent_query",
            "tangent_grad_logsumexp",
            "> grad2_query",
            "> grad2_key",
            "> grad2_value",
            "> grad2_grad_output",
            "> grad2_grad_logsumexp"
        ]
    );
}

#[test]
fn the_unfused_pair_has_weights() {
    let problem = Problem::builder(window(), DType::F32)
        .heads(4)
        .heads_kv(2)
        .additional_tokens(3)
        .relative_positional_bias(true)
        .build()
        .unwrap();
    assert_eq!(
        names(&problem, &OpRequest::qk_backward(&problem)),
        [
            "query",
            "key",
            "rpb",
            "additional_key",
            "grad_attention",
            "> grad_query",
            "> grad_key",
            "> grad_rpb",
            "> grad_additional_key"
        ]
    );
    assert_eq!(
        names(&problem, &OpRequest::av_jvp(&problem, [Role::TangentAttention])),
        ["value", "additional_value", "attention", "tangent_attention", "> tangent_output"]
    );
    assert_eq!(problem.shape(Role::Attention), [1, 4, 6, 7, 3 * 5 + 3]);
}

#[test]
fn recurrences_have_states() {
    let program = || {
        let decays = Capture::new("decays", &[4, 5], DType::F32);
        Program::builder(1).capture(decays).decay("decays[h, k]").build().unwrap()
    };
    let causal = |queries, keys| Neighborhood::full(queries, keys, Some(Alignment::TopLeft)).unwrap();
    let builder = |n| Problem::builder(n, DType::F16).heads(4).head_dim(8).head_dim_v(2).program(program());
    let problem = builder(causal(5, 5)).initial_state(true).build().unwrap();
    assert_eq!(
        names(&problem, &OpRequest::forward(&problem)),
        ["query", "key", "value", "initial_state", "decays", "> output", "> final_state"]
    );
    let backward = OpRequest::backward(&problem).giving([Role::GradFinalState]);
    assert_eq!(
        names(&problem, &backward)[4..7],
        ["grad_output", "grad_final_state", "decays"].map(String::from)
    );
    assert_eq!(problem.shape(Role::FinalState), [1, 4, 8, 2]);
    assert_eq!(problem.dtype_of(Role::GradInitialState), DType::F32);
    for refused in [
        builder(causal(5, 6)),
        builder(Neighborhood::full(5, 5, None).unwrap()),
        builder(causal(5, 5)).additional_tokens(1),
        Problem::builder(causal(5, 5), DType::F32).initial_state(true),
        Problem::builder(window(), DType::F32).program(Program::softmax(1)),
        Problem::builder(causal(5, 5), DType::I32),
    ] {
        assert!(matches!(refused.clone().build(), Err(Error::Invalid { .. })), "{refused:?}");
    }
    let halves = Program::builder(1).key_mod("half(x)").build().unwrap();
    assert!(Problem::builder(causal(5, 5), DType::F32).head_dim(3).program(halves).build().is_err());
}

#[test]
fn flops_are_counted_as_the_peers_count_them() {
    let problem = Problem::builder(window(), DType::F32).head_dim(16).build().unwrap();
    assert_eq!(problem.flops_per_pair(Op::Forward), 4 * 16);
    assert_eq!(problem.flops_per_pair(Op::Backward), 10 * 16);
}

#[test]
fn broken_problems_are_refused() {
    let base = || Problem::builder(window(), DType::F32).heads(4).head_dim(8);
    let full = || Problem::builder(Neighborhood::full(3, 4, None).unwrap(), DType::F32);
    let cases = [
        (base().heads(0), "heads is 0"),
        (base().heads_kv(0), "heads_kv is 0"),
        (base().heads_kv(3), "heads_kv is 3"),
        (base().head_dim(0), "head_dim is 0"),
        (base().head_dim_v(0), "head_dim_v is 0"),
        (base().scale(Some(f64::NAN)), "scale is NaN"),
        (base().batch(usize::MAX / 4), "overflows"),
        (base().head_dim(usize::MAX / 64), "overflows"),
        (base().batch(0).head_dim(usize::MAX / 64), "overflows"),
        (base().additional_tokens(usize::MAX / 16), "overflows"),
        (full().relative_positional_bias(true), "rpb"),
    ];
    for (builder, part) in cases {
        let message = builder.build().unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert!(base().batch(0).build().is_ok());
    assert_eq!(base().scale(Some(0.0)).build().unwrap().scale(), 0.0);
}

#[test]
fn wanting_what_is_not_there_is_refused() {
    let problem = Problem::builder(window(), DType::F32).build().unwrap();
    for request in [
        OpRequest::backward(&problem).wanting([Role::GradRpb]),
        OpRequest::forward(&problem).wanting([Role::GradQuery]),
        OpRequest::forward(&problem).wanting([]),
    ] {
        assert!(problem.tensors(&request).is_err(), "{request:?}");
    }
}
