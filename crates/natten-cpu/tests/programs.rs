//! Programs on every instruction set against the oracle: all four operations, with every optional input, over rows of
//! one pass and of two, masks of every class, and captured tensors of every class of gradient.

use natten_core::geometry::Alignment::{BottomRight, TopLeft};
use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::program::{Capture, Program, ProgramBuilder};
use natten_core::reference::ReferenceBackend;
use natten_core::{
    Backend, Bindings, DType, HostTensor, Op, OpRequest, PlanOptions, Problem, ProblemBuilder, Result, Role,
    Tensor,
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
    options: &PlanOptions,
    inputs: &[Tensor],
) -> Result<Vec<HostTensor>> {
    let plan = pollster::block_on(backend.plan(problem, request, options))?;
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

/// The inputs of an operation; `output` and `logsumexp` are the forward pass'.
fn inputs(problem: &Problem, request: &OpRequest, forward: &[HostTensor]) -> Result<Vec<Tensor>> {
    let mut forward = forward.iter();
    problem
        .tensors(request)?
        .into_iter()
        .filter(|spec| !spec.is_output)
        .map(|spec| match spec.role {
            Role::Output | Role::Logsumexp => Ok(forward.next().expect("forward has it").clone().into()),
            // Documents: ascending integers.
            Role::Capture(_) if spec.dtype == DType::I32 => {
                HostTensor::from_fn(spec.dtype, &spec.shape, |i| (i / 11) as f64).map(Tensor::from)
            }
            role => {
                let seed = Role::ALL.iter().position(|&r| r == role).expect("a role");
                HostTensor::from_fn(spec.dtype, &spec.shape, |i| 1.5 * number(seed, i)).map(Tensor::from)
            }
        })
        .collect()
}

fn program(rank: usize, of: impl FnOnce(ProgramBuilder) -> ProgramBuilder) -> Program {
    of(Program::builder(rank)).build().unwrap()
}

fn axis(len: usize, kernel_size: usize) -> AxisParams {
    AxisParams::new(len, kernel_size)
}

fn full(queries: usize, keys: usize) -> Neighborhood {
    Neighborhood::full(queries, keys, None).unwrap()
}

struct Case {
    name: &'static str,
    problem: Box<dyn Fn(DType) -> ProblemBuilder>,
}

fn case(name: &'static str, problem: impl Fn(DType) -> ProblemBuilder + 'static) -> Case {
    Case { name, problem: Box::new(problem) }
}

/// A sequence that all tokens see.
fn sequence(dtype: DType, of: impl FnOnce(ProgramBuilder) -> ProgramBuilder) -> ProblemBuilder {
    Problem::builder(full(75, 90), dtype).heads(2).head_dim(9).head_dim_v(5).program(program(1, of))
}

fn rows() -> Vec<Case> {
    let row = |name: &'static str, text: &'static str| {
        case(name, move |dtype| sequence(dtype, |p| p.row(text)).batch(2).additional_tokens(3))
    };
    vec![
        row("softmax", "softmax"),
        row("sigmoid", "sigmoid"),
        row("relu", "relu"),
        row("relu squared", "relu:2"),
        row("identity", "identity"),
        row("softmax1", "softmax1"),
        row("l1", "l1"),
        row("retention", "retention"),
        row("retention, detached", "retention:detach"),
        row("mean shift", "m = sum(x); sigmoid(x - m/8)"),
        row("largest", "m = max(x); exp(x - m) * 0.1"),
        row("range", "hi = max(x); lo = min(x); (x - lo) / (hi - lo + 1)"),
        row("two logsumexps", "l = lse(x); n = lse(-2*x); exp(x - l) + 0.1*tanh(n)*x"),
        row("shifted softmax", "l = lse(x); n = sum(x*x); exp(x - l) / (1 + n)"),
        row("softmax of a stage", "l = lse(x); n = sum(exp(-abs(x))); exp(x - l) * x * rsqrt(1 + n)"),
        case("sink", |dtype| {
            let sink = Capture::new("sink", &[2], dtype);
            sequence(dtype, |p| p.capture(sink).row("softmax-sink")).batch(2)
        }),
    ]
}

fn scores() -> Vec<Case> {
    let numbers = |name: &'static str, shape: &'static [usize], score: &'static str| {
        case(name, move |dtype| {
            let table = Capture::new("t", shape, dtype);
            sequence(dtype, |p| p.capture(table).score(score)).batch(2).heads(4).heads_kv(2)
        })
    };
    vec![
        case("softcap", |dtype| sequence(dtype, |p| p.score("2*tanh(score/2)"))),
        case("shared subexpression", |dtype| sequence(dtype, |p| p.score("2*score + tanh(2*score)"))),
        numbers("ALiBi", &[4], "score - t[h]*abs(q - k)/32"),
        numbers("dense bias", &[4, 75, 90], "score + t[h, q, k]"),
        numbers("dense bias a batch entry", &[2, 4, 75, 90], "score + t[b, h, q, k]*score"),
        numbers("distance table", &[4, 200], "score + t[h, k - q + 80]"),
        numbers("table of all heads", &[200], "score + t[k - q + 80]"),
        numbers("a number a key", &[90], "score * t[k]"),
        numbers("a number a query", &[75], "score * t[q] + t[q // 2]"),
        numbers("clamped", &[4, 30, 30], "score + t[h, q, k]"),
        numbers("a number", &[], "score * t + sin(t*score)"),
        case("dropout", |dtype| sequence(dtype, |p| p.dropout(0.3, 7)).additional_tokens(5).batch(2)),
        case("dropout of relu", |dtype| sequence(dtype, |p| p.row("relu").dropout(0.3, 7)).batch(2)),
        case("weights", |dtype| {
            let table = Capture::new("t", &[95], dtype);
            let other = Capture::new("u", &[2], dtype);
            sequence(dtype, |p| p.capture(table).capture(other).score("score*u[h]").post("t[k]*u[h]"))
                .additional_tokens(5)
        }),
    ]
}

