//! Linear attention against its recurrence, token by token, and its gradients against differences.

use ndarray::{Array1, Array3, Array4, ArrayD, s};

use natten::{Device, HostTensor, LinearAttention, Tangents, linear_attention, retention_parallel};

use crate::common::{along, assert_close, dot, for_each_device, gradient, noise};

/// `S_t = exp(l_t) S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`: outputs, and the final state.
fn recurrence(
    [q, k, v]: [&Array4<f64>; 3],
    log_decay: impl Fn(usize, usize, usize) -> f64,
    scale: f64,
    initial: &Array4<f64>,
) -> (ArrayD<f64>, ArrayD<f64>) {
    let mut state = initial.clone();
    let mut output = Array4::zeros(v.raw_dim());
    let (batch, tokens, heads, _) = v.dim();
    for b in 0..batch {
        for h in 0..heads {
            let group = h / (heads / q.dim().2);
            let mut s = state.slice_mut(s![b, h, .., ..]);
            for t in 0..tokens {
                s *= log_decay(b, t, h).exp();
                for ((d, e), s) in s.indexed_iter_mut() {
                    *s += k[[b, t, group, d]] * v[[b, t, h, e]];
                    output[[b, t, h, e]] += scale * q[[b, t, group, d]] * *s;
                }
            }
        }
    }
    (output.into_dyn(), state.into_dyn())
}

fn state_of(tensor: &HostTensor) -> ArrayD<f64> {
    tensor.clone().into_ndarray().unwrap()
}

#[test]
fn every_form_is_its_recurrence() {
    for_each_device(|device| {
        // Lengths beside the multiples of a chunk.
        for tokens in [1, 5, 130] {
            let (q, k) = (noise(1, (2, tokens, 3, 4)), noise(2, (2, tokens, 3, 4)));
            let v = noise(3, (2, tokens, 3, 5));
            let initial = noise(4, (2, 3, 4, 5));
            let given = HostTensor::from(initial.view());
            let check = |name: &str, call: LinearAttention<'_, f64>, expected: (ArrayD<f64>, ArrayD<f64>)| {
                let found = call.device(device).forward().unwrap();
                assert_close(name, &found.output, &expected.0, 1e-12);
                assert_close(name, &state_of(&found.final_state), &expected.1, 1e-12);
            };
            let call = || linear_attention(&q, &k, &v).initial_state(&given);
            check("none", call().scale(0.3), recurrence([&q, &k, &v], |_, _, _| 0.0, 0.3, &initial));
            let retention = |_, _, h: usize| (1.0 - 2f64.powi(-5 - h as i32)).ln();
            check("retention", call().retention(), recurrence([&q, &k, &v], retention, 0.5, &initial));
            // From none to what leaves nothing.
            let g: Array3<f64> =
                noise(5, (2, tokens, 3)).mapv(|x| if x < 0.0 { 0.0 } else if x > 0.7 { -50.0 } else { -x });
            check("gla", call().log_decay(&g), recurrence([&q, &k, &v], |b, t, h| g[[b, t, h]], 0.5, &initial));

            let (dt, a) = (g.mapv(|g| 0.1 - g / 50.0), Array1::from(vec![-1.0, -0.1, -20.0]));
            let scaled = &v * &dt.clone().insert_axis(ndarray::Axis(3));
            let expected =
                recurrence([&q, &k, &scaled], |b, t, h| dt[[b, t, h]] * a[h], 1.0, &initial);
            check("mamba2", call().mamba2(&dt, &a), expected);
        }
    });
}

struct Mamba {
    query: Array4<f64>,
    key: Array4<f64>,
    value: Array4<f64>,
    dt: Array3<f64>,
    a: Array1<f64>,
    state: Array4<f64>,
}

impl Mamba {
    fn new(groups: usize) -> Self {
        Self {
            query: noise(1, (2, 6, groups, 3)),
            key: noise(2, (2, 6, groups, 3)),
            value: noise(3, (2, 6, 4, 2)),
            dt: noise(4, (2, 6, 4)) * 0.4 + 0.5,
            a: noise(5, 4) - 1.1,
            state: noise(6, (2, 4, 3, 2)),
        }
    }

