//! From a program to the functions of a pair and of a row that a fused kernel evaluates: score, weight, their tangents,
//! and the derivatives of both. Every backend takes them from here; none derives anything itself.
//!
//! With `g = ⟨do, v'⟩`, `Δ = ⟨do, o⟩` and the stages' cotangents `ρ̄`, the gradient of a pair's score is
//!
//! ```text
//! ds = [ g post ∂w/∂x + Σ_k ρ̄_k ∂ρ_k/∂x ] ∂x/∂s       ρ̄_k = Δ ∂ln β/∂ρ_k   (one pass)
//!                                                          ρ̄_k = Σ_j g_j post_j ∂w_j/∂ρ_k   (two passes)
//! ```
//!
//! plus the cotangent of the logsumexp in the `ρ̄` of its stage, and the gradient of a captured element the same with
//! `∂/∂s` replaced by the derivative with respect to the element. `∂ρ/∂f` is 1 for a sum, `exp(f - ρ)` for a
//! logsumexp, and 1 for every element that equals the extreme. Tangents are the symbolic forward derivatives of all of
//! these, which makes the tangents of the gradients: Hessian-vector products.

use std::collections::HashMap;

use super::derive::{self, tangents};
use super::expr::{Compare, Expr, Graph, Node, Primal, Type, Unary, Var};
use super::row::{Algorithm, Reduce};
use super::{Program, depends_on_element};

/// Which tangents there are; the others are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Given {
    /// The scores have tangents: some input that they are made of has.
    pub score: bool,
    /// `g` has tangents: the values have, or the cotangent of the output.
    pub grad: bool,
    /// The cotangent of the logsumexp has tangents.
    pub grad_logsumexp: bool,
    /// The captured tensors that have tangents, by number.
    pub captures: Vec<u8>,
}

/// A function, and its tangent where tangents are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The function.
    pub value: Expr,
    /// Its tangent: the number 0 where it has none.
    pub tangent: Expr,
}

impl Pushed {
    fn substitute(&mut self, g: &mut Graph, by: &HashMap<Expr, Expr>) {
        self.value = g.substitute(self.value, by);
        self.tangent = g.substitute(self.tangent, by);
    }
}

/// A stage's element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageElement {
    /// How elements are put together.
    pub reduce: Reduce,
    /// The element, of [`Var::Score`].
    pub element: Pushed,
}

/// The gradient of the elements of a captured tensor that one load reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadGradient {
    /// The captured tensor.
    pub capture: u8,
    /// The element, one integer an axis. An index is clamped into the axis, and the gradient goes where it reads.
    pub index: Vec<Expr>,
    /// What a pair adds to the gradient of the element.
    pub gradient: Pushed,
}

/// How the cotangents of the stages are found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GradStages {
    /// From the row's numbers: of [`Var::Delta`], [`Var::Stage`], [`Var::GradLogsumexp`]. Complete.
    OfRow(Vec<Pushed>),
    /// Summed over the row's pairs: of [`Var::Score`], [`Var::Grad`], [`Var::Stage`]. The cotangent of the logsumexp
    /// has to be added to that of its stage.
    OfPairs(Vec<Pushed>),
}

impl GradStages {
    /// The cotangents, however they are found.
    pub fn cotangents(&self) -> &[Pushed] {
        let (Self::OfRow(list) | Self::OfPairs(list)) = self;
        list
    }
}

/// The functions of a program on the keys of a window, or on the additional ones.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Lowered {
    /// The graph of all expressions here.
    pub graph: Graph,
    /// Whether a pair counts; None where every pair does.
    pub mask: Option<Expr>,
    /// `x` of [`Var::Score`].
    pub score: Pushed,
    /// The elements of the row's stages.
    pub stages: Vec<StageElement>,
    /// The stage that is the logsumexp.
    pub logsumexp: Option<u8>,
    /// How the row is computed; its expressions are of [`Var::Score`] here, the multiplier `post` included.
    pub algorithm: Algorithm,
    /// The tangents of the algorithm's `local` and `factor`; zero in two passes.
    pub local_tangent: Expr,
    /// See `local_tangent`.
    pub factor_tangent: Expr,
    /// `w · post`, of [`Var::Score`] and [`Var::Stage`]: the weight that a backward pass recomputes.
    pub weight: Pushed,
    /// `ds`, of [`Var::Score`], [`Var::Grad`], [`Var::Stage`] and [`Var::GradStage`].
    pub grad_score: Pushed,
    /// The cotangents of the stages.
    pub grad_stages: GradStages,
    /// The gradients of captured tensors, load by load.
    pub loads: Vec<LoadGradient>,
}

