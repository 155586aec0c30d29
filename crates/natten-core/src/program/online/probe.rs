//! The laws of an online function, tried in f64 on random rows.

use super::{Online, TileReduction};
use crate::error::{Error, Result};
use crate::program::derive;
use crate::program::expr::{Binary, Expr, Graph, Index, Node, Unary, Var};
use crate::program::numeric::{float_binary, float_unary, int_binary};
use crate::program::row::{Reduce, Row};

/// How far two ways to the same number may lie apart, beside the largest number of the row: sums of few elements, in
/// another order.
const TOLERANCE: f64 = 1e-9;

/// An element of a row.
#[derive(Clone, Copy, Debug)]
struct Element {
    x: f64,
    /// The cotangent of its weight.
    grad: f64,
    /// Its place in the row as it was made: what an index of the key is.
    key: usize,
}

/// What the variables are.
#[derive(Clone, Copy, Debug, Default)]
struct Site<'a> {
    x: f64,
    key: usize,
    /// [`Var::Stage`].
    stages: &'a [f64],
    /// [`Var::GradStage`].
    reductions: &'a [f64],
    /// [`Var::Grad`], [`Var::Score`] and [`Var::Delta`].
    grad: f64,
    p: f64,
    delta: f64,
}

/// The outcome of a run over a row: the weights by the elements' keys, and what is kept of the row.
#[derive(Clone, Debug)]
struct Outcome {
    weights: Vec<f64>,
    finals: Vec<f64>,
}

/// Random rows, and the function that is tried on them.
#[derive(Debug)]
pub(super) struct Probe<'o> {
    online: &'o Online,
    rows: Vec<Vec<Element>>,
}

impl<'o> Probe<'o> {
    pub(super) fn new(online: &'o Online) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        // Short and long rows, of small numbers and of large ones, of either sign and of both.
        let kinds = [
            (1, 1.0, 0.0),
            (2, 0.2, 0.0),
            (6, 0.1, 0.0),
            (7, 1.0, 0.0),
            (9, 4.0, 0.0),
            (8, 1.0, 3.0),
            (8, 1.0, -3.0),
            (7, 20.0, 0.0),
        ];
        let rows = kinds.map(|(len, scale, shift)| {
            (0..len).map(|key| Element { x: number() * scale + shift, grad: number(), key }).collect()
        });
        Self { online, rows: rows.into() }
    }

    /// What the function says about itself: all laws before that of the stages.
    pub(super) fn laws_of_the_function(&self, graph: &Graph) -> Result<()> {
        self.is_of_rows(graph)?;
        // Law by law over all rows: what breaks the first on one row may break but the second on another.
        let wholes: Vec<Outcome> = self.rows.iter().map(|row| self.run(graph, row, &[row.len()])).collect();
        let rows = || self.rows.iter().zip(&wholes);
        for (row, whole) in rows() {
            if whole.weights.iter().any(|w| !w.is_finite()) {
                return Err(broken(
                    "online_fwd",
                    "finite: finite scores have finite weights",
                    row,
                    &whole.weights,
                    None,
                ));
            }
        }
        for (row, whole) in rows() {
            let half = row.len() / 2;
            for tiles in [vec![1; row.len()], vec![half, row.len() - half]] {
                let cut = self.run(graph, row, &tiles);
                let law = "tiling: weights and final rowscales do not depend on how a row is cut into tiles; o_scale \
                           must take the sum from the old running numbers to the new ones";
                same("online_fwd", law, row, &cut, whole)?;
            }
        }
        for (row, whole) in rows() {
            let mut turned = row.clone();
            turned.reverse();
            turned.rotate_left(row.len() / 3);
            let turned = self.run(graph, &turned, &vec![1; row.len()]);
            let law = "order: weights and final rowscales do not depend on the order of a row's elements";
            same("online_fwd", law, row, &turned, whole)?;
        }
        for (row, whole) in rows() {
            let weights = Self::weights(graph, self.online.forward, &whole.finals, row);
            let law = "forward: forward(x, final_rowscales) is the weight times every later o_scale and the o_factor";
            same("forward", law, row, &Outcome { weights, ..whole.clone() }, whole)?;
        }
        Ok(())
    }

