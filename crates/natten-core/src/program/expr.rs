//! The expression graph: a typed, hash-consed DAG with a closed set of operations.
//!
//! Two expressions that are written alike are one node, so common subexpressions are shared by construction, over a
//! function and its derivatives alike. The constructors of [`Graph`] fold constants and drop what does nothing; they
//! take well-typed arguments only, which the parser and the derivations see to.

use std::collections::HashMap;
use std::fmt;

use super::numeric::{float_binary, float_unary, int_binary};

/// The type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A real number: f64 where the problem is f64, otherwise f32.
    F,
    /// A 32-bit integer, wrapping.
    I,
    /// A truth value.
    B,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F => "a number",
            Self::I => "an integer",
            Self::B => "a condition",
        })
    }
}

/// A node of a [`Graph`]. Arguments have smaller numbers than what uses them, so ascending order is topological.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expr(u32);

impl Expr {
    /// The node's number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A number that an expression is a function of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Var {
    /// `s`: the scaled score of a pair, the built-in bias added.
    Score,
    /// `x`: in a row function the modified score of a pair, in a vector function the vector's own element.
    X,
    /// `g = ⟨grad_output, v'⟩` of a pair.
    Grad,
    /// In the derivative of a vector function: the cotangent of the function's element.
    GradX,
    /// `ρ_k`: a finished stage of the row.
    Stage(u8),
    /// `dL/dρ_k`: the cotangent of a stage.
    GradStage(u8),
    /// The running maximum of the row's exponential stage; the stage itself where it is finished.
    Shift,
    /// `Δ = ⟨grad_output, output⟩` of a row.
    Delta,
    /// The cotangent of the row's logsumexp.
    GradLogsumexp,
    /// The tangent of a variable, given by its place among the others.
    Tangent(Primal),
}

/// The [`Var`]s that have tangents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the Var of its name")]
pub enum Primal {
    Score,
    X,
    Grad,
    GradX,
    Stage(u8),
    GradStage(u8),
    Delta,
    GradLogsumexp,
}

impl Var {
    /// The tangent of a variable; none of a tangent, and none of [`Var::Shift`], on which no result depends.
    pub const fn tangent(self) -> Option<Self> {
        Some(Self::Tangent(match self {
            Self::Score => Primal::Score,
            Self::X => Primal::X,
            Self::Grad => Primal::Grad,
            Self::GradX => Primal::GradX,
            Self::Stage(k) => Primal::Stage(k),
            Self::GradStage(k) => Primal::GradStage(k),
            Self::Delta => Primal::Delta,
            Self::GradLogsumexp => Primal::GradLogsumexp,
            Self::Shift | Self::Tangent(_) => return None,
        }))
    }
}

/// An index: an integer that a pair, or an element of a vector, has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Index {
    /// `b`: the batch entry.
    Batch,
    /// `h`: the query head.
    Head,
    /// `hkv`: the key head.
    HeadKv,
    /// `q`: the query's row-major number.
    Query,
    /// `k`: the key's row-major number; `prod(X) + n` of additional token `n`.
    Key,
    /// `q0 q1 q2`: the query's coordinate along a user axis.
    QueryAxis(u8),
    /// `k0 k1 k2`: the key's coordinate along a user axis. An additional token is beyond the grid along axis 0.
    KeyAxis(u8),
    /// `d`: the element of a vector, in vector functions.
    Lane,
    /// `dim`: the number of a vector's elements, in vector functions.
    Dim,
}

/// A captured tensor that an expression loads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer {
    /// The number of the capture in the program.
    pub capture: u8,
    /// Whether its tangent is meant.
    pub tangent: bool,
}

