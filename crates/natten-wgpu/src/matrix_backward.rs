//! The backward pass of softmax on f16 by products of small matrices that a subgroup holds together, with sums in f32.
//! As [`tiled_backward`](crate::tiled_backward) it walks boxes of keys for the gradients of queries, and boxes of queries
//! for those of keys and values; as the forward pass it takes vectors as they are.

use std::fmt::Write;

use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Role};

use crate::boxes::Boxes;
use crate::pieces::{self, COLUMNS, ROWS, SCORE_STRIDE};
use crate::sequence::Packed;
use crate::target::{Matrices, Target};
use crate::template::Fill;
use crate::tiled_backward::Side;

/// The shader.
pub(crate) const MATRIX_BACKWARD: &str =
    concat!(include_str!("wgsl/factors.wgsl"), include_str!("wgsl/matrix_backward.wgsl"));

/// Elements of gradients that a row's matrices hold beside its vectors.
const MOST_SUMS: usize = 128;

/// How the shaders are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) of_queries: Boxes,
    of_keys: Boxes,
    pub(crate) matrices: Matrices,
    /// Head dims of keys and of values, padded to what matrices of 16 take.
    dims: usize,
    dims_v: usize,
    heads: usize,
    heads_kv: usize,
    /// Whether scores and gradients of weights have memory of their own.
    is_apart: bool,
    /// Whether gradients of queries, of keys and of values are wanted.
    wanted: [bool; 3],
}

/// A run of the shader: which side's gradients it computes, and which of them: of the vectors that are multiplied to
/// scores, and of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) side: Side,
    pub(crate) to: [bool; 2],
}

