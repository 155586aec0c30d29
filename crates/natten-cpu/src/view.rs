//! Borrowed, strided host memory, typed at run time: what the typed entry of this crate takes, without a copy and
//! without an allocation. A view is made from a slice with strides, from a tensor in host memory, or from an ndarray.

use std::marker::PhantomData;

use natten_core::{
    DType, Error, HostElement, HostSlice, HostSliceMut, HostTensor, Result, Tensor, TensorSpec, check_tensor,
    check_view, contiguous_strides,
};

/// Batch, three token axes, heads, and the numbers of a vector: the most axes that a tensor of attention has.
pub const MAX_AXES: usize = 6;

/// A pointer to the first element, and the way to the others.
#[derive(Clone, Copy, Debug)]
struct Layout {
    shape: [usize; MAX_AXES],
    strides: [isize; MAX_AXES],
    rank: usize,
}

impl Layout {
    const EMPTY: Self = Self { shape: [0; MAX_AXES], strides: [0; MAX_AXES], rank: 1 };

    fn new(shape: &[usize], strides: &[isize]) -> Result<Self> {
        if shape.len() > MAX_AXES || shape.len() != strides.len() {
            return Err(Error::invalid(
                "shape",
                format!("{shape:?} with strides {strides:?}"),
                format!("a view has at most {MAX_AXES} axes and one stride each"),
                "fold axes, or give one stride an axis",
            ));
        }
        let mut layout = Self { shape: [1; MAX_AXES], strides: [0; MAX_AXES], rank: shape.len() };
        layout.shape[..shape.len()].copy_from_slice(shape);
        layout.strides[..strides.len()].copy_from_slice(strides);
        Ok(layout)
    }

    fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    fn strides(&self) -> &[isize] {
        &self.strides[..self.rank]
    }
}

/// A strided, read-only view of numbers in memory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: *const u8,
    dtype: DType,
    layout: Layout,
    borrow: PhantomData<&'a [u8]>,
}

// SAFETY: a `View` is a shared borrow of plain numbers (`HostElement` is sealed to four of them), which `&[T]` would
// be `Send` and `Sync` for.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

/// A strided view of numbers in memory, to write to.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: *mut u8,
    dtype: DType,
    layout: Layout,
    borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: a `ViewMut` is an exclusive borrow of plain numbers, which `&mut [T]` would be `Send` for.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: `&ViewMut` gives no access to the numbers outside this crate, and inside it every thread writes elements of
// its own.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> View<'a> {
    /// A view of `data`: element `[i, j, …]` is `data[offset + i*strides[0] + j*strides[1] + …]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the view has more than six axes or reaches outside the slice.
    pub fn new<T: HostElement>(
        data: &'a [T],
        shape: &[usize],
        strides: &[isize],
        offset: usize,
    ) -> Result<Self> {
        check_view(shape, strides, offset, data.len())?;
        let layout = Layout::new(shape, strides)?;
        // Derived from the whole slice, so that negative strides may reach back before the offset. An empty view's
        // offset may lie anywhere: nothing is read through it.
        let first = data.as_ptr().wrapping_add(offset);
        Ok(Self { data: first.cast(), dtype: T::DTYPE, layout, borrow: PhantomData })
    }

    /// A view of a tensor in host memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it lies on a device.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let data = tensor.storage().host().ok_or_else(not_host)?;
        Self::of_slice(data, tensor.shape(), tensor.strides(), tensor.offset())
    }

    /// A view of numbers in memory.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn of_host(tensor: &'a HostTensor) -> Result<Self> {
        Self::of_slice(tensor.slice(), tensor.shape(), &contiguous_strides(tensor.shape()), 0)
    }

    fn of_slice(data: HostSlice<'a>, shape: &[usize], strides: &[isize], offset: usize) -> Result<Self> {
        match data {
            HostSlice::F64(data) => Self::new(data, shape, strides, offset),
            HostSlice::F32(data) => Self::new(data, shape, strides, offset),
            HostSlice::F16(data) => Self::new(data, shape, strides, offset),
            HostSlice::Bf16(data) => Self::new(data, shape, strides, offset),
            HostSlice::I32(data) => Self::new(data, shape, strides, offset),
            other => Err(unknown_dtype(other.dtype())),
        }
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The distance of neighbours along each axis, in elements.
    pub fn strides(&self) -> &[isize] {
        self.layout.strides()
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn check(&self, spec: &TensorSpec) -> Result<()> {
        check_tensor(spec, self.shape(), self.dtype, self.strides())
    }

    /// The first element. Valid for reads at every index of the layout.
    pub(crate) const fn data(&self) -> *const u8 {
        self.data
    }
}

impl<'a> ViewMut<'a> {
    /// As [`View::new`], to write to.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn new<T: HostElement>(
        data: &'a mut [T],
        shape: &[usize],
        strides: &[isize],
        offset: usize,
    ) -> Result<Self> {
        check_view(shape, strides, offset, data.len())?;
        let layout = Layout::new(shape, strides)?;
        let first = data.as_mut_ptr().wrapping_add(offset);
        Ok(Self { data: first.cast(), dtype: T::DTYPE, layout, borrow: PhantomData })
    }

    /// As [`View::of`], to write to.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the tensor lies on a device or shares its storage.
    pub fn of(tensor: &'a mut Tensor) -> Result<Self> {
        let layout = Layout::new(tensor.shape(), tensor.strides())?;
        let offset = tensor.offset();
        let data = tensor.storage_mut().and_then(|storage| storage.host_mut()).ok_or_else(not_host)?;
        Self::of_slice(data, layout.shape(), layout.strides(), offset)
    }

    /// As [`View::of_host`], to write to.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn of_host(tensor: &'a mut HostTensor) -> Result<Self> {
        let layout = Layout::new(tensor.shape(), &contiguous_strides(tensor.shape()))?;
        Self::of_slice(tensor.slice_mut(), layout.shape(), layout.strides(), 0)
    }

    fn of_slice(data: HostSliceMut<'a>, shape: &[usize], strides: &[isize], offset: usize) -> Result<Self> {
        match data {
            HostSliceMut::F64(data) => Self::new(data, shape, strides, offset),
            HostSliceMut::F32(data) => Self::new(data, shape, strides, offset),
            HostSliceMut::F16(data) => Self::new(data, shape, strides, offset),
            HostSliceMut::Bf16(data) => Self::new(data, shape, strides, offset),
            HostSliceMut::I32(data) => Self::new(data, shape, strides, offset),
            other => Err(unknown_dtype(other.dtype())),
        }
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The distance of neighbours along each axis, in elements.
    pub fn strides(&self) -> &[isize] {
        self.layout.strides()
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn check(&self, spec: &TensorSpec) -> Result<()> {
        check_tensor(spec, self.shape(), self.dtype, self.strides())
    }

    /// The same view, for a while.
    pub(crate) const fn again(&mut self) -> ViewMut<'_> {
        ViewMut { data: self.data, dtype: self.dtype, layout: self.layout, borrow: PhantomData }
    }

    /// The first element. Valid for writes at every index of the layout, while `self` is borrowed mutably.
    pub(crate) const fn data(&mut self) -> *mut u8 {
        self.data
    }
}

