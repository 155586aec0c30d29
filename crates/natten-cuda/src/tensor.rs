//! Tensors on a device: [`CudaStorage`] owns memory, or keeps the owner of somebody else's alive; [`DeviceView`] is what
//! a kernel is handed.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};
use natten_core::{
    DType, Element, Error, HostElement, HostSlice, HostTensor, Result, Storage, Tensor, check_view,
};

use crate::device::{Device, DeviceMemory};
use crate::{NAME, error};

/// Elements on a device.
pub struct CudaStorage {
    device: Arc<Device>,
    pointer: u64,
    len: usize,
    dtype: DType,
    /// What keeps the memory alive.
    _owner: Box<dyn Any + Send + Sync>,
}

impl CudaStorage {
    /// New memory, its contents unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn new(device: &Arc<Device>, dtype: DType, len: usize) -> Result<Self> {
        let bytes = len
            .checked_mul(dtype.size())
            .ok_or(Error::OutOfMemory { needed: usize::MAX, available: None })?;
        let memory = DeviceMemory::new(device, bytes)?;
        Ok(Self {
            device: Arc::clone(device),
            pointer: memory.pointer(),
            len,
            dtype,
            _owner: Box::new(memory),
        })
    }

    /// Memory of somebody else, without a copy. `owner` lives as long as this.
    ///
    /// # Safety
    /// `pointer` is the address of `len` elements of `dtype` on the device, aligned to an element, that stay there until
    /// `owner` is dropped; `owner` waits in its `drop` for the work that uses them; and nothing else writes them while
    /// work that reads them is under way, nor touches them while work that writes them is.
    pub(crate) unsafe fn foreign(
        device: &Arc<Device>,
        pointer: u64,
        dtype: DType,
        len: usize,
        owner: impl Any + Send + Sync,
    ) -> Self {
        Self { device: Arc::clone(device), pointer, len, dtype, _owner: Box::new(owner) }
    }

    /// The address of the first element on the device.
    pub const fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Copies a host tensor's numbers to new memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub(crate) fn upload(device: &Arc<Device>, stream: &CudaStream, host: &HostTensor) -> Result<Self> {
        let storage = Self::new(device, host.dtype(), host.len())?;
        let bytes: &[u8] = match host.slice() {
            HostSlice::F64(s) => bytemuck::cast_slice(s),
            HostSlice::F32(s) => bytemuck::cast_slice(s),
            HostSlice::F16(s) => bytemuck::cast_slice(s),
            HostSlice::Bf16(s) => bytemuck::cast_slice(s),
            HostSlice::I32(s) => bytemuck::cast_slice(s),
            other => return Err(unknown(other.dtype())),
        };
        if !bytes.is_empty() {
            device.bind()?;
            // SAFETY: the memory has as many bytes as the tensor, and both live until the stream is done.
            unsafe { result::memcpy_htod_async(storage.pointer, bytes, stream.cu_stream()) }
                .and_then(|()| stream.synchronize())
                .map_err(|e| error::driver("copying to the device", e))?;
        }
        Ok(storage)
    }

    /// Copies elements `start..start + len` to a host tensor of one axis, after the stream's work so far.
    fn download(&self, stream: &CudaStream, start: usize, len: usize) -> Result<HostTensor> {
        match self.dtype {
            DType::F64 => self.read::<f64>(stream, start, len),
            DType::F32 => self.read::<f32>(stream, start, len),
            DType::F16 => self.read::<half::f16>(stream, start, len),
            DType::Bf16 => self.read::<half::bf16>(stream, start, len),
            DType::I32 => self.read::<i32>(stream, start, len),
            other => Err(unknown(other)),
        }
    }

    fn read<T: HostElement + bytemuck::Pod>(
        &self,
        stream: &CudaStream,
        start: usize,
        len: usize,
    ) -> Result<HostTensor> {
        debug_assert_eq!(<T as Element>::DTYPE, self.dtype);
        let mut host = HostTensor::zeros(self.dtype, &[len])?;
        if let Some(data) = host.as_mut_slice::<T>().filter(|data| !data.is_empty()) {
            self.device.bind()?;
            let from = self.pointer + (start * size_of::<T>()) as u64;
            // SAFETY: the elements lie inside the storage, as the caller's view does, and `data` lives until the stream
            // is done.
            unsafe { result::memcpy_dtoh_async(data, from, stream.cu_stream()) }
                .and_then(|()| stream.synchronize())
                .map_err(|e| error::driver("copying from the device", e))?;
        }
        Ok(host)
    }
}

