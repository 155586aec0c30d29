//! The statements of the families with tiles in registers: 8 rows of a box by a few columns of another to a thread, which
//! come through workgroup memory a part at a time, and their products with the columns' vectors.

use std::fmt::Write;

/// Rows that a thread has.
pub(crate) const ROWS_EACH: usize = 8;

/// Columns whose products with their vectors are written out.
pub(crate) const UNROLLED: usize = 4;

pub(crate) const LANES: [&str; 4] = ["x", "y", "z", "w"];

/// The sizes of a workgroup's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegisterTile {
    /// Threads that share a row.
    pub(crate) column_groups: usize,
    /// Rows of a box.
    pub(crate) rows: usize,
    /// Columns of a box that a thread has of each of its rows.
    pub(crate) columns_each: usize,
    /// Elements of vectors in workgroup memory at a time.
    pub(crate) chunk: usize,
}

/// How vectors get into workgroup memory: numbers on their way, the statements that fetch them, and those that stage them.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub(crate) declare: String,
    pub(crate) fetch: String,
    pub(crate) stage: String,
}

impl RegisterTile {
    pub(crate) const fn threads(&self) -> usize {
        self.row_groups() * self.column_groups
    }

    pub(crate) const fn row_groups(&self) -> usize {
        self.rows / ROWS_EACH
    }

    /// Columns of a box.
    pub(crate) const fn columns(&self) -> usize {
        self.columns_each * self.column_groups
    }

    /// Cells from a vector to the next: an odd number, so that vectors side by side begin in other banks.
    pub(crate) const fn stride(&self) -> usize {
        self.chunk / 4 + 1
    }

    /// Where the columns' vectors are, behind the rows'.
    pub(crate) const fn columns_at(&self) -> usize {
        self.rows * self.stride()
    }

    /// Columns whose factors are in workgroup memory at a time.
    pub(crate) fn factor_columns(&self) -> usize {
        self.column_groups.max(16)
    }

    /// Columns whose vectors are there at a time, whole.
    pub(crate) const fn vector_columns(&self) -> usize {
        if self.column_groups > 16 { 8 } else { 16 }
    }

    /// Cells from a column's factors to the next: an odd number too.
    pub(crate) const fn factor_stride(&self) -> usize {
        2 * self.row_groups() + 1
    }

    /// Where the columns' whole vectors are, behind the factors.
    pub(crate) fn vectors_at(&self) -> usize {
        self.factor_columns() * self.factor_stride()
    }

    /// Quarters of four elements of a whole vector.
    pub(crate) const fn quarters(&self) -> usize {
        2 * self.column_groups
    }

    /// Cells of workgroup memory that all of it takes by turns.
    pub(crate) fn cells(&self) -> usize {
        let of_parts = (self.rows + self.columns()) * self.stride();
        let of_vectors = self.vectors_at() + self.vector_columns() * self.quarters();
        of_parts.max(of_vectors).max(self.rows * self.column_groups / 4)
    }

    /// Declarations of the sizes.
    pub(crate) fn constants(&self) -> String {
        [
            ("ROW_COUNT", self.rows),
            ("COLUMN_COUNT", self.columns()),
            ("ROW_GROUPS", self.row_groups()),
            ("COLUMN_GROUPS", self.column_groups),
            ("CHUNK", self.chunk),
            ("FACTOR_COLUMNS", self.factor_columns()),
            ("FACTOR_GROUPS", self.columns() / self.factor_columns()),
            ("FACTOR_STRIDE", self.factor_stride()),
            ("VECTOR_COLUMNS", self.vector_columns()),
        ]
        .iter()
        .map(|(name, value)| format!("const {name}: u32 = {value}u;\n"))
        .collect()
    }

    /// Copies of so many vectors of so many cells. `from` says what is fetched of a vector from an element on, `to` where
    /// a cell of a vector goes; `then` is done with what is staged.
    pub(crate) fn copies(
        &self,
        name: &str,
        [vectors, cells]: [usize; 2],
        from: impl Fn(&str, &str) -> String,
        to: impl Fn(&str, &str) -> String,
        then: impl Fn(&str) -> String,
    ) -> Copies {
        let (threads, all) = (self.threads(), vectors * cells);
        let mut copies = Copies::default();
        for j in 0..all.div_ceil(threads) {
            let i = format!("(lane + {}u)", j * threads);
            let guard = if (j + 1) * threads > all { format!("if ({i} < {all}u) ") } else { String::new() };
            let (vector, cell) = (format!("{i} / {cells}u"), format!("{i} % {cells}u"));
            let ahead = format!("ahead_{name}{j}");
            let _ = writeln!(copies.declare, "    var {ahead} = vec4<f32>();");
            let _ =
                writeln!(copies.fetch, "{guard}{{ {ahead} = {}; }}", from(&vector, &format!("{cell} * 4u")));
            let _ = writeln!(
                copies.stage,
                "{guard}{{ staged[{}] = {ahead};{} }}",
                to(&vector, &cell),
                then(&ahead)
            );
        }
        copies
    }

