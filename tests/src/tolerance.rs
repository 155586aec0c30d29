//! How far a right result may lie from the oracle's: a bound for every element, from a first-order analysis of the
//! roundings that no backend can avoid.
//!
//! # What is granted
//!
//! Inputs are rounded to the dtype before anybody sees them, and for the backward pass the oracle's own `output` and
//! `logsumexp`, rounded, are handed to the backend and to the oracle alike. So only the roundings of one operation are
//! left. With `u` the roundoff of the accumulator (f64 for f64, else f32), `e` that of the dtype, and `t` the error of
//! an underflow in the dtype (half the smallest f16; the smallest normal number of the others, since devices may flush):
//!
//! * sums run in the accumulator, in any order; `exp` and `ln` may be as inexact as WGSL allows them to be, `3 + 2|x|`
//!   and 3 units in the last place, and 2^-21 for logarithms near 0;
//! * weights `p` and score gradients `ds` may be rounded to the dtype before they enter the second matrix product;
//! * results are rounded to their dtype once.
//!
//! # Sums
//!
//! A sum of `n` terms rounds `n` partial sums, each by at most `u` of itself and with no bias, so its error is
//! `u sqrt(Σ partial² / 3)` in standard deviations. Two shapes of sums occur:
//!
//! * *Dot products* over `head_dim`, whose terms have random signs: partial sums walk randomly up to `‖a‖‖b‖/sqrt(D)`
//!   a step, so `Σ partial² = ‖a‖²‖b‖²/2` and the deviation is `0.41 u ‖a‖‖b‖`, for every `D`. The bound is ten
//!   deviations: `4 u ‖a‖‖b‖`. The growth with `D` is in the norms.
//! * *Sums over keys or queries*, `n` terms that may have one sign: partial sums grow linearly, `Σ partial² = n/3 ·
//!   total²`, and the deviation is `u sqrt(n)/3` of `A`, the sum of absolute values. The bound is nine deviations:
//!   `3 u sqrt(n) A`. The same covers the rescaling of an online softmax.
//!
//! # Forward
//!
//! ```text
//! r_ij = |scale| ‖q_i‖ ‖k_j‖        N = number of visible keys        m = max_j s_ij
//! ω_ij = u (4 r_ij + 3 |s_ij| + |b_ij| + 6 + 4 (m - s_ij))            relative error of the weight exp(s_ij - m)
//! W_i  = Σ_j p_ij ω_ij + 3 u sqrt(N)                                  relative error of their sum
//! |δo_id| <= Σ_j [p_ij (ω_ij + 3 u sqrt(N) + e) + t] |v_jd| + (W_i + 4u + e) |o_id| + t
//! |δl_i|  <= W_i + u (8 + 3 |m| + 7 ln N)
//! ```
//!
//! # Backward
//!
//! `l` is given, so the weight is `exp(s_ij - l_i)`, and `dp_ij = ⟨do_i, v_j⟩`, `Δ_i = ⟨do_i, o_i⟩ - dl_i`:
//!
//! ```text
//! π_ij  = u (4 r_ij + 3 |s_ij| + |b_ij| + 3 |l_i| + 6 + 4 |s_ij - l_i|)                  relative error of p_ij
//! η_ij  = u (4 ‖do_i‖ (‖v_j‖ + ‖o_i‖) + |dl_i| + 2 |Δ_i| + |dp_ij|)                      error of dp_ij - Δ_i
//! σ_ij  = p_ij [(π_ij + e + 2u) |dp_ij - Δ_i| + η_ij] + t (1 + |dp_ij - Δ_i|)            error of ds_ij
//! |δdq_id| <= |scale| Σ_j (σ_ij + 3 u sqrt(N_i) |ds_ij|) |k_jd| + (e + 2u) |dq_id| + t   N_i keys of query i
//! |δdk_jd| <= |scale| Σ_i (σ_ij + 3 u sqrt(M_j) |ds_ij|) |q_id| + (e + 2u) |dk_jd| + t   M_j queries of key j
//! |δdv_jd| <= Σ_i [p_ij (π_ij + e + 3 u sqrt(M_j)) + t] |do_id| + e |dv_jd| + t
//! |δdrpb|  <= Σ (σ_ij + 3 u sqrt(M) |ds_ij|) + e |drpb| + t                              M pairs of the entry
//! ```
//!
//! `M_j` counts the query heads of the key's group. Pairs of weight zero and rows that see nothing add no error: their
//! results are exact zeros. In f64 the oracle makes the same errors, so the bounds are doubled. Errors of single pairs are added up as if they all had one sign, which leaves room; it is
//! the reason that no further factor stands before any of these bounds.
//!
//! NATTEN compares with fixed tolerances ([`NATTEN`]); on its own data (unit normal inputs, `grad_output` times 0.05)
//! every bound is smaller, and a test says so.

