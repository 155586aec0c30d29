//! A GPU as a [`Backend`].

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr};
use natten_core::{
    Backend, DType, DeviceInfo, Error, HostTensor, OpRequest, Pending, Plan, PlanOptions, Problem, Queue,
    Result, Tensor, TensorSpec, contiguous_strides, ready,
};

use crate::compile::Compiler;
use crate::device::Device;
use crate::plan::{self, CudaPlan};
use crate::queue::CudaQueue;
use crate::tensor::{self, CudaStorage};
use crate::{family, matmul, probe};

/// Attention on one GPU.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    device: Arc<Device>,
    info: DeviceInfo,
}

impl CudaBackend {
    /// The device of a number, as the driver counts them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the driver, the device or the compiler is missing, each with its reason;
    /// [`Error::Invalid`] where there are not as many devices.
    pub fn new(index: usize) -> Result<Self> {
        probe::check_driver(index)?;
        let device = Arc::new(Device::open(index, Compiler::new()?)?);
        let info = device.info()?;
        Ok(Self { device, info })
    }

    /// A queue on a stream of the caller's. Work on it is ordered with the caller's own.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the stream is of another device.
    pub fn queue_on(&self, stream: Arc<CudaStream>) -> Result<CudaQueue> {
        if stream.context().ordinal() != self.device.context().ordinal() {
            return Err(Error::invalid(
                "stream",
                format!("of device {}", stream.context().ordinal()),
                format!("it must be of {}", self.device.name()),
                "make the stream on the device that runs",
            ));
        }
        Ok(CudaQueue::new(Arc::clone(&self.device), stream))
    }

    /// A queue on a stream of another library: a `cudaStream_t`, null for the default stream.
    ///
    /// # Safety
    /// The stream is of this device's primary context and outlives the queue.
    pub unsafe fn queue_on_raw(&self, stream: *mut c_void) -> CudaQueue {
        // SAFETY: the caller says so.
        let stream = unsafe { self.device.context().wrap_borrowed_stream(stream.cast()) };
        CudaQueue::new(Arc::clone(&self.device), stream)
    }

    /// A tensor of memory that another library has on this device, without a copy: `len` elements of which the tensor is
    /// a view with these strides, in elements. `owner` lives as long as the tensor and all its views.
    ///
    /// # Safety
    /// `pointer` is the address of `len` elements of `dtype` on this device, aligned to an element, that stay there until
    /// `owner` is dropped; `owner` waits in its `drop` for the work that uses them; nothing else writes them while work
    /// that reads them is under way, nor touches them while work that writes them is.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the view reaches outside the elements.
    pub unsafe fn tensor_from_raw(
        &self,
        pointer: u64,
        dtype: DType,
        len: usize,
        shape: &[usize],
        strides: &[isize],
        owner: impl Any + Send + Sync,
    ) -> Result<Tensor> {
        // SAFETY: the caller says so.
        let storage = unsafe { CudaStorage::foreign(&self.device, pointer, dtype, len, owner) };
        Tensor::view(Arc::new(storage), shape, strides, 0)
    }

    /// A contiguous tensor of a slice of `cudarc`, without a copy. Waits for the work that the slice's stream has now.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the slice is of another device, or not of as many bytes as the shape has;
    /// [`Error::Device`].
    pub fn tensor_from_slice<T: DeviceRepr + Send + Sync + 'static>(
        &self,
        slice: cudarc::driver::CudaSlice<T>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Tensor> {
        let storage = tensor::adopt(&self.device, slice, dtype, natten_core::checked_len(shape)?)?;
        Tensor::view(Arc::new(storage), shape, &contiguous_strides(shape), 0)
    }
}

impl Backend for CudaBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        family::choose(problem, request, &PlanOptions::default(), self.device.target()).map(|_| ())
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        let plan = CudaPlan::new(problem, request, options, &self.device, &self.info);
        ready(plan.map(|plan| Arc::new(plan) as Arc<dyn Plan>))
    }

    fn queue(&self) -> Result<Arc<dyn Queue>> {
        Ok(Arc::new(CudaQueue::new(Arc::clone(&self.device), self.device.stream()?)))
    }

    fn empty(&self, spec: &TensorSpec) -> Result<Tensor> {
        plan::empty(&self.device, spec)
    }

    fn upload(&self, queue: &dyn Queue, host: HostTensor) -> Result<Tensor> {
        let queue = CudaQueue::of(&self.device, queue)?;
        let storage = CudaStorage::upload(&self.device, queue.stream(), &host)?;
        Tensor::view(Arc::new(storage), host.shape(), &contiguous_strides(host.shape()), 0)
    }

    fn download<'a>(&'a self, queue: &'a dyn Queue, tensor: &'a Tensor) -> Pending<'a, HostTensor> {
        let download = || {
            let queue = CudaQueue::of(&self.device, queue)?;
            tensor::download(&self.device, queue.stream(), tensor)
        };
        ready(download())
    }

    fn matmul_rate(&self, dtype: DType) -> Pending<'_, Option<f64>> {
        ready(matmul::rate(&self.device, dtype).map(Some))
    }
}
