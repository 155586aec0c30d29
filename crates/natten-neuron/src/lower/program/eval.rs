//! Expressions of a program as instructions: each node of the graph becomes one or two, on tiles of f32 in SBUF. What is
//! of indices alone is a table that the plan computes; what loads from captured tensors by such indices, one that the
//! launcher gathers; what is the same for a row, one number a partition.

use std::collections::BTreeMap;

use natten_core::program::{Binary, Compare, Expr, Graph, Lowered, Node, Type, Unary, Var};
use natten_core::{Error, Result, Role};

use super::emitter::Emitter;
use super::site::{Site, has_alu};
use crate::NAME;
use crate::ir::{Alu, Engine, Function, Op, Operand, View};

/// What an expression is on the machine.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A number.
    Const(f32),
    /// One a row.
    Row(View),
    /// One a pair.
    Tile(View),
}

/// The evaluation of some expressions on a block.
#[derive(Debug)]
pub(super) struct Scope<'s> {
    /// The pairs.
    pub(super) site: &'s Site<'s>,
    /// The functions.
    pub(super) lowered: &'s Lowered,
    /// Scores and their like.
    pub(super) leaves: BTreeMap<Var, Value>,
    memo: BTreeMap<Expr, Value>,
    uses: BTreeMap<Expr, usize>,
    mask: Option<Option<View>>,
}

impl<'s> Scope<'s> {
    /// Nothing is evaluated yet.
    pub(super) fn new(site: &'s Site<'s>, lowered: &'s Lowered, leaves: BTreeMap<Var, Value>) -> Self {
        Self { site, lowered, leaves, memo: BTreeMap::new(), uses: BTreeMap::new(), mask: None }
    }

    /// Announces the expressions that will be asked for, so that scratch is given back after the last use.
    pub(super) fn begin(&mut self, roots: &[Expr]) {
        let graph = &self.lowered.graph;
        let reached = graph.reached(roots);
        for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
            if !Site::is_known(graph, expr) && !matches!(node, Node::Load(..)) {
                for argument in node.arguments() {
                    *self.uses.entry(argument).or_default() += 1;
                }
            }
        }
        for root in roots {
            *self.uses.entry(*root).or_default() += 1;
        }
    }
}

