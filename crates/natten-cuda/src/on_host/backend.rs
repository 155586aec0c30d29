//! A backend that runs kernels on the host: their texts, compiled by `g++`, each launch a process. Those that walk pairs
//! run as groups of one lane, those on tiles as whole blocks, and what is not C++ in them is replaced. Tensors lie in its memory with gaps, so that
//! strides count, or without, so that vectors are read in pieces.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use natten_core::{
    Backend, Bindings, Cost, DeviceInfo, DeviceKind, Error, HostTensor, OpRequest, Pending, Plan,
    PlanOptions, PlanReport, Problem, Queue, Result, Role, Submission, TensorSpec, Workspace, ready,
};

use crate::family::{Argument, Family, Kernel, Sequence, Step};
use crate::forward;
use crate::target::Target;

/// The instructions of tensor cores, and what they do.
const INSTRUCTIONS: [(&str, &str); 2] = [
    (forward::INSTRUCTIONS, include_str!("forward_instructions.h")),
    (include_str!("../../kernels/forward_mma_instructions.cu"), include_str!("forward_mma_instructions.h")),
];

#[derive(Debug)]
pub(super) struct HostKernels {
    device: DeviceInfo,
    target: Target,
    family: &'static dyn Family,
    /// The distance of neighbouring elements in the kernels' memory.
    gap: usize,
}

impl HostKernels {
    pub(super) fn new(family: &'static dyn Family, gap: usize) -> Self {
        // Few units, so that tables are few and rows share them.
        let target = Target { units: 1, ..Target::of_arch(9, 0) };
        Self {
            device: DeviceInfo::new("host-kernels", "generic kernels on the host", DeviceKind::Simulator),
            target,
            family,
            gap,
        }
    }
}

impl Backend for HostKernels {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        problem.tensors(request)?;
        self.family.sequence(problem, request, &PlanOptions::default(), &self.target).map(|_| ())
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        let plan = || {
            let tensors = problem.tensors(request)?;
            let sequence = self.family.sequence(problem, request, options, &self.target)?;
            let cost = Cost::of(problem, request, &sequence.coverage, &self.device);
            let bytes = sequence.workspace as usize;
            let report =
                PlanReport::new("host-kernels", sequence.config.clone(), sequence.coverage, cost, bytes);
            let (rank, gap) = (problem.neighborhood().rank(), self.gap);
            Ok(Arc::new(HostPlan { rank, gap, tensors, sequence, report }) as Arc<dyn Plan>)
        };
        ready(plan())
    }
}

#[derive(Debug)]
struct HostPlan {
    rank: usize,
    gap: usize,
    tensors: Vec<TensorSpec>,
    sequence: Sequence,
    report: PlanReport,
}

/// A tensor in the kernels' memory.
struct Placed {
    role: Role,
    at: usize,
    strides: Vec<i64>,
}

impl HostPlan {
    /// The strides that a kernel is handed: token and window axes padded to three.
    fn strides(&self, spec: &TensorSpec) -> Vec<i64> {
        let mut strides = vec![self.gap as i64; spec.shape.len()];
        for axis in (1..spec.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * spec.shape[axis] as i64;
        }
        if let Some(first) = first_padded(spec.role) {
            strides.splice(first..first, std::iter::repeat_n(0, 3 - self.rank));
        }
        strides.resize(8, 0);
        strides
    }

    fn parameters(&self, kernel: &Kernel, placed: &[Placed], workspace: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for argument in &kernel.arguments {
            match argument {
                Argument::View(role) => {
                    let tensor = placed.iter().find(|placed| placed.role == *role).unwrap();
                    bytes.extend((tensor.at as i64).to_le_bytes());
                    bytes.extend(tensor.strides.iter().flat_map(|stride| stride.to_le_bytes()));
                }
                Argument::Workspace(at) => bytes.extend((workspace as u64 + at).to_le_bytes()),
                Argument::I32(value) => bytes.extend(value.to_le_bytes()),
                Argument::I64(value) => bytes.extend(value.to_le_bytes()),
                Argument::Bytes { data, .. } => bytes.extend(data),
                other => panic!("{other:?}"),
            }
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }
}

/// The first of the axes that are padded to three.
fn first_padded(role: Role) -> Option<usize> {
    let primal = |role: Role| role.gradient_of().or(role.tangent_of()).or(role.second_gradient_of());
    let mut role = role;
    while let Some(of) = primal(role) {
        role = of;
    }
    match role {
        Role::Query | Role::Key | Role::Value | Role::Output | Role::Logsumexp | Role::Rpb => Some(1),
        Role::Attention => Some(2),
        _ => None,
    }
}

impl Plan for HostPlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    fn new_workspace(&self) -> Result<Workspace> {
        Ok(Workspace::new(0, ()))
    }

