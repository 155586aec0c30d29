//! The rules of the hardware that a kernel can break, checked before anything runs, with the words of AWS's tools.

use crate::dtype::Dtype;
use crate::error::NeuronError;
use crate::ir::{
    Alu, Engine, Instr, Kernel, MAX_FREE_DIMS, MOVING_MAX, Op, PARTITIONS, Space, Stmt, Tensor, View,
};
use crate::target::Target;

type Result<T = ()> = std::result::Result<T, NeuronError>;

/// Checks every tensor and every instruction of a kernel.
///
/// # Errors
/// The first rule that is broken. Instructions are counted in program order, loops not unrolled.
pub fn verify(kernel: &Kernel, target: &Target) -> Result {
    for tensor in &kernel.tensors {
        check_tensor(tensor).map_err(|error| error.of(&tensor.name))?;
    }
    let mut number = 0;
    walk(kernel, target, &kernel.body, &mut Vec::new(), &mut number)?;
    let mut written = vec![false; kernel.tensors.len()];
    mark_written(&kernel.body, &mut written);
    for (tensor, written) in kernel.tensors.iter().zip(written) {
        if tensor.space == Space::Output && tensor.free_len() > 0 && !written {
            let message = format!("Tensor '{}' is an output and is never written to", tensor.name);
            return Err(NeuronError::new("err_tensor_output_not_written_to", message).of(&tensor.name));
        }
    }
    Ok(())
}

fn mark_written(body: &[Stmt], written: &mut [bool]) {
    for stmt in body {
        match stmt {
            Stmt::For { body, .. } => mark_written(body, written),
            Stmt::Instr(instr) => {
                for (_, view) in &instr.op.views()[..instr.op.written()] {
                    written[view.tensor.0] = true;
                }
            }
        }
    }
}

fn walk(
    kernel: &Kernel,
    target: &Target,
    body: &[Stmt],
    counts: &mut Vec<usize>,
    number: &mut usize,
) -> Result {
    for stmt in body {
        match stmt {
            Stmt::For { count, body } => {
                counts.push(*count);
                walk(kernel, target, body, counts, number)?;
                counts.pop();
            }
            Stmt::Instr(instr) => {
                check_instr(kernel, target, instr, counts).map_err(|error| error.at(*number))?;
                *number += 1;
            }
        }
    }
    Ok(())
}

fn check_tensor(tensor: &Tensor) -> Result {
    if tensor.space.is_hbm() {
        return Ok(());
    }
    if tensor.shape.len() < 2 {
        return Err(NeuronError::new(
            "err_leading_dimension_of_tensor_must_be_partition",
            "SBUF and PSUM tensors must have at least 2 dimensions (partition-dim and free-dim)",
        ));
    }
    if tensor.shape[0] > PARTITIONS {
        return Err(NeuronError::new(
            "err_num_partition_exceed_arch_limit",
            format!("number of partitions {} exceed architecture limitation of 128.", tensor.shape[0]),
        ));
    }
    Ok(())
}