    /// That what belongs to a row does not depend on an element.
    fn is_of_rows(&self, graph: &Graph) -> Result<()> {
        let Online { step, end, .. } = self.online;
        let ends = || end.final_rowscales.iter().chain([&end.o_factor]);
        let of_element =
            |node: &Node| matches!(node, Node::Var(Var::X) | Node::Index(Index::Key | Index::KeyAxis(_)));
        for (what, mut exprs) in [
            ("online_fwd", step.rowscales.iter().chain([&step.o_scale]).collect::<Vec<_>>().into_iter()),
            ("online_fwd_epilogue", ends().collect::<Vec<_>>().into_iter()),
        ] {
            if exprs.any(|&expr| graph.depends(expr, of_element)) {
                return Err(Error::invalid(
                    what,
                    "a number of the row that depends on a score",
                    "law of the row: rowscales, o_scale and o_factor are the same for all scores of a tile",
                    "reduce the scores: ctx.reduce_sum, reduce_max, reduce_min, reduce_abssum",
                ));
            }
        }
        Ok(())
    }

    /// The one-pass algorithm over a row that is cut into tiles of these lengths.
    fn run(&self, graph: &Graph, row: &[Element], tiles: &[usize]) -> Outcome {
        let Online { step, end, reductions, start, .. } = self.online;
        let mut stages = start.clone();
        let mut weights = vec![0.0; row.len()];
        let mut rest = row;
        for tile in tiles {
            let (tile, after) = rest.split_at(*tile);
            let done = &row[..row.len() - rest.len()];
            rest = after;
            if tile.is_empty() {
                continue;
            }
            let found = reduced(graph, reductions, tile, &stages);
            let of_row = Site { stages: &stages, reductions: &found, ..Site::default() };
            let o_scale = number(graph, step.o_scale, &of_row);
            done.iter().for_each(|element| weights[element.key] *= o_scale);
            for element in tile {
                let site = Site { x: element.x, key: element.key, ..of_row };
                weights[element.key] = number(graph, step.weights, &site);
            }
            stages = step.rowscales.iter().map(|&expr| number(graph, expr, &of_row)).collect();
        }
        let of_row = Site { stages: &stages, ..Site::default() };
        let o_factor = number(graph, end.o_factor, &of_row);
        weights.iter_mut().for_each(|weight| *weight *= o_factor);
        Outcome {
            weights,
            finals: end.final_rowscales.iter().map(|&expr| number(graph, expr, &of_row)).collect(),
        }
    }

    /// The stages of a declared row, over `row`.
    fn stages(graph: &Graph, declared: &Row, row: &[Element]) -> Vec<f64> {
        let of = |reduce: Reduce, value: Expr| {
            let elements = row.iter().map(|element| {
                number(graph, value, &Site { x: element.x, key: element.key, ..Site::default() })
            });
            elements.fold(reduce.identity(), |sum, element| reduce.merge(sum, element))
        };
        declared.stages.iter().map(|stage| of(stage.reduce, stage.value)).collect()
    }

    fn weights(graph: &Graph, weight: Expr, stages: &[f64], row: &[Element]) -> Vec<f64> {
        let site = |element: &Element| Site { x: element.x, key: element.key, stages, ..Site::default() };
        row.iter().map(|element| number(graph, weight, &site(element))).collect()
    }

    /// Whether the weights of a declared row do not change where one of its stages does, the others held.
    pub(super) fn is_invariant(&self, graph: &Graph, declared: &Row, stage: usize) -> bool {
        self.rows.iter().all(|row| {
            let mut stages = Self::stages(graph, declared, row);
            let before = Self::weights(graph, declared.weight, &stages, row);
            [0.7, -1.3].into_iter().all(|step| {
                stages[stage] += step;
                is_close(&Self::weights(graph, declared.weight, &stages, row), &before)
            })
        })
    }

    /// The law of two passes.
    pub(super) fn two_passes(&self, graph: &Graph, declared: &Row) -> Result<()> {
        for row in &self.rows {
            let expected = self.run(graph, row, &[row.len()]).weights;
            let stages = Self::stages(graph, declared, row);
            let found = Self::weights(graph, declared.weight, &stages, row);
            if !is_close(&found, &expected) {
                let law = "two passes: the running numbers, taken for the reductions that their updates look like, \
                           must give the weights of the online run";
                return Err(broken("online_fwd", law, row, &found, Some(&expected)));
            }
        }
        Ok(())
    }

