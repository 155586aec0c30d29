//! Forward attention in 16 bits on Hopper's tensor cores: `kernels/forward_sm90.cu`, specialised for the problem. This
//! module says which problems it serves, and turns one into constants, tensor maps and a launch; [`shape`] chooses the
//! boxes, [`text`] writes the source.

mod shape;
mod split;
#[cfg(test)]
mod tests;
mod text;

use natten_core::geometry::{MAX_RANK, Tiles};
use natten_core::{DType, Error, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use self::shape::Shape;
pub(crate) use self::split::Split;
pub(crate) use self::text::wgmma_scores;
use crate::NAME;
use crate::family::{
    Argument, Class, Family, Kernel, Layout, MapDim, MapSource, MapStride, Sequence, Step, Swizzle,
    TensorMapSpec,
};
use crate::forward::{self, ABSENT_VIEW};
use crate::scores::Functions;
use crate::target::Target;

/// The family.
#[derive(Debug)]
pub(crate) struct Hopper;

/// Columns of a chunk: what the copy engine shuffles within 128 bytes, or within 64 where no vector is longer.
fn chunk(problem: &Problem) -> usize {
    if problem.head_dim().max(problem.head_dim_v()) <= 32 { 32 } else { 64 }
}

/// The largest dilation that the copy engine strides over.
const MAX_DILATION: usize = 8;

impl Family for Hopper {
    fn name(&self) -> &'static str {
        "hopper"
    }

    fn sequence(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
    ) -> Result<Sequence> {
        check(problem, request, target)?;
        if !matches!(problem.dtype(), DType::F16 | DType::Bf16) {
            let what = problem.dtype().to_string();
            return Err(Error::unsupported(NAME, what, "the tensor cores take 16 bits"));
        }
        let deep = problem.neighborhood().axes()[0];
        let is_deep = deep.query_len() > 1 || deep.key_len() > 1;
        if is_deep && !folds_heads(problem, 1) && problem.batch() > 1 {
            let what = "this head_dim on three axes";
            return Err(Error::unsupported(NAME, what, "a tensor map has five axes"));
        }
        let functions = Functions::of(problem, request)?;
        let shape = Shape::choose(problem, options, target, 1)?;
        let tiles = Tiles::new(problem.neighborhood(), shape.query_tile(), shape.keys);
        Ok(Sequence {
            steps: vec![Step::Launch(kernel(problem, request, &shape, functions, target, MapSource::Tensor))],
            workspace: 0,
            tables: Vec::new(),
            layout: if folds_heads(problem, 1) { Layout::TmaPacked } else { Layout::Tma },
            coverage: coverage_of(problem, &tiles),
            config: shape.describe(problem.neighborhood().rank()),
        })
    }
}

/// Declines what the kernel does not compute.
fn check(problem: &Problem, request: &OpRequest, target: &Target) -> Result<()> {
    if target.arch != (9, 0) {
        return Err(Error::unsupported(NAME, target.name(), "the kernel is made of instructions of sm_90a"));
    }
    if problem.neighborhood().axes().iter().any(|axis| axis.dilation() > MAX_DILATION) {
        let why = "the copy engine strides over at most 8 tokens";
        return Err(Error::unsupported(NAME, "this dilation", why));
    }
    forward::check(problem, request)
}

/// Whether head and column share an axis of the tensor maps, so that three token axes and the batch fit beside it. Planes
/// are made to.
fn folds_heads(problem: &Problem, planes: usize) -> bool {
    let chunk = chunk(problem);
    planes > 1 || problem.head_dim().is_multiple_of(chunk) && problem.head_dim_v().is_multiple_of(chunk)
}

/// The launch, for inputs that lie where `source_of` says.
fn kernel(
    problem: &Problem,
    request: &OpRequest,
    shape: &Shape,
    functions: Functions,
    target: &Target,
    source_of: impl Fn(Role) -> MapSource,
) -> Kernel {
    let (heads, heads_kv) = (problem.heads(), problem.heads_kv());
    let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
    let queries = problem.neighborhood().axes().map(|axis| axis.query_len());
    let keys = problem.neighborhood().axes().map(|axis| axis.key_len());
    let tensor =
        |role, heads, dim| Mapped { problem, source: source_of(role), planes: shape.planes, heads, dim };
    let key = tensor(Role::Key, heads_kv, dim).of_tokens(keys, shape.keys);
    let value = tensor(Role::Value, heads_kv, dim_v).of_tokens(keys, shape.keys);
    let (additional_key, additional_value) = if problem.additional_tokens() > 0 {
        (
            tensor(Role::AdditionalKey, heads_kv, dim).of_additional(shape.box_keys()),
            tensor(Role::AdditionalValue, heads_kv, dim_v).of_additional(shape.box_keys()),
        )
    } else {
        (key.clone(), value.clone())
    };
    let wants_logsumexp = request.wants.contains(Role::Logsumexp);
    let logsumexp = if wants_logsumexp {
        Argument::View(Role::Logsumexp)
    } else {
        Argument::Bytes { data: vec![0; ABSENT_VIEW], align: 8 }
    };
    let items = shape.query_boxes(problem) * (problem.batch() * heads) as u64;
    Kernel {
        source: text::source(problem, shape, &functions, wants_logsumexp),
        entry: "forward_sm90",
        grid: [items.min(u64::from(target.units * shape.blocks)), 1, 1],
        block: shape.threads(),
        shared_bytes: shape.shared_bytes(problem),
        arguments: [
            Argument::TensorMap(tensor(Role::Query, heads, dim).of_tokens(queries, shape.sub)),
            Argument::TensorMap(key),
            Argument::TensorMap(value),
            Argument::TensorMap(additional_key),
            Argument::TensorMap(additional_value),
            Argument::View(Role::Output),
            logsumexp,
        ]
        .into_iter()
        .chain(functions.arguments)
        .collect(),
        // Functions of scores may divide; two units in the last place are enough for operands of 16 bits.
        options: &["--prec-div=false", "--prec-sqrt=false"],
        class: Class::Wgmma,
    }
}

