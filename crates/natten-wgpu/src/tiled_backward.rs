//! The backward pass of softmax in tiles: boxes of queries against boxes of keys for the gradients of queries, boxes of
//! keys against boxes of queries for those of keys and values. Each side computes the scores again, so nothing has to be
//! added up across workgroups. It fits 16 KiB of workgroup memory.

use std::fmt::Write;

use natten_core::{Op, OpRequest, PlanOptions, Problem};

use crate::boxes::Boxes;
use crate::register_tile::{ROWS_EACH, RegisterTile, UNROLLED, four};
use crate::render::math::Real;
use crate::target::Target;
use crate::template::Fill;
use crate::tiled::{is_softmax, scale_in_bits};

/// The shader.
pub(crate) const TILED_BACKWARD: &str = include_str!("wgsl/tiled_backward.wgsl");

/// How the shaders are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) of_queries: Boxes,
    pub(crate) of_keys: Boxes,
    tile: RegisterTile,
    /// Whether vectors may be read four numbers at a time.
    is_wide: bool,
    heads: usize,
    heads_kv: usize,
}

/// Whose gradients a shader computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Queries,
    Keys,
}

/// Workgroup memory.
fn bytes(tile: &RegisterTile) -> usize {
    let (rows, columns) = (tile.rows, tile.columns());
    16 * tile.cells() + 4 * (3 * rows + 3 * columns + 2 * rows.max(columns)) + 16
}

