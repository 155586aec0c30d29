//! What an operation starts from and what is wanted of it, in terms of the vectors that the walks see: behind the vector
//! functions of queries, keys and values, where a program has them.

use natten_core::program::{Field, Given};
use natten_core::{Op, OpRequest, Problem, Role};

/// Which of the vectors, and of what else pairs are made of, have something: a tangent, or a wanted gradient.
#[derive(Clone, Debug, Default)]
pub(super) struct Operands {
    pub(super) query: bool,
    pub(super) key: bool,
    pub(super) value: bool,
    pub(super) rpb: bool,
    /// Captured tensors, by number.
    pub(super) captures: Vec<u8>,
}

impl Operands {
    /// Those for which `has` holds; a vector also where a captured tensor of its function has.
    fn of(problem: &Problem, has: impl Fn(Role) -> bool) -> Self {
        let program = problem.program();
        let captures: Vec<u8> =
            (0..program.captures().len() as u8).filter(|&n| has(Role::Capture(n))).collect();
        let through = |field: Field| program.captures_of(&[field]).iter().any(|n| captures.contains(n));
        Self {
            query: has(Role::Query) || through(Field::QueryMod),
            key: has(Role::Key) || has(Role::AdditionalKey) || through(Field::KeyMod),
            value: has(Role::Value) || has(Role::AdditionalValue) || through(Field::ValueMod),
            rpb: has(Role::Rpb),
            captures,
        }
    }

    /// What has tangents.
    pub(super) fn tangents(problem: &Problem, request: &OpRequest) -> Self {
        Self::of(problem, |role| role.tangent().is_some_and(|tangent| request.gives(tangent)))
    }

    /// What has a gradient that is wanted.
    pub(super) fn wanted(problem: &Problem, request: &OpRequest) -> Self {
        Self::of(problem, |role| {
            result(request.op, role).is_some_and(|result| request.wants.contains(result))
        })
    }

    /// These as tangents that functions are pushed along.
    pub(super) fn given(&self, request: &OpRequest) -> Given {
        let mut given = Given::default();
        given.score = self.query || self.key || self.rpb;
        given.grad = self.value || request.gives(Role::TangentGradOutput);
        given.grad_logsumexp = request.gives(Role::TangentGradLogsumexp);
        given.captures.clone_from(&self.captures);
        given
    }
}

/// The result that a backward operation has for an input: its gradient, or that's tangent.
pub(super) const fn result(op: Op, role: Role) -> Option<Role> {
    match op {
        Op::BackwardJvp => role.second_gradient(),
        Op::Backward | Op::QkBackward | Op::AvBackward => role.gradient(),
        _ => None,
    }
}
