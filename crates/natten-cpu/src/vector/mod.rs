//! Expressions over blocks of rows and lanes: one dispatch an operation a block, loops over lanes inside.
//!
//! A block of [`Domain::Vectors`] has a token a row and an element of its head vector a lane: what `query_mod`, `key_mod`
//! and `value_mod` are computed on. A block of [`Domain::Tokens`] is one row of neighbouring tokens: a decay. What an
//! expression depends on says how much of it there is to compute: once a batch entry and head, once a token, once a
//! lane, or for every element; what no token changes is computed when a batch entry and head begin, not block by block.

mod captured;
mod compile;
mod run;
mod tables;

use natten_core::program::{Binary, Buffer, Compare, Index, Type, Unary, Var};

pub(crate) use captured::{CapturedSet, Target};
pub(crate) use compile::check;
pub(crate) use tables::{Scatter, Tables, User};

/// What the rows and lanes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    /// Rows are tokens, lanes the numbers of a token's vector.
    Vectors,
    /// One row, whose lanes are tokens.
    Tokens,
}

/// Numbers, or integers and conditions, of an expression, in a part of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    at: usize,
    /// Whether rows differ.
    rows: bool,
    /// Whether lanes differ.
    lanes: bool,
}

impl Register {
    /// Where a row begins, rows of `lanes` lanes.
    #[inline(always)]
    fn row(self, row: usize, lanes: usize) -> usize {
        match (self.rows, self.lanes) {
            (false, _) => self.at,
            (true, true) => self.at + row * lanes,
            (true, false) => self.at + row,
        }
    }

    /// The lanes of a row that there are, where a block has `lanes`.
    #[inline(always)]
    const fn width(self, lanes: usize) -> usize {
        if self.lanes { lanes } else { 1 }
    }
}

/// What an instruction does.
#[derive(Clone, Debug)]
enum Action {
    Unary(Unary),
    Binary(Binary),
    Compare(Compare),
    Select,
    Powi(i32),
    /// An element of a captured tensor, one integer an axis.
    Load(Buffer, Place),
}

/// The index of an element, one register of integers an axis.
#[derive(Clone, Debug)]
struct Place {
    axes: Vec<Register>,
    /// The one axis whose index counts up with the lanes, where no other differs between lanes.
    along: Option<usize>,
}

/// An operation on registers. Its result is never in the register of an argument.
#[derive(Clone, Debug)]
struct Instruction {
    action: Action,
    /// The type of the arguments, or of what a load reads.
    of: Type,
    to: Register,
    arguments: [Register; 3],
}

/// A compiled list of expressions, its roots.
#[derive(Clone, Debug)]
pub(crate) struct Tape {
    /// The most rows and lanes of a block; rows lie `lanes` apart.
    rows: usize,
    lanes: usize,
    numbers: usize,
    integers: usize,
    constants: Vec<(Register, f64)>,
    integer_constants: Vec<(Register, i32)>,
    variables: Vec<(Var, Register)>,
    /// Indices that are the same for a batch entry and head.
    fixed: Vec<(Index, Register)>,
    /// Indices of the block's tokens.
    moving: Vec<(Index, Register)>,
    /// What no token changes.
    before: Vec<Instruction>,
    /// What is computed block by block.
    body: Vec<Instruction>,
    roots: Vec<Register>,
}

/// The registers of a [`Tape`].
#[derive(Debug)]
pub(crate) struct Registers<'m, R> {
    numbers: &'m mut [R],
    integers: &'m mut [i32],
}
