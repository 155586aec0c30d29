//! The matrix product of the kernels: a register block of rows by one or two vectors, its left side broadcast a number
//! at a time from anywhere, its right side loaded a vector at a time from rows. Scores and gradients of weights read
//! the streamed rows as the left side; outputs and gradients of vectors read them as the right side, so neither is
//! ever transposed.

use super::Simd;

/// A matrix whose element `(i, j)` is `data[i * row + j * column]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<T> {
    pub(crate) data: *const T,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// The extents of a product: rows of the result, vectors of its rows, and the length of the sums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    pub(crate) rows: usize,
    pub(crate) vectors: usize,
    pub(crate) depth: usize,
}

/// The body of [`Simd::gemm`].
///
/// # Safety
/// As [`Simd::gemm`].
#[inline(always)]
pub(super) unsafe fn gemm<S: Simd, const ACCUMULATE: bool>(
    Extents { rows, vectors, depth }: Extents,
    a: Left<S::T>,
    b: (*const S::T, usize),
    c: (*mut S::T, usize),
) {
    let mut vector = 0;
    while vector < vectors {
        let wide = vectors - vector >= 2;
        let column = vector * S::LANES;
        let mut row = 0;
        // SAFETY: `row` and `column` stay inside what the caller vouches for.
        unsafe {
            let b = (b.0.add(column), b.1);
            let at = |row: usize| {
                let a = Left { data: a.data.add(row * a.row), ..a };
                (a, (c.0.add(row * c.1 + column), c.1))
            };
            while row < rows {
                let (a, c) = at(row);
                let left = rows - row;
                row += if left >= 8 && S::ROWS >= 8 {
                    panel::<S, 8, ACCUMULATE>(wide, depth, a, b, c)
                } else if left >= 4 {
                    panel::<S, 4, ACCUMULATE>(wide, depth, a, b, c)
                } else if left >= 2 {
                    panel::<S, 2, ACCUMULATE>(wide, depth, a, b, c)
                } else {
                    panel::<S, 1, ACCUMULATE>(wide, depth, a, b, c)
                };
            }
        }
        vector += if wide { 2 } else { 1 };
    }
}

#[inline(always)]
unsafe fn panel<S: Simd, const ROWS: usize, const ACCUMULATE: bool>(
    wide: bool,
    depth: usize,
    a: Left<S::T>,
    b: (*const S::T, usize),
    c: (*mut S::T, usize),
) -> usize {
    // SAFETY: the caller's bounds.
    unsafe {
        if wide {
            block::<S, ROWS, 2, ACCUMULATE>(depth, a, b, c);
        } else {
            block::<S, ROWS, 1, ACCUMULATE>(depth, a, b, c);
        }
    }
    ROWS
}

#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over indices of constant bound stay in registers")]
unsafe fn block<S: Simd, const ROWS: usize, const VECTORS: usize, const ACCUMULATE: bool>(
    depth: usize,
    a: Left<S::T>,
    b: (*const S::T, usize),
    c: (*mut S::T, usize),
) {
    // SAFETY: the caller's bounds; every index below is one of theirs.
    unsafe {
        let mut sums = [[S::splat(crate::element::Real::of(0.0)); VECTORS]; ROWS];
        if ACCUMULATE {
            for i in 0..ROWS {
                for j in 0..VECTORS {
                    sums[i][j] = S::load(c.0.add(i * c.1 + j * S::LANES));
                }
            }
        }
        let (mut a_at, mut b_at) = (a.data, b.0);
        for _ in 0..depth {
            let mut right = [S::splat(crate::element::Real::of(0.0)); VECTORS];
            for j in 0..VECTORS {
                right[j] = S::load(b_at.add(j * S::LANES));
            }
            for i in 0..ROWS {
                let left = S::splat(*a_at.add(i * a.row));
                for j in 0..VECTORS {
                    sums[i][j] = S::mul_add(left, right[j], sums[i][j]);
                }
            }
            a_at = a_at.wrapping_add(a.column);
            b_at = b_at.wrapping_add(b.1);
        }
        for i in 0..ROWS {
            for j in 0..VECTORS {
                S::store(c.0.add(i * c.1 + j * S::LANES), sums[i][j]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use natten_core::Element;

    use super::super::{Isa, Portable};
    use super::*;
    use crate::element::Real;

    fn check<S: Simd>() {
        for (rows, vectors, depth) in [(1, 1, 1), (3, 2, 5), (8, 3, 4), (13, 1, 7), (16, 4, 0), (7, 2, 33)] {
            let columns = vectors * S::LANES;
            let number = |i: usize| S::T::of(((i * 37) % 19) as f64 - 9.0);
            // Stored transposed, as weights are when outputs are accumulated.
            let a: Vec<_> = (0..rows * depth).map(number).collect();
            let b: Vec<_> = (0..depth * columns).map(|i| number(i + 5)).collect();
            let start: Vec<_> = (0..rows * columns).map(|i| number(i + 3)).collect();
            for accumulate in [false, true] {
                let mut c = start.clone();
                let left = Left { data: a.as_ptr(), row: 1, column: rows };
                // SAFETY: the callers check the instruction set; the buffers have the sizes given.
                unsafe {
                    let extents = Extents { rows, vectors, depth };
                    if accumulate {
                        S::gemm::<true>(extents, left, (b.as_ptr(), columns), (c.as_mut_ptr(), columns));
                    } else {
                        S::gemm::<false>(extents, left, (b.as_ptr(), columns), (c.as_mut_ptr(), columns));
                    }
                }
                for i in 0..rows {
                    for j in 0..columns {
                        let product: f64 =
                            (0..depth).map(|k| a[k * rows + i].to_f64() * b[k * columns + j].to_f64()).sum();
                        let base = if accumulate { start[i * columns + j].to_f64() } else { 0.0 };
                        assert_eq!(
                            c[i * columns + j].to_f64(),
                            base + product,
                            "{rows} {vectors} {depth} at {i} {j}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn products_match_a_plain_loop() {
        check::<<Portable as Isa>::F32>();
        check::<<Portable as Isa>::F64>();
        #[cfg(target_arch = "x86_64")]
        {
            use super::super::{Avx2, Avx512};
            if crate::Isa::Avx2.is_available() {
                check::<<Avx2 as Isa>::F32>();
                check::<<Avx2 as Isa>::F64>();
            }
            if crate::Isa::Avx512.is_available() {
                check::<<Avx512 as Isa>::F32>();
                check::<<Avx512 as Isa>::F64>();
            }
        }
    }
}
