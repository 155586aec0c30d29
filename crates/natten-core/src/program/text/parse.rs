//! From a text to expressions: operators by precedence, types, and the statements of rows.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::program::expr::{Binary, Buffer, Expr, Graph, Index, Type, Unary, Var};
use crate::program::row::{MAX_STAGES, Reduce};

use super::lex::{Lexeme, Token, lex};
use super::names::{self, Infix, Known};
use super::{Field, Level, MAX_DEPTH, ParsedRow, Scope, Span, Spans};

/// The expression of a text, of the type that its field has.
pub(in crate::program) fn parse(
    graph: &mut Graph,
    spans: &mut Spans,
    field: Field,
    text: &str,
    scope: &Scope<'_>,
) -> Result<Expr> {
    let mut parser = Parser::new(graph, spans, field, text, scope)?;
    let value = parser.expression()?;
    if parser.peek() != Token::End {
        return Err(parser.unexpected("an operator or the end"));
    }
    parser.result(value)
}

/// The statements of a row function.
pub(in crate::program) fn parse_row(
    graph: &mut Graph,
    spans: &mut Spans,
    text: &str,
    scope: &Scope<'_>,
) -> Result<ParsedRow> {
    let mut parser = Parser::new(graph, spans, Field::Row, text, scope)?;
    let mut stages: Vec<(String, Reduce, Expr)> = Vec::new();
    while parser.peek_at(1) == Token::Mark("=") {
        let stage = parser.stage(&stages)?;
        stages.push(stage);
    }
    parser.stages = Some(stages.iter().map(|(name, ..)| name.clone()).collect());
    let value = parser.expression()?;
    match parser.peek() {
        Token::End => {}
        Token::Mark(";") => {
            let hint = "the weight stands last: a = sum(x); x / a";
            return Err(parser.refuse(value.span, "a statement before the last must be name = sum|max|min|lse(…)", hint));
        }
        _ => return Err(parser.unexpected("an operator or the end")),
    }
    Ok(ParsedRow { stages, weight: parser.result(value)? })
}

/// An expression and where it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub(super) expr: Expr,
    pub(super) span: Span,
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Neg,
    Not,
    Infix(Infix),
}

/// An operator that waits for its right side.
#[derive(Clone, Copy, Debug)]
struct Pending {
    mark: &'static str,
    action: Action,
    level: Level,
    span: Span,
    left: Option<Operand>,
}

pub(super) struct Parser<'p> {
    pub(super) graph: &'p mut Graph,
    spans: &'p mut Spans,
    pub(super) field: Field,
    text: &'p str,
    pub(super) scope: &'p Scope<'p>,
    words: Vec<Lexeme<'p>>,
    at: usize,
    depth: usize,
    /// The names of a row's stages, where its weight is read.
    stages: Option<Vec<String>>,
}

impl<'p> Parser<'p> {
    fn new(
        graph: &'p mut Graph,
        spans: &'p mut Spans,
        field: Field,
        text: &'p str,
        scope: &'p Scope<'p>,
    ) -> Result<Self> {
        let words = lex(field, text)?;
        Ok(Self { graph, spans, field, text, scope, words, at: 0, depth: 0, stages: None })
    }

