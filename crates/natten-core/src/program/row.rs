//! Row functions: how the scores of one query become weights. Declared by their two-pass meaning, reductions over the
//! row and then a weight for every element, from which the one-pass form is derived here.
//!
//! With `x_j` the modified scores of the keys that a query sees:
//!
//! ```text
//! ρ_k = reduce_k over j of f_k(x_j)          w_j = weight(x_j, ρ)          o = Σ_j w_j post_j v_j
//! ```
//!
//! A weight that is a product `a(x) · β(ρ)` needs one pass: sum `a(x_j) v_j`, and multiply with β at the end. So does
//! `exp(x + c(ρ))` beside a stage `lse(x)`: with the running maximum `m` of the stage, `a = exp(x - m)` and
//! `β = exp(m + c(ρ))`, and whenever `m` grows the sums are multiplied with `exp(m_old - m_new)`. Any other weight needs
//! one pass for ρ and one for the sum. Parts of rows merge by the reductions' own rules, whatever the form.

use super::derive;
use super::expr::{Binary, Expr, Graph, Index, Node, Unary, Var};

/// A reduction over a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reduce {
    /// The sum; 0 of nothing.
    Sum,
    /// The largest; -inf of nothing. Its derivative goes to every element that is as large.
    Max,
    /// The smallest; +inf of nothing. Its derivative goes to every element that is as small.
    Min,
    /// The natural logarithm of the sum of the exponentials; -inf of nothing.
    Lse,
}

impl Reduce {
    /// The name in texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Max => "max",
            Self::Min => "min",
            Self::Lse => "lse",
        }
    }

    /// What the reduction of nothing is.
    pub const fn identity(self) -> f64 {
        match self {
            Self::Sum => 0.0,
            Self::Max | Self::Lse => f64::NEG_INFINITY,
            Self::Min => f64::INFINITY,
        }
    }

    /// The reduction of two parts of a row, from theirs.
    pub fn merge(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Sum => a + b,
            Self::Max => {
                if a >= b || a.is_nan() {
                    a
                } else {
                    b
                }
            }
            Self::Min => {
                if a <= b || a.is_nan() {
                    a
                } else {
                    b
                }
            }
            Self::Lse => {
                let max = if a >= b || a.is_nan() { a } else { b };
                if max == f64::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() }
            }
        }
    }
}

/// A reduction of a row function.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stage {
    /// Its name in texts.
    pub name: String,
    /// How elements are put together.
    pub reduce: Reduce,
    /// What is reduced: `f(x)`, of [`Var::X`], indices and captured tensors.
    pub value: Expr,
}

/// A row function. Its expressions are of the program's graph.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The reductions, at most 8.
    pub stages: Vec<Stage>,
    /// The weight of an element, of [`Var::X`], [`Var::Stage`], indices and captured tensors.
    pub weight: Expr,
}

/// The most stages of a row.
pub const MAX_STAGES: usize = 8;

/// How a row is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// One pass: `Σ local · v`, times `factor` at the end.
    OnePass {
        /// The weight in the loop: of [`Var::X`], and of [`Var::Shift`] where there is an exponential stage.
        local: Expr,
        /// What the sum is multiplied with: of [`Var::Stage`], and of [`Var::Shift`].
        factor: Expr,
        /// The stage whose running maximum is the shift: sums are multiplied with `exp(old - new)` when it grows.
        exponential: Option<u8>,
    },
    /// The stages first; then `Σ weight · v`.
    TwoPass,
}

impl Row {
    /// The stage that is the row's logsumexp: its first [`Reduce::Lse`].
    pub fn logsumexp(&self) -> Option<u8> {
        self.stages.iter().position(|stage| stage.reduce == Reduce::Lse).map(|at| at as u8)
    }

    /// The algorithm that computes the row in as few passes as its weight allows.
    pub fn algorithm(&self, graph: &mut Graph) -> Algorithm {
        let mut parts = Parts::new(graph);
        if parts.split(graph, self.weight, false).is_none() {
            return Algorithm::TwoPass;
        }
        let Parts { mut local, mut factor, exponent, exponent_of_row } = parts;
        let zero = graph.float(0.0);
        if exponent == zero {
            if exponent_of_row != zero {
                let power = graph.unary(Unary::Exp, exponent_of_row);
                factor = graph.mul(factor, power);
            }
            return Algorithm::OnePass { local, factor, exponential: None };
        }
        // An exponential needs a maximum to be taken off it: that of a stage of just this exponent.
        let stage = self.stages.iter().position(|s| s.reduce == Reduce::Lse && s.value == exponent);
        match stage {
            Some(stage) => {
                let shift = graph.var(Var::Shift);
                let shifted = graph.sub(exponent, shift);
                let power = graph.unary(Unary::Exp, shifted);
                local = graph.mul(local, power);
                let back = graph.add(shift, exponent_of_row);
                let power = graph.unary(Unary::Exp, back);
                factor = graph.mul(factor, power);
                Algorithm::OnePass { local, factor, exponential: Some(stage as u8) }
            }
            None if !depends_on_stage(graph, self.weight) => {
                let one = graph.float(1.0);
                Algorithm::OnePass { local: self.weight, factor: one, exponential: None }
            }
            None => Algorithm::TwoPass,
        }
    }

