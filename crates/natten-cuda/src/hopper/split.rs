//! Forward attention in f32 on Hopper's 16-bit tensor cores, asked for by its precision: `kernels/forward_split.cu` splits
//! the inputs into planes of bf16 in the workspace, and the kernel of [`Hopper`](super::Hopper) multiplies the planes.

use natten_core::geometry::{MAX_RANK, Tiles};
use natten_core::{DType, Error, OpRequest, PlanOptions, Precision, Problem, Result, Role, coverage_of};

use super::shape::Shape;
use super::{check, chunk, kernel};
use crate::NAME;
use crate::family::{Argument, Class, Family, Kernel, Layout, MapSource, Sequence, Step};
use crate::forward::TYPES;
use crate::scores::Functions;
use crate::target::Target;

/// The text of the kernel that splits.
const KERNEL: &str = include_str!("../../kernels/forward_split.cu");

/// Threads of its blocks, each with eight columns of a row.
const BLOCK: u32 = 256;

/// Where tensors in the workspace begin.
const ALIGN: u64 = 256;

/// The family.
#[derive(Debug)]
pub(crate) struct Split;

impl Family for Split {
    fn name(&self) -> &'static str {
        "hopper-split"
    }

    fn precisions(&self) -> &'static [Precision] {
        &[Precision::Bf16x3, Precision::Bf16x6]
    }

    fn sequence(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
    ) -> Result<Sequence> {
        check(problem, request, target)?;
        if problem.dtype() != DType::F32 {
            let what = format!("precision {} in {}", options.precision, problem.dtype());
            let why = "what is split into bf16 is f32: leave the precision out";
            return Err(Error::unsupported(NAME, what, why));
        }
        let planes = if options.precision == Precision::Bf16x3 { 2 } else { 3 };
        let functions = Functions::of(problem, request)?;
        let shape = Shape::choose(problem, options, target, planes)?;
        let tiles = Tiles::new(problem.neighborhood(), shape.query_tile(), shape.keys);
        let mut steps = Vec::new();
        let mut offsets = Vec::new();
        let mut workspace = 0u64;
        for (role, extents, dim) in inputs(problem) {
            let pieces = rows(&extents) * (width(problem, dim) / 8) as u64;
            offsets.push((role, workspace));
            steps.push(Step::Launch(splitting(problem, role, &extents, dim, planes, workspace)));
            workspace = (workspace + pieces * 16 * planes as u64).next_multiple_of(ALIGN);
        }
        let source_of = |wanted: Role| {
            let at = offsets.iter().find(|(role, _)| *role == wanted).map_or(0, |(_, offset)| *offset);
            MapSource::Workspace(at)
        };
        steps.push(Step::Launch(kernel(problem, request, &shape, functions, target, source_of)));
        let mut config = shape.describe(problem.neighborhood().rank());
        config.push(("precision".to_owned(), options.precision.to_string()));
        Ok(Sequence {
            steps,
            workspace,
            tables: Vec::new(),
            layout: Layout::Any,
            coverage: coverage_of(problem, &tiles),
            config,
        })
    }
}

/// Columns of a plane: zeros fill the last chunk.
pub(super) fn width(problem: &Problem, dim: usize) -> usize {
    dim.next_multiple_of(chunk(problem))
}

/// What is split: the extents of its axes before the columns, and its columns.
fn inputs(problem: &Problem) -> Vec<(Role, Vec<usize>, usize)> {
    let axes = problem.neighborhood().axes();
    let extents = |tokens: [usize; MAX_RANK], heads: usize| {
        [problem.batch()].into_iter().chain(tokens).chain([heads]).collect::<Vec<_>>()
    };
    let keys = extents(axes.map(|axis| axis.key_len()), problem.heads_kv());
    let mut inputs = vec![
        (Role::Query, extents(axes.map(|axis| axis.query_len()), problem.heads()), problem.head_dim()),
        (Role::Key, keys.clone(), problem.head_dim()),
        (Role::Value, keys, problem.head_dim_v()),
    ];
    if problem.additional_tokens() > 0 {
        let extents = vec![problem.batch(), problem.additional_tokens(), problem.heads_kv()];
        inputs.push((Role::AdditionalKey, extents.clone(), problem.head_dim()));
        inputs.push((Role::AdditionalValue, extents, problem.head_dim_v()));
    }
    inputs
}

fn rows(extents: &[usize]) -> u64 {
    extents.iter().map(|&n| n as u64).product()
}

