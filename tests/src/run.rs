//! Runs cases: plans, binds poisoned outputs, runs twice, compares. Also [`evaluate`], one operation on host tensors,
//! for tests and tools.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use natten_core::{
    Backend, Bindings, Error, HostTensor, OpRequest, Plan, PlanOptions, Problem, Queue, Result, Role, Tensor,
    TensorSpec, contiguous_strides,
};
use pollster::block_on;

use crate::case::Case;
use crate::compare::Target;
use crate::expected::Expected;
use crate::memory::{Layout, gaps_are_intact};
use crate::outcome::{Outcome, Refusal};

/// Tensors in host memory by role.
pub type HostTensors = BTreeMap<Role, HostTensor>;

/// Runs one operation on contiguous tensors and takes the results back.
///
/// # Errors
/// Those of the backend; [`Error::Invalid`] where an input is missing.
pub fn evaluate(
    backend: &dyn Backend,
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    inputs: &HostTensors,
) -> Result<HostTensors> {
    let plan = block_on(backend.plan(problem, request, options))?;
    let queue = backend.queue()?;
    let machine = Machine { backend, queue: &*queue, layout: Layout::HeadsLast };
    let inputs = machine.place_inputs(&*plan, inputs)?;
    Ok(machine.run(&*plan, &inputs, f64::NAN)?.results)
}

/// Runs every operation of a case, each twice, and compares with the oracle.
///
/// Outputs hold NaN before the first run and a number before the second, and the runs must agree to the last bit: an
/// element that is not written cannot pass. An operation that [`Backend::supports`] refuses as unsupported is no
/// failure, and neither is a plan refused for its [`PlanOptions`]. Errors and panics of the backend are failures.
pub fn run_case(backend: &dyn Backend, case: &Case) -> Outcome {
    let mut outcome = Outcome::new(&case.name, case.describe(), backend.device().backend);
    let expected = Expected::new(case);
    for request in &case.requests {
        if let Some(failure) = guard(|| run_request(backend, case, request, &expected, &mut outcome)) {
            outcome.failures.push(format!("{}: {failure}", request.op));
        }
    }
    outcome
}

/// What went wrong in an attempt, an error or a panic, in words.
pub(crate) fn guard(attempt: impl FnOnce() -> Result<()>) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(result) => result.err().map(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Some(format!("panicked: {}", text.unwrap_or("no message")))
        }
    }
}

fn run_request(
    backend: &dyn Backend,
    case: &Case,
    request: &OpRequest,
    expected: &Expected<'_>,
    outcome: &mut Outcome,
) -> Result<()> {
    let refused = |error: Error| Refusal { op: request.op, reason: error.to_string() };
    let supported = backend.supports(&case.problem, request);
    let plan = match (supported, block_on(backend.plan(&case.problem, request, &case.options))) {
        (Ok(()), Ok(plan)) => plan,
        (Ok(()), Err(error @ (Error::Invalid { .. } | Error::Unsupported { .. })))
            if case.options != PlanOptions::default() =>
        {
            outcome.refusals.push(refused(error));
            return Ok(());
        }
        (Err(error @ Error::Unsupported { .. }), Err(_)) => {
            outcome.refusals.push(refused(error));
            return Ok(());
        }
        (Err(error), Ok(_)) => {
            outcome.failures.push(format!("{}: supports() refuses what plan() accepts: {error}", request.op));
            return Ok(());
        }
        (_, Err(error)) => return Err(error),
    };
    outcome.failures.extend(check_plan(&*plan, &case.problem, request)?);

    let answer = expected.answer(request)?;
    let queue = backend.queue()?;
    let machine = Machine { backend, queue: &*queue, layout: case.layout };
    // Placed once: a first run that changed its inputs would show in the second.
    let inputs = machine.place_inputs(&*plan, &answer.inputs);
    let first = match inputs.and_then(|inputs| Ok((machine.run(&*plan, &inputs, f64::NAN)?, inputs))) {
        Err(error @ Error::Unsupported { .. }) if case.layout != Layout::HeadsLast => {
            outcome.refusals.push(refused(error));
            return Ok(());
        }
        other => other?,
    };
    let (first, inputs) = first;
    let second = machine.run(&*plan, &inputs, -7.25)?;
    outcome.elapsed += first.elapsed.min(second.elapsed);
    for (role, result) in &first.results {
        let (values, bounds) = (&answer.values[role], &answer.bounds[role]);
        let (check, complaint) = Target { op: request.op, role: *role, values, bounds }.compare(result)?;
        outcome.tensors.push(check);
        outcome.failures.extend(complaint);
        if result.to_le_bytes() != second.results[role].to_le_bytes() {
            outcome.failures.push(format!(
                "{}: {role} differs between two runs: it is not deterministic, or not all of it is written",
                request.op
            ));
        }
    }
    Ok(())
}

