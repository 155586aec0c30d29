//! Tiles to test on: inputs of every kind, in the type and width of an instruction set.

mod any;
mod hoisting;

use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use natten_core::program::{Buffer, Capture, Expr, Graph, Index, Type, Var};
use natten_core::{DType, Element};

use super::*;
use crate::element::Real;
use crate::engine::{Line, lines};
use crate::lanes::{Direction, all_lanes};
use crate::simd::{Isa, MAX_WIDTH, Portable, Simd};

const HEADS: usize = 3;
const MAX_ROWS: usize = 150;
const VARS: [(Var, Source); 6] = [
    (Var::Score, Source::Tile(0)),
    (Var::Grad, Source::Tile(1)),
    (Var::Stage(0), Source::Lane(0)),
    (Var::Stage(1), Source::Row(0)),
    (Var::GradStage(0), Source::Row(1)),
    (Var::Delta, Source::Lane(1)),
];

fn source(var: Var) -> Option<Source> {
    VARS.iter().find(|(known, _)| *known == var).map(|(_, source)| *source)
}

fn captures() -> Vec<Capture> {
    vec![
        Capture::new("table", &[5, 4], DType::F32),
        Capture::new("scalar", &[], DType::F32),
        Capture::new("ids", &[7], DType::I32),
    ]
}

/// The numbers of a tile, in f64.
#[derive(Clone, Debug)]
struct World {
    direction: Direction,
    rows: usize,
    lanes: usize,
    numbers: Vec<f64>,
    integers: Vec<i32>,
    masks: Vec<u32>,
    first: [i32; 2],
    step: [i32; 2],
}

/// A world in the type of a run.
struct Data<R> {
    rows: usize,
    lanes: usize,
    width: usize,
    direction: Direction,
    indices: [[Vec<i32>; 4]; 2],
    lane_numbers: Vec<Vec<R>>,
    row_numbers: Vec<Vec<R>>,
    tiles: Vec<Vec<R>>,
    table: [Vec<R>; 2],
    scalar: Vec<R>,
    ids: Vec<i32>,
    masks: Vec<u32>,
}

impl<R: Real> Data<R> {
    fn new(world: &World, width: usize) -> Self {
        let (rows, lanes) = (world.rows, world.lanes.min(width));
        let mut numbers = world.numbers.iter().cycle().map(|&x| R::of(x));
        let mut take = |n: usize| numbers.by_ref().take(n).collect::<Vec<R>>();
        let mut integers = world.integers.iter().cycle().copied();
        let mut indices = |n: usize, which: usize| -> [Vec<i32>; 4] {
            std::array::from_fn(|axis| {
                // Flat numbers lie in runs with jumps, as those of a box do.
                let flat = |i: usize| world.first[which] + i as i32 + (i as i32 / 5) * 3 * world.step[which];
                (0..n).map(|i| if axis == 0 { flat(i) } else { integers.next().unwrap() }).collect()
            })
        };
        let indices = [indices(width, 0), indices(rows, 1)];
        Self {
            rows,
            lanes,
            width,
            direction: world.direction,
            indices,
            lane_numbers: vec![take(width), take(width)],
            row_numbers: vec![take(rows), take(rows)],
            tiles: vec![take(rows * width), take(rows * width)],
            table: [take(20), take(20)],
            scalar: take(1),
            ids: world.integers.iter().rev().take(7).copied().collect(),
            masks: world.masks[..rows].iter().map(|mask| mask & all_lanes(lanes)).collect(),
        }
    }