    /// The law of backward, where the function has one.
    pub(super) fn backward(&self, graph: &mut Graph, declared: &Row) -> Result<()> {
        let Some(given) = self.online.backward else { return Ok(()) };
        let x = graph.var(Var::X);
        let stages: Vec<Expr> = (0..declared.stages.len() as u8).map(|k| graph.var(Var::Stage(k))).collect();
        let by_x = derive::derivative(graph, declared.weight, x);
        let by_stage: Vec<Expr> =
            stages.iter().map(|&s| derive::derivative(graph, declared.weight, s)).collect();
        let of_elements: Vec<Expr> =
            declared.stages.iter().map(|stage| derive::derivative(graph, stage.value, x)).collect();
        for row in &self.rows {
            let stages = Self::stages(graph, declared, row);
            let at = |expr: Expr, element: &Element| {
                number(
                    graph,
                    expr,
                    &Site { x: element.x, key: element.key, stages: &stages, ..Site::default() },
                )
            };
            let cotangents: Vec<f64> =
                by_stage.iter().map(|&d| row.iter().map(|e| e.grad * at(d, e)).sum()).collect();
            let derived = row.iter().map(|element| {
                let through = declared.stages.iter().enumerate().map(|(k, stage)| {
                    let value = at(stage.value, element);
                    let share = match stage.reduce {
                        Reduce::Sum => 1.0,
                        Reduce::Lse => (value - stages[k]).exp(),
                        Reduce::Max | Reduce::Min => f64::from(value == stages[k]),
                    };
                    cotangents[k] * share * at(of_elements[k], element)
                });
                element.grad * at(by_x, element) + through.sum::<f64>()
            });
            let derived: Vec<f64> = derived.collect();
            let online = self.run(graph, row, &[row.len()]);
            let delta = row.iter().map(|element| element.grad * online.weights[element.key]).sum();
            let found = row.iter().map(|element| {
                let p = online.weights[element.key];
                let Element { x, grad, key } = *element;
                number(
                    graph,
                    given,
                    &Site { x, key, stages: &online.finals, grad, p, delta, ..Site::default() },
                )
            });
            let found: Vec<f64> = found.collect();
            if !is_close(&found, &derived) {
                let law = "backward: it must be the derivative of the row's weights, through its rowscales too; what \
                           is meant to be constant is stop_grad in forward";
                return Err(broken("backward", law, row, &found, Some(&derived)));
            }
        }
        Ok(())
    }
}

fn same(what: &'static str, law: &str, row: &[Element], found: &Outcome, expected: &Outcome) -> Result<()> {
    for (found, expected) in [(&found.weights, &expected.weights), (&found.finals, &expected.finals)] {
        if !is_close(found, expected) {
            return Err(broken(what, law, row, found, Some(expected)));
        }
    }
    Ok(())
}

fn is_close(found: &[f64], expected: &[f64]) -> bool {
    let largest = expected.iter().fold(1.0, |max: f64, x| max.max(x.abs()));
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| a == b || (a - b).abs() <= TOLERANCE * largest)
}

/// The error of a law, with the numbers where it fails.
fn broken(what: &'static str, law: &str, row: &[Element], found: &[f64], expected: Option<&[f64]>) -> Error {
    let print = |numbers: &mut dyn Iterator<Item = f64>| {
        let words: Vec<String> = numbers.map(|x| format!("{x:.6}")).collect();
        format!("[{}]", words.join(", "))
    };
    let scores = print(&mut row.iter().map(|element| element.x));
    let found = print(&mut found.iter().copied());
    let value = match expected {
        Some(expected) => {
            format!("{found} instead of {} for the scores {scores}", print(&mut expected.iter().copied()))
        }
        None => format!("{found} for the scores {scores}"),
    };
    Error::invalid(
        what,
        value,
        format!("law of {law}"),
        "the laws of online functions are those of program::online",
    )
}

