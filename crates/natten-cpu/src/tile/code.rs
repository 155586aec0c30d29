//! What the evaluator runs: values in order, each with a place. Registers of pairs are shared by values that do not
//! live at the same time.

use natten_core::Result;
use natten_core::program::{Capture, Graph, Type, Var};

use super::build::{Builder, Class, Op, Value};
use super::{Output, Source};
use crate::lanes::Direction;

/// Memory that the registers of a strip should take, in bytes: half of a small first-level cache.
const STRIP_BYTES: usize = 16 << 10;

/// The fewest and the most rows of a strip.
const STRIP_ROWS: (usize, usize) = (4, 64);

/// Elements that scratch memory may begin before the first cache line that is whole.
const ALIGNMENT: usize = 16;

/// Where a value is. Numbers and integers of the same place overlap: it is as large as its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Uniform and lane values: a register of `WIDTH`, of one row, the same for every row.
    Fixed(usize),
    /// Row values: a register of a number a row.
    Row(usize),
    /// Pair values: a register of `WIDTH` a row.
    Pair(usize),
    /// Conditions of pairs: a register of a word a row.
    Truth(usize),
    /// An input tile.
    Tile(usize),
    /// An output tile.
    Out(usize),
}

/// One operation on everything that a place holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction {
    pub(super) op: Op,
    pub(super) ty: Type,
    pub(super) to: Place,
    /// Those beyond the operation's are any place.
    pub(super) arguments: [Place; 3],
}

/// See [`Output::Scatter`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Scatter {
    /// Among [`TileRun::tables`](super::TileRun::tables).
    pub(super) table: usize,
    pub(super) offset: Place,
    /// The class of the offset.
    pub(super) class: Class,
    pub(super) gradient: Place,
}

/// Numbers of registers of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub(super) fixed: usize,
    pub(super) row: usize,
    pub(super) pair: usize,
    pub(super) truth: usize,
}

/// Expressions, ready to be evaluated over tiles.
#[derive(Clone, Debug)]
pub(crate) struct TileCode {
    pub(super) direction: Direction,
    /// Query heads.
    pub(super) heads: i32,
    /// What is evaluated once a tile, once a row, and once a pair.
    pub(super) fixed: Vec<Instruction>,
    pub(super) rows: Vec<Instruction>,
    pub(super) pairs: Vec<Instruction>,
    pub(super) masks: Vec<Place>,
    pub(super) scatters: Vec<Scatter>,
    pub(super) registers: Registers,
}

/// Where the parts of scratch memory begin, in elements, and how many rows a strip has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) strip: usize,
    /// Elements of a register of each kind.
    pub(super) row: usize,
    pub(super) truth: usize,
    /// Where the registers of each kind begin. The sums of scatters come first, the fixed registers next.
    pub(super) fixed_at: usize,
    pub(super) row_at: usize,
    pub(super) pair_at: usize,
    pub(super) truth_at: usize,
    len: usize,
}

impl TileCode {
    /// Prepares `outputs` of `graph` for tiles of a direction. `sources` tells where each variable is, `captures` are
    /// the program's, `heads` is the number of query heads.
    ///
    /// # Errors
    /// [`Unsupported`](natten_core::Error::Unsupported) where a variable has no source, for operations on vectors, and
    /// for loads from tensors of 2^31 elements or more.
    pub(crate) fn new(
        graph: &Graph,
        outputs: &[Output],
        direction: Direction,
        heads: usize,
        sources: &dyn Fn(Var) -> Option<Source>,
        captures: &[Capture],
    ) -> Result<Self> {
        let mut builder = Builder::new(graph, direction, sources, captures);
        let mut plan = Plan::default();
        for output in outputs {
            match output {
                Output::Tile(expr) => {
                    let value = builder.expr(*expr)?;
                    plan.tiles.push(builder.of_pairs(value));
                }
                Output::Mask(expr) => {
                    let value = builder.expr(*expr)?;
                    plan.masks.push(builder.of_lanes(value));
                }
                Output::Scatter { capture, table, index, gradient } => {
                    let index = index.iter().map(|&i| builder.expr(i)).collect::<Result<Vec<_>>>()?;
                    let offset = builder.offset(*capture, &index)?;
                    let gradient = builder.expr(*gradient)?;
                    plan.scatters.push((*table, offset, builder.of_lanes(gradient)));
                }
            }
        }
        Ok(plan.finish(builder.values, direction, heads))
    }

    /// Elements of scratch memory that a thread needs for tiles of `width` lanes, of either type. Nothing stays in it
    /// from tile to tile.
    pub(crate) fn scratch(&self, width: usize) -> usize {
        ALIGNMENT + self.layout(width, size_of::<f32>()).len
    }

