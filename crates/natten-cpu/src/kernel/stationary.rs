//! Stationary vectors in lanes, and the sums that belong to them.

use natten_core::geometry::TileBox;

use crate::element::Real;
use crate::lanes::Sight;
use crate::simd::{Extents, Left, Simd};
use crate::tokens::{Place, Tokens};

/// Packs the vectors of a lane group transposed: `dim` rows of `width` lanes, times `factor`. Lanes without a token
/// hold zeros.
///
/// # Safety
/// The group is inside the tensor.
#[inline(always)]
pub(crate) unsafe fn pack_panel<R: Real>(
    tensor: &Tokens<R>,
    at: (usize, usize),
    group: &Place,
    factor: R,
    vector: &mut [R],
    panel: &mut [R],
) {
    let width = panel.len() / vector.len();
    panel.fill(R::ZERO);
    for lane in 0..group.tile.volume() {
        // SAFETY: the caller's.
        unsafe { tensor.read(at.0, group.nth(lane), at.1, vector) };
        for (d, &number) in vector.iter().enumerate() {
            panel[d * width + lane] = number * factor;
        }
    }
}

/// `tile[row][lane] = ⟨streamed[row], stationary[lane]⟩` for the rows of the sight.
///
/// # Safety
/// The processor has `S`; `rows` holds the streamed box, `stride` apart, `panel` `dim` rows of `WIDTH` lanes, and
/// `tile` has `WIDTH` lanes for every row of the sight.
#[inline(always)]
pub(crate) unsafe fn products<S: Simd>(
    sight: &Sight<'_>,
    dim: usize,
    vectors: usize,
    rows: (&[S::T], usize),
    panel: &[S::T],
    tile: &mut [S::T],
) {
    // SAFETY: the caller's.
    unsafe { products_into::<S, false>(sight, dim, vectors, rows, panel, tile) };
}

/// The same, or with `ADDS` added to what the tile holds.
///
/// # Safety
/// As [`products`].
#[inline(always)]
pub(crate) unsafe fn products_into<S: Simd, const ADDS: bool>(
    sight: &Sight<'_>,
    dim: usize,
    vectors: usize,
    rows: (&[S::T], usize),
    panel: &[S::T],
    tile: &mut [S::T],
) {
    let mut at = 0;
    for (first, count) in sight.runs() {
        let left = Left { data: rows.0.as_ptr().wrapping_add(first * rows.1), row: rows.1, column: 1 };
        let to = tile.as_mut_ptr().wrapping_add(at * S::WIDTH);
        // SAFETY: the caller's.
        unsafe {
            let extents = Extents { rows: count, vectors, depth: dim };
            S::gemm::<ADDS>(extents, left, (panel.as_ptr(), S::WIDTH), (to, S::WIDTH));
        }
        at += count;
    }
}

/// Which pairs of a tile count: those that are visible, in lanes and rows that are alive.
#[derive(Debug)]
pub(crate) struct Alive<'a, R> {
    /// Lanes that count.
    pub(crate) lanes: u32,
    /// The logsumexp of every streamed row, where rows are queries: a row at -inf does not count.
    pub(crate) rows: Option<&'a [R]>,
    /// Whether some lane or row does not count, or not every pair is visible.
    pub(crate) any_masked: bool,
}

impl<R: Real> Alive<'_, R> {
    /// The lanes that count in a row.
    #[inline(always)]
    pub(super) fn mask(&self, sight: &Sight<'_>, offset: [usize; 3]) -> u32 {
        match self.rows {
            Some(logsumexp) if logsumexp[sight.row(offset)] == R::NEG_INFINITY => 0,
            _ => sight.mask(offset) & self.lanes,
        }
    }
}

/// `sums[lane] += Σ_row tile[row][lane] * streamed[row]`.
///
/// A pair that does not count has weight zero, and zero times infinity is NaN: where a streamed vector is not finite and
/// some pair does not count, the pairs are taken one by one.
///
/// # Safety
/// As [`products`]; `sums` has `lanes` rows, `stride` apart.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd>(
    sight: &Sight<'_>,
    alive: &Alive<'_, S::T>,
    group: &TileBox,
    rows: (&[S::T], usize, bool),
    tile: &[S::T],
    sums: &mut [S::T],
) {
    let (data, stride, is_finite) = rows;
    if alive.any_masked && !is_finite {
        let mask = |_, offset| alive.mask(sight, offset);
        accumulate_one_by_one(sight, &mask, (data, stride), S::WIDTH, tile, sums);
        return;
    }
    // SAFETY: the caller's.
    unsafe { accumulate_all::<S>(sight, group, (data, stride), tile, sums) };
}

/// The same where the lanes that count in every row of the sight are known; None where all do.
///
/// # Safety
/// As [`accumulate`].
#[inline(always)]
pub(crate) unsafe fn accumulate_masked<S: Simd>(
    sight: &Sight<'_>,
    masks: Option<&[u32]>,
    group: &TileBox,
    rows: (&[S::T], usize, bool),
    tile: &[S::T],
    sums: &mut [S::T],
) {
    let (data, stride, is_finite) = rows;
    match masks {
        Some(masks) if !is_finite => {
            let mask = |index: usize, _| masks[index];
            accumulate_one_by_one(sight, &mask, (data, stride), S::WIDTH, tile, sums);
        }
        // SAFETY: the caller's.
        _ => unsafe { accumulate_all::<S>(sight, group, (data, stride), tile, sums) },
    }
}

/// Every pair, whether it counts or not.
///
/// # Safety
/// As [`accumulate`].
#[inline(always)]
unsafe fn accumulate_all<S: Simd>(
    sight: &Sight<'_>,
    group: &TileBox,
    (data, stride): (&[S::T], usize),
    tile: &[S::T],
    sums: &mut [S::T],
) {
    let mut at = 0;
    for (first, count) in sight.runs() {
        let left = Left { data: tile.as_ptr().wrapping_add(at * S::WIDTH), row: 1, column: S::WIDTH };
        let from = data.as_ptr().wrapping_add(first * stride);
        // SAFETY: the caller's.
        unsafe {
            let extents = Extents { rows: group.volume(), vectors: stride / S::LANES, depth: count };
            S::gemm::<true>(extents, left, (from, stride), (sums.as_mut_ptr(), stride));
        }
        at += count;
    }
}

/// `mask` gives the lanes that count from the row's number in the sight and its offset in the streamed box.
#[cold]
fn accumulate_one_by_one<R: Real>(
    sight: &Sight<'_>,
    mask: &dyn Fn(usize, [usize; 3]) -> u32,
    (data, stride): (&[R], usize),
    width: usize,
    tile: &[R],
    sums: &mut [R],
) {
    let mut offset = sight.first();
    for index in 0..sight.rows() {
        let vector = &data[sight.row(offset) * stride..][..stride];
        let mut lanes = mask(index, offset);
        while lanes != 0 {
            let lane = lanes.trailing_zeros() as usize;
            lanes &= lanes - 1;
            let weight = tile[index * width + lane];
            for (sum, &number) in sums[lane * stride..(lane + 1) * stride].iter_mut().zip(vector) {
                *sum = *sum + weight * number;
            }
        }
        offset = sight.after(offset);
    }
}
