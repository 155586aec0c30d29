//! The steps of a box of queries up to the row's numbers: which stages something depends on, the sweeps that they take, and
//! the functions of a row in between.

use std::collections::HashMap;

use natten_core::program::derive::depends_on;
use natten_core::program::{
    Algorithm, Compare, Expr, Graph, Involved, Lowered, Primal, Pushed, Reduce, StageElement, Unary, Var,
};
use natten_core::{Op, Problem, Result};

use super::{Finish, Passes, QueryPass, RowCode, Step, Sweep, sweeps_of};
use crate::lanes::Direction;
use crate::program::code::{Context, Reduction, Sums, SweepCode, Vectors, Wanted};
use crate::program::numbers::{Number, Numbers};
use crate::program::zeros;
use crate::tile::{Output, Source};

/// Derives what an operation does.
pub(super) struct Deriver<'a> {
    pub(super) problem: &'a Problem,
    pub(super) op: Op,
    pub(super) tangents: &'a Involved,
    pub(super) wants: &'a Involved,
    /// Whether the cotangent of the logsumexp is given.
    pub(super) has_cotangent: bool,
    /// On the window's keys, and on the additional ones.
    pub(super) lowered: Vec<Lowered>,
    pub(super) numbers: Numbers,
    pub(super) steps: Vec<Step>,
}

impl<'a> Deriver<'a> {
    pub(super) fn new(
        problem: &'a Problem,
        op: Op,
        tangents: &'a Involved,
        wants: &'a Involved,
        has_cotangent: bool,
    ) -> Self {
        let sources: &[bool] = if problem.additional_tokens() > 0 { &[false, true] } else { &[false] };
        let given = tangents.given();
        let lowered = sources
            .iter()
            .map(|&additional| {
                let mut lowered = Lowered::new(problem.program(), additional, &given);
                zeros::drop(&mut lowered, has_cotangent);
                lowered
            })
            .collect();
        Self {
            problem,
            op,
            tangents,
            wants,
            has_cotangent,
            lowered,
            numbers: Numbers::default(),
            steps: Vec::new(),
        }
    }

    pub(super) fn is_backward(&self) -> bool {
        matches!(self.op, Op::Backward | Op::BackwardJvp)
    }

    fn has_tangents(&self) -> bool {
        matches!(self.op, Op::ForwardJvp | Op::BackwardJvp)
    }

    pub(super) fn derive(mut self) -> Result<Passes> {
        let stages = self.needed_stages();
        let logsumexp = self.lowered[0].logsumexp;
        let mut given = [None; 3];
        if self.is_backward() && self.has_cotangent {
            given[1] = Some(self.numbers.slot(Number::Var(Var::GradLogsumexp)));
            if self.tangents.logsumexp {
                given[2] = Some(self.numbers.slot(Number::Var(Var::Tangent(Primal::GradLogsumexp))));
            }
        }
        let mut factor = [None; 2];
        match self.op {
            Op::Backward => {
                let recomputed: Vec<u8> = stages.iter().copied().filter(|&k| Some(k) != logsumexp).collect();
                given[0] = logsumexp.map(|k| self.stage_slot(k));
                self.stages_sweep(&recomputed)?;
            }
            _ => factor = self.forward(&stages)?,
        }
        if self.is_backward() {
            self.cotangents_of_stages()?;
        }
        let lse_stages: Vec<usize> =
            self.stages_of(Reduce::Lse).into_iter().map(|k| self.stage_slot(k)).collect();
        let keys = self.keys(&lse_stages)?;
        if !keys.stored.is_empty() {
            self.steps.push(Step::Store);
        }
        let wants = self.wants;
        if self.is_backward() && (wants.query || wants.rpb || !wants.captures.is_empty()) {
            let sweep =
                self.sweep(|this, g, lowered, is_window| this.gradients_of_queries(g, lowered, is_window))?;
            self.steps.push(Step::Sweep(Box::new(sweep)));
        }
        let slots = logsumexp.map(|k| [Var::Stage(k), Var::Tangent(Primal::Stage(k))]);
        let logsumexp = match slots {
            Some(vars) => vars.map(|var| self.numbers.find(Number::Var(var))),
            None => [None; 2],
        };
        let codes = || sweeps_of(&self.steps).flat_map(|sweep| sweep.codes.iter().flatten());
        let stationary = std::array::from_fn(|v| codes().any(|code| code.stationary[v]));
        let queries = QueryPass {
            numbers: self.numbers,
            steps: self.steps,
            logsumexp,
            given,
            lse_stages,
            factor,
            stationary,
        };
        Ok(Passes { queries, keys, lowered: self.lowered })
    }

