//! Attention over keys that are split in pieces: a backend runs each piece, and what [`merge_attentions`] makes of the
//! pieces has to be the attention over all keys. Backward, each piece gets the merged output and logsumexp; the
//! gradients of its keys and values are those of the whole, and the gradients of the queries add up to it.

use natten_core::geometry::{MAX_RANK, Neighborhood};
use natten_core::{
    Backend, DType, Error, HostTensor, Op, OpRequest, Partial, PlanOptions, Problem, Result, Role,
    merge_attentions,
};

use crate::case::{Case, describe, with_neighborhood};
use crate::compare::Target;
use crate::expected::{Answer, Expected, oracle};
use crate::outcome::{Outcome, Refusal};
use crate::run::{HostTensors, evaluate, guard};
use crate::tolerance::{Numbers, Roundoff};

/// Ordinary attention whose keys are split.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MergeCase {
    /// The case's name.
    pub name: String,
    /// The attention over all keys, not causal.
    pub whole: Problem,
    /// The keys of each piece, in order; their sum is the whole's number of keys.
    pub pieces: Vec<usize>,
}

/// Two and three pieces, equal and not, in every dtype.
///
/// # Panics
/// Where a case is no problem: a mistake of this crate, which its tests would find.
pub fn merge_cases() -> Vec<MergeCase> {
    let mut cases = Vec::new();
    for dtype in DType::FLOATS {
        for pieces in [vec![16, 16], vec![1, 30], vec![7, 19, 11]] {
            let lengths: Vec<String> = pieces.iter().map(usize::to_string).collect();
            let name = format!("merge-{}-{dtype}", lengths.join("-"));
            let window = Neighborhood::full(23, pieces.iter().sum(), None);
            let whole = window.and_then(|window| {
                let problem = Problem::builder(window, dtype).batch(2).heads(4).heads_kv(2);
                problem.head_dim(16).head_dim_v(24).build()
            });
            let whole = whole.unwrap_or_else(|error| panic!("{name}: {error}"));
            cases.push(MergeCase { name, whole, pieces });
        }
    }
    cases
}

/// Runs one case forward and backward. Errors and panics of the backend are failures, except that it may refuse.
pub fn run_merge_case(backend: &dyn Backend, case: &MergeCase) -> Outcome {
    let mut outcome = Outcome::new(&case.name, describe(&case.whole), backend.device().backend);
    for request in [OpRequest::forward(&case.whole), OpRequest::backward(&case.whole)] {
        if let Err(error @ Error::Unsupported { .. }) = backend.supports(&case.whole, &request) {
            outcome.refusals.push(Refusal { op: request.op, reason: error.to_string() });
            continue;
        }
        if let Some(failure) = guard(|| run(backend, case, &request, &mut outcome)) {
            outcome.failures.push(format!("{}: {failure}", request.op));
        }
    }
    outcome
}

/// A piece of the keys: its problem, and its share of every tensor of the whole.
struct Piece {
    problem: Problem,
    start: usize,
    len: usize,
}

impl Piece {
    /// The piece's share of a tensor `[B, keys, …]`.
    fn of(&self, tensor: &HostTensor) -> Result<HostTensor> {
        let shape = [&[tensor.shape()[0], self.len], &tensor.shape()[2..]].concat();
        let row: usize = shape[2..].iter().product();
        let keys = tensor.shape()[1];
        HostTensor::from_fn(tensor.dtype(), &shape, |index| {
            let (batch, inside) = (index / (self.len * row), index % (self.len * row));
            tensor.slice().get((batch * keys + self.start) * row + inside)
        })
    }

    /// The inputs with this piece's keys and values.
    fn inputs(&self, whole: &HostTensors) -> Result<HostTensors> {
        let mut inputs = whole.clone();
        for role in [Role::Key, Role::Value] {
            inputs.insert(role, self.of(&whole[&role])?);
        }
        Ok(inputs)
    }

    fn numbers(&self, values: &Numbers, problem: &Problem, role: Role) -> Result<Vec<f64>> {
        Ok(self.of(&HostTensor::new(&problem.shape(role), values[&role].clone())?)?.to_f64())
    }
}

fn run(backend: &dyn Backend, case: &MergeCase, request: &OpRequest, outcome: &mut Outcome) -> Result<()> {
    let whole = Case::new(&case.name, case.whole.clone());
    let answer = Expected::new(&whole).answer(request)?;
    let queries = case.whole.neighborhood().axes()[MAX_RANK - 1].query_len();
    let mut pieces = Vec::new();
    let mut start = 0;
    for &len in &case.pieces {
        let keys = Neighborhood::full(queries, len, None)?;
        pieces.push(Piece { problem: with_neighborhood(&case.whole, keys, case.whole.dtype())?, start, len });
        start += len;
    }
    match request.op {
        Op::Forward => forward(backend, &pieces, &answer, &case.whole, outcome),
        _ => backward(backend, &pieces, &answer, &case.whole, outcome),
    }
}

