//! The three kinds of work of the unfused operations, in units that may run in any order.

use std::ops::Range;

use natten_core::Problem;
use natten_core::geometry::TileBox;

use super::table::{SlotOrder, Table, TilePairs};
use crate::element::Real;
use crate::kernel::stationary::{Alive, accumulate, pack_panel, products};
use crate::kernel::{Bias, BiasGradient, Pairs, Scratch, ScratchSizes, bias_partials_per_head};
use crate::lanes::{Direction, LaneGroups, Sight, all_lanes};
use crate::simd::Simd;
use crate::tiling::Pass;
use crate::tokens::{Place, Tokens};

/// A tensor of keys or values, of the windows and of the additional tokens, where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<R> {
    pub(super) window: Option<Tokens<R>>,
    pub(super) additional: Option<Tokens<R>>,
}

impl<R: Copy> Keys<R> {
    fn of(&self, is_window: bool) -> Option<&Tokens<R>> {
        if is_window { self.window.as_ref() } else { self.additional.as_ref() }
    }
}

/// A product of something of the queries with something of the keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term<T, R> {
    pub(super) own: T,
    pub(super) keys: Keys<R>,
}

/// `slot[i, j] = factor Σ_terms ⟨own_i, keys_j⟩ + bias`; `fill` where there is no key.
#[derive(Debug)]
pub(super) struct Store<R> {
    pub(super) to: Table<R>,
    pub(super) fill: R,
    pub(super) factor: R,
    pub(super) terms: [Option<Term<Tokens<R>, R>>; 2],
    pub(super) bias: Option<Bias<R>>,
}

/// `to_i = factor Σ_j Σ_terms slot[i, j] keys_j`, and the sums of the slots of the first term an entry of the bias.
#[derive(Debug)]
pub(super) struct QuerySums<R> {
    pub(super) to: Option<Tokens<R>>,
    pub(super) factor: R,
    pub(super) terms: [Option<Term<Table<R>, R>>; 2],
    pub(super) bias: Option<BiasGradient>,
}

/// `to_j = factor Σ_i slot[i, j] own_i`.
#[derive(Debug)]
pub(super) struct KeySums<R> {
    pub(super) table: Table<R>,
    pub(super) own: Tokens<R>,
    pub(super) factor: R,
    pub(super) to: Keys<R>,
}

/// The work of an operation.
#[derive(Debug)]
pub(super) struct Work<'a, R> {
    pub(super) problem: &'a Problem,
    pub(super) queries: &'a Pass,
    pub(super) keys: &'a Pass,
    pub(super) sizes: &'a ScratchSizes,
    pub(super) store: Option<Store<R>>,
    pub(super) query_sums: Option<QuerySums<R>>,
    pub(super) key_sums: Option<KeySums<R>>,
}

/// A box of keys, of windows or of additional tokens.
#[derive(Clone, Copy, Debug)]
struct Source {
    place: Place,
    is_window: bool,
}

