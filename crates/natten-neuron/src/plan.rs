//! A plan: kernels, lowered, verified, placed and timed; a run simulates them one after the other.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use natten_core::{
    Artifact, Bindings, Cost, DeviceInfo, Error, Op, OpRequest, Plan, PlanOptions, PlanReport, Problem,
    Queue, Result, Role, SourceKind, Submission, Tensor, TensorSpec, Workspace,
};

use crate::NAME;
use crate::allocate::{Allocation, allocate};
use crate::dtype::Dtype;
use crate::error::NeuronError;
use crate::ir::MOVING_MAX;
use crate::lower::launch::{Launch, Sink, Source};
use crate::lower::program;
use crate::lower::softmax::{self, Choice};
use crate::lower::windows::Windows;
use crate::print::{Dialect, module};
use crate::sim::compute;
use crate::sim::report::Report;
use crate::sim::time::time;
use crate::target::Target;
use crate::verify::verify;

/// A kernel that keeps the rules, with its place in memory and its time.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The kernel and what it is launched with.
    pub launch: Launch,
    /// Where its tensors lie.
    pub allocation: Allocation,
    /// Its time.
    pub report: Report,
}

impl Compiled {
    /// Verifies, places and times a kernel.
    ///
    /// # Errors
    /// [`Error::Compile`] with the words of AWS's tools.
    pub fn new(launch: Launch, target: &Target) -> Result<Self> {
        verify(&launch.kernel, target).map_err(NeuronError::into_error)?;
        let allocation = allocate(&launch.kernel, target).map_err(NeuronError::into_error)?;
        let report = time(&launch.kernel, target, &allocation);
        Ok(Self { launch, allocation, report })
    }

    /// The least and the most nanoseconds that it takes where the model of the machine guesses.
    pub fn range(&self) -> [f64; 2] {
        let time = |target: Target| time(&self.launch.kernel, &target, &self.allocation).nanoseconds;
        self.report.target.extremes().map(time)
    }
}

/// A prepared operation.
#[derive(Debug)]
pub struct NeuronPlan {
    problem: Problem,
    request: OpRequest,
    tensors: Vec<TensorSpec>,
    report: PlanReport,
    target: Target,
    kernels: Vec<Compiled>,
    /// The kernels for inputs that are not all finite, made when such come.
    exact: OnceLock<Vec<Launch>>,
}

