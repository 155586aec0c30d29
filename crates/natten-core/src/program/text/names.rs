//! The operators and names that a text may use, and where.

use crate::error::{Error, Result};
use crate::program::expr::{Binary, Compare, Expr, Graph, Index, Unary, Var};

use super::{Field, Level};

/// What an operator between two expressions does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Infix {
    Arithmetic(Binary),
    Logic(Binary),
    Compare(Compare),
    /// A comparison, its arguments the other way round.
    Flipped(Compare),
}

/// The operators between two expressions.
const INFIX: [(&str, Infix, Level); 14] = [
    ("||", Infix::Logic(Binary::Or), Level::Or),
    ("&&", Infix::Logic(Binary::And), Level::And),
    ("<", Infix::Compare(Compare::Lt), Level::Compare),
    ("<=", Infix::Compare(Compare::Le), Level::Compare),
    (">", Infix::Flipped(Compare::Lt), Level::Compare),
    (">=", Infix::Flipped(Compare::Le), Level::Compare),
    ("==", Infix::Compare(Compare::Eq), Level::Compare),
    ("!=", Infix::Compare(Compare::Ne), Level::Compare),
    ("+", Infix::Arithmetic(Binary::Add), Level::Sum),
    ("-", Infix::Arithmetic(Binary::Sub), Level::Sum),
    ("*", Infix::Arithmetic(Binary::Mul), Level::Product),
    ("/", Infix::Arithmetic(Binary::Div), Level::Product),
    ("//", Infix::Arithmetic(Binary::FloorDiv), Level::Product),
    ("%", Infix::Arithmetic(Binary::Mod), Level::Product),
];

/// What a mark between two expressions does, and how tight it binds.
pub(super) fn infix(mark: &str) -> Option<(Infix, Level)> {
    INFIX.iter().find(|(known, ..)| *known == mark).map(|&(_, infix, level)| (infix, level))
}

/// The mark of an operator, where it has one.
pub(super) fn mark_of(infix: Infix) -> Option<(&'static str, Level)> {
    INFIX.iter().find(|(_, known, _)| *known == infix).map(|&(mark, _, level)| (mark, level))
}

/// What a reserved name means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Known {
    Var(Var),
    Index(Index),
    Number(f64),
    Truth(bool),
    Function(Function),
}

/// What a function does with its arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    /// Of one number.
    Number(Unary),
    /// Of a number or an integer.
    Abs,
    /// Of a number; an integer stays itself.
    Floor,
    /// Makes an integer a number.
    ToFloat,
    /// Makes a number an integer.
    ToInt,
    Relu,
    LogAddExp,
    Select,
    Powi,
    Random,
    /// Of two numbers or two integers. At the head of a stage, with one argument, a reduction.
    Either(Binary),
    /// Of two integers.
    Integer(Binary),
    /// Of a vector's elements. At the head of a stage `sum` is a reduction.
    Lane(Unary),
    /// `lse`: only at the head of a stage.
    Reduction,
}

use Function as F;

/// Every reserved name.
const NAMES: &[(&str, Known)] = &[
    ("score", Known::Var(Var::Score)),
    ("x", Known::Var(Var::X)),
    ("b", Known::Index(Index::Batch)),
    ("h", Known::Index(Index::Head)),
    ("hkv", Known::Index(Index::HeadKv)),
    ("q", Known::Index(Index::Query)),
    ("k", Known::Index(Index::Key)),
    ("q0", Known::Index(Index::QueryAxis(0))),
    ("q1", Known::Index(Index::QueryAxis(1))),
    ("q2", Known::Index(Index::QueryAxis(2))),
    ("k0", Known::Index(Index::KeyAxis(0))),
    ("k1", Known::Index(Index::KeyAxis(1))),
    ("k2", Known::Index(Index::KeyAxis(2))),
    ("d", Known::Index(Index::Lane)),
    ("dim", Known::Index(Index::Dim)),
    ("inf", Known::Number(f64::INFINITY)),
    ("pi", Known::Number(std::f64::consts::PI)),
    ("true", Known::Truth(true)),
    ("false", Known::Truth(false)),
    ("select", Known::Function(F::Select)),
    ("min", Known::Function(F::Either(Binary::Min))),
    ("max", Known::Function(F::Either(Binary::Max))),
    ("abs", Known::Function(F::Abs)),
    ("exp", Known::Function(F::Number(Unary::Exp))),
    ("exp2", Known::Function(F::Number(Unary::Exp2))),
    ("log", Known::Function(F::Number(Unary::Log))),
    ("log2", Known::Function(F::Number(Unary::Log2))),
    ("expm1", Known::Function(F::Number(Unary::Expm1))),
    ("log1p", Known::Function(F::Number(Unary::Log1p))),
    ("sqrt", Known::Function(F::Number(Unary::Sqrt))),
    ("rsqrt", Known::Function(F::Number(Unary::Rsqrt))),
    ("tanh", Known::Function(F::Number(Unary::Tanh))),
    ("sigmoid", Known::Function(F::Number(Unary::Sigmoid))),
    ("softplus", Known::Function(F::Number(Unary::Softplus))),
    ("relu", Known::Function(F::Relu)),
    ("erf", Known::Function(F::Number(Unary::Erf))),
    ("sin", Known::Function(F::Number(Unary::Sin))),
    ("cos", Known::Function(F::Number(Unary::Cos))),
    ("floor", Known::Function(F::Floor)),
    ("powi", Known::Function(F::Powi)),
    ("stop_grad", Known::Function(F::Number(Unary::StopGrad))),
    ("float", Known::Function(F::ToFloat)),
    ("int", Known::Function(F::ToInt)),
    ("random", Known::Function(F::Random)),
    ("bitand", Known::Function(F::Integer(Binary::BitAnd))),
    ("bitor", Known::Function(F::Integer(Binary::BitOr))),
    ("bitxor", Known::Function(F::Integer(Binary::BitXor))),
    ("shl", Known::Function(F::Integer(Binary::Shl))),
    ("shr", Known::Function(F::Integer(Binary::Shr))),
    ("logaddexp", Known::Function(F::LogAddExp)),
    ("sum", Known::Function(F::Lane(Unary::LaneSum))),
    ("half", Known::Function(F::Lane(Unary::LaneHalf))),
    ("pair", Known::Function(F::Lane(Unary::LanePair))),
    ("lse", Known::Function(F::Reduction)),
];

