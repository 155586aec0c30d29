//! What a mask says about a whole box of pairs, without asking about any pair: its expression evaluated over the ranges
//! that the indices take over the box, to "no pair", "every pair" or "some, perhaps". No array of queries by keys is
//! ever made, whatever the tiling.
//!
//! The verdict is sound: of an operation that has no tight bounds the widest are taken, and [`Verdict::Partial`] is
//! always true. It is exact for the masks that are made of comparisons of index sums: causal, windows, blocks, documents
//! of ascending numbers.

mod captures;
mod real;
#[cfg(test)]
mod tests;
mod value;
mod whole;

pub use self::captures::{Captured, HostCapture, HostCaptures};
use self::real::Real;
use self::value::{Truth, Value};
use self::whole::Whole;
use super::expr::{Binary, Compare, Expr, Graph, Index, Node, Type, Unary};
use crate::geometry::MAX_RANK;

/// What a mask says about the pairs of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// No pair counts.
    Empty,
    /// Every pair counts.
    Full,
    /// Neither is known.
    Partial,
}

/// The values that every index takes over a box of pairs: the least and the greatest, both included. A pair's indices
/// lie within, and what lies within need not be a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the Index of its name")]
pub struct Ranges {
    pub batch: [i64; 2],
    pub head: [i64; 2],
    pub head_kv: [i64; 2],
    pub query: [i64; 2],
    pub key: [i64; 2],
    /// By user axis; axes that the problem has not are not read.
    pub query_axis: [[i64; 2]; MAX_RANK],
    /// By user axis; axes that the problem has not are not read.
    pub key_axis: [[i64; 2]; MAX_RANK],
}

/// A box of tokens by its corners, on the three padded axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBox {
    /// The extents of the token grid that the box lies in, 1 along the axes that the problem has not.
    pub grid: [usize; MAX_RANK],
    /// The least and the greatest coordinate along every axis, both included.
    pub tokens: [[usize; 2]; MAX_RANK],
}

impl TokenBox {
    /// By user axis: padded axes lead.
    fn axes(&self, rank: usize) -> [[i64; 2]; MAX_RANK] {
        let padding = MAX_RANK - rank.min(MAX_RANK);
        std::array::from_fn(|a| self.tokens.get(padding + a).map_or([0, 0], |span| span.map(saturated)))
    }

    /// The row-major numbers of the box's first and last token.
    fn numbers(&self) -> [i64; 2] {
        let number = |corner: usize| {
            let [_, y, x] = self.grid;
            let [c0, c1, c2] = self.tokens.map(|span| span[corner]);
            saturated(c0.saturating_mul(y).saturating_add(c1).saturating_mul(x).saturating_add(c2))
        };
        [number(0), number(1)]
    }
}

fn saturated(x: usize) -> i64 {
    i64::try_from(x).unwrap_or(i64::MAX)
}

/// The ranges of the indices over a box of queries and one of keys, of one batch entry and head. User axis `a` of a
/// problem of `rank` axes is padded axis `3 - rank + a`.
pub fn ranges_of(
    rank: usize,
    batch: usize,
    head: usize,
    head_kv: usize,
    queries: &TokenBox,
    keys: &TokenBox,
) -> Ranges {
    let [batch, head, head_kv] = [batch, head, head_kv].map(|x| [saturated(x); 2]);
    Ranges {
        batch,
        head,
        head_kv,
        query: queries.numbers(),
        key: keys.numbers(),
        query_axis: queries.axes(rank),
        key_axis: keys.axes(rank),
    }
}

/// What a mask says about a box. To ask about many boxes, keep an [`Evaluator`].
pub fn classify(graph: &Graph, mask: Expr, ranges: &Ranges, captured: &dyn Captured) -> Verdict {
    let evaluator = Evaluator::new(graph, mask);
    evaluator.classify(&mut evaluator.scratch(), ranges, captured)
}

/// A mask, ready to be asked about one box after the other.
#[derive(Clone, Debug)]
pub struct Evaluator {
    steps: Vec<Step>,
    /// The places of the loads' indices, one load after the other.
    load_indices: Vec<u32>,
    /// What has to hold at once. Those that load nothing come first: where one of them fails, nothing is loaded.
    conjuncts: Vec<Conjunct>,
}

/// A node, its arguments by their places among the steps.
#[derive(Clone, Copy, Debug)]
enum Step {
    Known(Value),
    Index(Index),
    /// The range in `load_indices`.
    Load(u8, Type, u32, u32),
    Unary(Unary, u32),
    Binary(Binary, u32, u32),
    Compare(Compare, u32, u32),
    Select(u32, u32, u32),
    Powi(u32, i32),
}

#[derive(Clone, Copy, Debug)]
struct Conjunct {
    /// The steps that have to be done for it.
    end: usize,
    at: usize,
}

/// Room for an [`Evaluator`]'s values, to be used again and again.
#[derive(Clone, Debug, Default)]
pub struct EvaluatorScratch {
    values: Vec<Value>,
    index: Vec<[i64; 2]>,
}

