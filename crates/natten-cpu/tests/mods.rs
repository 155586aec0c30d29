//! Vector functions of queries, keys and values against the oracle, around every engine: rotary embeddings in both
//! layouts, norms with weights, functions of every lane operation, with and without what comes behind them.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::{Capture, Program, ProgramBuilder};
use natten_core::reference::ReferenceBackend;
use natten_core::{
    Backend, Bindings, DType, HostTensor, Op, OpRequest, PlanOptions, Problem, ProblemBuilder, Role, Tensor,
};
use natten_cpu::CpuBackend;

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
    results: &[(Role, HostTensor)],
) -> Vec<(Role, HostTensor)> {
    let plan = pollster::block_on(backend.plan(problem, request, &PlanOptions::default())).unwrap();
    let input = |role: Role, dtype: DType, shape: &[usize]| match results.iter().find(|(of, _)| *of == role) {
        Some((_, tensor)) => tensor.clone(),
        None => {
            let seed = Role::ALL.iter().position(|&r| r == role).unwrap();
            HostTensor::from_fn(dtype, shape, |index| number(seed, index)).unwrap()
        }
    };
    let inputs: Vec<Tensor> = plan
        .tensors()
        .iter()
        .filter(|spec| !spec.is_output)
        .map(|spec| input(spec.role, spec.dtype, &spec.shape).into())
        .collect();
    let specs: Vec<_> = plan.tensors().iter().filter(|spec| spec.is_output).collect();
    let mut outputs: Vec<Tensor> = specs
        .iter()
        .map(|spec| HostTensor::from_fn(spec.dtype, &spec.shape, |_| f64::NAN).unwrap().into())
        .collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let mut workspace = plan.new_workspace().unwrap();
    let queue = backend.queue().unwrap();
    for _ in 0..2 {
        let bindings = Bindings { inputs: &inputs, outputs: &mut outputs };
        plan.run(&*queue, bindings, &mut workspace).unwrap();
    }
    specs.iter().zip(outputs).map(|(spec, tensor)| (spec.role, tensor.to_host().unwrap())).collect()
}

/// Compares an operation with the oracle; `results` are those of the forward pass, where it needs them.
fn check(problem: &Problem, request: &OpRequest, results: &[(Role, HostTensor)]) {
    let oracle = ReferenceBackend::new();
    let expected = run(&oracle, problem, request, results);
    let mut bytes = Vec::new();
    for threads in [1, 5] {
        let cpu = CpuBackend::new().unwrap().with_threads(threads).unwrap();
        let got = run(&cpu, problem, request, results);
        for ((role, got), (_, expected)) in got.iter().zip(&expected) {
            let (got, expected) = (got.to_f64(), expected.to_f64());
            let largest = expected.iter().filter(|x| x.is_finite()).fold(1e-3f64, |m, x| m.max(x.abs()));
            let tolerance = 512.0 * problem.dtype().roundoff() * largest;
            for (index, (g, e)) in got.iter().zip(&expected).enumerate() {
                assert!(
                    g == e || (g - e).abs() <= tolerance,
                    "{role}[{index}] is {g}, not {e}, of at most {largest}: {request:?} {}\n{problem:?}",
                    problem.program()
                );
            }
        }
        bytes.push(got.iter().flat_map(|(_, tensor)| tensor.to_le_bytes()).collect::<Vec<u8>>());
    }
    assert!(bytes[0] == bytes[1], "bytes depend on the threads: {request:?}\n{problem:?}");
}

/// Every operation, with every optional input at once, with each tangent alone, and with each gradient alone.
fn check_all(problem: &Problem) {
    let forward = OpRequest::forward(problem);
    let results = run(&ReferenceBackend::new(), problem, &forward, &[]);
    check(problem, &forward, &[]);
    let all = |op: Op| problem.optional_inputs_of(op).iter();
    let backward = OpRequest::backward(problem);
    check(problem, &backward, &results);
    check(problem, &backward.giving(all(Op::Backward)), &results);
    for role in backward.wants.iter() {
        check(problem, &backward.wanting([role]), &results);
    }
    for (op, make) in [
        (Op::ForwardJvp, OpRequest::forward_jvp as fn(&Problem, Vec<Role>) -> OpRequest),
        (Op::BackwardJvp, OpRequest::backward_jvp),
    ] {
        check(problem, &make(problem, all(op).collect()), &[]);
        for tangent in all(op).filter(|role| role.tangent_of().is_some()) {
            let cotangent = tangent.tangent_of().filter(|&role| role.gradient_of().is_some());
            let given = cotangent.into_iter().filter(|&role| role != Role::GradOutput).chain([tangent]);
            check(problem, &make(problem, given.collect()), &[]);
        }
    }
}

