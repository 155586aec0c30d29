//! The tile evaluator: expressions of a program over a tile of pairs, one dispatch an operation and strip of rows.
//!
//! A tile is `rows x WIDTH` numbers, row-major: stationary tokens in lanes, streamed tokens in rows. Every node of a
//! graph is classed by what it depends on, and evaluated no more often than that asks for:
//!
//! | class | depends on | evaluated | lies as |
//! |---|---|---|---|
//! | uniform | batch, heads, numbers of the run | once a tile | `WIDTH` equal lanes |
//! | lane | the stationary token | once a tile | `WIDTH` lanes |
//! | row | the streamed token | once a row | a number a row, `WIDTH` rows side by side |
//! | pair | both, or a number of the tile | once a pair | `WIDTH` lanes a row |
//!
//! so a slope of a head or a table of a query costs nothing where pairs are walked. Pairs are walked in strips of rows
//! that are short enough for all registers of a strip to stay in the first-level cache.
//!
//! Nodes are never fused, and one routine evaluates an operation for all classes: an expression has the same bits in
//! every direction, at every place of a tile and beside any other outputs. A row's extreme is found again by equality.

mod build;
mod code;
mod execute;
mod math;
mod random;
mod run;
mod scatter;
#[cfg(test)]
mod tests;

use natten_core::program::Expr;

pub(crate) use code::TileCode;

/// Where the numbers of a variable are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// One number, in [`TileRun::uniforms`].
    Uniform(usize),
    /// A number a lane, in [`TileRun::lane_numbers`].
    Lane(usize),
    /// A number a row, in [`TileRun::row_numbers`].
    Row(usize),
    /// A number a pair, in [`TileRun::tiles`].
    Tile(usize),
}

/// A result of a tile.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// A number a pair, to the next of [`TileRun::outputs`].
    Tile(Expr),
    /// A condition that the pairs that count have to fulfil too.
    Mask(Expr),
    /// A number that every pair that counts adds to an element of a captured tensor's gradient.
    Scatter {
        /// The captured tensor, by number.
        capture: u8,
        /// Its gradient, among [`TileRun::tables`].
        table: usize,
        /// The element, one integer an axis. An index is clamped into its axis.
        index: Vec<Expr>,
        /// What is added.
        gradient: Expr,
    },
}

/// Row-major numbers, and coordinates along the user's axes, of tokens. Axes that the rank lacks are empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenIndex<'a> {
    pub(crate) flat: &'a [i32],
    pub(crate) axis: [&'a [i32]; 3],
}

/// A captured tensor, contiguous.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Captured<'a, R> {
    /// Numbers. `tangent` is empty where nothing loads it.
    Numbers {
        primal: &'a [R],
        tangent: &'a [R],
    },
    Integers(&'a [i32]),
}

/// One tile: its tokens, its numbers, its results.
#[derive(Debug)]
pub(crate) struct TileRun<'a, R> {
    pub(crate) rows: usize,
    /// Lanes that hold a token. The others, up to `WIDTH`, are computed too, and ignored.
    pub(crate) lanes: usize,
    pub(crate) batch: i32,
    pub(crate) head: i32,
    pub(crate) head_kv: i32,
    /// `WIDTH` each.
    pub(crate) lane_index: &'a TokenIndex<'a>,
    /// `rows` each.
    pub(crate) row_index: &'a TokenIndex<'a>,
    pub(crate) uniforms: &'a [R],
    /// `WIDTH` each.
    pub(crate) lane_numbers: &'a [&'a [R]],
    /// `rows` each.
    pub(crate) row_numbers: &'a [&'a [R]],
    /// `rows x WIDTH` each.
    pub(crate) tiles: &'a [*const R],
    /// By number.
    pub(crate) captures: &'a [Captured<'a, R>],
    /// `rows x WIDTH` each; one may be an input tile.
    pub(crate) outputs: &'a [*mut R],
    /// A row each: the lanes that count. Empty where there are neither masks nor scatters.
    pub(crate) masks: &'a mut [u32],
    /// The gradients of captured tensors, each contiguous: where the entry of element 0 is, or would be where a gradient
    /// has some elements alone.
    pub(crate) tables: &'a [*mut f64],
}
