//! Derivatives, symbolic: forward (tangents) and reverse (cotangents), in topological order over the DAG, so that a
//! shared subexpression is counted once. The derivatives are expressions of the same graph and can be derived again.
//!
//! Where a function has no derivative the rule is fixed: `abs'(0) = 0`; `min` and `max` of equal arguments follow the
//! first; `floor`, comparisons, integers and random numbers are constant.

use std::collections::HashMap;

use super::expr::{Binary, Buffer, Compare, Expr, Graph, Node, Type, Unary, Var};

/// The tangents of `exprs` in the direction of `direction`, which gives a node's tangent where it has one of its own
/// (variables and loads, usually); `None` for a node whose tangent follows from its arguments.
pub fn forward(
    graph: &mut Graph,
    exprs: &[Expr],
    mut direction: impl FnMut(&mut Graph, Expr) -> Option<Expr>,
) -> Vec<Expr> {
    let reached = graph.reached(exprs);
    let zero = graph.float(0.0);
    let mut tangents: HashMap<Expr, Expr> = HashMap::new();
    let order: Vec<Expr> =
        graph.iter().map(|(expr, _)| expr).take(reached.len()).filter(|expr| reached[expr.index()]).collect();
    for expr in order {
        if graph.type_of(expr) != Type::F {
            continue;
        }
        let tangent = match direction(graph, expr) {
            Some(tangent) => tangent,
            None => {
                let node = graph.node(expr).clone();
                let mut sum = zero;
                for (argument, partial) in partials(graph, expr, &node) {
                    let inner = tangents.get(&argument).copied().unwrap_or(zero);
                    let term = through(graph, partial, inner);
                    sum = graph.add(sum, term);
                }
                sum
            }
        };
        tangents.insert(expr, tangent);
    }
    exprs.iter().map(|expr| tangents.get(expr).copied().unwrap_or(zero)).collect()
}

/// The tangents along the variables' own tangents and those of the captured tensors that `has_tangent` picks.
pub fn tangents(graph: &mut Graph, exprs: &[Expr], has_tangent: impl Fn(&Node) -> bool) -> Vec<Expr> {
    forward(graph, exprs, |graph, expr| {
        let node = graph.node(expr).clone();
        match &node {
            Node::Var(var) => Some(match var.tangent().filter(|_| has_tangent(&node)) {
                Some(tangent) => graph.var(tangent),
                None => graph.float(0.0),
            }),
            Node::Load(buffer, index) if graph.type_of(expr) == Type::F => {
                Some(match has_tangent(&node) && !buffer.tangent {
                    true => graph.load(Buffer { tangent: true, ..*buffer }, Type::F, index),
                    false => graph.float(0.0),
                })
            }
            _ => None,
        }
    })
}

/// The cotangents of the nodes `wrt`, given those of some `outputs`: `Σ cotangent · ∂output/∂node`, where a node of
/// `wrt` is a leaf: what it is made of does not count.
pub fn reverse(graph: &mut Graph, outputs: &[(Expr, Expr)], wrt: &[Expr]) -> Vec<Expr> {
    let zero = graph.float(0.0);
    let mut cotangents: HashMap<Expr, Expr> = HashMap::new();
    let mut last = 0;
    for &(output, cotangent) in outputs {
        let sum = cotangents.get(&output).copied().unwrap_or(zero);
        let sum = graph.add(sum, cotangent);
        cotangents.insert(output, sum);
        last = last.max(output.index());
    }
    let order: Vec<Expr> = graph.iter().map(|(expr, _)| expr).take(last + 1).collect();
    for &expr in order.iter().rev() {
        if wrt.contains(&expr) {
            continue;
        }
        let Some(&cotangent) = cotangents.get(&expr) else { continue };
        if graph.is_zero(cotangent) {
            continue;
        }
        let node = graph.node(expr).clone();
        for (argument, partial) in partials(graph, expr, &node) {
            let term = through(graph, partial, cotangent);
            let sum = cotangents.get(&argument).copied().unwrap_or(zero);
            let sum = graph.add(sum, term);
            cotangents.insert(argument, sum);
        }
    }
    wrt.iter().map(|expr| cotangents.get(expr).copied().unwrap_or(zero)).collect()
}

/// `∂expr/∂wrt`, `wrt` taken as a leaf.
pub fn derivative(graph: &mut Graph, expr: Expr, wrt: Expr) -> Expr {
    let one = graph.float(1.0);
    reverse(graph, &[(expr, one)], &[wrt])[0]
}

/// `∂(ln |expr|)/∂wrt`, without a quotient where the expression is a product of powers and exponentials.
pub fn log_derivative(graph: &mut Graph, expr: Expr, wrt: Expr) -> Expr {
    match graph.node(expr).clone() {
        Node::Unary(Unary::Exp, inner) => derivative(graph, inner, wrt),
        Node::Unary(Unary::Neg, inner) => log_derivative(graph, inner, wrt),
        Node::Binary(Binary::Mul, a, b) => {
            let (a, b) = (log_derivative(graph, a, wrt), log_derivative(graph, b, wrt));
            graph.add(a, b)
        }
        Node::Binary(Binary::Div, a, b) => {
            let (a, b) = (log_derivative(graph, a, wrt), log_derivative(graph, b, wrt));
            graph.sub(a, b)
        }
        Node::Powi(a, exponent) => {
            let inner = log_derivative(graph, a, wrt);
            let factor = graph.float(f64::from(exponent));
            graph.mul(factor, inner)
        }
        _ => {
            let derivative = derivative(graph, expr, wrt);
            graph.div(derivative, expr)
        }
    }
}

