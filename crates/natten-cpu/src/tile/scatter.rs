//! Gradients of captured tensors: what the pairs of a tile add to its elements, summed in the tile as far as the index
//! allows, in f64 and in a fixed order. Pairs that do not count are skipped, not multiplied by zero: theirs may be NaN.

use std::ops::Range;

use natten_core::Element;

use super::TileRun;
use super::build::Class;
use super::code::Scatter;
use super::run::Operand;
use crate::element::Real;
use crate::lanes::all_lanes;
use crate::simd::{MAX_WIDTH, Simd};

/// A strip's share. Where the element does not differ between rows, it goes to `sums`, a number a lane.
///
/// # Safety
/// The operands are of the strip, the offsets inside the table.
#[inline(always)]
pub(super) unsafe fn add<S: Simd>(
    scatter: &Scatter,
    (offset, gradient): (Operand, Operand),
    rows: Range<usize>,
    tile: &TileRun<'_, S::T>,
    sums: &mut [f64],
) {
    let (lanes, table) = (all_lanes(tile.lanes), tile.tables[scatter.table]);
    for (row, &mask) in tile.masks[rows].iter().enumerate() {
        let counts = mask & lanes;
        // SAFETY: the caller's.
        unsafe {
            let numbers = gradient.at.cast::<S::T>().add(row * gradient.moves * S::WIDTH);
            let numbers = std::slice::from_raw_parts(numbers, S::WIDTH);
            let offsets = offset.at.cast::<i32>();
            match scatter.class {
                Class::Uniform | Class::Lane => add_counting(counts, numbers, &mut sums[..S::WIDTH]),
                Class::Row if counts != 0 => {
                    let mut sums = [0.0; MAX_WIDTH];
                    add_counting(counts, numbers, &mut sums[..S::WIDTH]);
                    *table.wrapping_add(*offsets.add(row) as usize) += sums[..S::WIDTH].iter().sum::<f64>();
                }
                Class::Row => {}
                Class::Pair => {
                    let mut left = counts;
                    while left != 0 {
                        let lane = left.trailing_zeros() as usize;
                        left &= left - 1;
                        let entry = table.wrapping_add(*offsets.add(row * S::WIDTH + lane) as usize);
                        *entry += numbers[lane].to_f64();
                    }
                }
            }
        }
    }
}

/// `sums[lane] += numbers[lane]` for the lanes that count.
#[inline(always)]
fn add_counting<R: Real>(counts: u32, numbers: &[R], sums: &mut [f64]) {
    for (lane, (sum, number)) in sums.iter_mut().zip(numbers).enumerate() {
        *sum += if counts >> lane & 1 == 1 { number.to_f64() } else { 0.0 };
    }
}

/// The sums of a tile's lanes, to the elements that the lanes name.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(super) unsafe fn finish<S: Simd>(
    scatter: &Scatter,
    offset: Operand,
    tile: &TileRun<'_, S::T>,
    sums: &[f64],
) {
    let table = tile.tables[scatter.table];
    // SAFETY: the caller's.
    let add = |lane: usize, sum: f64| unsafe {
        *table.wrapping_add(*offset.at.cast::<i32>().add(lane) as usize) += sum;
    };
    match scatter.class {
        Class::Uniform => add(0, sums.iter().sum::<f64>()),
        Class::Lane => sums.iter().enumerate().take(tile.lanes).for_each(|(lane, &sum)| add(lane, sum)),
        Class::Row | Class::Pair => {}
    }
}
