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

/// Rows of a box of queries, and keys of a box of keys.
const ROWS: usize = 64;
const KEYS: usize = 32;

/// How the shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) boxes: Boxes,
    /// Threads that share a row.
    column_groups: usize,
    /// Head dims in workgroup memory at a time, of keys, and of queries where they do not stay there.
    chunk: usize,
    is_resident: bool,
    /// Head dims, padded to chunks.
    dims: usize,
    additional_tiles: usize,
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
        let widest = problem.head_dim_v();
        let column_groups = match widest {
            ..=64 => 8,
            65..=128 => 16,
            129..=256 => 32,
            _ => return None,
        };
        let threads = 8 * column_groups as u32;
        let is_softmax = request.op == Op::Forward && is_softmax(problem);
        if real != Real::F32 || !is_softmax || threads > target.invocations || problem.batch() == 0 {
            return None;
        }
        let boxes = Boxes::new(problem, options, ROWS, KEYS)?;
        // Tables of rows and keys, weights, a part of keys or values.
        let fixed = 64 * (4 + 16 + 16 + 4) + 32 * (4 + 16) + 512 * 16 + 128 * 16 + 16;
        let dims = problem.head_dim().next_multiple_of(16);
        let is_resident = fixed + dims * 256 <= target.workgroup_bytes as usize;
        let chunk = if is_resident { 16 } else { 4 };
        let dims = problem.head_dim().next_multiple_of(chunk);
        if !is_resident && fixed + chunk * 256 > target.workgroup_bytes as usize {
            return None;
        }
        let heads = problem.batch() * problem.heads();
        let most = target.workgroups as usize;
        (boxes.query_boxes() <= most && heads <= most).then_some(Self {
            boxes,
            column_groups,
            chunk,
            is_resident,
            dims,
            additional_tiles: problem.additional_tokens().div_ceil(KEYS),
            heads,
        })
    }

    pub(crate) fn workgroups(&self) -> [u32; 3] {
        [self.boxes.query_boxes() as u32, self.heads as u32, 1]
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let tiles = self.boxes.key_boxes_of(problem) + self.additional_tiles;
        let threads = 8 * self.column_groups;
        let loads = (24 * self.chunk).div_ceil(threads);
        let of_scores = self.dims / self.chunk * (1 + loads + self.chunk);
        // Loading a part, and its keys.
        let value_keys = 64 / self.column_groups;
        let of_values = KEYS / value_keys * (1 + 128usize.div_ceil(threads) + value_keys);
        let once = 16 * self.dims / threads;
        (once + tiles * (1 + of_scores + 5 * 512 / threads + 2 * KEYS + of_values)) as u64
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self) -> String {
        let value_quarters = 2 * self.column_groups;
        format!(
            "{}const COLUMN_GROUPS: u32 = {}u;\nconst DIMS: u32 = {}u;\nconst CHUNK: u32 = {}u;\n\
             const ADDITIONAL_TILES: i32 = {};\nconst VALUE_QUARTERS: u32 = {value_quarters}u;\n\
             const VALUE_KEYS: u32 = {}u;\n",
            self.boxes.constants(),
            self.column_groups,
            self.dims,
            self.chunk,
            self.additional_tiles,
            128 / value_quarters,
        )
    }

    /// The template's statements. `has_program` says that scores go through functions of the pair.
    pub(crate) fn fill(&self, problem: &Problem, has_program: bool) -> Fill {
        let columns = KEYS / self.column_groups;
        let of_row = |r: usize| ["x", "y", "z", "w"][r % 4];
        let mut declare_scores = String::new();
        let mut multiply_scores = String::from("let q = d_of_queries * 16u + row_group * 2u;\n");
        multiply_scores =
            multiply_scores.replace("d_of_queries", if self.is_resident { "(part + d)" } else { "d" });
        multiply_scores += "let q0 = queries[q];\nlet q1 = queries[q + 1u];\n";
        let (ty, keys) = match columns {
            4 => ("vec4<f32>", "let k = others[d * 8u + column_group];\n".to_owned()),
            2 => (
                "vec2<f32>",
                "let k4 = others[d * 8u + column_group / 2u];\n\
                 let k = select(k4.xy, k4.zw, (column_group & 1u) == 1u);\n"
                    .to_owned(),
            ),
            _ => ("f32", "let k = others[d * 8u + column_group / 4u][column_group % 4u];\n".to_owned()),
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
                "    if (row_vector[{row}] != 0xffffffffu) {{\n        let f = factor[{row}];"
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
                        "        if ({to} < DIM_V) {{ arena[to + {to}] = f * o{r}_{half}.{lane}; }}"
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
        let mut store = String::new();
        for c in 0..columns {
            for half in 0..2 {
                let four: Vec<String> = (0..4).map(|r| score(4 * half + r, c)).collect();
                let _ = writeln!(
                    store,
                    "        weights[(column_group * {columns}u + {c}u) * 16u + row_group * 2u + {half}u] = vec4<f32>({});",
                    four.join(", ")
                );
            }
        }
        Fill::default()
            .flag("RESIDENT", self.is_resident)
            .flag("PROGRAM", has_program)
            .flag("WHOLE_VALUES", problem.head_dim_v() == 8 * self.column_groups)
            .value("THREADS", 8 * self.column_groups)
            .value("QUERY_CELLS", 16 * if self.is_resident { self.dims } else { self.chunk })
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
}

/// Whether rows are softmax: of any score, under any mask, but nothing is multiplied to the weights.
pub(crate) fn is_softmax(problem: &Problem) -> bool {
    let program = problem.program();
    program.has_softmax_row() && program.post().is_none() && program.decay().is_none()
}
