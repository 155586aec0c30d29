//! A program's functions of pairs and of rows as the structs that the walks call: `Window` for the keys of a window,
//! `Additional` for additional tokens, `OfRow` for what depends on a row's numbers alone.

use std::fmt::Write;

use natten_core::program::{
    Algorithm, Buffer, Compare, Expr, GradStages, Graph, Index, LoadGradient, Lowered, Node, Primal, Program,
    Pushed, Reduce, StageElement, Unary, Var,
};
use natten_core::{Problem, Result};

use crate::render::{Leaves, Rendered, render};

/// The functions of a problem on pairs of one kind of keys.
#[derive(Debug)]
pub(super) struct Functions<'p> {
    program: &'p Program,
    pub(super) lowered: Lowered,
    is_additional: bool,
}

/// A walk's names for what functions are made of.
#[derive(Debug)]
pub(super) struct Names<'p> {
    pub(super) program: &'p Program,
}

impl Leaves for Names<'_> {
    fn var(&self, var: Var) -> Option<String> {
        Some(match var {
            Var::Score => "x.score".to_owned(),
            Var::Grad => "x.grad".to_owned(),
            Var::Stage(k) => format!("row.stage[{k}]"),
            Var::GradStage(k) => format!("row.grad_stage[{k}]"),
            Var::Delta => "row.delta".to_owned(),
            Var::GradLogsumexp => "row.grad_logsumexp".to_owned(),
            Var::Shift => "row.shift".to_owned(),
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
        let padding = 3 - self.program.rank();
        Some(match index {
            Index::Batch => "at.b".to_owned(),
            Index::Head => "at.h".to_owned(),
            Index::HeadKv => "at.hkv".to_owned(),
            Index::Query => "at.q".to_owned(),
            Index::Key => "at.k".to_owned(),
            Index::QueryAxis(a) => format!("at.qc[{}]", padding + usize::from(a)),
            Index::KeyAxis(a) => format!("at.kc[{}]", padding + usize::from(a)),
            Index::Lane => "at.d".to_owned(),
            Index::Dim => "at.dim".to_owned(),
            _ => return None,
        })
    }

    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
        let capture = &self.program.captures()[usize::from(buffer.capture)];
        let tensor = format!("t.{}capture_{}", if buffer.tangent { "tangent_" } else { "" }, buffer.capture);
        let offset: Vec<String> = index
            .iter()
            .zip(&capture.shape)
            .enumerate()
            .map(|(axis, (index, extent))| format!("clamped({index}, {extent})*{tensor}.stride[{axis}]"))
            .collect();
        let offset = if offset.is_empty() { "0".to_owned() } else { offset.join(" + ") };
        let element = format!("{tensor}.data[{offset}]");
        Some(if capture.dtype.is_float() { format!("number({element})") } else { element })
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        Some(format!("random_of(at, {low}, {high})"))
    }
}

/// The row-major number of an element that a load reads, of at most `shape.len()` axes.
pub(super) fn element(shape: &[usize], index: &[String]) -> String {
    index.iter().zip(shape).fold("0ll".to_owned(), |element, (index, extent)| {
        format!("({element}*{extent} + clamped({index}, {extent}))")
    })
}

impl<'p> Functions<'p> {
    pub(super) fn is_additional(&self) -> bool {
        self.is_additional
    }

    pub(super) fn new(problem: &'p Problem, lowered: Lowered, is_additional: bool) -> Self {
        Self { program: problem.program(), lowered, is_additional }
    }

