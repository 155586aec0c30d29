//! What comes behind the row's numbers in a backward operation: the cotangents of stages, the gradients of queries, bias and
//! captured tensors, and those of the walk with stationary keys.

use natten_core::program::derive::depends_on;
use natten_core::program::{Expr, GradStages, Graph, Lowered, Primal, Pushed, Reduce, Var};
use natten_core::{Op, Result};

use super::derive::Deriver;
use super::{KeyPass, Step, Sweep};
use crate::lanes::Direction;
use crate::program::code::{Reduction, Scatter, Sums, SweepCode, Vectors, Wanted};
use crate::program::numbers::Number;
use crate::tile::Source;

impl Deriver<'_> {
    /// The cotangents of the stages, and their tangents.
    pub(super) fn cotangents_of_stages(&mut self) -> Result<()> {
        let vars = |k: u8| [Var::GradStage(k), Var::Tangent(Primal::GradStage(k))];
        let used: Vec<(u8, usize)> = (0..self.lowered[0].stages.len() as u8)
            .flat_map(|k| [(k, 0), (k, 1)])
            .filter(|&(k, n)| self.uses(vars(k)[n]))
            .collect();
        if used.is_empty() {
            return Ok(());
        }
        let of = |list: &[Pushed], (k, n): (u8, usize)| {
            let pushed = list[usize::from(k)];
            if n == 0 { pushed.value } else { pushed.tangent }
        };
        match &self.lowered[0].grad_stages {
            GradStages::OfRow(list) => {
                let list = list.clone();
                let graph = self.lowered[0].graph.clone();
                let deltas = [Var::Delta, Var::Tangent(Primal::Delta)].map(|delta| {
                    let is_used = used.iter().any(|&which| depends_on(&graph, of(&list, which), delta));
                    is_used.then(|| self.numbers.slot(Number::Var(delta)))
                });
                if deltas.iter().any(Option::is_some) {
                    self.steps.push(Step::Delta(deltas));
                }
                let outputs: Vec<(Expr, usize)> = used
                    .iter()
                    .map(|&(k, n)| (of(&list, (k, n)), self.numbers.slot(Number::Var(vars(k)[n]))))
                    .collect();
                self.row_code(&graph, &outputs, None)
            }
            _ => {
                let slots: Vec<usize> =
                    used.iter().map(|&(k, n)| self.numbers.slot(Number::Var(vars(k)[n]))).collect();
                let sweep = self.sweep(|_, _, lowered, _| {
                    let mut wanted = Wanted::default();
                    let list = lowered.grad_stages.cotangents();
                    let reduction = |slot| Reduction { reduce: Reduce::Sum, slot, is_scaled: false };
                    wanted.reduced = used
                        .iter()
                        .zip(&slots)
                        .map(|(&which, &slot)| (of(list, which), reduction(slot)))
                        .collect();
                    wanted
                })?;
                self.steps.push(Step::Sweep(Box::new(sweep)));
                let Some(k) = self.lowered[0].logsumexp else { return Ok(()) };
                let direct =
                    [Var::GradLogsumexp, Var::Tangent(Primal::GradLogsumexp)].into_iter().zip(vars(k));
                let slot = |var| self.numbers.find(Number::Var(var));
                let sums: Vec<(usize, usize)> =
                    direct.filter_map(|(from, to)| slot(from).zip(slot(to))).collect();
                if !sums.is_empty() {
                    self.steps.push(Step::Add(sums));
                }
                Ok(())
            }
        }
    }

    /// A gradient's factors of streamed vectors: of the vectors themselves, and of their tangents.
    fn terms(&self, pushed: Pushed, vectors: [Vectors; 2], sums: Sums) -> Vec<(Expr, Vectors, Sums)> {
        match self.op {
            Op::BackwardJvp => vec![(pushed.tangent, vectors[0], sums), (pushed.value, vectors[1], sums)],
            _ => vec![(pushed.value, vectors[0], sums)],
        }
    }

    /// A gradient, or its tangent where that is the result.
    fn result(&self, pushed: Pushed) -> Expr {
        if self.op == Op::BackwardJvp { pushed.tangent } else { pushed.value }
    }

    pub(super) fn gradients_of_queries(
        &mut self,
        _: &mut Graph,
        lowered: &Lowered,
        is_window: bool,
    ) -> Wanted {
        let mut wanted = Wanted::default();
        if self.wants.query {
            wanted.products = self.terms(lowered.grad_score, [Vectors::A, Vectors::ATangent], Sums::A);
        }
        if self.wants.rpb && is_window {
            wanted.bias = Some(self.result(lowered.grad_score));
        }
        let table = |capture: u8| self.wants.captures.iter().position(|&n| n == capture);
        wanted.scatters = lowered
            .loads
            .iter()
            .filter_map(|load| {
                Some(Scatter {
                    capture: load.capture,
                    table: table(load.capture)?,
                    index: load.index.clone(),
                    gradient: self.result(load.gradient),
                })
            })
            .filter(|scatter| !lowered.graph.is_zero(scatter.gradient))
            .collect();
        wanted
    }

    pub(super) fn keys(&mut self, lse_stages: &[usize]) -> Result<KeyPass> {
        let none =
            KeyPass { sweep: Sweep { codes: [None, None] }, stored: Vec::new(), lse_stages: Vec::new() };
        let wants = self.wants;
        let any = wants.key || wants.value || wants.additional_key || wants.additional_value;
        if !self.is_backward() || !any {
            return Ok(none);
        }
        let wanted: Vec<Wanted> = self
            .lowered
            .iter()
            .enumerate()
            .map(|(source, lowered)| {
                let (key, value) = match source {
                    0 => (self.wants.key, self.wants.value),
                    _ => (self.wants.additional_key, self.wants.additional_value),
                };
                let mut wanted = Wanted::default();
                if key {
                    wanted.products.extend(self.terms(
                        lowered.grad_score,
                        [Vectors::A, Vectors::ATangent],
                        Sums::A,
                    ));
                }
                if value {
                    wanted.products.extend(self.terms(
                        lowered.weight,
                        [Vectors::B, Vectors::BTangent],
                        Sums::B,
                    ));
                }
                wanted
            })
            .collect();
        let is_read = |var: Var| {
            self.lowered.iter().zip(&wanted).any(|(lowered, wanted)| {
                wanted.products.iter().any(|&(expr, ..)| depends_on(&lowered.graph, expr, var))
            })
        };
        let mut stored: Vec<usize> =
            self.numbers.variables().filter(|&(_, var)| is_read(var)).map(|(slot, _)| slot).collect();
        stored.extend(lse_stages.iter().copied().filter(|slot| !stored.contains(slot)).collect::<Vec<_>>());
        let place = |slot: usize| stored.iter().position(|&known| known == slot);
        let mut codes = [None, None];
        for (source, (lowered, wanted)) in self.lowered.iter().zip(&wanted).enumerate() {
            let sources = |var: Var| self.numbers.find(Number::Var(var)).and_then(place).map(Source::Row);
            let context = self.context(Direction::Queries, source);
            let code = SweepCode::new(&context, &lowered.graph, wanted, &sources, &self.numbers)?;
            codes[source] = Some(code).filter(|_| !wanted.products.is_empty());
        }
        let lse_stages = lse_stages.iter().filter_map(|&slot| place(slot)).collect();
        Ok(KeyPass { sweep: Sweep { codes }, stored, lse_stages })
    }
}
