//! The unfused pair: `qk` gives the scores of every query's window, `av` multiplies weights with values. Slots without a
//! key hold -inf in the scores, are not read among weights and cotangents, and hold 0 in gradients and tangents.

use super::attention::{Attention, Gradients};
use super::functions::Vectors;
use super::number::{Number, add_scaled, dot};
use super::rows::{Key, Row, for_each_row};
use super::tensors::Tensors;
use crate::role::Role;

impl<T: Number> Attention<'_, T> {
    /// The place of a pair among the attention weights, `[B, Hq, *X, slots]`.
    fn slot(&self, row: &Row<'_>, key: &Key) -> usize {
        let slots = self.problem.neighborhood().window_len() + self.problem.additional_tokens();
        let queries: usize = self.problem.neighborhood().query_shape().iter().product();
        ((row.batch * self.problem.heads() + row.head) * queries + row.query) * slots + key.slot
    }

    fn every_slot(&self, fill: f64) -> Vec<T> {
        vec![T::of(fill); self.problem.shape(Role::Attention).iter().product()]
    }

    fn each_pair(&self, mut visit: impl FnMut(&Row<'_>, &Key, usize)) {
        for_each_row(self.problem, |row| {
            row.keys.iter().for_each(|key| visit(row, key, self.slot(row, key)));
        });
    }

    /// The place of a pair's value, and of its output's first element.
    fn ends(&self, row: &Row<'_>, key: &Key) -> (usize, usize) {
        let value = self.keys.vector(row.batch, key.number, row.head_kv);
        (value, row.vector * self.problem.head_dim_v())
    }

    /// `attention`.
    pub(super) fn qk(&self) -> Tensors<T> {
        let mut attention = self.every_slot(f64::NEG_INFINITY);
        self.each_pair(|row, key, slot| attention[slot] = self.score(row, key));
        let mut results = Tensors::default();
        results.insert(Role::Attention, attention);
        results
    }

    /// The gradients of the inputs of `qk`.
    pub(super) fn qk_backward(&self, grad_attention: &[T]) -> Tensors<T> {
        let mut gradients = Gradients::zeros(self);
        self.each_pair(|row, key, slot| self.pull_score(row, key, grad_attention[slot], &mut gradients));
        self.gradients(gradients)
    }

    /// `output`, from the weights.
    pub(super) fn av(&self, attention: &[T]) -> Tensors<T> {
        let dim = self.problem.head_dim_v();
        let mut output = vec![T::of(0.0); self.problem.shape(Role::Output).iter().product()];
        self.each_pair(|row, key, slot| {
            let (value, to) = self.ends(row, key);
            add_scaled(&mut output[to..to + dim], attention[slot], self.vector(Vectors::Values, value));
        });
        let mut results = Tensors::default();
        results.insert(Role::Output, output);
        results
    }

    /// The gradients of the weights and the values.
    pub(super) fn av_backward(&self, attention: &[T], grad_output: &[T]) -> Tensors<T> {
        let dim = self.problem.head_dim_v();
        let mut grad_attention = self.every_slot(0.0);
        let mut gradients = Gradients::zeros(self);
        self.each_pair(|row, key, slot| {
            let (value, from) = self.ends(row, key);
            let grad_output = &grad_output[from..from + dim];
            grad_attention[slot] = dot(grad_output, self.vector(Vectors::Values, value));
            let of_value = gradients.vector(Vectors::Values, self.problem, value);
            add_scaled(of_value, attention[slot], grad_output);
        });
        let mut results = self.gradients(gradients);
        results.insert(Role::GradAttention, grad_attention);
        results
    }
}
