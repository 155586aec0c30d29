//! Gradients of captured tensors: tables in f64 that blocks add to, in an order that does not depend on the threads.
//!
//! The tokens of a problem are cut into parts, which threads take one by one. Where no two tokens load the same element,
//! because one axis of the tensor is indexed by the batch entry, another by the head and a third by the token, all parts
//! add to one table. Otherwise each part has a table of its own, and they are summed in order; there are so few parts
//! then that the tables together are smaller than the tokens' vectors.

use natten_core::program::{Expr, Graph, Index, LoadGradient, Loads};
use natten_core::{Problem, Role};

use super::captured::{Grid, Offsets};
use super::{Place, Registers, Tape, Target};
use crate::element::Real;
use crate::engine::{Crew, Line, Tensors};
use crate::slab::Slab;

/// The most parts that tokens are cut into, and the most that have tables of their own.
const MOST_PARTS: usize = 512;
const MOST_TABLES: usize = 64;

/// The least elements of vectors for every entry of the tables that sum them.
const ELEMENTS_A_ENTRY: usize = 4;

/// Entries that one unit sums.
const ENTRIES_A_UNIT: usize = 4096;

/// What loads from captured tensors: for every token of some heads, a vector of some numbers.
#[derive(Clone, Debug)]
pub(crate) struct User<'u> {
    pub(crate) graph: &'u Graph,
    /// The loads whose gradients are wanted.
    pub(crate) loads: &'u [LoadGradient],
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    /// The indices that tell the heads apart.
    pub(crate) head: &'u [Index],
    pub(crate) tokens: usize,
    /// The index that tells the tokens apart.
    pub(crate) token: Vec<Index>,
    pub(crate) lanes: usize,
}

impl User<'_> {
    /// Whether no two tokens load the same element of a captured tensor.
    fn is_apart(&self, capture: u8, shape: &[usize]) -> bool {
        let of = self.loads.iter().filter(|load| load.capture == capture);
        let loads = Loads::new(shape, of.map(|load| (self.graph, load)));
        loads.tell_apart(self.batch, &[Index::Batch])
            && loads.tell_apart(self.heads, self.head)
            && loads.tell_apart(self.tokens, &self.token)
    }

    fn elements(&self) -> usize {
        self.batch.saturating_mul(self.heads).saturating_mul(self.tokens).saturating_mul(self.lanes)
    }
}

/// The tables of one captured tensor.
#[derive(Clone, Debug)]
struct Table {
    capture: u8,
    grid: Grid,
    entries: usize,
    /// Tables: one, or one a part.
    count: usize,
    /// Where they begin.
    at: usize,
}

/// The tables of every captured tensor whose gradient is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    tables: Vec<Table>,
    parts: usize,
    len: usize,
}

impl Tables {
    /// Tables for the captured tensors of these numbers, and what adds to them.
    pub(crate) fn new(problem: &Problem, captures: &[u8], users: &[User<'_>]) -> Self {
        let shape = |capture: u8| problem.shape(Role::Capture(capture));
        let elements: usize = users.iter().map(User::elements).max().unwrap_or(0);
        let is_apart = |capture: u8| users.iter().all(|user| user.is_apart(capture, &shape(capture)));
        let most = |capture: u8| {
            let entries: usize = shape(capture).iter().product();
            (elements / entries.saturating_mul(ELEMENTS_A_ENTRY).max(1)).clamp(1, MOST_TABLES)
        };
        let parts = captures
            .iter()
            .filter(|&&capture| !is_apart(capture))
            .map(|&capture| most(capture))
            .fold(MOST_PARTS, usize::min);
        let mut len = 0usize;
        let tables = captures
            .iter()
            .map(|&capture| {
                let shape = shape(capture);
                let entries: usize = shape.iter().product();
                let strides = natten_core::contiguous_strides(&shape);
                let count = if is_apart(capture) { 1 } else { parts };
                let at = len;
                len = len.saturating_add(entries.saturating_mul(count));
                Table { capture, grid: Grid::new(&shape, &strides), entries, count, at }
            })
            .collect();
        Self { tables, parts, len }
    }

    /// Whether no gradient is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether there is a table of this captured tensor.
    pub(crate) fn has(&self, capture: u8) -> bool {
        self.tables.iter().any(|table| table.capture == capture)
    }

    /// Numbers of f64 in all.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The parts that tokens are cut into.
    pub(crate) const fn parts(&self) -> usize {
        self.parts
    }

    /// Which of `count` things belong to a part.
    pub(crate) fn part(&self, part: usize, count: usize) -> std::ops::Range<usize> {
        let at = |part: usize| (count as u128 * part as u128 / self.parts as u128) as usize;
        at(part)..at(part + 1)
    }

    /// Empty tables in a memory of [`len`](Self::len) numbers.
    pub(crate) fn clear<'m>(&self, memory: &'m mut [f64]) -> Slab<'m, f64> {
        let memory = &mut memory[..self.len];
        memory.fill(0.0);
        Slab::new(memory)
    }

    /// Writes the sums of the tables, and of what `more` has for a captured tensor and entry, to the outputs that `role`
    /// names.
    pub(crate) fn write(
        &self,
        crew: &Crew,
        scratch: &mut [Line],
        memory: Slab<'_, f64>,
        tensors: &mut Tensors<'_, '_, '_>,
        role: fn(u8) -> Role,
        more: impl Fn(u8, usize) -> f64 + Sync,
    ) {
        for table in &self.tables {
            let Some(view) = tensors.output(role(table.capture)) else { continue };
            let target = Target::new(view);
            crew.share_out(table.entries.div_ceil(ENTRIES_A_UNIT), scratch, |_, units| {
                for unit in units {
                    for entry in unit * ENTRIES_A_UNIT..((unit + 1) * ENTRIES_A_UNIT).min(table.entries) {
                        let sums = (0..table.count).map(|count| {
                            let at = table.at + count * table.entries + entry;
                            // SAFETY: nothing is added to the tables any more.
                            unsafe { memory.read(at..at + 1)[0] }
                        });
                        let sum: f64 = sums.sum();
                        // SAFETY: the view has the shape of the capture, and every entry belongs to one unit.
                        unsafe { target.set(entry, sum + more(table.capture, entry)) };
                    }
                }
            });
        }
    }
}

