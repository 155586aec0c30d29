//! What a kernel computes. Vector, scalar and GpSimd engine widen to f32, compute, and round to the type of the result;
//! the tensor engine multiplies and adds in f32, over the contraction first and to PSUM then. AWS documents that
//! accumulation is in f32 and not its order.

use crate::error::NeuronError;
use crate::ir::{Alu, Instr, Kernel, Op, Operand, Space, TensorId};
use crate::sim::memory::Memory;
use crate::target::Target;

/// Runs a verified kernel on its inputs, in the order of its input tensors, and gives its outputs in theirs.
///
/// # Errors
/// For reads of memory that nothing was written to, for outputs that are not written, and for inputs that do not fit.
pub fn run(kernel: &Kernel, target: &Target, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, NeuronError> {
    let of = |space: Space| {
        let tensors = kernel.tensors.iter().enumerate();
        tensors.filter(move |(_, tensor)| tensor.space == space).map(|(at, _)| TensorId(at))
    };
    let mut memory = Memory::new(kernel);
    if of(Space::Input).count() != inputs.len() {
        let message = format!("{} inputs for {}", inputs.len(), of(Space::Input).count());
        return Err(NeuronError::new("err_input_shape", message));
    }
    for (id, numbers) in of(Space::Input).zip(inputs) {
        memory.fill(id, numbers)?;
    }
    let mut number = 0;
    kernel.for_each(|instr, vars| {
        step(&mut memory, target, instr, vars).map_err(|error| error.at(number))?;
        number += 1;
        Ok(())
    })?;
    of(Space::Output).map(|id| memory.output(id).map(<[f32]>::to_vec)).collect()
}

/// An operand, read: one number, or one a partition.
enum Rows {
    All(f32),
    Each(Vec<f32>),
}

impl Rows {
    fn read(memory: &Memory<'_>, operand: &Operand, vars: &[usize]) -> Result<Self, NeuronError> {
        Ok(match operand {
            Operand::Const(value) => Self::All(*value),
            Operand::Row(view) => Self::Each(memory.read(view, vars)?),
        })
    }

    fn of(&self, part: usize) -> f32 {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values[part],
        }
    }
}

fn reduced(op: Alu, row: &[f32]) -> f32 {
    match op {
        Alu::Add => row.iter().sum(),
        _ => row.iter().copied().reduce(|a, b| op.of(a, b)).unwrap_or(0.0),
    }
}

/// `f` on every row of a tile, with its partition.
fn each_row(tile: &mut [f32], len: usize, mut f: impl FnMut(usize, &mut [f32])) {
    tile.chunks_exact_mut(len).enumerate().for_each(|(part, row)| f(part, row));
}