impl<R: Real> Work<'_, R> {
    pub(super) fn units(&self) -> usize {
        self.query_units() + self.additional_units() + self.key_units()
    }

    /// Runs of query boxes of one head: single boxes, or, where the bias has a gradient, those that share a table.
    fn query_units(&self) -> usize {
        let pieces = match &self.query_sums {
            Some(QuerySums { bias: Some(_), .. }) => bias_partials_per_head(self.problem.heads()),
            None if self.store.is_none() => 0,
            _ => self.boxes_per_head(),
        };
        self.problem.heads() * pieces
    }

    fn boxes_per_head(&self) -> usize {
        self.problem.batch() * self.queries.tiles.query_boxes()
    }

    fn key_units(&self) -> usize {
        match &self.key_sums {
            Some(sums) if sums.to.window.is_some() => {
                self.problem.batch() * self.problem.heads_kv() * self.keys.tiles.key_boxes()
            }
            _ => 0,
        }
    }

    fn additional_units(&self) -> usize {
        let groups = self.problem.additional_tokens().div_ceil(self.sizes.width);
        match &self.key_sums {
            Some(sums) if sums.to.additional.is_some() => {
                self.problem.batch() * self.problem.heads_kv() * groups
            }
            _ => 0,
        }
    }

    /// Runs one unit.
    ///
    /// # Safety
    /// The processor has `S`'s instruction set, `scratch` was carved by this work's sizes, the operands live, and no two
    /// threads run the same unit.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (additional, queries) = (self.additional_units(), self.query_units());
        // SAFETY: the caller's.
        unsafe {
            if unit < additional {
                self.additional_unit::<S>(unit, scratch);
            } else if unit < additional + queries {
                self.query_unit::<S>(unit - additional, scratch);
            } else {
                self.key_unit::<S>(unit - additional - queries, scratch);
            }
        }
    }

    /// The head and the boxes (batch entries and query boxes, in order) of a unit.
    fn boxes_of(&self, unit: usize) -> (usize, Range<usize>) {
        let boxes = self.boxes_per_head();
        let pieces = (self.query_units() / self.problem.heads()).max(1);
        let (head, piece) = (unit / pieces, unit % pieces);
        (head, boxes * piece / pieces..boxes * (piece + 1) / pieces)
    }

    #[inline(always)]
    unsafe fn query_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (head, boxes) = self.boxes_of(unit);
        // SAFETY: the caller's; units have tables and boxes of their own.
        unsafe {
            if let Some(QuerySums { bias: Some(tables), .. }) = &self.query_sums {
                tables.clear(unit);
            }
            for index in boxes {
                let boxes = self.queries.tiles.query_boxes();
                let (batch, tile) = (index / boxes, self.queries.tiles.query_box(index % boxes));
                if let Some(store) = &self.store {
                    self.store_box::<S>(store, (batch, head), &tile, scratch);
                }
                if let Some(sums) = &self.query_sums {
                    self.sum_box::<S>(sums, unit, (batch, head), &tile, scratch);
                }
            }
        }
    }

    /// All keys that a query box sees, in boxes of at most `queries.rows`.
    fn sources(&self, queries: &TileBox) -> impl Iterator<Item = Source> + use<R> {
        let axes = *self.queries.tiles.axes();
        let window = self.queries.tiles.keys_of(queries).map(move |(keys, _)| Place::new(&axes, keys));
        let (tokens, rows) = (self.problem.additional_tokens(), self.queries.rows.max(1));
        let additional =
            (0..tokens).step_by(rows).map(move |first| Place::line(first, rows.min(tokens - first)));
        window
            .map(|place| Source { place, is_window: true })
            .chain(additional.map(|place| Source { place, is_window: false }))
    }

    fn sight<'m>(&self, group: &TileBox, source: &Source, masks: &'m mut [u32]) -> Sight<'m> {
        if source.is_window {
            Sight::new(Direction::Keys, self.queries.tiles.axes(), group, &source.place.tile, masks)
        } else {
            Sight::everything(group.volume(), source.place.tile.extent)
        }
    }

    fn order(&self) -> SlotOrder {
        SlotOrder::new(self.problem.neighborhood().axes())
    }

    fn dim(&self) -> usize {
        self.sizes.dims[0]
    }

    #[inline(always)]
    unsafe fn store_box<S: Simd<T = R>>(
        &self,
        store: &Store<R>,
        (batch, head): (usize, usize),
        tile: &TileBox,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (dim, stride) = (self.dim(), self.sizes.stride[0]);
        let axes = self.queries.tiles.axes();
        let groups = LaneGroups::new(tile, self.queries.lane_shape);
        let head_kv = head / self.problem.heads_per_kv();
        let slots = self.problem.neighborhood().window_len() + self.problem.additional_tokens();
        for g in 0..groups.len() {
            let place = Place::new(axes, groups.group(g));
            let panels = [&mut *scratch.panels_a, &mut *scratch.panels_b];
            for (term, panels) in store.terms.iter().zip(panels) {
                let Some(term) = term else { continue };
                let panel = &mut panels[g * dim * S::WIDTH..][..dim * S::WIDTH];
                // SAFETY: the box is one of the tiles, which partition the queries.
                unsafe {
                    let vector = &mut scratch.vector[..dim];
                    pack_panel(&term.own, (batch, head), &place, store.factor, vector, panel);
                }
            }
            for lane in 0..place.tile.volume() {
                // SAFETY: as above; this unit alone has these queries of this batch entry and head.
                unsafe { store.to.fill(batch, head, place.nth(lane), slots, store.fill) };
            }
        }
        let order = self.order();
        for source in self.sources(tile) {
            let streamed =
                store.terms.map(|term| term.and_then(|term| term.keys.of(source.is_window).copied()));
            // SAFETY: sources are inside their tensors, and have at most `queries.rows` tokens.
            unsafe {
                if let Some(tokens) = &streamed[0] {
                    tokens.pack((batch, head_kv), &source.place, dim, stride, scratch.rows_a);
                }
                if let Some(tokens) = &streamed[1] {
                    tokens.pack((batch, head_kv), &source.place, dim, stride, scratch.rows_b);
                }
            }
            for g in 0..groups.len() {
                let group = groups.group(g);
                let sight = self.sight(&group, &source, scratch.masks);
                let (rows, vectors) = (sight.rows(), group.volume().div_ceil(S::LANES));
                let [first, second] = [&scratch.panels_a, &scratch.panels_b]
                    .map(|panels| &panels[g * dim * S::WIDTH..][..dim * S::WIDTH]);
                let (sum, extra) = (&mut *scratch.weights, &mut *scratch.grads);
                // SAFETY: the caller's processor has `S`; scratch was carved for these sizes.
                unsafe {
                    match streamed[0] {
                        Some(_) => products::<S>(&sight, dim, vectors, (scratch.rows_a, stride), first, sum),
                        None => sum[..rows * S::WIDTH].fill(R::ZERO),
                    }
                    if streamed[1].is_some() {
                        products::<S>(&sight, dim, vectors, (scratch.rows_b, stride), second, extra);
                        for (sum, extra) in sum.iter_mut().zip(extra.iter()).take(rows * S::WIDTH) {
                            *sum = *sum + *extra;
                        }
                    }
                    if let (Some(bias), true) = (&store.bias, source.is_window) {
                        let streamed = source.place.tile.start;
                        let pairs = Pairs {
                            direction: Direction::Keys,
                            group: &group,
                            streamed,
                            sight: &sight,
                            width: S::WIDTH,
                        };
                        bias.add(head, &pairs, sum);
                    }
                    let queries = Place::new(axes, group);
                    let pairs = self.pairs(Direction::Keys, (batch, head), &queries, &source, &sight);
                    store.to.scatter(&order, &pairs, sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn sum_box<S: Simd<T = R>>(
        &self,
        sums: &QuerySums<R>,
        unit: usize,
        (batch, head): (usize, usize),
        tile: &TileBox,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (dim, stride) = (self.dim(), self.sizes.stride[0]);
        let axes = self.queries.tiles.axes();
        let groups = LaneGroups::new(tile, self.queries.lane_shape);
        let head_kv = head / self.problem.heads_per_kv();
        let order = self.order();
        scratch.sums_a[..groups.len() * S::WIDTH * stride].fill(R::ZERO);
        for source in self.sources(tile) {
            for (number, term) in sums.terms.iter().enumerate() {
                let Some(term) = term else { continue };
                let Some(tokens) = term.keys.of(source.is_window) else { continue };
                // SAFETY: sources are inside their tensors, and have at most `queries.rows` tokens.
                let finite =
                    unsafe { tokens.pack((batch, head_kv), &source.place, dim, stride, scratch.rows_a) };
                for g in 0..groups.len() {
                    let group = groups.group(g);
                    let sight = self.sight(&group, &source, scratch.masks);
                    let queries = Place::new(axes, group);
                    let pairs = self.pairs(Direction::Keys, (batch, head), &queries, &source, &sight);
                    let to = &mut scratch.sums_a[g * S::WIDTH * stride..][..S::WIDTH * stride];
                    let lanes = all_lanes(group.volume());
                    let alive = Alive { lanes, rows: None, any_masked: !sight.is_full };
                    // SAFETY: the caller's processor has `S`; scratch was carved for these sizes.
                    unsafe {
                        term.own.gather(&order, &pairs, scratch.weights);
                        if let (Some(tables), 0, true) = (&sums.bias, number, source.is_window) {
                            let streamed = source.place.tile.start;
                            let pairs = Pairs {
                                direction: Direction::Keys,
                                group: &group,
                                streamed,
                                sight: &sight,
                                width: S::WIDTH,
                            };
                            tables.add(unit, &pairs, lanes, scratch.weights);
                        }
                        let rows = (&*scratch.rows_a, stride, finite);
                        accumulate::<S>(&sight, &alive, &group, rows, scratch.weights, to);
                    }
                }
            }
        }
        let Some(to) = &sums.to else { return };
        for g in 0..groups.len() {
            let place = Place::new(axes, groups.group(g));
            for lane in 0..place.tile.volume() {
                let vector = &mut scratch.sums_a[(g * S::WIDTH + lane) * stride..][..dim];
                vector.iter_mut().for_each(|number| *number = *number * sums.factor);
                // SAFETY: the query boxes partition the queries, and one unit alone has this box, batch and head.
                unsafe { to.write(batch, place.nth(lane), head, vector) };
            }
        }
    }

    fn pairs<'t, 'm>(
        &self,
        direction: Direction,
        (batch, head): (usize, usize),
        queries: &'t Place,
        source: &'t Source,
        sight: &'t Sight<'m>,
    ) -> TilePairs<'t, 'm> {
        TilePairs {
            direction,
            batch,
            head,
            queries,
            keys: &source.place.tile,
            is_window: source.is_window,
            sight,
            width: self.sizes.width,
        }
    }

    #[inline(always)]
    unsafe fn key_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (pass, heads_kv) = (self.keys, self.problem.heads_kv());
        let boxes = pass.tiles.key_boxes();
        let at = (unit / boxes / heads_kv, unit / boxes % heads_kv);
        let source = Source {
            place: Place::new(pass.tiles.axes(), pass.tiles.key_box(unit % boxes)),
            is_window: true,
        };
        let groups = LaneGroups::new(&source.place.tile, pass.lane_shape);
        self.clear_key_sums::<S>(&groups, scratch);
        for (queries, _) in pass.tiles.queries_of(&source.place.tile) {
            // SAFETY: the caller's; the walk stays inside the problem.
            unsafe { self.stream_queries::<S>(at, &source, &groups, &queries, scratch) };
        }
        // SAFETY: key boxes partition the keys.
        unsafe { self.finish_keys::<S>(at, &source, &groups, scratch) };
    }

    /// One lane group of additional tokens of one batch entry and key head: every query sees them.
    #[inline(always)]
    unsafe fn additional_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (tokens, heads_kv) = (self.problem.additional_tokens(), self.problem.heads_kv());
        let runs = tokens.div_ceil(S::WIDTH);
        let at = (unit / runs / heads_kv, unit / runs % heads_kv);
        let first = unit % runs * S::WIDTH;
        let source = Source { place: Place::line(first, S::WIDTH.min(tokens - first)), is_window: false };
        let groups = LaneGroups::new(&source.place.tile, [1, 1, S::WIDTH]);
        self.clear_key_sums::<S>(&groups, scratch);
        for index in 0..self.keys.tiles.query_boxes() {
            let queries = self.keys.tiles.query_box(index);
            // SAFETY: the caller's; the tiles partition the queries.
            unsafe { self.stream_queries::<S>(at, &source, &groups, &queries, scratch) };
        }
        // SAFETY: these runs partition the additional tokens.
        unsafe { self.finish_keys::<S>(at, &source, &groups, scratch) };
    }

    fn clear_key_sums<S: Simd<T = R>>(&self, groups: &LaneGroups, scratch: &mut Scratch<'_, R>) {
        scratch.sums_a[..groups.len() * S::WIDTH * self.sizes.stride[0]].fill(R::ZERO);
    }

    /// One box of queries, of every query head of the key head.
    #[inline(always)]
    unsafe fn stream_queries<S: Simd<T = R>>(
        &self,
        (batch, head_kv): (usize, usize),
        source: &Source,
        groups: &LaneGroups,
        queries: &TileBox,
        scratch: &mut Scratch<'_, R>,
    ) {
        let Some(sums) = &self.key_sums else { return };
        let (dim, stride) = (self.dim(), self.sizes.stride[0]);
        let axes = self.keys.tiles.axes();
        let from = Place::new(axes, *queries);
        let per_kv = self.problem.heads_per_kv();
        let order = self.order();
        for head in head_kv * per_kv..(head_kv + 1) * per_kv {
            // SAFETY: the box is inside the queries and has at most `keys.rows` tokens.
            let finite = unsafe { sums.own.pack((batch, head), &from, dim, stride, scratch.rows_a) };
            for g in 0..groups.len() {
                let group = groups.group(g);
                let sight = if source.is_window {
                    Sight::new(Direction::Queries, axes, &group, queries, scratch.masks)
                } else {
                    Sight::everything(group.volume(), queries.extent)
                };
                if sight.rows() == 0 {
                    continue;
                }
                let keys = Source { place: source.place.with(group), ..*source };
                let pairs = self.pairs(Direction::Queries, (batch, head), &from, &keys, &sight);
                let to = &mut scratch.sums_a[g * S::WIDTH * stride..][..S::WIDTH * stride];
                let alive =
                    Alive { lanes: all_lanes(group.volume()), rows: None, any_masked: !sight.is_full };
                // SAFETY: the caller's processor has `S`; scratch was carved for these sizes.
                unsafe {
                    sums.table.gather(&order, &pairs, scratch.weights);
                    let rows = (&*scratch.rows_a, stride, finite);
                    accumulate::<S>(&sight, &alive, &group, rows, scratch.weights, to);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish_keys<S: Simd<T = R>>(
        &self,
        (batch, head_kv): (usize, usize),
        source: &Source,
        groups: &LaneGroups,
        scratch: &mut Scratch<'_, R>,
    ) {
        let Some(sums) = &self.key_sums else { return };
        let Some(to) = sums.to.of(source.is_window) else { return };
        let (dim, stride) = (self.dim(), self.sizes.stride[0]);
        for g in 0..groups.len() {
            let place = source.place.with(groups.group(g));
            for lane in 0..place.tile.volume() {
                let vector = &mut scratch.sums_a[(g * S::WIDTH + lane) * stride..][..dim];
                vector.iter_mut().for_each(|number| *number = *number * sums.factor);
                // SAFETY: the caller's: one unit alone has these keys.
                unsafe { to.write(batch, place.nth(lane), head_kv, vector) };
            }
        }
    }
}
