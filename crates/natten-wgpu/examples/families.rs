//! Rates of the WebGPU backend's families in f32 beside a probe of multiply-adds in the same process: `cargo run --release
//! -p natten-wgpu --example families [CASE [QUERY_TILE KEY_TILE]]`. Rates count the visible pairs alone. `natten bench
//! --families` has the other dtypes. Tiles are extents by axis, `8,16`, for a family that has such.

use std::time::Instant;

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::{
    Backend, Bindings, DType, Error, HostTensor, OpRequest, PlanOptions, Problem, Result, Tensor,
};
use natten_wgpu::{Family, Options, WgpuBackend};
use pollster::block_on;

fn cases() -> Result<Vec<(&'static str, Problem)>> {
    let full = |len, heads, dim| -> Result<Problem> {
        Problem::builder(Neighborhood::full(len, len, None)?, DType::F32).heads(heads).head_dim(dim).build()
    };
    let window = |axes: &[(usize, usize)], heads, dim| -> Result<Problem> {
        let axes: Vec<AxisParams> = axes.iter().map(|&(len, kernel)| AxisParams::new(len, kernel)).collect();
        Problem::builder(Neighborhood::new(&axes)?, DType::F32).heads(heads).head_dim(dim).build()
    };
    Ok(vec![
        ("small", full(512, 1, 64)?),
        ("full-16k-d64", full(16384, 32, 64)?),
        ("full-16k-d128", full(16384, 16, 128)?),
        ("dinat-64-k13", window(&[(64, 13), (64, 13)], 128, 64)?),
        ("flux-w80-8-heads", window(&[(256, 80), (256, 80)], 8, 128)?),
        ("hunyuan-8-heads", window(&[(30, 18), (48, 24), (80, 24)], 8, 128)?),
    ])
}

fn measure(
    backend: &WgpuBackend,
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
) -> Result<f64> {
    let plan = block_on(backend.plan(problem, request, options))?;
    let queue = backend.queue()?;
    let mut tensors = Vec::new();
    for spec in plan.tensors() {
        let numbers = (0..spec.len()).map(|i| ((i * 2_654_435_761) % 1024) as f32 / 512.0 - 1.0).collect();
        tensors.push(backend.upload(&*queue, HostTensor::new::<f32>(&spec.shape, numbers)?)?);
    }
    let (inputs, mut outputs): (Vec<Tensor>, Vec<Tensor>) = {
        let count = plan.tensors().iter().filter(|spec| !spec.is_output).count();
        let outputs = tensors.split_off(count);
        (tensors, outputs)
    };
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let mut workspace = plan.new_workspace()?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        plan.run(&*queue, Bindings { inputs: &inputs, outputs: &mut outputs }, &mut workspace)?;
        block_on(queue.finish())?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(plan.report().cost.useful_flops / best)
}

#[allow(clippy::print_stdout, reason = "an example's result")]
fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    let tile = |number| {
        let text = std::env::args().nth(number)?;
        text.split(',').map(|extent| extent.parse().ok()).collect::<Option<Vec<usize>>>()
    };
    let options = PlanOptions::default();
    let options = tile(2).map_or(options.clone(), |tile| options.query_tile(&tile));
    let options = tile(3).map_or(options.clone(), |tile| options.key_tile(&tile));
    let backend = WgpuBackend::new(&Options::from_environment())?;
    let probe = backend.measure_multiply_adds()?;
    println!("{}: {:.2} Tflop/s of multiply-adds", backend.device().name, probe / 1e12);
    if let Some(matrices) = backend.measure_matrices()? {
        println!("{:.2} Tflop/s of products of matrices of f16", matrices / 1e12);
    }
    for (name, problem) in cases()?.iter().filter(|case| only.as_deref().is_none_or(|only| case.0 == only)) {
        for family in Family::ALL.into_iter().filter(|&family| family != Family::Generic) {
            let backend = backend.held_to(family);
            for request in [OpRequest::forward(problem), OpRequest::backward(problem)] {
                match measure(&backend, problem, &request, &options) {
                    Ok(rate) => println!(
                        "{name} {} {family}: {:.3} Tflop/s, {:.1} % of the probe",
                        request.op,
                        rate / 1e12,
                        100.0 * rate / probe
                    ),
                    // Not every family does everything.
                    Err(Error::Unsupported { .. }) => {}
                    Err(error) => println!("{name} {} {family}: {error}", request.op),
                }
            }
        }
    }
    Ok(())
}
