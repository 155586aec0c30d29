//! The traits of a backend: plan, then run. Planning checks, chooses, compiles and explains; running decides nothing
//! and allocates nothing. Object-safe, so that a device is picked at run time; async where a browser must not block.

use std::any::Any;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::geometry::Coverage;
use crate::marker::{MaybeSend, MaybeSync};
use crate::precision::Precision;
use crate::problem::{OpRequest, Problem, TensorSpec};
use crate::role::Role;
use crate::tensor::{HostTensor, Tensor};

/// A result that is still being made. Backends of the host are ready at once; `natten::block_on` waits for the others.
#[cfg(not(target_family = "wasm"))]
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;
/// A result that is still being made. Backends of the host are ready at once; `natten::block_on` waits for the others.
#[cfg(target_family = "wasm")]
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// A [`Pending`] that is ready.
pub fn ready<'a, T: MaybeSend + 'a>(result: Result<T>) -> Pending<'a, T> {
    Box::pin(std::future::ready(result))
}

/// What kind of machine runs a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The host's processor.
    Cpu,
    /// A graphics processor of its own.
    Gpu,
    /// A graphics processor that shares the host's memory, or a software one.
    SharedGpu,
    /// A simulator of hardware that is not there.
    Simulator,
}

/// What is known about a device: for users to read, for planners and cost models to choose by.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The backend's name: `cpu`, `cuda`, `wgpu`, `neuron`, `reference`.
    pub backend: &'static str,
    /// The device's own name.
    pub name: String,
    /// What kind of machine it is.
    pub kind: DeviceKind,
    /// Things that run at the same time: threads of a CPU, multiprocessors of a GPU.
    pub units: usize,
    /// Bytes of memory, where known.
    pub memory: Option<usize>,
    /// Peak rate in f32, flops a second, where known. An estimate unless the backend says that it was measured.
    pub peak_f32: Option<f64>,
    /// Peak memory traffic, bytes a second, where known.
    pub bandwidth: Option<f64>,
    /// Named limits and features, for users to read.
    pub features: Vec<(String, String)>,
}

impl DeviceInfo {
    /// A device of which only backend, name and kind are known.
    pub fn new(backend: &'static str, name: impl Into<String>, kind: DeviceKind) -> Self {
        Self {
            backend,
            name: name.into(),
            kind,
            units: 1,
            memory: None,
            peak_f32: None,
            bandwidth: None,
            features: Vec::new(),
        }
    }
}

/// What a caller may decide about a plan. The default leaves everything to the planner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Tokens of a query box, one extent a user axis.
    pub query_tile: Option<Vec<usize>>,
    /// Tokens of a key box, one extent a user axis.
    pub key_tile: Option<Vec<usize>>,
    /// How products of f32 are computed.
    pub precision: Precision,
}

impl PlanOptions {
    /// The options with this query box.
    #[must_use]
    pub fn query_tile(self, tile: &[usize]) -> Self {
        Self { query_tile: Some(tile.to_vec()), ..self }
    }

    /// The options with this key box.
    #[must_use]
    pub fn key_tile(self, tile: &[usize]) -> Self {
        Self { key_tile: Some(tile.to_vec()), ..self }
    }

    /// The options with this precision.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Checks that no less than full precision is asked for: for backends that compute in no other.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub fn check_full_precision(&self, backend: &'static str) -> Result<()> {
        if self.precision == Precision::Full {
            return Ok(());
        }
        let what = format!("precision {}", self.precision);
        let why =
            "its products are those of the problem's dtype: leave the precision out, or ask CUDA on Hopper";
        Err(Error::unsupported(backend, what, why))
    }
}

/// A box of user axes, checked, as a box of the three padded axes.
///
/// # Errors
/// [`Error::Invalid`] where it has not one extent an axis, or a zero.
pub fn padded_tile(name: &'static str, tile: &[usize], problem: &Problem) -> Result<[usize; 3]> {
    let rank = problem.neighborhood().rank();
    if tile.len() != rank || tile.contains(&0) {
        return Err(Error::invalid(
            name,
            format!("{tile:?}"),
            format!("it must have {rank} extents of at least 1"),
            "give one extent an axis, or leave the choice to the planner",
        ));
    }
    let mut padded = [1; 3];
    padded[3 - rank..].copy_from_slice(tile);
    Ok(padded)
}

/// What a plan will do, and what it should cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PlanReport {
    /// The backend's name.
    pub backend: &'static str,
    /// The choices of the planner, by name.
    pub config: Vec<(String, String)>,
    /// The boxes that the kernel walks, of one batch entry and head.
    pub coverage: Coverage,
    /// What it should cost.
    pub cost: Cost,
    /// Bytes of workspace.
    pub workspace: usize,
}

impl PlanReport {
    /// A report.
    pub const fn new(
        backend: &'static str,
        config: Vec<(String, String)>,
        coverage: Coverage,
        cost: Cost,
        workspace: usize,
    ) -> Self {
        Self { backend, config, coverage, cost, workspace }
    }
}

