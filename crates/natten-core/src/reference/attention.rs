//! Attention of a program, row by row. For a query `i` with visible keys `j` (those of its window, then the additional
//! ones), `q'`, `k'` and `v'` being what the program's vector functions make of queries, keys and values:
//!
//! ```text
//! s_ij = scale ⟨q'_i, k'_j⟩ + rpb[offset(i, j)]     x_ij = score(s_ij)      j is kept where mask(i, j)
//! ρ_ik = reduce_k over j of f_k(x_ij)               w_ij = weight(x_ij, ρ_i)
//! o_i  = Σ_j w_ij post_ij v'_j                      l_i = the first ρ that is a logsumexp
//! ```
//!
//! Additional keys have neither bias, score function nor mask: `x_ij = s_ij`. The gradients, with `g_ij = ⟨do_i, v'_j⟩`
//! and cotangents written `d`:
//!
//! ```text
//! dρ_ik = Σ_j g_ij post_ij ∂w_ij/∂ρ_ik   + dl_i for the logsumexp
//! dx_ij = g_ij post_ij ∂w_ij/∂x_ij + Σ_k dρ_ik ∂ρ_ik/∂f_k(x_ij) f_k'(x_ij)       ds_ij = dx_ij score'(s_ij)
//! dq'_i = scale Σ_j ds_ij k'_j     dk'_j = scale Σ_i ds_ij q'_i     dv'_j = Σ_i w_ij post_ij do_i     drpb = Σ ds_ij
//! ```
//!
//! with `∂ρ/∂f` 1 for a sum, `exp(f - ρ)` for a logsumexp, and 1 for everything that equals an extreme; and a captured
//! element gets, wherever it is loaded, what the expression around it passes on. A backward pass that has the forward's
//! results uses them: `l`, and where `w = a(x) β(ρ)` also `Δ_i = ⟨do_i, o_i⟩` by `dρ_ik = Δ_i ∂ ln β/∂ρ_ik`, which is
//! the same sum.
//!
//! A row that keeps no key, or a logsumexp of which is -inf, has output 0, logsumexp -inf and gradients 0. NaN and
//! infinity otherwise go where this arithmetic takes them.

use super::function::{Captured, Leaf, Scratch};
use super::functions::{Functions, Vectors};
use super::number::{Number, add_scaled, dot, sum};
use super::rows::{Key, Keys, Row, for_each_row};
use super::tensors::{Inputs, Tensors};
use crate::problem::Problem;
use crate::program::Reduce;
use crate::role::Role;

/// The problem, its functions, and the tensors that scores and values are made of.
pub(super) struct Attention<'p, T> {
    pub(super) problem: &'p Problem,
    pub(super) functions: Functions,
    pub(super) captures: Vec<Captured<T>>,
    pub(super) keys: Keys,
    /// As given: `query`, `key` and then `additional_key`, `value` and then `additional_value`.
    pub(super) given: [Vec<T>; 3],
    /// `q'`, `k'` and `v'`.
    pub(super) vectors: [Vec<T>; 3],
    rpb: Vec<T>,
}

/// The cotangents of what an operation was given.
pub(super) struct Gradients<T> {
    /// Of `q'`, `k'` and `v'`.
    pub(super) vectors: [Vec<T>; 3],
    rpb: Vec<T>,
    /// Of the captured tensors of floats.
    pub(super) captures: Vec<Vec<T>>,
}

/// A row on its way from scores to weights.
struct Values<T> {
    /// The keys that count: of the window, then the additional ones.
    kept: Vec<Key>,
    of_window: usize,
    scores: Vec<T>,
    modified: Vec<T>,
    stages: Vec<T>,
}

impl<'p, T: Number> Attention<'p, T> {
    pub(super) fn new(problem: &'p Problem, inputs: &Inputs) -> Self {
        let functions = Functions::of(problem);
        let captures = inputs.captures(problem);
        let both = |role, additional| [inputs.get(role), inputs.get(additional)].concat();
        let given = [
            inputs.get(Role::Query),
            both(Role::Key, Role::AdditionalKey),
            both(Role::Value, Role::AdditionalValue),
        ];
        let [query, key, value] = given.clone();
        let vectors = [
            functions.apply(Vectors::Queries, problem, &captures, query),
            functions.apply(Vectors::Keys, problem, &captures, key),
            functions.apply(Vectors::Values, problem, &captures, value),
        ];
        let keys = Keys::of(problem);
        Self { problem, functions, captures, keys, given, vectors, rpb: inputs.get(Role::Rpb) }
    }

    /// A vector of the query, the key or the value of a pair.
    pub(super) fn vector(&self, which: Vectors, number: usize) -> &[T] {
        let dim = which.dim(self.problem);
        &self.vectors[which as usize][number * dim..(number + 1) * dim]
    }

