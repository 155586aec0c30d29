//! Captured tensors of a run, and tables like them: where an element lies, reading it, writing it.

use std::cell::Cell;

use natten_core::program::Buffer;
use natten_core::{DType, MAX_CAPTURES, Role};

use super::Place;
use crate::element::{Real, read_number, write_number};
use crate::engine::Tensors;
use crate::view::{MAX_AXES, View, ViewMut};

/// The extents of a tensor of any rank, and the way along each axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    extents: [usize; MAX_AXES],
    strides: [isize; MAX_AXES],
}

/// Where the lanes of a row lie.
pub(super) enum Offsets {
    /// The first, and the distance of neighbours.
    Even(isize, isize),
    /// What the axes that lanes do not change add up to.
    Anywhere(isize),
}

impl Grid {
    pub(super) fn new(shape: &[usize], strides: &[isize]) -> Self {
        let mut grid = Self { extents: [1; MAX_AXES], strides: [0; MAX_AXES] };
        grid.extents[..shape.len()].copy_from_slice(shape);
        grid.strides[..strides.len()].copy_from_slice(strides);
        grid
    }

    /// An index, clamped into its axis, as an offset.
    #[inline(always)]
    fn step(&self, axis: usize, index: i32) -> isize {
        let index = usize::try_from(index).unwrap_or(0).min(self.extents[axis] - 1);
        index.cast_signed() * self.strides[axis]
    }

    /// The offsets of a row's `lanes` lanes; rows of registers are `stride` apart.
    #[inline(always)]
    pub(super) fn row(
        &self,
        place: &Place,
        at: impl Fn(usize) -> i32,
        row: usize,
        lanes: usize,
        stride: usize,
    ) -> Offsets {
        let mut first = 0;
        for (axis, register) in place.axes.iter().enumerate().filter(|(_, register)| !register.lanes) {
            first += self.step(axis, at(register.row(row, stride)));
        }
        if let Some(axis) = place.along {
            let start = i64::from(at(place.axes[axis].row(row, stride)));
            if start >= 0 && start + lanes as i64 <= self.extents[axis] as i64 {
                return Offsets::Even(first + start as isize * self.strides[axis], self.strides[axis]);
            }
        }
        match place.axes.iter().any(|register| register.lanes) {
            true => Offsets::Anywhere(first),
            false => Offsets::Even(first, 0),
        }
    }

    /// The offset of one lane, from what [`Offsets::Anywhere`] gives.
    #[inline(always)]
    pub(super) fn lane(
        &self,
        place: &Place,
        at: impl Fn(usize) -> i32,
        row: usize,
        lane: usize,
        stride: usize,
        first: isize,
    ) -> isize {
        let mut offset = first;
        for (axis, register) in place.axes.iter().enumerate().filter(|(_, register)| register.lanes) {
            offset += self.step(axis, at(register.row(row, stride) + lane));
        }
        offset
    }

    /// The offset of an element by its row-major number.
    fn nth(&self, index: usize) -> isize {
        let (mut rest, mut offset) = (index, 0);
        for (&extent, &stride) in self.extents.iter().zip(&self.strides).rev() {
            offset += (rest % extent).cast_signed() * stride;
            rest /= extent;
        }
        offset
    }
}

/// A captured tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Captured {
    data: *const u8,
    dtype: DType,
    grid: Grid,
}

impl Captured {
    fn new(view: &View<'_>) -> Self {
        Self { data: view.data(), dtype: view.dtype(), grid: Grid::new(view.shape(), view.strides()) }
    }

    #[inline(always)]
    fn at(&self, offset: isize) -> *const u8 {
        self.data.wrapping_offset(offset * self.dtype.size().cast_signed())
    }

    /// Reads a number.
    ///
    /// # Safety
    /// The offset is that of an element.
    #[inline(always)]
    unsafe fn number(&self, offset: isize) -> f64 {
        // SAFETY: the caller's; views are aligned to their type.
        unsafe { read_number(self.dtype, self.at(offset)) }
    }