    pub(super) fn stages_of(&self, reduce: Reduce) -> Vec<u8> {
        let stages = self.lowered[0].stages.iter().enumerate();
        stages.filter(|(_, stage)| stage.reduce == reduce).map(|(k, _)| k as u8).collect()
    }

    /// The functions whose values the operation is made of.
    fn functions(&self, lowered: &Lowered) -> Vec<Expr> {
        let both = |pushed: &Pushed| [pushed.value, pushed.tangent];
        let mut functions = Vec::new();
        if self.op != Op::Backward {
            match lowered.algorithm {
                Algorithm::OnePass { factor, .. } => functions.extend([factor, lowered.factor_tangent]),
                _ => functions.extend(both(&lowered.weight)),
            }
        }
        if self.is_backward() {
            functions.extend(both(&lowered.weight));
            functions.extend(both(&lowered.grad_score));
            functions.extend(lowered.loads.iter().flat_map(|load| both(&load.gradient)));
            functions.extend(lowered.grad_stages.cotangents().iter().flat_map(both));
        }
        functions
    }

    pub(super) fn uses(&self, var: Var) -> bool {
        self.lowered
            .iter()
            .any(|lowered| self.functions(lowered).iter().any(|&f| depends_on(&lowered.graph, f, var)))
    }

    /// The stages that something depends on: the logsumexps, which tell dead rows, and what the functions are of.
    fn needed_stages(&self) -> Vec<u8> {
        let stages = self.lowered[0].stages.iter().enumerate();
        let is_needed = |k: u8, stage: &StageElement| {
            stage.reduce == Reduce::Lse
                || self.uses(Var::Stage(k))
                || self.has_tangents() && self.uses(Var::Tangent(Primal::Stage(k)))
        };
        stages.filter(|(k, stage)| is_needed(*k as u8, stage)).map(|(k, _)| k as u8).collect()
    }

    pub(super) fn stage_slot(&mut self, k: u8) -> usize {
        let initial = self.lowered[0].stages[usize::from(k)].reduce.identity();
        self.numbers.slot_from(Number::Var(Var::Stage(k)), initial)
    }

    pub(super) fn stage_tangent_slot(&mut self, k: u8) -> usize {
        self.numbers.slot(Number::Var(Var::Tangent(Primal::Stage(k))))
    }

    /// A sweep with stationary queries over both sources.
    pub(super) fn sweep(
        &mut self,
        wanted: impl Fn(&mut Self, &mut Graph, &Lowered, bool) -> Wanted,
    ) -> Result<Sweep> {
        let mut codes = [None, None];
        for (source, lowered) in self.lowered.clone().into_iter().enumerate() {
            let mut graph = lowered.graph.clone();
            let wanted = wanted(self, &mut graph, &lowered, source == 0);
            let sources = |var: Var| self.numbers.find(number_of(var, &wanted)).map(Source::Lane);
            let code = SweepCode::new(
                &self.context(Direction::Keys, source),
                &graph,
                &wanted,
                &sources,
                &self.numbers,
            )?;
            codes[source] = Some(code).filter(|code| !code.is_empty());
        }
        Ok(Sweep { codes })
    }