/// The launch that splits an input.
fn splitting(
    problem: &Problem,
    role: Role,
    extents: &[usize],
    dim: usize,
    planes: usize,
    offset: u64,
) -> Kernel {
    let width = width(problem, dim);
    let count = rows(extents) * (width / 8) as u64;
    let mut data = Vec::new();
    for axis in 0..5 {
        data.extend((extents.get(axis).copied().unwrap_or(1) as i32).to_ne_bytes());
    }
    data.extend((extents.len() as i32).to_ne_bytes());
    Kernel {
        source: format!("{TYPES}#define PLANES {planes}\n#define DIM {dim}\n#define WIDTH {width}\n{KERNEL}"),
        entry: "split_rows",
        grid: [count.div_ceil(u64::from(BLOCK)), 1, 1],
        block: BLOCK,
        shared_bytes: 0,
        arguments: vec![
            Argument::View(role),
            Argument::Workspace(offset),
            Argument::Bytes { data, align: 4 },
            Argument::I64(count as i64),
        ],
        options: &[],
        class: Class::Plain,
    }
}

#[cfg(test)]
mod tests {
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;

    fn sequence(dtype: DType, dim: usize, precision: Precision) -> Result<Sequence> {
        let axes = [AxisParams::new(30, 9), AxisParams::new(40, 9)];
        let problem = Problem::builder(Neighborhood::new(&axes).unwrap(), dtype)
            .batch(2)
            .heads(4)
            .heads_kv(2)
            .head_dim(dim)
            .additional_tokens(3)
            .build()?;
        let options = PlanOptions::default().precision(precision);
        Split.sequence(&problem, &OpRequest::forward(&problem), &options, &Target::of_arch(9, 0))
    }

    #[test]
    fn every_input_has_room_for_its_planes() {
        let (two, three) =
            (sequence(DType::F32, 72, Precision::Bf16x3), sequence(DType::F32, 72, Precision::Bf16x6));
        let (two, three) = (two.unwrap(), three.unwrap());
        assert_eq!(two.steps.len(), 6);
        let row = 2 * 128;
        let rows = 2 * (30 * 40 * (4 + 2 + 2) + 3 * (2 + 2));
        assert!(two.workspace >= rows * row * 2 && two.workspace < rows * row * 2 + 5 * ALIGN);
        assert!(three.workspace >= rows * row * 3);
    }

    /// What `forward_split.cu` makes of a number: each part is what the ones before left, rounded.
    fn parts(x: f32, planes: usize) -> Vec<f64> {
        let mut left = x;
        let mut part = || {
            let part = half::bf16::from_f32(left);
            left -= part.to_f32();
            part.to_f64()
        };
        (0..planes).map(|_| part()).collect()
    }

    #[test]
    fn the_products_that_count_are_as_exact_as_the_operands() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        for (planes, precision) in [(2, Precision::Bf16x3), (3, Precision::Bf16x6)] {
            let roundoff = precision.roundoff(DType::F32);
            for _ in 0..10_000 {
                let (x, y) = (random(), random());
                let (a, b) = (parts(x, planes), parts(y, planes));
                assert!((a.iter().sum::<f64>() - f64::from(x)).abs() <= roundoff * f64::from(x).abs());
                let product: f64 = (0..planes)
                    .flat_map(|i| (0..planes - i).map(move |j| (i, j)))
                    .map(|(i, j)| a[i] * b[j])
                    .sum();
                let exact = f64::from(x) * f64::from(y);
                // One operand's rest, the other's, and the products that are left out.
                assert!((product - exact).abs() <= (planes + 1) as f64 * roundoff * exact.abs());
            }
        }
    }

    #[test]
    fn only_f32_is_split() {
        assert!(sequence(DType::Bf16, 64, Precision::Bf16x3).is_err());
        assert!(sequence(DType::F64, 64, Precision::Bf16x6).is_err());
    }

    #[test]
    fn long_vectors_fit_and_the_longest_in_two_planes() {
        for precision in [Precision::Bf16x3, Precision::Bf16x6] {
            for dim in [8, 32, 64, 96, 128, 192] {
                sequence(DType::F32, dim, precision).unwrap();
            }
        }
        sequence(DType::F32, 256, Precision::Bf16x3).unwrap();
        let error = sequence(DType::F32, 256, Precision::Bf16x6).unwrap_err().to_string();
        assert!(error.contains("3 planes"), "{error}");
    }
}
