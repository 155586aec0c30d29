//! From expressions to a text that reads back as the same expressions.

use std::collections::HashMap;

use crate::program::Capture;
use crate::program::expr::{Binary, Buffer, Compare, Expr, Graph, Index, Node, Primal, Type, Unary, Var};

use super::names::{self, Function, Infix};
use super::{Level, MAX_TEXT};

/// The text of an expression. It reads back as the same node, as long as its variables are those of texts (those of
/// derivatives print as `g`, `shift` or `score'`) and it is within what a text may be. Derivatives share subexpressions
/// that a text must repeat, so a text beyond [`MAX_TEXT`] ends in `…` there.
pub(in crate::program) fn print(
    graph: &Graph,
    expr: Expr,
    captures: &[Capture],
    stage_names: &[String],
) -> String {
    let layouts = layouts(graph, &[expr], captures, stage_names);
    write(&layouts, expr, &HashMap::new())
}

/// Texts of several expressions that write once what they share. Every root has a label and becomes a list of lines,
/// each a name and a text: what it shares with others, under names made up here, and then the root under its label. A
/// root whose label can be a name (`weight`, `weight'`, but not `a[h]`) goes by it in the texts of the others.
pub(in crate::program) fn list(
    graph: &Graph,
    roots: &[(&str, Expr)],
    captures: &[Capture],
    stage_names: &[String],
) -> Vec<Vec<(String, String)>> {
    let exprs: Vec<Expr> = roots.iter().map(|&(_, expr)| expr).collect();
    let layouts = layouts(graph, &exprs, captures, stage_names);
    let uses = uses(&layouts, &exprs);
    let is_taken = |name: &str| {
        let name = name.trim_end_matches('\'');
        captures.iter().any(|capture| capture.name == name) || stage_names.iter().any(|stage| stage == name)
    };
    let is_name = |label: &str| names::is_identifier(label.trim_end_matches('\'')) && !is_taken(label);

    let mut names: HashMap<Expr, String> = HashMap::new();
    let mut lengths: HashMap<Expr, usize> = HashMap::new();
    let mut shared: Vec<Expr> = Vec::new();
    let mut known: Vec<Expr> = layouts.keys().copied().collect();
    known.sort_unstable();
    for expr in known {
        let length = layouts[&expr].pieces.iter().map(|piece| match piece {
            Piece::Mark(_) => 0,
            Piece::Word(_) => 1,
            Piece::Inner(inner) | Piece::Side(inner, _) => lengths[inner],
        });
        let length = length.fold(0, usize::saturating_add);
        let has_name = length >= WORTH_A_NAME && uses.get(&expr).is_some_and(|&uses| uses >= 2);
        lengths.insert(expr, if has_name { 1 } else { length });
        match roots.iter().find(|(label, root)| *root == expr && is_name(label)) {
            Some((label, _)) if has_name => _ = names.insert(expr, (*label).to_owned()),
            None if has_name => shared.push(expr),
            _ => {}
        }
    }

    let mut made_up = (1u32..).map(|number| format!("t{number}")).filter(|name| !is_taken(name));
    let mut lists = Vec::new();
    for &(label, root) in roots {
        let mut lines = Vec::new();
        let reached = graph.reached(&[root]);
        for &expr in shared.iter().filter(|expr| reached[expr.index()]) {
            if !names.contains_key(&expr) {
                let name = made_up.next().unwrap_or_default();
                lines.push((name.clone(), write(&layouts, expr, &names)));
                names.insert(expr, name);
            }
        }
        let text = match names.get(&root) {
            Some(name) if name != label => name.clone(),
            _ => write(&layouts, root, &names),
        };
        lines.push((label.to_owned(), text));
        lists.push(lines);
    }
    lists
}

/// The least words of a text that is worth a name.
const WORTH_A_NAME: usize = 4;

/// How the texts of `roots` use each expression: as often as it is written, or once as a root.
fn uses(layouts: &HashMap<Expr, Layout>, roots: &[Expr]) -> HashMap<Expr, usize> {
    let mut uses: HashMap<Expr, usize> = HashMap::new();
    let mut todo = roots.to_vec();
    while let Some(expr) = todo.pop() {
        let count = uses.entry(expr).or_default();
        *count += 1;
        if *count == 1 {
            todo.extend(layouts[&expr].pieces.iter().filter_map(|piece| match piece {
                Piece::Inner(inner) | Piece::Side(inner, _) => Some(*inner),
                Piece::Mark(_) | Piece::Word(_) => None,
            }));
        }
    }
    uses
}

