//! Joins attentions over disjoint sets of keys into the attention over their union: of the parts of a split key
//! sequence, of a window and global tokens, of the steps of a ring.
//!
//! With parts `(o_i, l_i)`, outputs and logsumexps, `m = max l_i` and `w_i = exp(l_i - m) / Σ_j exp(l_j - m)`:
//!
//! ```text
//! l = m + ln Σ_i exp(l_i - m)        o = Σ_i w_i o_i
//! dl_i = w_i (⟨do, o_i - o⟩ + dl)    do_i = w_i do
//! ```
//!
//! A part whose logsumexp is -inf saw nothing: it has weight zero, and its output is not read. Where every part saw
//! nothing the result is 0 and -inf, and all gradients are 0.
//!
//! The same gradients come out, without this backward, when every part's backward is run with the *merged* output and
//! logsumexp and the merged cotangents: a backend's backward recomputes weights as `exp(score - logsumexp)`.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// The output `[…, Dv]` and the logsumexp `[…]` of an attention, or their gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// The output, or its cotangent, `[…, Dv]`.
    pub output: HostTensor,
    /// The logsumexp, or its cotangent, `[…]`; f32, or f64 with f64.
    pub logsumexp: HostTensor,
}

/// The attention over the union of the parts' keys.
///
/// # Errors
/// [`Error::Invalid`] for fewer than two parts, and for parts whose shapes or dtypes differ.
pub fn merge_attentions(parts: &[Partial]) -> Result<Partial> {
    let checked = Checked::new(parts)?;
    let (mut output, mut logsumexp) =
        (Vec::with_capacity(checked.rows * checked.dim), Vec::with_capacity(checked.rows));
    for row in 0..checked.rows {
        let (weights, total) = checked.weights(row);
        logsumexp.push(total);
        output.extend((0..checked.dim).map(|d| checked.mix(&weights, row, d)));
    }
    checked.partial(output, logsumexp)
}

/// The cotangents of every part from those of the merged attention. A missing `logsumexp` cotangent is zero.
///
/// # Errors
/// As [`merge_attentions`]; [`Error::Invalid`] where a cotangent's shape or dtype differs.
pub fn merge_attentions_backward(
    parts: &[Partial],
    grad_output: &HostTensor,
    grad_logsumexp: Option<&HostTensor>,
) -> Result<Vec<Partial>> {
    let checked = Checked::new(parts)?;
    same_layout("grad_output", grad_output, &parts[0].output)?;
    if let Some(grad) = grad_logsumexp {
        same_layout("grad_logsumexp", grad, &parts[0].logsumexp)?;
    }
    let grad_output = grad_output.to_f64();
    let grad_logsumexp = grad_logsumexp.map(HostTensor::to_f64);
    let mut grads = vec![(Vec::new(), Vec::new()); parts.len()];
    for row in 0..checked.rows {
        let (weights, _) = checked.weights(row);
        let grad_row = &grad_output[row * checked.dim..][..checked.dim];
        let dl = grad_logsumexp.as_ref().map_or(0.0, |g| g[row]);
        let merged: Vec<f64> = (0..checked.dim).map(|d| checked.mix(&weights, row, d)).collect();
        for (part, (outputs, logsumexps)) in grads.iter_mut().enumerate() {
            let Some(weight) = weights[part] else {
                outputs.extend(std::iter::repeat_n(0.0, checked.dim));
                logsumexps.push(0.0);
                continue;
            };
            let own = &checked.parts[part].0[row * checked.dim..];
            let along: f64 = (0..checked.dim).map(|d| grad_row[d] * (own[d] - merged[d])).sum();
            outputs.extend(grad_row.iter().map(|g| weight * g));
            logsumexps.push(weight * (along + dl));
        }
    }
    grads.into_iter().map(|(output, logsumexp)| checked.partial(output, logsumexp)).collect()
}

