//! Forward attention in 16 bits on `mma.sync`: `kernels/forward_mma.cu`, specialised for the problem. It serves every GPU
//! from sm_80 on: small windows on all of them, and every window where there is no `wgmma`. This module says which
//! problems it serves and makes the launch; [`shape`] chooses the boxes.

mod shape;

use natten_core::geometry::Tiles;
use natten_core::{DType, Error, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use self::shape::Shape;
use crate::NAME;
use crate::family::{Argument, Class, Family, Kernel, Layout, Sequence, Step};
use crate::forward::{self, ABSENT_VIEW};
use crate::scores::Functions;
use crate::target::Target;

/// The family.
#[derive(Debug)]
pub(crate) struct Mma;

/// The kernel, its parts in order.
const KERNEL: &str = concat!(
    include_str!("../../kernels/forward_common.cu"),
    include_str!("../../kernels/forward_mma_instructions.cu"),
    include_str!("../../kernels/forward_mma.cu"),
);

/// The longest axis of a window that counts as small.
const SMALL_WINDOW: usize = 8;

/// Heads that are walked together.
const SECTION: usize = 4;

/// Whether windows are so small that boxes of 64 queries, as `wgmma` has, see few keys in common, and the 16 queries of
/// `mma.sync` are faster on Hopper too. Measured: 40 instead of 30 TFLOP/s for 7x7, 73 instead of 63 for 7x7x7, but 87
/// instead of 122 for 13x13. Not measured with additional tokens, of which boxes of 64 queries have no fewer in common.
pub(crate) fn is_for_small_windows(problem: &Problem) -> bool {
    let axes = problem.neighborhood().user_axes();
    problem.additional_tokens() == 0
        && axes.len() > 1
        && axes.iter().all(|axis| axis.params().is_some_and(|p| p.kernel_size <= SMALL_WINDOW))
}

impl Family for Mma {
    fn name(&self) -> &'static str {
        "mma"
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
        let tiles = Tiles::new(problem.neighborhood(), shape.fragment, shape.chunk);
        Ok(Sequence {
            steps: vec![Step::Launch(kernel(problem, request, &shape, functions, target))],
            workspace: 0,
            tables: Vec::new(),
            layout: Layout::Aligned,
            coverage: coverage_of(problem, &tiles),
            config: shape.describe(problem),
        })
    }
}

/// Declines what the kernel does not compute.
fn check(problem: &Problem, request: &OpRequest, target: &Target) -> Result<()> {
    let decline = |what: String, why: &str| Err(Error::unsupported(NAME, what, why));
    if target.arch < (8, 0) {
        return decline(target.name(), "the kernel is made of instructions of sm_80");
    }
    if !matches!(problem.dtype(), DType::F16 | DType::Bf16) {
        return decline(problem.dtype().to_string(), "the tensor cores take 16 bits");
    }
    forward::check(problem, request)
}

fn kernel(
    problem: &Problem,
    request: &OpRequest,
    shape: &Shape,
    functions: Functions,
    target: &Target,
) -> Kernel {
    let wants_logsumexp = request.wants.contains(Role::Logsumexp);
    let logsumexp = if wants_logsumexp {
        Argument::View(Role::Logsumexp)
    } else {
        Argument::Bytes { data: vec![0; ABSENT_VIEW], align: 8 }
    };
    let additional: &[Role] = match problem.additional_tokens() {
        0 => &[],
        _ => &[Role::AdditionalKey, Role::AdditionalValue],
    };
    let rows = problem.batch() * problem.heads();
    let items = shape.query_boxes(problem) * rows as u64;
    let mut source = forward::constants(problem, &functions, shape.query_tile(), shape.keys, wants_logsumexp);
    let is_uneven = problem.neighborhood().axes().iter().any(|axis| axis.alignment().is_some());
    let section = (1..=SECTION).rev().find(|&n| rows.is_multiple_of(n)).unwrap_or(1);
    for (name, value) in shape.constants(problem) {
        source += &format!("#define {name} {value}\n");
    }
    source += &format!("#define SECTION {section}\n#define REVERSE {}\n", i32::from(is_uneven));
    Kernel {
        source: source + KERNEL,
        entry: "forward_mma",
        grid: [items.min(u64::from(target.units * shape.blocks)), 1, 1],
        block: shape.threads(),
        shared_bytes: shape.shared_bytes(problem),
        arguments: [Role::Query, Role::Key, Role::Value, Role::Output]
            .map(Argument::View)
            .into_iter()
            .chain([logsumexp])
            .chain(additional.iter().copied().map(Argument::View))
            .chain(functions.arguments)
            .collect(),
        // Functions of scores may divide; two units in the last place are enough for results of 16 bits.
        options: &["--prec-div=false", "--prec-sqrt=false"],
        class: Class::Mma,
    }
}

#[cfg(test)]
mod tests {
    use natten_core::geometry::{AxisParams, Neighborhood};
    use natten_core::{Op, ProblemBuilder};

    use super::*;

    fn builder(axes: &[AxisParams], dtype: DType) -> ProblemBuilder {
        Problem::builder(Neighborhood::new(axes).unwrap(), dtype).batch(2).heads(4).head_dim(64)
    }

    fn sequence(builder: ProblemBuilder, op: Op, arch: (u32, u32)) -> Result<Sequence> {
        let problem = builder.build()?;
        let request = OpRequest::of(op, &problem, []);
        Mma.sequence(&problem, &request, &PlanOptions::default(), &Target::of_arch(arch.0, arch.1))
    }

    #[test]
    fn what_the_kernel_does_not_compute_is_declined() {
        let axis = AxisParams::new(90, 9);
        let declined =
            |builder, op, arch| matches!(sequence(builder, op, arch), Err(Error::Unsupported { .. }));
        assert!(!declined(builder(&[axis, axis], DType::F16), Op::Forward, (8, 0)));
        assert!(!declined(builder(&[axis.dilation(9)], DType::F16), Op::Forward, (12, 0)));
        assert!(declined(builder(&[axis, axis], DType::F16), Op::Forward, (7, 5)));
        assert!(declined(builder(&[axis], DType::F32), Op::Forward, (8, 0)));
        assert!(declined(builder(&[axis], DType::F16), Op::Backward, (8, 0)));
        assert!(declined(builder(&[axis], DType::Bf16).head_dim(20), Op::Forward, (8, 0)));
        assert!(!declined(builder(&[axis], DType::Bf16).additional_tokens(1), Op::Forward, (8, 0)));
    }

    #[test]
    fn windows_are_small_by_every_axis() {
        let is_small = |sizes: &[usize]| {
            let axes: Vec<AxisParams> = sizes.iter().map(|&k| AxisParams::new(40, k)).collect();
            is_for_small_windows(&builder(&axes, DType::Bf16).build().unwrap())
        };
        assert!(is_small(&[7, 7]) && is_small(&[7, 7, 7]));
        assert!(!is_small(&[7, 13]) && !is_small(&[7]));
    }
}
