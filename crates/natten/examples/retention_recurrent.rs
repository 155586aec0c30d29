//! Retention as a recurrence: head `h` keeps `1 - 2^(-5-h)` of its state a token.

mod naive;

use naive::{Outcome, compare, noise, recurrence};
use natten::Device;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 150, 4, 16)), noise(2, (2, 150, 4, 16)), noise(3, (2, 150, 4, 8)));
    let result = natten::linear_attention(&q, &k, &v).retention().device(device).forward()?;
    let expected = recurrence([&q, &k, &v], 0.25, |_, _, h| 1.0 - 2f64.powi(-5 - h as i32));
    compare("retention", &result.output, &expected)
}
