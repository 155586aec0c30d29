//! Sparse grouped-query decoding: one query a sequence, against caches of different lengths, of which each sequence and
//! key head has a list of the blocks that are worth visiting.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::Device;
use ndarray::{Array1, Array3};

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (3, 1, 4, 8)), noise(2, (3, 64, 2, 8)), noise(3, (3, 64, 2, 8)));
    let lengths = Array1::from(vec![64, 37, 9]);
    let blocks = Array3::from_shape_fn((3, 2, 4), |(b, g, block)| i32::from((b + g + block) % 2 == 0));
    let result = natten::attention(&q, &k, &v)
        .mask("k < lengths[b] && blocks[b, hkv, k // 16] != 0")
        .capture_i32("lengths", &lengths)
        .capture_i32("blocks", &blocks)
        .device(device)
        .forward()?;
    let expected = attention(&q, &k, &v, |b, h, _, scores| {
        softmax(scores, |j| (j as i32) < lengths[b] && blocks[[b, h / 2, j / 16]] != 0)
    });
    compare("sparse decode", &result.output, &expected)
}
