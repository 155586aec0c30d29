//! Mamba-2 (SSD): 8 heads of values share one head of queries (Mamba's C) and keys (its B); the decay and the size of a
//! step come with every token.

mod naive;

use naive::{Outcome, compare, noise, recurrence};
use natten::Device;
use ndarray::{Array1, Array3, Axis};

fn main() -> Outcome {
    run(&natten::Registry::probe().auto()?)
}

pub(crate) fn run(device: &Device) -> Outcome {
    let (c, b, x) = (noise(1, (2, 70, 1, 16)), noise(2, (2, 70, 1, 16)), noise(3, (2, 70, 8, 4)));
    // As the layer makes them: dt = softplus(raw), A = -exp(A_log).
    let dt: Array3<f64> = noise(4, (2, 70, 8)).mapv(|raw: f64| raw.exp().ln_1p());
    let a: Array1<f64> = noise(5, 8).mapv(|log: f64| -log.exp());
    let call = natten::linear_attention(&c, &b, &x).mamba2(&dt, &a).device(device);
    let stepped = &x * &dt.clone().insert_axis(Axis(3));
    let expected = recurrence([&c, &b, &stepped], 1.0, |b, t, h| (dt[[b, t, h]] * a[h]).exp());
    compare("Mamba-2", &call.forward()?.output, &expected)?;

    // The output is linear in C: <dC, C> = <do, o>. The gradient is summed over the heads that share C.
    let gradients = call.backward(&x)?;
    let (pulled, pushed) = ((gradients.query * &c).sum(), (expected * &x).sum());
    compare("gradient of C", &ndarray::arr0(pulled), &ndarray::arr0(pushed))
}
