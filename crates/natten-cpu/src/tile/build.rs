//! From a graph to a list of values: what is reached, classed, with class changes and index arithmetic written out.

use std::collections::HashMap;

use natten_core::program::{Binary, Buffer, Capture, Compare, Expr, Graph, Index, Node, Type, Unary, Var};
use natten_core::{DType, Error, Result};

use super::Source;
use crate::backend::NAME;
use crate::lanes::Direction;

/// What a value depends on. The order is that of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Uniform,
    Lane,
    Row,
    Pair,
}

impl Class {
    fn join(self, other: Self) -> Self {
        match (self.min(other), self.max(other)) {
            (Self::Lane, Self::Row) => Self::Pair,
            (_, larger) => larger,
        }
    }
}

/// A number of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Coordinate {
    Flat,
    Axis(u8),
}

/// What a value is. The type of the arguments is the value's own unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    /// A constant, by the bits of an f64.
    Number(u64),
    Integer(i32),
    Truth(bool),
    /// A number of the run.
    Uniform(usize),
    Batch,
    Head,
    HeadKv,
    LaneNumbers(usize),
    LaneIndex(Coordinate),
    RowNumbers(usize),
    RowIndex(Coordinate),
    Tile(usize),
    Unary(Unary),
    Binary(Binary),
    Select,
    /// Of numbers.
    Compare(Compare),
    /// Of integers.
    IntegerCompare(Compare),
    Powi(i32),
    /// `clamp(a, 0, last) * stride + b`, of integers.
    Offset {
        last: i32,
        stride: i32,
    },
    /// An element of a captured tensor, by offset.
    Load(Buffer),
    /// A random number of the pair.
    Random,
    /// The value itself, a number or an integer, in a place of its own: of every pair where it was of less.
    Copy,
}

/// One value of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) op: Op,
    /// `arity` of them count.
    pub(super) arguments: [usize; 3],
    pub(super) arity: usize,
    pub(super) ty: Type,
    pub(super) class: Class,
}

impl Value {
    /// The arguments that there are.
    pub(super) fn arguments(&self) -> &[usize] {
        &self.arguments[..self.arity]
    }
}

/// Collects the values that some expressions are made of, arguments first.
pub(super) struct Builder<'g> {
    graph: &'g Graph,
    direction: Direction,
    sources: &'g dyn Fn(Var) -> Option<Source>,
    captures: &'g [Capture],
    of_expr: HashMap<Expr, usize>,
    known: HashMap<(Op, Type, Vec<usize>), usize>,
    pub(super) values: Vec<Value>,
}

impl<'g> Builder<'g> {
    pub(super) fn new(
        graph: &'g Graph,
        direction: Direction,
        sources: &'g dyn Fn(Var) -> Option<Source>,
        captures: &'g [Capture],
    ) -> Self {
        let (of_expr, known) = (HashMap::new(), HashMap::new());
        Self { graph, direction, sources, captures, of_expr, known, values: Vec::new() }
    }

    /// The value of an expression. Without recursion: a derivative's graph may be deep.
    pub(super) fn expr(&mut self, root: Expr) -> Result<usize> {
        let mut open = vec![root];
        while let Some(&expr) = open.last() {
            if self.of_expr.contains_key(&expr) {
                open.pop();
                continue;
            }
            let arguments = self.graph.node(expr).arguments();
            let before = open.len();
            open.extend(arguments.iter().rev().filter(|argument| !self.of_expr.contains_key(argument)));
            if open.len() == before {
                let arguments: Vec<usize> = arguments.iter().map(|argument| self.of_expr[argument]).collect();
                let value = self.node(expr, &arguments)?;
                self.of_expr.insert(expr, value);
                open.pop();
            }
        }
        Ok(self.of_expr[&root])
    }

