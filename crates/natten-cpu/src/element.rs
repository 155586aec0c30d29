//! What is stored and what is computed in: f64 in f64, everything else in f32. Kernels are compiled for the type that
//! they compute in; what a tensor is stored in is looked up when one of its vectors is read or written.

use std::ops::{Add, Div, Mul, Sub};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use natten_core::{DType, Element, HostElement};

use crate::simd::{Isa, Simd};

/// A type that kernels compute in, with the constants of its exponential.
pub(crate) trait Real:
    HostElement
    + bytemuck::Pod
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// Its vectors on an instruction set.
    type On<I: Isa>: Simd<T = Self>;

    const ZERO: Self;
    const NEG_INFINITY: Self;
    /// The smallest finite number: what a running maximum of nothing is replaced by.
    const LOWEST: Self;
    const LOG2_E: Self;
    /// ln 2 in two parts, the first with trailing zeros, so that `n * LN2_HI` is exact.
    const LN2_HI: Self;
    const LN2_LO: Self;
    /// Below this the exponential is zero.
    const EXP_LOW: Self;
    /// Above this the exponential is infinite.
    const EXP_HIGH: Self;
    /// Coefficients of the polynomial of exp on [-ln 2 / 2, ln 2 / 2], constant first.
    const EXP: &'static [Self];
    /// Below this `exp(x) - 1` is -1.
    const EXPM1_LOW: Self;
    /// Above this tanh is 1.
    const TANH_HIGH: Self;
    /// Coefficients of the polynomial `p` of `ln(1 + f) = f - f²/2 + s (f²/2 + s² p(s²))` with `s = f / (2 + f)`, on
    /// [1/√2 - 1, √2 - 1], constant first.
    const LOG: &'static [Self];

    fn of(value: f64) -> Self;
    fn ln(self) -> Self;

    /// Reads a vector of `to.len()` numbers, `stride` apart, stored as `dtype`.
    ///
    /// # Safety
    /// The vector is readable, and `dtype` is one that is computed in this type.
    unsafe fn read(dtype: DType, from: *const u8, stride: isize, to: &mut [Self]);

    /// Writes a vector, rounding each number once.
    ///
    /// # Safety
    /// As [`read`](Self::read), and the vector may be written.
    unsafe fn write(dtype: DType, to: *mut u8, stride: isize, from: &[Self]);
}

impl Real for f32 {
    type On<I: Isa> = I::F32;

    const ZERO: Self = 0.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const LOWEST: Self = Self::MIN;
    const LOG2_E: Self = std::f32::consts::LOG2_E;
    const LN2_HI: Self = 355.0 / 512.0;
    const LN2_LO: Self = -2.121_944_4e-4;
    const EXP_LOW: Self = -104.0;
    const EXP_HIGH: Self = 89.0;
    // The minimax polynomial of Cephes' expf: 1 ulp on this interval.
    const EXP: &'static [Self] =
        &[1.0, 1.0, 0.5, 1.666_666_5e-1, 4.166_579_6e-2, 8.333_452e-3, 1.398_2e-3, 1.987_569_1e-4];
    const EXPM1_LOW: Self = -20.0;
    const TANH_HIGH: Self = 10.0;
    // The minimax polynomial of FreeBSD's logf: 2^-34 on this interval.
    const LOG: &'static [Self] = &[0.666_666_6, 0.400_009_72, 0.284_987_87, 0.242_790_79];

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as Self
    }

    fn ln(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    unsafe fn read(dtype: DType, from: *const u8, stride: isize, to: &mut [Self]) {
        // SAFETY: the caller's.
        unsafe {
            match dtype {
                DType::F16 => read_as::<f16>(from.cast(), stride, to),
                DType::Bf16 => read_as::<bf16>(from.cast(), stride, to),
                _ => read_as::<Self>(from.cast(), stride, to),
            }
        }
    }

    #[inline(always)]
    unsafe fn write(dtype: DType, to: *mut u8, stride: isize, from: &[Self]) {
        // SAFETY: the caller's.
        unsafe {
            match dtype {
                DType::F16 => write_as::<f16>(to.cast(), stride, from),
                DType::Bf16 => write_as::<bf16>(to.cast(), stride, from),
                _ => write_as::<Self>(to.cast(), stride, from),
            }
        }
    }
}

impl Real for f64 {
    type On<I: Isa> = I::F64;

    const ZERO: Self = 0.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const LOWEST: Self = Self::MIN;
    const LOG2_E: Self = std::f64::consts::LOG2_E;
    const LN2_HI: Self = 6.931_471_803_691_238e-1;
    const LN2_LO: Self = 1.908_214_929_270_587_7e-10;
    const EXP_LOW: Self = -746.0;
    const EXP_HIGH: Self = 710.0;
    // The Taylor series to degree 13: its remainder is 4e-18 on this interval.
    const EXP: &'static [Self] = &[
        1.0,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5_040.0,
        1.0 / 40_320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0,
        1.0 / 39_916_800.0,
        1.0 / 479_001_600.0,
        1.0 / 6_227_020_800.0,
    ];
    const EXPM1_LOW: Self = -40.0;
    const TANH_HIGH: Self = 20.0;
    // The minimax polynomial of fdlibm's log: 2^-58 on this interval.
    const LOG: &'static [Self] = &[
        6.666_666_666_666_735e-1,
        3.999_999_999_940_942e-1,
        2.857_142_874_366_239e-1,
        2.222_219_843_214_978_4e-1,
        1.818_357_216_161_805e-1,
        1.531_383_769_920_937_3e-1,
        1.479_819_860_511_658_6e-1,
    ];

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    fn ln(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    unsafe fn read(_dtype: DType, from: *const u8, stride: isize, to: &mut [Self]) {
        // SAFETY: the caller's.
        unsafe { read_as::<Self>(from.cast(), stride, to) };
    }

    #[inline(always)]
    unsafe fn write(_dtype: DType, to: *mut u8, stride: isize, from: &[Self]) {
        // SAFETY: the caller's.
        unsafe { write_as::<Self>(to.cast(), stride, from) };
    }
}

