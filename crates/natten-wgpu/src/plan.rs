//! A sequence with its pipelines, ready to run.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use natten_core::geometry::Tiles;
use natten_core::{
    Artifact, Bindings, Cost, DeviceInfo, Error, OpRequest, Plan, PlanReport, Problem, Queue, Result, Role,
    SourceKind, Submission, Tensor, TensorSpec, Workspace, coverage_of,
};

use crate::generic::convert::{self, Layout};
use crate::gpu::{Gpu, failed};
use crate::memory::memory_of;
use crate::sequence::{Binding, Packed, Part, Run, Sequence, Step};
use crate::{NAME, emit};

/// A prepared operation.
#[derive(Debug)]
pub(crate) struct WgpuPlan {
    gpu: Arc<Gpu>,
    sequence: Sequence,
    /// By step; none of a step that runs no shader.
    pipelines: Vec<Option<Arc<wgpu::ComputePipeline>>>,
    report: PlanReport,
    problem: String,
}

/// The buffers of a run.
#[derive(Debug)]
struct Memory {
    arena: wgpu::Buffer,
    integers: wgpu::Buffer,
    /// The vectors that shaders take packed.
    packed: BTreeMap<Role, wgpu::Buffer>,
    /// How the tensors lie in memory, a step after the other, each at a place that may be bound.
    parameters: wgpu::Buffer,
}

/// What the places of bindings are multiples of, on every device.
const ALIGNMENT: u64 = 256;

/// Where a step's table of parameters begins: of one tensor several steps may take different things to different places.
const fn place(step: usize) -> u64 {
    step as u64 * ALIGNMENT
}

impl WgpuPlan {
    pub(crate) async fn new(
        gpu: &Arc<Gpu>,
        problem: &Problem,
        request: &OpRequest,
        sequence: Sequence,
        info: &DeviceInfo,
    ) -> Result<Self> {
        let mut pipelines = Vec::with_capacity(sequence.steps.len());
        for step in &sequence.steps {
            pipelines.push(match step {
                Step::Run(run) => Some(gpu.pipeline(&run.label, &run.source).await?),
                Step::Begin(_) | Step::Clear { .. } => None,
            });
        }
        gpu.store_pipelines();
        let tiles = Tiles::new(problem.neighborhood(), sequence.tiles[0], sequence.tiles[1]);
        let coverage = coverage_of(problem, &tiles);
        let cost = Cost::of(problem, request, &coverage, info);
        let config = vec![
            ("family".to_owned(), sequence.family.to_owned()),
            ("shaders".to_owned(), sequence.runs().count().to_string()),
            ("arena".to_owned(), format!("{} bytes", sequence.arena * sequence.element)),
        ];
        let packed: u64 = sequence.packed.iter().map(Packed::bytes).sum();
        let workspace = sequence.arena * sequence.element + sequence.integers * 4 + packed;
        let report = PlanReport::new(NAME, config, coverage, cost, workspace as usize);
        let problem = title(problem, request);
        Ok(Self { gpu: Arc::clone(gpu), sequence, pipelines, report, problem })
    }

