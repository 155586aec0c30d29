//! A plan of the CUDA backend: the kernels of a family, compiled and loaded, for tensors of any layout. It checks what is
//! bound and submits.

use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use natten_core::{
    Artifact, Bindings, Cost, DeviceInfo, Error, OpRequest, Plan, PlanOptions, PlanReport, Problem, Queue,
    Result, Role, SourceKind, Submission, TensorSpec, Workspace, check_tensor,
};

use crate::NAME;
use crate::device::{Device, DeviceMemory};
use crate::family::{self, Chosen, Layout, Sequence, Step};
use crate::launch::{Line, Loaded, lines};
use crate::queue::CudaQueue;
use crate::tensor::{CudaStorage, DeviceView};

/// More than any operation has of tensors.
const MAX_TENSORS: usize = 160;

/// The lines of launch arguments that a workspace has at least, for kernels that are compiled at first need.
const LINES: usize = 128;

/// A prepared operation on a GPU.
#[derive(Debug)]
pub struct CudaPlan {
    device: Arc<Device>,
    rank: usize,
    tensors: Vec<TensorSpec>,
    report: PlanReport,
    source: String,
    layout: Layout,
    /// For each tensor, whether `first` reads it through a map.
    mapped: Vec<bool>,
    first: Loaded,
    /// For tensors that `first` does not take: compiled when the first of them is bound.
    other: Option<Other>,
}

/// A sequence that is compiled at first need.
#[derive(Debug)]
struct Other {
    sequence: Mutex<Option<Sequence>>,
    loaded: OnceLock<Loaded>,
}

/// Memory of a workspace.
#[derive(Debug)]
struct Memory {
    device: DeviceMemory,
    lines: Vec<Line>,
}