impl Lowered {
    /// Leaves out the cotangent of a logsumexp that is not given, and then the cotangents of stages that are zero: zero
    /// times an infinite slope is not zero.
    pub fn drop_zeros(&mut self, has_cotangent: bool) {
        let g = &mut self.graph;
        let zero = g.float(0.0);
        let mut absent = HashMap::new();
        if !has_cotangent {
            for var in [Var::GradLogsumexp, Var::Tangent(Primal::GradLogsumexp)] {
                absent.insert(g.var(var), zero);
            }
        }
        let is_complete = matches!(self.grad_stages, GradStages::OfRow(_));
        let (GradStages::OfRow(list) | GradStages::OfPairs(list)) = &mut self.grad_stages;
        let mut zeros = HashMap::new();
        for (k, pushed) in (0..).zip(list.iter_mut()) {
            pushed.substitute(g, &absent);
            // The cotangent that the caller gives is added to this one later.
            if !is_complete && has_cotangent && self.logsumexp == Some(k) {
                continue;
            }
            let vars = [Var::GradStage(k), Var::Tangent(Primal::GradStage(k))];
            for (expr, var) in [pushed.value, pushed.tangent].into_iter().zip(vars) {
                if g.is_zero(expr) {
                    zeros.insert(g.var(var), zero);
                }
            }
        }
        self.grad_score.substitute(g, &zeros);
        for load in &mut self.loads {
            load.gradient.substitute(g, &zeros);
        }
    }

    /// The functions of `program`. Additional tokens have neither score function nor mask.
    pub fn new(program: &Program, additional: bool, given: &Given) -> Self {
        let mut graph = program.graph().clone();
        let g = &mut graph;
        let s = g.var(Var::Score);
        let x = if additional { s } else { program.score() };
        let mask = if additional { None } else { program.mask() };
        let row = program.row();
        let algorithm = row.algorithm(g);
        let log_derivatives = match algorithm {
            Algorithm::OnePass { factor, .. } => row.log_derivatives(g, factor),
            Algorithm::TwoPass => Vec::new(),
        };
        let var_x = g.var(Var::X);
        let of_score = |g: &mut Graph, expr: Expr| g.substitute(expr, &[(var_x, x)].into());
        let elements: Vec<(Reduce, Expr)> =
            row.stages.iter().map(|stage| (stage.reduce, of_score(g, stage.value))).collect();
        let one = g.float(1.0);
        let post = program.post().unwrap_or(one);
        let weight = of_score(g, row.weight);
        let weight = g.mul(weight, post);
        let algorithm = match algorithm {
            Algorithm::OnePass { local, factor, exponential } => {
                let local = of_score(g, local);
                Algorithm::OnePass { local: g.mul(local, post), factor, exponential }
            }
            Algorithm::TwoPass => Algorithm::TwoPass,
        };

        // ds and the loads' gradients: one reverse sweep over the weight and the stages' elements.
        let grad = g.var(Var::Grad);
        let mut outputs = vec![(weight, grad)];
        for (k, &(reduce, element)) in elements.iter().enumerate() {
            let cotangent = g.var(Var::GradStage(k as u8));
            let share = share_of_stage(g, reduce, element, k as u8);
            outputs.push((element, g.mul(cotangent, share)));
        }
        let reached = g.reached(&outputs.iter().map(|&(output, _)| output).collect::<Vec<_>>());
        let loads: Vec<(Expr, u8, Vec<Expr>)> = g
            .iter()
            .filter(|(expr, _)| reached[expr.index()] && g.type_of(*expr) == Type::F)
            .filter_map(|(expr, node)| match node {
                Node::Load(buffer, index) if program.captures()[buffer.capture as usize].requires_grad => {
                    Some((expr, buffer.capture, index.to_vec()))
                }
                _ => None,
            })
            .collect();
        let wrt: Vec<Expr> = std::iter::once(s).chain(loads.iter().map(|load| load.0)).collect();
        let gradients = derive::reverse(g, &outputs, &wrt);

        let grad_stages: Vec<Expr> = match algorithm {
            Algorithm::OnePass { .. } => {
                let delta = g.var(Var::Delta);
                let mut cotangents: Vec<Expr> = log_derivatives.iter().map(|&d| g.mul(d, delta)).collect();
                if let Some(k) = row.logsumexp() {
                    let direct = g.var(Var::GradLogsumexp);
                    cotangents[k as usize] = g.add(cotangents[k as usize], direct);
                }
                cotangents
            }
            Algorithm::TwoPass => {
                let stages: Vec<Expr> = (0..elements.len() as u8).map(|k| g.var(Var::Stage(k))).collect();
                derive::reverse(g, &[(weight, grad)], &stages)
            }
        };

        let push = |g: &mut Graph, value: Expr| Pushed { value, tangent: tangent_of(g, value, given) };
        let score = push(g, x);
        let stages = elements
            .iter()
            .map(|&(reduce, element)| StageElement { reduce, element: push(g, element) })
            .collect();
        let (local_tangent, factor_tangent) = match algorithm {
            Algorithm::OnePass { local, factor, .. } => (push(g, local).tangent, push(g, factor).tangent),
            Algorithm::TwoPass => (g.float(0.0), g.float(0.0)),
        };
        let weight = push(g, weight);
        let grad_score = push(g, gradients[0]);
        let grad_stages: Vec<Pushed> = grad_stages.into_iter().map(|value| push(g, value)).collect();
        let grad_stages = match algorithm {
            Algorithm::OnePass { .. } => GradStages::OfRow(grad_stages),
            Algorithm::TwoPass => GradStages::OfPairs(grad_stages),
        };
        let loads = loads
            .into_iter()
            .zip(&gradients[1..])
            .map(|((_, capture, index), &gradient)| LoadGradient {
                capture,
                index,
                gradient: push(g, gradient),
            })
            .collect();
        Self {
            mask,
            score,
            stages,
            logsumexp: row.logsumexp(),
            algorithm,
            local_tangent,
            factor_tangent,
            weight,
            grad_score,
            grad_stages,
            loads,
            graph,
        }
    }

