//! Engines, and one operation for each instruction of the machine.

use super::View;

/// What runs instructions: five engines with an in-order queue each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// The 128x128 multiplier array.
    Tensor,
    /// Elementwise and reductions along the free dimension.
    Vector,
    /// Functions of one argument.
    Scalar,
    /// General purpose, without access to PSUM.
    GpSimd,
    /// Starts DMAs and does nothing else.
    Sync,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 5] = [Self::Tensor, Self::Vector, Self::Scalar, Self::GpSimd, Self::Sync];

    /// The name of NKI's `nisa.engine`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Vector => "vector",
            Self::Scalar => "scalar",
            Self::GpSimd => "gpsimd",
            Self::Sync => "sync",
        }
    }
}

/// An operation of the arithmetic units of the vector engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the operation of its name")]
pub enum Alu {
    Add,
    Subtract,
    Multiply,
    Max,
    Min,
    IsLt,
    IsLe,
    IsEq,
    IsNe,
    IsGe,
    IsGt,
    /// 1 where both are not 0.
    LogicalAnd,
    /// 1 where one of them is not 0.
    LogicalOr,
}

impl Alu {
    /// The operation on f32.
    pub fn of(self, a: f32, b: f32) -> f32 {
        let truth = |holds: bool| f32::from(u8::from(holds));
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Max if a.is_nan() || b.is_nan() => f32::NAN,
            Self::Min if a.is_nan() || b.is_nan() => f32::NAN,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
            Self::IsLt => truth(a < b),
            Self::IsLe => truth(a <= b),
            Self::IsEq => truth(a == b),
            Self::IsNe => truth(a != b),
            Self::IsGe => truth(a >= b),
            Self::IsGt => truth(a > b),
            Self::LogicalAnd => truth(a != 0.0 && b != 0.0),
            Self::LogicalOr => truth(a != 0.0 || b != 0.0),
        }
    }

    /// The name of NKI's `nl`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
            Self::Max => "maximum",
            Self::Min => "minimum",
            Self::IsLt => "less",
            Self::IsLe => "less_equal",
            Self::IsEq => "equal",
            Self::IsNe => "not_equal",
            Self::IsGe => "greater_equal",
            Self::IsGt => "greater",
            Self::LogicalAnd => "logical_and",
            Self::LogicalOr => "logical_or",
        }
    }
}

/// A function of the scalar engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the function of its name")]
pub enum Function {
    Copy,
    Exp,
    Log,
    Tanh,
    Sigmoid,
    Softplus,
    Sqrt,
    Rsqrt,
    Erf,
    Abs,
    Relu,
    Square,
}

impl Function {
    /// The function on f32. The machine's are piecewise polynomials of unpublished error; these are exact to the
    /// rounding of libm.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Self::Copy => x,
            Self::Exp => libm::expf(x),
            Self::Log => libm::logf(x),
            Self::Tanh => libm::tanhf(x),
            Self::Sigmoid if x >= 0.0 => 1.0 / (1.0 + libm::expf(-x)),
            Self::Sigmoid => {
                let power = libm::expf(x);
                power / (1.0 + power)
            }
            Self::Softplus => x.max(0.0) + libm::log1pf(libm::expf(-x.abs())),
            Self::Sqrt => x.sqrt(),
            Self::Rsqrt => 1.0 / x.sqrt(),
            Self::Erf => libm::erff(x),
            Self::Abs => x.abs(),
            Self::Relu if x.is_nan() => x,
            Self::Relu => x.max(0.0),
            Self::Square => x * x,
        }
    }

    /// The name of NKI's `nl`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
            Self::Softplus => "softplus",
            Self::Sqrt => "sqrt",
            Self::Rsqrt => "rsqrt",
            Self::Erf => "erf",
            Self::Abs => "abs",
            Self::Relu => "relu",
            Self::Square => "square",
        }
    }
}

/// A number, or one number a partition.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// The same for all.
    Const(f32),
    /// Of shape [partitions, 1], f32.
    Row(View),
}