    /// The functions of these names: `mask` and those of `wanted`.
    ///
    /// # Errors
    /// [`natten_core::Error::Unsupported`] for what cannot be rendered.
    pub(super) fn text(&self, wanted: &[Wanted<'_>]) -> Result<String> {
        let name = if self.is_additional { "Additional" } else { "Window" };
        let mut text = format!(
            "struct {name} {{\n    static constexpr bool ADDITIONAL = {}, MASKED = {};\n",
            self.is_additional,
            self.lowered.mask.is_some()
        );
        let mut graph = self.lowered.graph.clone();
        let mask = match self.lowered.mask {
            Some(mask) => mask,
            None => graph.bool(true),
        };
        text += &self.function(
            &graph,
            "mask",
            &[mask],
            |results| format!("        return {};\n", results[0]),
            "bool",
            "",
        )?;
        for wanted in wanted {
            text += &self.wanted(&mut graph, wanted)?;
        }
        text += "};\n";
        Ok(text)
    }

    fn wanted(&self, graph: &mut Graph, wanted: &Wanted<'_>) -> Result<String> {
        let (name, roots): (_, Vec<Expr>) = match wanted {
            Wanted::Stages => {
                ("stages", self.lowered.stages.iter().map(|stage| stage.element.value).collect())
            }
            Wanted::StageTangents(stages) => {
                let zero = graph.float(0.0);
                let of = |g: &mut Graph, k: usize| match stages.contains(&(k as u8)) {
                    true => stage_tangent(g, k as u8, &self.lowered.stages[k]),
                    false => zero,
                };
                ("stage_tangents", (0..self.lowered.stages.len()).map(|k| of(graph, k)).collect())
            }
            Wanted::Local => match self.lowered.algorithm {
                Algorithm::OnePass { local, .. } => ("local", vec![local]),
                _ => ("local", Vec::new()),
            },
            Wanted::Weight => ("weight", both(self.lowered.weight).to_vec()),
            Wanted::GradScore => ("grad_score", both(self.lowered.grad_score).to_vec()),
            Wanted::GradStages => (
                "grad_stages",
                self.lowered.grad_stages.cotangents().iter().copied().flat_map(both).collect(),
            ),
            Wanted::Loads { loads, shape, tangents } => return self.loads(graph, loads, shape, *tangents),
        };
        let store = |results: &[String]| assignments("out", results);
        self.function(graph, name, &roots, store, "void", ", R* out")
    }

    /// The elements that a pair's loads read, and what it adds to their gradients.
    fn loads(
        &self,
        graph: &Graph,
        loads: &[&LoadGradient],
        shape: &[usize],
        tangents: bool,
    ) -> Result<String> {
        let mut roots = Vec::new();
        for load in loads {
            roots.extend(&load.index);
            roots.push(if tangents { load.gradient.tangent } else { load.gradient.value });
        }
        let store = |results: &[String]| {
            let mut text = String::new();
            let per_load = shape.len() + 1;
            for (i, results) in results.chunks(per_load).enumerate() {
                let _ =
                    writeln!(text, "        elements[{i}] = {};", element(shape, &results[..shape.len()]));
                let _ = writeln!(text, "        out[{i}] = {};", results[shape.len()]);
            }
            text
        };
        let constant = format!("    static constexpr int LOADS = {};\n", loads.len());
        Ok(constant
            + &self.function(graph, "loads", &roots, store, "void", ", long long* elements, R* out")?)
    }

    /// A function of a pair, and before it that of the row which computes what does not change between pairs.
    fn function(
        &self,
        graph: &Graph,
        name: &str,
        roots: &[Expr],
        finish: impl Fn(&[String]) -> String,
        returns: &str,
        parameters: &str,
    ) -> Result<String> {
        let names = Names { program: self.program };
        let rendered = render(self.program, graph, roots, &names, "fixed.", &changes)?;
        let fields: String = rendered.exported.iter().map(|(ty, name)| format!(" {ty} {name};")).collect();
        let values: Vec<&str> = rendered.exported.iter().map(|(_, name)| name.as_str()).collect();
        let pair = if name == "mask" { "" } else { ", const Pair& x" };
        Ok(format!(
            "    struct fixed_{name} {{{fields} }};\n    \
             static DEVICE fixed_{name} fix_{name}(const Tensors& t, const Site& at, const Row& row) {{\n{}        \
             return {{{}}};\n    }}\n    \
             static DEVICE {returns} {name}(const Tensors& t, const Site& at, const Row& row{pair}, \
             const fixed_{name}& fixed{parameters}) {{\n{}{}    }}\n",
            Rendered::lines(&rendered.fixed, "        "),
            values.join(", "),
            Rendered::lines(&rendered.each, "        "),
            finish(&rendered.results),
        ))
    }
}

/// A function that a walk calls.
#[derive(Clone, Debug)]
pub(super) enum Wanted<'a> {
    Stages,
    /// The tangents of these stages; 0 for the others.
    StageTangents(&'a [u8]),
    /// The weight of the sum in one sweep, before the row's factor.
    Local,
    Weight,
    GradScore,
    GradStages,
    /// The loads of one captured tensor.
    Loads {
        loads: Vec<&'a LoadGradient>,
        shape: &'a [usize],
        tangents: bool,
    },
}

/// `OfRow`: the cotangents of stages that follow from the row's numbers, and the factor of its sum in one sweep.
///
/// # Errors
/// [`natten_core::Error::Unsupported`] for what cannot be rendered.
pub(super) fn of_row(program: &Program, lowered: &Lowered) -> Result<String> {
    let cotangents: Vec<Expr> = match &lowered.grad_stages {
        GradStages::OfRow(list) => list.iter().copied().flat_map(both).collect(),
        _ => Vec::new(),
    };
    let factor: Vec<Expr> = match lowered.algorithm {
        Algorithm::OnePass { factor, .. } => vec![factor],
        _ => Vec::new(),
    };
    let mut text = "struct OfRow {\n".to_owned();
    for (name, roots) in [("grad_stages", cotangents), ("factor", factor)] {
        let rendered = render(program, &lowered.graph, &roots, &Names { program }, "", &|_| true)?;
        let _ = write!(
            text,
            "    static DEVICE void {name}(const Tensors& t, const Site& at, const Row& row, R* out) {{\n{}{}    }}\n",
            Rendered::lines(&rendered.each, "        "),
            assignments("out", &rendered.results),
        );
    }
    Ok(text + "};\n")
}

fn assignments(to: &str, results: &[String]) -> String {
    let mut text = String::new();
    for (i, result) in results.iter().enumerate() {
        let _ = writeln!(text, "        {to}[{i}] = {result};");
    }
    text
}

const fn both(pushed: Pushed) -> [Expr; 2] {
    [pushed.value, pushed.tangent]
}

/// What differs between the pairs of a row.
fn changes(node: &Node) -> bool {
    match node {
        Node::Var(var) => matches!(
            var,
            Var::Score
                | Var::Grad
                | Var::X
                | Var::Shift
                | Var::Tangent(Primal::Score | Primal::Grad | Primal::X)
        ),
        Node::Index(index) => matches!(index, Index::Key | Index::KeyAxis(_)),
        Node::Random(..) => true,
        _ => false,
    }
}

/// What a pair adds to the tangent of a stage that is known.
fn stage_tangent(g: &mut Graph, k: u8, stage: &StageElement) -> Expr {
    let StageElement { reduce, element, .. } = *stage;
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

/// How a stage is reduced, by the kernels' names.
pub(super) const fn stage_kind(reduce: Reduce) -> &'static str {
    match reduce {
        Reduce::Sum => "SUM_STAGE",
        Reduce::Max => "MAX_STAGE",
        Reduce::Min => "MIN_STAGE",
        _ => "LSE_STAGE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::integer;

    #[test]
    fn elements_are_row_major_and_clamped() {
        let index = ["a".to_owned(), integer(3)];
        assert_eq!(element(&[4, 5], &index), "((0ll*4 + clamped(a, 4))*5 + clamped((3), 5))");
        assert_eq!(element(&[], &[]), "0ll");
    }
}