impl Default for View<'_> {
    /// A view of nothing.
    fn default() -> Self {
        Self { data: std::ptr::dangling(), dtype: DType::F32, layout: Layout::EMPTY, borrow: PhantomData }
    }
}

impl Default for ViewMut<'_> {
    /// A view of nothing.
    fn default() -> Self {
        Self { data: std::ptr::dangling_mut(), dtype: DType::F32, layout: Layout::EMPTY, borrow: PhantomData }
    }
}

fn unknown_dtype(dtype: DType) -> Error {
    Error::unsupported(crate::NAME, format!("dtype {dtype}"), "use f64, f32, f16, bf16 or i32")
}

fn not_host() -> Error {
    Error::invalid(
        "tensor",
        "on a device, or an output that shares its storage",
        "the CPU reads host memory, and writes host memory that no other tensor shares",
        "download the tensor first, or use the output that Backend::empty made",
    )
}

#[cfg(feature = "ndarray")]
mod arrays {
    use ndarray::{ArrayView, ArrayViewMut, Dimension};

    use super::*;

    impl<'a, T: HostElement, D: Dimension> TryFrom<ArrayView<'a, T, D>> for View<'a> {
        type Error = Error;

        /// Any ndarray view, whatever its strides, without a copy.
        fn try_from(array: ArrayView<'a, T, D>) -> Result<Self> {
            let layout = Layout::new(array.shape(), array.strides())?;
            // The array borrows all its elements for 'a, and its pointer is at the first one.
            Ok(Self { data: array.as_ptr().cast(), dtype: T::DTYPE, layout, borrow: PhantomData })
        }
    }

    impl<'a, T: HostElement, D: Dimension> TryFrom<ArrayViewMut<'a, T, D>> for ViewMut<'a> {
        type Error = Error;

        /// Any mutable ndarray view, whatever its strides, without a copy.
        fn try_from(mut array: ArrayViewMut<'a, T, D>) -> Result<Self> {
            let layout = Layout::new(array.shape(), array.strides())?;
            Ok(Self { data: array.as_mut_ptr().cast(), dtype: T::DTYPE, layout, borrow: PhantomData })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_checked() {
        let data = [0f32; 24];
        assert!(View::new(&data, &[2, 3, 4], &[12, 4, 1], 0).is_ok());
        assert!(View::new(&data, &[2, 3, 4], &[12, 4, 1], 1).is_err());
        assert!(View::new(&data, &[1; 7], &[0; 7], 0).is_err());
        assert!(View::new(&data, &[0, 9], &[9, 1], 1000).is_ok(), "an empty view reads nothing");
    }

    #[test]
    fn shared_storage_is_not_written() {
        let mut tensor: Tensor = HostTensor::zeros(DType::F32, &[3]).unwrap().into();
        assert!(ViewMut::of(&mut tensor).is_ok());
        let other = tensor.clone();
        assert!(ViewMut::of(&mut tensor).unwrap_err().to_string().contains("shares"));
        drop(other);
    }
}
