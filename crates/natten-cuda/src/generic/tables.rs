//! Gradients of captured tensors and of the bias: each is added up from tables, of which every kernel that adds to it has
//! some of its own.

use natten_core::Role;

use super::tensors::storage;
use super::{Builder, text};
use crate::family::{Argument, Step};

/// The bytes that the tables of one tensor may take.
const MOST_BYTES: u64 = 64 << 20;

/// The tables of all tensors.
#[derive(Debug, Default)]
pub(super) struct Tables {
    list: Vec<Table>,
}

/// The tables of one tensor.
#[derive(Debug)]
struct Table {
    /// The result.
    role: Role,
    entries: u64,
    /// The tables that each kernel has, one after the other, in the workspace.
    parts: Vec<Part>,
}

/// The tables that one launch fills: the numbers of the launch's arguments tell where they lie, which is known only when
/// all parts are.
#[derive(Debug)]
struct Part {
    pieces: u64,
    /// The step, and which of its arguments is the tables' place.
    step: usize,
    argument: usize,
}

impl Builder<'_> {
    /// Declares a result that is added up from tables. It is written even where nothing adds to it.
    pub(super) fn add_table(&mut self, role: Role) {
        let entries = self.problem.shape(role).iter().map(|&n| n as u64).product();
        if !self.tables.list.iter().any(|table| table.role == role) {
            self.tables.list.push(Table { role, entries, parts: Vec::new() });
        }
    }

    /// How many tables a launch should have whose rows fall apart into `outer` that never meet and `inner` that do.
    pub(super) fn pieces(&self, entries: u64, outer: u64, inner: u64) -> u64 {
        let wanted = u64::from(self.target.units) * 16;
        let room = MOST_BYTES / entries.saturating_mul(self.real()).max(1);
        wanted.div_ceil(outer.max(1)).min(inner).min(room).max(1)
    }

    /// Says that the launch that comes next fills so many tables of a result, whose place is to be this argument of it.
    pub(super) fn fills_tables(&mut self, role: Role, pieces: u64, argument: usize) {
        let step = self.steps.len();
        if let Some(table) = self.tables.list.iter_mut().find(|table| table.role == role) {
            table.parts.push(Part { pieces, step, argument });
        }
    }
}

/// Lays out the tables, clears them before everything else, and adds them up behind it.
pub(super) fn finish(builder: &mut Builder<'_>) {
    let tables = std::mem::take(&mut builder.tables).list;
    let begin = builder.workspace;
    for table in &tables {
        let pieces: u64 = table.parts.iter().map(|part| part.pieces).sum();
        let at = builder.reserve(pieces.saturating_mul(table.entries));
        let mut before = 0;
        for part in &table.parts {
            let place = at + before * table.entries * builder.real();
            if let Some(Step::Launch(kernel)) = builder.steps.get_mut(part.step) {
                kernel.arguments[part.argument] = Argument::Workspace(place);
            }
            before += part.pieces;
        }
        reduce(builder, table, at, pieces);
    }
    let bytes = builder.workspace - begin;
    if bytes > 0 {
        builder.steps.insert(0, Step::Zero { offset: begin, bytes });
    }
}

fn reduce(builder: &mut Builder<'_>, table: &Table, at: u64, pieces: u64) {
    let problem = builder.problem;
    let dtype = problem.dtype_of(table.role);
    let source = builder.prelude(&[("TO", storage(dtype).to_owned())]) + text::REDUCE;
    let mut extents: Vec<i32> = problem.shape(table.role).iter().map(|&n| n as i32).collect();
    if table.role == Role::GradRpb || table.role == Role::Grad2Rpb {
        // Views of the bias have three window axes.
        extents.splice(1..1, std::iter::repeat_n(1, 3 - problem.neighborhood().rank()));
    }
    let mut shape = vec![extents.len() as i32];
    extents.resize(8, 1);
    shape.extend(extents);
    let arguments = vec![
        Argument::View(table.role),
        Argument::Bytes { data: shape.into_iter().flat_map(i32::to_le_bytes).collect(), align: 4 },
        Argument::Workspace(at),
        Argument::I64(pieces as i64),
        Argument::I64(table.entries as i64),
    ];
    let blocks = table.entries.div_ceil(256).min(1 << 16);
    builder.launch_blocks(source, "reduce", blocks, 256, arguments);
}
