//! Forward attention in 16 bits on Hopper's tensor cores: `kernels/forward_sm90.cu`, specialised for the problem. This
//! module says which problems it serves, and turns one into constants, tensor maps and a launch; [`shape`] chooses the
//! boxes, [`text`] writes the source.

mod shape;
mod text;

use natten_core::geometry::{Alignment, MAX_RANK, Tiles};
use natten_core::{DType, Error, Op, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use self::shape::Shape;
use crate::NAME;
use crate::family::{
    Argument, Class, Family, Kernel, Layout, MapDim, MapSource, MapStride, Sequence, Step, Swizzle,
    TensorMapSpec,
};
use crate::forward::ABSENT_VIEW;
use crate::scores::Functions;
use crate::target::Target;

/// The family.
#[derive(Debug)]
pub(crate) struct Hopper;

/// Columns of a chunk: what the copy engine shuffles within 128 bytes, or within 64 where no vector is longer.
fn chunk(problem: &Problem) -> usize {
    if problem.head_dim().max(problem.head_dim_v()) <= 32 { 32 } else { 64 }
}

/// The longest vectors.
const MAX_DIM: usize = 256;

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
        let functions = Functions::of(problem, request)?;
        let shape = Shape::choose(problem, options, target)?;
        let tiles = Tiles::new(problem.neighborhood(), shape.query_tile(), shape.keys);
        Ok(Sequence {
            steps: vec![Step::Launch(kernel(problem, request, &shape, functions, target))],
            workspace: 0,
            tables: Vec::new(),
            layout: if folds_heads(problem) { Layout::TmaPacked } else { Layout::Tma },
            coverage: coverage_of(problem, &tiles),
            config: shape.describe(problem.neighborhood().rank()),
        })
    }
}

/// Declines what the kernel does not compute.
fn check(problem: &Problem, request: &OpRequest, target: &Target) -> Result<()> {
    let decline = |what: String, why: &str| Err(Error::unsupported(NAME, what, why));
    if target.arch != (9, 0) {
        return decline(target.name(), "the kernel is made of instructions of sm_90a");
    }
    if request.op != Op::Forward || !request.wants.contains(Role::Output) {
        return decline(
            request.op.name().to_owned(),
            "the tensor-core kernel computes the output of a forward pass",
        );
    }
    if !matches!(problem.dtype(), DType::F16 | DType::Bf16) {
        return decline(problem.dtype().to_string(), "the tensor cores take 16 bits");
    }
    for (name, dim) in [("head_dim", problem.head_dim()), ("head_dim_v", problem.head_dim_v())] {
        if !dim.is_multiple_of(8) || dim > MAX_DIM {
            return decline(
                format!("{name} {dim}"),
                "rows are multiples of 16 bytes, and at most 256 numbers long",
            );
        }
    }
    let axes = problem.neighborhood().axes();
    if axes.iter().any(|axis| axis.dilation() > MAX_DILATION) {
        return decline("this dilation".to_owned(), "the copy engine strides over at most 8 tokens");
    }
    let is_known = |alignment| matches!(alignment, None | Some(Alignment::TopLeft | Alignment::BottomRight));
    if !axes.iter().all(|axis| is_known(axis.alignment())) {
        return decline("this alignment".to_owned(), "the kernel knows top-left and bottom-right");
    }
    let is_deep = axes[0].query_len() > 1 || axes[0].key_len() > 1;
    if is_deep && !folds_heads(problem) && problem.batch() > 1 {
        return decline("this head_dim on three axes".to_owned(), "a tensor map has five axes");
    }
    // Beyond the last token a box and its reach are counted too.
    let most = (i32::MAX / 4) as usize;
    let tokens = axes.iter().map(|axis| axis.query_len().max(axis.key_len()));
    let rows = problem.batch().checked_mul(problem.heads());
    let queries = tokens.clone().try_fold(rows.unwrap_or(usize::MAX), usize::checked_mul);
    if problem.batch() == 0 || queries.is_none_or(|n| n > most) || problem.additional_tokens() > most {
        return decline("as many queries".to_owned(), "the kernel counts its boxes in 32 bits");
    }
    Ok(())
}

/// Whether head and column share an axis of the tensor maps, so that three token axes and the batch fit beside it.
fn folds_heads(problem: &Problem) -> bool {
    let chunk = chunk(problem);
    problem.head_dim().is_multiple_of(chunk) && problem.head_dim_v().is_multiple_of(chunk)
}

