//! The forward pass of softmax in tiles: boxes of queries against boxes of keys, 8 rows by 8 keys of scores and 8 rows by 8
//! elements of the output in a thread's registers. It needs neither subgroups nor more than 16 KiB of workgroup memory, so
//! browsers can run it.

use std::fmt::Write;

use natten_core::{Op, OpRequest, PlanOptions, Problem};

use crate::boxes::Boxes;
use crate::register_tile::{LANES, ROWS_EACH, RegisterTile, UNROLLED, four};
use crate::render::math::Real;
use crate::target::Target;
use crate::template::Fill;

/// The shader.
pub(crate) const TILED: &str = include_str!("wgsl/tiled.wgsl");

/// What it has in common with others.
pub(crate) const REGISTER_TILE: &str = include_str!("wgsl/register_tile.wgsl");

/// How the shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) boxes: Boxes,
    tile: RegisterTile,
    /// Whether vectors may be read four numbers at a time.
    is_wide: bool,
    /// Lanes of a subgroup, where those that share a row work its softmax out among them.
    subgroup: Option<usize>,
    dim: usize,
    dim_v: usize,
    additional_tiles: usize,
    heads: usize,
}

/// Workgroup memory.
fn bytes(tile: &RegisterTile) -> usize {
    16 * tile.cells() + 4 * (3 * tile.rows + 3 * tile.columns()) + 16
}

/// What it costs to visit a pair, about. The wider a thread's tile, the fewer numbers it reads, and the more rows share a
/// key, the fewer times it is fetched; but registers have room for as many threads in two workgroups as in one, of which one
/// multiplies while the other waits.
fn cost(tile: &RegisterTile) -> f64 {
    let of_columns = if tile.columns_each == 8 { 1.0 } else { 1.25 };
    let of_rows = 1.0 + 8.0 / tile.rows as f64;
    let of_threads = if tile.threads() > 128 { 1.15 } else { 1.0 };
    let of_chunk = if tile.chunk == 16 { 1.0 } else { 1.1 };
    of_columns * of_rows * of_threads * of_chunk
}

