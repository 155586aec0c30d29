//! The masks of blocks that some windows end in: which predicates or which table hides the other pairs.

use super::pipeline::Tile;
use super::{HIDDEN, Lowering, Masks};
use crate::ir::{Engine, MOVING_MAX, Op, View};
use crate::lower::layout::Tokens;
use crate::lower::windows::Block;

/// What hides the pairs of a block that are invisible.
pub(super) enum Hiding {
    /// There are none.
    Nothing,
    /// Predicates `offset + channel * row + step * column >= 0` of the pairs that are visible.
    Selects(Vec<(i64, i64, i64)>),
    /// Numbers to add, in SBUF.
    Table(View),
}

impl Lowering<'_> {
    /// What hides the invisible pairs of a block.
    pub(super) fn hiding(&mut self, tile: &Tile, block: &Block) -> Hiding {
        if !block.is_edge {
            return Hiding::Nothing;
        }
        let selects = (self.choice.masks == Masks::AffineSelect).then(|| self.selects(tile, block)).flatten();
        selects.map_or_else(|| Hiding::Table(self.mask(tile, block)), Hiding::Selects)
    }

    /// The mask of a block as predicates, where its windows slide one key a query: of runs of one axis, away from the
    /// borders.
    fn selects(&self, tile: &Tile, block: &Block) -> Option<Vec<(i64, i64, i64)>> {
        let [Tokens::Box(keys)] = block.runs().into_iter().map(|(_, run)| run).collect::<Vec<_>>()[..] else {
            return None;
        };
        if tile.queries.extent[..2] != [1, 1] || keys.extent[..2] != [1, 1] {
            return None;
        }
        let axis = &self.problem.neighborhood().axes()[2];
        let windows: Vec<_> =
            tile.queries.span(2).map(|query| axis.window(tile.queries.group[2], query)).collect();
        let span = keys.span(2);
        let mut selects = Vec::new();
        let first = windows.first()?;
        if windows.iter().any(|window| window.start > span.start) {
            if !windows.iter().enumerate().all(|(row, window)| window.start == first.start + row) {
                return None;
            }
            // key - start >= 0
            selects.push((span.start as i64 - first.start as i64, -1, 1));
        }
        if windows.iter().any(|window| window.end < span.end) {
            if !windows.iter().enumerate().all(|(row, window)| window.end == first.end + row) {
                return None;
            }
            // end - 1 - key >= 0
            selects.push((first.end as i64 - 1 - span.start as i64, 1, -1));
        }
        Some(selects)
    }

    /// The mask of a block in SBUF: what is added to its scores.
    fn mask(&mut self, tile: &Tile, block: &Block) -> View {
        let (rows, columns) = (tile.rows(), block.len());
        // Added before the scale by the tensor engine, after it by the vector engine.
        let sign =
            if self.choice.masks == Masks::BiasAdd { 1.0 } else { self.problem.scale().signum() as f32 };
        let mut table = vec![0.0; rows * columns];
        for (column, chunk) in block.columns() {
            let Tokens::Box(keys) = chunk else { continue };
            for row in 0..rows {
                for key in 0..chunk.len() {
                    if !self.windows.sees(&tile.queries, row, keys, key) {
                        table[row * columns + column + key] = sign * HIDDEN;
                    }
                }
            }
        }
        let at = self.constants.add(&table);
        let (slot, is_new) = self.mask_cache.slot(&(at, rows, columns));
        let mask = self.b.at(self.mask_slots, rows, slot * MOVING_MAX, columns);
        if is_new {
            let src = self.constants.view(&self.b, at, rows, columns);
            self.b.push(Engine::GpSimd, Op::DmaCopy { dst: mask.clone(), src });
        }
        mask
    }
}
