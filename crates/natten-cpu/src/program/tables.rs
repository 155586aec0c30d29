//! The gradients of captured tensors while they are summed, in f64.
//!
//! Where every unit of the walk writes elements of its own, one table is enough: the element's index contains the head
//! and the query. Otherwise a unit has a table for itself, of its head's elements alone where the first index is the
//! head, and the tables are added in their order at the end: the same sum for any number of threads.

use natten_core::Problem;
use natten_core::program::{Graph, Index, LoadGradient, Loads};

use super::walk::MAX_CAPTURES;
use crate::element::Real;
use crate::tokens::Entries;

/// Memory that tables of units may take, all together.
const BYTES: usize = 64 << 20;

/// The gradient of one captured tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) capture: u8,
    /// Entries of a table.
    entries: usize,
    sharing: Sharing,
    /// Where the tables begin.
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// One table: units write entries of their own.
    Shared,
    /// A table a unit.
    Own,
    /// A table a unit, of the entries of its head.
    OwnHead,
}

/// Which tables there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    list: Vec<Table>,
    /// Units a head, where units have tables.
    pieces: usize,
    heads: usize,
    /// f64s in all.
    pub(super) len: usize,
}

/// A load that has a gradient, in its graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    pub(super) graph: &'a Graph,
    pub(super) gradient: &'a LoadGradient,
}

impl Layout {
    /// The tables of some captured tensors. `most_pieces` is how many units a head may have for other reasons.
    pub(super) fn new(problem: &Problem, captures: &[u8], loads: &[Load<'_>], most_pieces: usize) -> Self {
        let heads = problem.heads();
        let mut list: Vec<Table> = captures
            .iter()
            .map(|&capture| {
                let shape = &problem.program().captures()[usize::from(capture)].shape;
                let of = loads.iter().filter(|load| load.gradient.capture == capture);
                let of = Loads::new(shape, of.map(|load| (load.graph, load.gradient)));
                // Batch entries are walked one after the other.
                let [_, heads_apart, queries_apart] = of.rows_apart(problem);
                let sharing = match () {
                    () if heads_apart && queries_apart => Sharing::Shared,
                    () if shape.first() == Some(&heads) && of.have_at(0, Index::Head) => Sharing::OwnHead,
                    () => Sharing::Own,
                };
                let entries: usize = shape.iter().product();
                let entries = if sharing == Sharing::OwnHead { entries / heads } else { entries };
                Table { capture, entries, sharing, at: 0 }
            })
            .collect();
        let of_unit: usize =
            list.iter().filter(|table| table.sharing != Sharing::Shared).map(|table| table.entries).sum();
        let bytes = of_unit.saturating_mul(heads).saturating_mul(size_of::<f64>());
        let pieces = match bytes {
            0 => most_pieces,
            bytes => (BYTES / bytes).clamp(1, most_pieces.max(1)),
        };
        let mut len: usize = 0;
        for table in &mut list {
            table.at = len;
            let tables = if table.sharing == Sharing::Shared { 1 } else { heads * pieces };
            len = len.saturating_add(table.entries.saturating_mul(tables));
        }
        Self { list, pieces, heads, len }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Units a head.
    pub(super) const fn pieces(&self) -> usize {
        self.pieces
    }

    pub(super) fn captures(&self) -> impl Iterator<Item = u8> {
        self.list.iter().map(|table| table.capture)
    }
}

/// The tables of a run.
#[derive(Debug)]
pub(super) struct Tables<'l> {
    layout: &'l Layout,
    data: *mut f64,
}

// SAFETY: every unit writes tables, or entries of shared ones, of its own.
unsafe impl Send for Tables<'_> {}
// SAFETY: as above.
unsafe impl Sync for Tables<'_> {}

/// Entries that one unit of the clearing and of the summing takes.
const CHUNK: usize = 1 << 14;

impl Tables<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// Units a head.
    pub(super) fn pieces(&self) -> usize {
        self.layout.pieces()
    }
}

