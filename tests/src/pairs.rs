//! Walks the visible pairs of a problem with their scores, for the error bounds. Who sees whom comes from the axes of
//! `natten-core`.

use std::collections::BTreeMap;
use std::ops::Range;

use natten_core::geometry::{Axis, MAX_RANK};
use natten_core::{Problem, Role};

/// Row-major f64 numbers by role.
pub type Numbers = BTreeMap<Role, Vec<f64>>;

/// One query of one head and batch entry, and everything that it sees.
pub(crate) struct Row<'a> {
    /// Its row-major index among the rows, that is in `logsumexp`.
    pub(crate) index: usize,
    pub(crate) query: &'a [f64],
    pub(crate) pairs: &'a [Pair<'a>],
    dim_v: usize,
}

/// A key that a query sees.
pub(crate) struct Pair<'a> {
    pub(crate) key: &'a [f64],
    pub(crate) value: &'a [f64],
    /// `scale ⟨q, k⟩ + bias`.
    pub(crate) score: f64,
    /// `|scale| ‖q‖ ‖k‖`.
    pub(crate) reach: f64,
    pub(crate) bias: f64,
    /// `‖v‖`.
    pub(crate) value_norm: f64,
    /// 0 for a key of the grid, 1 for an additional one.
    pub(crate) source: usize,
    /// The key's row-major index among the vectors of its tensor.
    vector: usize,
    /// The index in `rpb`.
    pub(crate) entry: Option<usize>,
    /// Queries, over the heads of the key's group, that see the key.
    pub(crate) seen_by: usize,
}

impl Row<'_> {
    pub(crate) fn query_range(&self) -> Range<usize> {
        self.index * self.query.len()..(self.index + 1) * self.query.len()
    }

    pub(crate) fn output_range(&self) -> Range<usize> {
        self.index * self.dim_v..(self.index + 1) * self.dim_v
    }
}

impl Pair<'_> {
    pub(crate) fn key_range(&self) -> Range<usize> {
        self.vector * self.key.len()..(self.vector + 1) * self.key.len()
    }

    pub(crate) fn value_range(&self) -> Range<usize> {
        self.vector * self.value.len()..(self.vector + 1) * self.value.len()
    }
}

/// Vectors of one length, one after the other, and their norms.
struct Vectors<'a> {
    data: &'a [f64],
    len: usize,
    norms: Vec<f64>,
}

impl<'a> Vectors<'a> {
    fn new(numbers: &'a Numbers, role: Role, len: usize) -> Self {
        let data = numbers.get(&role).map_or(&[][..], Vec::as_slice);
        Self { data, len, norms: data.chunks(len).map(norm).collect() }
    }

    fn get(&self, index: usize) -> &'a [f64] {
        &self.data[index * self.len..(index + 1) * self.len]
    }
}

/// A token that a query sees: its flat index, its offset's flat index in one head's bias table, the queries that see it.
struct Seen {
    token: usize,
    offset: usize,
    seen_by: usize,
}

