//! What a tensor is in an operation, and the one table of names that files, errors and reports use.

use std::fmt;

/// What a tensor is in an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// The queries.
    Query,
    /// The keys.
    Key,
    /// The values.
    Value,
    /// The relative positional bias, added to the scaled scores.
    Rpb,
    /// Keys that every query sees beside its window.
    AdditionalKey,
    /// The values of the additional keys.
    AdditionalValue,
    /// The attention's output.
    Output,
    /// The natural logarithm of the sum of the exponentials of a row's scores.
    Logsumexp,
    /// The cotangent of the output.
    GradOutput,
    /// The cotangent of the logsumexp.
    GradLogsumexp,
    /// The gradient of the queries.
    GradQuery,
    /// The gradient of the keys.
    GradKey,
    /// The gradient of the values.
    GradValue,
    /// The gradient of the relative positional bias, summed over the batch.
    GradRpb,
    /// The gradient of the additional keys.
    GradAdditionalKey,
    /// The gradient of the additional values.
    GradAdditionalValue,
}

impl Role {
    /// Every role, in the stable order of [`Problem::tensors`](crate::Problem::tensors).
    pub const ALL: [Self; 16] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Rpb,
        Self::AdditionalKey,
        Self::AdditionalValue,
        Self::Output,
        Self::Logsumexp,
        Self::GradOutput,
        Self::GradLogsumexp,
        Self::GradQuery,
        Self::GradKey,
        Self::GradValue,
        Self::GradRpb,
        Self::GradAdditionalKey,
        Self::GradAdditionalValue,
    ];

    /// The tensor's name in files, errors and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Rpb => "rpb",
            Self::AdditionalKey => "additional_key",
            Self::AdditionalValue => "additional_value",
            Self::Output => "output",
            Self::Logsumexp => "logsumexp",
            Self::GradOutput => "grad_output",
            Self::GradLogsumexp => "grad_logsumexp",
            Self::GradQuery => "grad_query",
            Self::GradKey => "grad_key",
            Self::GradValue => "grad_value",
            Self::GradRpb => "grad_rpb",
            Self::GradAdditionalKey => "grad_additional_key",
            Self::GradAdditionalValue => "grad_additional_value",
        }
    }

    /// The input that this is the gradient of.
    pub const fn gradient_of(self) -> Option<Self> {
        match self {
            Self::GradQuery => Some(Self::Query),
            Self::GradKey => Some(Self::Key),
            Self::GradValue => Some(Self::Value),
            Self::GradRpb => Some(Self::Rpb),
            Self::GradAdditionalKey => Some(Self::AdditionalKey),
            Self::GradAdditionalValue => Some(Self::AdditionalValue),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`Role`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RoleSet(u32);

impl RoleSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Whether `role` is in the set.
    pub const fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u32) != 0
    }

    /// The set with `role` in it.
    #[must_use]
    pub const fn with(self, role: Role) -> Self {
        Self(self.0 | 1 << role as u32)
    }

    /// The set without `role`.
    #[must_use]
    pub const fn without(self, role: Role) -> Self {
        Self(self.0 & !(1 << role as u32))
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