    fn key_vector(&self, row: &Row<'_>, key: &Key) -> usize {
        self.keys.vector(row.batch, key.number, row.head_kv)
    }

    /// `s`.
    pub(super) fn score(&self, row: &Row<'_>, key: &Key) -> T {
        let query = self.vector(Vectors::Queries, row.vector);
        let key_vector = self.vector(Vectors::Keys, self.key_vector(row, key));
        let score = T::of(self.problem.scale()) * dot(query, key_vector);
        match self.bias(row, key) {
            Some(entry) => score + self.rpb[entry],
            None => score,
        }
    }

    /// The element of `rpb` that is added to a pair's score.
    pub(super) fn bias(&self, row: &Row<'_>, key: &Key) -> Option<usize> {
        let entries = self.rpb.len() / self.problem.heads();
        (!key.is_additional && entries > 0).then_some(row.head * entries + key.bias)
    }

    /// The row up to its stages, the logsumexp as given where it is; None where the row is dead.
    fn values(&self, row: &Row<'_>, logsumexp: Option<T>, scratch: &mut Scratch<T>) -> Option<Values<T>> {
        let Functions { mask, score, stages: functions, logsumexp: at, .. } = &self.functions;
        let mut kept = row.keys.to_vec();
        if let Some(mask) = mask {
            let site = row.site(self.problem, row.keys, &[], &[], &[]);
            mask.evaluate(&site, row.keys.len(), &self.captures, scratch);
            let mut holds = mask.conditions(scratch);
            kept.retain(|key| holds.next() == Some(true) || key.is_additional);
        }
        let of_window = kept.iter().filter(|key| !key.is_additional).count();
        let scores: Vec<T> = kept.iter().map(|key| self.score(row, key)).collect();
        let site = row.site(self.problem, &kept, &scores, &[], &[]);
        score.evaluate(&site, of_window, &self.captures, scratch);
        let modified: Vec<T> = score.numbers(scratch).chain(scores[of_window..].iter().copied()).collect();
        let mut stages = Vec::new();
        for (k, (reduce, function)) in functions.iter().enumerate() {
            let stage = logsumexp.filter(|_| *at == Some(k)).unwrap_or_else(|| {
                let site = row.site(self.problem, &kept, &[], &modified, &[]);
                function.evaluate(&site, kept.len(), &self.captures, scratch);
                reduced(*reduce, &function.numbers(scratch).collect::<Vec<T>>())
            });
            if *reduce == Reduce::Lse && stage.value() == f64::NEG_INFINITY {
                return None;
            }
            stages.push(stage);
        }
        (!kept.is_empty()).then_some(Values { kept, of_window, scores, modified, stages })
    }

    /// The weight of every kept key, and what it is multiplied with, where the program has that.
    fn weights(&self, row: &Row<'_>, values: &Values<T>, scratch: &mut Scratch<T>) -> [Vec<T>; 2] {
        let Values { kept, modified, stages, .. } = values;
        let site = row.site(self.problem, kept, &[], modified, stages);
        [Some(&self.functions.weight), self.functions.post.as_ref()].map(|function| match function {
            Some(function) => {
                function.evaluate(&site, kept.len(), &self.captures, scratch);
                function.numbers(scratch).collect()
            }
            None => Vec::new(),
        })
    }

    /// `output` and `logsumexp`.
    pub(super) fn forward(&self) -> Tensors<T> {
        let dim = self.problem.head_dim_v();
        let rows = self.problem.shape(Role::Logsumexp).iter().product();
        let mut output = vec![T::of(0.0); rows * dim];
        let mut logsumexp = vec![T::of(f64::NEG_INFINITY); rows];
        let mut scratch = Scratch::default();
        for_each_row(self.problem, |row| {
            let number = row.vector;
            let Some(values) = self.values(row, None, &mut scratch) else { return };
            if let Some(k) = self.functions.logsumexp {
                logsumexp[number] = values.stages[k];
            }
            let [weights, posts] = self.weights(row, &values, &mut scratch);
            let output = &mut output[number * dim..(number + 1) * dim];
            for (at, key) in values.kept.iter().enumerate() {
                let weight = posts.get(at).map_or(weights[at], |&post| weights[at] * post);
                add_scaled(output, weight, self.vector(Vectors::Values, self.key_vector(row, key)));
            }
        });
        let mut results = Tensors::default();
        results.insert(Role::Output, output);
        results.insert(Role::Logsumexp, logsumexp);
        results
    }