    fn run(&self, _: &dyn Queue, bindings: Bindings<'_>, _: &mut Workspace) -> Result<Submission> {
        bindings.check(&self.tensors)?;
        let (outputs, inputs): (Vec<_>, Vec<_>) = self.tensors.iter().partition(|spec| spec.is_output);
        let mut memory = Vec::new();
        let mut placed = Vec::new();
        let bound = inputs
            .iter()
            .zip(bindings.inputs.iter().copied())
            .chain(outputs.iter().zip(bindings.outputs.iter()));
        for (spec, tensor) in bound {
            let size = spec.dtype.size();
            memory.resize(memory.len().next_multiple_of(256), 0xff);
            placed.push(Placed { role: spec.role, at: memory.len(), strides: self.strides(spec) });
            for element in tensor.to_host()?.to_le_bytes().chunks(size) {
                memory.extend(element);
                memory.extend(std::iter::repeat_n(0xff, (self.gap - 1) * size));
            }
        }
        memory.resize(memory.len().next_multiple_of(256), 0xff);
        let workspace = memory.len();
        memory.resize(workspace + self.sequence.workspace as usize + 1, 0xff);
        let directory = tempfile::tempdir().unwrap();
        let [all, parameters] = ["memory", "parameters"].map(|name| directory.path().join(name));
        std::fs::write(&all, &memory).unwrap();
        for step in &self.sequence.steps {
            match step {
                Step::Zero { offset, bytes } => {
                    let mut memory = std::fs::read(&all).unwrap();
                    memory[workspace + *offset as usize..][..*bytes as usize].fill(0);
                    std::fs::write(&all, memory).unwrap();
                }
                Step::Launch(kernel) if kernel.grid.contains(&0) => {}
                Step::Launch(kernel) => {
                    std::fs::write(&parameters, self.parameters(kernel, &placed, workspace)).unwrap();
                    let status = Command::new(compiled(kernel)?)
                        .args([&all, &parameters])
                        .arg(kernel.grid[0].to_string())
                        .status()
                        .unwrap();
                    assert!(status.success(), "{}: {status}", kernel.entry);
                }
            }
        }
        let memory = std::fs::read(&all).unwrap();
        for (spec, tensor) in outputs.into_iter().zip(bindings.outputs) {
            let at = placed.iter().find(|placed| placed.role == spec.role).unwrap().at;
            let size = spec.dtype.size();
            let elements = memory[at..].chunks(size * self.gap).take(spec.len());
            let bytes: Vec<u8> = elements.flat_map(|element| &element[..size]).copied().collect();
            *tensor = HostTensor::from_le_bytes(spec.dtype, &spec.shape, &bytes)?.into();
        }
        Ok(Submission::done(Duration::ZERO))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The kernel as a program, compiled once for each text.
fn compiled(kernel: &Kernel) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    let texts = [("host.cpp", include_str!("host.cpp")), ("block.h", include_str!("block.h"))];
    let source = INSTRUCTIONS
        .iter()
        .fold(kernel.source.clone(), |source, (on_device, on_host)| source.replace(on_device, on_host));
    (&source, kernel.entry, texts).hash(&mut hasher);
    let cache = std::env::temp_dir().join("natten-host-kernels");
    let program = cache.join(format!("{:016x}.program", hasher.finish()));
    if program.exists() {
        return Ok(program);
    }
    // In a folder of its own: other processes may be compiling the same text.
    std::fs::create_dir_all(&cache).unwrap();
    let directory = tempfile::tempdir_in(&cache).unwrap();
    let [text, partial] = ["kernel.cu", "partial"].map(|name| directory.path().join(name));
    std::fs::write(&text, &source).unwrap();
    for (name, text) in texts {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let of_blocks = (kernel.shared_bytes > 0).then(|| format!("-DTHREADS_OF_BLOCK={}", kernel.block));
    let output = Command::new("g++")
        .args(["-std=c++17", "-O0", "-w", "-x", "c++"])
        .arg(format!("-DKERNEL=\"{}\"", text.display()))
        .arg(format!("-DENTRY={}", kernel.entry))
        .args(of_blocks)
        .arg(directory.path().join("host.cpp"))
        .arg("-o")
        .arg(&partial)
        .output()
        .unwrap();
    if !output.status.success() {
        let text = directory.keep().join("kernel.cu");
        return Err(Error::Compile {
            backend: "host-kernels".into(),
            log: String::from_utf8_lossy(&output.stderr).chars().take(4000).collect(),
            source_text: text.display().to_string(),
        });
    }
    std::fs::rename(&partial, &program).unwrap();
    Ok(program)
}
