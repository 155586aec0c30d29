//! Compares a result with the oracle's: class by class (NaN, +inf, -inf, finite), and finite elements within a bound of
//! their own.

use natten_core::{HostTensor, Op, Result, Role, contiguous_strides};

use crate::outcome::TensorCheck;

/// What a result should be.
pub(crate) struct Target<'a> {
    pub(crate) op: Op,
    pub(crate) role: Role,
    /// The oracle's f64 numbers, row-major.
    pub(crate) values: &'a [f64],
    /// The largest right distance of each element.
    pub(crate) bounds: &'a [f64],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Nan,
    PlusInfinity,
    MinusInfinity,
    Finite,
}

fn class(x: f64) -> Class {
    match x {
        _ if x.is_nan() => Class::Nan,
        f64::INFINITY => Class::PlusInfinity,
        f64::NEG_INFINITY => Class::MinusInfinity,
        _ => Class::Finite,
    }
}

impl Target<'_> {
    /// The comparison, and a sentence if anything is wrong.
    pub(crate) fn compare(&self, got: &HostTensor) -> Result<(TensorCheck, Option<String>)> {
        // An element too large for the dtype is rightly infinite: the class is that of the rounded number.
        let rounded = HostTensor::new(&[self.values.len()], self.values.to_vec())?.cast(got.dtype())?;
        let (op, role) = (self.op, self.role);
        let mut check = TensorCheck { op, role, max_error: 0.0, error: 0.0, tolerance: 0.0, wrong: 0 };
        let mut first_wrong = None;
        let mut worst: Option<f64> = None;
        for (index, (&expected, &bound)) in self.values.iter().zip(self.bounds).enumerate() {
            let (found, wanted) = (class(got.slice().get(index)), class(rounded.slice().get(index)));
            let mut right = found == wanted;
            if right && found == Class::Finite {
                let error = (got.slice().get(index) - expected).abs();
                right = error <= bound;
                check.max_error = check.max_error.max(error);
                let ratio = if error == 0.0 { 0.0 } else { error / bound };
                if worst.is_none_or(|worst| ratio.total_cmp(&worst).is_gt()) {
                    worst = Some(ratio);
                    (check.error, check.tolerance) = (error, bound);
                }
            }
            if !right {
                check.wrong += 1;
                first_wrong.get_or_insert(index);
            }
        }
        let complaint = first_wrong.map(|index| {
            let (got_value, expected) = (got.slice().get(index), self.values[index]);
            let at = position(index, got.shape());
            let mut line = format!("{op}: {role}{at:?} is {got_value:e}, expected {expected:e}");
            if got_value.is_finite() && expected.is_finite() {
                let error = (got_value - expected).abs();
                line += &format!(" (error {error:.2e}, tolerance {:.2e})", self.bounds[index]);
            }
            line + &format!("; {} of {} elements are wrong", check.wrong, got.len())
        });
        Ok((check, complaint))
    }
}

/// The indices, one an axis, of a row-major index.
pub(crate) fn position(index: usize, shape: &[usize]) -> Vec<usize> {
    contiguous_strides(shape)
        .iter()
        .zip(shape)
        .map(|(&stride, &extent)| index / stride as usize % extent)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(values: &[f64], bounds: &[f64], got: &[f32]) -> (TensorCheck, Option<String>) {
        let got = HostTensor::new(&[got.len()], got.to_vec()).unwrap();
        Target { op: Op::Forward, role: Role::Output, values, bounds }.compare(&got).unwrap()
    }

    #[test]
    fn classes_must_agree() {
        let all = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0];
        for (i, &expected) in all.iter().enumerate() {
            for (j, &got) in all.iter().enumerate() {
                let (check, complaint) = compare(&[expected], &[0.1], &[got as f32]);
                assert_eq!((check.wrong == 0, complaint.is_none()), (i == j, i == j), "{expected} {got}");
            }
        }
        assert_eq!(compare(&[1e40], &[1e34], &[f32::INFINITY]).0.wrong, 0, "f32 has no 1e40");
    }

    #[test]
    fn each_element_has_its_own_bound() {
        let (check, complaint) = compare(&[1.0, 2.0], &[0.5, 0.125], &[1.25, 2.25]);
        assert_eq!((check.wrong, check.error, check.tolerance, check.max_error), (1, 0.25, 0.125, 0.25));
        assert!(complaint.unwrap().contains("output[1] is 2.25e0, expected 2e0"));
        assert!((check.ratio() - 2.0).abs() < 1e-12);
        assert_eq!(compare(&[1.0], &[f64::NAN], &[1.0]).0.wrong, 1, "a bound that is NaN accepts nothing");
        assert_eq!(compare(&[0.0], &[0.0], &[0.0]).0.wrong, 0);
        assert_eq!(compare(&[0.0, 1.0], &[0.0, 1.0], &[0.5, 1.0]).0.ratio(), f64::INFINITY);
    }

    #[test]
    fn positions_are_row_major() {
        assert_eq!(position(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(position(5, &[2, 3]), [1, 2]);
    }
}
