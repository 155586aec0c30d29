//! The rate at which a GPU multiplies matrices, measured: `kernels/matmul_probe.cu` in the fastest way that the device has
//! for a dtype and this crate knows. Benchmarks set their rates beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use natten_core::geometry::Coverage;
use natten_core::{DType, Result};

use crate::device::{Device, DeviceMemory};
use crate::family::{Argument, Class, Generated, Kernel, Layout, Sequence, Step};
use crate::hopper::wgmma_scores;
use crate::launch::{Loaded, lines};
use crate::queue::CudaQueue;
use crate::target::Target;

/// How long it is measured, at least. The clock has settled by then.
const TIME: Duration = Duration::from_millis(300);

/// Rounds of a launch: microseconds each, so that a launch's own cost does not count.
const ROUNDS: u32 = 1000;

/// Threads of a block.
const THREADS: u32 = 256;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Fused multiply-adds of general-purpose cores.
    Fma,
    /// Tensor cores in 16 bits, operands in registers.
    Mma,
    /// Hopper's tensor cores in 16 bits, operands in shared memory.
    Wgmma,
    /// Tensor cores in f64, in the only shape that Ampere has.
    DmmaOf8,
    /// Tensor cores in f64, in the largest shape that Hopper has.
    DmmaOf16,
}

impl Method {
    const fn of(target: &Target, dtype: DType) -> Self {
        match (dtype, target.arch) {
            (DType::F16 | DType::Bf16, (9, 0)) => Self::Wgmma,
            (DType::F16 | DType::Bf16, (8.., _)) => Self::Mma,
            (DType::F64, (9.., _)) => Self::DmmaOf16,
            (DType::F64, (8, _)) => Self::DmmaOf8,
            _ => Self::Fma,
        }
    }

    /// The kernel's name of it.
    const fn name(self) -> &'static str {
        match self {
            Self::Fma => "FMA",
            Self::Mma => "MMA",
            Self::Wgmma => "WGMMA",
            Self::DmmaOf8 => "DMMA_8",
            Self::DmmaOf16 => "DMMA_16",
        }
    }

    /// Flops of a block in a round.
    const fn flops(self) -> u64 {
        let warps = (THREADS / 32) as u64;
        match self {
            Self::Fma => THREADS as u64 * 8 * 4 * 2,
            Self::Mma => warps * 16 * (16 * 8 * 16 * 2),
            Self::Wgmma => 2 * (64 * 256 * 256 * 2),
            Self::DmmaOf8 => warps * 16 * (8 * 8 * 4 * 2),
            Self::DmmaOf16 => warps * 4 * (16 * 8 * 16 * 2),
        }
    }

    /// Blocks that a multiprocessor runs at once.
    const fn blocks(self) -> u32 {
        if matches!(self, Self::Wgmma) { 1 } else { 2 }
    }

    /// Bytes of shared memory: the operands, and room to align them to 1024 bytes.
    const fn shared_bytes(self) -> u32 {
        if matches!(self, Self::Wgmma) { (2 * 64 + 256) * 256 * 2 + 1024 } else { 0 }
    }
}

fn kernel(target: &Target, dtype: DType) -> Kernel {
    let method = Method::of(target, dtype);
    let real = if dtype == DType::F64 { "double" } else { "float" };
    let mut source = format!(
        "#define METHOD {}\n#define REAL {real}\n#define ELEMENT_BF16 {}\n",
        method.name(),
        i32::from(dtype == DType::Bf16)
    );
    if method == Method::Wgmma {
        let element = if dtype == DType::Bf16 { "bf16" } else { "f16" };
        source += "typedef unsigned long long u64;\n";
        source += &wgmma_scores(256, element);
    }
    Kernel {
        source: source + include_str!("../kernels/matmul_probe.cu"),
        entry: "matmul_probe",
        grid: [u64::from(target.units * method.blocks()), 1, 1],
        block: THREADS,
        shared_bytes: method.shared_bytes(),
        arguments: vec![Argument::Workspace(0), Argument::I32(ROUNDS as i32)],
        options: &[],
        class: if method == Method::Wgmma { Class::Wgmma } else { Class::Mma },
    }
}

/// The kernels that measure the rate on this kind of GPU, one a dtype, for those who compile them without one. Their
/// class says how strictly the compiler's messages are to be taken; they have none of the other instructions of it.
pub fn generate_matmul_probes(target: &Target) -> Vec<Generated> {
    [DType::F64, DType::F32, DType::F16, DType::Bf16]
        .map(|dtype| {
            let Kernel { source, entry, options, class, .. } = kernel(target, dtype);
            Generated { family: "matmul probe", entry, source, options, class }
        })
        .to_vec()
}

/// Flops a second.
///
/// # Errors
/// [`Error::Compile`](natten_core::Error::Compile), [`Error::Device`](natten_core::Error::Device).
pub(crate) fn rate(device: &Arc<Device>, dtype: DType) -> Result<f64> {
    let kernel = kernel(device.target(), dtype);
    let blocks = kernel.grid[0];
    let flops = (blocks * u64::from(ROUNDS) * Method::of(device.target(), dtype).flops()) as f64;
    // Each thread writes its sum, so that the compiler leaves nothing out.
    let results = DeviceMemory::new(device, blocks as usize * THREADS as usize * size_of::<f64>())?;
    let loaded = Loaded::new(device, one_launch(kernel), &[], 1)?;
    let mut lines = lines(loaded.lines());
    let queue = CudaQueue::new(Arc::clone(device), device.stream()?);
    let mut launches = 1u32;
    loop {
        queue.wait()?;
        let timer = queue.clock()?;
        let start = Instant::now();
        for _ in 0..launches {
            loaded.run(queue.stream(), &[], results.pointer(), &mut lines)?;
        }
        let elapsed = match timer {
            Some(timer) => timer.read()?,
            None => {
                queue.wait()?;
                start.elapsed()
            }
        };
        if elapsed >= TIME {
            return Ok(flops * f64::from(launches) / elapsed.as_secs_f64());
        }
        // Half as long again, so that the next one is the last.
        let wanted = 1.5 * TIME.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        launches = (f64::from(launches) * wanted).ceil().min(1e6) as u32;
    }
}

fn one_launch(kernel: Kernel) -> Sequence {
    Sequence {
        steps: vec![Step::Launch(kernel)],
        workspace: 0,
        tables: Vec::new(),
        layout: Layout::Any,
        coverage: Coverage::default(),
        config: Vec::new(),
    }
}
