//! What is wanted of a problem: an operation, its results, and which of its optional inputs are given.

use std::fmt;

use super::Problem;
use crate::role::{Role, RoleSet};

macro_rules! ops {
    ($($(#[$doc:meta])* $op:ident $name:literal,)*) => {
        /// An operation on a [`Problem`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$doc])* $op,)*
        }

        impl Op {
            /// Every operation.
            pub const ALL: &[Self] = &[$(Self::$op),*];

            /// The operation's name on the command line and in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$op => $name,)*
                }
            }
        }
    };
}

ops! {
    /// `output` from the inputs; `logsumexp` where the row function has one, `final_state` of a recurrence.
    Forward "forward",
    /// Forward mode: the tangents of the results of [`Op::Forward`] from the inputs and their tangents.
    ForwardJvp "jvp",
    /// Gradients of the inputs from `grad_output`, and optionally `grad_logsumexp` and `grad_final_state`, with the
    /// `output` and `logsumexp` of the forward pass.
    Backward "backward",
    /// The tangents of the results of [`Op::Backward`]. With `Φ = ⟨grad_output, output⟩ + ⟨grad_logsumexp, logsumexp⟩ +
    /// ⟨grad_final_state, final_state⟩` and `t` the tangents, `grad2_<input>` is the tangent of `∂Φ/∂<input>`, a
    /// Hessian-vector product, and `grad2_grad_output` that of `∂Φ/∂grad_output`, which is the tangent of `output`.
    /// By the symmetry of the Hessian these are the gradients of `⟨t, ∂Φ⟩`: double backward. `output` and `logsumexp`
    /// are computed anew.
    BackwardJvp "double-backward",
    /// `attention`, the scores: `scale ⟨query, key⟩ + rpb`, -inf in slots without a key.
    Qk "qk",
    /// The tangent of `attention` from those of the inputs of [`Op::Qk`]; 0 in slots without a key.
    QkJvp "qk-jvp",
    /// Gradients of the inputs of [`Op::Qk`] from `grad_attention`, of which slots without a key are not read.
    QkBackward "qk-backward",
    /// `output` from `attention`, taken as the final weights, and the values. Slots without a key are not read.
    Av "av",
    /// The tangent of `output` from those of the inputs of [`Op::Av`].
    AvJvp "av-jvp",
    /// Gradients of the inputs of [`Op::Av`] from `grad_output`; that of `attention` is 0 in slots without a key.
    AvBackward "av-backward",
}

impl Op {
    /// Whether the operation's results are tangents, from tangents of its inputs.
    pub const fn is_forward_mode(self) -> bool {
        matches!(self, Self::ForwardJvp | Self::BackwardJvp | Self::QkJvp | Self::AvJvp)
    }

    /// Whether the operation's results are gradients, or gradients' tangents.
    pub const fn is_backward(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardJvp | Self::QkBackward | Self::AvBackward)
    }

    /// The result that the operation has for an input: its gradient, or that gradient's tangent; or for an output, where
    /// it computes outputs: the output itself, or its tangent. `None` where there is no such role.
    pub const fn result_of(self, role: Role) -> Option<Role> {
        match self {
            Self::BackwardJvp => role.second_gradient(),
            Self::Backward | Self::QkBackward | Self::AvBackward => role.gradient(),
            Self::ForwardJvp | Self::QkJvp | Self::AvJvp => role.tangent(),
            Self::Forward | Self::Qk | Self::Av => Some(role),
        }
    }

    /// Whether this is of the unfused pair, `qk` and `av`, whose attention weights lie in memory.
    pub const fn is_unfused(self) -> bool {
        matches!(self, Self::Qk | Self::QkJvp | Self::QkBackward | Self::Av | Self::AvJvp | Self::AvBackward)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An operation, which of its results are wanted, and which optional inputs are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct OpRequest {
    /// The operation.
    pub op: Op,
    /// The results to compute. What is not wanted costs nothing.
    pub wants: RoleSet,
    /// The optional inputs that are given: of [`Problem::optional_inputs_of`]. An absent one means zero.
    pub given: RoleSet,
}

impl OpRequest {
    /// An operation with every result that the problem has for it, and no optional input but those in `given`.
    pub fn of(op: Op, problem: &Problem, given: impl IntoIterator<Item = Role>) -> Self {
        let given = given.into_iter().collect();
        Self { op, wants: problem.results_of(op, given), given }
    }

    /// The forward pass: `output`, and where the problem has them `logsumexp` and `final_state`.
    pub fn forward(problem: &Problem) -> Self {
        Self::of(Op::Forward, problem, [])
    }

    /// The forward pass' tangents, from those of the inputs that `tangents` names, such as [`Role::TangentQuery`].
    pub fn forward_jvp(problem: &Problem, tangents: impl IntoIterator<Item = Role>) -> Self {
        Self::of(Op::ForwardJvp, problem, tangents)
    }

    /// The backward pass, with the gradient of every input that has one.
    pub fn backward(problem: &Problem) -> Self {
        Self::of(Op::Backward, problem, [])
    }

    /// The backward pass' tangents, from those of the inputs and cotangents that `tangents` names.
    pub fn backward_jvp(problem: &Problem, tangents: impl IntoIterator<Item = Role>) -> Self {
        Self::of(Op::BackwardJvp, problem, tangents)
    }

    /// The scores of the unfused pair.
    pub fn qk(problem: &Problem) -> Self {
        Self::of(Op::Qk, problem, [])
    }

    /// The tangent of the scores, from those of the inputs that `tangents` names.
    pub fn qk_jvp(problem: &Problem, tangents: impl IntoIterator<Item = Role>) -> Self {
        Self::of(Op::QkJvp, problem, tangents)
    }

    /// The gradients of the scores' inputs.
    pub fn qk_backward(problem: &Problem) -> Self {
        Self::of(Op::QkBackward, problem, [])
    }

    /// The output of the unfused pair.
    pub fn av(problem: &Problem) -> Self {
        Self::of(Op::Av, problem, [])
    }

    /// The tangent of the output, from those of the inputs that `tangents` names.
    pub fn av_jvp(problem: &Problem, tangents: impl IntoIterator<Item = Role>) -> Self {
        Self::of(Op::AvJvp, problem, tangents)
    }

    /// The gradients of the inputs of [`av`](Self::av).
    pub fn av_backward(problem: &Problem) -> Self {
        Self::of(Op::AvBackward, problem, [])
    }

    /// The same operation with other results wanted.
    #[must_use]
    pub fn wanting(self, wants: impl IntoIterator<Item = Role>) -> Self {
        Self { wants: wants.into_iter().collect(), ..self }
    }

    /// The same operation, with these optional inputs given beside those that were.
    #[must_use]
    pub fn giving(self, roles: impl IntoIterator<Item = Role>) -> Self {
        Self { given: roles.into_iter().fold(self.given, RoleSet::with), ..self }
    }

    /// The same operation, with `grad_logsumexp` among its inputs or not.
    #[must_use]
    pub fn with_grad_logsumexp(self, given: bool) -> Self {
        let role = Role::GradLogsumexp;
        Self { given: if given { self.given.with(role) } else { self.given.without(role) }, ..self }
    }

    /// Whether an optional input is given.
    pub fn gives(self, role: Role) -> bool {
        self.given.contains(role)
    }
}
