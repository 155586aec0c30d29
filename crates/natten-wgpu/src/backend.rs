//! The backend: a device of wgpu that plans and runs attention.

use std::any::Any;
use std::sync::Arc;

use natten_core::{
    Backend, DType, DeviceInfo, HostTensor, OpRequest, Pending, Plan, PlanOptions, Problem, Queue, Result,
    Tensor, TensorSpec,
};
use pollster::block_on;

use crate::adapters::{Adapters, FEATURES, info, target};
use crate::family::{FAMILY_VARIABLE, Family};
use crate::gpu::{Gpu, failed};
use crate::plan::WgpuPlan;
use crate::target::Target;
use crate::{ADAPTER_VARIABLE, CHECKED_VARIABLE, generic, memory};

/// How a backend is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The adapter's number, or a part of its name; the best one where nothing is said.
    pub adapter: Option<String>,
    /// Whether shaders are compiled with the driver's checks: indices into buffers, loops without an end. Generated
    /// shaders need none, and are two to three times as fast without.
    pub checked: bool,
    /// The name of the only [`Family`] of shaders that plans may take; the planner's choice where nothing is said.
    pub family: Option<String>,
}

impl Options {
    /// What `NATTEN_WGPU_ADAPTER`, `NATTEN_WGPU_CHECKED` and `NATTEN_WGPU_FAMILY` say.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            adapter: variable(ADAPTER_VARIABLE),
            checked: variable(CHECKED_VARIABLE).is_some_and(|value| value == "1"),
            family: variable(FAMILY_VARIABLE),
        }
    }

    /// The same with no other family than this.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        Self { family: Some(family.name().to_owned()), ..self }
    }

    /// The same with the driver's checks, or without.
    #[must_use]
    pub fn checked(self, checked: bool) -> Self {
        Self { checked, ..self }
    }
}

/// Attention on a device of wgpu.
#[derive(Clone, Debug)]
pub struct WgpuBackend {
    info: DeviceInfo,
    target: Target,
    gpu: Arc<Gpu>,
}

impl WgpuBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::Unavailable`](natten_core::Error::Unavailable) where there is no such adapter,
    /// [`Error::Invalid`](natten_core::Error::Invalid) where there is no such family,
    /// [`Error::Device`](natten_core::Error::Device) where it does not open.
    pub fn new(options: &Options) -> Result<Self> {
        block_on(Self::open(options))
    }

    /// As [`WgpuBackend::new`], where nothing may block.
    ///
    /// # Errors
    /// Those of [`WgpuBackend::new`].
    pub async fn open(options: &Options) -> Result<Self> {
        let family = options.family.as_deref().map(str::parse).transpose()?;
        let adapters = Adapters::search().await;
        let adapter = adapters.pick(options.adapter.as_deref())?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("natten"),
            required_features: adapter.features() & FEATURES.union(wgpu::Features::PIPELINE_CACHE),
            required_limits: adapter.limits(),
            // SAFETY: Cooperative matrices are all that is asked for of the experimental. Shaders use them as the
            // extension of Vulkan says: every lane of a subgroup comes to them, and what they load and store lies
            // inside of arrays whose sizes the planner has made for them.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let mut described = info(adapter);
        for (number, summary) in adapters.summaries().into_iter().enumerate() {
            let others = summary.features.iter().map(|(name, value)| format!("{name} {value}"));
            if summary.name != described.name {
                let text = format!("{}; {}", summary.name, others.collect::<Vec<_>>().join("; "));
                described.features.push((format!("adapter {number}, not taken"), text));
            }
        }
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(failed)?;
        Ok(Self {
            info: described,
            target: Target { family, ..target(adapter) },
            gpu: Arc::new(Gpu::new(adapter, device, queue, options.checked)),
        })
    }
}

impl WgpuBackend {
    /// The same device, held to one family of shaders.
    #[must_use]
    pub fn held_to(&self, family: Family) -> Self {
        Self { target: Target { family: Some(family), ..self.target.clone() }, ..self.clone() }
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) const fn target(&self) -> &Target {
        &self.target
    }

    #[cfg(test)]
    pub(crate) const fn target_mut(&mut self) -> &mut Target {
        &mut self.target
    }

    /// The same device as if it bound no more bytes at a time.
    #[cfg(test)]
    pub(crate) fn binding_at_most(mut self, bytes: u64) -> Self {
        self.target.binding_bytes = bytes;
        Arc::get_mut(&mut self.gpu).expect("the device has no other owner").most_binding = bytes;
        self
    }
}

impl Backend for WgpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        generic::sequence(problem, request, &PlanOptions::default(), &self.target).map(|_| ())
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        let sequence = options
            .check_full_precision(self.info.backend)
            .and_then(|()| generic::sequence(problem, request, options, &self.target));
        Box::pin(async move {
            let plan = WgpuPlan::new(&self.gpu, problem, request, sequence?, &self.info).await?;
            Ok(Arc::new(plan) as Arc<dyn Plan>)
        })
    }

    fn queue(&self) -> Result<Arc<dyn Queue>> {
        self.gpu.check()?;
        Ok(Arc::new(DeviceQueue(Arc::clone(&self.gpu))))
    }

    fn empty(&self, spec: &TensorSpec) -> Result<Tensor> {
        memory::empty(&self.gpu, spec.dtype, &spec.shape)
    }

    fn upload(&self, _queue: &dyn Queue, host: HostTensor) -> Result<Tensor> {
        memory::upload(&self.gpu, &host)
    }

    fn download<'a>(&'a self, _queue: &'a dyn Queue, tensor: &'a Tensor) -> Pending<'a, HostTensor> {
        Box::pin(memory::download(&self.gpu, tensor))
    }

    fn matmul_rate(&self, dtype: DType) -> Pending<'_, Option<f64>> {
        natten_core::ready(self.measure_products(dtype))
    }
}

/// The device's one queue.
#[derive(Debug)]
pub(crate) struct DeviceQueue(Arc<Gpu>);

impl Queue for DeviceQueue {
    fn finish(&self) -> Pending<'_, ()> {
        Box::pin(self.0.finish())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