/// The elements of a slice of `cudarc`, without a copy.
///
/// # Errors
/// [`Error::Invalid`] where the slice is of another device, or not of as many bytes; [`Error::Device`].
pub(crate) fn adopt<T: Send + Sync + 'static>(
    device: &Arc<Device>,
    slice: CudaSlice<T>,
    dtype: DType,
    len: usize,
) -> Result<CudaStorage> {
    let bytes = len.saturating_mul(dtype.size());
    if slice.context().ordinal() != device.context().ordinal() || slice.num_bytes() != bytes {
        return Err(Error::invalid(
            "slice",
            format!("{} bytes on device {}", slice.num_bytes(), slice.ordinal()),
            format!("it must be {bytes} bytes on {}", device.name()),
            "give a slice of the shape's size, on the device that runs",
        ));
    }
    device.bind()?;
    slice.stream().synchronize().map_err(|e| error::driver("waiting for a slice", e))?;
    let stream = Arc::clone(slice.stream());
    let pointer = slice.device_ptr(&stream).0;
    let owner = Adopted { _slice: slice, device: Arc::clone(device) };
    // SAFETY: the slice owns that many bytes on this device until `Adopted` drops it, which waits for all work before;
    // nobody else has the slice, and the work that its stream had is done. `cudarc` aligns slices to 256 bytes.
    Ok(unsafe { CudaStorage::foreign(device, pointer, dtype, len, owner) })
}

/// A slice that is freed when the device is done.
struct Adopted<T> {
    _slice: CudaSlice<T>,
    device: Arc<Device>,
}

impl<T> Drop for Adopted<T> {
    fn drop(&mut self) {
        // What fails here has failed in a run already.
        let _ = self.device.bind();
        let _ = self.device.context().synchronize();
    }
}

fn unknown(dtype: DType) -> Error {
    Error::unsupported(NAME, format!("tensors of {dtype}"), "it stores f64, f32, f16, bf16 and i32")
}

/// A contiguous copy on the host of a tensor on `device`.
///
/// # Errors
/// [`Error::Invalid`] where the tensor is elsewhere, [`Error::Device`].
pub(crate) fn download(device: &Device, stream: &CudaStream, tensor: &Tensor) -> Result<HostTensor> {
    if tensor.storage().host().is_some() {
        return tensor.to_host();
    }
    let storage = storage_of(device, tensor, "tensor")?;
    if tensor.is_empty() {
        return HostTensor::zeros(tensor.dtype(), tensor.shape());
    }
    // Only what the view reaches, which of a slice of something large is little.
    let reach = |sign: isize| -> isize {
        let axes = tensor.shape().iter().zip(tensor.strides());
        axes.map(|(&n, &stride)| (n as isize - 1) * stride).filter(|reach| reach * sign > 0).sum()
    };
    let start = (tensor.offset() as isize + reach(-1)) as usize;
    let end = (tensor.offset() as isize + reach(1)) as usize;
    let host = storage.download(stream, start, end - start + 1)?;
    Tensor::view(Arc::new(host), tensor.shape(), tensor.strides(), tensor.offset() - start)?.to_host()
}

fn storage_of<'a>(device: &Device, tensor: &'a Tensor, name: &str) -> Result<&'a CudaStorage> {
    let storage = tensor.storage();
    storage.as_any().downcast_ref::<CudaStorage>().filter(|s| s.device.name() == device.name()).ok_or_else(
        || {
            Error::invalid(
                name.to_owned(),
                format!("on {}", storage.device()),
                format!("it must be on {}", device.name()),
                "upload it to the backend that runs",
            )
        },
    )
}

