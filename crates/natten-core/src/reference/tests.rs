//! Every operation against finite differences of the oracle's own forward pass, for programs of every kind, and the
//! laws that tie the operations together.

use std::collections::BTreeMap;

use super::*;
use crate::DType;
use crate::geometry::{Alignment, AxisParams, Neighborhood};
use crate::problem::ProblemBuilder;
use crate::program::{Capture, Program, ProgramBuilder};
use crate::{HostQueue, HostTensor};

type Numbers = BTreeMap<Role, Vec<f64>>;

/// Runs an operation as a user does: through a plan.
fn run(problem: &Problem, request: &OpRequest, tensors: &Numbers) -> Numbers {
    let device = ReferenceBackend::new();
    let plan = ReferencePlan::new(problem, request, device.device()).unwrap();
    let (outputs, inputs): (Vec<_>, Vec<_>) = plan.tensors().iter().partition(|spec| spec.is_output);
    let inputs: Vec<Tensor> = inputs
        .into_iter()
        .map(|spec| {
            HostTensor::from_fn(spec.dtype, &spec.shape, |at| tensors[&spec.role][at]).unwrap().into()
        })
        .collect();
    let mut results: Vec<Tensor> = outputs.iter().map(|spec| device.empty(spec).unwrap()).collect();
    let bindings = Bindings { inputs: &inputs.iter().collect::<Vec<_>>(), outputs: &mut results };
    plan.run(&HostQueue, bindings, &mut plan.new_workspace().unwrap()).unwrap();
    outputs
        .iter()
        .zip(results)
        .map(|(spec, tensor)| (spec.role, tensor.to_host().unwrap().to_f64()))
        .collect()
}

/// Numbers in [-1, 1), other ones for every role, and in (0, 1) for the integers of captured tensors.
fn noise(problem: &Problem, role: Role) -> Vec<f64> {
    let seed = problem.name(role).bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..problem.shape(role).iter().product()).map(|_| next()).collect()
}

/// What a program is tested on.
struct Case {
    name: &'static str,
    problem: Problem,
    /// Whether the gradient is the derivative: not where something is taken as a constant.
    is_exact: bool,
}

fn program(rank: usize, of: impl Fn(ProgramBuilder) -> ProgramBuilder) -> Program {
    of(Program::builder(rank)).build().unwrap()
}

fn sequence(program: Program) -> ProblemBuilder {
    let n = Neighborhood::full(5, 5, None).unwrap();
    Problem::builder(n, DType::F64).heads(2).head_dim(4).head_dim_v(3).program(program)
}

/// A window on two axes, grouped heads, additional tokens and a bias.
fn picture(program: Program) -> ProblemBuilder {
    let axes = [AxisParams::new(3, 2).causal(true), AxisParams::new(4, 3).stride(2)];
    let n = Neighborhood::new(&axes).unwrap();
    let problem = Problem::builder(n, DType::F64).batch(2).heads(2).heads_kv(1).head_dim(2).head_dim_v(3);
    problem.additional_tokens(2).relative_positional_bias(true).program(program)
}

fn recurrence(program: Program) -> ProblemBuilder {
    let n = Neighborhood::full(5, 5, Some(Alignment::TopLeft)).unwrap();
    let problem = Problem::builder(n, DType::F64).batch(2).heads(4).heads_kv(2).head_dim(2).head_dim_v(3);
    problem.program(program)
}

