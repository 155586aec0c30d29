//! Lane groups: how a box of tokens lies in the lanes of vectors, and what each lane sees of a streamed box.
//!
//! Kernels hold some queries (or, for gradients of keys and values, some keys) *stationary*, one a lane, and *stream*
//! boxes of the other side past them, one row a token. A lane group is a small box of stationary tokens, so that what
//! its lanes see is nearly the same; of each streamed box it visits just the union of what they see, and a pair of bit
//! masks an axis tells which lane sees which row.

use natten_core::geometry::{Axis, Span, TileBox};

use crate::simd::MAX_WIDTH;

/// Which way a walk looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Queries are stationary and see keys.
    Keys,
    /// Keys are stationary and are seen by queries.
    Queries,
}

impl Direction {
    fn sees(self, axis: &Axis, group: usize, position: usize) -> Span {
        match self {
            Self::Keys => axis.window(group, position),
            Self::Queries => axis.queries_of(group, position),
        }
    }

    /// The union of what a run of neighbours sees.
    pub(crate) fn union(self, axis: &Axis, group: usize, span: &Span) -> Span {
        match self {
            Self::Keys => axis.window_union(group, span),
            Self::Queries => axis.queries_union(group, span),
        }
    }

    pub(crate) fn stationary_len(self, axis: &Axis, group: usize) -> usize {
        match self {
            Self::Keys => axis.query_group_len(group),
            Self::Queries => axis.key_group_len(group),
        }
    }
}

/// The lane groups that a box is cut into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneGroups {
    tile: TileBox,
    shape: [usize; 3],
    counts: [usize; 3],
}

impl LaneGroups {
    pub(crate) fn new(tile: &TileBox, shape: [usize; 3]) -> Self {
        Self { tile: *tile, shape, counts: std::array::from_fn(|a| tile.extent[a].div_ceil(shape[a])) }
    }

    pub(crate) fn len(&self) -> usize {
        self.counts.iter().product()
    }

    /// The box of lane group number `index`; lane `i` is its token number `i` in row-major order.
    pub(crate) fn group(&self, index: usize) -> TileBox {
        let [_, y, x] = self.counts;
        let at = [index / (x * y), index / x % y, index % x];
        let offset: [usize; 3] = std::array::from_fn(|a| at[a] * self.shape[a]);
        TileBox {
            group: self.tile.group,
            start: std::array::from_fn(|a| self.tile.start[a] + offset[a]),
            extent: std::array::from_fn(|a| self.shape[a].min(self.tile.extent[a] - offset[a])),
        }
    }
}

/// All lanes of a group.
pub(crate) const fn all_lanes(lanes: usize) -> u32 {
    if lanes >= 32 { u32::MAX } else { (1 << lanes) - 1 }
}

/// What a lane group sees of a streamed box.
#[derive(Debug)]
pub(crate) struct Sight<'m> {
    /// The rows of the box, an axis, that any lane sees: offsets from the box's start.
    range: [Span; 3],
    /// The extents of the streamed box.
    extent: [usize; 3],
    /// The lanes that see an offset, axis after axis, `extent` long each.
    masks: &'m [u32],
    /// The lanes that there are.
    lanes: u32,
    /// Whether every lane sees every row of the range.
    pub(crate) is_full: bool,
}

