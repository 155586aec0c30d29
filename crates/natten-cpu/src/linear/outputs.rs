//! The output of a chunk: what its tokens give each other, and what the state before it gives them.
//!
//! ```text
//! o_a = scale [ Σ_{b <= a} e^(G_a - G_b) ⟨q_a, k_b⟩ v_b  +  e^G_a q_a S ]
//! ```

use crate::element::Real;
use crate::simd::Simd;

use super::Kernel;
use super::chunk::{Factors, Scratch, Sums};
use super::matrix::{Extents, Matrix, multiply, transpose};
use super::states::exchange;
use super::vectors::Run;

/// Tokens of a chunk whose products with earlier tokens are computed together, those with later ones among them wasted.
const STEP: usize = 16;

/// How many tokens to take together. A later token weighs zero, and zero times infinity is NaN: one by one where not
/// everything is finite.
pub(super) const fn step(finite: bool) -> usize {
    if finite { STEP } else { 1 }
}

impl<R: Real> Kernel<'_, R> {
    /// `to[a][b] = ⟨left_a, right_b⟩` for `b <= a`, of the chunk's first `count` tokens; `turned` is the right side, a token a
    /// column.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub(super) unsafe fn products<S: Simd<T = R>>(
        &self,
        (count, step): (usize, usize),
        dim: usize,
        left: &Matrix<'_, R>,
        turned: &Matrix<'_, R>,
        to: &mut Matrix<'_, R>,
    ) {
        for first in (0..count).step_by(step) {
            let rows = step.min(count - first);
            let extents = Extents { rows, columns: first + rows, depth: dim };
            // SAFETY: the caller's.
            unsafe {
                multiply::<S>(extents, left.side().at(first, 0), turned.side(), to.below(first), false);
            }
        }
    }

    /// `to_a = Σ_{b <= a} weights[a][b] right_b`, or `+=`. Weights of later tokens are zero.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub(super) unsafe fn sum_of_earlier<S: Simd<T = R>>(
        &self,
        (count, step): (usize, usize),
        dim: usize,
        weights: &Matrix<'_, R>,
        right: &Matrix<'_, R>,
        to: &mut Matrix<'_, R>,
    ) {
        for first in (0..count).step_by(step) {
            let rows = step.min(count - first);
            let extents = Extents { rows, columns: dim, depth: first + rows };
            // SAFETY: the caller's.
            unsafe {
                multiply::<S>(
                    extents,
                    weights.side().at(first, 0),
                    right.side(),
                    to.below(first).result(),
                    false,
                );
            }
        }
    }

    /// Turns products of queries and keys into weights, `scale e^(G_a - G_b) ⟨q_a, k_b⟩`, those of later tokens zero.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn weigh<S: Simd<T = R>>(
        &self,
        sums: Sums<'_>,
        factors: &mut Factors<'_, R>,
        scores: &mut Matrix<'_, R>,
    ) {
        let stride = scores.stride;
        for a in 0..sums.value.len() {
            sums.up_to::<S>(a, factors);
            let row = &mut scores.value[a * stride..(a + 1) * stride];
            let tangents = scores.tangent.get_mut(a * stride..(a + 1) * stride).unwrap_or_default();
            decay_row(self.scale, factors, a, row, tangents);
        }
    }

    /// The outputs of a chunk of one sequence, from the state before it. Leaves the chunk's keys and values in scratch.
    ///
    /// # Safety
    /// The processor has `S`; the operands live, and no other thread has this chunk.
    #[inline(always)]
    unsafe fn chunk<S: Simd<T = R>>(
        &self,
        row: usize,
        chunk: usize,
        scratch: &mut Scratch<'_, R>,
        state: &Matrix<'_, R>,
    ) {
        let (at, tokens) = (self.head_of(row), self.cut.tokens_of(chunk));
        let (count, [dim, dim_v]) = (tokens.1, self.cut.dims);
        let Scratch { query, key, value, turned, scores, scaled, sums: to, numbers, .. } = scratch;
        let [factors, tangents, ..] = numbers;
        let factors = &mut Factors { value: factors, tangent: tangents };
        to.stride = self.cut.strides[1];
        // SAFETY: the caller's.
        unsafe {
            let sums = self.sums_of(row, tokens);
            let run = |at, dim| Run { at, tokens, dim };
            let key_head = self.key_head(at);
            let mut finite = self.read::<S>(run(at, dim), &self.operands.query, query);
            finite &= self.read::<S>(run(key_head, dim), &self.operands.key, key);
            finite &= self.read::<S>(run(key_head, dim_v), &self.operands.value, value);
            let cut = (count, step(finite));
            transpose(count, dim, key.side(), turned);
            self.products::<S>(cut, dim, query, turned, scores);
            self.weigh::<S>(sums, factors, scores);
            self.sum_of_earlier::<S>(cut, dim_v, scores, value, to);
            self.sum_of_state::<S>(sums, query, state, factors, scaled, to);
            self.write::<S>(run(at, dim_v), to, &self.results.output);
        }
    }

    /// `to_a += scale e^G_a q_a S`.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub(super) unsafe fn sum_of_state<S: Simd<T = R>>(
        &self,
        sums: Sums<'_>,
        query: &Matrix<'_, R>,
        state: &Matrix<'_, R>,
        factors: &mut Factors<'_, R>,
        scaled: &mut Matrix<'_, R>,
        to: &mut Matrix<'_, R>,
    ) {
        let count = sums.value.len();
        sums.decay_from_start::<S>(factors);
        factors.scale(query.side(), count, self.scale, scaled);
        let extents = Extents { rows: count, columns: self.cut.dims[1], depth: self.cut.dims[0] };
        // SAFETY: the caller's.
        unsafe { multiply::<S>(extents, scaled.side(), state.side(), to.result(), true) };
    }

    /// The outputs of a chunk, unit `unit` of all rows' chunks, from the states that the scan left.
    ///
    /// # Safety
    /// The processor has `S`; the operands live, and no other thread has this unit.
    #[inline(always)]
    pub(super) unsafe fn outputs_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (row, chunk) = (unit / self.cut.chunks(), unit % self.cut.chunks());
        // SAFETY: the caller's.
        unsafe {
            let state = self.state_of(self.states, row, chunk);
            self.chunk::<S>(row, chunk, scratch, &state);
        }
    }

    /// The outputs of one sequence, chunk by chunk.
    ///
    /// # Safety
    /// As [`outputs_unit`](Self::outputs_unit).
    #[inline(always)]
    pub(super) unsafe fn sequence_unit<S: Simd<T = R>>(&self, row: usize, scratch: &mut Scratch<'_, R>) {
        let mut state = std::mem::take(&mut scratch.state);
        let mut part = std::mem::take(&mut scratch.part);
        let all = 0..self.cut.dims[0];
        // SAFETY: the caller's.
        unsafe {
            self.read_state(&self.operands.initial, row, all.clone(), &mut state);
            for chunk in 0..self.cut.chunks() {
                let sums = self.sums_of(row, self.cut.tokens_of(chunk));
                self.chunk::<S>(row, chunk, scratch, &state);
                let Scratch { key, value, scaled, numbers: [factors, tangents, ..], .. } = scratch;
                let factors = &mut Factors { value: factors, tangent: tangents };
                self.part_of_state::<S>(sums, (key, value), scaled, factors, part.below(0));
                let (factor, tangent) = sums.whole::<S>(factors.value);
                exchange(&mut state, part.below(0), factor, tangent);
            }
            self.write_state(&self.results.last, row, all, &state);
        }
        (scratch.state, scratch.part) = (state, part);
    }
}

/// Multiplies a row with its decays and the scale; what is later than token `a` becomes zero.
#[inline(always)]
pub(super) fn decay_row<R: Real>(
    scale: R,
    factors: &Factors<'_, R>,
    a: usize,
    row: &mut [R],
    tangents: &mut [R],
) {
    for (value, &factor) in row[..=a].iter_mut().zip(&*factors.value) {
        *value = scale * factor * *value;
    }
    row[a + 1..].fill(R::ZERO);
    if tangents.is_empty() {
        return;
    }
    let values = row.iter().zip(&*factors.value).zip(&*factors.tangent);
    for (to, ((&value, &factor), &log)) in tangents[..=a].iter_mut().zip(values) {
        *to = scale * factor * *to + value * log;
    }
    tangents[a + 1..].fill(R::ZERO);
}
