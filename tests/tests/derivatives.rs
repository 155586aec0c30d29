//! The oracle's derivatives of random programs against each other and against differences: whatever a program says, the
//! four fused operations must be derivatives of one function.

use natten_conformance::data::Data;
use natten_conformance::drafts::Content;
use natten_conformance::strategies::{programs, recurrences};
use natten_conformance::{Case, HostTensors, evaluate, with_dtype};
use natten_core::reference::ReferenceBackend;
use natten_core::{DType, HostTensor, OpRequest, PlanOptions, Problem, Role};
use proptest::prelude::*;

fn oracle(problem: &Problem, request: &OpRequest, inputs: &HostTensors) -> HostTensors {
    evaluate(&ReferenceBackend::new(), problem, request, &PlanOptions::default(), inputs).unwrap()
}

/// Problems of few pairs, in f64.
fn of_programs(content: Content) -> impl Strategy<Value = Problem> {
    let problems = prop_oneof![5 => programs(content).boxed(), 1 => recurrences().boxed()];
    let small =
        |problem: &Problem| problem.useful_pairs() * (problem.batch() * problem.heads()) as u128 <= 6_000;
    problems
        .prop_filter("few pairs", small)
        .prop_map(|problem| with_dtype(&problem, DType::F64).expect("f64 is a dtype"))
}

/// The function whose derivatives are compared: the inputs that have tangents, its results, and numbers for all of them.
struct Scene {
    problem: Problem,
    inputs: Vec<Role>,
    tensors: HostTensors,
}

/// What a gradient is a derivative of, by the results that have cotangents.
const COTANGENTS: [(Role, Role, Role); 3] = [
    (Role::Output, Role::TangentOutput, Role::GradOutput),
    (Role::Logsumexp, Role::TangentLogsumexp, Role::GradLogsumexp),
    (Role::FinalState, Role::TangentFinalState, Role::GradFinalState),
];

impl Scene {
    fn new(problem: Problem, seed: u64) -> Self {
        let case = Case::new("derivatives", problem.clone()).data(Data::new(seed));
        let mut tensors: HostTensors = Role::ALL
            .into_iter()
            .filter(|&role| problem.has_input(role))
            .map(|role| (role, case.input(role).unwrap()))
            .collect();
        let inputs: Vec<Role> = tensors
            .iter()
            .filter(|(role, tensor)| role.tangent().is_some() && tensor.dtype().is_float())
            .map(|(&role, _)| role)
            .collect();
        tensors.extend(oracle(&problem, &OpRequest::forward(&problem), &tensors));
        for (result, _, cotangent) in COTANGENTS {
            if tensors.contains_key(&result) {
                tensors.insert(cotangent, case.input(cotangent).unwrap());
            }
        }
        Self { problem, inputs, tensors }
    }

    /// A direction: a tangent of every input, and of `grad_output` where it is asked for.
    fn direction(&self, seed: u64, with_cotangent: bool) -> HostTensors {
        let data = Data::new(seed);
        let of = self.inputs.iter().copied().chain(with_cotangent.then_some(Role::GradOutput));
        of.map(|role| {
            let tangent = role.tangent().unwrap();
            (tangent, data.tensor(tangent, DType::F64, &self.problem.shape(role)).unwrap())
        })
        .collect()
    }

    fn with(&self, more: &HostTensors) -> HostTensors {
        self.tensors.iter().chain(more).map(|(&role, tensor)| (role, tensor.clone())).collect()
    }

    fn cotangents(&self) -> impl Iterator<Item = (Role, Role, Role)> {
        COTANGENTS.into_iter().filter(|(result, ..)| self.tensors.contains_key(result))
    }

    /// The results' tangents along a direction.
    fn jvp(&self, direction: &HostTensors) -> HostTensors {
        let request = OpRequest::forward_jvp(&self.problem, direction.keys().copied());
        oracle(&self.problem, &request, &self.with(direction))
    }

    /// The gradients of every input.
    fn gradients(&self, tensors: &HostTensors) -> HostTensors {
        let given =
            self.cotangents().map(|(.., cotangent)| cotangent).filter(|&role| role != Role::GradOutput);
        oracle(&self.problem, &OpRequest::backward(&self.problem).giving(given), tensors)
    }

    /// The second derivatives along a direction.
    fn second(&self, direction: &HostTensors) -> HostTensors {
        let request = OpRequest::backward_jvp(&self.problem, direction.keys().copied());
        let given =
            self.cotangents().map(|(.., cotangent)| cotangent).filter(|&role| role != Role::GradOutput);
        oracle(&self.problem, &request.giving(given), &self.with(direction))
    }

    /// The inputs, a step along a direction, and the results there.
    fn moved(&self, direction: &HostTensors, step: f64) -> HostTensors {
        let mut tensors = self.tensors.clone();
        for (tangent, along) in direction {
            let tensor = tensors.get_mut(&tangent.tangent_of().unwrap()).unwrap();
            for index in 0..along.len() {
                let value = tensor.slice().get(index) + step * along.slice().get(index);
                tensor.slice_mut().set(index, value);
            }
        }
        let results = oracle(&self.problem, &OpRequest::forward(&self.problem), &tensors);
        tensors.extend(results);
        tensors
    }

