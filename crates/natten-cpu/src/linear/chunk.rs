//! Chunks of neighbouring tokens: how a sequence is cut, the scratch of a thread, and the decay between the tokens of a
//! chunk.

use crate::element::Real;
use crate::simd::Simd;

use super::matrix::{Matrix, Side};
use super::states::ROWS_A_UNIT;

/// A problem, cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) heads_kv: usize,
    pub(super) tokens: usize,
    /// Tokens of a chunk, but perhaps the last.
    pub(super) chunk: usize,
    /// `head_dim` and `head_dim_v`.
    pub(super) dims: [usize; 2],
    /// The same, rounded up to whole vectors: the strides of rows.
    pub(super) strides: [usize; 2],
    /// `chunk`, rounded up to whole vectors.
    pub(super) width: usize,
    /// Whether everything has a tangent.
    pub(super) has_tangents: bool,
    /// Whether there are gradients.
    pub(super) is_backward: bool,
}

impl Cut {
    /// Chunks of a sequence.
    pub(super) const fn chunks(&self) -> usize {
        self.tokens.div_ceil(self.chunk)
    }

    /// Sequences: a batch entry and query head each.
    pub(super) const fn rows(&self) -> usize {
        self.batch.saturating_mul(self.heads)
    }

    /// The first token of a chunk, and how many there are.
    pub(super) const fn tokens_of(&self, chunk: usize) -> (usize, usize) {
        let first = chunk * self.chunk;
        let left = self.tokens - first;
        (first, if left < self.chunk { left } else { self.chunk })
    }

    /// Numbers of a state, in rows of whole vectors.
    pub(super) const fn state(&self) -> usize {
        self.dims[0].saturating_mul(self.strides[1])
    }

    /// Numbers of the states of all chunks.
    pub(super) const fn states(&self) -> usize {
        self.rows().saturating_mul(self.chunks()).saturating_mul(self.state())
    }

    /// Where a chunk's state lies among them.
    pub(super) const fn state_of(&self, row: usize, chunk: usize) -> std::ops::Range<usize> {
        let at = (row * self.chunks() + chunk) * self.state();
        at..at + self.state()
    }

    /// Where a chunk's tokens lie among all rows'.
    pub(super) const fn numbers_of(
        &self,
        row: usize,
        (first, count): (usize, usize),
    ) -> std::ops::Range<usize> {
        let at = row * self.tokens + first;
        at..at + count
    }

    /// A thread's scratch, of matrices of so many rows and strides.
    fn lay<M, N>(&self, mut matrix: impl FnMut(usize, usize) -> M, numbers: [N; ROWS]) -> Parts<M, N> {
        let (chunk, width, [dim, dim_v], [stride, stride_v]) =
            (self.chunk, self.width, self.dims, self.strides);
        let widest = stride.max(stride_v);
        let [backward, forward] = [self.is_backward, !self.is_backward].map(usize::from);
        Parts {
            query: matrix(chunk, stride),
            key: matrix(chunk, stride),
            value: matrix(chunk, stride_v),
            grad: matrix(backward * chunk, stride_v),
            turned: matrix(dim.max(dim_v), width),
            scores: matrix(chunk, width),
            grads: matrix(backward * chunk, width),
            scaled: matrix(chunk.max(ROWS_A_UNIT), widest),
            between: matrix(backward * chunk, stride),
            sums: matrix(chunk, widest),
            sums_key: matrix(backward * chunk, stride),
            sums_value: matrix(backward * chunk, stride_v),
            turned_state: matrix(backward * dim_v, stride),
            state: matrix(forward * dim, stride_v),
            part: matrix(forward * dim, stride_v),
            numbers,
        }
    }

    /// Numbers of a thread's scratch.
    pub(super) fn elements(&self) -> usize {
        let copies = if self.has_tangents { 2 } else { 1 };
        let mut sum = self.width.saturating_mul(ROWS);
        let mut add = |rows: usize, stride: usize| {
            sum = sum.saturating_add(rows.saturating_mul(stride).saturating_mul(copies));
        };
        self.lay(&mut add, [(); ROWS]);
        sum
    }

    /// A thread's scratch, of [`elements`](Self::elements).
    pub(super) fn scratch<'s, R: Real>(&self, memory: &'s mut [R]) -> Scratch<'s, R> {
        let mut rest = memory;
        let mut take = |len: usize| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            part
        };
        let numbers = std::array::from_fn(|_| take(self.width));
        let matrix = |rows: usize, stride: usize| Matrix {
            value: take(rows * stride),
            tangent: if self.has_tangents { take(rows * stride) } else { &mut [] },
            stride,
            is_constant: false,
        };
        self.lay(matrix, numbers)
    }
}

/// Rows of numbers of a chunk's tokens.
const ROWS: usize = 6;