/// An instruction. Every operation computes in f32 and rounds to the type of `dst`.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Copies between HBM and SBUF, by 16 DMA engines. The elements of both views are in one order.
    DmaCopy {
        /// To.
        dst: View,
        /// From.
        src: View,
    },
    /// `dst[m, n] (+)= sum_k stationary[k, m] moving[k, n]`.
    MatMul {
        /// In PSUM, f32.
        dst: View,
        /// In SBUF, [K, M].
        stationary: View,
        /// In SBUF, [K, N].
        moving: View,
        /// Whether what is in `dst` stays.
        accumulate: bool,
    },
    /// `dst[f, p] = data[p, f]`, by the tensor engine.
    Transpose {
        /// In PSUM.
        dst: View,
        /// In SBUF.
        data: View,
    },
    /// `dst = function(data * scale + bias)`, and its sum along the free dimension.
    Activation {
        /// To.
        dst: View,
        /// The function.
        function: Function,
        /// Its argument.
        data: View,
        /// Added to the argument.
        bias: Option<View>,
        /// Multiplied with the argument.
        scale: Operand,
        /// Where the sum of a partition's results goes.
        sum: Option<View>,
    },
    /// The reduction along the free dimension.
    TensorReduce {
        /// Of shape [partitions, 1].
        dst: View,
        /// add, max or min.
        op: Alu,
        /// What is reduced.
        data: View,
        /// Whether the result is negated.
        negate: bool,
    },
    /// `dst = op(a, b)`.
    TensorTensor {
        /// To.
        dst: View,
        /// The left argument.
        a: View,
        /// The right argument.
        b: View,
        /// The operation.
        op: Alu,
    },
    /// `dst = op1(op0(data, operand0), operand1)`; `reverse` exchanges the arguments.
    TensorScalar {
        /// To.
        dst: View,
        /// The tensor.
        data: View,
        /// The first operation.
        first: (Alu, Operand, bool),
        /// The second, if any.
        second: Option<(Alu, Operand, bool)>,
    },
    /// `dst = op(data, operand)`, and its reduction along the free dimension.
    TensorScalarReduce {
        /// To.
        dst: View,
        /// The tensor.
        data: View,
        /// The operation.
        op: Alu,
        /// Its right argument.
        operand: Operand,
        /// add, max or min.
        reduce: Alu,
        /// Of shape [partitions, 1].
        result: View,
    },
    /// `dst = op1(op0(data, operand), b)`.
    ScalarTensorTensor {
        /// To.
        dst: View,
        /// The tensor.
        data: View,
        /// The first operation.
        op0: Alu,
        /// Its right argument.
        operand: Operand,
        /// The second operation.
        op1: Alu,
        /// Its right argument.
        b: View,
    },
    /// A copy, with a change of type.
    TensorCopy {
        /// To.
        dst: View,
        /// From.
        src: View,
    },
    /// A copy where the predicate is not 0; the other elements stay.
    CopyPredicated {
        /// To.
        dst: View,
        /// From.
        src: View,
        /// Of u8.
        predicate: View,
    },
    /// `dst = data where offset + partition * channel + Σ step_i i >= 0 else fill`.
    AffineSelect {
        /// In SBUF.
        dst: View,
        /// In SBUF.
        data: View,
        /// (step, count) a free dimension.
        pattern: Vec<(i64, usize)>,
        /// The constant of the predicate.
        offset: i64,
        /// The factor of the partition.
        channel: i64,
        /// What the others become.
        fill: f32,
    },
    /// `1 / data`.
    Reciprocal {
        /// To.
        dst: View,
        /// The divisor.
        data: View,
    },
    /// A constant.
    Memset {
        /// To.
        dst: View,
        /// The constant.
        value: f32,
    },
}

