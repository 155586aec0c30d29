//! The unfused pair and its derivatives against the oracle: ranks, windows, groups, additional tokens, the bias, dtypes.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::reference::ReferenceBackend;
use natten_core::{
    Backend, Bindings, DType, HostTensor, OpRequest, PlanOptions, Problem, ProblemBuilder, Role, Tensor,
};
use natten_cpu::{CpuBackend, Isa};

fn number(role: Role, index: usize) -> f64 {
    let seed = Role::ALL.iter().position(|&r| r == role).expect("a role") as u64;
    let mixed =
        (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 40) as f64 / (1u64 << 23) as f64 - 1.0
}

fn run(
    backend: &dyn Backend,
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
) -> Vec<(Role, Vec<f64>)> {
    let plan = pollster::block_on(backend.plan(problem, request, options)).unwrap();
    let specs = plan.tensors().to_vec();
    let inputs: Vec<Tensor> = specs
        .iter()
        .filter(|spec| !spec.is_output)
        .map(|spec| HostTensor::from_fn(spec.dtype, &spec.shape, |i| number(spec.role, i)).unwrap().into())
        .collect();
    let mut outputs: Vec<Tensor> = specs
        .iter()
        .filter(|spec| spec.is_output)
        .map(|spec| HostTensor::from_fn(spec.dtype, &spec.shape, |_| f64::NAN).unwrap().into())
        .collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let bindings = Bindings { inputs: &inputs, outputs: &mut outputs };
    let queue = backend.queue().unwrap();
    plan.run(&*queue, bindings, &mut plan.new_workspace().unwrap()).unwrap();
    let roles = specs.iter().filter(|spec| spec.is_output).map(|spec| spec.role);
    roles.zip(outputs.iter().map(|output| output.to_host().unwrap().to_f64())).collect()
}

fn requests(problem: &Problem) -> Vec<OpRequest> {
    let has = |role: &Role| problem.has_input(*role);
    let scores = [Role::TangentQuery, Role::TangentKey, Role::TangentRpb, Role::TangentAdditionalKey];
    let scores: Vec<Role> =
        scores.into_iter().filter(|role| role.tangent_of().is_some_and(|of| has(&of))).collect();
    let values = [Role::TangentAttention, Role::TangentValue, Role::TangentAdditionalValue];
    let values: Vec<Role> = values
        .into_iter()
        .filter(|role| role.tangent_of().is_some_and(|of| of == Role::Attention || has(&of)))
        .collect();
    vec![
        OpRequest::qk(problem),
        OpRequest::qk_backward(problem),
        OpRequest::qk_jvp(problem, scores.clone()),
        OpRequest::qk_jvp(problem, [scores[1]]),
        OpRequest::av(problem),
        OpRequest::av_backward(problem),
        OpRequest::av_jvp(problem, values.clone()),
        OpRequest::av_jvp(problem, [values[0]]),
    ]
}

fn problems() -> Vec<ProblemBuilder> {
    let window = |axes: &[AxisParams]| Neighborhood::new(axes).unwrap();
    let on = |n: Neighborhood| Problem::builder(n, DType::F64).heads(4).head_dim(12);
    vec![
        on(window(&[AxisParams::new(33, 7)])).batch(2).relative_positional_bias(true),
        on(window(&[AxisParams::new(40, 6).causal(true).dilation(3)]))
            .heads_kv(2)
            .head_dim_v(5)
            .additional_tokens(3),
        on(window(&[AxisParams::new(9, 5).stride(2), AxisParams::new(12, 4).dilation(2).causal(true)]))
            .relative_positional_bias(true)
            .additional_tokens(37),
        on(window(&[
            AxisParams::new(4, 2),
            AxisParams::new(5, 3).causal(true),
            AxisParams::new(7, 3).dilation(2),
        ]))
        .heads_kv(1)
        .scale(Some(1.0)),
        on(Neighborhood::full(19, 70, Some(Alignment::BottomRight)).unwrap()).head_dim_v(20),
        on(Neighborhood::full(9, 5, Some(Alignment::BottomRight)).unwrap()),
        on(window(&[AxisParams::new(8, 3)])).batch(0).relative_positional_bias(true),
    ]
}

#[test]
fn every_operation_matches_the_oracle() {
    let oracle = ReferenceBackend::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let cpu = CpuBackend::new().unwrap().with_isa(isa).unwrap();
        for builder in problems() {
            let problem = builder.build().unwrap();
            let rank = problem.neighborhood().rank();
            for request in requests(&problem) {
                let expected = run(&oracle, &problem, &request, &PlanOptions::default());
                let small = PlanOptions::default().query_tile(&vec![3; rank]).key_tile(&vec![2; rank]);
                for options in [PlanOptions::default(), small] {
                    let results = run(&cpu, &problem, &request, &options);
                    for ((role, result), (_, expected)) in results.iter().zip(&expected) {
                        for (i, (x, y)) in result.iter().zip(expected).enumerate() {
                            let close = x == y || (x - y).abs() <= 1e-12 * (1.0 + y.abs());
                            assert!(close, "{isa:?} {} {role}[{i}]: {x}, not {y}; {problem:?}", request.op);
                        }
                    }
                }
            }
        }
    }
}
