//! Captured tensors as the evaluator takes them: contiguous, and of the type that is computed in. Those that already are
//! stay where they are; the others are copied into the workspace, once a run.

use natten_core::{DType, Problem, Role};

use super::walk::MAX_CAPTURES;
use crate::element::{Real, read_number};
use crate::engine::Tensors;
use crate::tile::Captured;
use crate::view::View;

/// A captured tensor, or its tangent, that an operation reads.
#[derive(Clone, Copy, Debug)]
struct Slot {
    role: Role,
    len: usize,
    /// Where its copy begins, in elements.
    at: usize,
}

/// Where copies of captured tensors go.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    slots: Vec<Slot>,
    /// Elements in all, of the type that is computed in.
    pub(super) len: usize,
}

/// Elements that one unit of copying takes.
const CHUNK: usize = 1 << 14;

/// Elements of a cache line of f32.
const LINE: usize = 16;

impl Layout {
    /// The captured tensors of a problem, and the tangents of those in `tangents`.
    pub(super) fn new(problem: &Problem, tangents: &[u8]) -> Self {
        let mut layout = Self::default();
        for n in 0..problem.program().captures().len() as u8 {
            let primal = problem.has_input(Role::Capture(n)).then_some(Role::Capture(n));
            let tangent = tangents.contains(&n).then_some(Role::TangentCapture(n));
            for role in primal.into_iter().chain(tangent) {
                let len = problem.shape(role).iter().product();
                layout.slots.push(Slot { role, len, at: layout.len });
                layout.len = layout.len.saturating_add(len.next_multiple_of(LINE));
            }
        }
        layout
    }

    /// The copies that a run has to make, in `memory`, which has `len` elements.
    pub(super) fn copies<'t, R: Real>(
        &self,
        tensors: &Tensors<'t, 't, '_>,
        memory: &mut [R],
    ) -> Copies<'t, R> {
        let mut copies = Copies { list: [const { None }; 2 * MAX_CAPTURES] };
        for (slot, copy) in self.slots.iter().zip(&mut copies.list) {
            let view = tensors.input(slot.role);
            let stored = |view: &View<'_>| match view.dtype() {
                DType::I32 => true,
                dtype => dtype == R::DTYPE,
            };
            *copy = view.filter(|view| !(stored(view) && is_contiguous(view))).map(|view| Copy {
                view,
                to: memory.as_mut_ptr().wrapping_add(slot.at),
                len: slot.len,
            });
        }
        copies
    }

    /// The captured tensors, once the copies are made.
    ///
    /// # Safety
    /// `memory` is what the copies were made in, and nobody writes it or the tensors for as long as `'a`.
    pub(super) unsafe fn captured<'a, R: Real>(
        &self,
        tensors: &Tensors<'_, '_, '_>,
        copies: &Copies<'_, R>,
    ) -> [Captured<'a, R>; MAX_CAPTURES] {
        let mut captured = [Captured::Numbers { primal: &[][..], tangent: &[][..] }; MAX_CAPTURES];
        for (slot, copy) in self.slots.iter().zip(&copies.list) {
            let Some(view) = tensors.input(slot.role) else { continue };
            let data = copy.as_ref().map_or(view.data(), |copy| copy.to.cast_const().cast());
            let n = match slot.role {
                Role::Capture(n) | Role::TangentCapture(n) => usize::from(n),
                _ => continue,
            };
            // SAFETY: the caller's; the tensor is contiguous, or its copy is.
            unsafe {
                match (&mut captured[n], slot.role) {
                    (to, _) if view.dtype() == DType::I32 => {
                        *to = Captured::Integers(std::slice::from_raw_parts(data.cast(), slot.len));
                    }
                    (Captured::Numbers { primal, .. }, Role::Capture(_)) => {
                        *primal = std::slice::from_raw_parts(data.cast(), slot.len);
                    }
                    (Captured::Numbers { tangent, .. }, _) => {
                        *tangent = std::slice::from_raw_parts(data.cast(), slot.len);
                    }
                    (Captured::Integers(_), _) => {}
                }
            }
        }
        captured
    }
}