/// An input that the copy engine reads: bound, or split into planes in the workspace.
#[derive(Clone, Copy)]
struct Mapped<'p> {
    problem: &'p Problem,
    source: MapSource,
    planes: usize,
    heads: usize,
    dim: usize,
}

impl Mapped<'_> {
    /// Columns of a head.
    fn width(&self) -> usize {
        if self.planes == 1 { self.dim } else { split::width(self.problem, self.dim) * self.planes }
    }

    /// The stride of an axis, of which and of the ones further in there are so many.
    fn stride(&self, axis: usize, tokens_within: &[usize]) -> MapStride {
        match self.source {
            MapSource::Tensor(_) => MapStride::Axis { axis, times: 1 },
            MapSource::Workspace(_) => {
                let row = (self.heads * self.width() * DType::Bf16.size()) as u64;
                MapStride::Bytes(tokens_within.iter().map(|&n| n as u64).product::<u64>() * row)
            }
        }
    }

    /// Of a tensor `[B, X0, X1, X2, H, D]`, in boxes of a chunk of columns and `tile` tokens of a residue group.
    fn of_tokens(self, tokens: [usize; MAX_RANK], tile: [usize; MAX_RANK]) -> TensorMapSpec {
        let batch = self.batch(&tokens);
        let along = |a: usize| {
            let dilation = self.problem.neighborhood().axes()[a].dilation();
            let parts = if a == MAX_RANK - 1 { shape::parts(tile[a], dilation) } else { 1 };
            MapDim {
                extent: tokens[a] as u64,
                boxed: (tile[a] / parts * dilation) as u32,
                every: dilation as u32,
                stride: self.stride(1 + a, &tokens[a + 1..]),
            }
        };
        let dims = if folds_heads(self.problem, self.planes) {
            vec![self.columns(self.heads * self.width()), along(2), along(1), along(0), batch]
        } else {
            let last = if tokens[0] == 1 { batch } else { along(0) };
            vec![self.columns(self.dim), self.head(4), along(2), along(1), last]
        };
        self.of(dims)
    }

    /// Of a tensor `[B, N, H, D]` of additional tokens, in boxes of a chunk of columns and `tile` tokens.
    fn of_additional(self, tile: usize) -> TensorMapSpec {
        let one = MapDim { extent: 1, boxed: 1, every: 1, stride: MapStride::Bytes(16) };
        let count = self.problem.additional_tokens();
        let batch = self.batch(&[count]);
        let tokens =
            MapDim { extent: count as u64, boxed: tile as u32, every: 1, stride: self.stride(1, &[]) };
        let dims = if folds_heads(self.problem, self.planes) {
            vec![self.columns(self.heads * self.width()), tokens, one, one, batch]
        } else {
            vec![self.columns(self.dim), self.head(2), tokens, one, batch]
        };
        self.of(dims)
    }

    fn batch(&self, tokens: &[usize]) -> MapDim {
        let extent = self.problem.batch() as u64;
        MapDim { extent, boxed: 1, every: 1, stride: self.stride(0, tokens) }
    }

    fn columns(&self, extent: usize) -> MapDim {
        let boxed = chunk(self.problem) as u32;
        MapDim { extent: extent as u64, boxed, every: 1, stride: MapStride::Bytes(2) }
    }

    /// The heads of a bound tensor, as an axis of their own.
    fn head(&self, axis: usize) -> MapDim {
        MapDim { extent: self.heads as u64, boxed: 1, every: 1, stride: MapStride::Axis { axis, times: 1 } }
    }

    fn of(&self, dims: Vec<MapDim>) -> TensorMapSpec {
        let dtype = if self.planes == 1 { self.problem.dtype() } else { DType::Bf16 };
        TensorMapSpec {
            source: self.source,
            bytes_ahead: 0,
            dtype,
            dims,
            swizzle: if chunk(self.problem) == 64 { Swizzle::B128 } else { Swizzle::B64 },
        }
    }
}