fn kernel(
    problem: &Problem,
    request: &OpRequest,
    shape: &Shape,
    functions: Functions,
    target: &Target,
) -> Kernel {
    let (heads, heads_kv) = (problem.heads(), problem.heads_kv());
    let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
    let queries = problem.neighborhood().axes().map(|axis| axis.query_len());
    let keys = problem.neighborhood().axes().map(|axis| axis.key_len());
    let map = |role, heads, dim, tokens, tile| token_map(problem, role, heads, dim, tokens, tile);
    let key = map(Role::Key, heads_kv, dim, keys, shape.keys);
    let value = map(Role::Value, heads_kv, dim_v, keys, shape.keys);
    let (additional_key, additional_value) = if problem.additional_tokens() > 0 {
        (
            additional_map(problem, Role::AdditionalKey, dim, shape.box_keys()),
            additional_map(problem, Role::AdditionalValue, dim_v, shape.box_keys()),
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
            Argument::TensorMap(map(Role::Query, heads, dim, queries, shape.sub)),
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
        // Functions of scores may divide; two units in the last place are enough for results of 16 bits.
        options: &["--prec-div=false", "--prec-sqrt=false"],
        class: Class::Wgmma,
    }
}

/// The map of a tensor `[B, X0, X1, X2, H, D]`, in boxes of 64 columns and `tile` tokens of a residue group.
fn token_map(
    problem: &Problem,
    role: Role,
    heads: usize,
    dim: usize,
    tokens: [usize; MAX_RANK],
    tile: [usize; MAX_RANK],
) -> TensorMapSpec {
    let batch = MapDim { extent: problem.batch() as u64, boxed: 1, every: 1, stride: axis_stride(0) };
    let along = |a: usize| {
        let dilation = problem.neighborhood().axes()[a].dilation();
        let parts = if a == MAX_RANK - 1 { shape::parts(tile[a], dilation) } else { 1 };
        MapDim {
            extent: tokens[a] as u64,
            boxed: (tile[a] / parts * dilation) as u32,
            every: dilation as u32,
            stride: axis_stride(1 + a),
        }
    };
    let dims = if folds_heads(problem) {
        vec![columns(problem, heads * dim), along(2), along(1), along(0), batch]
    } else {
        let last = if tokens[0] == 1 { batch } else { along(0) };
        vec![columns(problem, dim), head(heads, 4), along(2), along(1), last]
    };
    map_of(problem, role, dims)
}

/// The map of a tensor `[B, N, H, D]` of additional tokens, in boxes of 64 columns and `tile` tokens.
fn additional_map(problem: &Problem, role: Role, dim: usize, tile: usize) -> TensorMapSpec {
    let heads = problem.heads_kv();
    let one = MapDim { extent: 1, boxed: 1, every: 1, stride: MapStride::Bytes(16) };
    let tokens = MapDim {
        extent: problem.additional_tokens() as u64,
        boxed: tile as u32,
        every: 1,
        stride: axis_stride(1),
    };
    let batch = MapDim { extent: problem.batch() as u64, boxed: 1, every: 1, stride: axis_stride(0) };
    let dims = if folds_heads(problem) {
        vec![columns(problem, heads * dim), tokens, one, one, batch]
    } else {
        vec![columns(problem, dim), head(heads, 2), tokens, one, batch]
    };
    map_of(problem, role, dims)
}

const fn axis_stride(axis: usize) -> MapStride {
    MapStride::Axis { axis, times: 1 }
}

fn columns(problem: &Problem, extent: usize) -> MapDim {
    MapDim { extent: extent as u64, boxed: chunk(problem) as u32, every: 1, stride: MapStride::Bytes(2) }
}

const fn head(heads: usize, axis: usize) -> MapDim {
    MapDim { extent: heads as u64, boxed: 1, every: 1, stride: axis_stride(axis) }
}

fn map_of(problem: &Problem, role: Role, dims: Vec<MapDim>) -> TensorMapSpec {
    TensorMapSpec {
        source: MapSource::Tensor(role),
        bytes_ahead: 0,
        dtype: problem.dtype(),
        dims,
        swizzle: if chunk(problem) == 64 { Swizzle::B128 } else { Swizzle::B64 },
    }
}

#[cfg(test)]
mod tests {
    use natten_core::ProblemBuilder;
    use natten_core::geometry::{AxisParams, Neighborhood};
    use natten_core::program::Program;

    use super::*;

    fn builder(axes: &[AxisParams], dtype: DType) -> ProblemBuilder {
        Problem::builder(Neighborhood::new(axes).unwrap(), dtype).batch(2).heads(4).head_dim(64)
    }

    fn sequence(builder: ProblemBuilder, op: Op) -> Result<Sequence> {
        let problem = builder.build()?;
        let request = OpRequest::of(op, &problem, []);
        Hopper.sequence(&problem, &request, &PlanOptions::default(), &Target::of_arch(9, 0))
    }

    #[test]
    fn what_the_kernel_does_not_compute_is_declined() {
        let axis = AxisParams::new(90, 9);
        let declined = |builder, op| matches!(sequence(builder, op), Err(Error::Unsupported { .. }));
        assert!(!declined(builder(&[axis, axis], DType::F16), Op::Forward));
        assert!(declined(builder(&[axis], DType::F32), Op::Forward));
        assert!(declined(builder(&[axis], DType::F16), Op::Backward));
        assert!(declined(builder(&[axis.dilation(9)], DType::F16), Op::Forward));
        assert!(declined(builder(&[axis], DType::Bf16).head_dim(20), Op::Forward));
        assert!(declined(builder(&[axis; 3], DType::Bf16).head_dim(40), Op::Forward), "six axes");
        let sigmoid = Program::builder(1).row("sigmoid").build();
        if let Ok(program) = sigmoid {
            assert!(declined(builder(&[axis], DType::Bf16).program(program), Op::Forward));
        }
    }

    #[test]
    fn three_axes_fold_heads_into_columns_and_two_do_not_have_to() {
        let axis = AxisParams::new(30, 9);
        let layout = |axes: &[AxisParams], dim| {
            sequence(builder(axes, DType::Bf16).head_dim(dim), Op::Forward).unwrap().layout
        };
        assert_eq!(layout(&[axis; 3], 128), Layout::TmaPacked);
        assert_eq!(layout(&[axis; 2], 40), Layout::Tma);
    }

    #[test]
    fn a_dilated_row_is_loaded_in_parts_that_the_copy_engine_spans() {
        let problem = builder(&[AxisParams::new(900, 63).dilation(7)], DType::Bf16).build().unwrap();
        let map = token_map(&problem, Role::Key, 4, 64, [1, 1, 900], [1, 1, 128]);
        let tokens = map.dims.iter().find(|dim| dim.every == 7).unwrap();
        assert_eq!(tokens.boxed, 32 * 7);
    }
}