fn masks() -> Vec<Case> {
    let mask = |name: &'static str, text: &'static str| {
        case(name, move |dtype| sequence(dtype, |p| p.mask(text)).batch(2))
    };
    vec![
        mask("causal", "k <= q"),
        mask("nothing at first", "k < q - 20"),
        mask("prefix", "k < 20 || k <= q"),
        mask("never", "k > 1000"),
        mask("blocks", "(q // 16 + k // 16) % 3 != 0"),
        mask("of heads", "h == 0 || k <= q"),
        case("documents", |dtype| {
            let id = Capture::new("id", &[90], DType::I32);
            sequence(dtype, |p| p.capture(id).mask("id[q] == id[k] && k <= q").row("retention"))
        }),
        case("NaN where masked", |dtype| {
            sequence(dtype, |p| p.score("log(float(q - k)) + score").mask("k < q").row("sigmoid"))
                .additional_tokens(2)
        }),
        case("infinite where masked", |dtype| {
            sequence(dtype, |p| p.score("score / float(max(q - k, 0))").mask("k < q")).additional_tokens(2)
        }),
        case("dead rows", |dtype| sequence(dtype, |p| p.score("select(q % 3 == 0, log(0.0*score), score)"))),
        case("causal, and a mask", |dtype| {
            let n = Neighborhood::full(70, 70, Some(TopLeft)).unwrap();
            Problem::builder(n, dtype)
                .heads(2)
                .head_dim(8)
                .program(program(1, |p| p.mask("q - k < 20").row("l1")))
        }),
        case("bottom-right", |dtype| {
            let n = Neighborhood::full(70, 40, Some(BottomRight)).unwrap();
            Problem::builder(n, dtype).heads(2).head_dim(8).program(program(1, |p| p.score("tanh(score)")))
        }),
    ]
}

fn pictures() -> Vec<Case> {
    let everything = |p: ProgramBuilder, dtype| {
        p.capture(Capture::new("t", &[4, 30, 30], dtype))
            .score("2*tanh(score/2) + t[h, k0 - q0 + 15, k1 - q1 + 15]*score")
    };
    vec![
        case("a picture", move |dtype| {
            let n =
                Neighborhood::new(&[axis(13, 5).stride(2), axis(19, 4).dilation(2).causal(true)]).unwrap();
            let problem = Problem::builder(n, dtype).batch(2).heads(4).heads_kv(2).head_dim(7).head_dim_v(11);
            problem
                .additional_tokens(9)
                .relative_positional_bias(true)
                .program(program(2, |p| everything(p, dtype)))
        }),
        case("a masked picture", move |dtype| {
            let n = Neighborhood::new(&[axis(13, 5), axis(19, 7)]).unwrap();
            let problem = Problem::builder(n, dtype).heads(4).head_dim(7).relative_positional_bias(true);
            let of = |p: ProgramBuilder| {
                everything(p, dtype).mask("(k0 + k1) % 2 == 0").row("m = sum(x); sigmoid(x - m/8)")
            };
            problem.additional_tokens(2).program(program(2, of))
        }),
        case("a volume", move |dtype| {
            let axes = [axis(6, 3).dilation(2), axis(7, 5).stride(5).causal(true), axis(9, 2).dilation(4)];
            let problem = Problem::builder(Neighborhood::new(&axes).unwrap(), dtype).heads(2).head_dim(5);
            let of =
                |p: ProgramBuilder| p.score("score*cos(float(k2 - q2)) + 0.1*float(k0*q1)").row("retention");
            problem.additional_tokens(3).relative_positional_bias(true).program(program(3, of))
        }),
    ]
}

