//! Where tokens lie: the address patterns of boxes of tokens, in a problem's tensors and in transposed copies in SBUF.

use natten_core::geometry::{Axis, TileBox};
use natten_core::{Problem, Role};

/// A pattern of a view: the first element, and (stride, count) pairs.
pub type Pattern = (usize, Vec<(usize, usize)>);

/// A heads-last tensor `[batch, tokens…, heads, dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    tokens: usize,
    heads: usize,
    dim: usize,
    axes: [Axis; 3],
    of_queries: bool,
}

/// What a kernel reads or writes of a token grid: a box of it, or a range of additional tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tokens {
    /// A box.
    Box(TileBox),
    /// A range of a list of tokens, by start and number.
    Range(usize, usize),
}

impl Tokens {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::Box(tile) => tile.volume(),
            Self::Range(_, len) => *len,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Layout {
    /// The layout of a tensor of a problem.
    pub fn of(problem: &Problem, role: Role) -> Self {
        let shape = problem.shape(role);
        let of_queries = matches!(
            role,
            Role::Query
                | Role::Output
                | Role::Logsumexp
                | Role::GradOutput
                | Role::GradLogsumexp
                | Role::GradQuery
                | Role::TangentQuery
                | Role::TangentOutput
                | Role::TangentLogsumexp
        );
        let rank = problem.neighborhood().rank();
        let is_additional = matches!(
            role,
            Role::AdditionalKey
                | Role::AdditionalValue
                | Role::GradAdditionalKey
                | Role::GradAdditionalValue
                | Role::TangentAdditionalKey
                | Role::TangentAdditionalValue
        );
        let grid = if is_additional { 1 } else { rank };
        Self {
            tokens: shape[1..1 + grid].iter().product(),
            heads: shape[1 + grid],
            dim: shape.get(2 + grid).copied().unwrap_or(1),
            axes: *problem.neighborhood().axes(),
            of_queries,
        }
    }

    /// Numbers of rows, `[batch, queries…, heads, len]`.
    pub fn rows(problem: &Problem, len: usize) -> Self {
        Self { dim: len, ..Self::of(problem, Role::Logsumexp) }
    }

    /// Tokens of a batch entry.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Elements of a vector.
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// Tokens along an axis.
    fn extent(&self, axis: usize) -> usize {
        if self.of_queries { self.axes[axis].query_len() } else { self.axes[axis].key_len() }
    }

    /// Tokens in row-major order as (first, pattern) in units of tokens.
    pub fn places(&self, tokens: &Tokens) -> Pattern {
        match tokens {
            Tokens::Range(start, len) => (*start, vec![(1, *len)]),
            Tokens::Box(tile) => {
                let mut first = 0;
                let mut pairs = Vec::with_capacity(3);
                let mut pitch: usize = self.tokens;
                for (a, axis) in self.axes.iter().enumerate() {
                    pitch /= self.extent(a);
                    first += axis.token(tile.group[a], tile.start[a]) * pitch;
                    pairs.push((axis.dilation() * pitch, tile.extent[a]));
                }
                (first, compact(pairs))
            }
        }
    }

    /// The vectors of tokens of a head, token by token, elements `from..from + len` of each.
    pub fn vectors(&self, batch: usize, head: usize, tokens: &Tokens, from: usize, len: usize) -> Pattern {
        let (first, mut pairs) = self.places(tokens);
        let pitch = self.heads * self.dim;
        pairs.iter_mut().for_each(|(stride, _)| *stride *= pitch);
        pairs.push((1, len));
        ((batch * self.tokens + first) * pitch + head * self.dim + from, pairs)
    }

    /// The vectors of tokens of a head, element by element: what a transposing load reads.
    pub fn transposed(&self, batch: usize, head: usize, tokens: &Tokens, from: usize, len: usize) -> Pattern {
        let (first, mut pairs) = self.vectors(batch, head, tokens, from, len);
        pairs.rotate_right(1);
        (first, pairs)
    }
}

/// Pairs without those of one element; neighbours that go on from each other become one.
fn compact(pairs: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::with_capacity(pairs.len());
    for (stride, count) in pairs {
        if count == 1 {
            continue;
        }
        match out.last_mut() {
            Some((outer, outer_count)) if *outer == stride * count => {
                *outer = stride;
                *outer_count *= count;
            }
            _ => out.push((stride, count)),
        }
    }
    if out.is_empty() {
        out.push((1, 1));
    }
    out
}
