//! How the families with tiles cut a problem: boxes of queries, and the boxes of keys that a box of queries walks.

use natten_core::geometry::{Axis, MAX_RANK, Neighborhood, Tiles};
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
}

impl Boxes {
    /// Boxes of at most `rows` queries and `keys` keys: those that the caller asks for, where they are small enough, or
    /// else those with which the fewest pairs of boxes are visited. None where the caller asks for larger ones.
    pub(crate) fn new(problem: &Problem, options: &PlanOptions, rows: usize, keys: usize) -> Option<Self> {
        let neighborhood = problem.neighborhood();
        let axes = neighborhood.axes();
        let asked = |name, tile: &Option<Vec<usize>>| -> Option<[usize; MAX_RANK]> {
            tile.as_ref().and_then(|tile| padded_tile(name, tile, problem).ok())
        };
        let of = |asked: Option<[usize; MAX_RANK]>, volume: usize, all: Vec<[usize; MAX_RANK]>| match asked {
            Some(tile) => (tile.iter().product::<usize>() <= volume).then(|| vec![tile]),
            None => Some(all),
        };
        let query_tiles =
            of(asked("query_tile", &options.query_tile), rows, query_tiles(neighborhood, rows))?;
        let key_tiles = of(asked("key_tile", &options.key_tile), keys, key_tiles(neighborhood, keys))?;
        let mut best: Option<(f64, [usize; MAX_RANK], [usize; MAX_RANK])> = None;
        for query in query_tiles {
            let unions: [Vec<usize>; MAX_RANK] = std::array::from_fn(|a| unions(&axes[a], query[a]));
            for &key in &key_tiles {
                let along = |a: usize| unions[a].iter().map(|len| len.div_ceil(key[a])).sum::<usize>() as f64;
                let pairs: f64 = (0..MAX_RANK).map(along).product();
                // A box with cells to spare is masked wherever it stands, which costs something.
                let is_whole = key.iter().product::<usize>() == keys;
                let cost = pairs * if is_whole { 1.0 } else { 1.05 };
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, query, key));
                }
            }
        }
        let (_, query, key) = best?;
        // As the walk cuts them, at axes that are shorter.
        let tiles = Tiles::new(neighborhood, query, key);
        let (query_tile, key_tile) = (tiles.query_tile(), tiles.key_tile());
        Some(Self {
            query_tile,
            key_tile,
            query_pieces: std::array::from_fn(|a| axes[a].query_group_len(0).div_ceil(query_tile[a])),
            key_pieces: std::array::from_fn(|a| axes[a].key_group_len(0).div_ceil(key_tile[a])),
            dilation: axes.each_ref().map(Axis::dilation),
        })
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

/// The lengths of the unions of windows that the pieces of an axis see.
fn unions(axis: &Axis, tile: usize) -> Vec<usize> {
    let pieces = |group: usize| {
        let len = axis.query_group_len(group);
        (0..len).step_by(tile).map(move |start| start..(start + tile).min(len))
    };
    (0..axis.dilation())
        .flat_map(|group| pieces(group).map(move |span| axis.window_union(group, &span).len()))
        .collect()
}

/// Boxes of queries of powers of two, no longer along an axis than it needs, the largest that there are: smaller ones
/// leave threads idle.
fn query_tiles(neighborhood: &Neighborhood, volume: usize) -> Vec<[usize; MAX_RANK]> {
    let most = neighborhood.axes().each_ref().map(|axis| axis.query_group_len(0).next_power_of_two());
    largest(volume, most, |n| n.is_power_of_two(), 1.0)
}

/// Boxes of keys of any extents that fill most of a tile.
fn key_tiles(neighborhood: &Neighborhood, volume: usize) -> Vec<[usize; MAX_RANK]> {
    let most = neighborhood.axes().each_ref().map(|axis| axis.key_group_len(0).next_power_of_two());
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
    use natten_core::geometry::AxisParams;

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
        // A box of 8 by 8 queries sees 20 by 20 keys: 14 boxes, where squares of powers of two need 15.
        let square = boxes(&[(64, 13), (64, 13)]);
        assert_eq!(square.query_tile, [1, 8, 8]);
        let [_, y, x] = square.key_tile;
        assert_eq!(20usize.div_ceil(y) * 20usize.div_ceil(x), 14, "{square:?}");
        assert_eq!(square.query_boxes(), 64);
    }
}
