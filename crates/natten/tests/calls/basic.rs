//! The calls as a user makes them: strided arrays, gradients, and what is refused.

use ndarray::{Array4, Array5, Axis, s};

use natten::{HostTensor, attention, na1d, na2d};

fn filled(shape: (usize, usize, usize, usize)) -> Array4<f32> {
    Array4::from_shape_fn(shape, |(b, i, h, d)| ((b * 31 + i * 17 + h * 7 + d * 3) % 11) as f32 / 5.0 - 1.0)
}

#[test]
fn strided_arrays_need_no_copy_and_give_the_same_numbers() {
    let packed = Array5::<f32>::from_shape_fn((2, 9, 3, 2, 4), |(b, i, n, h, d)| {
        ((b * 31 + i * 17 + n * 5 + h * 7 + d * 3) % 11) as f32 / 5.0 - 1.0
    });
    let part = |n| packed.index_axis(Axis(2), n);
    let (q, k, v) = (part(0).to_owned(), part(1).to_owned(), part(2).to_owned());
    let from_packed = na1d(part(0), part(1), part(2), 3).forward().unwrap();
    let from_copies = na1d(&q, &k, &v, 3).forward().unwrap();
    assert_eq!(from_packed.output, from_copies.output);
    // Heads first, and reversed along the tokens: negative strides.
    let heads_first = q.view().permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
    let reversed = heads_first.view().permuted_axes([0, 2, 1, 3]);
    let flip = |a: &ndarray::ArrayD<f32>| a.slice(s![.., ..;-1, .., ..]).to_owned();
    let backwards = na1d(
        reversed.slice(s![.., ..;-1, .., ..]),
        k.slice(s![.., ..;-1, .., ..]),
        v.slice(s![.., ..;-1, .., ..]),
        3,
    );
    // Sums run the other way round.
    let difference = flip(&backwards.forward().unwrap().output).into_dyn() - &from_copies.output;
    assert!(difference.iter().all(|d| d.abs() < 1e-6));
}

#[test]
fn gradients_of_every_input_come_back() {
    let x = filled((1, 8, 2, 4));
    let extra = filled((1, 3, 2, 4));
    let table = ndarray::Array2::<f32>::zeros((2, 5));
    let call = na1d(&x, &x, &x, 3).rpb(&table).additional(&extra, &extra);
    let forward = call.forward().unwrap();
    let gradients = call.backward(&forward, &x).unwrap();
    assert_eq!(gradients.rpb.unwrap().shape(), [2, 5]);
    assert_eq!(gradients.additional_key.unwrap().shape(), [1, 3, 2, 4]);
    let rows = HostTensor::zeros(natten::DType::F32, &[1, 8, 2]).unwrap();
    let again = call.backward_with_logsumexp(&forward, &x, &rows).unwrap();
    assert_eq!(again.query, gradients.query);
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let x = filled((1, 8, 2, 4));
    let other = filled((1, 7, 2, 4));
    let cases = [
        (na1d(&x, &x, &x, 9).problem(), "kernel_size[0] is 9"),
        (na1d(&x, &other, &x, 3).problem(), "key is [1, 7, 2, 4]"),
        (na2d(&x, &x, &x, 3).problem(), "query is [1, 8, 2, 4]"),
        (na1d(&x, &x, &x, [3, 3]).problem(), "kernel_size is 2 values"),
        (na1d(&x, &x, &x, 3).scale(f64::NAN).problem(), "scale is NaN"),
        (attention(&x, &other, &x).problem(), "value is [1, 8, 2, 4]"),
        (attention(&x, &x, &x).rpb(&x).problem(), "rpb"),
    ];
    for (result, part) in cases {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert!(na1d(&x, &x, &x, 9).fit().problem().is_ok());
    let call = na1d(&x, &x, &x, 3);
    let forward = call.forward().unwrap();
    let message = call.backward(&forward, &other).unwrap_err().to_string();
    assert!(message.contains("grad_output"), "{message}");
}
