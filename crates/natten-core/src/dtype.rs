//! Element types: the four of floats that tensors are stored in, and what each is accumulated in; and the integers that
//! programs capture.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// IEEE double precision; accumulated in itself.
    F64,
    /// IEEE single precision; accumulated in itself.
    F32,
    /// IEEE half precision; accumulated in f32.
    F16,
    /// bfloat16 (8 exponent bits, 7 of mantissa); accumulated in f32.
    Bf16,
    /// 32-bit integers, of captured tensors alone.
    I32,
}

impl DType {
    /// Every dtype that attention runs in, widest first.
    pub const FLOATS: [Self; 4] = [Self::F64, Self::F32, Self::F16, Self::Bf16];

    /// Whether attention runs in this dtype.
    pub const fn is_float(self) -> bool {
        !matches!(self, Self::I32)
    }

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name that the command line, the errors and the reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
        }
    }

    /// The type that sums run in, and the dtype of `logsumexp`: f64 for f64, i32 for i32, otherwise f32.
    pub const fn accumulator(self) -> Self {
        match self {
            Self::F64 => Self::F64,
            Self::F32 | Self::F16 | Self::Bf16 => Self::F32,
            Self::I32 => Self::I32,
        }
    }

    /// The unit roundoff: half the distance from 1 to the next number; 0 of integers.
    pub const fn roundoff(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON / 2.0,
            Self::F32 => f32::EPSILON as f64 / 2.0,
            Self::F16 => 1.0 / 2048.0,
            Self::Bf16 => 1.0 / 256.0,
            Self::I32 => 0.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::FLOATS.into_iter().chain([Self::I32]).find(|d| d.name() == text).ok_or_else(|| {
            Error::invalid(
                "dtype",
                format!("'{text}'"),
                "it is not a known element type",
                "use f64, f32, f16 or bf16, or i32 for captured integers",
            )
        })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f64 {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for i32 {}
}

/// A Rust type that is one of the [`DType`]s. Sealed: the set is closed.
pub trait Element: sealed::Sealed + Copy + Default + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// The dtype that this type stores.
    const DTYPE: DType;

    /// Widens; exact.
    fn to_f64(self) -> f64;

    /// Rounds to nearest, ties to even, once. Integers saturate, and are 0 where `value` is NaN.
    fn from_f64(value: f64) -> Self;
}

macro_rules! element {
    ($type:ty, $dtype:ident, $to:expr, $from:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;

            fn to_f64(self) -> f64 {
                $to(self)
            }

            fn from_f64(value: f64) -> Self {
                $from(value)
            }
        }
    };
}

element!(f64, F64, |x| x, |x| x);
element!(f32, F32, f64::from, |x| x as Self);
element!(f16, F16, Self::to_f64, Self::from_f64);
element!(bf16, Bf16, Self::to_f64, Self::from_f64);
element!(i32, I32, f64::from, |x: f64| x.round_ties_even() as Self);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for dtype in DType::FLOATS.into_iter().chain([DType::I32]) {
            assert_eq!(dtype.name().parse::<DType>().unwrap(), dtype);
        }
        let message = "f8".parse::<DType>().unwrap_err().to_string();
        assert!(message.contains("'f8'") && message.contains("bf16"), "{message}");
    }

    #[test]
    fn integers_round_and_saturate() {
        for (value, expected) in [(2.5, 2), (-0.6, -1), (1e10, i32::MAX), (-1e10, i32::MIN), (f64::NAN, 0)] {
            assert_eq!(<i32 as Element>::from_f64(value), expected, "{value}");
        }
    }

    #[test]
    fn roundoff_is_half_an_ulp_of_one() {
        assert_eq!(DType::F16.roundoff(), f16::EPSILON.to_f64() / 2.0);
        assert_eq!(DType::Bf16.roundoff(), bf16::EPSILON.to_f64() / 2.0);
    }
}
