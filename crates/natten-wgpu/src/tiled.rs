//! The forward pass of softmax in tiles: boxes of queries against boxes of keys, 8 rows by 8 keys of scores and 8 rows by 8
//! elements of the output in a thread's registers. It needs neither subgroups nor more than 16 KiB of workgroup memory, so
//! browsers can run it.

use std::fmt::Write;

use natten_core::{Op, OpRequest, PlanOptions, Problem};

use crate::boxes::Boxes;
use crate::render::math::Real;
use crate::target::Target;
use crate::template::Fill;

/// The shader.
pub(crate) const TILED: &str = include_str!("wgsl/tiled.wgsl");

/// Rows that a thread has.
const ROWS_EACH: usize = 8;

const LANES: [&str; 4] = ["x", "y", "z", "w"];

/// How the shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) boxes: Boxes,
    cut: Cut,
    /// Whether vectors may be read four numbers at a time.
    is_wide: bool,
    /// Lanes of a subgroup, where those that share a row work its softmax out among them.
    subgroup: Option<usize>,
    dim: usize,
    dim_v: usize,
    additional_tiles: usize,
    heads: usize,
}

/// The sizes of a workgroup's tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Threads that share a row.
    column_groups: usize,
    /// Queries of a box.
    rows: usize,
    /// Keys of a box that a thread has of each of its rows.
    columns: usize,
    /// Elements of queries and keys in workgroup memory at a time.
    chunk: usize,
}

impl Cut {
    const fn threads(&self) -> usize {
        self.rows / ROWS_EACH * self.column_groups
    }

    const fn row_groups(&self) -> usize {
        self.rows / ROWS_EACH
    }

    const fn keys(&self) -> usize {
        self.columns * self.column_groups
    }

    /// Cells from a vector to the next: an odd number.
    const fn stride(&self) -> usize {
        self.chunk / 4 + 1
    }

    /// Keys whose weights are in workgroup memory at a time.
    fn weight_keys(&self) -> usize {
        self.column_groups.max(16)
    }

    /// Keys whose values are there at a time.
    fn value_keys(&self) -> usize {
        if self.column_groups > 16 { 8 } else { 16 }
    }

    const fn weight_stride(&self) -> usize {
        2 * self.row_groups() + 1
    }

    /// Where the values are, behind the weights.
    fn values_at(&self) -> usize {
        self.weight_keys() * self.weight_stride()
    }

    /// Quarters of four elements of a value.
    const fn quarters(&self) -> usize {
        2 * self.column_groups
    }

    fn cells(&self) -> usize {
        let of_scores = (self.rows + self.keys()) * self.stride();
        let of_values = self.values_at() + self.value_keys() * self.quarters();
        of_scores.max(of_values).max(self.rows * self.column_groups / 4)
    }

    /// Workgroup memory.
    fn bytes(&self) -> usize {
        16 * self.cells() + 4 * (3 * self.rows + 3 * self.keys()) + 16
    }

    /// What it costs to visit a pair, about: the wider a thread's tile the fewer numbers it reads, and the more rows share a
    /// key the fewer times it is fetched.
    fn cost(&self) -> f64 {
        let of_columns = if self.columns == 8 { 1.0 } else { 1.25 };
        let of_rows = 1.0 + 8.0 / self.rows as f64;
        of_columns * of_rows * if self.chunk == 16 { 1.0 } else { 1.1 }
    }
}