/// A tensor that is copied.
#[derive(Debug)]
struct Copy<'t, R> {
    view: &'t View<'t>,
    to: *mut R,
    len: usize,
}

/// The copies of a run.
#[derive(Debug)]
pub(super) struct Copies<'t, R> {
    list: [Option<Copy<'t, R>>; 2 * MAX_CAPTURES],
}

// SAFETY: every unit writes elements of its own.
unsafe impl<R: Send> Send for Copies<'_, R> {}
// SAFETY: as above.
unsafe impl<R: Sync> Sync for Copies<'_, R> {}

impl<R: Real> Copies<'_, R> {
    /// Units of copying.
    pub(super) fn units(&self) -> usize {
        self.list.iter().flatten().map(|copy| copy.len.div_ceil(CHUNK)).sum()
    }

    /// Copies some elements.
    ///
    /// # Safety
    /// The memory that the copies were made for lives, and no other thread has the unit.
    pub(super) unsafe fn copy(&self, mut unit: usize) {
        for copy in self.list.iter().flatten() {
            let units = copy.len.div_ceil(CHUNK);
            if unit < units {
                let (first, len) = (unit * CHUNK, CHUNK.min(copy.len - unit * CHUNK));
                // SAFETY: the caller's; the chunk is inside the copy. An integer takes no more room than a number.
                unsafe {
                    match copy.view.dtype() {
                        DType::I32 => {
                            let to = copy.to.cast::<i32>().add(first);
                            let to = std::slice::from_raw_parts_mut(to, len);
                            for_each_run(copy.view, first, len, |at, stride, run| {
                                for (i, to) in to[run].iter_mut().enumerate() {
                                    *to = *at.cast::<i32>().wrapping_offset(i as isize * stride);
                                }
                            });
                        }
                        dtype => {
                            let to = std::slice::from_raw_parts_mut(copy.to.add(first), len);
                            for_each_run(copy.view, first, len, |at, stride, run| {
                                if dtype.accumulator() == R::DTYPE {
                                    return R::read(dtype, at, stride, &mut to[run]);
                                }
                                let step = stride * dtype.size().cast_signed();
                                for (i, to) in to[run].iter_mut().enumerate() {
                                    let from = at.wrapping_offset(i as isize * step);
                                    *to = R::of(read_number(dtype, from));
                                }
                            });
                        }
                    }
                }
                return;
            }
            unit -= units;
        }
    }
}

/// Whether the elements lie one after another.
fn is_contiguous(view: &View<'_>) -> bool {
    let mut step = 1;
    view.shape().iter().zip(view.strides()).rev().all(|(&extent, &stride)| {
        let is_next = extent == 1 || stride == step;
        step *= extent.cast_signed();
        is_next
    })
}

/// Runs of elements along the last axis: where a run begins, its stride, and its place among the `len` elements from
/// `first` on.
fn for_each_run(
    view: &View<'_>,
    first: usize,
    len: usize,
    mut visit: impl FnMut(*const u8, isize, std::ops::Range<usize>),
) {
    let (shape, strides) = (view.shape(), view.strides());
    let (extent, stride) = match (shape, strides) {
        ([.., extent], [.., stride]) => (*extent, *stride),
        _ => (1, 1),
    };
    let mut done = 0;
    while done < len {
        let at = first + done;
        let run = (extent - at % extent).min(len - done);
        let (mut rest, mut offset) = (at, 0);
        for (&extent, &stride) in shape.iter().zip(strides).rev() {
            offset += (rest % extent).cast_signed() * stride;
            rest /= extent;
        }
        let begin = view.data().wrapping_offset(offset * view.dtype().size().cast_signed());
        visit(begin, stride, done..done + run);
        done += run;
    }
}