    /// Loads the lanes of a row as numbers.
    #[inline(always)]
    pub(super) fn numbers<R: Real>(
        &self,
        place: &Place,
        at: &[i32],
        row: usize,
        stride: usize,
        to: &mut [R],
    ) {
        match self.grid.row(place, |i| at[i], row, to.len(), stride) {
            // SAFETY: every index was clamped into its axis, and the view was checked against its memory when it was made.
            Offsets::Even(first, step) if self.dtype.accumulator() == R::DTYPE => unsafe {
                R::read(self.dtype, self.at(first), step, to);
            },
            Offsets::Even(first, step) => {
                for (lane, to) in to.iter_mut().enumerate() {
                    // SAFETY: as above.
                    *to = R::of(unsafe { self.number(first + lane as isize * step) });
                }
            }
            Offsets::Anywhere(first) => {
                for (lane, to) in to.iter_mut().enumerate() {
                    let offset = self.grid.lane(place, |i| at[i], row, lane, stride, first);
                    // SAFETY: as above.
                    *to = R::of(unsafe { self.number(offset) });
                }
            }
        }
    }

    /// Loads the lanes of a row as integers.
    #[inline(always)]
    pub(super) fn integers(
        &self,
        place: &Place,
        at: &[Cell<i32>],
        row: usize,
        stride: usize,
        to: &[Cell<i32>],
    ) {
        let offsets = self.grid.row(place, |i| at[i].get(), row, to.len(), stride);
        for (lane, to) in to.iter().enumerate() {
            let offset = match offsets {
                Offsets::Even(first, step) => first + lane as isize * step,
                Offsets::Anywhere(first) => self.grid.lane(place, |i| at[i].get(), row, lane, stride, first),
            };
            // SAFETY: as above; a tensor that is loaded as integers holds them.
            to.set(unsafe { self.at(offset).cast::<i32>().read() });
        }
    }
}

/// The captured tensors of a run, and their tangents, by number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CapturedSet {
    values: [Option<Captured>; MAX_CAPTURES],
    tangents: [Option<Captured>; MAX_CAPTURES],
}

// SAFETY: made from views, which are `Send` and `Sync`, and only read.
unsafe impl Send for CapturedSet {}
// SAFETY: as above.
unsafe impl Sync for CapturedSet {}

impl CapturedSet {
    /// Those among a run's tensors, which outlive the set.
    pub(crate) fn new(tensors: &Tensors<'_, '_, '_>) -> Self {
        let find = |role: fn(u8) -> Role| {
            std::array::from_fn(|number| tensors.input(role(number as u8)).map(Captured::new))
        };
        Self { values: find(Role::Capture), tangents: find(Role::TangentCapture) }
    }

    /// The tensor that a load reads.
    #[inline(always)]
    pub(super) fn of(&self, buffer: Buffer) -> Option<&Captured> {
        let set = if buffer.tangent { &self.tangents } else { &self.values };
        set[buffer.capture as usize].as_ref()
    }
}

/// A captured tensor's gradient, or a tensor that it is added to, by row-major number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    data: *mut u8,
    dtype: DType,
    grid: Grid,
}

// SAFETY: made from a `ViewMut`, which is `Send`; every element is written by one thread.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The elements of an output.
    pub(crate) fn new(view: &mut ViewMut<'_>) -> Self {
        let grid = Grid::new(view.shape(), view.strides());
        Self { data: view.data(), dtype: view.dtype(), grid }
    }

    /// Writes an element, rounded once.
    ///
    /// # Safety
    /// The tensor has such an element and lives, and no other thread writes it.
    pub(crate) unsafe fn set(&self, index: usize, value: f64) {
        let to = self.data.wrapping_offset(self.grid.nth(index) * self.dtype.size().cast_signed());
        // SAFETY: the caller's; views are aligned to their type.
        unsafe { write_number(self.dtype, to, value) };
    }
}