/// Parts of one shape, widened.
struct Checked {
    parts: Vec<(Vec<f64>, Vec<f64>)>,
    rows: usize,
    dim: usize,
    shape: Vec<usize>,
    dtype: DType,
}

impl Checked {
    fn new(parts: &[Partial]) -> Result<Self> {
        let [first, _, ..] = parts else {
            return Err(Error::invalid(
                "parts",
                parts.len(),
                "at least two are needed",
                "one part is its own merge",
            ));
        };
        let shape = first.output.shape();
        let Some((&dim, rows)) = shape.split_last() else {
            return Err(Error::invalid(
                "output",
                "a scalar",
                "it must have a value axis",
                "give outputs of shape […, Dv]",
            ));
        };
        if first.logsumexp.shape() != rows || first.logsumexp.dtype() != first.output.dtype().accumulator() {
            return Err(Error::invalid(
                "logsumexp",
                format!("{:?} of {}", first.logsumexp.shape(), first.logsumexp.dtype()),
                format!(
                    "beside an output of {shape:?} it must be {rows:?} of {}",
                    first.output.dtype().accumulator()
                ),
                "use the logsumexp that came with the output",
            ));
        }
        for part in parts {
            same_layout("output", &part.output, &first.output)?;
            same_layout("logsumexp", &part.logsumexp, &first.logsumexp)?;
        }
        Ok(Self {
            parts: parts.iter().map(|p| (p.output.to_f64(), p.logsumexp.to_f64())).collect(),
            rows: rows.iter().product(),
            dim,
            shape: shape.to_vec(),
            dtype: first.output.dtype(),
        })
    }

    /// The weight of every part in a row, `None` for one that saw nothing, and the merged logsumexp.
    fn weights(&self, row: usize) -> (Vec<Option<f64>>, f64) {
        let all = || self.parts.iter().map(|(_, l)| l[row]);
        let max = all().fold(f64::NEG_INFINITY, f64::max);
        let shift = if max == f64::NEG_INFINITY { 0.0 } else { max };
        let seen = |l: f64| (l != f64::NEG_INFINITY).then(|| (l - shift).exp());
        let total: f64 = all().filter_map(seen).sum();
        (all().map(|l| seen(l).map(|w| w / total)).collect(), shift + total.ln())
    }

    fn mix(&self, weights: &[Option<f64>], row: usize, d: usize) -> f64 {
        let of = |(w, part): (&Option<f64>, &(Vec<f64>, Vec<f64>))| w.map(|w| w * part.0[row * self.dim + d]);
        weights.iter().zip(&self.parts).filter_map(of).sum()
    }

    fn partial(&self, output: Vec<f64>, logsumexp: Vec<f64>) -> Result<Partial> {
        let rows = &self.shape[..self.shape.len() - 1];
        Ok(Partial {
            output: HostTensor::new(&self.shape, output)?.cast(self.dtype)?,
            logsumexp: HostTensor::new(rows, logsumexp)?.cast(self.dtype.accumulator())?,
        })
    }
}

