//! The oracle itself: against golden results, against finite differences, and through the suite that it is the judge of.

use natten_conformance::data::Data;
use natten_conformance::golden::{Golden, golden};
use natten_conformance::strategies::problems;
use natten_conformance::{
    Case, HostTensors, Options, Report, Status, evaluate, natten_cases, run_all, run_case, with_dtype,
};
use natten_core::geometry::Neighborhood;
use natten_core::reference::ReferenceBackend;
use natten_core::{
    DType, HostTensor, OpRequest, Partial, PlanOptions, Problem, Role, merge_attentions_backward,
};
use proptest::prelude::*;

fn oracle(problem: &Problem, request: &OpRequest, inputs: &HostTensors) -> HostTensors {
    evaluate(&ReferenceBackend::new(), problem, request, &PlanOptions::default(), inputs).unwrap()
}

/// The case's inputs in a dtype, and the oracle's results of its operations, each from the results of those before.
fn results(case: &Case, dtype: DType) -> (Problem, HostTensors) {
    let problem = with_dtype(&case.problem, dtype).unwrap();
    let mut tensors = HostTensors::new();
    for request in &case.requests {
        for spec in problem.tensors(request).unwrap().into_iter().filter(|spec| !spec.is_output) {
            let input = || case.data.tensor(spec.role, spec.dtype, &spec.shape).unwrap();
            tensors.entry(spec.role).or_insert_with(input);
        }
        let results = oracle(&problem, request, &tensors);
        // The weights that `av` takes are given, not the scores that `qk` gives.
        tensors.extend(results.into_iter().filter(|(role, _)| *role != Role::Attention));
    }
    (problem, tensors)
}

fn assert_golden(dtype: DType, tolerance: f64) {
    for Golden { case, results: golden, .. } in golden() {
        let assert_close = |role: Role, got: &HostTensor| {
            let expected = &golden[&role];
            let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0, |max, x| x.abs().max(max));
            for (index, (got, expected)) in got.to_f64().iter().zip(expected).enumerate() {
                assert!(
                    got == expected || (got - expected).abs() <= tolerance * largest,
                    "{} {role}[{index}] is {got}, expected {expected}",
                    case.name
                );
            }
        };
        // `av` writes the output last: of the scores' softmax, it is that of the fused pass.
        let (problem, tensors) = results(&case, dtype);
        for &role in golden.keys().filter(|role| **role != Role::Attention) {
            assert_close(role, &tensors[&role]);
        }
        if golden.contains_key(&Role::Attention) {
            assert_close(
                Role::Attention,
                &oracle(&problem, &OpRequest::qk(&problem), &tensors)[&Role::Attention],
            );
            let fused = oracle(&problem, &OpRequest::forward(&problem), &tensors);
            assert_close(Role::Output, &fused[&Role::Output]);
        }
    }
}

#[test]
fn golden_results_in_f64() {
    assert_golden(DType::F64, 1e-10);
}

#[test]
fn golden_results_in_f32() {
    assert_golden(DType::F32, 2e-5);
}

/// Small problems: finite differences run the oracle twice for every number of every input.
fn small_problems() -> impl Strategy<Value = Problem> {
    let small = |problem: &Problem| {
        let inputs = Role::ALL.into_iter().filter(|&role| problem.has_input(role));
        let numbers: usize = inputs.map(|role| problem.shape(role).iter().product::<usize>()).sum();
        numbers as u128 * problem.useful_pairs() * (problem.head_dim() + problem.head_dim_v()) as u128
            <= 20_000_000
    };
    problems().prop_filter("few numbers and pairs", small)
}

/// `sum(output * grad_output) + sum(logsumexp * grad_logsumexp)`, of which backward gives the gradients.
fn loss(problem: &Problem, inputs: &HostTensors) -> f64 {
    let results = oracle(problem, &OpRequest::forward(problem), inputs);
    let dot = |of: Role, with: Role| -> f64 {
        let (of, with) = (results[&of].to_f64(), inputs[&with].to_f64());
        // A row that sees nothing is constant: its logsumexp of -inf has the derivative 0.
        of.iter().zip(with).filter(|(x, _)| x.is_finite()).map(|(x, g)| x * g).sum()
    };
    dot(Role::Output, Role::GradOutput) + dot(Role::Logsumexp, Role::GradLogsumexp)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every gradient, of both cotangents, for windows and ordinary attention with and without bias and additional tokens.
    #[test]
    fn backward_is_the_derivative(problem in small_problems(), seed in any::<u64>()) {
        let problem = with_dtype(&problem, DType::F64).unwrap();
        let case = Case::new("derivative", problem.clone()).data(Data::new(seed));
        let given = [Role::GradOutput, Role::GradLogsumexp];
        let inputs = Role::ALL.into_iter().filter(|role| problem.has_input(*role) || given.contains(role));
        let mut inputs: HostTensors = inputs.map(|role| (role, case.input(role).unwrap())).collect();
        inputs.extend(oracle(&problem, &OpRequest::forward(&problem), &inputs));
        let gradients = oracle(&problem, &OpRequest::backward(&problem).with_grad_logsumexp(true), &inputs);
        let step = 1e-5;
        for (role, gradient) in gradients {
            let of = role.gradient_of().unwrap();
            for (index, derived) in gradient.to_f64().into_iter().enumerate() {
                let at = |offset: f64| {
                    let mut moved = inputs.clone();
                    let tensor = moved.get_mut(&of).unwrap();
                    let value = tensor.slice().get(index) + offset;
                    tensor.slice_mut().set(index, value);
                    loss(&problem, &moved)
                };
                let difference = (at(step) - at(-step)) / (2.0 * step);
                // Of the third derivative's step^2 and of the rounding's 1e-16/step.
                let tolerance = 1e-6 * (1.0 + derived.abs());
                prop_assert!((difference - derived).abs() < tolerance, "{role}[{index}]: {derived} {difference}");
            }
        }
    }
}