use natten_core::{DType, Problem, Role};

pub use crate::pairs::Numbers;
use crate::pairs::{Pair, dot, for_each_row, norm};

/// The absolute tolerances of NATTEN's own tests, by dtype and result, for unit normal inputs and a `grad_output` of
/// deviation 0.05. It does not compare `logsumexp`.
pub const NATTEN: [(DType, Role, f64); 12] = [
    (DType::F32, Role::Output, 1e-4),
    (DType::F32, Role::GradQuery, 1e-2),
    (DType::F32, Role::GradKey, 1e-4),
    (DType::F32, Role::GradValue, 1e-4),
    (DType::F16, Role::Output, 1e-2),
    (DType::F16, Role::GradQuery, 1e-2),
    (DType::F16, Role::GradKey, 1e-2),
    (DType::F16, Role::GradValue, 1e-2),
    (DType::Bf16, Role::Output, 5e-2),
    (DType::Bf16, Role::GradQuery, 1e-2),
    (DType::Bf16, Role::GradKey, 1e-2),
    (DType::Bf16, Role::GradValue, 1e-2),
];

/// The three sources of error, by dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roundoff {
    /// Of the accumulator.
    pub(crate) u: f64,
    /// Of the dtype.
    pub(crate) e: f64,
    /// Of an underflow in the dtype.
    pub(crate) t: f64,
}

impl Roundoff {
    pub(crate) const fn of(dtype: DType) -> Self {
        let t = match dtype {
            DType::F64 => f64::MIN_POSITIVE,
            DType::F16 => 1.0 / (1u64 << 25) as f64,
            // bf16 has the exponents of f32.
            _ => f32::MIN_POSITIVE as f64,
        };
        Self { u: dtype.accumulator().roundoff(), e: dtype.roundoff(), t }
    }

    /// How many runs of the operation had these errors: the backend's, and in f64 the oracle's own as well.
    fn runs(self) -> f64 {
        if self.u == DType::F64.roundoff() { 2.0 } else { 1.0 }
    }

    /// The error of a sum of `n` terms, relative to the sum of their absolute values.
    fn sum(self, n: usize) -> f64 {
        3.0 * self.u * (n as f64).sqrt()
    }
}

/// The bounds of `output` and `logsumexp`. `numbers` holds the inputs as the backend gets them, and the oracle's
/// `output`.
pub fn forward(problem: &Problem, numbers: &Numbers) -> Numbers {
    let rounding = Roundoff::of(problem.dtype());
    let Roundoff { u, e, t } = rounding;
    let outputs = &numbers[&Role::Output];
    let (mut of_outputs, mut of_logsumexps) = (zeros(problem, Role::Output), zeros(problem, Role::Logsumexp));
    for_each_row(problem, numbers, |row| {
        let max = row.pairs.iter().map(|pair| pair.score).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.pairs.iter().map(|pair| (pair.score - max).exp()).sum();
        if !(total.is_finite() && total > 0.0) {
            return;
        }
        let sum = rounding.sum(row.pairs.len());
        let of_output = &mut of_outputs[row.output_range()];
        let mut of_total = sum;
        for pair in row.pairs {
            let weight = (pair.score - max).exp() / total;
            if weight == 0.0 {
                continue;
            }
            let of_weight = u * (of_score(pair) + 4.0 * (max - pair.score));
            of_total += weight * of_weight;
            add_abs(of_output, weight * (of_weight + sum + e) + t, pair.value);
        }
        for (bound, value) in of_output.iter_mut().zip(&outputs[row.output_range()]) {
            *bound += (of_total + 4.0 * u + e) * value.abs() + t;
        }
        let logarithms = 8.0 + 3.0 * max.abs() + 7.0 * (row.pairs.len() as f64).ln();
        of_logsumexps[row.index] = of_total + u * logarithms;
    });
    let bounds = [(Role::Output, of_outputs), (Role::Logsumexp, of_logsumexps)];
    bounds.map(|(role, bounds)| (role, scaled(bounds, rounding.runs()))).into()
}

