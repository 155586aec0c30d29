//! Tensors as kernels see them: a pointer and six strides (batch, three token axes, head, number), and the packing of
//! their rows into the type that kernels compute in.

use std::marker::PhantomData;

use natten_core::DType;
use natten_core::geometry::{Axis, TileBox};

use crate::element::{Real, write_number};
use crate::view::{View, ViewMut};

/// A tensor of a run, whose numbers are computed with as `R`. Tensors of lower rank have stride 0 on the axes that they
/// lack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens<R> {
    data: *mut u8,
    dtype: DType,
    strides: [isize; 6],
    compute: PhantomData<R>,
}

// SAFETY: made from views, which are `Send` and `Sync`; kernels read inputs only, and write each element of an output
// from one task.
unsafe impl<R> Send for Tokens<R> {}
// SAFETY: as above.
unsafe impl<R> Sync for Tokens<R> {}

/// The six strides of a tensor of layout `[B, tokens…, H, D]`, or `[B, tokens…, H]` where `has_numbers` is false.
fn six(strides: &[isize], has_numbers: bool) -> [isize; 6] {
    let trailing = if has_numbers { 2 } else { 1 };
    let axes = strides.len() - 1 - trailing;
    let mut six = [0; 6];
    six[0] = strides[0];
    six[4 - axes..4].copy_from_slice(&strides[1..=axes]);
    six[4..4 + trailing].copy_from_slice(&strides[1 + axes..]);
    six
}

impl<R: Real> Tokens<R> {
    fn new(data: *mut u8, dtype: DType, strides: [isize; 6]) -> Self {
        debug_assert_eq!(dtype.accumulator(), R::DTYPE);
        Self { data, dtype, strides, compute: PhantomData }
    }

    /// An input of vectors, `[B, tokens…, H, D]`.
    pub(crate) fn input(view: &View<'_>) -> Self {
        Self::new(view.data().cast_mut(), view.dtype(), six(view.strides(), true))
    }

    /// An output of vectors.
    pub(crate) fn output(view: &mut ViewMut<'_>) -> Self {
        Self::new(view.data(), view.dtype(), six(view.strides(), true))
    }

    /// An input of one number a query and head, `[B, tokens…, H]`.
    pub(crate) fn row_input(view: &View<'_>) -> Self {
        Self::new(view.data().cast_mut(), view.dtype(), six(view.strides(), false))
    }

    /// An output of one number a query and head.
    pub(crate) fn row_output(view: &mut ViewMut<'_>) -> Self {
        Self::new(view.data(), view.dtype(), six(view.strides(), false))
    }

    /// One number a query and head, contiguous in memory of the workspace.
    pub(crate) fn rows(memory: &mut [R], axes: &[Axis; 3], heads: usize) -> Self {
        Self::contiguous(memory, axes.each_ref().map(Axis::query_len), heads, 1)
    }

    /// Vectors of `dim` numbers a token and head, contiguous in memory of the workspace.
    pub(crate) fn contiguous(memory: &mut [R], [z, y, x]: [usize; 3], heads: usize, dim: usize) -> Self {
        let vectors = heads * dim;
        let strides =
            [z * y * x * vectors, y * x * vectors, x * vectors, vectors, dim, 1].map(usize::cast_signed);
        Self::new(memory.as_mut_ptr().cast(), R::DTYPE, strides)
    }

    /// The first number of a token's vector.
    #[inline(always)]
    fn at(&self, batch: usize, token: [usize; 3], head: usize) -> *mut u8 {
        let index = [batch, token[0], token[1], token[2], head];
        let mut offset = 0;
        for (i, index) in index.into_iter().enumerate() {
            offset += index as isize * self.strides[i];
        }
        self.data.wrapping_offset(offset * self.dtype.size().cast_signed())
    }

    /// Reads a vector of `to.len()` numbers.
    ///
    /// # Safety
    /// The token is inside the tensor, which has `to.len()` numbers a vector and lives.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, batch: usize, token: [usize; 3], head: usize, to: &mut [R]) {
        // SAFETY: the view was checked against its memory when it was made, and the caller stays inside its shape.
        unsafe { R::read(self.dtype, self.at(batch, token, head), self.strides[5], to) };
    }

    /// Writes a vector.
    ///
    /// # Safety
    /// As [`read`](Self::read); the tensor is an output, and no other task writes this vector.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, batch: usize, token: [usize; 3], head: usize, from: &[R]) {
        // SAFETY: as in `read`.
        unsafe { R::write(self.dtype, self.at(batch, token, head), self.strides[5], from) };
    }

    /// Packs the vectors of a box, one after another, `stride` numbers apart with zeros behind `dim`. Returns whether
    /// all are finite.
    ///
    /// # Safety
    /// The box is inside the tensor; `to` has `stride` numbers for every token of the box.
    #[inline(always)]
    pub(crate) unsafe fn pack(
        &self,
        (batch, head): (usize, usize),
        place: &Place,
        dim: usize,
        stride: usize,
        to: &mut [R],
    ) -> bool {
        let mut finite = true;
        let tile = &place.tile;
        let mut row = 0;
        for z in 0..tile.extent[0] {
            for y in 0..tile.extent[1] {
                for x in 0..tile.extent[2] {
                    let vector = &mut to[row * stride..(row + 1) * stride];
                    let (numbers, padding) = vector.split_at_mut(dim);
                    // SAFETY: the caller's.
                    unsafe { self.read(batch, place.token([z, y, x]), head, numbers) };
                    padding.fill(R::ZERO);
                    finite &= all_finite(numbers);
                    row += 1;
                }
            }
        }
        finite
    }

    /// Reads one number a query and head.
    ///
    /// # Safety
    /// The token is inside the tensor.
    #[inline(always)]
    pub(crate) unsafe fn number(&self, batch: usize, token: [usize; 3], head: usize) -> R {
        // SAFETY: the caller's; numbers a row are stored as they are computed.
        unsafe { *self.at(batch, token, head).cast::<R>() }
    }

    /// Writes one number a query and head.
    ///
    /// # Safety
    /// As [`number`](Self::number); the tensor is an output, and no other task writes this number.
    #[inline(always)]
    pub(crate) unsafe fn set_number(&self, batch: usize, token: [usize; 3], head: usize, value: R) {
        // SAFETY: the caller's; numbers a row are stored as they are computed.
        unsafe { *self.at(batch, token, head).cast::<R>() = value };
    }
}