impl NeuronPlan {
    /// Whether there is a lowering.
    pub(crate) fn supports(problem: &Problem, request: &OpRequest) -> Result<()> {
        problem.tensors(request)?;
        if Dtype::of(problem.dtype()).is_none() {
            let what = format!("dtype {}", problem.dtype());
            return Err(Error::unsupported(NAME, what, "the engines compute in f32; use f32, f16 or bf16"));
        }
        if !matches!(request.op, Op::Forward | Op::ForwardJvp | Op::Backward) {
            let why = "there is no lowering of it; forward, jvp and backward have one";
            return Err(Error::unsupported(NAME, request.op.name(), why));
        }
        if problem.program().decay().is_some() {
            return Err(Error::unsupported(NAME, "linear attention", "there is no lowering of recurrences"));
        }
        if problem.program().mods() != [None; 3] {
            let why = "apply query_mod, key_mod and value_mod before the call";
            return Err(Error::unsupported(NAME, "functions of vectors", why));
        }
        if problem.head_dim().max(problem.head_dim_v()) > MOVING_MAX {
            let what = format!("head dims {} and {}", problem.head_dim(), problem.head_dim_v());
            return Err(Error::unsupported(NAME, what, "a PSUM bank holds 512 numbers"));
        }
        program::supports(problem, request)
    }

    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
        device: &DeviceInfo,
    ) -> Result<Self> {
        Self::supports(problem, request)?;
        let windows = Windows::new(problem, options)?;
        let dtype = Dtype::of(problem.dtype()).unwrap_or(Dtype::F32);
        let is_empty = problem.batch() == 0;
        let is_fast = !is_empty && request.op == Op::Forward && softmax::suits(problem, &windows);
        let mut config = Vec::new();
        let fast = is_fast.then(|| fastest(problem, request, &windows, dtype, target)).flatten();
        if let Some(Fastest { choice, sections, .. }) = &fast {
            config.push(("sections".to_owned(), sections.to_string()));
            config.push(("masks".to_owned(), choice.masks.name().to_owned()));
            config.push(("pipeline".to_owned(), format!("lag {}, delay {}", choice.lag, choice.delay)));
        }
        let kernels: Vec<Compiled> = match fast {
            Some(fast) => vec![fast.kernel],
            // Nothing to do: what has no batch axis is zero.
            None if is_empty => Vec::new(),
            None => program::lower(problem, request, &windows, &windows, dtype, false)?
                .into_iter()
                .map(|launch| Compiled::new(launch, target))
                .collect::<Result<_>>()?,
        };
        let coverage = windows.coverage(problem);
        let mut cost = Cost::of(problem, request, &coverage, device);
        let nanoseconds: f64 = kernels.iter().map(|kernel| kernel.report.nanoseconds).sum();
        cost.seconds = Some(nanoseconds * 1e-9);
        let (query, key) = windows.shapes();
        config.extend([
            ("target".to_owned(), target.name.to_owned()),
            ("query tile".to_owned(), format!("{query:?}")),
            ("key chunk".to_owned(), format!("{key:?}")),
            ("kernels".to_owned(), kernels.len().to_string()),
            ("instructions".to_owned(), instructions(&kernels).to_string()),
        ]);
        Ok(Self {
            tensors: problem.tensors(request)?,
            report: PlanReport::new(NAME, config, coverage, cost, 0),
            problem: problem.clone(),
            request: *request,
            target: target.clone(),
            kernels,
            exact: OnceLock::new(),
        })
    }

    /// The kernels.
    pub fn kernels(&self) -> &[Compiled] {
        &self.kernels
    }

    /// The kernels as Python.
    pub fn print(&self, dialect: Dialect) -> String {
        let launches: Vec<&Launch> = self.kernels.iter().map(|kernel| &kernel.launch).collect();
        module(&self.problem, &self.request, &launches, dialect)
    }

    fn exact(&self) -> Result<&[Launch]> {
        if let Some(launches) = self.exact.get() {
            return Ok(launches);
        }
        let windows = Windows::exact(&self.problem);
        let of_keys = Windows::exact_of_keys(&self.problem);
        let dtype = Dtype::of(self.problem.dtype()).unwrap_or(Dtype::F32);
        let launches = program::lower(&self.problem, &self.request, &windows, &of_keys, dtype, true)?;
        Ok(self.exact.get_or_init(|| launches))
    }
}

