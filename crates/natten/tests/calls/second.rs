//! Forward mode and second order against differences and against each other.

use ndarray::{Array1, Array2, Array4, ArrayD};

use natten::{Attention, DType, Device, HostTensor, Tangents, attention, na1d};

use crate::common::{along, assert_close, dot, for_each_device, noise};

#[derive(Clone)]
struct Inputs {
    query: Array4<f64>,
    key: Array4<f64>,
    value: Array4<f64>,
    extra_key: Array4<f64>,
    extra_value: Array4<f64>,
    rpb: Array2<f64>,
    slope: Array1<f64>,
    grad_output: Array4<f64>,
}

impl Inputs {
    fn new(seed: u64) -> Self {
        let part = |n| seed * 100 + n;
        Self {
            query: noise(part(1), (2, 6, 2, 4)),
            key: noise(part(2), (2, 6, 1, 4)),
            value: noise(part(3), (2, 6, 1, 3)),
            extra_key: noise(part(4), (2, 2, 1, 4)),
            extra_value: noise(part(5), (2, 2, 1, 3)),
            rpb: noise(part(6), (2, 5)),
            slope: noise(part(7), 2),
            grad_output: noise(part(8), (2, 6, 2, 3)),
        }
    }

    /// `self + t other`.
    fn moved(&self, other: &Self, t: f64) -> Self {
        Self {
            query: &self.query + &(&other.query * t),
            key: &self.key + &(&other.key * t),
            value: &self.value + &(&other.value * t),
            extra_key: &self.extra_key + &(&other.extra_key * t),
            extra_value: &self.extra_value + &(&other.extra_value * t),
            rpb: &self.rpb + &(&other.rpb * t),
            slope: &self.slope + &(&other.slope * t),
            grad_output: &self.grad_output + &(&other.grad_output * t),
        }
    }

    fn call(&self, device: &Device) -> Attention<'_, f64> {
        na1d(&self.query, &self.key, &self.value, 3)
            .additional(&self.extra_key, &self.extra_value)
            .rpb(&self.rpb)
            .score("2*tanh(score/2) - slope[h]*abs(q - k)")
            .capture("slope", &self.slope)
            .device(device)
    }

    /// Everything but the cotangent of the output.
    fn tangents(&self) -> Tangents<'_, f64> {
        Tangents::new()
            .query(&self.query)
            .key(&self.key)
            .value(&self.value)
            .additional_key(&self.extra_key)
            .additional_value(&self.extra_value)
            .rpb(&self.rpb)
            .capture("slope", &self.slope)
    }
}

/// Forward mode is the derivative along a direction, and the transpose of backward.
#[test]
fn tangents_are_derivatives() {
    for_each_device(|device| {
        let (inputs, direction) = (Inputs::new(1), Inputs::new(2));
        let call = inputs.call(device);
        let jvp = call.jvp(&direction.tangents()).unwrap();
        let forward = call.forward().unwrap();
        assert_eq!((&jvp.output, &jvp.logsumexp), (&forward.output, &forward.logsumexp));
        let eps = 1e-5;
        let at = |t: f64| inputs.moved(&direction, t).call(device).forward().unwrap();
        let (ahead, behind) = (at(eps), at(-eps));
        assert_close("tangent_output", &jvp.tangent_output, &((&ahead.output - &behind.output) / (2.0 * eps)), 1e-8);
        let rows = |t: &HostTensor| t.clone().into_ndarray::<f64>().unwrap();
        let rate = (rows(ahead.logsumexp().unwrap()) - rows(behind.logsumexp().unwrap())) / (2.0 * eps);
        assert_close("tangent_logsumexp", &rows(jvp.tangent_logsumexp.as_ref().unwrap()), &rate, 1e-8);

        let gradients = call.backward(&forward, &inputs.grad_output).unwrap();
        let pulled = dot(&gradients.query, &direction.query)
            + dot(&gradients.key, &direction.key)
            + dot(&gradients.value, &direction.value)
            + dot(gradients.rpb.as_ref().unwrap(), &direction.rpb)
            + dot(gradients.additional_key.as_ref().unwrap(), &direction.extra_key)
            + dot(gradients.additional_value.as_ref().unwrap(), &direction.extra_value)
            + dot(&gradients.capture("slope").unwrap().to_owned(), &direction.slope);
        let pushed = dot(&jvp.tangent_output, &inputs.grad_output);
        assert!((pushed - pulled).abs() < 1e-12, "{pushed} {pulled}");
    });
}

#[test]
fn absent_tangents_are_zero() {
    for_each_device(|device| {
        let (inputs, direction) = (Inputs::new(1), Inputs::new(2));
        let call = inputs.call(device);
        let one = call.jvp(&Tangents::new().capture("slope", &direction.slope)).unwrap();
        let expected = along(&inputs.slope, &direction.slope, |slope| {
            Inputs { slope: slope.clone(), ..inputs.clone() }.call(device).forward().unwrap().output
        });
        assert_close("slope", &one.tangent_output, &expected, 1e-8);
    });
}

