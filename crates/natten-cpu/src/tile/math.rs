//! Vector functions of the evaluator, within 4 units in the last place over the whole range, NaN and infinities as the
//! functions of `f64` have them. [`Simd::exp`] is the one that kernels use too.

use natten_core::Element;

use crate::element::Real;
use crate::simd::Simd;

/// `p(x)`, coefficients constant first.
#[inline(always)]
unsafe fn polynomial<S: Simd>(coefficients: &[S::T], x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let mut degree = coefficients.len() - 1;
        let mut p = S::splat(coefficients[degree]);
        while degree > 0 {
            degree -= 1;
            p = S::mul_add(p, x, S::splat(coefficients[degree]));
        }
        p
    }
}

#[inline(always)]
unsafe fn number<S: Simd>(value: f64) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe { S::splat(S::T::of(value)) }
}

#[inline(always)]
pub(super) unsafe fn negate<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe { S::sub(number::<S>(-0.0), x) }
}

/// `a <= b ? a : b`, NaN where either is.
#[inline(always)]
pub(super) unsafe fn min<S: Simd>(a: S::V, b: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe { S::blend(S::eq(b, b), S::min(b, a), b) }
}

/// `a >= b ? a : b`, NaN where either is.
#[inline(always)]
pub(super) unsafe fn max<S: Simd>(a: S::V, b: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe { S::blend(S::eq(b, b), S::max(b, a), b) }
}

/// `e^r - 1` on [-ln 2 / 2, ln 2 / 2].
#[inline(always)]
unsafe fn expm1_near_zero<S: Simd>(r: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe { S::mul_add(S::mul(r, r), polynomial::<S>(&S::T::EXP[2..], r), r) }
}

/// 2^x.
#[inline(always)]
pub(super) unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let (low, high) = (S::T::EXP_LOW.to_f64() * 1.5, S::T::EXP_HIGH.to_f64() * 1.5);
        let x = S::min(number::<S>(high), S::max(number::<S>(low), x));
        let n = S::round(x);
        let r = S::mul(S::sub(x, n), number::<S>(std::f64::consts::LN_2));
        S::scale(S::add(expm1_near_zero::<S>(r), number::<S>(1.0)), n)
    }
}

/// `e^x - 1`.
#[inline(always)]
pub(super) unsafe fn expm1<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let x = S::min(S::splat(S::T::EXP_HIGH), S::max(S::splat(S::T::EXPM1_LOW), x));
        let n = S::round(S::mul(x, S::splat(S::T::LOG2_E)));
        let negated = negate::<S>(n);
        let r = S::mul_add(negated, S::splat(S::T::LN2_HI), x);
        let r = S::mul_add(negated, S::splat(S::T::LN2_LO), r);
        // 2^n (e^r - 1) + 2^n - 1, where 2^n may be out of range and the result not.
        let one = number::<S>(1.0);
        let rest = S::sub(one, S::scale(one, negated));
        S::scale(S::add(expm1_near_zero::<S>(r), rest), n)
    }
}

/// tanh, by `(e^2a - 1) / (e^2a + 1)` of `a = |x|`.
#[inline(always)]
pub(super) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let a = S::min(S::splat(S::T::TANH_HIGH), S::abs(x));
        let t = expm1::<S>(S::add(a, a));
        S::with_sign(S::div(t, S::add(t, number::<S>(2.0))), x)
    }
}

/// `1 / (1 + e^-x)`, without overflow on either side.
#[inline(always)]
pub(super) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let one = number::<S>(1.0);
        let small = S::exp(negate::<S>(S::abs(x)));
        let above = S::blend(S::le(number::<S>(0.0), x), one, small);
        S::div(above, S::add(one, small))
    }
}

