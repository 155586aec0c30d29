//! The backward pass with stationary keys: gradients of keys and values, those of the window and the additional ones.
//! The inverse walk streams the queries that see a key box past it, for every query head of the key head in turn.

use natten_core::geometry::TileBox;

use super::stationary::{Alive, accumulate, pack_panel, products};
use super::{Kernel, Pairs, Scratch};
use crate::element::Real;
use crate::lanes::{Direction, LaneGroups, Sight, all_lanes};
use crate::simd::Simd;
use crate::tokens::{Place, Tokens};

/// Whose gradients a unit computes: the tensors of stationary keys, and where their gradients go.
struct Target<'k, R> {
    key: &'k Tokens<R>,
    value: &'k Tokens<R>,
    grad_key: Option<&'k Tokens<R>>,
    grad_value: Option<&'k Tokens<R>>,
    /// Whether the keys lie in windows; additional ones are seen by every query, without bias.
    is_window: bool,
    /// The tokens of a lane group.
    lane_shape: [usize; 3],
}

/// One streamed box of queries, packed.
struct Streamed<'s, R> {
    queries: &'s [R],
    grad_outputs: &'s [R],
    logsumexp: &'s [R],
    delta: &'s [R],
    queries_are_finite: bool,
    grad_outputs_are_finite: bool,
    /// Whether some query saw nothing.
    any_dead: bool,
}

/// What a lane group has: its vectors and its sums.
struct Stationary<'s, R> {
    keys: &'s [R],
    values: &'s [R],
    grad_keys: &'s mut [R],
    grad_values: &'s mut [R],
}

