//! Tensors: [`HostTensor`] owns typed numbers in memory; [`Tensor`] is a strided view of shared [`Storage`] anywhere.
//!
//! Views cost nothing. Foreign memory (a tensor of another library) is storage whose owner is kept alive: implement
//! [`Storage`] for a type that holds the owner.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use half::{bf16, f16};

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::marker::{MaybeSend, MaybeSync};
use crate::problem::TensorSpec;
use crate::strides::{check_view, checked_len, contiguous_strides, is_injective};

macro_rules! host_types {
    ($($variant:ident($type:ty)),*) => {
        /// Typed numbers that somebody else owns.
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum HostSlice<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($type), ".")] $variant(&'a [$type])),*
        }

        /// Typed numbers that somebody else owns, to write to.
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum HostSliceMut<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($type), ".")] $variant(&'a mut [$type])),*
        }

        #[derive(Clone, Debug, PartialEq)]
        enum HostData {
            $($variant(Vec<$type>)),*
        }

        impl HostSlice<'_> {
            /// The element type.
            pub const fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),* }
            }

            /// The number of elements.
            pub const fn len(&self) -> usize {
                match self { $(Self::$variant(s) => s.len()),* }
            }

            /// Whether there is no element.
            pub const fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// One element, widened.
            pub fn get(&self, index: usize) -> f64 {
                match self { $(Self::$variant(s) => s[index].to_f64()),* }
            }

            /// Every element, widened.
            pub fn to_f64(&self) -> Vec<f64> {
                match self { $(Self::$variant(s) => s.iter().map(|x| x.to_f64()).collect()),* }
            }
        }

        impl HostSliceMut<'_> {
            /// The element type.
            pub const fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),* }
            }

            /// Rounds `value` into one element.
            pub fn set(&mut self, index: usize, value: f64) {
                match self { $(Self::$variant(s) => s[index] = Element::from_f64(value)),* }
            }

            /// Copies the elements of `from`, of the same type, at these places.
            fn gather(&mut self, from: &HostSlice<'_>, places: impl Iterator<Item = usize>) {
                match (self, from) {
                    $((Self::$variant(to), HostSlice::$variant(from)) => {
                        to.iter_mut().zip(places).for_each(|(to, at)| *to = from[at]);
                    })*
                    _ => {}
                }
            }

            /// Rounds `values` into the elements at these places.
            fn scatter(&mut self, places: impl Iterator<Item = usize>, values: &[f64]) {
                match self {
                    $(Self::$variant(s) => places.zip(values).for_each(|(at, &x)| s[at] = Element::from_f64(x))),*
                }
            }
        }

        impl HostData {
            fn zeros(dtype: DType, len: usize) -> Result<Self> {
                match dtype { $(DType::$variant => Ok(Self::$variant(zeroed(len)?))),* }
            }

            fn slice(&self) -> HostSlice<'_> {
                match self { $(Self::$variant(v) => HostSlice::$variant(v)),* }
            }

            fn slice_mut(&mut self) -> HostSliceMut<'_> {
                match self { $(Self::$variant(v) => HostSliceMut::$variant(v)),* }
            }

            fn from_le_bytes(dtype: DType, bytes: &[u8]) -> Self {
                match dtype {
                    $(DType::$variant => {
                        let (chunks, _) = bytes.as_chunks();
                        Self::$variant(chunks.iter().map(|&chunk| <$type>::from_le_bytes(chunk)).collect())
                    })*
                }
            }

            fn to_le_bytes(&self) -> Vec<u8> {
                match self { $(Self::$variant(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect()),* }
            }
        }

        $(
            impl HostElement for $type {
                fn slice(slice: HostSlice<'_>) -> Option<&[Self]> {
                    match slice { HostSlice::$variant(s) => Some(s), _ => None }
                }

                fn slice_mut(slice: HostSliceMut<'_>) -> Option<&mut [Self]> {
                    match slice { HostSliceMut::$variant(s) => Some(s), _ => None }
                }

                fn into_tensor(shape: &[usize], data: Vec<Self>) -> Result<HostTensor> {
                    HostTensor::checked(shape, HostData::$variant(data))
                }

                fn into_vec(tensor: HostTensor) -> Option<Vec<Self>> {
                    match tensor.data { HostData::$variant(data) => Some(data), _ => None }
                }
            }
        )*
    };
}