    /// The word `ahead` of the next one.
    fn word(&self, ahead: usize) -> Lexeme<'p> {
        let end = Lexeme { token: Token::End, start: self.text.len(), end: self.text.len() };
        self.words.get(self.at + ahead).copied().unwrap_or(end)
    }

    pub(super) fn peek(&self) -> Token<'p> {
        self.word(0).token
    }

    pub(super) fn peek_at(&self, ahead: usize) -> Token<'p> {
        self.word(ahead).token
    }

    /// Where the next word is.
    pub(super) fn here(&self) -> Span {
        let Lexeme { start, end, .. } = self.word(0);
        Span { field: self.field, start, end }
    }

    /// Takes the next word.
    pub(super) fn next(&mut self) -> (Token<'p>, Span) {
        let Lexeme { token, start, end } = self.word(0);
        self.at += 1;
        (token, Span { field: self.field, start, end })
    }

    /// Takes a mark, if it is the next word.
    pub(super) fn take(&mut self, mark: &'static str) -> bool {
        let is_next = self.peek() == Token::Mark(mark);
        self.at += usize::from(is_next);
        is_next
    }

    /// Takes a mark that must be there to close what `open` opened, and gives the whole.
    pub(super) fn close(&mut self, open: Span, mark: &'static str) -> Result<Span> {
        if self.peek() == Token::Mark(mark) {
            let (_, span) = self.next();
            return Ok(Span { end: span.end, ..open });
        }
        Err(self.unexpected(&format!("'{mark}'")))
    }

    pub(super) fn refuse(
        &self,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Error {
        span.error(self.text, message, hint)
    }

    /// The error that the next word is not what can stand here.
    pub(super) fn unexpected(&self, expected: &str) -> Error {
        let Lexeme { token, start, end } = self.word(0);
        let hint = match token {
            Token::End => "the text ends too early",
            Token::Mark("=") if self.field != Field::Row => "a comparison is ==",
            Token::Mark("=") => "a stage is name = sum|max|min|lse(…) at the head of a statement; a comparison is ==",
            Token::Mark(";") if self.field != Field::Row => "only a row has more than one statement",
            Token::Mark(_) => "see that parentheses match",
            _ => "an operator may be missing",
        };
        self.refuse(Span { field: self.field, start, end }, format!("expected {expected}, found {token}"), hint)
    }

    /// An expression of the graph, noted as written here.
    pub(super) fn operand(&mut self, expr: Expr, span: Span) -> Operand {
        // One NaN, whatever made it, so that equal texts are equal nodes.
        let expr = match self.graph.as_float(expr) {
            Some(value) if value.is_nan() => self.graph.float(f64::NAN),
            _ => expr,
        };
        self.spans.note(expr, span);
        Operand { expr, span }
    }

    /// The value of a whole text.
    fn result(&mut self, value: Operand) -> Result<Expr> {
        let field = self.field;
        match (field, self.graph.type_of(value.expr)) {
            (Field::Mask, Type::B) => Ok(value.expr),
            (Field::Mask, ty) => Err(self.refuse(
                value.span,
                format!("mask must be a condition, this is {ty},"),
                "compare it: x != 0",
            )),
            (_, Type::B) => Err(self.refuse(
                value.span,
                format!("{field} must be a number, this is a condition,"),
                "choose numbers by it: select(condition, 1, 0)",
            )),
            _ => self.number(value, field.name()),
        }
    }

    pub(super) fn expression(&mut self) -> Result<Operand> {
        let mut pending: Vec<Pending> = Vec::new();
        loop {
            while let Some(prefix) = self.prefix() {
                pending.push(prefix);
            }
            let mut value = self.primary()?;
            let next = self.infix();
            while let Some(top) = pending.pop_if(|top| next.is_none_or(|next| top.level >= next.level)) {
                if let Some(next) = next
                    && (top.level, next.level) == (Level::Compare, Level::Compare)
                {
                    let message = format!("'{}' behind '{}': comparisons do not chain,", next.mark, top.mark);
                    return Err(self.refuse(next.span, message, "use &&: a < b && b < c"));
                }
                value = self.apply(top, value)?;
            }
            match next {
                Some(next) => pending.push(Pending { left: Some(value), ..next }),
                None => return Ok(value),
            }
        }
    }

    /// Takes a prefix operator, if one is next. The smallest integer is a literal, as what follows its sign is none.
    fn prefix(&mut self) -> Option<Pending> {
        let (mark, action) = match self.peek() {
            Token::Mark("-") if self.peek_at(1) == Token::Int(1 << 31) => return None,
            Token::Mark(mark @ "-") => (mark, Action::Neg),
            Token::Mark(mark @ "!") => (mark, Action::Not),
            _ => return None,
        };
        let (_, span) = self.next();
        Some(Pending { mark, action, level: Level::Prefix, span, left: None })
    }

    /// Takes an operator between two expressions, if one is next.
    fn infix(&mut self) -> Option<Pending> {
        let Token::Mark(mark) = self.peek() else { return None };
        let (infix, level) = names::infix(mark)?;
        let (_, span) = self.next();
        Some(Pending { mark, action: Action::Infix(infix), level, span, left: None })
    }

    /// The value of an operator and its arguments.
    fn apply(&mut self, operator: Pending, right: Operand) -> Result<Operand> {
        let left = operator.left.unwrap_or(right);
        let start = operator.left.map_or(operator.span.start, |left| left.span.start);
        let span = Span { start, ..right.span };
        let name = format!("'{}'", operator.mark);
        let expr = match operator.action {
            Action::Neg => {
                let a = self.numeric(right, &name)?;
                self.graph.unary(Unary::Neg, a)
            }
            Action::Not => {
                let a = self.condition(right, &name)?;
                self.graph.unary(Unary::Not, a)
            }
            Action::Infix(Infix::Logic(op)) => {
                let (a, b) = (self.condition(left, &name)?, self.condition(right, &name)?);
                self.graph.binary(op, a, b)
            }
            Action::Infix(Infix::Arithmetic(Binary::Div)) => {
                let (a, b) = (self.number(left, &name)?, self.number(right, &name)?);
                self.graph.div(a, b)
            }
            Action::Infix(Infix::Arithmetic(op)) => {
                let (a, b) = self.alike(left, right, &name)?;
                self.graph.binary(op, a, b)
            }
            Action::Infix(Infix::Compare(op)) => {
                let (a, b) = self.alike(left, right, &name)?;
                self.graph.compare(op, a, b)
            }
            Action::Infix(Infix::Flipped(op)) => {
                let (a, b) = self.alike(left, right, &name)?;
                self.graph.compare(op, b, a)
            }
        };
        Ok(self.operand(expr, span))
    }

    /// A literal, a name, a load, a call, or parentheses.
    fn primary(&mut self) -> Result<Operand> {
        let (token, span) = match self.peek() {
            Token::Mark("-" | "(") | Token::Int(_) | Token::Float(_) | Token::Name(_) => self.next(),
            _ => return Err(self.unexpected("an expression")),
        };
        let expr = match token {
            Token::Name(name) => return self.name(name, span),
            Token::Float(value) => self.graph.float(value),
            Token::Int(value) => match i32::try_from(value) {
                Ok(value) => self.graph.int(value),
                Err(_) => {
                    let message = format!("{value} is beyond the 32 bits of an integer,");
                    return Err(self.refuse(span, message, "write it as a number, with a point"));
                }
            },
            Token::Mark("(") => {
                let inner = self.nested(span, Self::expression)?;
                let span = self.close(span, ")")?;
                return Ok(Operand { span, ..inner });
            }
            // A sign that is here belongs to the literal behind it: see `prefix`.
            _ => {
                let (_, literal) = self.next();
                let expr = self.graph.int(i32::MIN);
                return Ok(self.operand(expr, Span { end: literal.end, ..span }));
            }
        };
        Ok(self.operand(expr, span))
    }

    /// Reads something inside parentheses or brackets, not too deep.
    pub(super) fn nested<T>(&mut self, span: Span, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            let message = format!("expressions nest deeper than {MAX_DEPTH}");
            return Err(self.refuse(span, message, "make the expression flatter"));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    /// What a name stands for.
    fn name(&mut self, name: &str, span: Span) -> Result<Operand> {
        if self.peek() == Token::Mark("(") {
            return self.call(name, span);
        }
        let scope = self.scope;
        if let Some(number) = scope.captures.iter().position(|capture| capture.name == name) {
            return self.load(number, span);
        }
        if let Some(stage) = self.stages.as_ref().and_then(|stages| stages.iter().position(|s| s == name)) {
            let expr = self.graph.var(Var::Stage(stage as u8));
            return Ok(self.operand(expr, span));
        }
        let Some(known) = names::known(name) else { return Err(self.unknown(name, span)) };
        if self.peek() == Token::Mark("[") {
            let message = format!("'{name}' has no elements,");
            return Err(self.refuse(span, message, "only captured tensors are indexed"));
        }
        if let Err(place) = names::belongs(known, self.field) {
            let message = format!("'{name}' has no meaning in {}", self.field);
            return Err(self.refuse(span, message, place));
        }
        let expr = match known {
            Known::Var(var) => self.graph.var(var),
            Known::Index(Index::QueryAxis(axis) | Index::KeyAxis(axis)) if usize::from(axis) >= scope.rank => {
                let message = format!("'{name}' is of an axis that a problem of rank {} does not have,", scope.rank);
                return Err(self.refuse(span, message, "axes count from 0"));
            }
            Known::Index(Index::Dim) => match scope.dim.and_then(|dim| i32::try_from(dim).ok()) {
                Some(dim) => self.graph.int(dim),
                None => self.graph.index(Index::Dim),
            },
            Known::Index(index) => self.graph.index(index),
            Known::Number(value) => self.graph.float(value),
            Known::Truth(value) => self.graph.bool(value),
            Known::Function(_) => {
                return Err(self.refuse(span, format!("'{name}' is a function,"), format!("write {name}(…)")));
            }
        };
        Ok(self.operand(expr, span))
    }

    /// The error of a name that means nothing.
    fn unknown(&self, name: &str, span: Span) -> Error {
        let mut values: Vec<&str> = Vec::new();
        values.extend(self.scope.captures.iter().map(|capture| capture.name.as_str()));
        values.extend(self.stages.iter().flatten().map(String::as_str));
        values.extend(names::values(self.field, self.scope.rank));
        let hint = match names::nearest(name, values.iter().copied().chain(names::functions())) {
            Some(near) => format!("did you mean '{near}'?"),
            None if self.field == Field::Row && self.stages.is_none() && !names::is_reserved(name) => {
                format!("known names are {}; a stage may not use another stage", values.join(" "))
            }
            None => format!("known names are {}", values.join(" ")),
        };
        self.refuse(span, format!("unknown name '{name}'"), hint)
    }

    /// An element of a captured tensor.
    fn load(&mut self, number: usize, span: Span) -> Result<Operand> {
        let scope = self.scope;
        let capture = &scope.captures[number];
        let (mut index, mut whole) = (Vec::new(), span);
        if self.peek() == Token::Mark("[") {
            let (_, open) = self.next();
            loop {
                let axis = self.nested(open, Self::expression)?;
                index.push(self.integer(axis, "an index")?);
                if !self.take(",") {
                    break;
                }
            }
            whole = self.close(span, "]")?;
        }
        if index.len() != capture.shape.len() {
            let message = format!(
                "'{}' of shape {:?} takes {} indices, found {}",
                capture.name,
                capture.shape,
                capture.shape.len(),
                index.len()
            );
            let hint = match capture.shape.len() {
                0 => "a captured number is written without brackets".to_owned(),
                n => format!("write {}[{}]", capture.name, ["h", "q", "k"].repeat(n)[..n].join(", ")),
            };
            return Err(self.refuse(span, message, hint));
        }
        let ty = if capture.dtype == DType::I32 { Type::I } else { Type::F };
        let expr = self.graph.load(Buffer { capture: number as u8, tangent: false }, ty, &index);
        Ok(self.operand(expr, whole))
    }

    /// A statement `name = reduce(…);` of a row.
    fn stage(&mut self, before: &[(String, Reduce, Expr)]) -> Result<(String, Reduce, Expr)> {
        let (token, span) = self.next();
        let Token::Name(name) = token else {
            self.at -= 1;
            return Err(self.unexpected("a name"));
        };
        if before.len() == MAX_STAGES {
            let message = format!("a row has more than {MAX_STAGES} stages");
            return Err(self.refuse(span, message, "join stages, or compute a part beforehand as a captured tensor"));
        }
        if names::is_reserved(name) {
            return Err(self.refuse(span, format!("'{name}' has a meaning in programs,"), "take another name"));
        }
        let is_capture = self.scope.captures.iter().any(|capture| capture.name == name);
        if is_capture || before.iter().any(|(other, ..)| other == name) {
            return Err(self.refuse(span, format!("'{name}' is taken"), "take another name"));
        }
        self.at += 1;
        let (head, at) = self.next();
        let reduce = [Reduce::Sum, Reduce::Max, Reduce::Min, Reduce::Lse]
            .into_iter()
            .find(|reduce| head == Token::Name(reduce.name()))
            .filter(|_| self.peek() == Token::Mark("("));
        let Some(reduce) = reduce else {
            let hint = "only the weight, which stands last, is another expression";
            return Err(self.refuse(at, "a stage must be sum(…), max(…), min(…) or lse(…)", hint));
        };
        let (_, open) = self.next();
        let value = self.nested(open, Self::expression)?;
        if self.peek() == Token::Mark(",") {
            let message = format!("{} of a row takes one expression", reduce.name());
            return Err(self.refuse(at, message, "max and min of two are not stages: write them in the weight"));
        }
        self.close(at, ")")?;
        if self.peek() == Token::End {
            let hint = "the weight stands last: a = sum(x); x / a";
            return Err(self.refuse(self.here(), "the row has no weight", hint));
        }
        if !self.take(";") {
            let hint = "a stage is a reduction and nothing else; the rest goes into the weight";
            return Err(self.refuse(self.here(), format!("expected ';', found {}", self.peek()), hint));
        }
        if self.peek() == Token::End {
            let hint = "the weight stands last: a = sum(x); x / a";
            return Err(self.refuse(self.here(), "the row has no weight", hint));
        }
        Ok((name.to_owned(), reduce, self.number(value, reduce.name())?))
    }
}