/// How everything is written that `roots` are made of.
fn layouts(
    graph: &Graph,
    roots: &[Expr],
    captures: &[Capture],
    stage_names: &[String],
) -> HashMap<Expr, Layout> {
    let mut printer = Printer { graph, captures, stage_names, scratch: None };
    let reached = graph.reached(roots);
    let mut layouts: HashMap<Expr, Layout> = HashMap::new();
    for (at, _) in graph.iter().filter(|(at, _)| reached[at.index()]) {
        let layout = printer.layout(at, &layouts);
        layouts.insert(at, layout);
    }
    layouts
}

/// The text of an expression, other expressions that have names written as those.
fn write(layouts: &HashMap<Expr, Layout>, root: Expr, names: &HashMap<Expr, String>) -> String {
    // A stack of its own: a sum may be as deep as a text is long.
    let mut text = String::new();
    let mut todo = vec![Piece::Inner(root)];
    while let Some(piece) = todo.pop() {
        let (expr, level) = match piece {
            Piece::Mark(mark) => {
                text.push_str(mark);
                continue;
            }
            Piece::Word(word) => {
                text.push_str(&word);
                continue;
            }
            Piece::Inner(expr) => (expr, Level::Or),
            Piece::Side(expr, level) => (expr, level),
        };
        if text.len() > MAX_TEXT {
            return text + "…";
        }
        if let Some(name) = names.get(&expr).filter(|_| expr != root) {
            text.push_str(name);
            continue;
        }
        let Some(layout) = layouts.get(&expr) else { continue };
        if layout.level < level {
            text.push('(');
            todo.push(Piece::Mark(")"));
        }
        todo.extend(layout.pieces.iter().rev().cloned());
    }
    text
}

/// How an expression is written.
struct Layout {
    pieces: Vec<Piece>,
    level: Level,
    /// How deep parentheses and arguments nest in it.
    depth: usize,
    /// Whether a sign in front of it is the sign of all of it: signs move out of products.
    takes_sign: bool,
}

#[derive(Clone)]
enum Piece {
    Mark(&'static str),
    Word(String),
    /// An expression between delimiters.
    Inner(Expr),
    /// An expression in parentheses if it binds less tight than this.
    Side(Expr, Level),
}

struct Printer<'a> {
    graph: &'a Graph,
    captures: &'a [Capture],
    stage_names: &'a [String],
    /// A copy of the graph, to try expansions in.
    scratch: Option<Graph>,
}