/// An [`Element`] that host memory is typed by.
pub trait HostElement: Element {
    /// The slice, if it holds this type.
    fn slice(slice: HostSlice<'_>) -> Option<&[Self]>;

    /// The slice, if it holds this type.
    fn slice_mut(slice: HostSliceMut<'_>) -> Option<&mut [Self]>;

    /// What [`HostTensor::new`] does.
    ///
    /// # Errors
    /// As [`HostTensor::new`].
    fn into_tensor(shape: &[usize], data: Vec<Self>) -> Result<HostTensor>;

    /// The numbers of a tensor, if they are of this type.
    fn into_vec(tensor: HostTensor) -> Option<Vec<Self>>;
}

host_types!(F64(f64), F32(f32), F16(f16), Bf16(bf16), I32(i32));

fn zeroed<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut data = Vec::new();
    data.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { needed: len.saturating_mul(size_of::<T>()), available: None })?;
    data.resize(len, T::default());
    Ok(data)
}

/// Numbers in memory, row-major and contiguous, with their shape and type.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: HostData,
}

impl HostTensor {
    /// A tensor of `data` in row-major order.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the shape overflows or does not have as many elements as `data`.
    pub fn new<T: HostElement>(shape: &[usize], data: Vec<T>) -> Result<Self> {
        T::into_tensor(shape, data)
    }

    fn checked(shape: &[usize], data: HostData) -> Result<Self> {
        let (len, given) = (checked_len(shape)?, data.slice().len());
        if len != given {
            return Err(Error::invalid(
                "data",
                format!("{given} elements"),
                format!("shape {shape:?} has {len}"),
                "give as many elements as the shape has",
            ));
        }
        Ok(Self { shape: shape.to_vec(), data })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the shape overflows, [`Error::OutOfMemory`] where the allocator refuses.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self> {
        Ok(Self { data: HostData::zeros(dtype, checked_len(shape)?)?, shape: shape.to_vec() })
    }

    /// A tensor of zeros of the spec's shape and dtype.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn zeros_like(spec: &TensorSpec) -> Result<Self> {
        Self::zeros(spec.dtype, &spec.shape)
    }

    /// A tensor whose element at each row-major index is `f(index)`, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn from_fn(dtype: DType, shape: &[usize], mut f: impl FnMut(usize) -> f64) -> Result<Self> {
        let mut tensor = Self::zeros(dtype, shape)?;
        let len = tensor.len();
        let mut data = tensor.data.slice_mut();
        for index in 0..len {
            data.set(index, f(index));
        }
        Ok(tensor)
    }

    /// A tensor from little-endian bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the bytes are not as many as the shape and the dtype need.
    pub fn from_le_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Self> {
        let needed = checked_len(shape)? * dtype.size();
        if needed != bytes.len() {
            return Err(Error::invalid(
                "bytes",
                bytes.len(),
                format!("shape {shape:?} of {dtype} needs {needed}"),
                "the file is truncated or its header is wrong: write it again",
            ));
        }
        Ok(Self { shape: shape.to_vec(), data: HostData::from_le_bytes(dtype, bytes) })
    }

    /// The numbers as little-endian bytes.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        self.data.to_le_bytes()
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.slice().dtype()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.slice().len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, typed at run time.
    pub fn slice(&self) -> HostSlice<'_> {
        self.data.slice()
    }

    /// The numbers, typed at run time, to write to.
    pub fn slice_mut(&mut self) -> HostSliceMut<'_> {
        self.data.slice_mut()
    }

    /// The numbers, if they are of type `T`.
    pub fn as_slice<T: HostElement>(&self) -> Option<&[T]> {
        T::slice(self.data.slice())
    }

    /// The numbers, if they are of type `T`, to write to.
    pub fn as_mut_slice<T: HostElement>(&mut self) -> Option<&mut [T]> {
        T::slice_mut(self.data.slice_mut())
    }

    /// The numbers widened to f64; exact.
    pub fn to_f64(&self) -> Vec<f64> {
        self.data.slice().to_f64()
    }

    /// The same numbers in another dtype, each rounded once.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the allocator refuses.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        let data = self.data.slice();
        Self::from_fn(dtype, &self.shape, |index| data.get(index))
    }
}

#[cfg(feature = "ndarray")]
impl<T: HostElement, D: ndarray::Dimension> From<ndarray::ArrayView<'_, T, D>> for HostTensor {
    fn from(array: ndarray::ArrayView<'_, T, D>) -> Self {
        let data: Vec<T> = array.iter().copied().collect();
        // An ndarray's length is checked by ndarray, to the same bound.
        T::into_tensor(array.shape(), data).expect("an array has as many elements as its shape")
    }
}

