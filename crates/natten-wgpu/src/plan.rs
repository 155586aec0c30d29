//! A sequence with its pipelines, ready to run.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use natten_core::geometry::Tiles;
use natten_core::{
    Artifact, Bindings, Cost, DeviceInfo, Error, OpRequest, Plan, PlanReport, Problem, Queue, Result, Role,
    SourceKind, Submission, Tensor, TensorSpec, Workspace, coverage_of,
};

use crate::gpu::{Gpu, failed};
use crate::memory::memory_of;
use crate::sequence::{Binding, Run, Sequence, Step};
use crate::{NAME, emit, generic};

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
    /// How the tensors lie in memory, a step after the other, each at a place that may be bound.
    parameters: wgpu::Buffer,
}

/// What the places of bindings are multiples of, on every device.
const ALIGNMENT: u64 = 256;

impl WgpuPlan {
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        problem: &Problem,
        request: &OpRequest,
        sequence: Sequence,
        info: &DeviceInfo,
    ) -> Result<Self> {
        let pipelines = sequence
            .steps
            .iter()
            .map(|step| match step {
                Step::Run(run) => gpu.pipeline(&run.label, &run.source).map(Some),
                Step::Clear { .. } => Ok(None),
            })
            .collect::<Result<_>>()?;
        let tiles = Tiles::new(problem.neighborhood(), sequence.tiles[0], sequence.tiles[1]);
        let coverage = coverage_of(problem, &tiles);
        let cost = Cost::of(problem, request, &coverage, info);
        let config = vec![
            ("family".to_owned(), sequence.family.to_owned()),
            ("shaders".to_owned(), sequence.runs().count().to_string()),
            ("arena".to_owned(), format!("{} bytes", sequence.arena * sequence.element)),
        ];
        let workspace = sequence.arena * sequence.element + sequence.integers * 4;
        let report = PlanReport::new(NAME, config, coverage, cost, workspace as usize);
        let problem = title(problem, request);
        Ok(Self { gpu: Arc::clone(gpu), sequence, pipelines, report, problem })
    }

    /// Records a shader.
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        step: usize,
        run: &Run,
        memory: &Memory,
        tensors: &BTreeMap<Role, &Tensor>,
    ) -> Result<()> {
        let Some(pipeline) = &self.pipelines[step] else { return Ok(()) };
        let mut entries = Vec::with_capacity(run.bindings.len());
        for (binding, what) in (0..).zip(&run.bindings) {
            let resource = match what {
                Binding::Arena => memory.arena.as_entire_binding(),
                Binding::Integers { .. } => memory.integers.as_entire_binding(),
                Binding::Tensor { role, .. } => {
                    memory_of(&self.gpu, role.name(), bound(tensors, *role)?)?.buffer.as_entire_binding()
                }
                Binding::Parameters { role, .. } => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &memory.parameters,
                    offset: self.place(*role) * ALIGNMENT,
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

    /// The number of a tensor among all.
    fn place(&self, role: Role) -> u64 {
        self.sequence.tensors.iter().position(|spec| spec.role == role).unwrap_or(0) as u64
    }

    /// Writes how the tensors lie in memory.
    fn write_parameters(&self, memory: &Memory, tensors: &BTreeMap<Role, &Tensor>) -> Result<()> {
        for binding in self.sequence.runs().flat_map(|run| &run.bindings) {
            if let Binding::Parameters { role, at } = binding {
                let tensor = bound(tensors, *role)?;
                let is_output = self.sequence.tensors[self.place(*role) as usize].is_output;
                let parameters = generic::convert::parameters(tensor, *at, is_output)?;
                let bytes: &[u8] = bytemuck::cast_slice(&parameters);
                self.gpu.queue.write_buffer(&memory.parameters, self.place(*role) * ALIGNMENT, bytes);
            }
        }
        Ok(())
    }
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
            parameters: self.gpu.buffer("parameters", sequence.tensors.len() as u64 * ALIGNMENT, usage)?,
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
            || memory.parameters.size() < self.sequence.tensors.len() as u64 * ALIGNMENT
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
        let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for (number, step) in self.sequence.steps.iter().enumerate() {
            match step {
                Step::Clear { at, len } => {
                    let element = self.sequence.element;
                    encoder.clear_buffer(&memory.arena, at * element, Some(len * element));
                }
                Step::Run(run) => self.record(&mut encoder, number, run, memory, &tensors)?,
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