    /// Records a shader.
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pipeline: &wgpu::ComputePipeline,
        (number, run): (usize, &Run),
        part: Option<&Part>,
        &OfRun { memory, tensors, ref direct }: &OfRun<'_>,
    ) -> Result<()> {
        let mut entries = Vec::with_capacity(run.bindings.len());
        for (binding, what) in (0..).zip(&run.bindings) {
            let resource = match what {
                Binding::Arena => memory.arena.as_entire_binding(),
                Binding::Integers { .. } => memory.integers.as_entire_binding(),
                Binding::Tensor { role, .. } => {
                    let tensor = bound(tensors, *role)?;
                    let (_, offset, size) = self.window(*role, tensor, part)?;
                    let buffer = &memory_of(&self.gpu, role.name(), tensor)?.buffer;
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
                }
                Binding::Packed { role, .. } if direct.contains(role) => {
                    memory_of(&self.gpu, role.name(), bound(tensors, *role)?)?.buffer.as_entire_binding()
                }
                Binding::Packed { role, .. } => match memory.packed.get(role) {
                    Some(buffer) => buffer.as_entire_binding(),
                    None => return Err(failed(format!("there is no packed {role}"))),
                },
                Binding::Parameters { .. } => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &memory.parameters,
                    offset: place(number),
                    size: wgpu::BufferSize::new(ALIGNMENT),
                }),
            };
            entries.push(wgpu::BindGroupEntry { binding, resource });
        }
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&run.label),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(&run.label),
            timestamp_writes: None,
        });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &group, &[]);
        let [x, y, z] = run.workgroups;
        pass.dispatch_workgroups(x, y, z);
        Ok(())
    }

    /// The tensors that lie in memory as shaders take them, and are bound themselves. A result is not, where something
    /// else is in its buffer: that is read while it is written.
    fn direct(&self, tensors: &BTreeMap<Role, &Tensor>) -> Result<BTreeSet<Role>> {
        let mut direct = BTreeSet::new();
        for packed in self.sequence.packed.iter().filter(|packed| packed.may_be_direct) {
            let tensor = bound(tensors, packed.role)?;
            let buffer = &memory_of(&self.gpu, packed.role.name(), tensor)?.buffer;
            let is_plain = tensor.offset() == 0
                && tensor.strides() == natten_core::contiguous_strides(tensor.shape())
                && (packed.bytes()..=self.gpu.most_binding).contains(&buffer.size());
            let mut is_alone = true;
            let is_output =
                self.sequence.tensors.iter().any(|spec| spec.role == packed.role && spec.is_output);
            if is_output {
                for (&role, other) in tensors.iter().filter(|(role, _)| **role != packed.role) {
                    is_alone &= memory_of(&self.gpu, role.name(), other)?.buffer != *buffer;
                }
            }
            if is_plain && is_alone {
                direct.insert(packed.role);
            }
        }
        Ok(direct)
    }

    /// What a part takes of a tensor, in a window of its memory that can be bound, and the window.
    fn window(
        &self,
        role: Role,
        tensor: &Tensor,
        part: Option<&Part>,
    ) -> Result<(Layout, u64, Option<wgpu::BufferSize>)> {
        let memory = memory_of(&self.gpu, role.name(), tensor)?;
        let layout = Layout::of(tensor).cut(part.map_or(&[], |part| part.cuts(role)));
        let (bytes, most) = (memory.buffer.size(), self.gpu.most_binding);
        let (Some((low, high)), true) = (layout.span(), bytes > most) else { return Ok((layout, 0, None)) };
        let size = tensor.dtype().size() as u64;
        let start = low as u64 * size / ALIGNMENT * ALIGNMENT;
        let len = ((high as u64 + 1) * size - start).next_multiple_of(4);
        if len > most {
            return Err(Error::unsupported(
                NAME,
                format!("{role} of {bytes} bytes"),
                format!(
                    "{len} of them are needed at a time, and this adapter binds at most {most} \
                     (max_storage_buffer_binding_size); split the batch"
                ),
            ));
        }
        Ok((layout.behind((start / size) as isize), start, wgpu::BufferSize::new(len)))
    }

    /// The steps that run shaders, or clear, with the part of the tensors that each is of; none of a problem that is not
    /// parted.
    fn turns(&self) -> impl Iterator<Item = (usize, &Step, Option<&Part>)> {
        let mut turn = None;
        self.sequence.steps.iter().enumerate().filter_map(move |(number, step)| match step {
            Step::Begin(part) => {
                turn = Some(part);
                None
            }
            _ => Some((number, step, turn)),
        })
    }

    /// Bytes of all tables of parameters.
    fn parameter_bytes(&self) -> u64 {
        place(self.sequence.steps.len())
    }

    /// Writes how the tensors lie in memory.
    fn write_parameters(&self, memory: &Memory, tensors: &BTreeMap<Role, &Tensor>) -> Result<()> {
        for (number, step, part) in self.turns() {
            let Step::Run(run) = step else { continue };
            for binding in &run.bindings {
                if let Binding::Parameters { role, at } = binding {
                    let (layout, _, _) = self.window(*role, bound(tensors, *role)?, part)?;
                    let is_output =
                        self.sequence.tensors.iter().any(|spec| spec.role == *role && spec.is_output);
                    let parameters = convert::parameters(&layout, *at, is_output)?;
                    let bytes: &[u8] = bytemuck::cast_slice(&parameters);
                    self.gpu.queue.write_buffer(&memory.parameters, place(number), bytes);
                }
            }
        }
        Ok(())
    }
}