impl Plan for NeuronPlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    /// The kernels in NKI 0.6.0, and their launcher.
    fn emit(&self, kind: SourceKind) -> Result<Artifact> {
        if kind != SourceKind::Nki {
            return Err(Error::unsupported(NAME, format!("source of kind {kind:?}"), "it generates NKI"));
        }
        Ok(Artifact::new(kind, self.print(Dialect::Nki)))
    }

    fn new_workspace(&self) -> Result<Workspace> {
        Ok(Workspace::new(0, ()))
    }

    /// Simulates, and allocates what it simulates: SBUF, PSUM and the HBM of the kernels.
    fn run(
        &self,
        _queue: &dyn Queue,
        bindings: Bindings<'_>,
        _workspace: &mut Workspace,
    ) -> Result<Submission> {
        bindings.check(&self.tensors)?;
        let start = Instant::now();
        let mut inputs = BTreeMap::new();
        let specs = self.tensors.iter().filter(|spec| !spec.is_output);
        for (spec, tensor) in specs.zip(bindings.inputs) {
            let numbers: Vec<f32> = tensor.to_host()?.to_f64().into_iter().map(|x| x as f32).collect();
            inputs.insert(spec.role, numbers);
        }
        let is_finite =
            inputs.iter().all(|(&role, numbers)| !numbers.iter().any(|&x| program::spreads(role, x)));
        let launches: Vec<&Launch> = match is_finite {
            true => self.kernels.iter().map(|kernel| &kernel.launch).collect(),
            false => self.exact()?.iter().collect(),
        };
        let mut results = run_launches(&launches, &self.target, &inputs)?;
        let specs = self.tensors.iter().filter(|spec| spec.is_output);
        for (spec, tensor) in specs.zip(bindings.outputs) {
            let numbers = results.remove(&spec.role).unwrap_or_else(|| vec![0.0; spec.len()]);
            write(tensor, &numbers, spec)?;
        }
        let mut submission = Submission::done(start.elapsed());
        let nanoseconds: f64 = self.kernels.iter().map(|kernel| kernel.report.nanoseconds).sum();
        submission.simulated = Some(Duration::from_nanos(nanoseconds as u64));
        Ok(submission)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Kernels of fewer instructions take so little time that the first choice will do, and of more so long to simulate.
const CHOSEN: std::ops::Range<usize> = 300..6_000;

/// The fast forward pass as it was chosen.
struct Fastest {
    choice: Choice,
    sections: usize,
    kernel: Compiled,
}

/// The fast forward pass, in the way that takes the least simulated time.
fn fastest(
    problem: &Problem,
    request: &OpRequest,
    windows: &Windows,
    dtype: Dtype,
    target: &Target,
) -> Option<Fastest> {
    let mut best: Option<Fastest> = None;
    for choice in Choice::all() {
        let (launch, sections) = softmax::lower(problem, request, windows, choice, dtype, target)?;
        let kernel = Compiled::new(launch, target).ok()?;
        let is_last = !CHOSEN.contains(&kernel.launch.kernel.instructions());
        if best.as_ref().is_none_or(|best| kernel.report.nanoseconds < best.kernel.report.nanoseconds) {
            best = Some(Fastest { choice, sections, kernel });
        }
        if is_last {
            break;
        }
    }
    best
}

fn instructions(kernels: &[Compiled]) -> usize {
    kernels.iter().map(|kernel| kernel.launch.kernel.instructions()).sum()
}

/// Runs kernels one after the other, and gives every bound result.
fn run_launches(
    launches: &[&Launch],
    target: &Target,
    inputs: &BTreeMap<Role, Vec<f32>>,
) -> Result<BTreeMap<Role, Vec<f32>>> {
    let missing = |role: Role| Error::Device { backend: NAME.into(), message: format!("no input {role}") };
    let mut kept: Vec<Vec<Vec<f32>>> = Vec::new();
    let mut results: BTreeMap<Role, Vec<f32>> = BTreeMap::new();
    for launch in launches {
        let sources = launch.sources.iter().map(|source| {
            Ok(match source {
                Source::Role(role) => inputs.get(role).ok_or_else(|| missing(*role))?.clone(),
                Source::Constant(numbers) => numbers.to_vec(),
                Source::Gather(role, places) => {
                    let numbers = inputs.get(role).ok_or_else(|| missing(*role))?;
                    places.iter().map(|&at| numbers.get(at as usize).copied().unwrap_or(0.0)).collect()
                }
                Source::Result(kernel, output) => kept[*kernel][*output].clone(),
            })
        });
        let inputs = sources.collect::<Result<Vec<_>>>()?;
        let outputs = compute::run(&launch.kernel, target, &inputs).map_err(NeuronError::into_error)?;
        for (sink, numbers) in launch.sinks.iter().zip(&outputs) {
            match sink {
                Sink::Role(role) => {
                    results.insert(*role, numbers.clone());
                }
                Sink::Scatter(role, places) => {
                    let len =
                        places.iter().filter(|&&at| at != u32::MAX).max().map_or(0, |&at| at as usize + 1);
                    let mut sums = vec![0.0_f64; len];
                    for (&at, &x) in places.iter().zip(numbers) {
                        if let Some(sum) = sums.get_mut(at as usize) {
                            *sum += f64::from(x);
                        }
                    }
                    results.insert(*role, sums.into_iter().map(|sum| sum as f32).collect());
                }
                Sink::Kept => {}
            }
        }
        kept.push(outputs);
    }
    Ok(results)
}

fn write(tensor: &mut Tensor, numbers: &[f32], spec: &TensorSpec) -> Result<()> {
    let places: Vec<usize> = (0..tensor.len()).map(|index| tensor.element(index)).collect();
    let mut slice = tensor.storage_mut().and_then(|storage| storage.host_mut()).ok_or_else(|| {
        Error::invalid(
            spec.name.clone(),
            "shared or not in host memory",
            "an output must be the only tensor of its host storage",
            "use the tensor that Backend::empty made",
        )
    })?;
    for (index, place) in places.into_iter().enumerate() {
        slice.set(place, f64::from(numbers.get(index).copied().unwrap_or(0.0)));
    }
    Ok(())
}
