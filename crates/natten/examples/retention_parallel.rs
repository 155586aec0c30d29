//! The parallel form of retention: scores times a decay matrix, over the sum of their magnitudes where that is above 1.
//! Once with the matrix as a captured tensor, which may then be anything and has a gradient, and once with its formula.

mod naive;

use naive::{Outcome, attention, compare, noise};
use natten::Device;
use ndarray::Array3;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 30, 3, 8)) * 4.0, noise(2, (2, 30, 3, 8)), noise(3, (2, 30, 3, 8)));
    let gamma = |h: usize| 1.0 - 2f64.powi(-5 - h as i32);
    let decay = Array3::from_shape_fn((3, 30, 30), |(h, i, j)| if j <= i { gamma(h).powi((i - j) as i32) } else { 0.0 });
    let call = natten::attention(&q, &k, &v)
        .score("score * decay[h, q, k]")
        .row("retention")
        .capture("decay", &decay)
        .device(device);
    let expected = attention(&q, &k, &v, |_, h, i, scores| {
        let x: Vec<f64> = scores.iter().enumerate().map(|(j, s)| s * decay[[h, i, j]]).collect();
        let scale = x.iter().map(|x| x.abs()).sum::<f64>().max(1.0);
        x.iter().map(|x| x / scale).collect()
    });
    let result = call.forward()?;
    compare("retention, captured decay", &result.output, &expected)?;
    assert_eq!(call.backward(&result, &v)?.capture("decay")?.shape(), [3, 30, 30]);

    let by_formula = natten::retention_parallel(&q, &k, &v).device(device).forward()?;
    compare("retention", &by_formula.output, &expected)
}
