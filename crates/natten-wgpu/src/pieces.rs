//! Statements about small matrices that a subgroup holds together (cooperative matrices), of f16 with sums in f32: a
//! workgroup has [`ROWS`] rows, 16 to each of four subgroups, which are multiplied with [`COLUMNS`] columns at a time.
//! Cells are of four elements.
//!
//! Every statement can be written in a second way: as loops over the same elements in the same places. That is how tests
//! run the shaders on devices without such matrices.

use natten_core::program::Program;
use natten_core::{Problem, Role};

use crate::sequence::Packed;
use crate::spirv::MATRICES;
use crate::target::{Matrices, Target};
use crate::template::Fill;

/// Rows of a workgroup, of which each of the subgroups takes [`ROWS_EACH`], and columns of a box.
pub(crate) const ROWS: usize = 64;
pub(crate) const SUBGROUPS: usize = 4;
pub(crate) const ROWS_EACH: usize = ROWS / SUBGROUPS;
pub(crate) const COLUMNS: usize = 32;

/// Cells that a row of scores or weights takes.
pub(crate) const SCORE_STRIDE: usize = COLUMNS / 4 + 2;

/// Whether a program is softmax of any scores under any mask, of vectors as they are.
pub(crate) fn takes(program: &Program) -> bool {
    program.has_softmax_row()
        && program.post().is_none()
        && program.decay().is_none()
        && program.mods() == [None; 3]
}

/// Numbers of f16 in the bits of a word, and what they reach.
pub(crate) const HALVES: &str = include_str!("wgsl/halves.wgsl");

/// A tensor's vectors, and the additional ones behind them, as shaders bind them packed.
pub(crate) fn packed(problem: &Problem, role: Role, additional: Option<Role>) -> Packed {
    let len = |role| problem.shape(role).iter().map(|&extent| extent as u64).product::<u64>();
    let own = len(role);
    let others = additional.map_or(0, len);
    let dim = problem.shape(role).last().map_or(1, |&dim| dim as u64);
    let dims = dim.next_multiple_of(16);
    Packed { role, dim, dims, vectors: (own + others) / dim, may_be_direct: dim == dims && others == 0 }
}

/// Sums as loops have them: a lane holds every element of a sum whose number it is, in turns of the subgroup.
pub(crate) const LOOPS: &str = include_str!("wgsl/matrix_loops.wgsl");

/// The loop that adds products of rows and columns: `cell` is the cell of the rows at number `at`.
pub(crate) fn loop_of_rows(name: &str, cell: &str, stride: &str) -> String {
    let fill = Fill::default().value("NAME", name).value("CELL", cell).value("STRIDE", stride);
    fill.apply(include_str!("wgsl/matrix_loop_rows.wgsl"))
}

/// The loop that adds products of weights and columns.
pub(crate) fn loop_of_columns(name: &str, stride: &str) -> String {
    let fill = Fill::default().value("NAME", name).value("STRIDE", stride);
    fill.apply(include_str!("wgsl/matrix_loop_columns.wgsl"))
}

impl Matrices {
    pub(crate) fn ty(&self, role: char) -> String {
        let scalar = if role == 'C' { "f32" } else { "f16" };
        format!("coop_mat{0}x{0}<{scalar}, {role}>", self.edge)
    }

    /// Whether the rows of a subgroup fall to its lanes, and a workgroup is not too large.
    pub(crate) fn fit(&self, target: &Target) -> bool {
        let lanes = self.lanes as usize;
        lanes.is_multiple_of(ROWS_EACH)
            && lanes / ROWS_EACH <= 4
            && ROWS_EACH.is_multiple_of(self.edge())
            && self.threads() <= target.invocations as usize
    }

    /// Invocations of a workgroup.
    pub(crate) const fn threads(&self) -> usize {
        SUBGROUPS * self.lanes as usize
    }

    /// Lanes that share a row.
    pub(crate) const fn lanes_each(&self) -> usize {
        self.lanes as usize / ROWS_EACH
    }

    /// What a text begins with.
    pub(crate) fn directives(&self) -> String {
        "enable f16;\n".to_owned() + if self.is_native { MATRICES } else { "" }
    }