    /// Runs code with these inputs: as often as `act` calls what it is given. `alias` has output tiles in place of
    /// input tiles.
    fn run<S: Simd<T = R>>(
        &self,
        code: &TileCode,
        (outputs, alias, table): (usize, bool, usize),
        act: impl FnOnce(&mut dyn FnMut()),
    ) -> Results<R> {
        let [lane_index, row_index] = self
            .indices
            .each_ref()
            .map(|[flat, axes @ ..]| TokenIndex { flat, axis: axes.each_ref().map(|axis| axis.as_slice()) });
        // In cache lines, as kernels have them.
        let numbers = self.rows * self.width;
        let room = vec![Line::zeroed(); lines(numbers * size_of::<R>())];
        let mut inputs = vec![room.clone(); self.tiles.len()];
        let mut results = vec![room; outputs];
        let tiles: Vec<*mut R> = inputs.iter_mut().map(|tile| cast_slice_mut(tile).as_mut_ptr()).collect();
        let mut to: Vec<*mut R> = results.iter_mut().map(|tile| cast_slice_mut(tile).as_mut_ptr()).collect();
        for (&tile, from) in tiles.iter().zip(&self.tiles) {
            // SAFETY: the room was made for as many numbers.
            unsafe { std::slice::from_raw_parts_mut(tile, numbers) }.copy_from_slice(from);
        }
        if alias {
            let shared = tiles.len().min(to.len());
            to[..shared].copy_from_slice(&tiles[..shared]);
        }
        let tiles: Vec<*const R> = tiles.iter().map(|tile| tile.cast_const()).collect();
        let captures = [
            Captured::Numbers { primal: &self.table[0], tangent: &self.table[1] },
            Captured::Numbers { primal: &self.scalar, tangent: &[] },
            Captured::Integers(&self.ids),
        ];
        let mut masks = self.masks.clone();
        let mut tables = vec![0.0; table];
        let tables_at: Vec<*mut f64> = tables.chunks_mut(20).map(|table| table.as_mut_ptr()).collect();
        let mut scratch = vec![R::of(f64::NAN); code.scratch(S::WIDTH)];
        let mut tile = TileRun {
            rows: self.rows,
            lanes: self.lanes,
            batch: 2,
            head: 1,
            head_kv: 4,
            lane_index: &lane_index,
            row_index: &row_index,
            lane_numbers: &self.lane_numbers.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            row_numbers: &self.row_numbers.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            tiles: &tiles,
            captures: &captures,
            outputs: &to,
            masks: &mut masks,
            tables: &tables_at,
        };
        // SAFETY: the callers check the instruction set; everything has the sizes that the code was made for, and
        // output tiles are either input tiles or vectors of their own.
        act(&mut || unsafe { code.run::<S>(&mut tile, &mut scratch) });
        if alias {
            for (result, input) in results.iter_mut().zip(inputs) {
                *result = input;
            }
        }
        let tiles = results.iter().map(|tile| cast_slice::<Line, R>(tile)[..numbers].to_vec()).collect();
        Results { tiles, masks, tables }
    }

    fn index(&self, index: Index, (row, lane): (usize, usize)) -> i32 {
        let (is_query, axis) = match index {
            Index::Batch => return 2,
            Index::Head => return 1,
            Index::HeadKv => return 4,
            Index::Query => (true, 0),
            Index::Key => (false, 0),
            Index::QueryAxis(axis) => (true, axis as usize + 1),
            Index::KeyAxis(axis) => (false, axis as usize + 1),
            other => unreachable!("{other:?}"),
        };
        let is_lane = is_query == (self.direction == Direction::Keys);
        if is_lane { self.indices[0][axis][lane] } else { self.indices[1][axis][row] }
    }
}

struct Results<R> {
    tiles: Vec<Vec<R>>,
    masks: Vec<u32>,
    tables: Vec<f64>,
}

/// The smallest normal number.
fn smallest<R: Real>() -> f64 {
    if R::DTYPE == DType::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) }
}

/// Whether `actual` is within so many units in the last place of what `exact` rounds to.
pub(super) fn close<R: Real>(actual: f64, exact: f64, ulps: f64) -> bool {
    let rounded = R::of(exact).to_f64();
    if actual == rounded || actual.is_nan() && rounded.is_nan() {
        return true;
    }
    let largest = if R::DTYPE == DType::F64 { f64::MAX } else { f64::from(f32::MAX) };
    let epsilon = R::DTYPE.roundoff() * 2.0;
    // At the border of overflow either side of it is right.
    let (actual, rounded) = (actual.clamp(-largest, largest), rounded.clamp(-largest, largest));
    (actual - rounded).abs() <= ulps * epsilon * rounded.abs().max(smallest::<R>())
}
