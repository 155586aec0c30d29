//! How a problem becomes tiles: query boxes of at most 128 tokens, one a partition, and for each the keys it visits, in
//! blocks of at most 512 columns of chunks of at most 128 keys. Everything about windows is asked of the core's geometry.

use natten_core::geometry::{Coverage, Neighborhood, TileBox, TileClass, Tiles};
use natten_core::{PlanOptions, Problem, Result, coverage_of, padded_tile};

use super::layout::Tokens;
use crate::ir::{MOVING_MAX, PARTITIONS};

/// Some keys that one query box sees: what one column range of a score tile is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Whether these are additional keys.
    pub additional: bool,
    /// At most 128 keys each: the contraction of the product with the values.
    pub chunks: Vec<Tokens>,
    /// Whether some pairs are invisible.
    pub is_edge: bool,
}

impl Block {
    /// Keys in all.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Tokens::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Tokens::is_empty)
    }

    /// The chunks with their first columns.
    pub fn columns(&self) -> impl Iterator<Item = (usize, &Tokens)> {
        self.chunks.iter().scan(0, |next, chunk| {
            let at = *next;
            *next += chunk.len();
            Some((at, chunk))
        })
    }

    /// Runs of chunks that are one box together, with their first columns: what one instruction can read of a
    /// transposed copy of all keys.
    pub fn runs(&self) -> Vec<(usize, Tokens)> {
        let mut runs: Vec<(usize, Tokens)> = Vec::new();
        for (column, chunk) in self.columns() {
            if let Some((_, last)) = runs.last_mut()
                && let Some(joined) = join(last, chunk)
            {
                *last = joined;
            } else {
                runs.push((column, *chunk));
            }
        }
        runs
    }
}

/// Two boxes as one whose row-major order is that of the first and then the second.
fn join(a: &Tokens, b: &Tokens) -> Option<Tokens> {
    match (a, b) {
        (Tokens::Range(start, len), Tokens::Range(next, more)) if start + len == *next => {
            Some(Tokens::Range(*start, len + more))
        }
        (Tokens::Box(a), Tokens::Box(b)) if a.group == b.group => {
            let axis = (0..3).find(|&axis| a.start[axis] != b.start[axis])?;
            let is_outermost = a.extent[..axis].iter().all(|&extent| extent == 1);
            let others = (0..3)
                .filter(|&other| other != axis)
                .all(|other| (a.start[other], a.extent[other]) == (b.start[other], b.extent[other]));
            if !(is_outermost && others && a.start[axis] + a.extent[axis] == b.start[axis]) {
                return None;
            }
            let mut joined = *a;
            joined.extent[axis] += b.extent[axis];
            Some(Tokens::Box(joined))
        }
        _ => None,
    }
}

/// The tiles of a plan.
#[derive(Clone, Debug)]
pub struct Windows {
    tiles: Tiles,
    neighborhood: Neighborhood,
    additional: usize,
}

impl Windows {
    /// The tiles of a problem: those of the options, or those that visit the fewest keys.
    ///
    /// # Errors
    /// For options that are not as the problem or the machine has it.
    pub fn new(problem: &Problem, options: &PlanOptions) -> Result<Self> {
        let neighborhood = problem.neighborhood();
        let given = |name, tile: &Option<Vec<usize>>| {
            tile.as_ref().map(|tile| padded_tile(name, tile, problem)).transpose()
        };
        let query = given("query_tile", &options.query_tile)?;
        let query = query.map(|tile| clip(neighborhood, tile, true));
        let key = given("key_tile", &options.key_tile)?;
        let key = key.map(|tile| clip(neighborhood, tile, false));
        for (name, tile) in [("query_tile", query), ("key_tile", key)] {
            if let Some(tile) = tile
                && tile.iter().product::<usize>() > PARTITIONS
            {
                return Err(natten_core::Error::invalid(
                    name,
                    format!("{tile:?}"),
                    "a tile of the NeuronCore has at most 128 tokens",
                    "give a smaller tile, or leave the choice to the planner",
                ));
            }
        }
        let tiles = match (query, key) {
            (Some(query), key) => {
                Tiles::new(neighborhood, query, key.unwrap_or_else(|| chunk_of(neighborhood, query)))
            }
            (None, key) => cheapest(neighborhood, key),
        };
        Ok(Self { tiles, neighborhood: neighborhood.clone(), additional: problem.additional_tokens() })
    }