/// The tiles that there are for vectors of so many elements, the better ones first. Scores, gradients of weights and two
/// sums are in registers at a time, so a thread has four columns.
fn tiles(widest: usize) -> Option<Vec<RegisterTile>> {
    let (column_groups, rows) = match widest {
        ..=64 => (8, [128, 64]),
        65..=128 => (16, [64, 32]),
        129..=256 => (32, [64, 32]),
        _ => return None,
    };
    let of_rows = |rows| [16, 8].map(|chunk| RegisterTile { column_groups, rows, columns_each: 4, chunk });
    Some(rows.into_iter().flat_map(of_rows).filter(|tile| tile.threads() >= tile.columns()).collect())
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
        let is_ours = request.op == Op::Backward
            && real == Real::F32
            && is_softmax(problem)
            && scale_in_bits(problem).is_finite()
            && problem.additional_tokens() == 0;
        if !is_ours {
            return None;
        }
        let fits = |tile: &RegisterTile| {
            tile.threads() <= target.invocations as usize && bytes(tile) <= target.workgroup_bytes as usize
        };
        let mut best: Option<(f64, Self)> = None;
        let widest = problem.head_dim().max(problem.head_dim_v());
        for tile in tiles(widest)?.into_iter().filter(fits) {
            let boxes = Boxes::new(problem, options, tile.rows, tile.columns());
            let (Some(of_queries), Some(of_keys)) =
                (boxes, Boxes::inverse(problem, tile.columns(), tile.rows))
            else {
                continue;
            };
            let shape = Self {
                of_queries,
                of_keys,
                tile,
                is_wide: problem.head_dim().is_multiple_of(4) && problem.head_dim_v().is_multiple_of(4),
                heads: problem.batch() * problem.heads(),
                heads_kv: problem.batch() * problem.heads_kv(),
            };
            let pairs = of_queries.pairs as f64 + of_keys.pairs as f64;
            let of_chunk = if tile.chunk == 16 { 1.0 } else { 1.1 };
            let cost = pairs * (tile.rows as f64 + 8.0) * of_chunk;
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, shape));
            }
        }
        let (_, shape) = best?;
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

    /// Whether vectors that lie from these numbers of the arena on may be read four numbers at a time, by a shader that
    /// has no functions of its own that read the arena.
    pub(crate) fn reads_wide(&self, has_program: bool, places: &[u64]) -> bool {
        self.is_wide && !has_program && places.iter().all(|at| at.is_multiple_of(4))
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem, side: Side) -> u64 {
        let steps = match side {
            Side::Queries => self.of_queries.key_boxes_of(problem),
            Side::Keys => self.of_keys.query_boxes_of(problem) * problem.heads_per_kv(),
        };
        let tile = &self.tile;
        let parts = problem.head_dim().div_ceil(tile.chunk) + problem.head_dim_v().div_ceil(tile.chunk);
        let of_product = tile.columns() / tile.vector_columns() * (1 + tile.vector_columns());
        let of_edits = ROWS_EACH * tile.columns_each;
        let of_step = 2 + parts * (1 + tile.chunk / 4) + of_edits + 2 * of_product;
        (2 + steps * of_step) as u64
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self, problem: &Problem, side: Side) -> String {
        let (boxes, tiles) = match side {
            Side::Queries => (&self.of_queries, ["QUERY_TILE", "KEY_TILE"]),
            Side::Keys => (&self.of_keys, ["KEY_TILE", "QUERY_TILE"]),
        };
        let columns = if side == Side::Queries { boxes.key_tile } else { boxes.query_tile };
        let is_whole = columns.iter().product::<usize>() == self.tile.columns();
        let dims =
            [problem.head_dim(), problem.head_dim_v()].map(|dim| dim.next_multiple_of(self.tile.chunk));
        format!(
            "{}{}const ROW_TILE: vec3<i32> = {};\nconst COLUMN_TILE: vec3<i32> = {};\n\
             const IS_WHOLE = {is_whole};\nconst SCALE_IN_BITS: f32 = {:?};\n\
             const DIMS: u32 = {}u;\nconst DIMS_V: u32 = {}u;\n",
            boxes.constants(),
            self.tile.constants(),
            tiles[0],
            tiles[1],
            scale_in_bits(problem),
            dims[0],
            dims[1],
        )
    }

    /// The template's statements for one side. `to` says where the gradients go: of the vectors that are multiplied to
    /// scores, and of values, by the names of their regions.
    pub(crate) fn fill(
        &self,
        problem: &Problem,
        side: Side,
        [has_program, is_wide]: [bool; 2],
        to: [Option<&str>; 2],
    ) -> Fill {
        let (tile, of_keys) = (&self.tile, side == Side::Keys);
        let [rows, columns] = if of_keys { [["K", "V"], ["Q", "DO"]] } else { [["Q", "DO"], ["K", "V"]] };
        let dims = [("DIM", problem.head_dim()), ("DIM_V", problem.head_dim_v())];
        let parts = [0, 1].map(|n| {
            let (name, dim) = dims[n];
            let of = |base: &str, table: &str, vector: &str, d: &str| {
                let at = format!("{base} + {table}{vector}] * {name}");
                four(dim.is_multiple_of(tile.chunk), &at, &format!("part + {d}"), name)
            };
            tile.parts(
                |row, d| of(rows[n], "row_vector[", row, d),
                |column, d| of(columns[n], "column_vector[others + ", column, d),
            )
        });
        let vectors = [0, 1].map(|n| {
            let (name, dim) = dims[n];
            tile.vectors(|column, d| {
                let at = format!(
                    "{} + column_vector[others + chunk * VECTOR_COLUMNS + {column}] * {name}",
                    columns[n]
                );
                four(dim == 4 * tile.quarters(), &at, d, name)
            })
        });
        let (mut declare, mut write) = (String::new(), String::new());
        let mut fill = Fill::default()
            .flag("OF_KEYS", of_keys)
            .flag("PROGRAM", has_program)
            .flag("WIDE", is_wide)
            .flag("TO_FIRST", to[0].is_some())
            .flag("TO_SECOND", to[1].is_some())
            .value("THREADS", tile.threads())
            .value("STAGED_CELLS", tile.cells())
            .value("QUERY_COUNT", if of_keys { tile.columns() } else { tile.rows })
            .value("UNROLLED", UNROLLED)
            .value("DECLARE_AHEAD", format!("{}{}", parts[0].declare, vectors[0].declare))
            .value("STAGE_PART", &parts[0].stage)
            .value("STAGE_VECTORS", &vectors[0].stage)
            .value("FETCH_SCORES", &parts[0].fetch)
            .value("FETCH_GRADS", &parts[1].fetch)
            .value("FETCH_FIRST", &vectors[0].fetch)
            .value("FETCH_SECOND", &vectors[1].fetch)
            .value("DECLARE_SCORES", tile.declare("s") + &tile.declare("g"))
            .value("MULTIPLY_SCORES", tile.multiply("s"))
            .value("MULTIPLY_GRADS", tile.multiply("g"))
            .value("FACTORS", if has_program { self.program(side) } else { self.softmax(side) })
            // What a program leaves out is not known beforehand.
            .value("IS_PLAIN", if has_program { "false" } else { "is_full && atomicLoad(&has_dead) == 0u" })
            .value("STORE_WEIGHTS", tile.transfer("s", false))
            .value("STORE_GRADS", tile.transfer("g", false));
        let names = [["MULTIPLY_FIRST", "MULTIPLY_ODD_FIRST"], ["MULTIPLY_SECOND", "MULTIPLY_ODD_SECOND"]];
        for (number, names) in names.into_iter().enumerate() {
            let Some(region) = to[number] else { continue };
            let (name, dim) = dims[number];
            let (sum, halves) = (["a", "b"][number], tile.halves(dim));
            fill = fill.value(names[0], tile.add(sum, halves)).value(names[1], tile.add_present(sum, halves));
            declare += &tile.declare_sums(sum, halves);
            let scale = ["SCALE", "1.0"][number];
            write += &tile.write(sum, halves, [region, name], |_| scale.to_owned());
        }
        fill.value("DECLARE_OUTPUT", declare).value("WRITE_OUTPUT", write)
    }

    /// Weights and gradients of scores of softmax.
    fn softmax(&self, side: Side) -> String {
        let tile = &self.tile;
        let (count, step, group, each) = match side {
            Side::Queries => (ROWS_EACH, tile.row_groups(), "row_group", "r"),
            Side::Keys => (tile.columns_each, tile.column_groups, "column_group", "c"),
        };
        let mut text = String::new();
        for n in 0..count {
            let _ = writeln!(text, "let peak_{each}{n} = peak[{group} + {}u];", n * step);
            let _ = writeln!(text, "let shift_{each}{n} = shift[{group} + {}u];", n * step);
        }
        text += &tile.each(|r, c| {
            let n = if side == Side::Queries { r } else { c };
            format!(
                "s{r}_{c} = exp2(SCALE_IN_BITS * s{r}_{c} - peak_{each}{n});\n\
                 g{r}_{c} = s{r}_{c} * (g{r}_{c} + shift_{each}{n});\n"
            )
        });
        text += "if (!is_plain) {\n";
        text += &tile.mask(
            |column| format!("column_place[column_group + {column}u]"),
            |r, c| {
                let of = |name: &str| {
                    format!("{name}{r}_{c} = select(absent(), present({name}{r}_{c}), sees{r}_{c});\n")
                };
                of("s") + &of("g")
            },
        );
        text + "}\n"
    }

    /// Weights and gradients of scores by the functions of the pair, which stand in one place: drivers write out every
    /// call.
    fn program(&self, side: Side) -> String {
        let tile = &self.tile;
        let count = ROWS_EACH * tile.columns_each;
        let list = |name: &str| {
            let all = (0..ROWS_EACH).flat_map(|r| (0..tile.columns_each).map(move |c| (r, c)));
            all.map(|(r, c)| format!("{name}{r}_{c}")).collect::<Vec<_>>().join(", ")
        };
        let (query, key) = match side {
            Side::Queries => {
                ("row_vector[row]", "min(start + offset_in(i32(column), KEY_TILE), walk.end - 1)")
            }
            Side::Keys => (
                "column_vector[others + column]",
                "min(walk.cut.first + offset_in(i32(row), KEY_TILE), walk.cut.last)",
            ),
        };
        let text = format!(
            "{{\nvar s = array<f32, {count}>({});\nvar g = array<f32, {count}>({});\n\
             for (var i = 0u; i < {count}u; i++) {{\n    \
             let row = i / {each}u * ROW_GROUPS + row_group;\n    \
             let column = i % {each}u * COLUMN_GROUPS + column_group;\n    \
             var f = vec2<f32>(absent());\n    \
             if (is_between(column_place[column], row_low[row], row_high[row])) {{\n        \
             f = factors_of({query}, walk.cut.residue + DILATION * {key}, SCALE * s[i], g[i]);\n    }}\n    \
             s[i] = f.x;\n    g[i] = f.y;\n}}\n",
            list("s"),
            list("g"),
            each = tile.columns_each,
        );
        text + &tile.each(|r, c| {
            let i = r * tile.columns_each + c;
            format!("s{r}_{c} = s[{i}];\ng{r}_{c} = g[{i}];\n")
        }) + "}\n"
    }
}
