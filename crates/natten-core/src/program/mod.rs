//! Programs: what happens to a score, which pairs count, how a row of scores becomes weights, and what is done to
//! queries, keys and values before. Written as text or built as a graph; differentiated symbolically; run by every
//! backend.
//!
//! | field | of | means |
//! |---|---|---|
//! | `query_mod`, `key_mod`, `value_mod` | `x`, `d` | element `d` of the vector that takes the place of a query, key, value |
//! | `score` | `score` | the modified score of a pair, from the scaled one |
//! | `mask` | indices | whether the pair counts at all |
//! | `row` | `x` | reductions over a row, and the weight of an element |
//! | `post` | indices | what a weight is multiplied with: dropout |
//! | `decay` | `k`, `h`, `b` | the log of a recurrence's decay at a token: linear attention |
//!
//! ```
//! use natten_core::DType;
//! use natten_core::program::{Capture, Program};
//! # fn main() -> natten_core::Result<()> {
//! let alibi = Program::builder(1)
//!     .capture(Capture::new("slope", &[8], DType::F32))
//!     .score("score - slope[h] * abs(q - k)")
//!     .mask("k <= q")
//!     .build()?;
//! assert_eq!(alibi.to_string(), "score: score - slope[h]*float(abs(q - k))\nmask: k <= q\nrow: l = lse(x); exp(x - l)\n");
//! # Ok(())
//! # }
//! ```

mod apart;
pub mod derive;
pub mod expr;
mod interval;
mod involved;
mod lower;
pub mod numeric;
pub mod online;
mod presets;
pub mod random;
mod row;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;

pub use self::apart::Loads;
pub use self::expr::{Binary, Buffer, Compare, Expr, Graph, Index, Node, Primal, Type, Unary, Var};
pub use self::interval::*;
pub use self::involved::Involved;
pub use self::lower::{Given, GradStages, LoadGradient, Lowered, LoweredVector, Pushed, StageElement};
pub use self::presets::{PRESETS, Preset};
pub(crate) use self::row::depends_on_element;
pub use self::row::{Algorithm, MAX_STAGES, Reduce, Row, Stage};
pub use self::text::{Field, check_name, is_reserved};

use self::text::{ParsedRow, Scope, Spans};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::role::MAX_CAPTURES;

/// A tensor that a program loads from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capture {
    /// Its name in texts and files.
    pub name: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its element type: integers load as integers, everything else as numbers.
    pub dtype: DType,
    /// Whether its gradient can be asked for. Integers have none.
    pub requires_grad: bool,
}

impl Capture {
    /// A captured tensor, with a gradient unless it holds integers.
    pub fn new(name: impl Into<String>, shape: &[usize], dtype: DType) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), dtype, requires_grad: dtype != DType::I32 }
    }

    /// The same without a gradient.
    #[must_use]
    pub fn constant(self) -> Self {
        Self { requires_grad: false, ..self }
    }
}

/// A part of a program's text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The field.
    pub field: Field,
    /// The part's text.
    pub text: String,
    /// The column that it begins in, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' at column {} of {}", self.text, self.column, self.field)
    }
}

/// What an attention computes of its scores, values and captured tensors.
#[derive(Clone, Debug)]
pub struct Program {
    rank: usize,
    graph: Graph,
    captures: Vec<Capture>,
    score: Expr,
    mask: Option<Expr>,
    row: Row,
    post: Option<Expr>,
    query_mod: Option<Expr>,
    key_mod: Option<Expr>,
    value_mod: Option<Expr>,
    decay: Option<Expr>,
    texts: Vec<(Field, String)>,
    spans: Spans,
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank && self.captures == other.captures && self.to_string() == other.to_string()
    }
}

impl Program {
    /// Begins a program for attention over `rank` token axes.
    pub fn builder(rank: usize) -> ProgramBuilder {
        ProgramBuilder {
            rank,
            graph: Graph::new(),
            captures: Vec::new(),
            texts: Vec::new(),
            exprs: Vec::new(),
            row: None,
        }
    }

    /// The program that does nothing to scores: softmax.
    ///
    /// # Panics
    /// Never: its texts are this crate's.
    pub fn softmax(rank: usize) -> Self {
        Self::builder(rank).build().expect("the default program is well-formed")
    }

    /// The number of token axes.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// The graph of the program's expressions.
    pub const fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The captured tensors.
    pub fn captures(&self) -> &[Capture] {
        &self.captures
    }

    /// The modified score, of [`Var::Score`].
    pub const fn score(&self) -> Expr {
        self.score
    }

