//! The text form of programs: what a user writes as `score - slope[h] * abs(q - k)`, read into the [`Graph`] and
//! written from it.
//!
//! An expression is made of variables, indices, numbers, captured tensors, operators and functions. Loosest first, the
//! operators are `||`, `&&`, the comparisons (which do not chain), `+ -`, `* / // %`, and the prefixes `- !`. `/` is
//! real division, `//` and `%` are floor. Integers become numbers where they meet numbers. A row function is a text of
//! statements, `a = sum(abs(x)); x / max(a, 1)`: reductions by name, then the weight.

use std::collections::HashMap;
use std::fmt;

use crate::error::Error;

use super::Capture;
use super::expr::Expr;
use super::row::Reduce;

mod call;
mod expression;
mod lex;
mod names;
mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use names::{check_name, is_reserved};
pub(super) use parse::{parse, parse_row};
pub(super) use print::{list, print};

/// The most bytes of a text.
pub(crate) const MAX_TEXT: usize = 1 << 16;

/// The deepest that parentheses and arguments may nest.
pub(crate) const MAX_DEPTH: usize = 256;

/// Where an expression stands: which names it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// The modified score of a pair.
    Score,
    /// Whether a query sees a key.
    Mask,
    /// The weights of a row.
    Row,
    /// A factor of a weight, behind the row function.
    Post,
    /// A function of the queries' vectors.
    QueryMod,
    /// A function of the keys' vectors.
    KeyMod,
    /// A function of the values' vectors.
    ValueMod,
    /// How much of a state is left after a token.
    Decay,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 8] = [
        Self::Score,
        Self::Mask,
        Self::Row,
        Self::Post,
        Self::QueryMod,
        Self::KeyMod,
        Self::ValueMod,
        Self::Decay,
    ];

    /// The name in files and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Mask => "mask",
            Self::Row => "row",
            Self::Post => "post",
            Self::QueryMod => "query_mod",
            Self::KeyMod => "key_mod",
            Self::ValueMod => "value_mod",
            Self::Decay => "decay",
        }
    }

    /// Whether the text is a function of a vector's elements.
    pub const fn is_mod(self) -> bool {
        matches!(self, Self::QueryMod | Self::KeyMod | Self::ValueMod)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a parser knows: the captured tensors, the number of token axes, and the vector length of mods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    /// The captured tensors; a load goes by the place in this list.
    pub(crate) captures: &'a [Capture],
    /// The number of token axes.
    pub(crate) rank: usize,
    /// The length of the vectors, where it is known: then `dim` is this number.
    pub(crate) dim: Option<usize>,
}

/// A part of a program's text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    /// Which text.
    pub(crate) field: Field,
    /// The first byte.
    pub(crate) start: usize,
    /// The byte behind the last.
    pub(crate) end: usize,
}

impl Span {
    /// The error of this part of `text`.
    pub(crate) fn error(
        self,
        text: &str,
        message: impl Into<String>,
        hint: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Error {
        Error::program(self.field.name(), text, self.start, message, hint)
    }
}

/// Where in the text each node came from, by its first occurrence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans(HashMap<Expr, Span>);

impl Spans {
    /// Where a node came from; none of a node that was derived.
    pub(crate) fn get(&self, expr: Expr) -> Option<Span> {
        self.0.get(&expr).copied()
    }

    fn note(&mut self, expr: Expr, span: Span) {
        self.0.entry(expr).or_insert(span);
    }
}

/// A row function as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParsedRow {
    /// The stages, in order: name, reduction, and what is reduced.
    pub(crate) stages: Vec<(String, Reduce, Expr)>,
    /// The weight.
    pub(crate) weight: Expr,
}

/// How tight an expression binds, loosest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Or,
    And,
    Compare,
    Sum,
    Product,
    Prefix,
    Atom,
}
