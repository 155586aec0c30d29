//! Matrices with tangents. A product of matrices `c = a b` has the tangent `ċ = ȧ b + a ḃ`, so that everything that a
//! chunk computes is written once, for values and for tangents.

use crate::element::Real;
use crate::simd::{self, Simd};

/// Rows of numbers, `stride` apart, and their tangents. An empty slice is a matrix that is not there: a value that nobody
/// wants, or a tangent that is zero.
#[derive(Debug, Default)]
pub(super) struct Matrix<'m, R> {
    pub(super) value: &'m mut [R],
    pub(super) tangent: &'m mut [R],
    pub(super) stride: usize,
    /// Whether the tangent is zero, and what its memory holds nothing.
    pub(super) is_constant: bool,
}

/// A matrix to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'m, R> {
    value: &'m [R],
    tangent: &'m [R],
    /// The distance of neighbours in a column, and in a row.
    row: usize,
    column: usize,
}

/// A matrix from some element on, if it is there.
fn from<R>(numbers: &[R], at: usize) -> &[R] {
    numbers.get(at..).unwrap_or_default()
}

impl<R: Real> Matrix<'_, R> {
    /// The rows from `first` on, to write.
    pub(super) fn below(&mut self, first: usize) -> Matrix<'_, R> {
        let at = first * self.stride;
        Matrix {
            value: self.value.get_mut(at..).unwrap_or_default(),
            tangent: self.tangent.get_mut(at..).unwrap_or_default(),
            stride: self.stride,
            is_constant: false,
        }
    }

    /// The tangent alone, to write, where there is one: all that is wanted in forward mode.
    pub(super) fn result(&mut self) -> Matrix<'_, R> {
        let all = self.below(0);
        if all.tangent.is_empty() { all } else { Matrix { value: &mut [], ..all } }
    }

    /// To read.
    pub(super) fn side(&self) -> Side<'_, R> {
        let tangent = if self.is_constant { &[] } else { &*self.tangent };
        Side { value: self.value, tangent, row: self.stride, column: 1 }
    }
}

impl<'m, R: Real> Side<'m, R> {
    /// Rows as columns.
    pub(super) fn turned(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    /// From an element on.
    pub(super) fn at(self, row: usize, column: usize) -> Self {
        let at = row * self.row + column * self.column;
        Self { value: from(self.value, at), tangent: from(self.tangent, at), ..self }
    }

    /// A row of the value.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'m [R] {
        &self.value[row * self.row..][..self.row]
    }

    /// A row of the tangent, if it has one.
    #[inline(always)]
    pub(super) fn row_tangent(&self, row: usize) -> Option<&'m [R]> {
        (!self.tangent.is_empty()).then(|| &self.tangent[row * self.row..][..self.row])
    }
}

/// The extents of a product: rows and columns of the result, the columns rounded up to whole vectors, and the length of
/// the sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
}

/// `to = left right`, or `+=` where `adds`; both the value and the tangent, as far as `to` has them.
///
/// Not inlined: all that needs the instruction set is [`Simd::gemm`].
///
/// # Safety
/// The processor has `S`.
#[inline(never)]
pub(super) unsafe fn multiply<S: Simd>(
    extents: Extents,
    left: Side<'_, S::T>,
    right: Side<'_, S::T>,
    to: Matrix<'_, S::T>,
    adds: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        if !to.value.is_empty() {
            product::<S>(extents, (left, left.value), (right, right.value), (to.value, to.stride), adds);
        }
        if to.tangent.is_empty() {
            return;
        }
        let mut adds = adds;
        for (a, b) in [(left.tangent, right.value), (left.value, right.tangent)] {
            if !a.is_empty() && !b.is_empty() {
                product::<S>(extents, (left, a), (right, b), (to.tangent, to.stride), adds);
                adds = true;
            }
        }
        if !adds {
            for row in to.tangent.chunks_mut(to.stride).take(extents.rows) {
                row.fill(S::T::ZERO);
            }
        }
    }
}