fn same_layout(name: &'static str, given: &HostTensor, like: &HostTensor) -> Result<()> {
    if given.shape() == like.shape() && given.dtype() == like.dtype() {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("{:?} of {}", given.shape(), given.dtype()),
        format!("it must be {:?} of {} like the first part's", like.shape(), like.dtype()),
        "parts differ in their keys only",
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIM: usize = 2;

    fn part(outputs: &[f64], logsumexp: &[f64]) -> Partial {
        Partial {
            output: HostTensor::new(&[logsumexp.len(), DIM], outputs.to_vec()).unwrap(),
            logsumexp: HostTensor::new(&[logsumexp.len()], logsumexp.to_vec()).unwrap(),
        }
    }

    fn parts() -> impl Strategy<Value = Vec<Partial>> {
        let lse = prop_oneof![4 => -30.0..30.0f64, 1 => Just(f64::NEG_INFINITY)];
        let one = (prop::collection::vec(-2.0..2.0f64, 3 * DIM), prop::collection::vec(lse, 3));
        prop::collection::vec(one.prop_map(|(o, l)| part(&o, &l)), 2..5)
    }

    proptest! {
        /// Merging is associative, and equals a softmax over single keys (a key's lse is its score, its output its value).
        #[test]
        fn merge_is_associative(parts in parts()) {
            let all = merge_attentions(&parts).unwrap();
            let mut folded = parts[0].clone();
            for next in &parts[1..] {
                folded = merge_attentions(&[folded, next.clone()]).unwrap();
            }
            for (a, b) in all.output.to_f64().iter().zip(folded.output.to_f64()) {
                prop_assert!((a - b).abs() < 1e-12, "{} {}", a, b);
            }
            for (a, b) in all.logsumexp.to_f64().iter().zip(folded.logsumexp.to_f64()) {
                prop_assert!(*a == b || (a - b).abs() < 1e-12, "{} {}", a, b);
            }
        }

        #[test]
        fn backward_is_the_derivative(parts in parts(), go in prop::collection::vec(-1.0..1.0f64, 3 * DIM),
                                      gl in prop::collection::vec(-1.0..1.0f64, 3)) {
            let grad_output = HostTensor::new(&[3, DIM], go.clone()).unwrap();
            let grad_logsumexp = HostTensor::new(&[3], gl.clone()).unwrap();
            let grads = merge_attentions_backward(&parts, &grad_output, Some(&grad_logsumexp)).unwrap();
            let loss = |parts: &[Partial]| {
                let merged = merge_attentions(parts).unwrap();
                let dot = |a: &[f64], b: Vec<f64>| -> f64 {
                    a.iter().zip(b).filter(|(_, b)| b.is_finite()).map(|(a, b)| a * b).sum()
                };
                dot(&go, merged.output.to_f64()) + dot(&gl, merged.logsumexp.to_f64())
            };
            let eps = 1e-6;
            for p in 0..parts.len() {
                let (o, l) = (parts[p].output.to_f64(), parts[p].logsumexp.to_f64());
                for (i, expected) in grads[p].output.to_f64().iter().enumerate() {
                    let at = |d: f64| {
                        let mut moved = parts.clone();
                        let mut o = o.clone();
                        o[i] += d;
                        moved[p] = part(&o, &l);
                        loss(&moved)
                    };
                    prop_assert!(((at(eps) - at(-eps)) / (2.0 * eps) - expected).abs() < 1e-6);
                }
                for (i, expected) in grads[p].logsumexp.to_f64().iter().enumerate() {
                    let at = |d: f64| {
                        let mut moved = parts.clone();
                        let mut l = l.clone();
                        l[i] += d;
                        moved[p] = part(&o, &l);
                        loss(&moved)
                    };
                    prop_assert!(((at(eps) - at(-eps)) / (2.0 * eps) - expected).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn parts_that_saw_nothing_have_no_say() {
        let nothing = part(&[f64::NAN, f64::NAN], &[f64::NEG_INFINITY]);
        let something = part(&[1.0, 2.0], &[0.5]);
        for parts in [[nothing.clone(), something.clone()], [something.clone(), nothing.clone()]] {
            assert_eq!(merge_attentions(&parts).unwrap(), something);
        }
        let merged = merge_attentions(&[nothing.clone(), nothing]).unwrap();
        assert_eq!(merged, part(&[0.0, 0.0], &[f64::NEG_INFINITY]));
    }

    #[test]
    fn parts_that_differ_are_refused() {
        let a = part(&[1.0, 2.0], &[0.5]);
        assert!(merge_attentions(std::slice::from_ref(&a)).is_err());
        let longer = part(&[1.0; 4], &[0.5; 2]);
        assert!(merge_attentions(&[a.clone(), longer]).is_err());
        let other = Partial { output: a.output.cast(DType::F32).unwrap(), ..a.clone() };
        assert!(merge_attentions(&[a, other]).is_err());
    }
}
