//! The oracle: attention and its gradients written as plainly as they can be, in f64, one pair at a time. Nothing here
//! is clever and nothing here is fast; every other backend is checked against it. It is itself a [`Backend`].

mod dense;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::{
    Backend, Bindings, DeviceInfo, DeviceKind, HostQueue, Pending, Plan, PlanOptions, PlanReport, Queue,
    Submission, Workspace, ready,
};
use crate::cost::{Cost, coverage_of};
use crate::error::{Error, Result};
use crate::geometry::Tiles;
use crate::problem::{Op, OpRequest, Problem, TensorSpec};
use crate::role::Role;
use crate::tensor::{HostTensor, Tensor};

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
        _options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        ready(ReferencePlan::new(problem, request, &self.device).map(|plan| Arc::new(plan) as Arc<dyn Plan>))
    }

    fn queue(&self) -> Result<Arc<dyn Queue>> {
        Ok(Arc::new(HostQueue))
    }

    fn empty(&self, spec: &TensorSpec) -> Result<Tensor> {
        HostTensor::zeros_like(spec).map(Tensor::from)
    }

    fn upload(&self, _queue: &dyn Queue, host: HostTensor) -> Result<Tensor> {
        Ok(host.into())
    }

    fn download<'a>(&'a self, _queue: &'a dyn Queue, tensor: &'a Tensor) -> Pending<'a, HostTensor> {
        ready(tensor.to_host())
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
        let mut widened = dense::Tensors::default();
        let input_specs = self.tensors.iter().filter(|spec| !spec.is_output);
        for (spec, tensor) in input_specs.zip(bindings.inputs) {
            widened.insert(spec.role, tensor.to_host()?.to_f64());
        }
        let results = match self.request.op {
            Op::Forward => dense::forward(&self.problem, &widened),
            Op::Backward => dense::backward(&self.problem, &widened),
            op => return Err(Error::unsupported(NAME, op.name(), "it is not there yet")),
        };
        let output_specs = self.tensors.iter().filter(|spec| spec.is_output);
        for (spec, tensor) in output_specs.zip(bindings.outputs) {
            write(tensor, results.get(spec.role), spec.role)?;
        }
        Ok(Submission::done(start.elapsed()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn write(tensor: &mut Tensor, values: &[f64], role: Role) -> Result<()> {
    let elements: Vec<usize> = (0..values.len()).map(|index| tensor.element(index)).collect();
    let mut data = tensor.storage_mut().and_then(|storage| storage.host_mut()).ok_or_else(|| {
        Error::invalid(
            role.name(),
            "shared or not in host memory",
            "an output must be the only tensor of its host storage",
            "use the tensor that Backend::empty made",
        )
    })?;
    for (element, &value) in elements.into_iter().zip(values) {
        data.set(element, value);
    }
    Ok(())
}
