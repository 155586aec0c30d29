//! A thread's scratch memory, carved out of the workspace.

use super::code::{Sums, Vectors};
use super::walk::MAX_NUMBERS;
use crate::element::Real;

/// Elements of a cache line of f32.
const LINE: usize = 16;

/// Row-major number, and three coordinates: the numbers of a token's index.
pub(super) const INDICES: usize = 4;

/// Sizes of the parts of a thread's scratch, from which they are carved the same way each time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScratchSizes {
    /// Lanes of a group.
    pub(super) width: usize,
    /// `head_dim` and `head_dim_v`, and these rounded up to whole vectors.
    pub(super) dims: [usize; 2],
    pub(super) stride: [usize; 2],
    /// The most rows of a streamed box, and the most groups of a stationary one.
    pub(super) rows: usize,
    pub(super) groups: usize,
    /// The most that a streamed box's extents sum up to.
    pub(super) extents: usize,
    /// Which vectors are streamed and stationary, and which sums there are.
    pub(super) streamed: [bool; 4],
    pub(super) stationary: [bool; 4],
    pub(super) sums: [bool; 3],
    pub(super) tiles: usize,
    /// Numbers a stationary query, and a streamed one.
    pub(super) lane_numbers: usize,
    pub(super) row_numbers: usize,
    /// Elements that tile codes need.
    pub(super) code: usize,
}

/// The parts, in elements of `R`.
#[derive(Debug)]
pub(super) struct Scratch<'s, R> {
    /// Streamed vectors, `stride` apart, by [`Vectors`].
    pub(super) streamed: [&'s mut [R]; 4],
    /// Whether all of them are finite.
    pub(super) finite: [bool; 4],
    /// Stationary vectors, transposed, by [`Vectors`]: for each lane group, `dim` rows of `width` lanes.
    pub(super) stationary: [&'s mut [R]; 4],
    /// Sums of vectors, by [`Sums`]: for each lane group, a row a lane, `stride` apart.
    pub(super) sums: [&'s mut [R]; 3],
    /// `rows x width` each.
    pub(super) tiles: &'s mut [R],
    /// For each lane group, `width` of each number.
    pub(super) lane_numbers: &'s mut [R],
    /// `rows` of each number, of the streamed box, and then of what a lane group sees of it.
    pub(super) row_numbers: &'s mut [R],
    /// For each lane group, `width` of each of [`INDICES`].
    pub(super) lane_index: &'s mut [i32],
    /// `rows` of each of [`INDICES`], of the streamed box, and then of what a lane group sees of it.
    pub(super) row_index: &'s mut [i32],
    /// A bit mask an offset and axis of a streamed box.
    pub(super) axis_masks: &'s mut [u32],
    /// The lanes that count in every row of a tile.
    pub(super) masks: &'s mut [u32],
    /// For each lane group, the lanes whose queries are alive, and those that some pair counts for.
    pub(super) live: &'s mut [u32],
    pub(super) seen: &'s mut [u32],
    pub(super) vector: &'s mut [R],
    pub(super) code: &'s mut [R],
}

impl ScratchSizes {
    fn of_tile(&self) -> usize {
        self.rows.saturating_mul(self.width)
    }

    /// Saturating: a head dim may be anything, and what overflows is more than any allocator has.
    fn parts(&self) -> [usize; 22] {
        let lanes = self.groups.saturating_mul(self.width);
        let streamed = |v: usize| match self.streamed[v] {
            true => self.rows.saturating_mul(self.stride[Vectors::ALL[v].side()]),
            false => 0,
        };
        let stationary = |v: usize| match self.stationary[v] {
            true => lanes.saturating_mul(self.dims[Vectors::ALL[v].side()]),
            false => 0,
        };
        let sums = |s: usize| match self.sums[s] {
            true => lanes.saturating_mul(self.stride[Sums::ALL[s].side()]),
            false => 0,
        };
        [
            streamed(0),
            streamed(1),
            streamed(2),
            streamed(3),
            stationary(0),
            stationary(1),
            stationary(2),
            stationary(3),
            sums(0),
            sums(1),
            sums(2),
            self.tiles.saturating_mul(self.of_tile()),
            lanes.saturating_mul(self.lane_numbers),
            self.rows.saturating_mul(self.row_numbers).saturating_mul(2),
            lanes * INDICES,
            self.rows.saturating_mul(2 * INDICES),
            self.extents,
            self.rows,
            self.groups,
            self.groups,
            self.stride[0].max(self.stride[1]).max(MAX_NUMBERS),
            self.code,
        ]
    }

    /// Elements in all, every part rounded up to a cache line of the smallest `R`.
    pub(super) fn elements(&self) -> usize {
        self.parts().iter().fold(0, |sum: usize, part| sum.saturating_add(whole_lines(*part)))
    }

    /// The parts. `memory` has `elements()` elements.
    pub(super) fn carve<'s, R: Real>(&self, memory: &'s mut [R]) -> Scratch<'s, R> {
        let mut rest = memory;
        let parts = self.parts().map(|len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(whole_lines(len));
            rest = after;
            &mut part[..len]
        });
        let [
            streamed_a,
            streamed_a_tangent,
            streamed_b,
            streamed_b_tangent,
            stationary_a,
            stationary_a_tangent,
            stationary_b,
            stationary_b_tangent,
            sums_b,
            sums_b_tangent,
            sums_a,
            tiles,
            lane_numbers,
            row_numbers,
            lane_index,
            row_index,
            axis_masks,
            masks,
            live,
            seen,
            vector,
            code,
        ] = parts;
        Scratch {
            streamed: [streamed_a, streamed_a_tangent, streamed_b, streamed_b_tangent],
            finite: [true; 4],
            stationary: [stationary_a, stationary_a_tangent, stationary_b, stationary_b_tangent],
            sums: [sums_b, sums_b_tangent, sums_a],
            tiles,
            lane_numbers,
            row_numbers,
            lane_index: words(lane_index),
            row_index: words(row_index),
            axis_masks: words(axis_masks),
            masks: words(masks),
            live: words(live),
            seen: words(seen),
            vector,
            code,
        }
    }
}

