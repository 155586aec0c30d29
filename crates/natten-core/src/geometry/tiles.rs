//! Boxes: what a kernel walks.
//!
//! Queries are cut into boxes of a chosen shape inside each residue group. For a query box, the keys that any of its
//! queries sees are a box too (a product of unions of windows); it is cut into key boxes *anchored where that union
//! starts*, not snapped to a global grid, so that a window of 13 never straddles one tile more than it must. The
//! inverse walk, for gradients of keys and values, goes from key boxes to boxes of the queries that see them.
//!
//! The walks visit no empty box: along one axis every key between the first and the last that a run of queries sees is
//! seen by one of them, and the product of non-empty axes is not empty.

use super::axis::{Axis, Span};
use super::neighborhood::{MAX_RANK, Neighborhood};

/// A box of tokens inside one residue group, in group coordinates, on the three padded axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileBox {
    /// The residue group an axis.
    pub group: [usize; MAX_RANK],
    /// The first position an axis.
    pub start: [usize; MAX_RANK],
    /// Positions an axis, at least 1. Boxes at a border are clipped, so this is the true extent.
    pub extent: [usize; MAX_RANK],
}

impl TileBox {
    /// Tokens in the box.
    pub fn volume(&self) -> usize {
        self.extent.iter().product()
    }

    /// The positions along one axis.
    pub fn span(&self, axis: usize) -> Span {
        self.start[axis]..self.start[axis] + self.extent[axis]
    }

    /// The position, an axis, of the `index`-th token of the box in row-major order.
    pub fn position(&self, index: usize) -> [usize; MAX_RANK] {
        let [_, y, x] = self.extent;
        [self.start[0] + index / (x * y), self.start[1] + index / x % y, self.start[2] + index % x]
    }
}

/// How much of a pair of boxes is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TileClass {
    /// Every query of the box sees every key of the box: no mask is needed.
    Full,
    /// Some pairs are visible and some are not.
    Edge,
    /// No pair is visible.
    Empty,
}

/// What a walk over some tile shapes does, counted without running it. Of one batch entry and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Coverage {
    /// Visible (query, key) pairs: the work that has to be done.
    pub useful: u128,
    /// Pairs inside the visited boxes: the work that a kernel does which masks inside boxes only.
    pub visited: u128,
    /// Visited pairs of boxes in which every pair is visible.
    pub full: u128,
    /// Visited pairs of boxes that need a mask.
    pub edge: u128,
}

/// A neighborhood cut into boxes: the walks of a kernel, forward and inverse.
#[derive(Clone, Debug)]
pub struct Tiles {
    axes: [Axis; MAX_RANK],
    query_tile: [usize; MAX_RANK],
    key_tile: [usize; MAX_RANK],
}

impl Tiles {
    /// Cuts `neighborhood` into query boxes of `query_tile` and key boxes of `key_tile` tokens (both in group
    /// coordinates, on the three padded axes; a zero counts as one, a tile larger than its group is clipped).
    pub fn new(
        neighborhood: &Neighborhood,
        query_tile: [usize; MAX_RANK],
        key_tile: [usize; MAX_RANK],
    ) -> Self {
        let axes = *neighborhood.axes();
        let clip = |tile: [usize; MAX_RANK], len: fn(&Axis, usize) -> usize| {
            std::array::from_fn(|a| tile[a].clamp(1, len(&axes[a], 0)))
        };
        Self {
            query_tile: clip(query_tile, Axis::query_group_len),
            key_tile: clip(key_tile, Axis::key_group_len),
            axes,
        }
    }

    /// The axes that the boxes lie on.
    pub const fn axes(&self) -> &[Axis; MAX_RANK] {
        &self.axes
    }

    /// The shape of an unclipped query box.
    pub const fn query_tile(&self) -> [usize; MAX_RANK] {
        self.query_tile
    }

    /// The shape of an unclipped key box.
    pub const fn key_tile(&self) -> [usize; MAX_RANK] {
        self.key_tile
    }

    /// The number of query boxes, over all residue groups.
    pub fn query_boxes(&self) -> usize {
        self.query_cuts().iter().map(Cut::boxes).product()
    }

    /// The query box number `index`, counted with the last axis fastest. Boxes are disjoint and cover all queries.
    pub fn query_box(&self, index: usize) -> TileBox {
        nth_box(&self.query_cuts(), index)
    }

