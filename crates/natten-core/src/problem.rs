//! What is asked: a [`Problem`] describes one attention, an [`OpRequest`] which of its operations and results are
//! wanted, and [`Problem::tensors`] lists every tensor that goes in and comes out. The command line's file names, the
//! conformance suite and the backends all take names and shapes from there.
//!
//! Layouts are heads-last. With `X` the token grid (one to three axes, `Xk` for keys where lengths differ):
//!
//! | tensor | shape |
//! |---|---|
//! | `query`, `grad_query` | `[B, *X, Hq, D]` |
//! | `key`, `grad_key` | `[B, *Xk, Hkv, D]` |
//! | `value`, `grad_value` | `[B, *Xk, Hkv, Dv]` |
//! | `output`, `grad_output` | `[B, *X, Hq, Dv]` |
//! | `logsumexp`, `grad_logsumexp` | `[B, *X, Hq]`, f32, or f64 with f64 |
//! | `additional_key`, `additional_value` | `[B, N, Hkv, D]`, `[B, N, Hkv, Dv]` |
//! | `rpb` | `[Hq, 2*k-1, …]`, one extent a window axis |

use std::fmt;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Neighborhood;
use crate::role::{Role, RoleSet};

/// An operation on a [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// `output` and `logsumexp` from the inputs.
    Forward,
    /// Gradients of the inputs from `grad_output`, and optionally `grad_logsumexp`, with the `output` and `logsumexp`
    /// of the forward pass.
    Backward,
}

impl Op {
    /// The operation's name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An operation, which of its results are wanted, and which optional inputs are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct OpRequest {
    /// The operation.
    pub op: Op,
    /// The results to compute. What is not wanted costs nothing.
    pub wants: RoleSet,
    /// Whether backward gets a cotangent of the logsumexp. Absent means zero.
    pub grad_logsumexp: bool,
}

impl OpRequest {
    /// The forward pass, output and logsumexp.
    pub fn forward() -> Self {
        Self {
            op: Op::Forward,
            wants: [Role::Output, Role::Logsumexp].into_iter().collect(),
            grad_logsumexp: false,
        }
    }

    /// The backward pass, with the gradient of every input that `problem` has.
    pub fn backward(problem: &Problem) -> Self {
        let wants = Role::ALL
            .into_iter()
            .filter(|role| role.gradient_of().is_some_and(|input| problem.has_input(input)))
            .collect();
        Self { op: Op::Backward, wants, grad_logsumexp: false }
    }

    /// The same operation with other results wanted.
    #[must_use]
    pub fn wanting(self, wants: impl IntoIterator<Item = Role>) -> Self {
        Self { wants: wants.into_iter().collect(), ..self }
    }

    /// The same operation, with `grad_logsumexp` among its inputs or not.
    #[must_use]
    pub const fn with_grad_logsumexp(self, given: bool) -> Self {
        Self { grad_logsumexp: given, ..self }
    }
}

/// A tensor of an operation: what it is, its shape and its dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// What the tensor is.
    pub role: Role,
    /// Whether the operation writes it.
    pub is_output: bool,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: DType,
}

impl TensorSpec {
    /// The tensor's name.
    pub const fn name(&self) -> &'static str {
        self.role.name()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element, as with batch 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a contiguous tensor.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
}

