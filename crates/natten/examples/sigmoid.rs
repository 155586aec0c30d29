//! Sigmoid attention with a bias that is learnt: the bias is a captured scalar, and its gradient comes with the others.

mod naive;

use naive::{Outcome, attention, compare, noise};
use natten::Device;
use ndarray::arr0;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 20, 2, 8)), noise(2, (2, 20, 2, 8)), noise(3, (2, 20, 2, 8)));
    let bias = arr0(-3.0);
    let call = natten::attention(&q, &k, &v).score("score + bias").row("sigmoid").capture("bias", &bias).device(device);
    let result = call.forward()?;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let weights = |_, _, _, scores: &[f64]| scores.iter().map(|s| sigmoid(s - 3.0)).collect();
    compare("sigmoid", &result.output, &attention(&q, &k, &v, weights))?;

    let slopes = |_, _, _, scores: &[f64]| scores.iter().map(|s| sigmoid(s - 3.0) * sigmoid(3.0 - s)).collect();
    let by_bias = attention(&q, &k, &v, slopes).sum();
    let gradients = call.backward(&result, &ndarray::ArrayD::ones(result.output.raw_dim()))?;
    compare("gradient of the bias", &gradients.capture("bias")?.to_owned(), &arr0(by_bias))
}