fn cases() -> Vec<Case> {
    let number = |name: &str, shape: &[usize]| Capture::new(name, shape, DType::F64);
    let mut cases = Vec::new();
    let mut add = |name, problem: ProblemBuilder| {
        cases.push(Case { name, problem: problem.build().unwrap(), is_exact: true });
    };
    add("softmax", picture(Program::softmax(2)));
    add("softcap", picture(program(2, |p| p.capture(number("c", &[])).score("(c + 2)*tanh(score/(c + 2))"))));
    add(
        "alibi",
        sequence(program(1, |p| {
            p.capture(number("slope", &[2])).score("score - slope[h]*abs(q - k)").mask("k <= q && q != 2")
        })),
    );
    add(
        "two loads of one tensor, clamped",
        picture(program(2, |p| p.capture(number("t", &[3])).score("score*t[q1 - k1 + 1] + t[k - 3]"))),
    );
    add(
        "sigmoid",
        picture(program(2, |p| p.capture(number("bias", &[2])).score("score + bias[h]").row("sigmoid"))),
    );
    add("relu", sequence(program(1, |p| p.row("relu:2"))));
    add(
        "retention",
        sequence(program(1, |p| {
            p.capture(number("m", &[2, 5, 5])).score("3*score*m[h, q, k]").row("retention")
        })),
    );
    add("l1", sequence(program(1, |p| p.score("score + 0.3").row("l1"))));
    add("sink", picture(program(2, |p| p.capture(number("sink", &[2])).row("softmax-sink"))));
    add("softmax1", sequence(program(1, |p| p.row("softmax1"))));
    add(
        "extremes",
        sequence(program(1, |p| p.row("m = max(x); n = min(x*x); a = sum(x*x); x*exp(n - m)/(1 + a)"))),
    );
    add(
        "two passes",
        sequence(program(1, |p| {
            p.capture(number("c", &[])).row("a = sum(c*x); l = lse(2*x); sigmoid(x - a/4 + c*l)")
        })),
    );
    add(
        "dropout and value weights",
        picture(program(2, |p| {
            p.capture(number("gate", &[14])).post("select(random(7) >= 0.3, 1.5, 0.0) * gate[k]")
        })),
    );
    add(
        "rotation and norm",
        picture(program(2, |p| {
            p.capture(number("angle", &[2]))
                .capture(number("gain", &[3]))
                .query_mod(
                    "x*cos(angle[d]*float(q)) + select(d < 1, -1.0, 1.0)*half(x)*sin(angle[d]*float(q))",
                )
                .key_mod("x*rsqrt(sum(x*x)/float(dim) + 0.1) + angle[k0]*pair(x)")
                .value_mod("x*gain[d] + float(hkv)")
        })),
    );
    let decay = |p: ProgramBuilder| {
        p.capture(number("a", &[4])).capture(number("dt", &[2, 5])).decay("-exp(a[h])*softplus(dt[b, k])")
    };
    add("decay", recurrence(program(1, decay)));
    add(
        "decay from a state",
        recurrence(program(1, |p| decay(p).value_mod("x*softplus(dt[b, k])"))).initial_state(true),
    );
    let detached = program(1, |p| p.row("retention:detach").score("3*score"));
    cases.push(Case { name: "detached", problem: sequence(detached).build().unwrap(), is_exact: false });
    cases
}

/// A problem's inputs, cotangents, and the tangents of all of them.
fn numbers(problem: &Problem) -> Numbers {
    let op = Op::BackwardJvp;
    let roles = problem.inputs_of(op).iter().chain(problem.optional_inputs_of(op).iter());
    roles.map(|role| (role, noise(problem, role))).collect()
}

fn tangents_of(problem: &Problem, op: Op) -> Vec<Role> {
    problem.optional_inputs_of(op).iter().filter(|role| role.tangent_of().is_some()).collect()
}

fn cotangents(problem: &Problem) -> Vec<Role> {
    let all = problem.optional_inputs_of(Op::BackwardJvp);
    all.iter().filter(|role| role.gradient_of().is_some()).collect()
}

/// The numbers moved by `step` along their tangents.
fn moved(numbers: &Numbers, step: f64) -> Numbers {
    let along = |(&role, values): (&Role, &Vec<f64>)| {
        let tangents = role.tangent().and_then(|tangent| numbers.get(&tangent));
        let values = match tangents {
            Some(tangents) => values.iter().zip(tangents).map(|(x, t)| x + step * t).collect(),
            None => values.clone(),
        };
        (role, values)
    };
    numbers.iter().map(along).collect()
}