impl Printer<'_> {
    /// How an expression is written whose arguments are known.
    fn layout(&mut self, expr: Expr, known: &HashMap<Expr, Layout>) -> Layout {
        let (level, pieces) = self.pieces(expr, known);
        let depth = |piece: &Piece| match piece {
            Piece::Mark(_) | Piece::Word(_) => 0,
            Piece::Inner(expr) => known.get(expr).map_or(0, |layout| layout.depth + 1),
            Piece::Side(expr, level) => {
                known.get(expr).map_or(0, |layout| layout.depth + usize::from(layout.level < *level))
            }
        };
        let depth = pieces.iter().map(depth).max().unwrap_or(0);
        let takes_sign = match (self.graph.node(expr), pieces.first()) {
            (Node::Binary(Binary::Mul | Binary::Div, ..), Some(Piece::Side(first, level)))
                if self.graph.type_of(expr) == Type::F && self.graph.as_float(*first).is_none() =>
            {
                let is_signed = |first: &Layout| match first.level {
                    Level::Product => first.takes_sign,
                    inner => inner == Level::Atom || inner < *level,
                };
                known.get(first).is_some_and(is_signed)
            }
            _ => false,
        };
        Layout { pieces, level, depth, takes_sign }
    }

    fn pieces(&mut self, expr: Expr, known: &HashMap<Expr, Layout>) -> (Level, Vec<Piece>) {
        match *self.graph.node(expr) {
            Node::Float(bits) => float(f64::from_bits(bits)),
            Node::Int(value) => {
                (if value < 0 { Level::Prefix } else { Level::Atom }, vec![Piece::Word(value.to_string())])
            }
            Node::Bool(value) => (Level::Atom, vec![Piece::Mark(if value { "true" } else { "false" })]),
            Node::Var(var) => (Level::Atom, vec![Piece::Word(self.var(var))]),
            Node::Index(index) => (Level::Atom, vec![Piece::Word(index_name(index))]),
            Node::Load(buffer, ref index) => (Level::Atom, self.load(buffer, index)),
            Node::Unary(Unary::Neg, a) if known.get(&a).is_some_and(|layout| layout.takes_sign) => {
                (Level::Product, vec![Piece::Mark("-"), Piece::Side(a, Level::Product)])
            }
            Node::Unary(Unary::Neg, a) => {
                (Level::Prefix, vec![Piece::Mark("-"), Piece::Side(a, Level::Prefix)])
            }
            Node::Unary(Unary::Not, a) => {
                (Level::Prefix, vec![Piece::Mark("!"), Piece::Side(a, Level::Prefix)])
            }
            Node::Unary(op, a) => call(unary_function(op), &[a]),
            Node::Binary(Binary::Mul, a, b) if a == b && self.is_shared(a) => powi(a, 2),
            Node::Binary(op @ (Binary::Min | Binary::Max), a, b) => call(Function::Either(op), &[a, b]),
            Node::Binary(op @ (Binary::And | Binary::Or), a, b) => infix(Infix::Logic(op), a, b, true, known),
            Node::Binary(op @ (Binary::Add | Binary::Mul), a, b) => {
                infix(Infix::Arithmetic(op), a, b, true, known)
            }
            Node::Binary(op @ (Binary::Sub | Binary::Div | Binary::FloorDiv | Binary::Mod), a, b) => {
                infix(Infix::Arithmetic(op), a, b, false, known)
            }
            Node::Binary(op, a, b) => call(Function::Integer(op), &[a, b]),
            Node::Compare(op, a, b) => infix(Infix::Compare(op), a, b, false, known),
            Node::Select(condition, a, b) => match self.as_call(expr, condition, a, b) {
                Some((function, arguments)) => call(function, &arguments),
                None => call(Function::Select, &[condition, a, b]),
            },
            Node::Powi(a, exponent) => powi(a, exponent),
            Node::Random(low, high) => match (self.graph.as_int(low), self.graph.as_int(high)) {
                (Some(low), Some(high)) => {
                    let seed = u64::from(high as u32) << 32 | u64::from(low as u32);
                    (Level::Atom, vec![Piece::Word(format!("random({seed})"))])
                }
                _ => call(Function::Random, &[low, high]),
            },
        }
    }

    /// Whether a square is better written without repeating what it is of. `powi` is of numbers only.
    fn is_shared(&self, a: Expr) -> bool {
        self.graph.type_of(a) == Type::F && !self.graph.node(a).arguments().is_empty()
    }

    /// The function that a choice is the expansion of: `relu`, `logaddexp`. Written out, what they are of would stand
    /// there many times, and at every level as many times again.
    fn as_call(&mut self, expr: Expr, condition: Expr, a: Expr, b: Expr) -> Option<(Function, Vec<Expr>)> {
        let is = |expr: Expr, value: f64| *self.graph.node(expr) == Node::Float(value.to_bits());
        match *self.graph.node(condition) {
            Node::Compare(Compare::Lt, zero, x) if x == a && is(zero, 0.0) && is(b, 0.0) => {
                Some((Function::Relu, vec![x]))
            }
            Node::Compare(Compare::Eq, x, y) if self.graph.type_of(x) == Type::F => {
                let Node::Binary(Binary::Add, p, q) = *self.graph.node(a) else { return None };
                if !is(p, std::f64::consts::LN_2) && !is(q, std::f64::consts::LN_2) {
                    return None;
                }
                // Simplification gives the expansion many faces: make it again and see.
                let scratch = self.scratch.get_or_insert_with(|| self.graph.clone());
                let again = names::log_add_exp(scratch, x, y);
                (again == expr).then(|| (Function::LogAddExp, vec![x, y]))
            }
            _ => None,
        }
    }

    fn load(&self, buffer: Buffer, index: &[Expr]) -> Vec<Piece> {
        let mut name = match self.captures.get(usize::from(buffer.capture)) {
            Some(capture) => capture.name.clone(),
            None => format!("capture{}", buffer.capture),
        };
        if buffer.tangent {
            name.push('\'');
        }
        let mut pieces = vec![Piece::Word(name)];
        for (at, &axis) in index.iter().enumerate() {
            pieces.extend([Piece::Mark(if at == 0 { "[" } else { ", " }), Piece::Inner(axis)]);
        }
        if !index.is_empty() {
            pieces.push(Piece::Mark("]"));
        }
        pieces
    }

    fn var(&self, var: Var) -> String {
        let primal = match var {
            Var::Score => Primal::Score,
            Var::X => Primal::X,
            Var::Grad => Primal::Grad,
            Var::GradX => Primal::GradX,
            Var::Stage(k) => Primal::Stage(k),
            Var::GradStage(k) => Primal::GradStage(k),
            Var::Delta => Primal::Delta,
            Var::GradLogsumexp => Primal::GradLogsumexp,
            Var::Shift => return "shift".to_owned(),
            Var::Tangent(primal) => return self.primal(primal) + "'",
        };
        self.primal(primal)
    }

    fn primal(&self, var: Primal) -> String {
        let stage =
            |k: u8| self.stage_names.get(usize::from(k)).cloned().unwrap_or_else(|| format!("stage{k}"));
        match var {
            Primal::Score => "score".to_owned(),
            Primal::X => "x".to_owned(),
            Primal::Grad => "g".to_owned(),
            Primal::GradX => "grad_x".to_owned(),
            Primal::Stage(k) => stage(k),
            Primal::GradStage(k) => format!("grad_{}", stage(k)),
            Primal::Delta => "delta".to_owned(),
            Primal::GradLogsumexp => "grad_logsumexp".to_owned(),
        }
    }
}

