//! The CPU as a [`Backend`].

use std::sync::Arc;

use natten_core::{
    Backend, DType, DeviceInfo, DeviceKind, Error, OpRequest, Pending, Plan, PlanOptions, Problem, Result,
    ready,
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::fma;
use crate::isa::Isa;
use crate::plan::CpuPlan;

/// The backend's name in the registry.
pub const NAME: &str = "cpu";

/// A guess at a core's clock, for predicted times of cores whose clock is not known.
const TYPICAL_HERTZ: f64 = 3.0e9;

/// Attention on this machine's processor.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    device: DeviceInfo,
    isa: Isa,
    pool: Option<Arc<ThreadPool>>,
}

impl CpuBackend {
    /// With the widest instruction set that the processor has (or the one that `NATTEN_CPU_ISA` names), and rayon's
    /// global threads.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `NATTEN_CPU_ISA` names an unknown or an absent instruction set.
    pub fn new() -> Result<Self> {
        Ok(Self::build(Isa::detect()?, None))
    }

    /// The same backend on another instruction set.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the processor does not have it.
    pub fn with_isa(self, isa: Isa) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::invalid(
                "isa",
                isa.name(),
                "this processor does not have it",
                "use Isa::widest()",
            ));
        }
        Ok(Self::build(isa, self.pool))
    }

    /// The same backend on `threads` threads of its own. Results do not depend on their number.
    ///
    /// # Errors
    /// [`Error::Invalid`] for zero; [`Error::Device`] where the system refuses to start threads.
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::invalid(
                "threads",
                0,
                "it must be at least 1",
                "leave it out to use all cores",
            ));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("natten-{index}"))
            .build()
            .map_err(|error| Error::Device { backend: NAME.into(), message: error.to_string() })?;
        Ok(Self::build(self.isa, Some(Arc::new(pool))))
    }

    fn build(isa: Isa, pool: Option<Arc<ThreadPool>>) -> Self {
        let threads =
            pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads());
        let mut device = DeviceInfo::new(NAME, format!("this processor, {}", isa.name()), DeviceKind::Cpu);
        device.units = threads;
        let lanes = match isa {
            Isa::Portable => 4.0,
            Isa::Avx2 => 8.0,
            Isa::Avx512 => 16.0,
        };
        // Two fused multiply-adds a cycle, as most cores of the last ten years do.
        device.peak_f32 = Some(threads as f64 * lanes * 4.0 * TYPICAL_HERTZ);
        let available: Vec<_> =
            Isa::ALL.iter().filter(|isa| isa.is_available()).map(|isa| isa.name()).collect();
        device.features = vec![
            ("instruction set".to_owned(), isa.name().to_owned()),
            ("available".to_owned(), available.join(" ")),
            ("dtypes".to_owned(), "f64 f32 f16 bf16".to_owned()),
        ];
        Self { device, isa, pool }
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        CpuPlan::supports(problem, request)
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        let plan = options.check_full_precision(self.device.backend).and_then(|()| {
            CpuPlan::new(problem, request, options, &self.device, self.isa, self.pool.clone())
        });
        ready(plan.map(|plan| Arc::new(plan) as Arc<dyn Plan>))
    }

    /// That of fused multiply-adds in registers, on all threads at once.
    fn matmul_rate(&self, dtype: DType) -> Pending<'_, Option<f64>> {
        let measure = |_: rayon::BroadcastContext<'_>| fma::rate(self.isa, dtype);
        let rates = match &self.pool {
            Some(pool) => pool.broadcast(measure),
            None => rayon::broadcast(measure),
        };
        ready(Ok(rates.into_iter().sum()))
    }
}
