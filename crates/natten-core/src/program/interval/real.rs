//! Intervals of numbers.
//!
//! A mask may run in f64 or in f32, on a machine that multiplies and adds in one rounding, divides by a reciprocal and
//! flushes what is subnormal. A number's interval holds what any of them computes: bounds are widened by more than any
//! of them errs, except where the operation is exact everywhere.

use super::whole::Whole;
use crate::program::expr::{Binary, Unary};
use crate::program::numeric::float_unary;

/// The numbers that an expression takes over a box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Real {
    pub(super) lo: f64,
    pub(super) hi: f64,
    /// Whether NaN is among them.
    pub(super) nan: bool,
}

/// What numbers err by at most in relation to their size, an operation.
const SLACK: f64 = 1e-6;
/// What a function of the library errs by at most beside that: its result may be a difference.
const FUNCTION_SLACK: f64 = 2e-6;
/// Numbers closer to 0 may be 0 in f32.
const TINY: f64 = f32::MIN_POSITIVE as f64;
/// Larger numbers, or what they are made of, may be infinite in f32: 1 / `TINY` is above.
const HUGE: f64 = 1e37;
/// The largest exponent whose power's error [`SLACK`] an unit of exponent bounds.
const LARGEST_POWER: u32 = 100_000;

impl Real {
    pub(super) const UNKNOWN: Self = Self { lo: f64::NEG_INFINITY, hi: f64::INFINITY, nan: true };

    /// From `lo` to `hi`, each as it is in f64, as it is in f32, and as it is where that is flushed to 0.
    pub(super) fn rounded(lo: f64, hi: f64) -> Self {
        if lo.is_nan() || hi.is_nan() {
            return Self::UNKNOWN;
        }
        let single = |x: f64| f64::from(x as f32);
        let flushed = |x: f64| if x.abs() < TINY { 0.0 } else { x };
        Self { lo: lo.min(single(lo)).min(flushed(lo)), hi: hi.max(single(hi)).max(flushed(hi)), nan: false }
    }

    /// Widened by what an operation errs by. No operation errs across 0.
    fn inexact(lo: f64, hi: f64, relative: f64, nan: bool) -> Self {
        if lo.is_nan() || hi.is_nan() {
            return Self::UNKNOWN;
        }
        let (least, most) = (below(lo, relative, TINY), -below(-hi, relative, TINY));
        Self {
            lo: if lo >= 0.0 { least.max(0.0) } else { least },
            hi: if hi <= 0.0 { most.min(0.0) } else { most },
            nan,
        }
    }

