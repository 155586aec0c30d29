//! Linear attention in chunks against the recurrence that it stands for, written out here token by token in f64.

use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::reference::ReferenceBackend;
use natten_core::{
    Backend, Bindings, DType, HostTensor, OpRequest, PlanOptions, Problem, Role, Tensor, TensorSpec,
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

/// What a decay's captured tensors hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decays {
    /// Mild, -1 to 0.
    Mild,
    /// The same at every token.
    Constant(f64),
    /// Mild, but at some tokens everything is forgotten.
    Resets,
    /// Between -1 and 1: a state may grow too.
    Either,
}

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    tokens: usize,
    heads: usize,
    heads_kv: usize,
    dim: usize,
    dim_v: usize,
    initial: bool,
    decays: Decays,
    chunk: Option<usize>,
}

const CASE: Case = Case {
    batch: 2,
    tokens: 150,
    heads: 4,
    heads_kv: 2,
    dim: 13,
    dim_v: 20,
    initial: true,
    decays: Decays::Mild,
    chunk: None,
};

impl Case {
    /// Simple gated linear attention: the logarithm of the decay is a captured number a token and head.
    fn problem(&self, dtype: DType) -> Problem {
        let program = Program::builder(1)
            .capture(Capture::new("g", &[self.batch.max(1), self.tokens, self.heads], dtype))
            .decay("g[b, k, h]")
            .build()
            .unwrap();
        self.with(dtype, program)
    }

    fn with(&self, dtype: DType, program: Program) -> Problem {
        let sequence = Neighborhood::full(self.tokens, self.tokens, Some(Alignment::TopLeft)).unwrap();
        Problem::builder(sequence, dtype)
            .batch(self.batch)
            .heads(self.heads)
            .heads_kv(self.heads_kv)
            .head_dim(self.dim)
            .head_dim_v(self.dim_v)
            .program(program)
            .initial_state(self.initial)
            .build()
            .unwrap()
    }

    fn log(&self, index: usize) -> f64 {
        let mild = 0.5 * number(99, index) - 0.5;
        match self.decays {
            Decays::Mild => mild,
            Decays::Constant(log) => log,
            Decays::Resets if number(98, index) > 0.8 => f64::NEG_INFINITY,
            Decays::Resets => mild,
            Decays::Either => number(99, index),
        }
    }

    fn input(&self, spec: &TensorSpec) -> HostTensor {
        let seed = Role::ALL.iter().position(|&role| role == spec.role).unwrap();
        HostTensor::from_fn(spec.dtype, &spec.shape, |index| match spec.role {
            Role::Capture(0) => self.log(index),
            _ => number(seed, index),
        })
        .unwrap()
    }
}

/// Tensors by role, widened.
#[derive(Clone, Debug, Default)]
struct Tensors(Vec<(Role, Vec<f64>)>);

impl Tensors {
    fn get(&self, role: Role) -> Option<&[f64]> {
        self.0.iter().find(|(of, _)| *of == role).map(|(_, numbers)| &numbers[..])
    }

    fn put(&mut self, role: Role, numbers: Vec<f64>) {
        self.0.push((role, numbers));
    }
}

/// Runs on the given inputs; returns these and the results, and the results' bytes.
fn run(
    backend: &dyn Backend,
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    input: impl Fn(&TensorSpec) -> HostTensor,
) -> (Tensors, Tensors, Vec<u8>) {
    let plan = pollster::block_on(backend.plan(problem, request, options)).unwrap();
    let (outputs, inputs): (Vec<_>, Vec<_>) = plan.tensors().iter().cloned().partition(|spec| spec.is_output);
    let given: Vec<HostTensor> = inputs.iter().map(input).collect();
    let bound: Vec<Tensor> = given.iter().cloned().map(Tensor::from).collect();
    let bound: Vec<&Tensor> = bound.iter().collect();
    let mut written: Vec<Tensor> = outputs
        .iter()
        .map(|spec| HostTensor::from_fn(spec.dtype, &spec.shape, |_| f64::NAN).unwrap().into())
        .collect();
    let mut workspace = plan.new_workspace().unwrap();
    let queue = backend.queue().unwrap();
    // Twice: what a run leaves in the workspace changes nothing.
    for _ in 0..2 {
        let bindings = Bindings { inputs: &bound, outputs: &mut written };
        plan.run(&*queue, bindings, &mut workspace).unwrap();
    }
    let written: Vec<HostTensor> = written.iter().map(|tensor| tensor.to_host().unwrap()).collect();
    let mut all = [Tensors::default(), Tensors::default()];
    for (to, (specs, tensors)) in all.iter_mut().zip([(&inputs, &given), (&outputs, &written)]) {
        for (spec, tensor) in specs.iter().zip(tensors) {
            to.put(spec.role, tensor.to_f64());
        }
    }
    let [given, results] = all;
    (given, results, written.iter().flat_map(HostTensor::to_le_bytes).collect())
}

