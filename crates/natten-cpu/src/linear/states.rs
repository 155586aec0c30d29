//! States: what a chunk adds to one, and the scan over chunks that makes the states before each of them.
//!
//! Every chunk's part is made first, in any order. The scan then goes from chunk to chunk, forward for states, backward
//! for their cotangents, a few rows of a state at a time, and leaves in the place of each part the state that the chunk
//! begins (or, backward, ends) with.

use crate::element::Real;
use crate::simd::Simd;

use super::chunk::{Factors, Scratch, Sums};
use super::matrix::{Extents, Matrix, multiply};
use super::vectors::Run;
use super::{Kernel, Pair};

/// Rows of a state that one unit scans.
pub(super) const ROWS_A_UNIT: usize = 8;

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// States: from the first chunk on.
    Forward,
    /// Cotangents of states: from the last chunk back.
    Backward,
}

impl<R: Real> Kernel<'_, R> {
    /// A chunk's part of the state after it: `Σ_b e^(G_C - G_b) k_b v_b^T`, of the keys and values in scratch.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub(super) unsafe fn part_of_state<S: Simd<T = R>>(
        &self,
        sums: Sums<'_>,
        (key, value): (&Matrix<'_, R>, &Matrix<'_, R>),
        scaled: &mut Matrix<'_, R>,
        factors: &mut Factors<'_, R>,
        to: Matrix<'_, R>,
    ) {
        let count = sums.value.len();
        sums.decay_to_end::<S>(factors);
        factors.scale(key.side(), count, R::of(1.0), scaled);
        let extents = Extents { rows: self.cut.dims[0], columns: self.cut.dims[1], depth: count };
        // SAFETY: the caller's.
        unsafe { multiply::<S>(extents, scaled.side().turned(), value.side(), to, false) };
    }

    /// A chunk's part of the cotangent of the state before it: `scale Σ_a e^G_a q_a do_a^T`, of the queries and the
    /// cotangents of outputs in scratch.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn part_of_costate<S: Simd<T = R>>(
        &self,
        sums: Sums<'_>,
        (query, grad): (&Matrix<'_, R>, &Matrix<'_, R>),
        scaled: &mut Matrix<'_, R>,
        factors: &mut Factors<'_, R>,
        to: Matrix<'_, R>,
    ) {
        let count = sums.value.len();
        sums.decay_from_start::<S>(factors);
        factors.scale(query.side(), count, self.scale, scaled);
        let extents = Extents { rows: self.cut.dims[0], columns: self.cut.dims[1], depth: count };
        // SAFETY: the caller's.
        unsafe { multiply::<S>(extents, scaled.side().turned(), grad.side(), to, false) };
    }

    /// The parts of a chunk, unit `unit` of all rows' chunks.
    ///
    /// # Safety
    /// The processor has `S`; the operands live, and no other thread has this unit.
    #[inline(always)]
    pub(super) unsafe fn parts_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (row, chunk) = (unit / self.cut.chunks(), unit % self.cut.chunks());
        let (at, tokens) = (self.head_of(row), self.cut.tokens_of(chunk));
        let run = |at, dim| Run { at, tokens, dim };
        let [value, tangent, ..] = &mut scratch.numbers;
        let factors = &mut Factors { value, tangent };
        // SAFETY: the caller's.
        unsafe {
            let sums = self.sums_of(row, tokens);
            if self.needs_states {
                self.read::<S>(
                    run(self.key_head(at), self.cut.dims[0]),
                    &self.operands.key,
                    &mut scratch.key,
                );
                self.read::<S>(
                    run(self.key_head(at), self.cut.dims[1]),
                    &self.operands.value,
                    &mut scratch.value,
                );
                let to = self.state_of(self.states, row, chunk);
                self.part_of_state::<S>(
                    sums,
                    (&scratch.key, &scratch.value),
                    &mut scratch.scaled,
                    factors,
                    to,
                );
            }
            if let (true, Some(grad_output)) = (self.needs_costates, &self.operands.grad_output) {
                self.read::<S>(run(at, self.cut.dims[0]), &self.operands.query, &mut scratch.query);
                self.read::<S>(run(at, self.cut.dims[1]), grad_output, &mut scratch.grad);
                let to = self.state_of(self.costates, row, chunk);
                self.part_of_costate::<S>(
                    sums,
                    (&scratch.query, &scratch.grad),
                    &mut scratch.scaled,
                    factors,
                    to,
                );
            }
        }
    }

    /// Scans some rows of one sequence's states: unit `unit` of all rows'.
    ///
    /// # Safety
    /// The processor has `S`; the operands live, and no other thread has this unit.
    #[inline(always)]
    pub(super) unsafe fn scan_unit<S: Simd<T = R>>(
        &self,
        scan: Scan,
        unit: usize,
        scratch: &mut Scratch<'_, R>,
    ) {
        let pieces = self.cut.dims[0].div_ceil(ROWS_A_UNIT);
        let (row, first) = (unit / pieces, unit % pieces * ROWS_A_UNIT);
        let rows = first..(first + ROWS_A_UNIT).min(self.cut.dims[0]);
        let (stride, chunks) = (self.cut.strides[1], self.cut.chunks());
        let (states, start, end) = match scan {
            Scan::Forward => (self.states, &self.operands.initial, &self.results.last),
            Scan::Backward => (self.costates, &self.operands.grad_final, &self.results.initial),
        };
        let len = rows.len() * stride;
        let mut state = Matrix {
            value: &mut scratch.scaled.value[..len],
            tangent: scratch.scaled.tangent.get_mut(..len).unwrap_or_default(),
            stride,
            is_constant: false,
        };
        // SAFETY: the caller's.
        unsafe {
            self.read_state(start, row, rows.clone(), &mut state);
            for step in 0..chunks {
                let chunk = if scan == Scan::Forward { step } else { chunks - 1 - step };
                let sums = self.sums_of(row, self.cut.tokens_of(chunk));
                let (factor, tangent) = sums.whole::<S>(scratch.numbers[0]);
                let at = self.cut.state_of(row, chunk).start + first * stride;
                let (value, tangents) = (states.value.part(at..at + len), states.tangent.part(at..at + len));
                let part = Matrix { value, tangent: tangents, stride, is_constant: false };
                exchange(&mut state, part, factor, tangent);
            }
            self.write_state(end, row, rows, &state);
        }
    }

    /// Reads rows of a state that is an input, or zero.
    ///
    /// # Safety
    /// The tensor lives.
    #[inline(always)]
    pub(super) unsafe fn read_state(
        &self,
        from: &Option<Pair<R>>,
        row: usize,
        rows: std::ops::Range<usize>,
        to: &mut Matrix<'_, R>,
    ) {
        to.value.fill(R::ZERO);
        to.tangent.fill(R::ZERO);
        let Some((value, tangent)) = from else { return };
        let (batch, head) = self.head_of(row);
        for (at, d) in rows.enumerate() {
            let numbers = at * to.stride..at * to.stride + self.cut.dims[1];
            // SAFETY: a state's tensor has a row for every head and number of a key.
            unsafe {
                value.read(batch, [0, 0, head], d, &mut to.value[numbers.clone()]);
                if let (Some(tangent), Some(to)) = (tangent, to.tangent.get_mut(numbers)) {
                    tangent.read(batch, [0, 0, head], d, to);
                }
            }
        }
    }

    /// Writes rows of a state that is an output.
    ///
    /// # Safety
    /// The tensors live, and no other thread writes these rows.
    #[inline(always)]
    pub(super) unsafe fn write_state(
        &self,
        to: &super::Outputs<R>,
        row: usize,
        rows: std::ops::Range<usize>,
        from: &Matrix<'_, R>,
    ) {
        let (batch, head) = self.head_of(row);
        for (at, d) in rows.enumerate() {
            let numbers = at * from.stride..at * from.stride + self.cut.dims[1];
            for (to, from) in to.iter().zip([&from.value, &from.tangent]) {
                if let Some(to) = to {
                    // SAFETY: as in `read_state`.
                    unsafe { to.write(batch, [0, 0, head], d, &from[numbers.clone()]) };
                }
            }
        }
    }
}

/// `(state, part) = (factor * state + part, state)`, where `tangent` is that of the factor's logarithm.
#[inline(always)]
pub(super) fn exchange<R: Real>(state: &mut Matrix<'_, R>, part: Matrix<'_, R>, factor: R, tangent: R) {
    for ((state_tangent, part), &state) in state.tangent.iter_mut().zip(part.tangent).zip(state.value.iter())
    {
        let next = factor * (*state_tangent + tangent * state) + *part;
        *part = *state_tangent;
        *state_tangent = next;
    }
    for (state, part) in state.value.iter_mut().zip(part.value) {
        let next = factor * *state + *part;
        *part = *state;
        *state = next;
    }
}
