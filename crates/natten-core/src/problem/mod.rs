//! What is asked: a [`Problem`] describes one attention, an [`OpRequest`] which of its operations and results are
//! wanted, and [`Problem::tensors`] lists every tensor that goes in and comes out. The command line's file names, the
//! conformance suite and the backends all take names and shapes from there.
//!
//! Layouts are heads-last, but for the attention weights. With `X` the token grid (one to three axes, `Xk` for keys
//! where lengths differ):
//!
//! | tensor | shape |
//! |---|---|
//! | `query` | `[B, *X, Hq, D]` |
//! | `key` | `[B, *Xk, Hkv, D]` |
//! | `value` | `[B, *Xk, Hkv, Dv]` |
//! | `output` | `[B, *X, Hq, Dv]` |
//! | `logsumexp` | `[B, *X, Hq]`, f32, or f64 with f64 |
//! | `additional_key`, `additional_value` | `[B, N, Hkv, D]`, `[B, N, Hkv, Dv]` |
//! | `rpb` | `[Hq, 2*k-1, …]`, one extent a window axis |
//! | `initial_state`, `final_state` | `[B, Hq, D, Dv]`, f32, or f64 with f64 |
//! | `attention` | `[B, Hq, *X, prod(k) + N]`, heads first; slots as in [`Neighborhood::slot_of`] |
//! | a captured tensor | as the program says, and of its dtype |
//!
//! `grad_`, `tangent_` and `grad2_` of a tensor have its shape and dtype.

mod request;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::request::{Op, OpRequest};
pub use self::tensors::TensorSpec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::{Alignment, Neighborhood};
use crate::program::{Node, Program, Unary};
use crate::role::Role;

/// One attention: shapes, dtype, who sees whom. Checked when built, so that what has a `Problem` is well-formed.
///
/// ```
/// use natten_core::geometry::{AxisParams, Neighborhood};
/// use natten_core::{DType, OpRequest, Problem};
/// # fn main() -> natten_core::Result<()> {
/// let window = Neighborhood::new(&[AxisParams::new(56, 7), AxisParams::new(56, 7)])?;
/// let problem = Problem::builder(window, DType::F32).batch(2).heads(4).head_dim(32).build()?;
/// let output = &problem.tensors(&OpRequest::forward(&problem))?[3];
/// assert_eq!((output.name(), &output.shape[..]), ("output", &[2, 56, 56, 4, 32][..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    neighborhood: Neighborhood,
    dtype: DType,
    batch: usize,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    head_dim_v: usize,
    additional: usize,
    has_rpb: bool,
    scale: f64,
    program: Arc<Program>,
    initial_state: bool,
}

/// Collects what a [`Problem`] is; [`build`](Self::build) checks it.
#[derive(Clone, Debug)]
#[must_use]
pub struct ProblemBuilder {
    neighborhood: Neighborhood,
    dtype: DType,
    batch: usize,
    heads: usize,
    heads_kv: Option<usize>,
    head_dim: usize,
    head_dim_v: Option<usize>,
    additional: usize,
    has_rpb: bool,
    scale: Option<f64>,
    program: Option<Arc<Program>>,
    initial_state: bool,
}

impl ProblemBuilder {
    /// Batch entries. Default 1; 0 is an empty problem with empty results.
    pub const fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Query heads. Default 1.
    pub const fn heads(mut self, heads: usize) -> Self {
        self.heads = heads;
        self
    }

    /// Key and value heads, a divisor of the query heads: query head `h` uses head `h / (heads / heads_kv)`. Default:
    /// as many as query heads.
    pub const fn heads_kv(mut self, heads_kv: usize) -> Self {
        self.heads_kv = Some(heads_kv);
        self
    }

    /// Numbers in a query and in a key. Default 1.
    pub const fn head_dim(mut self, head_dim: usize) -> Self {
        self.head_dim = head_dim;
        self
    }

    /// Numbers in a value. Default: `head_dim`.
    pub const fn head_dim_v(mut self, head_dim_v: usize) -> Self {
        self.head_dim_v = Some(head_dim_v);
        self
    }

    /// Keys that every query sees beside its window, in the same softmax, never masked. Default 0.
    pub const fn additional_tokens(mut self, tokens: usize) -> Self {
        self.additional = tokens;
        self
    }