/// What a plan says about itself has to be true.
fn check_plan(plan: &dyn Plan, problem: &Problem, request: &OpRequest) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let op = request.op;
    let specs = problem.tensors(request)?;
    if plan.tensors() != specs {
        failures.push(format!("{op}: the plan lists {:?}, the problem {specs:?}", plan.tensors()));
    }
    let (coverage, program) = (plan.report().coverage, problem.program());
    // As `coverage_of` counts: without a batch entry nothing is walked.
    let useful = if problem.batch() == 0 { 0 } else { problem.neighborhood().useful_pairs() };
    // A recurrence walks pairs of its chunks, and a mask may be known to leave tiles out.
    let counts_all = program.decay().is_none();
    let walks_all = counts_all && program.mask().is_none();
    if counts_all && coverage.useful != useful || walks_all && coverage.visited < useful {
        failures.push(format!("{op}: {useful} pairs are visible, the plan's coverage is {coverage:?}"));
    }
    Ok(failures)
}

/// A backend, its queue, and how tensors are to lie in its memory.
struct Machine<'a> {
    backend: &'a dyn Backend,
    queue: &'a dyn Queue,
    layout: Layout,
}

struct Run {
    results: HostTensors,
    elapsed: Duration,
}

impl Machine<'_> {
    fn place_inputs(&self, plan: &dyn Plan, inputs: &HostTensors) -> Result<Vec<Tensor>> {
        let specs = plan.tensors().iter().filter(|spec| !spec.is_output);
        specs
            .map(|spec| {
                let missing = || {
                    Error::invalid(spec.name.clone(), "missing", "every input is needed", "give the tensor")
                };
                self.place(spec.role, inputs.get(&spec.role).ok_or_else(missing)?)
            })
            .collect()
    }

    /// Runs a plan once on outputs that hold `poison`.
    fn run(&self, plan: &dyn Plan, inputs: &[Tensor], poison: f64) -> Result<Run> {
        let specs: Vec<&TensorSpec> = plan.tensors().iter().filter(|spec| spec.is_output).collect();
        let mut outputs = Vec::new();
        for spec in &specs {
            self.check_empty(spec)?;
            let filled = HostTensor::from_fn(spec.dtype, &spec.shape, |_| poison)?;
            outputs.push(self.place(spec.role, &filled)?);
        }
        let mut workspace = plan.new_workspace()?;
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        block_on(self.queue.finish())?;
        let start = Instant::now();
        let bindings = Bindings { inputs: &inputs, outputs: &mut outputs };
        let submission = plan.run(self.queue, bindings, &mut workspace)?;
        block_on(self.queue.finish())?;
        let elapsed = submission.elapsed.unwrap_or_else(|| start.elapsed());
        let mut results = HostTensors::new();
        for (spec, output) in specs.into_iter().zip(&outputs) {
            let result = block_on(self.backend.download(self.queue, output))?;
            if result.shape() != spec.shape || result.dtype() != spec.dtype {
                return Err(self.broken(format!("download gave {:?} for {spec:?}", result.shape())));
            }
            if self.layout == Layout::Gapped && !gaps_are_intact(output) {
                return Err(self.broken(format!("it wrote outside of {}", spec.role)));
            }
            results.insert(spec.role, result);
        }
        Ok(Run { results, elapsed })
    }

    fn place(&self, role: Role, host: &HostTensor) -> Result<Tensor> {
        self.layout.place(self.backend, self.queue, role, host)
    }

    /// [`Backend::empty`] gives what it is asked for.
    fn check_empty(&self, spec: &TensorSpec) -> Result<()> {
        let made = self.backend.empty(spec)?;
        if made.shape() == spec.shape
            && made.dtype() == spec.dtype
            && made.strides() == contiguous_strides(&spec.shape)
        {
            return Ok(());
        }
        let (shape, strides, dtype) = (made.shape(), made.strides(), made.dtype());
        Err(self
            .broken(format!("empty gave {dtype} of shape {shape:?} and strides {strides:?} for {spec:?}")))
    }

    fn broken(&self, message: String) -> Error {
        Error::Device { backend: self.backend.device().backend.into(), message }
    }
}
