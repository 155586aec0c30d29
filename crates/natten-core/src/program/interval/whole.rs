//! Intervals of integers. An operation that may wrap is one of which nothing is known.

use super::real::Real;
use crate::program::expr::Binary;

/// The integers that an expression takes over a box: within i32, the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Whole {
    pub(super) lo: i64,
    pub(super) hi: i64,
}

impl Whole {
    pub(super) const UNKNOWN: Self = Self { lo: i32::MIN as i64, hi: i32::MAX as i64 };

    /// From `lo` to `hi`; unknown where an i32 would wrap.
    pub(super) const fn of(lo: i64, hi: i64) -> Self {
        if Self::UNKNOWN.lo <= lo && lo <= hi && hi <= Self::UNKNOWN.hi {
            Self { lo, hi }
        } else {
            Self::UNKNOWN
        }
    }

    /// The same as numbers, none rounded.
    pub(super) const fn exactly(self) -> Real {
        Real { lo: self.lo as f64, hi: self.hi as f64, nan: false }
    }

    pub(super) fn join(self, other: Self) -> Self {
        Self { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }

    pub(super) const fn neg(self) -> Self {
        Self::of(-self.hi, -self.lo)
    }

    pub(super) fn abs(self) -> Self {
        let lo = if self.contains_zero() { 0 } else { self.lo.abs().min(self.hi.abs()) };
        Self::of(lo, self.lo.abs().max(self.hi.abs()))
    }

    const fn contains_zero(self) -> bool {
        self.lo <= 0 && 0 <= self.hi
    }

    /// The range of a function that is monotone in either argument.
    fn corners(self, b: Self, f: impl Fn(i64, i64) -> i64) -> Self {
        let all = [f(self.lo, b.lo), f(self.lo, b.hi), f(self.hi, b.lo), f(self.hi, b.hi)];
        Self::of(all.into_iter().min().unwrap_or(i64::MIN), all.into_iter().max().unwrap_or(i64::MAX))
    }

    pub(super) fn binary(self, op: Binary, b: Self, same: bool) -> Self {
        match op {
            Binary::Sub | Binary::BitXor if same => Self { lo: 0, hi: 0 },
            Binary::Mul if same => {
                let size = self.abs();
                Self::of(size.lo * size.lo, size.hi * size.hi)
            }
            Binary::Add => Self::of(self.lo + b.lo, self.hi + b.hi),
            Binary::Sub => Self::of(self.lo - b.hi, self.hi - b.lo),
            Binary::Mul => self.corners(b, |x, y| x * y),
            Binary::Min => Self { lo: self.lo.min(b.lo), hi: self.hi.min(b.hi) },
            Binary::Max => Self { lo: self.lo.max(b.lo), hi: self.hi.max(b.hi) },
            Binary::Div | Binary::FloorDiv => self.by_sign(
                b,
                |a, b| a.corners(b, i64::div_euclid),
                |a, b| a.neg64().corners(b, i64::div_euclid),
            ),
            Binary::Mod => self.by_sign(b, Self::modulo, |a, b| a.neg64().modulo(b).neg()),
            Binary::Shl => self.corners(b.shift(), |x, s| x << s),
            Binary::Shr => self.corners(b.shift(), |x, s| x >> s),
            Binary::BitAnd => match (self.lo == self.hi, b.lo == b.hi) {
                (_, true) => self.masked(b.lo),
                (true, _) => b.masked(self.lo),
                _ => self.bits(op, b),
            },
            Binary::BitOr | Binary::BitXor => self.bits(op, b),
            Binary::And | Binary::Or => Self::UNKNOWN,
        }
    }

    /// The negatives, without regard to i32: of intermediate values only.
    const fn neg64(self) -> Self {
        Self { lo: -self.hi, hi: -self.lo }
    }

    /// A quotient or a rest: by positive divisors, by the negatives of negative divisors, and 0 by 0.
    fn by_sign(
        self,
        b: Self,
        positive: impl Fn(Self, Self) -> Self,
        negative: impl Fn(Self, Self) -> Self,
    ) -> Self {
        let by_positive = (b.hi > 0).then(|| positive(self, Self { lo: b.lo.max(1), hi: b.hi }));
        let by_negative = (b.lo < 0).then(|| negative(self, Self { lo: (-b.hi).max(1), hi: -b.lo }));
        let by_zero = b.contains_zero().then_some(Self { lo: 0, hi: 0 });
        [by_positive, by_negative, by_zero].into_iter().flatten().reduce(Self::join).unwrap_or(Self::UNKNOWN)
    }

    /// The rest by positive divisors.
    fn modulo(self, b: Self) -> Self {
        let m = b.lo;
        if m == b.hi && self.lo.div_euclid(m) == self.hi.div_euclid(m) {
            return Self { lo: self.lo.rem_euclid(m), hi: self.hi.rem_euclid(m) };
        }
        if self.lo < 0 {
            return Self { lo: 0, hi: b.hi - 1 };
        }
        let lo = if self.hi < m { self.lo } else { 0 };
        Self { lo, hi: self.hi.min(b.hi - 1) }
    }

    /// The distances of a shift, which count modulo 32.
    const fn shift(self) -> Self {
        match self {
            Self { lo, hi } if lo == hi => Self { lo: lo & 31, hi: lo & 31 },
            Self { lo: 0.., hi: ..=31 } => self,
            _ => Self { lo: 0, hi: 31 },
        }
    }

    /// The integers' bits that a constant has.
    fn masked(self, mask: i64) -> Self {
        if self.lo == self.hi {
            return Self { lo: self.lo & mask, hi: self.lo & mask };
        }
        if mask >= 0 && (mask + 1) & mask == 0 {
            // The lowest bits are a rest by a power of two,
            return self.modulo(Self { lo: mask + 1, hi: mask + 1 });
        }
        if mask < 0 && -mask & !mask == 0 {
            // and all but the lowest bits never fall as the integer grows.
            return Self { lo: self.lo & mask, hi: self.hi & mask };
        }
        self.bits(Binary::BitAnd, Self { lo: mask, hi: mask })
    }

    /// Bounds by the sign and the number of bits.
    fn bits(self, op: Binary, b: Self) -> Self {
        if self.lo == self.hi && b.lo == b.hi {
            let both = match op {
                Binary::BitAnd => self.lo & b.lo,
                Binary::BitOr => self.lo | b.lo,
                _ => self.lo ^ b.lo,
            };
            return Self { lo: both, hi: both };
        }
        // `x ^ (x >> 63)` has the bits of x's size; the sign is above them.
        let size =
            [self.lo, self.hi, b.lo, b.hi].into_iter().map(|x| x ^ (x >> 63)).max().unwrap_or(i64::MAX);
        let all = (1i64 << (64 - size.leading_zeros())) - 1;
        let positive = [self.lo >= 0, b.lo >= 0];
        let negative = [self.hi < 0, b.hi < 0];
        let (mut lo, mut hi) = (-all - 1, all);
        match op {
            Binary::BitAnd => {
                lo = if positive.contains(&true) { 0 } else { lo };
                hi = match positive {
                    [true, true] => self.hi.min(b.hi),
                    [true, false] => self.hi,
                    [false, true] => b.hi,
                    _ if negative == [true, true] => self.hi.min(b.hi),
                    _ => self.hi.max(b.hi),
                };
            }
            Binary::BitOr => {
                hi = if negative.contains(&true) { -1 } else { hi };
                lo = match positive {
                    [true, true] => self.lo.max(b.lo),
                    _ => self.lo.min(b.lo),
                };
            }
            _ => {
                let agree = positive == [true, true] || negative == [true, true];
                let differ = positive[0] && negative[1] || negative[0] && positive[1];
                lo = if agree { 0 } else { lo };
                hi = if differ { -1 } else { hi };
            }
        }
        Self::of(lo, hi)
    }
}
