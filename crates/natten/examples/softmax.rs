//! Causal softmax attention, multi-head and grouped-query, with gradients.

mod naive;

use naive::{Outcome, attention, compare, noise, softmax};
use natten::Device;

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    for heads_kv in [4, 2, 1] {
        let (q, k, v) = (noise(1, (2, 24, 4, 8)), noise(2, (2, 24, heads_kv, 8)), noise(3, (2, 24, heads_kv, 8)));
        let call = natten::attention(&q, &k, &v).causal(true).device(device);
        let result = call.forward()?;
        let expected = attention(&q, &k, &v, |_, _, i, scores| softmax(scores, |j| j <= i));
        compare(&format!("softmax, {heads_kv} key heads"), &result.output, &expected)?;

        // Along any direction the output moves as its gradient says: <do, o(v + u) - o(v)> = <dv, u>, o being linear in v.
        let (grad, u) = (noise(4, (2, 24, 4, 8)), noise(5, v.raw_dim()));
        let gradients = call.backward(&result, &grad)?;
        let moved = attention(&q, &k, &(&v + &u), |_, _, i, scores| softmax(scores, |j| j <= i)) - expected;
        let (pushed, pulled) = ((moved * &grad).sum(), (gradients.value * &u).sum());
        compare("gradient of the values", &ndarray::arr0(pulled), &ndarray::arr0(pushed))?;
    }
    Ok(())
}
