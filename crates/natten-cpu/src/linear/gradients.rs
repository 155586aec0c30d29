//! The gradients of a chunk, from the state before it, `S`, and the cotangent of the state after it, `D`. With
//! `w_ab = scale e^(G_a - G_b) ⟨q_a, k_b⟩` and `p_ab = scale e^(G_a - G_b) ⟨do_a, v_b⟩` for `b <= a`:
//!
//! ```text
//! dq_a = Σ_{b <= a} p_ab k_b  +  scale e^G_a do_a S^T
//! dk_b = Σ_{a >= b} p_ab q_a  +  e^(G_C - G_b) v_b D^T
//! dv_b = Σ_{a >= b} w_ab do_a +  e^(G_C - G_b) k_b D
//! ```
//!
//! The gradient of a token's logarithm is the sum over everything whose decay it is a factor of: pairs on either side
//! of it, outputs from the state, parts of the next state, and the state itself.
//!
//! ```text
//! dl_t = Σ_{a >= t > b} w_ab ⟨do_a, v_b⟩ + Σ_{a >= t} ⟨q_a, scale e^G_a do_a S^T⟩
//!      + Σ_{b < t} ⟨k_b, e^(G_C - G_b) v_b D^T⟩ + e^G_C ⟨S, D⟩
//! ```
//!
//! Each term has the token's own decay in it, so that strong decay leaves small gradients and no rounding of large ones,
//! as `⟨q, dq⟩ - ⟨k, dk⟩` would.

use crate::element::Real;
use crate::simd::Simd;

use super::Kernel;
use super::chunk::{Factors, Scratch, Sums};
use super::matrix::{Extents, Matrix, dot, multiply, transpose};
use super::outputs::{decay_row, step};
use super::vectors::Run;