    pub(super) fn join(self, other: Self) -> Self {
        Self { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi), nan: self.nan || other.nan }
    }

    fn may_be_infinite(self) -> bool {
        self.lo == f64::NEG_INFINITY || self.hi == f64::INFINITY
    }

    /// Whether 0 is among the numbers, or one that is flushed to it.
    fn contains_zero(self) -> bool {
        self.lo < TINY && self.hi > -TINY
    }

    fn neg(self) -> Self {
        Self { lo: -self.hi, hi: -self.lo, ..self }
    }

    fn abs(self) -> Self {
        let (lo, hi) = (self.lo.abs(), self.hi.abs());
        let lo_abs = if self.lo <= 0.0 && self.hi >= 0.0 { 0.0 } else { lo.min(hi) };
        Self { lo: lo_abs, hi: lo.max(hi), ..self }
    }

    fn floor(self) -> Self {
        Self { lo: self.lo.floor(), hi: self.hi.floor(), ..self }
    }

    pub(super) fn to_whole(self) -> Whole {
        // The casts saturate, as the operation does.
        let whole = Whole { lo: i64::from(self.lo.floor() as i32), hi: i64::from(self.hi.floor() as i32) };
        if self.nan { whole.join(Whole { lo: 0, hi: 0 }) } else { whole }
    }

    pub(super) fn unary(self, op: Unary) -> Self {
        let (least, is_exponential) = match op {
            Unary::Neg => return self.neg(),
            Unary::Abs => return self.abs(),
            Unary::Floor => return self.floor(),
            Unary::StopGrad => return self,
            Unary::Rsqrt => return self.rsqrt(),
            Unary::Sin | Unary::Cos => {
                let nan = self.nan || self.may_be_infinite();
                // Without a reduction of large arguments the functions are worth less than others.
                return Self { lo: -1.001, hi: 1.001, nan };
            }
            Unary::Exp | Unary::Exp2 | Unary::Expm1 => (f64::NEG_INFINITY, true),
            Unary::Sigmoid | Unary::Softplus | Unary::Tanh | Unary::Erf => (f64::NEG_INFINITY, false),
            Unary::Log | Unary::Log2 | Unary::Sqrt => (0.0, false),
            Unary::Log1p => (-1.0, false),
            _ => return Self::UNKNOWN,
        };
        if self.hi < least {
            return Self::UNKNOWN;
        }
        let nan = self.nan || self.lo < least;
        // What the logarithm makes of a number that is flushed to 0 is far from what it makes of the number.
        let is_log = matches!(op, Unary::Log | Unary::Log2);
        let lo = if is_log && self.lo < TINY { 0.0 } else { self.lo.max(least) };
        let of = |x: f64| float_unary(op, x).unwrap_or(f64::NAN);
        // An exponential's error grows with its argument, that of the argument being absolute then.
        let relative = |x: f64| if is_exponential { SLACK * (1.0 + x.abs().min(1000.0)) } else { SLACK };
        if matches!(op, Unary::Exp | Unary::Exp2 | Unary::Sqrt) {
            let (least, most) = (of(lo), of(self.hi));
            return Self {
                lo: Self::inexact(least, least, relative(lo), nan).lo,
                hi: Self::inexact(most, most, relative(self.hi), nan).hi,
                nan,
            };
        }
        let hi = -below(-of(self.hi), relative(self.hi), FUNCTION_SLACK);
        Self { lo: below(of(lo), relative(lo), FUNCTION_SLACK), hi, nan }
    }

    fn rsqrt(self) -> Self {
        if self.lo < TINY {
            // 1 / sqrt(0) has the sign of the 0.
            return Self {
                lo: if self.lo <= 0.0 { f64::NEG_INFINITY } else { 0.0 },
                nan: true,
                ..Self::UNKNOWN
            };
        }
        Self::inexact(self.hi.sqrt().recip(), self.lo.sqrt().recip(), SLACK, self.nan)
    }

    pub(super) fn binary(self, op: Binary, b: Self, same: bool) -> Self {
        match op {
            Binary::Add => self.add(b),
            Binary::Sub if same && !self.nan && !self.may_be_infinite() => {
                Self { lo: 0.0, hi: 0.0, nan: false }
            }
            Binary::Sub => self.add(b.neg()),
            Binary::Mul if same => self.abs().mul(self.abs()),
            Binary::Mul => self.mul(b),
            Binary::Div => self.div(b),
            Binary::FloorDiv => self.div(b).floor(),
            Binary::Mod => self.modulo(b),
            // Whichever of a number and NaN a machine takes.
            Binary::Min | Binary::Max if self.nan || b.nan => self.join(b),
            Binary::Min => Self { lo: self.lo.min(b.lo), hi: self.hi.min(b.hi), nan: false },
            Binary::Max => Self { lo: self.lo.max(b.lo), hi: self.hi.max(b.hi), nan: false },
            _ => Self::UNKNOWN,
        }
    }

    fn add(self, b: Self) -> Self {
        let opposite = |x: f64, y: f64| x == f64::NEG_INFINITY && y == f64::INFINITY;
        if opposite(self.lo, b.hi) || opposite(b.lo, self.hi) {
            return Self::UNKNOWN;
        }
        // Exact where nothing is lost in f64 and f32 has the sum.
        let sum = |x: f64, y: f64| {
            let sum = x + y;
            if fits_f32(sum) && sum - x == y && sum - y == x {
                return Self { lo: sum, hi: sum, nan: false };
            }
            Self::inexact(sum, sum, SLACK, false)
        };
        Self { lo: sum(self.lo, b.lo).lo, hi: sum(self.hi, b.hi).hi, nan: self.nan || b.nan }
    }

    fn mul(self, b: Self) -> Self {
        let vanishes = |x: Self, y: Self| x.contains_zero() && y.may_be_infinite();
        if vanishes(self, b) || vanishes(b, self) {
            return Self::UNKNOWN;
        }
        // The product of two f32 is exact in f64.
        let product = |x: f64, y: f64| {
            let product = x * y;
            if fits_f32(x) && fits_f32(y) && fits_f32(product) {
                return Self { lo: product, hi: product, nan: false };
            }
            Self::inexact(product, product, SLACK, false)
        };
        let [a, c] = [product(self.lo, b.lo), product(self.lo, b.hi)];
        let [d, e] = [product(self.hi, b.lo), product(self.hi, b.hi)];
        Self { nan: self.nan || b.nan, ..a.join(c).join(d).join(e) }
    }

    fn div(self, b: Self) -> Self {
        if b.contains_zero() || self.may_be_infinite() && b.may_be_infinite() {
            return Self::UNKNOWN;
        }
        let all = [self.lo / b.lo, self.lo / b.hi, self.hi / b.lo, self.hi / b.hi];
        let (lo, hi) = (
            all.into_iter().fold(f64::INFINITY, f64::min),
            all.into_iter().fold(f64::NEG_INFINITY, f64::max),
        );
        Self::inexact(lo, hi, SLACK, self.nan || b.nan)
    }

    /// `a - b * floor(a / b)`: what that is step by step, and that it lies between 0 and `b`.
    fn modulo(self, b: Self) -> Self {
        let quotient = self.div(b).floor();
        let rest = self.add(b.mul(quotient).neg());
        if quotient.may_be_infinite() || b.may_be_infinite() {
            return rest;
        }
        let size = |x: Self| x.lo.abs().max(x.hi.abs());
        let slack = 4.0 * SLACK * (size(self) + size(b)) + TINY;
        let (least, most) = (b.lo.min(0.0) - slack, b.hi.max(0.0) + slack);
        Self { lo: rest.lo.max(least), hi: rest.hi.min(most), ..rest }
    }

    pub(super) fn powi(self, exponent: i32) -> Self {
        if exponent == 0 {
            return Self { lo: 1.0, hi: 1.0, nan: false };
        }
        let size = exponent.unsigned_abs();
        if size > LARGEST_POWER || exponent < 0 && self.contains_zero() {
            return Self::UNKNOWN;
        }
        // Even powers are monotone in the number's size, and other powers on either side of 0.
        let a = if size.is_multiple_of(2) { self.abs() } else { self };
        let (x, y) = (a.lo.powi(exponent), a.hi.powi(exponent));
        Self::inexact(x.min(y), x.max(y), SLACK * f64::from(size), self.nan)
    }
}

/// A bound below what a number is computed as.
fn below(x: f64, relative: f64, absolute: f64) -> f64 {
    if x.is_infinite() {
        return x;
    }
    let bound = x - (x.abs() * relative + absolute);
    if bound < -HUGE { f64::NEG_INFINITY } else { bound }
}

/// Whether f32 has the number, and not among those that may be flushed to 0.
fn fits_f32(x: f64) -> bool {
    f64::from(x as f32) == x && (x == 0.0 || x.abs() >= TINY)
}