/// The reductions over a tile, each of those before it.
fn reduced(graph: &Graph, reductions: &[TileReduction], tile: &[Element], stages: &[f64]) -> Vec<f64> {
    let mut found = Vec::with_capacity(reductions.len());
    for reduction in reductions {
        let total = tile.iter().fold(reduction.reduce.identity(), |total, element| {
            let site = Site { x: element.x, key: element.key, stages, reductions: &found, ..Site::default() };
            reduction.reduce.merge(total, number(graph, reduction.element, &site))
        });
        found.push(total);
    }
    found
}

#[derive(Clone, Copy, Debug)]
enum Value {
    F(f64),
    I(i32),
    B(bool),
}

/// An expression of type F at a site.
fn number(graph: &Graph, root: Expr, site: &Site<'_>) -> f64 {
    let reached = graph.reached(&[root]);
    let mut values = vec![Value::F(f64::NAN); root.index() + 1];
    for (expr, node) in graph.iter().take(root.index() + 1).filter(|(expr, _)| reached[expr.index()]) {
        let value = value(node, site, |argument| values[argument.index()]);
        values[expr.index()] = value;
    }
    match values[root.index()] {
        Value::F(x) => x,
        // Ill-typed: NaN breaks a law.
        Value::I(_) | Value::B(_) => f64::NAN,
    }
}

fn value(node: &Node, site: &Site<'_>, at: impl Fn(&Expr) -> Value) -> Value {
    let number = |values: &[f64], k: u8| Value::F(values.get(usize::from(k)).copied().unwrap_or(f64::NAN));
    match node {
        Node::Float(bits) => Value::F(f64::from_bits(*bits)),
        Node::Int(value) => Value::I(*value),
        Node::Bool(value) => Value::B(*value),
        Node::Var(var) => match *var {
            Var::X => Value::F(site.x),
            Var::Stage(k) => number(site.stages, k),
            Var::GradStage(k) => number(site.reductions, k),
            Var::Grad => Value::F(site.grad),
            Var::Score => Value::F(site.p),
            Var::Delta => Value::F(site.delta),
            _ => Value::F(f64::NAN),
        },
        Node::Index(Index::Key | Index::KeyAxis(0)) => Value::I(site.key as i32),
        Node::Index(_) => Value::I(0),
        Node::Load(buffer, index) => {
            // Whatever a captured tensor holds, it is the same at the same place.
            let place = index.iter().fold(u32::from(buffer.capture) + 1, |hash, i| match at(i) {
                Value::I(i) => (hash ^ i as u32).wrapping_mul(0x9e37_79b1),
                _ => hash,
            });
            Value::F(f64::from(place >> 8) / f64::from(1u32 << 24))
        }
        Node::Unary(op, a) => match (op, at(a)) {
            (Unary::ToFloat, Value::I(x)) => Value::F(f64::from(x)),
            (Unary::ToInt, Value::F(x)) => Value::I(x.floor() as i32),
            (Unary::Neg, Value::I(x)) => Value::I(x.wrapping_neg()),
            (Unary::Abs, Value::I(x)) => Value::I(x.wrapping_abs()),
            (Unary::Not, Value::B(x)) => Value::B(!x),
            (_, Value::F(x)) => Value::F(float_unary(*op, x).unwrap_or(f64::NAN)),
            (_, other) => other,
        },
        Node::Binary(op, a, b) => match (at(a), at(b)) {
            (Value::F(a), Value::F(b)) => Value::F(float_binary(*op, a, b).unwrap_or(f64::NAN)),
            (Value::I(a), Value::I(b)) => Value::I(int_binary(*op, a, b)),
            (Value::B(a), Value::B(b)) => Value::B(if *op == Binary::And { a && b } else { a || b }),
            _ => Value::F(f64::NAN),
        },
        Node::Compare(op, a, b) => Value::B(match (at(a), at(b)) {
            (Value::F(a), Value::F(b)) => op.of(&a, &b),
            (Value::I(a), Value::I(b)) => op.of(&a, &b),
            _ => false,
        }),
        Node::Select(condition, a, b) => match at(condition) {
            Value::B(true) => at(a),
            _ => at(b),
        },
        Node::Powi(a, exponent) => match at(a) {
            Value::F(a) => Value::F(a.powi(*exponent)),
            other => other,
        },
        // A number of the pair that no score decides.
        Node::Random(..) => Value::F(0.5),
    }
}
