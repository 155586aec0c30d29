//! Tensors in a device's memory. 16-bit numbers lie two in a word.

use std::any::Any;
use std::sync::Arc;

use natten_core::{DType, Error, HostTensor, Result, Storage, Tensor, checked_len};

use crate::NAME;
use crate::gpu::{Gpu, failed};
use crate::signal::signal;

/// Memory of a device that a tensor is a view of.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    gpu: Arc<Gpu>,
    pub(crate) buffer: wgpu::Buffer,
    dtype: DType,
    len: usize,
}

impl Storage for DeviceMemory {
    fn device(&self) -> &str {
        &self.gpu.place
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

const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// A contiguous tensor, its contents unspecified.
pub(crate) fn empty(gpu: &Arc<Gpu>, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let len = checked_len(shape)?;
    let bytes =
        len.checked_mul(dtype.size()).ok_or(Error::OutOfMemory { needed: usize::MAX, available: None })?;
    let buffer = gpu.buffer("tensor", bytes as u64, USAGE)?;
    let strides = natten_core::contiguous_strides(shape);
    Tensor::view(Arc::new(DeviceMemory { gpu: Arc::clone(gpu), buffer, dtype, len }), shape, &strides, 0)
}

/// Copies numbers to the device.
pub(crate) fn upload(gpu: &Arc<Gpu>, host: &HostTensor) -> Result<Tensor> {
    let tensor = empty(gpu, host.dtype(), host.shape())?;
    let mut bytes = host.to_le_bytes();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    gpu.queue.write_buffer(&memory_of(gpu, "tensor", &tensor)?.buffer, 0, &bytes);
    Ok(tensor)
}

/// Copies a tensor back.
pub(crate) async fn download(gpu: &Gpu, tensor: &Tensor) -> Result<HostTensor> {
    let memory = memory_of(gpu, "tensor", tensor)?;
    let bytes = memory.buffer.size();
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let readable = gpu.buffer("download", bytes, usage)?;
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&memory.buffer, 0, &readable, 0, bytes);
    gpu.queue.submit([encoder.finish()]);
    let (sender, receiver) = signal();
    readable.map_async(wgpu::MapMode::Read, .., move |result| sender.send(result));
    gpu.advance()?;
    let mapped = receiver.await;
    gpu.check()?;
    mapped.ok_or_else(|| failed("a buffer was not mapped"))?.map_err(failed)?;
    let range = readable.get_mapped_range(..).map_err(failed)?;
    let stored =
        HostTensor::from_le_bytes(memory.dtype, &[memory.len], &range[..memory.len * memory.dtype.size()])?;
    let view = Tensor::view(Arc::new(stored), tensor.shape(), tensor.strides(), tensor.offset())?;
    view.to_host()
}

/// The memory of a tensor that lies on this device.
///
/// # Errors
/// [`Error::Invalid`] where it lies elsewhere.
pub(crate) fn memory_of<'t>(gpu: &Gpu, name: &str, tensor: &'t Tensor) -> Result<&'t DeviceMemory> {
    tensor
        .storage()
        .as_any()
        .downcast_ref::<DeviceMemory>()
        .filter(|memory| std::ptr::eq(&raw const *memory.gpu, gpu))
        .ok_or_else(|| {
            Error::invalid(
                name.to_owned(),
                format!("on {}", tensor.storage().device()),
                format!("it must be in the memory of this {NAME} device"),
                "upload it with the backend that runs the plan",
            )
        })
}
