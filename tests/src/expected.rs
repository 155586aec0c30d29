//! What a case should come to: its inputs, rounded to their dtypes, and the oracle's results for them in f64.

use natten_core::reference::ReferenceBackend;
use natten_core::{DType, Error, HostTensor, Op, OpRequest, PlanOptions, Problem, Result, Role};

use crate::case::{Case, with_dtype};
use crate::run::{HostTensors, evaluate};
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

/// The inputs of both passes. `output` and `logsumexp` are the oracle's, rounded, so that a backward pass is measured by
/// itself.
pub(crate) struct Expected<'a> {
    case: &'a Case,
    inputs: HostTensors,
    forward: Numbers,
}

impl<'a> Expected<'a> {
    /// Runs the oracle forward.
    pub(crate) fn new(case: &'a Case) -> Result<Self> {
        let problem = &case.problem;
        let mut inputs = HostTensors::new();
        for spec in problem.tensors(&OpRequest::forward(problem))?.iter().filter(|spec| !spec.is_output) {
            inputs.insert(spec.role, case.input(spec.role)?);
        }
        let forward = oracle(problem, &OpRequest::forward(problem), &inputs)?;
        for (&role, values) in &forward {
            let exact = HostTensor::new(&problem.shape(role), values.clone())?;
            inputs.insert(role, exact.cast(problem.dtype_of(role))?);
        }
        for role in [Role::GradOutput, Role::GradLogsumexp] {
            inputs.insert(role, case.input(role)?);
        }
        Ok(Self { case, inputs, forward })
    }

    /// The answer to one of the case's requests.
    pub(crate) fn answer(&self, request: &OpRequest) -> Result<Answer> {
        let problem = &self.case.problem;
        let specs = problem.tensors(request)?;
        let roles = specs.iter().filter(|spec| !spec.is_output).map(|spec| spec.role);
        let inputs: HostTensors = roles.map(|role| (role, self.inputs[&role].clone())).collect();
        match request.op {
            Op::Forward => Answer::forward(problem, inputs, self.forward.clone()),
            Op::Backward => Answer::backward(problem, request, inputs),
            op => Err(Error::unsupported("the suite", op.name(), "it has no oracle for it")),
        }
    }
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
        let every = OpRequest::backward(problem).with_grad_logsumexp(request.gives(Role::GradLogsumexp));
        let values = oracle(problem, &every, &inputs)?;
        let mut numbers = widen(&inputs);
        numbers.extend(values.clone());
        let bounds = tolerance::backward(problem, &numbers);
        Ok(Self { inputs, values, bounds })
    }
}

/// The oracle's results in f64.
pub(crate) fn oracle(problem: &Problem, request: &OpRequest, inputs: &HostTensors) -> Result<Numbers> {
    let widened: Result<HostTensors> =
        inputs.iter().map(|(&role, tensor)| Ok((role, tensor.cast(DType::F64)?))).collect();
    let problem = with_dtype(problem, DType::F64)?;
    let results = evaluate(&ReferenceBackend::new(), &problem, request, &PlanOptions::default(), &widened?)?;
    Ok(widen(&results))
}

/// Every tensor's numbers in f64.
pub(crate) fn widen(tensors: &HostTensors) -> Numbers {
    tensors.iter().map(|(&role, tensor)| (role, tensor.to_f64())).collect()
}