/// The bounds of every gradient. `numbers` holds the inputs of the backward pass as the backend gets them, and the
/// oracle's gradients.
pub fn backward(problem: &Problem, numbers: &Numbers) -> Numbers {
    let rounding = Roundoff::of(problem.dtype());
    let Roundoff { u, e, t } = rounding;
    let scale = problem.scale().abs();
    // Where it is scale * ds that is rounded, its underflow counts as this much of ds.
    let underflow = if scale == 0.0 { t } else { t * scale.recip().max(1.0) };
    // No entry of the bias table is read more than once a query and batch entry.
    let rows_of_head = zeros(problem, Role::Logsumexp).len() / problem.heads();
    let of_entry = rounding.sum(rows_of_head);
    let (logsumexps, outputs) = (&numbers[&Role::Logsumexp], &numbers[&Role::Output]);
    let grad_outputs = &numbers[&Role::GradOutput];
    let grad_logsumexps = numbers.get(&Role::GradLogsumexp);
    let mut of_queries = zeros(problem, Role::GradQuery);
    let mut of_keys = [Role::GradKey, Role::GradAdditionalKey].map(|role| zeros(problem, role));
    let mut of_values = [Role::GradValue, Role::GradAdditionalValue].map(|role| zeros(problem, role));
    let mut of_biases = if problem.has_rpb() { zeros(problem, Role::GradRpb) } else { Vec::new() };
    for_each_row(problem, numbers, |row| {
        let logsumexp = logsumexps[row.index];
        if !logsumexp.is_finite() {
            return;
        }
        let (output, grad_output) = (&outputs[row.output_range()], &grad_outputs[row.output_range()]);
        let grad_logsumexp = grad_logsumexps.map_or(0.0, |grads| grads[row.index]);
        let delta = dot(grad_output, output) - grad_logsumexp;
        let norms = (norm(grad_output), norm(output));
        let of_query = &mut of_queries[row.query_range()];
        let over_keys = rounding.sum(row.pairs.len());
        for pair in row.pairs {
            let weight = (pair.score - logsumexp).exp();
            if weight == 0.0 {
                continue;
            }
            let of_weight =
                u * (of_score(pair) + 3.0 * logsumexp.abs() + 4.0 * (pair.score - logsumexp).abs());
            let along = dot(grad_output, pair.value);
            let difference = (along - delta).abs();
            let of_difference = u * (4.0 * norms.0 * (pair.value_norm + norms.1) + grad_logsumexp.abs())
                + u * (2.0 * delta.abs() + along.abs());
            let grad_score = weight * difference;
            let of_grad = (of_weight + e + 2.0 * u) * grad_score
                + weight * of_difference
                + underflow * (1.0 + difference);
            let over_queries = rounding.sum(pair.seen_by);

            add_abs(of_query, scale * (of_grad + over_keys * grad_score), pair.key);
            let of_key = &mut of_keys[pair.source][pair.key_range()];
            add_abs(of_key, scale * (of_grad + over_queries * grad_score), row.query);
            let of_value = &mut of_values[pair.source][pair.value_range()];
            add_abs(of_value, weight * (of_weight + e + over_queries) + t, grad_output);
            if let Some(entry) = pair.entry {
                of_biases[entry] += of_grad + of_entry * grad_score;
            }
        }
    });
    let [of_keys, of_additional_keys] = of_keys;
    let [of_values, of_additional_values] = of_values;
    let gradients = [
        (Role::GradQuery, of_queries),
        (Role::GradKey, of_keys),
        (Role::GradValue, of_values),
        (Role::GradRpb, of_biases),
        (Role::GradAdditionalKey, of_additional_keys),
        (Role::GradAdditionalValue, of_additional_values),
    ];
    let offered = gradients.into_iter().filter(|(role, _)| numbers.contains_key(role));
    let rounded = offered.map(|(role, mut bounds)| {
        for (bound, value) in bounds.iter_mut().zip(&numbers[&role]) {
            *bound += (e + 2.0 * u) * value.abs() + t;
        }
        (role, scaled(bounds, rounding.runs()))
    });
    rounded.collect()
}

