//! From the updates of running numbers to the reductions that they are.

use std::collections::HashMap;

use super::probe::Probe;
use super::{Online, behind};
use crate::error::{Error, Result};
use crate::program::derive;
use crate::program::expr::{Binary, Expr, Graph, Node, Unary, Var};
use crate::program::row::{Parts, Reduce, Row, Stage};
use crate::program::text::check_name;

/// The declared row of an online function that obeys its laws.
pub(super) fn row(graph: &mut Graph, online: &Online, probe: &Probe<'_>) -> Result<Row> {
    let mut recovery = Recovery { online, stages: Vec::new(), values: vec![None; online.names.len()] };
    recovery.find_all(graph)?;
    let Recovery { stages, values, .. } = recovery;
    let values: Vec<Expr> = values.into_iter().flatten().collect();

    // The weight of what is kept of the row, which is of the running numbers, which are of the stages.
    let finals: Vec<Expr> =
        online.end.final_rowscales.iter().map(|&expr| of_numbers(graph, expr, &values)).collect();
    let weight = of_numbers(graph, online.forward, &finals);
    let mut row = Row { stages, weight };

    // A maximum that only keeps exponentials in range leaves the weights: a logsumexp does that as well.
    if let Some(logsumexp) = row.logsumexp() {
        let with = graph.var(Var::Stage(logsumexp));
        for k in 0..row.stages.len() {
            let is_extreme = matches!(row.stages[k].reduce, Reduce::Max | Reduce::Min);
            if is_extreme && probe.is_invariant(graph, &row, k) {
                let stage = graph.var(Var::Stage(k as u8));
                row.weight = graph.substitute(row.weight, &[(stage, with)].into());
            }
        }
    }
    Ok(without_unused(graph, row))
}

/// `expr`, its running numbers replaced by `values`.
fn of_numbers(graph: &mut Graph, expr: Expr, values: &[Expr]) -> Expr {
    let replace =
        values.iter().enumerate().map(|(k, &value)| (graph.var(Var::Stage(k as u8)), value)).collect();
    graph.substitute(expr, &replace)
}

/// The row without the stages that its weight does not depend on.
fn without_unused(graph: &mut Graph, mut row: Row) -> Row {
    let mut replace = HashMap::new();
    let mut kept: Vec<Stage> = Vec::new();
    for (k, stage) in row.stages.drain(..).enumerate() {
        if derive::depends_on(graph, row.weight, Var::Stage(k as u8)) {
            replace.insert(graph.var(Var::Stage(k as u8)), graph.var(Var::Stage(kept.len() as u8)));
            kept.push(stage);
        }
    }
    Row { weight: graph.substitute(row.weight, &replace), stages: kept }
}

struct Recovery<'o> {
    online: &'o Online,
    stages: Vec<Stage>,
    /// What each running number is at the end of a row, of [`Var::Stage`] as in the declared row.
    values: Vec<Option<Expr>>,
}

/// What an expression of an update depends on.
fn depends(graph: &Graph, expr: Expr, on: impl Fn(Var) -> bool) -> bool {
    graph.depends(expr, |node| matches!(node, Node::Var(var) if on(*var)))
}

const fn is_old(var: Var) -> bool {
    matches!(var, Var::Stage(_))
}

const fn is_reduction(var: Var) -> bool {
    matches!(var, Var::GradStage(_))
}