    /// Whether a relative positional bias is added to the scaled scores, at index `(k-1) + (key-query)/dilation` an
    /// axis. Default no.
    pub const fn relative_positional_bias(mut self, has_rpb: bool) -> Self {
        self.has_rpb = has_rpb;
        self
    }

    /// What scores are multiplied with. `None`, the default, is `head_dim^-1/2`; zero is zero.
    pub const fn scale(mut self, scale: Option<f64>) -> Self {
        self.scale = scale;
        self
    }

    /// What the attention computes of its scores. Default: softmax.
    pub fn program(mut self, program: impl Into<Arc<Program>>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Whether a recurrence starts from a given state. Default no: from zero.
    pub const fn initial_state(mut self, is_given: bool) -> Self {
        self.initial_state = is_given;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a dtype that is not of floats, zero heads or head dims, heads that do not divide, a scale
    /// that is not finite, a bias without a window, a program of another rank, a recurrence that is not causal attention of one sequence, and sizes whose bytes overflow.
    pub fn build(self) -> Result<Problem> {
        let rank = self.neighborhood.rank();
        let problem = Problem {
            heads_kv: self.heads_kv.unwrap_or(self.heads),
            head_dim_v: self.head_dim_v.unwrap_or(self.head_dim),
            scale: self.scale.unwrap_or_else(|| (self.head_dim as f64).powf(-0.5)),
            neighborhood: self.neighborhood,
            dtype: self.dtype,
            batch: self.batch,
            heads: self.heads,
            head_dim: self.head_dim,
            additional: self.additional,
            has_rpb: self.has_rpb,
            program: self.program.unwrap_or_else(|| Arc::new(Program::softmax(rank))),
            initial_state: self.initial_state,
        };
        problem.check()?;
        Ok(problem)
    }
}

impl Problem {
    /// Begins a problem: who sees whom, in which dtype.
    pub const fn builder(neighborhood: Neighborhood, dtype: DType) -> ProblemBuilder {
        ProblemBuilder {
            neighborhood,
            dtype,
            batch: 1,
            heads: 1,
            heads_kv: None,
            head_dim: 1,
            head_dim_v: None,
            additional: 0,
            has_rpb: false,
            scale: None,
            program: None,
            initial_state: false,
        }
    }

    fn check(&self) -> Result<()> {
        if !self.dtype.is_float() {
            return Err(Error::invalid(
                "dtype",
                self.dtype,
                "attention is of floating-point numbers",
                "use f64, f32, f16 or bf16; integers can be captured by a program",
            ));
        }
        for (name, value) in [
            ("heads", self.heads),
            ("heads_kv", self.heads_kv),
            ("head_dim", self.head_dim),
            ("head_dim_v", self.head_dim_v),
        ] {
            if value == 0 {
                return Err(Error::invalid(name, 0, "it must be at least 1", "check the tensors' shapes"));
            }
        }
        if !self.heads.is_multiple_of(self.heads_kv) {
            return Err(Error::invalid(
                "heads_kv",
                self.heads_kv,
                format!("it must divide the number of query heads, which is {}", self.heads),
                "repeat or drop key and value heads until it divides",
            ));
        }
        if !self.scale.is_finite() {
            return Err(Error::invalid(
                "scale",
                self.scale,
                "it must be a finite number",
                "leave it out for head_dim^-1/2",
            ));
        }
        if self.has_rpb && self.neighborhood.is_full() {
            return Err(Error::invalid(
                "rpb",
                "given",
                "a relative positional bias needs a window, and ordinary attention has none",
                "use a neighborhood whose kernel_size is the whole axis, or leave the bias out",
            ));
        }
        self.check_program()?;
        // The attention weights are checked where they are asked for: fused operations do not have them.
        for role in Role::ALL.into_iter().filter(|&role| self.has(role)) {
            self.check_bytes(role)?;
        }
        Ok(())
    }

    fn check_program(&self) -> Result<()> {
        if self.program.rank() != self.neighborhood.rank() {
            return Err(Error::invalid(
                "program",
                format!("of {} axes", self.program.rank()),
                format!("the neighborhood has {}", self.neighborhood.rank()),
                "make the program for this number of axes",
            ));
        }
        let dims = [self.head_dim, self.head_dim, self.head_dim_v];
        for ((name, dim), function) in
            ["query_mod", "key_mod", "value_mod"].into_iter().zip(dims).zip(self.program.mods())
        {
            let pairs_lanes = |node: &Node| matches!(node, Node::Unary(Unary::LaneHalf | Unary::LanePair, _));
            if dim % 2 == 1 && function.is_some_and(|expr| self.program.graph().depends(expr, pairs_lanes)) {
                return Err(Error::invalid(
                    name,
                    format!("on vectors of {dim}"),
                    "half and pair need an even number of elements",
                    "pad the head dim with a zero, or leave half and pair out",
                ));
            }
        }
        if self.program.decay().is_none() {
            return match self.initial_state {
                false => Ok(()),
                true => Err(Error::invalid(
                    "initial_state",
                    "given",
                    "only a recurrence has a state, and the program has no decay",
                    "leave it out, or give the program a decay",
                )),
            };
        }
        let axes = self.neighborhood.user_axes();
        let is_sequence = axes.len() == 1
            && axes[0].alignment() == Some(Alignment::TopLeft)
            && axes[0].query_len() == axes[0].key_len();
        if !is_sequence || self.has_rpb || self.additional > 0 {
            return Err(Error::invalid(
                "program",
                "a recurrence",
                "it runs over one sequence: causal (top-left) ordinary attention of equal query and key lengths, \
                 without rpb and additional tokens",
                "use Neighborhood::full(len, len, Some(Alignment::TopLeft))",
            ));
        }
        Ok(())
    }

    /// Who sees whom.
    pub const fn neighborhood(&self) -> &Neighborhood {
        &self.neighborhood
    }

    /// The element type of all tensors but the logsumexp.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Batch entries.
    pub const fn batch(&self) -> usize {
        self.batch
    }

    /// Query heads.
    pub const fn heads(&self) -> usize {
        self.heads
    }

    /// Key and value heads.
    pub const fn heads_kv(&self) -> usize {
        self.heads_kv
    }

    /// Query heads a key head.
    pub const fn heads_per_kv(&self) -> usize {
        self.heads / self.heads_kv
    }

    /// Numbers in a query and in a key.
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Numbers in a value.
    pub const fn head_dim_v(&self) -> usize {
        self.head_dim_v
    }

    /// Keys that every query sees beside its window.
    pub const fn additional_tokens(&self) -> usize {
        self.additional
    }

    /// Whether there is a relative positional bias.
    pub const fn has_rpb(&self) -> bool {
        self.has_rpb
    }

    /// What scores are multiplied with.
    pub const fn scale(&self) -> f64 {
        self.scale
    }

    /// What the attention computes of its scores.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether the row function has a logsumexp.
    pub fn has_logsumexp(&self) -> bool {
        self.program.decay().is_none() && self.program.logsumexp().is_some()
    }

    /// Whether a recurrence starts from a given state.
    pub const fn has_initial_state(&self) -> bool {
        self.initial_state
    }

    /// Visible (query, key) pairs, additional keys counted, over batch and heads.
    pub fn useful_pairs(&self) -> u128 {
        let queries: u128 = self.neighborhood.query_shape().iter().map(|&n| n as u128).product();
        let pairs = self.neighborhood.useful_pairs().saturating_add(queries * self.additional as u128);
        pairs.saturating_mul(self.batch as u128 * self.heads as u128)
    }

    /// Floating-point operations a visible pair, those of matrix products, a multiply and an add each: two products
    /// forward, five backward; a product's tangent is two products, beside the product where it is needed itself.
    pub const fn flops_per_pair(&self, op: Op) -> u128 {
        let (dim, dim_v) = (self.head_dim as u128, self.head_dim_v as u128);
        match op {
            Op::Forward => 2 * (dim + dim_v),
            Op::ForwardJvp => 2 * (3 * dim + 3 * dim_v),
            Op::Backward => 2 * (3 * dim + 2 * dim_v),
            Op::BackwardJvp => 2 * (7 * dim + 8 * dim_v),
            Op::Qk => 2 * dim,
            Op::QkJvp | Op::QkBackward => 4 * dim,
            Op::Av => 2 * dim_v,
            Op::AvJvp | Op::AvBackward => 4 * dim_v,
        }
    }
}