    /// `(f(step) - f(-step)) / (2 step)` along a direction, by Richardson's extrapolation of two steps.
    fn difference(&self, direction: &HostTensors, f: impl Fn(&HostTensors) -> HostTensors) -> HostTensors {
        let at = |step: f64| f(&self.moved(direction, step));
        let step = 1e-4;
        let [up, down, far_up, far_down] = [step, -step, 2.0 * step, -2.0 * step].map(at);
        up.iter()
            .map(|(role, tensor)| {
                let difference = |index: usize| {
                    let near = up[role].slice().get(index) - down[role].slice().get(index);
                    let far = far_up[role].slice().get(index) - far_down[role].slice().get(index);
                    // A row that sees nothing stays at -inf, and its derivative is 0.
                    let derived = (8.0 * near - far) / (12.0 * step);
                    if up[role].slice().get(index).is_finite() { derived } else { 0.0 }
                };
                (*role, HostTensor::from_fn(DType::F64, tensor.shape(), difference).unwrap())
            })
            .collect()
    }
}

/// The sum of products, and of their magnitudes.
fn dot(a: &HostTensor, b: &HostTensor) -> [f64; 2] {
    let products = a.to_f64().into_iter().zip(b.to_f64()).map(|(a, b)| a * b);
    products.fold([0.0; 2], |[sum, size], product| [sum + product, size + product.abs()])
}

fn sum(products: impl Iterator<Item = [f64; 2]>) -> [f64; 2] {
    products.fold([0.0; 2], |[sum, size], [product, magnitude]| [sum + product, size + magnitude])
}

fn assert_close(got: &HostTensor, expected: &HostTensor, tolerance: f64, what: &str) {
    let largest = expected.to_f64().into_iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    for (index, (got, expected)) in got.to_f64().into_iter().zip(expected.to_f64()).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance * largest,
            "{what}[{index}] is {got}, expected {expected}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// `<u, J v> = <J' u, v>`, whatever the program: also where it has kinks and constants.
    #[test]
    fn backward_is_the_adjoint_of_forward_mode(
        problem in of_programs(Content::Everything), seeds in any::<[u64; 2]>()
    ) {
        let scene = Scene::new(problem, seeds[0]);
        let direction = scene.direction(seeds[1], false);
        let tangents = scene.jvp(&direction);
        let gradients = scene.gradients(&scene.tensors);
        let forward = sum(scene.cotangents().map(|(_, tangent, cotangent)| dot(&tangents[&tangent], &scene.tensors[&cotangent])));
        let backward = sum(scene.inputs.iter().filter_map(|role| {
            // A captured tensor whose gradient the program does not have adds nothing.
            gradients.get(&role.gradient()?).map(|gradient| dot(gradient, &direction[&role.tangent().unwrap()]))
        }));
        let size = forward[1] + backward[1];
        prop_assert!((forward[0] - backward[0]).abs() <= 1e-12 * (1.0 + size), "{forward:?} {backward:?} {}", scene.problem.program());
    }

    /// Forward mode is the limit of differences.
    #[test]
    fn forward_mode_is_the_derivative(problem in of_programs(Content::Smooth), seeds in any::<[u64; 2]>()) {
        let scene = Scene::new(problem, seeds[0]);
        let direction = scene.direction(seeds[1], false);
        let tangents = scene.jvp(&direction);
        let differences = scene.difference(&direction, Clone::clone);
        for (result, tangent, _) in scene.cotangents() {
            assert_close(&tangents[&tangent], &differences[&result], 1e-6, &format!("{tangent} of {}", scene.problem.program()));
        }
    }

    /// Double backward is the limit of differences of gradients.
    #[test]
    fn double_backward_is_the_derivative_of_backward(
        problem in of_programs(Content::Smooth), seeds in any::<[u64; 2]>()
    ) {
        let scene = Scene::new(problem, seeds[0]);
        let direction = scene.direction(seeds[1], true);
        let second = scene.second(&direction);
        let differences = scene.difference(&direction, |tensors| scene.gradients(tensors));
        for (gradient, difference) in &differences {
            let of = gradient.gradient_of().unwrap();
            let Some(found) = second.get(&of.second_gradient().unwrap()) else { continue };
            assert_close(found, difference, 1e-5, &format!("{gradient} of {}", scene.problem.program()));
        }
    }

    /// `<v, H u> = <u, H v>`, of all inputs and of the cotangent of the output: also where there are kinks.
    #[test]
    fn second_derivatives_are_symmetric(problem in of_programs(Content::Kinks), seeds in any::<[u64; 3]>()) {
        let scene = Scene::new(problem, seeds[0]);
        let [u, v] = [seeds[1], seeds[2]].map(|seed| scene.direction(seed, true));
        let [of_u, of_v] = [&u, &v].map(|direction| scene.second(direction));
        let product = |second: &HostTensors, with: &HostTensors| sum(with.iter().filter_map(|(tangent, along)| {
            second.get(&tangent.tangent_of()?.second_gradient()?).map(|second| dot(second, along))
        }));
        let (a, b) = (product(&of_u, &v), product(&of_v, &u));
        prop_assert!((a[0] - b[0]).abs() <= 1e-11 * (1.0 + a[1] + b[1]), "{a:?} {b:?} {}", scene.problem.program());
    }
}