#[cfg(feature = "ndarray")]
impl HostTensor {
    /// The numbers as an ndarray, without a copy, if they are of type `T`.
    pub fn into_ndarray<T: HostElement>(self) -> Option<ndarray::ArrayD<T>> {
        let shape = self.shape.clone();
        ndarray::ArrayD::from_shape_vec(shape, T::into_vec(self)?).ok()
    }
}

/// Memory that tensors are views of: host memory, or a device's.
pub trait Storage: Debug + MaybeSend + MaybeSync {
    /// Where the memory is: `host`, or the device's name, such as `cuda:0`.
    fn device(&self) -> &str;

    /// The type of the elements.
    fn dtype(&self) -> DType;

    /// The number of elements.
    fn len(&self) -> usize;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they lie in host memory.
    fn host(&self) -> Option<HostSlice<'_>> {
        None
    }

    /// The elements, if they lie in host memory that may be written.
    fn host_mut(&mut self) -> Option<HostSliceMut<'_>> {
        None
    }

    /// For a backend to find its own storage type.
    fn as_any(&self) -> &dyn Any;
}

impl Storage for HostTensor {
    fn device(&self) -> &str {
        "host"
    }

    fn dtype(&self) -> DType {
        Self::dtype(self)
    }

    fn len(&self) -> usize {
        Self::len(self)
    }

    fn host(&self) -> Option<HostSlice<'_>> {
        Some(self.data.slice())
    }

    fn host_mut(&mut self) -> Option<HostSliceMut<'_>> {
        Some(self.data.slice_mut())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A strided view of shared storage. Cloning and permuting it cost nothing.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    strides: Vec<isize>,
    offset: usize,
    storage: Arc<dyn Storage>,
}

impl From<HostTensor> for Tensor {
    fn from(host: HostTensor) -> Self {
        Self {
            strides: contiguous_strides(host.shape()),
            shape: host.shape().to_vec(),
            offset: 0,
            storage: Arc::new(host),
        }
    }
}

impl Tensor {
    /// A view of `storage`: element `[i, j, …]` is `offset + i*strides[0] + j*strides[1] + …`, in elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shape and strides differ in rank, or the view reaches outside the storage.
    pub fn view(
        storage: Arc<dyn Storage>,
        shape: &[usize],
        strides: &[isize],
        offset: usize,
    ) -> Result<Self> {
        check_view(shape, strides, offset, storage.len())?;
        Ok(Self { shape: shape.to_vec(), strides: strides.to_vec(), offset, storage })
    }

