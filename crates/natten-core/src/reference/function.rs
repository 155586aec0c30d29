//! A program's expressions, evaluated on the pairs of a row or on a vector: values, and by a reverse sweep the cotangents
//! of everything that they are functions of. The slopes of single operations come from dual numbers, not from the
//! symbolic derivatives that other backends run.

use super::number::{Dual, Number, binary, sum};
use super::rows::Key;
use crate::program::numeric::int_binary;
use crate::program::{Binary, Compare, Expr, Graph, Index, Node, Type, Unary, Var, random};

/// A captured tensor, row-major.
#[derive(Debug)]
pub(super) enum Captured<T> {
    Numbers(Vec<T>),
    Integers(Vec<i32>),
}

/// Where an expression is evaluated: on the pairs of a row, one lane a key, or on a vector, one lane an element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a, T> {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) head_kv: usize,
    /// `batch * heads + head`: the row of random numbers.
    pub(super) row: usize,
    /// The query's number and its coordinates along the user axes.
    pub(super) query: usize,
    pub(super) query_at: [usize; 3],
    /// The key of every lane, or of all.
    pub(super) keys: &'a [Key],
    /// [`Var::Score`], a number a lane.
    pub(super) scores: &'a [T],
    /// [`Var::X`], a number a lane.
    pub(super) x: &'a [T],
    /// [`Var::Stage`].
    pub(super) stages: &'a [T],
}

/// What a function depends on, and a cotangent goes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Leaf {
    Score { lane: usize },
    X { lane: usize },
    Stage(usize),
    Captured { number: usize, element: usize },
}

#[derive(Clone, Copy, Debug)]
enum Value<T> {
    F(T),
    I(i32),
    B(bool),
}

/// An operation, its arguments given by their places among the steps.
#[derive(Debug)]
enum Step {
    Float(f64),
    Int(i32),
    Bool(bool),
    Var(Var),
    Index(Index),
    Load { number: usize, extents: Vec<usize>, index: Vec<usize> },
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    Compare(Compare, usize, usize),
    Select(usize, usize, usize),
    Powi(usize, i32),
    Random(usize, usize),
}

/// Memory of an evaluation, used again and again.
#[derive(Debug)]
pub(super) struct Scratch<T> {
    lanes: usize,
    /// A value a step and lane.
    values: Vec<Value<T>>,
    cotangents: Vec<Option<T>>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { lanes: 0, values: Vec::new(), cotangents: Vec::new() }
    }
}

/// An expression of type F or B, ready to be evaluated.
#[derive(Debug)]
pub(super) struct Function {
    /// In topological order, the expression itself last.
    steps: Vec<Step>,
}

