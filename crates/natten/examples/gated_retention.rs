//! Simple GLA, also known as gated retention: a decay that is computed from every token and head.

mod naive;

use std::ops::Range;

use naive::{Outcome, compare, noise, recurrence};
use natten::Device;
use ndarray::{Array3, Array4, Ix4, s};

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (q, k, v) = (noise(1, (2, 70, 2, 16)), noise(2, (2, 70, 2, 16)), noise(3, (2, 70, 2, 8)));
    // The logarithm of a gate, sigmoid(raw), with some tokens that forget everything before them.
    let raw: Array3<f64> = noise(4, (2, 70, 2)) * 4.0;
    let log_decay = raw.mapv(|raw| if raw > 3.5 { -50.0 } else { -(-raw).exp().ln_1p() });
    let call = natten::linear_attention(&q, &k, &v).log_decay(&log_decay).device(device);
    let result = call.forward()?;
    let expected = recurrence([&q, &k, &v], 0.25, |b, t, h| log_decay[[b, t, h]].exp());
    compare("gated retention", &result.output, &expected)?;

    // The state goes on from where it was: the second half after the first is that of the whole.
    let half = |a: &Array4<f64>, range: Range<usize>| a.slice(s![.., range, .., ..]).to_owned();
    let gates = |range: Range<usize>| log_decay.slice(s![.., range, ..]).to_owned();
    let (q1, k1, v1, g1) = (half(&q, 0..35), half(&k, 0..35), half(&v, 0..35), gates(0..35));
    let (q2, k2, v2, g2) = (half(&q, 35..70), half(&k, 35..70), half(&v, 35..70), gates(35..70));
    let state = natten::linear_attention(&q1, &k1, &v1).log_decay(&g1).device(device).forward()?.final_state;
    let rest = natten::linear_attention(&q2, &k2, &v2).log_decay(&g2).initial_state(&state).device(device).forward()?;
    compare("second half", &rest.output, &half(&expected.into_dimensionality::<Ix4>()?, 35..70))
}
