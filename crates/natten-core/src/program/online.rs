//! Row functions in their imperative form: what is done with a tile of scores, and with the running numbers of a row,
//! as one-pass kernels do it. [`Row::import`] probes the laws that such a function must obey, finds the reductions that
//! its running numbers are, and makes the declared [`Row`] of it, from which every derivative is derived.
//!
//! With `z` the running numbers of a row, `acc` its sum, and `x` a tile of scores:
//!
//! ```text
//! each tile    p, z', c = online_fwd(x, z)        acc = acc c + Σ p v
//! at the end   f, ρ = online_fwd_epilogue(z)      o = acc f
//! again        p = forward(x, ρ)                  a backward pass recomputes the weights so
//! ```
//!
//! | law | means |
//! |---|---|
//! | row | running numbers, `c` and `f` are the same for all scores of a tile |
//! | finite | finite scores have finite weights |
//! | tiling | weights and `ρ` do not depend on how a row is cut into tiles |
//! | order | nor on the order of its elements |
//! | forward | `forward(x, ρ)` is `p` times every later `c` and `f` |
//! | stages | every running number is a reduction, or follows from others that are |
//! | two passes | the weights of the declared row are those of the function |
//! | backward | a backward that is given is the derivative of the declared row |
//!
//! They are tried in f64, on random rows.

mod probe;
mod recover;
#[cfg(test)]
mod tests;

use std::ops::{Deref, DerefMut};

use super::expr::{Expr, Graph, Primal, Unary, Var};
use super::row::{MAX_STAGES, Reduce, Row};
use crate::error::{Error, Result};

use self::probe::Probe;

/// A row function in imperative form.
///
/// ```
/// use natten_core::program::online::{OnlineContext, OnlineEnd, OnlineFunction, OnlineStep};
/// use natten_core::program::{Binary, Expr, Program, Unary};
///
/// struct Retention;
///
/// impl OnlineFunction for Retention {
///     fn online_rowscales(&self) -> Vec<(String, f64)> {
///         vec![("a".into(), 0.0), ("r".into(), 1.0)]
///     }
///
///     fn online_fwd(&self, ctx: &mut OnlineContext<'_>, scores: Expr, rowscales: &[Expr]) -> OnlineStep {
///         let tile = ctx.reduce_abssum(scores);
///         let a = ctx.add(rowscales[0], tile);
///         let one = ctx.float(1.0);
///         let r = ctx.binary(Binary::Max, a, one);
///         let (weights, o_scale) = (ctx.div(scores, r), ctx.div(rowscales[1], r));
///         OnlineStep { weights, rowscales: vec![a, r], o_scale }
///     }
///
///     fn online_fwd_epilogue(&self, ctx: &mut OnlineContext<'_>, rowscales: &[Expr]) -> OnlineEnd {
///         OnlineEnd { o_factor: ctx.float(1.0), final_rowscales: vec![rowscales[1]] }
///     }
///
///     fn forward(&self, ctx: &mut OnlineContext<'_>, scores: Expr, final_rowscales: &[Expr]) -> Expr {
///         ctx.div(scores, final_rowscales[0])
///     }
/// }
///
/// # fn main() -> natten_core::Result<()> {
/// let program = Program::builder(1).online(&Retention)?.build()?;
/// assert_eq!(program.to_string(), "row: a = sum(abs(x)); x/max(a, 1.0)\n");
/// # Ok(())
/// # }
/// ```
pub trait OnlineFunction {
    /// The running numbers of a row, each with its name and what it starts from.
    fn online_rowscales(&self) -> Vec<(String, f64)>;

    /// What is done with a tile: its weights, the new running numbers, and what the sum so far is multiplied with.
    fn online_fwd(&self, ctx: &mut OnlineContext<'_>, scores: Expr, rowscales: &[Expr]) -> OnlineStep;

    /// What is done at the end of a row.
    fn online_fwd_epilogue(&self, ctx: &mut OnlineContext<'_>, rowscales: &[Expr]) -> OnlineEnd;

    /// The weight of a score, from what the epilogue left of the row.
    fn forward(&self, ctx: &mut OnlineContext<'_>, scores: Expr, final_rowscales: &[Expr]) -> Expr;

    /// The gradient of a score. None leaves it to be derived, which it is in any case: one that is given is compared.
    fn backward(&self, ctx: &mut OnlineContext<'_>, of: &OnlineGradient, final_rowscales: &[Expr]) -> Option<Expr> {
        let _ = (ctx, of, final_rowscales);
        None
    }
}

/// What [`OnlineFunction::online_fwd`] makes of a tile.
#[derive(Clone, Debug)]
pub struct OnlineStep {
    /// The weight of every score of the tile.
    pub weights: Expr,
    /// The new running numbers, in their order.
    pub rowscales: Vec<Expr>,
    /// What the sum so far is multiplied with.
    pub o_scale: Expr,
}

/// What [`OnlineFunction::online_fwd_epilogue`] makes of a row.
#[derive(Clone, Debug)]
pub struct OnlineEnd {
    /// What the sum is multiplied with.
    pub o_factor: Expr,
    /// What is kept of the row for a backward pass.
    pub final_rowscales: Vec<Expr>,
}

/// What [`OnlineFunction::backward`] has of an element.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OnlineGradient {
    /// `⟨grad_output, v⟩`: the cotangent of the weight.
    pub dp: Expr,
    /// The weight.
    pub p: Expr,
    /// `⟨grad_output, output⟩`, of the row.
    pub doosum: Expr,
}

/// A reduction over a tile.
#[derive(Clone, Copy, Debug)]
struct TileReduction {
    reduce: Reduce,
    /// Of the scores, of running numbers, and of earlier reductions.
    element: Expr,
}

/// The graph that an [`OnlineFunction`] builds its expressions in, and reductions over a tile.
#[derive(Debug)]
pub struct OnlineContext<'g> {
    graph: &'g mut Graph,
    reductions: Vec<TileReduction>,
}

impl OnlineContext<'_> {
    fn reduce(&mut self, reduce: Reduce, element: Expr) -> Expr {
        let number = u8::try_from(self.reductions.len()).unwrap_or(u8::MAX);
        self.reductions.push(TileReduction { reduce, element });
        self.graph.var(Var::GradStage(number))
    }