/// Second order is the derivative of the gradients, in every input, and the Hessian is symmetric.
#[test]
fn second_gradients_are_derivatives_of_gradients() {
    for_each_device(|device| {
        let (inputs, direction) = (Inputs::new(1), Inputs::new(2));
        let call = inputs.call(device);
        let given = direction.tangents().grad_output(&direction.grad_output);
        let second = call.double_backward(&inputs.grad_output, &given).unwrap();
        let eps = 1e-5;
        let at = |t: f64| {
            let inputs = inputs.moved(&direction, t);
            let call = inputs.call(device);
            let forward = call.forward().unwrap();
            (call.backward(&forward, &inputs.grad_output).unwrap(), forward.output)
        };
        let (ahead, behind) = (at(eps), at(-eps));
        let check = |name: &str, found: &ArrayD<f64>, ahead: &ArrayD<f64>, behind: &ArrayD<f64>| {
            assert_close(name, found, &((ahead - behind) / (2.0 * eps)), 1e-7);
        };
        check("grad2_query", &second.query, &ahead.0.query, &behind.0.query);
        check("grad2_key", &second.key, &ahead.0.key, &behind.0.key);
        check("grad2_value", &second.value, &ahead.0.value, &behind.0.value);
        check("grad2_grad_output", &second.grad_output, &ahead.1, &behind.1);
        macro_rules! optional {
            ($name:ident) => {
                let of = |a: &Option<ArrayD<f64>>| a.clone().unwrap();
                check(stringify!($name), &of(&second.$name), &of(&ahead.0.$name), &of(&behind.0.$name));
            };
        }
        optional!(rpb);
        optional!(additional_key);
        optional!(additional_value);
        let (a, b) = (ahead.0.capture("slope").unwrap(), behind.0.capture("slope").unwrap());
        check("grad2_slope", &second.capture("slope").unwrap().to_owned(), &a.to_owned(), &b.to_owned());

        // <u, H v> = <v, H u>, the cotangent at rest.
        let other = Inputs::new(3);
        let hv = call.hvp(&inputs.grad_output, &direction.tangents()).unwrap();
        let hu = call.hvp(&inputs.grad_output, &other.tangents()).unwrap();
        let with = |h: &natten::SecondGradients<f64>, v: &Inputs| {
            dot(&h.query, &v.query)
                + dot(&h.key, &v.key)
                + dot(&h.value, &v.value)
                + dot(h.rpb.as_ref().unwrap(), &v.rpb)
                + dot(h.additional_key.as_ref().unwrap(), &v.extra_key)
                + dot(h.additional_value.as_ref().unwrap(), &v.extra_value)
                + dot(&h.capture("slope").unwrap().to_owned(), &v.slope)
        };
        let (a, b) = (with(&hv, &other), with(&hu, &direction));
        assert!((a - b).abs() < 1e-12 * a.abs().max(1.0), "{a} {b}");
    });
}

#[test]
fn the_cotangent_of_the_logsumexp_counts() {
    for_each_device(|device| {
        let (inputs, direction) = (Inputs::new(1), Inputs::new(2));
        let rows = HostTensor::from(noise(5, (2, 6, 2)).view());
        let call = inputs.call(device);
        let second =
            call.double_backward_with_logsumexp(&inputs.grad_output, &rows, &direction.tangents()).unwrap();
        let moved = along(&inputs.query, &direction.query, |query| {
            let inputs = Inputs { query: query.clone(), ..inputs.clone() };
            let call = inputs.call(device);
            let forward = call.forward().unwrap();
            call.backward_with_logsumexp(&forward, &inputs.grad_output, &rows).unwrap().query
        });
        let of_query = call
            .double_backward_with_logsumexp(&inputs.grad_output, &rows, &Tangents::new().query(&direction.query))
            .unwrap();
        assert_close("grad2_query", &of_query.query, &moved, 1e-7);
        let jvp = call.jvp(&direction.tangents()).unwrap();
        assert_eq!(second.grad_logsumexp.unwrap().dtype(), DType::F64);
        assert_close("grad2_grad_output", &second.grad_output, &jvp.tangent_output, 1e-12);
    });
}

#[test]
fn directions_that_make_no_sense_are_refused() {
    for_each_device(|device| {
        let inputs = Inputs::new(1);
        let call = inputs.call(device);
        let cases = [
            (Tangents::new(), "tangents is none"),
            (Tangents::new().capture("slop", &inputs.slope), "tangent_slop"),
            (Tangents::new().capture("slope", &inputs.rpb), "tangent_slope is [2, 5]"),
            (Tangents::new().query(&inputs.key), "tangent_query is [2, 6, 1, 4]"),
            (Tangents::new().query(&inputs.query).query(&inputs.query), "given twice"),
            (Tangents::new().grad_output(&inputs.grad_output), "tangent_grad_output"),
        ];
        for (tangents, part) in cases {
            let message = call.jvp(&tangents).unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        }
        let message = call.hvp(&inputs.grad_output, &Tangents::new()).unwrap_err().to_string();
        assert!(message.contains("tangents is none"), "{message}");
        let plain = attention(&inputs.query, &inputs.key, &inputs.value).device(device);
        let message = plain.jvp(&Tangents::new().rpb(&inputs.rpb)).unwrap_err().to_string();
        assert!(message.contains("tangent_rpb"), "{message}");
    });
}
