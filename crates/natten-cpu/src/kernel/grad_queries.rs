//! The backward pass with stationary queries: gradients of queries and of the bias; and Δ, which both backward passes
//! need.

use std::ops::Range;

use natten_core::geometry::TileBox;

use super::stationary::{Alive, accumulate, pack_panel, products};
use super::{DELTA_ROWS, Kernel, Pairs, Scratch};
use crate::element::Real;
use crate::lanes::{Direction, LaneGroups, Sight, all_lanes};
use crate::simd::Simd;
use crate::tokens::{Entries, Place};
use crate::view::ViewMut;

/// The partial tables of the bias gradient, at most: the pass has at least this many units of its own where the
/// problem has as many boxes, and the sum of the tables is the same for any number of threads.
pub(crate) const BIAS_PARTIALS: usize = 64;

/// One streamed box, packed.
struct Streamed<'s, R> {
    keys: &'s [R],
    values: &'s [R],
    keys_are_finite: bool,
}

/// What a lane group has: its vectors, its numbers a lane, and its sums.
struct Stationary<'s, R> {
    queries: &'s [R],
    grad_outputs: &'s [R],
    logsumexp: &'s [R],
    delta: &'s [R],
    sums: &'s mut [R],
}

/// Room for the tiles of scores and of their gradients.
struct TileRoom<'s, R> {
    weights: &'s mut [R],
    grads: &'s mut [R],
}

