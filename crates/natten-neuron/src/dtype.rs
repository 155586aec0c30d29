//! The element types of the machine that kernels here use, and the rounding to them.

use half::{bf16, f16};
use natten_core::DType;

/// The type of a tensor's elements on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Bytes: predicates.
    U8,
}

impl Dtype {
    /// The machine's type of a problem's dtype; None where it has none.
    pub const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::Bf16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }

    /// The name of NKI's `nl`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::U8 => "uint8",
        }
    }

    /// Rounds to nearest, ties to even. Storage holds numbers of every type as the f32 that they are.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => bf16::from_f32(x).to_f32(),
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::U8 => x.round_ties_even().clamp(0.0, 255.0),
        }
    }

    /// Rounds a row in place.
    pub fn round_all(self, row: &mut [f32]) {
        if self != Self::F32 {
            row.iter_mut().for_each(|x| *x = self.round(*x));
        }
    }

    /// What freshly allocated memory holds: NaN, or 4 of integers, as in AWS's simulator.
    pub const fn poison(self) -> f32 {
        match self {
            Self::U8 => 4.0,
            _ => f32::NAN,
        }
    }
}
