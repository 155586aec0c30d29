//! The suite must be able to fail: backends that are wrong in one way each, and the cases that catch them.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use natten_conformance::{Options, Outcome, Report, Status, run_all};
use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::reference::ReferenceBackend;
use natten_core::{
    Backend, Bindings, DType, DeviceInfo, Error, HostTensor, OpRequest, Pending, Plan, PlanOptions,
    PlanReport, Problem, Queue, Result, Role, Submission, Tensor, TensorSpec, Workspace, ready,
};

/// One way to be wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// None: the control.
    None,
    /// One element of each result is off by a thousandth.
    Perturbs,
    /// One element of each result is not written.
    LeavesUnwritten,
    /// The last bit of one element differs from run to run.
    IsNotDeterministic,
    /// Works on f16 inside.
    LosesPrecision,
    /// Reads and writes tensors as if they were contiguous.
    IgnoresStrides,
    /// Writes one element before its output.
    WritesIntoGaps,
    /// A NaN among the values reaches a query that does not see it, as zero times NaN.
    LeaksNan,
    /// A cotangent of the logsumexp counts as zero.
    IgnoresGradLogsumexp,
    /// The scale is a thousandth too large.
    MisScales,
    /// Windows have another stride, dilation or causal flag.
    ChangesWindows(fn(&mut AxisParams)),
    /// Plans what `supports` accepts only sometimes.
    RefusesLate,
    /// Says that more pairs are visible than are.
    MisReports,
    /// Panics.
    Panics,
}

#[derive(Debug)]
struct Faulty {
    inner: ReferenceBackend,
    fault: Fault,
}

#[derive(Debug)]
struct FaultyPlan {
    inner: Arc<dyn Plan>,
    /// As the suite asked for it, where the inner plan is for something else.
    tensors: Vec<TensorSpec>,
    report: PlanReport,
    fault: Fault,
    runs: AtomicUsize,
}

impl Faulty {
    fn problem(&self, problem: &Problem) -> Result<Problem> {
        let mut scale = problem.scale();
        let mut neighborhood = problem.neighborhood().clone();
        match self.fault {
            Fault::MisScales => scale *= 1.001,
            Fault::ChangesWindows(change) if !neighborhood.is_full() => {
                let mut params: Vec<AxisParams> =
                    neighborhood.user_axes().iter().filter_map(|axis| axis.params()).collect();
                params.iter_mut().for_each(change);
                neighborhood = Neighborhood::new(&params)?;
            }
            _ => {}
        }
        Problem::builder(neighborhood, problem.dtype())
            .batch(problem.batch())
            .heads(problem.heads())
            .heads_kv(problem.heads_kv())
            .head_dim(problem.head_dim())
            .head_dim_v(problem.head_dim_v())
            .additional_tokens(problem.additional_tokens())
            .relative_positional_bias(problem.has_rpb())
            .scale(Some(scale))
            .build()
    }

    fn make(&self, problem: &Problem, request: &OpRequest) -> Result<Arc<dyn Plan>> {
        if matches!(self.fault, Fault::RefusesLate) {
            return Err(Error::unsupported("faulty", "this", "it noticed too late"));
        }
        let keeps = !matches!(self.fault, Fault::IgnoresGradLogsumexp) && request.gives(Role::GradLogsumexp);
        let options = PlanOptions::default();
        let truth = pollster::block_on(self.inner.plan(problem, request, &options))?;
        let changed = self.problem(problem)?;
        let inner =
            pollster::block_on(self.inner.plan(&changed, &request.with_grad_logsumexp(keeps), &options))?;
        let mut report = truth.report().clone();
        if matches!(self.fault, Fault::MisReports) {
            report.coverage.useful += 1;
        }
        let tensors = truth.tensors().to_vec();
        Ok(Arc::new(FaultyPlan { inner, tensors, report, fault: self.fault, runs: AtomicUsize::new(0) }))
    }
}

impl Backend for Faulty {
    fn device(&self) -> &DeviceInfo {
        self.inner.device()
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        self.inner.supports(problem, request)
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        _options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        ready(self.make(problem, request))
    }