    /// Whether a pair counts; None where every visible pair does.
    pub const fn mask(&self) -> Option<Expr> {
        self.mask
    }

    /// The row function.
    pub const fn row(&self) -> &Row {
        &self.row
    }

    /// The stage that is the row's logsumexp, where it has one.
    pub fn logsumexp(&self) -> Option<u8> {
        self.row.logsumexp()
    }

    /// What weights are multiplied with.
    pub const fn post(&self) -> Option<Expr> {
        self.post
    }

    /// The vector functions of queries, keys and values.
    pub const fn mods(&self) -> [Option<Expr>; 3] {
        [self.query_mod, self.key_mod, self.value_mod]
    }

    /// The log of the decay at a token, where this is linear attention.
    pub const fn decay(&self) -> Option<Expr> {
        self.decay
    }

    /// Whether scores become weights by softmax and nothing else happens.
    pub fn is_plain_softmax(&self) -> bool {
        self.has_softmax_row()
            && *self.graph.node(self.score) == Node::Var(Var::Score)
            && self.mask.is_none()
            && self.post.is_none()
            && self.decay.is_none()
            && self.mods() == [None; 3]
    }

    /// Whether the row function is softmax, whatever the scores and the masks are.
    pub fn has_softmax_row(&self) -> bool {
        let node = |expr: Expr| self.graph.node(expr);
        let [stage] = &self.row.stages[..] else { return false };
        let is_softmax = match node(self.row.weight) {
            Node::Unary(Unary::Exp, inner) => match node(*inner) {
                Node::Binary(Binary::Sub, a, b) => *a == stage.value && *node(*b) == Node::Var(Var::Stage(0)),
                _ => false,
            },
            _ => false,
        };
        is_softmax && stage.reduce == Reduce::Lse && *node(stage.value) == Node::Var(Var::X)
    }

    /// The same program of vectors that have been through its vector functions.
    #[must_use]
    pub fn without_mods(&self) -> Self {
        Self { query_mod: None, key_mod: None, value_mod: None, ..self.clone() }
    }

    /// The expression of a field; a row's is its weight.
    pub fn field(&self, field: Field) -> Option<Expr> {
        match field {
            Field::Score => Some(self.score),
            Field::Mask => self.mask,
            Field::Row => Some(self.row.weight),
            Field::Post => self.post,
            Field::QueryMod => self.query_mod,
            Field::KeyMod => self.key_mod,
            Field::ValueMod => self.value_mod,
            Field::Decay => self.decay,
        }
    }

    /// Every expression of a field: those of a row's stages before its weight.
    pub fn roots(&self, field: Field) -> Vec<Expr> {
        let stages = self.row.stages.iter().map(|stage| stage.value).filter(|_| field == Field::Row);
        stages.chain(self.field(field)).collect()
    }

    /// The captured tensors that some of these fields load from, by number.
    pub fn captures_of(&self, fields: &[Field]) -> Vec<u8> {
        let roots: Vec<Expr> = fields.iter().flat_map(|&field| self.roots(field)).collect();
        let reached = self.graph.reached(&roots);
        (0..self.captures.len() as u8)
            .filter(|&number| {
                self.graph.iter().any(|(expr, node)| {
                    reached[expr.index()] && matches!(node, Node::Load(buffer, _) if buffer.capture == number)
                })
            })
            .collect()
    }

    /// The captured tensors that have a gradient, by number: those that anything but the mask uses.
    pub fn differentiable_captures(&self) -> Vec<u8> {
        let fields = Field::ALL.into_iter().filter(|&field| field != Field::Mask).collect::<Vec<_>>();
        let mut used = self.captures_of(&fields);
        used.retain(|&number| self.captures[number as usize].requires_grad);
        used
    }

    /// Where an expression stands in the program's texts, where it was parsed from one.
    pub fn place_of(&self, expr: Expr) -> Option<Place> {
        let span = self.spans.get(expr)?;
        let text = &self.texts.iter().find(|(of, _)| *of == span.field)?.1;
        Some(Place {
            field: span.field,
            text: text[span.start..span.end].to_owned(),
            column: text[..span.start].chars().count() + 1,
        })
    }

    /// An expression of this program's graph, or of one that was derived from it, as text.
    pub fn print(&self, graph: &Graph, expr: Expr) -> String {
        text::print(graph, expr, &self.captures, &self.stage_names())
    }

    /// Expressions of a graph as [`print`](Self::print) writes them, but what they share written once. Every root has a
    /// label and becomes lines of a name and a text: what it shares with others, under made-up names, then the root
    /// under its label. A root whose label can be a name goes by it in the texts of the others.
    pub fn list(&self, graph: &Graph, roots: &[(&str, Expr)]) -> Vec<Vec<(String, String)>> {
        text::list(graph, roots, &self.captures, &self.stage_names())
    }

