//! The forward pass of softmax on f16 by products of small matrices that a subgroup holds together (cooperative
//! matrices), with sums in f32. Nothing is widened: queries, keys and values are read as they are, where they are
//! contiguous, or are packed first.

use std::fmt::Write;

use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Role};

use crate::boxes::Boxes;
use crate::pieces::{self, COLUMNS as KEYS, ROWS, SCORE_STRIDE};
use crate::sequence::Packed;
use crate::target::{Matrices, Target};
use crate::template::Fill;

/// The shader.
pub(crate) const MATRIX: &str = include_str!("wgsl/matrix.wgsl");

/// How the shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) boxes: Boxes,
    matrices: Matrices,
    /// Head dims of keys and of values, padded to what matrices of 16 take.
    pub(crate) dims: usize,
    pub(crate) dims_v: usize,
    additional_steps: usize,
    heads: usize,
}

impl Shape {
    /// The shape for an operation, where this family does it.
    pub(crate) fn of(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
    ) -> Option<Self> {
        let matrices = target.matrices?;
        let is_ours = problem.dtype() == DType::F16
            && request.op == Op::Forward
            && request.wants.contains(Role::Output)
            && pieces::takes(problem.program());
        if !is_ours || !matrices.fit(target) || problem.head_dim().max(problem.head_dim_v()) > 256 {
            return None;
        }
        let boxes = Boxes::new(problem, options, ROWS, KEYS)?;
        let shape = Self {
            boxes,
            matrices,
            dims: problem.head_dim().next_multiple_of(16),
            dims_v: problem.head_dim_v().next_multiple_of(16),
            additional_steps: problem.additional_tokens().div_ceil(KEYS),
            heads: problem.batch() * problem.heads(),
        };
        let most = target.workgroups as usize;
        let count = boxes.query_boxes();
        let is_bound = |packed: &Packed| target.check_binding(packed.role.name(), packed.bytes()).is_ok();
        (shape.bytes() <= target.workgroup_bytes as usize
            && shape.packed(problem).iter().all(is_bound)
            && (1..=most).contains(&count)
            && (1..=most).contains(&shape.heads))
        .then_some(shape)
    }

    /// Workgroup memory.
    fn bytes(&self) -> usize {
        let kept = if self.matrices.is_native { 0 } else { ROWS * self.key_stride() };
        8 * (self.tile_cells() + kept) + ROWS * SCORE_STRIDE * (16 + 8) + (99 + KEYS) * 4 + 16
    }

    const fn key_stride(&self) -> usize {
        self.dims / 4 + 2
    }

    const fn value_stride(&self) -> usize {
        self.dims_v / 4 + 2
    }

    fn tile_cells(&self) -> usize {
        (ROWS * self.key_stride()).max(KEYS * (self.key_stride() + self.value_stride()))
    }

    pub(crate) fn workgroups(&self) -> [u32; 3] {
        [self.boxes.query_boxes() as u32, self.heads as u32, 1]
    }