    /// The sum over a tile.
    pub fn reduce_sum(&mut self, element: Expr) -> Expr {
        self.reduce(Reduce::Sum, element)
    }

    /// The sum of the magnitudes over a tile.
    pub fn reduce_abssum(&mut self, element: Expr) -> Expr {
        let magnitude = self.graph.unary(Unary::Abs, element);
        self.reduce(Reduce::Sum, magnitude)
    }

    /// The largest of a tile.
    pub fn reduce_max(&mut self, element: Expr) -> Expr {
        self.reduce(Reduce::Max, element)
    }

    /// The smallest of a tile.
    pub fn reduce_min(&mut self, element: Expr) -> Expr {
        self.reduce(Reduce::Min, element)
    }
}

impl Deref for OnlineContext<'_> {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        self.graph
    }
}

impl DerefMut for OnlineContext<'_> {
    fn deref_mut(&mut self) -> &mut Graph {
        self.graph
    }
}

/// An [`OnlineFunction`], its expressions taken down. Variables stand for what they are functions of:
///
/// | variable | stands for |
/// |---|---|
/// | [`Var::X`] | a score |
/// | [`Var::Stage`] | a running number before the tile; in `forward` and `backward` a final one |
/// | its tangent | a running number behind the tile |
/// | [`Var::GradStage`] | a reduction over the tile |
/// | [`Var::Grad`], [`Var::Score`], [`Var::Delta`] | `dp`, `p` and `doosum` |
#[derive(Debug)]
struct Online {
    names: Vec<String>,
    start: Vec<f64>,
    reductions: Vec<TileReduction>,
    step: OnlineStep,
    end: OnlineEnd,
    forward: Expr,
    backward: Option<Expr>,
}

/// The variable of a running number behind the tile.
const fn behind(k: usize) -> Var {
    Var::Tangent(Primal::Stage(k as u8))
}

impl Online {
    fn new(graph: &mut Graph, function: &dyn OnlineFunction) -> Result<Self> {
        let (names, start): (Vec<_>, Vec<_>) = function.online_rowscales().into_iter().unzip();
        check_count("online_rowscales", names.len())?;
        let numbers = |graph: &mut Graph, count: usize| -> Vec<Expr> {
            (0..count).map(|k| graph.var(Var::Stage(k as u8))).collect()
        };
        let (scores, running) = (graph.var(Var::X), numbers(graph, names.len()));
        let mut ctx = OnlineContext { graph, reductions: Vec::new() };
        let step = function.online_fwd(&mut ctx, scores, &running);
        let reductions = std::mem::take(&mut ctx.reductions);
        if step.rowscales.len() != names.len() {
            return Err(Error::invalid(
                "online_fwd",
                format!("{} rowscales", step.rowscales.len()),
                format!("online_rowscales lists {}", names.len()),
                "return every running number, in their order, also where it stays as it is",
            ));
        }
        check_count("reductions", reductions.len())?;
        let end = function.online_fwd_epilogue(&mut ctx, &running);
        check_count("final_rowscales", end.final_rowscales.len())?;
        let finals = numbers(ctx.graph, end.final_rowscales.len());
        let forward = function.forward(&mut ctx, scores, &finals);
        let of = OnlineGradient {
            dp: ctx.graph.var(Var::Grad),
            p: ctx.graph.var(Var::Score),
            doosum: ctx.graph.var(Var::Delta),
        };
        let backward = function.backward(&mut ctx, &of, &finals);
        if !ctx.reductions.is_empty() {
            return Err(Error::invalid(
                "reductions",
                format!("{} outside of online_fwd", ctx.reductions.len()),
                "law of the row: only online_fwd sees a tile; what else needs a reduction keeps it as a running number",
                "reduce in online_fwd, and return the number in final_rowscales",
            ));
        }
        Ok(Self { names, start, reductions, step, end, forward, backward })
    }
}

fn check_count(what: &'static str, count: usize) -> Result<()> {
    if count <= MAX_STAGES {
        return Ok(());
    }
    let rule = format!("there are at most {MAX_STAGES}");
    Err(Error::invalid(what, count, rule, "join numbers where one follows from another"))
}

impl Row {
    /// The declared row function of an imperative one, its expressions in `graph`. Running numbers that are recognised:
    ///
    /// * `z' = z + sum(f(x))`, which with `f = |x|` is a sum of magnitudes,
    /// * `z' = max(z, max(f(x)))`, and `min`,
    /// * `z' = z exp(m - m') + sum(exp(f(x) - m'))` beside a running maximum `m`: a logsumexp,
    /// * `z' = g(…)` of other new running numbers,
    ///
    /// from whatever they start.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the law that fails, see [`online`](self), and the numbers at which it does.
    pub fn import(graph: &mut Graph, function: &dyn OnlineFunction) -> Result<Self> {
        let online = Online::new(graph, function)?;
        let probe = Probe::new(&online);
        probe.laws_of_the_function(graph)?;
        let row = recover::row(graph, &online, &probe)?;
        probe.two_passes(graph, &row)?;
        probe.backward(graph, &row)?;
        Ok(row)
    }
}
