//! Vectors, and the one matrix product that every kernel is made of. A kernel is generic over [`Simd`] and compiled
//! once an instruction set; everything in its call tree is `inline(always)`, so that it is compiled with the features
//! of the `#[target_feature]` function at its root.

mod gemm;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use gemm::{Extents, Left};
pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

use natten_core::DType;

use crate::element::Real;

/// An instruction set: its vectors of either type.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    type F32: Simd<T = f32>;
    type F64: Simd<T = f64>;
}

/// The most lanes that work side by side: two vectors of the widest instruction set, in its narrowest type.
pub(crate) const MAX_WIDTH: usize = 32;

/// Lanes of a vector of the type that `dtype` is computed in.
pub(crate) fn lanes(isa: crate::Isa, dtype: DType) -> usize {
    fn of<I: Isa>(dtype: DType) -> usize {
        if dtype == DType::F64 { <I::F64 as Simd>::LANES } else { <I::F32 as Simd>::LANES }
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx512 => of::<Avx512>(dtype),
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx2 => of::<Avx2>(dtype),
        _ => of::<Portable>(dtype),
    }
}

/// Vectors of one type on one instruction set.
///
/// # Safety
/// Every method may be called only on a processor that has the instruction set; loads and stores need [`LANES`]
/// elements at the pointer. No alignment is needed.
///
/// [`LANES`]: Simd::LANES
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type T: Real;
    type V: Copy;
    /// A truth value a lane.
    type M: Copy;

    /// Elements of a vector.
    const LANES: usize;
    /// Queries (or keys) that a kernel holds side by side in lanes: two vectors.
    const WIDTH: usize = 2 * Self::LANES;
    /// Rows of the register block of the matrix product.
    const ROWS: usize;

    unsafe fn splat(value: Self::T) -> Self::V;
    unsafe fn load(from: *const Self::T) -> Self::V;
    unsafe fn store(to: *mut Self::T, value: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instruction set can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// `a`, which is not negative, with the sign of `b`.
    unsafe fn with_sign(a: Self::V, b: Self::V) -> Self::V;
    /// The largest integral number that is not larger.
    unsafe fn floor(a: Self::V) -> Self::V;
    /// The mantissa in [1, 2) and the exponent of positive finite numbers, subnormal ones too; anything else gives
    /// anything.
    unsafe fn split(a: Self::V) -> (Self::V, Self::V);
    /// `LANES` integers as numbers.
    unsafe fn from_integers(from: *const i32) -> Self::V;
    /// `a > b ? a : b`: `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for integral `n`, right also where the result is subnormal, zero or infinite.
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V;
    /// Lane `i` of `a` where bit `i` is set, of `b` where it is not.
    unsafe fn select(bits: u32, a: Self::V, b: Self::V) -> Self::V;
    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M;
    unsafe fn le(a: Self::V, b: Self::V) -> Self::M;
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::M;
    /// `a` where `which` holds, `b` where it does not.
    unsafe fn blend(which: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// Bit `i` is lane `i`; no other is set.
    unsafe fn bits(which: Self::M) -> u32;
    /// Bit `i` tells whether integer `i` of `LANES` is less.
    unsafe fn integers_lt(a: *const i32, b: *const i32) -> u32;
    /// Bit `i` tells whether integers `i` of `LANES` are equal.
    unsafe fn integers_eq(a: *const i32, b: *const i32) -> u32;

    /// Runs `work` out of line, in a function that is compiled with the instruction set's features: for what is called
    /// from many places, or too large to be compiled into each.
    ///
    /// # Safety
    /// As the trait's, and the work's.
    unsafe fn outlined<W: Outlined<T = Self::T>>(work: W);

    /// `c[i][..] = Σ_k a(i, k) * b[k][..]`, or `+=` where `ACCUMULATE`; `b` and `c` come with their row strides. Not
    /// inlined: it is compiled once an instruction set and type.
    ///
    /// # Safety
    /// As the trait's; `a` has `rows x depth` readable elements, `b` `depth` rows and `c` `rows` rows of
    /// `vectors * LANES`.
    unsafe fn gemm<const ACCUMULATE: bool>(
        extents: Extents,
        a: Left<Self::T>,
        b: (*const Self::T, usize),
        c: (*mut Self::T, usize),
    );

    /// e^x. NaN stays NaN, -inf gives 0, +inf gives +inf.
    ///
    /// # Safety
    /// As the trait's.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // SAFETY: the caller's processor has the instruction set.
        unsafe {
            let x = Self::min(Self::splat(Self::T::EXP_HIGH), Self::max(Self::splat(Self::T::EXP_LOW), x));
            let n = Self::round(Self::mul(x, Self::splat(Self::T::LOG2_E)));
            let negated = Self::sub(Self::splat(Self::T::ZERO), n);
            let r = Self::mul_add(negated, Self::splat(Self::T::LN2_HI), x);
            let r = Self::mul_add(negated, Self::splat(Self::T::LN2_LO), r);
            let coefficients = Self::T::EXP;
            let mut degree = coefficients.len() - 1;
            let mut p = Self::splat(coefficients[degree]);
            while degree > 0 {
                degree -= 1;
                p = Self::mul_add(p, r, Self::splat(coefficients[degree]));
            }
            Self::scale(p, n)
        }
    }
}

