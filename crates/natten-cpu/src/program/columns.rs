//! Reductions over the rows of a tile, lane by lane: the online logsumexp, sums and extremes, and the masking of what
//! does not count.

use natten_core::program::Reduce;

use crate::element::Real;
use crate::simd::Simd;

/// The lanes that count in every row of a tile; None where all do.
pub(super) type Masks<'m> = Option<&'m [u32]>;

/// A lane group's numbers of a logsumexp stage, one a lane.
#[derive(Debug)]
pub(super) struct Running<'s, R> {
    pub(super) peak: &'s mut [R],
    pub(super) total: &'s mut [R],
    /// What sums have to be multiplied with.
    pub(super) rescale: &'s mut [R],
}

/// Moves the peak and the total of a logsumexp stage on over a tile of its elements, and leaves the exponentials of the
/// elements less the peak in `to`, 0 where a pair does not count.
///
/// # Safety
/// The processor has `S`; the tiles have `rows` rows of `WIDTH` lanes, the numbers `WIDTH` lanes. `to` may be `from`.
#[inline(always)]
pub(super) unsafe fn logsumexp<S: Simd>(
    rows: usize,
    vectors: usize,
    masks: Masks<'_>,
    from: *const S::T,
    to: Option<*mut S::T>,
    running: Running<'_, S::T>,
) {
    let nothing = S::T::NEG_INFINITY;
    // SAFETY: the caller's.
    unsafe {
        for j in 0..vectors {
            let lane = j * S::LANES;
            // A lane that has seen nothing but -inf keeps a finite peak, so that its weights are 0 and not NaN.
            let before = S::max(S::load(running.peak.as_ptr().add(lane)), S::splat(S::T::LOWEST));
            let mut peak = before;
            for row in 0..rows {
                peak = S::max(element::<S>(from, masks, row, lane, nothing), peak);
            }
            let factor = S::exp(S::sub(before, peak));
            let mut sum = S::mul(S::load(running.total.as_ptr().add(lane)), factor);
            for row in 0..rows {
                let power = S::exp(S::sub(element::<S>(from, masks, row, lane, nothing), peak));
                if let Some(to) = to {
                    S::store(to.add(row * S::WIDTH + lane), power);
                }
                sum = S::add(sum, power);
            }
            S::store(running.peak.as_mut_ptr().add(lane), peak);
            S::store(running.total.as_mut_ptr().add(lane), sum);
            S::store(running.rescale.as_mut_ptr().add(lane), factor);
        }
    }
}

/// A vector of a tile, `otherwise` where a pair does not count.
///
/// # Safety
/// As [`logsumexp`].
#[inline(always)]
unsafe fn element<S: Simd>(
    tile: *const S::T,
    masks: Masks<'_>,
    row: usize,
    lane: usize,
    otherwise: S::T,
) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let element = S::load(tile.add(row * S::WIDTH + lane));
        match masks {
            Some(masks) => S::select(*masks.get_unchecked(row) >> lane, element, S::splat(otherwise)),
            None => element,
        }
    }
}

/// Reduces a tile into one number a lane, which is multiplied with `rescale` first.
///
/// # Safety
/// As [`logsumexp`].
#[inline(always)]
pub(super) unsafe fn reduce<S: Simd>(
    reduce: Reduce,
    rows: usize,
    vectors: usize,
    masks: Masks<'_>,
    tile: *const S::T,
    rescale: Option<&[S::T]>,
    number: &mut [S::T],
) {
    let identity = S::T::of(reduce.identity());
    // SAFETY: the caller's.
    unsafe {
        for j in 0..vectors {
            let lane = j * S::LANES;
            let at = number.as_mut_ptr().add(lane);
            let mut reduced = S::load(at);
            if let Some(rescale) = rescale {
                reduced = S::mul(reduced, S::load(rescale.as_ptr().add(lane)));
            }
            for row in 0..rows {
                let element = element::<S>(tile, masks, row, lane, identity);
                reduced = match reduce {
                    Reduce::Max => S::max(reduced, element),
                    Reduce::Min => S::min(reduced, element),
                    _ => S::add(reduced, element),
                };
            }
            S::store(at, reduced);
        }
    }
}

/// Sets the pairs of a tile that do not count to zero.
///
/// # Safety
/// As [`logsumexp`].
#[inline(always)]
pub(super) unsafe fn clear<S: Simd>(vectors: usize, masks: &[u32], tile: *mut S::T) {
    // SAFETY: the caller's.
    unsafe {
        let zero = S::splat(S::T::ZERO);
        for (row, &mask) in masks.iter().enumerate() {
            for j in 0..vectors {
                let at = tile.add(row * S::WIDTH + j * S::LANES);
                S::store(at, S::select(mask >> (j * S::LANES), S::load(at), zero));
            }
        }
    }
}