    /// The same elements with the axes in another order: axis `i` of the result is axis `order[i]` of this. A
    /// heads-first `[B, H, X, D]` tensor becomes heads-last by `permute(&[0, 2, 1, 3])`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `order` is not a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut seen = vec![false; self.shape.len()];
        let valid = order.len() == seen.len()
            && order.iter().all(|&axis| axis < seen.len() && !std::mem::replace(&mut seen[axis], true));
        if !valid {
            return Err(Error::invalid(
                "order",
                format!("{order:?}"),
                format!("it must name each of the {} axes once", self.shape.len()),
                "count axes from 0",
            ));
        }
        Ok(Self {
            shape: order.iter().map(|&axis| self.shape[axis]).collect(),
            strides: order.iter().map(|&axis| self.strides[axis]).collect(),
            offset: self.offset,
            storage: Arc::clone(&self.storage),
        })
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The distance of neighbours along each axis, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// The index of the first element in the storage.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// The storage.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// The storage, to write to: only while no other tensor shares it.
    pub fn storage_mut(&mut self) -> Option<&mut (dyn Storage + 'static)> {
        Arc::get_mut(&mut self.storage)
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no two indices name the same element, as far as the strides alone show it. Outputs must.
    pub fn is_injective(&self) -> bool {
        is_injective(&self.shape, &self.strides)
    }

    /// A contiguous copy in memory of a tensor whose storage is host memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the storage is a device's: download it through its backend.
    pub fn to_host(&self) -> Result<HostTensor> {
        let data = self.storage.host().ok_or_else(|| {
            Error::invalid(
                "tensor",
                format!("on {}", self.storage.device()),
                "it must be in host memory",
                "download it through its backend",
            )
        })?;
        let mut host = HostTensor::zeros(self.dtype(), &self.shape)?;
        match self.is_contiguous() {
            true => host.slice_mut().gather(&data, self.offset..self.offset + self.len()),
            false => host.slice_mut().gather(&data, self.places()),
        }
        Ok(host)
    }

    /// Rounds `values`, row-major, into the elements; None where this is not the only tensor of host memory that may be
    /// written.
    pub(crate) fn write_f64(&mut self, values: &[f64]) -> Option<()> {
        let (offset, len, is_contiguous) = (self.offset, self.len(), self.is_contiguous());
        let places: Vec<usize> = if is_contiguous { Vec::new() } else { self.places().collect() };
        let mut data = self.storage_mut()?.host_mut()?;
        match is_contiguous {
            true => data.scatter(offset..offset + len, values),
            false => data.scatter(places.into_iter(), values),
        }
        Some(())
    }

    /// Whether the elements lie one behind the other.
    fn is_contiguous(&self) -> bool {
        let expected = contiguous_strides(&self.shape);
        let mut axes = self.shape.iter().zip(&self.strides).zip(&expected);
        self.is_empty() || axes.all(|((&extent, stride), expected)| extent == 1 || stride == expected)
    }

    /// The storage index of every element, in row-major order.
    fn places(&self) -> impl Iterator<Item = usize> {
        let mut at = vec![0; self.shape.len()];
        let mut place = self.offset as isize;
        (0..self.len()).map(move |_| {
            let here = place as usize;
            for axis in (0..at.len()).rev() {
                at[axis] += 1;
                place += self.strides[axis];
                if at[axis] < self.shape[axis] {
                    break;
                }
                place -= self.strides[axis] * at[axis] as isize;
                at[axis] = 0;
            }
            here
        })
    }

    /// The storage index of the element at a row-major index.
    pub fn element(&self, mut index: usize) -> usize {
        let mut at = self.offset as isize;
        for (&extent, &stride) in self.shape.iter().zip(&self.strides).rev() {
            at += (index % extent) as isize * stride;
            index /= extent;
        }
        at as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> HostTensor {
        HostTensor::from_fn(DType::F32, shape, |i| i as f64).unwrap()
    }

    #[test]
    fn permuted_views_read_the_right_elements() {
        let heads_first = Tensor::from(counting(&[1, 2, 3, 4]));
        let heads_last = heads_first.permute(&[0, 2, 1, 3]).unwrap().to_host().unwrap();
        assert_eq!(heads_last.shape(), [1, 3, 2, 4]);
        assert_eq!(&heads_last.to_f64()[..8], [0., 1., 2., 3., 12., 13., 14., 15.]);
        for order in [&[0, 1][..], &[0, 1, 1, 2], &[0, 1, 2, 4]] {
            assert!(heads_first.permute(order).is_err());
        }
    }

    #[test]
    fn views_stay_inside_the_storage() {
        let storage: Arc<dyn Storage> = Arc::new(counting(&[12]));
        assert!(Tensor::view(Arc::clone(&storage), &[3, 2], &[4, 1], 2).is_ok());
        assert!(Tensor::view(Arc::clone(&storage), &[3], &[-4], 11).is_ok());
        for (shape, strides, offset) in [
            (&[3, 2][..], &[4, 1][..], 3),
            (&[3], &[-4], 7),
            (&[3], &[isize::MAX], 0),
            (&[usize::MAX], &[0], 0),
            (&[3], &[1, 1], 0),
        ] {
            assert!(
                Tensor::view(Arc::clone(&storage), shape, strides, offset).is_err(),
                "{shape:?} {strides:?}"
            );
        }
    }

    #[test]
    fn overlapping_strides_are_seen() {
        assert!(
            is_injective(&[2, 3], &[3, 1])
                && is_injective(&[2, 3], &[1, -2])
                && is_injective(&[1, 3], &[0, 5])
        );
        assert!(!is_injective(&[2, 3], &[0, 1]) && !is_injective(&[2, 3], &[2, 1]));
    }

    #[test]
    fn bytes_round_trip_and_lengths_are_checked() {
        for dtype in DType::FLOATS.into_iter().chain([DType::I32]) {
            let tensor = counting(&[2, 3]).cast(dtype).unwrap();
            let bytes = tensor.to_le_bytes();
            assert_eq!(HostTensor::from_le_bytes(dtype, &[2, 3], &bytes).unwrap(), tensor);
            assert!(HostTensor::from_le_bytes(dtype, &[2, 3], &bytes[1..]).is_err());
        }
        assert!(HostTensor::new(&[2, 2], vec![1.0f32; 3]).is_err());
        assert!(HostTensor::zeros(DType::F32, &[usize::MAX, 2]).is_err());
        assert!(HostTensor::zeros(DType::F32, &[0, usize::MAX, 2]).is_err());
        assert!(matches!(HostTensor::zeros(DType::F32, &[1 << 59]), Err(Error::OutOfMemory { .. })));
    }
}