    fn run<R>(&self, device: &Device, run: impl FnOnce(LinearAttention<'_, f64>) -> R) -> R {
        let state = HostTensor::from(self.state.view());
        let call = linear_attention(&self.query, &self.key, &self.value).mamba2(&self.dt, &self.a);
        run(call.initial_state(&state).device(device))
    }
}

/// One head of queries and keys for all, one for two heads of values, one each.
#[test]
fn mamba_has_every_gradient_whatever_the_groups() {
    for_each_device(|device| {
        for groups in [1, 2, 4] {
            let inputs = Mamba::new(groups);
            let (grad, grad_state) = (noise(8, (2, 6, 4, 2)), noise(9, (2, 4, 3, 2)));
            let of_state = HostTensor::from(grad_state.view());
            let gradients =
                inputs.run(device, |call| call.backward_with_final_state(&grad, &of_state)).unwrap();
            let loss = |inputs: &Mamba| {
                let result = inputs.run(device, |call| call.forward()).unwrap();
                dot(&result.output, &grad) + dot(&state_of(&result.final_state), &grad_state)
            };
            macro_rules! check {
                ($field:ident, $found:expr) => {
                    let moved = |x: &_| loss(&Mamba { $field: Clone::clone(x), ..Mamba::new(groups) });
                    assert_close(stringify!($field), &$found, &gradient(&inputs.$field, moved), 1e-8);
                };
            }
            check!(query, gradients.query);
            check!(key, gradients.key);
            check!(value, gradients.value);
            check!(dt, gradients.dt.unwrap());
            check!(a, gradients.a.unwrap());
            check!(state, state_of(&gradients.initial_state.unwrap()));
            assert!(gradients.log_decay.is_none());
        }
    });
}

#[test]
fn forward_mode_is_the_derivative_along_a_direction() {
    for_each_device(|device| {
        let inputs = Mamba::new(2);
        let (tangent, tangent_dt) = (noise(11, inputs.query.raw_dim()), noise(12, inputs.dt.raw_dim()));
        let jvp = inputs.run(device, |call| call.jvp(&Tangents::new().query(&tangent))).unwrap();
        let moved = |query: &Array4<f64>| Mamba { query: query.clone(), ..Mamba::new(2) };
        let output = |inputs: Mamba| inputs.run(device, |call| call.forward()).unwrap();
        assert_close("query", &jvp.tangent_output, &along(&inputs.query, &tangent, |x| output(moved(x)).output), 1e-8);
        assert!(state_of(&jvp.tangent_final_state).iter().all(|&t| t == 0.0), "the state is not of the queries");

        let jvp = inputs.run(device, |call| call.jvp(&Tangents::new().capture("dt", &tangent_dt))).unwrap();
        let moved = |dt: &Array3<f64>| Mamba { dt: dt.clone(), ..Mamba::new(2) };
        let expected = along(&inputs.dt, &tangent_dt, |x| state_of(&output(moved(x)).final_state));
        assert_close("dt", &state_of(&jvp.tangent_final_state), &expected, 1e-8);
        let message = inputs.run(device, |call| call.jvp(&Tangents::new())).unwrap_err().to_string();
        assert!(message.contains("tangents is none"), "{message}");
    });
}

#[test]
fn the_decay_of_gla_has_a_gradient() {
    for_each_device(|device| {
        let (q, k, v) = (noise(1, (1, 7, 2, 3)), noise(2, (1, 7, 2, 3)), noise(3, (1, 7, 2, 2)));
        let g: Array3<f64> = noise(4, (1, 7, 2)) - 1.0;
        let grad = noise(5, v.raw_dim());
        let gradients = linear_attention(&q, &k, &v).log_decay(&g).device(device).backward(&grad).unwrap();
        let expected = gradient(&g, |g| {
            dot(&linear_attention(&q, &k, &v).log_decay(g).device(device).forward().unwrap().output, &grad)
        });
        assert_close("log_decay", &gradients.log_decay.unwrap(), &expected, 1e-8);
    });
}

/// Where no row's scores sum to more than 1 in magnitude the parallel form is the recurrent one.
#[test]
fn both_forms_of_retention_agree_where_nothing_is_normalised() {
    for_each_device(|device| {
        let (q, k, v) = (noise(1, (1, 9, 2, 4)) * 0.1, noise(2, (1, 9, 2, 4)), noise(3, (1, 9, 2, 3)));
        let parallel = retention_parallel(&q, &k, &v).device(device).forward().unwrap();
        let recurrent = linear_attention(&q, &k, &v).retention().device(device).forward().unwrap();
        assert_close("retention", &parallel.output, &recurrent.output, 1e-12);
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (q, v, wrong) = (noise(1, (1, 5, 2, 3)), noise(2, (1, 5, 4, 2)), noise(3, (1, 5, 3, 3)));
    let g = noise(4, (1, 5, 2));
    let state = HostTensor::from(noise(5, (1, 4, 2, 3)).view());
    let cases = [
        (linear_attention(&wrong, &q, &v), "query is [1, 5, 3, 3]"),
        (linear_attention(&q, &v, &v), "key is [1, 5, 4, 2]"),
        (linear_attention(&q, &q, &v).log_decay(&g), "log_decay is [1, 5, 2]"),
        (linear_attention(&q, &q, &v).initial_state(&state), "initial_state is [1, 4, 2, 3]"),
    ];
    for (call, part) in cases {
        for_each_device(|device| {
            let message = call.clone().device(device).forward().unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        });
    }
}
