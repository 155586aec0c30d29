//! What the walks of an operation do with a box of queries, and with a box of keys, derived from the program's functions.
//!
//! A box of queries goes through steps in order: sweeps over the keys that it sees, and in between what is done once a
//! row. A row of one pass takes one sweep forward; stages that the sum of values needs first take one before it, and
//! their tangents, where some stage is not a sum, one more. Backward, stages that are not given are recomputed in a sweep
//! of their own, the cotangents of stages come from the row's numbers or from a sweep, and then comes the sweep of the
//! gradients. What the walk with stationary keys needs of every row is stored.

mod derive;
mod gradients;

use natten_core::program::{Involved, Lowered};
use natten_core::{Op, Problem, Result};

use self::derive::Deriver;
use super::code::SweepCode;
use super::numbers::Numbers;
use crate::tile::TileCode;

/// A sweep over everything that a box sees: over the window, and over the additional tokens.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) codes: [Option<SweepCode>; 2],
}

/// Functions of a row's numbers, and the slots that their values go to.
#[derive(Debug)]
pub(super) struct RowCode {
    pub(super) code: TileCode,
    pub(super) outputs: Vec<usize>,
}

/// A logsumexp stage, from its peak and its total.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finish {
    pub(super) peak: usize,
    pub(super) total: usize,
    pub(super) stage: usize,
    /// The sum of its tangents, which is divided by the total.
    pub(super) tangent: Option<usize>,
    /// Where one over the total goes.
    pub(super) inverse: Option<usize>,
}

/// What is done with a box of queries.
#[derive(Debug)]
pub(super) enum Step {
    Sweep(Box<Sweep>),
    /// Finishes stages, and finds the rows that are dead.
    Finish(Vec<Finish>),
    Row(RowCode),
    /// Finishes the sums of values, and writes them and the logsumexp.
    Output,
    /// `⟨grad_output, output⟩`, and its tangent.
    Delta([Option<usize>; 2]),
    /// Adds numbers to others.
    Add(Vec<(usize, usize)>),
    /// Keeps numbers for the walk with stationary keys.
    Store,
}

/// The walk with stationary queries.
#[derive(Debug)]
pub(super) struct QueryPass {
    pub(super) numbers: Numbers,
    pub(super) steps: Vec<Step>,
    /// The slots of the logsumexp and its tangent.
    pub(super) logsumexp: [Option<usize>; 2],
    /// The slots of the given logsumexp, of its cotangent, and of that one's tangent.
    pub(super) given: [Option<usize>; 3],
    /// The slots of the logsumexp stages: a row with one at -inf is dead.
    pub(super) lse_stages: Vec<usize>,
    /// The slots of the sum's factor and its tangent; 1 and 0 without.
    pub(super) factor: [Option<usize>; 2],
    /// Which stationary vectors the sweeps read, by [`Vectors`].
    pub(super) stationary: [bool; 4],
}

impl QueryPass {
    pub(super) fn sweeps(&self) -> impl Iterator<Item = &Sweep> {
        sweeps_of(&self.steps)
    }
}

fn sweeps_of(steps: &[Step]) -> impl Iterator<Item = &Sweep> {
    steps.iter().filter_map(|step| match step {
        Step::Sweep(sweep) => Some(&**sweep),
        _ => None,
    })
}

/// The walk with stationary keys.
#[derive(Debug)]
pub(super) struct KeyPass {
    pub(super) sweep: Sweep,
    /// The slots of the numbers that it reads, in the order in which they are stored.
    pub(super) stored: Vec<usize>,
    /// The logsumexp stages among those.
    pub(super) lse_stages: Vec<usize>,
}

/// Everything that an operation does, derived.
#[derive(Debug)]
pub(super) struct Passes {
    pub(super) queries: QueryPass,
    pub(super) keys: KeyPass,
    /// The functions that all of it is made of: on the window's keys, and on the additional ones.
    pub(super) lowered: Vec<Lowered>,
}

impl Passes {
    pub(super) fn new(
        problem: &Problem,
        op: Op,
        tangents: &Involved,
        wants: &Involved,
        has_cotangent: bool,
    ) -> Result<Self> {
        Deriver::new(problem, op, tangents, wants, has_cotangent).derive()
    }

    /// Every code of the walks.
    pub(super) fn codes(&self) -> impl Iterator<Item = &SweepCode> {
        self.queries.sweeps().chain([&self.keys.sweep]).flat_map(|sweep| sweep.codes.iter().flatten())
    }
}