/// The tiles that there are for values of so many elements.
fn tiles(widest: usize) -> Option<Vec<RegisterTile>> {
    let (column_groups, rows) = match widest {
        ..=64 => (8, [64, 128]),
        65..=128 => (16, [64, 128]),
        129..=256 => (32, [32, 64]),
        _ => return None,
    };
    let mut all = Vec::new();
    for (rows, columns_each) in rows.into_iter().flat_map(|rows| [(rows, 4), (rows, 8)]) {
        all.extend([16, 8].map(|chunk| RegisterTile { column_groups, rows, columns_each, chunk }));
    }
    all.retain(|tile| tile.columns() <= 128);
    Some(all)
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
        let is_ours = request.op == Op::Forward && is_softmax(problem) && scale_in_bits(problem).is_finite();
        if real != Real::F32 || !is_ours || problem.batch() == 0 {
            return None;
        }
        let lanes = target.subgroup.map(|lanes| lanes as usize);
        let fits = |tile: &RegisterTile| {
            let has_subgroups = lanes.is_some_and(|lanes| {
                lanes.is_multiple_of(tile.column_groups) && tile.threads().is_multiple_of(lanes)
            });
            tile.threads() <= target.invocations as usize
                && bytes(tile) <= target.workgroup_bytes as usize
                && (has_subgroups || !with_subgroups)
        };
        let mut best: Option<(f64, RegisterTile, Boxes)> = None;
        for tile in tiles(problem.head_dim_v())?.into_iter().filter(fits) {
            let Some(boxes) = Boxes::new(problem, options, tile.rows, tile.columns()) else { continue };
            // So boxes that the caller asks for go to the smallest tile that holds them.
            let cost = cost(&tile) * boxes.pairs as f64 * (tile.rows * tile.columns()) as f64;
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, tile, boxes));
            }
        }
        let (_, tile, boxes) = best?;
        let heads = problem.batch() * problem.heads();
        let most = target.workgroups as usize;
        let shape = Self {
            boxes,
            tile,
            is_wide: problem.head_dim().is_multiple_of(4) && problem.head_dim_v().is_multiple_of(4),
            subgroup: lanes.filter(|_| with_subgroups),
            dim: problem.head_dim(),
            dim_v: problem.head_dim_v(),
            additional_tiles: problem.additional_tokens().div_ceil(tile.columns()),
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

    /// Elements of queries and keys, padded to chunks.
    fn dims(&self) -> usize {
        self.dim.next_multiple_of(self.tile.chunk)
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let tile = &self.tile;
        let tiles = self.boxes.key_boxes_of(problem) + self.additional_tiles;
        let of_scores = self.dims() / tile.chunk * (1 + tile.chunk / 4);
        let of_edits = tile.columns() / tile.factor_columns()
            + 5 * tile.columns() * 2 * tile.row_groups() / tile.threads();
        let of_values = tile.columns() / tile.vector_columns() * (1 + tile.vector_columns());
        let tables = 1 + tile.columns().div_ceil(tile.threads());
        let of_tile = tables + of_scores + of_edits + tile.column_groups + of_values;
        (2 * tables + tile.column_groups + tiles * of_tile) as u64
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self, problem: &Problem) -> String {
        let tile = &self.tile;
        let is_whole = self.boxes.key_tile.iter().product::<usize>() == tile.columns();
        let mut text = self.boxes.constants() + &tile.constants();
        let _ = writeln!(text, "const IS_WHOLE = {is_whole};");
        let _ = writeln!(text, "const SCALE_IN_BITS: f32 = {:?};", scale_in_bits(problem));
        let _ = writeln!(text, "const ADDITIONAL_TILES: i32 = {};", self.additional_tiles);
        let _ = writeln!(text, "const DIMS: u32 = {}u;", self.dims());
        let _ = writeln!(text, "const SUBGROUP: u32 = {}u;", self.subgroup.unwrap_or(1));
        text
    }

    /// The template's statements. `has_program` says that scores go through functions of the pair.
    pub(crate) fn fill(&self, has_program: bool, is_wide: bool) -> Fill {
        let tile = &self.tile;
        let fill = Fill::default()
            .flag("PROGRAM", has_program)
            .flag("WIDE", is_wide)
            .flag("SUBGROUPS", self.subgroup.is_some())
            .value("THREADS", tile.threads())
            .value("STAGED_CELLS", tile.cells())
            .value("UNROLLED", UNROLLED)
            // Functions of the pair stand in one place: drivers write out every call.
            .value("IS_EDITED", if has_program { "true" } else { "!is_full" });
        let halves = tile.halves(self.dim_v);
        let fill = fill
            .value("DECLARE_OUTPUT", tile.declare_sums("o", halves))
            .value("MULTIPLY_VALUES", tile.add("o", halves))
            .value("MULTIPLY_ODD_VALUES", tile.add_present("o", halves))
            .value("WRITE_OUTPUT", tile.write("o", halves, ["TO_OUT", "DIM_V"], |r| format!("factor{r}")))
            .value("WRITE_LOGSUMEXPS", self.write_logsumexps());
        self.fill_softmax(self.fill_scores(self.fill_copies(fill)))
    }

    /// The way from memory: fetched a part ahead, staged when the part before is done.
    fn fill_copies(&self, fill: Fill) -> Fill {
        let tile = &self.tile;
        let is_whole = self.dim.is_multiple_of(tile.chunk);
        let parts = tile.parts(
            |row, d| four(is_whole, &format!("Q + row_vector[{row}] * DIM"), &format!("part + {d}"), "DIM"),
            |key, d| {
                four(
                    is_whole,
                    &format!("K + key_vector[parity + {key}] * DIM"),
                    &format!("part + {d}"),
                    "DIM",
                )
            },
        );
        let values = tile.vectors(|key, d| {
            let at = format!("V + key_vector[others + chunk * VECTOR_COLUMNS + {key}] * DIM_V");
            four(self.dim_v == 4 * tile.quarters(), &at, d, "DIM_V")
        });
        fill.value("DECLARE_AHEAD", parts.declare + &values.declare)
            .value("FETCH_PART", parts.fetch)
            .value("STAGE_PART", parts.stage)
            .value("FETCH_VALUES", values.fetch)
            .value("STAGE_VALUES", values.stage)
    }

    /// Products of queries and keys, and what masks leave of them.
    fn fill_scores(&self, fill: Fill) -> Fill {
        let tile = &self.tile;
        let place = |key: usize| match self.additional_tiles {
            0 => format!("key_place[column_group + {key}u]"),
            _ => format!("place_of(walk, step, column_group + {key}u)"),
        };
        let mask = tile.mask(place, |r, c| format!("s{r}_{c} = select(LOWEST, s{r}_{c}, sees{r}_{c});\n"));
        fill.value("DECLARE_SCORES", tile.declare("s"))
            .value("MULTIPLY_SCORES", tile.multiply("s"))
            .value("SCALE_SCORES", tile.each(|r, c| format!("s{r}_{c} *= scale;\n")))
            .value("MASK_SCORES", mask)
            .value("STORE_SCORES", tile.transfer("s", false))
            .value("LOAD_SCORES", tile.transfer("s", true))
    }

    fn write_logsumexps(&self) -> String {
        let mut text = String::new();
        for r in 0..ROWS_EACH {
            let row = format!("row_vector[row_group + {}u]", r * self.tile.row_groups());
            let _ = writeln!(
                text,
                "if (column_group == 0u && {row} != 0xffffffffu) {{\n    \
                 put(TO_LSE + {row}, select(LN2 * peak{r} + f_log(total{r}), -inf(), total{r} == 0.0));\n}}"
            );
        }
        text
    }

    /// What a thread's rows have in common with those of the lanes that share them, and weights in place of scores.
    fn fill_softmax(&self, fill: Fill) -> Fill {
        let columns = self.tile.columns_each;
        let [mut peaks, mut highest, mut softmax, mut total] = [const { String::new() }; 4];
        let steps = || (0..self.tile.column_groups.ilog2()).map(|n| 1 << n);
        for r in 0..ROWS_EACH {
            let all: Vec<String> = (0..columns).map(|c| format!("s{r}_{c}")).collect();
            let _ = writeln!(peaks, "    var peak{r} = LOWEST;\n    var total{r} = 0.0;");
            let _ = writeln!(
                highest,
                "var highest{r} = max(peak{r}, {});",
                tree(&all, &|a, b| format!("max({a}, {b})"))
            );
            let _ = writeln!(softmax, "let shrink{r} = exp2(peak{r} - highest{r});\npeak{r} = highest{r};");
            for s in &all {
                let _ = writeln!(
                    softmax,
                    "{s} = select(exp2({s} - highest{r}), bitcast<f32>(ABSENT | zero), {s} == LOWEST);"
                );
            }
            let sum = tree(&all, &|a, b| format!("({a} + {b})"));
            let _ = writeln!(softmax, "total{r} = total{r} * shrink{r} + {sum};");
            for half in 0..self.tile.halves(self.dim_v) {
                let _ = writeln!(softmax, "o{r}_{half} *= shrink{r};");
            }
            if self.subgroup.is_some() {
                for step in steps() {
                    let _ = writeln!(
                        highest,
                        "highest{r} = max(highest{r}, subgroupShuffleXor(highest{r}, {step}u));"
                    );
                    let _ = writeln!(total, "total{r} += subgroupShuffleXor(total{r}, {step}u);");
                }
            }
        }
        if self.subgroup.is_none() {
            total += &self.join("total", |name, part| format!("{name} += {part};"), true);
        }
        for r in 0..ROWS_EACH {
            let _ = writeln!(total, "let factor{r} = select(1.0 / total{r}, 0.0, total{r} == 0.0);");
        }
        fill.value("DECLARE_PEAKS", peaks)
            .value("HIGHEST", highest)
            .value("STORE_HIGHEST", self.store("highest"))
            .value(
                "JOIN_HIGHEST",
                self.join("highest", |name, part| format!("{name} = max({name}, {part});"), false),
            )
            .value("SOFTMAX", softmax)
            .value("STORE_TOTAL", self.store("total"))
            .value("JOIN_TOTAL", total)
    }

    /// Stores a number of each of a thread's rows, for the threads that share them.
    fn store(&self, name: &str) -> String {
        (0..2)
            .map(|half| {
                let four: Vec<String> = (0..4).map(|r| format!("{name}{}", 4 * half + r)).collect();
                format!(
                    "staged[(column_group * 2u + {half}u) * ROW_GROUPS + row_group] = vec4<f32>({});\n",
                    four.join(", ")
                )
            })
            .collect()
    }

    /// Joins what the threads that share rows have stored.
    fn join(&self, name: &str, add: impl Fn(&str, &str) -> String, is_sum: bool) -> String {
        let mut text = String::new();
        if is_sum {
            for r in 0..ROWS_EACH {
                let _ = writeln!(text, "{name}{r} = 0.0;");
            }
        }
        text += "for (var i = 0u; i < COLUMN_GROUPS; i++) {\n";
        for half in 0..2 {
            let _ =
                writeln!(text, "    let four{half} = staged[(i * 2u + {half}u) * ROW_GROUPS + row_group];");
            for (r, lane) in LANES.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "    {}",
                    add(&format!("{name}{}", 4 * half + r), &format!("four{half}.{lane}"))
                );
            }
        }
        text + "}\n"
    }
}

/// Joins terms by twos.
fn tree(terms: &[String], join: &dyn Fn(&str, &str) -> String) -> String {
    match terms {
        [one] => one.clone(),
        _ => {
            let (left, right) = terms.split_at(terms.len() / 2);
            join(&tree(left, join), &tree(right, join))
        }
    }
}

/// The problem's scale for scores in bits.
pub(crate) fn scale_in_bits(problem: &Problem) -> f32 {
    (problem.scale() * std::f64::consts::LOG2_E) as f32
}

/// Whether rows are softmax: of any score, under any mask, but nothing is multiplied to the weights.
pub(crate) fn is_softmax(problem: &Problem) -> bool {
    let program = problem.program();
    program.has_softmax_row() && program.post().is_none() && program.decay().is_none()
}