    /// The offset of an element of a captured tensor, every index clamped into its axis.
    pub(super) fn offset(&mut self, capture: u8, index: &[usize]) -> Result<usize> {
        let shape = &self.captures[capture as usize].shape;
        if shape.iter().product::<usize>() > i32::MAX as usize {
            return Err(Error::unsupported(
                NAME,
                format!("a captured tensor of shape {shape:?}"),
                "a program may load from tensors of fewer than 2^31 elements",
            ));
        }
        let strides = shape.iter().rev().scan(1, |stride, &extent| {
            let own = *stride;
            *stride *= extent;
            Some(own)
        });
        let strides: Vec<usize> = strides.collect::<Vec<_>>().into_iter().rev().collect();
        // Lower classes first, so that what they share is added before pairs are walked.
        let mut axes: Vec<usize> = (0..shape.len()).collect();
        axes.sort_by_key(|&axis| self.values[index[axis]].class);
        let mut offset = self.leaf(Op::Integer(0), Type::I, Class::Uniform);
        for axis in axes {
            let (last, stride) = (shape[axis] as i32 - 1, strides[axis] as i32);
            offset = self.push(Op::Offset { last, stride }, Type::I, &[index[axis], offset]);
        }
        Ok(offset)
    }

    /// The value of every pair, in a place of its own that no result overwrites.
    pub(super) fn of_pairs(&mut self, value: usize) -> usize {
        let Value { op, ty, class, .. } = self.values[value];
        if class == Class::Pair && !matches!(op, Op::Tile(_)) {
            return value;
        }
        self.insert(Op::Copy, ty, Class::Pair, &[value])
    }

    /// The value with its numbers a lane at least: a row's spread over the lanes, a tile's copied.
    pub(super) fn of_lanes(&mut self, value: usize) -> usize {
        match self.values[value].class {
            Class::Uniform | Class::Lane => value,
            Class::Row | Class::Pair => self.of_pairs(value),
        }
    }

    fn leaf(&mut self, op: Op, ty: Type, class: Class) -> usize {
        self.insert(op, ty, class, &[])
    }

    /// A value of the class of its arguments; those of rows are spread where it is of pairs.
    fn push(&mut self, op: Op, ty: Type, arguments: &[usize]) -> usize {
        let of = |&argument: &usize| self.values[argument].class;
        let own = if op == Op::Random { Class::Pair } else { Class::Uniform };
        let class = arguments.iter().map(of).fold(own, Class::join);
        let arguments: Vec<usize> = arguments
            .iter()
            .map(|&argument| match self.values[argument].class {
                Class::Row if class == Class::Pair => self.of_pairs(argument),
                _ => argument,
            })
            .collect();
        self.insert(op, ty, class, &arguments)
    }

    fn insert(&mut self, op: Op, ty: Type, class: Class, arguments: &[usize]) -> usize {
        let next = self.values.len();
        let at = *self.known.entry((op, ty, arguments.to_vec())).or_insert(next);
        if at == next {
            let mut padded = [0; 3];
            padded[..arguments.len()].copy_from_slice(arguments);
            self.values.push(Value { op, arguments: padded, arity: arguments.len(), ty, class });
        }
        at
    }

    fn node(&mut self, expr: Expr, arguments: &[usize]) -> Result<usize> {
        let ty = self.graph.type_of(expr);
        Ok(match self.graph.node(expr) {
            &Node::Float(bits) => self.leaf(Op::Number(bits), ty, Class::Uniform),
            &Node::Int(value) => self.leaf(Op::Integer(value), ty, Class::Uniform),
            &Node::Bool(value) => self.leaf(Op::Truth(value), ty, Class::Uniform),
            &Node::Var(var) => self.var(var)?,
            &Node::Index(index) => self.index(index)?,
            Node::Load(buffer, _) => {
                let is_integer = self.captures[buffer.capture as usize].dtype == DType::I32;
                if is_integer != (ty == Type::I) || is_integer && buffer.tangent {
                    return Err(refused(format!("a load of {ty} from captured tensor {}", buffer.capture)));
                }
                let offset = self.offset(buffer.capture, arguments)?;
                self.push(Op::Load(*buffer), ty, &[offset])
            }
            &Node::Unary(op, _) => match op {
                Unary::StopGrad => arguments[0],
                Unary::LaneSum | Unary::LaneHalf | Unary::LanePair => {
                    return Err(refused(format!("{op:?}, which is of vectors,")));
                }
                _ => self.push(Op::Unary(op), ty, arguments),
            },
            &Node::Binary(op, ..) if ty == Type::F => self.of_numbers(op, arguments),
            &Node::Binary(op, ..) => self.push(Op::Binary(op), ty, arguments),
            &Node::Compare(op, a, _) => match self.graph.type_of(a) {
                Type::I => self.push(Op::IntegerCompare(op), ty, arguments),
                _ => self.push(Op::Compare(op), ty, arguments),
            },
            Node::Select(..) => self.push(Op::Select, ty, arguments),
            &Node::Powi(_, exponent) => self.push(Op::Powi(exponent), ty, arguments),
            Node::Random(..) => self.push(Op::Random, ty, arguments),
            other => return Err(refused(format!("{other:?}"))),
        })
    }

