//! Simulates the kernels of the figures in `docs/neuron.md` and prints their reports; with a path, draws the timeline of
//! full attention.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::{Backend, DType, Error, OpRequest, PlanOptions, Problem, Role};
use natten_neuron::dtype::Dtype;
use natten_neuron::lower::sd::{Schedule, SdAttention};
use natten_neuron::target::Target;
use natten_neuron::timeline::svg;
use natten_neuron::{Compiled, NeuronBackend, NeuronPlan};

#[allow(clippy::print_stdout, reason = "it is what the example is for")]
fn show(name: &str, config: &str, kernel: &Compiled) {
    let [least, most] = kernel.range().map(|end| end / 1e3);
    println!("{name} {config}\n{}\n{least:.1} to {most:.1} us where the model guesses\n", kernel.report);
}

fn main() -> natten_core::Result<()> {
    let target = Target::v2();
    for (name, dim, schedule) in [
        ("SD attention as the tutorial's, S 4096 D 64 bf16", 64, Schedule::Tutorial),
        ("SD attention as the tutorial's, S 4096 D 128 bf16", 128, Schedule::Tutorial),
        ("SD attention as the allocated variant's, S 4096 D 64 bf16", 64, Schedule::Allocated),
        ("SD attention as the allocated variant's, S 4096 D 128 bf16", 128, Schedule::Allocated),
    ] {
        let (len, dtype, mixed_precision, causal) = (4096, Dtype::Bf16, true, false);
        let kernel = SdAttention { len, dim, dtype, mixed_precision, causal, schedule };
        show(name, "", &Compiled::new(kernel.launch()?.2, &target)?);
    }
    let full = |len| Neighborhood::full(len, len, None);
    let backend = NeuronBackend::default();
    for (name, neighborhood, dim) in [
        ("full attention S 4096 D 64 bf16", full(4096)?, 64),
        ("full attention S 4096 D 128 bf16", full(4096)?, 128),
        ("full attention S 16384 D 64 bf16", full(16_384)?, 64),
        (
            "causal attention S 16384 D 64 bf16",
            Neighborhood::full(16_384, 16_384, Some(Alignment::TopLeft))?,
            64,
        ),
        ("NA 1-D S 4096 D 64 window 129", Neighborhood::new(&[AxisParams::new(4096, 129)])?, 64),
        ("NA 2-D 64x64 D 64 window 13x13", Neighborhood::new(&[AxisParams::new(64, 13); 2])?, 64),
    ] {
        let problem = Problem::builder(neighborhood, DType::Bf16).head_dim(dim).build()?;
        let request = OpRequest::forward(&problem).wanting([Role::Output]);
        let plan = pollster::block_on(backend.plan(&problem, &request, &PlanOptions::default()))?;
        let config: Vec<String> =
            plan.report().config.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let Some(plan) = plan.as_any().downcast_ref::<NeuronPlan>() else { continue };
        for kernel in plan.kernels() {
            show(name, &config.join(", "), kernel);
            if let Some(path) =
                std::env::args().nth(1).filter(|_| name.starts_with("full attention S 4096 D 64"))
            {
                let picture = svg(&kernel.report, 120e3, 136e3);
                std::fs::write(&path, picture)
                    .map_err(|source| Error::Io { action: format!("write {path}"), source })?;
            }
        }
    }
    Ok(())
}