    /// The number of key boxes that partition the keys, over all residue groups.
    pub fn key_boxes(&self) -> usize {
        self.key_cuts().iter().map(Cut::boxes).product()
    }

    /// The key box number `index` of the partition of the keys that the inverse walk starts from.
    pub fn key_box(&self, index: usize) -> TileBox {
        nth_box(&self.key_cuts(), index)
    }

    /// The key boxes to visit for a query box, anchored at the start of its queries' windows. Every pair visible to
    /// the box's queries lies in exactly one of them; none is [`TileClass::Empty`].
    pub fn keys_of(&self, queries: &TileBox) -> impl Iterator<Item = (TileBox, TileClass)> + use<> {
        let axes = self.axes;
        let queries = *queries;
        let union: [Span; MAX_RANK] =
            std::array::from_fn(|a| axes[a].window_union(queries.group[a], &queries.span(a)));
        boxes_of(queries.group, union, self.key_tile)
            .map(move |keys| (keys, class_of(&axes, &queries, &keys)))
    }

    /// The query boxes to visit for a key box: the inverse walk. Every pair that sees one of the box's keys lies in
    /// exactly one of them; none is [`TileClass::Empty`].
    pub fn queries_of(&self, keys: &TileBox) -> impl Iterator<Item = (TileBox, TileClass)> + use<> {
        let axes = self.axes;
        let keys = *keys;
        let union: [Span; MAX_RANK] =
            std::array::from_fn(|a| axes[a].queries_union(keys.group[a], &keys.span(a)));
        boxes_of(keys.group, union, self.query_tile)
            .map(move |queries| (queries, class_of(&axes, &queries, &keys)))
    }

    /// How much of a query box's view of a key box is visible, for any two boxes.
    pub fn class(&self, queries: &TileBox, keys: &TileBox) -> TileClass {
        class_of(&self.axes, queries, keys)
    }

    /// Counts the forward walk without running it. The axes are independent, so this takes time linear in the sum of
    /// the axes' lengths, whatever their product.
    pub fn coverage(&self) -> Coverage {
        let mut total = Coverage { useful: 1, visited: 1, full: 1, edge: 0 };
        for (a, axis) in self.axes.iter().enumerate() {
            let (mut visited, mut full) = (0u128, 0u128);
            let cut = self.query_cut(a);
            for index in 0..cut.boxes() {
                let (group, queries) = cut.nth(index);
                let union = axis.window_union(group, &queries);
                let common = axis.window_intersection(group, &queries);
                for keys in pieces(union, self.key_tile[a]) {
                    let pairs = queries.len() as u128 * keys.len() as u128;
                    visited += pairs;
                    full += if common.start <= keys.start && keys.end <= common.end { pairs } else { 0 };
                }
            }
            total.useful = total.useful.saturating_mul(axis.useful_pairs());
            total.visited = total.visited.saturating_mul(visited);
            total.full = total.full.saturating_mul(full);
        }
        total.edge = total.visited - total.full;
        total
    }

    fn query_cut(&self, a: usize) -> Cut {
        Cut::new(self.axes[a].query_len(), self.axes[a].dilation(), self.query_tile[a])
    }

    fn query_cuts(&self) -> [Cut; MAX_RANK] {
        std::array::from_fn(|a| self.query_cut(a))
    }

    fn key_cuts(&self) -> [Cut; MAX_RANK] {
        std::array::from_fn(|a| Cut::new(self.axes[a].key_len(), self.axes[a].dilation(), self.key_tile[a]))
    }
}

/// One axis cut into pieces of `tile` positions, group by group. The first `long_groups` groups have `long` positions,
/// the others one less, so piece number `n` is found without a search.
struct Cut {
    groups: usize,
    long_groups: usize,
    long: usize,
    short: usize,
    tile: usize,
}

impl Cut {
    fn new(len: usize, groups: usize, tile: usize) -> Self {
        Self { groups, long_groups: len % groups, long: len / groups + 1, short: len / groups, tile }
    }

    fn boxes(&self) -> usize {
        self.long_groups * self.long.div_ceil(self.tile)
            + (self.groups - self.long_groups) * self.short.div_ceil(self.tile)
    }

    /// The group and the positions of piece number `index`.
    fn nth(&self, index: usize) -> (usize, Span) {
        let in_long = self.long.div_ceil(self.tile);
        let (group, piece, len) = if index < self.long_groups * in_long {
            (index / in_long, index % in_long, self.long)
        } else {
            let index = index - self.long_groups * in_long;
            let in_short = self.short.div_ceil(self.tile);
            (self.long_groups + index / in_short, index % in_short, self.short)
        };
        let start = piece * self.tile;
        (group, start..(start + self.tile).min(len))
    }
}

