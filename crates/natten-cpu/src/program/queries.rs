//! The walk with stationary queries: a box of queries goes through the steps of its pass.

use std::ops::Range;

use natten_core::Op;
use natten_core::geometry::TileBox;
use natten_core::program::Verdict;

use super::code::{Sums, SweepCode, Vectors};
use super::passes::{Finish, RowCode, Step, Sweep};
use super::scratch::INDICES;
use super::sight::PairBox;
use super::walk::{Desk, Kind, Streamed, Walk};
use crate::element::Real;
use crate::lanes::{Direction, LaneGroups, all_lanes};
use crate::simd::Simd;
use crate::tokens::Place;

/// A box of queries of one batch entry and head.
#[derive(Clone, Copy, Debug)]
struct Here {
    unit: usize,
    batch: usize,
    head: usize,
    tile: TileBox,
}

impl<R: Real> Walk<'_, R> {
    /// The units of the walk: single boxes, or, where gradients are summed in tables, runs of boxes of all batch entries
    /// that share one.
    pub(super) fn query_units(&self) -> usize {
        self.problem.heads() * self.pieces().unwrap_or_else(|| self.boxes_of_head())
    }

    fn boxes_of_head(&self) -> usize {
        self.problem.batch() * self.queries.tiles.query_boxes()
    }

    /// Units a head, where they have tables.
    fn pieces(&self) -> Option<usize> {
        let has_tables = self.operands.grad_bias.is_some() || !self.tables.is_empty();
        has_tables.then(|| self.tables.pieces())
    }

    /// The head and the boxes of a unit. Boxes count by place, and then by batch entry.
    fn boxes_of_unit(&self, unit: usize) -> (usize, Range<usize>) {
        let (batch, boxes) = (self.problem.batch(), self.queries.tiles.query_boxes());
        match self.pieces() {
            Some(pieces) => {
                let (head, piece) = (unit / pieces, unit % pieces);
                (head, boxes * piece / pieces * batch..boxes * (piece + 1) / pieces * batch)
            }
            None => {
                let (head, index) = (unit / (batch * boxes), unit % (batch * boxes));
                (head, index..index + 1)
            }
        }
    }

    /// Some query boxes of one head.
    ///
    /// # Safety
    /// The processor has `S`, scratch was carved by the walk's sizes, the operands live, and no other thread has the
    /// unit.
    #[inline(always)]
    pub(super) unsafe fn query_unit<S: Simd<T = R>>(&self, unit: usize, desk: &mut Desk<'_, '_, R>) {
        let (head, boxes) = self.boxes_of_unit(unit);
        // SAFETY: the caller's; units have tables and boxes of their own.
        unsafe {
            if let Some(tables) = &self.operands.grad_bias {
                tables.clear(unit);
            }
            self.tables.clear_unit(unit);
            for index in boxes {
                let (place, batch) = (index / self.problem.batch(), index % self.problem.batch());
                let here = Here { unit, batch, head, tile: self.queries.tiles.query_box(place) };
                self.query_box::<S>(&here, desk);
            }
        }
    }

    #[inline(always)]
    unsafe fn query_box<S: Simd<T = R>>(&self, here: &Here, desk: &mut Desk<'_, '_, R>) {
        // SAFETY: the caller's.
        unsafe {
            self.begin_queries(here, desk);
            for step in &self.passes.queries.steps {
                match step {
                    Step::Sweep(sweep) => self.sweep_keys::<S>(here, sweep, desk),
                    Step::Finish(stages) => self.finish_stages(here, stages, desk),
                    Step::Row(code) => self.evaluate_row::<S>(here, code, desk),
                    Step::Output => self.finish_output(here, desk),
                    Step::Delta(slots) => self.delta(here, *slots, desk),
                    Step::Add(sums) => self.add_numbers(here, sums, desk),
                    Step::Store => self.store(here, desk),
                }
            }
            self.write_grad_query(here, desk);
        }
    }

    fn groups(&self, here: &Here) -> LaneGroups {
        LaneGroups::new(&here.tile, self.queries.lane_shape)
    }

    /// The place of a lane group.
    fn place(&self, tile: TileBox) -> Place {
        Place::new(self.queries.tiles.axes(), tile)
    }

    /// Packs the stationary vectors, and begins numbers and sums.
    unsafe fn begin_queries(&self, here: &Here, desk: &mut Desk<'_, '_, R>) {
        let (sizes, scratch) = (self.sizes, &mut desk.scratch);
        let (width, groups) = (sizes.width, self.groups(here));
        let pass = &self.passes.queries;
        for g in 0..groups.len() {
            let place = self.place(groups.group(g));
            for vectors in Vectors::ALL.into_iter().filter(|&v| pass.stationary[v as usize]) {
                let Some(tensor) = self.operands.of_queries(vectors) else { continue };
                let factor = if vectors.side() == 0 { self.scale() } else { R::of(1.0) };
                // SAFETY: the box is one of the tiles, which partition the queries.
                unsafe {
                    self.pack_stationary(vectors, tensor, (here.batch, here.head), g, &place, factor, scratch)
                };
            }
            let index = &mut scratch.lane_index[g * INDICES * width..][..INDICES * width];
            self.write_index(Kind::Query, &place, width, index);
            let numbers = &mut scratch.lane_numbers[g * sizes.lane_numbers * width..];
            for (number, initial) in numbers.chunks_exact_mut(width).zip(pass.numbers.initial()) {
                number.fill(R::of(initial));
            }
            let inputs = [
                &self.operands.logsumexp[0],
                &self.operands.grad_logsumexp[0],
                &self.operands.grad_logsumexp[1],
            ];
            for (tensor, slot) in inputs.into_iter().zip(pass.given) {
                if let (Some(tensor), Some(slot)) = (tensor, slot) {
                    for lane in 0..place.tile.volume() {
                        // SAFETY: as above.
                        numbers[slot * width + lane] =
                            unsafe { tensor.number(here.batch, place.nth(lane), here.head) };
                    }
                }
            }
            scratch.seen[g] = 0;
            scratch.live[g] = all_lanes(place.tile.volume());
            if let Some(slot) = pass.given[0] {
                scratch.live[g] &= alive(&numbers[slot * width..][..place.tile.volume()]);
            }
        }
        for (sums, which) in scratch.sums.iter_mut().zip(Sums::ALL) {
            let len = if sizes.sums[which as usize] {
                groups.len() * width * sizes.stride[which.side()]
            } else {
                0
            };
            sums[..len].fill(R::ZERO);
        }
    }

    /// A sweep over everything that the box sees.
    #[inline(always)]
    unsafe fn sweep_keys<S: Simd<T = R>>(&self, here: &Here, sweep: &Sweep, desk: &mut Desk<'_, '_, R>) {
        let groups = self.groups(here);
        let (tokens, rows) = (self.problem.additional_tokens(), self.queries.rows.max(1));
        let window = self.queries.tiles.keys_of(&here.tile).map(|(keys, _)| (self.place(keys), true));
        let additional =
            (0..tokens).step_by(rows).map(|first| (Place::line(first, rows.min(tokens - first)), false));
        for (place, is_window) in window.chain(additional) {
            let Some(code) = &sweep.codes[usize::from(!is_window)] else { continue };
            let verdict = match is_window {
                true => {
                    let pairs = PairBox {
                        batch: here.batch,
                        head: here.head,
                        queries: &here.tile,
                        keys: &place.tile,
                    };
                    self.verdict(&mut desk.room, pairs)
                }
                false => Verdict::Full,
            };
            if verdict == Verdict::Empty {
                continue;
            }
            // SAFETY: sources are inside their tensors, and have at most `rows` tokens; the rest is the caller's.
            unsafe {
                self.stream_keys(here, code, &place, is_window, verdict, desk);
                let streamed = Streamed {
                    direction: Direction::Keys,
                    code,
                    place,
                    is_window,
                    batch: here.batch,
                    head: here.head,
                    verdict,
                    any_dead: false,
                    unit: here.unit,
                };
                for g in 0..groups.len() {
                    self.tile::<S>(&streamed, g, &groups.group(g), desk);
                }
            }
        }
    }

    /// Packs what a code streams of a box of keys.
    unsafe fn stream_keys(
        &self,
        here: &Here,
        code: &SweepCode,
        place: &Place,
        is_window: bool,
        verdict: Verdict,
        desk: &mut Desk<'_, '_, R>,
    ) {
        let head_kv = here.head / self.problem.heads_per_kv();
        for vectors in Vectors::ALL.into_iter().filter(|&v| code.streamed[v as usize]) {
            let Some(tensor) = self.operands.of_keys(is_window, vectors) else { continue };
            let one = R::of(1.0);
            // SAFETY: the caller's.
            unsafe {
                self.pack_streamed(vectors, tensor, (here.batch, head_kv), place, one, &mut desk.scratch)
            };
        }
        if code.reads_index || verdict == Verdict::Partial {
            let kind = if is_window { Kind::Key } else { Kind::Additional };
            let stride = self.sizes.rows;
            self.write_index(kind, place, stride, &mut desk.scratch.row_index[..INDICES * stride]);
        }
    }

    /// Stages from peaks and totals, and the rows that are dead: those that no pair counts for, and those whose
    /// logsumexp is -inf.
    fn finish_stages(&self, here: &Here, stages: &[Finish], desk: &mut Desk<'_, '_, R>) {
        let (width, count, scratch) = (self.sizes.width, self.sizes.lane_numbers, &mut desk.scratch);
        for g in 0..self.groups(here).len() {
            let numbers = &mut scratch.lane_numbers[g * count * width..][..count * width];
            scratch.live[g] &= scratch.seen[g];
            for stage in stages {
                for lane in 0..width {
                    let (peak, total) =
                        (numbers[stage.peak * width + lane], numbers[stage.total * width + lane]);
                    let is_dead = total == R::ZERO;
                    let inverse = if is_dead { R::ZERO } else { R::of(1.0) / total };
                    numbers[stage.stage * width + lane] =
                        if is_dead { R::NEG_INFINITY } else { peak + total.ln() };
                    if let Some(slot) = stage.inverse {
                        numbers[slot * width + lane] = inverse;
                    }
                    if let Some(slot) = stage.tangent {
                        let tangent = &mut numbers[slot * width + lane];
                        *tangent = if is_dead { R::ZERO } else { *tangent * inverse };
                    }
                }
            }
            for &slot in &self.passes.queries.lse_stages {
                scratch.live[g] &= alive(&numbers[slot * width..][..width]);
            }
        }
    }

    /// Functions of the row's numbers.
    #[inline(always)]
    unsafe fn evaluate_row<S: Simd<T = R>>(&self, here: &Here, row: &RowCode, desk: &mut Desk<'_, '_, R>) {
        let groups = self.groups(here);
        for g in 0..groups.len() {
            // SAFETY: the caller's.
            unsafe { self.row::<S>((here.batch, here.head), row, g, groups.group(g).volume(), desk) };
        }
    }

    /// Multiplies the sums of values with their factors; writes output, logsumexp and their tangents.
    unsafe fn finish_output(&self, here: &Here, desk: &mut Desk<'_, '_, R>) {
        let (sizes, scratch, pass) = (self.sizes, &mut desk.scratch, &self.passes.queries);
        let (width, stride, dim) = (sizes.width, sizes.stride[1], sizes.dims[1]);
        let groups = self.groups(here);
        let [sums, tangents, _] = &mut scratch.sums;
        for g in 0..groups.len() {
            let place = self.place(groups.group(g));
            let numbers =
                &scratch.lane_numbers[g * sizes.lane_numbers * width..][..sizes.lane_numbers * width];
            for lane in 0..place.tile.volume() {
                let is_alive = scratch.live[g] >> lane & 1 == 1;
                let number = |slot: Option<usize>, otherwise: R| {
                    slot.map_or(otherwise, |slot| numbers[slot * width + lane])
                };
                let factor = number(pass.factor[0], R::of(1.0));
                let factor_tangent = number(pass.factor[1], R::ZERO);
                let (token, at) = (place.nth(lane), (g * width + lane) * stride);
                let (batch, head) = (here.batch, here.head);
                // SAFETY: the query boxes partition the queries, and this unit alone has this box, batch and head.
                unsafe {
                    if sizes.sums[Sums::BTangent as usize] {
                        for (tangent, &sum) in tangents[at..at + dim].iter_mut().zip(&sums[at..at + dim]) {
                            *tangent = match is_alive {
                                true => *tangent * factor + sum * factor_tangent,
                                false => R::ZERO,
                            };
                        }
                        if let Some(output) = &self.operands.output[1] {
                            output.write(batch, token, head, &tangents[at..at + dim]);
                        }
                    }
                    if sizes.sums[Sums::B as usize] {
                        for sum in &mut sums[at..at + dim] {
                            *sum = if is_alive { *sum * factor } else { R::ZERO };
                        }
                        if let (Some(output), Op::Forward) = (&self.operands.output[0], self.op) {
                            output.write(batch, token, head, &sums[at..at + dim]);
                        }
                    }
                    for (n, dead) in [R::NEG_INFINITY, R::ZERO].into_iter().enumerate() {
                        if let Some(logsumexp) =
                            self.operands.logsumexp[n].as_ref().filter(|_| n == 1 || self.op == Op::Forward)
                        {
                            let value = if is_alive { number(pass.logsumexp[n], dead) } else { dead };
                            logsumexp.set_number(batch, token, head, value);
                        }
                    }
                }
            }
        }
    }

    /// `⟨grad_output, output⟩`, and its tangent.
    unsafe fn delta(&self, here: &Here, slots: [Option<usize>; 2], desk: &mut Desk<'_, '_, R>) {
        let (sizes, scratch) = (self.sizes, &mut desk.scratch);
        let (width, stride, dim) = (sizes.width, sizes.stride[1], sizes.dims[1]);
        let groups = self.groups(here);
        let [sums, tangents, _] = &mut scratch.sums;
        for g in 0..groups.len() {
            let place = self.place(groups.group(g));
            let numbers = &mut scratch.lane_numbers[g * sizes.lane_numbers * width..];
            for lane in 0..place.tile.volume() {
                let (token, at) = (place.nth(lane), (g * width + lane) * stride);
                let output = &mut sums[at..at + dim];
                let cotangent = &mut scratch.vector[..dim];
                let mut deltas = [R::ZERO; 2];
                // SAFETY: the token is inside the tensors.
                unsafe {
                    if let (Some(given), Op::Backward) = (&self.operands.output[0], self.op) {
                        given.read(here.batch, token, here.head, output);
                    }
                    if let Some(grad_output) = &self.operands.grad_output[0] {
                        grad_output.read(here.batch, token, here.head, cotangent);
                        deltas[0] = dot(cotangent, output);
                        if sizes.sums[Sums::BTangent as usize] {
                            deltas[1] = dot(cotangent, &tangents[at..at + dim]);
                        }
                    }
                    if let Some(tangent) = &self.operands.grad_output[1] {
                        tangent.read(here.batch, token, here.head, cotangent);
                        deltas[1] = deltas[1] + dot(cotangent, output);
                    }
                }
                for (slot, delta) in slots.into_iter().zip(deltas) {
                    if let Some(slot) = slot {
                        numbers[slot * width + lane] = delta;
                    }
                }
            }
        }
    }

    fn add_numbers(&self, here: &Here, sums: &[(usize, usize)], desk: &mut Desk<'_, '_, R>) {
        let (width, count) = (self.sizes.width, self.sizes.lane_numbers);
        for g in 0..self.groups(here).len() {
            let numbers = &mut desk.scratch.lane_numbers[g * count * width..][..count * width];
            for &(from, to) in sums {
                for lane in 0..width {
                    numbers[to * width + lane] = numbers[to * width + lane] + numbers[from * width + lane];
                }
            }
        }
    }

    /// Keeps what the walk with stationary keys reads.
    unsafe fn store(&self, here: &Here, desk: &mut Desk<'_, '_, R>) {
        let Some(stored) = &self.operands.stored else { return };
        let (sizes, scratch) = (self.sizes, &mut desk.scratch);
        let (width, slots) = (sizes.width, &self.passes.keys.stored);
        let groups = self.groups(here);
        for g in 0..groups.len() {
            let place = self.place(groups.group(g));
            let numbers = &scratch.lane_numbers[g * sizes.lane_numbers * width..];
            for lane in 0..place.tile.volume() {
                let row = &mut scratch.vector[..slots.len()];
                for (number, &slot) in row.iter_mut().zip(slots) {
                    *number = numbers[slot * width + lane];
                }
                // SAFETY: the query boxes partition the queries, and this unit alone has this box, batch and head.
                unsafe { stored.write(here.batch, place.nth(lane), here.head, row) };
            }
        }
    }

    unsafe fn write_grad_query(&self, here: &Here, desk: &mut Desk<'_, '_, R>) {
        let Some(grad_query) = &self.operands.grad_query else { return };
        let (width, stride, dim) = (self.sizes.width, self.sizes.stride[0], self.sizes.dims[0]);
        let groups = self.groups(here);
        for g in 0..groups.len() {
            let place = self.place(groups.group(g));
            for lane in 0..place.tile.volume() {
                let sums = &mut desk.scratch.sums[Sums::A as usize][(g * width + lane) * stride..][..dim];
                for sum in sums.iter_mut() {
                    *sum = *sum * self.scale();
                }
                // SAFETY: the query boxes partition the queries, and this unit alone has this box, batch and head.
                unsafe { grad_query.write(here.batch, place.nth(lane), here.head, sums) };
            }
        }
    }
}

/// The lanes that are not at -inf.
fn alive<R: Real>(numbers: &[R]) -> u32 {
    numbers.iter().enumerate().fold(0, |bits, (lane, &x)| bits | u32::from(x != R::NEG_INFINITY) << lane)
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).fold(R::ZERO, |sum, (&a, &b)| sum + a * b)
}
