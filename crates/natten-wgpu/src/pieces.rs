//! Statements about small matrices that a subgroup holds together (cooperative matrices), of f16 with sums in f32: a
//! workgroup has [`ROWS`] rows, 16 to each of four subgroups, which are multiplied with [`COLUMNS`] columns at a time.
//! Cells are of four elements.
//!
//! Every statement can be written in a second way: as loops over the same elements in the same places. That is how tests
//! run the shaders on devices without such matrices.

use natten_core::program::Program;
use natten_core::{Problem, Role};

use crate::sequence::Packed;
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
    fn ty(&self, role: char) -> String {
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
    pub(crate) const fn directives(&self) -> &'static str {
        match self.is_native {
            true => "enable f16;\nenable wgpu_cooperative_matrix;\n",
            false => "enable f16;\n",
        }
    }

    /// Iterations of loops of an invocation that stand for the products of its rows, a box and so many elements.
    pub(crate) fn iterations(&self, elements: usize) -> usize {
        let products = ROWS_EACH * COLUMNS * elements / self.edge().pow(3);
        let of_product = self.edge().pow(2).div_ceil(self.lanes as usize) * (1 + self.edge());
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

    /// A sum of products, 0.
    fn declare(&self, name: &str) -> String {
        match self.is_native {
            true => format!("var {name} = {}();\n", self.ty('C')),
            false => format!("var {name} = Piece();\n"),
        }
    }

    /// A factor, from an array of workgroup memory, in rows or in columns of `stride` cells.
    fn load(&self, name: &str, role: char, array: &str, at: &str, stride: &str, in_rows: bool) -> String {
        let t = if in_rows { "T" } else { "" };
        match self.is_native {
            true => format!("let {name} = coopLoad{t}<{}>(&{array}[{at}], {stride});\n", self.ty(role)),
            // Factors stay in memory until they are multiplied.
            false => format!("let {name} = {at};\n"),
        }
    }

    /// Adds a product; `what` names the loop.
    fn multiply_add(&self, sum: &str, a: &str, b: &str, what: &str) -> String {
        match self.is_native {
            true => format!("{sum} = coopMultiplyAdd({a}, {b}, {sum});\n"),
            false => format!("add_{what}(&{sum}, member, {a}, {b});\n"),
        }
    }

    /// Stores a sum among the scores.
    fn store(&self, name: &str, at: &str) -> String {
        match self.is_native {
            true => format!("coopStoreT({name}, &scores[{at}], SCORE_STRIDE);\n"),
            false => format!("store_piece({name}, member, {at});\n"),
        }
    }

    /// Takes a sum back from the scores.
    fn load_again(&self, name: &str, at: &str) -> String {
        match self.is_native {
            true => format!("{name} = coopLoadT<{}>(&scores[{at}], SCORE_STRIDE);\n", self.ty('C')),
            false => format!("{name} = load_piece(member, {at});\n"),
        }
    }

    /// Sums of so many elements of the subgroup's rows, 0.
    pub(crate) fn declare_all(&self, sums: &str, elements: usize) -> String {
        self.blocks_of(elements).map(|(block, n)| self.declare(&format!("{sums}{block}_{n}"))).collect()
    }

    /// The subgroup's rows of so many elements, from an array of workgroup memory.
    pub(crate) fn load_rows(&self, rows: &str, elements: usize, array: &str, stride: &str) -> String {
        let load = |(block, d)| {
            let at = self.place(block, d, stride);
            self.load(&format!("{rows}{block}_{d}"), 'A', array, &at, stride, true)
        };
        self.blocks_of(elements).map(load).collect()
    }

    /// Declares sums and adds the products of rows and columns to them. `tile` says where the columns' elements begin
    /// among the tiles, and what their stride is.
    pub(crate) fn multiply_rows(
        &self,
        sums: &str,
        rows: &str,
        elements: usize,
        [base, stride]: [&str; 2],
        what: &str,
    ) -> String {
        let mut text = self.declare_all(sums, COLUMNS);
        for d in 0..elements / self.edge() {
            for n in 0..COLUMNS / self.edge() {
                let name = format!("{what}{d}_{n}");
                let at = format!("{base}{}u * {stride} + {}u", n * self.edge(), d * self.edge() / 4);
                text += &self.load(&name, 'B', "tiles", &at, stride, false);
                for block in 0..self.blocks() {
                    let sum = format!("{sums}{block}_{n}");
                    text += &self.multiply_add(&sum, &format!("{rows}{block}_{d}"), &name, what);
                }
            }
        }
        text
    }

    /// Stores sums that are as wide as a box, `base` behind the first score.
    pub(crate) fn store_scores(&self, sums: &str, base: &str) -> String {
        let store = |(block, n)| {
            let at = format!("{base}{}", self.place(block, n, "SCORE_STRIDE"));
            self.store(&format!("{sums}{block}_{n}"), &at)
        };
        self.blocks_of(COLUMNS).map(store).collect()
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
        let mut text = String::new();
        for n in 0..COLUMNS / self.edge() {
            for block in 0..self.blocks() {
                let at = format!("{weights}{}", self.place(block, n, "WEIGHT_STRIDE"));
                let name = format!("{what}_w{block}_{n}");
                text += &self.load(&name, 'A', "weights", &at, "WEIGHT_STRIDE", true);
            }
            for d in 0..elements / self.edge() {
                let name = format!("{what}{n}_{d}");
                let at = format!("{base}{}u * {stride} + {}u", n * self.edge(), d * self.edge() / 4);
                text += &self.load(&name, 'B', "tiles", &at, stride, true);
                for block in 0..self.blocks() {
                    let sum = format!("{sums}{block}_{d}");
                    text += &self.multiply_add(&sum, &format!("{what}_w{block}_{n}"), &name, what);
                }
            }
        }
        text
    }

    /// The parts of sums of so many elements, each as wide as the memory of scores: where one begins, its cells, and the
    /// statements that move its matrices to that memory, and back.
    pub(crate) fn parts(
        &self,
        sums: &str,
        elements: usize,
        of: impl Fn(usize, usize, &dyn Fn(bool) -> String) -> String,
    ) -> String {
        let wide = COLUMNS / self.edge();
        let part = |first: usize| {
            let moves = |is_load: bool| {
                let one = |(block, d): (usize, usize)| {
                    let name = format!("{sums}{block}_{d}");
                    match d.checked_sub(first) {
                        Some(n) if n < wide && is_load => {
                            self.load_again(&name, &self.place(block, n, "SCORE_STRIDE"))
                        }
                        Some(n) if n < wide => self.store(&name, &self.place(block, n, "SCORE_STRIDE")),
                        _ => String::new(),
                    }
                };
                self.blocks_of(elements).map(one).collect()
            };
            let column = first * self.edge();
            of(column, (elements - column).min(COLUMNS) / 4, &moves)
        };
        (0..elements / self.edge()).step_by(wide).map(part).collect()
    }
}
