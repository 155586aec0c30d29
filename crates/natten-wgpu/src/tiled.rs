//! The forward pass of softmax in tiles: boxes of 64 queries against boxes of 32 keys in workgroup memory, sums in
//! registers. It needs neither subgroups nor more than 16 KiB of workgroup memory, so browsers can run it; a device with
//! more memory keeps the box's queries there.

use std::fmt::Write;

use natten_core::{Op, OpRequest, PlanOptions, Problem};

use crate::boxes::Boxes;
use crate::render::math::Real;
use crate::target::Target;
use crate::template::Fill;

/// The shader.
pub(crate) const TILED: &str = include_str!("wgsl/tiled.wgsl");

/// Rows of a box of queries.
const ROWS: usize = 64;

/// Cells of four queries that an element of all of them takes, one of them to begin in another bank.
const QUERY_STRIDE: usize = ROWS / 4 + 1;

/// How the shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) boxes: Boxes,
    /// Keys of a box.
    keys: usize,
    /// Threads that share a row.
    column_groups: usize,
    /// Head dims in workgroup memory at a time, of keys, and of queries where they do not stay there.
    chunk: usize,
    is_resident: bool,
    /// Whether vectors may be read four numbers at a time.
    is_wide: bool,
    /// Lanes of a subgroup, where those that share a row work its softmax out among them.
    subgroup: Option<usize>,
    /// Head dims, padded to chunks.
    dims: usize,
    additional_tiles: usize,
    heads: usize,
}

impl Shape {
    /// The shape for an operation, where this family does it, with subgroups or without.
    pub(crate) fn of(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
        real: Real,
        with_subgroups: bool,
    ) -> Option<Self> {
        let widest = problem.head_dim_v();
        let column_groups = match widest {
            ..=64 => 8,
            65..=128 => 16,
            129..=256 => 32,
            _ => return None,
        };
        let threads = 8 * column_groups as u32;
        let is_ours = request.op == Op::Forward && is_softmax(problem);
        if real != Real::F32 || !is_ours || threads > target.invocations || problem.batch() == 0 {
            return None;
        }
        let subgroup = match with_subgroups {
            true => {
                let lanes = target.subgroup.filter(|lanes| lanes.is_multiple_of(column_groups as u32))?;
                Some(lanes as usize).filter(|&lanes| (threads as usize).is_multiple_of(lanes))
            }
            false => None,
        };
        if with_subgroups && subgroup.is_none() {
            return None;
        }
        let dims = problem.head_dim();
        // Four scores to a thread and row are worth more than queries that stay.
        let cuts = [(64, 16, false), (32, 16, true), (32, 16, false), (32, 4, false)];
        let (keys, chunk, is_resident) = cuts.into_iter().find(|&(keys, chunk, is_resident)| {
            (keys == 32 || column_groups > 8)
                && bytes(keys, chunk, if is_resident { dims.next_multiple_of(chunk) } else { chunk })
                    <= target.workgroup_bytes as usize
        })?;
        let heads = problem.batch() * problem.heads();
        let most = target.workgroups as usize;
        let shape = Self {
            boxes: Boxes::new(problem, options, ROWS, keys)?,
            keys,
            column_groups,
            chunk,
            is_resident,
            is_wide: problem.head_dim().is_multiple_of(4) && problem.head_dim_v().is_multiple_of(4),
            subgroup,
            dims: dims.next_multiple_of(chunk),
            additional_tiles: problem.additional_tokens().div_ceil(keys),
            heads,
        };
        (shape.boxes.query_boxes() <= most && heads <= most).then_some(shape)
    }

    /// Whether it uses subgroups.
    pub(crate) const fn has_subgroups(&self) -> bool {
        self.subgroup.is_some()
    }

    /// Whether vectors that lie from these numbers of the arena on may be read four numbers at a time, by a shader that
    /// has no functions of its own that read the arena.
    pub(crate) fn reads_wide(&self, has_program: bool, places: &[u64]) -> bool {
        self.is_wide && !has_program && places.iter().all(|at| at.is_multiple_of(4))
    }