/// The other rule of merging: every piece's backward runs with its own output and logsumexp, on cotangents that
/// `merge_attentions_backward` gives.
#[test]
fn cotangents_of_a_merge_give_the_gradients_of_the_whole() {
    let attention = |keys: usize| {
        let window = Neighborhood::full(9, keys, None).unwrap();
        Problem::builder(window, DType::F64).heads(2).head_dim(5).head_dim_v(4).build().unwrap()
    };
    let whole = Case::new("merge-cotangents", attention(12));
    let (problem, tensors) = results(&whole, DType::F64);
    let pieces = [0..3, 3..4, 4..12];
    let mut parts = Vec::new();
    let mut piece_inputs = Vec::new();
    for piece in &pieces {
        let mut inputs = tensors.clone();
        for role in [Role::Key, Role::Value] {
            let row: usize = problem.shape(role)[2..].iter().product();
            let shape = [&[1, piece.len()], &problem.shape(role)[2..]].concat();
            let keys = HostTensor::from_fn(DType::F64, &shape, |i| {
                tensors[&role].slice().get(piece.start * row + i)
            });
            inputs.insert(role, keys.unwrap());
        }
        let attention = attention(piece.len());
        let results = oracle(&attention, &OpRequest::forward(&attention), &inputs);
        let (output, logsumexp) = (results[&Role::Output].clone(), results[&Role::Logsumexp].clone());
        inputs.extend(results);
        parts.push(Partial { output, logsumexp });
        piece_inputs.push(inputs);
    }
    let cotangents = merge_attentions_backward(&parts, &tensors[&Role::GradOutput], None).unwrap();
    let mut sum = vec![0.0; tensors[&Role::GradQuery].len()];
    for ((piece, mut inputs), cotangent) in pieces.into_iter().zip(piece_inputs).zip(cotangents) {
        inputs.insert(Role::GradOutput, cotangent.output);
        inputs.insert(Role::GradLogsumexp, cotangent.logsumexp);
        let problem = attention(piece.len());
        let gradients = oracle(&problem, &OpRequest::backward(&problem).with_grad_logsumexp(true), &inputs);
        for role in [Role::GradKey, Role::GradValue] {
            let row: usize = problem.shape(role)[2..].iter().product();
            let expected = &tensors[&role].to_f64()[piece.start * row..piece.end * row];
            assert_close(&gradients[&role].to_f64(), expected, role);
        }
        sum.iter_mut().zip(gradients[&Role::GradQuery].to_f64()).for_each(|(sum, grad)| *sum += grad);
    }
    assert_close(&sum, &tensors[&Role::GradQuery].to_f64(), Role::GradQuery);
}

fn assert_close(got: &[f64], expected: &[f64], role: Role) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-12, "{role}: {got} {expected}");
    }
}

fn suite(filter: &str, at_least: usize) {
    let report = run_all(&ReferenceBackend::new(), &Options::default().filter(filter), &mut |_| ());
    assert_right(&report, at_least);
}

fn assert_right(report: &Report, at_least: usize) {
    assert!(report.passed() && report.count(Status::Refused) == 0, "{report}");
    assert!(report.outcomes.len() >= at_least, "only {} outcomes", report.outcomes.len());
}

#[test]
fn suite_golden() {
    suite("golden", 31);
}

#[test]
fn suite_natten_where_value_dims_differ() {
    suite("-dv-", 190);
}

#[test]
fn suite_natten_where_they_do_not() {
    let cases = natten_cases().into_iter().filter(|case| !case.name.contains("-dv-"));
    let outcomes = cases.map(|case| run_case(&ReferenceBackend::new(), &case)).collect();
    assert_right(&Report::new("reference", outcomes), 300);
}

#[test]
fn suite_features() {
    suite("feature", 200);
}

#[test]
fn suite_special() {
    suite("special", 200);
}

#[test]
fn suite_merged() {
    suite("merge", 12);
}

#[test]
fn suite_random() {
    suite("random", 64);
}
