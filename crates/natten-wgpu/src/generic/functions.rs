//! A program's functions of pairs and of rows as WGSL functions that the walks call: `w_…` for the keys of a window,
//! `a_…` for additional tokens.

use std::fmt::Write;

use natten_core::program::{
    Buffer, Compare, Expr, Graph, Index, LoadGradient, Lowered, Primal, Program, Pushed, Reduce,
    StageElement, Unary, Var,
};
use natten_core::{Problem, Result};

use super::First;
use super::regions::Captures;
use crate::render::math::Real;
use crate::render::{Leaves, render};

/// The walks' names for what functions are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'p> {
    pub(super) program: &'p Program,
    pub(super) captures: &'p Captures,
    pub(super) first: First,
    pub(super) real: Real,
}

impl Leaves for Names<'_> {
    fn real(&self) -> Real {
        self.real
    }

    fn var(&self, var: Var) -> Option<String> {
        Some(match var {
            Var::Score => "x.score".to_owned(),
            Var::Grad => "x.grad".to_owned(),
            Var::Stage(k) => format!("row.stage[{k}]"),
            Var::GradStage(k) => format!("row.grad_stage[{k}]"),
            Var::Delta => "row.delta".to_owned(),
            Var::GradLogsumexp => "row.grad_logsumexp".to_owned(),
            Var::Tangent(Primal::Score) => "x.score_t".to_owned(),
            Var::Tangent(Primal::Grad) => "x.grad_t".to_owned(),
            Var::Tangent(Primal::Stage(k)) => format!("row.stage_t[{k}]"),
            Var::Tangent(Primal::GradStage(k)) => format!("row.grad_stage_t[{k}]"),
            Var::Tangent(Primal::Delta) => "row.delta_t".to_owned(),
            Var::Tangent(Primal::GradLogsumexp) => "row.grad_logsumexp_t".to_owned(),
            _ => return None,
        })
    }

    fn index(&self, index: Index) -> Option<String> {
        // The user's axes are the last of the three.
        let axis = |a: u8| ["x", "y", "z"].get(3 - self.program.rank() + usize::from(a)).copied();
        let of_whole = |name: &str, first: usize| match first {
            0 => name.to_owned(),
            _ => format!("({name} + {first})"),
        };
        Some(match index {
            Index::Batch => of_whole("at.b", self.first.batch),
            Index::Head => of_whole("at.h", self.first.head),
            Index::HeadKv => of_whole("at.hkv", self.first.head_kv),
            Index::Query => "at.q".to_owned(),
            Index::Key => "at.k".to_owned(),
            Index::QueryAxis(a) => format!("at.qc.{}", axis(a)?),
            Index::KeyAxis(a) => format!("at.kc.{}", axis(a)?),
            _ => return None,
        })
    }

    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
        let capture = &self.program.captures()[usize::from(buffer.capture)];
        let element = element(&capture.shape, index);
        let number = usize::from(buffer.capture);
        if !capture.dtype.is_float() {
            return Some(format!(
                "ints[{}u + u32({element})]",
                self.captures.integers.get(number).copied()??
            ));
        }
        let regions = if buffer.tangent { &self.captures.tangents } else { &self.captures.numbers };
        Some(format!("arena[{}u + u32({element})]", regions.get(number).copied()??))
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        let row = match self.first {
            First { heads: 0, .. } => "at.row".to_owned(),
            First { batch, head, heads, .. } => format!("(at.b + {batch}) * {heads} + at.h + {head}"),
        };
        Some(format!("random_of({row}, at.q, at.k, {low}, {high})"))
    }
}

/// The row-major number of an element that a load reads.
pub(super) fn element(shape: &[usize], index: &[String]) -> String {
    index.iter().zip(shape).fold("0".to_owned(), |element, (index, extent)| {
        format!("({element} * {extent} + clamped({index}, {extent}))")
    })
}

/// The functions of a problem on pairs of one kind of keys.
#[derive(Debug)]
pub(super) struct Functions<'p> {
    names: Names<'p>,
    pub(super) lowered: Lowered,
    prefix: char,
}

impl<'p> Functions<'p> {
    pub(super) fn new(problem: &'p Problem, lowered: Lowered, names: Names<'p>, is_additional: bool) -> Self {
        debug_assert_eq!(problem.program().rank(), names.program.rank());
        Self { names, lowered, prefix: if is_additional { 'a' } else { 'w' } }
    }

    /// Whether a pair counts.
    pub(super) fn mask(&self) -> Result<String> {
        let mut graph = self.lowered.graph.clone();
        let mask = self.lowered.mask.unwrap_or_else(|| graph.bool(true));
        let rendered = render(self.names.program, &graph, &[mask], &self.names)?;
        Ok(format!(
            "fn {}_mask(at: Site, row: Row) -> bool {{\n{}    return {};\n}}\n",
            self.prefix, rendered.lines, rendered.results[0]
        ))
    }

    /// The elements of the stages.
    pub(super) fn stages(&self) -> Result<String> {
        let roots: Vec<Expr> = self.lowered.stages.iter().map(|stage| stage.element.value).collect();
        self.numbers(&self.lowered.graph, "stages", &roots)
    }

