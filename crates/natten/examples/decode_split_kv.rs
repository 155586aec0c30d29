//! Inference: one query against a long cache of keys, which is split into parts that are computed apart, as on several
//! devices, and merged.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::{Device, HostTensor, Partial, merge_attentions};
use ndarray::s;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 1, 8, 16)), noise(2, (2, 200, 2, 16)), noise(3, (2, 200, 2, 16)));
    let mut parts = Vec::new();
    for start in [0, 64, 128, 192] {
        let part = s![.., start..200.min(start + 64), .., ..];
        let result = natten::attention(&q, k.slice(part), v.slice(part)).device(device).forward()?;
        parts.push(Partial {
            output: HostTensor::from(result.output.view()),
            logsumexp: result.logsumexp()?.clone(),
        });
    }
    let merged = merge_attentions(&parts)?;
    let output = merged.output.into_ndarray().ok_or("the merged output has the dtype of its parts")?;
    compare("split decode", &output, &attention(&q, &k, &v, |_, _, _, scores| softmax(scores, |_| true)))
}