impl Evaluator {
    /// Sorts out what the mask is made of.
    pub fn new(graph: &Graph, mask: Expr) -> Self {
        let mut conjuncts = Vec::new();
        let mut open = vec![mask];
        let mut seen = vec![false; graph.len()];
        while let Some(expr) = open.pop() {
            if std::mem::replace(&mut seen[expr.index()], true) {
                continue;
            }
            match graph.node(expr) {
                Node::Binary(Binary::And, a, b) => open.extend([*b, *a]),
                _ => conjuncts.push(expr),
            }
        }
        conjuncts.sort_by_cached_key(|&expr| graph.depends(expr, |node| matches!(node, Node::Load(..))));

        let mut evaluator = Self { steps: Vec::new(), load_indices: Vec::new(), conjuncts: Vec::new() };
        let mut places = vec![u32::MAX; graph.len()];
        for conjunct in conjuncts {
            let reached = graph.reached(&[conjunct]);
            for (expr, node) in graph.iter().take(conjunct.index() + 1) {
                if reached[expr.index()] && places[expr.index()] == u32::MAX {
                    let step = evaluator.step(node, graph.type_of(expr), |argument| places[argument.index()]);
                    places[expr.index()] = evaluator.steps.len() as u32;
                    evaluator.steps.push(step);
                }
            }
            let at = places[conjunct.index()] as usize;
            evaluator.conjuncts.push(Conjunct { end: evaluator.steps.len(), at });
        }
        evaluator
    }

    fn step(&mut self, node: &Node, ty: Type, place: impl Fn(Expr) -> u32) -> Step {
        match node {
            Node::Float(bits) => {
                let value = f64::from_bits(*bits);
                Step::Known(Value::Real(Real::rounded(value, value)))
            }
            Node::Int(value) => Step::Known(Value::Whole(Whole::of(i64::from(*value), i64::from(*value)))),
            Node::Bool(value) => Step::Known(Value::Truth(Truth::of(*value))),
            Node::Index(index) => Step::Index(*index),
            Node::Load(buffer, index) if !buffer.tangent => {
                let start = self.load_indices.len() as u32;
                self.load_indices.extend(index.iter().map(|&i| place(i)));
                Step::Load(buffer.capture, ty, start, self.load_indices.len() as u32)
            }
            Node::Unary(op, a) => Step::Unary(*op, place(*a)),
            Node::Binary(op, a, b) => Step::Binary(*op, place(*a), place(*b)),
            Node::Compare(op, a, b) => Step::Compare(*op, place(*a), place(*b)),
            Node::Select(c, a, b) => Step::Select(place(*c), place(*a), place(*b)),
            Node::Powi(a, exponent) => Step::Powi(place(*a), *exponent),
            Node::Random(..) => {
                Step::Known(Value::Real(Real { lo: 0.0, hi: 1.0 - 1.0 / 16_777_216.0, nan: false }))
            }
            Node::Load(..) | Node::Var(_) => Step::Known(Value::unknown(ty)),
        }
    }

    /// Room for this evaluator's values: with it [`Self::classify`] allocates nothing.
    pub fn scratch(&self) -> EvaluatorScratch {
        EvaluatorScratch {
            values: Vec::with_capacity(self.steps.len()),
            index: Vec::with_capacity(self.load_indices.len()),
        }
    }

    /// What the mask says about a box.
    pub fn classify(
        &self,
        scratch: &mut EvaluatorScratch,
        ranges: &Ranges,
        captured: &dyn Captured,
    ) -> Verdict {
        scratch.values.clear();
        let mut verdict = Verdict::Full;
        for conjunct in &self.conjuncts {
            for step in &self.steps[scratch.values.len()..conjunct.end] {
                let value = self.value(*step, scratch, ranges, captured);
                scratch.values.push(value);
            }
            match scratch.values[conjunct.at].truth() {
                Truth { may_hold: false, .. } => return Verdict::Empty,
                Truth { may_fail: true, .. } => verdict = Verdict::Partial,
                _ => {}
            }
        }
        verdict
    }

    fn value(
        &self,
        step: Step,
        scratch: &mut EvaluatorScratch,
        ranges: &Ranges,
        captured: &dyn Captured,
    ) -> Value {
        let EvaluatorScratch { values, index } = scratch;
        let at = |place: u32| values[place as usize];
        match step {
            Step::Known(value) => value,
            Step::Index(index) => Value::Whole(index_range(index, ranges)),
            Step::Load(capture, ty, start, end) => {
                index.clear();
                index.extend(self.load_indices[start as usize..end as usize].iter().map(|&i| match at(i) {
                    Value::Whole(Whole { lo, hi }) => [lo, hi],
                    _ => [i64::MIN, i64::MAX],
                }));
                loaded(ty, captured.range(capture, index))
            }
            Step::Unary(op, a) => Value::unary(op, at(a)),
            Step::Binary(op, a, b) => Value::binary(op, at(a), at(b), a == b),
            Step::Compare(op, a, b) => Value::compare(op, at(a), at(b), a == b),
            Step::Select(c, a, b) => Value::select(at(c), at(a), at(b)),
            Step::Powi(a, exponent) => Value::powi(at(a), exponent),
        }
    }
}

fn index_range(index: Index, ranges: &Ranges) -> Whole {
    let axis = |axes: &[[i64; 2]; MAX_RANK], a: u8| axes.get(usize::from(a)).copied();
    let range = match index {
        Index::Batch => Some(ranges.batch),
        Index::Head => Some(ranges.head),
        Index::HeadKv => Some(ranges.head_kv),
        Index::Query => Some(ranges.query),
        Index::Key => Some(ranges.key),
        Index::QueryAxis(a) => axis(&ranges.query_axis, a),
        Index::KeyAxis(a) => axis(&ranges.key_axis, a),
        Index::Lane | Index::Dim => None,
    };
    range.map_or(Whole::UNKNOWN, |[lo, hi]| Whole::of(lo, hi))
}

fn loaded(ty: Type, range: Option<[f64; 2]>) -> Value {
    match (ty, range) {
        // Not where either is NaN.
        (Type::F, Some([lo, hi])) if lo <= hi => Value::Real(Real::rounded(lo, hi)),
        (Type::I, Some([lo, hi])) if lo <= hi => Value::Whole(Whole::of(lo.floor() as i64, hi.ceil() as i64)),
        _ => Value::unknown(ty),
    }
}
