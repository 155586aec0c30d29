//! Calls of functions, and the types of arguments.

use crate::error::{Error, Result};
use crate::program::expr::{Expr, Type, Unary};

use super::expression::{Inside, Step};
use super::lex::Token;
use super::names::{self, Function, Known};
use super::parse::{Operand, Parser};
use super::{Field, Span};

impl<'p> Parser<'p> {
    /// A call, from its parenthesis on: a value if there is no expression in it.
    pub(super) fn call(&mut self, name: &'p str, span: Span) -> Result<Step<'p>> {
        let function = match names::known(name) {
            Some(Known::Function(function)) => function,
            known => return Err(self.not_a_function(name, known, span)),
        };
        if let (Field::Row, Function::Lane(Unary::LaneSum) | Function::Reduction) = (self.field, function) {
            let message = format!("'{name}' stands only at the head of a stage");
            let hint = format!("write a = {name}(…); and use a in the weight");
            return Err(self.refuse(span, message, hint));
        }
        if let Err(place) = names::belongs(Known::Function(function), self.field) {
            let message = format!("'{name}' has no meaning in {}", self.field);
            return Err(self.refuse(span, message, place));
        }
        self.next();
        if let (Function::Random, Token::Int(seed), Token::Mark(")")) =
            (function, self.peek(), self.peek_at(1))
        {
            self.next();
            let whole = self.close(span, ")")?;
            let (low, high) =
                (self.graph.int(seed as u32 as i32), self.graph.int((seed >> 32) as u32 as i32));
            let expr = self.graph.random(low, high);
            return Ok(Step::Value(self.operand(expr, whole)));
        }
        if self.peek() == Token::Mark(")") {
            return self.called(name, function, span, &[]).map(Step::Value);
        }
        Ok(Step::Expect(Inside::Call { name, function, span, arguments: Vec::new() }))
    }

    /// The value of a call, from behind its last expression on. `span` is the name's.
    pub(super) fn called(
        &mut self,
        name: &str,
        function: Function,
        span: Span,
        arguments: &[Operand],
    ) -> Result<Operand> {
        let exponent = match (function, arguments) {
            (Function::Powi, [_]) if self.take(",") => Some(self.exponent()?),
            _ => None,
        };
        let whole = self.close(span, ")")?;
        let expr = match (exponent, arguments) {
            (Some(exponent), &[base]) => {
                let base = self.number(base, name)?;
                self.graph.powi(base, exponent)
            }
            _ => self.value(name, function, arguments, whole)?,
        };
        Ok(self.operand(expr, whole))
    }

    fn not_a_function(&self, name: &str, known: Option<Known>, span: Span) -> Error {
        let (message, hint) = if self.scope.captures.iter().any(|capture| capture.name == name) {
            (format!("'{name}' is a captured tensor, not a function"), format!("write {name}[…]"))
        } else if known.is_some() {
            (format!("'{name}' is not a function"), format!("for a product write {name} * (…)"))
        } else {
            let hint = match names::nearest(name, names::functions()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("functions are {}", names::functions().collect::<Vec<_>>().join(" ")),
            };
            (format!("unknown function '{name}'"), hint)
        };
        self.refuse(span, message, hint)
    }

    /// The value of a function of expressions.
    fn value(&mut self, name: &str, function: Function, arguments: &[Operand], span: Span) -> Result<Expr> {
        Ok(match (function, arguments) {
            (Function::Number(op) | Function::Lane(op), &[a]) => {
                if let (Unary::LaneHalf | Unary::LanePair, Some(dim)) = (op, self.scope.dim)
                    && dim % 2 != 0
                {
                    let message = format!("'{name}' needs an even head dim, not {dim}");
                    return Err(self.refuse(span, message, "pad the vectors to an even length"));
                }
                let a = self.number(a, name)?;
                self.graph.unary(op, a)
            }
            (Function::Abs, &[a]) => {
                let a = self.numeric(a, name)?;
                self.graph.unary(Unary::Abs, a)
            }
            (Function::Floor, &[a]) => match self.numeric(a, name)? {
                a if self.graph.type_of(a) == Type::I => a,
                a => self.graph.unary(Unary::Floor, a),
            },
            (Function::ToFloat, &[a]) => self.number(a, name)?,
            (Function::ToInt, &[a]) => match self.numeric(a, name)? {
                a if self.graph.type_of(a) == Type::I => a,
                a => self.graph.unary(Unary::ToInt, a),
            },
            (Function::Relu, &[a]) => {
                let a = self.number(a, name)?;
                names::relu(self.graph, a)
            }
            (Function::LogAddExp, &[a, b]) => {
                let (a, b) = (self.number(a, name)?, self.number(b, name)?);
                names::log_add_exp(self.graph, a, b)
            }
            (Function::Select, &[condition, a, b]) => {
                let condition = self.condition(condition, "the first argument of select")?;
                let (a, b) = self.alike(a, b, "a choice of select")?;
                self.graph.select(condition, a, b)
            }
            (Function::Either(op), &[a, b]) => {
                let (a, b) = self.alike(a, b, name)?;
                self.graph.binary(op, a, b)
            }
            (Function::Integer(op), &[a, b]) => {
                let (a, b) = (self.integer(a, name)?, self.integer(b, name)?);
                self.graph.binary(op, a, b)
            }
            (Function::Random, &[low, high]) => {
                let (low, high) = (self.integer(low, name)?, self.integer(high, name)?);
                self.graph.random(low, high)
            }
            (Function::Random, _) => {
                let message =
                    format!("random takes a literal seed or two integers, found {}", arguments.len());
                let hint = "write random(42), or random(seed[0], seed[1]) of a captured i32 tensor";
                return Err(self.refuse(span, message, hint));
            }
            (_, arguments) => {
                let takes = match function {
                    Function::Select => 3,
                    Function::LogAddExp | Function::Powi | Function::Either(_) | Function::Integer(_) => 2,
                    _ => 1,
                };
                return Err(self.wrong_count(name, takes, arguments.len(), span));
            }
        })
    }

    fn wrong_count(&self, name: &str, takes: usize, found: usize, span: Span) -> Error {
        let plural = if takes == 1 { "" } else { "s" };
        let hint = match (name, self.field) {
            ("min" | "max", Field::Row) => format!("the {name} of a row is a stage: a = {name}(x); …"),
            _ => format!("write {name}({})", ["a", "b", "c"][..takes.min(3)].join(", ")),
        };
        self.refuse(span, format!("{name} takes {takes} argument{plural}, not {found}"), hint)
    }

    /// The literal that powi's exponent is.
    fn exponent(&mut self) -> Result<i32> {
        let at = self.here();
        let is_negative = self.take("-");
        let magnitude = match self.next() {
            (Token::Int(value), _) => i64::try_from(value).ok(),
            _ => None,
        };
        let exponent = magnitude.map(|value| if is_negative { -value } else { value });
        match (exponent.and_then(|value| i32::try_from(value).ok()), self.peek()) {
            (Some(exponent), Token::Mark(")")) => Ok(exponent),
            _ => {
                let message = "the exponent of powi must be a literal integer of 32 bits";
                Err(self.refuse(at, message, "for other powers write exp(y * log(x))"))
            }
        }
    }

    /// The argument of `what`, a number or an integer.
    pub(super) fn numeric(&self, a: Operand, what: &str) -> Result<Expr> {
        match self.graph.type_of(a.expr) {
            Type::B => Err(self.refuse(
                a.span,
                format!("{what} takes numbers, not a condition"),
                "choose numbers by it: select(condition, 1, 0)",
            )),
            _ => Ok(a.expr),
        }
    }

    /// The argument of `what` as a number.
    pub(super) fn number(&mut self, a: Operand, what: &str) -> Result<Expr> {
        let expr = self.numeric(a, what)?;
        if self.graph.type_of(expr) == Type::F {
            return Ok(expr);
        }
        let float = self.graph.unary(Unary::ToFloat, expr);
        Ok(self.operand(float, a.span).expr)
    }

    /// The arguments of `what`, both integers or else both numbers.
    pub(super) fn alike(&mut self, a: Operand, b: Operand, what: &str) -> Result<(Expr, Expr)> {
        let (x, y) = (self.numeric(a, what)?, self.numeric(b, what)?);
        if self.graph.type_of(x) == self.graph.type_of(y) {
            return Ok((x, y));
        }
        Ok((self.number(a, what)?, self.number(b, what)?))
    }

    /// The argument of `what`, an integer.
    pub(super) fn integer(&self, a: Operand, what: &str) -> Result<Expr> {
        match self.graph.type_of(a.expr) {
            Type::I => Ok(a.expr),
            ty => Err(self.refuse(
                a.span,
                format!("{what} takes an integer, not {ty}"),
                "int(x) rounds a number down",
            )),
        }
    }

    /// The argument of `what`, a condition.
    pub(super) fn condition(&self, a: Operand, what: &str) -> Result<Expr> {
        match self.graph.type_of(a.expr) {
            Type::B => Ok(a.expr),
            ty => {
                Err(self.refuse(a.span, format!("{what} takes a condition, not {ty}"), "compare it: x != 0"))
            }
        }
    }
}