impl<R: Real> Kernel<'_, R> {
    /// The gradients of a chunk of a key head, and of the query heads that use it: unit `unit` of all key heads' chunks.
    ///
    /// # Safety
    /// The processor has `S`; the operands live, and no other thread has this unit.
    #[inline(always)]
    pub(super) unsafe fn gradients_unit<S: Simd<T = R>>(&self, unit: usize, scratch: &mut Scratch<'_, R>) {
        let (key_row, chunk) = (unit / self.cut.chunks(), unit % self.cut.chunks());
        let (batch, key_head) = (key_row / self.cut.heads_kv, key_row % self.cut.heads_kv);
        let tokens = self.cut.tokens_of(chunk);
        let group = self.cut.heads / self.cut.heads_kv;
        let [dim, dim_v] = self.cut.dims;
        // SAFETY: the caller's.
        unsafe {
            let at = (batch, key_head);
            let (keys, values) = (Run { at, tokens, dim }, Run { at, tokens, dim: dim_v });
            let mut finite = self.read::<S>(keys, &self.operands.key, &mut scratch.key);
            finite &= self.read::<S>(values, &self.operands.value, &mut scratch.value);
            for member in 0..group {
                let head = key_head * group + member;
                self.head::<S>((batch, head), chunk, member == 0, finite, scratch);
            }
            self.write::<S>(keys, &scratch.sums_key, &self.results.key);
            self.write::<S>(values, &scratch.sums_value, &self.results.value);
        }
    }

    /// One query head's share.
    ///
    /// # Safety
    /// As [`gradients_unit`](Self::gradients_unit).
    #[inline(always)]
    unsafe fn head<S: Simd<T = R>>(
        &self,
        at: (usize, usize),
        chunk: usize,
        is_first: bool,
        finite: bool,
        scratch: &mut Scratch<'_, R>,
    ) {
        let row = at.0 * self.cut.heads + at.1;
        let tokens = self.cut.tokens_of(chunk);
        let (count, [dim, dim_v]) = (tokens.1, self.cut.dims);
        let Some(grad_output) = &self.operands.grad_output else { return };
        // SAFETY: the caller's.
        unsafe {
            let sums = self.sums_of(row, tokens);
            let finite =
                self.read::<S>(Run { at, tokens, dim }, &self.operands.query, &mut scratch.query) && finite;
            let finite =
                self.read::<S>(Run { at, tokens, dim: dim_v }, grad_output, &mut scratch.grad) && finite;
            let cut = (count, step(finite));
            let Scratch { query, key, value, grad, turned, scores, grads, .. } = &mut *scratch;
            transpose(count, dim, key.side(), turned);
            self.products::<S>(cut, dim, query, turned, scores);
            transpose(count, dim_v, value.side(), turned);
            self.products::<S>(cut, dim_v, grad, turned, grads);
            let mut logs = self.logs_of(row, tokens);
            self.weigh_both::<S>(sums, scratch, &mut logs);
            if self.needs_states {
                self.of_state::<S>(row, chunk, cut, sums, scratch, &mut logs);
            }
            if self.needs_costates {
                self.of_costate::<S>((row, chunk, is_first), cut, sums, scratch, &mut logs);
            }
            if !logs.value.is_empty() && self.needs_states && self.needs_costates {
                self.of_both::<S>(row, chunk, sums, scratch, &mut logs);
            }
        }
    }

    /// Turns products into `w` and `p`, and begins the gradients of logarithms with what pairs add to them.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn weigh_both<S: Simd<T = R>>(
        &self,
        sums: Sums<'_>,
        scratch: &mut Scratch<'_, R>,
        logs: &mut Logs<'_, R>,
    ) {
        let Scratch { scores, grads, numbers: [factors, tangents, columns, column_tangents, ..], .. } =
            scratch;
        let factors = &mut Factors { value: factors, tangent: tangents };
        let stride = scores.stride;
        columns.fill(R::ZERO);
        column_tangents.fill(R::ZERO);
        // From the last token back: `columns[b]` is the sum over `a >= t` of what pairs `(a, b)` add.
        for t in (0..sums.value.len()).rev() {
            sums.up_to::<S>(t, factors);
            let row = t * stride..(t + 1) * stride;
            let (w, p) = (&mut scores.value[row.clone()], &mut grads.value[row.clone()]);
            let w_tangents = scores.tangent.get_mut(row.clone()).unwrap_or_default();
            let p_tangents = grads.tangent.get_mut(row).unwrap_or_default();
            decay_row(self.scale, factors, t, w, w_tangents);
            if let Some(log) = logs.value.get_mut(t) {
                for ((sum, &w), &p) in columns[..=t].iter_mut().zip(&*w).zip(&*p) {
                    *sum = *sum + w * p;
                }
                *log = total(&columns[..t]);
            }
            if let Some(log) = logs.tangent.get_mut(t) {
                let values = w.iter().zip(&*p).zip(&*w_tangents).zip(&*p_tangents);
                for (sum, (((&w, &p), &w_tangent), &p_tangent)) in
                    column_tangents[..=t].iter_mut().zip(values)
                {
                    *sum = *sum + w_tangent * p + w * p_tangent;
                }
                *log = total(&column_tangents[..t]);
            }
            decay_row(self.scale, factors, t, p, p_tangents);
        }
    }

    /// `to_b = Σ_{a >= b} weights[a][b] right_a`, or `+=`. Weights of later tokens are zero.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn sum_of_later<S: Simd<T = R>>(
        &self,
        (count, step): (usize, usize),
        dim: usize,
        weights: &Matrix<'_, R>,
        right: &Matrix<'_, R>,
        to: &mut Matrix<'_, R>,
        adds: bool,
    ) {
        for first in (0..count).step_by(step) {
            let extents = Extents { rows: step.min(count - first), columns: dim, depth: count - first };
            let (left, right) = (weights.side().turned().at(first, first), right.side().at(first, 0));
            // SAFETY: the caller's.
            unsafe { multiply::<S>(extents, left, right, to.below(first).result(), adds) };
        }
    }

    /// The gradients of queries, and in forward mode the tangents of outputs where they are wanted: all that the state
    /// before the chunk is needed for.
    ///
    /// # Safety
    /// As [`gradients_unit`](Self::gradients_unit).
    #[inline(always)]
    unsafe fn of_state<S: Simd<T = R>>(
        &self,
        row: usize,
        chunk: usize,
        cut: (usize, usize),
        sums: Sums<'_>,
        scratch: &mut Scratch<'_, R>,
        logs: &mut Logs<'_, R>,
    ) {
        let (at, tokens) = (self.head_of(row), self.cut.tokens_of(chunk));
        let (count, [dim, dim_v], [stride, stride_v]) = (cut.0, self.cut.dims, self.cut.strides);
        let Scratch {
            query,
            key,
            value,
            grad,
            scores,
            grads,
            scaled,
            between,
            sums: to,
            turned_state,
            numbers,
            ..
        } = scratch;
        let [factors, tangents, ..] = numbers;
        let factors = &mut Factors { value: factors, tangent: tangents };
        // SAFETY: the caller's.
        unsafe {
            let state = self.state_of(self.states, row, chunk);
            transpose(dim, dim_v, state.side(), turned_state);
            sums.decay_from_start::<S>(factors);
            factors.scale(grad.side(), count, self.scale, scaled);
            let extents = Extents { rows: count, columns: dim, depth: dim_v };
            multiply::<S>(extents, scaled.side(), turned_state.side(), between.below(0), false);
            to.stride = stride;
            self.sum_of_earlier::<S>(cut, dim, grads, key, to);
            add(count, between, &mut to.result());
            self.write::<S>(Run { at, tokens, dim }, to, &self.results.query);
            let mut sum = (R::ZERO, R::ZERO);
            for a in (0..logs.value.len()).rev() {
                logs.add(a, dual_dot(query, between, a, &mut sum));
            }
            if self.results.output.iter().any(Option::is_some) {
                to.stride = stride_v;
                self.sum_of_earlier::<S>(cut, dim_v, scores, value, to);
                self.sum_of_state::<S>(sums, query, &state, factors, scaled, to);
                self.write::<S>(Run { at, tokens, dim: dim_v }, to, &self.results.output);
            }
        }
    }

    /// The gradients of keys and values: all that the cotangent of the state after the chunk is needed for.
    ///
    /// # Safety
    /// As [`gradients_unit`](Self::gradients_unit).
    #[inline(always)]
    unsafe fn of_costate<S: Simd<T = R>>(
        &self,
        (row, chunk, is_first): (usize, usize, bool),
        cut: (usize, usize),
        sums: Sums<'_>,
        scratch: &mut Scratch<'_, R>,
        logs: &mut Logs<'_, R>,
    ) {
        let (count, [dim, dim_v]) = (cut.0, self.cut.dims);
        let Scratch {
            query,
            key,
            value,
            grad,
            scores,
            grads,
            scaled,
            between,
            sums_key,
            sums_value,
            turned_state,
            numbers,
            ..
        } = scratch;
        let [factors, tangents, ..] = numbers;
        let factors = &mut Factors { value: factors, tangent: tangents };
        // SAFETY: the caller's.
        unsafe {
            let costate = self.state_of(self.costates, row, chunk);
            sums.decay_to_end::<S>(factors);
            self.sum_of_later::<S>(cut, dim_v, scores, grad, sums_value, !is_first);
            factors.scale(key.side(), count, R::of(1.0), scaled);
            let extents = Extents { rows: count, columns: dim_v, depth: dim };
            multiply::<S>(extents, scaled.side(), costate.side(), sums_value.result(), true);

            transpose(dim, dim_v, costate.side(), turned_state);
            factors.scale(value.side(), count, R::of(1.0), scaled);
            let extents = Extents { rows: count, columns: dim, depth: dim_v };
            multiply::<S>(extents, scaled.side(), turned_state.side(), between.below(0), false);
            self.sum_of_later::<S>(cut, dim, grads, query, sums_key, !is_first);
            add(count, between, &mut sums_key.result());
            let mut sum = (R::ZERO, R::ZERO);
            for b in 1..logs.value.len() {
                logs.add(b, dual_dot(key, between, b - 1, &mut sum));
            }
        }
    }

    /// `e^G_C ⟨S, D⟩`, which every logarithm of the chunk is in.
    ///
    /// # Safety
    /// As [`gradients_unit`](Self::gradients_unit).
    #[inline(always)]
    unsafe fn of_both<S: Simd<T = R>>(
        &self,
        row: usize,
        chunk: usize,
        sums: Sums<'_>,
        scratch: &mut Scratch<'_, R>,
        logs: &mut Logs<'_, R>,
    ) {
        let (factor, log) = sums.whole::<S>(scratch.numbers[0]);
        // SAFETY: the caller's.
        let (state, costate) =
            unsafe { (self.state_of(self.states, row, chunk), self.state_of(self.costates, row, chunk)) };
        let product = factor * dot(state.value, costate.value);
        let tangent =
            factor * (dot(state.tangent, costate.value) + dot(state.value, costate.tangent)) + log * product;
        for t in 0..logs.value.len() {
            logs.add(t, (product, tangent));
        }
    }
}

