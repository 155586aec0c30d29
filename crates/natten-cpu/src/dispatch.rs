//! Work that is compiled once an instruction set, and the choice of the one to run.

use crate::element::Real;
use crate::isa::Isa;
use crate::simd::{self, Simd};

/// Work on numbers of a type. Everything that it calls is `inline(always)`, or compiled for its instruction set.
pub(crate) trait Work<R: Real> {
    /// Does it.
    ///
    /// # Safety
    /// The processor has `S`'s instruction set.
    unsafe fn run<S: Simd<T = R>>(&mut self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<R: Real>(work: &mut impl Work<R>) {
    // SAFETY: the features are those of the vectors.
    unsafe { work.run::<<R as Real>::On<simd::Avx2>>() };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn avx512<R: Real>(work: &mut impl Work<R>) {
    // SAFETY: the features are those of the vectors.
    unsafe { work.run::<<R as Real>::On<simd::Avx512>>() };
}

/// Does work with the kernels of an instruction set.
///
/// # Safety
/// The processor has it.
pub(crate) unsafe fn run_on<R: Real>(isa: Isa, work: &mut impl Work<R>) {
    // SAFETY: the caller's.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(work),
            _ => work.run::<<R as Real>::On<simd::Portable>>(),
        }
    }
}