/// How a tangent goes through an argument: times a factor, or through the same linear map of a vector's elements.
#[derive(Clone, Copy)]
enum Partial {
    Factor(Expr),
    /// The operation is linear over a vector's elements and equal to its own transpose.
    Linear(Unary),
    /// Through one branch of a select: the factor is 1 where the condition is as given, else 0.
    Where(Expr, bool),
}

/// A tangent on its way up, or a cotangent on its way down: the maps are their own transposes.
fn through(graph: &mut Graph, partial: Partial, value: Expr) -> Expr {
    match partial {
        Partial::Factor(factor) => graph.mul(factor, value),
        Partial::Linear(op) => graph.unary(op, value),
        Partial::Where(condition, holds) => {
            let zero = graph.float(0.0);
            let (a, b) = if holds { (value, zero) } else { (zero, value) };
            graph.select(condition, a, b)
        }
    }
}

/// The real arguments of a node, each with how a small change of it changes the node.
fn partials(g: &mut Graph, expr: Expr, node: &Node) -> Vec<(Expr, Partial)> {
    use Partial::{Factor, Where};
    if g.type_of(expr) != Type::F {
        return Vec::new();
    }
    match *node {
        Node::Unary(op, a) => match unary_partial(g, op, expr, a) {
            Some(partial) => vec![(a, partial)],
            None => Vec::new(),
        },
        Node::Binary(op, a, b) => {
            let one = g.float(1.0);
            match op {
                Binary::Add => vec![(a, Factor(one)), (b, Factor(one))],
                Binary::Sub => {
                    let minus = g.float(-1.0);
                    vec![(a, Factor(one)), (b, Factor(minus))]
                }
                Binary::Mul => vec![(a, Factor(b)), (b, Factor(a))],
                Binary::Div => {
                    let by_a = g.div(one, b);
                    let quotient = g.div(expr, b);
                    let by_b = g.unary(Unary::Neg, quotient);
                    vec![(a, Factor(by_a)), (b, Factor(by_b))]
                }
                Binary::Min | Binary::Max => {
                    let first = match op {
                        Binary::Min => g.compare(Compare::Le, a, b),
                        _ => g.compare(Compare::Le, b, a),
                    };
                    vec![(a, Where(first, true)), (b, Where(first, false))]
                }
                Binary::Mod => {
                    // a - b * floor(a / b), the floor a constant.
                    let floor = g.binary(Binary::FloorDiv, a, b);
                    let by_b = g.unary(Unary::Neg, floor);
                    vec![(a, Factor(one)), (b, Factor(by_b))]
                }
                _ => Vec::new(),
            }
        }
        Node::Select(c, a, b) => vec![(a, Where(c, true)), (b, Where(c, false))],
        Node::Powi(a, exponent) => {
            let power = g.powi(a, exponent - 1);
            let factor = g.float(f64::from(exponent));
            let factor = g.mul(factor, power);
            vec![(a, Factor(factor))]
        }
        _ => Vec::new(),
    }
}

fn unary_partial(g: &mut Graph, op: Unary, y: Expr, a: Expr) -> Option<Partial> {
    let one = g.float(1.0);
    let factor = match op {
        Unary::Neg => g.float(-1.0),
        Unary::Abs => {
            let (zero, minus) = (g.float(0.0), g.float(-1.0));
            let (positive, negative) = (g.compare(Compare::Lt, zero, a), g.compare(Compare::Lt, a, zero));
            let otherwise = g.select(negative, minus, zero);
            g.select(positive, one, otherwise)
        }
        Unary::Exp => y,
        Unary::Exp2 => {
            let ln2 = g.float(std::f64::consts::LN_2);
            g.mul(ln2, y)
        }
        Unary::Log => g.div(one, a),
        Unary::Log2 => {
            let log2_e = g.float(std::f64::consts::LOG2_E);
            g.div(log2_e, a)
        }
        Unary::Expm1 => g.add(y, one),
        Unary::Log1p => {
            let below = g.add(one, a);
            g.div(one, below)
        }
        Unary::Sqrt => {
            let half = g.float(0.5);
            g.div(half, y)
        }
        Unary::Rsqrt => {
            let (cube, half) = (g.powi(y, 3), g.float(-0.5));
            g.mul(half, cube)
        }
        Unary::Tanh => {
            let square = g.mul(y, y);
            g.sub(one, square)
        }
        Unary::Sigmoid => {
            let rest = g.sub(one, y);
            g.mul(y, rest)
        }
        Unary::Softplus => g.unary(Unary::Sigmoid, a),
        Unary::Erf => {
            let square = g.mul(a, a);
            let exponent = g.unary(Unary::Neg, square);
            let bell = g.unary(Unary::Exp, exponent);
            let factor = g.float(std::f64::consts::FRAC_2_SQRT_PI);
            g.mul(factor, bell)
        }
        Unary::Sin => g.unary(Unary::Cos, a),
        Unary::Cos => {
            let sin = g.unary(Unary::Sin, a);
            g.unary(Unary::Neg, sin)
        }
        Unary::LaneSum | Unary::LaneHalf | Unary::LanePair => return Some(Partial::Linear(op)),
        Unary::Floor | Unary::StopGrad | Unary::ToFloat | Unary::ToInt | Unary::Not => return None,
    };
    Some(Partial::Factor(factor))
}

/// Whether an expression depends on a variable.
pub fn depends_on(graph: &Graph, expr: Expr, var: Var) -> bool {
    graph.depends(expr, |node| *node == Node::Var(var))
}