/// What a name means, where it is a reserved one.
pub(super) fn known(name: &str) -> Option<Known> {
    NAMES.iter().find(|(known, _)| *known == name).map(|&(_, known)| known)
}

/// The name of a function.
pub(super) fn name_of(function: Function) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == Known::Function(function)).map_or("", |&(name, _)| name)
}

/// Every function's name.
pub(super) fn functions<'n>() -> impl Iterator<Item = &'n str> {
    NAMES.iter().filter(|(_, known)| matches!(known, Known::Function(_))).map(|&(name, _)| name)
}

/// The names that stand alone in a field of a problem of `rank` token axes.
pub(super) fn values<'n>(field: Field, rank: usize) -> impl Iterator<Item = &'n str> {
    let stands = move |known: &Known| match known {
        Known::Index(Index::QueryAxis(axis) | Index::KeyAxis(axis)) => usize::from(*axis) < rank,
        Known::Function(_) => false,
        _ => true,
    };
    NAMES
        .iter()
        .filter(move |(_, known)| stands(known) && belongs(*known, field).is_ok())
        .map(|&(name, _)| name)
}

/// Whether a name has a meaning in a field; otherwise where it has one.
pub(super) fn belongs(known: Known, field: Field) -> Result<(), &'static str> {
    let (belongs, place) = match known {
        Known::Var(Var::Score) => (field == Field::Score, "score is of the score text"),
        Known::Var(_) => {
            (field == Field::Row || field.is_mod(), "x is of row, query_mod, key_mod and value_mod")
        }
        Known::Index(Index::Lane | Index::Dim) => {
            (field.is_mod(), "d and dim are of query_mod, key_mod and value_mod")
        }
        Known::Index(Index::Query | Index::QueryAxis(_)) => (
            !matches!(field, Field::KeyMod | Field::ValueMod),
            "the vector of a key is the same for every query",
        ),
        Known::Index(Index::Key | Index::KeyAxis(_)) => {
            (field != Field::QueryMod, "the vector of a query is the same for every key")
        }
        Known::Function(Function::Random) => (!field.is_mod(), "random numbers are of pairs, not of vectors"),
        Known::Function(Function::Lane(_)) => (field.is_mod(), "it is of query_mod, key_mod and value_mod"),
        Known::Function(Function::Reduction) => (field == Field::Row, "lse is of the row text"),
        _ => return Ok(()),
    };
    if belongs { Ok(()) } else { Err(place) }
}

/// Whether a name has a meaning in texts, so that no captured tensor can have it.
pub fn is_reserved(name: &str) -> bool {
    known(name).is_some()
}

/// Whether a name is made of letters, digits and `_`, and begins with no digit.
pub(super) fn is_identifier(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

/// Checks that a captured tensor, or a stage, can have this name.
///
/// # Errors
/// [`Error::Invalid`] where it is not an identifier or is reserved.
pub fn check_name(name: &str) -> Result<()> {
    if !is_identifier(name) {
        let rule = "must be letters, digits and '_', and begin with no digit";
        return Err(Error::invalid("name", format!("'{name}'"), rule, "for example slope"));
    }
    if is_reserved(name) {
        let rule = "has a meaning in programs";
        return Err(Error::invalid("name", format!("'{name}'"), rule, "take another name"));
    }
    Ok(())
}

/// The known name that a mistyped one is nearest to, within two letters and half its length.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // A name this long is no slip of any known one, and the table below is quadratic.
    if name.len() > 64 {
        return None;
    }
    let limit = (name.len() / 2).min(2);
    let distances = known.filter(|k| k.len() <= 66).map(|k| (distance(name.as_bytes(), k.as_bytes()), k));
    distances.filter(|&(distance, _)| distance <= limit).min_by_key(|&(distance, _)| distance).map(|(_, k)| k)
}

/// Letters to insert, delete or replace to make one name the other.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `max(x, 0)`, of derivative 0 at 0.
pub(super) fn relu(graph: &mut Graph, x: Expr) -> Expr {
    let zero = graph.float(0.0);
    let is_positive = graph.compare(Compare::Lt, zero, x);
    graph.select(is_positive, x, zero)
}

/// `ln(e^a + e^b)`. Equal arguments go a way of their own, on which the infinities do not meet in a difference.
pub(super) fn log_add_exp(graph: &mut Graph, a: Expr, b: Expr) -> Expr {
    let max = graph.binary(Binary::Max, a, b);
    let difference = graph.sub(a, b);
    let distance = graph.unary(Unary::Abs, difference);
    let exponent = graph.unary(Unary::Neg, distance);
    let power = graph.unary(Unary::Exp, exponent);
    let rest = graph.unary(Unary::Log1p, power);
    let ln2 = graph.float(std::f64::consts::LN_2);
    let (of_equal, of_others) = (graph.add(max, ln2), graph.add(max, rest));
    let is_equal = graph.compare(Compare::Eq, a, b);
    graph.select(is_equal, of_equal, of_others)
}