fn dot_finite(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(x, _)| x.is_finite()).map(|(x, y)| x * y).sum()
}

/// `Φ`: results times their cotangents. A row that is dead is constant.
fn loss(problem: &Problem, numbers: &Numbers) -> f64 {
    let results = run(problem, &OpRequest::forward(problem), numbers);
    results.iter().map(|(role, values)| dot_finite(values, &numbers[&role.gradient().unwrap()])).sum()
}

/// Every gradient, the results of the forward pass computed first where the backward pass takes them.
fn gradients(problem: &Problem, numbers: &Numbers) -> Numbers {
    let mut inputs = numbers.clone();
    inputs.extend(run(problem, &OpRequest::forward(problem), numbers));
    run(problem, &OpRequest::backward(problem).giving(cotangents(problem)), &inputs)
}

fn assert_close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 2e-7 * (1.0 + expected.abs()), "{what}: {got}, expected {expected}");
}

const STEP: f64 = 1e-5;

fn difference(of: impl Fn(f64) -> f64) -> f64 {
    (of(STEP) - of(-STEP)) / (2.0 * STEP)
}

#[test]
fn gradients_are_the_differences() {
    for Case { name, problem, .. } in cases().into_iter().filter(|case| case.is_exact) {
        let numbers = numbers(&problem);
        let gradients = gradients(&problem, &numbers);
        assert_eq!(gradients.len(), problem.results_of(Op::Backward, Default::default()).iter().count());
        for (role, gradient) in gradients {
            let of = role.gradient_of().unwrap();
            for (index, &derived) in gradient.iter().enumerate() {
                let at = |offset: f64| {
                    let mut moved = numbers.clone();
                    moved.get_mut(&of).unwrap()[index] += offset;
                    loss(&problem, &moved)
                };
                assert_close(derived, difference(at), &format!("{name} {}[{index}]", problem.name(role)));
            }
        }
    }
}

#[test]
fn tangents_are_the_differences() {
    for Case { name, problem, is_exact } in cases() {
        let numbers = numbers(&problem);
        let request = OpRequest::forward_jvp(&problem, tangents_of(&problem, Op::ForwardJvp));
        let tangents = run(&problem, &request, &numbers);
        let gradients = gradients(&problem, &numbers);
        // <u, J v> = <Jᵀ u, v>.
        let forward: f64 = tangents
            .iter()
            .map(|(role, values)| {
                dot_finite(values, &numbers[&role.tangent_of().unwrap().gradient().unwrap()])
            })
            .sum();
        let reverse: f64 = gradients
            .iter()
            .map(|(role, values)| {
                dot_finite(values, &numbers[&role.gradient_of().unwrap().tangent().unwrap()])
            })
            .sum();
        assert!((forward - reverse).abs() < 1e-11 * (1.0 + forward.abs()), "{name}: {forward} {reverse}");
        if !is_exact {
            continue;
        }
        for (role, derived) in tangents {
            let of = role.tangent_of().unwrap();
            let [ahead, behind] = [STEP, -STEP]
                .map(|step| run(&problem, &OpRequest::forward(&problem), &moved(&numbers, step)));
            for (index, &derived) in derived.iter().enumerate() {
                let (ahead, behind) = (ahead[&of][index], behind[&of][index]);
                let expected = if ahead == behind { 0.0 } else { (ahead - behind) / (2.0 * STEP) };
                assert_close(derived, expected, &format!("{name} {role}[{index}]"));
            }
        }
    }
}

