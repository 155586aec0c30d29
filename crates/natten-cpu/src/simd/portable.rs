//! Vectors for any processor: arrays of 16 bytes, in loops that compilers turn into whatever vectors the target has.
//! Products are rounded before they are added: a fused one would be a call where the target has none.

use super::gemm::gemm;
use super::{Extents, Isa, Left, Outlined, Simd};

/// No more than the target guarantees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

/// [`Portable`] vectors of `T`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array<T>(std::marker::PhantomData<T>);

impl Isa for Portable {
    type F32 = Array<f32>;
    type F64 = Array<f64>;
}

macro_rules! array {
    ($type:ty, $bits:ty, $lanes:literal, $bias:literal, $mantissa:literal) => {
        impl Simd for Array<$type> {
            type T = $type;
            type V = [$type; $lanes];
            type M = [bool; $lanes];

            const LANES: usize = $lanes;
            const ROWS: usize = 4;

            #[inline(always)]
            unsafe fn splat(value: $type) -> Self::V {
                [value; $lanes]
            }

            #[inline(always)]
            unsafe fn load(from: *const $type) -> Self::V {
                // SAFETY: the caller gives `LANES` readable elements.
                unsafe { from.cast::<Self::V>().read_unaligned() }
            }

            #[inline(always)]
            unsafe fn store(to: *mut $type, value: Self::V) {
                // SAFETY: the caller gives `LANES` writable elements.
                unsafe { to.cast::<Self::V>().write_unaligned(value) }
            }

            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }

            #[inline(always)]
            unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }

            #[inline(always)]
            unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }

            #[inline(always)]
            unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i] + c[i])
            }

            #[inline(always)]
            unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] / b[i])
            }

            #[inline(always)]
            unsafe fn sqrt(a: Self::V) -> Self::V {
                a.map(<$type>::sqrt)
            }

            #[inline(always)]
            unsafe fn abs(a: Self::V) -> Self::V {
                a.map(<$type>::abs)
            }

            #[inline(always)]
            unsafe fn with_sign(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].copysign(b[i]))
            }

            #[inline(always)]
            unsafe fn floor(a: Self::V) -> Self::V {
                a.map(<$type>::floor)
            }

            #[inline(always)]
            unsafe fn split(a: Self::V) -> (Self::V, Self::V) {
                const ONE: $bits = $bias << $mantissa;
                const SUBNORMAL: $type = (1u64 << $mantissa) as $type;
                let bits = a.map(|a| {
                    // A subnormal number becomes a normal one, and its exponent is corrected below.
                    let normal = if a < <$type>::MIN_POSITIVE { a * SUBNORMAL } else { a };
                    normal.to_bits().cast_signed()
                });
                let mantissa = bits
                    .map(|bits| <$type>::from_bits((bits & ((1 << $mantissa) - 1) | ONE).cast_unsigned()));
                let exponent = std::array::from_fn(|i| {
                    let shift = if a[i] < <$type>::MIN_POSITIVE { $bias + $mantissa } else { $bias };
                    ((bits[i] >> $mantissa) - shift) as $type
                });
                (mantissa, exponent)
            }

            #[inline(always)]
            unsafe fn from_integers(from: *const i32) -> Self::V {
                // SAFETY: the caller gives `LANES` readable integers.
                unsafe { from.cast::<[i32; $lanes]>().read_unaligned() }.map(|i| i as $type)
            }

            #[inline(always)]
            unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }

            #[inline(always)]
            unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }

            #[inline(always)]
            unsafe fn round(a: Self::V) -> Self::V {
                // Adding and subtracting 1.5 * 2^mantissa rounds to an integer, for numbers far smaller than that.
                const MAGIC: $type = 1.5 * (1u64 << $mantissa) as $type;
                std::array::from_fn(|i| (a[i] + MAGIC) - MAGIC)
            }

            #[inline(always)]
            unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
                // In two steps: the power itself may be out of range where the product is not.
                let power = |n: $bits| <$type>::from_bits(((n + $bias) << $mantissa).cast_unsigned());
                std::array::from_fn(|i| {
                    let whole = n[i] as $bits;
                    let half = whole >> 1;
                    a[i] * power(half) * power(whole - half)
                })
            }

            #[inline(always)]
            unsafe fn select(bits: u32, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if bits >> i & 1 == 1 { a[i] } else { b[i] })
            }

            #[inline(always)]
            unsafe fn lt(a: Self::V, b: Self::V) -> Self::M {
                std::array::from_fn(|i| a[i] < b[i])
            }

            #[inline(always)]
            unsafe fn le(a: Self::V, b: Self::V) -> Self::M {
                std::array::from_fn(|i| a[i] <= b[i])
            }

            #[inline(always)]
            unsafe fn eq(a: Self::V, b: Self::V) -> Self::M {
                std::array::from_fn(|i| a[i] == b[i])
            }

            #[inline(always)]
            unsafe fn blend(which: Self::M, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if which[i] { a[i] } else { b[i] })
            }

            #[inline(always)]
            unsafe fn bits(which: Self::M) -> u32 {
                (0..$lanes).fold(0, |bits, i| bits | u32::from(which[i]) << i)
            }

            #[inline(always)]
            unsafe fn integers_lt(a: *const i32, b: *const i32) -> u32 {
                // SAFETY: the caller gives `LANES` readable integers at both.
                unsafe { (0..$lanes).fold(0, |bits, i| bits | u32::from(*a.add(i) < *b.add(i)) << i) }
            }

            #[inline(always)]
            unsafe fn integers_eq(a: *const i32, b: *const i32) -> u32 {
                // SAFETY: the caller gives `LANES` readable integers at both.
                unsafe { (0..$lanes).fold(0, |bits, i| bits | u32::from(*a.add(i) == *b.add(i)) << i) }
            }

            #[inline(never)]
            unsafe fn outlined<W: Outlined<T = $type>>(work: W) {
                // SAFETY: the caller's.
                unsafe { work.run::<Self>() }
            }

            #[inline(never)]
            unsafe fn gemm<const ACCUMULATE: bool>(
                extents: Extents,
                a: Left<$type>,
                b: (*const $type, usize),
                c: (*mut $type, usize),
            ) {
                // SAFETY: the caller's.
                unsafe { gemm::<Self, ACCUMULATE>(extents, a, b, c) }
            }
        }
    };
}

array!(f32, i32, 4, 127, 23);
array!(f64, i64, 2, 1023, 52);
