//! What a tensor is in an operation, and the one table of names that files, errors and reports use.

use std::fmt;

/// The most captured tensors of a program.
pub const MAX_CAPTURES: usize = 16;

macro_rules! roles {
    ($($(#[$doc:meta])* $role:ident $name:literal,)*; $($(#[$captured_doc:meta])* $captured:ident $captured_name:literal,)*) => {
        /// What a tensor is in an operation. Captured tensors go by their number in the program; their names are the
        /// program's, and [`TensorSpec::name`](crate::TensorSpec::name) has them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Role {
            $($(#[$doc])* $role,)*
            $($(#[$captured_doc])* $captured(u8),)*
        }

        const FIXED: &[Role] = &[$(Role::$role),*];

        impl Role {
            /// The tensor's name in files, errors and reports; of a captured tensor what it is, without its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$role => $name,)*
                    $(Self::$captured(_) => $captured_name,)*
                }
            }
        }
    };
}

roles! {
    /// The queries.
    Query "query",
    /// The keys.
    Key "key",
    /// The values.
    Value "value",
    /// The relative positional bias, added to the scaled scores.
    Rpb "rpb",
    /// Keys that every query sees beside its window.
    AdditionalKey "additional_key",
    /// The values of the additional keys.
    AdditionalValue "additional_value",
    /// The state before the first token of a recurrence.
    InitialState "initial_state",
    /// Scores, or weights, of every query's window: what `qk` gives and `av` takes.
    Attention "attention",
    /// The attention's output.
    Output "output",
    /// The natural logarithm of the sum of the exponentials of a row's scores.
    Logsumexp "logsumexp",
    /// The state after the last token of a recurrence.
    FinalState "final_state",
    /// The cotangent of the output.
    GradOutput "grad_output",
    /// The cotangent of the logsumexp.
    GradLogsumexp "grad_logsumexp",
    /// The cotangent of the final state.
    GradFinalState "grad_final_state",
    /// The gradient of the queries.
    GradQuery "grad_query",
    /// The gradient of the keys.
    GradKey "grad_key",
    /// The gradient of the values.
    GradValue "grad_value",
    /// The gradient of the relative positional bias, summed over the batch.
    GradRpb "grad_rpb",
    /// The gradient of the additional keys.
    GradAdditionalKey "grad_additional_key",
    /// The gradient of the additional values.
    GradAdditionalValue "grad_additional_value",
    /// The gradient of the initial state.
    GradInitialState "grad_initial_state",
    /// The gradient of the attention weights; for `qk` their cotangent.
    GradAttention "grad_attention",
    /// The tangent of the queries.
    TangentQuery "tangent_query",
    /// The tangent of the keys.
    TangentKey "tangent_key",
    /// The tangent of the values.
    TangentValue "tangent_value",
    /// The tangent of the relative positional bias.
    TangentRpb "tangent_rpb",
    /// The tangent of the additional keys.
    TangentAdditionalKey "tangent_additional_key",
    /// The tangent of the additional values.
    TangentAdditionalValue "tangent_additional_value",
    /// The tangent of the initial state.
    TangentInitialState "tangent_initial_state",
    /// The tangent of the attention weights.
    TangentAttention "tangent_attention",
    /// The tangent of the output.
    TangentOutput "tangent_output",
    /// The tangent of the logsumexp.
    TangentLogsumexp "tangent_logsumexp",
    /// The tangent of the final state.
    TangentFinalState "tangent_final_state",
    /// The tangent of the cotangent of the output.
    TangentGradOutput "tangent_grad_output",
    /// The tangent of the cotangent of the logsumexp.
    TangentGradLogsumexp "tangent_grad_logsumexp",
    /// The tangent of the cotangent of the final state.
    TangentGradFinalState "tangent_grad_final_state",
    /// The tangent of the gradient of the queries: a Hessian-vector product.
    Grad2Query "grad2_query",
    /// The tangent of the gradient of the keys: a Hessian-vector product.
    Grad2Key "grad2_key",
    /// The tangent of the gradient of the values: a Hessian-vector product.
    Grad2Value "grad2_value",
    /// The tangent of the gradient of the relative positional bias, summed over the batch: a Hessian-vector product.
    Grad2Rpb "grad2_rpb",
    /// The tangent of the gradient of the additional keys: a Hessian-vector product.
    Grad2AdditionalKey "grad2_additional_key",
    /// The tangent of the gradient of the additional values: a Hessian-vector product.
    Grad2AdditionalValue "grad2_additional_value",
    /// The tangent of the gradient of the initial state: a Hessian-vector product.
    Grad2InitialState "grad2_initial_state",
    /// The second gradient of the cotangent of the output: the tangent of the output.
    Grad2GradOutput "grad2_grad_output",
    /// The second gradient of the cotangent of the logsumexp: the tangent of the logsumexp.
    Grad2GradLogsumexp "grad2_grad_logsumexp",
    /// The second gradient of the cotangent of the final state: the tangent of the final state.
    Grad2GradFinalState "grad2_grad_final_state",
    ;
    /// A captured tensor of the program, by its number.
    Capture "capture",
    /// The gradient of a captured tensor.
    GradCapture "grad_capture",
    /// The tangent of a captured tensor.
    TangentCapture "tangent_capture",
    /// The tangent of the gradient of a captured tensor.
    Grad2Capture "grad2_capture",
}

/// Roles in all, captured tensors counted.
const COUNT: usize = FIXED.len() + 4 * MAX_CAPTURES;

impl Role {
    /// Every role, in the order of their declaration, captured tensors behind the others.
    pub const ALL: [Self; COUNT] = {
        let mut all = [Self::Query; COUNT];
        let mut at = 0;
        while at < COUNT {
            let captured = at.saturating_sub(FIXED.len());
            let number = (captured % MAX_CAPTURES) as u8;
            all[at] = match (at < FIXED.len(), captured / MAX_CAPTURES) {
                (true, _) => FIXED[at],
                (_, 0) => Self::Capture(number),
                (_, 1) => Self::GradCapture(number),
                (_, 2) => Self::TangentCapture(number),
                _ => Self::Grad2Capture(number),
            };
            at += 1;
        }
        all
    };

    /// The place in [`ALL`](Self::ALL).
    fn index(self) -> usize {
        let captured = |kind: usize, number: u8| FIXED.len() + kind * MAX_CAPTURES + number as usize;
        match self {
            Self::Capture(number) => captured(0, number),
            Self::GradCapture(number) => captured(1, number),
            Self::TangentCapture(number) => captured(2, number),
            Self::Grad2Capture(number) => captured(3, number),
            fixed => FIXED.iter().position(|&role| role == fixed).unwrap_or(0),
        }
    }

    /// The cotangent of an output, or the gradient of an input.
    pub const fn gradient(self) -> Option<Self> {
        Some(match self {
            Self::Output => Self::GradOutput,
            Self::Logsumexp => Self::GradLogsumexp,
            Self::FinalState => Self::GradFinalState,
            Self::Query => Self::GradQuery,
            Self::Key => Self::GradKey,
            Self::Value => Self::GradValue,
            Self::Rpb => Self::GradRpb,
            Self::AdditionalKey => Self::GradAdditionalKey,
            Self::AdditionalValue => Self::GradAdditionalValue,
            Self::InitialState => Self::GradInitialState,
            Self::Attention => Self::GradAttention,
            Self::Capture(n) => Self::GradCapture(n),
            _ => return None,
        })
    }

    /// The tensor that this is the gradient or the cotangent of.
    pub const fn gradient_of(self) -> Option<Self> {
        Some(match self {
            Self::GradOutput => Self::Output,
            Self::GradLogsumexp => Self::Logsumexp,
            Self::GradFinalState => Self::FinalState,
            Self::GradQuery => Self::Query,
            Self::GradKey => Self::Key,
            Self::GradValue => Self::Value,
            Self::GradRpb => Self::Rpb,
            Self::GradAdditionalKey => Self::AdditionalKey,
            Self::GradAdditionalValue => Self::AdditionalValue,
            Self::GradInitialState => Self::InitialState,
            Self::GradAttention => Self::Attention,
            Self::GradCapture(n) => Self::Capture(n),
            _ => return None,
        })
    }

    /// The tangent of an input, of an output, or of an output's cotangent.
    pub const fn tangent(self) -> Option<Self> {
        Some(match self {
            Self::Query => Self::TangentQuery,
            Self::Key => Self::TangentKey,
            Self::Value => Self::TangentValue,
            Self::Rpb => Self::TangentRpb,
            Self::AdditionalKey => Self::TangentAdditionalKey,
            Self::AdditionalValue => Self::TangentAdditionalValue,
            Self::InitialState => Self::TangentInitialState,
            Self::Attention => Self::TangentAttention,
            Self::Output => Self::TangentOutput,
            Self::Logsumexp => Self::TangentLogsumexp,
            Self::FinalState => Self::TangentFinalState,
            Self::GradOutput => Self::TangentGradOutput,
            Self::GradLogsumexp => Self::TangentGradLogsumexp,
            Self::GradFinalState => Self::TangentGradFinalState,
            Self::Capture(n) => Self::TangentCapture(n),
            _ => return None,
        })
    }

    /// The tensor that this is the tangent of.
    pub const fn tangent_of(self) -> Option<Self> {
        Some(match self {
            Self::TangentQuery => Self::Query,
            Self::TangentKey => Self::Key,
            Self::TangentValue => Self::Value,
            Self::TangentRpb => Self::Rpb,
            Self::TangentAdditionalKey => Self::AdditionalKey,
            Self::TangentAdditionalValue => Self::AdditionalValue,
            Self::TangentInitialState => Self::InitialState,
            Self::TangentAttention => Self::Attention,
            Self::TangentOutput => Self::Output,
            Self::TangentLogsumexp => Self::Logsumexp,
            Self::TangentFinalState => Self::FinalState,
            Self::TangentGradOutput => Self::GradOutput,
            Self::TangentGradLogsumexp => Self::GradLogsumexp,
            Self::TangentGradFinalState => Self::GradFinalState,
            Self::TangentCapture(n) => Self::Capture(n),
            _ => return None,
        })
    }

    /// The tangent of an input's gradient; the second gradient of an output's cotangent.
    pub const fn second_gradient(self) -> Option<Self> {
        Some(match self {
            Self::Query => Self::Grad2Query,
            Self::Key => Self::Grad2Key,
            Self::Value => Self::Grad2Value,
            Self::Rpb => Self::Grad2Rpb,
            Self::AdditionalKey => Self::Grad2AdditionalKey,
            Self::AdditionalValue => Self::Grad2AdditionalValue,
            Self::InitialState => Self::Grad2InitialState,
            Self::GradOutput => Self::Grad2GradOutput,
            Self::GradLogsumexp => Self::Grad2GradLogsumexp,
            Self::GradFinalState => Self::Grad2GradFinalState,
            Self::Capture(n) => Self::Grad2Capture(n),
            _ => return None,
        })
    }

    /// The tensor that this is the second gradient of.
    pub const fn second_gradient_of(self) -> Option<Self> {
        Some(match self {
            Self::Grad2Query => Self::Query,
            Self::Grad2Key => Self::Key,
            Self::Grad2Value => Self::Value,
            Self::Grad2Rpb => Self::Rpb,
            Self::Grad2AdditionalKey => Self::AdditionalKey,
            Self::Grad2AdditionalValue => Self::AdditionalValue,
            Self::Grad2InitialState => Self::InitialState,
            Self::Grad2GradOutput => Self::GradOutput,
            Self::Grad2GradLogsumexp => Self::GradLogsumexp,
            Self::Grad2GradFinalState => Self::GradFinalState,
            Self::Grad2Capture(n) => Self::Capture(n),
            _ => return None,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capture(n) | Self::GradCapture(n) | Self::TangentCapture(n) | Self::Grad2Capture(n) => {
                write!(f, "{}[{n}]", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

/// A set of [`Role`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RoleSet(u128);

const _: () = assert!(COUNT <= u128::BITS as usize, "a bit a role");

impl RoleSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Whether `role` is in the set.
    pub fn contains(self, role: Role) -> bool {
        self.0 & (1 << role.index()) != 0
    }

    /// The set with `role` in it.
    #[must_use]
    pub fn with(self, role: Role) -> Self {
        Self(self.0 | 1 << role.index())
    }

    /// The set without `role`.
    #[must_use]
    pub fn without(self, role: Role) -> Self {
        Self(self.0 & !(1 << role.index()))
    }

    /// Whether no role is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The roles, in the order of [`Role::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |&role| self.contains(role))
    }
}

impl FromIterator<Role> for RoleSet {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        roles.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for RoleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_bit_and_a_way_back() {
        for (at, role) in Role::ALL.into_iter().enumerate() {
            assert_eq!(role.index(), at);
            for (to, back) in [
                (role.gradient(), Role::gradient_of as fn(Role) -> Option<Role>),
                (role.tangent(), Role::tangent_of),
                (role.second_gradient(), Role::second_gradient_of),
            ] {
                if let Some(to) = to {
                    assert_eq!(back(to), Some(role));
                }
            }
        }
        assert_eq!(Role::Grad2Capture(3).to_string(), "grad2_capture[3]");
        assert_eq!(Role::TangentGradOutput.name(), "tangent_grad_output");
    }
}
