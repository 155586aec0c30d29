//! How far a right result may lie from the oracle's where no formula for it is written down: the operations beside
//! forward and backward, and every program but softmax.
//!
//! # Derivation
//!
//! To first order a backward stable computation returns the exact result of numbers that are each off by a rounding. So
//! the oracle is run again, [`RUNS`] times, with every number moved by a random relative amount, and how far the results
//! move is how far a right backend's may lie. With `u` the roundoff of the accumulator, `e` that of the dtype, `N` the
//! longest sum of the problem (over a head dim, a row's keys, or a key's queries), what is moved, and by how much:
//!
//! * every input, the scaled score, the modified score, what a stage sums up, and a recurrence's decay: `a = u sqrt(N)`.
//!   A sum of `n` terms in the accumulator is off by `u sqrt(Σ partial²/3)`: for terms of random signs that is
//!   `0.41 u sqrt(n)` of the terms' norm, which is how far the sum moves where each of its terms is moved by
//!   `u sqrt(n)`; for terms of one sign it is `u sqrt(n)/3` of the sum.
//! * the weight: `a + e`, and so its derivatives and tangents. It may be rounded to the dtype before the second matrix
//!   product, as in [`tolerance`](crate::tolerance), and so may score gradients.
//! * vectors that go through a function of the program, and all that a recurrence takes: `a + e` in 16 bits. What is
//!   multiplied with factors before a matrix product is rounded again.
//!
//! Scores are moved by numbers that the program itself draws, so that the movement has derivatives and tangents as the
//! score has. With `δ_i` the root mean square of the movements of element `i`, and `δ_v` that of the elements of its
//! vector, which share their weights, the bound of a result of `n >= N` terms an element and of the values `r` is
//!
//! ```text
//! |δr_i| <= 12 sqrt(n/N) (δ_i + δ_v) + (e + 3 u sqrt(n)) |r_i| + 3 u sqrt(n) R + t (1 + N max|input|)
//! ```
//!
//! The second term is the rounding of the result and the sum of terms of one sign; the third covers what no relative
//! movement shows, differences of rounded numbers: a logsumexp of a single score, `1 - tanh²` near saturation, `g - Δ`
//! of a row with one key, a weight `x/|x|` that does not depend on `x`. What is left of those is as large as the roundings
//! of what was subtracted, so `R` is the largest magnitude of all results of the operation. The last term covers
//! underflow, with `t` as in [`tolerance`](crate::tolerance). In f64 the oracle makes the same errors, and the bounds are
//! doubled; and those of a recurrence once more by four, since it may take the decay between two tokens from sums of
//! logarithms that are much larger than their difference. Where a function has a kink, the movements jump over it from
//! time to time, as backends do.
//!
//! A query that sees no key has the results 0, and so have the gradients of a key that no query sees: the bound is 0.
//! Who sees whom is counted by the oracle, see `Seen`.

use std::collections::HashMap;

use natten_core::program::{Expr, Field, Graph, Program, Reduce, Row, Stage, Var};
use natten_core::reference::ReferenceBackend;
use natten_core::{DType, HostTensor, OpRequest, PlanOptions, Problem, Result, Role};

use crate::case::{copied, with_dtype};
use crate::data::uniform;
use crate::run::{HostTensors, evaluate};
use crate::tolerance::{Numbers, Roundoff};

/// How often the oracle runs on numbers that are moved.
pub const RUNS: u32 = 6;

/// What stands before the movements: they are drawn evenly from an interval, each number that a backend computes is
/// rounded a few times, and few runs may all miss a direction in which a result moves far.
const FACTOR: f64 = 12.0;

/// The bounds of every result of an operation, from its inputs as the backend gets them and the oracle's results.
///
/// # Errors
/// Those of the oracle.
pub fn bounds(
    problem: &Problem,
    request: &OpRequest,
    inputs: &HostTensors,
    values: &Numbers,
) -> Result<Numbers> {
    let Roundoff { u, .. } = Roundoff::of(problem.dtype());
    let longest = longest_sum(problem);
    let mut squares: Numbers = values.iter().map(|(&role, values)| (role, vec![0.0; values.len()])).collect();
    for run in 0..RUNS {
        let noise = Noise::new(problem, run);
        for (role, moved) in noise.run(problem, request, inputs)? {
            let elements = squares.get_mut(&role).into_iter().flatten().zip(&values[&role]);
            for ((square, value), moved) in elements.zip(moved) {
                let movement = moved - value;
                *square += if movement.is_finite() { movement * movement / f64::from(RUNS) } else { 0.0 };
            }
        }
    }
    let input = inputs.values().map(|tensor| largest(&tensor.to_f64())).fold(0.0, f64::max);
    let runs = match problem.dtype() {
        DType::F64 if problem.program().decay().is_some() => 8.0,
        DType::F64 => 2.0,
        _ => 1.0,
    };
    let seen = Seen::count(problem, inputs)?;
    let of_all = values.values().map(|values| largest(values)).fold(0.0, f64::max);
    let mut bounds = Numbers::new();
    for (role, squares) in squares {
        let values = &values[&role];
        let Roundoff { e, t, .. } = Roundoff::of(problem.dtype_of(role));
        let terms = longest.max(terms(problem, role));
        let amplify = if e > u { 1.0 } else { (terms / longest).sqrt() };
        let (sum, underflow) = (3.0 * u * terms.sqrt(), t * (1.0 + longest * input));
        let floor = sum * of_all + underflow;
        let vector = problem.shape(role).last().copied().unwrap_or(1).max(1);
        let mut of_role = Vec::with_capacity(values.len());
        for (values, squares) in values.chunks(vector).zip(squares.chunks(vector)) {
            let shared = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
            of_role.extend(values.iter().zip(squares).map(|(value, square)| {
                let value = if value.is_finite() { value.abs() } else { 0.0 };
                runs * (FACTOR * amplify * (square.sqrt() + shared) + (e + sum) * value + floor)
            }));
        }
        seen.forget_the_dead(problem, role, values, &mut of_role);
        bounds.insert(role, of_role);
    }
    Ok(bounds)
}