/// A thread's scratch: matrices, and rows of numbers.
#[derive(Debug)]
pub(super) struct Parts<M, N> {
    /// A chunk's vectors.
    pub(super) query: M,
    pub(super) key: M,
    pub(super) value: M,
    /// The cotangents of the output.
    pub(super) grad: M,
    /// Keys or values, a token a column.
    pub(super) turned: M,
    /// `⟨q, k⟩`, then weights.
    pub(super) scores: M,
    /// `⟨do, v⟩`, then its share in gradients.
    pub(super) grads: M,
    /// Vectors with a decay each.
    pub(super) scaled: M,
    /// What comes from beyond the chunk.
    pub(super) between: M,
    /// Outputs, or gradients of queries.
    pub(super) sums: M,
    pub(super) sums_key: M,
    pub(super) sums_value: M,
    /// A state, transposed.
    pub(super) turned_state: M,
    /// A state.
    pub(super) state: M,
    /// A chunk's part of a state.
    pub(super) part: M,
    pub(super) numbers: [N; ROWS],
}

/// The same in memory.
pub(super) type Scratch<'s, R> = Parts<Matrix<'s, R>, &'s mut [R]>;

/// The logarithms of the decays of a chunk, summed from its start, and the sums' tangents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums<'s> {
    pub(super) value: &'s [f64],
    /// Empty where there are no tangents.
    pub(super) tangent: &'s [f64],
}

impl Sums<'_> {
    /// The decay from a token on to the end: `e^(G_C - G_b)`.
    #[inline(always)]
    pub(super) fn decay_to_end<S: Simd>(&self, to: &mut Factors<'_, S::T>) {
        let end = |numbers: &[f64]| numbers.last().copied().unwrap_or(0.0);
        let (last, last_tangent) = (end(self.value), end(self.tangent));
        // SAFETY: the caller's processor has `S`: it runs a kernel of it.
        unsafe { to.fill::<S>(self, |sum| last - sum, |sum| last_tangent - sum) };
    }

    /// The decay from the chunk's start up to a token: `e^G_a`.
    #[inline(always)]
    pub(super) fn decay_from_start<S: Simd>(&self, to: &mut Factors<'_, S::T>) {
        // SAFETY: as above.
        unsafe { to.fill::<S>(self, |sum| sum, |sum| sum) };
    }

    /// The decays from tokens up to token `a`: `e^(G_a - G_b)` for `b <= a`, exponents of what is left after the mask.
    #[inline(always)]
    pub(super) fn up_to<S: Simd>(&self, a: usize, to: &mut Factors<'_, S::T>) {
        let at = |numbers: &[f64]| numbers.get(a).copied().unwrap_or(0.0);
        let (here, here_tangent) = (at(self.value), at(self.tangent));
        let before = Sums { value: &self.value[..=a], tangent: self.tangent.get(..=a).unwrap_or_default() };
        // SAFETY: as above.
        unsafe { to.fill::<S>(&before, |sum| here - sum, |sum| here_tangent - sum) };
    }

    /// The decay over the whole chunk, and the tangent of its logarithm.
    #[inline(always)]
    pub(super) fn whole<S: Simd>(&self, numbers: &mut [S::T]) -> (S::T, S::T) {
        let (last, last_tangent) = (self.value.last(), self.tangent.last());
        let whole = Sums { value: last.map_or(&[], std::slice::from_ref), tangent: &[] };
        whole.decay_from_start::<S>(&mut Factors { value: numbers, tangent: &mut [] });
        (numbers[0], S::T::of(last_tangent.copied().unwrap_or(0.0)))
    }
}

/// A decay a token, and the tangents of its logarithm.
#[derive(Debug)]
pub(super) struct Factors<'f, R> {
    /// Room for whole vectors.
    pub(super) value: &'f mut [R],
    pub(super) tangent: &'f mut [R],
}

impl<R: Real> Factors<'_, R> {
    /// Sets the factors of as many tokens as there are sums.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn fill<S: Simd<T = R>>(
        &mut self,
        sums: &Sums<'_>,
        exponent: impl Fn(f64) -> f64,
        tangent: impl Fn(f64) -> f64,
    ) {
        let count = sums.value.len();
        for (to, &sum) in self.value.iter_mut().zip(sums.value) {
            *to = R::of(exponent(sum));
        }
        let vectors = count.div_ceil(S::LANES);
        self.value[count..vectors * S::LANES].fill(R::ZERO);
        for vector in self.value.chunks_exact_mut(S::LANES).take(vectors) {
            // SAFETY: a whole vector; the instruction set is the caller's.
            unsafe { S::store(vector.as_mut_ptr(), S::exp(S::load(vector.as_ptr()))) };
        }
        for (to, &sum) in self.tangent.iter_mut().zip(sums.tangent) {
            *to = R::of(tangent(sum));
        }
    }

    /// Vectors, each times its factor.
    #[inline(always)]
    pub(super) fn scale(&self, from: Side<'_, R>, count: usize, factor: R, to: &mut Matrix<'_, R>) {
        to.stride = from.row(0).len();
        let stride = to.stride;
        for row in 0..count {
            let x = from.row(row);
            let value = factor * self.value[row];
            for (to, &x) in to.value[row * stride..].iter_mut().zip(x) {
                *to = value * x;
            }
            let Some(to) = to.tangent.get_mut(row * stride..) else { continue };
            let tangent = value * self.tangent[row];
            for (to, &x) in to.iter_mut().zip(x) {
                *to = tangent * x;
            }
            if let Some(x) = from.row_tangent(row) {
                for (to, &x) in to.iter_mut().zip(x) {
                    *to = *to + value * x;
                }
            }
        }
    }
}
