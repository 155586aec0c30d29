//! What an instruction costs: cycles of its engine, from the tables of AWS's documentation of NKI (SDK 2.23, the last
//! that printed them), and nanoseconds of the DMA engines.

use crate::dtype::Dtype;
use crate::ir::{Alu, Engine, Instr, Kernel, Op, Space, View};
use crate::target::Target;

/// Cycles of an instruction on its engine. A DMA costs its engine the start only.
pub fn cycles(kernel: &Kernel, target: &Target, instr: &Instr) -> f64 {
    let tensor = |view: &View| kernel.tensor(view.tensor);
    let in_sbuf = |view: &View| tensor(view).space == Space::Sbuf;
    let is_16_bit = |view: &View| tensor(view).dtype.size() == 2;
    let min = target.min_cycles;
    let dst = instr.op.views()[0].1;
    let n = dst.len() as f64;
    // The modes of v3 on 16-bit numbers: four a cycle inside SBUF, two where PSUM is involved.
    let fast = |views: &[&View], inside: f64| match () {
        () if !target.fast_copies || instr.engine != Engine::Vector => 1.0,
        () if !views.iter().all(|view| is_16_bit(view)) => 1.0,
        () if views.iter().all(|view| in_sbuf(view)) => inside,
        () => 2.0_f64.min(inside),
    };
    match &instr.op {
        Op::DmaCopy { .. } => target.dma_issue_cycles,
        Op::MatMul { stationary, moving, .. } => {
            let passes = if tensor(moving).dtype == Dtype::F32 { target.f32_passes } else { 1.0 };
            passes * min.min(stationary.len() as f64).max(moving.len() as f64)
        }
        Op::Transpose { data, .. } => {
            let passes = if tensor(data).dtype == Dtype::F32 { target.f32_passes } else { 1.0 };
            passes * (data.parts as f64).max(min.min(data.len() as f64))
        }
        Op::Activation { sum, .. } => min.max(n) + if sum.is_some() { target.reduce_cycles } else { 0.0 },
        Op::TensorReduce { data, op, .. } => {
            let n = data.len() as f64;
            let halved = is_16_bit(data) && is_16_bit(dst) && matches!(op, Alu::Add | Alu::Max);
            min.max(if halved { n / 2.0 } else { n })
        }
        Op::TensorTensor { a, b, op, .. } => {
            let one_in_psum = in_sbuf(a) != in_sbuf(b);
            let all_16_bit = [a, b, dst].into_iter().all(|view| tensor(view).dtype == Dtype::Bf16);
            let is_simple = matches!(op, Alu::Add | Alu::Multiply | Alu::Subtract);
            let is_single = one_in_psum || (all_16_bit && is_simple);
            match instr.engine {
                Engine::Vector if !is_single => min.max(2.0 * n),
                _ => min.max(n / fast(&[a, b, dst], 2.0)),
            }
        }
        Op::TensorScalar { data, .. } => min.max(n / fast(&[data, dst], 4.0)),
        Op::TensorScalarReduce { .. } => min.max(n) + target.reduce_cycles,
        Op::ScalarTensorTensor { data, b, op0, op1, .. } => {
            let fast = [data, b].into_iter().all(|view| tensor(view).dtype == Dtype::Bf16)
                && (*op0, *op1) == (Alu::Subtract, Alu::Multiply)
                && dst.len().is_multiple_of(2);
            min.max(if fast { n } else { 2.0 * n })
        }
        Op::TensorCopy { src, .. } => min.max(n / fast(&[src, dst], 4.0)),
        Op::CopyPredicated { src, predicate, .. } => {
            min.max(if in_sbuf(src) != in_sbuf(predicate) { n } else { 2.0 * n })
        }
        Op::AffineSelect { .. } => target.gpsimd_start_cycles + n,
        Op::Reciprocal { .. } => min.max(8.0 * n),
        Op::Memset { value, .. } => min.max(if *value == 0.0 && is_16_bit(dst) { n / 2.0 } else { n }),
    }
}

/// A DMA as its engines see it: descriptors, and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Runs of bytes that lie one behind the other on both sides.
    pub descriptors: usize,
    /// Bytes in all, of the side that has more.
    pub bytes: usize,
}

impl Transfer {
    /// The descriptors of a copy.
    pub fn of(kernel: &Kernel, dst: &View, src: &View) -> Self {
        // Of SBUF no run goes on into the next partition.
        let run = dst.run().min(src.run());
        let elements = dst.parts * dst.len();
        let size = kernel.tensor(dst.tensor).dtype.size().max(kernel.tensor(src.tensor).dtype.size());
        Self { descriptors: elements.div_ceil(run.max(1)), bytes: elements * size }
    }

    /// Nanoseconds on every one of the DMA engines, which share the descriptors.
    pub fn nanoseconds(&self, target: &Target) -> f64 {
        let each = self.bytes as f64 / self.descriptors.max(1) as f64;
        let turns = self.descriptors.div_ceil(target.dma_queues) as f64;
        turns * (target.dma_descriptor_ns + each / target.dma_bytes_per_ns)
    }
}
