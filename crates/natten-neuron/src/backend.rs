//! The simulated NeuronCore as a [`Backend`].

use std::sync::Arc;

use natten_core::{
    Backend, DeviceInfo, DeviceKind, OpRequest, Pending, Plan, PlanOptions, Problem, Result, ready,
};

use crate::NAME;
use crate::plan::NeuronPlan;
use crate::target::Target;

/// Attention on a simulated NeuronCore. Results are those of the kernels that [`Plan::emit`] prints, right to the
/// rounding; times are the simulator's.
#[derive(Clone, Debug)]
pub struct NeuronBackend {
    device: DeviceInfo,
    target: Target,
}

impl NeuronBackend {
    /// A generation of the NeuronCore.
    pub fn new(target: Target) -> Self {
        let mut device = DeviceInfo::new(NAME, format!("{} simulator", target.name), DeviceKind::Simulator);
        device.peak_f32 = Some(target.peak_flops() / target.f32_passes);
        device.bandwidth = Some(target.bandwidth());
        device.features = vec![
            ("dtypes".to_owned(), "f32 f16 bf16".to_owned()),
            ("sbuf".to_owned(), format!("128 x {} KiB", target.sbuf_bytes / 1024)),
            ("psum".to_owned(), format!("128 x {} banks of {} B", target.psum_banks, target.psum_bank_bytes)),
            ("engines".to_owned(), "tensor vector scalar gpsimd sync, 16 dma".to_owned()),
        ];
        Self { device, target }
    }
}

impl Default for NeuronBackend {
    fn default() -> Self {
        Self::new(Target::v2())
    }
}

impl Backend for NeuronBackend {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn supports(&self, problem: &Problem, request: &OpRequest) -> Result<()> {
        NeuronPlan::supports(problem, request)
    }

    fn plan<'a>(
        &'a self,
        problem: &'a Problem,
        request: &'a OpRequest,
        options: &'a PlanOptions,
    ) -> Pending<'a, Arc<dyn Plan>> {
        let plan = options
            .check_full_precision(self.device.backend)
            .and_then(|()| NeuronPlan::new(problem, request, options, &self.target, &self.device));
        ready(plan.map(|plan| Arc::new(plan) as Arc<dyn Plan>))
    }
}