/// The largest finite magnitude.
fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|value| value.is_finite()).fold(0.0, |largest, value| value.abs().max(largest))
}

/// The terms of the longest sum behind an element of a vector.
fn longest_sum(problem: &Problem) -> f64 {
    let neighborhood = problem.neighborhood();
    let queries: usize = neighborhood.query_shape().iter().product();
    let keys: usize = neighborhood.key_shape().iter().product();
    let row = neighborhood.window_len() + problem.additional_tokens();
    let column = match problem.additional_tokens() {
        0 => (neighborhood.useful_pairs() / keys as u128) as usize,
        _ => queries,
    };
    let longest = [problem.head_dim(), problem.head_dim_v(), row, column * problem.heads_per_kv()];
    longest.into_iter().fold(1, usize::max) as f64
}

/// The terms of an element of a result, where they may be more than those of a vector: pairs an element.
fn terms(problem: &Problem, role: Role) -> f64 {
    let of_tables =
        matches!(role, Role::GradRpb | Role::Grad2Rpb | Role::GradCapture(_) | Role::Grad2Capture(_));
    let elements: usize = problem.shape(role).iter().product();
    if of_tables { problem.useful_pairs() as f64 / elements.max(1) as f64 } else { 1.0 }
}

/// One draw of all movements.
struct Noise {
    run: u32,
    /// Of what is computed in the accumulator.
    accumulated: f64,
    /// Of what may be rounded to the dtype.
    rounded: f64,
}

impl Noise {
    fn new(problem: &Problem, run: u32) -> Self {
        let Roundoff { u, e, .. } = Roundoff::of(problem.dtype());
        let accumulated = u * longest_sum(problem).sqrt();
        Self { run, accumulated, rounded: if e > u { accumulated + e } else { accumulated } }
    }

    /// The operation's results, everything moved.
    fn run(&self, problem: &Problem, request: &OpRequest, inputs: &HostTensors) -> Result<Numbers> {
        let wide = with_dtype(problem, DType::F64)?;
        let problem = if request.op.is_unfused() {
            wide
        } else {
            copied(&wide, wide.neighborhood().clone(), DType::F64)
                .program(self.program(wide.program())?)
                .build()?
        };
        let moved: Result<HostTensors> =
            inputs.iter().map(|(&role, tensor)| Ok((role, self.tensor(&problem, role, tensor)?))).collect();
        let results =
            evaluate(&ReferenceBackend::new(), &problem, request, &PlanOptions::default(), &moved?)?;
        Ok(crate::expected::widen(&results))
    }

    /// An input, moved; integers stay, and so do captured tensors that a mask compares.
    fn tensor(&self, problem: &Problem, role: Role, tensor: &HostTensor) -> Result<HostTensor> {
        let program = problem.program();
        let is_compared = |n: u8| program.captures_of(&[Field::Mask]).contains(&n);
        if !tensor.dtype().is_float() || matches!(role, Role::Capture(n) if is_compared(n)) {
            return tensor.cast(problem.dtype_of(role));
        }
        let goes_through_a_function = program.decay().is_some()
            || program.mods().iter().any(Option::is_some) && !matches!(role, Role::Output | Role::Logsumexp);
        let amount = if goes_through_a_function { self.rounded } else { self.accumulated };
        let stream = u64::from(self.run) << 32 | crate::data::hash(&role.to_string()) >> 32;
        HostTensor::from_fn(DType::F64, tensor.shape(), |index| {
            tensor.slice().get(index) * (1.0 + amount * (2.0 * uniform(stream, index as u64) - 1.0))
        })
    }