impl<'l> Tables<'l> {
    /// Tables in `data`, which has the layout's length.
    pub(super) fn new(layout: &'l Layout, data: &mut [f64]) -> Self {
        Self { layout, data: data.as_mut_ptr() }
    }

    /// Where the tables of a unit begin, so that an element's row-major number finds its entry.
    pub(super) fn of_unit(&self, unit: usize, head: usize, to: &mut [*mut f64; MAX_CAPTURES]) {
        for (table, to) in self.layout.list.iter().zip(to) {
            let first = self.data.wrapping_add(table.at);
            *to = match table.sharing {
                Sharing::Shared => first,
                Sharing::Own => first.wrapping_add(unit * table.entries),
                // The head's entries alone are there: those of the heads before it are stepped over.
                Sharing::OwnHead => {
                    first.wrapping_add(unit * table.entries).wrapping_sub(head * table.entries)
                }
            };
        }
    }

    /// Sets the tables that a unit has for itself to zero.
    ///
    /// # Safety
    /// No other thread has the unit.
    pub(super) unsafe fn clear_unit(&self, unit: usize) {
        for table in self.layout.list.iter().filter(|table| table.sharing != Sharing::Shared) {
            let first = self.data.wrapping_add(table.at + unit * table.entries);
            // SAFETY: the caller's; the unit's table is inside the data.
            unsafe { std::slice::from_raw_parts_mut(first, table.entries) }.fill(0.0);
        }
    }

    fn shared(&self) -> impl Iterator<Item = &Table> {
        self.layout.list.iter().filter(|table| table.sharing == Sharing::Shared)
    }

    /// Units of clearing the shared tables.
    pub(super) fn clear_units(&self) -> usize {
        self.shared().map(|table| table.entries.div_ceil(CHUNK)).sum()
    }

    /// Sets some entries of shared tables to zero.
    ///
    /// # Safety
    /// No other thread has the unit of [`clear_units`](Self::clear_units).
    pub(super) unsafe fn clear_shared(&self, mut unit: usize) {
        for table in self.shared() {
            let units = table.entries.div_ceil(CHUNK);
            if unit < units {
                let (first, len) = (unit * CHUNK, CHUNK.min(table.entries - unit * CHUNK));
                let data = self.data.wrapping_add(table.at + first);
                // SAFETY: the caller's; the chunk is inside the table.
                unsafe { std::slice::from_raw_parts_mut(data, len) }.fill(0.0);
                return;
            }
            unit -= units;
        }
    }

    /// Units of summing tables into a result.
    pub(super) fn sum_units(&self, result: &Entries<'_, '_>) -> usize {
        result.len().div_ceil(CHUNK)
    }

    /// Sums some entries of table number `table` over the units, in their order, into its result.
    ///
    /// # Safety
    /// No other thread has the unit of [`sum_units`](Self::sum_units), and nobody writes the tables any more.
    pub(super) unsafe fn sum<R: Real>(&self, table: usize, unit: usize, result: &Entries<'_, '_>) {
        let table = &self.layout.list[table];
        let (heads, pieces) = (self.layout.heads, self.layout.pieces);
        let end = ((unit + 1) * CHUNK).min(result.len());
        for entry in unit * CHUNK..end {
            let (units, of_table) = match table.sharing {
                Sharing::Shared => (0..1, entry),
                Sharing::Own => (0..heads * pieces, entry),
                Sharing::OwnHead => {
                    let head = entry / table.entries;
                    (head * pieces..(head + 1) * pieces, entry % table.entries)
                }
            };
            // SAFETY: the caller's; the entries are inside their tables.
            let sum: f64 =
                units.map(|unit| unsafe { *self.data.add(table.at + unit * table.entries + of_table) }).sum();
            result.set(entry, R::of(sum));
        }
    }
}