impl Pass {
    /// What it binds packed, by the names of the shader: what it reads, and what it writes.
    pub(crate) fn bindings(&self) -> Vec<(&'static str, Role, bool)> {
        let (rows, columns, to) = match self.side {
            Side::Queries => (
                [Role::Query, Role::GradOutput],
                [Role::Key, Role::Value],
                [Role::GradQuery, Role::GradValue],
            ),
            Side::Keys => {
                ([Role::Key, Role::Value], [Role::Query, Role::GradOutput], [Role::GradKey, Role::GradValue])
            }
        };
        let all = [
            ("first_rows", rows[0], false, true),
            ("second_rows", rows[1], false, self.to[0]),
            ("first_columns", columns[0], false, true),
            ("second_columns", columns[1], false, true),
            ("first_sums", to[0], true, self.to[0]),
            ("second_sums", to[1], true, self.to[1]),
        ];
        let needed = all.into_iter().filter(|(_, _, _, is_needed)| *is_needed);
        needed.map(|(name, role, is_written, _)| (name, role, is_written)).collect()
    }
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
        let wanted =
            [Role::GradQuery, Role::GradKey, Role::GradValue].map(|role| request.wants.contains(role));
        let is_ours = problem.dtype() == DType::F16
            && request.op == Op::Backward
            && pieces::takes(problem.program())
            && problem.additional_tokens() == 0
            // Nothing else is wanted: the gradients of biases and captured tensors are sums over pairs of a row.
            && request.wants.iter().count() == wanted.iter().filter(|is_wanted| **is_wanted).count()
            && wanted != [false; 3];
        if !is_ours || !matrices.fit(target) || problem.head_dim().max(problem.head_dim_v()) > 256 {
            return None;
        }
        let apart = Self {
            of_queries: Boxes::new(problem, options, ROWS, COLUMNS)?,
            of_keys: Boxes::inverse(problem, COLUMNS, ROWS)?,
            matrices,
            dims: problem.head_dim().next_multiple_of(16),
            dims_v: problem.head_dim_v().next_multiple_of(16),
            heads: problem.batch() * problem.heads(),
            heads_kv: problem.batch() * problem.heads_kv(),
            is_apart: true,
            wanted,
        };
        let fits = |shape: &Self| {
            shape.passes().iter().all(|pass| shape.bytes(pass) <= target.workgroup_bytes as usize)
        };
        let shape = [apart, Self { is_apart: false, ..apart }].into_iter().find(fits)?;
        let is_bound = |packed: &Packed| target.check_binding(packed.role.name(), packed.bytes()).is_ok();
        let most = target.workgroups as usize;
        let counts = [shape.of_queries.query_boxes(), shape.of_keys.key_boxes(), shape.heads, shape.heads_kv];
        (counts.iter().all(|count| (1..=most).contains(count)) && shape.packed(problem).iter().all(is_bound))
            .then_some(shape)
    }

    /// The runs of the shader. The gradients of keys and values are computed in one where registers hold both.
    pub(crate) fn passes(&self) -> Vec<Pass> {
        let [of_queries, of_keys, of_values] = self.wanted;
        let mut passes = vec![(Side::Queries, [of_queries, false])];
        if self.dims + self.dims_v <= MOST_SUMS {
            passes.push((Side::Keys, [of_keys, of_values]));
        } else {
            passes.extend([(Side::Keys, [of_keys, false]), (Side::Keys, [false, of_values])]);
        }
        let wanted = passes.into_iter().filter(|(_, to)| *to != [false; 2]);
        wanted.map(|(side, to)| Pass { side, to }).collect()
    }

    /// Workgroup memory.
    fn bytes(&self, pass: &Pass) -> usize {
        let tables = (ROWS + COLUMNS + 99 + 2 * COLUMNS + 4) * 4;
        8 * self.tile_cells() + 16 * self.score_cells(pass) + 8 * weight_cells(pass) + tables
    }

    const fn key_stride(&self) -> usize {
        self.dims / 4 + 2
    }

    const fn value_stride(&self) -> usize {
        self.dims_v / 4 + 2
    }

    fn tile_cells(&self) -> usize {
        let rows =
            if self.matrices.is_native { ROWS * self.key_stride().max(self.value_stride()) } else { 0 };
        rows.max(COLUMNS * (self.key_stride() + self.value_stride()))
    }

    fn score_cells(&self, pass: &Pass) -> usize {
        ROWS * SCORE_STRIDE * (1 + usize::from(self.is_apart && pass.to[0]))
    }

    pub(crate) fn workgroups(&self, side: Side) -> [u32; 3] {
        match side {
            Side::Queries => [self.of_queries.query_boxes() as u32, self.heads as u32, 1],
            Side::Keys => [self.of_keys.key_boxes() as u32, self.heads_kv as u32, 1],
        }
    }

    /// The most iterations of loops of an invocation, where matrices are written as loops.
    pub(crate) fn iterations(&self, problem: &Problem, side: Side) -> u64 {
        let steps = match side {
            Side::Queries => self.of_queries.key_boxes_of(problem),
            Side::Keys => self.of_keys.query_boxes_of(problem) * problem.heads_per_kv(),
        };
        let products = self.matrices.iterations(2 * (self.dims + self.dims_v));
        let of_edits = (self.dims + self.dims_v) / 4 * (COLUMNS + 1);
        (COLUMNS * 4 + steps * (2 * COLUMNS + products + of_edits)) as u64
    }

    /// What the shaders bind packed.
    pub(crate) fn packed(&self, problem: &Problem) -> Vec<Packed> {
        let of_passes = self.passes().into_iter().flat_map(|pass| pass.bindings());
        let of_rows = [Role::GradOutput, Role::Output];
        let mut roles: Vec<Role> = of_passes.map(|(_, role, _)| role).chain(of_rows).collect();
        roles.sort_unstable();
        roles.dedup();
        roles.into_iter().map(|role| pieces::packed(problem, role, None)).collect()
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self, pass: &Pass) -> String {
        let (boxes, tiles, tile) = match pass.side {
            Side::Queries => (&self.of_queries, ["QUERY_TILE", "KEY_TILE"], self.of_queries.key_tile),
            Side::Keys => (&self.of_keys, ["KEY_TILE", "QUERY_TILE"], self.of_keys.query_tile),
        };
        let mut text = boxes.constants();
        let _ = write!(
            text,
            "const ROW_TILE: vec3<i32> = {};\nconst COLUMN_TILE: vec3<i32> = {};\nconst IS_WHOLE = {};\n",
            tiles[0],
            tiles[1],
            tile.iter().product::<usize>() == COLUMNS
        );
        for (name, value) in [
            ("SUBGROUP", self.matrices.lanes as usize),
            ("LANES", self.matrices.lanes_each()),
            ("KEY_CELLS", self.dims / 4),
            ("VALUE_CELLS", self.dims_v / 4),
            ("KEY_STRIDE", self.key_stride()),
            ("VALUE_STRIDE", self.value_stride()),
            ("VALUES", COLUMNS * self.key_stride()),
            ("TILE_CELLS", self.tile_cells()),
            ("SCORE_STRIDE", SCORE_STRIDE),
            ("SCORE_CELLS", self.score_cells(pass)),
            ("GRADS_AT", self.score_cells(pass) - ROWS * SCORE_STRIDE),
            ("WEIGHT_STRIDE", SCORE_STRIDE),
            ("WEIGHT_CELLS", weight_cells(pass)),
            ("GRAD_WEIGHTS", weight_cells(pass) - ROWS * SCORE_STRIDE),
            ("EDGE", self.matrices.edge as usize),
        ] {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        text
    }

    /// The template's statements, for packed tensors bound from number `first` on.
    pub(crate) fn fill(&self, pass: &Pass, has_program: bool, first: usize) -> Fill {
        let matrices = &self.matrices;
        let mut bindings = String::new();
        for (number, (name, _, is_written)) in (first..).zip(pass.bindings()) {
            let (access, ty) = if is_written { ("read_write", "vec2<u32>") } else { ("read", "vec4<f16>") };
            let _ = writeln!(
                bindings,
                "@group(0) @binding({number}) var<storage, {access}> {name}: array<{ty}>;"
            );
        }
        let of = |is: bool, text: String| if is { text } else { String::new() };
        let [to_first, to_second] = pass.to;
        let base = if self.is_apart { "GRADS_AT + " } else { "" };
        let fill = Fill::default()
            .flag("LOOPS", !matrices.is_native)
            .flag("OF_KEYS", pass.side == Side::Keys)
            .flag("PROGRAM", has_program)
            .flag("TO_FIRST", to_first)
            .flag("TO_SECOND", to_second)
            // Without gradients of weights there is nothing to be kept apart.
            .flag("APART", self.is_apart || !to_first)
            .value("THREADS", matrices.threads())
            .value("BINDINGS", bindings)
            .value("MATRICES", of(!matrices.is_native, loops(pass)))
            .value("LOAD_ROWS", self.load_rows(pass))
            .value("DECLARE_SUMS", self.of_sums(pass, |sums, dims, _| matrices.declare_all(sums, dims)))
            .value(
                "MULTIPLY_FIRST",
                matrices.multiply_rows("s", "a", self.dims, ["", "KEY_STRIDE"], "scores")
                    + &matrices.store_scores("s", ""),
            )
            .value(
                "MULTIPLY_SECOND",
                matrices.multiply_rows("g", "b", self.dims_v, ["VALUES + ", "VALUE_STRIDE"], "grads")
                    + &matrices.store_scores("g", base),
            )
            .value("ADD", self.add(pass))
            .value("EDITS", self.functions(pass))
            .value("EDIT_SUMS", self.edit_sums(pass))
            .value("WRITE", self.write(pass));
        self.fill_copies(pass, self.fill_factors(pass, has_program, fill))
    }

    /// Text for the sums that a pass has: their prefix, their elements, and `first` or `second`.
    fn of_sums(&self, pass: &Pass, of: impl Fn(&str, usize, &str) -> String) -> String {
        let sums = [("of_first", self.dims, "first"), ("of_second", self.dims_v, "second")];
        let wanted = sums.into_iter().zip(pass.to).filter(|(_, is_wanted)| *is_wanted);
        wanted.map(|((sums, dims, name), _)| of(sums, dims, name)).collect()
    }

    /// The rows' matrices, by way of the tiles.
    fn load_rows(&self, pass: &Pass) -> String {
        let mut text = String::new();
        for (rows, dims, name, cells, stride) in [
            ("a", self.dims, "first_rows", "KEY_CELLS", "KEY_STRIDE"),
            ("b", self.dims_v, "second_rows", "VALUE_CELLS", "VALUE_STRIDE"),
        ] {
            if name == "second_rows" && !pass.to[0] {
                continue;
            }
            let load = self.matrices.load_rows(rows, dims, "tiles", stride);
            text += &match self.matrices.is_native {
                false => load,
                true => format!(
                    "for (var i = lane; i < 64u * {cells}; i += {}u) {{\n    \
                     tiles[i / {cells} * {stride} + i % {cells}] = \
                     {name}[row_vector[i / {cells}] * {cells} + i % {cells}];\n}}\n\
                     workgroupBarrier();\n{load}workgroupBarrier();\n",
                    self.matrices.threads()
                ),
            };
        }
        text
    }

    /// Adds up gradients.
    fn add(&self, pass: &Pass) -> String {
        self.of_sums(pass, |sums, dims, name| {
            let (weights, tile) = match name {
                "first" => ("GRAD_WEIGHTS + ", ["", "KEY_STRIDE"]),
                _ => ("", ["VALUES + ", "VALUE_STRIDE"]),
            };
            self.matrices.multiply_columns(sums, weights, dims, tile, name)
        })
    }

    /// Functions that scale what a lane has of a row in a part of the sums and add what infinite and NaN values make of
    /// it, and that write it.
    fn functions(&self, pass: &Pass) -> String {
        self.of_sums(pass, |_, dims, name| {
            let fill = Fill::default()
                .value("NAME", name)
                .value("DIMS", dims)
                .value("WEIGHTS", if name == "first" { "GRAD_WEIGHTS" } else { "0u" });
            fill.apply(include_str!("wgsl/matrix_sums.wgsl"))
        })
    }

    fn edit_sums(&self, pass: &Pass) -> String {
        self.of_sums(pass, |sums, dims, name| {
            let shrink = if name == "first" { "shrink" } else { "1.0" };
            self.matrices.parts(sums, dims, |column, count, moves| {
                format!(
                    "{}workgroupBarrier();\n\
                     edit_{name}(walk, step, row, part, {column}u, {count}u, {shrink}, odd, visible);\n\
                     workgroupBarrier();\n{}workgroupBarrier();\n",
                    moves(false),
                    moves(true)
                )
            })
        })
    }

    fn write(&self, pass: &Pass) -> String {
        self.of_sums(pass, |sums, dims, name| {
            let factor = match name {
                "first" => "select(SCALE / unit, 0.0, unit == 0.0)",
                _ => "1.0 / WEIGHT_UNIT",
            };
            self.matrices.parts(sums, dims, |column, count, moves| {
                format!(
                    "{}workgroupBarrier();\n\
                     if (is_row) {{ write_{name}(row, part, {column}u, {count}u, {factor}, vector); }}\n\
                     workgroupBarrier();\n",
                    moves(false)
                )
            })
        })
    }

    /// The way of columns from memory: fetched a step ahead, staged when the step before is done.
    fn fill_copies(&self, pass: &Pass, fill: Fill) -> Fill {
        let (mut declare, mut fetch, mut stage) = (String::new(), String::new(), String::new());
        let threads = self.matrices.threads();
        for (name, base, of_row, stride, count) in [
            ("first", "", "KEY_CELLS", "KEY_STRIDE", self.dims / 4),
            ("second", "VALUES + ", "VALUE_CELLS", "VALUE_STRIDE", self.dims_v / 4),
        ] {
            let cells = COLUMNS * count;
            for j in 0..cells.div_ceil(threads) {
                let ahead = format!("{name}{j}");
                let i = format!("(lane + {}u)", j * threads);
                let guard = match (j + 1) * threads > cells {
                    true => format!("if ({i} < {cells}u) "),
                    false => String::new(),
                };
                let _ = writeln!(declare, "    var {ahead} = vec4<f16>();");
                let _ = writeln!(
                    fetch,
                    "{guard}{{ {ahead} = {name}_columns[column_vector[{i} / {of_row}] * {of_row} + {i} % {of_row}]; }}"
                );
                let _ = writeln!(
                    stage,
                    "{guard}{{\n    \
                     if (!all(abs({ahead}) <= vec4<f16>(f16(LARGEST_HALF)))) {{ atomicStore(&is_odd[0], 1u); }}\n    \
                     tiles[{base}{i} / {of_row} * {stride} + {i} % {of_row}] = {ahead};\n}}"
                );
            }
        }
        if pass.side == Side::Keys {
            declare += "    var ahead_numbers = vec3<f32>();\n";
            fetch += "if (lane < 32u) { ahead_numbers = numbers_of(column_vector[lane]); }\n";
            stage += "if (lane < 32u) {\n    peaks[lane / 4u][lane % 4u] = ahead_numbers.x;\n    \
                      shifts[lane / 4u][lane % 4u] = ahead_numbers.y;\n    \
                      if (ahead_numbers.z == 0.0) { atomicOr(&dead[0], 1u << lane); }\n}\n";
        }
        fill.value("DECLARE_AHEAD", declare).value("FETCH", fetch).value("STAGE", stage)
    }

    /// What a lane does with its cells of a row: every `LANES`-th.
    fn fill_factors(&self, pass: &Pass, has_program: bool, fill: Fill) -> Fill {
        let lanes = self.matrices.lanes_each();
        let cells = COLUMNS / 4 / lanes;
        let to_first = pass.to[0];
        let [mut load, mut load_grads, mut softmax, mut mask] = [(); 4].map(|()| String::new());
        let [mut store_weights, mut store_grads, mut highest] = [(); 3].map(|()| String::new());
        for c in 0..cells {
            let cell = format!("{}u + part", c * lanes);
            let base = if self.is_apart { "GRADS_AT + " } else { "" };
            let _ = writeln!(load, "var x{c} = scores[row * SCORE_STRIDE + {cell}];");
            let _ = writeln!(load_grads, "var g{c} = scores[{base}row * SCORE_STRIDE + {cell}];");
            let (peak, shift) = match pass.side {
                Side::Queries => ("vec4<f32>(numbers.x)".to_owned(), "vec4<f32>(numbers.y)".to_owned()),
                Side::Keys => (format!("peaks[{cell}]"), format!("shifts[{cell}]")),
            };
            let _ = writeln!(softmax, "x{c} = exp(SCALE * x{c} - {peak});");
            if to_first {
                let _ = writeln!(softmax, "g{c} = x{c} * (g{c} + {shift});");
            }
            let bits: Vec<String> = (0..4).map(|e| format!("{}u", 1u32 << (4 * c * lanes + e))).collect();
            let bits = format!("(vec4<u32>(mine) & vec4<u32>({})) != vec4<u32>()", bits.join(", "));
            for name in ["x", "g"].into_iter().take(1 + usize::from(to_first)) {
                let _ = writeln!(mask, "{name}{c} = select(vec4<f32>(), {name}{c}, {bits});");
            }
            let _ = writeln!(
                highest,
                "let size{c} = select(vec4<f32>(), abs(g{c}), abs(g{c}) <= vec4<f32>(-LOWEST));\n\
                 highest = max(highest, max(max(size{c}.x, size{c}.y), max(size{c}.z, size{c}.w)));"
            );
            let _ = writeln!(
                store_weights,
                "x{c} *= WEIGHT_UNIT;\n\
                 if (odd != 0u) {{ x{c} = select(x{c}, max(x{c}, LEAST_HALF), x{c} > vec4<f32>()); }}\n\
                 weights[row * WEIGHT_STRIDE + {cell}] = vec4<f16>(x{c});"
            );
            let _ = writeln!(
                store_grads,
                "g{c} *= by;\n\
                 if (odd != 0u) {{ g{c} = select(g{c}, sign(g{c}) * LEAST_HALF, (g{c} != vec4<f32>()) & (abs(g{c}) < LEAST_HALF)); }}\n\
                 weights[GRAD_WEIGHTS + row * WEIGHT_STRIDE + {cell}] = vec4<f16>(g{c});"
            );
        }
        let mut join = String::new();
        for step in [1, 2].into_iter().filter(|&step| step < lanes) {
            let _ = writeln!(join, "visible &= subgroupShuffleXor(visible, {step}u);");
            let _ = writeln!(highest, "highest = max(highest, subgroupShuffleXor(highest, {step}u));");
        }
        let factors = if has_program { program(pass, cells) + &join } else { softmax };
        fill.value("LOAD_SCORES", load)
            .value("LOAD_GRADS", load_grads)
            .value("FACTORS", factors)
            .value("MASK", mask)
            .value("HIGHEST", highest)
            .value("STORE_WEIGHTS", store_weights)
            .value("STORE_GRADS", store_grads)
    }
}

