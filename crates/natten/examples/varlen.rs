//! Sequences of different lengths packed into one, each token with the number of its document: causal within documents.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::Device;
use ndarray::Array1;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (1, 60, 4, 8)), noise(2, (1, 60, 2, 8)), noise(3, (1, 60, 2, 8)));
    let document: Array1<i32> = [11, 18, 1, 30].iter().zip(0..).flat_map(|(&n, d)| vec![d; n]).collect();
    let result = natten::attention(&q, &k, &v)
        .mask("document[q] == document[k] && k <= q")
        .capture_i32("document", &document)
        .device(device)
        .forward()?;
    let sees = |i: usize, j: usize| document[i] == document[j] && j <= i;
    let expected = attention(&q, &k, &v, |_, _, i, scores| softmax(scores, |j| sees(i, j)));
    compare("packed documents", &result.output, &expected)
}
