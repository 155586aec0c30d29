//! A thread's scratch memory, carved out of the workspace.

use crate::element::Real;
use crate::simd::MAX_WIDTH;
use crate::tiling::Pass;

/// Sizes of the parts of a thread's scratch, in elements, from which they are carved the same way each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScratchSizes {
    /// Lanes of a group.
    pub(crate) width: usize,
    /// `head_dim` and `head_dim_v`, rounded up to whole vectors.
    pub(crate) stride: [usize; 2],
    pub(crate) dims: [usize; 2],
    rows: usize,
    groups: usize,
    masks: usize,
}

impl ScratchSizes {
    /// Room for either of some passes. `lanes` is the elements of a vector.
    pub(crate) fn new<'p>(
        lanes: usize,
        dims: [usize; 2],
        passes: impl IntoIterator<Item = &'p Pass>,
    ) -> Self {
        let mut sizes = Self {
            width: 2 * lanes,
            stride: dims.map(|dim| dim.next_multiple_of(lanes)),
            dims,
            ..Self::default()
        };
        for pass in passes {
            sizes.rows = sizes.rows.max(pass.rows);
            sizes.groups = sizes.groups.max(pass.groups);
            sizes.masks = sizes.masks.max(pass.masks);
        }
        sizes
    }

    /// Saturating: a head dim may be anything, and what overflows is more than any allocator has.
    fn parts(&self) -> [usize; 12] {
        let lanes = self.groups.saturating_mul(self.width);
        [
            self.rows.saturating_mul(self.stride[0]),
            self.rows.saturating_mul(self.stride[1]),
            lanes.saturating_mul(self.dims[0]),
            lanes.saturating_mul(self.dims[1]),
            self.rows.saturating_mul(self.width),
            self.rows.saturating_mul(self.width),
            lanes.saturating_mul(self.stride[0]),
            lanes.saturating_mul(self.stride[1]),
            lanes.saturating_mul(2),
            self.rows.saturating_mul(2),
            self.stride[0].max(self.stride[1]).max(MAX_WIDTH),
            self.masks,
        ]
    }

    /// Elements of type `R` in all, every part rounded up to a cache line of the smallest `R`.
    pub(crate) fn elements(&self) -> usize {
        self.parts().iter().fold(0, |sum: usize, part| sum.saturating_add(whole_lines(*part)))
    }

    /// The parts. `memory` has `elements()` elements.
    pub(crate) fn carve<'s, R: Real>(&self, memory: &'s mut [R]) -> Scratch<'s, R> {
        let mut rest = memory;
        let parts = self.parts().map(|len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(whole_lines(len));
            rest = after;
            &mut part[..len]
        });
        let [
            rows_a,
            rows_b,
            panels_a,
            panels_b,
            weights,
            grads,
            sums_a,
            sums_b,
            lane_stats,
            row_stats,
            vector,
            masks,
        ] = parts;
        let masks = &mut bytemuck::cast_slice_mut::<R, u32>(masks)[..self.masks];
        Scratch {
            rows_a,
            rows_b,
            panels_a,
            panels_b,
            weights,
            grads,
            sums_a,
            sums_b,
            lane_stats,
            row_stats,
            vector,
            masks,
        }
    }
}

/// Elements of a cache line of f32.
const LINE: usize = 16;

fn whole_lines(elements: usize) -> usize {
    elements.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
}

/// The parts. `a` belongs to vectors of `head_dim` (queries, keys), `b` to those of `head_dim_v` (values, outputs).
#[derive(Debug)]
pub(crate) struct Scratch<'s, R> {
    /// Streamed vectors, `stride` apart.
    pub(crate) rows_a: &'s mut [R],
    pub(crate) rows_b: &'s mut [R],
    /// Stationary vectors, transposed: for each lane group, `dim` rows of `width` lanes.
    pub(crate) panels_a: &'s mut [R],
    pub(crate) panels_b: &'s mut [R],
    /// Scores, then weights: a row a streamed row, `width` lanes each.
    pub(crate) weights: &'s mut [R],
    /// Gradients of weights, then of scores.
    pub(crate) grads: &'s mut [R],
    /// Sums of vectors: for each lane group, a row a lane, `stride` apart.
    pub(crate) sums_a: &'s mut [R],
    pub(crate) sums_b: &'s mut [R],
    /// Two numbers a lane: for each lane group, `width` of the one, then `width` of the other.
    pub(crate) lane_stats: &'s mut [R],
    /// Two numbers a streamed row: `rows` of the one, then `rows` of the other.
    pub(crate) row_stats: &'s mut [R],
    /// A vector.
    pub(crate) vector: &'s mut [R],
    /// Bit masks of a streamed box, a number an offset and axis.
    pub(crate) masks: &'s mut [u32],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_memory_in_order() {
        let sizes = ScratchSizes { width: 8, stride: [12, 4], dims: [9, 3], rows: 5, groups: 3, masks: 7 };
        let mut memory = vec![0f32; sizes.elements()];
        let scratch = sizes.carve(&mut memory);
        assert_eq!(scratch.rows_a.len(), 60);
        assert_eq!(scratch.panels_b.len(), 3 * 8 * 3);
        assert_eq!(scratch.masks.len(), 7);
    }
}