    /// An operation on two numbers, floor division and its rest made of others.
    fn of_numbers(&mut self, op: Binary, arguments: &[usize]) -> usize {
        let &[a, b] = arguments else { unreachable!("a binary operation has two arguments") };
        match op {
            Binary::FloorDiv => {
                let quotient = self.of_numbers(Binary::Div, arguments);
                self.push(Op::Unary(Unary::Floor), Type::F, &[quotient])
            }
            Binary::Mod => {
                let quotient = self.of_numbers(Binary::FloorDiv, arguments);
                let whole = self.push(Op::Binary(Binary::Mul), Type::F, &[b, quotient]);
                self.push(Op::Binary(Binary::Sub), Type::F, &[a, whole])
            }
            Binary::Div => match self.values[b].op {
                Op::Number(bits) if is_power_of_two(f64::from_bits(bits)) => {
                    let inverse = (1.0 / f64::from_bits(bits)).to_bits();
                    let inverse = self.leaf(Op::Number(inverse), Type::F, Class::Uniform);
                    self.push(Op::Binary(Binary::Mul), Type::F, &[a, inverse])
                }
                _ => self.push(Op::Binary(op), Type::F, arguments),
            },
            _ => self.push(Op::Binary(op), Type::F, arguments),
        }
    }

    fn var(&mut self, var: Var) -> Result<usize> {
        Ok(match (self.sources)(var) {
            Some(Source::Uniform(n)) => self.leaf(Op::Uniform(n), Type::F, Class::Uniform),
            Some(Source::Lane(n)) => self.leaf(Op::LaneNumbers(n), Type::F, Class::Lane),
            Some(Source::Row(n)) => self.leaf(Op::RowNumbers(n), Type::F, Class::Row),
            Some(Source::Tile(n)) => self.leaf(Op::Tile(n), Type::F, Class::Pair),
            None => return Err(refused(format!("{var:?} in this place"))),
        })
    }

    fn index(&mut self, index: Index) -> Result<usize> {
        let (is_query, coordinate) = match index {
            Index::Batch => return Ok(self.leaf(Op::Batch, Type::I, Class::Uniform)),
            Index::Head => return Ok(self.leaf(Op::Head, Type::I, Class::Uniform)),
            Index::HeadKv => return Ok(self.leaf(Op::HeadKv, Type::I, Class::Uniform)),
            Index::Query => (true, Coordinate::Flat),
            Index::Key => (false, Coordinate::Flat),
            Index::QueryAxis(axis) => (true, Coordinate::Axis(axis)),
            Index::KeyAxis(axis) => (false, Coordinate::Axis(axis)),
            other => return Err(refused(format!("{other:?}, which is of vectors,"))),
        };
        Ok(if is_query == (self.direction == Direction::Keys) {
            self.leaf(Op::LaneIndex(coordinate), Type::I, Class::Lane)
        } else {
            self.leaf(Op::RowIndex(coordinate), Type::I, Class::Row)
        })
    }
}

/// Whether a division is, bit for bit, the product with the inverse, in f32 too.
fn is_power_of_two(x: f64) -> bool {
    let exponent = x.abs().log2();
    exponent.abs() <= 100.0 && exponent.fract() == 0.0 && exponent.exp2() == x.abs()
}

fn refused(what: String) -> Error {
    Error::unsupported(NAME, what, "a pair's function has no such operation")
}
