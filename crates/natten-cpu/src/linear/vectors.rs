//! The vectors of a chunk's tokens on their way between tensors and scratch. Compiled once an instruction set, however
//! many tensors there are.

use crate::element::Real;
use crate::simd::{Outlined, Simd};
use crate::tokens::{Place, Tokens};

use super::matrix::Matrix;
use super::{Kernel, Outputs, Pair};

/// The vectors of some neighbouring tokens of one head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The batch entry and head.
    pub(super) at: (usize, usize),
    /// The first token, and how many there are.
    pub(super) tokens: (usize, usize),
    /// Numbers of a vector.
    pub(super) dim: usize,
}

/// Reading a run of vectors.
struct Read<'r, R> {
    run: Run,
    from: &'r Tokens<R>,
    to: (&'r mut [R], usize),
    finite: &'r mut bool,
}

impl<R: Real> Outlined for Read<'_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        let Run { at, tokens: (first, count), dim } = self.run;
        let (to, stride) = self.to;
        // SAFETY: whoever reads vouches for the tensor.
        *self.finite &= unsafe { self.from.pack(at, &Place::line(first, count), dim, stride, to) };
    }
}

/// Writing a run of vectors.
struct Write<'w, R> {
    run: Run,
    from: (&'w [R], usize),
    to: &'w Tokens<R>,
}

impl<R: Real> Outlined for Write<'_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        let Run { at: (batch, head), tokens: (first, count), dim } = self.run;
        for token in 0..count {
            let vector = &self.from.0[token * self.from.1..][..dim];
            // SAFETY: whoever writes vouches for the tensor.
            unsafe { self.to.write(batch, [0, 0, first + token], head, vector) };
        }
    }
}

impl<R: Real> Kernel<'_, R> {
    /// Reads vectors; a tangent that is not given is zero. Returns whether all numbers are finite.
    ///
    /// # Safety
    /// The processor has `S`; the tokens are inside the tensors, which live and have `dim` numbers a vector.
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd<T = R>>(
        &self,
        run: Run,
        from: &Pair<R>,
        to: &mut Matrix<'_, R>,
    ) -> bool {
        to.is_constant = from.1.is_none();
        let mut finite = true;
        for (from, numbers) in [(Some(&from.0), &mut *to.value), (from.1.as_ref(), &mut *to.tangent)] {
            let Some(from) = from else { continue };
            // SAFETY: the caller's.
            unsafe { S::outlined(Read { run, from, to: (numbers, to.stride), finite: &mut finite }) };
        }
        finite
    }

    /// Writes vectors to the results that are wanted.
    ///
    /// # Safety
    /// As [`read`](Self::read), and no other thread writes these vectors.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd<T = R>>(&self, run: Run, from: &Matrix<'_, R>, to: &Outputs<R>) {
        for (to, numbers) in to.iter().zip([&*from.value, &*from.tangent]) {
            let Some(to) = to else { continue };
            // SAFETY: as above.
            unsafe { S::outlined(Write { run, from: (numbers, from.stride), to }) };
        }
    }
}