/// Weights and gradients of scores by the functions of the pair, which stand in one place: drivers write out every call.
fn program(pass: &Pass, cells: usize) -> String {
    let list = |name: &str| (0..cells).map(|c| format!("{name}{c}")).collect::<Vec<_>>().join(", ");
    let grads = if pass.to[0] { list("g") } else { String::new() };
    let (query, key) = match pass.side {
        Side::Queries => {
            ("vector", "cut.residue + DILATION * min(start + offset_in(i32(column), KEY_TILE), walk.end - 1)")
        }
        Side::Keys => ("column_of(walk, step, column)", "coordinates"),
    };
    let mut text = format!(
        "{{\nvar x = array<vec4<f32>, {cells}>({});\nvar g = array<vec4<f32>, {cells}>({grads});\n\
         for (var i = 0u; i < {}u; i++) {{\n    let column = 4u * (i / 4u * LANES + part) + i % 4u;\n    \
         if (((visible >> column) & 1u) == 0u) {{ continue; }}\n    \
         let f = factors_of({query}, {key}, SCALE * x[i / 4u][i % 4u], g[i / 4u][i % 4u]);\n    \
         if (bitcast<u32>(f.x) == ABSENT) {{ visible &= ~(1u << column); }}\n    \
         x[i / 4u][i % 4u] = f.x;\n    g[i / 4u][i % 4u] = f.y;\n}}\n",
        list("x"),
        4 * cells
    );
    for name in ["x", "g"].into_iter().take(1 + usize::from(pass.to[0])) {
        for c in 0..cells {
            let _ = writeln!(text, "{name}{c} = {name}[{c}];");
        }
    }
    text + "}\n"
}

/// Cells of weights, and of gradients of scores.
fn weight_cells(pass: &Pass) -> usize {
    ROWS * SCORE_STRIDE * pass.to.iter().filter(|is_wanted| **is_wanted).count()
}

/// Products as loops, whose rows are read from where they lie.
fn loops(pass: &Pass) -> String {
    let rows = |name, rows: &str, cells: &str, stride: &str| {
        let cell = format!("{rows}[row_vector[at / {stride}] * {cells} + at % {stride}]");
        pieces::loop_of_rows(name, &cell, stride)
    };
    let mut text = pieces::LOOPS.to_owned() + &rows("scores", "first_rows", "KEY_CELLS", "KEY_STRIDE");
    if pass.to[0] {
        text += &rows("grads", "second_rows", "VALUE_CELLS", "VALUE_STRIDE");
        text += &pieces::loop_of_columns("first", "KEY_STRIDE");
    }
    if pass.to[1] {
        text += &pieces::loop_of_columns("second", "VALUE_STRIDE");
    }
    text
}