fn check_instr(kernel: &Kernel, target: &Target, instr: &Instr, counts: &[usize]) -> Result {
    let op = &instr.op;
    for (argument, view) in op.views() {
        check_view(kernel, op, argument, view, counts)?;
    }
    check_spaces(kernel, op)?;
    check_engine(kernel, target, instr)?;
    match op {
        Op::DmaCopy { dst, src } => {
            let elements = |view: &View| view.parts * view.len();
            if elements(dst) != elements(src) {
                return Err(NeuronError::new(
                    "err_dma_elements",
                    format!(
                        "dma_copy requires src and dst to have the same number of elements, got src={}, dst={}",
                        elements(src),
                        elements(dst)
                    ),
                ));
            }
        }
        Op::MatMul { dst, stationary, moving, .. } => check_matmul(kernel, target, dst, stationary, moving)?,
        Op::Transpose { dst, data } => check_transpose(kernel, dst, data)?,
        Op::TensorReduce { dst, data, op, .. } => {
            check_parts("tensor_reduce", data, dst)?;
            check_reduction(*op)?;
            check_row("tensor_reduce", dst)?;
        }
        _ => {
            let views = op.views();
            let dst = views[0].1;
            for (argument, view) in &views[1..] {
                if view.parts != dst.parts {
                    return Err(mismatch(kernel, op, argument, view, dst));
                }
                let is_row = matches!(*argument, "reduce_res" | "bias" | "scale" | "operand0")
                    || (*argument == "operand1" && matches!(op, Op::TensorScalar { .. }));
                if is_row {
                    check_row(op.name(), view)?;
                    if kernel.tensor(view.tensor).dtype != Dtype::F32 {
                        return Err(NeuronError::new(
                            "err_activation_bias_invalid_type",
                            format!("{} {argument} must be float32", op.name()),
                        ));
                    }
                } else if view.len() != dst.len() {
                    return Err(NeuronError::new(
                        "err_free_size_mismatch",
                        format!(
                            "{} {argument} has {} elements a partition, dst has {}",
                            op.name(),
                            view.len(),
                            dst.len()
                        ),
                    ));
                }
            }
            if let Op::TensorScalarReduce { reduce, .. } = op {
                check_reduction(*reduce)?;
            }
        }
    }
    Ok(())
}

fn check_view(kernel: &Kernel, op: &Op, argument: &str, view: &View, counts: &[usize]) -> Result {
    let tensor = kernel.tensor(view.tensor);
    if view.parts > PARTITIONS {
        return Err(NeuronError::new(
            "err_num_partition_exceed_arch_limit",
            format!("{} {argument} partition dimension {} exceeds maximum 128", op.name(), view.parts),
        )
        .of(&tensor.name));
    }
    let out_of_bounds = |dimension: usize, first: usize, last: usize, size: usize| {
        Err(NeuronError::new(
            "err_tensor_access_out_of_bound",
            format!(
                "Out-of-bound access for tensor `{}` on dimension {dimension}: index range [{first}, {last}] exceed \
                 dimension size of {size}",
                tensor.name
            ),
        )
        .of(&tensor.name))
    };
    if view.is_empty() {
        return Err(NeuronError::new("err_empty_access", format!("{} {argument} has no element", op.name())));
    }
    let last = view.offset.max(counts) + view.reach();
    if last >= tensor.free_len() {
        return out_of_bounds(usize::from(!tensor.space.is_hbm()), view.offset.base, last, tensor.free_len());
    }
    if tensor.space.is_hbm() {
        return Ok(());
    }
    if view.part + view.parts > tensor.shape[0] {
        return out_of_bounds(0, view.part, view.part + view.parts - 1, tensor.shape[0]);
    }
    // Engines read from a partition that is a multiple of as many as they read.
    let starts: &[usize] = match view.parts {
        65.. => &[0],
        33..=64 => &[0, 64],
        _ => &[0, 32, 64, 96],
    };
    if !matches!(op, Op::DmaCopy { .. }) && !starts.contains(&view.part) {
        return Err(NeuronError::new(
            "err_start_partition",
            format!(
                "{} {argument} of {} partitions cannot start at partition {}: it must be one of {starts:?}",
                op.name(),
                view.parts,
                view.part
            ),
        )
        .of(&tensor.name));
    }
    if view.ap.iter().filter(|&&(_, count)| count > 1).count() > MAX_FREE_DIMS {
        return Err(NeuronError::new(
            "err_access_pattern",
            format!("{} {argument} has more than {MAX_FREE_DIMS} free dimensions", op.name()),
        ));
    }
    Ok(())
}