    /// Tiles of one query, whose keys are then its window and nothing else.
    pub fn exact(problem: &Problem) -> Self {
        let neighborhood = problem.neighborhood();
        let tiles = Tiles::new(neighborhood, [1; 3], chunk_of(neighborhood, [1; 3]));
        Self { tiles, neighborhood: neighborhood.clone(), additional: problem.additional_tokens() }
    }

    /// Tiles of one key, and of queries that all see it.
    pub fn exact_of_keys(problem: &Problem) -> Self {
        let neighborhood = problem.neighborhood();
        let lens = neighborhood.axes().map(|axis| axis.query_group_len(0).max(1));
        let row = [1, 1, lens[2].min(PARTITIONS)];
        let tiles = Tiles::new(neighborhood, row, [1; 3]);
        Self { tiles, neighborhood: neighborhood.clone(), additional: problem.additional_tokens() }
    }

    /// The boxes that are walked, counted.
    pub fn coverage(&self, problem: &Problem) -> Coverage {
        coverage_of(problem, &self.tiles)
    }

    /// The shapes of the boxes, for reports.
    pub fn shapes(&self) -> ([usize; 3], [usize; 3]) {
        (self.tiles.query_tile(), self.tiles.key_tile())
    }

    /// Every query box.
    pub fn query_boxes(&self) -> impl Iterator<Item = TileBox> + '_ {
        (0..self.tiles.query_boxes()).map(|index| self.tiles.query_box(index))
    }

    /// Every query box, those that follow each other along the first axis one after the other: their windows overlap
    /// in whole chunks, where chunks are whole rows.
    pub fn query_boxes_by_columns(&self) -> Vec<TileBox> {
        let mut boxes: Vec<TileBox> = self.query_boxes().collect();
        boxes.sort_by_key(|tile| (tile.group, tile.start[2], tile.start[1], tile.start[0]));
        boxes
    }

    /// The keys that a query box visits, in blocks of at most `columns` columns.
    pub fn blocks(&self, queries: &TileBox, columns: usize) -> Vec<Block> {
        let chunks = self.tiles.keys_of(queries).map(|(keys, class)| (Tokens::Box(keys), class));
        let mut blocks = pack(chunks, columns.min(MOVING_MAX));
        blocks.extend(self.additional_blocks(columns));
        blocks
    }

    /// The blocks of the additional keys, which every query sees.
    pub fn additional_blocks(&self, columns: usize) -> Vec<Block> {
        let ranges = (0..self.additional.div_ceil(PARTITIONS)).map(|chunk| {
            let start = chunk * PARTITIONS;
            (Tokens::Range(start, PARTITIONS.min(self.additional - start)), TileClass::Full)
        });
        let mut blocks = pack(ranges, columns.min(MOVING_MAX));
        blocks.iter_mut().for_each(|block| block.additional = true);
        blocks
    }

    /// The partition of the keys in boxes, and of each the query boxes that see it: the inverse walk.
    pub fn key_boxes(&self) -> impl Iterator<Item = (TileBox, Vec<(TileBox, TileClass)>)> + '_ {
        (0..self.tiles.key_boxes()).map(|index| {
            let keys = self.tiles.key_box(index);
            (keys, self.tiles.queries_of(&keys).collect())
        })
    }

    /// Whether a query of a box sees a key of a box, both by row-major number in their box.
    pub fn sees(&self, queries: &TileBox, query: usize, keys: &TileBox, key: usize) -> bool {
        let (at, of) = (queries.position(query), keys.position(key));
        (0..3).all(|a| {
            let axis = &self.neighborhood.axes()[a];
            queries.group[a] == keys.group[a] && axis.window(queries.group[a], at[a]).contains(&of[a])
        })
    }

    /// Whether some query sees no key of the grid.
    pub fn has_blind_queries(&self) -> bool {
        self.neighborhood.axes().iter().any(|axis| {
            (0..axis.dilation().min(axis.query_len())).any(|group| axis.window(group, 0).is_empty())
        })
    }
}