/// The recurrence, and its reverse: every result that a forward and a backward pass have, and `GradCapture(0)` as the
/// gradient of the logarithms.
fn recurrence(problem: &Problem, given: &Tensors, log: impl Fn(usize, usize, usize) -> f64) -> Tensors {
    let (batch, heads, heads_kv) = (problem.batch(), problem.heads(), problem.heads_kv());
    let (dim, dim_v, scale) = (problem.head_dim(), problem.head_dim_v(), problem.scale());
    let tokens = problem.neighborhood().query_shape()[0];
    let get = |role: Role| given.get(role).unwrap();
    let (query, key, value) = (get(Role::Query), get(Role::Key), get(Role::Value));
    let size = |role: Role| problem.shape(role).iter().product::<usize>();
    let mut output = vec![0.0; size(Role::Output)];
    let mut last = vec![0.0; size(Role::FinalState)];
    let [mut grad_query, mut grad_key, mut grad_value, mut grad_initial] =
        [Role::Query, Role::Key, Role::Value, Role::InitialState].map(|role| vec![0.0; size(role)]);
    let mut grad_log = vec![0.0; batch.max(1) * tokens * heads];
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let at = |t: usize, heads: usize, h: usize, dim: usize| ((b * tokens + t) * heads + h) * dim;
        let kv = h / (heads / heads_kv);
        let border = (b * heads + h) * dim * dim_v;
        let mut states = vec![match given.get(Role::InitialState) {
            Some(state) => state[border..border + dim * dim_v].to_vec(),
            None => vec![0.0; dim * dim_v],
        }];
        for t in 0..tokens {
            let mut state = states[t].clone();
            for i in 0..dim {
                for j in 0..dim_v {
                    let number = &mut state[i * dim_v + j];
                    *number = log(b, h, t).exp() * *number
                        + key[at(t, heads_kv, kv, dim) + i] * value[at(t, heads_kv, kv, dim_v) + j];
                    output[at(t, heads, h, dim_v) + j] += scale * query[at(t, heads, h, dim) + i] * *number;
                }
            }
            states.push(state);
        }
        last[border..border + dim * dim_v].copy_from_slice(&states[tokens]);
        let Some(grad_output) = given.get(Role::GradOutput) else { continue };
        let mut costate = match given.get(Role::GradFinalState) {
            Some(grad) => grad[border..border + dim * dim_v].to_vec(),
            None => vec![0.0; dim * dim_v],
        };
        for t in (0..tokens).rev() {
            let decay = log(b, h, t).exp();
            for i in 0..dim {
                for j in 0..dim_v {
                    let grad = scale * grad_output[at(t, heads, h, dim_v) + j];
                    let number = &mut costate[i * dim_v + j];
                    *number += query[at(t, heads, h, dim) + i] * grad;
                    grad_query[at(t, heads, h, dim) + i] += grad * states[t + 1][i * dim_v + j];
                    grad_key[at(t, heads_kv, kv, dim) + i] += *number * value[at(t, heads_kv, kv, dim_v) + j];
                    grad_value[at(t, heads_kv, kv, dim_v) + j] += *number * key[at(t, heads_kv, kv, dim) + i];
                    grad_log[at(t, heads, h, 1)] += decay * states[t][i * dim_v + j] * *number;
                    *number *= decay;
                }
            }
        }
        grad_initial[border..border + dim * dim_v].copy_from_slice(&costate);
    }
    Tensors(vec![
        (Role::Output, output),
        (Role::FinalState, last),
        (Role::GradQuery, grad_query),
        (Role::GradKey, grad_key),
        (Role::GradValue, grad_value),
        (Role::GradInitialState, grad_initial),
        (Role::GradCapture(0), grad_log),
    ])
}

/// Every result against what is expected, within some roundoffs of the largest expected magnitude.
fn compare(got: &Tensors, expected: &Tensors, dtype: DType, roundoffs: f64, what: &str) {
    // Below its least number a dtype holds nothing, and above its largest only infinity.
    let least = if dtype == DType::F16 { 6e-8 } else { 1e-38 };
    let most = if dtype == DType::F16 { 65504.0 } else { f64::MAX };
    for (role, got) in &got.0 {
        let expected = expected.get(*role).unwrap();
        assert_eq!(got.len(), expected.len(), "{role} {what}");
        let largest = expected.iter().fold(1e-30f64, |most, x| most.max(x.abs()));
        for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
            let (got, expected) = (got.clamp(-most, most), expected.clamp(-most, most));
            assert!(
                (got - expected).abs() <= roundoffs * dtype.roundoff() * largest + least,
                "{role}[{index}] is {got}, not {expected}, of at most {largest}: {what}"
            );
        }
    }
}

