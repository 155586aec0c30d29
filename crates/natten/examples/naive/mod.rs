//! What the examples share: noise, attention written as its formula stands, and the comparison that ends each of them.
#![allow(dead_code, reason = "no example needs everything")]
#![allow(clippy::print_stdout, reason = "an example says what it found")]

use std::error::Error;

use ndarray::{Array, Array4, ArrayD, Dimension, ShapeBuilder};

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise<D: Dimension>(seed: u64, shape: impl ShapeBuilder<Dim = D>) -> Array<f64, D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    Array::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
}

/// `Σ_j w_j v_j` for every query, where `weights(b, h, i, scores)` makes the weights of query `i` from its scaled
/// scores with every key.
pub(crate) fn attention(
    query: &Array4<f64>,
    key: &Array4<f64>,
    value: &Array4<f64>,
    weights: impl Fn(usize, usize, usize, &[f64]) -> Vec<f64>,
) -> ArrayD<f64> {
    let (batch, queries, heads, dim) = query.dim();
    let (_, keys, heads_kv, dim_v) = value.dim();
    let mut output = Array4::zeros((batch, queries, heads, dim_v));
    for ((b, i, h), _) in Array::<(), _>::default((batch, queries, heads)).indexed_iter() {
        let g = h / (heads / heads_kv);
        let dot = |j: usize| (0..dim).map(|d| query[[b, i, h, d]] * key[[b, j, g, d]]).sum::<f64>();
        let scores: Vec<f64> = (0..keys).map(|j| dot(j) / (dim as f64).sqrt()).collect();
        for (j, w) in weights(b, h, i, &scores).into_iter().enumerate().filter(|(_, w)| *w != 0.0) {
            (0..dim_v).for_each(|d| output[[b, i, h, d]] += w * value[[b, j, g, d]]);
        }
    }
    output.into_dyn()
}

/// The softmax of the scores of the keys that `counts` lets in; all 0 where it lets none in.
pub(crate) fn softmax(scores: &[f64], counts: impl Fn(usize) -> bool) -> Vec<f64> {
    let power = |j: usize| if counts(j) { scores[j].exp() } else { 0.0 };
    let sum: f64 = (0..scores.len()).map(power).sum();
    (0..scores.len()).map(|j| if sum > 0.0 { power(j) / sum } else { 0.0 }).collect()
}

/// `S_t = decay(b, t, h) S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`, one token after the other.
pub(crate) fn recurrence(
    [query, key, value]: [&Array4<f64>; 3],
    scale: f64,
    decay: impl Fn(usize, usize, usize) -> f64,
) -> ArrayD<f64> {
    let (batch, tokens, heads, dim_v) = value.dim();
    let dim = query.dim().3;
    let mut output = Array4::zeros(value.raw_dim());
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let group = h / (heads / query.dim().2);
        let mut state = vec![0.0; dim * dim_v];
        for t in 0..tokens {
            for (at, s) in state.iter_mut().enumerate() {
                let (d, e) = (at / dim_v, at % dim_v);
                *s = decay(b, t, h) * *s + key[[b, t, group, d]] * value[[b, t, h, e]];
                output[[b, t, h, e]] += scale * query[[b, t, group, d]] * *s;
            }
        }
    }
    output.into_dyn()
}

/// Says how far `found` is from `expected`.
///
/// # Errors
/// Where that is more than rounding.
pub(crate) fn compare<D: Dimension, E: Dimension>(what: &str, found: &Array<f64, D>, expected: &Array<f64, E>) -> Outcome {
    if found.shape() != expected.shape() {
        return Err(format!("{what}: shape {:?} instead of {:?}", found.shape(), expected.shape()).into());
    }
    // NaN is no small difference.
    let distance = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
    let largest = found.iter().zip(expected).map(distance).fold(0.0, f64::max);
    println!("{what}: largest difference {largest:.1e}");
    if largest < 1e-11 { Ok(()) } else { Err(format!("{what} differs by {largest:e}").into()) }
}