/// A kind of source text that a plan can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceKind {
    /// CUDA C, for NVRTC.
    CudaC,
    /// WGSL with its bindings and dispatch sizes.
    Wgsl,
    /// A kernel in NKI Python.
    Nki,
}

/// Generated source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Artifact {
    /// What kind of source it is.
    pub kind: SourceKind,
    /// The text.
    pub text: String,
}

impl Artifact {
    /// Source text of a kind.
    pub const fn new(kind: SourceKind, text: String) -> Self {
        Self { kind, text }
    }
}

/// Scratch memory of a run, made by [`Plan::new_workspace`] once and used again and again. One run at a time uses it;
/// several threads that run one plan have one each.
pub struct Workspace {
    bytes: usize,
    memory: Box<dyn AnyMemory>,
}

/// Memory of a workspace, whatever a backend makes it of.
trait AnyMemory: MaybeSend {
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<T: Any + MaybeSend> AnyMemory for T {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Workspace {
    /// Wraps a backend's own memory type.
    pub fn new<T: Any + MaybeSend>(bytes: usize, memory: T) -> Self {
        Self { bytes, memory: Box::new(memory) }
    }

    /// Its size.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory, if it is of the backend's type `T`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where another plan made this workspace.
    pub fn memory<T: Any>(&mut self) -> Result<&mut T> {
        (*self.memory).as_any_mut().downcast_mut().ok_or_else(|| {
            Error::invalid(
                "workspace",
                "of another plan",
                "it must come from this plan",
                "call new_workspace of the plan that runs",
            )
        })
    }
}

impl Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Submission {
    /// The time the work took, where it is known when `run` returns.
    pub elapsed: Option<Duration>,
    /// The time that the work would take on the hardware that a simulator stands for.
    pub simulated: Option<Duration>,
}

impl Submission {
    /// Work that is done and took this long.
    pub const fn done(elapsed: Duration) -> Self {
        Self { elapsed: Some(elapsed), simulated: None }
    }
}

/// An order of work on a device. Work on one queue runs in the order that it was submitted in.
pub trait Queue: Debug + MaybeSend + MaybeSync {
    /// Is ready when everything submitted so far is done.
    fn finish(&self) -> Pending<'_, ()>;

    /// Begins to measure the device's own time from here on in the order of work; `None` where the queue has no clock of
    /// its own, because `run` returns when the work is done or because the device has none.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn timer(&self) -> Result<Option<Box<dyn Timer>>> {
        Ok(None)
    }

    /// For a backend to find its own queue type.
    fn as_any(&self) -> &dyn Any;
}

/// A measurement of a device's own time, begun by [`Queue::timer`].
pub trait Timer: Debug + MaybeSend {
    /// Ends it here in the order of work; ready, with the time between, when the work before is done.
    fn stop(self: Box<Self>) -> Pending<'static, Duration>;
}

/// The queue of a backend whose `run` returns when the work is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostQueue;

impl Queue for HostQueue {
    fn finish(&self) -> Pending<'_, ()> {
        ready(Ok(()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The tensors of a run: inputs and outputs, each in the order of [`Plan::tensors`].
#[derive(Debug)]
pub struct Bindings<'a> {
    /// The inputs.
    pub inputs: &'a [&'a Tensor],
    /// The outputs. Every element is written; nothing of what was there is read.
    pub outputs: &'a mut [Tensor],
}

impl Bindings<'_> {
    /// Checks number, shapes, dtypes and output strides against a plan's tensors.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the tensor.
    pub fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        let expected = specs.iter().filter(|spec| spec.is_output).count();
        for (what, given, expected) in
            [("inputs", self.inputs.len(), specs.len() - expected), ("outputs", self.outputs.len(), expected)]
        {
            if given != expected {
                return Err(Error::invalid(
                    what,
                    format!("{given} tensors"),
                    format!("the plan has {expected}"),
                    "bind the tensors that Plan::tensors lists, in its order",
                ));
            }
        }
        for (spec, tensor) in specs.iter().zip(self.inputs.iter().copied().chain(self.outputs.iter())) {
            check_tensor(spec, tensor.shape(), tensor.dtype(), tensor.strides())?;
        }
        Ok(())
    }
}

/// Checks what is bound to a spec.
///
/// # Errors
/// [`Error::Invalid`], naming the tensor, where shape or dtype differ, or an output overlaps itself.
pub fn check_tensor(
    spec: &TensorSpec,
    shape: &[usize],
    dtype: crate::DType,
    strides: &[isize],
) -> Result<()> {
    if shape != spec.shape {
        return Err(Error::invalid(
            spec.name.clone(),
            format!("{shape:?}"),
            format!("its shape must be {:?}", spec.shape),
            match spec.role {
                Role::Attention | Role::GradAttention | Role::TangentAttention => {
                    "attention weights are heads-first, [batch, heads, tokens…, slots]"
                }
                _ => "layouts are heads-last, [batch, tokens…, heads, dim]; permute a heads-first view",
            },
        ));
    }
    if dtype != spec.dtype {
        return Err(Error::invalid(
            spec.name.clone(),
            dtype,
            format!("its dtype must be {}", spec.dtype),
            "cast the tensor, or build the problem with its dtype",
        ));
    }
    if spec.is_output && !crate::strides::is_injective(shape, strides) {
        return Err(Error::invalid(
            spec.name.clone(),
            format!("strides {strides:?}"),
            "no two elements of an output may share memory",
            "give an output without broadcast axes",
        ));
    }
    Ok(())
}