/// `ln(1 + e^x)`.
#[inline(always)]
pub(super) unsafe fn softplus<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let (zero, one, half) = (number::<S>(0.0), number::<S>(1.0), number::<S>(0.5));
        // ln(1 + u) of a u in [0, 1]: halved first where that is farther from ln 2 than from 0.
        let u = S::exp(negate::<S>(S::abs(x)));
        let is_large = S::lt(number::<S>(std::f64::consts::SQRT_2 - 1.0), u);
        let f = S::blend(is_large, S::mul(S::sub(u, one), half), u);
        let low = S::add(log_near_one::<S>(f), S::blend(is_large, S::splat(S::T::LN2_LO), zero));
        let log = S::add(low, S::blend(is_large, S::splat(S::T::LN2_HI), zero));
        S::add(S::max(x, zero), log)
    }
}

/// `ln(1 + f)` on [1/√2 - 1, √2 - 1].
#[inline(always)]
unsafe fn log_near_one<S: Simd>(f: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let s = S::div(f, S::add(f, number::<S>(2.0)));
        let z = S::mul(s, s);
        let half_square = S::mul(S::mul(f, f), number::<S>(0.5));
        let p = S::mul(z, polynomial::<S>(S::T::LOG, z));
        S::sub(f, S::sub(half_square, S::mul(s, S::add(half_square, p))))
    }
}

/// The logarithm of the mantissa, and the exponent, of positive finite numbers; the mantissa is in [1/√2, √2].
#[inline(always)]
unsafe fn log_split<S: Simd>(x: S::V) -> (S::V, S::V) {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let (mantissa, exponent) = S::split(x);
        let one = number::<S>(1.0);
        let is_large = S::lt(number::<S>(std::f64::consts::SQRT_2), mantissa);
        let mantissa = S::blend(is_large, S::mul(mantissa, number::<S>(0.5)), mantissa);
        let exponent = S::blend(is_large, S::add(exponent, one), exponent);
        (log_near_one::<S>(S::sub(mantissa, one)), exponent)
    }
}

/// What a logarithm is where it is not that of a positive finite number: of 0, of infinity, of anything else.
#[inline(always)]
unsafe fn log_limits<S: Simd>(x: S::V, log: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let (zero, infinity) = (number::<S>(0.0), number::<S>(f64::INFINITY));
        let log = S::blend(S::lt(x, infinity), log, x);
        let log = S::blend(S::lt(zero, x), log, number::<S>(f64::NAN));
        S::blend(S::eq(x, zero), number::<S>(f64::NEG_INFINITY), log)
    }
}

/// ln x.
#[inline(always)]
pub(super) unsafe fn log<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let (log, exponent) = log_split::<S>(x);
        let low = S::mul_add(exponent, S::splat(S::T::LN2_LO), log);
        log_limits::<S>(x, S::mul_add(exponent, S::splat(S::T::LN2_HI), low))
    }
}

/// log₂ x.
#[inline(always)]
pub(super) unsafe fn log2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let (log, exponent) = log_split::<S>(x);
        log_limits::<S>(x, S::mul_add(log, S::splat(S::T::LOG2_E), exponent))
    }
}

/// `ln(1 + x)`: the logarithm of the rounded sum, and what rounding took from it.
#[inline(always)]
pub(super) unsafe fn log1p<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let one = number::<S>(1.0);
        let sum = S::add(one, x);
        let is_large = S::lt(one, x);
        let (large, small) = (S::blend(is_large, x, one), S::blend(is_large, one, x));
        let rest = S::div(S::sub(small, S::sub(sum, large)), sum);
        let is_ordinary = S::lt(number::<S>(0.0), sum);
        let is_finite = S::lt(sum, number::<S>(f64::INFINITY));
        let logarithm = log::<S>(sum);
        let corrected = S::blend(is_finite, S::add(logarithm, rest), logarithm);
        S::blend(is_ordinary, corrected, logarithm)
    }
}

/// `x^-1/2`.
#[inline(always)]
pub(super) unsafe fn rsqrt<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe { S::div(number::<S>(1.0), S::sqrt(x)) }
}

/// `x^n` by squaring.
#[inline(always)]
pub(super) unsafe fn powi<S: Simd>(x: S::V, n: i32) -> S::V {
    // SAFETY: the caller's processor has the instruction set.
    unsafe {
        let one = number::<S>(1.0);
        let (mut left, mut square, mut power) = (n.unsigned_abs(), x, one);
        while left != 0 {
            if left & 1 == 1 {
                power = S::mul(power, square);
            }
            square = S::mul(square, square);
            left >>= 1;
        }
        if n < 0 { S::div(one, power) } else { power }
    }
}

