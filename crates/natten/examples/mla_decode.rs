//! Decoding with multi-head latent attention: 16 query heads share one key of 576 numbers, a latent vector of 512 and a
//! rotary part of 64; the value is the latent vector itself, a view of the same memory.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::Device;
use ndarray::s;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (query, cache) = (noise(1, (2, 1, 16, 576)), noise(2, (2, 40, 1, 576)));
    let latent = cache.slice(s![.., .., .., ..512]);
    let result = natten::attention(&query, &cache, latent).device(device).forward()?;
    let expected =
        attention(&query, &cache, &latent.to_owned(), |_, _, _, scores| softmax(scores, |_| true));
    compare("MLA decode", &result.output, &expected)
}