    /// The gradient of every input, from `grad_output` and `grad_logsumexp`; `output` and `logsumexp` are those of the
    /// forward pass, or empty.
    pub(super) fn backward(
        &self,
        grad_output: &[T],
        grad_logsumexp: &[T],
        output: &[T],
        logsumexp: &[T],
    ) -> Tensors<T> {
        let dim = self.problem.head_dim_v();
        let mut gradients = Gradients::zeros(self);
        let mut scratch = Scratch::default();
        for_each_row(self.problem, |row| {
            let number = row.vector;
            let Some(values) = self.values(row, logsumexp.get(number).copied(), &mut scratch) else { return };
            let elements = number * dim..(number + 1) * dim;
            let grad_output = &grad_output[elements.clone()];
            let delta = output.get(elements).map(|output| dot(grad_output, output));
            self.pull_row(
                row,
                &values,
                grad_output,
                delta,
                grad_logsumexp[number],
                &mut gradients,
                &mut scratch,
            );
        });
        self.gradients(gradients)
    }

    #[allow(clippy::too_many_arguments, reason = "a row's cotangents, and where they go")]
    fn pull_row(
        &self,
        row: &Row<'_>,
        values: &Values<T>,
        grad_output: &[T],
        delta: Option<T>,
        grad_logsumexp: T,
        gradients: &mut Gradients<T>,
        scratch: &mut Scratch<T>,
    ) {
        let Functions { score, stages: functions, weight, post, logsumexp, log_derivatives, .. } =
            &self.functions;
        let captures = &self.captures;
        let Values { kept, of_window, scores, modified, stages } = values;
        let lanes = kept.len();
        let [weights, posts] = self.weights(row, values, scratch);
        let mut grad_modified: Vec<Option<T>> = vec![None; lanes];
        let mut grad_stages = vec![T::of(0.0); stages.len()];
        let mut grad_weights = Vec::with_capacity(lanes);
        for (at, key) in kept.iter().enumerate() {
            let value = self.key_vector(row, key);
            grad_weights.push(dot(grad_output, self.vector(Vectors::Values, value)));
            let weight = posts.get(at).map_or(weights[at], |&post| weights[at] * post);
            add_scaled(gradients.vector(Vectors::Values, self.problem, value), weight, grad_output);
        }
        let site = row.site(self.problem, kept, scores, modified, stages);
        if let Some(post) = post {
            // It was the last to be evaluated.
            let cotangents = grad_weights.iter().zip(&weights).map(|(&grad, &weight)| Some(grad * weight));
            post.pull(scratch, cotangents, |leaf, cotangent| gradients.load(leaf, cotangent));
            grad_weights.iter_mut().zip(&posts).for_each(|(grad, &post)| *grad = *grad * post);
            weight.evaluate(&site, lanes, captures, scratch);
        }
        weight.pull(scratch, grad_weights.into_iter().map(Some), |leaf, cotangent| match leaf {
            Leaf::X { lane } => grad_modified[lane] = sum(grad_modified[lane], Some(cotangent)),
            Leaf::Stage(k) => grad_stages[k] = grad_stages[k] + cotangent,
            leaf => gradients.load(leaf, cotangent),
        });
        if let (Some(delta), Some(log_derivatives)) = (delta, log_derivatives) {
            // No log derivative depends on the key.
            for (grad, function) in grad_stages.iter_mut().zip(log_derivatives) {
                function.evaluate(&site, 1, captures, scratch);
                *grad = function.numbers(scratch).fold(delta, |delta, of_factor| delta * of_factor);
            }
        }
        if let Some(k) = *logsumexp {
            grad_stages[k] = grad_stages[k] + grad_logsumexp;
        }
        for (k, (reduce, function)) in functions.iter().enumerate() {
            function.evaluate(&site, lanes, captures, scratch);
            let grad = |element| share(*reduce, element, stages[k]).map(|share| grad_stages[k] * share);
            let cotangents: Vec<Option<T>> = function.numbers(scratch).map(grad).collect();
            function.pull(scratch, cotangents.into_iter(), |leaf, cotangent| match leaf {
                Leaf::X { lane } => grad_modified[lane] = sum(grad_modified[lane], Some(cotangent)),
                leaf => gradients.load(leaf, cotangent),
            });
        }
        let mut grad_scores: Vec<Option<T>> = vec![None; *of_window];
        score.evaluate(&site, *of_window, captures, scratch);
        score.pull(scratch, grad_modified[..*of_window].iter().copied(), |leaf, cotangent| match leaf {
            Leaf::Score { lane } => grad_scores[lane] = sum(grad_scores[lane], Some(cotangent)),
            leaf => gradients.load(leaf, cotangent),
        });
        grad_scores.extend_from_slice(&grad_modified[*of_window..]);
        for (key, grad) in kept.iter().zip(grad_scores) {
            if let Some(grad) = grad {
                self.pull_score(row, key, grad, gradients);
            }
        }
    }