/// As many words of 32 bits as there were elements.
fn words<R: Real, T: bytemuck::Pod>(part: &mut [R]) -> &mut [T] {
    let len = part.len();
    &mut bytemuck::cast_slice_mut(part)[..len]
}

fn whole_lines(elements: usize) -> usize {
    elements.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_long_as_they_are_said_to_be() {
        let sizes = ScratchSizes {
            width: 8,
            dims: [9, 3],
            stride: [12, 4],
            rows: 5,
            groups: 3,
            extents: 7,
            streamed: [true, false, true, true],
            stationary: [true; 4],
            sums: [true, false, true],
            tiles: 2,
            lane_numbers: 4,
            row_numbers: 3,
            code: 11,
        };
        let mut memory = vec![0f64; sizes.elements()];
        let scratch = sizes.carve(&mut memory);
        assert_eq!(scratch.streamed.map(|part| part.len()), [60, 0, 20, 20]);
        assert_eq!(scratch.stationary.map(|part| part.len()), [216, 216, 72, 72]);
        assert_eq!(scratch.sums.map(|part| part.len()), [96, 0, 288]);
        assert_eq!(
            (scratch.tiles.len(), scratch.lane_numbers.len(), scratch.row_numbers.len()),
            (80, 96, 30)
        );
        assert_eq!(
            (scratch.lane_index.len(), scratch.row_index.len(), scratch.axis_masks.len()),
            (96, 40, 7)
        );
        assert_eq!((scratch.masks.len(), scratch.live.len(), scratch.code.len()), (5, 3, 11));
    }
}
