//! Element types: the four that tensors are stored in, and what each is accumulated in.

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
}

impl DType {
    /// Every dtype, widest first.
    pub const ALL: [Self; 4] = [Self::F64, Self::F32, Self::F16, Self::Bf16];

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
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
        }
    }

    /// The type that sums run in, and the dtype of `logsumexp`: f64 for f64, otherwise f32.
    pub const fn accumulator(self) -> Self {
        match self {
            Self::F64 => Self::F64,
            Self::F32 | Self::F16 | Self::Bf16 => Self::F32,
        }
    }

    /// The unit roundoff: half the distance from 1 to the next number.
    pub const fn roundoff(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON / 2.0,
            Self::F32 => f32::EPSILON as f64 / 2.0,
            Self::F16 => 1.0 / 2048.0,
            Self::Bf16 => 1.0 / 256.0,
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
        Self::ALL.into_iter().find(|d| d.name() == text).ok_or_else(|| {
            Error::invalid(
                "dtype",
                format!("'{text}'"),
                "it is not a known element type",
                "use f64, f32, f16 or bf16",
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
}

/// A Rust type that is one of the [`DType`]s. Sealed: the set is closed.
pub trait Element: sealed::Sealed + Copy + Default + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// The dtype that this type stores.
    const DTYPE: DType;

    /// Widens; exact.
    fn to_f64(self) -> f64;

    /// Rounds to nearest, ties to even, once.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for dtype in DType::ALL {
            assert_eq!(dtype.name().parse::<DType>().unwrap(), dtype);
        }
        let message = "f8".parse::<DType>().unwrap_err().to_string();
        assert!(message.contains("'f8'") && message.contains("bf16"), "{message}");
    }

    #[test]
    fn roundoff_is_half_an_ulp_of_one() {
        assert_eq!(DType::F16.roundoff(), f16::EPSILON.to_f64() / 2.0);
        assert_eq!(DType::Bf16.roundoff(), bf16::EPSILON.to_f64() / 2.0);
    }
}
