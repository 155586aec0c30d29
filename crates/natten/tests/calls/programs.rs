//! Programs on calls: texts, finished programs, captured tensors of every type, and their gradients.

use ndarray::{Array0, Array1, Array2, Array4, ArrayD, arr0};

use natten::program::{Capture, Program};
use natten::{Attention, BlockMask, DType, Device, HostTensor, attention, na1d, na2d};

use crate::common::{assert_close, dot, for_each_device, gradient, noise};

/// Inputs of attention over 6 tokens: two query heads on one key head.
struct Inputs {
    query: Array4<f64>,
    key: Array4<f64>,
    value: Array4<f64>,
    cap: Array0<f64>,
    slope: Array1<f64>,
    freq: Array1<f64>,
    gain: Array2<f64>,
}

impl Inputs {
    fn new() -> Self {
        Self {
            query: noise(1, (2, 6, 2, 4)),
            key: noise(2, (2, 6, 1, 4)),
            value: noise(3, (2, 6, 1, 3)),
            cap: arr0(1.5),
            slope: Array1::from(vec![0.3, 0.1]),
            freq: noise(4, 4),
            gain: noise(5, (2, 6)) + 2.0,
        }
    }

    /// Uses of every kind: in score, post, and the three vector functions.
    fn call(&self, device: &Device) -> Attention<'_, f64> {
        na1d(&self.query, &self.key, &self.value, 5)
            .query_mod("x * cos(q * freq[d]) + half(x) * sin(q * freq[d])")
            .key_mod("x * rsqrt(sum(x * x) / 4.0 + 0.1)")
            .value_mod("x * (1 + freq[d])")
            .score("cap * tanh(score / cap) - slope[h] * abs(q - k)")
            .mask("k != 3")
            .post("gain[b, k]")
            .capture("cap", &self.cap)
            .capture("slope", &self.slope)
            .capture("freq", &self.freq)
            .capture("gain", &self.gain)
            .device(device)
    }
}

#[test]
fn captured_gradients_are_the_derivatives() {
    for_each_device(|device| {
        let inputs = Inputs::new();
        let call = inputs.call(device);
        let forward = call.forward().unwrap();
        let grad_output: ArrayD<f64> = noise(9, forward.output.raw_dim());
        let gradients = call.backward(&forward, &grad_output).unwrap();
        let loss = |inputs: &Inputs| dot(&inputs.call(device).forward().unwrap().output, &grad_output);
        macro_rules! check {
            ($field:ident, $found:expr) => {
                let expected =
                    gradient(&inputs.$field, |x| loss(&Inputs { $field: x.clone(), ..Inputs::new() }));
                assert_close(stringify!($field), &$found, &expected, 1e-8);
            };
        }
        check!(query, gradients.query);
        check!(key, gradients.key);
        check!(value, gradients.value);
        let captured = |name: &str| gradients.capture(name).unwrap().to_owned();
        check!(cap, captured("cap"));
        check!(slope, captured("slope"));
        check!(freq, captured("freq"));
        check!(gain, captured("gain"));
    });
}

#[test]
fn captured_tensors_may_be_of_other_types() {
    for_each_device(|device| {
        let (q, k, v) = (noise(1, (1, 5, 2, 4)), noise(2, (1, 5, 2, 4)), noise(3, (1, 5, 2, 4)));
        let document = Array1::from(vec![0, 0, 1, 1, 1]);
        let bias = HostTensor::from_fn(DType::F32, &[2, 9], |i| i as f64 / 4.0).unwrap();
        let call = attention(&q, &k, &v)
            .score("score + bias[h, k - q + 4]")
            .mask("document[q] == document[k]")
            .capture_i32("document", &document)
            .capture_tensor("bias", &bias)
            .device(device);
        let forward = call.forward().unwrap();
        // Other documents' keys and values do not matter.
        let (mut other_k, mut other_v) = (k.clone(), v.clone());
        other_k.slice_mut(ndarray::s![.., 2.., .., ..]).fill(f64::NAN);
        other_v.slice_mut(ndarray::s![.., 2.., .., ..]).fill(f64::NAN);
        let other = attention(&q, &other_k, &other_v)
            .score("score + bias[h, k - q + 4]")
            .mask("document[q] == document[k]")
            .capture_i32("document", &document)
            .capture_tensor("bias", &bias)
            .device(device)
            .forward()
            .unwrap();
        let first = |a: &ArrayD<f64>| a.slice(ndarray::s![.., ..2, .., ..]).to_owned();
        assert_eq!(first(&forward.output), first(&other.output));

        let gradients = call.backward(&forward, &q).unwrap();
        assert_eq!(gradients.captures.keys().collect::<Vec<_>>(), ["bias"]);
        assert_eq!(gradients.captures["bias"].dtype(), DType::F32);
        assert_eq!(gradients.captures["bias"].shape(), [2, 9]);
        // No pair of a document is four tokens apart.
        assert_eq!(gradients.captures["bias"].to_f64()[0], 0.0);
        let message = gradients.capture("bias").unwrap_err().to_string();
        assert!(message.contains("bias is f32") && message.contains("f64"), "{message}");
        let message = gradients.capture("document").unwrap_err().to_string();
        assert!(message.contains("'document'") && message.contains("bias"), "{message}");
    });
}

#[test]
fn constants_have_no_gradient() {
    for_each_device(|device| {
        let (inputs, whole) = (Inputs::new(), Inputs::new());
        let call = inputs.call(device).constant("cap").constant("gain");
        let forward = call.forward().unwrap();
        let gradients = call.backward(&forward, &forward.output).unwrap();
        assert_eq!(gradients.captures.keys().collect::<Vec<_>>(), ["freq", "slope"]);
        let all = whole.call(device).backward(&forward, &forward.output).unwrap();
        assert_eq!(all.captures["slope"], gradients.captures["slope"]);
    });
}