/// Visits every row. `numbers` holds the inputs.
pub(crate) fn for_each_row(problem: &Problem, numbers: &Numbers, mut visit: impl FnMut(&Row<'_>)) {
    let axes = problem.neighborhood().axes();
    let queries: usize = axes.iter().map(Axis::query_len).product();
    let keys: usize = axes.iter().map(Axis::key_len).product();
    let additional = problem.additional_tokens();
    let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
    let query_vectors = Vectors::new(numbers, Role::Query, dim);
    let key_vectors = [Role::Key, Role::AdditionalKey].map(|role| Vectors::new(numbers, role, dim));
    let value_vectors = [Role::Value, Role::AdditionalValue].map(|role| Vectors::new(numbers, role, dim_v));
    let bias_table = numbers.get(&Role::Rpb).map_or(&[][..], Vec::as_slice);
    let mut pairs = Vec::new();
    for token in 0..queries {
        let seen = visible(axes, token);
        for (batch, head) in
            (0..problem.batch() * problem.heads()).map(|i| (i / problem.heads(), i % problem.heads()))
        {
            let index = (batch * queries + token) * problem.heads() + head;
            let query = query_vectors.get(index);
            let reach = problem.scale().abs() * query_vectors.norms[index];
            let pair = |source: usize, token: usize, entry: Option<usize>, seen_by: usize| {
                let vector = token * problem.heads_kv() + head / problem.heads_per_kv();
                let key = key_vectors[source].get(vector);
                let bias = entry.map_or(0.0, |entry| bias_table[entry]);
                Pair {
                    key,
                    value: value_vectors[source].get(vector),
                    score: problem.scale() * dot(query, key) + bias,
                    reach: reach * key_vectors[source].norms[vector],
                    bias,
                    value_norm: value_vectors[source].norms[vector],
                    source,
                    vector,
                    entry,
                    seen_by: seen_by * problem.heads_per_kv(),
                }
            };
            pairs.clear();
            pairs.extend(seen.iter().map(|seen| {
                let entries = bias_table.len() / problem.heads();
                let entry = problem.has_rpb().then_some(head * entries + seen.offset);
                pair(0, batch * keys + seen.token, entry, seen.seen_by)
            }));
            pairs.extend((0..additional).map(|n| pair(1, batch * additional + n, None, queries)));
            visit(&Row { index, query, pairs: &pairs, dim_v });
        }
    }
}

/// The tokens that a query sees, in row-major order.
fn visible(axes: &[Axis; MAX_RANK], query: usize) -> Vec<Seen> {
    let mut seen = vec![Seen { token: 0, offset: 0, seen_by: 1 }];
    let mut rest: usize = axes.iter().map(Axis::query_len).product();
    for axis in axes {
        rest /= axis.query_len();
        let (group, position) = axis.locate(query / rest % axis.query_len());
        // Only a window has a bias table, and only inside a window is the offset sure to be one of its entries.
        let kernel_size = axis.params().map(|params| params.kernel_size);
        let table = kernel_size.map_or(1, |kernel_size| 2 * kernel_size - 1);
        let entry = |key: usize| kernel_size.map_or(0, |kernel_size| kernel_size - 1 + key - position);
        let mut next = Vec::with_capacity(seen.len() * axis.window_len());
        for outer in &seen {
            next.extend(axis.window(group, position).map(|key| Seen {
                token: outer.token * axis.key_len() + axis.token(group, key),
                offset: outer.offset * table + entry(key),
                seen_by: outer.seen_by * axis.queries_of(group, key).len(),
            }));
        }
        seen = next;
    }
    seen
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;

    #[test]
    fn pairs_are_those_that_the_neighborhood_has() {
        let params = [AxisParams::new(6, 4).stride(2), AxisParams::new(7, 3).dilation(2).causal(true)];
        let window = Neighborhood::new(&params).unwrap();
        let problem = Problem::builder(window.clone(), DType::F64)
            .heads(4)
            .heads_kv(2)
            .additional_tokens(2)
            .relative_positional_bias(true)
            .build()
            .unwrap();
        let numbers: Numbers =
            [Role::Query, Role::Key, Role::Value, Role::Rpb, Role::AdditionalKey, Role::AdditionalValue]
                .into_iter()
                .map(|role| (role, (0..problem.shape(role).iter().product()).map(|i| i as f64).collect()))
                .collect();
        let mut count = 0u128;
        let mut seen_by = vec![0; 6 * 7 * 2];
        let mut promised = seen_by.clone();
        for_each_row(&problem, &numbers, |row| {
            let token = row.index / 4;
            count += row.pairs.len() as u128;
            let (grid, additional) = row.pairs.split_at(row.pairs.len() - 2);
            for pair in grid {
                let key = pair.vector / 2;
                assert!(window.sees([0, token / 7, token % 7], [0, key / 7, key % 7]));
                assert_eq!(pair.score, row.query[0] * pair.key[0] + pair.bias);
                seen_by[pair.vector] += 1;
                promised[pair.vector] = pair.seen_by;
                let entry = [(3 + key / 7 - token / 7), (2 + key % 7 / 2 - token % 7 / 2)];
                assert_eq!(pair.entry, Some((row.index % 4 * 7 + entry[0]) * 5 + entry[1]));
            }
            assert!(additional.iter().all(|pair| pair.seen_by == 42 * 2 && pair.entry.is_none()));
        });
        assert_eq!(count, problem.useful_pairs());
        assert_eq!(seen_by, promised);
    }
}