    /// Iterations of loops of an invocation that stand for the products of its rows, a box and so many elements.
    pub(crate) fn iterations(&self, elements: usize) -> usize {
        let products = ROWS_EACH * COLUMNS * elements / self.edge().pow(3);
        let of_product = 1 + self.edge().pow(2).div_ceil(self.lanes as usize) * (1 + self.edge());
        if self.is_native { 0 } else { products * of_product }
    }

    const fn edge(&self) -> usize {
        self.edge as usize
    }

    /// Row blocks of a subgroup, as tall as a matrix.
    const fn blocks(&self) -> usize {
        ROWS_EACH / self.edge()
    }

    /// Row blocks, each with the blocks of so many elements beside each other.
    fn blocks_of(&self, elements: usize) -> impl Iterator<Item = (usize, usize)> {
        let across = elements / self.edge();
        (0..self.blocks()).flat_map(move |block| (0..across).map(move |n| (block, n)))
    }

    /// A block among those of the subgroup's rows, `stride` cells each.
    fn place(&self, block: usize, n: usize, stride: &str) -> String {
        format!("(16u * subgroup + {}u) * {stride} + {}u", block * self.edge(), n * self.edge() / 4)
    }

    /// The block's place among the rows, where loops count blocks.
    fn place_in_loop(block: &str, n: &str, stride: &str) -> String {
        format!("(16u * subgroup + {block} * EDGE) * {stride} + {n} * EDGE / 4u")
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
        format!("let {name} = coopLoad{t}<{}>(&{array}[{at}], {stride});\n", self.ty(role))
    }

    /// Sums of so many elements of the subgroup's rows, 0.
    pub(crate) fn declare_all(&self, sums: &str, elements: usize) -> String {
        match self.is_native {
            true => self
                .blocks_of(elements)
                .map(|(block, n)| format!("var {sums}{block}_{n} = {}();\n", self.ty('C')))
                .collect(),
            false => format!("var {sums} = array<Piece, {}>();\n", self.blocks_of(elements).count()),
        }
    }

    /// The subgroup's rows of so many elements, from an array of workgroup memory. Loops read them where they lie.
    pub(crate) fn load_rows(&self, rows: &str, elements: usize, array: &str, stride: &str) -> String {
        let load = |(block, d)| {
            let at = self.place(block, d, stride);
            self.load(&format!("{rows}{block}_{d}"), 'A', array, &at, stride, true)
        };
        self.blocks_of(elements).filter(|_| self.is_native).map(load).collect()
    }

    /// Declares sums and adds the products of rows and columns to them. `tile` says where the columns' elements begin
    /// among the tiles, and what their stride is; `what` names the loop.
    pub(crate) fn multiply_rows(
        &self,
        sums: &str,
        rows: &str,
        elements: usize,
        [base, stride]: [&str; 2],
        what: &str,
    ) -> String {
        let (deep, across) = (elements / self.edge(), COLUMNS / self.edge());
        let mut text = self.declare_all(sums, COLUMNS);
        if !self.is_native {
            let row = Self::place_in_loop("block", "d", stride);
            let body = format!(
                "let d = i % {deep}u;\nlet n = i / {deep}u % {across}u;\nlet block = i / {}u;\n\
                 let sum = block * {across}u + n;\n\
                 {sums}[sum] = add_{what}({sums}[sum], member, {row}, {base}n * EDGE * {stride} + d * EDGE / 4u);\n",
                deep * across
            );
            return text + &turns(self.blocks() * deep * across, &body);
        }
        for d in 0..deep {
            for n in 0..across {
                let name = format!("{what}{d}_{n}");
                let at = format!("{base}{}u * {stride} + {}u", n * self.edge(), d * self.edge() / 4);
                text += &self.load(&name, 'B', "tiles", &at, stride, false);
                for block in 0..self.blocks() {
                    text +=
                        &multiply_add(&format!("{sums}{block}_{n}"), &format!("{rows}{block}_{d}"), &name);
                }
            }
        }
        text
    }

    /// Stores sums that are as wide as a box, `base` behind the first score.
    pub(crate) fn store_scores(&self, sums: &str, base: &str) -> String {
        self.moves(sums, COLUMNS, 0, base, false)
    }