    /// The most iterations of loops of an invocation, where matrices are written as loops.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let steps = self.boxes.key_boxes_of(problem) + self.additional_steps;
        let of_products = self.matrices.iterations(self.dims + self.dims_v);
        let of_edits = self.dims_v / 4 * (KEYS + 1);
        (KEYS * 4 + steps * (KEYS + of_products + of_edits)) as u64
    }

    /// What the shader binds packed.
    pub(crate) fn packed(&self, problem: &Problem) -> [Packed; 4] {
        [
            pieces::packed(problem, Role::Query, None),
            pieces::packed(problem, Role::Key, Some(Role::AdditionalKey)),
            pieces::packed(problem, Role::Value, Some(Role::AdditionalValue)),
            pieces::packed(problem, Role::Output, None),
        ]
    }

    /// What the text begins with.
    pub(crate) fn directives(&self) -> String {
        self.matrices.directives()
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self) -> String {
        let is_whole = self.boxes.key_tile.iter().product::<usize>() == KEYS;
        let mut text = self.boxes.constants();
        let _ = writeln!(text, "const IS_WHOLE = {is_whole};");
        let _ = writeln!(text, "const ADDITIONAL_STEPS: i32 = {};", self.additional_steps);
        for (name, value) in [
            ("SUBGROUP", self.matrices.lanes as usize),
            ("LANES", self.matrices.lanes_each()),
            ("KEY_CELLS", self.dims / 4),
            ("VALUE_CELLS", self.dims_v / 4),
            ("VALUE_DIMS", self.dims_v),
            ("KEY_STRIDE", self.key_stride()),
            ("VALUE_STRIDE", self.value_stride()),
            ("VALUES", KEYS * self.key_stride()),
            ("TILE_CELLS", self.tile_cells()),
            ("SCORE_STRIDE", SCORE_STRIDE),
            ("WEIGHT_STRIDE", SCORE_STRIDE),
            ("EDGE", self.matrices.edge as usize),
        ] {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        text
    }

    /// The template's statements, for packed tensors bound from number `first` on.
    pub(crate) fn fill(&self, has_program: bool, first: usize) -> Fill {
        let matrices = &self.matrices;
        let mut fill = Fill::default()
            .flag("LOOPS", !matrices.is_native)
            .flag("PROGRAM", has_program)
            .value("THREADS", self.matrices.threads())
            .value("MATRICES", if matrices.is_native { String::new() } else { loops() })
            .value("LOAD_QUERIES", self.load_queries())
            .value("DECLARE_OUTPUT", matrices.declare_all("o", self.dims_v))
            .value("MULTIPLY_SCORES", self.multiply_scores())
            .value("MULTIPLY_VALUES", self.multiply_values())
            .value("EDIT_OUTPUT", self.edit_output())
            .value("WRITE_OUTPUT", self.write_output());
        for (number, name) in ["QUERIES", "KEYS", "VALUES", "OUTPUT"].into_iter().enumerate() {
            fill = fill.value(name, first + number);
        }
        self.fill_copies(self.fill_softmax(fill))
    }

    fn load_queries(&self) -> String {
        let place = if self.matrices.is_native { "tiles" } else { "kept" };
        self.matrices.load_rows("q", self.dims, place, "KEY_STRIDE")
    }

    fn multiply_scores(&self) -> String {
        self.matrices.multiply_rows("s", "q", self.dims, ["", "KEY_STRIDE"], "scores")
            + &self.matrices.store_scores("s", "")
    }

    fn multiply_values(&self) -> String {
        self.matrices.multiply_columns("o", "", self.dims_v, ["VALUES + ", "VALUE_STRIDE"], "values")
    }

    fn edit_output(&self) -> String {
        self.matrices.parts("o", self.dims_v, |column, count, moves| {
            format!(
                "{}workgroupBarrier();\n\
                 edit(walk, step, row, part, {column}u, {count}u, shrink, odd, visible);\nworkgroupBarrier();\n\
                 {}workgroupBarrier();\n",
                moves(false),
                moves(true)
            )
        })
    }

    fn write_output(&self) -> String {
        self.matrices.parts("o", self.dims_v, |column, count, moves| {
            format!(
                "{}workgroupBarrier();\n\
                 if (is_row) {{ write(row, part, {column}u, {count}u, factor, query); }}\nworkgroupBarrier();\n",
                moves(false)
            )
        })
    }

    /// The way of keys and values from memory: fetched a step ahead, staged when the step before is done.
    fn fill_copies(&self, fill: Fill) -> Fill {
        let (mut declare, mut fetch, mut stage) = (String::new(), String::new(), String::new());
        for (name, of_row, count) in
            [("keys", "KEY_CELLS", self.dims / 4), ("values", "VALUE_CELLS", self.dims_v / 4)]
        {
            let cells = KEYS * count;
            for j in 0..cells.div_ceil(self.matrices.threads()) {
                let ahead = format!("ahead_{name}{j}");
                let i = format!("(lane + {}u)", j * self.matrices.threads());
                let guard = match (j + 1) * self.matrices.threads() > cells {
                    true => format!("if ({i} < {cells}u) "),
                    false => String::new(),
                };
                let _ = writeln!(declare, "    var {ahead} = vec4<f16>();");
                let _ = writeln!(
                    fetch,
                    "{guard}{{ {ahead} = packed_{name}[key_vector[{i} / {of_row}] * {of_row} + {i} % {of_row}]; }}"
                );
                let cell = format!("{i} % {of_row}");
                let _ = match name {
                    "keys" => {
                        writeln!(stage, "{guard}{{ tiles[{i} / {of_row} * KEY_STRIDE + {cell}] = {ahead}; }}")
                    }
                    _ => writeln!(
                        stage,
                        "{guard}{{\n    let is_finite = abs({ahead}) <= vec4<f16>(f16(LARGEST_HALF));\n    \
                         if (!all(is_finite)) {{ atomicStore(&is_odd[0], 1u); }}\n    \
                         tiles[VALUES + {i} / {of_row} * VALUE_STRIDE + {cell}] = select(vec4<f16>(), {ahead}, is_finite);\n}}"
                    ),
                };
            }
        }
        fill.value("DECLARE_AHEAD", declare).value("FETCH", fetch).value("STAGE", stage)
    }

    /// What a lane does with its cells of a row: every `LANES`-th.
    fn fill_softmax(&self, fill: Fill) -> Fill {
        let lanes = self.matrices.lanes_each();
        let (mut load, mut mask, mut highest, mut weights) =
            (String::new(), String::new(), String::new(), String::new());
        for c in 0..KEYS / 4 / lanes {
            let cell = format!("{}u + part", c * lanes);
            let bits: Vec<String> = (0..4).map(|e| format!("{}u", 1u32 << (4 * c * lanes + e))).collect();
            let _ = writeln!(load, "var x{c} = scale * scores[row * SCORE_STRIDE + {cell}];");
            let _ = writeln!(
                mask,
                "x{c} = select(vec4<f32>(LOWEST), x{c}, (vec4<u32>(mine) & vec4<u32>({})) != vec4<u32>());",
                bits.join(", ")
            );
            let _ =
                writeln!(highest, "highest = max(highest, max(max(x{c}.x, x{c}.y), max(x{c}.z, x{c}.w)));");
            let _ = writeln!(
                weights,
                "var w{c} = select(exp(x{c} - vec4<f32>(peak)), vec4<f32>(0.0), x{c} == vec4<f32>(LOWEST));\n\
                 total += (w{c}.x + w{c}.y) + (w{c}.z + w{c}.w);\n\
                 if (odd != 0u) {{ w{c} = select(w{c}, max(w{c}, LEAST_HALF), w{c} > vec4<f32>(0.0)); }}\n\
                 weights[row * WEIGHT_STRIDE + {cell}] = vec4<f16>(w{c});"
            );
        }
        let (mut join_visible, mut join_total) = (String::new(), String::new());
        for step in [1, 2].into_iter().filter(|&step| step < lanes) {
            let _ = writeln!(join_visible, "visible &= subgroupShuffleXor(visible, {step}u);");
            let _ = writeln!(highest, "highest = max(highest, subgroupShuffleXor(highest, {step}u));");
            let _ = writeln!(join_total, "total += subgroupShuffleXor(total, {step}u);");
        }
        fill.value("LOAD_SCORES", load)
            .value("MASK_SCORES", mask)
            .value("HIGHEST", highest)
            .value("WEIGHTS", weights)
            .value("JOIN_VISIBLE", join_visible)
            .value("JOIN_TOTAL", join_total)
    }
}

/// Products as loops: queries are kept where matrices would be loaded from once.
fn loops() -> String {
    pieces::LOOPS.to_owned()
        + &pieces::loop_of_rows("scores", "kept[at]", "KEY_STRIDE")
        + &pieces::loop_of_columns("values", "VALUE_STRIDE")
}
