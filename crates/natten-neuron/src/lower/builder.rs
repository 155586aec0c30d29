//! Writes kernels: declares tensors, appends instructions, and makes loops of what repeats.

use crate::allocate::ALIGNMENT;
use crate::dtype::Dtype;
use crate::ir::{
    Affine, Alu, Engine, Function, Instr, Kernel, Op, Operand, Space, Stmt, Tensor, TensorId, View,
};

/// A kernel on its way.
#[derive(Debug)]
pub struct Builder {
    name: String,
    tensors: Vec<Tensor>,
    body: Vec<Stmt>,
}

impl Builder {
    /// An empty kernel.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), tensors: Vec::new(), body: Vec::new() }
    }

    /// The kernel.
    pub fn finish(self) -> Kernel {
        Kernel { name: self.name, tensors: self.tensors, body: self.body }
    }

    /// Declares a tensor.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        space: Space,
        shape: &[usize],
        dtype: Dtype,
    ) -> TensorId {
        self.tensors.push(Tensor { name: name.into(), space, shape: shape.to_vec(), dtype });
        TensorId(self.tensors.len() - 1)
    }

    /// Declares a tensor in SBUF.
    pub fn sbuf(&mut self, name: impl Into<String>, shape: &[usize], dtype: Dtype) -> TensorId {
        self.tensor(name, Space::Sbuf, shape, dtype)
    }

    /// Declares a tensor of f32 in PSUM.
    pub fn psum(&mut self, name: impl Into<String>, shape: &[usize]) -> TensorId {
        self.tensor(name, Space::Psum, shape, Dtype::F32)
    }

    /// Gives a tensor that grew while the kernel was written its size.
    pub fn resize(&mut self, id: TensorId, shape: &[usize]) {
        self.tensors[id.0].shape = shape.to_vec();
    }

    /// Bytes a partition of all tensors in SBUF: no allocation takes more.
    pub fn sbuf_bytes(&self) -> usize {
        let tensors = self.tensors.iter().filter(|tensor| tensor.space == Space::Sbuf);
        tensors.map(|tensor| tensor.free_bytes().next_multiple_of(ALIGNMENT)).sum()
    }

    /// The tensor of a number.
    pub fn get(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// Appends an instruction.
    pub fn push(&mut self, engine: Engine, op: Op) {
        self.body.push(Stmt::Instr(Instr { engine, op }));
    }

    /// What has been appended so far, taken out.
    pub fn take_body(&mut self) -> Vec<Stmt> {
        std::mem::take(&mut self.body)
    }

    /// Appends statements.
    pub fn extend(&mut self, body: impl IntoIterator<Item = Stmt>) {
        self.body.extend(body);
    }

    /// Columns `start..start + len` of the first `parts` partitions.
    pub fn at(&self, tensor: TensorId, parts: usize, start: usize, len: usize) -> View {
        View { tensor, part: 0, parts, offset: Affine::from(start), ap: vec![(1, len)] }
    }

    /// Elements of an HBM tensor, or of the first partitions of another, by (stride, count) pairs.
    pub fn pattern(&self, tensor: TensorId, parts: usize, start: usize, ap: Vec<(usize, usize)>) -> View {
        View { tensor, part: 0, parts, offset: Affine::from(start), ap }
    }

    /// A DMA, started by the sync engine where it loads, by GpSimd where it stores.
    pub fn dma(&mut self, dst: View, src: View) {
        let stores = self.get(dst.tensor).space == Space::Output;
        self.push(if stores { Engine::Sync } else { Engine::GpSimd }, Op::DmaCopy { dst, src });
    }

    /// A matrix product.
    pub fn matmul(&mut self, dst: View, stationary: View, moving: View, accumulate: bool) {
        self.push(Engine::Tensor, Op::MatMul { dst, stationary, moving, accumulate });
    }

    /// A transpose on the tensor engine.
    pub fn transpose(&mut self, dst: View, data: View) {
        self.push(Engine::Tensor, Op::Transpose { dst, data });
    }

    /// A copy with a change of type, on an engine that may read PSUM.
    pub fn copy(&mut self, engine: Engine, dst: View, src: View) {
        match engine {
            Engine::Scalar => self.activation(dst, Function::Copy, src, None, Operand::Const(1.0), None),
            _ => self.push(engine, Op::TensorCopy { dst, src }),
        }
    }

    /// A function, on the scalar engine.
    pub fn activation(
        &mut self,
        dst: View,
        function: Function,
        data: View,
        bias: Option<View>,
        scale: Operand,
        sum: Option<View>,
    ) {
        self.push(Engine::Scalar, Op::Activation { dst, function, data, bias, scale, sum });
    }

    /// A reduction, on the vector engine.
    pub fn reduce(&mut self, dst: View, op: Alu, data: View, negate: bool) {
        self.push(Engine::Vector, Op::TensorReduce { dst, op, data, negate });
    }

    /// An operation of two tensors, on the vector engine.
    pub fn tensor_tensor(&mut self, dst: View, op: Alu, a: View, b: View) {
        self.push(Engine::Vector, Op::TensorTensor { dst, a, b, op });
    }

    /// An operation with a number, or with one a partition, on the vector engine.
    pub fn tensor_scalar(&mut self, dst: View, op: Alu, data: View, operand: Operand) {
        self.push(Engine::Vector, Op::TensorScalar { dst, data, first: (op, operand, false), second: None });
    }

    /// A constant, on the vector engine.
    pub fn memset(&mut self, dst: View, value: f32) {
        self.push(Engine::Vector, Op::Memset { dst, value });
    }
}
