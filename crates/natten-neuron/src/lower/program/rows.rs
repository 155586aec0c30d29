//! The numbers of a tile's rows: the stages of the row function, their tangents and cotangents, reduced over the blocks
//! of the row's keys.

use natten_core::Result;
use natten_core::geometry::TileBox;
use natten_core::program::{Expr, GradStages, Lowered, Primal, Reduce, Var};

use super::eval::{Scope, Value};
use super::site::Site;
use super::{Kernel, Rows};
use crate::ir::{Alu, Engine, Function, Op, Operand, View};
use crate::lower::windows::Block;

/// The least finite number: what a logsumexp of nothing counts as, so that its exponentials are 0 and not undefined.
pub(super) const LEAST: f32 = f32::MIN;
/// Blocks whose scores are kept while a tile is at work.
const KEPT: usize = 3;

/// A query tile of one head, and its blocks.
pub(super) struct Tile<'s> {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) queries: TileBox,
    pub(super) sites: Vec<Site<'s>>,
    leaves: Vec<Rows>,
}

impl<'s> Tile<'s> {
    pub(super) fn new(
        kernel: &Kernel<'s>,
        batch: usize,
        head: usize,
        queries: TileBox,
        blocks: &'s [Block],
    ) -> Self {
        let sites: Vec<Site<'s>> =
            blocks.iter().map(|block| Site::new(kernel.problem, batch, head, queries, block)).collect();
        let leaves = sites.iter().map(|_| Rows::new()).collect();
        Self { batch, head, queries, sites, leaves }
    }

    pub(super) fn rows(&self) -> usize {
        self.queries.volume()
    }
}

