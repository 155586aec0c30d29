//! The relative positional bias: which entry of its table a pair reads, and the partial sums of its gradient.
//!
//! Along an axis the entry is `(k-1) + (key - query)` in group coordinates, a part that depends on the query alone and
//! one that depends on the key alone: so a lane and a row each have an offset into the table, and a pair adds them.

use std::marker::PhantomData;

use natten_core::geometry::TileBox;
use natten_core::{DType, Problem};

use crate::element::Real;
use crate::lanes::{Direction, Sight};
use crate::simd::MAX_WIDTH;
use crate::view::View;

/// A tile of scores: which pairs it holds.
#[derive(Debug)]
pub(crate) struct Pairs<'t, 'm> {
    pub(crate) direction: Direction,
    /// The lanes' tokens.
    pub(crate) group: &'t TileBox,
    /// Where the streamed box starts.
    pub(crate) streamed: [usize; 3],
    pub(crate) sight: &'t Sight<'m>,
    /// Numbers a row.
    pub(crate) width: usize,
}

/// The bias table of a run, with any strides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bias<R> {
    data: *const u8,
    dtype: DType,
    head: isize,
    strides: [isize; 3],
    /// `(k-1)` an axis, as an offset.
    center: isize,
    compute: PhantomData<R>,
}

// SAFETY: a bias table is read only, made from a `View`, which is `Send` and `Sync`.
unsafe impl<R> Send for Bias<R> {}
// SAFETY: as above.
unsafe impl<R> Sync for Bias<R> {}

/// Offsets of the lanes and the rows of one tile into a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    lanes: [isize; MAX_WIDTH],
    /// Of the row at offset 0 of the streamed box.
    rows: isize,
    strides: [isize; 3],
}

impl Offsets {
    #[inline(always)]
    fn new(pairs: &Pairs<'_, '_>, strides: [isize; 3], center: isize) -> Self {
        let sign = match pairs.direction {
            Direction::Keys => 1,
            Direction::Queries => -1,
        };
        let strides = strides.map(|stride| sign * stride);
        let mut lanes = [0; MAX_WIDTH];
        for (lane, offset) in lanes.iter_mut().enumerate().take(pairs.group.volume()) {
            *offset = -dot(pairs.group.position(lane), strides);
        }
        Self { lanes, rows: center + dot(pairs.streamed, strides), strides }
    }

    /// The offset of a pair.
    #[inline(always)]
    fn pair(&self, lane: usize, row: [usize; 3]) -> isize {
        self.lanes[lane] + self.rows + dot(row, self.strides)
    }
}

#[inline(always)]
fn dot(at: [usize; 3], strides: [isize; 3]) -> isize {
    at[0] as isize * strides[0] + at[1] as isize * strides[1] + at[2] as isize * strides[2]
}

/// `(k-1)` along every axis.
fn center(problem: &Problem, strides: [isize; 3]) -> isize {
    let axes = problem.neighborhood().axes();
    dot([axes[0].window_len() - 1, axes[1].window_len() - 1, axes[2].window_len() - 1], strides)
}

impl<R: Real> Bias<R> {
    /// A table of shape `[heads, 2k-1, …]`.
    pub(crate) fn new(problem: &Problem, view: &View<'_>) -> Self {
        let mut strides = [0; 3];
        strides[4 - view.strides().len()..].copy_from_slice(&view.strides()[1..]);
        Self {
            data: view.data(),
            dtype: view.dtype(),
            head: view.strides()[0],
            strides,
            center: center(problem, strides),
            compute: PhantomData,
        }
    }

    /// Adds the bias to a tile of scores. Pairs that are not visible have no entry and are left alone.
    ///
    /// # Safety
    /// The sight is that of the group and the streamed box, inside the problem; `scores` has a row for each of its rows.
    #[inline(always)]
    pub(crate) unsafe fn add(&self, head: usize, pairs: &Pairs<'_, '_>, scores: &mut [R]) {
        let (sight, width) = (pairs.sight, pairs.width);
        let offsets = Offsets::new(pairs, self.strides, self.center);
        let size = self.dtype.size().cast_signed();
        let table = self.data.wrapping_offset(head as isize * self.head * size);
        let mut row = sight.first();
        for index in 0..sight.rows() {
            let mut lanes = sight.mask(row);
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                lanes &= lanes - 1;
                let mut entry = [R::ZERO];
                // SAFETY: a visible pair's entry is inside the table.
                unsafe {
                    R::read(self.dtype, table.wrapping_offset(offsets.pair(lane, row) * size), 1, &mut entry)
                };
                let score = &mut scores[index * width + lane];
                *score = *score + entry[0];
            }
            row = sight.after(row);
        }
    }
}

/// Partial tables of the bias gradient, in f64: one for each unit that sums into one, in the workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BiasGradient {
    data: *mut f64,
    entries: usize,
    strides: [isize; 3],
    center: isize,
}

// SAFETY: every unit writes a table of its own.
unsafe impl Send for BiasGradient {}
// SAFETY: as above.
unsafe impl Sync for BiasGradient {}

impl BiasGradient {
    /// Tables in `data`, one after another.
    pub(crate) fn new(problem: &Problem, data: &mut [f64]) -> Self {
        let [z, y, x] = problem.neighborhood().axes().map(|axis| 2 * axis.window_len() - 1);
        let strides = [(y * x) as isize, x as isize, 1];
        Self { data: data.as_mut_ptr(), entries: z * y * x, strides, center: center(problem, strides) }
    }

    /// Adds a tile's gradients of scores to a unit's table.
    ///
    /// # Safety
    /// As [`Bias::add`]; the table exists, and no other thread runs the unit.
    #[inline(always)]
    pub(crate) unsafe fn add<R: Real>(&self, unit: usize, pairs: &Pairs<'_, '_>, live: u32, grads: &[R]) {
        let (sight, width) = (pairs.sight, pairs.width);
        let offsets = Offsets::new(pairs, self.strides, self.center);
        let table = self.data.wrapping_add(unit * self.entries);
        let mut row = sight.first();
        for index in 0..sight.rows() {
            let mut lanes = sight.mask(row) & live;
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                lanes &= lanes - 1;
                // SAFETY: a visible pair's entry is inside the unit's table.
                unsafe {
                    *table.wrapping_offset(offsets.pair(lane, row)) += grads[index * width + lane].to_f64()
                };
            }
            row = sight.after(row);
        }
    }

    /// Sets a unit's table to zero.
    ///
    /// # Safety
    /// As [`add`](Self::add).
    pub(crate) unsafe fn clear(&self, unit: usize) {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(unit * self.entries), self.entries) }
            .fill(0.0);
    }
}
