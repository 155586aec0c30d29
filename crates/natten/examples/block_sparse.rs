//! Block-sparse attention: every block of 16 queries has a list of the blocks of 16 keys that it sees.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::{BlockMask, Device};

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (1, 64, 2, 8)), noise(2, (1, 64, 2, 8)), noise(3, (1, 64, 2, 8)));
    let lists = [vec![0], vec![0, 1], vec![2], vec![0, 3]];
    let blocks = BlockMask::from_lists(&lists, 4, [16, 16])?;
    let call = natten::attention(&q, &k, &v).block_mask("blocks", &blocks).mask("k <= q").device(device);
    let sees = |i: usize, j: usize| j <= i && lists[i / 16].contains(&(j / 16));
    let expected = attention(&q, &k, &v, |_, _, i, scores| softmax(scores, |j| sees(i, j)));
    compare("block-sparse", &call.forward()?.output, &expected)
}
