//! What an operation starts from and what is wanted of it, in terms of the vectors that kernels see: behind the vector
//! functions of queries, keys and values, where a program has them.

use natten_core::program::{Field, Given, Program};
use natten_core::{Op, OpRequest, Problem, Role};

/// Which operands have tangents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tangents {
    pub(crate) query: bool,
    pub(crate) key: bool,
    pub(crate) value: bool,
    pub(crate) rpb: bool,
    pub(crate) additional_key: bool,
    pub(crate) additional_value: bool,
    pub(crate) grad_output: bool,
    pub(crate) grad_logsumexp: bool,
    pub(crate) captures: Vec<u8>,
}

impl Tangents {
    pub(crate) fn of(problem: &Problem, request: &OpRequest) -> Self {
        let program = problem.program();
        let has = |role: Role| role.tangent().is_some_and(|tangent| request.gives(tangent));
        let captures: Vec<u8> =
            (0..program.captures().len() as u8).filter(|&n| has(Role::Capture(n))).collect();
        let through = |field: Field| program.captures_of(&[field]).iter().any(|n| captures.contains(n));
        let is_additional = problem.additional_tokens() > 0;
        Self {
            query: has(Role::Query) || through(Field::QueryMod),
            key: has(Role::Key) || through(Field::KeyMod),
            value: has(Role::Value) || through(Field::ValueMod),
            rpb: has(Role::Rpb),
            additional_key: is_additional && (has(Role::AdditionalKey) || through(Field::KeyMod)),
            additional_value: is_additional && (has(Role::AdditionalValue) || through(Field::ValueMod)),
            grad_output: has(Role::GradOutput),
            grad_logsumexp: has(Role::GradLogsumexp),
            captures,
        }
    }

    pub(crate) fn given(&self) -> Given {
        let mut given = Given::default();
        given.score = self.query || self.key || self.rpb || self.additional_key;
        given.grad = self.value || self.additional_value || self.grad_output;
        given.grad_logsumexp = self.grad_logsumexp;
        given.captures.clone_from(&self.captures);
        given
    }
}

/// Which results are wanted: gradients, or with [`Op::BackwardJvp`] their tangents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) output: bool,
    pub(crate) logsumexp: bool,
    pub(crate) query: bool,
    pub(crate) key: bool,
    pub(crate) value: bool,
    pub(crate) rpb: bool,
    pub(crate) additional_key: bool,
    pub(crate) additional_value: bool,
    /// Captured tensors that scores, rows and weights load from.
    pub(crate) captures: Vec<u8>,
}

/// The parts of a program that pairs see.
const OF_PAIRS: [Field; 3] = [Field::Score, Field::Row, Field::Post];

impl Wants {
    pub(crate) fn of(problem: &Problem, request: &OpRequest) -> Self {
        let program = problem.program();
        let result = |role: Role| match request.op {
            Op::BackwardJvp => role.second_gradient(),
            Op::Backward => role.gradient(),
            Op::ForwardJvp => role.tangent(),
            _ => Some(role),
        };
        let wants = |role: Role| result(role).is_some_and(|result| request.wants.contains(result));
        let (output, logsumexp) = match request.op {
            Op::BackwardJvp => (wants(Role::GradOutput), wants(Role::GradLogsumexp)),
            Op::Backward => (false, false),
            _ => (wants(Role::Output), wants(Role::Logsumexp)),
        };
        let captures: Vec<u8> =
            (0..program.captures().len() as u8).filter(|&n| wants(Role::Capture(n))).collect();
        let through = |field: Field| program.captures_of(&[field]).iter().any(|n| captures.contains(n));
        let is_additional = problem.additional_tokens() > 0;
        Self {
            output,
            logsumexp,
            query: wants(Role::Query) || through(Field::QueryMod),
            key: wants(Role::Key) || through(Field::KeyMod),
            value: wants(Role::Value) || through(Field::ValueMod),
            rpb: wants(Role::Rpb),
            additional_key: is_additional && (wants(Role::AdditionalKey) || through(Field::KeyMod)),
            additional_value: is_additional && (wants(Role::AdditionalValue) || through(Field::ValueMod)),
            captures: of_pairs(program, &captures),
        }
    }

    /// Whether something is wanted of the walk with stationary queries.
    pub(crate) const fn of_queries(&self) -> bool {
        self.query || self.rpb || !self.captures.is_empty()
    }

    pub(crate) const fn of_keys(&self) -> bool {
        self.key || self.value
    }

    pub(crate) const fn of_additional(&self) -> bool {
        self.additional_key || self.additional_value
    }
}

fn of_pairs(program: &Program, captures: &[u8]) -> Vec<u8> {
    let mut used = program.captures_of(&OF_PAIRS);
    used.retain(|n| captures.contains(n));
    used
}
