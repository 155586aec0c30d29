//! What is known of an expression over a box, and the graph's operations on that.

use super::real::Real;
use super::whole::Whole;
use crate::program::expr::{Binary, Compare, Type, Unary};

/// The truth values that a condition takes over a box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Truth {
    pub(super) may_fail: bool,
    pub(super) may_hold: bool,
}

/// What is known of an expression over a box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Real(Real),
    Whole(Whole),
    Truth(Truth),
}

impl Value {
    /// Nothing known.
    pub(super) const fn unknown(ty: Type) -> Self {
        match ty {
            Type::F => Self::Real(Real::UNKNOWN),
            Type::I => Self::Whole(Whole::UNKNOWN),
            Type::B => Self::Truth(Truth::UNKNOWN),
        }
    }

    pub(super) const fn ty(self) -> Type {
        match self {
            Self::Real(_) => Type::F,
            Self::Whole(_) => Type::I,
            Self::Truth(_) => Type::B,
        }
    }

    pub(super) const fn truth(self) -> Truth {
        match self {
            Self::Truth(truth) => truth,
            _ => Truth::UNKNOWN,
        }
    }

    pub(super) fn unary(op: Unary, a: Self) -> Self {
        match (op, a) {
            (Unary::Not, Self::Truth(a)) => Self::Truth(Truth { may_fail: a.may_hold, may_hold: a.may_fail }),
            (Unary::ToFloat, Self::Whole(a)) => Self::Real(Real::rounded(a.lo as f64, a.hi as f64)),
            (Unary::ToFloat, _) => Self::Real(Real::UNKNOWN),
            (Unary::ToInt, Self::Real(a)) => Self::Whole(a.to_whole()),
            (Unary::ToInt, _) => Self::Whole(Whole::UNKNOWN),
            (Unary::StopGrad, a) => a,
            (_, Self::Real(a)) => Self::Real(a.unary(op)),
            (Unary::Neg, Self::Whole(a)) => Self::Whole(a.neg()),
            (Unary::Abs, Self::Whole(a)) => Self::Whole(a.abs()),
            (_, a) => Self::unknown(a.ty()),
        }
    }

    /// `same`: whether the arguments are one node, and so have one value.
    pub(super) fn binary(op: Binary, a: Self, b: Self, same: bool) -> Self {
        match (a, b) {
            (Self::Real(a), Self::Real(b)) => Self::Real(a.binary(op, b, same)),
            (Self::Whole(a), Self::Whole(b)) => Self::Whole(a.binary(op, b, same)),
            (Self::Truth(a), Self::Truth(b)) => Self::Truth(match op {
                Binary::And => {
                    Truth { may_fail: a.may_fail || b.may_fail, may_hold: a.may_hold && b.may_hold }
                }
                Binary::Or => {
                    Truth { may_fail: a.may_fail && b.may_fail, may_hold: a.may_hold || b.may_hold }
                }
                _ => Truth::UNKNOWN,
            }),
            _ => Self::unknown(a.ty()),
        }
    }

    /// `same`: whether the arguments are one node, and so have one value.
    pub(super) fn compare(op: Compare, a: Self, b: Self, same: bool) -> Self {
        let (a, b) = match (a, b) {
            (Self::Real(a), Self::Real(b)) => (a, b),
            (Self::Whole(a), Self::Whole(b)) => (a.exactly(), b.exactly()),
            _ => return Self::Truth(Truth::UNKNOWN),
        };
        // NaN is not less than, at most or equal to anything.
        let nan = a.nan || b.nan;
        let equal = match same {
            true => Truth { may_fail: nan, may_hold: true },
            false => Truth {
                may_fail: nan || a.lo != b.hi || b.lo != a.hi,
                may_hold: a.lo <= b.hi && b.lo <= a.hi,
            },
        };
        Self::Truth(match op {
            Compare::Lt if same => Truth { may_fail: true, may_hold: false },
            Compare::Lt => Truth { may_fail: nan || a.hi >= b.lo, may_hold: a.lo < b.hi },
            Compare::Le if same => equal,
            Compare::Le => Truth { may_fail: nan || a.hi > b.lo, may_hold: a.lo <= b.hi },
            Compare::Eq => equal,
            Compare::Ne => Truth { may_fail: equal.may_hold, may_hold: equal.may_fail },
        })
    }

    pub(super) fn select(condition: Self, a: Self, b: Self) -> Self {
        match (condition.truth(), a, b) {
            (Truth { may_fail: false, .. }, ..) => a,
            (Truth { may_hold: false, .. }, ..) => b,
            (_, Self::Real(a), Self::Real(b)) => Self::Real(a.join(b)),
            (_, Self::Whole(a), Self::Whole(b)) => Self::Whole(a.join(b)),
            (_, Self::Truth(a), Self::Truth(b)) => {
                Self::Truth(Truth { may_fail: a.may_fail || b.may_fail, may_hold: a.may_hold || b.may_hold })
            }
            _ => Self::unknown(a.ty()),
        }
    }

    pub(super) fn powi(a: Self, exponent: i32) -> Self {
        Self::Real(match a {
            Self::Real(a) => a.powi(exponent),
            _ => Real::UNKNOWN,
        })
    }
}

impl Truth {
    const UNKNOWN: Self = Self { may_fail: true, may_hold: true };

    pub(super) const fn of(value: bool) -> Self {
        Self { may_fail: !value, may_hold: value }
    }
}