/// Reads a vector stored as `E`.
///
/// # Safety
/// As [`Real::read`].
#[inline(always)]
unsafe fn read_as<E: Stored>(from: *const E, stride: isize, to: &mut [E::Compute]) {
    // SAFETY: the caller's.
    unsafe {
        if stride == 1 {
            E::widen_slice(std::slice::from_raw_parts(from, to.len()), to);
        } else {
            for (i, to) in to.iter_mut().enumerate() {
                *to = (*from.wrapping_offset(i as isize * stride)).widen();
            }
        }
    }
}

/// Writes a vector stored as `E`.
///
/// # Safety
/// As [`Real::write`].
#[inline(always)]
unsafe fn write_as<E: Stored>(to: *mut E, stride: isize, from: &[E::Compute]) {
    // SAFETY: the caller's.
    unsafe {
        if stride == 1 {
            E::narrow_slice(from, std::slice::from_raw_parts_mut(to, from.len()));
        } else {
            for (i, from) in from.iter().enumerate() {
                *to.wrapping_offset(i as isize * stride) = E::narrow(*from);
            }
        }
    }
}

/// Reads one number stored as any type: a captured tensor need not be of a type that its kernel computes in.
///
/// # Safety
/// The number is readable and aligned.
#[inline]
pub(crate) unsafe fn read_number(dtype: DType, from: *const u8) -> f64 {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            DType::F64 => from.cast::<f64>().read(),
            DType::F32 => Element::to_f64(from.cast::<f32>().read()),
            DType::F16 => Element::to_f64(from.cast::<f16>().read()),
            DType::Bf16 => Element::to_f64(from.cast::<bf16>().read()),
            DType::I32 => Element::to_f64(from.cast::<i32>().read()),
            _ => f64::NAN,
        }
    }
}

/// Writes one number as any floating-point type, rounded once. Integers have no gradients, and are left alone.
///
/// # Safety
/// The number is writable and aligned.
#[inline]
pub(crate) unsafe fn write_number(dtype: DType, to: *mut u8, value: f64) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            DType::F64 => to.cast::<f64>().write(value),
            DType::F32 => to.cast::<f32>().write(Element::from_f64(value)),
            DType::F16 => to.cast::<f16>().write(Element::from_f64(value)),
            DType::Bf16 => to.cast::<bf16>().write(Element::from_f64(value)),
            _ => {}
        }
    }
}

/// A type that tensors are stored in, with the way to the type that kernels compute in.
trait Stored: HostElement {
    type Compute: Real;

    fn widen(self) -> Self::Compute;
    fn narrow(value: Self::Compute) -> Self;
    fn widen_slice(from: &[Self], to: &mut [Self::Compute]);
    fn narrow_slice(from: &[Self::Compute], to: &mut [Self]);
}

macro_rules! stored_as_itself {
    ($type:ty) => {
        impl Stored for $type {
            type Compute = Self;

            #[inline(always)]
            fn widen(self) -> Self {
                self
            }

            #[inline(always)]
            fn narrow(value: Self) -> Self {
                value
            }

            #[inline(always)]
            fn widen_slice(from: &[Self], to: &mut [Self]) {
                to.copy_from_slice(from);
            }

            #[inline(always)]
            fn narrow_slice(from: &[Self], to: &mut [Self]) {
                to.copy_from_slice(from);
            }
        }
    };
}

macro_rules! stored_as_half {
    ($type:ty, $widen_slice:expr) => {
        impl Stored for $type {
            type Compute = f32;

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }

            #[inline(always)]
            fn narrow(value: f32) -> Self {
                Self::from_f32(value)
            }

            #[inline(always)]
            fn widen_slice(from: &[Self], to: &mut [f32]) {
                $widen_slice(from, to);
            }

            #[inline(always)]
            fn narrow_slice(from: &[f32], to: &mut [Self]) {
                to.convert_from_f32_slice(from);
            }
        }
    };
}

/// A bf16 is the upper half of an f32. Kernels widen every row that they stream, and `half`'s conversion, which quiets
/// signalling NaNs, is not turned into vectors.
#[inline(always)]
fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// `half` uses the processor's own conversion where there is one.
#[inline(always)]
fn widen_f16(from: &[f16], to: &mut [f32]) {
    from.convert_to_f32_slice(to);
}

stored_as_itself!(f64);
stored_as_itself!(f32);
stored_as_half!(f16, widen_f16);
stored_as_half!(bf16, widen_bf16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_to_itself() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bf16s: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
        let f16s: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
        let mut wide = vec![0f32; bits.len()];
        let same = |wide: f32, exact: f64| f64::from(wide) == exact || (wide.is_nan() && exact.is_nan());
        bf16::widen_slice(&bf16s, &mut wide);
        assert!(wide.iter().zip(&bf16s).all(|(&w, x)| same(w, x.to_f64())));
        f16::widen_slice(&f16s, &mut wide);
        assert!(wide.iter().zip(&f16s).all(|(&w, x)| same(w, x.to_f64())));
    }
}