/// The operations of a problem, with every optional input and with some.
fn requests(problem: &Problem) -> Vec<OpRequest> {
    let optional = |op: Op| problem.optional_inputs_of(op).iter().collect::<Vec<_>>();
    let of_captures = |roles: Vec<Role>| {
        let captures: Vec<Role> =
            roles.iter().copied().filter(|role| matches!(role, Role::TangentCapture(_))).collect();
        if captures.is_empty() { vec![Role::TangentValue] } else { captures }
    };
    let lse = problem.has_logsumexp();
    vec![
        OpRequest::forward(problem),
        OpRequest::backward(problem).with_grad_logsumexp(lse),
        OpRequest::backward(problem),
        OpRequest::forward_jvp(problem, optional(Op::ForwardJvp)),
        OpRequest::forward_jvp(problem, of_captures(optional(Op::ForwardJvp))),
        OpRequest::backward_jvp(problem, optional(Op::BackwardJvp)),
        OpRequest::backward_jvp(problem, [Role::TangentQuery]),
        OpRequest::backward_jvp(problem, of_captures(optional(Op::BackwardJvp))),
        OpRequest::backward_jvp(problem, [Role::TangentGradOutput]),
    ]
}

/// Runs every operation of a case on a few backends, and compares with the oracle. With several thread counts the bytes
/// are the same.
fn check(case: &Case, dtype: DType, isa: Isa, threads: &[usize], options: &PlanOptions, tolerance: f64) {
    let oracle = ReferenceBackend::new();
    let problem = (case.problem)(dtype).build().unwrap();
    let forward = OpRequest::forward(&problem);
    let given = inputs(&problem, &forward, &[]).unwrap();
    let outputs = run(&oracle, &problem, &forward, options, &given).unwrap();
    for request in requests(&problem) {
        let what = format!("{}, {} of {dtype} on {isa:?} given {:?}", case.name, request.op, request.given);
        let given = inputs(&problem, &request, &outputs).unwrap();
        let expected = run(&oracle, &problem, &request, options, &given).unwrap();
        let mut bytes = Vec::new();
        for &threads in threads {
            let cpu = CpuBackend::new().unwrap().with_isa(isa).unwrap().with_threads(threads).unwrap();
            let got =
                run(&cpu, &problem, &request, options, &given).unwrap_or_else(|e| panic!("{what}: {e}"));
            let outputs = problem.tensors(&request).unwrap().into_iter().filter(|spec| spec.is_output);
            for ((got, expected), spec) in got.iter().zip(&expected).zip(outputs) {
                let finite = |x: &&f64| x.is_finite();
                let largest = expected.to_f64().iter().filter(finite).fold(1.0f64, |m, x| m.max(x.abs()));
                for (index, (g, e)) in got.to_f64().iter().zip(expected.to_f64()).enumerate() {
                    assert!(
                        *g == e || (g - e).abs() <= tolerance * largest,
                        "{what}: element {index} of {} is {g}, not {e}; the largest is {largest}",
                        spec.name()
                    );
                }
            }
            bytes.push(got.iter().flat_map(HostTensor::to_le_bytes).collect::<Vec<u8>>());
        }
        assert!(
            bytes.windows(2).all(|pair| pair[0] == pair[1]),
            "{what}: bytes depend on the number of threads"
        );
    }
}

fn check_all(cases: &[Case]) {
    let options = PlanOptions::default();
    for case in cases {
        check(case, DType::F64, Isa::widest(), &[1, 3], &options, 1e-10);
        check(case, DType::F32, Isa::widest(), &[1], &options, 2e-4);
    }
}

#[test]
fn rows_match_the_oracle() {
    check_all(&rows());
}

#[test]
fn scores_match_the_oracle() {
    check_all(&scores());
}

#[test]
fn masks_match_the_oracle() {
    check_all(&masks());
}

#[test]
fn pictures_match_the_oracle() {
    check_all(&pictures());
}

#[test]
fn every_instruction_set_and_tiling_matches_the_oracle() {
    let cases = || [rows(), scores(), masks()].into_iter().flat_map(|cases| cases.into_iter().step_by(5));
    for case in cases() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            check(&case, DType::F32, isa, &[1, 3], &PlanOptions::default(), 2e-4);
        }
        for (query_tile, key_tile) in [(7, 300), (100, 13), (1, 1)] {
            let options = PlanOptions::default().query_tile(&[query_tile]).key_tile(&[key_tile]);
            check(&case, DType::F64, Isa::widest(), &[2], &options, 1e-10);
        }
    }
    for case in pictures().iter().take(2) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            check(case, DType::F64, isa, &[3], &PlanOptions::default(), 1e-10);
        }
        let options = PlanOptions::default().query_tile(&[3, 2]).key_tile(&[2, 5]);
        check(case, DType::F64, Isa::widest(), &[2], &options, 1e-10);
    }
}

#[test]
fn halves_match_the_oracle() {
    for case in pictures().iter().chain(&rows()).step_by(4) {
        for dtype in [DType::F16, DType::Bf16] {
            check(case, dtype, Isa::widest(), &[2], &PlanOptions::default(), 256.0 * dtype.roundoff());
        }
    }
}