/// A prepared operation. Reusable and thread-safe: several threads may run one plan, each with its own workspace.
pub trait Plan: Debug + MaybeSend + MaybeSync {
    /// The inputs, then the outputs, in a stable order.
    fn tensors(&self) -> &[TensorSpec];

    /// What the plan does.
    fn report(&self) -> &PlanReport;

    /// The generated source, where the backend generates any.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it does not.
    fn emit(&self, kind: SourceKind) -> Result<Artifact> {
        let what = format!("source of kind {kind:?}");
        Err(Error::unsupported(self.report().backend, what, "it runs compiled code and generates none"))
    }

    /// Allocates the scratch memory of a run; [`PlanReport::workspace`] tells its size.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn new_workspace(&self) -> Result<Workspace>;

    /// Submits the operation. Allocates nothing and decides nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the bindings or the workspace do not fit the plan, [`Error::Device`].
    fn run(&self, queue: &dyn Queue, bindings: Bindings<'_>, workspace: &mut Workspace)
    -> Result<Submission>;

    /// For a caller that knows the backend to reach its typed entry.
    fn as_any(&self) -> &dyn Any;
}

/// A device that plans and runs attention.
pub trait Backend: Debug + MaybeSend + MaybeSync {
    /// What it runs on.
    fn device(&self) -> &DeviceInfo;

    /// Whether it can do this, cheaply.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with every reason why not; [`Error::Invalid`] where the request does not fit the problem.
    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()>;

    /// Prepares an operation.
    ///
    /// # Errors
    /// As [`supports`](Self::supports); [`Error::Invalid`] for options out of range, [`Error::Compile`].
    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>>;

    /// A queue to run on. A backend that computes on the host, in the calling thread, keeps this method and the next
    /// three as they are.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn queue(&self) -> Result<Arc<dyn Queue>> {
        Ok(Arc::new(HostQueue))
    }

    /// A contiguous tensor on the device, its contents unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn empty(&self, spec: &TensorSpec) -> Result<Tensor> {
        HostTensor::zeros_like(spec).map(Tensor::from)
    }

    /// Copies numbers to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    fn upload(&self, _queue: &dyn Queue, host: HostTensor) -> Result<Tensor> {
        Ok(host.into())
    }

    /// Copies a tensor back.
    fn download<'a>(&'a self, _queue: &'a dyn Queue, tensor: &'a Tensor) -> Pending<'a, HostTensor> {
        ready(tensor.to_host())
    }

    /// Measures what the device can do at most: flops a second of matrix products of this dtype whose operands are at
    /// hand, sustained for a fraction of a second on all of the device. What it is busy with besides counts against it.
    /// `None` where the backend has no such measure.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::OutOfMemory`], [`Error::Device`].
    fn matmul_rate(&self, dtype: crate::DType) -> Pending<'_, Option<f64>> {
        let _ = dtype;
        ready(Ok(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{AxisParams, Neighborhood};
    use crate::{DType, OpRequest};

    #[test]
    fn bindings_are_checked_by_name() {
        let n = Neighborhood::new(&[AxisParams::new(4, 3)]).unwrap();
        let problem = Problem::builder(n, DType::F32).build().unwrap();
        let specs = problem.tensors(&OpRequest::forward(&problem)).unwrap();
        let tensors: Vec<Tensor> = specs.iter().map(|s| HostTensor::zeros_like(s).unwrap().into()).collect();
        let inputs: Vec<&Tensor> = tensors[..3].iter().collect();
        let mut outputs = tensors[3..].to_vec();
        assert!(Bindings { inputs: &inputs, outputs: &mut outputs }.check(&specs).is_ok());

        let missing = Bindings { inputs: &inputs[..2], outputs: &mut outputs }.check(&specs).unwrap_err();
        assert!(missing.to_string().contains("2 tensors"), "{missing}");

        let wrong: Tensor = HostTensor::zeros(DType::F64, &specs[1].shape).unwrap().into();
        let inputs = [inputs[0], &wrong, inputs[2]];
        let message =
            Bindings { inputs: &inputs, outputs: &mut outputs }.check(&specs).unwrap_err().to_string();
        assert!(message.contains("key") && message.contains("f64"), "{message}");
    }

    #[test]
    fn tiles_need_one_extent_an_axis() {
        let n = Neighborhood::new(&[AxisParams::new(4, 3), AxisParams::new(4, 3)]).unwrap();
        let problem = Problem::builder(n, DType::F32).build().unwrap();
        assert_eq!(padded_tile("query_tile", &[2, 4], &problem).unwrap(), [1, 2, 4]);
        assert!(padded_tile("query_tile", &[2], &problem).is_err());
        assert!(padded_tile("query_tile", &[2, 0], &problem).is_err());
    }
}