/// Whether the machine has what an expression needs.
///
/// # Errors
/// [`Error::Unsupported`], naming the operation.
pub(super) fn check(graph: &Graph, expr: Expr) -> Result<()> {
    let refuse = |what: String, why: &str| Err(Error::unsupported(NAME, what, why));
    let reached = graph.reached(&[expr]);
    for (at, node) in graph.iter().filter(|(at, _)| reached[at.index()]) {
        if Site::is_known(graph, at) {
            continue;
        }
        let is_int = |expr: Expr| graph.type_of(expr) == Type::I;
        match node {
            Node::Load(_, index) if index.iter().any(|&index| !Site::is_known(graph, index)) => {
                return refuse(
                    "a load at a captured index".into(),
                    "tables are laid out before their numbers are known",
                );
            }
            Node::Unary(op @ (Unary::Expm1 | Unary::Log1p | Unary::Floor | Unary::Sin | Unary::Cos), _) => {
                return refuse(
                    format!("{op:?} of scores"),
                    "the scalar engine has no such function of full range",
                );
            }
            Node::Random(..) => {
                return refuse(
                    "random numbers of a captured seed".into(),
                    "the plan draws them; give the seed as a number",
                );
            }
            Node::Unary(op @ (Unary::ToInt | Unary::LaneSum | Unary::LaneHalf | Unary::LanePair), _) => {
                return refuse(format!("{op:?} of scores"), "the engines compute in f32, element by element");
            }
            Node::Binary(op, a, _) if !has_alu(*op) || (is_int(*a) && matches!(op, Binary::Div)) => {
                return refuse(
                    format!("{op:?} of captured numbers"),
                    "the vector engine has no such operation",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

impl Emitter<'_> {
    /// Evaluates an expression. `rows` has the numbers of the rows.
    ///
    /// # Errors
    /// Those of [`check`].
    pub(super) fn value(
        &mut self,
        scope: &mut Scope<'_>,
        rows: &BTreeMap<Var, Value>,
        expr: Expr,
    ) -> Result<Value> {
        if let Some(value) = scope.memo.get(&expr) {
            return Ok(value.clone());
        }
        let graph = &scope.lowered.graph;
        let node = graph.node(expr).clone();
        let value = match &node {
            _ if Site::is_known(graph, expr) => self.known(scope, expr)?,
            Node::Var(var) => match scope.leaves.get(var).or_else(|| rows.get(var)) {
                Some(value) => value.clone(),
                None => Value::Const(0.0),
            },
            Node::Load(buffer, index) => {
                let width = index.iter().map(|&index| scope.site.width(graph, index)).max().unwrap_or(1);
                let shape = self.problem.program().captures()[usize::from(buffer.capture)].shape.clone();
                let places = scope.site.elements(graph, &shape, index, width)?;
                let role = match buffer.tangent {
                    true => Role::TangentCapture(buffer.capture),
                    false => Role::Capture(buffer.capture),
                };
                let value = self.fresh(scope, width == 1);
                if let Value::Row(view) | Value::Tile(view) = &value {
                    self.load_gathered(role, places, view.clone());
                }
                value
            }
            _ => self.operation(scope, rows, &node)?,
        };
        scope.memo.insert(expr, value.clone());
        Ok(value)
    }

    fn fresh(&mut self, scope: &Scope<'_>, is_row: bool) -> Value {
        let rows = scope.site.rows();
        match is_row {
            true => Value::Row(self.row(rows, 1)),
            false => Value::Tile(self.tile(rows, scope.site.columns())),
        }
    }

    /// A table that the plan computes; a number where all are equal.
    fn known(&mut self, scope: &Scope<'_>, expr: Expr) -> Result<Value> {
        let graph = &scope.lowered.graph;
        if let Some(number) = graph.as_float(expr) {
            return Ok(Value::Const(number as f32));
        }
        let width = scope.site.width(graph, expr);
        let table: Vec<f32> = scope.site.known(graph, expr, width)?.into_iter().map(|x| x as f32).collect();
        if let Some(&first) = table.first()
            && table.iter().all(|x| x.to_bits() == first.to_bits())
        {
            return Ok(Value::Const(first));
        }
        let value = self.fresh(scope, width == 1);
        if let Value::Row(view) | Value::Tile(view) = &value {
            self.load_known(&table, view.clone());
        }
        Ok(value)
    }

    fn operation(
        &mut self,
        scope: &mut Scope<'_>,
        rows: &BTreeMap<Var, Value>,
        node: &Node,
    ) -> Result<Value> {
        let arguments = node.arguments();
        let mut values = Vec::with_capacity(arguments.len());
        for &argument in &arguments {
            values.push(self.value(scope, rows, argument)?);
        }
        let is_row = !values.iter().any(|value| matches!(value, Value::Tile(_)));
        let result = match (node, &values[..]) {
            (Node::Unary(Unary::ToFloat | Unary::StopGrad, _), [a]) => match a {
                // A copy, since the argument's scratch is given back.
                Value::Tile(view) => {
                    let dst = self.tile(view.parts, view.len());
                    self.b.copy(Engine::Vector, dst.clone(), view.clone());
                    Value::Tile(dst)
                }
                other => other.clone(),
            },
            (Node::Unary(op, _), [a]) => {
                let dst = self.fresh(scope, is_row);
                self.unary(*op, a, &dst);
                dst
            }
            (Node::Binary(op, ..), [a, b]) => {
                let dst = self.fresh(scope, is_row);
                self.binary(*op, a, b, &dst);
                dst
            }
            (Node::Compare(op, ..), [a, b]) => {
                let op = match op {
                    Compare::Lt => Alu::IsLt,
                    Compare::Le => Alu::IsLe,
                    Compare::Eq => Alu::IsEq,
                    Compare::Ne => Alu::IsNe,
                };
                let dst = self.fresh(scope, is_row);
                self.alu(op, a, b, &dst);
                dst
            }
            (Node::Select(..), [c, a, b]) => {
                let dst = self.fresh(scope, is_row);
                let (Value::Row(to) | Value::Tile(to)) = &dst else { return Ok(dst) };
                let other = self.spread(a, to);
                let condition = self.spread(c, to);
                self.put(b, to);
                let predicate = self.predicate(&condition, false);
                let op = Op::CopyPredicated { dst: to.clone(), src: other.clone(), predicate };
                self.b.push(Engine::Vector, op);
                for (view, value) in [(other, a), (condition, c)] {
                    if !matches!(value, Value::Tile(own) | Value::Row(own) if *own == view) {
                        self.release(&view);
                    }
                }
                dst
            }
            (Node::Powi(_, exponent), [a]) => {
                let dst = self.fresh(scope, is_row);
                self.power(a, *exponent, &dst);
                dst
            }
            _ => return Err(Error::unsupported(NAME, format!("{node:?}"), "no engine has this operation")),
        };
        for argument in arguments {
            self.used(scope, argument);
        }
        Ok(result)
    }

    /// Counts a use; gives scratch back after the last.
    pub(super) fn used(&mut self, scope: &mut Scope<'_>, expr: Expr) {
        let Some(uses) = scope.uses.get_mut(&expr) else { return };
        *uses = uses.saturating_sub(1);
        let is_leaf = matches!(scope.lowered.graph.node(expr), Node::Var(_));
        if *uses == 0
            && !is_leaf
            && let Some(Value::Tile(view)) = scope.memo.remove(&expr)
        {
            self.release(&view);
        }
    }

    /// Gives back all scratch of a scope but its leaves.
    pub(super) fn end(&mut self, scope: &mut Scope<'_>) {
        for (expr, value) in std::mem::take(&mut scope.memo) {
            let is_leaf = matches!(scope.lowered.graph.node(expr), Node::Var(_));
            if let Value::Tile(view) = value
                && !is_leaf
            {
                self.release(&view);
            }
        }
    }

    fn unary(&mut self, op: Unary, a: &Value, dst: &Value) {
        let (Value::Row(to) | Value::Tile(to)) = dst else { return };
        let from = self.spread(a, to);
        let function = match op {
            Unary::Abs => Function::Abs,
            Unary::Exp | Unary::Exp2 => Function::Exp,
            Unary::Log | Unary::Log2 => Function::Log,
            Unary::Sqrt => Function::Sqrt,
            Unary::Rsqrt => Function::Rsqrt,
            Unary::Tanh => Function::Tanh,
            Unary::Sigmoid => Function::Sigmoid,
            Unary::Softplus => Function::Softplus,
            Unary::Erf => Function::Erf,
            Unary::Not => {
                let first = (Alu::Subtract, Operand::Const(1.0), true);
                self.b.push(
                    Engine::Vector,
                    Op::TensorScalar { dst: to.clone(), data: from, first, second: None },
                );
                return;
            }
            _ => {
                self.b.tensor_scalar(to.clone(), Alu::Multiply, from, Operand::Const(-1.0));
                return;
            }
        };
        let scale = if op == Unary::Exp2 { std::f32::consts::LN_2 } else { 1.0 };
        self.b.activation(to.clone(), function, from, None, Operand::Const(scale), None);
        if op == Unary::Log2 {
            let factor = Operand::Const(std::f32::consts::LOG2_E);
            self.b.tensor_scalar(to.clone(), Alu::Multiply, to.clone(), factor);
        }
    }

    fn binary(&mut self, op: Binary, a: &Value, b: &Value, dst: &Value) {
        let op = match op {
            Binary::Add => Alu::Add,
            Binary::Sub => Alu::Subtract,
            Binary::Mul => Alu::Multiply,
            Binary::Min => Alu::Min,
            Binary::Max => Alu::Max,
            Binary::And => Alu::LogicalAnd,
            Binary::Or => Alu::LogicalOr,
            _ => return self.divide(a, b, dst),
        };
        self.alu(op, a, b, dst);
    }

    fn divide(&mut self, a: &Value, b: &Value, dst: &Value) {
        match b {
            Value::Const(divisor) => self.alu(Alu::Multiply, a, &Value::Const(1.0 / divisor), dst),
            Value::Row(view) | Value::Tile(view) => {
                let inverse = match b {
                    Value::Row(_) => Value::Row(self.row(view.parts, 1)),
                    _ => Value::Tile(self.tile(view.parts, view.len())),
                };
                let (Value::Row(to) | Value::Tile(to)) = &inverse else { return };
                self.b.push(Engine::Vector, Op::Reciprocal { dst: to.clone(), data: view.clone() });
                self.alu(Alu::Multiply, a, &inverse, dst);
                self.release(to);
            }
        }
    }

    /// `dst = op(a, b)`.
    fn alu(&mut self, op: Alu, a: &Value, b: &Value, dst: &Value) {
        let (Value::Row(to) | Value::Tile(to)) = dst else { return };
        let scalar = |value: &Value| match value {
            Value::Const(number) => Some(Operand::Const(*number)),
            Value::Row(view) => Some(Operand::Row(view.clone())),
            Value::Tile(_) => None,
        };
        let whole = |value: &Value| match value {
            Value::Tile(view) => Some(view.clone()),
            Value::Row(view) if to.len() == 1 => Some(view.clone()),
            _ => None,
        };
        let op = match (whole(a), whole(b)) {
            (Some(a), Some(b)) => Op::TensorTensor { dst: to.clone(), a, b, op },
            (Some(data), None) => {
                let Some(operand) = scalar(b) else { return };
                Op::TensorScalar { dst: to.clone(), data, first: (op, operand, false), second: None }
            }
            (None, Some(data)) => {
                let Some(operand) = scalar(a) else { return };
                Op::TensorScalar { dst: to.clone(), data, first: (op, operand, true), second: None }
            }
            (None, None) => {
                let data = self.spread(a, to);
                let Some(operand) = scalar(b) else { return };
                Op::TensorScalar { dst: to.clone(), data, first: (op, operand, false), second: None }
            }
        };
        self.b.push(Engine::Vector, op);
    }

    fn power(&mut self, a: &Value, exponent: i32, dst: &Value) {
        let (Value::Row(to) | Value::Tile(to)) = dst else { return };
        let base = self.spread(a, to);
        self.fill(to.clone(), 1.0);
        // From the highest bit down: square, and multiply where the bit is set.
        let magnitude = exponent.unsigned_abs();
        for bit in (0..u32::BITS - magnitude.leading_zeros()).rev() {
            self.b.tensor_tensor(to.clone(), Alu::Multiply, to.clone(), to.clone());
            if magnitude >> bit & 1 == 1 {
                self.b.tensor_tensor(to.clone(), Alu::Multiply, to.clone(), base.clone());
            }
        }
        if exponent < 0 {
            self.b.push(Engine::Vector, Op::Reciprocal { dst: to.clone(), data: to.clone() });
        }
    }

    /// A value as a view of the shape of `like`: itself, or spread out in scratch.
    pub(super) fn spread(&mut self, value: &Value, like: &View) -> View {
        match value {
            Value::Tile(view) => view.clone(),
            Value::Row(view) if like.len() == 1 => view.clone(),
            value => {
                let tile = match like.len() {
                    1 => self.row(like.parts, 1),
                    columns => self.tile(like.parts, columns),
                };
                self.put(value, &tile);
                tile
            }
        }
    }

    /// Writes a value into a view.
    fn put(&mut self, value: &Value, to: &View) {
        match value {
            Value::Const(number) => self.fill(to.clone(), *number),
            Value::Row(view) if to.len() > 1 => {
                self.fill(to.clone(), 0.0);
                self.b.tensor_scalar(to.clone(), Alu::Add, to.clone(), Operand::Row(view.clone()));
            }
            Value::Row(view) | Value::Tile(view) => {
                self.b.copy(Engine::Vector, to.clone(), view.clone());
            }
        }
    }

    /// The predicate of the pairs that count; None where all do.
    ///
    /// # Errors
    /// Those of [`check`].
    pub(super) fn counts(
        &mut self,
        scope: &mut Scope<'_>,
        rows: &BTreeMap<Var, Value>,
    ) -> Result<Option<View>> {
        if let Some(mask) = &scope.mask {
            return Ok(mask.clone());
        }
        let (height, width) = (scope.site.rows(), scope.site.columns());
        let visible = scope.site.visible();
        let graph = &scope.lowered.graph;
        let mask = match scope.lowered.mask {
            Some(mask) if Site::is_known(graph, mask) => {
                let known = scope.site.known(graph, mask, width)?;
                let holds: Vec<bool> = known
                    .iter()
                    .enumerate()
                    .map(|(at, &x)| x != 0.0 && visible.as_ref().is_none_or(|visible| visible[at]))
                    .collect();
                (!holds.iter().all(|&holds| holds)).then(|| self.mask(&holds, height, width))
            }
            Some(mask) => {
                let value = self.value(scope, rows, mask)?;
                let like = self.tile(height, width);
                self.put(&value, &like);
                if let Some(visible) = visible {
                    let table: Vec<f32> = visible.iter().map(|&x| f32::from(u8::from(x))).collect();
                    let known = self.tile(height, width);
                    self.load_known(&table, known.clone());
                    self.b.tensor_tensor(like.clone(), Alu::Multiply, like.clone(), known.clone());
                    self.release(&known);
                }
                let predicate = self.predicate(&like, true);
                self.release(&like);
                Some(predicate)
            }
            None => visible.map(|visible| self.mask(&visible, height, width)),
        };
        scope.mask = Some(mask.clone());
        Ok(mask)
    }

    /// An expression of pairs as a tile of its own, `fill` where pairs do not count. The caller gives it back.
    ///
    /// # Errors
    /// Those of [`check`].
    pub(super) fn masked(
        &mut self,
        scope: &mut Scope<'_>,
        rows: &BTreeMap<Var, Value>,
        expr: Expr,
        fill: f32,
    ) -> Result<View> {
        let value = self.value(scope, rows, expr)?;
        let tile = self.tile(scope.site.rows(), scope.site.columns());
        match self.counts(scope, rows)? {
            None => self.put(&value, &tile),
            Some(predicate) => {
                let src = self.spread(&value, &tile);
                self.fill(tile.clone(), fill);
                let op = Op::CopyPredicated { dst: tile.clone(), src: src.clone(), predicate };
                self.b.push(Engine::Vector, op);
                if !matches!(value, Value::Tile(_)) {
                    self.release(&src);
                }
            }
        }
        self.used(scope, expr);
        Ok(tile)
    }
}
