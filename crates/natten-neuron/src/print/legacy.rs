//! The spelling of the first NKI (`neuronxcc.nki`, of SDK 2.26 and before): instructions return their results, tiles are
//! indexed with `nl.arange`, and HBM is read and written by `nl.load` and `nl.store`. HBM tensors are one-dimensional.

use super::{affine, number, tuple};
use crate::ir::{Alu, Instr, Kernel, Op, Operand, Space, Tensor, View};

pub(super) const HEADER: &str = "\
import neuronxcc.nki as nki
import neuronxcc.nki.isa as nisa
import neuronxcc.nki.language as nl
import numpy as np
";

pub(super) fn declaration(tensor: &Tensor) -> Option<String> {
    let (name, dtype) = (&tensor.name, tensor.dtype.name());
    match tensor.space {
        Space::Input => Some(format!("{name} = {name}.reshape(({},))", tensor.free_len())),
        Space::Output => Some(format!(
            "{name} = nl.ndarray(({},), dtype=nl.{dtype}, buffer=nl.shared_hbm)",
            tensor.free_len()
        )),
        Space::Sbuf | Space::Psum => {
            let [parts, rest @ ..] = &tensor.shape[..] else { return None };
            let shape = tuple(rest);
            let shape = shape.trim_start_matches('(').trim_end_matches(')').trim_end_matches(',');
            let space = tensor.space.name();
            Some(format!(
                "{name} = nl.ndarray((nl.par_dim({parts}), {shape}), dtype=nl.{dtype}, buffer=nl.{space})"
            ))
        }
    }
}

/// An index of one number for each axis of the view.
fn aranges(pairs: &[(usize, usize)], first: &str, axis: usize, axes: usize) -> String {
    let mut text = first.to_owned();
    for (at, (stride, count)) in pairs.iter().enumerate() {
        let mut index = vec!["None"; axes];
        index[axis + at] = ":";
        let factor = if *stride == 1 { String::new() } else { format!("{stride} * ") };
        text += &format!(" + {factor}nl.arange({count})[{}]", index.join(", "));
    }
    text
}

fn view(kernel: &Kernel, view: &View) -> String {
    let tensor = kernel.tensor(view.tensor);
    let first = affine(&view.offset, 0);
    if tensor.space.is_hbm() {
        return format!("{}[{}]", tensor.name, aranges(&view.ap, &first, 0, view.ap.len()));
    }
    let axes = 1 + view.ap.len();
    let parts = aranges(&[(1, view.parts)], &view.part.to_string(), 0, axes);
    format!("{}[{parts}, {}]", tensor.name, aranges(&view.ap, &first, 1, axes))
}

fn alu(op: Alu) -> String {
    format!("np.{}", op.name())
}

pub(super) fn instruction(kernel: &Kernel, instr: &Instr) -> String {
    let of = |v: &View| view(kernel, v);
    let operand = |operand: &Operand| match operand {
        Operand::Const(x) => number(*x),
        Operand::Row(v) => of(v),
    };
    let engine = format!("engine=nisa.{}_engine", instr.engine.name());
    let is_hbm = |v: &View| kernel.tensor(v.tensor).space.is_hbm();
    let assign = |dst: &View, value: String| format!("{} = {value}", of(dst));
    match &instr.op {
        Op::DmaCopy { dst, src } if is_hbm(dst) => format!("nl.store({}, value={})", of(dst), of(src)),
        Op::DmaCopy { dst, src } => assign(dst, format!("nl.load({})", of(src))),
        Op::MatMul { dst, stationary, moving, accumulate } => {
            let sign = if *accumulate { "+=" } else { "=" };
            format!("{} {sign} nisa.nc_matmul({}, {})", of(dst), of(stationary), of(moving))
        }
        Op::Transpose { dst, data } => assign(dst, format!("nisa.nc_transpose({}, {engine})", of(data))),
        Op::Activation { dst, function, data, bias, scale, sum } => {
            let bias = bias.as_ref().map_or_else(String::new, |bias| format!(", bias={}", of(bias)));
            let common =
                format!("op=nl.{}, data={}{bias}, scale={}", function.name(), of(data), operand(scale));
            match sum {
                None => assign(dst, format!("nisa.activation({common})")),
                Some(sum) => assign(
                    dst,
                    format!("nisa.activation_reduce({common}, reduce_op=np.add, reduce_res={})", of(sum)),
                ),
            }
        }
        Op::TensorReduce { dst, op, data, negate } => {
            let negate = if *negate { ", negate=True" } else { "" };
            assign(dst, format!("nisa.tensor_reduce({}, {}, axis=(1,){negate})", alu(*op), of(data)))
        }
        Op::TensorTensor { dst, a, b, op } => {
            assign(dst, format!("nisa.tensor_tensor({}, {}, op={}, {engine})", of(a), of(b), alu(*op)))
        }
        Op::TensorScalar { dst, data, first, second } => {
            let mut text = of(data);
            for (at, (op, value, is_reversed)) in std::iter::once(first).chain(second).enumerate() {
                text += &format!(", op{at}={}, operand{at}={}", alu(*op), operand(value));
                if *is_reversed {
                    text += &format!(", reverse{at}=True");
                }
            }
            assign(dst, format!("nisa.tensor_scalar({text}, {engine})"))
        }
        Op::TensorScalarReduce { dst, data, op, operand: value, reduce, result } => assign(
            dst,
            format!(
                "nisa.tensor_scalar_reduce(data={}, op0={}, operand0={}, reduce_op={}, reduce_res={})",
                of(data),
                alu(*op),
                operand(value),
                alu(*reduce),
                of(result)
            ),
        ),
        Op::ScalarTensorTensor { dst, data, op0, operand: value, op1, b } => assign(
            dst,
            format!(
                "nisa.scalar_tensor_tensor(data={}, op0={}, operand0={}, op1={}, operand1={})",
                of(data),
                alu(*op0),
                operand(value),
                alu(*op1),
                of(b)
            ),
        ),
        Op::TensorCopy { dst, src } => assign(dst, format!("nisa.tensor_copy({}, {engine})", of(src))),
        Op::CopyPredicated { dst, src, predicate } => {
            format!(
                "nisa.tensor_copy_predicated(src={}, dst={}, predicate={})",
                of(src),
                of(dst),
                of(predicate)
            )
        }
        Op::AffineSelect { dst, data, pattern, offset, channel, fill } => {
            let axes = 1 + pattern.len();
            let mut index = vec!["None"; axes];
            index[0] = ":";
            let mut pred = format!("{offset} + {channel} * nl.arange({})[{}]", data.parts, index.join(", "));
            for (at, (step, count)) in pattern.iter().enumerate() {
                let mut index = vec!["None"; axes];
                index[at + 1] = ":";
                pred += &format!(" + {step} * nl.arange({count})[{}]", index.join(", "));
            }
            assign(
                dst,
                format!(
                    "nisa.affine_select(pred=({pred} >= 0), on_true_tile={}, on_false_value={})",
                    of(data),
                    number(*fill)
                ),
            )
        }
        Op::Reciprocal { dst, data } => assign(dst, format!("nisa.reciprocal({})", of(data))),
        Op::Memset { dst, value } => {
            let dtype = kernel.tensor(dst.tensor).dtype.name();
            assign(
                dst,
                format!("nisa.memset(({}, {}), {}, dtype=nl.{dtype})", dst.parts, dst.len(), number(*value)),
            )
        }
    }
}
