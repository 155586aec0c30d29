//! The design of ONNX Runtime's WGSL: a query to an invocation. It is there to be measured against, and no planner takes
//! it on its own.

use natten_core::{Op, OpRequest, PlanOptions, Problem};

use crate::boxes::Boxes;
use crate::render::math::Real;
use crate::target::Target;

/// The shader.
pub(crate) const ROW: &str = include_str!("wgsl/row.wgsl");

/// Queries and keys of a box.
const ROWS: usize = 64;
const KEYS: usize = 16;

/// How the shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) boxes: Boxes,
    quarters: usize,
    quarters_v: usize,
    heads: usize,
}

impl Shape {
    /// The shape for an operation, where this family does it.
    pub(crate) fn of(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
        real: Real,
    ) -> Option<Self> {
        let is_ours = request.op == Op::Forward
            && real == Real::F32
            && problem.program().is_plain_softmax()
            && !problem.has_rpb()
            && problem.additional_tokens() == 0;
        if !is_ours {
            return None;
        }
        let shape = Self {
            boxes: Boxes::new(problem, options, ROWS, KEYS)?,
            quarters: problem.head_dim().div_ceil(4),
            quarters_v: problem.head_dim_v().div_ceil(4),
            heads: problem.batch() * problem.heads(),
        };
        let most = target.workgroups as usize;
        let fits = 16 * KEYS * (shape.quarters + shape.quarters_v) <= target.workgroup_bytes as usize
            && (1..=most).contains(&shape.boxes.query_boxes())
            && (1..=most).contains(&shape.heads);
        fits.then_some(shape)
    }

    pub(crate) fn workgroups(&self) -> [u32; 3] {
        [self.boxes.query_boxes() as u32, self.heads as u32, 1]
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let quarters = self.quarters + self.quarters_v;
        let of_step = 5 * KEYS * quarters / ROWS + KEYS * (3 + quarters) + self.quarters_v;
        (6 * quarters + self.boxes.key_boxes_of(problem) * of_step) as u64
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self) -> String {
        format!(
            "{}const QUARTERS: u32 = {}u;\nconst QUARTERS_V: u32 = {}u;\n",
            self.boxes.constants(),
            self.quarters,
            self.quarters_v
        )
    }
}