fn nth_box(cuts: &[Cut; MAX_RANK], mut index: usize) -> TileBox {
    let mut found = TileBox { group: [0; MAX_RANK], start: [0; MAX_RANK], extent: [1; MAX_RANK] };
    for a in (0..MAX_RANK).rev() {
        let boxes = cuts[a].boxes();
        let (group, span) = cuts[a].nth(index % boxes);
        index /= boxes;
        found.group[a] = group;
        found.start[a] = span.start;
        found.extent[a] = span.len();
    }
    found
}

/// A span cut into pieces of at most `tile`, from its start.
fn pieces(span: Span, tile: usize) -> impl Iterator<Item = Span> {
    let end = span.end;
    span.step_by(tile).map(move |start| start..(start + tile).min(end))
}

/// The product of three cut spans, the last axis fastest.
fn boxes_of(
    group: [usize; MAX_RANK],
    spans: [Span; MAX_RANK],
    tile: [usize; MAX_RANK],
) -> impl Iterator<Item = TileBox> {
    let counts: [usize; MAX_RANK] = std::array::from_fn(|a| spans[a].len().div_ceil(tile[a]));
    (0..counts.iter().product()).map(move |index| {
        let at = [index / (counts[1] * counts[2]), index / counts[2] % counts[1], index % counts[2]];
        let start: [usize; MAX_RANK] = std::array::from_fn(|a| spans[a].start + at[a] * tile[a]);
        TileBox { group, start, extent: std::array::from_fn(|a| tile[a].min(spans[a].end - start[a])) }
    })
}

