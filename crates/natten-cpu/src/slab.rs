//! Memory of a workspace that several threads work in, each in parts of its own; and the cutting of a workspace into
//! typed pieces.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use crate::engine::{Line, lines};

/// A run of numbers that threads share out among themselves.
#[derive(Debug)]
pub(crate) struct Slab<'m, T> {
    data: *mut T,
    len: usize,
    memory: PhantomData<&'m mut [T]>,
}

impl<T> Clone for Slab<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slab<'_, T> {}

// SAFETY: whoever takes a part vouches that no other thread has it.
unsafe impl<T: Send> Send for Slab<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Slab<'_, T> {}

impl<'m, T> Slab<'m, T> {
    pub(crate) const fn new(memory: &'m mut [T]) -> Self {
        Self { data: memory.as_mut_ptr(), len: memory.len(), memory: PhantomData }
    }

    /// Whether there is no number.
    pub(crate) const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The first number of a part, for those who write elements of it that nobody else writes.
    pub(crate) fn pointer(self, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "a part of the slab");
        self.data.wrapping_add(range.start)
    }

    /// A part; nothing of an empty slab.
    ///
    /// # Safety
    /// Nobody else has any of it.
    pub(crate) unsafe fn part(self, range: Range<usize>) -> &'m mut [T] {
        if self.is_empty() {
            return &mut [];
        }
        // SAFETY: inside the memory, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(&range), range.len()) }
    }

    /// A part to read; nothing of an empty slab.
    ///
    /// # Safety
    /// Nobody writes to it any more.
    pub(crate) unsafe fn read(self, range: Range<usize>) -> &'m [T] {
        if self.is_empty() {
            return &[];
        }
        // SAFETY: inside the memory, to which the caller vouches that nobody writes.
        unsafe { std::slice::from_raw_parts(self.pointer(&range), range.len()) }
    }
}

/// The lines of a piece of `count` numbers, as [`take`] cuts it.
pub(crate) fn lines_of<T>(count: usize) -> usize {
    lines(count.saturating_mul(size_of::<T>()))
}

/// Cuts a piece of `count` numbers off the front of a memory.
pub(crate) fn take<'m, T: Pod>(memory: &mut &'m mut [Line], count: usize) -> &'m mut [T] {
    let (piece, rest) = std::mem::take(memory).split_at_mut(lines_of::<T>(count));
    *memory = rest;
    &mut bytemuck::cast_slice_mut(piece)[..count]
}
