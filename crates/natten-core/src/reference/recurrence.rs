//! Linear attention with decay, by its recurrence: `S` a matrix of `D × Dv` a batch entry and query head, `l_t` the
//! program's decay at token `t`, `q'`, `k'` and `v'` what its vector functions make of queries, keys and values.
//!
//! ```text
//! S_t = e^{l_t} S_{t-1} + k'_t v'_tᵀ        o_t = scale q'_t S_t
//! ```
//!
//! and from the last token to the first, `dS` beginning as the cotangent of the final state:
//!
//! ```text
//! dS += scale q'_t do_tᵀ     dq'_t = scale S_t do_t     dk'_t = dS v'_t     dv'_t = dSᵀ k'_t
//! dl_t = e^{l_t} ⟨S_{t-1}, dS⟩                          dS = e^{l_t} dS
//! ```
//!
//! which ends as the cotangent of the initial state.

use super::attention::{Attention, Gradients};
use super::function::{Function, Scratch, Site};
use super::functions::Vectors;
use super::number::{Number, add_scaled, dot};
use super::rows::Key;
use super::tensors::Tensors;
use crate::problem::Problem;
use crate::role::Role;

/// The recurrence of one batch entry and query head.
struct Head {
    batch: usize,
    head: usize,
    head_kv: usize,
}

impl Head {
    fn each(problem: &Problem) -> impl Iterator<Item = Self> {
        let (heads, group) = (problem.heads(), problem.heads_per_kv());
        (0..problem.batch() * heads).map(move |number| {
            let (batch, head) = (number / heads, number % heads);
            Self { batch, head, head_kv: head / group }
        })
    }

    /// The place of the state among all.
    const fn number(&self, problem: &Problem) -> usize {
        self.batch * problem.heads() + self.head
    }

    /// The places of a token's query, and of its key and value, among all.
    fn vectors<T: Number>(&self, attention: &Attention<'_, T>, token: usize) -> (usize, usize) {
        let query = (self.batch * attention.keys.tokens + token) * attention.problem.heads() + self.head;
        (query, attention.keys.vector(self.batch, token, self.head_kv))
    }

    /// The site of a token, which is the query and the key of the decay.
    fn site<'k, T>(&self, problem: &Problem, token: &'k Key) -> Site<'k, T> {
        Site {
            batch: self.batch,
            head: self.head,
            head_kv: self.head_kv,
            row: self.number(problem),
            query: token.number,
            query_at: token.at,
            keys: std::slice::from_ref(token),
            scores: &[],
            x: &[],
            stages: &[],
        }
    }
}

impl<T: Number> Attention<'_, T> {
    /// `output` and `final_state` of a recurrence, from its state before the first token.
    pub(super) fn recur(&self, decay: &Function, initial: &[T]) -> Tensors<T> {
        let (dim, dim_v) = (self.problem.head_dim(), self.problem.head_dim_v());
        let scale = T::of(self.problem.scale());
        let mut state = initial.to_vec();
        let mut output = vec![T::of(0.0); self.vectors[0].len() / dim * dim_v];
        let mut scratch = Scratch::default();
        for head in Head::each(self.problem) {
            let place = head.number(self.problem) * dim * dim_v;
            let state = &mut state[place..place + dim * dim_v];
            for token in 0..self.keys.tokens {
                let (query, key) = head.vectors(self, token);
                let factor = self.decay(decay, &head, token, &mut scratch).exp();
                self.step(state, factor, key);
                let output = &mut output[query * dim_v..(query + 1) * dim_v];
                for (lane, &q) in self.vector(Vectors::Queries, query).iter().enumerate() {
                    add_scaled(output, scale * q, &state[lane * dim_v..(lane + 1) * dim_v]);
                }
            }
        }
        let mut results = Tensors::default();
        results.insert(Role::Output, output);
        results.insert(Role::FinalState, state);
        results
    }

    /// `l_t`, left evaluated in `scratch`.
    fn decay(&self, decay: &Function, head: &Head, token: usize, scratch: &mut Scratch<T>) -> T {
        let token = Key::token(token, [token, 0, 0]);
        decay.evaluate(&head.site(self.problem, &token), 1, &self.captures, scratch);
        decay.numbers(scratch).fold(T::of(0.0), |_, number| number)
    }

    /// `S = factor S + k' v'ᵀ`.
    fn step(&self, state: &mut [T], factor: T, key: usize) {
        let value = self.vector(Vectors::Values, key);
        for (row, &k) in state.chunks_exact_mut(value.len()).zip(self.vector(Vectors::Keys, key)) {
            for (s, &v) in row.iter_mut().zip(value) {
                *s = factor * *s + k * v;
            }
        }
    }

    /// The gradient of every input of a recurrence.
    pub(super) fn recur_backward(
        &self,
        decay: &Function,
        initial: &[T],
        grad_output: &[T],
        grad_final: &[T],
    ) -> Tensors<T> {
        let (dim, dim_v) = (self.problem.head_dim(), self.problem.head_dim_v());
        let (size, tokens) = (dim * dim_v, self.keys.tokens);
        let scale = T::of(self.problem.scale());
        let mut gradients = Gradients::zeros(self);
        let mut grad_state = grad_final.to_vec();
        let mut scratch = Scratch::default();
        for head in Head::each(self.problem) {
            let place = head.number(self.problem) * size;
            // The state before every token, and behind the last.
            let mut states = initial[place..place + size].to_vec();
            let mut factors = Vec::with_capacity(tokens);
            for token in 0..tokens {
                let factor = self.decay(decay, &head, token, &mut scratch).exp();
                factors.push(factor);
                states.extend_from_within(token * size..);
                self.step(&mut states[(token + 1) * size..], factor, head.vectors(self, token).1);
            }
            let grad_state = &mut grad_state[place..place + size];
            for token in (0..tokens).rev() {
                let (query, key) = head.vectors(self, token);
                let (before, state) = states[token * size..(token + 2) * size].split_at(size);
                let grad_output = &grad_output[query * dim_v..(query + 1) * dim_v];
                let rows = |lane: usize| lane * dim_v..(lane + 1) * dim_v;
                for (lane, &q) in self.vector(Vectors::Queries, query).iter().enumerate() {
                    let of_query = gradients.vector(Vectors::Queries, self.problem, query);
                    of_query[lane] = of_query[lane] + scale * dot(&state[rows(lane)], grad_output);
                    add_scaled(&mut grad_state[rows(lane)], scale * q, grad_output);
                }
                for (lane, &k) in self.vector(Vectors::Keys, key).iter().enumerate() {
                    let grad_row = &grad_state[rows(lane)];
                    let of_key = gradients.vector(Vectors::Keys, self.problem, key);
                    of_key[lane] = of_key[lane] + dot(grad_row, self.vector(Vectors::Values, key));
                    add_scaled(gradients.vector(Vectors::Values, self.problem, key), k, grad_row);
                }
                let grad_decay = factors[token] * dot(before, grad_state);
                self.decay(decay, &head, token, &mut scratch);
                let load = |leaf, cotangent| gradients.load(leaf, cotangent);
                decay.pull(&mut scratch, std::iter::once(Some(grad_decay)), load);
                grad_state.iter_mut().for_each(|s| *s = factors[token] * *s);
            }
        }
        let mut results = self.gradients(gradients);
        results.insert(Role::GradInitialState, grad_state);
        results
    }
}