/// One product of numbers.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn product<S: Simd>(
    extents: Extents,
    (left, a): (Side<'_, S::T>, &[S::T]),
    (right, b): (Side<'_, S::T>, &[S::T]),
    (c, stride): (&mut [S::T], usize),
    adds: bool,
) {
    let Extents { rows, columns, depth } = extents;
    let vectors = columns.div_ceil(S::LANES);
    let last = |rows: usize, stride: usize| rows.saturating_sub(1) * stride;
    assert!(
        rows > 0
            && (depth == 0 || last(rows, left.row) + last(depth, left.column) < a.len())
            && (depth == 0 || last(depth, right.row) + vectors * S::LANES <= b.len())
            && right.column == 1
            && last(rows, stride) + vectors * S::LANES <= c.len(),
        "matrices of these extents"
    );
    let extents = simd::Extents { rows, vectors, depth };
    let a = simd::Left { data: a.as_ptr(), row: left.row, column: left.column };
    let (b, c) = ((b.as_ptr(), right.row), (c.as_mut_ptr(), stride));
    // SAFETY: the extents were checked; the instruction set is the caller's.
    unsafe { if adds { S::gemm::<true>(extents, a, b, c) } else { S::gemm::<false>(extents, a, b, c) } }
}

/// Writes the transpose of `rows` by `columns` numbers, the lanes behind `rows` zero.
#[inline(always)]
pub(super) fn transpose<R: Real>(rows: usize, columns: usize, from: Side<'_, R>, to: &mut Matrix<'_, R>) {
    transpose_numbers(rows, columns, (from.value, from.row), (to.value, to.stride));
    to.is_constant = from.tangent.is_empty();
    if !to.is_constant {
        transpose_numbers(rows, columns, (from.tangent, from.row), (to.tangent, to.stride));
    }
}

/// Numbers of a side of a block that is transposed at once.
const BLOCK: usize = 8;

#[inline(always)]
fn transpose_numbers<R: Real>(
    rows: usize,
    columns: usize,
    (from, stride): (&[R], usize),
    (to, to_stride): (&mut [R], usize),
) {
    for first_row in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - first_row);
        for first_column in (0..columns).step_by(BLOCK) {
            let width = BLOCK.min(columns - first_column);
            if (height, width) == (BLOCK, BLOCK) {
                let mut block = [[R::ZERO; BLOCK]; BLOCK];
                for (row, block) in block.iter_mut().enumerate() {
                    block.copy_from_slice(&from[(first_row + row) * stride + first_column..][..BLOCK]);
                }
                for column in 0..BLOCK {
                    let turned: [R; BLOCK] = std::array::from_fn(|row| block[row][column]);
                    to[(first_column + column) * to_stride + first_row..][..BLOCK].copy_from_slice(&turned);
                }
                continue;
            }
            for column in first_column..first_column + width {
                for row in first_row..first_row + height {
                    to[column * to_stride + row] = from[row * stride + column];
                }
            }
        }
    }
    for column in to.chunks_mut(to_stride).take(columns) {
        column[rows..].fill(R::ZERO);
    }
}

/// `Σ a b`, in an order that does not depend on the vectors it is computed with.
#[inline(always)]
pub(super) fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    const PARTS: usize = 16;
    let mut parts = [R::ZERO; PARTS];
    let (a_chunks, b_chunks) = (a.chunks_exact(PARTS), b.chunks_exact(PARTS));
    for ((part, &a), &b) in parts.iter_mut().zip(a_chunks.remainder()).zip(b_chunks.remainder()) {
        *part = a * b;
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((part, &a), &b) in parts.iter_mut().zip(a).zip(b) {
            *part = *part + a * b;
        }
    }
    let mut width = PARTS;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            parts[i] = parts[i] + parts[i + width];
        }
    }
    parts[0]
}