/// What shaders bind in a run.
#[derive(Debug)]
struct OfRun<'a> {
    memory: &'a Memory,
    tensors: &'a BTreeMap<Role, &'a Tensor>,
    /// The tensors that take the place of packed vectors.
    direct: BTreeSet<Role>,
}

/// What an operation is, in words.
pub(crate) fn title(problem: &Problem, request: &OpRequest) -> String {
    format!("{} of {}, {}", request.op, problem.neighborhood(), problem.dtype())
}

fn bound<'t>(tensors: &BTreeMap<Role, &'t Tensor>, role: Role) -> Result<&'t Tensor> {
    tensors.get(&role).copied().ok_or_else(|| {
        Error::invalid(role.name(), "missing", "the plan reads or writes it", "bind what Plan::tensors lists")
    })
}

impl Plan for WgpuPlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.sequence.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    fn emit(&self, kind: SourceKind) -> Result<Artifact> {
        match kind {
            SourceKind::Wgsl => emit::artifact(&self.problem, &self.sequence),
            other => {
                let what = format!("source of kind {other:?}");
                Err(Error::unsupported(NAME, what, "it runs WGSL"))
            }
        }
    }

    fn new_workspace(&self) -> Result<Workspace> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let sequence = &self.sequence;
        let memory = Memory {
            arena: self.gpu.buffer("arena", sequence.arena * sequence.element, usage)?,
            integers: self.gpu.buffer("integers", sequence.integers * 4, usage)?,
            packed: sequence
                .packed
                .iter()
                .map(|packed| Ok((packed.role, self.gpu.buffer("packed", packed.bytes(), usage)?)))
                .collect::<Result<_>>()?,
            parameters: self.gpu.buffer("parameters", self.parameter_bytes(), usage)?,
        };
        Ok(Workspace::new(self.report.workspace, memory))
    }

    fn run(
        &self,
        _queue: &dyn Queue,
        bindings: Bindings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        bindings.check(&self.sequence.tensors)?;
        self.gpu.check()?;
        let memory: &Memory = workspace.memory::<Memory>()?;
        if memory.arena.size() < self.sequence.arena * self.sequence.element
            || memory.integers.size() < self.sequence.integers * 4
            || memory.parameters.size() < self.parameter_bytes()
            || self.sequence.packed.iter().any(|packed| {
                memory.packed.get(&packed.role).is_none_or(|buffer| buffer.size() < packed.bytes())
            })
        {
            return Err(Error::invalid(
                "workspace",
                format!("{} bytes", memory.arena.size()),
                format!("this plan needs {}", self.report.workspace),
                "call new_workspace of the plan that runs",
            ));
        }
        let roles = self.sequence.tensors.iter().map(|spec| spec.role);
        let outputs = bindings.outputs.iter();
        let tensors: BTreeMap<Role, &Tensor> =
            roles.zip(bindings.inputs.iter().copied().chain(outputs)).collect();
        self.write_parameters(memory, &tensors)?;
        let of_run = OfRun { memory, tensors: &tensors, direct: self.direct(&tensors)? };
        let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for (number, step, part) in self.turns() {
            match (step, &self.pipelines[number]) {
                (Step::Clear { at, len }, _) => {
                    let element = self.sequence.element;
                    encoder.clear_buffer(&memory.arena, at * element, Some(len * element));
                }
                // Nothing is copied where the tensor itself is bound.
                (Step::Run(run), _) if run.copies().is_some_and(|role| of_run.direct.contains(&role)) => {}
                (Step::Run(run), Some(pipeline)) => {
                    self.record(&mut encoder, pipeline, (number, run), part, &of_run)?;
                }
                _ => {}
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(failed(error)),
            None => Ok(Submission::default()),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
