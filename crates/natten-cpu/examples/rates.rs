//! Rates of the CPU backend on some problems, beside this machine's rate of fused multiply-adds in the same run:
//! `cargo run --release -p natten-cpu --example rates [f64|f32|f16|bf16]`. Useful flops count visible pairs only, 4 D a
//! pair forward and 10 D backward; visited flops count what lane boxes hold.

#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Instant;

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::{
    Backend, Bindings, DType, HostTensor, Op, OpRequest, PlanOptions, Problem, Result, Role, Tensor,
};
use natten_cpu::CpuBackend;

/// Timed runs, of which the median counts.
const RUNS: usize = 9;

fn main() -> Result<()> {
    let dtype = std::env::args().nth(1).map_or(Ok(DType::F32), |name| name.parse())?;
    let cpu = CpuBackend::new()?;
    let peak = pollster::block_on(cpu.matmul_rate(dtype))?.unwrap_or(f64::NAN);
    println!(
        "{}, {} threads, {dtype}: {:.0} Gflop/s of fused multiply-adds\n",
        cpu.device().name,
        cpu.device().units,
        peak / 1e9
    );
    println!(
        "| case | op | ms | useful Gflop/s | visited Gflop/s | visited / peak |\n|---|---|---|---|---|---|"
    );
    for (name, window, heads, dim) in cases()? {
        let problem = Problem::builder(window, dtype).heads(heads).head_dim(dim).build()?;
        let mut tensors = BTreeMap::new();
        for request in [OpRequest::forward(&problem), OpRequest::backward(&problem)] {
            let (seconds, useful, visited) = time(&cpu, &problem, &request, &mut tensors)?;
            println!(
                "| {name} | {} | {:.2} | {:.1} | {:.1} | {:.0} % |",
                request.op,
                seconds * 1e3,
                useful / seconds / 1e9,
                visited / seconds / 1e9,
                100.0 * visited / seconds / peak
            );
        }
    }
    Ok(())
}

fn cases() -> Result<Vec<(&'static str, Neighborhood, usize, usize)>> {
    let window = |axes: &[AxisParams]| Neighborhood::new(axes);
    let axis = AxisParams::new;
    let dilated = |len, kernel_size| axis(len, kernel_size).dilation(4);
    Ok(vec![
        ("na2d-56-k7-d32", window(&[axis(56, 7); 2])?, 4, 32),
        ("na2d-64-k13-d64", window(&[axis(64, 13); 2])?, 8, 64),
        ("na2d-64-k13-d64-dil4", window(&[dilated(64, 13); 2])?, 8, 64),
        ("na1d-4096-k255-d64", window(&[axis(4096, 255)])?, 8, 64),
        ("na3d-16x24x24-k7-d64", window(&[axis(16, 7), axis(24, 7), axis(24, 7)])?, 4, 64),
        ("full-2048-d64", Neighborhood::full(2048, 2048, None)?, 8, 64),
        ("full-2048-d128", Neighborhood::full(2048, 2048, None)?, 8, 128),
    ])
}

/// Median seconds of a run, and its useful and visited flops. Keeps what forward wrote, for backward to read.
fn time(
    cpu: &CpuBackend,
    problem: &Problem,
    request: &OpRequest,
    tensors: &mut BTreeMap<Role, Tensor>,
) -> Result<(f64, f64, f64)> {
    let plan = pollster::block_on(cpu.plan(problem, request, &PlanOptions::default()))?;
    for spec in plan.tensors() {
        let seed = Role::ALL.iter().position(|&role| role == spec.role).unwrap_or(0);
        let number = |i: usize| ((i * 7919 + seed * 131) % 1009) as f64 / 336.0 - 1.5;
        if let Entry::Vacant(entry) = tensors.entry(spec.role) {
            entry.insert(HostTensor::from_fn(spec.dtype, &spec.shape, number)?.into());
        }
    }
    let (inputs, outputs): (Vec<_>, Vec<_>) = plan.tensors().iter().partition(|spec| !spec.is_output);
    let mut outputs: Vec<Tensor> = outputs.iter().filter_map(|spec| tensors.remove(&spec.role)).collect();
    let inputs: Vec<&Tensor> = inputs.iter().map(|spec| &tensors[&spec.role]).collect();
    let (queue, mut workspace) = (cpu.queue()?, plan.new_workspace()?);
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        plan.run(&*queue, Bindings { inputs: &inputs, outputs: &mut outputs }, &mut workspace)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    if request.op == Op::Forward {
        let roles: Vec<Role> =
            plan.tensors().iter().filter(|spec| spec.is_output).map(|spec| spec.role).collect();
        tensors.extend(roles.into_iter().zip(outputs));
    }
    let cost = plan.report().cost;
    Ok((seconds[RUNS / 2], cost.useful_flops, cost.visited_flops))
}