    pub(super) fn context(&self, direction: Direction, source: usize) -> Context<'a> {
        let t = self.tangents;
        let keys = match source {
            0 => [true, t.key, true, t.value],
            _ => [true, t.additional_key, true, t.additional_value],
        };
        let queries = [true, t.query, true, t.output];
        let (stationary, streamed) = match direction {
            Direction::Keys => (queries, keys),
            Direction::Queries => (keys, queries),
        };
        Context {
            direction,
            heads: self.problem.heads(),
            captures: self.problem.program().captures(),
            stationary,
            streamed,
        }
    }

    /// Adds a stage's elements to what a sweep computes.
    fn want_stage(&mut self, wanted: &mut Wanted, lowered: &Lowered, k: u8) {
        let stage = lowered.stages[usize::from(k)];
        let slot = self.stage_slot(k);
        match stage.reduce {
            Reduce::Lse => {
                self.numbers.slot(Number::Peak(k));
                self.numbers.slot(Number::Total(k));
                wanted.columns.push((k, stage.element.value));
            }
            reduce => {
                wanted.reduced.push((stage.element.value, Reduction { reduce, slot, is_scaled: false }))
            }
        }
    }

    fn finish(&mut self, stages: &[u8], exponential: Option<u8>, tangents: bool) {
        let mut finishes = Vec::new();
        for k in self.stages_of(Reduce::Lse).into_iter().filter(|k| stages.contains(k)) {
            let is_exponential = exponential == Some(k);
            finishes.push(Finish {
                peak: self.numbers.slot(Number::Peak(k)),
                total: self.numbers.slot(Number::Total(k)),
                stage: self.stage_slot(k),
                tangent: (is_exponential && tangents).then(|| self.stage_tangent_slot(k)),
                inverse: is_exponential.then(|| self.numbers.slot(Number::Inverse)),
            });
        }
        self.steps.push(Step::Finish(finishes));
    }

    /// Stages alone.
    fn stages_sweep(&mut self, stages: &[u8]) -> Result<()> {
        if stages.is_empty() {
            return Ok(());
        }
        let sweep = self.sweep(|this, _, lowered, _| {
            let mut wanted = Wanted::default();
            for &k in stages {
                this.want_stage(&mut wanted, lowered, k);
            }
            wanted
        })?;
        self.steps.push(Step::Sweep(Box::new(sweep)));
        self.finish(stages, None, false);
        Ok(())
    }

    /// The tangents of stages that are known.
    fn stage_tangents_sweep(&mut self, stages: &[u8]) -> Result<()> {
        let sweep = self.sweep(|this, g, lowered, _| {
            let mut wanted = Wanted::default();
            for &k in stages {
                let StageElement { reduce, element, .. } = lowered.stages[usize::from(k)];
                let stage = g.var(Var::Stage(k));
                let share = match reduce {
                    Reduce::Lse => {
                        let below = g.sub(element.value, stage);
                        let share = g.unary(Unary::Exp, below);
                        g.mul(share, element.tangent)
                    }
                    Reduce::Max | Reduce::Min => {
                        let (zero, is_extreme) = (g.float(0.0), g.compare(Compare::Eq, element.value, stage));
                        g.select(is_extreme, element.tangent, zero)
                    }
                    _ => element.tangent,
                };
                let slot = this.stage_tangent_slot(k);
                wanted.reduced.push((share, Reduction { reduce: Reduce::Sum, slot, is_scaled: false }));
            }
            wanted
        })?;
        self.steps.push(Step::Sweep(Box::new(sweep)));
        Ok(())
    }

    /// Stages, output and logsumexp, and in forward mode their tangents. Returns the slots of the factor of the sums and
    /// of its tangent.
    fn forward(&mut self, stages: &[u8]) -> Result<[Option<usize>; 2]> {
        let tangents = self.has_tangents();
        let algorithm = self.lowered[0].algorithm;
        let exponential = match algorithm {
            Algorithm::OnePass { exponential, .. } => exponential,
            _ => None,
        };
        // A sum's tangent can be summed beside it, and so can that of the logsumexp whose exponentials are there.
        let is_simple =
            |k: &u8| self.lowered[0].stages[usize::from(*k)].reduce == Reduce::Sum || exponential == Some(*k);
        let one_sweep = algorithm != Algorithm::TwoPass && (!tangents || stages.iter().all(is_simple));
        let sums = self.is_backward() || self.wants.output;
        if !one_sweep {
            self.stages_sweep(stages)?;
            if tangents && !stages.is_empty() {
                self.stage_tangents_sweep(stages)?;
            }
            let sweep = self.sweep(|_, _, lowered, _| {
                let mut wanted = Wanted::default();
                if sums {
                    wanted.products.push((lowered.weight.value, Vectors::B, Sums::B));
                    if tangents {
                        wanted.products.push((lowered.weight.tangent, Vectors::B, Sums::BTangent));
                        wanted.products.push((lowered.weight.value, Vectors::BTangent, Sums::BTangent));
                    }
                }
                wanted
            })?;
            self.steps.extend([Step::Sweep(Box::new(sweep)), Step::Output]);
            return Ok([None; 2]);
        }
        let sweep = self.sweep(|this, g, lowered, _| this.one_pass(g, lowered, stages, sums))?;
        self.steps.push(Step::Sweep(Box::new(sweep)));
        self.finish(stages, exponential, tangents);
        let factor = self.factor(exponential)?;
        self.steps.push(Step::Output);
        Ok(factor)
    }

    fn one_pass(&mut self, g: &mut Graph, lowered: &Lowered, stages: &[u8], sums: bool) -> Wanted {
        let tangents = self.has_tangents();
        let mut wanted = Wanted::default();
        let Algorithm::OnePass { local, exponential, .. } = lowered.algorithm else { return wanted };
        wanted.exponential = exponential;
        for &k in stages {
            self.want_stage(&mut wanted, lowered, k);
        }
        let x = g.var(Var::X);
        // The exponentials are computed once, by the stage's column.
        let mut replace = HashMap::new();
        if let Some(k) = exponential {
            let (element, shift) = (lowered.stages[usize::from(k)].element.value, g.var(Var::Shift));
            let below = g.sub(element, shift);
            replace.insert(g.unary(Unary::Exp, below), x);
        }
        let local = g.substitute(local, &replace);
        let local_tangent = g.substitute(lowered.local_tangent, &replace);
        if tangents {
            for &k in stages {
                let StageElement { reduce, element, .. } = lowered.stages[usize::from(k)];
                let is_scaled = reduce == Reduce::Lse;
                let tangent = if is_scaled { g.mul(x, element.tangent) } else { element.tangent };
                let slot = self.stage_tangent_slot(k);
                wanted.reduced.push((tangent, Reduction { reduce: Reduce::Sum, slot, is_scaled }));
            }
        }
        if sums {
            wanted.products.push((local, Vectors::B, Sums::B));
            if tangents {
                wanted.products.push((local_tangent, Vectors::B, Sums::BTangent));
                wanted.products.push((local, Vectors::BTangent, Sums::BTangent));
            }
        }
        wanted
    }

    /// The code of the sums' factor and its tangent.
    fn factor(&mut self, exponential: Option<u8>) -> Result<[Option<usize>; 2]> {
        let lowered = &self.lowered[0];
        let Algorithm::OnePass { factor, .. } = lowered.algorithm else { return Ok([None; 2]) };
        let mut g = lowered.graph.clone();
        let inverse = g.var(Var::X);
        let mut replace = HashMap::new();
        if let Some(k) = exponential {
            let (shift, stage) = (g.var(Var::Shift), g.var(Var::Stage(k)));
            let below = g.sub(shift, stage);
            replace.insert(g.unary(Unary::Exp, below), inverse);
        }
        let values = [factor, lowered.factor_tangent].map(|expr| g.substitute(expr, &replace));
        let mut slots = [None; 2];
        let mut outputs = Vec::new();
        for (n, (expr, number)) in values.into_iter().zip([Number::Factor, Number::FactorTangent]).enumerate()
        {
            let is_default = if n == 0 { g.is_one(expr) } else { g.is_zero(expr) };
            if expr == inverse {
                slots[n] = self.numbers.find(Number::Inverse);
            } else if !is_default {
                let slot = self.numbers.slot(number);
                slots[n] = Some(slot);
                outputs.push((expr, slot));
            }
        }
        self.row_code(&g, &outputs, exponential)?;
        Ok(slots)
    }

    /// Adds the step of some functions of the row's numbers. [`Var::X`] is one over the total.
    pub(super) fn row_code(
        &mut self,
        graph: &Graph,
        outputs: &[(Expr, usize)],
        exponential: Option<u8>,
    ) -> Result<()> {
        if outputs.is_empty() {
            return Ok(());
        }
        let sources = |var: Var| {
            let number = match var {
                Var::X => Number::Inverse,
                Var::Shift => Number::Peak(exponential?),
                var => Number::Var(var),
            };
            self.numbers.find(number).map(Source::Lane)
        };
        let exprs: Vec<Output> = outputs.iter().map(|&(expr, _)| Output::Tile(expr)).collect();
        let code = self.context(Direction::Keys, 0).code(graph, &exprs, &sources)?;
        self.steps
            .push(Step::Row(RowCode { code, outputs: outputs.iter().map(|&(_, slot)| slot).collect() }));
        Ok(())
    }
}

/// Which number a variable is; the shift is the peak of the exponential stage.
fn number_of(var: Var, wanted: &Wanted) -> Number {
    match (var, wanted.exponential) {
        (Var::Shift, Some(k)) => Number::Peak(k),
        (var, _) => Number::Var(var),
    }
}