impl CudaPlan {
    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        device: &Arc<Device>,
        info: &DeviceInfo,
    ) -> Result<Self> {
        let (first, other) = family::choose(problem, request, options, device.target())?;
        let source = [Some(&first), other.as_ref()].into_iter().flatten().map(describe).collect();
        let workspace = other.iter().map(|c| c.sequence.workspace).fold(first.sequence.workspace, u64::max);
        let workspace = usize::try_from(workspace)
            .map_err(|_| Error::OutOfMemory { needed: usize::MAX, available: None })?;
        let mut config = vec![
            ("family".to_owned(), first.family.to_owned()),
            ("architecture".to_owned(), device.target().name()),
        ];
        config.extend(first.sequence.config.iter().cloned());
        if let Some(other) = &other {
            config.push(("family for unaligned tensors".to_owned(), other.family.to_owned()));
        }
        let coverage = first.sequence.coverage;
        let cost = Cost::of(problem, request, &coverage, info);
        let tensors = problem.tensors(request)?;
        if tensors.len() > MAX_TENSORS {
            let what = format!("{} tensors", tensors.len());
            return Err(Error::unsupported(NAME, what, format!("a run binds at most {MAX_TENSORS}")));
        }
        let rank = problem.neighborhood().rank();
        Ok(Self {
            layout: first.sequence.layout,
            mapped: tensors.iter().map(|spec| first.sequence.maps(spec.role)).collect(),
            first: Loaded::new(device, first.sequence, &tensors, rank)?,
            other: other
                .map(|chosen| Other { sequence: Mutex::new(Some(chosen.sequence)), loaded: OnceLock::new() }),
            report: PlanReport::new(NAME, config, coverage, cost, workspace),
            device: Arc::clone(device),
            rank,
            tensors,
            source,
        })
    }

    /// The typed entry: runs on memory that lies on the device, without a copy, on the caller's stream if the queue is
    /// one. Inputs, then outputs, in the order of [`Plan::tensors`].
    ///
    /// # Safety
    /// No output overlaps another tensor of the run, and nobody else uses the outputs, or writes the inputs, until the
    /// queue is done with it. [`Plan::run`] has no such demand: tensors see to it.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the views or the workspace do not fit the plan, [`Error::Device`].
    pub unsafe fn run_views(
        &self,
        queue: &CudaQueue,
        views: &[DeviceView<'_>],
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        if views.len() != self.tensors.len() {
            return Err(Error::invalid(
                "views",
                format!("{} tensors", views.len()),
                format!("the plan has {}", self.tensors.len()),
                "bind the tensors that Plan::tensors lists, in its order",
            ));
        }
        for (spec, view) in self.tensors.iter().zip(views) {
            check_tensor(spec, view.shape, view.dtype, view.strides)?;
        }
        self.submit(queue, views, workspace)
    }

    fn submit(
        &self,
        queue: &CudaQueue,
        views: &[DeviceView<'_>],
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        let bytes = workspace.bytes();
        let memory = workspace.memory::<Memory>()?;
        let loaded = self.loaded(views)?;
        if memory.device.bytes() < self.report.workspace || memory.lines.len() < loaded.lines() {
            return Err(Error::invalid(
                "workspace",
                format!("{bytes} bytes"),
                format!("this plan needs {}", self.report.workspace),
                "call new_workspace of the plan that runs",
            ));
        }
        self.device.bind()?;
        loaded.run(queue.stream(), views, memory.device.pointer(), &mut memory.lines)?;
        Ok(Submission::default())
    }

    /// Whether the first sequence takes these tensors.
    fn takes(&self, views: &[DeviceView<'_>]) -> bool {
        self.layout == Layout::Any
            || views.iter().zip(&self.tensors).zip(&self.mapped).all(|((view, spec), &is_mapped)| {
                let is_packed = self.layout != Layout::TmaPacked || !is_mapped || view.has_packed_heads();
                is_packed && (view.is_aligned() || !is_mapped && spec.role != Role::Output)
            })
    }

    /// The kernels that take these tensors.
    fn loaded(&self, views: &[DeviceView<'_>]) -> Result<&Loaded> {
        if self.takes(views) {
            return Ok(&self.first);
        }
        let Some(other) = &self.other else {
            return Err(Error::unsupported(
                NAME,
                "tensors of this layout",
                "the kernels of this plan read contiguous rows on multiples of 16 bytes",
            ));
        };
        if let Some(loaded) = other.loaded.get() {
            return Ok(loaded);
        }
        let mut sequence = other.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wanted) = sequence.clone() {
            let loaded = Loaded::new(&self.device, wanted, &self.tensors, self.rank)?;
            // Nobody else sets it: who does holds the lock.
            let _ = other.loaded.set(loaded);
            *sequence = None;
        }
        other.loaded.get().ok_or_else(|| Error::Device {
            backend: NAME.into(),
            message: "the kernels for these tensors could not be loaded before".to_owned(),
        })
    }
}

/// The source text of a sequence, with what is launched of it.
fn describe(chosen: &Chosen) -> String {
    let mut text = format!("// family {}\n", chosen.family);
    for step in &chosen.sequence.steps {
        match step {
            Step::Launch(kernel) => {
                let [x, y, z] = kernel.grid;
                text += &format!(
                    "// {}<<<({x}, {y}, {z}), {}, {}>>>\n{}\n",
                    kernel.entry, kernel.block, kernel.shared_bytes, kernel.source
                );
            }
            Step::Zero { offset, bytes } => {
                text += &format!("// {bytes} bytes of the workspace from {offset} on are set to zero\n");
            }
        }
    }
    text
}

impl Plan for CudaPlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    fn emit(&self, kind: SourceKind) -> Result<Artifact> {
        match kind {
            SourceKind::CudaC => Ok(Artifact::new(kind, self.source.clone())),
            other => {
                Err(Error::unsupported(NAME, format!("source of kind {other:?}"), "it generates CUDA C"))
            }
        }
    }

    fn new_workspace(&self) -> Result<Workspace> {
        let memory = Memory {
            device: DeviceMemory::new(&self.device, self.report.workspace)?,
            lines: lines(self.first.lines().max(LINES)),
        };
        Ok(Workspace::new(self.report.workspace, memory))
    }

    fn run(
        &self,
        queue: &dyn Queue,
        bindings: Bindings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        bindings.check(&self.tensors)?;
        let queue = CudaQueue::of(&self.device, queue)?;
        for (spec, output) in self.tensors.iter().filter(|spec| spec.is_output).zip(&mut *bindings.outputs) {
            if output.storage_mut().is_none() {
                return Err(Error::invalid(
                    spec.name.clone(),
                    "shared",
                    "an output's memory must belong to it alone",
                    "drop the other tensors that view it, or give a new one",
                ));
            }
        }
        // On the stack: a run allocates nothing.
        let empty = DeviceView { pointer: 0, dtype: natten_core::DType::F32, shape: &[], strides: &[] };
        let mut views = [empty; MAX_TENSORS];
        let bound = bindings.inputs.iter().copied().chain(bindings.outputs.iter());
        for ((view, spec), tensor) in views.iter_mut().zip(&self.tensors).zip(bound) {
            *view = DeviceView::of(&self.device, tensor, &spec.name)?;
        }
        self.submit(queue, &views[..self.tensors.len()], workspace)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A tensor of a spec, on a device.
pub(crate) fn empty(device: &Arc<Device>, spec: &TensorSpec) -> Result<natten_core::Tensor> {
    let storage = CudaStorage::new(device, spec.dtype, spec.len())?;
    let strides = natten_core::contiguous_strides(&spec.shape);
    natten_core::Tensor::view(Arc::new(storage), &spec.shape, &strides, 0)
}