impl<R: Real> Kernel<'_, R> {
    /// Δ of some queries of one batch entry, for all heads.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    pub(super) unsafe fn delta_unit(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let operands = &self.operands;
        let (Some(grad_output), Some(output), Some(delta)) =
            (&operands.grad_output, &operands.output, &operands.delta)
        else {
            return;
        };
        let shape = self.problem.neighborhood().axes().map(|axis| axis.query_len());
        let units = self.query_tokens().div_ceil(DELTA_ROWS);
        let (batch, first) = (unit / units, unit % units * DELTA_ROWS);
        let dim_v = self.problem.head_dim_v();
        let (ours, theirs) = (&mut scratch.sums_b[..dim_v], &mut scratch.vector[..dim_v]);
        for index in first..(first + DELTA_ROWS).min(self.query_tokens()) {
            let token = [index / (shape[1] * shape[2]), index / shape[2] % shape[1], index % shape[2]];
            for head in 0..self.problem.heads() {
                // SAFETY: the token is inside the tensors, and this unit alone has it.
                unsafe {
                    grad_output.read(batch, token, head, ours);
                    output.read(batch, token, head, theirs);
                    let mut sum = R::ZERO;
                    for (a, b) in ours.iter().zip(theirs.iter()) {
                        sum = sum + *a * *b;
                    }
                    if let Some(grad_logsumexp) = &operands.grad_logsumexp {
                        sum = sum - grad_logsumexp.number(batch, token, head);
                    }
                    delta.set_number(batch, token, head, sum);
                }
            }
        }
    }

    /// The units of the pass: single boxes, or, where the bias has a gradient, runs of boxes that share a table.
    pub(super) fn query_units(&self) -> usize {
        if self.operands.grad_bias.is_some() {
            return self.problem.heads() * bias_partials_per_head(self.problem.heads());
        }
        match self.operands.grad_query {
            Some(_) => self.problem.heads() * self.boxes_per_head(),
            None => 0,
        }
    }

    fn boxes_per_head(&self) -> usize {
        self.problem.batch() * self.queries.tiles.query_boxes()
    }

    /// The head and the boxes (batch entries and query boxes of that head, in order) of a unit.
    fn boxes_of_query_unit(&self, unit: usize) -> (usize, Range<usize>) {
        let boxes = self.boxes_per_head();
        let pieces = match self.operands.grad_bias {
            Some(_) => bias_partials_per_head(self.problem.heads()),
            None => boxes,
        };
        let (head, piece) = (unit / pieces, unit % pieces);
        (head, boxes * piece / pieces..boxes * (piece + 1) / pieces)
    }

    /// Some query boxes of one head.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    pub(super) unsafe fn grad_query_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (head, boxes) = self.boxes_of_query_unit(unit);
        // SAFETY: the caller's; units have tables and boxes of their own.
        unsafe {
            if let Some(tables) = &self.operands.grad_bias {
                tables.clear(unit);
            }
            for index in boxes {
                self.grad_query_box::<S>(unit, head, index, scratch);
            }
        }
    }

    #[inline(always)]
    unsafe fn grad_query_box<S: Simd<T = R>>(
        &self,
        unit: usize,
        head: usize,
        index: usize,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (problem, pass, operands) = (self.problem, self.queries, &self.operands);
        let (Some(grad_output), Some(logsumexp), Some(delta)) =
            (&operands.grad_output, &operands.logsumexp, &operands.delta)
        else {
            return;
        };
        let batch = index / pass.tiles.query_boxes();
        let head_kv = head / problem.heads_per_kv();
        let (dim, dim_v, [stride_k, stride_v]) =
            (problem.head_dim(), problem.head_dim_v(), self.sizes.stride);
        let axes = pass.tiles.axes();
        let tile = pass.tiles.query_box(index % pass.tiles.query_boxes());
        let groups = LaneGroups::new(&tile, pass.lane_shape);
        let lanes = groups.len() * S::WIDTH;
        let (row_logsumexp, row_delta) = scratch.lane_stats[..2 * lanes].split_at_mut(lanes);
        row_logsumexp.fill(R::NEG_INFINITY);
        row_delta.fill(R::ZERO);
        scratch.sums_a[..lanes * stride_k].fill(R::ZERO);
        for g in 0..groups.len() {
            let place = Place::new(axes, groups.group(g));
            // SAFETY: the box is one of the tiles, which partition the queries.
            unsafe {
                let vector = &mut scratch.vector[..dim];
                let panel = &mut scratch.panels_a[g * dim * S::WIDTH..][..dim * S::WIDTH];
                pack_panel(&operands.query, (batch, head), &place, self.scale(), vector, panel);
                let vector = &mut scratch.vector[..dim_v];
                let panel = &mut scratch.panels_b[g * dim_v * S::WIDTH..][..dim_v * S::WIDTH];
                pack_panel(grad_output, (batch, head), &place, R::of(1.0), vector, panel);
                for lane in 0..place.tile.volume() {
                    let token = place.nth(lane);
                    row_logsumexp[g * S::WIDTH + lane] = logsumexp.number(batch, token, head);
                    row_delta[g * S::WIDTH + lane] = delta.number(batch, token, head);
                }
            }
        }

        for source in self.sources(&tile) {
            let (key, value) = operands.keys_of(&source);
            // SAFETY: sources are inside their tensors, and have at most `pass.rows` tokens.
            let keys_are_finite = unsafe {
                value.pack((batch, head_kv), &source.place, dim_v, stride_v, scratch.rows_b);
                key.pack((batch, head_kv), &source.place, dim, stride_k, scratch.rows_a)
            };
            let streamed = Streamed { keys: scratch.rows_a, values: scratch.rows_b, keys_are_finite };
            for g in 0..groups.len() {
                let group = groups.group(g);
                let sight = self.sight(&group, &source, scratch.masks);
                let stationary = Stationary {
                    queries: &scratch.panels_a[g * dim * S::WIDTH..][..dim * S::WIDTH],
                    grad_outputs: &scratch.panels_b[g * dim_v * S::WIDTH..][..dim_v * S::WIDTH],
                    logsumexp: &row_logsumexp[g * S::WIDTH..][..S::WIDTH],
                    delta: &row_delta[g * S::WIDTH..][..S::WIDTH],
                    sums: &mut scratch.sums_a[g * S::WIDTH * stride_k..][..S::WIDTH * stride_k],
                };
                let room = TileRoom { weights: scratch.weights, grads: scratch.grads };
                let bias = source.is_window.then_some((head, unit, source.place.tile.start));
                // SAFETY: the caller's processor has `S`; scratch was carved for these sizes.
                unsafe {
                    self.grad_scores_of_queries::<S>(&group, &sight, bias, &streamed, stationary, room)
                };
            }
        }

        let Some(grad_query) = &operands.grad_query else { return };
        for g in 0..groups.len() {
            let place = Place::new(axes, groups.group(g));
            for lane in 0..place.tile.volume() {
                let sums = &mut scratch.sums_a[(g * S::WIDTH + lane) * stride_k..][..dim];
                for sum in sums.iter_mut() {
                    *sum = *sum * self.scale();
                }
                // SAFETY: the query boxes partition the queries, and one unit alone has this box, batch and head.
                unsafe { grad_query.write(batch, place.nth(lane), head, sums) };
            }
        }
    }

    /// One streamed box for one lane group: scores, weights, gradients of scores, and their products with the keys.
    ///
    /// # Safety
    /// The processor has `S`, and every slice has the size that scratch gives it.
    #[inline(always)]
    unsafe fn grad_scores_of_queries<S: Simd<T = R>>(
        &self,
        group: &TileBox,
        sight: &Sight<'_>,
        bias: Option<(usize, usize, [usize; 3])>,
        streamed: &Streamed<'_, R>,
        stationary: Stationary<'_, R>,
        room: TileRoom<'_, R>,
    ) {
        let rows = sight.rows();
        if rows == 0 {
            return;
        }
        let TileRoom { weights, grads } = room;
        let vectors = group.volume().div_ceil(S::LANES);
        let [stride_k, stride_v] = self.sizes.stride;
        let (dim, dim_v) = (self.problem.head_dim(), self.problem.head_dim_v());
        let every = all_lanes(group.volume());
        let mut live = 0;
        for (lane, logsumexp) in stationary.logsumexp.iter().enumerate().take(group.volume()) {
            live |= u32::from(*logsumexp != R::NEG_INFINITY) << lane;
        }
        let alive = Alive { lanes: live, rows: None, any_masked: !sight.is_full || live != every };
        // SAFETY: the caller's.
        unsafe {
            products::<S>(sight, dim, vectors, (streamed.keys, stride_k), stationary.queries, weights);
            products::<S>(sight, dim_v, vectors, (streamed.values, stride_v), stationary.grad_outputs, grads);
            let pairs =
                |streamed| Pairs { direction: Direction::Keys, group, streamed, sight, width: S::WIDTH };
            if let (Some(table), Some((head, _, start))) = (&self.operands.bias, bias) {
                table.add(head, &pairs(start), weights);
            }
            for j in 0..vectors {
                let lane = j * S::LANES;
                let logsumexp = S::load(stationary.logsumexp.as_ptr().add(lane));
                let delta = S::load(stationary.delta.as_ptr().add(lane));
                let nothing = S::splat(R::ZERO);
                let mut offset = sight.first();
                for row in 0..rows {
                    let score = S::load(weights.as_ptr().add(row * S::WIDTH + lane));
                    let at = grads.as_mut_ptr().add(row * S::WIDTH + lane);
                    let weight = S::exp(S::sub(score, logsumexp));
                    let mut grad = S::mul(weight, S::sub(S::load(at), delta));
                    if alive.any_masked {
                        grad = S::select(alive.mask(sight, offset) >> lane, grad, nothing);
                        offset = sight.after(offset);
                    }
                    S::store(at, grad);
                }
            }
            if let (Some(tables), Some((_, unit, start))) = (&self.operands.grad_bias, bias) {
                tables.add(unit, &pairs(start), live, grads);
            }
            if self.operands.grad_query.is_some() {
                let keys = (streamed.keys, stride_k, streamed.keys_are_finite);
                accumulate::<S>(sight, &alive, group, keys, grads, stationary.sums);
            }
        }
    }
}

/// Partial tables of one head, so that all heads together have at most [`BIAS_PARTIALS`], and each head one at least.
pub(crate) fn bias_partials_per_head(heads: usize) -> usize {
    (BIAS_PARTIALS / heads).max(1)
}

/// Sums the partial tables of the bias gradient, `parts` a head, in their order.
pub(crate) fn sum_bias_tables<R: Real>(tables: &[f64], parts: usize, view: &mut ViewMut<'_>) {
    let (heads, entries) = (view.shape()[0], view.shape()[1..].iter().product::<usize>());
    let table = Entries::new(view);
    for head in 0..heads {
        for entry in 0..entries {
            let sum: f64 = (0..parts).map(|part| tables[(head * parts + part) * entries + entry]).sum();
            table.set(head * entries + entry, R::of(sum));
        }
    }
}
