//! Every instruction set and thread count against the oracle, on a few problems that reach every branch of the kernels.
//! The conformance suite goes wide; this goes deep where only this crate can look: `Isa`, threads, allocations.

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::reference::ReferenceBackend;
use natten_core::{
    Backend, Bindings, DType, HostTensor, OpRequest, PlanOptions, Problem, Result, Role, Tensor,
};
use natten_cpu::{CpuBackend, Isa};

/// Numbers between -1 and 1 that look random and are the same everywhere.
fn number(seed: usize, index: usize) -> f64 {
    let mut x = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn run(
    backend: &dyn Backend,
    problem: &Problem,
    request: &OpRequest,
    inputs: &[Tensor],
) -> Result<Vec<HostTensor>> {
    let plan = pollster::block_on(backend.plan(problem, request, &PlanOptions::default()))?;
    let mut outputs: Vec<Tensor> = plan
        .tensors()
        .iter()
        .filter(|spec| spec.is_output)
        .map(|spec| HostTensor::from_fn(spec.dtype, &spec.shape, |_| f64::NAN).map(Tensor::from))
        .collect::<Result<_>>()?;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let mut workspace = plan.new_workspace()?;
    let queue = backend.queue()?;
    plan.run(&*queue, Bindings { inputs: &inputs, outputs: &mut outputs }, &mut workspace)?;
    outputs.iter().map(Tensor::to_host).collect()
}

/// The inputs of forward, then those that backward has beside them.
fn inputs(problem: &Problem, request: &OpRequest, forward: &[HostTensor]) -> Result<Vec<Tensor>> {
    let mut forward = forward.iter();
    problem
        .tensors(request)?
        .into_iter()
        .filter(|spec| !spec.is_output)
        .map(|spec| match spec.role {
            Role::Output | Role::Logsumexp => Ok(forward.next().expect("forward has both").clone().into()),
            role => {
                let seed = Role::ALL.iter().position(|&r| r == role).expect("a role");
                HostTensor::from_fn(spec.dtype, &spec.shape, |i| 1.5 * number(seed, i)).map(Tensor::from)
            }
        })
        .collect()
}

fn problems(dtype: DType) -> Vec<Problem> {
    let axis = |len, kernel_size, stride, dilation, is_causal| {
        AxisParams::new(len, kernel_size).stride(stride).dilation(dilation).causal(is_causal)
    };
    let window = |axes: &[AxisParams]| Neighborhood::new(axes).unwrap();
    let full = |q, k, causal| Neighborhood::full(q, k, causal).unwrap();
    let build = |n, b, hq, hkv, d, dv, extra, rpb| {
        Problem::builder(n, dtype)
            .batch(b)
            .heads(hq)
            .heads_kv(hkv)
            .head_dim(d)
            .head_dim_v(dv)
            .additional_tokens(extra)
            .relative_positional_bias(rpb)
            .build()
            .unwrap()
    };
    use natten_core::geometry::Alignment::{BottomRight, TopLeft};
    vec![
        build(window(&[axis(70, 9, 1, 1, false)]), 2, 4, 2, 17, 5, 3, false),
        build(window(&[axis(41, 6, 4, 3, true)]), 1, 2, 1, 8, 16, 0, true),
        build(window(&[axis(13, 5, 2, 1, false), axis(19, 4, 1, 2, true)]), 2, 3, 3, 12, 20, 40, true),
        build(
            window(&[axis(6, 3, 1, 2, false), axis(7, 5, 5, 1, true), axis(9, 2, 1, 4, false)]),
            1,
            2,
            2,
            5,
            3,
            1,
            true,
        ),
        build(full(300, 33, None), 1, 2, 1, 33, 1, 0, false),
        build(full(40, 70, Some(TopLeft)), 1, 1, 1, 4, 4, 2, false),
        build(full(70, 40, Some(BottomRight)), 2, 1, 1, 4, 7, 0, false),
        build(window(&[axis(3, 1, 1, 3, false)]), 1, 1, 1, 1, 1, 0, true),
        build(window(&[axis(5, 3, 1, 1, false)]), 0, 1, 1, 2, 2, 2, true),
    ]
}

#[test]
fn every_instruction_set_matches_the_oracle() {
    let oracle = ReferenceBackend::new();
    for dtype in DType::FLOATS {
        let tolerance = 64.0 * dtype.roundoff();
        for problem in problems(dtype) {
            let forward = OpRequest::forward(&problem);
            let given = inputs(&problem, &forward, &[]).unwrap();
            let expected = run(&oracle, &problem, &forward, &given).unwrap();
            let backward = OpRequest::backward(&problem).with_grad_logsumexp(true);
            let given_backward = inputs(&problem, &backward, &expected).unwrap();
            let expected_backward = run(&oracle, &problem, &backward, &given_backward).unwrap();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut bytes = Vec::new();
                for threads in [1, 3] {
                    let cpu =
                        CpuBackend::new().unwrap().with_isa(isa).unwrap().with_threads(threads).unwrap();
                    let got = [
                        run(&cpu, &problem, &forward, &given).unwrap(),
                        run(&cpu, &problem, &backward, &given_backward).unwrap(),
                    ]
                    .concat();
                    for (got, expected) in got.iter().zip(expected.iter().chain(&expected_backward)) {
                        let largest = expected
                            .to_f64()
                            .iter()
                            .filter(|x| x.is_finite())
                            .fold(1.0f64, |m, x| m.max(x.abs()));
                        for (index, (g, e)) in got.to_f64().iter().zip(expected.to_f64()).enumerate() {
                            assert!(
                                *g == e || (g - e).abs() <= tolerance * largest,
                                "{problem:?} {isa:?} element {index} of {:?}: {g}, not {e}",
                                got.shape()
                            );
                        }
                    }
                    bytes.push(got.iter().flat_map(HostTensor::to_le_bytes).collect::<Vec<u8>>());
                }
                assert!(bytes[0] == bytes[1], "{problem:?} {isa:?}: bytes depend on the number of threads");
            }
        }
    }
}
