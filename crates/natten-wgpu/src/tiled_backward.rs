//! The backward pass of softmax in tiles: boxes of 64 queries against boxes of 32 keys for the gradients of queries, boxes
//! of 64 keys against boxes of 32 queries for those of keys and values. Each side computes the scores again, so nothing
//! has to be added up across workgroups. It fits 16 KiB of workgroup memory.

use std::fmt::Write;

use natten_core::{Op, OpRequest, PlanOptions, Problem};

use crate::boxes::Boxes;
use crate::render::math::Real;
use crate::target::Target;
use crate::template::Fill;
use crate::tiled::is_softmax;

/// The shader.
pub(crate) const TILED_BACKWARD: &str =
    concat!(include_str!("wgsl/factors.wgsl"), include_str!("wgsl/tiled_backward.wgsl"));

/// Rows of the side that a workgroup keeps, and columns of a box of the other side.
const ROWS: usize = 64;
const COLUMNS: usize = 32;

/// Head dims in workgroup memory at a time.
const CHUNK: usize = 16;

/// Workgroup memory.
const BYTES: usize = 16 * (16 * CHUNK + 128 + 512) + 4 * (4 * ROWS + COLUMNS + 99 + 2);

/// How the shaders are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) of_queries: Boxes,
    pub(crate) of_keys: Boxes,
    /// Threads that share a row.
    column_groups: usize,
    dims: usize,
    dims_v: usize,
    heads: usize,
    heads_kv: usize,
}