/// What a tape's blocks add to tables: root after root, the index of an element and the gradient.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scatter {
    loads: Vec<Load>,
}

#[derive(Clone, Debug)]
struct Load {
    table: usize,
    place: Place,
    /// The root that is the gradient.
    gradient: usize,
}

impl Scatter {
    /// The roots that a tape needs for these gradients, of which `pick` takes the value or the tangent.
    pub(crate) fn roots(loads: &[LoadGradient], pick: impl Fn(&LoadGradient) -> Expr) -> Vec<Expr> {
        loads.iter().flat_map(|load| load.index.iter().copied().chain([pick(load)])).collect()
    }

    /// Of a tape whose roots from `first` on are [`roots`](Self::roots) of the same loads.
    pub(crate) fn new(
        tape: &Tape,
        graph: &Graph,
        loads: &[LoadGradient],
        first: usize,
        tables: &Tables,
    ) -> Self {
        let mut at = first;
        let loads = loads.iter().filter_map(|load| {
            let place = tape.place(graph, &load.index, at);
            let gradient = at + load.index.len();
            at = gradient + 1;
            let table = tables.tables.iter().position(|table| table.capture == load.capture)?;
            Some(Load { table, place, gradient })
        });
        Self { loads: loads.collect() }
    }

    /// Adds what a block computed.
    ///
    /// # Safety
    /// The memory lives, and no other thread adds to this part.
    pub(crate) unsafe fn add<R: Real>(
        &self,
        tape: &Tape,
        registers: &Registers<'_, R>,
        tables: &Tables,
        (memory, part): (Slab<'_, f64>, usize),
        rows: usize,
        lanes: usize,
    ) {
        for load in &self.loads {
            let table = &tables.tables[load.table];
            let part = if table.count == 1 { 0 } else { part };
            let table_of_part =
                memory.pointer(&(table.at + part * table.entries..table.at + (part + 1) * table.entries));
            let stride = tape.lanes;
            let places = |at: usize| registers.integers[at];
            for row in 0..rows {
                let offsets = table.grid.row(&load.place, places, row, lanes, stride);
                let gradients = tape.root(registers, load.gradient, row);
                let gradient = |lane: usize| gradients[lane.min(gradients.len() - 1)].to_f64();
                // SAFETY: indices were clamped into the axes, so every offset is inside the table; no other part adds there.
                unsafe {
                    match offsets {
                        Offsets::Even(at, 0) => {
                            let sum: f64 = (0..lanes).map(gradient).sum();
                            *table_of_part.wrapping_offset(at) += sum;
                        }
                        Offsets::Even(at, step) => {
                            for lane in 0..lanes {
                                *table_of_part.wrapping_offset(at + lane as isize * step) += gradient(lane);
                            }
                        }
                        Offsets::Anywhere(at) => {
                            for lane in 0..lanes {
                                let at = table.grid.lane(&load.place, places, row, lane, stride, at);
                                *table_of_part.wrapping_offset(at) += gradient(lane);
                            }
                        }
                    }
                }
            }
        }
    }
}