/// Rotary embeddings, halves rotated, of queries and keys from tables of angles: the captured tensors are shared.
fn rope(program: ProgramBuilder, tokens: usize, dim: usize, dtype: DType) -> ProgramBuilder {
    let rotated = |token: &str| {
        format!("x*cosine[{token}, d] + select(d < dim // 2, -half(x), half(x))*sine[{token}, d]")
    };
    program
        .capture(Capture::new("cosine", &[tokens, dim], dtype))
        .capture(Capture::new("sine", &[tokens, dim], dtype))
        .query_mod(rotated("q"))
        .key_mod(rotated("k"))
}

fn window(dtype: DType, program: Program) -> ProblemBuilder {
    let axes = match program.rank() {
        1 => Neighborhood::new(&[AxisParams::new(37, 7)]),
        _ => Neighborhood::new(&[AxisParams::new(5, 3), AxisParams::new(7, 5).dilation(1)]),
    };
    Problem::builder(axes.unwrap(), dtype)
        .batch(2)
        .heads(4)
        .heads_kv(2)
        .head_dim(6)
        .head_dim_v(10)
        .program(program)
}

fn sequence(dtype: DType, program: Program) -> ProblemBuilder {
    let axis = Neighborhood::full(70, 70, Some(Alignment::TopLeft)).unwrap();
    Problem::builder(axis, dtype)
        .batch(2)
        .heads(2)
        .head_dim(4)
        .head_dim_v(3)
        .initial_state(true)
        .program(program)
}

#[test]
fn rotary_embeddings() {
    for dtype in [DType::F64, DType::F32, DType::Bf16] {
        let halves = rope(Program::builder(1), 37, 6, dtype).build().unwrap();
        check_all(&window(dtype, halves).build().unwrap());
        // Interleaved, angles computed, on the coordinates of a grid; additional tokens turn too.
        let angle = |axis: &str| format!("{axis}*exp2(-(d // 2)*0.7)");
        let turned = |axis: &str| {
            let angle = angle(axis);
            format!("x*cos({angle}) + select(d % 2 == 0, -pair(x), pair(x))*sin({angle})")
        };
        let pairs = Program::builder(2)
            .query_mod(turned("(q0 + 2*q1)"))
            .key_mod(turned("(k0 + 2*k1)"))
            .build()
            .unwrap();
        check_all(&window(dtype, pairs).additional_tokens(3).relative_positional_bias(true).build().unwrap());
    }
}

#[test]
fn norms_with_weights() {
    let norm = |weight: &str| format!("x * rsqrt(sum(x*x)/dim + 1e-6) * {weight}");
    for dtype in [DType::F64, DType::F32, DType::F16] {
        let program = Program::builder(1)
            .capture(Capture::new("weight", &[6], dtype))
            .capture(Capture::new("by_head", &[4, 6], dtype))
            .query_mod(norm("by_head[h, d]"))
            .key_mod(norm("(weight[d] + by_head[hkv, d])"))
            .value_mod("x*sigmoid(x) + weight[d]*sum(x)")
            .build()
            .unwrap();
        check_all(&window(dtype, program).additional_tokens(2).build().unwrap());
    }
}

#[test]
fn functions_before_scores() {
    // The same captured tensor in a vector function, in the score and in the row.
    let dtype = DType::F64;
    let program = Program::builder(1)
        .capture(Capture::new("a", &[4], dtype))
        .capture(Capture::new("table", &[37, 3], DType::F32))
        .capture(Capture::new("which", &[37], DType::I32))
        .query_mod("x*a[h] + table[which[q] + d, d // 2]")
        .value_mod("tanh(x)*table[k, b]")
        .score("score*a[h] - a[hkv]*abs(q - k)")
        .mask("q + k > 3")
        .build()
        .unwrap();
    check_all(&window(dtype, program).build().unwrap());
}

#[test]
fn recurrences_of_changed_vectors() {
    for dtype in [DType::F64, DType::F32] {
        // The step size is in the values and in the decay.
        let mamba2 = Program::builder(1)
            .capture(Capture::new("dt", &[2, 70, 2], dtype))
            .capture(Capture::new("a", &[2], dtype))
            .decay("-softplus(dt[b, k, h])*exp(a[h])")
            .value_mod("x*softplus(dt[b, k, h])")
            .build()
            .unwrap();
        check_all(&sequence(dtype, mamba2).build().unwrap());
        let retention =
            rope(Program::builder(1), 70, 4, dtype).decay("log1p(-exp2(-5.0 - h))").build().unwrap();
        check_all(&sequence(dtype, retention).build().unwrap());
    }
}

#[test]
fn empty_batches_have_gradients_of_zero() {
    let program = rope(Program::builder(1), 37, 6, DType::F32).build().unwrap();
    check_all(&window(DType::F32, program).batch(0).build().unwrap());
}