    pub(crate) fn workgroups(&self) -> [u32; 3] {
        [self.boxes.query_boxes() as u32, self.heads as u32, 1]
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let tiles = self.boxes.key_boxes_of(problem) + self.additional_tiles;
        let threads = 8 * self.column_groups;
        let loads = ((ROWS + self.keys) / 4 * self.chunk).div_ceil(threads);
        let of_scores = self.dims / self.chunk * (1 + loads + self.chunk);
        // Loading a part, and its keys.
        let value_keys = self.value_keys();
        let of_values = self.keys / value_keys * (1 + (4 * self.keys).div_ceil(threads) + value_keys);
        let once = 16 * self.dims / threads;
        (once + tiles * (1 + of_scores + 5 * 16 * self.keys / threads + 2 * self.keys + of_values)) as u64
    }

    /// Keys whose values are in workgroup memory at a time.
    const fn value_keys(&self) -> usize {
        2 * self.keys / self.column_groups
    }

    /// Cells of four keys that an element of all of them takes, one of them to begin in another bank.
    const fn key_stride(&self) -> usize {
        self.keys / 4 + 1
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self) -> String {
        let value_quarters = 2 * self.column_groups;
        format!(
            "{}const COLUMN_GROUPS: u32 = {}u;\nconst DIMS: u32 = {}u;\nconst CHUNK: u32 = {}u;\n\
             const ADDITIONAL_TILES: i32 = {};\nconst VALUE_QUARTERS: u32 = {value_quarters}u;\n\
             const VALUE_KEYS: u32 = {}u;\nconst TILE_KEYS: u32 = {}u;\nconst SUBGROUP: u32 = {}u;\n",
            self.boxes.constants(),
            self.column_groups,
            self.dims,
            self.chunk,
            self.additional_tiles,
            self.value_keys(),
            self.keys,
            self.subgroup.unwrap_or(1),
        )
    }