fn index_name(index: Index) -> String {
    match index {
        Index::Batch => "b".to_owned(),
        Index::Head => "h".to_owned(),
        Index::HeadKv => "hkv".to_owned(),
        Index::Query => "q".to_owned(),
        Index::Key => "k".to_owned(),
        Index::QueryAxis(axis) => format!("q{axis}"),
        Index::KeyAxis(axis) => format!("k{axis}"),
        Index::Lane => "d".to_owned(),
        Index::Dim => "dim".to_owned(),
    }
}

/// A number, with the point or exponent that makes it one, and to the bit.
fn float(value: f64) -> (Level, Vec<Piece>) {
    if value.is_nan() {
        return (Level::Atom, vec![Piece::Mark("(inf - inf)")]);
    }
    let level = if value.is_sign_negative() { Level::Prefix } else { Level::Atom };
    (level, vec![Piece::Word(format!("{value:?}"))])
}

fn call(function: Function, arguments: &[Expr]) -> (Level, Vec<Piece>) {
    let mut pieces = vec![Piece::Mark(names::name_of(function))];
    for (at, &argument) in arguments.iter().enumerate() {
        pieces.extend([Piece::Mark(if at == 0 { "(" } else { ", " }), Piece::Inner(argument)]);
    }
    pieces.push(Piece::Mark(")"));
    (Level::Atom, pieces)
}

fn powi(base: Expr, exponent: i32) -> (Level, Vec<Piece>) {
    let pieces = vec![Piece::Mark("powi("), Piece::Inner(base), Piece::Word(format!(", {exponent})"))];
    (Level::Atom, pieces)
}

/// Operators read from the left, so what is right of one binds tighter. Where the sides may change places, that with
/// the operators goes left: it needs no parentheses there.
fn infix(
    operator: Infix,
    a: Expr,
    b: Expr,
    commutes: bool,
    known: &HashMap<Expr, Layout>,
) -> (Level, Vec<Piece>) {
    let (mark, level) = names::mark_of(operator).unwrap_or(("?", Level::Or));
    let (left, right) = match level {
        Level::Or => (Level::Or, Level::And),
        Level::And => (Level::And, Level::Compare),
        Level::Compare => (Level::Sum, Level::Sum),
        Level::Sum => (Level::Sum, Level::Product),
        Level::Product | Level::Prefix | Level::Atom => (Level::Product, Level::Prefix),
    };
    let nested = |expr: Expr, side: Level| {
        known.get(&expr).map_or((0, 0), |layout| {
            let wrapped = usize::from(layout.level < side);
            (layout.depth + wrapped, wrapped)
        })
    };
    // The depth, then the number of parentheses.
    let cost = |a: Expr, b: Expr| {
        let ((depth_a, wrapped_a), (depth_b, wrapped_b)) = (nested(a, left), nested(b, right));
        (depth_a.max(depth_b), wrapped_a + wrapped_b)
    };
    let (a, b) = if commutes && cost(b, a) < cost(a, b) { (b, a) } else { (a, b) };
    let mark = if level == Level::Product { mark.to_owned() } else { format!(" {mark} ") };
    (level, vec![Piece::Side(a, left), Piece::Word(mark), Piece::Side(b, right)])
}

fn unary_function(op: Unary) -> Function {
    match op {
        Unary::Abs => Function::Abs,
        Unary::Floor => Function::Floor,
        Unary::ToFloat => Function::ToFloat,
        Unary::ToInt => Function::ToInt,
        Unary::LaneSum | Unary::LaneHalf | Unary::LanePair => Function::Lane(op),
        _ => Function::Number(op),
    }
}
