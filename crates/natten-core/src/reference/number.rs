//! What the oracle computes with: f64, and dual numbers over it. One code of every operation runs on both, so that
//! forward mode needs no formulas but the derivatives of the functions below.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::program::expr::{Binary, Unary};
use crate::program::numeric::float_unary;

/// A number that functions are computed of.
pub(super) trait Number:
    Copy
    + Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// A number, and its tangent where it is not a constant; what has no tangents drops it.
    fn new(value: f64, tangent: Option<f64>) -> Self;

    /// The number alone.
    fn value(self) -> f64;

    /// A function of one number.
    fn unary(self, op: Unary) -> Self;

    /// An integral power.
    fn powi(self, exponent: i32) -> Self;

    /// A constant.
    fn of(value: f64) -> Self {
        Self::new(value, None)
    }

    /// `e^self`.
    fn exp(self) -> Self {
        self.unary(Unary::Exp)
    }

    /// The natural logarithm.
    fn ln(self) -> Self {
        self.unary(Unary::Log)
    }
}

impl Number for f64 {
    fn new(value: f64, _tangent: Option<f64>) -> Self {
        value
    }

    fn value(self) -> f64 {
        self
    }

    fn unary(self, op: Unary) -> Self {
        float_unary(op, self).unwrap_or(self)
    }

    fn powi(self, exponent: i32) -> Self {
        self.powi(exponent)
    }
}

/// A number with its tangent. A constant has none, rather than a tangent of 0: what does not depend on a direction has
/// no derivative to multiply with an infinite slope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dual<T> {
    pub(super) value: T,
    pub(super) tangent: Option<T>,
}

impl<T: Number> Dual<T> {
    /// The number that derivatives are taken with respect to.
    pub(super) fn variable(value: T) -> Self {
        Self { value, tangent: Some(T::of(1.0)) }
    }

    /// A function's value, its slope times the tangent.
    fn chain(self, value: T, slope: impl FnOnce() -> T) -> Self {
        Self { value, tangent: self.tangent.map(|tangent| tangent * slope()) }
    }
}

/// The sum of what is there.
pub(super) fn sum<T: Number>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

impl<T: Number> Add for Dual<T> {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, tangent: sum(self.tangent, other.tangent) }
    }
}

impl<T: Number> Sub for Dual<T> {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl<T: Number> Mul for Dual<T> {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let by_self = self.tangent.map(|tangent| tangent * other.value);
        let by_other = other.tangent.map(|tangent| self.value * tangent);
        Self { value: self.value * other.value, tangent: sum(by_self, by_other) }
    }
}

impl<T: Number> Div for Dual<T> {
    type Output = Self;

    #[expect(clippy::suspicious_arithmetic_impl, reason = "the quotient rule multiplies")]
    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        let by_self = self.tangent.map(|tangent| tangent / other.value);
        let by_other = other.tangent.map(|tangent| -(value / other.value) * tangent);
        Self { value, tangent: sum(by_self, by_other) }
    }
}

impl<T: Number> Neg for Dual<T> {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value, tangent: self.tangent.map(|tangent| -tangent) }
    }
}

impl<T: Number> Number for Dual<T> {
    fn new(value: f64, tangent: Option<f64>) -> Self {
        Self { value: T::of(value), tangent: tangent.map(T::of) }
    }

    fn value(self) -> f64 {
        self.value.value()
    }

    fn unary(self, op: Unary) -> Self {
        let x = self.value;
        let y = x.unary(op);
        let one = T::of(1.0);
        match op {
            Unary::Neg => -self,
            Unary::Abs => self.chain(y, || match x.value() {
                v if v > 0.0 => one,
                v if v < 0.0 => -one,
                _ => T::of(0.0),
            }),
            Unary::Exp => self.chain(y, || y),
            Unary::Exp2 => self.chain(y, || y * T::of(std::f64::consts::LN_2)),
            Unary::Log => self.chain(y, || one / x),
            Unary::Log2 => self.chain(y, || T::of(std::f64::consts::LOG2_E) / x),
            Unary::Expm1 => self.chain(y, || x.exp()),
            Unary::Log1p => self.chain(y, || one / (one + x)),
            Unary::Sqrt => self.chain(y, || T::of(0.5) / y),
            Unary::Rsqrt => self.chain(y, || T::of(-0.5) * y / x),
            Unary::Tanh => self.chain(y, || one - y * y),
            Unary::Sigmoid => self.chain(y, || y * (-x).unary(Unary::Sigmoid)),
            Unary::Softplus => self.chain(y, || x.unary(Unary::Sigmoid)),
            Unary::Erf => self.chain(y, || T::of(std::f64::consts::FRAC_2_SQRT_PI) * (-(x * x)).exp()),
            Unary::Sin => self.chain(y, || x.unary(Unary::Cos)),
            Unary::Cos => self.chain(y, || -x.unary(Unary::Sin)),
            // Piecewise constant, or a constant to derivatives.
            _ => Self { value: y, tangent: None },
        }
    }

