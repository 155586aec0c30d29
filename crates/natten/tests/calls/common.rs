//! What the tests share: the devices, noise, and derivatives by differences.

use ndarray::{Array, ArrayD, Dimension, ShapeBuilder};

use natten::{Device, Registry};

/// The backends that must be there, and do everything.
pub(crate) const BACKENDS: &[&str] = &["reference"];

pub(crate) fn for_each_device(test: impl Fn(&Device)) {
    for name in BACKENDS {
        test(&Registry::probe().device(name).unwrap());
    }
}

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise<D: Dimension>(seed: u64, shape: impl ShapeBuilder<Dim = D>) -> Array<f64, D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    Array::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
}

pub(crate) fn dot<D: Dimension, E: Dimension>(a: &Array<f64, D>, b: &Array<f64, E>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The derivative of `f` with respect to every element of `x`, by central differences.
pub(crate) fn gradient<D: Dimension>(x: &Array<f64, D>, f: impl Fn(&Array<f64, D>) -> f64) -> ArrayD<f64> {
    let eps = 1e-5;
    let at = |index: usize, step: f64| {
        let mut moved = x.clone();
        *moved.iter_mut().nth(index).unwrap() += step;
        f(&moved)
    };
    let derivatives: Vec<f64> = (0..x.len()).map(|i| (at(i, eps) - at(i, -eps)) / (2.0 * eps)).collect();
    ArrayD::from_shape_vec(x.shape(), derivatives).unwrap()
}

/// The derivative of `f(x + t v)` with respect to `t`, by central differences.
pub(crate) fn along<D: Dimension>(
    x: &Array<f64, D>,
    v: &Array<f64, D>,
    f: impl Fn(&Array<f64, D>) -> ArrayD<f64>,
) -> ArrayD<f64> {
    let eps = 1e-5;
    let at = |step: f64| f(&(x + &(v * step)));
    (at(eps) - at(-eps)) / (2.0 * eps)
}

/// Asserts that no element differs by more than `tolerance` of the largest.
#[track_caller]
pub(crate) fn assert_close(name: &str, found: &ArrayD<f64>, expected: &ArrayD<f64>, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{name}");
    let largest = expected.iter().fold(1.0, |max: f64, x| if x.is_finite() { max.max(x.abs()) } else { max });
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_close = found == expected || (found - expected).abs() <= tolerance * largest;
        assert!(is_close, "{name}, element {index}: {found} instead of {expected}");
    }
}
