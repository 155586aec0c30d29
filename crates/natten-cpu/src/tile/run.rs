//! Runs a tile: what does not differ between pairs once, the pairs strip by strip, then masks and scatters.

use std::ops::Range;

use super::code::{Instruction, Layout, Place, TileCode};
use super::execute::Steps;
use super::{TileRun, scatter};
use crate::element::Real;
use crate::lanes::Direction;
use crate::simd::{Outlined, Simd};

/// A strip of a tile, and the memory that its values are in.
pub(super) struct Strip<'m, R> {
    pub(super) tile: &'m TileRun<'m, R>,
    pub(super) direction: Direction,
    pub(super) heads: i32,
    /// Lanes of a row.
    pub(super) width: usize,
    /// The strip's rows of the tile.
    pub(super) rows: Range<usize>,
    memory: *mut R,
    layout: Layout,
}

/// A place: where its first row is, and how many rows on each further one is: one, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub(super) at: *mut u8,
    pub(super) moves: usize,
}

impl<R: Real> Strip<'_, R> {
    /// Where a value is.
    ///
    /// # Safety
    /// The place is one of the code that the memory was laid out for.
    #[inline(always)]
    pub(super) unsafe fn operand(&self, place: Place) -> Operand {
        let Layout { strip, row, truth, fixed_at, row_at, pair_at, truth_at, .. } = self.layout;
        // SAFETY: the registers are inside the memory, and the strip is inside the tile.
        unsafe {
            let (at, moves) = match place {
                Place::Fixed(register) => (self.memory.add(fixed_at + register * self.width), 0),
                Place::Row(register) => (self.memory.add(row_at + register * row), 1),
                Place::Pair(register) => (self.memory.add(pair_at + register * strip * self.width), 1),
                Place::Truth(register) => (self.memory.add(truth_at + register * truth), 1),
                Place::Tile(tile) => (self.tile.tiles[tile].add(self.rows.start * self.width).cast_mut(), 1),
                Place::Out(tile) => (self.tile.outputs[tile].add(self.rows.start * self.width), 1),
            };
            Operand { at: at.cast(), moves }
        }
    }
}

impl TileCode {
    /// Evaluates the code over a tile.
    ///
    /// # Safety
    /// The processor has `S`. The tile has what the code's sources and outputs name, in the lengths that [`TileRun`]
    /// states, and every captured tensor that is loaded from or has a gradient has its shape's elements. An output tile
    /// is apart from the other outputs, and is one of the input tiles or apart from all. `scratch` has
    /// [`scratch`](Self::scratch) elements.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, tile: &mut TileRun<'_, S::T>, scratch: &mut [S::T]) {
        debug_assert!(scratch.len() >= self.scratch(S::WIDTH));
        // SAFETY: the caller's.
        unsafe { S::outlined(Run { code: self, tile, scratch }) };
    }
}

struct Run<'c, 't, 's, R> {
    code: &'c TileCode,
    tile: &'c mut TileRun<'t, R>,
    scratch: &'s mut [R],
}

impl<R: Real> Outlined for Run<'_, '_, '_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        let Self { code, tile, scratch } = self;
        let memory = Memory::new(code, S::WIDTH, scratch);
        let sums = memory.at.cast::<f64>();
        // SAFETY: the caller's; scratch was sized by the same layout, or by that of the smaller type, which is larger.
        unsafe {
            std::slice::from_raw_parts_mut(sums, code.scatters.len() * S::WIDTH).fill(0.0);
            execute::<S>(&code.fixed, &memory.strip(code, tile, 0..0), 1);
            for start in (0..tile.rows).step_by(memory.layout.strip) {
                let rows = start..tile.rows.min(start + memory.layout.strip);
                let strip = memory.strip(code, tile, rows.clone());
                execute::<S>(&code.rows, &strip, rows.len().div_ceil(S::WIDTH));
                execute::<S>(&code.pairs, &strip, rows.len());
                for &mask in &code.masks {
                    let mask = memory.strip(code, tile, rows.clone()).operand(mask);
                    for (row, counts) in tile.masks[rows.clone()].iter_mut().enumerate() {
                        *counts &= *mask.at.cast::<u32>().add(row * mask.moves);
                    }
                }
                for (n, scatter) in code.scatters.iter().enumerate() {
                    let strip = memory.strip(code, tile, rows.clone());
                    let operands = (strip.operand(scatter.offset), strip.operand(scatter.gradient));
                    let sums = std::slice::from_raw_parts_mut(sums.add(n * S::WIDTH), S::WIDTH);
                    scatter::add::<S>(scatter, operands, rows.clone(), tile, sums);
                }
            }
            for (n, scatter) in code.scatters.iter().enumerate() {
                let offset = memory.strip(code, tile, 0..0).operand(scatter.offset);
                let sums = std::slice::from_raw_parts(sums.add(n * S::WIDTH), S::WIDTH);
                scatter::finish::<S>(scatter, offset, tile, sums);
            }
        }
    }
}

/// Scratch memory, from its first whole cache line on.
#[derive(Clone, Copy, Debug)]
struct Memory<R> {
    at: *mut R,
    width: usize,
    layout: Layout,
}

impl<R: Real> Memory<R> {
    fn new(code: &TileCode, width: usize, scratch: &mut [R]) -> Self {
        let begin = scratch.as_ptr().align_offset(64).min(scratch.len());
        Self { at: scratch[begin..].as_mut_ptr(), width, layout: code.layout(width, size_of::<R>()) }
    }

    #[inline(always)]
    fn strip<'m>(&self, code: &TileCode, tile: &'m TileRun<'m, R>, rows: Range<usize>) -> Strip<'m, R> {
        let Self { at: memory, width, layout } = *self;
        Strip { tile, direction: code.direction, heads: code.heads, width, rows, memory, layout }
    }
}

/// Executes instructions on `rows` rows of the strip's registers.
///
/// # Safety
/// As [`TileCode::run`]; the rows are inside the registers.
#[inline(always)]
unsafe fn execute<S: Simd>(instructions: &[Instruction], strip: &Strip<'_, S::T>, rows: usize) {
    if !instructions.is_empty() {
        // SAFETY: the caller's.
        unsafe { S::outlined(Steps { instructions, strip, rows }) };
    }
}