    /// The parts of scratch memory for elements of `size` bytes.
    pub(super) fn layout(&self, width: usize, size: usize) -> Layout {
        let Registers { fixed, row, pair, truth } = self.registers;
        let (fewest, most) = STRIP_ROWS;
        let strip = (STRIP_BYTES / (pair.max(1) * width * size)).clamp(fewest, most);
        let row_len = strip.next_multiple_of(width);
        let truth_len = strip.next_multiple_of(ALIGNMENT);
        // A sum is an f64: two elements of the smaller type.
        let fixed_at = self.scatters.len() * width * 2;
        let row_at = fixed_at + fixed * width;
        let pair_at = (row_at + row * row_len).next_multiple_of(ALIGNMENT);
        let truth_at = pair_at + pair * strip * width;
        let len = truth_at + truth * truth_len;
        Layout { strip, row: row_len, truth: truth_len, fixed_at, row_at, pair_at, truth_at, len }
    }
}

/// The outputs as values.
#[derive(Default)]
struct Plan {
    tiles: Vec<usize>,
    masks: Vec<usize>,
    /// Table, offset, gradient.
    scatters: Vec<(usize, usize, usize)>,
}

impl Plan {
    fn finish(self, values: Vec<Value>, direction: Direction, heads: usize) -> TileCode {
        let last_use = self.last_uses(&values);
        let last_read_of_tiles = values
            .iter()
            .rposition(|value| value.arguments().iter().any(|&a| matches!(values[a].op, Op::Tile(_))));
        let mut registers = Registers::default();
        let (mut free_pairs, mut free_truths) = (Vec::new(), Vec::new());
        let mut places: Vec<Place> = Vec::with_capacity(values.len());
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for (at, value) in values.iter().enumerate() {
            // A register that ends here is free for the result, but not where elements change their size, nor for
            // integers, whose loops take it that nothing overlaps.
            let ends = |&argument: &usize| last_use[argument] == at;
            let release = |of: Place, pairs: &mut Vec<usize>, truths: &mut Vec<usize>| match of {
                Place::Pair(register) => pairs.push(register),
                Place::Truth(register) => truths.push(register),
                _ => {}
            };
            let mut ending: Vec<usize> = value.arguments().iter().copied().filter(ends).collect();
            ending.sort_unstable();
            ending.dedup();
            let (early, late): (Vec<usize>, Vec<usize>) =
                ending.into_iter().partition(|&a| value.ty == Type::F && values[a].ty == Type::F);
            for argument in early {
                release(places[argument], &mut free_pairs, &mut free_truths);
            }
            let next = |count: &mut usize| {
                *count += 1;
                *count - 1
            };
            let place = match (value.class, value.op) {
                (Class::Uniform | Class::Lane, _) => Place::Fixed(next(&mut registers.fixed)),
                (Class::Row, _) => Place::Row(next(&mut registers.row)),
                (Class::Pair, Op::Tile(tile)) => Place::Tile(tile),
                (Class::Pair, _) if value.ty == Type::B => {
                    Place::Truth(free_truths.pop().unwrap_or_else(|| next(&mut registers.truth)))
                }
                // No later value reads an input tile, which the output may be.
                (Class::Pair, _) if last_read_of_tiles.is_none_or(|last| last <= at) => {
                    match self.tiles.iter().position(|&tile| tile == at) {
                        Some(slot) => Place::Out(slot),
                        None => Place::Pair(free_pairs.pop().unwrap_or_else(|| next(&mut registers.pair))),
                    }
                }
                _ => Place::Pair(free_pairs.pop().unwrap_or_else(|| next(&mut registers.pair))),
            };
            places.push(place);
            for argument in late {
                release(places[argument], &mut free_pairs, &mut free_truths);
            }
            let part = match value.class {
                Class::Uniform | Class::Lane => 0,
                Class::Row => 1,
                Class::Pair => 2,
            };
            let is_used = last_use[at] != at;
            if is_used && !matches!(value.op, Op::Tile(_)) {
                let arguments =
                    std::array::from_fn(|i| value.arguments().get(i).map_or(place, |&a| places[a]));
                parts[part].push(Instruction { op: value.op, ty: value.ty, to: place, arguments });
            }
        }
        let [fixed, rows, mut pairs] = parts;
        for (slot, &value) in self.tiles.iter().enumerate() {
            if places[value] != Place::Out(slot) {
                let from = places[value];
                pairs.push(Instruction {
                    op: Op::Copy,
                    ty: Type::F,
                    to: Place::Out(slot),
                    arguments: [from; 3],
                });
            }
        }
        let scatters = self.scatters.iter().map(|&(table, offset, gradient)| Scatter {
            table,
            offset: places[offset],
            class: values[offset].class,
            gradient: places[gradient],
        });
        TileCode {
            direction,
            heads: heads as i32,
            fixed,
            rows,
            pairs,
            masks: self.masks.iter().map(|&mask| places[mask]).collect(),
            scatters: scatters.collect(),
            registers,
        }
    }

    /// The last value that reads each; the number of values where it is read when all are there.
    fn last_uses(&self, values: &[Value]) -> Vec<usize> {
        let mut last: Vec<usize> = (0..values.len()).collect();
        for (at, value) in values.iter().enumerate() {
            for &argument in value.arguments() {
                last[argument] = at;
            }
        }
        let scatters = self.scatters.iter().flat_map(|&(_, offset, gradient)| [offset, gradient]);
        for value in self.tiles.iter().chain(&self.masks).copied().chain(scatters) {
            last[value] = values.len();
        }
        last
    }
}