/// One attention: shapes, dtype, who sees whom. Checked when built, so that what has a `Problem` is well-formed.
///
/// ```
/// use natten_core::geometry::{AxisParams, Neighborhood};
/// use natten_core::{DType, OpRequest, Problem};
/// # fn main() -> natten_core::Result<()> {
/// let window = Neighborhood::new(&[AxisParams::new(56, 7), AxisParams::new(56, 7)])?;
/// let problem = Problem::builder(window, DType::F32).batch(2).heads(4).head_dim(32).build()?;
/// let output = &problem.tensors(&OpRequest::forward())?[3];
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

    /// Checks everything.
    ///
    /// # Errors
    /// [`Error::Invalid`] for zero heads or head dims, heads that do not divide, a scale that is not finite, a bias
    /// without a window, and sizes whose bytes overflow.
    pub fn build(self) -> Result<Problem> {
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
        }
    }

    fn check(&self) -> Result<()> {
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
        for role in Role::ALL {
            let shape = self.shape(role);
            let bytes = shape
                .iter()
                .filter(|&&extent| extent != 0)
                .try_fold(self.dtype_of(role).size(), |bytes, &extent| bytes.checked_mul(extent))
                .filter(|&bytes| bytes <= isize::MAX as usize);
            if bytes.is_none() {
                return Err(Error::invalid(
                    role.name(),
                    format!("{shape:?}"),
                    "its size in bytes overflows the address space",
                    "check the shape, or split the work over the batch or the heads",
                ));
            }
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

    /// Whether `role` is among this problem's inputs.
    pub const fn has_input(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => true,
            Role::Rpb => self.has_rpb,
            Role::AdditionalKey | Role::AdditionalValue => self.additional > 0,
            _ => false,
        }
    }

    /// The shape that a tensor of this problem has.
    pub fn shape(&self, role: Role) -> Vec<usize> {
        let tokens = |grid: Vec<usize>, rest: &[usize]| [&[self.batch], &grid[..], rest].concat();
        let queries = || self.neighborhood.query_shape();
        let keys = || self.neighborhood.key_shape();
        match role {
            Role::Query | Role::GradQuery => tokens(queries(), &[self.heads, self.head_dim]),
            Role::Key | Role::GradKey => tokens(keys(), &[self.heads_kv, self.head_dim]),
            Role::Value | Role::GradValue => tokens(keys(), &[self.heads_kv, self.head_dim_v]),
            Role::Output | Role::GradOutput => tokens(queries(), &[self.heads, self.head_dim_v]),
            Role::Logsumexp | Role::GradLogsumexp => tokens(queries(), &[self.heads]),
            Role::AdditionalKey | Role::GradAdditionalKey => {
                vec![self.batch, self.additional, self.heads_kv, self.head_dim]
            }
            Role::AdditionalValue | Role::GradAdditionalValue => {
                vec![self.batch, self.additional, self.heads_kv, self.head_dim_v]
            }
            Role::Rpb | Role::GradRpb => {
                let offsets = self.neighborhood.kernel_size().into_iter().map(|k| k.saturating_mul(2) - 1);
                std::iter::once(self.heads).chain(offsets).collect()
            }
        }
    }

    /// The dtype that a tensor of this problem has.
    pub const fn dtype_of(&self, role: Role) -> DType {
        match role {
            Role::Logsumexp | Role::GradLogsumexp => self.dtype.accumulator(),
            _ => self.dtype,
        }
    }

    /// Every tensor of an operation: inputs, then the wanted outputs, each in the order of [`Role::ALL`].
    ///
    /// # Errors
    /// [`Error::Invalid`] where nothing is wanted, or something that the operation or the problem does not have.
    pub fn tensors(&self, request: &OpRequest) -> Result<Vec<TensorSpec>> {
        if request.wants.is_empty() {
            return Err(Error::invalid(
                "wants",
                "empty",
                format!("{} must be asked for at least one result", request.op),
                "use OpRequest::forward() or OpRequest::backward(&problem)",
            ));
        }
        for role in request.wants.iter() {
            let offered = match request.op {
                Op::Forward => matches!(role, Role::Output | Role::Logsumexp),
                Op::Backward => role.gradient_of().is_some_and(|input| self.has_input(input)),
            };
            if !offered {
                return Err(Error::invalid(
                    "wants",
                    role,
                    format!("{} of this problem has no such result", request.op),
                    "ask for a gradient only of an input that the problem has",
                ));
            }
        }
        let is_input = |role: Role| match role {
            Role::Output | Role::Logsumexp | Role::GradOutput => request.op == Op::Backward,
            Role::GradLogsumexp => request.op == Op::Backward && request.grad_logsumexp,
            _ => self.has_input(role),
        };
        let spec = |role, is_output| TensorSpec {
            role,
            is_output,
            shape: self.shape(role),
            dtype: self.dtype_of(role),
        };
        let inputs = Role::ALL.into_iter().filter(|&role| is_input(role)).map(|role| spec(role, false));
        let outputs = request.wants.iter().map(|role| spec(role, true));
        Ok(inputs.chain(outputs).collect())
    }

    /// Visible (query, key) pairs, additional keys counted, over batch and heads.
    pub fn useful_pairs(&self) -> u128 {
        let queries: u128 = self.neighborhood.query_shape().iter().map(|&n| n as u128).product();
        let pairs = self.neighborhood.useful_pairs().saturating_add(queries * self.additional as u128);
        pairs.saturating_mul(self.batch as u128 * self.heads as u128)
    }

    /// Floating-point operations a visible pair: two matrix products forward, five backward, a multiply and an add each.
    pub const fn flops_per_pair(&self, op: Op) -> u128 {
        let (dim, dim_v) = (self.head_dim as u128, self.head_dim_v as u128);
        match op {
            Op::Forward => 2 * (dim + dim_v),
            Op::Backward => 2 * (3 * dim + 2 * dim_v),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::AxisParams;

    fn window() -> Neighborhood {
        Neighborhood::new(&[AxisParams::new(6, 3), AxisParams::new(7, 5)]).unwrap()
    }

    fn shapes(problem: &Problem, request: &OpRequest) -> Vec<(&'static str, Vec<usize>, bool)> {
        problem
            .tensors(request)
            .unwrap()
            .into_iter()
            .map(|s| (s.name(), s.shape.clone(), s.is_output))
            .collect()
    }

    #[test]
    fn tensors_of_forward_and_backward() {
        let problem = Problem::builder(window(), DType::Bf16)
            .batch(2)
            .heads(4)
            .heads_kv(2)
            .head_dim(8)
            .head_dim_v(3)
            .additional_tokens(5)
            .relative_positional_bias(true)
            .build()
            .unwrap();
        let forward = shapes(&problem, &OpRequest::forward());
        let expected = [
            ("query", vec![2, 6, 7, 4, 8], false),
            ("key", vec![2, 6, 7, 2, 8], false),
            ("value", vec![2, 6, 7, 2, 3], false),
            ("rpb", vec![4, 5, 9], false),
            ("additional_key", vec![2, 5, 2, 8], false),
            ("additional_value", vec![2, 5, 2, 3], false),
            ("output", vec![2, 6, 7, 4, 3], true),
            ("logsumexp", vec![2, 6, 7, 4], true),
        ];
        assert_eq!(forward, expected);
        let backward = shapes(&problem, &OpRequest::backward(&problem).with_grad_logsumexp(true));
        let names: Vec<_> = backward.iter().map(|(name, _, out)| (*name, *out)).collect();
        assert_eq!(
            &names[6..10],
            [("output", false), ("logsumexp", false), ("grad_output", false), ("grad_logsumexp", false)]
        );
        assert_eq!(names.iter().filter(|(_, out)| *out).count(), 6);
        assert_eq!(problem.dtype_of(Role::Logsumexp), DType::F32);
    }

    #[test]
    fn flops_are_counted_as_the_peers_count_them() {
        let problem = Problem::builder(window(), DType::F32).head_dim(16).build().unwrap();
        assert_eq!(problem.flops_per_pair(Op::Forward), 4 * 16);
        assert_eq!(problem.flops_per_pair(Op::Backward), 10 * 16);
    }

    #[test]
    fn broken_problems_are_refused() {
        let base = || Problem::builder(window(), DType::F32).heads(4).head_dim(8);
        let full = || Problem::builder(Neighborhood::full(3, 4, None).unwrap(), DType::F32);
        let cases = [
            (base().heads(0), "heads is 0"),
            (base().heads_kv(0), "heads_kv is 0"),
            (base().heads_kv(3), "heads_kv is 3"),
            (base().head_dim(0), "head_dim is 0"),
            (base().head_dim_v(0), "head_dim_v is 0"),
            (base().scale(Some(f64::NAN)), "scale is NaN"),
            (base().batch(usize::MAX / 4), "overflows"),
            (base().head_dim(usize::MAX / 64), "overflows"),
            (base().batch(0).head_dim(usize::MAX / 64), "overflows"),
            (base().additional_tokens(usize::MAX / 16), "overflows"),
            (full().relative_positional_bias(true), "rpb"),
        ];
        for (builder, part) in cases {
            let message = builder.build().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(base().batch(0).build().is_ok());
        assert_eq!(base().scale(Some(0.0)).build().unwrap().scale(), 0.0);
    }

    #[test]
    fn wanting_what_is_not_there_is_refused() {
        let problem = Problem::builder(window(), DType::F32).build().unwrap();
        for request in [
            OpRequest::backward(&problem).wanting([Role::GradRpb]),
            OpRequest::forward().wanting([Role::GradQuery]),
            OpRequest::forward().wanting([]),
        ] {
            assert!(problem.tensors(&request).is_err(), "{request:?}");
        }
    }
}