fn check(
    outcome: &mut Outcome,
    op: Op,
    role: Role,
    values: &[f64],
    bounds: &[f64],
    got: &HostTensor,
) -> Result<()> {
    let (check, complaint) = Target { op, role, values, bounds }.compare(got)?;
    outcome.tensors.push(check);
    outcome.failures.extend(complaint);
    Ok(())
}

fn forward(
    backend: &dyn Backend,
    pieces: &[Piece],
    whole: &Answer,
    problem: &Problem,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut parts = Vec::new();
    let mut answers = Vec::new();
    for piece in pieces {
        let request = OpRequest::forward(&piece.problem);
        let inputs = piece.inputs(&whole.inputs)?;
        let mut results = evaluate(backend, &piece.problem, &request, &PlanOptions::default(), &inputs)?;
        let mut take = |role| results.remove(&role).ok_or(Error::Cancelled);
        parts.push(Partial { output: take(Role::Output)?, logsumexp: take(Role::Logsumexp)? });
        let values = oracle(&piece.problem, &request, &inputs)?;
        answers.push(Answer::forward(&piece.problem, inputs, values)?);
    }
    let merged = merge_attentions(&parts)?;
    let bounds = merged_bounds(&answers, whole, problem);
    for (role, got) in [(Role::Output, &merged.output), (Role::Logsumexp, &merged.logsumexp)] {
        check(outcome, Op::Forward, role, &whole.values[&role], &bounds[&role], got)?;
    }
    Ok(())
}

/// With `w_i` the weight of part `i`: `|δo| <= Σ w_i (δo_i + δl_i |o_i - o|) + e |o| + t`, `|δl| <= Σ w_i δl_i + u |l|`,
/// to first order; the merge itself runs in f64.
fn merged_bounds(parts: &[Answer], whole: &Answer, problem: &Problem) -> Numbers {
    let Roundoff { u, e, t } = Roundoff::of(problem.dtype());
    let (outputs, logsumexps) = (&whole.values[&Role::Output], &whole.values[&Role::Logsumexp]);
    let mut of_outputs: Vec<f64> = outputs.iter().map(|o| e * o.abs() + t).collect();
    let mut of_logsumexps: Vec<f64> = logsumexps.iter().map(|l| u * l.abs()).collect();
    for part in parts {
        let rows = part.values[&Role::Logsumexp].iter().zip(&part.bounds[&Role::Logsumexp]);
        let of_rows: Vec<(f64, f64)> = rows
            .zip(logsumexps)
            .map(|((own, bound), all)| ((own - all).exp(), (own - all).exp() * bound))
            .collect();
        for (sum, (_, of_logsumexp)) in of_logsumexps.iter_mut().zip(&of_rows) {
            *sum += of_logsumexp;
        }
        let elements = part.values[&Role::Output].iter().zip(&part.bounds[&Role::Output]).zip(outputs);
        for (index, ((own, bound), all)) in elements.enumerate() {
            let (weight, of_logsumexp) = of_rows[index / problem.head_dim_v()];
            of_outputs[index] += weight * bound + of_logsumexp * (own - all).abs();
        }
    }
    [(Role::Output, of_outputs), (Role::Logsumexp, of_logsumexps)].into()
}

fn backward(
    backend: &dyn Backend,
    pieces: &[Piece],
    whole: &Answer,
    problem: &Problem,
    outcome: &mut Outcome,
) -> Result<()> {
    let shape = problem.shape(Role::GradQuery);
    let len = shape.iter().product();
    let (mut sum, mut bounds) = (vec![0.0; len], vec![0.0; len]);
    for piece in pieces {
        let request = OpRequest::backward(&piece.problem);
        let inputs = piece.inputs(&whole.inputs)?;
        let results = evaluate(backend, &piece.problem, &request, &PlanOptions::default(), &inputs)?;
        let answer = Answer::backward(&piece.problem, &request, inputs)?;
        for role in [Role::GradKey, Role::GradValue] {
            let expected = piece.numbers(&whole.values, problem, role)?;
            check(outcome, Op::Backward, role, &expected, &answer.bounds[&role], &results[&role])?;
        }
        let own = results[&Role::GradQuery].to_f64();
        for index in 0..len {
            sum[index] += own[index];
            bounds[index] += answer.bounds[&Role::GradQuery][index];
        }
    }
    let sum = HostTensor::new(&shape, sum)?;
    check(outcome, Op::Backward, Role::GradQuery, &whole.values[&Role::GradQuery], &bounds, &sum)
}