#[test]
fn second_derivatives_are_the_differences_of_gradients() {
    for Case { name, problem, .. } in cases().into_iter().filter(|case| case.is_exact) {
        let numbers = numbers(&problem);
        let given = cotangents(&problem);
        let request = OpRequest::backward_jvp(&problem, tangents_of(&problem, Op::BackwardJvp));
        let wants = problem.results_of(Op::BackwardJvp, request.giving(given.clone()).given);
        let second = run(&problem, &request.giving(given).wanting(wants.iter()), &numbers);
        let [ahead, behind] = [STEP, -STEP].map(|step| {
            let numbers = moved(&numbers, step);
            let mut all = gradients(&problem, &numbers);
            let forward = run(&problem, &OpRequest::forward(&problem), &numbers);
            all.extend(forward.into_iter().map(|(role, values)| (role.gradient().unwrap(), values)));
            all
        });
        for (role, derived) in second {
            let of = role.second_gradient_of().unwrap();
            // The derivative by an input is its gradient; by a cotangent, kept under that name, the result.
            let first = of.gradient().unwrap_or(of);
            for (index, &derived) in derived.iter().enumerate() {
                let (ahead, behind) = (ahead[&first][index], behind[&first][index]);
                let expected = if ahead == behind { 0.0 } else { (ahead - behind) / (2.0 * STEP) };
                assert_close(derived, expected, &format!("{name} {}[{index}]", problem.name(role)));
            }
        }
    }
}