/// An output by row-major index, whatever its rank: for the few numbers of a table.
#[derive(Debug)]
pub(crate) struct Entries<'v, 'm> {
    view: &'v ViewMut<'m>,
    data: *mut u8,
}

// SAFETY: made from a `ViewMut`, which is `Send`.
unsafe impl Send for Entries<'_, '_> {}
// SAFETY: as above; threads write different elements, each from one task.
unsafe impl Sync for Entries<'_, '_> {}

impl<'v, 'm> Entries<'v, 'm> {
    pub(crate) fn new(view: &'v mut ViewMut<'m>) -> Self {
        let data = view.data();
        Self { view, data }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.view.shape().iter().product()
    }

    /// Writes the number at an index. Threads that share this write different ones.
    pub(crate) fn set<R: Real>(&self, index: usize, value: R) {
        let (mut rest, mut offset) = (index, 0);
        for (&extent, &stride) in self.view.shape().iter().zip(self.view.strides()).rev() {
            offset += (rest % extent).cast_signed() * stride;
            rest /= extent;
        }
        let dtype = self.view.dtype();
        assert_eq!(rest, 0, "an index of the view");
        let to = self.data.wrapping_offset(offset * dtype.size().cast_signed());
        // SAFETY: the view was checked against its memory when it was made, the index is inside its shape, and the view
        // is borrowed mutably.
        unsafe { write_number(dtype, to, value.to_f64()) };
    }
}

/// A box, and the way from its positions to tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) tile: TileBox,
    dilation: [usize; 3],
}

impl Place {
    /// A box on the axes of a neighborhood.
    pub(crate) fn new(axes: &[Axis; 3], tile: TileBox) -> Self {
        Self { tile, dilation: axes.each_ref().map(Axis::dilation) }
    }

    /// A run of tokens on one axis: additional tokens.
    pub(crate) fn line(first: usize, count: usize) -> Self {
        Self {
            tile: TileBox { group: [0; 3], start: [0, 0, first], extent: [1, 1, count] },
            dilation: [1; 3],
        }
    }

    /// Another box on the same axes.
    pub(crate) fn with(&self, tile: TileBox) -> Self {
        Self { tile, ..*self }
    }

    /// The token at an offset from the box's start.
    #[inline(always)]
    pub(crate) fn token(&self, offset: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| self.tile.group[a] + (self.tile.start[a] + offset[a]) * self.dilation[a])
    }

    /// The token number `index` of the box in row-major order.
    #[inline(always)]
    pub(crate) fn nth(&self, index: usize) -> [usize; 3] {
        let position = self.tile.position(index);
        self.token(std::array::from_fn(|a| position[a] - self.tile.start[a]))
    }
}

/// Whether every number is finite: a product with zero is zero then, and NaN otherwise.
#[inline(always)]
fn all_finite<R: Real>(numbers: &[R]) -> bool {
    // Sums side by side, which are vectors.
    let mut sums = [R::ZERO; 16];
    let chunks = numbers.chunks_exact(sums.len());
    for (sum, &number) in sums.iter_mut().zip(chunks.remainder()) {
        *sum = number * R::ZERO;
    }
    for chunk in chunks {
        for (sum, &number) in sums.iter_mut().zip(chunk) {
            *sum = *sum + number * R::ZERO;
        }
    }
    sums.into_iter().fold(R::ZERO, |all, sum| all + sum) == R::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_numbers_is_finite() {
        assert!(all_finite(&[0.0f32, -1.0, f32::MAX, f32::MIN_POSITIVE]));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!all_finite(&[1.0, bad, 2.0]));
        }
    }

    #[test]
    fn lower_ranks_lack_the_leading_token_axes() {
        assert_eq!(six(&[60, 12, 4, 1], true), [60, 0, 0, 12, 4, 1]);
        assert_eq!(six(&[60, 30, 12, 4], false), [60, 0, 30, 12, 4, 0]);
    }
}
