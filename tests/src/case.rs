//! A [`Case`]: one problem, the operations to run on it, its numbers, and how they lie in memory.

use natten_core::program::{Capture, Field, Program};
use natten_core::{DType, HostTensor, Op, OpRequest, PlanOptions, Problem, ProblemBuilder, Result, Role};

use crate::compare::position;
use crate::data::{Data, hash};
use crate::memory::Layout;

/// One problem to run, with everything that decides the result: two runs of a case are the same to the last bit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// The case's name: unique, lower case, words joined by hyphens.
    pub name: String,
    /// What to compute.
    pub problem: Problem,
    /// The operations, each run and compared by itself.
    pub requests: Vec<OpRequest>,
    /// What is asked of the planner. A backend may refuse options; it may not ignore them with wrong results.
    pub options: PlanOptions,
    /// How inputs and outputs lie in memory.
    pub layout: Layout,
    /// The numbers.
    pub data: Data,
}

impl Case {
    /// The forward and the backward pass of `problem`, with every result, on normally distributed numbers whose seed is
    /// the hash of `name`.
    pub fn new(name: impl Into<String>, problem: Problem) -> Self {
        let name = name.into();
        Self {
            requests: vec![OpRequest::forward(&problem), OpRequest::backward(&problem)],
            options: PlanOptions::default(),
            layout: Layout::HeadsLast,
            data: Data::new(hash(&name)),
            name,
            problem,
        }
    }

    /// The case with other operations.
    #[must_use]
    pub fn requests(self, requests: impl IntoIterator<Item = OpRequest>) -> Self {
        Self { requests: requests.into_iter().collect(), ..self }
    }

    /// The case with the four fused operations, every optional input given: all tangents and all cotangents.
    #[must_use]
    pub fn fused(self) -> Self {
        let ops = [Op::Forward, Op::ForwardJvp, Op::Backward, Op::BackwardJvp];
        let requests = ops.map(|op| everything(&self.problem, op));
        self.requests(requests)
    }

    /// The case with the six operations of the unfused pair, every optional input given.
    #[must_use]
    pub fn unfused(self) -> Self {
        let ops = Op::ALL.iter().filter(|op| op.is_unfused());
        let requests: Vec<OpRequest> = ops.map(|&op| everything(&self.problem, op)).collect();
        self.requests(requests)
    }

    /// The case with a cotangent of the logsumexp among the inputs of every backward pass.
    #[must_use]
    pub fn grad_logsumexp(mut self) -> Self {
        for request in self.requests.iter_mut().filter(|request| request.op == Op::Backward) {
            *request = request.with_grad_logsumexp(true);
        }
        self
    }

    /// The case with other options of the planner.
    #[must_use]
    pub fn options(self, options: PlanOptions) -> Self {
        Self { options, ..self }
    }

    /// The case with tensors that lie otherwise in memory.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The case with other numbers.
    #[must_use]
    pub fn data(self, data: Data) -> Self {
        Self { data, ..self }
    }

    /// The case with a captured tensor given in full, by its row-major index.
    ///
    /// # Panics
    /// Where the program has none of this name: a mistake in the case.
    #[must_use]
    pub fn fill(mut self, name: &str, element: impl FnMut(usize) -> f64) -> Self {
        let captured = self.problem.role(name).map(|role| {
            let (dtype, shape) = (self.problem.dtype_of(role), self.problem.shape(role));
            (role, HostTensor::from_fn(dtype, &shape, element))
        });
        let Some((role, Ok(tensor))) = captured else { panic!("{} captures no {name}", self.name) };
        self.data = self.data.given(role, tensor);
        self
    }

    /// The case with one number of one input replaced. `at` has one index an axis of the tensor.
    ///
    /// # Panics
    /// Where the problem has no such element: a mistake in the case.
    #[must_use]
    pub fn plant(mut self, role: Role, at: &[usize], value: f64) -> Self {
        let shape = self.problem.shape(role);
        assert!(
            at.len() == shape.len() && at.iter().zip(&shape).all(|(index, extent)| index < extent),
            "{}: {role} of shape {shape:?} has no element {at:?}",
            self.name
        );
        let index = at.iter().zip(&shape).fold(0, |flat, (index, extent)| flat * extent + index);
        self.data = self.data.plant(role, index, value);
        self
    }

    /// The problem in one line, and whatever else of the case is not as by default: layout, tiles, the seed, and the
    /// numbers that were planted.
    pub fn describe(&self) -> String {
        let mut line = describe(&self.problem);
        if self.layout != Layout::HeadsLast {
            line += &format!(", {}", self.layout.name());
        }
        for (name, tile) in [("query", &self.options.query_tile), ("key", &self.options.key_tile)] {
            if let Some(tile) = tile {
                line += &format!(", {name} tile {tile:?}");
            }
        }
        if self.data.seed() != hash(&self.name) {
            line += &format!(", seed {}", self.data.seed());
        }
        for (role, index, value) in self.data.plants() {
            line += &format!(", {role}{:?} = {value}", position(*index, &self.problem.shape(*role)));
        }
        line
    }

    /// An input, rounded to the problem's dtype. `output` and `logsumexp` are no data; the oracle makes them.
    ///
    /// # Errors
    /// [`natten_core::Error::OutOfMemory`].
    pub fn input(&self, role: Role) -> Result<HostTensor> {
        self.data.tensor(role, self.problem.dtype_of(role), &self.problem.shape(role))
    }
}