/// Which memories each argument may be in.
fn check_spaces(kernel: &Kernel, op: &Op) -> Result {
    let space = |view: &View| kernel.tensor(view.tensor).space;
    match op {
        Op::DmaCopy { dst, src } => {
            if [dst, src].iter().any(|view| space(view) == Space::Psum) {
                let name = |view: &View| space(view).name();
                return Err(NeuronError::new(
                    "err_unsupported_memory",
                    format!(
                        "dma_copy requires HBM or SBUF tensors, got src=MemoryRegion.{}, dst=MemoryRegion.{}",
                        name(src),
                        name(dst)
                    ),
                ));
            }
            if space(dst) == Space::Input || space(src) == Space::Output {
                return Err(NeuronError::new(
                    "err_hbm_direction",
                    "dma_copy reads inputs and writes outputs",
                ));
            }
            Ok(())
        }
        _ => {
            for (argument, view) in op.views() {
                let allowed: &[Space] = match (op, argument) {
                    (Op::MatMul { .. } | Op::Transpose { .. }, "dst") => &[Space::Psum],
                    (Op::MatMul { .. } | Op::Transpose { .. } | Op::AffineSelect { .. }, _) => &[Space::Sbuf],
                    _ => &[Space::Sbuf, Space::Psum],
                };
                if !allowed.contains(&space(view)) {
                    let names: Vec<String> =
                        allowed.iter().map(|space| format!("'{}'", space.name())).collect();
                    let who = match op {
                        Op::MatMul { .. } => argument.to_owned(),
                        _ => format!("{} {argument}", op.name()),
                    };
                    return Err(NeuronError::new(
                        "err_unsupported_memory",
                        format!("{who} must be in [{}], got {}", names.join(", "), space(view).name()),
                    )
                    .of(&kernel.tensor(view.tensor).name));
                }
            }
            Ok(())
        }
    }
}

fn check_engine(kernel: &Kernel, target: &Target, instr: &Instr) -> Result {
    use Engine::{GpSimd, Scalar, Sync, Tensor, Vector};
    let op = &instr.op;
    let allowed: &[Engine] = match op {
        Op::DmaCopy { .. } => &[Sync, GpSimd, Scalar, Vector],
        Op::MatMul { .. } | Op::Transpose { .. } => &[Tensor],
        Op::Activation { .. } => &[Scalar],
        Op::AffineSelect { .. } => &[GpSimd],
        Op::TensorCopy { .. } if target.scalar_copies => &[Vector, GpSimd, Scalar],
        Op::TensorCopy { .. } | Op::TensorTensor { .. } | Op::Memset { .. } => &[Vector, GpSimd],
        Op::TensorScalar { .. } => &[Vector, GpSimd, Scalar],
        _ => &[Vector],
    };
    if !allowed.contains(&instr.engine) {
        return Err(NeuronError::new(
            "err_engine",
            format!("{} does not run on the {} engine of {}", op.name(), instr.engine.name(), target.name),
        ));
    }
    let touches_psum = op.views().iter().any(|(_, view)| kernel.tensor(view.tensor).space == Space::Psum);
    if instr.engine == GpSimd && touches_psum {
        return Err(NeuronError::new(
            "err_unsupported_memory",
            format!("{} on the gpsimd engine must be in ['sbuf'], got psum", op.name()),
        ));
    }
    if let Op::TensorTensor { a, b, .. } = op {
        let in_psum = |view: &View| kernel.tensor(view.tensor).space == Space::Psum;
        if in_psum(a) && in_psum(b) {
            return Err(NeuronError::new(
                "err_unsupported_memory",
                "tensor_tensor data1 and data2 must not both be in psum",
            ));
        }
    }
    Ok(())
}