#[cfg(test)]
mod tests {
    use natten_core::program::Unary;
    use natten_core::program::numeric::float_unary;

    use super::super::tests::close;
    use super::*;
    use crate::simd::{Isa, Portable};

    /// Applies a function to numbers, a vector at a time.
    macro_rules! all {
        ($s:ty, $xs:expr, $function:expr) => {{
            let mut out = $xs.to_vec();
            for chunk in out.chunks_exact_mut(<$s>::LANES) {
                // SAFETY: the callers check the instruction set; the chunk has `LANES` elements.
                unsafe { <$s>::store(chunk.as_mut_ptr(), $function(<$s>::load(chunk.as_ptr()))) };
            }
            out
        }};
    }

    /// Numbers of every size and sign, dense about 0, about 1, and where functions change their ways.
    fn numbers<R: Real>() -> Vec<R> {
        let mut xs: Vec<f64> = (-11_000..11_000).map(|i| f64::from(i) * 0.1).map(|e| e.exp2()).collect();
        xs.extend((0..40_000).map(|i| f64::from(i) * 0.002_37));
        xs.extend((0..10_000).map(|i| f64::from(i) * 0.12));
        xs.extend((0..2_000).flat_map(|i| [1.0 + f64::from(i) * 1.1e-6, 1.0 - f64::from(i) * 1.1e-6]));
        xs.extend((0..200).flat_map(|i| [1.0 + f64::from(i) * f64::EPSILON, 1.0 - f64::from(i) * 6e-8]));
        xs.extend([0.0, 1.0, 2.0, 0.5, f64::INFINITY, f64::NAN, f64::MAX, 5e-324, 1e-45, 1e-40]);
        xs.extend(xs.clone().into_iter().map(|x| -x));
        xs.resize(xs.len().next_multiple_of(16), 0.25);
        xs.into_iter().map(R::of).collect()
    }

    fn check<S: Simd>() {
        let xs = numbers::<S::T>();
        for (op, ys) in [
            (Unary::Neg, all!(S, xs, negate::<S>)),
            (Unary::Abs, all!(S, xs, S::abs)),
            (Unary::Floor, all!(S, xs, S::floor)),
            (Unary::Sqrt, all!(S, xs, S::sqrt)),
            (Unary::Rsqrt, all!(S, xs, rsqrt::<S>)),
            (Unary::Exp, all!(S, xs, S::exp)),
            (Unary::Exp2, all!(S, xs, exp2::<S>)),
            (Unary::Expm1, all!(S, xs, expm1::<S>)),
            (Unary::Log, all!(S, xs, log::<S>)),
            (Unary::Log2, all!(S, xs, log2::<S>)),
            (Unary::Log1p, all!(S, xs, log1p::<S>)),
            (Unary::Tanh, all!(S, xs, tanh::<S>)),
            (Unary::Sigmoid, all!(S, xs, sigmoid::<S>)),
            (Unary::Softplus, all!(S, xs, softplus::<S>)),
        ] {
            let is_exact = matches!(op, Unary::Neg | Unary::Abs | Unary::Floor | Unary::Sqrt);
            for (x, y) in xs.iter().zip(ys) {
                let exact = float_unary(op, x.to_f64()).unwrap();
                let ulps = if is_exact { 0.0 } else { 4.0 };
                assert!(close::<S::T>(y.to_f64(), exact, ulps), "{op:?} of {x:?} is {y:?}, not {exact:e}");
            }
        }
    }

    fn check_isa<I: Isa>() {
        check::<I::F32>();
        check::<I::F64>();
    }

    #[test]
    fn functions_are_within_four_units_in_the_last_place() {
        check_isa::<Portable>();
        #[cfg(target_arch = "x86_64")]
        {
            if crate::Isa::Avx2.is_available() {
                check_isa::<crate::simd::Avx2>();
            }
            if crate::Isa::Avx512.is_available() {
                check_isa::<crate::simd::Avx512>();
            }
        }
    }
}
