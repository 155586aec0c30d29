//! What a case should come to: its inputs, rounded to their dtypes, and the oracle's results for them in f64.

use std::cell::OnceCell;

use natten_core::reference::ReferenceBackend;
use natten_core::{DType, HostTensor, Op, OpRequest, PlanOptions, Problem, Result, Role};

use crate::case::{Case, with_dtype};
use crate::run::{HostTensors, evaluate};
use crate::sensitivity;
use crate::tolerance::{self, Numbers};

/// The inputs and the right results of an operation.
pub(crate) struct Answer {
    /// Every input, as the backend gets it.
    pub(crate) inputs: HostTensors,
    /// Every result that the operation can have, in f64.
    pub(crate) values: Numbers,
    /// The largest right distance of each element from those.
    pub(crate) bounds: Numbers,
}

/// The inputs of every operation. `output` and `logsumexp` are the oracle's, rounded, so that a backward pass is measured
/// by itself.
pub(crate) struct Expected<'a> {
    case: &'a Case,
    /// The oracle's results of the forward pass, once a request needs them.
    forward: OnceCell<Numbers>,
}

impl<'a> Expected<'a> {
    pub(crate) const fn new(case: &'a Case) -> Self {
        Self { case, forward: OnceCell::new() }
    }

    /// The answer to one of the case's requests.
    pub(crate) fn answer(&self, request: &OpRequest) -> Result<Answer> {
        let problem = &self.case.problem;
        let specs = problem.tensors(request)?;
        let roles = specs.iter().filter(|spec| !spec.is_output).map(|spec| spec.role);
        let inputs: Result<HostTensors> = roles.map(|role| Ok((role, self.input(role)?))).collect();
        let is_plain = problem.program().is_plain_softmax();
        match request.op {
            Op::Forward if is_plain => Answer::forward(problem, inputs?, self.forward()?.clone()),
            Op::Backward if is_plain => Answer::backward(problem, request, inputs?),
            _ => Answer::of_program(problem, request, inputs?),
        }
    }

    fn forward(&self) -> Result<&Numbers> {
        if let Some(forward) = self.forward.get() {
            return Ok(forward);
        }
        let (problem, request) = (&self.case.problem, OpRequest::forward(&self.case.problem));
        let mut inputs = HostTensors::new();
        for spec in problem.tensors(&request)?.iter().filter(|spec| !spec.is_output) {
            inputs.insert(spec.role, self.case.input(spec.role)?);
        }
        let forward = oracle(problem, &request, &inputs)?;
        Ok(self.forward.get_or_init(|| forward))
    }

    fn input(&self, role: Role) -> Result<HostTensor> {
        let problem = &self.case.problem;
        match role {
            Role::Output | Role::Logsumexp => {
                let exact = HostTensor::new(&problem.shape(role), self.forward()?[&role].clone())?;
                exact.cast(problem.dtype_of(role))
            }
            Role::Attention | Role::GradAttention | Role::TangentAttention => {
                without_keys_as_nan(problem, self.case.input(role)?)
            }
            role => self.case.input(role),
        }
    }
}

/// Attention weights with NaN in the slots without a key: no operation reads those.
fn without_keys_as_nan(problem: &Problem, mut weights: HostTensor) -> Result<HostTensor> {
    let neighborhood = problem.neighborhood();
    let [_, y, x] = neighborhood.axes().map(|axis| axis.query_len());
    let queries: usize = neighborhood.query_shape().iter().product();
    let slots = neighborhood.window_len() + problem.additional_tokens();
    for row in 0..weights.len() / slots {
        let query = row % queries;
        let query = [query / (x * y), query / x % y, query % x];
        for slot in (0..neighborhood.window_len()).filter(|&slot| neighborhood.key_of(query, slot).is_none())
        {
            weights.slice_mut().set(row * slots + slot, f64::NAN);
        }
    }
    Ok(weights)
}

impl Answer {
    /// The answer forward, from the oracle's results.
    pub(crate) fn forward(problem: &Problem, inputs: HostTensors, values: Numbers) -> Result<Self> {
        let mut numbers = widen(&inputs);
        numbers.extend(values.clone());
        let bounds = tolerance::forward(problem, &numbers);
        Ok(Self { inputs, values, bounds })
    }

    /// The answer backward: runs the oracle on exactly these inputs.
    pub(crate) fn backward(problem: &Problem, request: &OpRequest, inputs: HostTensors) -> Result<Self> {
        let every = request.wanting(problem.results_of(request.op, request.given).iter());
        let values = oracle(problem, &every, &inputs)?;
        let mut numbers = widen(&inputs);
        numbers.extend(values.clone());
        let bounds = tolerance::backward(problem, &numbers);
        Ok(Self { inputs, values, bounds })
    }

    /// The answer of any operation of any program: runs the oracle on exactly these inputs.
    fn of_program(problem: &Problem, request: &OpRequest, inputs: HostTensors) -> Result<Self> {
        let values = oracle(problem, request, &inputs)?;
        let bounds = sensitivity::bounds(problem, request, &inputs, &values)?;
        Ok(Self { inputs, values, bounds })
    }
}

/// The oracle's results in f64.
pub(crate) fn oracle(problem: &Problem, request: &OpRequest, inputs: &HostTensors) -> Result<Numbers> {
    let problem = with_dtype(problem, DType::F64)?;
    let widened: Result<HostTensors> =
        inputs.iter().map(|(&role, tensor)| Ok((role, tensor.cast(problem.dtype_of(role))?))).collect();
    let results = evaluate(&ReferenceBackend::new(), &problem, request, &PlanOptions::default(), &widened?)?;
    Ok(widen(&results))
}

/// Every tensor's numbers in f64.
pub(crate) fn widen(tensors: &HostTensors) -> Numbers {
    tensors.iter().map(|(&role, tensor)| (role, tensor.to_f64())).collect()
}
