//! The choice of the instruction set that work runs with.

use crate::element::Real;
use crate::isa::Isa;
use crate::simd::{self, Outlined, Simd};

/// Does work with the vectors of an instruction set.
///
/// # Safety
/// The processor has it; the rest is the work's.
pub(crate) unsafe fn run_on<R: Real, W: Outlined<T = R>>(isa: Isa, work: W) {
    // SAFETY: the caller's.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => <R as Real>::On::<simd::Avx512>::outlined(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => <R as Real>::On::<simd::Avx2>::outlined(work),
            _ => <R as Real>::On::<simd::Portable>::outlined(work),
        }
    }
}