impl<'m> Sight<'m> {
    /// What the lanes of `group` see of `streamed`. `masks` is room for the sum of the streamed box's extents.
    pub(crate) fn new(
        direction: Direction,
        axes: &[Axis; 3],
        group: &TileBox,
        streamed: &TileBox,
        masks: &'m mut [u32],
    ) -> Self {
        let lanes = all_lanes(group.volume());
        let mut range = [0..0, 0..0, 0..0];
        let mut is_full = true;
        let mut first = 0;
        for a in 0..3 {
            let masks = &mut masks[first..first + streamed.extent[a]];
            first += streamed.extent[a];
            masks.fill(0);
            let tile = streamed.span(a);
            for offset in 0..group.extent[a] {
                let seen = direction.sees(&axes[a], group.group[a], group.start[a] + offset);
                let bits = lanes_at(group, a, offset);
                let (start, end) = (seen.start.max(tile.start), seen.end.min(tile.end));
                for mask in masks.iter_mut().take(end.saturating_sub(tile.start)).skip(start - tile.start) {
                    *mask |= bits;
                }
            }
            let union = direction.union(&axes[a], group.group[a], &group.span(a));
            let start = union.start.clamp(tile.start, tile.end) - tile.start;
            let end = union.end.clamp(tile.start, tile.end) - tile.start;
            range[a] = start..end.max(start);
            is_full &= masks[range[a].clone()].iter().all(|&mask| mask == lanes);
        }
        Self { range, extent: streamed.extent, masks: &masks[..first], lanes, is_full }
    }

    /// Every lane sees every row of a box of this extent: between tokens and additional tokens.
    pub(crate) fn everything(lanes: usize, extent: [usize; 3]) -> Self {
        Self { range: extent.map(|n| 0..n), extent, masks: &[], lanes: all_lanes(lanes), is_full: true }
    }

    /// Rows that some lane sees.
    pub(crate) fn rows(&self) -> usize {
        self.range.iter().map(ExactSizeIterator::len).product()
    }

    /// The runs of neighbouring rows of the streamed box, as (first row, rows), in row-major order. Rows of the whole
    /// box are one run.
    pub(crate) fn runs(&self) -> Runs {
        let [z, y, x] = self.range.clone();
        let [_, ey, ex] = self.extent;
        let (whole_x, whole_y) = (x.len() == ex, y.len() == ey);
        // Merge the axes that are whole into longer runs.
        let (outer, inner, run) = match (whole_x, whole_y) {
            (true, true) => (1, 1, z.len() * ey * ex),
            (true, false) => (z.len(), 1, y.len() * ex),
            (false, _) => (z.len(), y.len(), x.len()),
        };
        Runs {
            first: (z.start * ey + y.start) * ex + x.start,
            outer_step: ey * ex,
            inner_step: ex,
            inner,
            count: if run == 0 { 0 } else { outer * inner },
            run,
            next: 0,
        }
    }

    /// The offset in the streamed box of the first row of the range.
    #[inline(always)]
    pub(crate) fn first(&self) -> [usize; 3] {
        [self.range[0].start, self.range[1].start, self.range[2].start]
    }

    /// The offset of the row after the one at `offset`, in row-major order.
    #[inline(always)]
    pub(crate) fn after(&self, [z, y, x]: [usize; 3]) -> [usize; 3] {
        if x + 1 < self.range[2].end {
            [z, y, x + 1]
        } else if y + 1 < self.range[1].end {
            [z, y + 1, self.range[2].start]
        } else {
            [z + 1, self.range[1].start, self.range[2].start]
        }
    }

    /// The lanes that see the row at an offset.
    #[inline(always)]
    pub(crate) fn mask(&self, offset: [usize; 3]) -> u32 {
        if self.is_full {
            return self.lanes;
        }
        let [ez, ey, _] = self.extent;
        self.masks[offset[0]] & self.masks[ez + offset[1]] & self.masks[ez + ey + offset[2]]
    }

    /// The row of the streamed box at an offset.
    #[inline(always)]
    pub(crate) fn row(&self, offset: [usize; 3]) -> usize {
        (offset[0] * self.extent[1] + offset[1]) * self.extent[2] + offset[2]
    }
}

/// The lanes of a group whose token is `offset` from the group's start along axis `a`.
fn lanes_at(group: &TileBox, a: usize, offset: usize) -> u32 {
    let [_, y, x] = group.extent;
    let mut bits = 0;
    for lane in 0..group.volume().min(MAX_WIDTH) {
        let at = [lane / (x * y), lane / x % y, lane % x];
        bits |= u32::from(at[a] == offset) << lane;
    }
    bits
}