/// An operation on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the function of its name")]
pub enum Unary {
    /// `-x`, of numbers and integers.
    Neg,
    /// `|x|`, of numbers and integers; its derivative at 0 is 0.
    Abs,
    Exp,
    Exp2,
    Log,
    Log2,
    /// `e^x - 1`.
    Expm1,
    /// `ln(1 + x)`.
    Log1p,
    Sqrt,
    /// `x^-1/2`.
    Rsqrt,
    Tanh,
    Sigmoid,
    /// `ln(1 + e^x)`.
    Softplus,
    Erf,
    Sin,
    Cos,
    /// The largest integral number that is not larger; its derivative is 0.
    Floor,
    /// `x` itself, as a constant to every derivative.
    StopGrad,
    /// An integer as a number.
    ToFloat,
    /// A number as an integer: `floor`, saturating; NaN gives 0.
    ToInt,
    /// `!c`.
    Not,
    /// The sum over a vector's elements, in vector functions.
    LaneSum,
    /// The element half a vector away, `x[(d + D/2) % D]`, in vector functions; `D` is even.
    LaneHalf,
    /// The element's neighbour, `x[d ^ 1]`, in vector functions; `D` is even.
    LanePair,
}

/// An operation on two arguments of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the operation of its name")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// Of numbers.
    Div,
    /// `floor(a / b)`; of integers, 0 where `b` is 0.
    FloorDiv,
    /// `a - b * floor(a / b)`; of integers, 0 where `b` is 0.
    Mod,
    /// `a` where the arguments are equal, as far as derivatives go.
    Min,
    /// `a` where the arguments are equal, as far as derivatives go.
    Max,
    /// Of conditions.
    And,
    /// Of conditions.
    Or,
    /// Of integers.
    BitAnd,
    /// Of integers.
    BitOr,
    /// Of integers.
    BitXor,
    /// Of integers; the shift is taken modulo 32.
    Shl,
    /// Of integers, keeping the sign; the shift is taken modulo 32.
    Shr,
}

/// A comparison of numbers or integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the comparison of its name")]
pub enum Compare {
    Lt,
    Le,
    Eq,
    Ne,
}

/// What an [`Expr`] is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Node {
    /// A number, by its bits.
    Float(u64),
    /// An integer.
    Int(i32),
    /// A truth value.
    Bool(bool),
    /// A variable, of type F.
    Var(Var),
    /// An index, of type I.
    Index(Index),
    /// An element of a captured tensor, one index an axis. An index out of range is clamped into it.
    Load(Buffer, Box<[Expr]>),
    /// An operation on one argument.
    Unary(Unary, Expr),
    /// An operation on two arguments.
    Binary(Binary, Expr, Expr),
    /// A comparison.
    Compare(Compare, Expr, Expr),
    /// The second argument where the first holds, the third where it does not.
    Select(Expr, Expr, Expr),
    /// An integral power.
    Powi(Expr, i32),
    /// A random number in [0, 1), the same for a batch entry, head, query, key and these two words of seed, whatever the
    /// tiling, the backend and the pass: see [`random`](crate::program::random).
    Random(Expr, Expr),
}

impl Node {
    /// The arguments, in order.
    pub fn arguments(&self) -> Vec<Expr> {
        match self {
            Self::Float(_) | Self::Int(_) | Self::Bool(_) | Self::Var(_) | Self::Index(_) => Vec::new(),
            Self::Load(_, index) => index.to_vec(),
            Self::Unary(_, a) | Self::Powi(a, _) => vec![*a],
            Self::Binary(_, a, b) | Self::Compare(_, a, b) | Self::Random(a, b) => vec![*a, *b],
            Self::Select(c, a, b) => vec![*c, *a, *b],
        }
    }
}

/// A DAG of expressions.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<(Node, Type)>,
    known: HashMap<Node, Expr>,
}

impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.nodes == other.nodes
    }
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What an expression is.
    pub fn node(&self, expr: Expr) -> &Node {
        &self.nodes[expr.index()].0
    }

    /// An expression's type.
    pub fn type_of(&self, expr: Expr) -> Type {
        self.nodes[expr.index()].1
    }

    /// Every node, in topological order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Expr, &Node)> {
        self.nodes.iter().enumerate().map(|(at, (node, _))| (Expr(at as u32), node))
    }

    /// Which nodes the given ones are made of, themselves included, by number.
    pub fn reached(&self, from: &[Expr]) -> Vec<bool> {
        let mut reached = vec![false; self.len()];
        for expr in from {
            reached[expr.index()] = true;
        }
        for at in (0..self.len()).rev() {
            if reached[at] {
                for argument in self.nodes[at].0.arguments() {
                    reached[argument.index()] = true;
                }
            }
        }
        reached
    }

    /// Whether an expression depends on a node that `is_leaf` picks.
    pub fn depends(&self, expr: Expr, is_leaf: impl Fn(&Node) -> bool) -> bool {
        let reached = self.reached(&[expr]);
        self.iter().any(|(node, what)| reached[node.index()] && is_leaf(what))
    }

    fn push(&mut self, node: Node, ty: Type) -> Expr {
        if let Some(&known) = self.known.get(&node) {
            return known;
        }
        let expr = Expr(self.nodes.len() as u32);
        self.known.insert(node.clone(), expr);
        self.nodes.push((node, ty));
        expr
    }

    /// A number.
    pub fn float(&mut self, value: f64) -> Expr {
        self.push(Node::Float(value.to_bits()), Type::F)
    }

    /// An integer.
    pub fn int(&mut self, value: i32) -> Expr {
        self.push(Node::Int(value), Type::I)
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) -> Expr {
        self.push(Node::Bool(value), Type::B)
    }

    /// A variable.
    pub fn var(&mut self, var: Var) -> Expr {
        self.push(Node::Var(var), Type::F)
    }

    /// An index.
    pub fn index(&mut self, index: Index) -> Expr {
        self.push(Node::Index(index), Type::I)
    }

    /// An element of a captured tensor of type `ty`, F or I. `index` has one integer an axis.
    pub fn load(&mut self, buffer: Buffer, ty: Type, index: &[Expr]) -> Expr {
        self.push(Node::Load(buffer, index.into()), ty)
    }

    /// The value, where the expression is a constant number.
    pub fn as_float(&self, expr: Expr) -> Option<f64> {
        match self.node(expr) {
            Node::Float(bits) => Some(f64::from_bits(*bits)),
            _ => None,
        }
    }

    /// The value, where the expression is a constant integer.
    pub fn as_int(&self, expr: Expr) -> Option<i32> {
        match self.node(expr) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The value, where the expression is a constant condition.
    pub fn as_bool(&self, expr: Expr) -> Option<bool> {
        match self.node(expr) {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Whether the expression is the number 0.
    pub fn is_zero(&self, expr: Expr) -> bool {
        self.as_float(expr) == Some(0.0)
    }

    /// Whether the expression is the number 1.
    pub fn is_one(&self, expr: Expr) -> bool {
        self.as_float(expr) == Some(1.0)
    }

    /// An operation on one argument.
    pub fn unary(&mut self, op: Unary, a: Expr) -> Expr {
        use Unary::*;
        let ty = match op {
            ToFloat => Type::F,
            ToInt => Type::I,
            _ => self.type_of(a),
        };
        if let Some(x) = self.as_float(a) {
            return match op {
                StopGrad => a,
                LaneSum => self.push(Node::Unary(op, a), ty),
                ToInt => self.int(x.floor() as i32),
                _ => match float_unary(op, x) {
                    Some(y) => self.float(y),
                    None => a,
                },
            };
        }
        if let Some(x) = self.as_int(a) {
            match op {
                Neg => return self.int(x.wrapping_neg()),
                Abs => return self.int(x.wrapping_abs()),
                ToFloat => return self.float(f64::from(x)),
                _ => {}
            }
        }
        if let (Not, Some(x)) = (op, self.as_bool(a)) {
            return self.bool(!x);
        }
        match (op, self.node(a)) {
            (Neg, Node::Unary(Neg, b)) | (Not, Node::Unary(Not, b)) => return *b,
            (Abs, Node::Unary(Abs, _)) | (StopGrad, Node::Unary(StopGrad, _)) => return a,
            (LaneHalf, Node::Unary(LaneHalf, b)) | (LanePair, Node::Unary(LanePair, b)) => return *b,
            (Abs, &Node::Unary(Neg, b)) => return self.unary(Abs, b),
            _ => {}
        }
        self.push(Node::Unary(op, a), ty)
    }

    /// An operation on two arguments of one type.
    pub fn binary(&mut self, op: Binary, a: Expr, b: Expr) -> Expr {
        use Binary::*;
        let ty = self.type_of(a);
        if let (Some(x), Some(y)) = (self.as_float(a), self.as_float(b))
            && let Some(value) = float_binary(op, x, y)
        {
            return self.float(value);
        }
        if let (Some(x), Some(y)) = (self.as_int(a), self.as_int(b)) {
            return self.int(int_binary(op, x, y));
        }
        let (zero_a, zero_b) = (self.is_zero(a), self.is_zero(b));
        let (one_a, one_b) = (self.is_one(a), self.is_one(b));
        match op {
            Add if zero_a => return b,
            Add | Sub if zero_b => return a,
            Sub if zero_a => return self.unary(Unary::Neg, b),
            Sub if a == b && ty == Type::F => return self.float(0.0),
            Mul if zero_a || one_b => return a,
            Mul if zero_b || one_a => return b,
            Mul if self.as_float(a) == Some(-1.0) => return self.unary(Unary::Neg, b),
            Mul if self.as_float(b) == Some(-1.0) => return self.unary(Unary::Neg, a),
            Div if zero_a || one_b => return a,
            Min | Max | BitAnd | BitOr if a == b => return a,
            And | Or => match (self.as_bool(a), self.as_bool(b)) {
                (Some(x), _) => return if x == (op == And) { b } else { a },
                (_, Some(y)) => return if y == (op == And) { a } else { b },
                _ if a == b => return a,
                _ => {}
            },
            _ => {}
        }
        // Signs move outwards, so that differences are found again.
        match (op, self.node(a).clone(), self.node(b).clone()) {
            (Add, _, Node::Unary(Unary::Neg, y)) => return self.binary(Sub, a, y),
            (Add, Node::Unary(Unary::Neg, x), _) => return self.binary(Sub, b, x),
            (Sub, _, Node::Unary(Unary::Neg, y)) => return self.binary(Add, a, y),
            (Mul, Node::Unary(Unary::Neg, x), Node::Unary(Unary::Neg, y)) => return self.binary(Mul, x, y),
            (Mul | Div, Node::Unary(Unary::Neg, x), _) if ty == Type::F => {
                let product = self.binary(op, x, b);
                return self.unary(Unary::Neg, product);
            }
            (Mul | Div, _, Node::Unary(Unary::Neg, y)) if ty == Type::F => {
                let product = self.binary(op, a, y);
                return self.unary(Unary::Neg, product);
            }
            _ => {}
        }
        let commutes = matches!(op, Add | Mul | And | Or | BitAnd | BitOr | BitXor);
        let (a, b) = if commutes && b < a { (b, a) } else { (a, b) };
        self.push(Node::Binary(op, a, b), ty)
    }

    /// A comparison.
    pub fn compare(&mut self, op: Compare, a: Expr, b: Expr) -> Expr {
        let known = match (self.as_float(a), self.as_float(b), self.as_int(a), self.as_int(b)) {
            (Some(x), Some(y), ..) => Some(op.of(&x, &y)),
            (_, _, Some(x), Some(y)) => Some(op.of(&x, &y)),
            _ => None,
        };
        match known {
            Some(value) => self.bool(value),
            None => self.push(Node::Compare(op, a, b), Type::B),
        }
    }

    /// `a` where `condition` holds, `b` where it does not.
    pub fn select(&mut self, condition: Expr, a: Expr, b: Expr) -> Expr {
        match self.as_bool(condition) {
            Some(true) => a,
            Some(false) => b,
            None if a == b => a,
            None => self.push(Node::Select(condition, a, b), self.type_of(a)),
        }
    }

    /// An integral power.
    pub fn powi(&mut self, a: Expr, exponent: i32) -> Expr {
        match (exponent, self.as_float(a)) {
            (_, Some(x)) => self.float(x.powi(exponent)),
            (0, _) => self.float(1.0),
            (1, _) => a,
            (2, _) => self.binary(Binary::Mul, a, a),
            _ => self.push(Node::Powi(a, exponent), Type::F),
        }
    }

    /// A random number of a pair, from two words of seed.
    pub fn random(&mut self, low: Expr, high: Expr) -> Expr {
        self.push(Node::Random(low, high), Type::F)
    }

    /// `a + b`.
    pub fn add(&mut self, a: Expr, b: Expr) -> Expr {
        self.binary(Binary::Add, a, b)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: Expr, b: Expr) -> Expr {
        self.binary(Binary::Sub, a, b)
    }

    /// `a * b`.
    pub fn mul(&mut self, a: Expr, b: Expr) -> Expr {
        self.binary(Binary::Mul, a, b)
    }

    /// `a / b`.
    pub fn div(&mut self, a: Expr, b: Expr) -> Expr {
        self.binary(Binary::Div, a, b)
    }

    /// The expression with some nodes replaced by others of the same type.
    pub fn substitute(&mut self, expr: Expr, replace: &HashMap<Expr, Expr>) -> Expr {
        let reached = self.reached(&[expr]);
        let mut now: Vec<Expr> = Vec::with_capacity(expr.index() + 1);
        for (at, &is_reached) in reached.iter().enumerate().take(expr.index() + 1) {
            let old = Expr(at as u32);
            let new = match replace.get(&old) {
                Some(&new) => new,
                None if !is_reached => old,
                None => {
                    let node = self.node(old).clone();
                    self.rebuild(old, &node, |argument| now[argument.index()])
                }
            };
            now.push(new);
        }
        now[expr.index()]
    }

    /// The node with other arguments, simplified again.
    pub fn rebuild(&mut self, old: Expr, node: &Node, argument: impl Fn(Expr) -> Expr) -> Expr {
        match node {
            Node::Float(_) | Node::Int(_) | Node::Bool(_) | Node::Var(_) | Node::Index(_) => old,
            Node::Load(buffer, index) => {
                let index: Vec<Expr> = index.iter().map(|&i| argument(i)).collect();
                self.load(*buffer, self.type_of(old), &index)
            }
            Node::Unary(op, a) => self.unary(*op, argument(*a)),
            Node::Binary(op, a, b) => self.binary(*op, argument(*a), argument(*b)),
            Node::Compare(op, a, b) => self.compare(*op, argument(*a), argument(*b)),
            Node::Select(c, a, b) => self.select(argument(*c), argument(*a), argument(*b)),
            Node::Powi(a, exponent) => self.powi(argument(*a), *exponent),
            Node::Random(a, b) => self.random(argument(*a), argument(*b)),
        }
    }
}

impl Compare {
    /// Whether the comparison holds.
    pub fn of<T: PartialOrd>(self, a: &T, b: &T) -> bool {
        match self {
            Self::Lt => a < b,
            Self::Le => a <= b,
            Self::Eq => a == b,
            Self::Ne => a != b,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_alike_is_one_node() {
        let mut g = Graph::new();
        let s = g.var(Var::Score);
        let two = g.float(2.0);
        let (a, b) = (g.mul(s, two), g.mul(two, s));
        assert_eq!(a, b);
        let zero = g.float(0.0);
        assert_eq!(g.add(a, zero), a);
        assert_eq!(g.sub(a, b), zero);
    }
}
