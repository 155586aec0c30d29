//! What an operation starts from and what is wanted of it, in terms of the vectors that pairs see: behind the vector
//! functions of queries, keys and values, where a program has them.

use super::{Field, Given};
use crate::problem::{OpRequest, Problem};
use crate::role::Role;

/// Of what attention is made of, that which has something: a tangent, or a result that is wanted. A vector has it too where
/// a captured tensor of its vector function has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Involved {
    /// The queries.
    pub query: bool,
    /// The keys of windows.
    pub key: bool,
    /// Their values.
    pub value: bool,
    /// The keys of additional tokens.
    pub additional_key: bool,
    /// Their values.
    pub additional_value: bool,
    /// The relative positional bias.
    pub rpb: bool,
    /// The output; of a backward operation, its cotangent.
    pub output: bool,
    /// The logsumexp; of a backward operation, its cotangent.
    pub logsumexp: bool,
    /// Captured tensors, by number.
    pub captures: Vec<u8>,
}

impl Involved {
    /// Those that have tangents.
    pub fn tangents(problem: &Problem, request: &OpRequest) -> Self {
        let has = |role: Role| role.tangent().is_some_and(|tangent| request.gives(tangent));
        Self::of(problem, has, [Role::GradOutput, Role::GradLogsumexp])
    }

    /// Those whose result is wanted: as [`Op::result_of`](crate::Op::result_of) has it.
    pub fn wanted(problem: &Problem, request: &OpRequest) -> Self {
        let has =
            |role: Role| request.op.result_of(role).is_some_and(|result| request.wants.contains(result));
        let outputs = match request.op.is_backward() {
            true => [Role::GradOutput, Role::GradLogsumexp],
            false => [Role::Output, Role::Logsumexp],
        };
        Self::of(problem, has, outputs)
    }

    fn of(problem: &Problem, has: impl Fn(Role) -> bool, [output, logsumexp]: [Role; 2]) -> Self {
        let program = problem.program();
        let captures: Vec<u8> =
            (0..program.captures().len() as u8).filter(|&n| has(Role::Capture(n))).collect();
        let through = |field: Field| program.captures_of(&[field]).iter().any(|n| captures.contains(n));
        let is_additional = problem.additional_tokens() > 0;
        Self {
            query: has(Role::Query) || through(Field::QueryMod),
            key: has(Role::Key) || through(Field::KeyMod),
            value: has(Role::Value) || through(Field::ValueMod),
            additional_key: is_additional && (has(Role::AdditionalKey) || through(Field::KeyMod)),
            additional_value: is_additional && (has(Role::AdditionalValue) || through(Field::ValueMod)),
            rpb: has(Role::Rpb),
            output: has(output),
            logsumexp: has(logsumexp),
            captures,
        }
    }

    /// These as tangents that the functions of a pair are pushed along.
    pub fn given(&self) -> Given {
        Given {
            score: self.query || self.key || self.additional_key || self.rpb,
            grad: self.value || self.additional_value || self.output,
            grad_logsumexp: self.logsumexp,
            captures: self.captures.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::geometry::{AxisParams, Neighborhood};
    use crate::problem::Op;
    use crate::program::{Capture, Program};

    fn problem() -> Problem {
        let window = Neighborhood::new(&[AxisParams::new(8, 3)]).unwrap();
        let program = Program::builder(1)
            .capture(Capture::new("gain", &[4], DType::F32))
            .capture(Capture::new("slope", &[2], DType::F32))
            .key_mod("x * gain[d]")
            .score("score * slope[h]")
            .build()
            .unwrap();
        let builder = Problem::builder(window, DType::F32).heads(2).head_dim(4);
        builder.program(program).additional_tokens(1).build().unwrap()
    }

    #[test]
    fn a_vector_has_what_the_captured_tensors_of_its_function_have() {
        let problem = problem();
        let request = OpRequest::of(Op::ForwardJvp, &problem, [Role::TangentCapture(0), Role::TangentValue]);
        let tangents = Involved::tangents(&problem, &request);
        assert!(tangents.key && tangents.additional_key && tangents.value && !tangents.query);
        assert!(!tangents.additional_value && !tangents.output);
        let given = tangents.given();
        assert_eq!((given.score, given.grad, given.captures), (true, true, vec![0]));
    }

    #[test]
    fn results_are_those_of_the_operation() {
        let problem = problem();
        let mut request = OpRequest::backward(&problem);
        request.wants = [Role::GradQuery, Role::GradCapture(1)].into_iter().collect();
        let wanted = Involved::wanted(&problem, &request);
        assert!(wanted.query && !wanted.key && !wanted.output);
        assert_eq!(wanted.captures, [1]);
        let mut request = OpRequest::of(Op::BackwardJvp, &problem, [Role::TangentQuery]);
        request.wants = [Role::Grad2GradOutput].into_iter().collect();
        let wanted = Involved::wanted(&problem, &request);
        assert!(wanted.output && !wanted.query && wanted.captures.is_empty());
    }
}
