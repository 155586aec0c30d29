//! The oracle: every operation of every program written as plainly as it can be, in f64, one pair at a time. Nothing
//! here is clever and nothing here is fast; every other backend is checked against it. It is itself a [`Backend`].
//!
//! Forward and backward pass are written once, over a type of number: f64, or f64 with a tangent. The tangents of their
//! results, forward mode and double backward, are the same code on the other type.

mod attention;
mod function;
mod functions;
mod number;
mod recurrence;
mod rows;
mod tensors;
#[cfg(test)]
mod tests;
mod unfused;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use self::attention::Attention;
use self::number::{Dual, Number};
use self::tensors::{Inputs, Tensors};
use crate::backend::{
    Backend, Bindings, DeviceInfo, DeviceKind, Pending, Plan, PlanOptions, PlanReport, Queue, Submission,
    Workspace, ready,
};
use crate::cost::{Cost, coverage_of};
use crate::error::{Error, Result};
use crate::geometry::Tiles;
use crate::problem::{Op, OpRequest, Problem, TensorSpec};
use crate::role::Role;
use crate::tensor::Tensor;

/// The oracle's name among the backends.
pub const NAME: &str = "reference";

/// The f64 oracle.
#[derive(Clone, Debug)]
pub struct ReferenceBackend {
    device: DeviceInfo,
}

impl ReferenceBackend {
    /// The oracle. It is always there.
    pub fn new() -> Self {
        Self { device: DeviceInfo::new(NAME, "f64 oracle, one pair at a time", DeviceKind::Cpu) }
    }
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for ReferenceBackend {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        problem.tensors(request).map(|_| ())
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        let plan = options
            .check_full_precision(self.device.backend)
            .and_then(|()| ReferencePlan::new(problem, request, &self.device));
        ready(plan.map(|plan| Arc::new(plan) as Arc<dyn Plan>))
    }
}

/// A problem and a request, checked: the oracle has nothing to choose.
#[derive(Debug)]
struct ReferencePlan {
    problem: Problem,
    request: OpRequest,
    tensors: Vec<TensorSpec>,
    report: PlanReport,
}

impl ReferencePlan {
    fn new(problem: &Problem, request: &OpRequest, device: &DeviceInfo) -> Result<Self> {
        let tensors = problem.tensors(request)?;
        // It visits what it must: a query at a time, its whole window at once.
        let tiles = Tiles::new(problem.neighborhood(), [1; 3], [usize::MAX; 3]);
        let coverage = coverage_of(problem, &tiles);
        let cost = Cost::of(problem, request, &coverage, device);
        let report = PlanReport::new(NAME, Vec::new(), coverage, cost, 0);
        Ok(Self { problem: problem.clone(), request: *request, tensors, report })
    }
}

impl Plan for ReferencePlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    fn new_workspace(&self) -> Result<Workspace> {
        Ok(Workspace::new(0, ()))
    }

    /// Alone among the backends the oracle allocates here: it widens its inputs first.
    fn run(
        &self,
        _queue: &dyn Queue,
        bindings: Bindings<'_>,
        _workspace: &mut Workspace,
    ) -> Result<Submission> {
        bindings.check(&self.tensors)?;
        let start = Instant::now();
        let mut inputs = Inputs::default();
        let (output_specs, input_specs): (Vec<_>, Vec<_>) =
            self.tensors.iter().partition(|spec| spec.is_output);
        for (spec, tensor) in input_specs.into_iter().zip(bindings.inputs) {
            inputs.insert(spec, &tensor.to_host()?);
        }
        let results = compute(self.request.op, &self.problem, &inputs);
        for (spec, tensor) in output_specs.into_iter().zip(bindings.outputs) {
            write(tensor, results.get(spec.role), spec)?;
        }
        Ok(Submission::done(start.elapsed()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Every result that an operation has.
fn compute(op: Op, problem: &Problem, inputs: &Inputs) -> Tensors<f64> {
    let cotangent = |role| inputs.get_or_zero(problem, role);
    match op {
        Op::Forward => forward(problem, inputs),
        Op::ForwardJvp => tangents(forward(problem, inputs), Role::tangent),
        Op::Backward => backward(problem, inputs),
        Op::BackwardJvp => {
            let second = |role: Role| role.gradient_of().and_then(Role::second_gradient);
            let mut results = tangents(backward(problem, inputs), second);
            // The derivative by a cotangent is the result that it belongs to.
            let second = |role: Role| role.gradient().and_then(Role::second_gradient);
            results.extend(tangents(forward(problem, inputs), second));
            results
        }
        Op::Qk => Attention::new(problem, inputs).qk(),
        Op::QkJvp => tangents(Attention::new(problem, inputs).qk(), Role::tangent),
        Op::QkBackward => Attention::new(problem, inputs).qk_backward(&cotangent(Role::GradAttention)),
        Op::Av => Attention::new(problem, inputs).av(&inputs.get(Role::Attention)),
        Op::AvJvp => {
            tangents(Attention::new(problem, inputs).av(&inputs.get(Role::Attention)), Role::tangent)
        }
        Op::AvBackward => Attention::new(problem, inputs)
            .av_backward(&inputs.get(Role::Attention), &cotangent(Role::GradOutput)),
    }
}

fn forward<T: Number>(problem: &Problem, inputs: &Inputs) -> Tensors<T> {
    let attention = Attention::new(problem, inputs);
    match &attention.functions.decay {
        Some(decay) => attention.recur(decay, &inputs.get_or_zero(problem, Role::InitialState)),
        None => attention.forward(),
    }
}

fn backward<T: Number>(problem: &Problem, inputs: &Inputs) -> Tensors<T> {
    let attention = Attention::new(problem, inputs);
    let cotangent = |role| inputs.get_or_zero(problem, role);
    let grad_output: Vec<T> = cotangent(Role::GradOutput);
    match &attention.functions.decay {
        Some(decay) => {
            let initial: Vec<T> = inputs.get_or_zero(problem, Role::InitialState);
            attention.recur_backward(decay, &initial, &grad_output, &cotangent(Role::GradFinalState))
        }
        None => attention.backward(
            &grad_output,
            &cotangent(Role::GradLogsumexp),
            &inputs.get(Role::Output),
            &inputs.get(Role::Logsumexp),
        ),
    }
}

/// The tangents of results, each under the role that `name` gives it; 0 where there is none.
fn tangents(results: Tensors<Dual<f64>>, name: impl Fn(Role) -> Option<Role>) -> Tensors<f64> {
    results.map(name, |number| number.tangent.unwrap_or(0.0))
}

fn write(tensor: &mut Tensor, values: &[f64], spec: &TensorSpec) -> Result<()> {
    tensor.write_f64(values).ok_or_else(|| {
        Error::invalid(
            spec.name.clone(),
            "shared or not in host memory",
            "an output must be the only tensor of its host storage",
            "use the tensor that Backend::empty made",
        )
    })
}
