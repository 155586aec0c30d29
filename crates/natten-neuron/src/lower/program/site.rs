//! The pairs of a score tile: which query a row is, which key a column, who sees whom; and expressions of nothing else
//! than that, evaluated when the plan is made.

use std::collections::HashMap;

use natten_core::geometry::TileBox;
use natten_core::program::{Binary, Expr, Graph, Index, Node, Type, Unary, numeric, random};
use natten_core::{Error, Problem, Result};

use super::super::layout::Tokens;
use super::super::windows::Block;
use crate::NAME;

/// The pairs of a query box and some keys, of one head.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// The problem.
    pub(super) problem: &'a Problem,
    /// The batch entry.
    pub(super) batch: usize,
    /// The query head.
    pub(super) head: usize,
    /// The queries.
    pub(super) queries: TileBox,
    /// The keys.
    pub(super) block: &'a Block,
    /// Token coordinates on the padded axes, and positions in the group, of every row.
    rows: Vec<Token>,
    columns: Vec<Token>,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    number: usize,
    at: [usize; 3],
    position: [usize; 3],
}

impl<'a> Site<'a> {
    /// The pairs of a query box and a block.
    pub(super) fn new(
        problem: &'a Problem,
        batch: usize,
        head: usize,
        queries: TileBox,
        block: &'a Block,
    ) -> Self {
        let axes = problem.neighborhood().axes();
        let rank = problem.neighborhood().rank();
        let token = |tile: &TileBox, index: usize, lens: [usize; 3]| {
            let position = tile.position(index);
            let at: [usize; 3] = std::array::from_fn(|a| axes[a].token(tile.group[a], position[a]));
            Token { number: (at[0] * lens[1] + at[1]) * lens[2] + at[2], at, position }
        };
        let query_lens = axes.map(|axis| axis.query_len());
        let key_lens = axes.map(|axis| axis.key_len());
        let mut columns = Vec::with_capacity(block.len());
        for chunk in &block.chunks {
            match chunk {
                Tokens::Box(keys) => {
                    columns.extend((0..keys.volume()).map(|index| token(keys, index, key_lens)));
                }
                Tokens::Range(start, len) => columns.extend((*start..start + len).map(|n| {
                    let number = key_lens.iter().product::<usize>() + n;
                    let mut left = number;
                    let mut at = [0; 3];
                    for a in (4 - rank..3).rev() {
                        at[a] = left % key_lens[a];
                        left /= key_lens[a];
                    }
                    at[3 - rank] = left;
                    Token { number, at, position: [n, 0, 0] }
                })),
            }
        }
        let rows = (0..queries.volume()).map(|index| token(&queries, index, query_lens)).collect();
        Self { problem, batch, head, queries, block, rows, columns }
    }

    /// Queries.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Keys.
    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Whether each pair is visible, row by row; None where all are.
    pub(super) fn visible(&self) -> Option<Vec<bool>> {
        if !self.block.is_edge {
            return None;
        }
        let axes = self.problem.neighborhood().axes();
        let sees = self.rows.iter().flat_map(|query| {
            let windows: [_; 3] =
                std::array::from_fn(|a| axes[a].window(self.queries.group[a], query.position[a]));
            self.columns.iter().map(move |key| (0..3).all(|a| windows[a].contains(&key.position[a])))
        });
        Some(sees.collect())
    }

    /// The entry of the bias table that is added to each pair, row by row; of invisible pairs some entry.
    pub(super) fn bias_entries(&self) -> Vec<u32> {
        let neighborhood = self.problem.neighborhood();
        let kernel = neighborhood.axes().map(|axis| axis.window_len());
        let rank = neighborhood.rank();
        let mut entries = Vec::with_capacity(self.rows() * self.columns());
        for query in &self.rows {
            for key in &self.columns {
                let mut entry = self.head;
                for (a, &len) in kernel.iter().enumerate().skip(3 - rank) {
                    let offset = (len - 1 + key.position[a]).saturating_sub(query.position[a]);
                    entry = entry * (2 * len - 1) + offset.min(2 * len - 2);
                }
                entries.push(entry as u32);
            }
        }
        entries
    }

    /// Whether an expression is of indices and constants alone.
    pub(super) fn is_known(graph: &Graph, expr: Expr) -> bool {
        !graph.depends(expr, |node| matches!(node, Node::Var(_) | Node::Load(..)))
    }

    /// Whether an expression is the same for every key.
    pub(super) fn is_of_row(graph: &Graph, expr: Expr) -> bool {
        !graph.depends(expr, |node| {
            matches!(node, Node::Index(Index::Key | Index::KeyAxis(_)) | Node::Random(..))
        })
    }

    /// The number of columns that a table of an expression has: 1 where it is the same for every key.
    pub(super) fn width(&self, graph: &Graph, expr: Expr) -> usize {
        if Self::is_of_row(graph, expr) { 1 } else { self.columns() }
    }