    /// What the cotangent of `s` gives to the query, the key and the bias.
    pub(super) fn pull_score(&self, row: &Row<'_>, key: &Key, grad: T, gradients: &mut Gradients<T>) {
        let (query, key_vector) = (row.vector, self.key_vector(row, key));
        let scaled = T::of(self.problem.scale()) * grad;
        let of_query = gradients.vector(Vectors::Queries, self.problem, query);
        add_scaled(of_query, scaled, self.vector(Vectors::Keys, key_vector));
        let of_key = gradients.vector(Vectors::Keys, self.problem, key_vector);
        add_scaled(of_key, scaled, self.vector(Vectors::Queries, query));
        if let Some(entry) = self.bias(row, key) {
            gradients.rpb[entry] = gradients.rpb[entry] + grad;
        }
    }

    /// Results by role, from the cotangents of the vectors that the program's functions made.
    pub(super) fn gradients(&self, mut gradients: Gradients<T>) -> Tensors<T> {
        let mut results = Tensors::default();
        let roles = [
            (Vectors::Queries, Role::GradQuery, None),
            (Vectors::Keys, Role::GradKey, Some(Role::GradAdditionalKey)),
            (Vectors::Values, Role::GradValue, Some(Role::GradAdditionalValue)),
        ];
        for (which, role, additional) in roles {
            let cotangents = std::mem::take(&mut gradients.vectors[which as usize]);
            let (problem, given) = (self.problem, &self.given[which as usize]);
            let load = |number, element, cotangent| {
                gradients.load(Leaf::Captured { number, element }, cotangent);
            };
            let mut of_given = self.functions.pull(which, problem, &self.captures, given, cotangents, load);
            if let Some(additional) = additional {
                let of_grid = (self.keys.of_grid() * which.dim(problem)).min(of_given.len());
                results.insert(additional, of_given.split_off(of_grid));
            }
            results.insert(role, of_given);
        }
        results.insert(Role::GradRpb, gradients.rpb);
        for (number, of_capture) in (0..).zip(gradients.captures) {
            results.insert(Role::GradCapture(number), of_capture);
        }
        results
    }
}

impl<T: Number> Gradients<T> {
    pub(super) fn zeros(attention: &Attention<'_, T>) -> Self {
        let zeros = |len: usize| vec![T::of(0.0); len];
        Self {
            vectors: attention.vectors.each_ref().map(|vectors| zeros(vectors.len())),
            rpb: zeros(attention.rpb.len()),
            captures: attention
                .captures
                .iter()
                .map(|capture| match capture {
                    Captured::Numbers(numbers) => zeros(numbers.len()),
                    Captured::Integers(_) => Vec::new(),
                })
                .collect(),
        }
    }

    /// The gradient of a vector.
    pub(super) fn vector(&mut self, which: Vectors, problem: &Problem, number: usize) -> &mut [T] {
        let dim = which.dim(problem);
        &mut self.vectors[which as usize][number * dim..(number + 1) * dim]
    }

    /// Adds what a load passes on to the element that it reads.
    pub(super) fn load(&mut self, leaf: Leaf, cotangent: T) {
        if let Leaf::Captured { number, element } = leaf
            && let Some(sum) = self.captures[number].get_mut(element)
        {
            *sum = *sum + cotangent;
        }
    }
}

/// The reduction of a row's elements.
fn reduced<T: Number>(reduce: Reduce, elements: &[T]) -> T {
    let total = |elements: &mut dyn Iterator<Item = T>| elements.fold(T::of(0.0), |total, x| total + x);
    match reduce {
        Reduce::Lse => {
            let max = elements.iter().map(|x| x.value()).fold(f64::NEG_INFINITY, f64::max);
            let shift = T::of(if max == f64::NEG_INFINITY { 0.0 } else { max });
            let powers = total(&mut elements.iter().map(|&x| (x - shift).exp()));
            match powers.value() {
                0.0 => T::of(f64::NEG_INFINITY),
                _ => shift + powers.ln(),
            }
        }
        Reduce::Max | Reduce::Min => {
            let extreme = elements.iter().fold(reduce.identity(), |a, x| reduce.merge(a, x.value()));
            // The value once, the tangents of all that reach it.
            let slack =
                total(&mut elements.iter().filter(|x| x.value() == extreme).map(|&x| x - T::of(extreme)));
            if extreme.is_finite() { T::of(extreme) + slack } else { T::of(extreme) }
        }
        _ => total(&mut elements.iter().copied()),
    }
}

/// `∂ρ/∂f` of an element; none where the stage does not depend on it.
fn share<T: Number>(reduce: Reduce, element: T, stage: T) -> Option<T> {
    match reduce {
        Reduce::Lse => Some((element - stage).exp()),
        Reduce::Max | Reduce::Min => (element.value() == stage.value()).then(|| T::of(1.0)),
        _ => Some(T::of(1.0)),
    }
}
