//! How the families with tiles cut a problem: boxes of queries, and the boxes of keys that a box of queries walks.

use natten_core::geometry::{Axis, MAX_RANK, Span, Tiles};
use natten_core::{PlanOptions, Problem, padded_tile};

/// A cut: the boxes, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boxes {
    pub(crate) query_tile: [usize; MAX_RANK],
    pub(crate) key_tile: [usize; MAX_RANK],
    /// Boxes of queries along each axis, of the longest residue group.
    pub(crate) query_pieces: [usize; MAX_RANK],
    /// Boxes of keys along each axis, of the longest residue group.
    pub(crate) key_pieces: [usize; MAX_RANK],
    dilation: [usize; MAX_RANK],
    /// Pairs of boxes that are visited for a head; a little more where boxes have cells to spare.
    pub(crate) pairs: u64,
}

impl Boxes {
    /// Boxes of at most `rows` queries and `keys` keys: those that the caller asks for, where they are small enough, or
    /// else those with which the fewest pairs of boxes are visited. None where the caller asks for larger ones.
    pub(crate) fn new(problem: &Problem, options: &PlanOptions, rows: usize, keys: usize) -> Option<Self> {
        let asked = |name, tile: &Option<Vec<usize>>, volume: usize| match tile {
            None => Some(None),
            Some(tile) => {
                let tile = padded_tile(name, tile, problem).ok()?;
                (tile.iter().product::<usize>() <= volume).then_some(Some(tile))
            }
        };
        let query = asked("query_tile", &options.query_tile, rows)?;
        let key = asked("key_tile", &options.key_tile, keys)?;
        let axes = problem.neighborhood().axes();
        let query_tiles = query.map_or_else(|| rows_of(axes, rows, Axis::query_group_len), |tile| vec![tile]);
        let key_tiles = key.map_or_else(|| columns_of(axes, keys, Axis::key_group_len), |tile| vec![tile]);
        let (query, key, pairs) = best(axes, &query_tiles, &key_tiles, keys, |axis, tile| {
            unions(axis, tile, Axis::query_group_len, Axis::window_union)
        })?;
        Some(Self::of(problem, query, key, pairs))
    }

    /// Boxes of at most `keys` keys, and of at most `rows` queries that they walk.
    pub(crate) fn inverse(problem: &Problem, rows: usize, keys: usize) -> Option<Self> {
        let axes = problem.neighborhood().axes();
        let key_tiles = rows_of(axes, keys, Axis::key_group_len);
        let query_tiles = columns_of(axes, rows, Axis::query_group_len);
        let (key, query, pairs) = best(axes, &key_tiles, &query_tiles, rows, |axis, tile| {
            unions(axis, tile, Axis::key_group_len, Axis::queries_union)
        })?;
        Some(Self::of(problem, query, key, pairs))
    }

    fn of(problem: &Problem, query: [usize; MAX_RANK], key: [usize; MAX_RANK], pairs: f64) -> Self {
        let axes = problem.neighborhood().axes();
        // As the walk cuts them, at axes that are shorter.
        let tiles = Tiles::new(problem.neighborhood(), query, key);
        let (query_tile, key_tile) = (tiles.query_tile(), tiles.key_tile());
        Self {
            query_tile,
            key_tile,
            query_pieces: std::array::from_fn(|a| axes[a].query_group_len(0).div_ceil(query_tile[a])),
            key_pieces: std::array::from_fn(|a| axes[a].key_group_len(0).div_ceil(key_tile[a])),
            dilation: axes.each_ref().map(Axis::dilation),
            pairs: pairs as u64,
        }
    }

    /// Boxes of queries over all residue groups, those counted that a shorter group does not have.
    pub(crate) fn query_boxes(&self) -> usize {
        (0..MAX_RANK).map(|a| self.query_pieces[a] * self.dilation[a]).product()
    }

    /// Boxes of keys over all residue groups, those counted that a shorter group does not have.
    pub(crate) fn key_boxes(&self) -> usize {
        (0..MAX_RANK).map(|a| self.key_pieces[a] * self.dilation[a]).product()
    }

    /// The most boxes of keys that a box of queries walks.
    pub(crate) fn key_boxes_of(&self, problem: &Problem) -> usize {
        let axes = problem.neighborhood().axes();
        let most = |a: usize| {
            let span = (axes[a].window_len() + self.query_tile[a]).min(axes[a].key_group_len(0));
            span.div_ceil(self.key_tile[a])
        };
        (0..MAX_RANK).map(most).product()
    }

    /// The most boxes of queries that a box of keys walks.
    pub(crate) fn query_boxes_of(&self, problem: &Problem) -> usize {
        let axes = problem.neighborhood().axes();
        let most = |a: usize| {
            let len = axes[a].key_group_len(0);
            let unions = (0..len)
                .step_by(self.key_tile[a])
                .map(|start| axes[a].queries_union(0, &(start..(start + self.key_tile[a]).min(len))).len());
            unions.max().unwrap_or(0).div_ceil(self.query_tile[a])
        };
        (0..MAX_RANK).map(most).product()
    }

