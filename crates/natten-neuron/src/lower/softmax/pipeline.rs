//! The order in which the tiles of the fast forward pass go through the engines.

use natten_core::Problem;
use natten_core::geometry::TileBox;

use super::memory::Memory;
use super::resident::Owner;
use super::{Masks, TRANSPOSED};
use crate::ir::MOVING_MAX;
use crate::lower::layout::Tokens;
use crate::lower::windows::{Block, Windows};

/// What the planner chooses among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How masks get onto the scores.
    pub masks: Masks,
    /// Steps between the scores of a tile and its weights.
    pub lag: usize,
    /// Steps between the weights of a tile and their products with the values.
    pub delay: usize,
}

impl Choice {
    /// What is tried. The first is right for most.
    pub fn all() -> impl Iterator<Item = Self> {
        let masks = Masks::ALL.into_iter();
        masks
            .flat_map(|masks| [(2, 4), (2, 3), (1, 2), (3, 3)].map(|(lag, delay)| Self { masks, lag, delay }))
    }
}

/// One query tile of one head, and a section of its keys.
pub(super) struct Tile {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) queries: TileBox,
    pub(super) blocks: Vec<Block>,
    pub(super) number: usize,
    /// The number of the head among those of all batch entries.
    pub(super) head_number: usize,
    /// The number of the section, and how many there are.
    pub(super) section: usize,
    pub(super) sections: usize,
    /// Where the numbers of its queries wait from section to section.
    pub(super) slot: usize,
    /// Chunks with their columns in the strip, in sets that are transposed into one bank: of equal length.
    pub(super) sets: Vec<Vec<(usize, Tokens)>>,
    /// The number of the first set among those of all tiles.
    pub(super) first_set: usize,
}

/// Every tile in the order that they are worked at: of queries that share their keys, section by section.
pub(super) fn tiles(problem: &Problem, windows: &Windows, memory: &Memory) -> Vec<Tile> {
    let boxes = windows.query_boxes_by_columns();
    let mut tiles: Vec<Tile> = Vec::new();
    for head_number in 0..problem.batch() * problem.heads() {
        for shared in boxes.chunks(memory.sharing) {
            let sections: Vec<Vec<Vec<Block>>> = shared
                .iter()
                .map(|queries| in_sections(windows.blocks(queries, MOVING_MAX), memory))
                .collect();
            for section in 0..sections.iter().map(Vec::len).max().unwrap_or(0) {
                for (slot, (queries, parts)) in shared.iter().zip(&sections).enumerate() {
                    let Some(blocks) = parts.get(section) else { continue };
                    let first_set = tiles.last().map_or(0, |tile| tile.first_set + tile.sets.len());
                    tiles.push(Tile {
                        batch: head_number / problem.heads(),
                        head: head_number % problem.heads(),
                        queries: *queries,
                        blocks: blocks.clone(),
                        number: tiles.len(),
                        head_number,
                        section,
                        sections: parts.len(),
                        slot,
                        sets: sets(queries.volume(), blocks),
                        first_set,
                    });
                }
            }
        }
    }
    tiles
}

/// Blocks in sections of no more columns than there is room for.
fn in_sections(blocks: Vec<Block>, memory: &Memory) -> Vec<Vec<Block>> {
    let mut sections: Vec<Vec<Block>> = Vec::new();
    for block in blocks {
        match sections.last_mut() {
            Some(section) if columns_of(section) + block.len() <= memory.section => section.push(block),
            _ => sections.push(vec![block]),
        }
    }
    sections
}

impl Tile {
    /// Whose queries they are.
    pub(super) const fn query_owner(&self) -> Owner {
        Owner { batch: self.batch, head: self.head, number: self.head_number }
    }

    /// Whose keys they see.
    pub(super) const fn key_owner(&self, problem: &Problem) -> Owner {
        let head = self.head / problem.heads_per_kv();
        Owner { batch: self.batch, head, number: self.batch * problem.heads_kv() + head }
    }

    /// Whether no section comes after it.
    pub(super) const fn is_last(&self) -> bool {
        self.section + 1 == self.sections
    }

    pub(super) fn rows(&self) -> usize {
        self.queries.volume()
    }

    pub(super) fn columns(&self) -> usize {
        columns_of(&self.blocks)
    }