fn backends() -> Vec<CpuBackend> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| {
        // One thread takes sequences as a whole, many take chunk by chunk.
        [1, 3, 40]
            .map(|threads| CpuBackend::new().unwrap().with_isa(isa).unwrap().with_threads(threads).unwrap())
    })
    .collect()
}

fn cases() -> Vec<Case> {
    let chunked = |chunk| Case { chunk: Some(chunk), ..CASE };
    vec![
        CASE,
        chunked(1),
        chunked(7),
        chunked(1000),
        Case { tokens: 1, ..CASE },
        Case { tokens: 64, dim: 1, dim_v: 1, initial: false, ..CASE },
        Case { tokens: 65, dim: 32, dim_v: 16, heads_kv: 1, ..CASE },
        Case { batch: 0, tokens: 5, ..CASE },
        Case { decays: Decays::Constant(0.0), ..CASE },
        Case { decays: Decays::Constant(-50.0), ..CASE },
        Case { decays: Decays::Constant(-1e4), initial: false, ..CASE },
        Case { decays: Decays::Resets, ..CASE },
        Case { decays: Decays::Either, ..CASE },
    ]
}

#[test]
fn chunks_are_the_recurrence() {
    for case in cases() {
        for dtype in DType::FLOATS {
            let problem = case.problem(dtype);
            let options = match case.chunk {
                Some(chunk) => PlanOptions::default().query_tile(&[chunk]),
                None => PlanOptions::default(),
            };
            for request in [
                OpRequest::forward(&problem),
                OpRequest::backward(&problem),
                OpRequest::backward(&problem).giving([Role::GradFinalState]),
            ] {
                let mut bytes: Vec<(Isa, Vec<u8>)> = Vec::new();
                for cpu in backends() {
                    let what = format!("{case:?} {dtype} {} {:?}", request.op, cpu.device().name);
                    let (given, got, now) = run(&cpu, &problem, &request, &options, |spec| case.input(spec));
                    let logs = given.get(Role::Capture(0)).unwrap();
                    let log = |b: usize, h: usize, t: usize| logs[(b * case.tokens + t) * case.heads + h];
                    // Sums of what stands for -inf are as large as their roundings.
                    let roundoffs = if case.decays == Decays::Resets { 4096.0 } else { 256.0 };
                    compare(&got, &recurrence(&problem, &given, log), dtype, roundoffs, &what);
                    let isa =
                        Isa::ALL.into_iter().find(|isa| cpu.device().name.ends_with(isa.name())).unwrap();
                    match bytes.iter().find(|(of, _)| *of == isa) {
                        Some((_, before)) => assert!(*before == now, "bytes depend on the threads: {what}"),
                        None => bytes.push((isa, now)),
                    }
                }
            }
        }
    }
}

/// Decays of every dependence, each with its captured tensors: simple gated linear attention, retention, that of mamba2,
/// one that loads the same tensor twice, and one of which neighbours share elements.
fn programs(case: &Case, dtype: DType) -> Vec<Program> {
    let (b, t, h) = (case.batch.max(1), case.tokens, case.heads);
    let capture = |name: &str, shape: &[usize]| Capture::new(name, shape, dtype);
    let new = || Program::builder(1);
    let programs = [
        new().capture(capture("g", &[b, t, h])).decay("-softplus(g[b, k, h])"),
        new().decay("log1p(-exp2(-5.0 - h))"),
        new()
            .capture(capture("dt", &[b, t, h]))
            .capture(capture("a", &[h]))
            .decay("-exp(dt[b, k, h])*exp(a[h])"),
        new().capture(capture("g", &[t, h])).decay("-abs(g[k, h]) - abs(g[k - 1, hkv])*0.5"),
        new().capture(capture("g", &[t / 3 + 1])).decay("-sigmoid(g[k0 // 3])"),
    ];
    programs.into_iter().map(|program| program.build().unwrap()).collect()
}

