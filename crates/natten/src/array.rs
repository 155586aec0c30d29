//! What calls take: arrays of any strides or plain slices, and options that are the same for all axes or one an axis.

use natten_core::{Error, HostElement, Result};
use ndarray::{ArrayView, ArrayViewD, Dimension, IxDyn};

/// A borrowed array: an ndarray view of any strides, or a slice with its shape.
///
/// ```
/// use natten::Array;
/// # fn main() -> natten::Result<()> {
/// let from_slice = Array::from_slice(&[1f32, 2.0, 3.0, 4.0], &[1, 2, 1, 2])?;
/// let owned = ndarray::Array4::<f32>::zeros((1, 2, 1, 2));
/// let from_ndarray: Array<'_, f32> = (&owned).into();
/// assert_eq!(from_slice.shape(), from_ndarray.shape());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Array<'a, T>(ArrayViewD<'a, T>);

impl<'a, T: HostElement> Array<'a, T> {
    /// The numbers of a slice in row-major order.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the shape has another number of elements.
    pub fn from_slice(data: &'a [T], shape: &[usize]) -> Result<Self> {
        let len = natten_core::checked_len(shape)?;
        let mismatch = || {
            Error::invalid(
                "slice",
                format!("{} elements", data.len()),
                format!("shape {shape:?} has {len}"),
                "give as many elements as the shape has",
            )
        };
        ArrayViewD::from_shape(shape, data).ok().filter(|_| len == data.len()).map(Self).ok_or_else(mismatch)
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// The view.
    pub fn view(&self) -> ArrayViewD<'_, T> {
        self.0.view()
    }

    /// The same view, borrowed for less long.
    pub(crate) fn reborrow(&self) -> Array<'_, T> {
        Array(self.0.view())
    }

    /// The view of a larger shape that repeats axes of length 1, without a copy; None where others would have to grow.
    pub(crate) fn broadcast(&self, shape: &IxDyn) -> Option<ArrayViewD<'_, T>> {
        self.0.broadcast(shape.clone())
    }

    /// The same numbers, heads first `[B, H, *X, D]` made heads last `[B, *X, H, D]`; fewer than three axes stay.
    pub(crate) fn heads_last(self) -> Self {
        let rank = self.0.ndim();
        if rank < 3 {
            return self;
        }
        let order: Vec<usize> = [0].into_iter().chain(2..rank - 1).chain([1, rank - 1]).collect();
        Self(self.0.permuted_axes(order))
    }
}

impl<'a, T: HostElement, D: Dimension> From<ArrayView<'a, T, D>> for Array<'a, T> {
    fn from(array: ArrayView<'a, T, D>) -> Self {
        Self(array.into_dyn())
    }
}

impl<'a, T: HostElement, D: Dimension> From<&'a ndarray::Array<T, D>> for Array<'a, T> {
    fn from(array: &'a ndarray::Array<T, D>) -> Self {
        array.view().into()
    }
}

/// One value for all axes, or one an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerAxis<V>(Vec<V>);

impl<V: Copy + PartialEq> PerAxis<V> {
    pub(crate) fn contains(&self, value: V) -> bool {
        self.0.contains(&value)
    }

    pub(crate) fn spread(&self, name: &'static str, rank: usize) -> Result<Vec<V>> {
        match self.0[..] {
            [one] => Ok(vec![one; rank]),
            ref all if all.len() == rank => Ok(all.to_vec()),
            ref all => Err(Error::invalid(
                name,
                format!("{} values", all.len()),
                format!("the tokens have {rank} axes"),
                "give one value for all axes, or one an axis",
            )),
        }
    }
}

impl<V> From<V> for PerAxis<V> {
    fn from(value: V) -> Self {
        Self(vec![value])
    }
}

impl<V, const N: usize> From<[V; N]> for PerAxis<V> {
    fn from(values: [V; N]) -> Self {
        Self(values.into())
    }
}

impl<V: Copy> From<&[V]> for PerAxis<V> {
    fn from(values: &[V]) -> Self {
        Self(values.to_vec())
    }
}