    /// The values of a known expression, row by row, of the first `width` columns. Conditions are 0 and 1.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for nodes that no expression of pairs has.
    pub(super) fn known(&self, graph: &Graph, expr: Expr, width: usize) -> Result<Vec<f64>> {
        let mut memo = HashMap::new();
        self.evaluate(graph, expr, width, &mut memo)?;
        Ok(memo.remove(&expr).unwrap_or_default())
    }

    /// The row-major number of the element that a load reads, pair by pair, every index clamped into its axis.
    ///
    /// # Errors
    /// As [`known`](Self::known).
    pub(super) fn elements(
        &self,
        graph: &Graph,
        shape: &[usize],
        index: &[Expr],
        width: usize,
    ) -> Result<Vec<u32>> {
        let mut flat = vec![0; self.rows() * width];
        for (&extent, &index) in shape.iter().zip(index) {
            let values = self.known(graph, index, width)?;
            for (flat, value) in flat.iter_mut().zip(values) {
                *flat =
                    *flat * extent as u32 + (value.max(0.0) as usize).min(extent.saturating_sub(1)) as u32;
            }
        }
        Ok(flat)
    }

    fn evaluate(
        &self,
        graph: &Graph,
        expr: Expr,
        width: usize,
        memo: &mut HashMap<Expr, Vec<f64>>,
    ) -> Result<()> {
        if memo.contains_key(&expr) {
            return Ok(());
        }
        let node = graph.node(expr);
        let arguments = node.arguments();
        for &argument in &arguments {
            self.evaluate(graph, argument, width, memo)?;
        }
        let of = |n: usize| &memo[&arguments[n]];
        let is_int = graph.type_of(expr) == Type::I;
        let truth = |holds: bool| f64::from(u8::from(holds));
        let refuse = || Error::unsupported(NAME, format!("{node:?}"), "it is no expression of a pair");
        let count = self.rows() * width;
        let values: Vec<f64> = match node {
            Node::Float(bits) => vec![f64::from_bits(*bits); count],
            Node::Int(value) => vec![f64::from(*value); count],
            Node::Bool(value) => vec![truth(*value); count],
            Node::Index(index) => (0..count).map(|at| self.index(*index, at / width, at % width)).collect(),
            Node::Unary(op, _) => {
                let apply = |x: f64| -> Option<f64> {
                    Some(match op {
                        Unary::ToFloat | Unary::StopGrad => x,
                        Unary::ToInt if x.is_nan() => 0.0,
                        Unary::ToInt => f64::from(x.floor() as i32),
                        Unary::Not => 1.0 - x,
                        Unary::Neg if is_int => f64::from((x as i32).wrapping_neg()),
                        Unary::Abs if is_int => f64::from((x as i32).wrapping_abs()),
                        op => numeric::float_unary(*op, x)?,
                    })
                };
                of(0).iter().map(|&x| apply(x)).collect::<Option<_>>().ok_or_else(refuse)?
            }
            Node::Binary(op, a, _) => {
                let of_ints = graph.type_of(*a) != Type::F;
                let apply = |(&x, &y): (&f64, &f64)| match of_ints {
                    true => Some(f64::from(numeric::int_binary(*op, x as i32, y as i32))),
                    false => numeric::float_binary(*op, x, y),
                };
                of(0).iter().zip(of(1)).map(apply).collect::<Option<_>>().ok_or_else(refuse)?
            }
            Node::Compare(op, ..) => of(0).iter().zip(of(1)).map(|(x, y)| truth(op.of(x, y))).collect(),
            Node::Select(..) => {
                let chosen = of(1).iter().zip(of(2));
                of(0).iter().zip(chosen).map(|(&c, (&x, &y))| if c != 0.0 { x } else { y }).collect()
            }
            Node::Powi(_, exponent) => of(0).iter().map(|x| x.powi(*exponent)).collect(),
            Node::Random(..) => {
                let row = (self.batch * self.problem.heads() + self.head) as u64;
                (0..count)
                    .map(|at| {
                        let (query, key) = (&self.rows[at / width], &self.columns[at % width]);
                        let seed = [of(0)[at] as i32 as u32, of(1)[at] as i32 as u32];
                        random::uniform(seed, row, query.number as u64, key.number as u64)
                    })
                    .collect()
            }
            _ => return Err(refuse()),
        };
        memo.insert(expr, values);
        Ok(())
    }

    fn index(&self, index: Index, row: usize, column: usize) -> f64 {
        let axis = |a: u8| 3 - self.problem.neighborhood().rank() + usize::from(a);
        let value = match index {
            Index::Batch => self.batch,
            Index::Head => self.head,
            Index::HeadKv => self.head / self.problem.heads_per_kv(),
            Index::Query => self.rows[row].number,
            Index::Key => self.columns[column].number,
            Index::QueryAxis(a) => self.rows[row].at[axis(a)],
            Index::KeyAxis(a) => self.columns[column].at[axis(a)],
            _ => 0,
        };
        value as f64
    }
}

/// `Binary` operations of numbers that the vector engine has.
pub(super) const fn has_alu(op: Binary) -> bool {
    matches!(
        op,
        Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::Min
            | Binary::Max
            | Binary::And
            | Binary::Or
    )
}
