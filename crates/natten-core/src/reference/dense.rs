//! The formulas, pair by pair.
//!
//! For a query `i` with visible keys `j` (those of its window, then the additional ones):
//!
//! ```text
//! s_ij = scale ⟨q_i, k_j⟩ + rpb[offset(i, j)]      (no bias for additional keys)
//! l_i  = ln Σ_j exp(s_ij)        p_ij = exp(s_ij - l_i)        o_i = Σ_j p_ij v_j
//! Δ_i  = ⟨do_i, o_i⟩ - dl_i      ds_ij = p_ij (⟨do_i, v_j⟩ - Δ_i)
//! dq_i = scale Σ_j ds_ij k_j     dk_j = scale Σ_i ds_ij q_i     dv_j = Σ_i p_ij do_i     drpb[·] = Σ ds_ij
//! ```
//!
//! A row that sees no key, or only keys whose score is -inf, has output 0, logsumexp -inf and gradients 0. NaN and
//! infinity otherwise go where this arithmetic takes them.

use std::collections::BTreeMap;

use crate::geometry::Axis;
use crate::problem::Problem;
use crate::role::Role;

/// Row-major f64 tensors by role.
#[derive(Debug, Default)]
pub(super) struct Tensors(BTreeMap<Role, Vec<f64>>);

impl Tensors {
    pub(super) fn insert(&mut self, role: Role, values: Vec<f64>) {
        self.0.insert(role, values);
    }

    /// The tensor; empty where the operation has none.
    pub(super) fn get(&self, role: Role) -> &[f64] {
        self.0.get(&role).map_or(&[], Vec::as_slice)
    }

    fn zeros(problem: &Problem, roles: &[Role]) -> Self {
        Self(roles.iter().map(|&role| (role, vec![0.0; problem.shape(role).iter().product()])).collect())
    }

    fn row(&self, row: &Row) -> &[f64] {
        &self.get(row.role)[row.start..row.start + row.len]
    }

    /// `row += factor * values`.
    fn add(&mut self, row: &Row, factor: f64, values: &[f64]) {
        if let Some(tensor) = self.0.get_mut(&row.role) {
            for (sum, value) in tensor[row.start..row.start + row.len].iter_mut().zip(values) {
                *sum += factor * value;
            }
        }
    }
}

/// Where a vector lies: a query's, a key's, a value's, or one number of a table.
#[derive(Clone, Copy, Debug)]
struct Row {
    role: Role,
    start: usize,
    len: usize,
}

impl Row {
    fn gradient(self) -> Self {
        let role = Role::ALL.into_iter().find(|role| role.gradient_of() == Some(self.role));
        Self { role: role.unwrap_or(self.role), ..self }
    }
}

/// A key that a query sees.
#[derive(Clone, Copy, Debug)]
struct Visible {
    key: Row,
    value: Row,
    bias: Option<Row>,
}

/// One query of one head, and everything it sees.
struct Query {
    query: Row,
    output: Row,
    logsumexp: Row,
    keys: Vec<Visible>,
}

fn for_each_query(problem: &Problem, mut visit: impl FnMut(&Query)) {
    let axes = problem.neighborhood().axes();
    let queries = axes.map(|axis| axis.query_len());
    let keys = axes.map(|axis| axis.key_len());
    let (query_tokens, key_tokens) = (queries.iter().product::<usize>(), keys.iter().product::<usize>());
    let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
    for batch in 0..problem.batch() {
        for index in 0..query_tokens {
            let at = coordinates(index, queries);
            let seen = visible(axes, at);
            for head in 0..problem.heads() {
                let head_kv = head / problem.heads_per_kv();
                let row = |role, token: usize, tokens: usize, heads: usize, head: usize, len: usize| Row {
                    role,
                    start: ((batch * tokens + token) * heads + head) * len,
                    len,
                };
                let mut list: Vec<Visible> = seen
                    .iter()
                    .map(|(key, distance)| Visible {
                        key: row(Role::Key, flat(*key, keys), key_tokens, problem.heads_kv(), head_kv, dim),
                        value: row(
                            Role::Value,
                            flat(*key, keys),
                            key_tokens,
                            problem.heads_kv(),
                            head_kv,
                            dim_v,
                        ),
                        bias: problem.has_rpb().then(|| {
                            let table = axes.map(|axis| axis.window_len() * 2 - 1);
                            let entries: usize = table.iter().product();
                            let center = axes.map(|axis| axis.window_len() - 1);
                            let entry = std::array::from_fn(|a| center[a].wrapping_add_signed(distance[a]));
                            Row { role: Role::Rpb, start: head * entries + flat(entry, table), len: 1 }
                        }),
                    })
                    .collect();
                let additional = problem.additional_tokens();
                list.extend((0..additional).map(|n| Visible {
                    key: row(Role::AdditionalKey, n, additional, problem.heads_kv(), head_kv, dim),
                    value: row(Role::AdditionalValue, n, additional, problem.heads_kv(), head_kv, dim_v),
                    bias: None,
                }));
                visit(&Query {
                    query: row(Role::Query, index, query_tokens, problem.heads(), head, dim),
                    output: row(Role::Output, index, query_tokens, problem.heads(), head, dim_v),
                    logsumexp: row(Role::Logsumexp, index, query_tokens, problem.heads(), head, 1),
                    keys: list,
                });
            }
        }
    }
}