    /// Whether an expression differs between the pairs of a row.
    pub fn depends_on_pair(&self, expr: Expr) -> bool {
        depends_on_element(&self.graph, expr)
    }
}

/// `∂ρ/∂f` of an element of a stage.
fn share_of_stage(g: &mut Graph, reduce: Reduce, element: Expr, k: u8) -> Expr {
    let one = g.float(1.0);
    let stage = g.var(Var::Stage(k));
    match reduce {
        Reduce::Sum => one,
        Reduce::Lse => {
            let below = g.sub(element, stage);
            g.unary(Unary::Exp, below)
        }
        Reduce::Max | Reduce::Min => {
            let (zero, is_extreme) = (g.float(0.0), g.compare(Compare::Eq, element, stage));
            g.select(is_extreme, one, zero)
        }
    }
}

fn tangent_of(graph: &mut Graph, expr: Expr, given: &Given) -> Expr {
    let any = given.score || given.grad || given.grad_logsumexp || !given.captures.is_empty();
    tangents(graph, &[expr], |node| match node {
        Node::Var(Var::Score) => given.score,
        Node::Var(Var::Grad) => given.grad,
        Node::Var(Var::GradLogsumexp) => given.grad_logsumexp,
        Node::Var(Var::Stage(_)) => given.score || !given.captures.is_empty(),
        Node::Var(Var::GradStage(_) | Var::Delta) => any,
        Node::Load(buffer, _) => given.captures.contains(&buffer.capture),
        _ => false,
    })[0]
}

/// The functions of a vector function `y = f(x)`: itself, its tangent, its gradient, the gradient's tangent, and the
/// gradients of the captured elements that it loads.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoweredVector {
    /// The graph of all expressions here.
    pub graph: Graph,
    /// `y`, of [`Var::X`].
    pub value: Pushed,
    /// `x̄`, of [`Var::X`] and [`Var::GradX`], the cotangent of `y`.
    pub gradient: Pushed,
    /// What an element of a vector adds to the gradients of captured elements.
    pub loads: Vec<LoadGradient>,
}

impl LoweredVector {
    /// The functions of the vector function `expr` of `program`, where `x` has tangents or not, and where the captured
    /// tensors of these numbers have.
    pub fn new(
        program: &Program,
        expr: Expr,
        has_tangent: bool,
        grad_has_tangent: bool,
        captures: &[u8],
    ) -> Self {
        let mut graph = program.graph().clone();
        let g = &mut graph;
        let (x, cotangent) = (g.var(Var::X), g.var(Var::GradX));
        let reached = g.reached(&[expr]);
        let loads: Vec<(Expr, u8, Vec<Expr>)> = g
            .iter()
            .filter(|(load, _)| reached[load.index()] && g.type_of(*load) == Type::F)
            .filter_map(|(load, node)| match node {
                Node::Load(buffer, index) if program.captures()[buffer.capture as usize].requires_grad => {
                    Some((load, buffer.capture, index.to_vec()))
                }
                _ => None,
            })
            .collect();
        let wrt: Vec<Expr> = std::iter::once(x).chain(loads.iter().map(|load| load.0)).collect();
        let gradients = derive::reverse(g, &[(expr, cotangent)], &wrt);
        let push = |g: &mut Graph, value: Expr| {
            let tangent = tangents(g, &[value], |node| match node {
                Node::Var(Var::X) => has_tangent,
                Node::Var(Var::GradX) => grad_has_tangent,
                Node::Load(buffer, _) => captures.contains(&buffer.capture),
                _ => false,
            })[0];
            Pushed { value, tangent }
        };
        let value = push(g, expr);
        let gradient = push(g, gradients[0]);
        let loads = loads
            .into_iter()
            .zip(&gradients[1..])
            .map(|((_, capture, index), &gradient)| LoadGradient {
                capture,
                index,
                gradient: push(g, gradient),
            })
            .collect();
        Self { value, gradient, loads, graph }
    }
}