/// See [`Sight::runs`].
#[derive(Debug)]
pub(crate) struct Runs {
    first: usize,
    outer_step: usize,
    inner_step: usize,
    inner: usize,
    count: usize,
    run: usize,
    next: usize,
}

impl Iterator for Runs {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        if self.next == self.count {
            return None;
        }
        let (outer, inner) = (self.next / self.inner, self.next % self.inner);
        self.next += 1;
        Some((self.first + outer * self.outer_step + inner * self.inner_step, self.run))
    }
}

#[cfg(test)]
mod tests {
    use natten_core::geometry::{AxisParams, Neighborhood, Tiles};
    use proptest::prelude::*;

    use super::*;

    fn neighborhoods() -> impl Strategy<Value = Neighborhood> {
        let axis = (1usize..12).prop_flat_map(|len| {
            (1..=len).prop_flat_map(move |kernel_size| {
                (1..=kernel_size, 1..=len / kernel_size, any::<bool>()).prop_map(
                    move |(stride, dilation, is_causal)| {
                        AxisParams::new(len, kernel_size).stride(stride).dilation(dilation).causal(is_causal)
                    },
                )
            })
        });
        prop::collection::vec(axis, 1..=3).prop_map(|axes| Neighborhood::new(&axes).unwrap())
    }

    proptest! {
        /// Over all streamed boxes, each lane's rows are exactly the tokens that it sees, in either direction.
        #[test]
        fn lanes_see_what_their_tokens_see(
            n in neighborhoods(), stationary in [1usize..4, 1usize..5, 1usize..9], streamed in [1usize..4, 1usize..6, 1usize..9],
            shape in [1usize..3, 1usize..3, 1usize..5],
        ) {
            let axes = n.axes();
            let mut masks = [0; 64];
            for direction in [Direction::Keys, Direction::Queries] {
                let tiles = match direction {
                    Direction::Keys => Tiles::new(&n, stationary, streamed),
                    Direction::Queries => Tiles::new(&n, streamed, stationary),
                };
                let boxes = match direction {
                    Direction::Keys => tiles.query_boxes(),
                    Direction::Queries => tiles.key_boxes(),
                };
                for index in 0..boxes {
                    let (tile, visited): (_, Vec<TileBox>) = match direction {
                        Direction::Keys => {
                            let tile = tiles.query_box(index);
                            (tile, tiles.keys_of(&tile).map(|(k, _)| k).collect())
                        }
                        Direction::Queries => {
                            let tile = tiles.key_box(index);
                            (tile, tiles.queries_of(&tile).map(|(q, _)| q).collect())
                        }
                    };
                    let groups = LaneGroups::new(&tile, shape);
                    let volume: usize = (0..groups.len()).map(|g| groups.group(g).volume()).sum();
                    prop_assert_eq!(volume, tile.volume());
                    for g in 0..groups.len() {
                        let group = groups.group(g);
                        for streamed in &visited {
                            let sight = Sight::new(direction, axes, &group, streamed, &mut masks);
                            let rows: Vec<usize> = sight.runs().flat_map(|(first, n)| first..first + n).collect();
                            prop_assert_eq!(rows.len(), sight.rows());
                            let mut at = sight.first();
                            for &row in &rows {
                                prop_assert_eq!(sight.row(at), row);
                                at = sight.after(at);
                            }
                            for row in 0..streamed.volume() {
                                let other = streamed.position(row);
                                let offset = std::array::from_fn(|a| other[a] - streamed.start[a]);
                                let mask = if rows.contains(&row) { sight.mask(offset) } else { 0 };
                                for lane in 0..group.volume() {
                                    let own = group.position(lane);
                                    let sees = (0..3).all(|a| {
                                        direction.sees(&axes[a], group.group[a], own[a]).contains(&other[a])
                                    });
                                    prop_assert_eq!(mask >> lane & 1 == 1, sees);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