fn check_matmul(kernel: &Kernel, target: &Target, dst: &View, stationary: &View, moving: &View) -> Result {
    let (k, m, n) = (stationary.parts, stationary.len(), moving.len());
    let fail = |code, message: String| Err(NeuronError::new(code, message));
    if k > PARTITIONS {
        return fail(
            "err_size_of_dimension_exceed_arch_limit",
            format!("Matmul contraction dimension {k} exceeds pmax=128"),
        );
    }
    if k != moving.parts {
        return fail(
            "err_num_partition_mismatch",
            format!("Matmul contraction dimension mismatch: stationary[0]={k} != moving[0]={}", moving.parts),
        );
    }
    if m > PARTITIONS {
        return fail(
            "err_size_of_dimension_exceed_arch_limit",
            format!("Matmul stationary free dimension {m} exceeds gemm_stationary_fmax=128"),
        );
    }
    if n > MOVING_MAX {
        return fail(
            "err_size_of_dimension_exceed_arch_limit",
            format!(
                "Matmul moving free dimension {n} exceeds max 512 for nc_version=nc_version.{}",
                target.nki
            ),
        );
    }
    if dst.parts != m || dst.len() != n {
        return fail(
            "err_matmul_dst",
            format!("Matmul dst is [{}, {}], stationary and moving make it [{m}, {n}]", dst.parts, dst.len()),
        );
    }
    let dtype = |view: &View| kernel.tensor(view.tensor).dtype;
    if (dtype(stationary) == Dtype::F32) != (dtype(moving) == Dtype::F32) {
        return fail(
            "err_matmul_dtype",
            format!(
                "Matmul stationary is {} and moving is {}: if one is float32, both must be",
                dtype(stationary).name(),
                dtype(moving).name()
            ),
        );
    }
    if dtype(dst) != Dtype::F32 {
        return fail(
            "err_matmul_dtype",
            format!("Matmul dst must be float32 in PSUM, got {}", dtype(dst).name()),
        );
    }
    check_bank(kernel, target, dst)
}

/// What the tensor engine writes lies in one bank.
fn check_bank(kernel: &Kernel, target: &Target, dst: &View) -> Result {
    let tensor = kernel.tensor(dst.tensor);
    let size = tensor.dtype.size();
    let first = dst.offset.base * size;
    let last = (dst.offset.base + dst.reach()) * size + size - 1;
    if first / target.psum_bank_bytes != last / target.psum_bank_bytes {
        return Err(NeuronError::new(
            "err_psum_bank",
            format!(
                "dst spans PSUM banks: bytes {first} to {last} of a partition, a bank has {}",
                target.psum_bank_bytes
            ),
        )
        .of(&tensor.name));
    }
    Ok(())
}

fn check_transpose(kernel: &Kernel, dst: &View, data: &View) -> Result {
    if data.len() > PARTITIONS || data.parts > PARTITIONS {
        let tensor = kernel.tensor(data.tensor);
        return Err(NeuronError::new(
            "err_size_of_dimension_exceed_arch_limit",
            format!(
                "size of dimension 1 in '{}[{}, {}]' of 'transpose' exceed architecture limitation of 128.",
                tensor.name,
                data.parts,
                data.len()
            ),
        ));
    }
    if dst.parts != data.len() || dst.len() != data.parts {
        return Err(NeuronError::new(
            "err_transpose_shape",
            format!("nc_transpose of [{}, {}] into [{}, {}]", data.parts, data.len(), dst.parts, dst.len()),
        ));
    }
    Ok(())
}

fn check_parts(op: &str, data: &View, dst: &View) -> Result {
    if data.parts != dst.parts {
        return Err(NeuronError::new(
            "err_num_partition_mismatch",
            format!("{op}: Partition dim size must be preserved, got {} -> {}", data.parts, dst.parts),
        ));
    }
    Ok(())
}

fn check_row(op: &str, view: &View) -> Result {
    if view.len() != 1 {
        return Err(NeuronError::new(
            "err_activation_scale_invalid_type",
            format!("{op}: an operand of one number a partition has {}", view.len()),
        ));
    }
    Ok(())
}

fn check_reduction(op: Alu) -> Result {
    if !matches!(op, Alu::Add | Alu::Max | Alu::Min) {
        return Err(NeuronError::new(
            "err_reduce_op",
            format!("reduce_op must be one of add, maximum, minimum, got {}", op.name()),
        ));
    }
    Ok(())
}

fn mismatch(kernel: &Kernel, op: &Op, argument: &str, view: &View, dst: &View) -> NeuronError {
    let shown = |view: &View| format!("{}[{}, {}]", kernel.tensor(view.tensor).name, view.parts, view.len());
    NeuronError::new(
        "err_num_partition_mismatch",
        format!(
            "number of partitions (dimension 0 size of a tile) mismatch in parameters ({}, {argument} {}) of '{}'",
            shown(dst),
            shown(view),
            op.name()
        ),
    )
}
