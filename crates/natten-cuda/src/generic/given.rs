//! What an operation starts from and what is wanted of it, in terms of the vectors that the walks see: behind the vector
//! functions of queries, keys and values, where a program has them.

use natten_core::program::{Field, Given};
use natten_core::{Op, OpRequest, Problem, Role};

/// Which operands have tangents.
#[derive(Clone, Debug, Default)]
pub(super) struct Tangents {
    pub(super) query: bool,
    pub(super) key: bool,
    pub(super) value: bool,
    pub(super) rpb: bool,
    pub(super) additional_key: bool,
    pub(super) additional_value: bool,
    pub(super) grad_output: bool,
    pub(super) grad_logsumexp: bool,
    pub(super) captures: Vec<u8>,
}

impl Tangents {
    pub(super) fn of(problem: &Problem, request: &OpRequest) -> Self {
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

    pub(super) fn given(&self) -> Given {
        let mut given = Given::default();
        given.score = self.query || self.key || self.rpb || self.additional_key;
        given.grad = self.value || self.additional_value || self.grad_output;
        given.grad_logsumexp = self.grad_logsumexp;
        given.captures.clone_from(&self.captures);
        given
    }
}

/// Which results are wanted: gradients, or with [`Op::BackwardJvp`] their tangents. Where a vector function's captured
/// tensors have a wanted gradient, so have the vectors.
#[derive(Clone, Debug, Default)]
pub(super) struct Wants {
    pub(super) output: bool,
    pub(super) query: bool,
    pub(super) key: bool,
    pub(super) value: bool,
    pub(super) rpb: bool,
    pub(super) additional_key: bool,
    pub(super) additional_value: bool,
    /// Every captured tensor.
    pub(super) captures: Vec<u8>,
}

impl Wants {
    pub(super) fn of(problem: &Problem, request: &OpRequest) -> Self {
        let program = problem.program();
        let wants =
            |role: Role| result(request.op, role).is_some_and(|result| request.wants.contains(result));
        let output = match request.op {
            Op::BackwardJvp => wants(Role::GradOutput),
            Op::Backward => false,
            _ => wants(Role::Output),
        };
        let captures: Vec<u8> =
            (0..program.captures().len() as u8).filter(|&n| wants(Role::Capture(n))).collect();
        let through = |field: Field| program.captures_of(&[field]).iter().any(|n| captures.contains(n));
        let is_additional = problem.additional_tokens() > 0;
        Self {
            output,
            query: wants(Role::Query) || through(Field::QueryMod),
            key: wants(Role::Key) || through(Field::KeyMod),
            value: wants(Role::Value) || through(Field::ValueMod),
            rpb: wants(Role::Rpb),
            additional_key: is_additional && (wants(Role::AdditionalKey) || through(Field::KeyMod)),
            additional_value: is_additional && (wants(Role::AdditionalValue) || through(Field::ValueMod)),
            captures,
        }
    }
}

/// The result that an operation has for an input, or for an output where it computes those.
pub(super) const fn result(op: Op, role: Role) -> Option<Role> {
    match op {
        Op::BackwardJvp => role.second_gradient(),
        Op::Backward | Op::QkBackward | Op::AvBackward => role.gradient(),
        Op::ForwardJvp | Op::QkJvp | Op::AvJvp => role.tangent(),
        _ => Some(role),
    }
}
