//! From a text to expressions: whole texts, the statements of rows, and the way through the words.

use crate::error::{Error, Result};
use crate::program::expr::{Expr, Graph, Type};
use crate::program::row::{MAX_STAGES, Reduce};

use super::lex::{Lexeme, Token, lex};
use super::names;
use super::{Field, ParsedRow, Scope, Span, Spans};

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
            return Err(parser.refuse(
                value.span,
                "a statement before the last must be name = sum|max|min|lse(…)",
                hint,
            ));
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

pub(super) struct Parser<'p> {
    pub(super) graph: &'p mut Graph,
    spans: &'p mut Spans,
    pub(super) field: Field,
    text: &'p str,
    pub(super) scope: &'p Scope<'p>,
    words: Vec<Lexeme<'p>>,
    at: usize,
    /// The names of a row's stages, where its weight is read.
    pub(super) stages: Option<Vec<String>>,
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
        Ok(Self { graph, spans, field, text, scope, words, at: 0, stages: None })
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
            Token::Mark("=") => {
                "a stage is name = sum|max|min|lse(…) at the head of a statement; a comparison is =="
            }
            Token::Mark(";") if self.field != Field::Row => "only a row has more than one statement",
            Token::Mark(_) => "see that parentheses match",
            _ => "an operator may be missing",
        };
        self.refuse(
            Span { field: self.field, start, end },
            format!("expected {expected}, found {token}"),
            hint,
        )
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
                format!("mask must be a condition, not {ty}"),
                "compare it: x != 0",
            )),
            (_, Type::B) => Err(self.refuse(
                value.span,
                format!("{field} must be a number, not a condition"),
                "choose numbers by it: select(condition, 1, 0)",
            )),
            _ => self.number(value, field.name()),
        }
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
            return Err(self.refuse(
                span,
                message,
                "join stages, or compute a part beforehand as a captured tensor",
            ));
        }
        if names::is_reserved(name) {
            return Err(self.refuse(
                span,
                format!("'{name}' has a meaning in programs"),
                "take another name",
            ));
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
        self.next();
        let value = self.expression()?;
        if self.peek() == Token::Mark(",") {
            let message = format!("{} of a row takes one expression", reduce.name());
            return Err(self.refuse(
                at,
                message,
                "max and min of two are not stages: write them in the weight",
            ));
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