impl Recovery<'_> {
    fn find_all(&mut self, graph: &mut Graph) -> Result<()> {
        let updates: Vec<Expr> = (0..self.values.len()).map(|k| self.update(graph, k)).collect();
        // A number may follow from another, in whatever order they stand: each round finds at least one.
        while let Some(first) = self.values.iter().position(Option::is_none) {
            let before = self.values.iter().flatten().count();
            for (k, &update) in updates.iter().enumerate().skip(first) {
                if self.values[k].is_none() {
                    self.values[k] = self.find(graph, k, update);
                }
            }
            if self.values.iter().flatten().count() == before {
                return Err(self.not_recognised(first));
            }
        }
        Ok(())
    }

    /// The update of a number, where other new numbers in it stand as variables.
    fn update(&self, graph: &mut Graph, k: usize) -> Expr {
        let replace = self.new_numbers(graph, Some(k));
        graph.substitute(self.online.step.rowscales[k], &replace)
    }

    /// The new numbers but that of `k`, and those that are the same as it, as variables.
    fn new_numbers(&self, graph: &mut Graph, k: Option<usize>) -> HashMap<Expr, Expr> {
        let rowscales = &self.online.step.rowscales;
        let mut replace = HashMap::new();
        for (other, &update) in rowscales.iter().enumerate() {
            let is_own = k.is_some_and(|k| other == k || (update == rowscales[k] && other > k));
            if !is_own {
                replace.entry(update).or_insert_with(|| graph.var(behind(other)));
            }
        }
        replace
    }

    /// What a number is at the end of a row; None where that is not known, or not yet.
    fn find(&mut self, graph: &mut Graph, k: usize, update: Expr) -> Option<Expr> {
        if !depends(graph, update, |var| is_old(var) || is_reduction(var)) {
            return self.at_the_end(graph, update);
        }
        if let Some(value) = self.extreme(graph, k, update) {
            return Some(value);
        }
        self.sum(graph, k, update)
    }

    /// An expression of new numbers, these replaced by what they are; None where one is not known.
    fn at_the_end(&self, graph: &mut Graph, expr: Expr) -> Option<Expr> {
        let mut replace = HashMap::new();
        for (k, value) in self.values.iter().enumerate() {
            if depends(graph, expr, |var| var == behind(k)) {
                replace.insert(graph.var(behind(k)), (*value)?);
            }
        }
        Some(graph.substitute(expr, &replace))
    }

    /// `z' = max(z, max(f(x)))`, and with min.
    fn extreme(&mut self, graph: &mut Graph, k: usize, update: Expr) -> Option<Expr> {
        let Node::Binary(op @ (Binary::Max | Binary::Min), a, b) = *graph.node(update) else { return None };
        let old = graph.var(Var::Stage(k as u8));
        let tile = if a == old {
            b
        } else if b == old {
            a
        } else {
            return None;
        };
        let Node::Var(Var::GradStage(n)) = *graph.node(tile) else { return None };
        let reduction = self.online.reductions.get(usize::from(n))?;
        let reduce = if op == Binary::Max { Reduce::Max } else { Reduce::Min };
        if reduction.reduce != reduce
            || depends(graph, reduction.element, |var| is_old(var) || is_reduction(var))
        {
            return None;
        }
        let stage = self.stage(graph, k, reduce, reduction.element);
        if self.online.start[k] == reduce.identity() {
            return Some(stage);
        }
        let start = graph.float(self.online.start[k]);
        Some(graph.binary(op, start, stage))
    }

    /// `z' = carry z + factor sum(e(x))`, carry and factor and e perhaps of new numbers, so that at the end
    /// `z = carry(start → end) start + factor Σ e(x)`: a sum, or a logsumexp where `e` is an exponential.
    fn sum(&mut self, graph: &mut Graph, k: usize, update: Expr) -> Option<Expr> {
        let old = graph.var(Var::Stage(k as u8));
        let carry = derive::derivative(graph, update, old);
        if depends(graph, carry, |var| var == Var::Stage(k as u8) || is_reduction(var)) {
            return None;
        }
        let zero = graph.float(0.0);
        let added = graph.substitute(update, &[(old, zero)].into());
        let found = (0..self.online.reductions.len())
            .find(|&n| derive::depends_on(graph, added, Var::GradStage(n as u8)))?;
        let reduction = self.online.reductions[found];
        let tile = graph.var(Var::GradStage(found as u8));
        let factor = derive::derivative(graph, added, tile);
        if reduction.reduce != Reduce::Sum || depends(graph, factor, |var| is_old(var) || is_reduction(var)) {
            return None;
        }
        let replace = self.new_numbers(graph, None);
        let element = graph.substitute(reduction.element, &replace);
        if depends(graph, element, |var| is_old(var) || is_reduction(var)) {
            return None;
        }
        // Everything that can fail comes before a stage is made.
        let factor = self.at_the_end(graph, factor)?;
        let start = self.start(graph, k, carry)?;
        let total = self.total(graph, k, element)?;
        let scaled = graph.mul(factor, total);
        Some(graph.add(start, scaled))
    }

    /// What the start of a number has become at the end of a row.
    fn start(&self, graph: &mut Graph, k: usize, carry: Expr) -> Option<Expr> {
        let start = graph.float(self.online.start[k]);
        if graph.is_zero(start) {
            return Some(start);
        }
        let from: Vec<Expr> = self.online.start.iter().map(|&value| graph.float(value)).collect();
        let carry = of_numbers(graph, carry, &from);
        let carry = self.at_the_end(graph, carry)?;
        Some(graph.mul(carry, start))
    }

    /// `Σ e(x)` over the row, `e` of the score and of new numbers.
    fn total(&mut self, graph: &mut Graph, k: usize, element: Expr) -> Option<Expr> {
        // A row's weight is taken apart in the same way, its stages standing for what is the same for all elements.
        let numbers = self.values.len();
        let (stages, new): (Vec<Expr>, Vec<Expr>) =
            (0..numbers).map(|j| (graph.var(Var::Stage(j as u8)), graph.var(behind(j)))).unzip();
        let element = graph.substitute(element, &new.iter().copied().zip(stages.iter().copied()).collect());
        let mut parts = Parts::new(graph);
        parts.split(graph, element, false)?;
        let Parts { local, factor, exponent, exponent_of_row } = parts;
        let back: HashMap<Expr, Expr> = stages.into_iter().zip(new).collect();
        let (factor, shift) = (graph.substitute(factor, &back), graph.substitute(exponent_of_row, &back));
        let (factor, shift) = (self.at_the_end(graph, factor)?, self.at_the_end(graph, shift)?);
        let total = if graph.is_zero(exponent) {
            let stage = self.stage(graph, k, Reduce::Sum, local);
            let power = graph.unary(Unary::Exp, shift);
            graph.mul(stage, power)
        } else if graph.is_one(local) {
            let stage = self.stage(graph, k, Reduce::Lse, exponent);
            let power = graph.add(stage, shift);
            graph.unary(Unary::Exp, power)
        } else {
            return None;
        };
        Some(graph.mul(factor, total))
    }

    /// A stage, that of another number where it is the same.
    fn stage(&mut self, graph: &mut Graph, k: usize, reduce: Reduce, value: Expr) -> Expr {
        let known = self.stages.iter().position(|stage| stage.reduce == reduce && stage.value == value);
        let at = known.unwrap_or_else(|| {
            let name = &self.online.names[k];
            let is_free = check_name(name).is_ok() && self.stages.iter().all(|stage| stage.name != *name);
            let name = if is_free { name.clone() } else { format!("stage{}", self.stages.len()) };
            self.stages.push(Stage { name, reduce, value });
            self.stages.len() - 1
        });
        graph.var(Var::Stage(at as u8))
    }

    fn not_recognised(&self, k: usize) -> Error {
        Error::invalid(
            "online_fwd",
            format!("the update of '{}'", self.online.names[k]),
            "law of stages: every running number is a reduction of the row, or follows from others that are",
            "recognised are z + reduce_sum(f(x)), max(z, reduce_max(f(x))), min(z, reduce_min(f(x))), \
             z*exp(m - m') + reduce_sum(exp(f(x) - m')) beside a running maximum m, and functions of other new numbers",
        )
    }
}