impl Function {
    /// The expression `root` of `graph`; `shapes` are those of the captured tensors.
    pub(super) fn new(graph: &Graph, root: Expr, shapes: &[&[usize]]) -> Self {
        let reached = graph.reached(&[root]);
        let mut places = vec![0; graph.len()];
        let mut steps = Vec::new();
        for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
            let at = |expr: &Expr| places[expr.index()];
            let step = match node {
                Node::Float(bits) => Step::Float(f64::from_bits(*bits)),
                Node::Int(value) => Step::Int(*value),
                Node::Bool(value) => Step::Bool(*value),
                Node::Var(var) => Step::Var(*var),
                Node::Index(index) => Step::Index(*index),
                Node::Load(buffer, index) => Step::Load {
                    number: usize::from(buffer.capture),
                    extents: shapes[usize::from(buffer.capture)].to_vec(),
                    index: index.iter().map(at).collect(),
                },
                Node::Unary(op, a) => Step::Unary(*op, at(a)),
                Node::Binary(op, a, b) => Step::Binary(*op, at(a), at(b)),
                Node::Compare(op, a, b) => Step::Compare(*op, at(a), at(b)),
                Node::Select(c, a, b) => Step::Select(at(c), at(a), at(b)),
                Node::Powi(a, exponent) => Step::Powi(at(a), *exponent),
                Node::Random(low, high) => Step::Random(at(low), at(high)),
            };
            places[expr.index()] = steps.len();
            steps.push(step);
        }
        debug_assert!(matches!(graph.type_of(root), Type::F | Type::B), "a field of a program");
        Self { steps }
    }

    /// Evaluates the expression in every lane of `site`.
    pub(super) fn evaluate<T: Number>(
        &self,
        site: &Site<'_, T>,
        lanes: usize,
        captures: &[Captured<T>],
        scratch: &mut Scratch<T>,
    ) {
        let values = &mut scratch.values;
        scratch.lanes = lanes;
        values.clear();
        for step in &self.steps {
            match *step {
                Step::Unary(Unary::LaneSum, a) => {
                    let lanes_of_a = &values[a * lanes..(a + 1) * lanes];
                    let total = lanes_of_a.iter().fold(T::of(0.0), |total, &value| total + as_number(value));
                    values.extend(std::iter::repeat_n(Value::F(total), lanes));
                }
                Step::Unary(op @ (Unary::LaneHalf | Unary::LanePair), a) => {
                    for lane in 0..lanes {
                        values.push(values[a * lanes + partner(op, lane, lanes)]);
                    }
                }
                _ => {
                    for lane in 0..lanes {
                        let value = step.value(site, captures, |at| values[at * lanes + lane], lane);
                        values.push(value);
                    }
                }
            }
        }
    }

    /// The numbers that the expression is, lane by lane, as `scratch` holds them.
    pub(super) fn numbers<'s, T: Number>(
        &self,
        scratch: &'s Scratch<T>,
    ) -> impl Iterator<Item = T> + use<'s, T> {
        scratch.values[(self.steps.len() - 1) * scratch.lanes..].iter().map(|&value| as_number(value))
    }

    /// The conditions that the expression is.
    pub(super) fn conditions<'s, T: Number>(
        &self,
        scratch: &'s Scratch<T>,
    ) -> impl Iterator<Item = bool> + use<'s, T> {
        scratch.values[(self.steps.len() - 1) * scratch.lanes..].iter().map(|&value| as_bool(value))
    }

    /// The reverse sweep behind the evaluation that `scratch` holds: hands `give` the cotangent of everything that the
    /// expression depends on, from the expression's own, one a lane; none where it has none.
    pub(super) fn pull<T: Number>(
        &self,
        scratch: &mut Scratch<T>,
        cotangent: impl Iterator<Item = Option<T>>,
        mut give: impl FnMut(Leaf, T),
    ) {
        let Scratch { lanes, ref values, ref mut cotangents } = *scratch;
        cotangents.clear();
        cotangents.resize((self.steps.len() - 1) * lanes, None);
        cotangents.extend(cotangent);
        let add = |cotangents: &mut [Option<T>], at: usize, what: Option<T>| {
            cotangents[at] = sum(cotangents[at], what);
        };
        for (place, step) in self.steps.iter().enumerate().rev() {
            for lane in 0..lanes {
                let Some(mine) = cotangents[place * lanes + lane] else { continue };
                let argument = |at: usize| as_number(values[at * lanes + lane]);
                // What is added to an argument of which the operation has this slope; none where it is constant.
                let through = |result: Dual<T>| result.tangent.map(|slope| mine * slope);
                match *step {
                    Step::Var(Var::Score) => give(Leaf::Score { lane }, mine),
                    Step::Var(Var::X) => give(Leaf::X { lane }, mine),
                    Step::Var(Var::Stage(k)) => give(Leaf::Stage(usize::from(k)), mine),
                    Step::Load { number, ref extents, ref index } => {
                        let element = element(extents, index, |at| values[at * lanes + lane]);
                        give(Leaf::Captured { number, element }, mine);
                    }
                    Step::Unary(Unary::LaneSum, a) => {
                        (0..lanes).for_each(|other| add(cotangents, a * lanes + other, Some(mine)));
                    }
                    Step::Unary(op @ (Unary::LaneHalf | Unary::LanePair), a) => {
                        add(cotangents, a * lanes + partner(op, lane, lanes), Some(mine));
                    }
                    Step::Unary(Unary::ToFloat | Unary::ToInt | Unary::Not, _) => {}
                    Step::Unary(op, a) => {
                        let slope = through(Dual::variable(argument(a)).unary(op));
                        add(cotangents, a * lanes + lane, slope);
                    }
                    Step::Binary(op, a, b) => {
                        let (x, y) = (argument(a), argument(b));
                        let constant = |value| Dual { value, tangent: None };
                        let by_a = through(binary(op, Dual::variable(x), constant(y)));
                        let by_b = through(binary(op, constant(x), Dual::variable(y)));
                        add(cotangents, a * lanes + lane, by_a);
                        add(cotangents, b * lanes + lane, by_b);
                    }
                    Step::Select(condition, a, b) => {
                        let taken = if as_bool(values[condition * lanes + lane]) { a } else { b };
                        add(cotangents, taken * lanes + lane, Some(mine));
                    }
                    Step::Powi(a, exponent) => {
                        let slope = through(Dual::variable(argument(a)).powi(exponent));
                        add(cotangents, a * lanes + lane, slope);
                    }
                    // Constants; integers and conditions get no cotangent, and the other variables are not of programs.
                    Step::Float(_)
                    | Step::Int(_)
                    | Step::Bool(_)
                    | Step::Var(_)
                    | Step::Index(_)
                    | Step::Compare(..)
                    | Step::Random(..) => {}
                }
            }
        }
    }
}