    /// The step of the tile's weights that a set waits for: its own, or that of the last block that it has chunks of.
    /// Sets have steps of their own, in order.
    pub(super) fn ready(&self, set: usize) -> usize {
        let last = |set: &Vec<(usize, Tokens)>| set.last().map_or(0, |(column, _)| *column);
        let block_of =
            |column: usize| (1..self.blocks.len()).take_while(|&b| self.column(b) <= column).count();
        (0..=set).map(|earlier| block_of(last(&self.sets[earlier])) + set - earlier).max().unwrap_or(0)
    }

    /// The first column of a block.
    pub(super) fn column(&self, block: usize) -> usize {
        columns_of(&self.blocks[..block])
    }
}

/// The sets of a tile.
pub(super) fn sets(rows: usize, blocks: &[Block]) -> Vec<Vec<(usize, Tokens)>> {
    let mut sets: Vec<Vec<(usize, Tokens)>> = Vec::new();
    let mut column = 0;
    for chunk in blocks.iter().flat_map(|block| &block.chunks) {
        match sets.last_mut() {
            Some(set) if set[0].1.len() == chunk.len() && (set.len() + 1) * rows <= TRANSPOSED => {
                set.push((column, *chunk));
            }
            _ => sets.push(vec![(column, *chunk)]),
        }
        column += chunk.len();
    }
    sets
}

/// What a step of the pipeline does to a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Write,
    Score,
    Weigh,
    Transpose,
    Multiply,
    Log,
}

/// The steps of all tiles in the order of their instructions, each with the tile whose scores are computed then. `turns`
/// tiles have buffers of their own, and twice as many numbers of their rows.
///
/// A tile takes as many steps as it has blocks or sets. Weights come `lag` steps after the last score, so that scores
/// are always ahead and the vector engine has its turn at PSUM while the scalar engine takes exponentials. Transposes
/// follow a step behind; products some more, lest the next scores wait on the tensor engine for weights on their way.
/// Where tiles differ in length, a tile waits until the one whose buffers it takes has been read.
pub(super) fn steps(tiles: &[Tile], turns: usize, choice: Choice) -> Vec<(usize, Stage, usize, usize)> {
    let widths = |tile: &Tile| tile.blocks.iter().map(Block::len).collect::<Vec<_>>();
    let mut steps = Vec::new();
    // Of every tile: its first score, its first weight, its length.
    let mut times: Vec<(usize, usize, usize)> = Vec::new();
    for (at, tile) in tiles.iter().enumerate() {
        let ready: Vec<usize> = (0..tile.sets.len()).map(|set| tile.ready(set)).collect();
        let length = tile.blocks.len().max(ready.last().map_or(0, |&last| last + 1));
        let (mut base, mut later) = (0, 0);
        if let Some(&(first, weights, len)) = times.last() {
            base = first + len;
            later = weights + len;
        }
        if let Some(before) = at.checked_sub(turns) {
            let (_, weights, len) = times[before];
            let same = widths(&tiles[before]) == widths(tile);
            base = base
                .max(weights + if same { 1 } else { len })
                .max((weights + len + 1).saturating_sub(length));
            later = later.max(weights + len + choice.delay);
        }
        // A tile's maximum is needed until its logsumexp is written.
        if let Some(before) = at.checked_sub(2 * turns) {
            let (_, weights, len) = times[before];
            base = base.max((weights + len + choice.delay + 1).saturating_sub(length));
        }
        later = later.max(base + length + choice.lag);
        times.push((base, later, length));
        steps.extend((0..tile.blocks.len()).map(|part| (base + part, Stage::Score, at, part)));
        steps.extend((0..tile.blocks.len()).map(|part| (later + part, Stage::Weigh, at, part)));
        let sets = || ready.iter().enumerate();
        steps.extend(sets().map(|(part, ready)| (later + ready + 1, Stage::Transpose, at, part)));
        steps.extend(sets().map(|(part, ready)| (later + ready + choice.delay, Stage::Multiply, at, part)));
        steps.extend([Stage::Write, Stage::Log].map(|stage| (later + length + choice.delay, stage, at, 0)));
    }
    steps.sort_unstable();
    steps
        .into_iter()
        .map(|(time, stage, tile, part)| {
            let group = times.partition_point(|&(base, ..)| base <= time) - 1;
            (group, stage, tile, part)
        })
        .collect()
}

/// The columns of blocks together.
pub(super) fn columns_of(blocks: &[Block]) -> usize {
    blocks.iter().map(Block::len).sum()
}