    /// Adds the products of weights, `base` behind the first, and the columns' elements. `tile` is as in
    /// [`Matrices::multiply_rows`].
    pub(crate) fn multiply_columns(
        &self,
        sums: &str,
        weights: &str,
        elements: usize,
        [base, stride]: [&str; 2],
        what: &str,
    ) -> String {
        let (deep, across) = (COLUMNS / self.edge(), elements / self.edge());
        if !self.is_native {
            let weight = Self::place_in_loop("block", "n", "WEIGHT_STRIDE");
            let body = format!(
                "let n = i % {deep}u;\nlet d = i / {deep}u % {across}u;\nlet block = i / {}u;\n\
                 let sum = block * {across}u + d;\n{sums}[sum] = add_{what}({sums}[sum], member, \
                 {weights}{weight}, {base}n * EDGE * {stride} + d * EDGE / 4u);\n",
                deep * across
            );
            return turns(self.blocks() * deep * across, &body);
        }
        let mut text = String::new();
        for n in 0..deep {
            for block in 0..self.blocks() {
                let at = format!("{weights}{}", self.place(block, n, "WEIGHT_STRIDE"));
                let name = format!("{what}_w{block}_{n}");
                text += &self.load(&name, 'A', "weights", &at, "WEIGHT_STRIDE", true);
            }
            for d in 0..across {
                let name = format!("{what}{n}_{d}");
                let at = format!("{base}{}u * {stride} + {}u", n * self.edge(), d * self.edge() / 4);
                text += &self.load(&name, 'B', "tiles", &at, stride, true);
                for block in 0..self.blocks() {
                    let weight = format!("{what}_w{block}_{n}");
                    text += &multiply_add(&format!("{sums}{block}_{d}"), &weight, &name);
                }
            }
        }
        text
    }

    /// Moves sums of so many elements, from matrix `first` of each row block on as many as are as wide as a box, to the
    /// memory of scores, `base` behind the first, or back.
    fn moves(&self, sums: &str, elements: usize, first: usize, base: &str, is_load: bool) -> String {
        let across = elements / self.edge();
        let count = (across - first).min(COLUMNS / self.edge());
        if !self.is_native {
            let at = format!("{base}{}", Self::place_in_loop("block", "n", "SCORE_STRIDE"));
            let sum = format!("{sums}[block * {across}u + {first}u + n]");
            let one = match is_load {
                true => format!("{sum} = load_piece(member, {at});\n"),
                false => format!("store_piece({sum}, member, {at});\n"),
            };
            let body = format!("let block = i / {count}u;\nlet n = i % {count}u;\n{one}");
            return turns(self.blocks() * count, &body);
        }
        let one = |(block, n): (usize, usize)| {
            let (sum, at) = (format!("{sums}{block}_{}", first + n), self.place(block, n, "SCORE_STRIDE"));
            match is_load {
                true => format!("{sum} = coopLoadT<{}>(&scores[{base}{at}], SCORE_STRIDE);\n", self.ty('C')),
                false => format!("coopStoreT({sum}, &scores[{base}{at}], SCORE_STRIDE);\n"),
            }
        };
        self.blocks_of(count * self.edge()).map(one).collect()
    }

    /// The parts of sums of so many elements, each as wide as the memory of scores: where one begins, its cells, and the
    /// statements that move its matrices to that memory, or back.
    pub(crate) fn parts(
        &self,
        sums: &str,
        elements: usize,
        of: impl Fn(usize, usize, &dyn Fn(bool) -> String) -> String,
    ) -> String {
        let part = |first: usize| {
            let column = first * self.edge();
            let moves = |is_load: bool| self.moves(sums, elements, first, "", is_load);
            of(column, (elements - column).min(COLUMNS) / 4, &moves)
        };
        (0..elements / self.edge()).step_by(COLUMNS / self.edge()).map(part).collect()
    }
}

pub(crate) fn multiply_add(sum: &str, a: &str, b: &str) -> String {
    format!("{sum} = coopMultiplyAdd({a}, {b}, {sum});\n")
}

/// A loop that takes a number of turns.
fn turns(count: usize, body: &str) -> String {
    format!("for (var i = 0u; i < {count}u; i++) {{\n{body}}}\n")
}