impl Step {
    /// What an operation that is not across lanes gives.
    fn value<T: Number>(
        &self,
        site: &Site<'_, T>,
        captures: &[Captured<T>],
        argument: impl Fn(usize) -> Value<T>,
        lane: usize,
    ) -> Value<T> {
        match *self {
            Self::Float(value) => Value::F(T::of(value)),
            Self::Int(value) => Value::I(value),
            Self::Bool(value) => Value::B(value),
            Self::Var(Var::Score) => Value::F(site.scores[lane]),
            Self::Var(Var::X) => Value::F(site.x[lane]),
            Self::Var(Var::Stage(k)) => Value::F(site.stages[usize::from(k)]),
            // No expression of a program has another variable.
            Self::Var(_) => Value::F(T::of(f64::NAN)),
            Self::Index(index) => Value::I(site.index(index, lane) as i32),
            Self::Load { number, ref extents, ref index } => {
                let element = element(extents, index, argument);
                match &captures[number] {
                    Captured::Numbers(numbers) => Value::F(numbers[element]),
                    Captured::Integers(integers) => Value::I(integers[element]),
                }
            }
            Self::Unary(op, a) => match (op, argument(a)) {
                (Unary::ToFloat, Value::I(x)) => Value::F(T::of(f64::from(x))),
                (Unary::ToInt, Value::F(x)) => Value::I(x.value().floor() as i32),
                (Unary::Neg, Value::I(x)) => Value::I(x.wrapping_neg()),
                (Unary::Abs, Value::I(x)) => Value::I(x.wrapping_abs()),
                (Unary::Not, Value::B(x)) => Value::B(!x),
                (op, Value::F(x)) => Value::F(x.unary(op)),
                (_, other) => other,
            },
            Self::Binary(op, a, b) => match (argument(a), argument(b)) {
                (Value::F(a), Value::F(b)) => Value::F(binary(op, a, b)),
                (Value::B(a), Value::B(b)) => Value::B(if op == Binary::And { a && b } else { a || b }),
                (a, b) => Value::I(int_binary(op, as_int(a), as_int(b))),
            },
            Self::Compare(op, a, b) => Value::B(match (argument(a), argument(b)) {
                (Value::F(a), Value::F(b)) => op.of(&a.value(), &b.value()),
                (Value::B(a), Value::B(b)) => op.of(&a, &b),
                (a, b) => op.of(&as_int(a), &as_int(b)),
            }),
            Self::Select(condition, a, b) => argument(if as_bool(argument(condition)) { a } else { b }),
            Self::Powi(a, exponent) => Value::F(as_number(argument(a)).powi(exponent)),
            Self::Random(low, high) => {
                let seed = [as_int(argument(low)) as u32, as_int(argument(high)) as u32];
                let (row, query, key) = (site.row as u64, site.query as u64, site.key(lane).number as u64);
                Value::F(T::of(random::uniform(seed, row, query, key)))
            }
        }
    }
}

impl<T> Site<'_, T> {
    fn key(&self, lane: usize) -> &Key {
        &self.keys[lane.min(self.keys.len() - 1)]
    }

    fn index(&self, index: Index, lane: usize) -> usize {
        match index {
            Index::Batch => self.batch,
            Index::Head => self.head,
            Index::HeadKv => self.head_kv,
            Index::Query => self.query,
            Index::Key => self.key(lane).number,
            Index::QueryAxis(axis) => self.query_at[usize::from(axis)],
            Index::KeyAxis(axis) => self.key(lane).at[usize::from(axis)],
            Index::Lane => lane,
            Index::Dim => self.x.len(),
        }
    }
}

/// The row-major number of an element, every index clamped into its axis.
fn element<T: Number>(extents: &[usize], index: &[usize], argument: impl Fn(usize) -> Value<T>) -> usize {
    extents.iter().zip(index).fold(0, |element, (&extent, &at)| {
        let at = usize::try_from(as_int(argument(at))).unwrap_or(0);
        element * extent + at.min(extent - 1)
    })
}

/// The lane that a permutation of lanes reads; its own inverse.
fn partner(op: Unary, lane: usize, lanes: usize) -> usize {
    match op {
        Unary::LaneHalf => (lane + lanes / 2) % lanes,
        _ => lane ^ 1,
    }
}

// Expressions are well-typed: the other arms are never taken.

fn as_number<T: Number>(value: Value<T>) -> T {
    match value {
        Value::F(number) => number,
        Value::I(integer) => T::of(f64::from(integer)),
        Value::B(condition) => T::of(f64::from(u8::from(condition))),
    }
}

fn as_int<T: Number>(value: Value<T>) -> i32 {
    match value {
        Value::I(integer) => integer,
        Value::B(condition) => i32::from(condition),
        Value::F(number) => number.value() as i32,
    }
}

fn as_bool<T>(value: Value<T>) -> bool {
    matches!(value, Value::B(true))
}
