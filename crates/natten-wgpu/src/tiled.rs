//! The forward pass of softmax in tiles: boxes of 64 queries against boxes of 32 keys in workgroup memory, sums in
//! registers. It needs neither subgroups nor more than 16 KiB of workgroup memory, so browsers can run it; a device with
//! more memory keeps the box's queries there.

use std::fmt::Write;

use natten_core::geometry::{Axis, Neighborhood, Tiles};
use natten_core::program::{Binary, Node, Program, Reduce, Unary, Var};
use natten_core::{Op, OpRequest, PlanOptions, Problem, padded_tile};

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
    pub(crate) query_tile: [usize; 3],
    pub(crate) key_tile: [usize; 3],
    /// Threads that share a row.
    column_groups: usize,
    /// Head dims in workgroup memory at a time, of keys, and of queries where they do not stay there.
    chunk: usize,
    is_resident: bool,
    /// Head dims, padded to chunks.
    dims: usize,
    additional_tiles: usize,
    /// Boxes, over all residue groups, those counted that a shorter group does not have.
    pieces: [usize; 3],
    boxes: usize,
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
        let is_softmax = request.op == Op::Forward && is_softmax(problem.program());
        if real != Real::F32 || !is_softmax || threads > target.invocations || problem.batch() == 0 {
            return None;
        }
        let (query_tile, key_tile) = tiles(problem, options)?;
        // Tables of rows and keys, weights, a part of keys or values.
        let fixed = 64 * (4 + 16 + 16 + 4) + 32 * (4 + 16) + 512 * 16 + 128 * 16 + 16;
        let dims = problem.head_dim().next_multiple_of(16);
        let is_resident = fixed + dims * 256 <= target.workgroup_bytes as usize;
        let chunk = if is_resident { 16 } else { 4 };
        let dims = problem.head_dim().next_multiple_of(chunk);
        if !is_resident && fixed + chunk * 256 > target.workgroup_bytes as usize {
            return None;
        }
        let axes = problem.neighborhood().axes();
        let pieces = std::array::from_fn(|a| axes[a].query_group_len(0).div_ceil(query_tile[a]));
        let boxes = (0..3).map(|a| pieces[a] * axes[a].dilation()).product();
        let heads = problem.batch() * problem.heads();
        let most = target.workgroups as usize;
        (boxes <= most && heads <= most).then_some(Self {
            query_tile,
            key_tile,
            column_groups,
            chunk,
            is_resident,
            dims,
            additional_tiles: problem.additional_tokens().div_ceil(KEYS),
            pieces,
            boxes,
            heads,
        })
    }

    pub(crate) const fn workgroups(&self) -> [u32; 3] {
        [self.boxes as u32, self.heads as u32, 1]
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let axes = problem.neighborhood().axes();
        let of_axis = |a: usize| {
            let span = (axes[a].window_len() + self.query_tile[a]).min(axes[a].key_group_len(0));
            span.div_ceil(self.key_tile[a])
        };
        let tiles = (0..3).map(of_axis).product::<usize>() + self.additional_tiles;
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
        let vector = |[x, y, z]: [usize; 3]| format!("vec3<i32>({x}, {y}, {z})");
        let value_quarters = 2 * self.column_groups;
        format!(
            "const QUERY_TILE: vec3<i32> = {};\nconst KEY_TILE: vec3<i32> = {};\nconst PIECES: vec3<i32> = {};\n\
             const COLUMN_GROUPS: u32 = {}u;\nconst DIMS: u32 = {}u;\nconst CHUNK: u32 = {}u;\n\
             const ADDITIONAL_TILES: i32 = {};\nconst VALUE_QUARTERS: u32 = {value_quarters}u;\n\
             const VALUE_KEYS: u32 = {}u;\n",
            vector(self.query_tile),
            vector(self.key_tile),
            vector(self.pieces),
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
fn is_softmax(program: &Program) -> bool {
    let node = |expr| program.graph().node(expr);
    let row = program.row();
    let [stage] = &row.stages[..] else { return false };
    let is_exponential = match node(row.weight) {
        Node::Unary(Unary::Exp, inner) => match node(*inner) {
            Node::Binary(Binary::Sub, a, b) => *a == stage.value && *node(*b) == Node::Var(Var::Stage(0)),
            _ => false,
        },
        _ => false,
    };
    is_exponential
        && stage.reduce == Reduce::Lse
        && *node(stage.value) == Node::Var(Var::X)
        && program.post().is_none()
        && program.decay().is_none()
}

/// The boxes: those that the caller asks for, where they are small enough, or else those that visit the fewest pairs.
fn tiles(problem: &Problem, options: &PlanOptions) -> Option<([usize; 3], [usize; 3])> {
    let neighborhood = problem.neighborhood();
    let asked = |name, tile: &Option<Vec<usize>>| -> Option<[usize; 3]> {
        tile.as_ref().and_then(|tile| padded_tile(name, tile, problem).ok())
    };
    let of = |asked: Option<[usize; 3]>, volume: usize, len: fn(&Axis, usize) -> usize| match asked {
        Some(tile) => (tile.iter().product::<usize>() <= volume).then(|| vec![tile]),
        None => Some(candidates(neighborhood, volume, len)),
    };
    let queries = of(asked("query_tile", &options.query_tile), ROWS, Axis::query_group_len)?;
    let keys = of(asked("key_tile", &options.key_tile), KEYS, Axis::key_group_len)?;
    // What a box costs whether it is full or not: its number of cells.
    let cost = |query: [usize; 3], key: [usize; 3]| {
        let tiles = Tiles::new(neighborhood, query, key);
        let coverage = tiles.coverage();
        let size = |tile: [usize; 3]| tile.iter().product::<usize>() as f64;
        let filled = size(tiles.query_tile()) * size(tiles.key_tile()) / (ROWS * KEYS) as f64;
        coverage.visited as f64 / filled
    };
    let pairs = queries.iter().flat_map(|&query| keys.iter().map(move |&key| (query, key)));
    let (query, key) = pairs.min_by(|a, b| cost(a.0, a.1).total_cmp(&cost(b.0, b.1)))?;
    // As the walk cuts them, at axes that are shorter.
    let tiles = Tiles::new(neighborhood, query, key);
    Some((tiles.query_tile(), tiles.key_tile()))
}

/// Boxes of powers of two of a volume, no longer along an axis than it needs.
fn candidates(neighborhood: &Neighborhood, volume: usize, len: fn(&Axis, usize) -> usize) -> Vec<[usize; 3]> {
    let most = neighborhood.axes().each_ref().map(|axis| len(axis, 0).next_power_of_two());
    let powers = |most: usize| (0..=volume.ilog2()).map(|n| 1 << n).filter(move |&n: &usize| n <= most);
    let mut all = Vec::new();
    for x in powers(most[0]) {
        for y in powers(most[1]) {
            for z in powers(most[2]) {
                if x * y * z <= volume {
                    all.push([x, y, z]);
                }
            }
        }
    }
    // The largest that there are: smaller ones leave threads idle.
    let largest = all.iter().map(|tile| tile.iter().product::<usize>()).max().unwrap_or(1);
    all.retain(|tile| tile.iter().product::<usize>() == largest);
    all
}
