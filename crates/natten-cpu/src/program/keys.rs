//! The walk with stationary keys: gradients of keys and values, those of the window and the additional ones. The inverse
//! walk streams the queries that see a key box past it, for every query head of the key head in turn.

use natten_core::geometry::TileBox;
use natten_core::program::Verdict;

use super::code::{Sums, SweepCode, Vectors};
use super::scratch::INDICES;
use super::sight::PairBox;
use super::walk::{Desk, Kind, Streamed, Walk};
use crate::element::Real;
use crate::lanes::{Direction, LaneGroups};
use crate::simd::Simd;
use crate::tokens::Place;

/// A box of keys of one batch entry and key head.
#[derive(Clone, Copy, Debug)]
struct Here<'c> {
    code: &'c SweepCode,
    batch: usize,
    head_kv: usize,
    place: Place,
    /// Whether the keys lie in windows; additional ones are seen by every query.
    is_window: bool,
    /// The tokens of a lane group.
    lane_shape: [usize; 3],
}

impl Here<'_> {
    fn groups(&self) -> LaneGroups {
        LaneGroups::new(&self.place.tile, self.lane_shape)
    }
}

impl<R: Real> Walk<'_, R> {
    /// Units of additional tokens: a lane group each, so that few tokens still make several units.
    fn additional_units(&self) -> usize {
        match &self.passes.keys.sweep.codes[1] {
            Some(_) => self.problem.batch() * self.problem.heads_kv() * self.additional_groups(),
            None => 0,
        }
    }

    fn additional_groups(&self) -> usize {
        self.problem.additional_tokens().div_ceil(self.sizes.width)
    }

    /// The units of the walk.
    pub(super) fn key_units(&self) -> usize {
        let of_window = match &self.passes.keys.sweep.codes[0] {
            Some(_) => self.problem.batch() * self.problem.heads_kv() * self.keys.tiles.key_boxes(),
            None => 0,
        };
        self.additional_units() + of_window
    }

    /// One box of keys of one batch entry and key head. Those of additional tokens are the longest, since every query
    /// sees them: they go first.
    ///
    /// # Safety
    /// As [`Walk::query_unit`].
    #[inline(always)]
    pub(super) unsafe fn key_unit<S: Simd<T = R>>(&self, unit: usize, desk: &mut Desk<'_, '_, R>) {
        let heads = self.problem.heads_kv();
        let codes = &self.passes.keys.sweep.codes;
        let is_window = unit >= self.additional_units();
        let Some(code) = &codes[usize::from(!is_window)] else { return };
        let here = if is_window {
            let (unit, boxes) = (unit - self.additional_units(), self.keys.tiles.key_boxes());
            let place = Place::new(self.keys.tiles.axes(), self.keys.tiles.key_box(unit % boxes));
            let (batch, head_kv) = (unit / boxes / heads, unit / boxes % heads);
            Here { code, batch, head_kv, place, is_window, lane_shape: self.keys.lane_shape }
        } else {
            let (groups, width) = (self.additional_groups(), self.sizes.width);
            let first = unit % groups * width;
            let place = Place::line(first, width.min(self.problem.additional_tokens() - first));
            let (batch, head_kv) = (unit / groups / heads, unit / groups % heads);
            Here { code, batch, head_kv, place, is_window, lane_shape: [1, 1, width] }
        };
        // SAFETY: the caller's; key boxes partition the keys, runs of additional tokens those, and query boxes the
        // queries.
        unsafe {
            self.begin_keys(&here, desk);
            let tiles = &self.keys.tiles;
            let seen = is_window.then(|| tiles.queries_of(&here.place.tile).map(|(queries, _)| queries));
            let all = (!is_window).then(|| (0..tiles.query_boxes()).map(|index| tiles.query_box(index)));
            for queries in seen.into_iter().flatten().chain(all.into_iter().flatten()) {
                self.sweep_queries::<S>(&here, &queries, desk);
            }
            self.write_gradients(&here, desk);
        }
    }

    /// Packs the stationary vectors, and begins sums.
    unsafe fn begin_keys(&self, here: &Here<'_>, desk: &mut Desk<'_, '_, R>) {
        let (sizes, scratch, groups) = (self.sizes, &mut desk.scratch, here.groups());
        for g in 0..groups.len() {
            let place = here.place.with(groups.group(g));
            for vectors in Vectors::ALL.into_iter().filter(|&v| here.code.stationary[v as usize]) {
                let Some(tensor) = self.operands.of_keys(here.is_window, vectors) else { continue };
                let (at, one) = ((here.batch, here.head_kv), R::of(1.0));
                // SAFETY: the group is inside the box, which is inside the tensors.
                unsafe { self.pack_stationary(vectors, tensor, at, g, &place, one, scratch) };
            }
            let kind = if here.is_window { Kind::Key } else { Kind::Additional };
            let index = &mut scratch.lane_index[g * INDICES * sizes.width..][..INDICES * sizes.width];
            self.write_index(kind, &place, sizes.width, index);
        }
        for which in [Sums::A, Sums::B].into_iter().filter(|&which| sizes.sums[which as usize]) {
            let len = groups.len() * sizes.width * sizes.stride[which.side()];
            scratch.sums[which as usize][..len].fill(R::ZERO);
        }
    }

    /// Streams one box of queries, of every query head of the key head, past the keys.
    #[inline(always)]
    unsafe fn sweep_queries<S: Simd<T = R>>(
        &self,
        here: &Here<'_>,
        queries: &TileBox,
        desk: &mut Desk<'_, '_, R>,
    ) {
        let per_kv = self.problem.heads_per_kv();
        let groups = here.groups();
        let place = Place::new(self.keys.tiles.axes(), *queries);
        for head in here.head_kv * per_kv..(here.head_kv + 1) * per_kv {
            let verdict = match here.is_window {
                true => {
                    let pairs = PairBox { batch: here.batch, head, queries, keys: &here.place.tile };
                    self.verdict(&mut desk.room, pairs)
                }
                false => Verdict::Full,
            };
            if verdict == Verdict::Empty {
                continue;
            }
            // SAFETY: the box is inside the queries and has at most `rows` tokens; the rest is the caller's.
            unsafe {
                let any_dead = self.stream_queries(here, head, &place, verdict, desk);
                let streamed = Streamed {
                    direction: Direction::Queries,
                    code: here.code,
                    place,
                    is_window: here.is_window,
                    batch: here.batch,
                    head,
                    verdict,
                    any_dead,
                    unit: 0,
                };
                for g in 0..groups.len() {
                    self.tile::<S>(&streamed, g, &groups.group(g), desk);
                }
            }
        }
    }

    /// Packs what the code streams of a box of queries. Returns whether some row is dead.
    unsafe fn stream_queries(
        &self,
        here: &Here<'_>,
        head: usize,
        place: &Place,
        verdict: Verdict,
        desk: &mut Desk<'_, '_, R>,
    ) -> bool {
        let (sizes, scratch) = (self.sizes, &mut desk.scratch);
        for vectors in Vectors::ALL.into_iter().filter(|&v| here.code.streamed[v as usize]) {
            let Some(tensor) = self.operands.of_queries(vectors) else { continue };
            // The queries are what is scaled in either walk, so that scores have the same bits in both.
            let factor = if vectors.side() == 0 { self.scale() } else { R::of(1.0) };
            // SAFETY: the caller's.
            unsafe { self.pack_streamed(vectors, tensor, (here.batch, head), place, factor, scratch) };
        }
        if here.code.reads_index || verdict == Verdict::Partial {
            self.write_index(Kind::Query, place, sizes.rows, &mut scratch.row_index[..INDICES * sizes.rows]);
        }
        let Some(stored) = &self.operands.stored else { return false };
        let mut any_dead = false;
        for row in 0..place.tile.volume() {
            let numbers = &mut scratch.vector[..sizes.row_numbers];
            // SAFETY: the caller's; the walk of the queries has stored a vector for every one.
            unsafe { stored.read(here.batch, place.nth(row), head, numbers) };
            for (slot, &number) in numbers.iter().enumerate() {
                scratch.row_numbers[slot * sizes.rows + row] = number;
            }
            any_dead |= self.passes.keys.lse_stages.iter().any(|&slot| numbers[slot] == R::NEG_INFINITY);
        }
        any_dead
    }

    unsafe fn write_gradients(&self, here: &Here<'_>, desk: &mut Desk<'_, '_, R>) {
        let (sizes, groups) = (self.sizes, here.groups());
        let (key, value) = match here.is_window {
            true => (&self.operands.grad_key, &self.operands.grad_value),
            false => (&self.operands.grad_additional_key, &self.operands.grad_additional_value),
        };
        for (gradient, which) in [(key, Sums::A), (value, Sums::B)] {
            let Some(gradient) = gradient else { continue };
            let (stride, dim) = (sizes.stride[which.side()], sizes.dims[which.side()]);
            for g in 0..groups.len() {
                let place = here.place.with(groups.group(g));
                for lane in 0..place.tile.volume() {
                    let sums = &desk.scratch.sums[which as usize][(g * sizes.width + lane) * stride..][..dim];
                    // SAFETY: key boxes partition the keys, and one unit alone has this box, batch and head.
                    unsafe { gradient.write(here.batch, place.nth(lane), here.head_kv, sums) };
                }
            }
        }
    }
}
