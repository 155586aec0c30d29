//! The unfused pair: what lies between the two is softmax here, and the whole is the fused call.

use ndarray::{Array4, Array5, ArrayD, Axis, concatenate};

use natten::{Tangents, compat, na1d_av, na1d_qk, na2d, na2d_av, na2d_qk, na3d_av, na3d_qk};

use crate::common::{assert_close, dot, for_each_device, gradient, noise};

fn softmax(scores: &ArrayD<f64>) -> ArrayD<f64> {
    let mut weights = scores.clone();
    let last = Axis(weights.ndim() - 1);
    for mut row in weights.lanes_mut(last) {
        let max = row.fold(f64::NEG_INFINITY, |max, &x| max.max(x));
        row.mapv_inplace(|x| (x - max).exp());
        let sum = row.sum();
        row /= sum;
    }
    weights
}

/// Heads first to heads last.
fn heads_last(array: &Array5<f64>) -> Array5<f64> {
    array.view().permuted_axes([0, 2, 3, 1, 4]).as_standard_layout().into_owned()
}

#[test]
fn the_pair_is_the_fused_call() {
    for_each_device(|device| {
        let (q, k, v) = (noise(1, (2, 4, 5, 6, 3)), noise(2, (2, 2, 5, 6, 3)), noise(3, (2, 2, 5, 6, 2)));
        let (extra_k, extra_v) = (noise(4, (2, 2, 2, 3)), noise(5, (2, 2, 2, 2)));
        let rpb = noise(6, (4, 5, 5));
        let qk = || na2d_qk(&q, &k, 3).dilation([1, 2]).causal([true, false]).rpb(&rpb).device(device);
        let scores = qk().additional_keys(&extra_k).forward().unwrap();
        assert_eq!(scores.shape(), [2, 4, 5, 6, 11]);
        // The first row of queries sees one row of keys of three, and both additional ones.
        let first: Vec<bool> =
            scores.slice(ndarray::s![0, 0, 0, 0, ..]).iter().map(|&s| s == f64::NEG_INFINITY).collect();
        assert_eq!(first, [[false; 3], [true; 3], [true; 3]].concat().into_iter().chain([false; 2]).collect::<Vec<_>>());
        let mut weights = softmax(&scores);
        // What lies in slots without a key is not read.
        weights.zip_mut_with(&scores, |w, &s| *w = if s == f64::NEG_INFINITY { f64::NAN } else { *w });
        let output = na2d_av(&weights, &v, 3)
            .dilation([1, 2])
            .causal([true, false])
            .additional_values(&extra_v)
            .device(device)
            .forward()
            .unwrap();

        let (q, k, v) = (heads_last(&q), heads_last(&k), heads_last(&v));
        let heads_last = |a: &Array4<f64>| a.view().permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
        let (extra_k, extra_v) = (heads_last(&extra_k), heads_last(&extra_v));
        let fused = na2d(&q, &k, &v, 3)
            .dilation([1, 2])
            .causal([true, false])
            .rpb(&rpb)
            .additional(&extra_k, &extra_v)
            .scale(1.0)
            .device(device)
            .forward()
            .unwrap();
        let expected = fused.output.permuted_axes(vec![0, 3, 1, 2, 4]);
        assert_close("output", &output, &expected, 1e-13);
    });
}

#[test]
fn derivatives_of_the_scores() {
    for_each_device(|device| {
        let (q, k) = (noise(1, (2, 2, 7, 3)), noise(2, (2, 1, 7, 3)));
        let (extra, rpb) = (noise(3, (2, 1, 2, 3)), noise(4, (2, 7)));
        let run = |q: &Array4<f64>, k: &Array4<f64>, e: &Array4<f64>, rpb: &ndarray::Array2<f64>| {
            na1d_qk(q, k, 4).causal(true).rpb(rpb).additional_keys(e).device(device).forward().unwrap()
        };
        let call = na1d_qk(&q, &k, 4).causal(true).rpb(&rpb).additional_keys(&extra).device(device);
        let scores = call.forward().unwrap();
        // Slots without a key are not read.
        let mut grad: ArrayD<f64> = noise(5, scores.raw_dim());
        grad.zip_mut_with(&scores, |g, s| *g = if s.is_finite() { *g } else { f64::NAN });
        let loss = |scores: ArrayD<f64>| -> f64 {
            scores.iter().zip(&grad).filter(|(s, _)| s.is_finite()).map(|(s, g)| s * g).sum()
        };
        let gradients = call.backward(&grad).unwrap();
        assert_close("query", &gradients.query, &gradient(&q, |q| loss(run(q, &k, &extra, &rpb))), 1e-8);
        assert_close("key", &gradients.key, &gradient(&k, |k| loss(run(&q, k, &extra, &rpb))), 1e-8);
        let of_extra = gradient(&extra, |e| loss(run(&q, &k, e, &rpb)));
        assert_close("additional_keys", gradients.additional_keys.as_ref().unwrap(), &of_extra, 1e-8);
        let of_rpb = gradient(&rpb, |rpb| loss(run(&q, &k, &extra, rpb)));
        assert_close("rpb", gradients.rpb.as_ref().unwrap(), &of_rpb, 1e-8);

        let (tq, te, tr) = (noise(6, q.raw_dim()), noise(7, extra.raw_dim()), noise(8, rpb.raw_dim()));
        let tangent = call.jvp(&Tangents::new().query(&tq).additional_key(&te).rpb(&tr)).unwrap();
        let pulled = dot(&gradients.query, &tq)
            + dot(gradients.additional_keys.as_ref().unwrap(), &te)
            + dot(gradients.rpb.as_ref().unwrap(), &tr);
        let pushed: f64 = tangent.iter().zip(&grad).filter(|(_, g)| !g.is_nan()).map(|(t, g)| t * g).sum();
        assert!((pushed - pulled).abs() < 1e-12, "{pushed} {pulled}");
        assert!(tangent.iter().zip(&scores).all(|(t, s)| s.is_finite() || *t == 0.0));
    });
}