    /// `∂ ln β / ∂ρ_k` for every stage of a one-pass row: what turns `Δ = ⟨grad_output, output⟩` into the cotangent of
    /// the stage, `ρ̄_k = Δ ∂ ln β / ∂ρ_k`.
    pub fn log_derivatives(&self, graph: &mut Graph, factor: Expr) -> Vec<Expr> {
        (0..self.stages.len() as u8)
            .map(|k| {
                let stage = graph.var(Var::Stage(k));
                derive::log_derivative(graph, factor, stage)
            })
            .collect()
    }
}

/// A weight taken apart: `local · factor · exp(exponent + exponent_of_row)`.
pub(super) struct Parts {
    pub(super) local: Expr,
    pub(super) factor: Expr,
    pub(super) exponent: Expr,
    pub(super) exponent_of_row: Expr,
}

impl Parts {
    pub(super) fn new(graph: &mut Graph) -> Self {
        let (zero, one) = (graph.float(0.0), graph.float(1.0));
        Self { local: one, factor: one, exponent: zero, exponent_of_row: zero }
    }

    /// Takes a factor, or a divisor, apart. None where some part depends on the element and on the stages.
    pub(super) fn split(&mut self, graph: &mut Graph, expr: Expr, divides: bool) -> Option<()> {
        match graph.node(expr).clone() {
            Node::Binary(Binary::Mul, a, b) => {
                self.split(graph, a, divides)?;
                self.split(graph, b, divides)
            }
            Node::Binary(Binary::Div, a, b) => {
                self.split(graph, a, divides)?;
                self.split(graph, b, !divides)
            }
            Node::Unary(Unary::Neg, a) => {
                self.local = graph.unary(Unary::Neg, self.local);
                self.split(graph, a, divides)
            }
            Node::Unary(Unary::Exp, a) => self.split_exponent(graph, a, divides),
            _ => {
                let target = match self.part(graph, expr)? {
                    Part::Element => &mut self.local,
                    Part::Row => &mut self.factor,
                };
                *target = graph.binary(if divides { Binary::Div } else { Binary::Mul }, *target, expr);
                Some(())
            }
        }
    }

    fn split_exponent(&mut self, graph: &mut Graph, expr: Expr, minus: bool) -> Option<()> {
        match graph.node(expr).clone() {
            Node::Binary(Binary::Add, a, b) => {
                self.split_exponent(graph, a, minus)?;
                self.split_exponent(graph, b, minus)
            }
            Node::Binary(Binary::Sub, a, b) => {
                self.split_exponent(graph, a, minus)?;
                self.split_exponent(graph, b, !minus)
            }
            Node::Unary(Unary::Neg, a) => self.split_exponent(graph, a, !minus),
            _ => {
                let target = match self.part(graph, expr)? {
                    Part::Element => &mut self.exponent,
                    Part::Row => &mut self.exponent_of_row,
                };
                *target = graph.binary(if minus { Binary::Sub } else { Binary::Add }, *target, expr);
                Some(())
            }
        }
    }

    fn part(&self, graph: &Graph, expr: Expr) -> Option<Part> {
        let of_element = depends_on_element(graph, expr);
        match (of_element, depends_on_stage(graph, expr)) {
            (true, true) => None,
            (true, false) => Some(Part::Element),
            (false, _) => Some(Part::Row),
        }
    }
}

enum Part {
    Element,
    Row,
}

/// Whether an expression differs between the elements of a row.
pub(crate) fn depends_on_element(graph: &Graph, expr: Expr) -> bool {
    graph.depends(expr, |node| {
        matches!(
            node,
            Node::Var(Var::X | Var::Score | Var::Grad)
                | Node::Index(Index::Key | Index::KeyAxis(_))
                | Node::Random(..)
        )
    })
}

fn depends_on_stage(graph: &Graph, expr: Expr) -> bool {
    graph.depends(expr, |node| matches!(node, Node::Var(Var::Stage(_))))
}