    /// Copies of parts of the rows' and of the columns' vectors. Each is fetched as a function of the vector's number in
    /// the box and an element says.
    pub(crate) fn parts(
        &self,
        rows: impl Fn(&str, &str) -> String,
        columns: impl Fn(&str, &str) -> String,
    ) -> Copies {
        let (stride, cells) = (self.stride(), self.chunk / 4);
        let to = |at: usize| move |vector: &str, cell: &str| format!("{at}u + {vector} * {stride}u + {cell}");
        let rows = self.copies("row", [self.rows, cells], rows, to(0), |_| String::new());
        let columns =
            self.copies("column", [self.columns(), cells], columns, to(self.columns_at()), |_| String::new());
        Copies {
            declare: rows.declare + &columns.declare,
            fetch: rows.fetch + &columns.fetch,
            stage: rows.stage + &columns.stage,
        }
    }

    /// Copies of whole vectors of columns. Infinite and NaN elements are noticed.
    pub(crate) fn vectors(&self, from: impl Fn(&str, &str) -> String) -> Copies {
        let (at, quarters) = (self.vectors_at(), self.quarters());
        let to = |vector: &str, cell: &str| format!("{at}u + {vector} * {quarters}u + {cell}");
        let notice = |ahead: &str| {
            format!(" if (!all(abs({ahead}) <= vec4<f32>(-LOWEST))) {{ atomicStore(&is_odd, 1u); }}")
        };
        self.copies("vector", [self.vector_columns(), quarters], from, to, notice)
    }

    /// A statement of every element of the tile.
    pub(crate) fn each(&self, of: impl Fn(usize, usize) -> String) -> String {
        let all = (0..ROWS_EACH).flat_map(|r| (0..self.columns_each).map(move |c| (r, c)));
        all.map(|(r, c)| of(r, c)).collect()
    }

    pub(crate) fn declare(&self, name: &str) -> String {
        self.each(|r, c| format!("        var {name}{r}_{c} = 0.0;\n"))
    }

    /// Adds the products of a cell of the rows' and of the columns' vectors.
    pub(crate) fn multiply(&self, name: &str) -> String {
        let stride = self.stride();
        let mut text = String::new();
        for r in 0..ROWS_EACH {
            let at = r * self.row_groups() * stride;
            let _ = writeln!(text, "let r{r} = staged[row_group * {stride}u + {at}u + cell];");
        }
        for c in 0..self.columns_each {
            let at = self.columns_at() + c * self.column_groups * stride;
            let _ = writeln!(text, "let c{c} = staged[column_group * {stride}u + {at}u + cell];");
            for lane in LANES {
                for r in 0..ROWS_EACH {
                    let _ = writeln!(text, "{name}{r}_{c} = fma(r{r}.{lane}, c{c}.{lane}, {name}{r}_{c});");
                }
            }
        }
        text
    }

    /// Takes the elements out of the tile that a row does not see, by `absent`, and edits the others.
    pub(crate) fn mask(
        &self,
        place: impl Fn(usize) -> String,
        edit: impl Fn(usize, usize) -> String,
    ) -> String {
        let mut text = String::new();
        for r in 0..ROWS_EACH {
            let at = r * self.row_groups();
            let _ = writeln!(text, "let low{r} = row_low[row_group + {at}u];");
            let _ = writeln!(text, "let high{r} = row_high[row_group + {at}u];");
        }
        for c in 0..self.columns_each {
            let _ = writeln!(text, "let place{c} = {};", place(c * self.column_groups));
        }
        text + &self
            .each(|r, c| format!("let sees{r}_{c} = is_between(place{c}, low{r}, high{r});\n{}", edit(r, c)))
    }