/// An operation with every optional input given and every result wanted.
pub(crate) fn everything(problem: &Problem, op: Op) -> OpRequest {
    let mut request = OpRequest::forward(problem);
    request.op = op;
    request.given = problem.optional_inputs_of(op);
    request.wants = problem.results_of(op, request.given);
    request
}

/// The same problem in another dtype, that of the floats that its program captures too.
///
/// # Errors
/// [`natten_core::Error::Invalid`] where the bytes of a wider dtype overflow.
pub fn with_dtype(problem: &Problem, dtype: DType) -> Result<Problem> {
    let captures = problem.program().captures().iter().cloned();
    let captures = captures.map(|mut capture| {
        capture.dtype = if capture.dtype.is_float() { dtype } else { capture.dtype };
        capture
    });
    let program = with_captures(problem.program(), captures)?;
    let builder = copied(problem, problem.neighborhood().clone(), dtype);
    builder.program(program).build()
}

/// The same program over other captured tensors, in the same order and of the same ranks.
pub(crate) fn with_captures(
    program: &Program,
    captures: impl IntoIterator<Item = Capture>,
) -> Result<Program> {
    let mut builder = Program::builder(program.rank());
    for capture in captures {
        builder = builder.capture(capture);
    }
    builder.graph().clone_from(program.graph());
    for field in Field::ALL.into_iter().filter(|&field| field != Field::Row) {
        if let Some(expr) = program.field(field) {
            builder = builder.expr(field, expr);
        }
    }
    builder.row_function(program.row().clone()).build()
}

/// The same problem over another neighborhood and in another dtype.
pub(crate) fn with_neighborhood(
    problem: &Problem,
    neighborhood: natten_core::geometry::Neighborhood,
    dtype: DType,
) -> Result<Problem> {
    copied(problem, neighborhood, dtype).build()
}

/// A builder of the same problem over another neighborhood and in another dtype.
pub(crate) fn copied(
    problem: &Problem,
    neighborhood: natten_core::geometry::Neighborhood,
    dtype: DType,
) -> ProblemBuilder {
    Problem::builder(neighborhood, dtype)
        .batch(problem.batch())
        .heads(problem.heads())
        .heads_kv(problem.heads_kv())
        .head_dim(problem.head_dim())
        .head_dim_v(problem.head_dim_v())
        .additional_tokens(problem.additional_tokens())
        .relative_positional_bias(problem.has_rpb())
        .scale(Some(problem.scale()))
        .program(problem.program().clone())
        .initial_state(problem.has_initial_state())
}

/// A problem in one line: `f32 9x11 kernel 5x3 causal true,false, batch 1, heads 2/1, head_dim 8`. What is as by default
/// is left out.
pub fn describe(problem: &Problem) -> String {
    let mut line = format!("{} {}, batch {}", problem.dtype(), problem.neighborhood(), problem.batch());
    line += &match problem.heads_per_kv() {
        1 => format!(", heads {}", problem.heads()),
        _ => format!(", heads {}/{}", problem.heads(), problem.heads_kv()),
    };
    line += &match problem.head_dim_v() == problem.head_dim() {
        true => format!(", head_dim {}", problem.head_dim()),
        false => format!(", head_dim {}/{}", problem.head_dim(), problem.head_dim_v()),
    };
    if problem.additional_tokens() > 0 {
        line += &format!(", {} additional tokens", problem.additional_tokens());
    }
    if problem.has_rpb() {
        line += ", rpb";
    }
    if problem.scale() != (problem.head_dim() as f64).powf(-0.5) {
        line += &format!(", scale {}", problem.scale());
    }
    if problem.has_initial_state() {
        line += ", initial state";
    }
    let program = problem.program();
    if !program.is_plain_softmax() {
        for capture in program.captures() {
            line += &format!(", {} {} {:?}", capture.dtype, capture.name, capture.shape);
        }
        line += &format!(", {}", program.to_string().trim_end().replace('\n', " | "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::geometry::{AxisParams, Neighborhood};

    #[test]
    fn a_problem_reads_as_one_line() {
        let window = Neighborhood::new(&[AxisParams::new(9, 5).causal(true)]).unwrap();
        let builder = Problem::builder(window, DType::Bf16).batch(2).heads(4).heads_kv(2).head_dim(8);
        let problem =
            builder.head_dim_v(3).additional_tokens(5).relative_positional_bias(true).scale(Some(0.0));
        assert_eq!(
            describe(&problem.build().unwrap()),
            "bf16 9 kernel 5 causal true, batch 2, heads 4/2, head_dim 8/3, 5 additional tokens, rpb, scale 0"
        );
    }

    #[test]
    fn planted_numbers_are_where_they_were_put() {
        let window = Neighborhood::new(&[AxisParams::new(4, 3)]).unwrap();
        let problem = Problem::builder(window, DType::F32).heads(2).head_dim(3).build().unwrap();
        let case = Case::new("planted", problem).plant(Role::Key, &[0, 2, 1, 0], f64::NAN);
        let key = case.input(Role::Key).unwrap().to_f64();
        let nans: Vec<usize> = (0..key.len()).filter(|&i| key[i].is_nan()).collect();
        assert_eq!(nans, [2 * 6 + 3]);
        let line =
            case.clone().layout(Layout::Gapped).options(PlanOptions::default().key_tile(&[3])).describe();
        assert!(line.ends_with("head_dim 3, gapped, key tile [3], key[0, 2, 1, 0] = NaN"), "{line}");
        assert_eq!(
            case.input(Role::Key).unwrap().to_le_bytes(),
            case.input(Role::Key).unwrap().to_le_bytes()
        );
    }
}