    /// The program with its scores, stages and weights moved.
    fn program(&self, program: &Program) -> Result<Program> {
        let mut graph = program.graph().clone();
        let g = &mut graph;
        let mut fields: Vec<(Field, Expr)> = Vec::new();
        for field in Field::ALL.into_iter().filter(|&field| field != Field::Row) {
            fields.extend(program.field(field).map(|expr| (field, expr)));
        }
        for (field, expr) in &mut fields {
            match field {
                Field::Score => {
                    let score = g.var(Var::Score);
                    let moved = self.moved(g, score, 0, self.accumulated);
                    *expr = g.substitute(*expr, &HashMap::from([(score, moved)]));
                    *expr = self.moved(g, *expr, 1, self.accumulated);
                }
                Field::Decay => *expr = self.moved(g, *expr, 2, self.rounded),
                _ => {}
            }
        }
        let x = g.var(Var::X);
        // The same in all stages and the weight, so that a row that needs one pass needs one still.
        let moved = HashMap::from([(x, self.moved(g, x, 3, self.accumulated))]);
        let mut stages: Vec<Stage> = program.row().stages.clone();
        for (stage, number) in stages.iter_mut().zip(5..) {
            stage.value = g.substitute(stage.value, &moved);
            if stage.reduce == Reduce::Sum {
                stage.value = self.moved(g, stage.value, number, self.accumulated);
            }
        }
        let weight = g.substitute(program.row().weight, &moved);
        let weight = self.moved(g, weight, 4, self.rounded);
        let mut builder = Program::builder(program.rank());
        for capture in program.captures() {
            builder = builder.capture(capture.clone());
        }
        *builder.graph() = graph;
        let builder = fields.into_iter().fold(builder, |builder, (field, expr)| builder.expr(field, expr));
        let mut row: Row = program.row().clone();
        (row.stages, row.weight) = (stages, weight);
        builder.row_function(row).build()
    }

    /// The expression times a number near 1, another one for every pair.
    fn moved(&self, g: &mut Graph, expr: Expr, place: i32, amount: f64) -> Expr {
        let (run, place) = (g.int(self.run as i32), g.int(0x5eed + place));
        let random = g.random(run, place);
        let (width, least) = (g.float(2.0 * amount), g.float(1.0 - amount));
        let scaled = g.mul(random, width);
        let factor = g.add(scaled, least);
        g.mul(expr, factor)
    }
}

/// How many keys every row has, and how many query heads every key, masks applied.
struct Seen {
    of_rows: Vec<f64>,
    of_keys: Vec<f64>,
}

impl Seen {
    /// Counts by a program of the same mask whose weights are all 1: its output over values of 1 is the number of keys of
    /// a row, and the gradient of those values the number of rows of a key. Everything is alive in a recurrence.
    fn count(problem: &Problem, inputs: &HostTensors) -> Result<Self> {
        let program = problem.program();
        let mut builder = Program::builder(program.rank());
        for capture in program.captures() {
            builder = builder.capture(capture.clone());
        }
        builder.graph().clone_from(program.graph());
        let one = builder.graph().float(1.0);
        let mut builder = builder.expr(Field::Score, one).row("x");
        if let Some(mask) = program.mask() {
            builder = builder.expr(Field::Mask, mask);
        }
        let counter = Problem::builder(problem.neighborhood().clone(), DType::F64)
            .batch(problem.batch())
            .heads(problem.heads())
            .heads_kv(problem.heads_kv())
            .program(builder.build()?)
            .build()?;
        let mut ones = HostTensors::new();
        for request in [OpRequest::forward(&counter), OpRequest::backward(&counter)] {
            for spec in counter.tensors(&request)?.iter().filter(|spec| !spec.is_output) {
                let tensor = match inputs.get(&spec.role) {
                    Some(captured) if matches!(spec.role, Role::Capture(_)) => captured.cast(spec.dtype)?,
                    _ => HostTensor::from_fn(spec.dtype, &spec.shape, |_| 1.0)?,
                };
                ones.entry(spec.role).or_insert(tensor);
            }
            let results =
                evaluate(&ReferenceBackend::new(), &counter, &request, &PlanOptions::default(), &ones)?;
            ones.extend(results);
        }
        Ok(Self { of_rows: ones[&Role::Output].to_f64(), of_keys: ones[&Role::GradValue].to_f64() })
    }

    /// Sets the bounds of those results to 0 that are 0 because there is no pair that they come from.
    fn forget_the_dead(&self, problem: &Problem, role: Role, values: &[f64], bounds: &mut [f64]) {
        let counts = match role {
            Role::Output | Role::TangentOutput | Role::TangentLogsumexp => &self.of_rows,
            Role::GradQuery | Role::Grad2Query | Role::Grad2GradOutput => &self.of_rows,
            Role::GradKey | Role::GradValue | Role::Grad2Key | Role::Grad2Value => &self.of_keys,
            _ => return,
        };
        let is_row = std::ptr::eq(counts, &self.of_rows);
        if problem.program().decay().is_some() || is_row && problem.additional_tokens() > 0 {
            return;
        }
        let vector = bounds.len() / counts.len().max(1);
        for (at, (bound, value)) in bounds.iter_mut().zip(values).enumerate() {
            if counts[at / vector] == 0.0 && *value == 0.0 {
                *bound = 0.0;
            }
        }
    }
}