impl<R: Real> Kernel<'_, R> {
    /// Units of the key boxes.
    pub(super) fn key_units(&self) -> usize {
        if self.operands.grad_key.is_none() && self.operands.grad_value.is_none() {
            return 0;
        }
        self.problem.batch() * self.problem.heads_kv() * self.keys.tiles.key_boxes()
    }

    /// Units of the additional tokens: a lane group each, so that few tokens still make several units.
    pub(super) fn additional_units(&self) -> usize {
        if self.operands.grad_additional_key.is_none() && self.operands.grad_additional_value.is_none() {
            return 0;
        }
        let groups = self.problem.additional_tokens().div_ceil(self.sizes.width);
        self.problem.batch() * self.problem.heads_kv() * groups
    }

    /// One key box of one batch entry and key head.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    pub(super) unsafe fn grad_key_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (pass, operands) = (self.keys, &self.operands);
        let boxes = pass.tiles.key_boxes();
        let (batch, head_kv) =
            (unit / boxes / self.problem.heads_kv(), unit / boxes % self.problem.heads_kv());
        let place = Place::new(pass.tiles.axes(), pass.tiles.key_box(unit % boxes));
        let target = Target {
            key: &operands.key,
            value: &operands.value,
            grad_key: operands.grad_key.as_ref(),
            grad_value: operands.grad_value.as_ref(),
            is_window: true,
            lane_shape: pass.lane_shape,
        };
        // SAFETY: the caller's; key boxes partition the keys.
        unsafe {
            self.begin_keys::<S>(&target, batch, head_kv, &place, scratch);
            for (queries, _) in pass.tiles.queries_of(&place.tile) {
                self.stream_queries::<S>(&target, batch, head_kv, &place, &queries, scratch);
            }
            self.finish_keys::<S>(&target, batch, head_kv, &place, scratch);
        }
    }

    /// One lane group of additional tokens of one batch entry and key head: every query sees them.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    pub(super) unsafe fn grad_additional_unit<S: Simd<T = R>>(
        &self,
        unit: usize,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (problem, operands) = (self.problem, &self.operands);
        let Some((key, value)) = &operands.additional else { return };
        let tokens = problem.additional_tokens();
        let groups = tokens.div_ceil(self.sizes.width);
        let (batch, head_kv) = (unit / groups / problem.heads_kv(), unit / groups % problem.heads_kv());
        let first = unit % groups * self.sizes.width;
        let place = Place::line(first, self.sizes.width.min(tokens - first));
        let target = Target {
            key,
            value,
            grad_key: operands.grad_additional_key.as_ref(),
            grad_value: operands.grad_additional_value.as_ref(),
            is_window: false,
            lane_shape: [1, 1, self.sizes.width],
        };
        // SAFETY: the caller's; these runs partition the additional tokens, and query boxes of the inverse pass's tile
        // shape partition the queries.
        unsafe {
            self.begin_keys::<S>(&target, batch, head_kv, &place, scratch);
            for index in 0..self.keys.tiles.query_boxes() {
                let queries = self.keys.tiles.query_box(index);
                self.stream_queries::<S>(&target, batch, head_kv, &place, &queries, scratch);
            }
            self.finish_keys::<S>(&target, batch, head_kv, &place, scratch);
        }
    }

    #[inline(always)]
    unsafe fn begin_keys<S: Simd<T = R>>(
        &self,
        target: &Target<'_, R>,
        batch: usize,
        head_kv: usize,
        place: &Place,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (dim, dim_v, [stride_k, stride_v]) =
            (self.problem.head_dim(), self.problem.head_dim_v(), self.sizes.stride);
        let groups = LaneGroups::new(&place.tile, target.lane_shape);
        scratch.sums_a[..groups.len() * S::WIDTH * stride_k].fill(R::ZERO);
        scratch.sums_b[..groups.len() * S::WIDTH * stride_v].fill(R::ZERO);
        for g in 0..groups.len() {
            let group = place.with(groups.group(g));
            // SAFETY: the group is inside the box, which is inside the tensors.
            unsafe {
                let vector = &mut scratch.vector[..dim];
                let panel = &mut scratch.panels_a[g * dim * S::WIDTH..][..dim * S::WIDTH];
                pack_panel(target.key, (batch, head_kv), &group, self.scale(), vector, panel);
                let vector = &mut scratch.vector[..dim_v];
                let panel = &mut scratch.panels_b[g * dim_v * S::WIDTH..][..dim_v * S::WIDTH];
                pack_panel(target.value, (batch, head_kv), &group, R::of(1.0), vector, panel);
            }
        }
    }

    /// Streams one box of queries, of every query head of the key head, past the stationary keys.
    #[inline(always)]
    unsafe fn stream_queries<S: Simd<T = R>>(
        &self,
        target: &Target<'_, R>,
        batch: usize,
        head_kv: usize,
        place: &Place,
        queries: &TileBox,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (problem, operands) = (self.problem, &self.operands);
        let (Some(grad_output), Some(logsumexp), Some(delta)) =
            (&operands.grad_output, &operands.logsumexp, &operands.delta)
        else {
            return;
        };
        let (dim, dim_v, [stride_k, stride_v]) =
            (problem.head_dim(), problem.head_dim_v(), self.sizes.stride);
        let axes = self.keys.tiles.axes();
        let groups = LaneGroups::new(&place.tile, target.lane_shape);
        let from = Place::new(axes, *queries);
        let rows = queries.volume();
        for head in head_kv * problem.heads_per_kv()..(head_kv + 1) * problem.heads_per_kv() {
            let (row_logsumexp, row_delta) = scratch.row_stats[..2 * rows].split_at_mut(rows);
            // SAFETY: the box is inside the queries and has at most `pass.rows` tokens.
            let (queries_are_finite, grad_outputs_are_finite) = unsafe {
                for row in 0..rows {
                    let token = from.nth(row);
                    row_logsumexp[row] = logsumexp.number(batch, token, head);
                    row_delta[row] = delta.number(batch, token, head);
                }
                (
                    operands.query.pack((batch, head), &from, dim, stride_k, scratch.rows_a),
                    grad_output.pack((batch, head), &from, dim_v, stride_v, scratch.rows_b),
                )
            };
            let streamed = Streamed {
                queries: scratch.rows_a,
                grad_outputs: scratch.rows_b,
                any_dead: row_logsumexp.contains(&R::NEG_INFINITY),
                logsumexp: row_logsumexp,
                delta: row_delta,
                queries_are_finite,
                grad_outputs_are_finite,
            };
            for g in 0..groups.len() {
                let group = groups.group(g);
                let sight = if target.is_window {
                    Sight::new(Direction::Queries, axes, &group, queries, scratch.masks)
                } else {
                    Sight::everything(group.volume(), queries.extent)
                };
                let stationary = Stationary {
                    keys: &scratch.panels_a[g * dim * S::WIDTH..][..dim * S::WIDTH],
                    values: &scratch.panels_b[g * dim_v * S::WIDTH..][..dim_v * S::WIDTH],
                    grad_keys: &mut scratch.sums_a[g * S::WIDTH * stride_k..][..S::WIDTH * stride_k],
                    grad_values: &mut scratch.sums_b[g * S::WIDTH * stride_v..][..S::WIDTH * stride_v],
                };
                let bias = target.is_window.then_some((head, queries.start));
                // SAFETY: the caller's processor has `S`; scratch was carved for these sizes.
                unsafe {
                    self.grad_scores_of_keys::<S>(
                        target,
                        &group,
                        &sight,
                        bias,
                        &streamed,
                        stationary,
                        (scratch.weights, scratch.grads),
                    );
                }
            }
        }
    }

    /// One streamed box for one lane group: scores, weights and their gradients, and their products with the queries
    /// and the gradients of outputs.
    ///
    /// # Safety
    /// The processor has `S`, and every slice has the size that scratch gives it.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "each is one thing that differs between callers")]
    unsafe fn grad_scores_of_keys<S: Simd<T = R>>(
        &self,
        target: &Target<'_, R>,
        group: &TileBox,
        sight: &Sight<'_>,
        bias: Option<(usize, [usize; 3])>,
        streamed: &Streamed<'_, R>,
        stationary: Stationary<'_, R>,
        (weights, grads): (&mut [R], &mut [R]),
    ) {
        let rows = sight.rows();
        if rows == 0 {
            return;
        }
        let vectors = group.volume().div_ceil(S::LANES);
        let [stride_k, stride_v] = self.sizes.stride;
        let (dim, dim_v) = (self.problem.head_dim(), self.problem.head_dim_v());
        let alive = Alive {
            lanes: all_lanes(group.volume()),
            rows: Some(streamed.logsumexp),
            any_masked: !sight.is_full || streamed.any_dead,
        };
        // SAFETY: the caller's.
        unsafe {
            products::<S>(sight, dim, vectors, (streamed.queries, stride_k), stationary.keys, weights);
            if target.grad_key.is_some() {
                let rows = (streamed.grad_outputs, stride_v);
                products::<S>(sight, dim_v, vectors, rows, stationary.values, grads);
            }
            if let (Some(table), Some((head, start))) = (&self.operands.bias, bias) {
                let pairs =
                    Pairs { direction: Direction::Queries, group, streamed: start, sight, width: S::WIDTH };
                table.add(head, &pairs, weights);
            }
            let nothing = S::splat(R::ZERO);
            let mut offset = sight.first();
            for row in 0..rows {
                let query = sight.row(offset);
                let logsumexp = S::splat(streamed.logsumexp[query]);
                let delta = S::splat(streamed.delta[query]);
                let mask = if alive.any_masked { alive.mask(sight, offset) } else { u32::MAX };
                for j in 0..vectors {
                    let lane = j * S::LANES;
                    let at = weights.as_mut_ptr().add(row * S::WIDTH + lane);
                    let grad_at = grads.as_mut_ptr().add(row * S::WIDTH + lane);
                    let weight = S::exp(S::sub(S::load(at), logsumexp));
                    let grad = S::mul(weight, S::sub(S::load(grad_at), delta));
                    let (weight, grad) = if alive.any_masked {
                        (S::select(mask >> lane, weight, nothing), S::select(mask >> lane, grad, nothing))
                    } else {
                        (weight, grad)
                    };
                    S::store(at, weight);
                    S::store(grad_at, grad);
                }
                offset = sight.after(offset);
            }
            if target.grad_key.is_some() {
                let queries = (streamed.queries, stride_k, streamed.queries_are_finite);
                accumulate::<S>(sight, &alive, group, queries, grads, stationary.grad_keys);
            }
            if target.grad_value.is_some() {
                let grad_outputs = (streamed.grad_outputs, stride_v, streamed.grad_outputs_are_finite);
                accumulate::<S>(sight, &alive, group, grad_outputs, weights, stationary.grad_values);
            }
        }
    }

    #[inline(always)]
    unsafe fn finish_keys<S: Simd<T = R>>(
        &self,
        target: &Target<'_, R>,
        batch: usize,
        head_kv: usize,
        place: &Place,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (dim, dim_v, [stride_k, stride_v]) =
            (self.problem.head_dim(), self.problem.head_dim_v(), self.sizes.stride);
        let groups = LaneGroups::new(&place.tile, target.lane_shape);
        for g in 0..groups.len() {
            let group = place.with(groups.group(g));
            for lane in 0..group.tile.volume() {
                let (at, token) = (g * S::WIDTH + lane, group.nth(lane));
                // SAFETY: key boxes partition the keys, and one unit alone has this box, batch and head.
                unsafe {
                    if let Some(grad_key) = target.grad_key {
                        let sums = &mut scratch.sums_a[at * stride_k..][..dim];
                        for sum in sums.iter_mut() {
                            *sum = *sum * self.scale();
                        }
                        grad_key.write(batch, token, head_kv, sums);
                    }
                    if let Some(grad_value) = target.grad_value {
                        grad_value.write(batch, token, head_kv, &scratch.sums_b[at * stride_v..][..dim_v]);
                    }
                }
            }
        }
    }
}