/// Chunks in blocks.
fn pack(chunks: impl Iterator<Item = (Tokens, TileClass)>, columns: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (chunk, class) in chunks {
        let is_edge = class != TileClass::Full;
        match blocks.last_mut() {
            Some(block) if block.len() + chunk.len() <= columns => {
                block.chunks.push(chunk);
                block.is_edge |= is_edge;
            }
            _ => blocks.push(Block { additional: false, chunks: vec![chunk], is_edge }),
        }
    }
    blocks
}

fn clip(neighborhood: &Neighborhood, tile: [usize; 3], of_queries: bool) -> [usize; 3] {
    std::array::from_fn(|a| {
        let axis = &neighborhood.axes()[a];
        let len = if of_queries { axis.query_group_len(0) } else { axis.key_group_len(0) };
        tile[a].min(len.max(1))
    })
}

/// The largest key box of at most 128 tokens that wastes least of what a query box visits: whole rows, then whole planes.
fn chunk_of(neighborhood: &Neighborhood, query: [usize; 3]) -> [usize; 3] {
    let visited: [usize; 3] = std::array::from_fn(|a| {
        let axis = &neighborhood.axes()[a];
        let positions = axis.query_group_len(0);
        // The window of a run of queries in the middle is as long as any.
        let start = (positions.saturating_sub(query[a])) / 2;
        let union = axis.window_union(0, &(start..(start + query[a]).min(positions.max(1))));
        (union.end.saturating_sub(union.start)).clamp(1, axis.key_group_len(0).max(1))
    });
    let mut chunk = [1; 3];
    let mut left = PARTITIONS;
    for a in (0..3).rev() {
        let pieces = visited[a].div_ceil(left.min(visited[a]).max(1));
        chunk[a] = visited[a].div_ceil(pieces);
        if visited[a] >= PARTITIONS && a == 2 {
            chunk[a] = PARTITIONS;
        }
        left /= chunk[a];
        if left == 0 || pieces > 1 {
            break;
        }
    }
    chunk
}

/// The query box of at most 128 tokens, and its chunks, that cost the fewest columns: what is visited, a column counting
/// as the whole partition dimension whether rows are used or not.
fn cheapest(neighborhood: &Neighborhood, key: Option<[usize; 3]>) -> Tiles {
    let lens: [usize; 3] = std::array::from_fn(|a| neighborhood.axes()[a].query_group_len(0).max(1));
    let sizes = |len: usize| {
        let mut sizes: Vec<usize> = [1, 2, 4, 8, 16, 32, 64, 128].into_iter().filter(|&n| n < len).collect();
        sizes.push(len.min(PARTITIONS));
        sizes
    };
    let mut best: Option<(u128, Tiles)> = None;
    for z in sizes(lens[0]) {
        for y in sizes(lens[1]).into_iter().filter(|y| z * y <= PARTITIONS) {
            let room = PARTITIONS / (z * y);
            let x = room.min(lens[2]);
            let query = [z, y, x];
            let tiles = Tiles::new(neighborhood, query, key.unwrap_or_else(|| chunk_of(neighborhood, query)));
            let boxes = tiles.query_boxes() as u128;
            let columns = tiles.coverage().visited * boxes / neighborhood_queries(neighborhood).max(1);
            // Every box has instructions of its own, whose fixed part is some hundred columns.
            let cost = columns + 200 * boxes;
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, tiles));
            }
        }
    }
    best.map_or_else(|| Tiles::new(neighborhood, [1; 3], [1; 3]), |(_, tiles)| tiles)
}

fn neighborhood_queries(neighborhood: &Neighborhood) -> u128 {
    neighborhood.query_shape().iter().map(|&len| len as u128).product()
}