/// Work for [`Simd::outlined`].
pub(crate) trait Outlined {
    /// The type that it is done in.
    type T: Real;

    /// Does it. `inline(always)`.
    ///
    /// # Safety
    /// The processor has `S`; the rest is the implementation's.
    unsafe fn run<S: Simd<T = Self::T>>(self);
}

#[cfg(test)]
mod tests {
    use natten_core::Element;

    use super::*;
    use crate::Isa as Available;

    /// Applies `exp` to numbers, a vector at a time.
    fn exp_all<S: Simd>(xs: &[S::T]) -> Vec<S::T> {
        let mut out = xs.to_vec();
        for chunk in out.chunks_exact_mut(S::LANES) {
            // SAFETY: the callers check the instruction set; the chunk has `LANES` elements.
            unsafe { S::store(chunk.as_mut_ptr(), S::exp(S::load(chunk.as_ptr()))) };
        }
        out
    }

    fn check_exp<S: Simd>(ulps: f64) {
        let span = |x: f64| x >= S::T::EXP_LOW.to_f64() && x <= S::T::EXP_HIGH.to_f64();
        let xs: Vec<S::T> = (-80_000..80_000).map(|i| S::T::of(f64::from(i) * 0.009_37)).collect();
        let epsilon = S::T::DTYPE.roundoff() * 2.0;
        for (x, y) in xs.iter().zip(exp_all::<S>(&xs)) {
            let (x, y) = (x.to_f64(), y.to_f64());
            let exact = x.exp();
            let smallest_normal =
                if epsilon > 1e-10 { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE };
            let largest = if epsilon > 1e-10 { f64::from(f32::MAX) } else { f64::MAX };
            if exact > largest {
                assert_eq!(y, f64::INFINITY, "exp({x})");
            } else if span(x) && exact > smallest_normal {
                assert!((y / exact - 1.0).abs() <= ulps * epsilon, "exp({x}) = {y}, not {exact}");
            } else {
                assert!((y - exact).abs() <= smallest_normal * epsilon, "exp({x}) = {y}, not {exact}");
            }
        }
        let special = [f64::NAN, f64::NEG_INFINITY, f64::INFINITY, 0.0];
        let mut xs = vec![S::T::ZERO; S::WIDTH.max(4)];
        for (x, value) in xs.iter_mut().zip(special) {
            *x = S::T::of(value);
        }
        let ys: Vec<f64> = exp_all::<S>(&xs).iter().map(|y| y.to_f64()).collect();
        assert!(ys[0].is_nan());
        assert_eq!(ys[1..4], [0.0, f64::INFINITY, 1.0]);
    }

    fn check_all<S: Simd>() {
        check_exp::<S>(2.0);
        let ones = vec![S::T::of(1.0); S::LANES];
        let mut out = vec![S::T::ZERO; S::LANES];
        for bits in [0u32, 1, 0b10, 0b0110, u32::MAX] {
            // SAFETY: the callers check the instruction set; both vectors have `LANES` elements.
            unsafe {
                let picked = S::select(bits, S::load(ones.as_ptr()), S::splat(S::T::ZERO));
                S::store(out.as_mut_ptr(), picked);
            }
            for (lane, x) in out.iter().enumerate() {
                assert_eq!(x.to_f64(), f64::from(bits >> lane & 1), "lane {lane} of {bits:b}");
            }
        }
    }

    #[test]
    fn portable_vectors() {
        check_all::<<Portable as Isa>::F32>();
        check_all::<<Portable as Isa>::F64>();
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx2_vectors() {
        if Available::Avx2.is_available() {
            check_all::<<Avx2 as Isa>::F32>();
            check_all::<<Avx2 as Isa>::F64>();
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx512_vectors() {
        if Available::Avx512.is_available() {
            check_all::<<Avx512 as Isa>::F32>();
            check_all::<<Avx512 as Isa>::F64>();
        }
    }
}