/// The gradients of a chunk's logarithms; empty where they are not wanted.
#[derive(Debug)]
pub(super) struct Logs<'l, R> {
    pub(super) value: &'l mut [R],
    pub(super) tangent: &'l mut [R],
}

impl<R: Real> Logs<'_, R> {
    #[inline(always)]
    fn add(&mut self, token: usize, (value, tangent): (R, R)) {
        self.value[token] = self.value[token] + value;
        if let Some(to) = self.tangent.get_mut(token) {
            *to = *to + tangent;
        }
    }
}

/// Adds `⟨a_row, b_row⟩` and its tangent to a sum, and returns the sum.
#[inline(always)]
fn dual_dot<R: Real>(a: &Matrix<'_, R>, b: &Matrix<'_, R>, row: usize, sum: &mut (R, R)) -> (R, R) {
    let (a, b) = (a.side(), b.side());
    sum.0 = sum.0 + dot(a.row(row), b.row(row));
    if let Some(tangent) = a.row_tangent(row) {
        sum.1 = sum.1 + dot(tangent, b.row(row));
    }
    if let Some(tangent) = b.row_tangent(row) {
        sum.1 = sum.1 + dot(a.row(row), tangent);
    }
    *sum
}

/// `to += from`, as far as `to` is there.
#[inline(always)]
fn add<R: Real>(rows: usize, from: &Matrix<'_, R>, to: &mut Matrix<'_, R>) {
    let len = rows * from.stride;
    for (to, from) in [(&mut *to.value, &*from.value), (&mut *to.tangent, &*from.tangent)] {
        for (to, &x) in to.iter_mut().zip(from).take(len) {
            *to = *to + x;
        }
    }
}

fn total<R: Real>(numbers: &[R]) -> R {
    numbers.iter().fold(R::ZERO, |sum, &x| sum + x)
}