impl<'a> Kernel<'a> {
    /// Walks a tile's blocks. `roots` are the expressions that `visit` asks for.
    pub(super) fn sweep(
        &mut self,
        tile: &mut Tile<'_>,
        rows: &Rows,
        roots: impl Fn(&Lowered) -> Vec<Expr>,
        mut visit: impl FnMut(&mut Self, &mut Scope<'_>, &Rows) -> Result<()>,
    ) -> Result<()> {
        let functions = self.functions;
        let count = tile.sites.len();
        for (site, kept) in tile.sites.iter().zip(&mut tile.leaves) {
            let lowered = functions.of(site.block);
            let roots = roots(lowered);
            let mut needed = roots.clone();
            needed.extend(lowered.mask);
            let mut leaves = std::mem::take(kept);
            self.leaves(site, &needed, lowered, &mut leaves);
            let mut scope = Scope::new(site, lowered, leaves);
            scope.begin(&roots);
            visit(self, &mut scope, rows)?;
            self.em.end(&mut scope);
            let leaves = std::mem::take(&mut scope.leaves);
            if count <= KEPT {
                *kept = leaves;
            } else {
                self.forget(leaves);
            }
        }
        Ok(())
    }

    /// The tile is done.
    pub(super) fn leave(&mut self, tile: Tile<'_>) {
        for leaves in tile.leaves {
            self.forget(leaves);
        }
    }

    /// Adds a tile's reduction to what is there of other blocks.
    pub(super) fn reduce(&mut self, total: &mut Option<View>, op: Alu, tile: &View) {
        let part = self.em.row(tile.parts, 1);
        self.em.b.reduce(part.clone(), op, tile.clone(), false);
        match total {
            None => *total = Some(part),
            Some(total) => self.em.b.tensor_tensor(total.clone(), op, total.clone(), part),
        }
    }

    /// `exp(tile - shift)` in place, `shift` a number a row.
    fn shifted_exp(&mut self, tile: &View, shift: &View) {
        let minus = self.em.row(tile.parts, 1);
        self.em.b.tensor_scalar(minus.clone(), Alu::Multiply, shift.clone(), Operand::Const(-1.0));
        self.em.b.activation(
            tile.clone(),
            Function::Exp,
            tile.clone(),
            Some(minus),
            Operand::Const(1.0),
            None,
        );
    }

    /// The stages of a tile's rows, but those that are there; and the logsumexps as they are where they are computed.
    pub(super) fn stages(&mut self, tile: &mut Tile<'_>, rows: &mut Rows) -> Result<Vec<Option<View>>> {
        let stages = self.functions.grid.stages.clone();
        let height = tile.rows();
        let wanted: Vec<usize> =
            (0..stages.len()).filter(|&k| !rows.contains_key(&Var::Stage(k as u8))).collect();
        let mut raw = vec![None; stages.len()];
        if wanted.is_empty() {
            return Ok(raw);
        }
        let mut totals: Vec<Option<View>> = vec![None; stages.len()];
        let elements = |wanted: &[usize]| {
            let wanted = wanted.to_vec();
            move |lowered: &Lowered| wanted.iter().map(|&k| lowered.stages[k].element.value).collect()
        };
        self.sweep(tile, rows, elements(&wanted), |kernel, scope, rows| {
            for &k in &wanted {
                let stage = &scope.lowered.stages[k];
                let (op, fill) = match stage.reduce {
                    Reduce::Sum => (Alu::Add, 0.0),
                    Reduce::Min => (Alu::Min, f32::INFINITY),
                    _ => (Alu::Max, f32::NEG_INFINITY),
                };
                let expr = stage.element.value;
                let element = kernel.em.masked(scope, rows, expr, fill)?;
                kernel.reduce(&mut totals[k], op, &element);
                kernel.em.release(&element);
            }
            Ok(())
        })?;
        let exponential: Vec<usize> =
            wanted.iter().copied().filter(|&k| stages[k].reduce == Reduce::Lse).collect();
        let mut maxima = totals.clone();
        for &k in &exponential {
            if let Some(max) = &maxima[k] {
                self.em.b.tensor_scalar(max.clone(), Alu::Max, max.clone(), Operand::Const(LEAST));
            }
            totals[k] = None;
        }
        if !exponential.is_empty() {
            self.sweep(tile, rows, elements(&exponential), |kernel, scope, rows| {
                for &k in &exponential {
                    let expr = scope.lowered.stages[k].element.value;
                    let element = kernel.em.masked(scope, rows, expr, f32::NEG_INFINITY)?;
                    if let Some(max) = &maxima[k] {
                        kernel.shifted_exp(&element, max);
                    }
                    kernel.reduce(&mut totals[k], Alu::Add, &element);
                    kernel.em.release(&element);
                }
                Ok(())
            })?;
        }
        for k in wanted {
            let view = match (stages[k].reduce, totals[k].take(), maxima[k].take()) {
                (Reduce::Lse, Some(sum), Some(max)) => {
                    let log = self.em.row(height, 1);
                    self.em.b.activation(log.clone(), Function::Log, sum, None, Operand::Const(1.0), None);
                    self.em.b.tensor_tensor(log.clone(), Alu::Add, log.clone(), max);
                    let clamped = self.em.row(height, 1);
                    self.em.b.tensor_scalar(clamped.clone(), Alu::Max, log.clone(), Operand::Const(LEAST));
                    raw[k] = Some(log);
                    clamped
                }
                (_, Some(total), _) => total,
                (reduce, ..) => {
                    // No keys at all.
                    let view = self.em.row(height, 1);
                    let identity = reduce.identity() as f32;
                    self.em.fill(view.clone(), identity.max(LEAST));
                    if reduce == Reduce::Lse {
                        let log = self.em.row(height, 1);
                        self.em.fill(log.clone(), f32::NEG_INFINITY);
                        raw[k] = Some(log);
                    }
                    view
                }
            };
            rows.insert(Var::Stage(k as u8), Value::Row(view));
        }
        maxima.clear();
        Ok(raw)
    }

    /// The tangents of a tile's stages.
    pub(super) fn stage_tangents(&mut self, tile: &mut Tile<'_>, rows: &mut Rows) -> Result<()> {
        let count = self.functions.grid.stages.len();
        if count == 0 {
            return Ok(());
        }
        let mut totals: Vec<Option<View>> = vec![None; count];
        let roots = |lowered: &Lowered| {
            lowered.stages.iter().flat_map(|stage| [stage.element.value, stage.element.tangent]).collect()
        };
        self.sweep(tile, rows, roots, |kernel, scope, rows| {
            for (k, total) in totals.iter_mut().enumerate() {
                let stage = scope.lowered.stages[k];
                let tangent = kernel.em.masked(scope, rows, stage.element.tangent, 0.0)?;
                let Some(Value::Row(of_row)) = rows.get(&Var::Stage(k as u8)).cloned() else { continue };
                match stage.reduce {
                    Reduce::Sum => kernel.em.used(scope, stage.element.value),
                    Reduce::Lse => {
                        let share = kernel.em.masked(scope, rows, stage.element.value, f32::NEG_INFINITY)?;
                        kernel.shifted_exp(&share, &of_row);
                        kernel.em.b.tensor_tensor(
                            tangent.clone(),
                            Alu::Multiply,
                            tangent.clone(),
                            share.clone(),
                        );
                        kernel.em.release(&share);
                    }
                    _ => {
                        let share = kernel.em.masked(scope, rows, stage.element.value, f32::NAN)?;
                        kernel.em.b.tensor_scalar(
                            share.clone(),
                            Alu::IsEq,
                            share.clone(),
                            Operand::Row(of_row),
                        );
                        kernel.em.b.tensor_tensor(
                            tangent.clone(),
                            Alu::Multiply,
                            tangent.clone(),
                            share.clone(),
                        );
                        kernel.em.release(&share);
                    }
                }
                kernel.reduce(total, Alu::Add, &tangent);
                kernel.em.release(&tangent);
            }
            Ok(())
        })?;
        for (k, total) in totals.into_iter().enumerate() {
            let value = total.map_or(Value::Const(0.0), Value::Row);
            rows.insert(Var::Tangent(Primal::Stage(k as u8)), value);
        }
        Ok(())
    }

    /// The cotangents of a tile's stages.
    pub(super) fn grad_stages(&mut self, tile: &mut Tile<'_>, rows: &mut Rows) -> Result<()> {
        let functions = self.functions;
        let lowered = &functions.grid;
        let logsumexp = lowered.logsumexp;
        match &lowered.grad_stages {
            GradStages::OfRow(stages) => {
                let block = Block { additional: false, chunks: Vec::new(), is_edge: false };
                let site = Site::new(self.problem, tile.batch, tile.head, tile.queries, &block);
                for (k, stage) in stages.iter().enumerate() {
                    let mut scope = Scope::new(&site, lowered, Rows::new());
                    let value = self.em.value(&mut scope, rows, stage.value)?;
                    rows.insert(Var::GradStage(k as u8), value);
                }
            }
            GradStages::OfPairs(stages) => {
                let mut totals: Vec<Option<View>> = vec![None; stages.len()];
                let exprs = |lowered: &Lowered| match &lowered.grad_stages {
                    GradStages::OfPairs(stages) => stages.iter().map(|stage| stage.value).collect(),
                    _ => Vec::new(),
                };
                self.sweep(tile, rows, exprs, |kernel, scope, rows| {
                    for (total, expr) in totals.iter_mut().zip(exprs(scope.lowered)) {
                        let part = kernel.em.masked(scope, rows, expr, 0.0)?;
                        kernel.reduce(total, Alu::Add, &part);
                        kernel.em.release(&part);
                    }
                    Ok(())
                })?;
                for (k, total) in totals.into_iter().enumerate() {
                    let mut value = total.map_or(Value::Const(0.0), Value::Row);
                    if logsumexp == Some(k as u8)
                        && let Some(Value::Row(direct)) = rows.get(&Var::GradLogsumexp)
                    {
                        value = match value {
                            Value::Row(total) => {
                                let direct = direct.clone();
                                self.em.b.tensor_tensor(total.clone(), Alu::Add, total.clone(), direct);
                                Value::Row(total)
                            }
                            _ => Value::Row(direct.clone()),
                        };
                    }
                    rows.insert(Var::GradStage(k as u8), value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A number of the rows as a view, whatever it is.
    pub(super) fn row_view(&mut self, value: Option<&Value>, height: usize) -> View {
        let like = self.em.row(height, 1);
        let value = value.cloned().unwrap_or(Value::Const(0.0));
        match value {
            Value::Row(view) => view,
            other => {
                self.em.b.push(
                    Engine::Vector,
                    Op::Memset {
                        dst: like.clone(),
                        value: if let Value::Const(number) = other { number } else { 0.0 },
                    },
                );
                like
            }
        }
    }
}
