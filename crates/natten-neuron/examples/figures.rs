//! Simulates the kernels of the figures in `docs/neuron.md` and prints their reports; with a path, draws its timeline.

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::{Backend, DType, Error, OpRequest, PlanOptions, Problem, Role};
use natten_neuron::allocate::allocate;
use natten_neuron::dtype::Dtype;
use natten_neuron::error::NeuronError;
use natten_neuron::lower::sd::{Schedule, SdAttention};
use natten_neuron::sim::time::time;
use natten_neuron::target::Target;
use natten_neuron::timeline::svg;
use natten_neuron::{NeuronBackend, NeuronPlan};

#[allow(clippy::print_stdout, reason = "it is what the example is for")]
fn main() -> natten_core::Result<()> {
    let full = |len| Neighborhood::full(len, len, None);
    let cases = [
        ("full attention S 4096 D 64 bf16", full(4096)?, 64),
        ("full attention S 4096 D 128 bf16", full(4096)?, 128),
        ("NA 1-D S 4096 D 64 window 129", Neighborhood::new(&[AxisParams::new(4096, 129)])?, 64),
        ("NA 2-D 64x64 D 64 window 13x13", Neighborhood::new(&[AxisParams::new(64, 13); 2])?, 64),
    ];
    let target = Target::v2();
    for (name, dim, schedule) in [
        ("SD attention as the tutorial's, S 4096 D 64 bf16", 64, Schedule::Tutorial),
        ("SD attention as the tutorial's, S 4096 D 128 bf16", 128, Schedule::Tutorial),
        ("SD attention as the allocated variant's, S 4096 D 128 bf16", 128, Schedule::Allocated),
        ("SD attention as the allocated variant's, S 4096 D 64 bf16", 64, Schedule::Allocated),
    ] {
        let kernel = SdAttention {
            len: 4096,
            dim,
            dtype: Dtype::Bf16,
            mixed_precision: true,
            causal: false,
            schedule,
        };
        let kernel = kernel.lower()?;
        let allocation = allocate(&kernel, &target).map_err(NeuronError::into_error)?;
        println!("{name}\n{}\n", time(&kernel, &target, &allocation));
    }
    let backend = NeuronBackend::default();
    for (name, neighborhood, dim) in cases {
        let problem = Problem::builder(neighborhood, DType::Bf16).head_dim(dim).build()?;
        let request = OpRequest::forward(&problem).wanting([Role::Output]);
        let plan = pollster::block_on(backend.plan(&problem, &request, &PlanOptions::default()))?;
        println!("{name} {:?}", plan.report().config);
        if let Some(plan) = plan.as_any().downcast_ref::<NeuronPlan>() {
            for kernel in plan.kernels() {
                println!("{}\n", kernel.report);
                if let Some(path) = std::env::args().nth(1).filter(|_| name.contains("4096 D 64 bf16")) {
                    let picture = svg(&kernel.report, 120e3, 136e3);
                    std::fs::write(&path, picture)
                        .map_err(|source| Error::Io { action: format!("write {path}"), source })?;
                }
            }
        }
    }
    Ok(())
}
