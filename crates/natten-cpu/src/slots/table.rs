//! A tensor of slots, `[B, Hq, *X, slots]`, and the way between slots and tiles of pairs.

use std::marker::PhantomData;

use natten_core::DType;
use natten_core::geometry::{Axis, TileBox};

use crate::element::Real;
use crate::lanes::{Direction, Sight};
use crate::tokens::Place;
use crate::view::{View, ViewMut};

/// A tensor of slots, computed with as `R`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<R> {
    data: *mut u8,
    dtype: DType,
    /// Batch, head, three token axes, slot.
    strides: [isize; 6],
    compute: PhantomData<R>,
}

// SAFETY: made from views, which are `Send` and `Sync`; inputs are only read, and a query's slots of an output are
// written by one unit.
unsafe impl<R> Send for Table<R> {}
// SAFETY: as above.
unsafe impl<R> Sync for Table<R> {}

/// A tile of pairs of one batch entry and query head.
#[derive(Debug)]
pub(super) struct TilePairs<'t, 'm> {
    pub(super) direction: Direction,
    pub(super) batch: usize,
    pub(super) head: usize,
    /// The queries, in lanes or in rows.
    pub(super) queries: &'t Place,
    /// The keys: where they begin, in a window's positions or among the additional tokens.
    pub(super) keys: &'t TileBox,
    /// Whether the keys lie in windows; additional ones have the last slots.
    pub(super) is_window: bool,
    pub(super) sight: &'t Sight<'m>,
    /// Numbers a row.
    pub(super) width: usize,
}

/// How slots follow from positions: row-major over a window's keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotOrder {
    axes: [Axis; 3],
    strides: [isize; 3],
    /// Slots of the window: the first slot of the additional tokens.
    window: isize,
}

impl SlotOrder {
    pub(super) fn new(axes: &[Axis; 3]) -> Self {
        let [z, y, x] = axes.each_ref().map(Axis::window_len);
        Self { axes: *axes, strides: [(y * x) as isize, x as isize, 1], window: (z * y * x) as isize }
    }

    /// What a query takes off a key's number: that of its window's first key.
    fn origin(&self, tile: &TileBox, position: [usize; 3]) -> isize {
        let start = |a: usize| self.axes[a].window(tile.group[a], position[a]).start;
        self.number(std::array::from_fn(start))
    }

    /// A key's number.
    fn number(&self, position: [usize; 3]) -> isize {
        position.into_iter().zip(self.strides).map(|(position, stride)| position as isize * stride).sum()
    }

    /// The slot of a pair: a part of the query and a part of the key.
    fn query_part(&self, pairs: &TilePairs<'_, '_>, query: usize) -> isize {
        let tile = &pairs.queries.tile;
        if pairs.is_window { -self.origin(tile, tile.position(query)) } else { self.window }
    }

    fn key_part(&self, pairs: &TilePairs<'_, '_>, position: [usize; 3]) -> isize {
        if pairs.is_window { self.number(position) } else { position[2] as isize }
    }
}

impl<R: Real> Table<R> {
    fn new(data: *mut u8, dtype: DType, given: &[isize]) -> Self {
        // Lower ranks lack the leading token axes.
        let mut strides = [0; 6];
        let axes = given.len() - 3;
        strides[..2].copy_from_slice(&given[..2]);
        strides[5 - axes..5].copy_from_slice(&given[2..2 + axes]);
        strides[5] = given[2 + axes];
        Self { data, dtype, strides, compute: PhantomData }
    }

    pub(super) fn input(view: &View<'_>) -> Self {
        Self::new(view.data().cast_mut(), view.dtype(), view.strides())
    }

    pub(super) fn output(view: &mut ViewMut<'_>) -> Self {
        Self::new(view.data(), view.dtype(), view.strides())
    }