/// The backward pass takes `Δ` from the output; double backward sums it up. Both are the same.
#[test]
fn both_ways_to_the_cotangents_of_stages_agree() {
    for Case { name, problem, .. } in
        cases().into_iter().filter(|case| case.problem.program().decay().is_none())
    {
        let numbers = numbers(&problem);
        let expected = gradients(&problem, &numbers);
        let mut inputs = Inputs::default();
        for (&role, values) in &numbers {
            let host = HostTensor::new(&problem.shape(role), values.clone()).unwrap();
            let spec = TensorSpec {
                role,
                name: problem.name(role).into_owned(),
                is_output: false,
                shape: problem.shape(role),
                dtype: DType::F64,
            };
            inputs.insert(&spec, &host);
        }
        let summed: Tensors<f64> = backward(&problem, &inputs);
        for (role, values) in expected {
            for (got, expected) in summed.get(role).iter().zip(values) {
                assert!(
                    (got - expected).abs() < 1e-12 * (1.0 + expected.abs()),
                    "{name} {role}: {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_shared_subexpression_counts_once() {
    // t + tanh t with t = 2s at s = 0.7: 2 + 2 (1 - tanh² 1.4) = 2.4323; a walk over the tree gives 4.4323.
    let n = Neighborhood::full(1, 1, None).unwrap();
    let program = program(1, |p| p.score("2*score + tanh(2*score)").row("identity"));
    let problem = Problem::builder(n, DType::F64).scale(Some(1.0)).program(program).build().unwrap();
    let numbers: Numbers =
        [(Role::Query, 0.7), (Role::Key, 1.0), (Role::Value, 1.0), (Role::GradOutput, 1.0)]
            .map(|(role, value)| (role, vec![value]))
            .into();
    assert!((gradients(&problem, &numbers)[&Role::GradQuery][0] - 2.4323).abs() < 5e-5);
}

/// Rows that keep nothing, by the mask and by scores of -inf: zeros, -inf, and zero derivatives of every kind.
#[test]
fn dead_rows_are_zero() {
    let masked = program(1, |p| p.mask("q != 1"));
    let infinite = program(1, |p| p.score("select(q == 1, -inf, score)"));
    let sink =
        program(1, |p| p.capture(Capture::new("sink", &[2], DType::F64)).mask("q != 1").row("softmax-sink"));
    let sigmoid = program(1, |p| p.mask("q != 1").row("sigmoid"));
    for program in [masked, infinite, sink, sigmoid] {
        let problem = sequence(program).build().unwrap();
        let numbers = numbers(&problem);
        let results = run(&problem, &OpRequest::forward(&problem), &numbers);
        let row = |values: &[f64], dim: usize| values[2 * dim..4 * dim].to_vec();
        assert_eq!(row(&results[&Role::Output], 3), [0.0; 6]);
        if let Some(logsumexp) = results.get(&Role::Logsumexp) {
            assert_eq!(row(logsumexp, 1), [f64::NEG_INFINITY; 2]);
        }
        let request = OpRequest::backward_jvp(&problem, tangents_of(&problem, Op::BackwardJvp));
        let second = run(&problem, &request, &numbers);
        let mut all = gradients(&problem, &numbers);
        assert_eq!(row(&all[&Role::GradQuery], 4), [0.0; 8]);
        assert_eq!(row(&second[&Role::Grad2Query], 4), [0.0; 8]);
        all.extend(second);
        let tangents = OpRequest::forward_jvp(&problem, tangents_of(&problem, Op::ForwardJvp));
        all.extend(run(&problem, &tangents, &numbers));
        assert_eq!(row(&all[&Role::TangentOutput], 3), [0.0; 6]);
        assert!(all.values().flatten().all(|x| x.is_finite()), "{all:?}");
    }
}

/// What the mask leaves out is never looked at.
#[test]
fn masked_pairs_are_not_evaluated() {
    let causal = program(1, |p| p.mask("k <= q").score("score + log(float(q - k + 1))"));
    let problem = sequence(causal).build().unwrap();
    let mut numbers = numbers(&problem);
    let last = |role| problem.shape(role).iter().product::<usize>() - 1;
    numbers.get_mut(&Role::Key).unwrap()[last(Role::Key)] = f64::NAN;
    numbers.get_mut(&Role::Value).unwrap()[last(Role::Value)] = f64::INFINITY;
    let output = &run(&problem, &OpRequest::forward(&problem), &numbers)[&Role::Output];
    assert!(output[..24].iter().all(|x| x.is_finite()), "{output:?}");
    let of_values = &gradients(&problem, &numbers)[&Role::GradQuery];
    assert!(of_values[..32].iter().all(|x| x.is_finite()));
}

/// The tangents of a tie go to every element that reaches the extreme.
#[test]
fn ties_share_the_derivative() {
    let n = Neighborhood::full(1, 2, None).unwrap();
    let program = program(1, |p| p.row("m = max(x); m + 0*x"));
    let problem = Problem::builder(n, DType::F64).scale(Some(1.0)).program(program).build().unwrap();
    let numbers: Numbers = [
        (Role::Query, vec![1.0]),
        (Role::Key, vec![0.5, 0.5]),
        (Role::Value, vec![1.0, 1.0]),
        (Role::GradOutput, vec![1.0]),
        (Role::TangentKey, vec![1.0, 0.0]),
    ]
    .into();
    assert_eq!(gradients(&problem, &numbers)[&Role::GradKey], [2.0, 2.0]);
    let request = OpRequest::forward_jvp(&problem, [Role::TangentKey]);
    assert_eq!(run(&problem, &request, &numbers)[&Role::TangentOutput], [2.0]);
}

#[test]
fn a_recurrence_is_its_parallel_form() {
    let decay =
        program(1, |p| p.capture(Capture::new("decays", &[2, 4, 5], DType::F64)).decay("decays[b, h, k]"));
    let problem = recurrence(decay).build().unwrap();
    let mut numbers = numbers(&problem);
    for strength in [0.0, 1.0, 50.0] {
        let l: Vec<f64> = noise(&problem, Role::Capture(0)).iter().map(|x| -strength * x.abs()).collect();
        numbers.insert(Role::Capture(0), l.clone());
        let output = &run(&problem, &OpRequest::forward(&problem), &numbers)[&Role::Output];
        for (index, &got) in output.iter().enumerate() {
            let (batch, token, head, lane) = (index / 60, index / 12 % 5, index / 3 % 4, index % 3);
            let mut expected = 0.0;
            for key in 0..=token {
                let decay: f64 = (key + 1..=token).map(|t| l[(batch * 4 + head) * 5 + t]).sum();
                let pair = (batch * 5 + key) * 2 + head / 2;
                let query = ((batch * 5 + token) * 4 + head) * 2;
                let product: f64 = (0..2)
                    .map(|d| numbers[&Role::Query][query + d] * numbers[&Role::Key][pair * 2 + d])
                    .sum();
                expected += problem.scale() * decay.exp() * product * numbers[&Role::Value][pair * 3 + lane];
            }
            assert!((got - expected).abs() < 1e-13, "{strength}: {got} {expected}");
        }
        let gradients = gradients(&problem, &numbers);
        assert!(gradients.values().flatten().all(|x| x.is_finite()));
    }
}

/// `av(softmax(qk))` is the fused forward pass, and the unfused derivatives are differences.
#[test]
fn the_unfused_pair() {
    let problem = picture(Program::softmax(2)).build().unwrap();
    let mut numbers = numbers(&problem);
    let attention = run(&problem, &OpRequest::qk(&problem), &numbers).remove(&Role::Attention).unwrap();
    let slots = problem.neighborhood().window_len() + 2;
    let fused = run(&problem, &OpRequest::forward(&problem), &numbers);
    let mut weights = attention.clone();
    for row in weights.chunks_exact_mut(slots) {
        let total: f64 = row.iter().map(|s| s.exp()).sum();
        row.iter_mut().for_each(|s| *s = s.exp() / total);
    }
    // What lies in slots without a key is not read.
    for (weight, score) in weights.iter_mut().zip(&attention) {
        *weight = if *score == f64::NEG_INFINITY { f64::NAN } else { *weight };
    }
    numbers.insert(Role::Attention, weights);
    for role in [Role::GradAttention, Role::TangentAttention] {
        let mut values = noise(&problem, role);
        for (value, score) in values.iter_mut().zip(&attention) {
            *value = if *score == f64::NEG_INFINITY { f64::NAN } else { *value };
        }
        numbers.insert(role, values);
    }
    let unfused = run(&problem, &OpRequest::av(&problem), &numbers);
    for (got, expected) in unfused[&Role::Output].iter().zip(&fused[&Role::Output]) {
        assert!((got - expected).abs() < 1e-13);
    }
    for (value, jvp, backward) in [(Op::Qk, Op::QkJvp, Op::QkBackward), (Op::Av, Op::AvJvp, Op::AvBackward)] {
        let request = |op: Op, given: Vec<Role>| match op {
            Op::Qk => OpRequest::qk(&problem),
            Op::QkJvp => OpRequest::qk_jvp(&problem, given),
            Op::QkBackward => OpRequest::qk_backward(&problem),
            Op::Av => OpRequest::av(&problem),
            Op::AvJvp => OpRequest::av_jvp(&problem, given),
            _ => OpRequest::av_backward(&problem),
        };
        let tangents = run(&problem, &request(jvp, tangents_of(&problem, jvp)), &numbers);
        let [ahead, behind] =
            [STEP, -STEP].map(|step| run(&problem, &request(value, Vec::new()), &moved(&numbers, step)));
        let mut forward = 0.0;
        for (role, derived) in tangents {
            let of = role.tangent_of().unwrap();
            for (index, &derived) in derived.iter().enumerate() {
                let (ahead, behind) = (ahead[&of][index], behind[&of][index]);
                let is_empty = of == Role::Attention && attention[index] == f64::NEG_INFINITY;
                let expected = if is_empty { 0.0 } else { (ahead - behind) / (2.0 * STEP) };
                assert_close(derived, expected, &format!("{role}[{index}]"));
                let cotangent = numbers[&of.gradient().unwrap()][index];
                forward += if is_empty { 0.0 } else { derived * cotangent };
            }
        }
        let mut reverse = 0.0;
        for (role, gradient) in run(&problem, &request(backward, Vec::new()), &numbers) {
            let tangents = &numbers[&role.gradient_of().unwrap().tangent().unwrap()];
            for (index, (gradient, tangent)) in gradient.iter().zip(tangents).enumerate() {
                let is_empty = role == Role::GradAttention && attention[index] == f64::NEG_INFINITY;
                assert!(!is_empty || *gradient == 0.0, "{role}[{index}] is {gradient}");
                reverse += if is_empty { 0.0 } else { gradient * tangent };
            }
        }
        assert!((forward - reverse).abs() < 1e-11 * (1.0 + forward.abs()), "{jvp}: {forward} {reverse}");
    }
}