#[test]
fn a_finished_program_is_the_same_as_its_texts() {
    for_each_device(|device| {
        let x = noise(1, (1, 4, 5, 2, 4));
        let slope = Array1::from(vec![0.5, 0.25]);
        let program = Program::builder(2)
            .capture(Capture::new("slope", &[2], DType::F64))
            .score("score - slope[h] * abs(q0 - k0)")
            .mask("k1 <= q1")
            .build()
            .unwrap();
        let whole = na2d(&x, &x, &x, 3).program(program).capture("slope", &slope).device(device);
        let texts = na2d(&x, &x, &x, 3)
            .score("score - slope[h] * abs(q0 - k0)")
            .mask("k1 <= q1")
            .capture("slope", &slope)
            .device(device);
        let (a, b) = (whole.forward().unwrap(), texts.forward().unwrap());
        assert_eq!(a.output, b.output);
        assert_eq!(a.logsumexp, b.logsumexp);
    });
}

#[test]
fn rows_without_a_logsumexp_have_none() {
    for_each_device(|device| {
        let x = noise(1, (1, 5, 1, 3));
        let call = attention(&x, &x, &x).row("sigmoid").scale(1.0).device(device);
        let forward = call.forward().unwrap();
        assert_eq!(forward.logsumexp, None);
        let message = forward.logsumexp().unwrap_err().to_string();
        assert!(message.contains("row function"), "{message}");
        let expected = gradient(&x, |y| {
            let output = attention(y, &x, &x).row("sigmoid").scale(1.0).device(device).forward().unwrap().output;
            dot(&output, &x)
        });
        assert_close("query", &call.backward(&forward, &x).unwrap().query, &expected, 1e-8);
    });
}

#[test]
fn masks_add_up() {
    for_each_device(|device| {
        let x = noise(1, (1, 6, 1, 2));
        let call = || attention(&x, &x, &x).device(device);
        let blocks = BlockMask::from_lists(&[vec![0, 1], vec![2], vec![0]], 3, [2, 2]).unwrap();
        let both = call().block_mask("blocks", &blocks).mask("k <= q").forward().unwrap();
        let one = call()
            .mask("(k <= q) && (blocks[q // 2, k // 2] == 1)")
            .capture_i32("blocks", blocks.array())
            .forward()
            .unwrap();
        assert_eq!(both.output, one.output);
        // Queries 2 and 3 see keys 4 and 5, which are behind them: nothing.
        assert_eq!(both.logsumexp().unwrap().to_f64()[2..4], [f64::NEG_INFINITY; 2]);
    });
}

#[test]
fn dropout_is_the_same_in_every_pass() {
    for_each_device(|device| {
        let x = noise(1, (2, 8, 2, 4));
        let call = |seed| attention(&x, &x, &x).dropout(0.5, seed).device(device);
        let forward = call(7).forward().unwrap();
        assert_eq!(forward.output, call(7).forward().unwrap().output);
        assert_ne!(forward.output, call(8).forward().unwrap().output);
        let grad: ArrayD<f64> = noise(2, forward.output.raw_dim());
        let gradients = call(7).backward(&forward, &grad).unwrap();
        let expected = gradient(&x, |v| {
            dot(&attention(&x, &x, v).dropout(0.5, 7).device(device).forward().unwrap().output, &grad)
        });
        assert_close("value", &gradients.value, &expected, 1e-8);
        let none = attention(&x, &x, &x).dropout(0.0, 7).device(device).forward().unwrap();
        assert_eq!(none.output, attention(&x, &x, &x).device(device).forward().unwrap().output);
    });
}

#[test]
fn scripts_that_make_no_sense_are_refused() {
    let x = noise(1, (1, 4, 2, 2));
    let slope = Array1::from(vec![0.5, 0.25]);
    let call = || attention(&x, &x, &x);
    let alibi = || {
        Program::builder(1)
            .capture(Capture::new("slope", &[2], DType::F64))
            .score("score - slope[h]*abs(q - k)")
            .build()
            .unwrap()
    };
    let single = Array1::from(vec![0.5f32, 0.25]);
    let single = HostTensor::from(single.view());
    let cases = [
        (call().score("score - slop[h]").capture("slope", &slope), "column 9"),
        (call().capture("slope", &slope), "no text of the program loads from it"),
        (call().score("score - slope[h]").capture("slope", &slope).capture("slope", &slope), "a name may stand once"),
        (call().score("score + h").capture("h", &slope), "'h'"),
        (call().program(alibi()), "slope is missing"),
        (call().program(alibi()).capture_tensor("slope", &single), "[2] of f32"),
        (call().program(alibi()).capture("slope", &slope).score("score"), "score is given"),
        (call().program(alibi()).capture("slope", &slope).dropout(0.1, 1), "dropout is given"),
        (call().program(alibi()).capture("slope", &slope).constant("slope"), "constant is given"),
        (call().constant("slope"), "'slope'"),
        (call().dropout(1.5, 0), "dropout is 1.5"),
        (call().dropout(f64::NAN, 0), "dropout is NaN"),
        (call().dropout(0.5, 0).post("2.0"), "post text"),
        (call().program(Program::softmax(2)), "of 2 axes"),
    ];
    for (call, part) in cases {
        let message = call.forward().unwrap_err().to_string();
        assert!(message.contains(part), "{part}: {message}");
    }
}