    fn queue(&self) -> Result<Arc<dyn Queue>> {
        self.inner.queue()
    }

    fn empty(&self, spec: &TensorSpec) -> Result<Tensor> {
        self.inner.empty(spec)
    }

    fn upload(&self, queue: &dyn Queue, host: HostTensor) -> Result<Tensor> {
        self.inner.upload(queue, host)
    }

    fn download<'a>(&'a self, queue: &'a dyn Queue, tensor: &'a Tensor) -> Pending<'a, HostTensor> {
        self.inner.download(queue, tensor)
    }
}

/// The storage's first elements as a contiguous tensor of the same shape.
fn ignoring_strides(tensor: &Tensor) -> Tensor {
    let elements = tensor.storage().host().unwrap();
    HostTensor::from_fn(tensor.dtype(), tensor.shape(), |index| elements.get(index)).unwrap().into()
}

fn through_f16(tensor: &Tensor) -> Tensor {
    tensor.to_host().unwrap().cast(DType::F16).unwrap().cast(tensor.dtype()).unwrap().into()
}

fn set(tensor: &mut Tensor, element: usize, value: f64) {
    tensor.storage_mut().and_then(|storage| storage.host_mut()).unwrap().set(element, value);
}

impl Plan for FaultyPlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    fn new_workspace(&self) -> Result<Workspace> {
        self.inner.new_workspace()
    }

    fn run(
        &self,
        queue: &dyn Queue,
        bindings: Bindings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        assert!(!matches!(self.fault, Fault::Panics), "a bug");
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let Bindings { inputs, outputs } = bindings;
        let roles = self.tensors.iter().filter(|spec| !spec.is_output).map(|spec| spec.role);
        let wanted =
            |role: Role| self.inner.tensors().iter().any(|spec| spec.role == role && !spec.is_output);
        let changed: Vec<Tensor> = roles
            .zip(inputs)
            .filter(|(role, _)| wanted(*role))
            .map(|(_, &tensor)| match self.fault {
                Fault::IgnoresStrides => ignoring_strides(tensor),
                Fault::LosesPrecision if tensor.dtype() == DType::F32 => through_f16(tensor),
                _ => tensor.clone(),
            })
            .collect();
        let references: Vec<&Tensor> = changed.iter().collect();
        let before: Vec<HostTensor> = outputs.iter().map(|tensor| tensor.to_host().unwrap()).collect();
        let submission =
            self.inner.run(queue, Bindings { inputs: &references, outputs: &mut *outputs }, workspace)?;
        let hidden_nan =
            inputs.iter().any(|tensor| tensor.to_host().unwrap().to_f64().iter().any(|x| x.is_nan()));
        for (output, before) in outputs.iter_mut().zip(before).filter(|(output, _)| !output.is_empty()) {
            let last = output.len() - 1;
            let element = output.element(last);
            let value = output.storage().host().unwrap().get(element);
            match self.fault {
                Fault::Perturbs => set(output, element, value * 1.001 + 0.001),
                Fault::LeavesUnwritten => set(output, element, before.slice().get(last)),
                Fault::IsNotDeterministic if run % 2 == 1 => {
                    set(output, element, value * (1.0 + 2.0 * output.dtype().roundoff()));
                }
                Fault::WritesIntoGaps if output.offset() > 0 => set(output, element + 1, 0.0),
                Fault::LeaksNan if hidden_nan => set(output, 0, f64::NAN),
                _ => {}
            }
        }
        Ok(submission)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn report(fault: Fault, filter: &str) -> Report {
    let backend = Faulty { inner: ReferenceBackend::new(), fault };
    run_all(&backend, &Options::default().filter(filter).random(16), &mut |_| ())
}

/// Every case that the fault can touch fails, and says so with the words.
fn assert_caught(fault: Fault, filter: &str, words: &str) {
    let report = report(fault, filter);
    assert!(!report.outcomes.is_empty(), "no case is named {filter}");
    assert_eq!(
        report.count(Status::Failed),
        report.outcomes.len(),
        "{fault:?} passes: {:#?}",
        report.outcomes
    );
    assert!(!report.passed());
    assert!(report.to_string().contains(words), "{report}");
}

#[test]
fn the_wrapper_itself_is_right() {
    for filter in
        ["feature-dtype", "feature-layout", "feature-kernel", "special-value", "golden-na1d", "merge"]
    {
        let report = report(Fault::None, filter);
        assert!(report.passed(), "{report}");
    }
}

#[test]
fn wrong_elements_are_caught() {
    assert_caught(Fault::Perturbs, "feature-dtype-f64", "elements are wrong");
    assert_caught(Fault::Perturbs, "golden", "elements are wrong");
    assert_caught(Fault::Perturbs, "merge-16-16-f32", "elements are wrong");
    assert_caught(Fault::LosesPrecision, "feature-dtype-f32", "output[");
    assert_caught(Fault::MisScales, "feature-dtype-f32", "output[");
    assert_caught(Fault::MisScales, "golden", "logsumexp[");
}

#[test]
fn unwritten_elements_are_caught() {
    assert_caught(Fault::LeavesUnwritten, "feature-dtype", "differs between two runs");
    assert_caught(Fault::LeavesUnwritten, "special-query-nan", "differs between two runs");
}

#[test]
fn runs_that_differ_are_caught() {
    assert_caught(Fault::IsNotDeterministic, "feature-dtype", "differs between two runs");
}

#[test]
fn wrong_memory_is_caught() {
    assert_caught(Fault::IgnoresStrides, "feature-layout-heads-first", "elements are wrong");
    assert_caught(Fault::IgnoresStrides, "feature-layout-reversed", "elements are wrong");
    assert_caught(Fault::WritesIntoGaps, "feature-layout-gapped", "it wrote outside of output");
}

#[test]
fn leaking_nans_are_caught() {
    assert_caught(Fault::LeaksNan, "special-unseen-nan", "is NaN, expected");
    assert_caught(Fault::LeaksNan, "special-value-nan-1d-1", "is NaN, expected");
}

#[test]
fn ignored_cotangents_are_caught() {
    assert_caught(Fault::IgnoresGradLogsumexp, "feature-grad-logsumexp", "grad_query");
}

#[test]
fn wrong_windows_are_caught() {
    assert_caught(Fault::ChangesWindows(|axis| axis.stride = 1), "golden-na2d-strided", "elements are wrong");
    assert_caught(
        Fault::ChangesWindows(|axis| axis.dilation = 1),
        "golden-na1d-dilated",
        "elements are wrong",
    );
    assert_caught(
        Fault::ChangesWindows(|axis| axis.is_causal = false),
        "golden-na1d-causal",
        "elements are wrong",
    );
    assert_caught(
        Fault::ChangesWindows(|axis| axis.is_causal = true),
        "natten-40-causal-ooo",
        "elements are wrong",
    );
}

#[test]
fn broken_contracts_are_caught() {
    assert_caught(Fault::RefusesLate, "feature-dtype-f32", "it noticed too late");
    assert_caught(Fault::MisReports, "feature-dtype-f32", "pairs are visible");
    assert_caught(Fault::Panics, "feature-dtype-f32", "panicked: a bug");
    assert_caught(Fault::Panics, "merge-16-16-f32", "panicked: a bug");
}

/// What is left of a failing random case is as simple as the fault lets it be.
#[test]
fn failing_random_cases_are_shrunk() {
    let report = report(Fault::ChangesWindows(|axis| axis.dilation = 1), "random-");
    assert!(report.count(Status::Failed) > 0 && report.count(Status::Passed) > 0, "{report}");
    // The wrapper that has the fault makes problems without programs.
    let is_random =
        |outcome: &&Outcome| outcome.case.starts_with("random-") && !outcome.case.contains("program");
    for outcome in
        report.outcomes.iter().filter(is_random).filter(|outcome| outcome.status() == Status::Failed)
    {
        assert!(outcome.problem.contains("dilation"), "{outcome}");
        assert!(["batch 1,", "head_dim 1,"].iter().all(|part| outcome.problem.contains(part)), "{outcome}");
    }
}