    /// Moves a group of the tile's columns to workgroup memory, or back: [column][half of the rows][row group].
    pub(crate) fn transfer(&self, name: &str, is_load: bool) -> String {
        let each = self.factor_columns() / self.column_groups;
        let mut text = String::new();
        for group in 0..self.columns_each / each {
            let _ = writeln!(text, "if (group == {group}u) {{");
            for (n, half) in (0..each).flat_map(|n| [(n, 0), (n, 1)]) {
                let c = group * each + n;
                let at = format!(
                    "staged[(column_group + {}u) * FACTOR_STRIDE + {}u + row_group]",
                    n * self.column_groups,
                    half * self.row_groups()
                );
                let four: Vec<String> = (4 * half..4 * half + 4).map(|r| format!("{name}{r}_{c}")).collect();
                if is_load {
                    let _ = writeln!(text, "    let four{half}_{c} = {at};");
                    for (element, lane) in four.iter().zip(LANES) {
                        let _ = writeln!(text, "    {element} = four{half}_{c}.{lane};");
                    }
                } else {
                    let _ = writeln!(text, "    {at} = vec4<f32>({});", four.join(", "));
                }
            }
            text += "}\n";
        }
        text
    }

    /// Declares sums of so many quarters a row.
    pub(crate) fn declare_sums(&self, name: &str, halves: usize) -> String {
        let all = (0..ROWS_EACH).flat_map(|r| (0..halves).map(move |half| (r, half)));
        all.map(|(r, half)| format!("    var {name}{r}_{half} = vec4<f32>();\n")).collect()
    }

    /// Adds the products of factors, from the cell `factors` on, and the columns' vectors to a thread's sums, some columns
    /// from `first` on.
    pub(crate) fn add(&self, name: &str, halves: usize) -> String {
        (0..UNROLLED)
            .map(|n| {
                let mut text = format!("{{\n{}", self.factors_and_vector(&format!("(first + {n}u)"), halves));
                for half in 0..halves {
                    text.extend((0..ROWS_EACH).map(|r| add_one(name, r, half)));
                }
                text + "}\n"
            })
            .collect()
    }

    /// The same of one column, without the factors that are absent.
    pub(crate) fn add_present(&self, name: &str, halves: usize) -> String {
        let mut text = self.factors_and_vector("column", halves);
        for r in 0..ROWS_EACH {
            let _ = writeln!(text, "if (bitcast<u32>(p{}.{}) != ABSENT) {{", r / 4, LANES[r % 4]);
            text.extend((0..halves).map(|half| add_one(name, r, half)));
            text += "}\n";
        }
        text
    }

    fn factors_and_vector(&self, column: &str, halves: usize) -> String {
        let mut text = format!(
            "let p0 = staged[factors + {column} * FACTOR_STRIDE];\n\
             let p1 = staged[factors + {column} * FACTOR_STRIDE + ROW_GROUPS];\n"
        );
        for half in 0..halves {
            let at = self.vectors_at() + half * self.column_groups;
            let _ = writeln!(
                text,
                "let v{half} = staged[{column} * {}u + {at}u + column_group];",
                self.quarters()
            );
        }
        text
    }

    /// Quarters that a thread has of vectors of so many elements.
    pub(crate) const fn halves(&self, dim: usize) -> usize {
        if dim > 4 * self.column_groups { 2 } else { 1 }
    }

    /// Writes a thread's sums to the vectors of its rows, but those of rows that are none; `by` is a row's factor.
    pub(crate) fn write(
        &self,
        name: &str,
        halves: usize,
        [region, dim]: [&str; 2],
        by: impl Fn(usize) -> String,
    ) -> String {
        let mut text = String::new();
        for r in 0..ROWS_EACH {
            let row = format!("row_vector[row_group + {}u]", r * self.row_groups());
            let _ = writeln!(text, "    if ({row} != 0xffffffffu) {{");
            for half in 0..halves {
                let d = format!("4u * (column_group + {}u)", half * self.column_groups);
                let _ = writeln!(
                    text,
                    "        put_four({region} + {row} * {dim}, {d}, {dim}, {} * {name}{r}_{half});",
                    by(r)
                );
            }
            text += "    }\n";
        }
        text
    }
}

fn add_one(name: &str, r: usize, half: usize) -> String {
    let factor = format!("p{}.{}", r / 4, LANES[r % 4]);
    format!("{name}{r}_{half} = fma(vec4<f32>({factor}), v{half}, {name}{r}_{half});\n")
}

/// What reads four elements of a vector at `at`: of one whose elements are all there, or of any.
pub(crate) fn four(is_whole: bool, at: &str, d: &str, dim: &str) -> String {
    match is_whole {
        true => format!("four_at({at} + {d})"),
        false => format!("four_of({at}, {d}, {dim})"),
    }
}
