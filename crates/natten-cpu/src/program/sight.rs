//! What a program's mask says about whole boxes of pairs, by intervals, and its code for the boxes where that is not
//! enough: empty boxes are skipped, full ones pay nothing.

use std::sync::{Mutex, PoisonError};

use natten_core::geometry::{Axis, TileBox};
use natten_core::program::{self, Evaluator, EvaluatorScratch, Program, TokenBox, Verdict, ranges_of};
use natten_core::{Problem, Result};

use super::code::Context;
use crate::element::Real;
use crate::lanes::Direction;
use crate::tile::{Captured, Output, TileCode};
use crate::tokens::Place;

/// A program's mask.
#[derive(Debug)]
pub(super) struct Mask {
    evaluator: Evaluator,
    /// Its code with queries in lanes, and with keys in lanes.
    codes: [TileCode; 2],
    /// Room for the evaluator, for as many runs as ever were at once.
    rooms: Mutex<Vec<EvaluatorScratch>>,
}

/// A thread's room for the evaluator of masks, given back when dropped.
#[derive(Debug)]
pub(super) struct Room<'m> {
    mask: &'m Mask,
    scratch: EvaluatorScratch,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut rooms = self.mask.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.push(std::mem::take(&mut self.scratch));
    }
}

/// A box of pairs, of one batch entry and head.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairBox<'t> {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) queries: &'t TileBox,
    pub(super) keys: &'t TileBox,
}

impl Mask {
    /// The mask of a problem's program, if it has one. `context` makes codes of a direction.
    pub(super) fn new<'a>(
        problem: &Problem,
        threads: usize,
        context: impl Fn(Direction) -> Context<'a>,
    ) -> Result<Option<Self>> {
        let program: &Program = problem.program();
        let Some(mask) = program.mask() else { return Ok(None) };
        let evaluator = Evaluator::new(program.graph(), mask);
        let code = |direction| context(direction).code(program.graph(), &[Output::Mask(mask)], &|_| None);
        Ok(Some(Self {
            codes: [code(Direction::Keys)?, code(Direction::Queries)?],
            rooms: Mutex::new((0..threads).map(|_| evaluator.scratch()).collect()),
            evaluator,
        }))
    }

    /// Room for one thread.
    pub(super) fn room(&self) -> Room<'_> {
        let known = self.rooms.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Room { mask: self, scratch: known.unwrap_or_else(|| self.evaluator.scratch()) }
    }

    pub(super) fn code(&self, direction: Direction) -> &TileCode {
        match direction {
            Direction::Keys => &self.codes[0],
            Direction::Queries => &self.codes[1],
        }
    }

    /// What the mask says about a box.
    pub(super) fn verdict<R: Real>(
        &self,
        room: &mut Room<'_>,
        problem: &Problem,
        captures: &[Captured<'_, R>],
        pairs: PairBox<'_>,
    ) -> Verdict {
        let axes = problem.neighborhood().axes();
        let ranges = ranges_of(
            problem.neighborhood().rank(),
            pairs.batch,
            pairs.head,
            pairs.head / problem.heads_per_kv(),
            &corners(axes, pairs.queries, Axis::query_len),
            &corners(axes, pairs.keys, Axis::key_len),
        );
        let loaded = Loaded { captures, program: problem.program() };
        self.evaluator.classify(&mut room.scratch, &ranges, &loaded)
    }
}

fn corners(axes: &[Axis; 3], tile: &TileBox, len: fn(&Axis) -> usize) -> TokenBox {
    let place = Place::new(axes, *tile);
    let (first, last) = (place.token([0; 3]), place.token(tile.extent.map(|n| n - 1)));
    TokenBox { grid: axes.each_ref().map(len), tokens: std::array::from_fn(|a| [first[a], last[a]]) }
}

/// A run's captured tensors, by ranges.
struct Loaded<'a, 'c, R> {
    captures: &'a [Captured<'c, R>],
    program: &'a Program,
}

/// A box of more elements is not looked at: that would cost more than masking it.
const MOST_ELEMENTS: usize = 1024;

impl<R: Real> program::Captured for Loaded<'_, '_, R> {
    fn range(&self, capture: u8, index: &[[i64; 2]]) -> Option<[f64; 2]> {
        let shape = &self.program.captures().get(usize::from(capture))?.shape;
        let (mut first, mut elements) = (0, 1usize);
        // Elements of a box lie in runs of the last axis where no other is wider than one.
        let mut leading = 1;
        for (&extent, span) in shape.iter().zip(index) {
            let [low, high] =
                span.map(|i| usize::try_from(i.max(0)).map_or(extent - 1, |i| i.min(extent - 1)));
            leading *= elements;
            elements = high - low + 1;
            first = first * extent + low;
        }
        if leading != 1 || elements > MOST_ELEMENTS {
            return None;
        }
        match self.captures.get(usize::from(capture))? {
            Captured::Numbers { primal, .. } => {
                bounds(primal.get(first..first + elements)?.iter().map(|x| x.to_f64()))
            }
            Captured::Integers(integers) => {
                bounds(integers.get(first..first + elements)?.iter().map(|&i| f64::from(i)))
            }
        }
    }
}

/// The least and the greatest of some numbers; none where one is NaN.
fn bounds(numbers: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let mut range = [f64::INFINITY, f64::NEG_INFINITY];
    let mut has_nan = false;
    for x in numbers {
        has_nan |= x.is_nan();
        range = [range[0].min(x), range[1].max(x)];
    }
    (!has_nan).then_some(range)
}