    fn stage_names(&self) -> Vec<String> {
        self.row.stages.iter().map(|stage| stage.name.clone()).collect()
    }
}

/// The fields that are there, each on a line, in the order in which they apply.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let print = |expr| self.print(&self.graph, expr);
        let mut line = |field: Field, expr: Option<Expr>| match expr {
            Some(expr) => writeln!(f, "{field}: {}", print(expr)),
            None => Ok(()),
        };
        line(Field::QueryMod, self.query_mod)?;
        line(Field::KeyMod, self.key_mod)?;
        line(Field::ValueMod, self.value_mod)?;
        if self.decay.is_some() {
            return line(Field::Decay, self.decay);
        }
        let is_identity = *self.graph.node(self.score) == Node::Var(Var::Score);
        line(Field::Score, Some(self.score).filter(|_| !is_identity))?;
        line(Field::Mask, self.mask)?;
        write!(f, "{}: ", Field::Row)?;
        for stage in &self.row.stages {
            write!(f, "{} = {}({}); ", stage.name, stage.reduce.name(), print(stage.value))?;
        }
        writeln!(f, "{}", print(self.row.weight))?;
        match self.post {
            Some(post) => writeln!(f, "{}: {}", Field::Post, print(post)),
            None => Ok(()),
        }
    }
}

/// Collects what a [`Program`] is; [`build`](Self::build) parses and checks it.
#[derive(Clone, Debug)]
#[must_use]
pub struct ProgramBuilder {
    rank: usize,
    graph: Graph,
    captures: Vec<Capture>,
    texts: Vec<(Field, String)>,
    exprs: Vec<(Field, Expr)>,
    row: Option<Row>,
}

impl ProgramBuilder {
    /// A tensor to load from. Loads name it: `slope[h]`; a scalar is written bare.
    pub fn capture(mut self, capture: Capture) -> Self {
        self.captures.push(capture);
        self
    }

    /// The text of a field. The last text given counts; a row may be a preset's name, [`PRESETS`].
    pub fn text(mut self, field: Field, text: impl Into<String>) -> Self {
        self.texts.retain(|(given, _)| *given != field);
        self.texts.push((field, text.into()));
        self
    }

    /// The modified score of a pair: `20*tanh(score/20)`.
    pub fn score(self, text: impl Into<String>) -> Self {
        self.text(Field::Score, text)
    }

    /// Whether a pair counts: `k <= q`.
    pub fn mask(self, text: impl Into<String>) -> Self {
        self.text(Field::Mask, text)
    }

    /// The row function: a preset's name, `retention:detach`, or a text, `a = sum(abs(x)); x / max(a, 1)`.
    pub fn row(self, text: impl Into<String>) -> Self {
        self.text(Field::Row, text)
    }

    /// What a weight is multiplied with. See [`dropout`](Self::dropout).
    pub fn post(self, text: impl Into<String>) -> Self {
        self.text(Field::Post, text)
    }

    /// Dropout of weights with probability `p`, the mask drawn from `seed`: the same on every backend, in every pass.
    /// A probability of zero is no dropout.
    pub fn dropout(self, p: f64, seed: u64) -> Self {
        if p == 0.0 {
            return self;
        }
        self.post(format!("select(random({seed}) >= {p:?}, {:?}, 0.0)", 1.0 / (1.0 - p)))
    }

    /// The vector function of queries: `x*cos[q, d] + …`.
    pub fn query_mod(self, text: impl Into<String>) -> Self {
        self.text(Field::QueryMod, text)
    }

    /// The vector function of keys.
    pub fn key_mod(self, text: impl Into<String>) -> Self {
        self.text(Field::KeyMod, text)
    }

    /// The vector function of values.
    pub fn value_mod(self, text: impl Into<String>) -> Self {
        self.text(Field::ValueMod, text)
    }

    /// The log of the decay at token `k`, at most 0: makes this linear attention.
    pub fn decay(self, text: impl Into<String>) -> Self {
        self.text(Field::Decay, text)
    }

    /// The program's graph, to build expressions in.
    pub const fn graph(&mut self) -> &mut Graph {
        &mut self.graph
    }

    /// A field as an expression of [`graph`](Self::graph), of type B for the mask and F for all others.
    pub fn expr(mut self, field: Field, expr: Expr) -> Self {
        self.exprs.retain(|(given, _)| *given != field);
        self.exprs.push((field, expr));
        self
    }

