//! A sliding window of the last 8 keys: as a mask, and as a causal neighborhood, which visits nothing else.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::Device;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 50, 2, 8)), noise(2, (2, 50, 2, 8)), noise(3, (2, 50, 2, 8)));
    let expected = attention(&q, &k, &v, |_, _, i, scores| softmax(scores, |j| j <= i && i - j < 8));
    let masked = natten::attention(&q, &k, &v).mask("k <= q && q - k < 8").device(device).forward()?;
    compare("window as a mask", &masked.output, &expected)?;
    let window = natten::na1d(&q, &k, &v, 8).causal(true).device(device).forward()?;
    compare("window as a neighborhood", &window.output, &expected)
}