impl Op {
    /// The name of NKI's `nisa`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::DmaCopy { .. } => "dma_copy",
            Self::MatMul { .. } => "nc_matmul",
            Self::Transpose { .. } => "nc_transpose",
            Self::Activation { .. } => "activation",
            Self::TensorReduce { .. } => "tensor_reduce",
            Self::TensorTensor { .. } => "tensor_tensor",
            Self::TensorScalar { .. } => "tensor_scalar",
            Self::TensorScalarReduce { .. } => "tensor_scalar_reduce",
            Self::ScalarTensorTensor { .. } => "scalar_tensor_tensor",
            Self::TensorCopy { .. } => "tensor_copy",
            Self::CopyPredicated { .. } => "tensor_copy_predicated",
            Self::AffineSelect { .. } => "affine_select",
            Self::Reciprocal { .. } => "reciprocal",
            Self::Memset { .. } => "memset",
        }
    }

    /// Every view, with the name of its argument; those that are written come first.
    pub fn views(&self) -> Vec<(&'static str, &View)> {
        fn row<'a>(name: &'static str, all: &mut Vec<(&'static str, &'a View)>, operand: &'a Operand) {
            if let Operand::Row(view) = operand {
                all.push((name, view));
            }
        }
        match self {
            Self::DmaCopy { dst, src } | Self::TensorCopy { dst, src } => vec![("dst", dst), ("src", src)],
            Self::MatMul { dst, stationary, moving, .. } => {
                vec![("dst", dst), ("stationary", stationary), ("moving", moving)]
            }
            Self::Transpose { dst, data } | Self::Reciprocal { dst, data } => {
                vec![("dst", dst), ("data", data)]
            }
            Self::Activation { dst, data, bias, scale, sum, .. } => {
                let mut all = vec![("dst", dst)];
                all.extend(sum.iter().map(|view| ("reduce_res", view)));
                all.push(("data", data));
                all.extend(bias.iter().map(|view| ("bias", view)));
                row("scale", &mut all, scale);
                all
            }
            Self::TensorReduce { dst, data, .. } => vec![("dst", dst), ("data", data)],
            Self::TensorTensor { dst, a, b, .. } => vec![("dst", dst), ("data1", a), ("data2", b)],
            Self::TensorScalar { dst, data, first, second } => {
                let mut all = vec![("dst", dst), ("data", data)];
                row("operand0", &mut all, &first.1);
                if let Some((_, operand, _)) = second {
                    row("operand1", &mut all, operand);
                }
                all
            }
            Self::TensorScalarReduce { dst, data, operand, result, .. } => {
                let mut all = vec![("dst", dst), ("reduce_res", result), ("data", data)];
                row("operand0", &mut all, operand);
                all
            }
            Self::ScalarTensorTensor { dst, data, operand, b, .. } => {
                let mut all = vec![("dst", dst), ("data", data)];
                row("operand0", &mut all, operand);
                all.push(("operand1", b));
                all
            }
            Self::CopyPredicated { dst, src, predicate } => {
                vec![("dst", dst), ("src", src), ("predicate", predicate)]
            }
            Self::AffineSelect { dst, data, .. } => vec![("dst", dst), ("on_true_tile", data)],
            Self::Memset { dst, .. } => vec![("dst", dst)],
        }
    }

    /// How many of [`views`](Self::views) are written.
    pub const fn written(&self) -> usize {
        match self {
            Self::TensorScalarReduce { .. } | Self::Activation { sum: Some(_), .. } => 2,
            _ => 1,
        }
    }

    /// Whether what was in the first view matters.
    pub const fn reads_dst(&self) -> bool {
        matches!(self, Self::MatMul { accumulate: true, .. } | Self::CopyPredicated { .. })
    }

    /// Every view, to change.
    pub fn views_mut(&mut self) -> Vec<&mut View> {
        fn row<'a>(all: &mut Vec<&'a mut View>, operand: &'a mut Operand) {
            if let Operand::Row(view) = operand {
                all.push(view);
            }
        }
        match self {
            Self::DmaCopy { dst, src } | Self::TensorCopy { dst, src } => vec![dst, src],
            Self::MatMul { dst, stationary, moving, .. } => vec![dst, stationary, moving],
            Self::Transpose { dst, data } | Self::Reciprocal { dst, data } => vec![dst, data],
            Self::Activation { dst, data, bias, scale, sum, .. } => {
                let mut all = vec![dst];
                all.extend(sum.as_mut());
                all.push(data);
                all.extend(bias.as_mut());
                row(&mut all, scale);
                all
            }
            Self::TensorReduce { dst, data, .. } => vec![dst, data],
            Self::TensorTensor { dst, a, b, .. } => vec![dst, a, b],
            Self::TensorScalar { dst, data, first, second } => {
                let mut all = vec![dst, data];
                row(&mut all, &mut first.1);
                if let Some((_, operand, _)) = second {
                    row(&mut all, operand);
                }
                all
            }
            Self::TensorScalarReduce { dst, data, operand, result, .. } => {
                let mut all = vec![dst, result, data];
                row(&mut all, operand);
                all
            }
            Self::ScalarTensorTensor { dst, data, operand, b, .. } => {
                let mut all = vec![dst, data];
                row(&mut all, operand);
                all.push(b);
                all
            }
            Self::CopyPredicated { dst, src, predicate } => vec![dst, src, predicate],
            Self::AffineSelect { dst, data, .. } => vec![dst, data],
            Self::Memset { dst, .. } => vec![dst],
        }
    }
}

/// An instruction on its engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Instr {
    /// Whose queue it is in; of a DMA, who starts it.
    pub engine: Engine,
    /// What it does.
    pub op: Op,
}
