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
use natten_cpu::{CpuBackend, Isa};

/// Timed runs, of which the median counts.
const RUNS: usize = 9;

fn main() -> Result<()> {
    let dtype = std::env::args().nth(1).map_or(Ok(DType::F32), |name| name.parse())?;
    let cpu = CpuBackend::new()?;
    let peak = fma_rate(dtype) * rayon::current_num_threads() as f64;
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

/// Flops a second of one core that does nothing but fused multiply-adds in registers, in the type that `dtype` is
/// computed in.
fn fma_rate(dtype: DType) -> f64 {
    const STEPS: usize = 20_000_000;
    let (lanes, chains) = (if dtype == DType::F64 { 1.0 } else { 2.0 }, 12.0);
    let start = Instant::now();
    let bytes_of_f64 = match Isa::widest() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction set was just detected.
        Isa::Avx512 => unsafe { chains_avx512(STEPS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { chains_avx2(STEPS) },
        _ => return f64::NAN,
    };
    2.0 * chains * lanes * bytes_of_f64 * STEPS as f64 / start.elapsed().as_secs_f64()
}

/// Twelve independent chains of `steps` multiply-adds; returns the f64 lanes of a vector.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains_avx512(steps: usize) -> f64 {
    use std::arch::x86_64::{_mm512_fmadd_pd, _mm512_reduce_add_pd, _mm512_set1_pd};
    let (a, b) = (_mm512_set1_pd(std::hint::black_box(0.999)), _mm512_set1_pd(1e-3));
    let mut sums = [_mm512_set1_pd(1.0); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_pd(*sum, a, b);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm512_reduce_add_pd(sum)));
    8.0
}

/// As [`chains_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(steps: usize) -> f64 {
    use std::arch::x86_64::{_mm256_fmadd_pd, _mm256_set1_pd};
    let (a, b) = (_mm256_set1_pd(std::hint::black_box(0.999)), _mm256_set1_pd(1e-3));
    let mut sums = [_mm256_set1_pd(1.0); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_pd(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    4.0
}