    /// The template's statements. `has_program` says that scores go through functions of the pair.
    pub(crate) fn fill(&self, problem: &Problem, has_program: bool, is_wide: bool) -> Fill {
        let columns = self.keys / self.column_groups;
        let of_row = |r: usize| ["x", "y", "z", "w"][r % 4];
        let mut declare_scores = String::new();
        let mut multiply_scores = format!("let q = d_of_queries * {QUERY_STRIDE}u + row_group * 2u;\n");
        multiply_scores =
            multiply_scores.replace("d_of_queries", if self.is_resident { "(part + d)" } else { "d" });
        multiply_scores += "let q0 = queries[q];\nlet q1 = queries[q + 1u];\n";
        let stride = self.key_stride();
        let (ty, keys) = match columns {
            4 => ("vec4<f32>", format!("let k = others[d * {stride}u + column_group];\n")),
            2 => (
                "vec2<f32>",
                format!(
                    "let k4 = others[d * {stride}u + column_group / 2u];\n\
                     let k = select(k4.xy, k4.zw, (column_group & 1u) == 1u);\n"
                ),
            ),
            _ => ("f32", format!("let k = others[d * {stride}u + column_group / 4u][column_group % 4u];\n")),
        };
        multiply_scores += &keys;
        let halves = 1 + usize::from(problem.head_dim_v() > 4 * self.column_groups);
        let places = ["4u * column_group", "4u * (COLUMN_GROUPS + column_group)"];
        let (mut declare_output, mut shrink, mut write) = (String::new(), String::new(), String::new());
        let mut multiply_values = "let p0 = weights[(part + key) * 16u + row_group * 2u];\n\
                                   let p1 = weights[(part + key) * 16u + row_group * 2u + 1u];\n\
                                   let v0 = others[key * VALUE_QUARTERS + column_group];\n"
            .to_owned();
        if halves == 2 {
            multiply_values += "let v1 = others[key * VALUE_QUARTERS + COLUMN_GROUPS + column_group];\n";
        }
        let mut multiply_odd = multiply_values.clone();
        for r in 0..8 {
            let (four, lane, row) = (r / 4, of_row(r), format!("row_group * 8u + {r}u"));
            let _ = writeln!(declare_scores, "        var s{r} = {ty}();");
            let _ = writeln!(multiply_scores, "s{r} += q{four}.{lane} * k;");
            let _ = writeln!(
                write,
                "    if (row_vector[{row}] != 0xffffffffu) {{\n        let f = {};",
                if self.subgroup.is_some() { format!("factor{r}") } else { format!("factor[{row}]") }
            );
            let _ = writeln!(write, "        let to = TO_OUT + row_vector[{row}] * DIM_V;");
            let _ = writeln!(multiply_odd, "if (bitcast<u32>(p{four}.{lane}) != ABSENT) {{");
            for (half, place) in places.iter().enumerate().take(halves) {
                let add = format!("o{r}_{half} += p{four}.{lane} * v{half};\n");
                multiply_values += &add;
                multiply_odd += &add;
                let _ = writeln!(declare_output, "    var o{r}_{half} = vec4<f32>();");
                let _ = writeln!(shrink, "        o{r}_{half} *= factor[{row}];");
                for (e, lane) in ["x", "y", "z", "w"].iter().enumerate() {
                    let to = format!("{place} + {e}u");
                    let _ = writeln!(
                        write,
                        "        if ({to} < DIM_V) {{ put(to + {to}, f * o{r}_{half}.{lane}); }}"
                    );
                }
            }
            multiply_odd += "}\n";
            write += "    }\n";
        }
        let score = |r: usize, c: usize| match columns {
            1 => format!("s{r}"),
            _ => format!("s{r}.{}", of_row(c)),
        };
        let (mut store, mut load) = (String::new(), String::new());
        for c in 0..columns {
            for half in 0..2 {
                let cell =
                    format!("weights[(column_group * {columns}u + {c}u) * 16u + row_group * 2u + {half}u]");
                let _ = writeln!(load, "let four{c}_{half} = {cell};");
                for r in 0..4 {
                    let _ = writeln!(load, "{} = four{c}_{half}.{};", score(4 * half + r, c), of_row(r));
                }
                let four: Vec<String> = (0..4).map(|r| score(4 * half + r, c)).collect();
                let _ = writeln!(store, "        {cell} = vec4<f32>({});", four.join(", "));
            }
        }
        Fill::default()
            .flag("RESIDENT", self.is_resident)
            .flag("PROGRAM", has_program)
            .flag("WIDE", is_wide)
            .flag("SUBGROUPS", self.subgroup.is_some())
            .value("THREADS", 8 * self.column_groups)
            .value("QUERY_CELLS", QUERY_STRIDE * if self.is_resident { self.dims } else { self.chunk })
            .value("OTHER_CELLS", other_cells(self.keys, self.chunk))
            .value("LOAD_ALL_QUERIES", self.load("queries", "0u", self.dims))
            .value("LOAD_QUERIES", self.load("queries", "part", self.chunk))
            .value("LOAD_KEYS", self.load("others", "part", self.chunk))
            .value("LOAD_SCORES", load)
            .value(
                "DECLARE_PEAKS",
                (0..8).map(|r| format!("var peak{r} = LOWEST;\nvar total{r} = 0.0;\n")).collect::<String>(),
            )
            .value("SOFTMAX", self.softmax(columns, halves, ty))
            .value("FINISH_ROWS", self.finish_rows())
            .value("WRITE_LOGSUMEXPS", write_logsumexps())
            .value("DECLARE_SCORES", declare_scores)
            .value("MULTIPLY_SCORES", multiply_scores)
            .value("STORE_SCORES", store)
            // Functions of the pair stand in one place: drivers write out every call.
            .value("IS_EDITED", if has_program { "true" } else { "!is_full" })
            .value("DECLARE_OUTPUT", declare_output)
            .value("SHRINK_OUTPUT", shrink)
            .value("MULTIPLY_VALUES", multiply_values)
            .value("MULTIPLY_ODD_VALUES", multiply_odd)
            .value("WRITE_OUTPUT", write)
    }

