//! The rate of fused multiply-adds of this machine's cores in registers: what the kernels' rates are set beside.

use std::time::{Duration, Instant};

use natten_core::DType;

use crate::isa::Isa;

/// How long it is measured.
const TIME: Duration = Duration::from_millis(300);

/// Steps between two looks at the clock.
const STEPS: usize = 1_000_000;

/// Independent chains, as many as hide the latency.
const CHAINS: f64 = 12.0;

/// Flops a second of the calling thread, which does nothing but fused multiply-adds, in the type that `dtype` is computed
/// in; `None` where the instruction set has no such loop here.
pub(crate) fn rate(isa: Isa, dtype: DType) -> Option<f64> {
    let lanes_of_f64: fn() -> f64 = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a backend's instruction set is one that the processor has.
        Isa::Avx512 => || unsafe { chains_avx512(STEPS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => || unsafe { chains_avx2(STEPS) },
        _ => return None,
    };
    let per_f64 = if dtype == DType::F64 { 1.0 } else { 2.0 };
    let (start, mut flops) = (Instant::now(), 0.0);
    while start.elapsed() < TIME {
        flops += 2.0 * CHAINS * per_f64 * lanes_of_f64() * STEPS as f64;
    }
    Some(flops / start.elapsed().as_secs_f64())
}

/// Twelve independent chains of `steps` multiply-adds; returns the f64 lanes of a vector.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains_avx512(steps: usize) -> f64 {
    use std::arch::x86_64::{_mm512_fmadd_pd, _mm512_reduce_add_pd, _mm512_set1_pd};
    let (a, b) = (_mm512_set1_pd(std::hint::black_box(0.999)), _mm512_set1_pd(1e-3));
    let mut sums = [_mm512_set1_pd(1.0); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_pd(*sum, a, b);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm512_reduce_add_pd(sum)));
    8.0
}

/// As [`chains_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(steps: usize) -> f64 {
    use std::arch::x86_64::{_mm256_fmadd_pd, _mm256_set1_pd};
    let (a, b) = (_mm256_set1_pd(std::hint::black_box(0.999)), _mm256_set1_pd(1e-3));
    let mut sums = [_mm256_set1_pd(1.0); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_pd(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    4.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_has_about_twice_the_rate_of_f64() {
        let isa = Isa::widest();
        if let (Some(single), Some(double)) = (rate(isa, DType::F32), rate(isa, DType::F64)) {
            // Other processes may be about: only what cannot be by chance.
            assert!(double > 1e8 && single > 0.5 * double, "{single:e} {double:e}");
        }
    }
}
