//! The forward pass of softmax on f16 by products of small matrices that a subgroup holds together (cooperative
//! matrices), with sums in f32. Nothing is widened: queries, keys and values are read as they are, where they are
//! contiguous, or are packed first.
//!
//! The statements about matrices are written by [`Matrices`], which knows a second way to write them: loops over the same
//! elements in the same places. That is how tests run the family on devices without such matrices.

use std::fmt::Write;

use natten_core::program::Program;
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Role};

use crate::boxes::Boxes;
use crate::sequence::Packed;
use crate::spirv::MATRICES;
use crate::target::{Matrices, Target};
use crate::template::Fill;

/// The shader.
pub(crate) const MATRIX: &str = include_str!("wgsl/matrix.wgsl");

/// Queries of a box, of which each of the four subgroups takes 16, and keys of a box.
const ROWS: usize = 64;
const SUBGROUPS: usize = 4;
const ROWS_EACH: usize = ROWS / SUBGROUPS;
const KEYS: usize = 32;

/// Cells of four elements that a row of scores or weights takes.
const SCORE_STRIDE: usize = KEYS / 4 + 2;

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
            && takes(problem.program());
        let lanes = matrices.lanes as usize;
        let fits = lanes.is_multiple_of(ROWS_EACH)
            && lanes / ROWS_EACH <= 4
            && ROWS_EACH.is_multiple_of(matrices.edge as usize)
            && SUBGROUPS * lanes <= target.invocations as usize;
        if !is_ours || !fits || problem.head_dim().max(problem.head_dim_v()) > 256 {
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

    const fn threads(&self) -> usize {
        SUBGROUPS * self.matrices.lanes as usize
    }

    /// Lanes that share a row.
    const fn lanes_each(&self) -> usize {
        self.matrices.lanes as usize / ROWS_EACH
    }

    pub(crate) fn workgroups(&self) -> [u32; 3] {
        [self.boxes.query_boxes() as u32, self.heads as u32, 1]
    }

    /// The most iterations of loops of an invocation, where matrices are written as loops.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let steps = self.boxes.key_boxes_of(problem) + self.additional_steps;
        let (edge, lanes) = (self.matrices.edge as usize, self.matrices.lanes as usize);
        let elements = (edge * edge).div_ceil(lanes);
        let products = ROWS_EACH * KEYS * (self.dims + self.dims_v) / edge.pow(3);
        let of_product = if self.matrices.is_native { 0 } else { elements * (1 + edge) };
        let of_edits = self.dims_v / 4 * (KEYS + 1);
        (KEYS * 4 + steps * (KEYS + products * of_product + of_edits)) as u64
    }

    /// What the shader binds packed.
    pub(crate) fn packed(&self, problem: &Problem) -> [Packed; 4] {
        let of = |role: Role, additional: Role, dim: usize, dims: usize| {
            let len = |role| problem.shape(role).iter().map(|&extent| extent as u64).product::<u64>();
            let own = len(role);
            let others = if additional == role { 0 } else { len(additional) };
            let vectors = (own + others) / dim as u64;
            Packed {
                role,
                dim: dim as u64,
                dims: dims as u64,
                vectors,
                may_be_direct: dim == dims && others == 0,
            }
        };
        let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
        [
            of(Role::Query, Role::Query, dim, self.dims),
            of(Role::Key, Role::AdditionalKey, dim, self.dims),
            of(Role::Value, Role::AdditionalValue, dim_v, self.dims_v),
            of(Role::Output, Role::Output, dim_v, self.dims_v),
        ]
    }

    /// What the text begins with.
    pub(crate) fn directives(&self) -> String {
        "enable f16;\n".to_owned() + if self.matrices.is_native { MATRICES } else { "" }
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self) -> String {
        let is_whole = self.boxes.key_tile.iter().product::<usize>() == KEYS;
        let mut text = self.boxes.constants();
        let _ = writeln!(text, "const IS_WHOLE = {is_whole};");
        let _ = writeln!(text, "const ADDITIONAL_STEPS: i32 = {};", self.additional_steps);
        for (name, value) in [
            ("SUBGROUP", self.matrices.lanes as usize),
            ("LANES", self.lanes_each()),
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
            .value("THREADS", self.threads())
            .value("MATRICES", if matrices.is_native { "" } else { LOOPS })
            .value("LOAD_QUERIES", self.load_queries())
            .value("DECLARE_OUTPUT", self.each_output(|name, _, _| matrices.declare(name)))
            .value("MULTIPLY_SCORES", self.multiply_scores())
            .value("MULTIPLY_VALUES", self.multiply_values())
            .value("EDIT_OUTPUT", self.edit_output())
            .value("WRITE_OUTPUT", self.write_output());
        for (number, name) in ["QUERIES", "KEYS", "VALUES", "OUTPUT"].into_iter().enumerate() {
            fill = fill.value(name, first + number);
        }
        self.fill_copies(self.fill_softmax(fill))
    }

    /// Row blocks of a subgroup, as tall as a matrix.
    const fn blocks(&self) -> usize {
        ROWS_EACH / self.matrices.edge as usize
    }

    const fn edge(&self) -> usize {
        self.matrices.edge as usize
    }

    fn load_queries(&self) -> String {
        let mut text = String::new();
        for block in 0..self.blocks() {
            for d in 0..self.dims / self.edge() {
                let at = format!(
                    "(16u * subgroup + {}u) * KEY_STRIDE + {}u",
                    block * self.edge(),
                    d * self.edge() / 4
                );
                let place = if self.matrices.is_native { "tiles" } else { "kept" };
                text += &self.matrices.load(&format!("q{block}_{d}"), 'A', place, &at, "KEY_STRIDE", true);
            }
        }
        text
    }

    fn multiply_scores(&self) -> String {
        let mut text = String::new();
        let blocks = || (0..self.blocks()).flat_map(|b| (0..KEYS / self.edge()).map(move |n| (b, n)));
        for (block, n) in blocks() {
            text += &self.matrices.declare(&format!("s{block}_{n}"));
        }
        for d in 0..self.dims / self.edge() {
            for n in 0..KEYS / self.edge() {
                let name = format!("k{d}_{n}");
                let at = format!("{}u * KEY_STRIDE + {}u", n * self.edge(), d * self.edge() / 4);
                text += &self.matrices.load(&name, 'B', "tiles", &at, "KEY_STRIDE", false);
                for block in 0..self.blocks() {
                    let sum = format!("s{block}_{n}");
                    text += &self.matrices.multiply_add(&sum, &format!("q{block}_{d}"), &name, "scores");
                }
            }
        }
        for (block, n) in blocks() {
            text += &self.matrices.store(&format!("s{block}_{n}"), &self.piece(block, n));
        }
        text
    }

    /// The place of a matrix among the scores of a subgroup.
    fn piece(&self, block: usize, n: usize) -> String {
        format!("(16u * subgroup + {}u) * SCORE_STRIDE + {}u", block * self.edge(), n * self.edge() / 4)
    }

    fn multiply_values(&self) -> String {
        let mut text = String::new();
        for n in 0..KEYS / self.edge() {
            for block in 0..self.blocks() {
                let at = format!(
                    "(16u * subgroup + {}u) * WEIGHT_STRIDE + {}u",
                    block * self.edge(),
                    n * self.edge() / 4
                );
                let name = format!("p{block}_{n}");
                text += &self.matrices.load(&name, 'A', "weights", &at, "WEIGHT_STRIDE", true);
            }
            for d in 0..self.dims_v / self.edge() {
                let name = format!("v{n}_{d}");
                let at = format!("VALUES + {}u * VALUE_STRIDE + {}u", n * self.edge(), d * self.edge() / 4);
                text += &self.matrices.load(&name, 'B', "tiles", &at, "VALUE_STRIDE", true);
                for block in 0..self.blocks() {
                    let sum = format!("o{block}_{d}");
                    text += &self.matrices.multiply_add(&sum, &format!("p{block}_{n}"), &name, "values");
                }
            }
        }
        text
    }

    /// A statement of every matrix of the output: of its name, its row block and its number along the row.
    fn each_output(&self, of: impl Fn(&str, usize, usize) -> String) -> String {
        let all = (0..self.blocks()).flat_map(|b| (0..self.dims_v / self.edge()).map(move |d| (b, d)));
        all.map(|(block, d)| of(&format!("o{block}_{d}"), block, d)).collect()
    }

    /// The output's parts, as wide as the memory of scores: statements that move the matrices of a part.
    fn parts(&self, of: impl Fn(usize, usize, &dyn Fn(bool) -> String) -> String) -> String {
        let wide = KEYS / self.edge();
        let part = |first: usize| {
            let moves = |is_load: bool| {
                self.each_output(|name, block, d| match d.checked_sub(first) {
                    Some(n) if n < wide && is_load => self.matrices.load_again(name, &self.piece(block, n)),
                    Some(n) if n < wide => self.matrices.store(name, &self.piece(block, n)),
                    _ => String::new(),
                })
            };
            let column = first * self.edge();
            of(column, (self.dims_v - column).min(KEYS) / 4, &moves)
        };
        (0..self.dims_v / self.edge()).step_by(wide).map(part).collect()
    }

    fn edit_output(&self) -> String {
        self.parts(|column, count, moves| {
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
        self.parts(|column, count, moves| {
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
            for j in 0..cells.div_ceil(self.threads()) {
                let ahead = format!("ahead_{name}{j}");
                let i = format!("(lane + {}u)", j * self.threads());
                let guard = match (j + 1) * self.threads() > cells {
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
                         if (!all(is_finite)) {{ atomicStore(&is_odd, 1u); }}\n    \
                         tiles[VALUES + {i} / {of_row} * VALUE_STRIDE + {cell}] = select(vec4<f16>(), {ahead}, is_finite);\n}}"
                    ),
                };
            }
        }
        fill.value("DECLARE_AHEAD", declare).value("FETCH", fetch).value("STAGE", stage)
    }

    /// What a lane does with its cells of a row: every `LANES`-th.
    fn fill_softmax(&self, fill: Fill) -> Fill {
        let lanes = self.lanes_each();
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

/// Whether a program is softmax of any scores under any mask, of vectors as they are.
fn takes(program: &Program) -> bool {
    program.has_softmax_row()
        && program.post().is_none()
        && program.decay().is_none()
        && program.mods() == [None; 3]
}

/// Statements about matrices; cells are of four elements.
impl Matrices {
    fn ty(&self, role: char) -> String {
        let scalar = if role == 'C' { "f32" } else { "f16" };
        format!("coop_mat{0}x{0}<{scalar}, {role}>", self.edge)
    }

    /// A sum of products, 0.
    pub(crate) fn declare(&self, name: &str) -> String {
        match self.is_native {
            true => format!("var {name} = {}();\n", self.ty('C')),
            false => format!("var {name} = Piece();\n"),
        }
    }

    /// A factor, from an array of workgroup memory, in rows or in columns of `stride` cells.
    pub(crate) fn load(
        &self,
        name: &str,
        role: char,
        array: &str,
        at: &str,
        stride: &str,
        in_rows: bool,
    ) -> String {
        let t = if in_rows { "T" } else { "" };
        match self.is_native {
            true => format!("let {name} = coopLoad{t}<{}>(&{array}[{at}], {stride});\n", self.ty(role)),
            // Factors stay in memory until they are multiplied.
            false => format!("let {name} = {at};\n"),
        }
    }

    /// Adds a product: of queries and keys for `scores`, of weights and values for `values`.
    pub(crate) fn multiply_add(&self, sum: &str, a: &str, b: &str, what: &str) -> String {
        match self.is_native {
            true => format!("{sum} = coopMultiplyAdd({a}, {b}, {sum});\n"),
            false => format!("add_{what}(&{sum}, member, {a}, {b});\n"),
        }
    }

    /// Stores a sum among the scores.
    pub(crate) fn store(&self, name: &str, at: &str) -> String {
        match self.is_native {
            true => format!("coopStoreT({name}, &scores[{at}], SCORE_STRIDE);\n"),
            false => format!("store_piece({name}, member, {at});\n"),
        }
    }

    /// Takes a sum back from the scores.
    pub(crate) fn load_again(&self, name: &str, at: &str) -> String {
        match self.is_native {
            true => format!("{name} = coopLoadT<{}>(&scores[{at}], SCORE_STRIDE);\n", self.ty('C')),
            false => format!("{name} = load_piece(member, {at});\n"),
        }
    }
}

/// Matrices as loops: a lane holds every element of a sum whose number it is, in turns of the subgroup.
const LOOPS: &str = include_str!("wgsl/matrix_loops.wgsl");