    /// Loads elements of queries or keys, from `first` on, four of a vector at a time, to where they lie by element.
    fn load(&self, array: &str, first: &str, count: usize) -> String {
        let (vectors, at, stride, scale) = match array {
            "queries" => (ROWS, "Q + row_vector[v] * DIM", QUERY_STRIDE, "SCALE * "),
            _ => (self.keys, "K + key_vector[v] * DIM", self.key_stride(), ""),
        };
        let quarters = count / 4;
        let mut text = format!(
            "for (var i = lane; i < {}u; i += {}u) {{\n    let v = i / {quarters}u;\n    let d = i % {quarters}u * 4u;\n    \
             let four = {scale}four_of({at}, {first} + d, DIM);\n",
            vectors * quarters,
            8 * self.column_groups
        );
        for e in 0..4 {
            let _ = writeln!(text, "    {array}[(d + {e}u) * {stride}u + v / 4u][v % 4u] = four[{e}];");
        }
        text + "}\n"
    }

    /// The softmax of a thread's rows, whose other scores the next lanes have: weights in place of scores, and the output
    /// as small as the new peak makes it.
    fn softmax(&self, columns: usize, halves: usize, ty: &str) -> String {
        let mut text = String::new();
        for r in 0..8 {
            let (highest, sum) = match columns {
                4 => (
                    format!("max(max(s{r}.x, s{r}.y), max(s{r}.z, s{r}.w))"),
                    format!("(s{r}.x + s{r}.y) + (s{r}.z + s{r}.w)"),
                ),
                2 => (format!("max(s{r}.x, s{r}.y)"), format!("s{r}.x + s{r}.y")),
                _ => (format!("s{r}"), format!("s{r}")),
            };
            let _ = writeln!(text, "var highest{r} = max(peak{r}, {highest});");
            for step in (0..self.column_groups.ilog2()).map(|n| 1 << n) {
                let _ =
                    writeln!(text, "highest{r} = max(highest{r}, subgroupShuffleXor(highest{r}, {step}u));");
            }
            let _ = writeln!(
                text,
                "let shrink{r} = exp(peak{r} - highest{r});\npeak{r} = highest{r};\n\
                 s{r} = select(exp(s{r} - highest{r}), {ty}(bitcast<f32>(ABSENT | zero)), s{r} == {ty}(LOWEST));\n\
                 total{r} = total{r} * shrink{r} + ({sum});"
            );
            for half in 0..halves {
                let _ = writeln!(text, "o{r}_{half} *= shrink{r};");
            }
        }
        text
    }

    /// The sums of a thread's rows, from those of the lanes that share them, and what the output is multiplied with.
    fn finish_rows(&self) -> String {
        let mut text = String::new();
        for r in 0..8 {
            for step in (0..self.column_groups.ilog2()).map(|n| 1 << n) {
                let _ = writeln!(text, "total{r} += subgroupShuffleXor(total{r}, {step}u);");
            }
            let _ = writeln!(text, "let factor{r} = select(1.0 / total{r}, 0.0, total{r} == 0.0);");
        }
        text
    }
}

/// Writes the logsumexps of a thread's rows.
fn write_logsumexps() -> String {
    (0..8)
        .map(|r| {
            let row = format!("row_vector[row_group * 8u + {r}u]");
            format!(
                "if (column_group == 0u && {row} != 0xffffffffu) {{\n    \
                 put(TO_LSE + {row}, select(peak{r} + f_log(total{r}), -inf(), total{r} == 0.0));\n}}\n"
            )
        })
        .collect()
}

/// Cells of a part of the keys, or of the values.
fn other_cells(keys: usize, chunk: usize) -> usize {
    (chunk * (keys / 4 + 1)).max(4 * keys)
}

/// Workgroup memory: tables of rows and keys, weights, parts of keys or values, and so many elements of the queries.
fn bytes(keys: usize, chunk: usize, query_dims: usize) -> usize {
    let tables = ROWS * (4 + 16 + 16 + 4) + keys * (4 + 16) + 16;
    tables + 16 * (16 * keys + other_cells(keys, chunk) + QUERY_STRIDE * query_dims)
}

/// Whether rows are softmax: of any score, under any mask, but nothing is multiplied to the weights.
pub(crate) fn is_softmax(problem: &Problem) -> bool {
    let program = problem.program();
    program.has_softmax_row() && program.post().is_none() && program.decay().is_none()
}
