//! The vectors of a chunk's tokens on their way between tensors and scratch. Compiled once an instruction set, however
//! many tensors there are.

use crate::dispatch::{Work, run_on};
use crate::element::Real;
use crate::simd::Simd;
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
    finite: bool,
}

impl<R: Real> Work<R> for Read<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(&mut self) {
        let Run { at, tokens: (first, count), dim } = self.run;
        let (to, stride) = (&mut *self.to.0, self.to.1);
        // SAFETY: whoever reads vouches for the tensor.
        self.finite = unsafe { self.from.pack(at, &Place::line(first, count), dim, stride, to) };
    }
}

/// Writing a run of vectors.
struct Write<'w, R> {
    run: Run,
    from: (&'w [R], usize),
    to: &'w Tokens<R>,
}

impl<R: Real> Work<R> for Write<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(&mut self) {
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
    /// The tokens are inside the tensors, which live and have `dim` numbers a vector.
    pub(super) unsafe fn read(&self, run: Run, from: &Pair<R>, to: &mut Matrix<'_, R>) -> bool {
        to.is_constant = from.1.is_none();
        let mut finite = true;
        for (from, numbers) in [(Some(&from.0), &mut *to.value), (from.1.as_ref(), &mut *to.tangent)] {
            let Some(from) = from else { continue };
            let mut read = Read { run, from, to: (numbers, to.stride), finite: true };
            // SAFETY: the instruction set was detected; the rest is the caller's.
            unsafe { run_on(self.isa, &mut read) };
            finite &= read.finite;
        }
        finite
    }

    /// Writes vectors to the results that are wanted.
    ///
    /// # Safety
    /// As [`read`](Self::read), and no other thread writes these vectors.
    pub(super) unsafe fn write(&self, run: Run, from: &Matrix<'_, R>, to: &Outputs<R>) {
        for (to, numbers) in to.iter().zip([&*from.value, &*from.tangent]) {
            let Some(to) = to else { continue };
            // SAFETY: as above.
            unsafe { run_on(self.isa, &mut Write { run, from: (numbers, from.stride), to }) };
        }
    }
}
