//! Expressions: operators by precedence, names, and what is inside parentheses, brackets and calls.
//!
//! What an expression is inside of stands on a stack of the reader's own, so that a text cannot use up the thread's.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::program::expr::{Binary, Buffer, Expr, Index, Type, Unary, Var};

use super::lex::Token;
use super::names::{self, Function, Infix, Known};
use super::parse::{Operand, Parser};
use super::{Field, Level, MAX_DEPTH, Span};

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

/// What an expression is inside of.
#[derive(Debug, Default)]
pub(super) enum Inside<'p> {
    /// Nothing: it is the text, or a statement's.
    #[default]
    Nothing,
    Parentheses(Span),
    /// The arguments of a function so far. The span is the name's.
    Call {
        name: &'p str,
        function: Function,
        span: Span,
        arguments: Vec<Operand>,
    },
    /// The indices of a captured tensor so far. The span is the name's.
    Load {
        number: usize,
        span: Span,
        index: Vec<Expr>,
    },
}

/// What comes of a word, or of an end.
pub(super) enum Step<'p> {
    /// A value, which an operator may follow.
    Value(Operand),
    /// An expression inside of this is next.
    Expect(Inside<'p>),
}

impl<'p> Parser<'p> {
    pub(super) fn expression(&mut self) -> Result<Operand> {
        let mut outer: Vec<(Inside<'p>, Vec<Pending>)> = Vec::new();
        let mut inside = Inside::Nothing;
        let mut pending: Vec<Pending> = Vec::new();
        loop {
            while let Some(prefix) = self.prefix() {
                pending.push(prefix);
            }
            let at = self.here();
            let mut value = match self.primary()? {
                Step::Value(value) => value,
                Step::Expect(inner) => {
                    if outer.len() == MAX_DEPTH {
                        let message = format!("expressions nest deeper than {MAX_DEPTH}");
                        return Err(self.refuse(at, message, "make the expression flatter"));
                    }
                    outer.push((std::mem::replace(&mut inside, inner), std::mem::take(&mut pending)));
                    continue;
                }
            };
            // Ends what ends here, up to an operator or a comma, behind which the next expression is.
            loop {
                value = self.reduce(&mut pending, value)?;
                if let Some(next) = self.infix() {
                    pending.push(Pending { left: Some(value), ..next });
                    break;
                }
                match self.end(std::mem::take(&mut inside), value)? {
                    Step::Value(ended) => value = ended,
                    Step::Expect(same) => {
                        inside = same;
                        break;
                    }
                }
                match outer.pop() {
                    Some(around) => (inside, pending) = around,
                    None => return Ok(value),
                }
            }
        }
    }

    /// Applies the operators that bind tighter than the one that is next.
    fn reduce(&mut self, pending: &mut Vec<Pending>, mut value: Operand) -> Result<Operand> {
        let next = match self.peek() {
            Token::Mark(mark) => names::infix(mark).map(|(_, level)| (mark, level)),
            _ => None,
        };
        while let Some(top) = pending.pop_if(|top| next.is_none_or(|(_, level)| top.level >= level)) {
            if let Some((mark, Level::Compare)) = next
                && top.level == Level::Compare
            {
                let message = format!("comparisons do not chain: '{mark}' behind '{}'", top.mark);
                return Err(self.refuse(self.here(), message, "use &&: a < b && b < c"));
            }
            value = self.apply(top, value)?;
        }
        Ok(value)
    }

    /// Ends an expression inside of something: by a comma, or by what closes it.
    fn end(&mut self, inside: Inside<'p>, value: Operand) -> Result<Step<'p>> {
        match inside {
            Inside::Nothing => Ok(Step::Value(value)),
            Inside::Parentheses(open) => {
                let span = self.close(open, ")")?;
                Ok(Step::Value(Operand { span, ..value }))
            }
            Inside::Call { name, function, span, mut arguments } => {
                arguments.push(value);
                // The exponent of powi is no expression.
                if function != Function::Powi && self.take(",") {
                    return Ok(Step::Expect(Inside::Call { name, function, span, arguments }));
                }
                self.called(name, function, span, &arguments).map(Step::Value)
            }
            Inside::Load { number, span, mut index } => {
                index.push(self.integer(value, "an index")?);
                if self.take(",") {
                    return Ok(Step::Expect(Inside::Load { number, span, index }));
                }
                let whole = self.close(span, "]")?;
                self.load(number, span, &index, whole).map(Step::Value)
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

    /// A literal or a name; or what begins a load, a call or parentheses.
    fn primary(&mut self) -> Result<Step<'p>> {
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
                    let message = format!("{value} is beyond the 32 bits of an integer");
                    return Err(self.refuse(span, message, "write it as a number, with a point"));
                }
            },
            Token::Mark("(") => return Ok(Step::Expect(Inside::Parentheses(span))),
            // A sign that is here belongs to the literal behind it: see `prefix`.
            _ => {
                let (_, literal) = self.next();
                let expr = self.graph.int(i32::MIN);
                return Ok(Step::Value(self.operand(expr, Span { end: literal.end, ..span })));
            }
        };
        Ok(Step::Value(self.operand(expr, span)))
    }

    /// What a name stands for.
    fn name(&mut self, name: &'p str, span: Span) -> Result<Step<'p>> {
        if self.peek() == Token::Mark("(") {
            return self.call(name, span);
        }
        let scope = self.scope;
        if let Some(number) = scope.captures.iter().position(|capture| capture.name == name) {
            if self.take("[") {
                return Ok(Step::Expect(Inside::Load { number, span, index: Vec::new() }));
            }
            return self.load(number, span, &[], span).map(Step::Value);
        }
        if let Some(stage) = self.stages.as_ref().and_then(|stages| stages.iter().position(|s| s == name)) {
            let expr = self.graph.var(Var::Stage(stage as u8));
            return Ok(Step::Value(self.operand(expr, span)));
        }
        let Some(known) = names::known(name) else { return Err(self.unknown(name, span)) };
        if self.peek() == Token::Mark("[") {
            let message = format!("'{name}' has no elements");
            return Err(self.refuse(span, message, "only captured tensors are indexed"));
        }
        if let Err(place) = names::belongs(known, self.field) {
            let message = format!("'{name}' has no meaning in {}", self.field);
            return Err(self.refuse(span, message, place));
        }
        let expr = match known {
            Known::Var(var) => self.graph.var(var),
            Known::Index(Index::QueryAxis(axis) | Index::KeyAxis(axis))
                if usize::from(axis) >= scope.rank =>
            {
                let message =
                    format!("'{name}' is of an axis that a problem of rank {} does not have", scope.rank);
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
                return Err(self.refuse(span, format!("'{name}' is a function"), format!("write {name}(…)")));
            }
        };
        Ok(Step::Value(self.operand(expr, span)))
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

    /// An element of a captured tensor, its name at `span`.
    fn load(&mut self, number: usize, span: Span, index: &[Expr], whole: Span) -> Result<Operand> {
        let scope = self.scope;
        let capture = &scope.captures[number];
        if index.len() != capture.shape.len() {
            let message = format!(
                "'{}' of shape {:?} takes {} indices, not {}",
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
        let expr = self.graph.load(Buffer { capture: number as u8, tangent: false }, ty, index);
        Ok(self.operand(expr, whole))
    }
}