    /// A row function of expressions of [`graph`](Self::graph).
    pub fn row_function(self, row: Row) -> Self {
        Self { row: Some(row), ..self }
    }

    /// The row function of an imperative one: see [`online`].
    ///
    /// # Errors
    /// As [`Row::import`].
    pub fn online(mut self, function: &dyn online::OnlineFunction) -> Result<Self> {
        let row = Row::import(&mut self.graph, function)?;
        Ok(self.row_function(row))
    }

    /// Parses and checks everything.
    ///
    /// # Errors
    /// [`Error::Program`] for a text that breaks a rule, with the column; [`Error::Invalid`] for captured tensors and
    /// expressions that do.
    pub fn build(mut self) -> Result<Program> {
        self.check()?;
        let mut spans = Spans::default();
        let mut texts = self.texts;
        let scope = Scope { captures: &self.captures, rank: self.rank, dim: None };
        let mut parsed = |graph: &mut Graph, field: Field| -> Result<Option<Expr>> {
            match texts.iter().find(|(of, _)| *of == field) {
                Some((_, text)) => text::parse(graph, &mut spans, field, text, &scope).map(Some),
                None => Ok(self.exprs.iter().find(|(of, _)| *of == field).map(|(_, expr)| *expr)),
            }
        };
        let graph = &mut self.graph;
        let score = parsed(graph, Field::Score)?;
        let score = score.unwrap_or_else(|| graph.var(Var::Score));
        let mask = parsed(graph, Field::Mask)?;
        let post = parsed(graph, Field::Post)?;
        let query_mod = parsed(graph, Field::QueryMod)?;
        let key_mod = parsed(graph, Field::KeyMod)?;
        let value_mod = parsed(graph, Field::ValueMod)?;
        let decay = parsed(graph, Field::Decay)?;
        let row = match self.row {
            Some(row) => row,
            None => {
                let at = texts.iter().position(|(of, _)| *of == Field::Row);
                let spec = at.map_or("softmax", |at| texts[at].1.as_str());
                let text = presets::text_of(spec)?.unwrap_or_else(|| spec.to_owned());
                let ParsedRow { stages, weight } = text::parse_row(graph, &mut spans, &text, &scope)?;
                match at {
                    Some(at) => texts[at].1 = text,
                    None => texts.push((Field::Row, text)),
                }
                let stage = |(name, reduce, value)| Stage { name, reduce, value };
                Row { stages: stages.into_iter().map(stage).collect(), weight }
            }
        };
        let program = Program {
            rank: self.rank,
            graph: self.graph,
            captures: self.captures,
            score,
            mask,
            row,
            post,
            query_mod,
            key_mod,
            value_mod,
            decay,
            texts,
            spans,
        };
        program.check()?;
        Ok(program)
    }

    fn check(&self) -> Result<()> {
        if self.captures.len() > MAX_CAPTURES {
            return Err(Error::invalid(
                "captures",
                self.captures.len(),
                format!("a program has at most {MAX_CAPTURES} captured tensors"),
                "join some into one tensor with another axis",
            ));
        }
        for (at, capture) in self.captures.iter().enumerate() {
            check_name(&capture.name)?;
            if self.captures[..at].iter().any(|other| other.name == capture.name) {
                return Err(Error::invalid(
                    "captures",
                    &capture.name,
                    "a name may stand once",
                    "rename one of the two",
                ));
            }
            if capture.shape.contains(&0) || crate::checked_len(&capture.shape).is_err() {
                return Err(Error::invalid(
                    capture.name.clone(),
                    format!("{:?}", capture.shape),
                    "every extent must be at least 1, and the size must not overflow",
                    "check the tensor's shape",
                ));
            }
        }
        Ok(())
    }
}

impl Program {
    fn check(&self) -> Result<()> {
        let refuse = |field: Field, rule: &str, hint: &'static str| {
            Err(Error::invalid(field.name(), "given", rule.to_owned(), hint))
        };
        if self.row.stages.len() > MAX_STAGES {
            let rule = format!("a row has at most {MAX_STAGES} stages");
            return Err(Error::invalid(
                "row",
                self.row.stages.len(),
                rule,
                "join stages where one follows from another",
            ));
        }
        if self.decay.is_some() {
            for field in [Field::Score, Field::Mask, Field::Row, Field::Post] {
                if self.texts.iter().any(|(of, text)| {
                    *of == field && !(field == Field::Row && *text == "l = lse(x); exp(x - l)")
                }) {
                    return refuse(
                        field,
                        "linear attention has none: a decay takes the place of scores",
                        "leave it out",
                    );
                }
            }
        }
        Ok(())
    }
}
