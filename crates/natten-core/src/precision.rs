//! How exactly products of f32 are computed: in f32, or on tensor cores that take bf16, by splitting operands.

use std::fmt;
use std::str::FromStr;

use crate::dtype::DType;
use crate::error::{Error, Result};

/// How products of f32 are computed. Whatever it is, sums, softmax and results are f32.
///
/// A split operand is a sum of numbers in bf16, 8 bits each, and a product of two operands the sum of the products of
/// their parts that are not negligible: the tensor cores do not take f32. The errors below were measured on standard normal
/// inputs against f64, over the largest value of the output. Inputs must be finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// Multiplications and additions in the problem's dtype, or a wider one. Errors of 3e-6.
    #[default]
    Full,
    /// Two parts, three products: 16 bits. Errors of 8e-6, and of 7e-5 over 16384 keys for values of more than 128 numbers,
    /// which tensor cores sum.
    Bf16x3,
    /// Three parts, six products: 24 bits, as many as f32 has, at half the rate. Errors of 3e-6, from what tensor cores cut
    /// off their sums.
    Bf16x6,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Full, Self::Bf16x3, Self::Bf16x6];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Bf16x3 => "bf16x3",
            Self::Bf16x6 => "bf16x6",
        }
    }

    /// The largest relative error of rounding an operand of this dtype.
    pub fn roundoff(self, dtype: DType) -> f64 {
        match self {
            // What the last part, of 8 bits, leaves of a number that the first part holds to 8 bits as well.
            Self::Bf16x3 => DType::Bf16.roundoff().powi(2),
            Self::Full | Self::Bf16x6 => dtype.roundoff(),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let hint = format!("there are {names}");
            Error::invalid(
                "precision",
                format!("'{}'", text.escape_debug()),
                "no precision has this name",
                hint,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        let error = "bf16x2".parse::<Precision>().unwrap_err().to_string();
        assert!(error.contains("'bf16x2'") && error.contains("bf16x3"), "{error}");
    }
}
