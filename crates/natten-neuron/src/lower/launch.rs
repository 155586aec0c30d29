//! What a kernel is launched with: where its inputs come from and where its outputs go. The kernels read and write the
//! problem's tensors as they are; beside those there are constants of the plan (masks, identities), gathered copies of
//! small tensors (bias tables laid out tile by tile), and gradients of such, which the launcher adds up again.

use std::sync::Arc;

use natten_core::Role;

use crate::ir::Kernel;

/// Where an input of a kernel comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A bound tensor.
    Role(Role),
    /// Numbers that the plan knows.
    Constant(Arc<Vec<f32>>),
    /// Elements of a bound tensor, by row-major index.
    Gather(Role, Arc<Vec<u32>>),
    /// An output of an earlier kernel of the plan, by kernel and output.
    Result(usize, usize),
}

/// Where an output of a kernel goes.
#[derive(Clone, Debug)]
pub enum Sink {
    /// A bound tensor.
    Role(Role),
    /// Added to elements of a bound tensor, by row-major index, `u32::MAX` for none. The tensor is zero before.
    Scatter(Role, Arc<Vec<u32>>),
    /// To a later kernel, or nowhere.
    Kept,
}

/// A kernel with its inputs and outputs, in the order of its tensors.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Where its inputs come from.
    pub sources: Vec<Source>,
    /// Where its outputs go.
    pub sinks: Vec<Sink>,
}
