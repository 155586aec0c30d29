//! The spelling of NKI 0.6.0.

use super::{affine, number, truth, tuple};
use crate::ir::{Alu, Instr, Kernel, Op, Operand, Space, Tensor, View};

pub(super) const HEADER: &str = "\
import numpy as np

import nki
import nki.isa as nisa
import nki.language as nl
";

/// The line that makes a tensor; none of inputs.
pub(super) fn declaration(tensor: &Tensor) -> Option<String> {
    let buffer = match tensor.space {
        Space::Input => return None,
        Space::Output => "shared_hbm",
        Space::Sbuf => "sbuf",
        Space::Psum => "psum",
    };
    let (name, shape, dtype) = (&tensor.name, tuple(&tensor.shape), tensor.dtype.name());
    Some(format!("{name} = nl.ndarray({shape}, dtype=nl.{dtype}, buffer=nl.{buffer})"))
}

/// A view: a slice where it is one, otherwise an access pattern.
fn view(kernel: &Kernel, view: &View) -> String {
    let tensor = kernel.tensor(view.tensor);
    let name = &tensor.name;
    let is_hbm = tensor.space.is_hbm();
    if !is_hbm && let [(1, count)] = view.ap[..] {
        let (from, to) = (affine(&view.offset, 0), affine(&view.offset, count));
        return format!("{name}[{}:{}, {from}:{to}]", view.part, view.part + view.parts);
    }
    let mut pairs: Vec<String> =
        view.ap.iter().map(|(stride, count)| format!("[{stride}, {count}]")).collect();
    let mut first = 0;
    if !is_hbm {
        pairs.insert(0, format!("[{}, {}]", tensor.free_len(), view.parts));
        first = view.part * tensor.free_len();
    }
    format!("{name}.ap(pattern=[{}], offset={})", pairs.join(", "), affine(&view.offset, first))
}

fn alu(op: Alu) -> String {
    format!("nl.{}", op.name())
}

pub(super) fn instruction(kernel: &Kernel, instr: &Instr) -> String {
    let of = |v: &View| view(kernel, v);
    let operand = |operand: &Operand| match operand {
        Operand::Const(x) => number(*x),
        Operand::Row(v) => of(v),
    };
    let engine = format!("engine=nisa.engine.{}", instr.engine.name());
    let arguments = match &instr.op {
        Op::DmaCopy { dst, src } => format!("dst={}, src={}", of(dst), of(src)),
        Op::MatMul { dst, stationary, moving, accumulate } => format!(
            "dst={}, stationary={}, moving={}, accumulate={}",
            of(dst),
            of(stationary),
            of(moving),
            truth(*accumulate)
        ),
        Op::Transpose { dst, data } => format!("dst={}, data={}, {engine}", of(dst), of(data)),
        Op::Activation { dst, function, data, bias, scale, sum } => {
            let mut text = format!("dst={}, op=nl.{}, data={}", of(dst), function.name(), of(data));
            if let Some(bias) = bias {
                text += &format!(", bias={}", of(bias));
            }
            if *scale != Operand::Const(1.0) {
                text += &format!(", scale={}", operand(scale));
            }
            if let Some(sum) = sum {
                let cmd = "reduce_cmd=nisa.reduce_cmd.reset_reduce";
                text += &format!(", reduce_op=nl.add, reduce_res={}, {cmd}", of(sum));
            }
            text
        }
        Op::TensorReduce { dst, op, data, negate } => {
            let negate = if *negate { ", negate=True" } else { "" };
            format!("dst={}, op={}, data={}, axis=1{negate}", of(dst), alu(*op), of(data))
        }
        Op::TensorTensor { dst, a, b, op } => {
            format!("dst={}, data1={}, data2={}, op={}, {engine}", of(dst), of(a), of(b), alu(*op))
        }
        Op::TensorScalar { dst, data, first, second } => {
            let mut text = format!("dst={}, data={}", of(dst), of(data));
            for (at, (op, value, is_reversed)) in std::iter::once(first).chain(second).enumerate() {
                text += &format!(", op{at}={}, operand{at}={}", alu(*op), operand(value));
                if *is_reversed {
                    text += &format!(", reverse{at}=True");
                }
            }
            text + ", " + &engine
        }
        Op::TensorScalarReduce { dst, data, op, operand: value, reduce, result } => format!(
            "dst={}, data={}, op0={}, operand0={}, reduce_op={}, reduce_res={}",
            of(dst),
            of(data),
            alu(*op),
            operand(value),
            alu(*reduce),
            of(result)
        ),
        Op::ScalarTensorTensor { dst, data, op0, operand: value, op1, b } => format!(
            "dst={}, data={}, op0={}, operand0={}, op1={}, operand1={}",
            of(dst),
            of(data),
            alu(*op0),
            operand(value),
            alu(*op1),
            of(b)
        ),
        Op::TensorCopy { dst, src } => format!("dst={}, src={}, {engine}", of(dst), of(src)),
        Op::CopyPredicated { dst, src, predicate } => {
            format!("dst={}, src={}, predicate={}", of(dst), of(src), of(predicate))
        }
        Op::AffineSelect { dst, data, pattern, offset, channel, fill } => {
            let pairs: Vec<String> =
                pattern.iter().map(|(step, count)| format!("[{step}, {count}]")).collect();
            format!(
                "dst={}, pattern=[{}], channel_multiplier={channel}, on_true_tile={}, on_false_value={}, \
                 cmp_op=nl.greater_equal, offset={offset}",
                of(dst),
                pairs.join(", "),
                of(data),
                number(*fill)
            )
        }
        Op::Reciprocal { dst, data } => format!("dst={}, data={}", of(dst), of(data)),
        Op::Memset { dst, value } => format!("dst={}, value={}, {engine}", of(dst), number(*value)),
    };
    format!("nisa.{}({arguments})", instr.op.name())
}