#[test]
fn derivatives_of_the_output() {
    for_each_device(|device| {
        let (q, k) = (noise(1, (1, 2, 6, 3)), noise(2, (1, 2, 6, 3)));
        let scores = na1d_qk(&q, &k, 3).causal(true).device(device).forward().unwrap();
        let extra_weights: ArrayD<f64> = noise(3, ndarray::IxDyn(&[1, 2, 6, 2]));
        let weights = concatenate(Axis(3), &[softmax(&scores).view(), extra_weights.view()]).unwrap();
        let (v, extra) = (noise(4, (1, 1, 6, 5)), noise(5, (1, 1, 2, 5)));
        let run = |w: &ArrayD<f64>, v: &Array4<f64>, e: &Array4<f64>| {
            na1d_av(w, v, 3).causal(true).additional_values(e).device(device).forward().unwrap()
        };
        let call = na1d_av(&weights, &v, 3).causal(true).additional_values(&extra).device(device);
        let output = call.forward().unwrap();
        assert_eq!(output.shape(), [1, 2, 6, 5]);
        let grad: ArrayD<f64> = noise(6, output.raw_dim());
        let gradients = call.backward(&grad).unwrap();
        let of_weights = gradient(&weights, |w| dot(&run(w, &v, &extra), &grad));
        assert_close("attention", &gradients.attention, &of_weights, 1e-8);
        assert_close("value", &gradients.value, &gradient(&v, |v| dot(&run(&weights, v, &extra), &grad)), 1e-8);
        let of_extra = gradient(&extra, |e| dot(&run(&weights, &v, e), &grad));
        assert_close("additional_values", gradients.additional_values.as_ref().unwrap(), &of_extra, 1e-8);
        let (tw, tv): (ArrayD<f64>, _) = (noise(7, weights.raw_dim()), noise(8, v.raw_dim()));
        let tangent = call.jvp(&Tangents::new().attention(&tw).value(&tv)).unwrap();
        let pulled = dot(&gradients.attention, &tw) + dot(&gradients.value, &tv);
        assert!((dot(&tangent, &grad) - pulled).abs() < 1e-12);
    });
}

#[test]
fn older_names_are_the_same_calls() {
    for_each_device(|device| {
        let x = noise(1, (1, 2, 4, 5, 6, 2));
        let rpb = noise(2, (2, 3, 5, 5));
        let scores = na3d_qk(&x, &x, [2, 3, 3]).dilation([2, 1, 1]).rpb(&rpb).device(device).forward().unwrap();
        assert_eq!(scores.shape(), [1, 2, 4, 5, 6, 18]);
        let older = compat::natten3dqkrpb(&x, &x, &rpb, 2, 3, 2, 1).device(device).forward().unwrap();
        assert_eq!(older, scores);
        let output = na3d_av(&scores, &x, [2, 3, 3]).dilation([2, 1, 1]).device(device).forward().unwrap();
        let older = compat::natten3dav(&scores, &x, 2, 3, 2, 1).device(device).forward().unwrap();
        assert_eq!(older, output);
        let scores = compat::natten3dqk(&x, &x, 2, 3, 1, 1).device(device).forward().unwrap();
        assert_eq!(scores, na3d_qk(&x, &x, [2, 3, 3]).device(device).forward().unwrap());

        let x = noise(1, (1, 2, 9, 2));
        let scores = compat::natten1dqk(&x, &x, 3, 2).device(device).forward().unwrap();
        assert_eq!(scores, na1d_qk(&x, &x, 3).dilation(2).device(device).forward().unwrap());
        let older = compat::natten1dav(&scores, &x, 3, 2).device(device).forward().unwrap();
        assert_eq!(older, na1d_av(&scores, &x, 3).dilation(2).device(device).forward().unwrap());
        let rpb = noise(2, (2, 5));
        let older = compat::na1d_with_bias(&x, &x, &rpb, 3, 2).device(device).forward().unwrap();
        assert_eq!(older, compat::natten1dqkrpb(&x, &x, &rpb, 3, 2).device(device).forward().unwrap());
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let x = noise(1, (1, 2, 8, 4));
    let wrong = noise(2, (1, 2, 7, 4));
    let weights = noise(3, (1, 2, 8, 3));
    let cases = [
        (na1d_qk(&x, &wrong, 3).problem(), "key is [1, 2, 7, 4]"),
        (na1d_qk(&x, &x, 9).problem(), "kernel_size[0] is 9"),
        (na2d_qk(&x, &x, 3).problem(), "query is [1, 2, 8, 4]"),
        (na1d_qk(&x, &x, 3).rpb(&x).problem(), "rpb"),
        (na1d_av(&weights, &x, 5).problem(), "attention is [1, 2, 8, 3]"),
        (na1d_av(&weights, &wrong, 3).problem(), "value is [1, 2, 7, 4]"),
        (na1d_av(&weights, &x, 3).additional_values(&x).problem(), "attention is [1, 2, 8, 3]"),
    ];
    for (result, part) in cases {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{part}: {message}");
    }
}
