//! The forward pass: online softmax over streamed keys, one query a lane.

use natten_core::geometry::TileBox;

use super::stationary::{Alive, accumulate, pack_panel, products};
use super::{Kernel, Pairs, Scratch};
use crate::element::Real;
use crate::lanes::{Direction, LaneGroups, Sight, all_lanes};
use crate::simd::Simd;
use crate::tokens::Place;

/// One streamed box, packed.
struct Streamed<'s, R> {
    keys: &'s [R],
    values: &'s [R],
    values_are_finite: bool,
}

/// What a lane group carries from box to box.
struct Running<'s, R> {
    panel: &'s [R],
    max: &'s mut [R],
    total: &'s mut [R],
    sums: &'s mut [R],
}

impl<R: Real> Kernel<'_, R> {
    /// One query box of one batch entry and head.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    pub(super) unsafe fn forward_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (problem, pass, operands) = (self.problem, self.queries, &self.operands);
        let boxes = pass.tiles.query_boxes();
        let (batch, head) = (unit / boxes / problem.heads(), unit / boxes % problem.heads());
        let head_kv = head / problem.heads_per_kv();
        let (dim, dim_v, [stride_k, stride_v]) =
            (problem.head_dim(), problem.head_dim_v(), self.sizes.stride);
        let axes = pass.tiles.axes();
        let tile = pass.tiles.query_box(unit % boxes);
        let groups = LaneGroups::new(&tile, pass.lane_shape);

        let lanes = groups.len() * S::WIDTH;
        let (max, total) = scratch.lane_stats[..2 * lanes].split_at_mut(lanes);
        max.fill(R::NEG_INFINITY);
        total.fill(R::ZERO);
        scratch.sums_b[..lanes * stride_v].fill(R::ZERO);
        for g in 0..groups.len() {
            let place = Place::new(axes, groups.group(g));
            let panel = &mut scratch.panels_a[g * dim * S::WIDTH..][..dim * S::WIDTH];
            // SAFETY: the box is one of the tiles, which partition the queries.
            unsafe {
                let vector = &mut scratch.vector[..dim];
                pack_panel(&operands.query, (batch, head), &place, self.scale(), vector, panel);
            }
        }

        for source in self.sources(&tile) {
            let (key, value) = operands.keys_of(&source);
            // SAFETY: sources are inside their tensors, and have at most `pass.rows` tokens.
            let values_are_finite = unsafe {
                key.pack((batch, head_kv), &source.place, dim, stride_k, scratch.rows_a);
                value.pack((batch, head_kv), &source.place, dim_v, stride_v, scratch.rows_b)
            };
            let streamed = Streamed { keys: scratch.rows_a, values: scratch.rows_b, values_are_finite };
            for g in 0..groups.len() {
                let group = groups.group(g);
                let sight = self.sight(&group, &source, scratch.masks);
                let running = Running {
                    panel: &scratch.panels_a[g * dim * S::WIDTH..][..dim * S::WIDTH],
                    max: &mut max[g * S::WIDTH..][..S::WIDTH],
                    total: &mut total[g * S::WIDTH..][..S::WIDTH],
                    sums: &mut scratch.sums_b[g * S::WIDTH * stride_v..][..S::WIDTH * stride_v],
                };
                let bias = source.is_window.then_some((head, source.place.tile.start));
                // SAFETY: the caller's processor has `S`; scratch was carved for these sizes.
                unsafe { self.attend::<S>(&group, &sight, bias, &streamed, scratch.weights, running) };
            }
        }

        for g in 0..groups.len() {
            let place = Place::new(axes, groups.group(g));
            for lane in 0..place.tile.volume() {
                let at = g * S::WIDTH + lane;
                let token = place.nth(lane);
                let sums = &mut scratch.sums_b[at * stride_v..][..dim_v];
                finish(sums, total[at]);
                // SAFETY: the query boxes partition the queries, and this unit alone has this box, batch and head.
                unsafe {
                    if let Some(output) = &operands.output {
                        output.write(batch, token, head, sums);
                    }
                    if let Some(logsumexp) = &operands.logsumexp {
                        logsumexp.set_number(batch, token, head, logsumexp_of(max[at], total[at]));
                    }
                }
            }
        }
    }

    /// One streamed box for one lane group: scores, weights, and their products with the values.
    ///
    /// # Safety
    /// The processor has `S`, and every slice has the size that scratch gives it.
    #[inline(always)]
    unsafe fn attend<S: Simd<T = R>>(
        &self,
        group: &TileBox,
        sight: &Sight<'_>,
        bias: Option<(usize, [usize; 3])>,
        streamed: &Streamed<'_, R>,
        weights: &mut [R],
        running: Running<'_, R>,
    ) {
        let rows = sight.rows();
        if rows == 0 {
            return;
        }
        let vectors = group.volume().div_ceil(S::LANES);
        let [stride_k, stride_v] = self.sizes.stride;
        let dim = self.problem.head_dim();
        // SAFETY: the caller's.
        unsafe {
            products::<S>(sight, dim, vectors, (streamed.keys, stride_k), running.panel, weights);
            if let (Some(table), Some((head, start))) = (&self.operands.bias, bias) {
                let pairs =
                    Pairs { direction: Direction::Keys, group, streamed: start, sight, width: S::WIDTH };
                table.add(head, &pairs, weights);
            }
            let rescale = &mut [R::ZERO; crate::simd::MAX_WIDTH];
            for j in 0..vectors {
                let lane = j * S::LANES;
                softmax_column::<S>(
                    sight,
                    j,
                    weights,
                    &mut running.max[lane..lane + S::LANES],
                    &mut running.total[lane..lane + S::LANES],
                    &mut rescale[lane..lane + S::LANES],
                );
            }
            if self.operands.output.is_none() {
                return;
            }
            for (lane, &factor) in rescale.iter().enumerate().take(group.volume()) {
                // One comparison a lane saves the product once the maximum has settled. NaN is not 1.
                if factor != R::of(1.0) {
                    let factor = S::splat(factor);
                    for d in (0..stride_v).step_by(S::LANES) {
                        let sum = running.sums.as_mut_ptr().add(lane * stride_v + d);
                        S::store(sum, S::mul(S::load(sum), factor));
                    }
                }
            }
            let alive = Alive { lanes: all_lanes(group.volume()), rows: None, any_masked: !sight.is_full };
            let values = (streamed.values, stride_v, streamed.values_are_finite);
            accumulate::<S>(sight, &alive, group, values, weights, running.sums);
        }
    }
}

