//! The kernels: one fused, tiled pass forward, and two backward.
//!
//! Every pass holds a box of *stationary* tokens in lanes and *streams* boxes of the other side past it, computing a
//! tile of scores with lanes along the stationary side, so that maxima and sums over streamed rows need no shuffles:
//!
//! | pass | stationary | streamed | accumulates |
//! |---|---|---|---|
//! | forward | queries | keys, values | output, logsumexp |
//! | gradients of queries | queries, `grad_output` | keys, values | `grad_query`, `grad_rpb` |
//! | gradients of keys | keys, values | queries, `grad_output` | `grad_key`, `grad_value` |
//!
//! The backward passes recompute the weights as `exp(score - logsumexp)`. Two passes cost two more products than one
//! would, and buy results that do not depend on the number of threads without any memory of the size of the input.

mod bias;
mod forward;
mod grad_keys;
mod grad_queries;
mod scratch;
pub(crate) mod stationary;

use natten_core::Problem;
use natten_core::geometry::TileBox;

pub(crate) use bias::{Bias, BiasGradient, Pairs};
pub(crate) use grad_queries::{bias_partials_per_head, sum_bias_tables};
pub(crate) use scratch::{Scratch, ScratchSizes};

use crate::element::Real;
use crate::lanes::{Direction, Sight};
use crate::simd::Simd;
use crate::tiling::Pass;
use crate::tokens::{Place, Tokens};

/// Queries of one unit of the Δ pass.
pub(crate) const DELTA_ROWS: usize = 256;

/// The tensors of a run.
#[derive(Debug)]
pub(crate) struct Operands<R: Real> {
    pub(crate) query: Tokens<R>,
    pub(crate) key: Tokens<R>,
    pub(crate) value: Tokens<R>,
    pub(crate) bias: Option<Bias<R>>,
    pub(crate) additional: Option<(Tokens<R>, Tokens<R>)>,
    /// Written by forward, read by backward.
    pub(crate) output: Option<Tokens<R>>,
    /// Written by forward, read by backward.
    pub(crate) logsumexp: Option<Tokens<R>>,
    pub(crate) grad_output: Option<Tokens<R>>,
    pub(crate) grad_logsumexp: Option<Tokens<R>>,
    /// `⟨grad_output, output⟩ - grad_logsumexp`, a number a query and head, in the workspace.
    pub(crate) delta: Option<Tokens<R>>,
    pub(crate) grad_query: Option<Tokens<R>>,
    pub(crate) grad_key: Option<Tokens<R>>,
    pub(crate) grad_value: Option<Tokens<R>>,
    pub(crate) grad_additional_key: Option<Tokens<R>>,
    pub(crate) grad_additional_value: Option<Tokens<R>>,
    /// Tables in the workspace that partial sums of the bias gradient go to.
    pub(crate) grad_bias: Option<BiasGradient>,
}

impl<R: Real> Operands<R> {
    /// The keys and values of a source.
    fn keys_of(&self, source: &Source) -> (&Tokens<R>, &Tokens<R>) {
        match &self.additional {
            Some((key, value)) if !source.is_window => (key, value),
            _ => (&self.key, &self.value),
        }
    }
}

/// A box of keys that a query box sees: in its windows, or among the additional tokens.
#[derive(Clone, Copy, Debug)]
struct Source {
    place: Place,
    /// Additional tokens are seen by every query, without bias.
    is_window: bool,
}

/// A run: what to compute on, and how it is cut.
#[derive(Debug)]
pub(crate) struct Kernel<'a, R: Real> {
    pub(crate) problem: &'a Problem,
    /// Queries are stationary: forward, and the gradients of queries.
    pub(crate) queries: &'a Pass,
    /// Keys are stationary.
    pub(crate) keys: &'a Pass,
    pub(crate) sizes: &'a ScratchSizes,
    pub(crate) operands: Operands<R>,
}

/// What the threads share out: units that may run in any order, each writing elements of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Forward,
    Delta,
    Gradients,
}

impl<R: Real> Kernel<'_, R> {
    /// The number of units of a phase.
    pub(crate) fn units(&self, phase: Phase) -> usize {
        let rows = self.problem.batch() * self.problem.heads();
        match phase {
            Phase::Forward => rows * self.queries.tiles.query_boxes(),
            Phase::Delta => self.problem.batch() * self.query_tokens().div_ceil(DELTA_ROWS),
            Phase::Gradients => self.additional_units() + self.query_units() + self.key_units(),
        }
    }

    /// Runs one unit.
    ///
    /// # Safety
    /// The processor has `S`'s instruction set, `scratch` was carved by this kernel's sizes, the operands live, and no
    /// two threads run the same unit.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd<T = R>>(&self, phase: Phase, unit: usize, scratch: &mut Scratch<'_, R>) {
        // SAFETY: the caller's.
        unsafe {
            match phase {
                Phase::Forward => self.forward_unit::<S>(unit, scratch),
                Phase::Delta => self.delta_unit(unit, scratch),
                // The additional tokens' units are the longest, since every query sees them: they go first.
                Phase::Gradients if unit < self.additional_units() => {
                    self.grad_additional_unit::<S>(unit, scratch);
                }
                Phase::Gradients if unit - self.additional_units() < self.query_units() => {
                    self.grad_query_unit::<S>(unit - self.additional_units(), scratch);
                }
                Phase::Gradients => {
                    self.grad_key_unit::<S>(unit - self.additional_units() - self.query_units(), scratch);
                }
            }
        }
    }

    fn query_tokens(&self) -> usize {
        self.problem.neighborhood().axes().iter().map(|axis| axis.query_len()).product()
    }

    /// All keys that a query box sees, in boxes of at most `queries.rows`.
    fn sources(&self, queries: &TileBox) -> impl Iterator<Item = Source> + use<R> {
        let axes = *self.queries.tiles.axes();
        let window = self.queries.tiles.keys_of(queries).map(move |(keys, _)| Place::new(&axes, keys));
        let (tokens, rows) = (self.problem.additional_tokens(), self.queries.rows.max(1));
        let additional =
            (0..tokens).step_by(rows).map(move |first| Place::line(first, rows.min(tokens - first)));
        window
            .map(|place| Source { place, is_window: true })
            .chain(additional.map(|place| Source { place, is_window: false }))
    }

    /// What a lane group of queries sees of a source.
    fn sight<'m>(&self, group: &TileBox, source: &Source, masks: &'m mut [u32]) -> Sight<'m> {
        if source.is_window {
            Sight::new(Direction::Keys, self.queries.tiles.axes(), group, &source.place.tile, masks)
        } else {
            Sight::everything(group.volume(), source.place.tile.extent)
        }
    }

    fn scale(&self) -> R {
        R::of(self.problem.scale())
    }
}
