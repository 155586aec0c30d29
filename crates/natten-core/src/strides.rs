//! Strided views: how many elements a shape has, where they lie, and whether they stay inside their memory.

use crate::error::{Error, Result};

/// The number of elements of a shape.
///
/// # Errors
/// [`Error::Invalid`] where it, or its bytes at 8 an element, overflow.
pub fn checked_len(shape: &[usize]) -> Result<usize> {
    // Zero extents do not hide an overflow of the others: strides are computed from them.
    shape
        .iter()
        .filter(|&&extent| extent != 0)
        .try_fold(8usize, |bytes, &extent| bytes.checked_mul(extent))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .map(|_| shape.iter().product())
        .ok_or_else(|| {
            Error::invalid(
                "shape",
                format!("{shape:?}"),
                "its number of elements overflows",
                "check the extents",
            )
        })
}

/// The strides, in elements, of a contiguous row-major tensor.
pub fn contiguous_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as isize;
    }
    strides
}

/// Checks that a strided view stays inside `len` elements.
///
/// # Errors
/// [`Error::Invalid`] where it does not.
pub fn check_view(shape: &[usize], strides: &[isize], offset: usize, len: usize) -> Result<()> {
    if shape.len() != strides.len() {
        return Err(Error::invalid(
            "strides",
            format!("{strides:?}"),
            format!("shape {shape:?} has {} axes", shape.len()),
            "give one stride an axis",
        ));
    }
    checked_len(shape)?;
    if shape.contains(&0) {
        return Ok(());
    }
    let reach =
        shape.iter().zip(strides).try_fold((offset as i128, offset as i128), |(low, high), (&n, &s)| {
            let reach = (n as i128 - 1).checked_mul(s as i128)?;
            Some((low.checked_add(reach.min(0))?, high.checked_add(reach.max(0))?))
        });
    match reach {
        Some((low, high)) if low >= 0 && high < len as i128 => Ok(()),
        _ => Err(Error::invalid(
            "strides",
            format!("{strides:?} from offset {offset}"),
            format!("with shape {shape:?} they reach outside the {len} elements that are there"),
            "check the strides (in elements, not bytes), the offset and the shape",
        )),
    }
}

/// Whether no two indices of a strided view name the same element, as far as the strides alone show it.
pub fn is_injective(shape: &[usize], strides: &[isize]) -> bool {
    let axes = || shape.iter().zip(strides).enumerate().filter(|(_, (n, _))| **n > 1);
    axes().all(|(i, (_, stride))| {
        // All steps along shorter axes together must not reach a step along this one. Without a sorted copy: runs check
        // their outputs, and allocate nothing.
        let shorter = |&(j, (_, other)): &(usize, (&usize, &isize))| {
            (other.unsigned_abs(), j) < (stride.unsigned_abs(), i)
        };
        let reach = axes().filter(shorter).fold(0usize, |reach, (_, (n, other))| {
            reach.saturating_add(other.unsigned_abs().saturating_mul(n - 1))
        });
        stride.unsigned_abs() > reach
    })
}
