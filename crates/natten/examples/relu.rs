//! ReLU attention: every positive score is a weight, and nothing is normalised.

mod naive;

use naive::{Outcome, attention, compare, noise};
use natten::Device;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 20, 2, 8)), noise(2, (2, 20, 2, 8)), noise(3, (2, 20, 2, 8)));
    for (row, power) in [("relu", 1), ("relu:2", 2)] {
        let result = natten::attention(&q, &k, &v).row(row).device(device).forward()?;
        let weights = |_, _, _, scores: &[f64]| scores.iter().map(|s| s.max(0.0).powi(power)).collect();
        compare(row, &result.output, &attention(&q, &k, &v, weights))?;
    }
    Ok(())
}
