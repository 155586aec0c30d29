//! What kernels are made for: an architecture and its limits. Known without a device, so that kernels of any
//! architecture can be made and compiled where there is none.

/// A kind of GPU, as far as kernels depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target {
    /// The compute capability: major, minor.
    pub arch: (u32, u32),
    /// Multiprocessors.
    pub units: u32,
    /// The most shared memory that a block can have, in bytes, where its kernel asks for more than the usual 48 KiB.
    pub shared_bytes: u32,
}

impl Target {
    /// A typical GPU of a compute capability: what the largest of its data-centre or desktop models has.
    pub const fn of_arch(major: u32, minor: u32) -> Self {
        const KIB: u32 = 1024;
        let (units, shared_bytes) = match (major, minor) {
            (..7, _) => (56, 48 * KIB),
            (7, ..5) => (80, 96 * KIB),
            (7, _) => (72, 64 * KIB),
            (8, 0 | 7) => (108, 163 * KIB),
            (8, _) => (128, 99 * KIB),
            (9, _) => (132, 227 * KIB),
            (10 | 11, _) => (148, 227 * KIB),
            _ => (170, 99 * KIB),
        };
        Self { arch: (major, minor), units, shared_bytes }
    }

    /// The compute capability as one number: 90 for 9.0.
    pub const fn number(&self) -> u32 {
        self.arch.0 * 10 + self.arch.1
    }

    /// What NVRTC calls the architecture. Hopper's is the one with its own instructions, such as `wgmma`.
    pub fn name(&self) -> String {
        format!("sm_{}{}", self.number(), if self.arch == (9, 0) { "a" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_compiler() {
        assert_eq!(Target::of_arch(7, 5).name(), "sm_75");
        assert_eq!(Target::of_arch(9, 0).name(), "sm_90a");
        assert_eq!(Target::of_arch(12, 0).name(), "sm_120");
        assert_eq!(Target::of_arch(9, 0).shared_bytes, 232_448);
    }
}