/// Whose gradients a shader computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Queries,
    Keys,
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
        let column_groups = match problem.head_dim().max(problem.head_dim_v()) {
            ..=64 => 8,
            65..=128 => 16,
            129..=256 => 32,
            _ => return None,
        };
        let is_ours = request.op == Op::Backward
            && real == Real::F32
            && is_softmax(problem)
            && problem.additional_tokens() == 0;
        let fits = 8 * column_groups as u32 <= target.invocations && BYTES <= target.workgroup_bytes as usize;
        if !is_ours || !fits {
            return None;
        }
        let shape = Self {
            of_queries: Boxes::new(problem, options, ROWS, COLUMNS)?,
            of_keys: Boxes::inverse(problem, COLUMNS, ROWS)?,
            column_groups,
            dims: problem.head_dim().next_multiple_of(CHUNK),
            dims_v: problem.head_dim_v().next_multiple_of(CHUNK),
            heads: problem.batch() * problem.heads(),
            heads_kv: problem.batch() * problem.heads_kv(),
        };
        let most = target.workgroups as usize;
        let counts = [shape.of_queries.query_boxes(), shape.of_keys.key_boxes(), shape.heads, shape.heads_kv];
        counts.iter().all(|count| (1..=most).contains(count)).then_some(shape)
    }

    pub(crate) fn workgroups(&self, side: Side) -> [u32; 3] {
        match side {
            Side::Queries => [self.of_queries.query_boxes() as u32, self.heads as u32, 1],
            Side::Keys => [self.of_keys.key_boxes() as u32, self.heads_kv as u32, 1],
        }
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem, side: Side) -> u64 {
        let steps = match side {
            Side::Queries => self.of_queries.key_boxes_of(problem),
            Side::Keys => self.of_keys.query_boxes_of(problem) * problem.heads_per_kv(),
        };
        let threads = 8 * self.column_groups;
        let of_chunk = 1 + (24 * CHUNK).div_ceil(threads) + CHUNK;
        let part = 64 / self.column_groups;
        let of_product = COLUMNS / part * (1 + 128usize.div_ceil(threads) + part);
        let of_step = (self.dims + self.dims_v) / CHUNK * of_chunk + 2 * of_product + 2 * COLUMNS;
        (99 * COLUMNS / threads + steps * of_step) as u64
    }

    /// Scores of a row that a thread has.
    const fn columns(&self) -> usize {
        COLUMNS / self.column_groups
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self, side: Side) -> String {
        let (boxes, tiles) = match side {
            Side::Queries => (&self.of_queries, ["QUERY_TILE", "KEY_TILE"]),
            Side::Keys => (&self.of_keys, ["KEY_TILE", "QUERY_TILE"]),
        };
        let quarters = 2 * self.column_groups;
        format!(
            "{}const ROW_TILE: vec3<i32> = {};\nconst COLUMN_TILE: vec3<i32> = {};\n\
             const COLUMN_GROUPS: u32 = {}u;\nconst DIMS: u32 = {}u;\nconst DIMS_V: u32 = {}u;\n\
             const CHUNK: u32 = {CHUNK}u;\nconst QUARTERS: u32 = {quarters}u;\nconst PART: u32 = {}u;\n",
            boxes.constants(),
            tiles[0],
            tiles[1],
            self.column_groups,
            self.dims,
            self.dims_v,
            128 / quarters,
        )
    }

    /// The template's statements for one side. `to` says where the gradients go: of the vectors that are multiplied to
    /// scores, and of values, by the names of their regions.
    pub(crate) fn fill(
        &self,
        problem: &Problem,
        side: Side,
        has_program: bool,
        to: [Option<&str>; 2],
    ) -> Fill {
        let of_keys = side == Side::Keys;
        let [rows, columns] = if of_keys { [["K", "V"], ["Q", "DO"]] } else { [["Q", "DO"], ["K", "V"]] };
        let (mut declare, mut write) = (String::new(), String::new());
        let mut fill = Fill::default()
            .flag("OF_KEYS", of_keys)
            .flag("PROGRAM", has_program)
            .flag("TO_FIRST", to[0].is_some())
            .flag("TO_SECOND", to[1].is_some())
            .value("THREADS", 8 * self.column_groups)
            .value("COLUMNS", self.columns())
            .value("A1", rows[0])
            .value("A2", rows[1])
            .value("B1", columns[0])
            .value("B2", columns[1])
            .value("DECLARE_SCORES", self.declare("s") + &self.declare("g"))
            .value("MULTIPLY_SCORES", self.multiply("s"))
            .value("MULTIPLY_GRADS", self.multiply("g"))
            .value("FACTORS", if has_program { self.program(side) } else { self.softmax(side) })
            .value("STORE_WEIGHTS", self.store("s"))
            .value("STORE_GRADS", self.store("g"));
        let names = [["MULTIPLY_FIRST", "MULTIPLY_ODD_FIRST"], ["MULTIPLY_SECOND", "MULTIPLY_ODD_SECOND"]];
        let dims = [problem.head_dim(), problem.head_dim_v()];
        for (number, (names, dim)) in names.into_iter().zip(dims).enumerate() {
            let Some(region) = to[number] else { continue };
            let halves = 1 + usize::from(dim > 4 * self.column_groups);
            let prefix = ["a", "b"][number];
            fill = fill
                .value(names[0], self.add(prefix, halves, false))
                .value(names[1], self.add(prefix, halves, true));
            for (r, half) in (0..8).flat_map(|r| (0..halves).map(move |half| (r, half))) {
                let _ = writeln!(declare, "    var {prefix}{r}_{half} = vec4<f32>();");
            }
            let (dim, scale) = [("DIM", "SCALE"), ("DIM_V", "1.0")][number];
            write += &self.write(prefix, halves, region, dim, scale);
        }
        fill.value("DECLARE_OUTPUT", declare).value("WRITE_OUTPUT", write)
    }

    /// The type of a row's scores.
    const fn ty(&self) -> &'static str {
        match self.columns() {
            4 => "vec4<f32>",
            2 => "vec2<f32>",
            _ => "f32",
        }
    }

    fn declare(&self, name: &str) -> String {
        (0..8).map(|r| format!("        var {name}{r} = {}();\n", self.ty())).collect()
    }

    /// Adds the products of an element of the vectors.
    fn multiply(&self, name: &str) -> String {
        let mut text =
            "let r0 = rows[d * 16u + row_group * 2u];\nlet r1 = rows[d * 16u + row_group * 2u + 1u];\n"
                .to_owned();
        text += match self.columns() {
            4 => "let c = columns[d * 8u + column_group];\n",
            2 => {
                "let c4 = columns[d * 8u + column_group / 2u];\n\
                 let c = select(c4.xy, c4.zw, (column_group & 1u) == 1u);\n"
            }
            _ => "let c = columns[d * 8u + column_group / 4u][column_group % 4u];\n",
        };
        for r in 0..8 {
            let _ = writeln!(text, "{name}{r} += r{}.{} * c;", r / 4, lane_of(r));
        }
        text
    }

    /// A thread's `column`, or `row`, of a table, for all columns.
    fn of_columns(&self, table: &str) -> String {
        let each: Vec<String> =
            (0..self.columns()).map(|c| format!("{table}[first_column + {c}u]")).collect();
        format!("{}({})", self.ty(), each.join(", "))
    }

    /// Weights and gradients of scores of softmax.
    fn softmax(&self, side: Side) -> String {
        let mut text = String::new();
        if side == Side::Keys {
            let _ = writeln!(text, "let p = {};", self.of_columns("peak"));
            let _ = writeln!(text, "let t = {};", self.of_columns("shift"));
        }
        for r in 0..8 {
            if side == Side::Queries {
                let _ = writeln!(text, "let p{r} = {}(peak[row_group * 8u + {r}u]);", self.ty());
                let _ = writeln!(text, "let t{r} = {}(shift[row_group * 8u + {r}u]);", self.ty());
            }
            let [p, t] = match side {
                Side::Queries => [format!("p{r}"), format!("t{r}")],
                Side::Keys => ["p".to_owned(), "t".to_owned()],
            };
            let _ = writeln!(text, "s{r} = exp(SCALE * s{r} - {p});\ng{r} = s{r} * (g{r} + {t});");
        }
        text += "if (atomicLoad(&has_gaps) != 0u) {\n";
        for r in 0..8 {
            let _ = writeln!(text, "let v{r} = visible[row_group * 8u + {r}u] >> first_column;");
            for c in 0..self.columns() {
                for name in ["s", "g"] {
                    let cell = if self.columns() == 1 {
                        format!("{name}{r}")
                    } else {
                        format!("{name}{r}.{}", lane_of(c))
                    };
                    let _ = writeln!(
                        text,
                        "{cell} = select(absent(), present({cell}), (v{r} & {}u) != 0u);",
                        1 << c
                    );
                }
            }
        }
        text + "}\n"
    }

    /// Weights and gradients of scores by the functions of the pair, which stand in one place: drivers write out every
    /// call.
    fn program(&self, side: Side) -> String {
        let list = |name: &str| (0..8).map(|r| format!("{name}{r}")).collect::<Vec<_>>().join(", ");
        let (ty, columns) = (self.ty(), self.columns());
        let cell = |name: &str| match columns {
            1 => format!("{name}[r]"),
            _ => format!("{name}[r][c]"),
        };
        let (query, key, offset) = match side {
            Side::Queries => ("row_vector[row]", "box_start", "end - 1"),
            Side::Keys => ("column_vector[column]", "cut.first", "cut.last"),
        };
        let of_key = if side == Side::Queries { "column" } else { "row" };
        let mut text = format!(
            "{{\nvar s = array<{ty}, 8>({});\nvar g = array<{ty}, 8>({});\n\
             for (var cell = 0u; cell < {}u; cell++) {{\n    let r = cell / {columns}u;\n    \
             let c = cell % {columns}u;\n    let row = row_group * 8u + r;\n    let column = first_column + c;\n    \
             if (((visible[row] >> column) & 1u) == 0u) {{\n        {} = absent();\n        {} = absent();\n        \
             continue;\n    }}\n    \
             let kc = cut.residue + DILATION * min({key} + offset_in(i32({of_key}), KEY_TILE), {offset});\n    \
             let f = factors_of({query}, kc, SCALE * {}, {});\n    \
             if (bitcast<u32>(f.x) == ABSENT) {{ atomicStore(&has_gaps, 1u); }}\n    {} = f.x;\n    {} = f.y;\n}}\n",
            list("s"),
            list("g"),
            8 * columns,
            cell("s"),
            cell("g"),
            cell("s"),
            cell("g"),
            cell("s"),
            cell("g"),
        );
        for (name, r) in ["s", "g"].into_iter().flat_map(|name| (0..8).map(move |r| (name, r))) {
            let _ = writeln!(text, "{name}{r} = {name}[{r}];");
        }
        text + "}\n"
    }

    /// Stores a thread's factors as `[column][row]`.
    fn store(&self, name: &str) -> String {
        let columns = self.columns();
        let mut text = String::new();
        for (c, half) in (0..columns).flat_map(|c| (0..2).map(move |half| (c, half))) {
            let four: Vec<String> = (4 * half..4 * half + 4)
                .map(
                    |r| if columns == 1 { format!("{name}{r}") } else { format!("{name}{r}.{}", lane_of(c)) },
                )
                .collect();
            let _ = writeln!(
                text,
                "factors[(first_column + {c}u) * 16u + row_group * 2u + {half}u] = vec4<f32>({});",
                four.join(", ")
            );
        }
        text
    }

    /// Adds a column's elements to the gradients of a thread's rows.
    fn add(&self, prefix: &str, halves: usize, is_odd: bool) -> String {
        let mut text = "let f0 = factors[(part + column) * 16u + row_group * 2u];\n\
                        let f1 = factors[(part + column) * 16u + row_group * 2u + 1u];\n\
                        let e0 = columns[column * QUARTERS + column_group];\n"
            .to_owned();
        if halves == 2 {
            text += "let e1 = columns[column * QUARTERS + COLUMN_GROUPS + column_group];\n";
        }
        for r in 0..8 {
            let factor = format!("f{}.{}", r / 4, lane_of(r));
            if is_odd {
                let _ = writeln!(text, "if (bitcast<u32>({factor}) != ABSENT) {{");
            }
            for half in 0..halves {
                let _ = writeln!(text, "{prefix}{r}_{half} += {factor} * e{half};");
            }
            if is_odd {
                text += "}\n";
            }
        }
        text
    }

    fn write(&self, prefix: &str, halves: usize, region: &str, dim: &str, scale: &str) -> String {
        let mut text = String::new();
        for r in 0..8 {
            let _ = writeln!(
                text,
                "    if (row_vector[row_group * 8u + {r}u] != 0xffffffffu) {{\n        \
                 let to = {region} + row_vector[row_group * 8u + {r}u] * {dim};"
            );
            for (half, e) in (0..halves).flat_map(|half| (0..4).map(move |e| (half, e))) {
                let place = format!("4u * ({}u + column_group) + {e}u", half * self.column_groups);
                let _ = writeln!(
                    text,
                    "        if ({place} < {dim}) {{ arena[to + {place}] = {scale} * {prefix}{r}_{half}.{}; }}",
                    lane_of(e)
                );
            }
            text += "    }\n";
        }
        text
    }
}

const fn lane_of(r: usize) -> &'static str {
    ["x", "y", "z", "w"][r % 4]
}