    fn powi(self, exponent: i32) -> Self {
        let slope = || T::of(f64::from(exponent)) * self.value.powi(exponent - 1);
        self.chain(self.value.powi(exponent), slope)
    }
}

/// A function of two numbers.
pub(super) fn binary<T: Number>(op: Binary, a: T, b: T) -> T {
    let (x, y) = (a.value(), b.value());
    let floor = || T::of((x / y).floor());
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::FloorDiv => floor(),
        Binary::Mod => a - b * floor(),
        Binary::Min => {
            if x <= y || x.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Max => {
            if x >= y || x.is_nan() {
                a
            } else {
                b
            }
        }
        // The others are of integers and conditions.
        _ => a,
    }
}

/// `⟨a, b⟩`, in four sums that a processor can run side by side.
pub(super) fn dot<T: Number>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::of(0.0); 4];
    let (a_fours, b_fours) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    for (a, b) in a_fours.0.iter().zip(b_fours.0) {
        for lane in 0..4 {
            sums[lane] = sums[lane] + a[lane] * b[lane];
        }
    }
    for (&a, &b) in a_fours.1.iter().zip(b_fours.1) {
        sums[0] = sums[0] + a * b;
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// `to += factor * from`.
pub(super) fn add_scaled<T: Number>(to: &mut [T], factor: T, from: &[T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = *to + factor * from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNARY: [(Unary, f64); 18] = [
        (Unary::Neg, 0.3),
        (Unary::Abs, -0.7),
        (Unary::Exp, 0.4),
        (Unary::Exp2, 0.4),
        (Unary::Log, 0.4),
        (Unary::Log2, 0.4),
        (Unary::Expm1, 0.4),
        (Unary::Log1p, 0.4),
        (Unary::Sqrt, 0.4),
        (Unary::Rsqrt, 0.4),
        (Unary::Tanh, 0.4),
        (Unary::Sigmoid, -0.4),
        (Unary::Softplus, -0.4),
        (Unary::Erf, 0.4),
        (Unary::Sin, 0.4),
        (Unary::Cos, 0.4),
        (Unary::Floor, 1.4),
        (Unary::StopGrad, 1.4),
    ];

    /// First and second derivatives against differences of the function and of the first.
    #[test]
    fn slopes_are_the_differences() {
        for (op, x) in UNARY {
            let first = |x: f64| Dual::variable(x).unary(op).tangent.unwrap_or(0.0);
            let second =
                Dual::variable(Dual::variable(x)).unary(op).tangent.and_then(|t| t.tangent).unwrap_or(0.0);
            let h = 1e-5;
            let difference = (x + h).unary(op) - (x - h).unary(op);
            let difference = if op == Unary::StopGrad { 0.0 } else { difference / (2.0 * h) };
            assert!((first(x) - difference).abs() < 1e-8, "{op:?}: {} {difference}", first(x));
            let difference = (first(x + h) - first(x - h)) / (2.0 * h);
            assert!((second - difference).abs() < 1e-8, "{op:?}: {second} {difference}");
        }
    }

    #[test]
    fn what_does_not_depend_has_no_derivative() {
        let zero = Dual::<f64>::of(0.0);
        let product = zero.unary(Unary::Sqrt) * Dual::variable(3.0);
        assert_eq!(product.tangent, Some(0.0), "not 0 times the infinite slope of the root");
    }

    #[test]
    fn functions_of_two_numbers_have_their_slopes() {
        use Binary::*;
        for op in [Add, Sub, Mul, Div, FloorDiv, Mod, Min, Max] {
            let of = |a: f64, b: f64| binary(op, a, b);
            let (a, b, h) = (1.7, 0.6, 1e-6);
            let by_a = binary(op, Dual::variable(a), Dual::of(b)).tangent.unwrap_or(0.0);
            let by_b = binary(op, Dual::of(a), Dual::variable(b)).tangent.unwrap_or(0.0);
            assert!((by_a - (of(a + h, b) - of(a - h, b)) / (2.0 * h)).abs() < 1e-8, "{op:?}");
            assert!((by_b - (of(a, b + h) - of(a, b - h)) / (2.0 * h)).abs() < 1e-8, "{op:?}");
        }
        assert_eq!(dot(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0; 5]), 15.0);
    }
}