    /// What a pair adds to the tangents of the stages.
    pub(super) fn stage_tangents(&self) -> Result<String> {
        let mut graph = self.lowered.graph.clone();
        let stages = self.lowered.stages.iter().enumerate();
        let roots: Vec<Expr> = stages.map(|(k, stage)| stage_tangent(&mut graph, k as u8, stage)).collect();
        self.numbers(&graph, "stage_tangents", &roots)
    }

    /// The weight and its tangent.
    pub(super) fn weight(&self) -> Result<String> {
        self.numbers(&self.lowered.graph, "weight", &both(self.lowered.weight))
    }

    /// The gradient of the score and its tangent.
    pub(super) fn grad_score(&self) -> Result<String> {
        self.numbers(&self.lowered.graph, "grad_score", &both(self.lowered.grad_score))
    }

    /// What a pair adds to the cotangents of the stages, and their tangents.
    pub(super) fn grad_stages(&self) -> Result<String> {
        let list = self.lowered.grad_stages.cotangents();
        let roots: Vec<Expr> = list.iter().copied().flat_map(both).collect();
        self.numbers(&self.lowered.graph, "grad_stages", &roots)
    }

    /// The loads of one captured tensor: the elements that they read, and what a pair adds to the elements' gradients,
    /// or to the tangents of those.
    pub(super) fn loads(&self, capture: u8, shape: &[usize], is_tangent: bool) -> Result<String> {
        let loads = self.loads_of(capture);
        let rendered =
            render(self.names.program, &self.lowered.graph, &load_roots(&loads, is_tangent), &self.names)?;
        let p = self.prefix;
        Ok(format!(
            "const {p}_LOADS = {};\n{}fn {p}_loads(at: Site, row: Row, x: Pair) -> {p}_Loads {{\n    \
             var loads = {p}_Loads();\n{}{}    return loads;\n}}\n",
            loads.len(),
            loads_struct(p, loads.len()),
            rendered.lines,
            store_loads(&rendered.results, shape),
        ))
    }

    /// The loads of one captured tensor.
    pub(super) fn loads_of(&self, capture: u8) -> Vec<&LoadGradient> {
        self.lowered.loads.iter().filter(|load| load.capture == capture).collect()
    }

    fn numbers(&self, graph: &Graph, name: &str, roots: &[Expr]) -> Result<String> {
        let rendered = render(self.names.program, graph, roots, &self.names)?;
        let count = roots.len().max(1);
        Ok(format!(
            "fn {}_{name}(at: Site, row: Row, x: Pair) -> array<R, {count}> {{\n{}    return array<R, {count}>({});\n}}\n",
            self.prefix,
            rendered.lines,
            rendered.results.join(", "),
        ))
    }
}

/// The struct of what loads read and add.
pub(super) fn loads_struct(prefix: char, count: usize) -> String {
    let count = count.max(1);
    format!("struct {prefix}_Loads {{ element: array<i32, {count}>, gradient: array<R, {count}> }}\n")
}

/// What [`store_loads`] stores, as expressions.
pub(super) fn load_roots(loads: &[&LoadGradient], is_tangent: bool) -> Vec<Expr> {
    let mut roots = Vec::new();
    for load in loads {
        roots.extend(&load.index);
        roots.push(if is_tangent { load.gradient.tangent } else { load.gradient.value });
    }
    roots
}

/// Statements that store rendered loads of a tensor of this shape.
pub(super) fn store_loads(results: &[String], shape: &[usize]) -> String {
    let mut text = String::new();
    for (i, results) in results.chunks(shape.len() + 1).enumerate() {
        let _ = writeln!(text, "    loads.element[{i}] = {};", element(shape, &results[..shape.len()]));
        let _ = writeln!(text, "    loads.gradient[{i}] = {};", results[shape.len()]);
    }
    text
}

/// `grad_stages_of_row`: the cotangents of stages that follow from the row's numbers.
pub(super) fn of_row(names: &Names<'_>, lowered: &Lowered) -> Result<String> {
    let roots: Vec<Expr> = lowered.grad_stages.cotangents().iter().copied().flat_map(both).collect();
    let rendered = render(names.program, &lowered.graph, &roots, names)?;
    // A row without stages has none, and room for one.
    let mut results = rendered.results;
    results.resize(results.len().max(2), "R(0.0)".to_owned());
    let count = results.len();
    Ok(format!(
        "fn grad_stages_of_row(at: Site, row: Row) -> array<R, {count}> {{\n{}    return array<R, {count}>({});\n}}\n",
        rendered.lines,
        results.join(", "),
    ))
}

pub(super) const fn both(pushed: Pushed) -> [Expr; 2] {
    [pushed.value, pushed.tangent]
}

/// What a pair adds to the tangent of a stage that is known.
fn stage_tangent(g: &mut Graph, k: u8, stage: &StageElement) -> Expr {
    let StageElement { reduce, element, .. } = *stage;
    if g.is_zero(element.tangent) {
        return element.tangent;
    }
    let known = g.var(Var::Stage(k));
    match reduce {
        Reduce::Lse => {
            let below = g.sub(element.value, known);
            let share = g.unary(Unary::Exp, below);
            g.mul(share, element.tangent)
        }
        Reduce::Max | Reduce::Min => {
            let (zero, is_extreme) = (g.float(0.0), g.compare(Compare::Eq, element.value, known));
            g.select(is_extreme, element.tangent, zero)
        }
        _ => element.tangent,
    }
}