/// The cuts that there are for values of so many elements.
fn cuts(widest: usize) -> Option<Vec<Cut>> {
    let (column_groups, rows) = match widest {
        ..=64 => (8, [64, 128]),
        65..=128 => (16, [64, 128]),
        129..=256 => (32, [32, 64]),
        _ => return None,
    };
    let mut all = Vec::new();
    for rows in rows {
        for columns in [4, 8] {
            all.extend([16, 8].map(|chunk| Cut { column_groups, rows, columns, chunk }));
        }
    }
    all.retain(|cut| cut.keys() <= 128);
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
        let fits = |cut: &Cut| {
            let has_subgroups = lanes.is_some_and(|lanes| {
                lanes.is_multiple_of(cut.column_groups) && cut.threads().is_multiple_of(lanes)
            });
            cut.threads() <= target.invocations as usize
                && cut.bytes() <= target.workgroup_bytes as usize
                && (has_subgroups || !with_subgroups)
        };
        let mut best: Option<(f64, Cut, Boxes)> = None;
        for cut in cuts(problem.head_dim_v())?.into_iter().filter(fits) {
            let Some(boxes) = Boxes::new(problem, options, cut.rows, cut.keys()) else { continue };
            // Boxes that the caller asks for go to the smallest tiles that hold them.
            let asked = options.query_tile.is_some() || options.key_tile.is_some();
            let pairs = if asked { 1.0 } else { boxes.pairs as f64 };
            let cost = cut.cost() * pairs * (cut.rows * cut.keys()) as f64;
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, cut, boxes));
            }
        }
        let (_, cut, boxes) = best?;
        let heads = problem.batch() * problem.heads();
        let most = target.workgroups as usize;
        let shape = Self {
            boxes,
            cut,
            is_wide: problem.head_dim().is_multiple_of(4) && problem.head_dim_v().is_multiple_of(4),
            subgroup: lanes.filter(|_| with_subgroups),
            dim: problem.head_dim(),
            dim_v: problem.head_dim_v(),
            additional_tiles: problem.additional_tokens().div_ceil(cut.keys()),
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
        self.dim.next_multiple_of(self.cut.chunk)
    }

    /// The most iterations of loops of an invocation.
    pub(crate) fn iterations(&self, problem: &Problem) -> u64 {
        let cut = &self.cut;
        let tiles = self.boxes.key_boxes_of(problem) + self.additional_tiles;
        let of_scores = self.dims() / cut.chunk * (1 + cut.chunk / 4);
        let of_edits = cut.keys() / cut.weight_keys() + 5 * cut.keys() * 2 * cut.row_groups() / cut.threads();
        let of_values = cut.keys() / cut.value_keys() * (1 + cut.value_keys());
        let tables = 1 + cut.keys().div_ceil(cut.threads());
        (2 * tables
            + cut.column_groups
            + tiles * (tables + of_scores + of_edits + cut.column_groups + of_values)) as u64
    }

    /// Declarations of the shape.
    pub(crate) fn constants(&self, problem: &Problem) -> String {
        let cut = &self.cut;
        let is_whole = self.boxes.key_tile.iter().product::<usize>() == cut.keys();
        let mut text = self.boxes.constants();
        let _ = writeln!(text, "const IS_WHOLE = {is_whole};");
        let _ = writeln!(text, "const SCALE_IN_BITS: f32 = {:?};", scale_in_bits(problem));
        let _ = writeln!(text, "const ADDITIONAL_TILES: i32 = {};", self.additional_tiles);
        for (name, value) in [
            ("TILE_ROWS", cut.rows),
            ("TILE_KEYS", cut.keys()),
            ("ROW_GROUPS", cut.row_groups()),
            ("COLUMN_GROUPS", cut.column_groups),
            ("DIMS", self.dims()),
            ("CHUNK", cut.chunk),
            ("WEIGHT_KEYS", cut.weight_keys()),
            ("WEIGHT_GROUPS", cut.keys() / cut.weight_keys()),
            ("WEIGHT_STRIDE", cut.weight_stride()),
            ("VALUE_KEYS", cut.value_keys()),
            ("SUBGROUP", self.subgroup.unwrap_or(1)),
        ] {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        text
    }

    /// The template's statements. `has_program` says that scores go through functions of the pair.
    pub(crate) fn fill(&self, has_program: bool, is_wide: bool) -> Fill {
        let fill = Fill::default()
            .flag("PROGRAM", has_program)
            .flag("WIDE", is_wide)
            .flag("SUBGROUPS", self.subgroup.is_some())
            .value("THREADS", self.cut.threads())
            .value("STAGED_CELLS", self.cut.cells())
            .value("UNROLLED", UNROLLED)
            // Functions of the pair stand in one place: drivers write out every call.
            .value("IS_EDITED", if has_program { "true" } else { "!is_full" });
        self.fill_output(self.fill_softmax(self.fill_scores(self.fill_copies(fill))))
    }

    /// The way from memory: fetched a part ahead, staged when the part before is done.
    fn fill_copies(&self, fill: Fill) -> Fill {
        let (cut, threads) = (&self.cut, self.cut.threads());
        let (quarters, chunk_cells) = (cut.quarters(), cut.chunk / 4);
        let (mut ahead, mut places) = (String::new(), String::new());
        let [mut fetch_part, mut stage_part, mut fetch_values, mut stage_values] =
            [const { String::new() }; 4];
        let four = |is_whole: bool, at: &str, d: &str, dim: &str| match is_whole {
            true => format!("four_at({at} + {d})"),
            false => format!("four_of({at}, {d}, {dim})"),
        };
        let is_whole = self.dim.is_multiple_of(cut.chunk);
        let per_row = chunk_cells;
        for (name, vectors, base) in [("q", cut.rows, 0), ("k", cut.keys(), cut.rows * cut.stride())] {
            let cells = vectors * per_row;
            for j in 0..cells.div_ceil(threads) {
                let i = format!("(lane + {}u)", j * threads);
                let guard =
                    if (j + 1) * threads > cells { format!("if ({i} < {cells}u) ") } else { String::new() };
                let _ = writeln!(ahead, "    var ahead_{name}{j} = vec4<f32>();");
                let d = format!("part + {i} % {per_row}u * 4u");
                let at = match name {
                    "q" => {
                        let row = format!("min({i} / {per_row}u, TILE_ROWS - 1u)");
                        let _ = writeln!(places, "    let place_q{j} = Q + row_vector[{row}] * DIM;");
                        format!("place_q{j}")
                    }
                    _ => format!("K + key_vector[parity + {i} / {per_row}u] * DIM"),
                };
                let _ = writeln!(
                    fetch_part,
                    "{guard}{{ ahead_{name}{j} = {}; }}",
                    four(is_whole, &at, &d, "DIM")
                );
                let to = format!("{base}u + {i} / {per_row}u * {}u + {i} % {per_row}u", cut.stride());
                let _ = writeln!(stage_part, "{guard}{{ staged[{to}] = ahead_{name}{j}; }}");
            }
        }
        let cells = cut.value_keys() * quarters;
        for j in 0..cells.div_ceil(threads) {
            let i = format!("(lane + {}u)", j * threads);
            let guard =
                if (j + 1) * threads > cells { format!("if ({i} < {cells}u) ") } else { String::new() };
            let _ = writeln!(ahead, "    var ahead_v{j} = vec4<f32>();");
            let at = format!("V + key_vector[others + chunk * VALUE_KEYS + {i} / {quarters}u] * DIM_V");
            let from = four(self.dim_v == 4 * quarters, &at, &format!("{i} % {quarters}u * 4u"), "DIM_V");
            let _ = writeln!(fetch_values, "{guard}{{ ahead_v{j} = {from}; }}");
            let _ = writeln!(
                stage_values,
                "{guard}{{\n    staged[{}u + {i}] = ahead_v{j};\n    \
                 if (!all(abs(ahead_v{j}) <= vec4<f32>(-LOWEST))) {{ atomicStore(&is_odd, 1u); }}\n}}",
                cut.values_at()
            );
        }
        fill.value("DECLARE_PLACES", places)
            .value("DECLARE_AHEAD", ahead)
            .value("FETCH_PART", fetch_part)
            .value("STAGE_PART", stage_part)
            .value("FETCH_VALUES", fetch_values)
            .value("STAGE_VALUES", stage_values)
    }

    /// Products of queries and keys, and what masks leave of them.
    fn fill_scores(&self, fill: Fill) -> Fill {
        let cut = &self.cut;
        let (stride, keys_at) = (cut.stride(), cut.rows * cut.stride());
        let [mut declare, mut multiply, mut scale, mut mask] = [const { String::new() }; 4];
        for r in 0..ROWS_EACH {
            let at = r * cut.row_groups();
            let _ = writeln!(multiply, "let q{r} = staged[row_group * {stride}u + {}u + cell];", at * stride);
            let _ = writeln!(mask, "let low{r} = row_low[row_group + {at}u];");
            let _ = writeln!(mask, "let high{r} = row_high[row_group + {at}u];");
        }
        for c in 0..cut.columns {
            let key = c * cut.column_groups;
            let _ = writeln!(
                multiply,
                "let k{c} = staged[column_group * {stride}u + {}u + cell];",
                keys_at + key * stride
            );
            let _ = match self.additional_tiles {
                0 => writeln!(mask, "let place{c} = key_place[column_group + {key}u];"),
                _ => writeln!(
                    mask,
                    "let beyond{c} = (step - walk.window_steps) * i32(TILE_KEYS) + i32(column_group + {key}u);\n\
                     let place{c} = select(select(NOWHERE, 0u, beyond{c} < ADDITIONAL), \
                     key_place[column_group + {key}u], is_window);"
                ),
            };
            for r in 0..ROWS_EACH {
                let _ = writeln!(declare, "        var s{r}_{c} = 0.0;");
                let _ = writeln!(scale, "s{r}_{c} *= scale;");
                let _ = writeln!(
                    mask,
                    "s{r}_{c} = select(LOWEST, s{r}_{c}, is_between(place{c}, low{r}, high{r}));"
                );
            }
            for lane in LANES {
                for r in 0..ROWS_EACH {
                    let _ = writeln!(multiply, "s{r}_{c} = fma(q{r}.{lane}, k{c}.{lane}, s{r}_{c});");
                }
            }
        }
        fill.value("DECLARE_SCORES", declare)
            .value("MULTIPLY_SCORES", multiply)
            .value("SCALE_SCORES", scale)
            .value("MASK_SCORES", mask)
            .value("STORE_SCORES", self.move_scores(false))
            .value("LOAD_SCORES", self.move_scores(true))
    }

    /// Moves the scores, or weights, of a group of keys to workgroup memory, or back: [key][half of the rows][row group].
    fn move_scores(&self, is_load: bool) -> String {
        let cut = &self.cut;
        let each = cut.weight_keys() / cut.column_groups;
        let mut text = String::new();
        for group in 0..cut.columns / each {
            if cut.columns > each {
                let _ = writeln!(text, "if (group == {group}u) {{");
            }
            for n in 0..each {
                let c = group * each + n;
                for half in 0..2 {
                    let at = format!(
                        "staged[(column_group + {}u) * WEIGHT_STRIDE + {}u + row_group]",
                        n * cut.column_groups,
                        half * cut.row_groups()
                    );
                    let of_row = |r: usize| format!("s{}_{c}", 4 * half + r);
                    if is_load {
                        let _ = writeln!(text, "let four{half}_{c} = {at};");
                        for (r, lane) in LANES.iter().enumerate() {
                            let _ = writeln!(text, "{} = four{half}_{c}.{lane};", of_row(r));
                        }
                    } else {
                        let _ = writeln!(
                            text,
                            "{at} = vec4<f32>({});",
                            (0..4).map(of_row).collect::<Vec<_>>().join(", ")
                        );
                    }
                }
            }
            if cut.columns > each {
                text += "}\n";
            }
        }
        text
    }

    /// What a thread's rows have in common with those of the lanes that share them, and weights in place of scores.
    fn fill_softmax(&self, fill: Fill) -> Fill {
        let columns = self.cut.columns;
        let [mut peaks, mut highest, mut softmax, mut total] = [const { String::new() }; 4];
        let steps = || (0..self.cut.column_groups.ilog2()).map(|n| 1 << n);
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
            for half in 0..self.halves() {
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

    /// Quarters of the output that a thread has of a row.
    fn halves(&self) -> usize {
        1 + usize::from(self.dim_v > 4 * self.cut.column_groups)
    }

    /// Products of weights and values.
    fn fill_output(&self, fill: Fill) -> Fill {
        let cut = &self.cut;
        let [mut declare, mut multiply, mut multiply_odd, mut write, mut logsumexps] =
            [const { String::new() }; 5];
        let load = |key: &str| {
            let mut text = format!(
                "let p0 = staged[weights + {key} * WEIGHT_STRIDE];\n\
                 let p1 = staged[weights + {key} * WEIGHT_STRIDE + ROW_GROUPS];\n"
            );
            for half in 0..self.halves() {
                let at = cut.values_at() + half * cut.column_groups;
                let _ = writeln!(
                    text,
                    "let v{half} = staged[{key} * {}u + {at}u + column_group];",
                    cut.quarters()
                );
            }
            text
        };
        let add = |r: usize, half: usize| {
            format!("o{r}_{half} = fma(vec4<f32>(p{}.{}), v{half}, o{r}_{half});\n", r / 4, LANES[r % 4])
        };
        for n in 0..UNROLLED {
            multiply += "{\n";
            multiply += &load(&format!("(first_key + {n}u)"));
            for half in 0..self.halves() {
                multiply.extend((0..ROWS_EACH).map(|r| add(r, half)));
            }
            multiply += "}\n";
        }
        multiply_odd += &load("key");
        for r in 0..ROWS_EACH {
            let row = format!("row_vector[row_group + {}u]", r * cut.row_groups());
            let _ = writeln!(multiply_odd, "if (bitcast<u32>(p{}.{}) != ABSENT) {{", r / 4, LANES[r % 4]);
            let _ = writeln!(write, "    if ({row} != 0xffffffffu) {{");
            for half in 0..self.halves() {
                let _ = writeln!(declare, "    var o{r}_{half} = vec4<f32>();");
                multiply_odd += &add(r, half);
                let d = format!("4u * (column_group + {}u)", half * cut.column_groups);
                let _ = writeln!(
                    write,
                    "        put_four(TO_OUT + {row} * DIM_V, {d}, DIM_V, factor{r} * o{r}_{half});"
                );
            }
            multiply_odd += "}\n";
            write += "    }\n";
            let _ = writeln!(
                logsumexps,
                "if (column_group == 0u && {row} != 0xffffffffu) {{\n    \
                 put(TO_LSE + {row}, select(LN2 * peak{r} + f_log(total{r}), -inf(), total{r} == 0.0));\n}}"
            );
        }
        fill.value("DECLARE_OUTPUT", declare)
            .value("MULTIPLY_VALUES", multiply)
            .value("MULTIPLY_ODD_VALUES", multiply_odd)
            .value("WRITE_OUTPUT", write)
            .value("WRITE_LOGSUMEXPS", logsumexps)
    }
}

/// Keys whose products with the values are written out.
const UNROLLED: usize = 4;

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
fn scale_in_bits(problem: &Problem) -> f32 {
    (problem.scale() * std::f64::consts::LOG2_E) as f32
}

/// Whether rows are softmax: of any score, under any mask, but nothing is multiplied to the weights.
pub(crate) fn is_softmax(problem: &Problem) -> bool {
    let program = problem.program();
    program.has_softmax_row() && program.post().is_none() && program.decay().is_none()
}