/// The tokens that a query sees, each with its distance in group coordinates, in row-major order.
fn visible(axes: &[Axis; 3], query: [usize; 3]) -> Vec<([usize; 3], [isize; 3])> {
    let along = |a: usize| -> Vec<(usize, isize)> {
        let axis = &axes[a];
        let (group, position) = axis.locate(query[a]);
        let distance = |key: usize| key.cast_signed() - position.cast_signed();
        axis.window(group, position).map(|key| (axis.token(group, key), distance(key))).collect()
    };
    let (zs, ys, xs) = (along(0), along(1), along(2));
    let mut list = Vec::with_capacity(zs.len() * ys.len() * xs.len());
    for &(z, dz) in &zs {
        for &(y, dy) in &ys {
            list.extend(xs.iter().map(|&(x, dx)| ([z, y, x], [dz, dy, dx])));
        }
    }
    list
}

fn coordinates(index: usize, shape: [usize; 3]) -> [usize; 3] {
    [index / (shape[1] * shape[2]), index / shape[2] % shape[1], index % shape[2]]
}

fn flat(at: [usize; 3], shape: [usize; 3]) -> usize {
    (at[0] * shape[1] + at[1]) * shape[2] + at[2]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn scores(problem: &Problem, inputs: &Tensors, query: &Query) -> Vec<f64> {
    query
        .keys
        .iter()
        .map(|seen| {
            let score = problem.scale() * dot(inputs.row(&query.query), inputs.row(&seen.key));
            seen.bias.map_or(score, |bias| score + inputs.row(&bias)[0])
        })
        .collect()
}

/// `output` and `logsumexp`.
pub(super) fn forward(problem: &Problem, inputs: &Tensors) -> Tensors {
    let mut results = Tensors::zeros(problem, &[Role::Output, Role::Logsumexp]);
    for_each_query(problem, |query| {
        let scores = scores(problem, inputs, query);
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shift = if max == f64::NEG_INFINITY { 0.0 } else { max };
        let weights: Vec<f64> = scores.iter().map(|score| (score - shift).exp()).collect();
        let total: f64 = weights.iter().sum();
        results.add(&query.logsumexp, 1.0, &[shift + total.ln()]);
        if total == 0.0 {
            return;
        }
        for (seen, weight) in query.keys.iter().zip(weights) {
            results.add(&query.output, weight / total, inputs.row(&seen.value));
        }
    });
    results
}

/// Every gradient that the problem has.
pub(super) fn backward(problem: &Problem, inputs: &Tensors) -> Tensors {
    let gradients: Vec<Role> = Role::ALL
        .into_iter()
        .filter(|role| role.gradient_of().is_some_and(|input| problem.has_input(input)))
        .collect();
    let mut results = Tensors::zeros(problem, &gradients);
    for_each_query(problem, |query| {
        let logsumexp = inputs.row(&query.logsumexp)[0];
        if logsumexp == f64::NEG_INFINITY {
            return;
        }
        let at = |role| Row { role, ..query.output };
        let grad_output = inputs.row(&at(Role::GradOutput));
        let grad_logsumexp =
            inputs.get(Role::GradLogsumexp).get(query.logsumexp.start).copied().unwrap_or(0.0);
        let delta = dot(grad_output, inputs.row(&query.output)) - grad_logsumexp;
        for (seen, score) in query.keys.iter().zip(scores(problem, inputs, query)) {
            let weight = (score - logsumexp).exp();
            let grad_score = weight * (dot(grad_output, inputs.row(&seen.value)) - delta);
            let scaled = problem.scale() * grad_score;
            results.add(&query.query.gradient(), scaled, inputs.row(&seen.key));
            results.add(&seen.key.gradient(), scaled, inputs.row(&query.query));
            results.add(&seen.value.gradient(), weight, grad_output);
            if let Some(bias) = seen.bias {
                results.add(&bias.gradient(), grad_score, &[1.0]);
            }
        }
    });
    results
}