fn step(memory: &mut Memory<'_>, target: &Target, instr: &Instr, vars: &[usize]) -> Result<(), NeuronError> {
    match &instr.op {
        Op::DmaCopy { dst, src } | Op::TensorCopy { dst, src } => {
            let numbers = memory.read(src, vars)?;
            memory.write(dst, vars, numbers);
        }
        Op::MatMul { dst, stationary, moving, accumulate } => {
            let (rows, columns) = (stationary.len(), moving.len());
            let a = memory.read(stationary, vars)?;
            let b = memory.read(moving, vars)?;
            let mut out = product(&a, &b, rows, columns);
            if *accumulate {
                let before = memory.read(dst, vars)?;
                out.iter_mut().zip(before).for_each(|(sum, before)| *sum += before);
            }
            memory.write(dst, vars, out);
        }
        Op::Transpose { dst, data } => {
            let (parts, len) = (data.parts, data.len());
            let tile = memory.read(data, vars)?;
            memory.write(dst, vars, transposed(&tile, parts, len, target));
        }
        Op::Activation { dst, function, data, bias, scale, sum } => {
            let len = data.len();
            let mut tile = memory.read(data, vars)?;
            let scale = Rows::read(memory, scale, vars)?;
            let bias = bias.as_ref().map(|bias| memory.read(bias, vars)).transpose()?;
            let mut sums = vec![0.0; data.parts];
            each_row(&mut tile, len, |part, row| {
                let (scale, bias) = (scale.of(part), bias.as_ref().map_or(0.0, |bias| bias[part]));
                row.iter_mut().for_each(|x| *x = function.of(*x * scale + bias));
                sums[part] = row.iter().sum();
            });
            memory.write(dst, vars, tile);
            if let Some(sum) = sum {
                memory.write(sum, vars, sums);
            }
        }
        Op::TensorReduce { dst, op, data, negate } => {
            let tile = memory.read(data, vars)?;
            let sign = if *negate { -1.0 } else { 1.0 };
            let rows = tile.chunks_exact(data.len()).map(|row| sign * reduced(*op, row)).collect();
            memory.write(dst, vars, rows);
        }
        Op::TensorTensor { dst, a, b, op } => {
            let mut tile = memory.read(a, vars)?;
            let other = memory.read(b, vars)?;
            tile.iter_mut().zip(other).for_each(|(x, y)| *x = op.of(*x, y));
            memory.write(dst, vars, tile);
        }
        Op::TensorScalar { dst, data, first, second } => {
            let mut tile = memory.read(data, vars)?;
            for (op, operand, is_reversed) in std::iter::once(first).chain(second) {
                let operand = Rows::read(memory, operand, vars)?;
                each_row(&mut tile, data.len(), |part, row| {
                    let y = operand.of(part);
                    row.iter_mut().for_each(|x| *x = if *is_reversed { op.of(y, *x) } else { op.of(*x, y) });
                });
            }
            memory.write(dst, vars, tile);
        }
        Op::TensorScalarReduce { dst, data, op, operand, reduce, result } => {
            let mut tile = memory.read(data, vars)?;
            let operand = Rows::read(memory, operand, vars)?;
            let mut results = vec![0.0; data.parts];
            each_row(&mut tile, data.len(), |part, row| {
                let y = operand.of(part);
                row.iter_mut().for_each(|x| *x = op.of(*x, y));
                results[part] = reduced(*reduce, row);
            });
            memory.write(dst, vars, tile);
            memory.write(result, vars, results);
        }
        Op::ScalarTensorTensor { dst, data, op0, operand, op1, b } => {
            let mut tile = memory.read(data, vars)?;
            let operand = Rows::read(memory, operand, vars)?;
            let other = memory.read(b, vars)?;
            let len = data.len();
            each_row(&mut tile, len, |part, row| {
                let y = operand.of(part);
                let others = &other[part * len..(part + 1) * len];
                row.iter_mut().zip(others).for_each(|(x, &z)| *x = op1.of(op0.of(*x, y), z));
            });
            memory.write(dst, vars, tile);
        }
        Op::CopyPredicated { dst, src, predicate } => {
            let mut tile = memory.read(dst, vars)?;
            let source = memory.read(src, vars)?;
            let holds = memory.read(predicate, vars)?;
            for ((x, y), holds) in tile.iter_mut().zip(source).zip(holds) {
                if holds != 0.0 {
                    *x = y;
                }
            }
            memory.write(dst, vars, tile);
        }
        Op::AffineSelect { dst, data, pattern, offset, channel, fill } => {
            let mut tile = memory.read(data, vars)?;
            each_row(&mut tile, data.len(), |part, row| {
                let base = offset + part as i64 * channel;
                for (at, x) in row.iter_mut().enumerate() {
                    if base + along(pattern, at) < 0 {
                        *x = *fill;
                    }
                }
            });
            memory.write(dst, vars, tile);
        }
        Op::Reciprocal { dst, data } => {
            let mut tile = memory.read(data, vars)?;
            tile.iter_mut().for_each(|x| *x = 1.0 / *x);
            memory.write(dst, vars, tile);
        }
        Op::Memset { dst, value } => {
            memory.write(dst, vars, vec![*value; dst.parts * dst.len()]);
        }
    }
    Ok(())
}

/// `Σ step_i index_i` of the element number `at` of a pattern.
fn along(pattern: &[(i64, usize)], mut at: usize) -> i64 {
    let mut sum = 0;
    for &(step, count) in pattern.iter().rev() {
        sum += step * (at % count) as i64;
        at /= count;
    }
    sum
}

/// `out[m, n] = sum_k a[k, m] b[k, n]`, the sums in f32 from the first partition on.
fn product(a: &[f32], b: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(columns)) {
        for (&factor, out) in a.iter().zip(out.chunks_exact_mut(columns)) {
            out.iter_mut().zip(b).for_each(|(sum, x)| *sum += factor * x);
        }
    }
    out
}

/// A transpose by the tensor engine. Before v3 it is a product with the identity, in which a number that is not finite
/// reaches every row of its column.
fn transposed(tile: &[f32], parts: usize, len: usize, target: &Target) -> Vec<f32> {
    let mut out = vec![0.0; parts * len];
    for (part, row) in tile.chunks_exact(len).enumerate() {
        for (at, &x) in row.iter().enumerate() {
            out[at * parts + part] = x;
        }
    }
    if target.nki == "gen2" && parts > 1 {
        for column in out.chunks_exact_mut(parts) {
            if let Some(at) = column.iter().position(|x| !x.is_finite()) {
                let value = column[at];
                let others = column.iter().filter(|x| !x.is_finite()).count() - 1;
                column.fill(f32::NAN);
                if others == 0 && !value.is_nan() {
                    column[at] = value;
                }
            }
        }
    }
    out
}