    /// Declarations of the cut.
    pub(crate) fn constants(&self) -> String {
        let vector = |[x, y, z]: [usize; MAX_RANK]| format!("vec3<i32>({x}, {y}, {z})");
        format!(
            "const QUERY_TILE: vec3<i32> = {};\nconst KEY_TILE: vec3<i32> = {};\n\
             const QUERY_PIECES: vec3<i32> = {};\nconst KEY_PIECES: vec3<i32> = {};\n",
            vector(self.query_tile),
            vector(self.key_tile),
            vector(self.query_pieces),
            vector(self.key_pieces),
        )
    }
}

/// The rows' and the columns' boxes with which the fewest pairs of boxes are visited, and how many those are. `unions` are the lengths of what an
/// axis' pieces walk.
fn best(
    axes: &[Axis; MAX_RANK],
    rows: &[[usize; MAX_RANK]],
    columns: &[[usize; MAX_RANK]],
    volume: usize,
    unions: impl Fn(&Axis, usize) -> Vec<usize>,
) -> Option<([usize; MAX_RANK], [usize; MAX_RANK], f64)> {
    let mut best: Option<(f64, [usize; MAX_RANK], [usize; MAX_RANK])> = None;
    for &row in rows {
        let lens: [Vec<usize>; MAX_RANK] = std::array::from_fn(|a| unions(&axes[a], row[a]));
        for &column in columns {
            let along = |a: usize| lens[a].iter().map(|len| len.div_ceil(column[a])).sum::<usize>() as f64;
            let pairs: f64 = (0..MAX_RANK).map(along).product();
            // A box with cells to spare is masked wherever it stands, which costs something.
            let is_whole = column.iter().product::<usize>() == volume;
            let cost = pairs * if is_whole { 1.0 } else { 1.05 };
            if best.is_none_or(|(least, ..)| cost < least) {
                best = Some((cost, row, column));
            }
        }
    }
    best.map(|(cost, row, column)| (row, column, cost))
}

/// The lengths of what the pieces of an axis see.
fn unions(
    axis: &Axis,
    tile: usize,
    len: fn(&Axis, usize) -> usize,
    union: fn(&Axis, usize, &Span) -> Span,
) -> Vec<usize> {
    let pieces = |group: usize| {
        let len = len(axis, group);
        (0..len).step_by(tile).map(move |start| start..(start + tile).min(len))
    };
    (0..axis.dilation())
        .flat_map(|group| pieces(group).map(move |span| union(axis, group, &span).len()))
        .collect()
}

/// Boxes of powers of two, no longer along an axis than it needs, the largest that there are: smaller ones leave threads
/// idle.
fn rows_of(axes: &[Axis; MAX_RANK], volume: usize, len: fn(&Axis, usize) -> usize) -> Vec<[usize; MAX_RANK]> {
    let most = axes.each_ref().map(|axis| len(axis, 0).next_power_of_two());
    largest(volume, most, usize::is_power_of_two, 1.0)
}

/// Boxes of any extents that fill most of a tile.
fn columns_of(
    axes: &[Axis; MAX_RANK],
    volume: usize,
    len: fn(&Axis, usize) -> usize,
) -> Vec<[usize; MAX_RANK]> {
    let most = axes.each_ref().map(|axis| len(axis, 0).next_power_of_two());
    largest(volume, most, |_| true, 0.75)
}

/// The boxes up to a volume whose volume is at least a fraction of the largest of them.
fn largest(
    volume: usize,
    most: [usize; MAX_RANK],
    is_extent: fn(usize) -> bool,
    fraction: f64,
) -> Vec<[usize; MAX_RANK]> {
    let extents = |most: usize| (1..=volume.min(most)).filter(move |&n| is_extent(n));
    let mut all = Vec::new();
    for x in extents(most[0]) {
        for y in extents(most[1]).take_while(|y| x * y <= volume) {
            for z in extents(most[2]).take_while(|z| x * y * z <= volume) {
                all.push([x, y, z]);
            }
        }
    }
    let size = |tile: &[usize; MAX_RANK]| tile.iter().product::<usize>();
    let largest = all.iter().map(size).max().unwrap_or(1);
    all.retain(|tile| size(tile) as f64 >= fraction * largest as f64);
    all
}

#[cfg(test)]
mod tests {
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;

    fn boxes(axes: &[(usize, usize)]) -> Boxes {
        let axes: Vec<AxisParams> = axes.iter().map(|&(len, kernel)| AxisParams::new(len, kernel)).collect();
        let problem = Problem::builder(Neighborhood::new(&axes).unwrap(), DType::F32).build().unwrap();
        Boxes::new(&problem, &PlanOptions::default(), 64, 32).unwrap()
    }

    #[test]
    fn boxes_are_those_with_the_fewest_pairs() {
        let long = boxes(&[(4096, 512)]);
        assert_eq!((long.query_tile, long.key_tile), ([1, 1, 64], [1, 1, 32]));
        // Squares of powers of two would need 15: a box of 8 by 8 queries sees 20 by 20 keys.
        let square = boxes(&[(64, 13), (64, 13)]);
        let steps = |a: usize| (12 + square.query_tile[a]).div_ceil(square.key_tile[a]);
        assert_eq!(steps(1) * steps(2), 14, "{square:?}");
        assert_eq!(square.query_boxes(), 64);
    }
}
