//! Which instructions this processor has, found out at run time.

use natten_core::{Error, Result};

/// The environment variable that overrides the choice, for tests and comparisons.
pub const ISA_VARIABLE: &str = "NATTEN_CPU_ISA";

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever the target guarantees; short arrays that the compiler turns into vectors where it can.
    Portable,
    /// AVX2 with FMA and F16C: 256-bit vectors.
    Avx2,
    /// AVX-512 F: 512-bit vectors.
    Avx512,
}

impl Isa {
    /// Every instruction set, narrowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name in reports and in `NATTEN_CPU_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// The widest that this processor has, or the one that `NATTEN_CPU_ISA` names.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the variable names an unknown or an absent instruction set.
    pub fn detect() -> Result<Self> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name),
            _ => Ok(Self::widest()),
        }
    }

    /// The widest that this processor has.
    pub fn widest() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    fn named(name: &str) -> Result<Self> {
        let available = || {
            let names: Vec<_> =
                Self::ALL.iter().filter(|isa| isa.is_available()).map(|isa| isa.name()).collect();
            format!("this processor has {}", names.join(", "))
        };
        Self::ALL.into_iter().find(|isa| isa.name() == name && isa.is_available()).ok_or_else(|| {
            Error::invalid(
                ISA_VARIABLE,
                format!("'{name}'"),
                "it is not an instruction set of this processor",
                available(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_refused_with_what_is_there() {
        let message = Isa::named("mmx").unwrap_err().to_string();
        assert!(message.contains("'mmx'") && message.contains("portable"), "{message}");
        assert_eq!(Isa::named("portable").unwrap(), Isa::Portable);
        assert!(Isa::widest().is_available());
    }
}