/// Turns one vector of lanes of a tile of scores into weights: masks, and moves the running maximum and total on.
///
/// # Safety
/// The processor has `S`; `weights` has `WIDTH` lanes a row of the sight, the other slices `LANES`.
#[inline(always)]
unsafe fn softmax_column<S: Simd>(
    sight: &Sight<'_>,
    vector: usize,
    weights: &mut [S::T],
    max: &mut [S::T],
    total: &mut [S::T],
    rescale: &mut [S::T],
) {
    let rows = sight.rows();
    // SAFETY: the caller's.
    unsafe {
        let column = weights.as_mut_ptr().add(vector * S::LANES);
        let before = S::load(max.as_ptr());
        let mut highest = before;
        if sight.is_full {
            for row in 0..rows {
                highest = S::max(S::load(column.add(row * S::WIDTH)), highest);
            }
        } else {
            let nothing = S::splat(S::T::NEG_INFINITY);
            let mut offset = sight.first();
            for row in 0..rows {
                let at = column.add(row * S::WIDTH);
                let bits = sight.mask(offset) >> (vector * S::LANES);
                let score = S::select(bits, S::load(at), nothing);
                S::store(at, score);
                highest = S::max(score, highest);
                offset = sight.after(offset);
            }
        }
        // A lane that has seen nothing but -inf keeps a finite shift, so that its weights are 0 and not NaN.
        let shift = S::max(highest, S::splat(S::T::LOWEST));
        let factor = S::exp(S::sub(before, shift));
        let mut sum = S::mul(S::load(total.as_ptr()), factor);
        for row in 0..rows {
            let at = column.add(row * S::WIDTH);
            let weight = S::exp(S::sub(S::load(at), shift));
            S::store(at, weight);
            sum = S::add(sum, weight);
        }
        S::store(max.as_mut_ptr(), highest);
        S::store(total.as_mut_ptr(), sum);
        S::store(rescale.as_mut_ptr(), factor);
    }
}

/// Divides by the total. A row that saw nothing has output 0.
fn finish<R: Real>(sums: &mut [R], total: R) {
    for sum in sums {
        *sum = if total == R::ZERO { R::ZERO } else { *sum / total };
    }
}

fn logsumexp_of<R: Real>(max: R, total: R) -> R {
    if total == R::ZERO { R::NEG_INFINITY } else { max + total.ln() }
}