impl fmt::Debug for CudaStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaStorage")
            .field("device", &self.device.name())
            .field("dtype", &self.dtype)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Storage for CudaStorage {
    fn device(&self) -> &str {
        self.device.name()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn len(&self) -> usize {
        self.len
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A strided view of elements on a device: what [`CudaPlan::run_views`](crate::CudaPlan::run_views) takes, without a
/// tensor around it.
#[derive(Clone, Copy, Debug)]
pub struct DeviceView<'a> {
    pub(crate) pointer: u64,
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) strides: &'a [isize],
}

impl<'a> DeviceView<'a> {
    /// A view of somebody's memory: element `[i, j, …]` is `i*strides[0] + j*strides[1] + …` elements behind `pointer`.
    ///
    /// # Safety
    /// Every element of the view is memory of the device that the plan is for, aligned to an element, and stays so until
    /// the work that uses the view is done.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shape and strides differ in rank.
    pub unsafe fn new(pointer: u64, dtype: DType, shape: &'a [usize], strides: &'a [isize]) -> Result<Self> {
        // The storage's length is the caller's word; the ranks can be checked.
        if shape.len() != strides.len() {
            check_view(shape, strides, 0, usize::MAX)?;
        }
        Ok(Self { pointer, dtype, shape, strides })
    }

    /// Of a tensor on `device`.
    pub(crate) fn of(device: &Device, tensor: &'a Tensor, name: &str) -> Result<Self> {
        let storage = storage_of(device, tensor, name)?;
        Ok(Self {
            pointer: storage.pointer + (tensor.offset() * storage.dtype.size()) as u64,
            dtype: storage.dtype,
            shape: tensor.shape(),
            strides: tensor.strides(),
        })
    }

    /// Whether the bulk copy engine takes it: the last axis contiguous, everything else on multiples of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        let bytes = self.dtype.size() as u64;
        let mut axes = self.shape.iter().zip(self.strides).rev().filter(|(n, _)| **n > 1);
        let outer = |(_, stride): (&usize, &isize)| {
            *stride > 0 && (stride.unsigned_abs() as u64).wrapping_mul(bytes).is_multiple_of(16)
        };
        let inner = match (self.shape.last(), self.strides.last()) {
            (Some(&n), Some(_)) if n > 1 => axes.next().is_some_and(|(_, &stride)| stride == 1),
            _ => true,
        };
        inner && axes.all(outer) && self.pointer.is_multiple_of(16)
    }

    /// Whether the last two axes, heads and their numbers, lie one behind the other.
    pub(crate) fn has_packed_heads(&self) -> bool {
        match (self.shape, self.strides) {
            (&[.., heads, dim], &[.., stride, _]) => heads <= 1 || usize::try_from(stride) == Ok(dim),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aligned(pointer: u64, shape: &[usize], strides: &[isize]) -> bool {
        DeviceView { pointer, dtype: DType::Bf16, shape, strides }.is_aligned()
    }

    #[test]
    fn what_the_copy_engine_takes() {
        assert!(aligned(256, &[2, 5, 3, 64], &[960, 192, 64, 1]));
        assert!(
            aligned(256, &[2, 1, 3, 64], &[192, 7, 64, 1]),
            "the stride of a single element does not matter"
        );
        assert!(!aligned(258, &[2, 5, 3, 64], &[960, 192, 64, 1]), "the first element is off");
        assert!(!aligned(256, &[2, 5, 3, 20], &[300, 60, 20, 1]), "rows of 40 bytes");
        assert!(!aligned(256, &[64, 64], &[1, 64]), "the last axis is not contiguous");
        assert!(!aligned(256, &[64, 64], &[0, 1]), "a broadcast");
        assert!(!aligned(256, &[64, 64], &[-64, 1]), "a reversed axis");
    }
}