/// The relative error of `exp(score)`, in units of `u`, beside that which depends on what the exponent is relative to.
fn of_score(pair: &Pair<'_>) -> f64 {
    4.0 * pair.reach + 3.0 * pair.score.abs() + pair.bias.abs() + 6.0
}

fn scaled(mut bounds: Vec<f64>, factor: f64) -> Vec<f64> {
    bounds.iter_mut().for_each(|bound| *bound *= factor);
    bounds
}

fn zeros(problem: &Problem, role: Role) -> Vec<f64> {
    vec![0.0; problem.shape(role).iter().product()]
}

fn add_abs(sums: &mut [f64], factor: f64, values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += factor * value.abs();
    }
}

#[cfg(test)]
mod tests {
    use natten_core::OpRequest;
    use natten_core::geometry::AxisParams;

    use super::*;
    use crate::expected::Expected;
    use crate::features::{axis, case, windows};

    /// Every bound of both passes, on NATTEN's data.
    fn bounds(axes: &[AxisParams], dtype: DType, head_dim: usize) -> Numbers {
        let case = case("tolerance", windows(axes, dtype).heads(2).head_dim(head_dim));
        let data = case.data.clone().deviation(Role::GradOutput, 0.05);
        let case = case.data(data);
        let expected = Expected::new(&case);
        let mut bounds = expected.answer(&OpRequest::forward(&case.problem)).unwrap().bounds;
        bounds.extend(expected.answer(&OpRequest::backward(&case.problem)).unwrap().bounds);
        bounds
    }

    /// On NATTEN's own tuples 8, 11, 14, 20, 24 and 35, uncut.
    #[test]
    fn every_bound_is_tighter_than_nattens() {
        let tuples: [(&[AxisParams], usize); 6] = [
            (&[axis(128, 61, 33, 1, false)], 128),
            (&[axis(67, 8, 1, 1, false)], 32),
            (&[axis(256, 128, 127, 1, true)], 128),
            (&[axis(19, 8, 1, 2, false), axis(29, 8, 1, 3, false)], 128),
            (&[axis(40, 3, 1, 1, true), axis(20, 7, 1, 1, false)], 32),
            (&[axis(13, 3, 2, 3, false), axis(11, 4, 3, 2, true), axis(9, 3, 3, 2, false)], 32),
        ];
        for (axes, head_dim) in tuples {
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let bounds = bounds(axes, dtype, head_dim);
                for (_, role, theirs) in NATTEN.into_iter().filter(|(of, ..)| *of == dtype) {
                    let largest = bounds[&role].iter().copied().fold(0.0, f64::max);
                    assert!(
                        largest < theirs / 2.0,
                        "{dtype} {role} {axes:?}: {largest:e}, NATTEN {theirs:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn bounds_shrink_with_the_dtype() {
        let axes = [axis(40, 7, 1, 1, false)];
        let largest = |dtype| bounds(&axes, dtype, 16)[&Role::Output].iter().copied().fold(0.0, f64::max);
        let [f64, f32, f16, bf16] = DType::FLOATS.map(largest);
        assert!(f64 * 1e8 < f32 && f32 * 100.0 < f16 && f16 * 4.0 < bf16, "{f64:e} {f32:e} {f16:e} {bf16:e}");
        assert!(f32 < 2e-5 && bf16 < 0.02, "{f32:e} {bf16:e}");
    }
}
