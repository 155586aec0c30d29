//! What a case came to: an [`Outcome`] for each, a [`Report`] for all.

use std::fmt;
use std::time::Duration;

use natten_core::{Op, Role};

/// How one result compares with the oracle's.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorCheck {
    /// The operation that made it.
    pub op: Op,
    /// The result.
    pub role: Role,
    /// The largest distance of a finite element from the oracle's.
    pub max_error: f64,
    /// The error of the element that comes nearest to its tolerance, or exceeds it most.
    pub error: f64,
    /// The tolerance of that element.
    pub tolerance: f64,
    /// Elements that are wrong: outside their tolerance, or of another class (NaN, +inf, -inf, finite).
    pub wrong: usize,
}

impl TensorCheck {
    /// The error in units of the tolerance: at most 1 where every finite element is right.
    pub fn ratio(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.tolerance }
    }
}

/// An operation that the backend refused, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The operation.
    pub op: Op,
    /// The backend's words.
    pub reason: String,
}

/// An [`Outcome`] in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Something ran, and everything that ran is right.
    Passed,
    /// Something is wrong.
    Failed,
    /// The backend refused every operation, with a reason.
    Refused,
}

impl Status {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What one case came to on one backend. Its `Display` is one line, and one more for each failure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// Its problem in one line ([`Case::describe`](crate::Case::describe)).
    pub problem: String,
    /// The backend's name.
    pub backend: String,
    /// Every result that was compared.
    pub tensors: Vec<TensorCheck>,
    /// Every operation that the backend refused.
    pub refusals: Vec<Refusal>,
    /// What is wrong, in words; empty where nothing is.
    pub failures: Vec<String>,
    /// The time that the operations took, each the faster of its two runs. Planning and copies do not count.
    pub elapsed: Duration,
}

impl Outcome {
    pub(crate) fn new(case: &str, problem: String, backend: &str) -> Self {
        Self {
            case: case.to_owned(),
            problem,
            backend: backend.to_owned(),
            tensors: Vec::new(),
            refusals: Vec::new(),
            failures: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// The outcome in one word.
    pub fn status(&self) -> Status {
        match (self.failures.is_empty(), self.tensors.is_empty()) {
            (false, _) => Status::Failed,
            (true, false) => Status::Passed,
            (true, true) => Status::Refused,
        }
    }

    /// The result that comes nearest to its tolerance, or exceeds it most.
    pub fn worst(&self) -> Option<&TensorCheck> {
        self.tensors.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {} ({})", self.case, self.status().name(), self.backend, self.problem)?;
        if let Some(worst) = self.worst() {
            write!(f, ": {} error {:.1e} of {:.1e}", worst.role, worst.error, worst.tolerance)?;
        }
        for refusal in &self.refusals {
            write!(f, "\n  {} refused: {}", refusal.op, refusal.reason)?;
        }
        for failure in &self.failures {
            write!(f, "\n  {failure}")?;
        }
        Ok(())
    }
}

/// What all cases came to on one backend. Its `Display` is a count, and the outcomes that failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// The outcomes, in the order of the cases.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// A report of these outcomes.
    pub fn new(backend: impl Into<String>, outcomes: Vec<Outcome>) -> Self {
        Self { backend: backend.into(), outcomes }
    }

    /// The number of outcomes of a status.
    pub fn count(&self, status: Status) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.status() == status).count()
    }

    /// Whether something passed and nothing failed. A backend that refuses everything has shown nothing.
    pub fn passed(&self) -> bool {
        self.count(Status::Failed) == 0 && self.count(Status::Passed) > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |status| self.count(status);
        let (passed, failed) = (count(Status::Passed), count(Status::Failed));
        write!(f, "{}: {passed} passed, {failed} failed, {} refused", self.backend, count(Status::Refused))?;
        for outcome in self.outcomes.iter().filter(|outcome| outcome.status() == Status::Failed) {
            write!(f, "\n{outcome}")?;
        }
        Ok(())
    }
}