fn class_of(axes: &[Axis; MAX_RANK], queries: &TileBox, keys: &TileBox) -> TileClass {
    let mut class = TileClass::Full;
    for (a, axis) in axes.iter().enumerate() {
        if queries.group[a] != keys.group[a] {
            return TileClass::Empty;
        }
        let (group, span) = (queries.group[a], queries.span(a));
        let union = axis.window_union(group, &span);
        let common = axis.window_intersection(group, &span);
        let keys = keys.span(a);
        if keys.end <= union.start || union.end <= keys.start {
            return TileClass::Empty;
        }
        if keys.start < common.start || common.end < keys.end {
            class = TileClass::Edge;
        }
    }
    class
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::axis::{Alignment, AxisParams};
    use super::*;

    fn small_params() -> impl Strategy<Value = AxisParams> {
        (1usize..12).prop_flat_map(|len| {
            (1..=len).prop_flat_map(move |kernel_size| {
                (1..=kernel_size, 1..=len / kernel_size, any::<bool>()).prop_map(
                    move |(stride, dilation, is_causal)| {
                        AxisParams::new(len, kernel_size).stride(stride).dilation(dilation).causal(is_causal)
                    },
                )
            })
        })
    }

    fn neighborhoods() -> impl Strategy<Value = Neighborhood> {
        let causal =
            prop_oneof![Just(None), Just(Some(Alignment::TopLeft)), Just(Some(Alignment::BottomRight))];
        prop_oneof![
            4 => prop::collection::vec(small_params(), 1..=2).prop_map(|p| Neighborhood::new(&p).unwrap()),
            1 => prop::collection::vec(small_params().prop_map(|mut p| { p.len = p.len.min(6); p.fit() }), 3)
                .prop_map(|p| Neighborhood::new(&p).unwrap()),
            1 => (1usize..20, 1usize..20, causal).prop_map(|(q, k, c)| Neighborhood::full(q, k, c).unwrap()),
        ]
    }

    fn tile() -> impl Strategy<Value = [usize; 3]> {
        [1usize..5, 1usize..7, 1usize..9]
    }

    fn tokens(neighborhood: &Neighborhood, b: &TileBox) -> Vec<[usize; 3]> {
        let axes = neighborhood.axes();
        (0..b.volume())
            .map(|i| {
                let p = b.position(i);
                std::array::from_fn(|a| axes[a].token(b.group[a], p[a]))
            })
            .collect()
    }

    fn all_tokens(shape: [usize; 3]) -> Vec<[usize; 3]> {
        let [z, y, x] = shape;
        (0..z * y * x).map(|i| [i / (x * y), i / x % y, i % x]).collect()
    }

    fn index(shape: [usize; 3], t: [usize; 3]) -> usize {
        (t[0] * shape[1] + t[1]) * shape[2] + t[2]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Both walks of any tile shapes: every visible pair exactly once, no masked pair in a full box, nothing empty,
        /// and the closed-form coverage is what the walk does.
        #[test]
        fn walks_visit_every_visible_pair_once(n in neighborhoods(), query_tile in tile(), key_tile in tile()) {
            let tiles = Tiles::new(&n, query_tile, key_tile);
            let queries_shape = n.axes().map(|a| a.query_len());
            let keys_shape = n.axes().map(|a| a.key_len());
            let (nq, nk) = (queries_shape.iter().product::<usize>(), keys_shape.iter().product::<usize>());
            let mut forward = vec![0u32; nq * nk];
            let mut inverse = vec![0u32; nq * nk];
            let mut counted = Coverage::default();
            let visit = |counts: &mut [u32], q: &TileBox, k: &TileBox, class: TileClass| {
                prop_assert_ne!(class, TileClass::Empty);
                prop_assert_eq!(class, tiles.class(q, k));
                for qt in tokens(&n, q) {
                    for kt in tokens(&n, k) {
                        counts[index(queries_shape, qt) * nk + index(keys_shape, kt)] += 1;
                        if class == TileClass::Full {
                            prop_assert!(n.sees(qt, kt), "{:?}: {:?} does not see {:?} in a full box", n, qt, kt);
                        }
                    }
                }
                Ok(())
            };
            for b in 0..tiles.query_boxes() {
                let q = tiles.query_box(b);
                for (k, class) in tiles.keys_of(&q) {
                    visit(&mut forward, &q, &k, class)?;
                    let pairs = (q.volume() * k.volume()) as u128;
                    counted.visited += pairs;
                    *(if class == TileClass::Full { &mut counted.full } else { &mut counted.edge }) += pairs;
                }
            }
            for b in 0..tiles.key_boxes() {
                let k = tiles.key_box(b);
                for (q, class) in tiles.queries_of(&k) {
                    visit(&mut inverse, &q, &k, class)?;
                }
            }
            for q in all_tokens(queries_shape) {
                for k in all_tokens(keys_shape) {
                    let pair = index(queries_shape, q) * nk + index(keys_shape, k);
                    prop_assert!(forward[pair] <= 1 && inverse[pair] <= 1, "{:?} {:?} visited twice", q, k);
                    if n.sees(q, k) {
                        counted.useful += 1;
                        prop_assert_eq!((forward[pair], inverse[pair]), (1, 1), "{:?} {:?}", q, k);
                    }
                }
            }
            prop_assert_eq!(counted, tiles.coverage());
            prop_assert_eq!(counted.useful, n.useful_pairs());
        }

        /// The query boxes, and the key boxes, are a partition of the tokens.
        #[test]
        fn boxes_partition_the_tokens(n in neighborhoods(), query_tile in tile(), key_tile in tile()) {
            let tiles = Tiles::new(&n, query_tile, key_tile);
            let mut queries: Vec<_> =
                (0..tiles.query_boxes()).flat_map(|b| tokens(&n, &tiles.query_box(b))).collect();
            queries.sort_unstable();
            prop_assert_eq!(queries, all_tokens(n.axes().map(|a| a.query_len())));
            let mut keys: Vec<_> = (0..tiles.key_boxes()).flat_map(|b| tokens(&n, &tiles.key_box(b))).collect();
            keys.sort_unstable();
            prop_assert_eq!(keys, all_tokens(n.axes().map(|a| a.key_len())));
        }
    }

    #[test]
    fn key_boxes_start_where_the_window_starts() {
        let n = Neighborhood::new(&[AxisParams::new(100, 13)]).unwrap();
        let tiles = Tiles::new(&n, [1, 1, 8], [1, 1, 10]);
        let q = tiles.query_box(5);
        let starts: Vec<_> = tiles.keys_of(&q).map(|(k, _)| k.start[2]).collect();
        assert_eq!(starts, [34, 44], "queries 40..48 see 34..54");
    }

    #[test]
    fn coverage_does_not_overflow() {
        let len = isize::MAX as usize / 4;
        let n = Neighborhood::full(7, len, None).unwrap();
        let c = Tiles::new(&n, [1, 1, 7], [1, 1, usize::MAX]).coverage();
        assert_eq!((c.useful, c.full, c.edge), (7 * len as u128, 7 * len as u128, 0));
    }
}
