//! A device: the driver's context, what kernels are made for, the compiler, the modules that are loaded, and memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaModule, CudaStream, result};
use cudarc::nvrtc::Ptx;
use natten_core::{DeviceInfo, DeviceKind, Error, Result};

use crate::cache::fnv;
use crate::compile::Compiler;
use crate::target::Target;
use crate::{NAME, error};

/// Modules that stay loaded though no plan uses them any more.
const RECENT: usize = 128;

/// A GPU that is ready for work.
#[derive(Debug)]
pub(crate) struct Device {
    context: Arc<CudaContext>,
    name: String,
    target: Target,
    compiler: Compiler,
    modules: Mutex<Modules>,
}

/// The modules that plans use, and the last few besides.
#[derive(Debug, Default)]
struct Modules {
    loaded: HashMap<u128, Weak<CudaModule>>,
    recent: VecDeque<Arc<CudaModule>>,
}

impl Device {
    /// The device of a number, as the driver counts.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses.
    pub(crate) fn open(index: usize, compiler: Compiler) -> Result<Self> {
        let context = CudaContext::new(index).map_err(|e| error::driver("opening the device", e))?;
        let number = |attribute| {
            let value =
                context.attribute(attribute).map_err(|e| error::driver("describing the device", e))?;
            Ok::<_, Error>(u32::try_from(value).unwrap_or_default())
        };
        let target = Target {
            arch: (
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            units: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        Ok(Self {
            name: format!("{NAME}:{index}"),
            context,
            target,
            compiler,
            modules: Mutex::new(Modules::default()),
        })
    }

    /// Its name, as tensors say where they are: `cuda:0`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What kernels for it are made for.
    pub(crate) const fn target(&self) -> &Target {
        &self.target
    }

    /// The driver's context.
    pub(crate) const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Makes it the calling thread's device, as every call to the driver needs.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| error::driver("taking the device", e))
    }

    /// A stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn stream(&self) -> Result<Arc<CudaStream>> {
        self.context.new_stream().map_err(|e| error::driver("making a stream", e))
    }

    /// What users read about it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn info(&self) -> Result<DeviceInfo> {
        let what = "describing the device";
        let name = self.context.name().map_err(|e| error::driver(what, e))?;
        // Rates are for display and predictions: what the driver does not say is left out.
        let number = |attribute| f64::from(self.context.attribute(attribute).unwrap_or_default());
        let mut info = DeviceInfo::new(NAME, name, DeviceKind::Gpu);
        if self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED).unwrap_or_default() != 0 {
            info.kind = DeviceKind::SharedGpu;
        }
        info.units = self.target.units as usize;
        info.memory = Some(self.context.total_mem().map_err(|e| error::driver(what, e))?);
        let lanes = if matches!(self.target.arch, (6, 0) | (7, _) | (8, 0)) { 64.0 } else { 128.0 };
        let hertz = number(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE) * 1e3;
        info.peak_f32 = Some(f64::from(self.target.units) * lanes * 2.0 * hertz).filter(|&rate| rate > 0.0);
        // Two transfers a cycle of the memory's clock, which is given in kHz; the width of the bus is given in bits.
        let bytes = number(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
            * 2e3
            * number(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)
            / 8.0;
        info.bandwidth = Some(bytes).filter(|&rate| rate > 0.0);
        let (major, minor) = self.target.arch;
        let nvrtc = self.compiler.version();
        info.features = vec![
            ("device".to_owned(), self.name.clone()),
            ("compute capability".to_owned(), format!("{major}.{minor}")),
            ("shared memory a block".to_owned(), format!("{} KiB", self.target.shared_bytes / 1024)),
            ("compiler".to_owned(), format!("NVRTC {}.{}", nvrtc.0, nvrtc.1)),
            ("dtypes".to_owned(), "f64 f32 f16 bf16".to_owned()),
        ];
        Ok(info)
    }

    /// The module of a source: loaded already, or compiled, or from the cache on disk.
    ///
    /// # Errors
    /// [`Error::Compile`] where the source is refused, [`Error::Device`] where the driver refuses the code.
    pub(crate) fn module(&self, source: &str, options: &[&str]) -> Result<Arc<CudaModule>> {
        let key = fnv([source, &options.join("\n")].join("\0").as_bytes());
        let lock = || self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = lock().loaded.get(&key).and_then(Weak::upgrade) {
            return Ok(module);
        }
        let compiled = self.compiler.compile(source, options, &self.target)?;
        self.bind()?;
        let module = self
            .context
            .load_module(Ptx::from_binary(compiled.cubin))
            .map_err(|e| error::driver("loading a kernel", e))?;
        let mut modules = lock();
        modules.loaded.retain(|_, module| module.strong_count() > 0);
        modules.loaded.insert(key, Arc::downgrade(&module));
        modules.recent.push_back(Arc::clone(&module));
        if modules.recent.len() > RECENT {
            modules.recent.pop_front();
        }
        Ok(module)
    }
}

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    device: Arc<Device>,
    pointer: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Uninitialised bytes, aligned to 256.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], naming what is needed and what is free.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind()?;
        // SAFETY: the memory is only handed to copies and kernels, which take any bytes. The driver allocates no 0 bytes.
        let pointer = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| {
            match error::is_out_of_memory(error) {
                true => Error::OutOfMemory {
                    needed: bytes,
                    available: device.context.mem_get_info().ok().map(|(free, _)| free),
                },
                false => error::driver(&format!("allocating {bytes} bytes"), error),
            }
        })?;
        Ok(Self { device: Arc::clone(device), pointer, bytes })
    }

    /// Its address on the device.
    pub(crate) const fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Its size.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies bytes to its start, and is done when it returns.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn write(&self, stream: &CudaStream, bytes: &[u8]) -> Result<()> {
        let bytes = &bytes[..bytes.len().min(self.bytes)];
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: the memory has room for the bytes, and they live until the stream is done.
        unsafe { result::memcpy_htod_async(self.pointer, bytes, stream.cu_stream()) }
            .and_then(|()| stream.synchronize())
            .map_err(|e| error::driver("copying to the device", e))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Kernels that use it may still run: wait for them. What fails here has failed in a run already.
        let _ = self.device.bind();
        let _ = self.device.context.synchronize();
        // SAFETY: the driver allocated it, nothing runs on the device any more, and nothing names it after this.
        let _ = unsafe { result::free_sync(self.pointer) };
    }
}