    /// The first slot of a query.
    fn at(&self, batch: usize, head: usize, token: [usize; 3]) -> *mut u8 {
        let index = [batch, head, token[0], token[1], token[2]];
        let mut offset = 0;
        for (index, stride) in index.into_iter().zip(self.strides) {
            offset += index as isize * stride;
        }
        self.data.wrapping_offset(offset * self.dtype.size().cast_signed())
    }

    /// Fills every slot of a query.
    ///
    /// # Safety
    /// The query is inside the tensor, which is an output with `slots` a query; this unit alone has the query.
    pub(super) unsafe fn fill(&self, batch: usize, head: usize, token: [usize; 3], slots: usize, value: R) {
        let first = self.at(batch, head, token);
        let step = self.strides[5] * self.dtype.size().cast_signed();
        for slot in 0..slots {
            // SAFETY: the caller's.
            unsafe { R::write(self.dtype, first.wrapping_offset(slot as isize * step), 1, &[value]) };
        }
    }

    /// Reads the slots of a tile's pairs; 0 for pairs that are not visible, whose slots, if any, are of other keys.
    ///
    /// # Safety
    /// The tile's queries are inside the tensor, its keys inside the problem; `tile` has a row for each of the sight's.
    pub(super) unsafe fn gather(&self, order: &SlotOrder, pairs: &TilePairs<'_, '_>, tile: &mut [R]) {
        tile[..pairs.sight.rows() * pairs.width].fill(R::ZERO);
        let mut number = [R::ZERO];
        self.for_each_pair(order, pairs, |slot, at| {
            // SAFETY: the caller's; a visible pair has a slot.
            unsafe { R::read(self.dtype, slot, 1, &mut number) };
            tile[at] = number[0];
        });
    }

    /// Writes the visible pairs of a tile to their slots.
    ///
    /// # Safety
    /// As [`gather`](Self::gather); the tensor is an output, and this unit alone has the queries.
    pub(super) unsafe fn scatter(&self, order: &SlotOrder, pairs: &TilePairs<'_, '_>, tile: &[R]) {
        self.for_each_pair(order, pairs, |slot, at| {
            // SAFETY: the caller's; a visible pair has a slot.
            unsafe { R::write(self.dtype, slot, 1, &[tile[at]]) };
        });
    }

    /// Visits the visible pairs: the slot's address and the place in the tile.
    fn for_each_pair(
        &self,
        order: &SlotOrder,
        pairs: &TilePairs<'_, '_>,
        mut visit: impl FnMut(*mut u8, usize),
    ) {
        let step = self.strides[5] * self.dtype.size().cast_signed();
        let query = |index: usize| {
            let first = self.at(pairs.batch, pairs.head, pairs.queries.nth(index));
            first.wrapping_offset(order.query_part(pairs, index) * step)
        };
        let mut lanes = [(std::ptr::null_mut::<u8>(), 0isize); crate::simd::MAX_WIDTH];
        let sight = pairs.sight;
        match pairs.direction {
            Direction::Keys => {
                for (index, lane) in lanes.iter_mut().enumerate().take(pairs.queries.tile.volume()) {
                    lane.0 = query(index);
                }
            }
            Direction::Queries => {
                for (index, lane) in lanes.iter_mut().enumerate().take(pairs.keys.volume()) {
                    lane.1 = order.key_part(pairs, pairs.keys.position(index)) * step;
                }
            }
        }
        let mut offset = sight.first();
        for index in 0..sight.rows() {
            let mut bits = sight.mask(offset);
            let (first, row) = match pairs.direction {
                Direction::Keys => {
                    let position = std::array::from_fn(|a| pairs.keys.start[a] + offset[a]);
                    (std::ptr::null_mut(), order.key_part(pairs, position) * step)
                }
                Direction::Queries => (query(sight.row(offset)), 0),
            };
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let slot = match pairs.direction {
                    Direction::Keys => lanes[lane].0.wrapping_offset(row),
                    Direction::Queries => first.wrapping_offset(lanes[lane].1),
                };
                visit(slot, index * pairs.width + lane);
            }
            offset = sight.after(offset);
        }
    }
}
