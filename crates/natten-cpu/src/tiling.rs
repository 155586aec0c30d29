//! How a pass is cut: the shape of its lane groups, of its boxes, and the size of a thread's scratch.
//!
//! A lane group visits the union of what its lanes see, so its shape is grown by doubling the axis that makes that
//! union grow least. Several lane groups make a box, which shares the packed rows that it streams.

use natten_core::geometry::{Axis, Tiles};
use natten_core::{PlanOptions, Problem, Result, padded_tile};

use crate::lanes::Direction;

/// Lane groups of a box: enough that packing a streamed row costs little beside using it, few enough that small inputs
/// still make a box for every thread.
const GROUPS: usize = 4;

/// Bytes of the streamed rows of one box: half of a common second-level cache's half.
const STREAMED_BYTES: usize = 128 * 1024;

/// Rows that are streamed at once, whatever their size: tiles of scores stay in the first-level cache.
const MOST_ROWS: usize = 256;

/// One pass, cut.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub(crate) tiles: Tiles,
    /// Tokens of a lane group.
    pub(crate) lane_shape: [usize; 3],
    /// The most rows of a streamed box.
    pub(crate) rows: usize,
    /// The most lane groups of a box.
    pub(crate) groups: usize,
    /// The sum of a streamed box's extents.
    pub(crate) masks: usize,
}

impl Pass {
    /// Cuts a pass whose lane groups have `width` lanes of `bytes` a number.
    ///
    /// # Errors
    /// [`natten_core::Error::Invalid`] for tile options that do not fit the problem.
    pub(crate) fn new(
        direction: Direction,
        problem: &Problem,
        options: &PlanOptions,
        width: usize,
        bytes: usize,
    ) -> Result<Self> {
        let axes = problem.neighborhood().axes();
        let option = |name, tile: &Option<Vec<usize>>| {
            tile.as_ref().map(|tile| padded_tile(name, tile, problem)).transpose()
        };
        let query_tile = option("query_tile", &options.query_tile)?;
        let key_tile = option("key_tile", &options.key_tile)?;
        let (stationary, streamed) = match direction {
            Direction::Keys => (query_tile, key_tile),
            Direction::Queries => (key_tile, query_tile),
        };
        let longest = axes.each_ref().map(|axis| direction.stationary_len(axis, 0));
        let most: [usize; 3] = match stationary {
            Some(tile) => std::array::from_fn(|a| tile[a].min(longest[a])),
            None => longest,
        };
        let lane_shape = grow([1; 3], width, most, direction, axes);
        let stationary = stationary.unwrap_or_else(|| grow(lane_shape, GROUPS, most, direction, axes));
        let streamed = streamed.unwrap_or_else(|| {
            let row = problem.head_dim().saturating_add(problem.head_dim_v()).saturating_mul(bytes);
            let union = std::array::from_fn(|a| union_len(direction, &axes[a], stationary[a]));
            streamed_shape(union, (STREAMED_BYTES / row).clamp(32, MOST_ROWS))
        });
        let tiles = match direction {
            Direction::Keys => Tiles::new(problem.neighborhood(), stationary, streamed),
            Direction::Queries => Tiles::new(problem.neighborhood(), streamed, stationary),
        };
        let (stationary, streamed) = match direction {
            Direction::Keys => (tiles.query_tile(), tiles.key_tile()),
            Direction::Queries => (tiles.key_tile(), tiles.query_tile()),
        };
        Ok(Self {
            tiles,
            lane_shape,
            rows: streamed.iter().product(),
            groups: (0..3).map(|a| stationary[a].div_ceil(lane_shape[a])).product(),
            masks: streamed.iter().sum(),
        })
    }

    /// The same pass with room for streamed boxes of at least `rows`: additional tokens are streamed too.
    pub(crate) fn with_rows_for(self, additional: usize) -> Self {
        Self { rows: self.rows.max(additional.min(MOST_ROWS)), ..self }
    }
}

/// Doubles extents, up to `factor` times the volume of `shape`, so that what the box sees grows least.
fn grow(
    shape: [usize; 3],
    factor: usize,
    most: [usize; 3],
    direction: Direction,
    axes: &[Axis; 3],
) -> [usize; 3] {
    let mut shape = shape;
    let mut left = factor;
    while left > 1 {
        let grown = (0..3).filter(|&a| shape[a] < most[a]).map(|a| {
            let mut grown = shape;
            grown[a] *= 2;
            let seen: usize = (0..3).map(|a| union_len(direction, &axes[a], grown[a])).product();
            // Of equals the last axis: its rows are neighbours in memory.
            (seen, 3 - a, grown)
        });
        let Some((_, _, best)) = grown.min() else { break };
        shape = best;
        left /= 2;
    }
    shape
}

/// How much a run of `extent` neighbours in the middle of an axis sees.
fn union_len(direction: Direction, axis: &Axis, extent: usize) -> usize {
    let len = direction.stationary_len(axis, 0);
    let extent = extent.min(len);
    let start = (len - extent) / 2 / extent * extent;
    direction.union(axis, 0, &(start..start + extent)).len()
}

/// A box of at most `rows` tokens, as wide as the union along the last axes first: long runs of neighbouring rows.
fn streamed_shape(union: [usize; 3], rows: usize) -> [usize; 3] {
    let mut shape = [1; 3];
    let mut left = rows;
    for a in (0..3).rev() {
        shape[a] = union[a].clamp(1, left.max(1));
        left /= shape[a];
    }
    shape
}

#[cfg(test)]
mod tests {
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;

    fn problem(axes: &[AxisParams]) -> Problem {
        Problem::builder(Neighborhood::new(axes).unwrap(), DType::F32).head_dim(64).build().unwrap()
    }

    fn pass(axes: &[AxisParams], width: usize) -> Pass {
        Pass::new(Direction::Keys, &problem(axes), &PlanOptions::default(), width, 4).unwrap()
    }

    #[test]
    fn lane_groups_are_as_square_as_the_window() {
        assert_eq!(pass(&[AxisParams::new(512, 63)], 32).lane_shape, [1, 1, 32]);
        assert_eq!(pass(&[AxisParams::new(64, 13), AxisParams::new(64, 13)], 32).lane_shape, [1, 4, 8]);
        assert_eq!(pass(&[AxisParams::new(16, 7); 3], 16).lane_shape, [2, 2, 4]);
        // An axis that is too short leaves its lanes to the others.
        assert_eq!(pass(&[AxisParams::new(3, 3), AxisParams::new(64, 5)], 16).lane_shape, [1, 4, 4]);
    }

    #[test]
    fn streamed_boxes_are_long_runs() {
        assert_eq!(streamed_shape([1, 20, 28], 256), [1, 9, 28]);
        assert_eq!(streamed_shape([1, 1, 5000], 256), [1, 1, 256]);
        assert_eq!(streamed_shape([4, 5, 6], 256), [4, 5, 6]);
    }

    #[test]
    fn options_are_taken() {
        let problem = problem(&[AxisParams::new(20, 5), AxisParams::new(30, 7)]);
        let options = PlanOptions::default().query_tile(&[2, 3]).key_tile(&[4, 100]);
        let pass = Pass::new(Direction::Keys, &problem, &options, 8, 4).unwrap();
        assert_eq!((pass.tiles.query_tile(), pass.tiles.key_tile()), ([1, 2, 3], [1, 4, 30]));
        assert_eq!(pass.rows, 120);
        assert!(Pass::new(Direction::Keys, &problem, &PlanOptions::default().key_tile(&[4]), 8, 4).is_err());
    }
}
