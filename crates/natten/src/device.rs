//! A backend that was picked, with a queue of its own, and blocking wrappers around its plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use natten_core::{
    Backend, Bindings, DeviceInfo, Error, HostTensor, Op, OpRequest, Pending, Plan, PlanOptions, Problem,
    Queue, Result, Role, Submission, Tensor,
};

/// Waits for a [`Pending`] result.
///
/// # Errors
/// Whatever the result is.
pub fn block_on<T>(pending: Pending<'_, T>) -> Result<T> {
    pollster::block_on(pending)
}

/// A device to compute on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Device {
    backend: Arc<dyn Backend>,
    queue: Arc<dyn Queue>,
}

/// Results by role, and what the run said.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outputs {
    /// The wanted tensors.
    pub tensors: BTreeMap<Role, HostTensor>,
    /// What the backend reports of the run.
    pub submission: Submission,
}

impl Outputs {
    /// Takes one of the wanted tensors out.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it was not wanted.
    pub fn take(&mut self, role: Role) -> Result<HostTensor> {
        self.tensors.remove(&role).ok_or_else(|| {
            Error::invalid("role", role, "it was not asked for", "add it to the request's wants")
        })
    }
}

impl Device {
    /// A device of a backend.
    ///
    /// # Errors
    /// Whatever the backend says when asked for a queue.
    pub fn new(backend: Arc<dyn Backend>) -> Result<Self> {
        Ok(Self { queue: backend.queue()?, backend })
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.backend.device()
    }

    /// The backend.
    pub const fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The queue that this device's runs go to.
    pub const fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// Prepares an operation; waits for it.
    ///
    /// # Errors
    /// As [`Backend::plan`].
    pub fn plan(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
    ) -> Result<Arc<dyn Plan>> {
        block_on(self.backend.plan(problem, request, options))
    }

    /// Plans, uploads, runs and downloads one operation: the simple way, for numbers that lie in host memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] where an input is missing or does not fit the problem; as [`Backend::plan`] and [`Plan::run`].
    pub fn execute(
        &self,
        problem: &Problem,
        request: &OpRequest,
        inputs: &BTreeMap<Role, HostTensor>,
    ) -> Result<Outputs> {
        self.execute_with(problem, request, &PlanOptions::default(), inputs)
    }

    /// As [`Device::execute`], planned with options.
    ///
    /// # Errors
    /// As [`Device::execute`].
    pub fn execute_with(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        inputs: &BTreeMap<Role, HostTensor>,
    ) -> Result<Outputs> {
        let plan = self.plan(problem, request, options)?;
        self.run(&*plan, request.op, inputs)
    }

    /// Uploads, runs and downloads a plan of this device.
    pub(crate) fn run(
        &self,
        plan: &dyn Plan,
        op: Op,
        inputs: &BTreeMap<Role, HostTensor>,
    ) -> Result<Outputs> {
        let specs = plan.tensors();
        let mut uploaded = Vec::new();
        for spec in specs.iter().filter(|spec| !spec.is_output) {
            let host = inputs.get(&spec.role).ok_or_else(|| {
                Error::invalid(
                    spec.name.clone(),
                    "missing",
                    format!("{op} needs it, of shape {:?}", spec.shape),
                    "give this tensor",
                )
            })?;
            uploaded.push(self.backend.upload(&*self.queue, host.clone())?);
        }
        let inputs: Vec<&Tensor> = uploaded.iter().collect();
        let mut outputs = specs
            .iter()
            .filter(|spec| spec.is_output)
            .map(|spec| self.backend.empty(spec))
            .collect::<Result<Vec<_>>>()?;
        let mut workspace = plan.new_workspace()?;
        let bindings = Bindings { inputs: &inputs, outputs: &mut outputs };
        let submission = plan.run(&*self.queue, bindings, &mut workspace)?;
        block_on(self.queue.finish())?;
        let mut tensors = BTreeMap::new();
        for (spec, tensor) in specs.iter().filter(|spec| spec.is_output).zip(&outputs) {
            tensors.insert(spec.role, block_on(self.backend.download(&*self.queue, tensor))?);
        }
        Ok(Outputs { tensors, submission })
    }
}