/// Requests for an operation in forward mode: all tangents, and each alone.
fn in_forward_mode(problem: &Problem, request: &OpRequest) -> Vec<OpRequest> {
    let tangents: Vec<Role> =
        problem.optional_inputs_of(request.op).iter().filter(|role| role.tangent_of().is_some()).collect();
    let wanting = |given: OpRequest| given.wanting(problem.results_of(given.op, given.given).iter());
    let cotangents = request
        .giving(problem.optional_inputs_of(request.op).iter().filter(|role| role.tangent_of().is_none()));
    std::iter::once(cotangents.giving(tangents.iter().copied()))
        .chain(tangents.iter().map(|&role| request.giving([role])))
        .filter(|request| {
            let cotangent =
                |role: Role| role == Role::TangentGradFinalState && !request.gives(Role::GradFinalState);
            !tangents.iter().any(|&role| request.gives(role) && cotangent(role))
        })
        .map(wanting)
        .collect()
}

#[test]
fn every_operation_matches_the_oracle() {
    let oracle = ReferenceBackend::new();
    let cases =
        [Case { tokens: 40, chunk: Some(16), ..CASE }, Case { tokens: 9, batch: 1, initial: false, ..CASE }];
    for (case, dtype) in cases.iter().flat_map(|case| DType::FLOATS.map(|dtype| (case, dtype))) {
        for program in programs(case, dtype) {
            let problem = case.with(dtype, program);
            let options = match case.chunk {
                Some(chunk) => PlanOptions::default().query_tile(&[chunk]),
                None => PlanOptions::default(),
            };
            let backward = OpRequest::backward(&problem);
            let mut requests =
                vec![OpRequest::forward(&problem), backward, backward.giving([Role::GradFinalState])];
            requests.extend(in_forward_mode(&problem, &OpRequest::forward_jvp(&problem, [])));
            requests.extend(in_forward_mode(&problem, &OpRequest::backward_jvp(&problem, [])));
            for request in requests {
                let input = |spec: &TensorSpec| {
                    let seed = Role::ALL.iter().position(|&role| role == spec.role).unwrap();
                    HostTensor::from_fn(spec.dtype, &spec.shape, |index| number(seed, index)).unwrap()
                };
                let (_, expected, _) = run(&oracle, &problem, &request, &options, input);
                for threads in [1, 30] {
                    let cpu = CpuBackend::new().unwrap().with_threads(threads).unwrap();
                    let (_, got, _) = run(&cpu, &problem, &request, &options, input);
                    let what = format!("{request:?} {dtype} {case:?}\n{}", problem.program());
                    compare(&got, &expected, dtype, 512.0, &what);
                }
            }
        }
    }
}

#[test]
fn a_later_token_that_is_not_finite_changes_no_earlier_one() {
    let case = Case { batch: 1, heads: 1, heads_kv: 1, ..CASE };
    let problem = case.problem(DType::F32);
    let cpu = CpuBackend::new().unwrap();
    let bad = 77;
    let spoilt = |spec: &TensorSpec, of: Role, tokens: std::ops::Range<usize>| {
        let per_token = spec.shape.iter().skip(2).product::<usize>();
        let clean = case.input(spec).to_f64();
        let is_spoilt = |index: usize| spec.role == of && tokens.contains(&(index / per_token));
        HostTensor::from_fn(spec.dtype, &spec.shape, |i| if is_spoilt(i) { f64::NAN } else { clean[i] })
            .unwrap()
    };
    let options = PlanOptions::default();
    let forward = OpRequest::forward(&problem);
    let (_, clean, _) = run(&cpu, &problem, &forward, &options, |spec| case.input(spec));
    for role in [Role::Query, Role::Key, Role::Value] {
        let (_, got, _) = run(&cpu, &problem, &forward, &options, |spec| spoilt(spec, role, bad..bad + 1));
        let before = bad * case.dim_v;
        let (got, clean) = (got.get(Role::Output).unwrap(), clean.get(Role::Output).unwrap());
        assert_eq!(got[..before], clean[..before], "{role}");
        assert!(got[before..before + case.dim_v].iter().all(|x| x.is_nan()), "{role}");
    }
    // Backward the other way round: an earlier query changes nothing about later keys and values.
    let backward = OpRequest::backward(&problem);
    let (_, clean, _) = run(&cpu, &problem, &backward, &options, |spec| case.input(spec));
    for role in [Role::Query, Role::GradOutput] {
        let (_, got, _) = run(&cpu, &problem, &backward, &options, |spec| spoilt(spec, role, bad..bad + 1));
        for (of, dim) in [(Role::GradKey, case.dim), (Role::GradValue, case.dim_v)] {
            let after = (bad + 1) * dim;
            let close = got.get(of).unwrap()[after..].iter().zip(&clean.get(of).unwrap()[after..]);
            assert!(close.clone().all(|(a, b)| (a - b).abs() < 1e-5), "{role} {of}");
        }
    }
}
