//! What a plan runs: an engine for the kind of operation, on a run's tensors and a workspace of cache lines, with the
//! work shared out to threads in units of fixed content, so that results do not depend on the number of threads.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{Pod, Zeroable};
use natten_core::{Role, TensorSpec};
use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::isa::Isa;
use crate::view::{View, ViewMut};

/// A cache line: what workspaces are made of.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

// SAFETY: bytes, all of which may be zero.
unsafe impl Zeroable for Line {}
// SAFETY: as above, without padding: 64 bytes aligned to 64.
unsafe impl Pod for Line {}

/// The lines that hold so many bytes.
pub(crate) const fn lines(bytes: usize) -> usize {
    bytes.div_ceil(size_of::<Line>())
}

/// A kind of operation, prepared.
pub(crate) trait Engine: Debug + Send + Sync {
    /// The workspace that a run needs. Saturating: what overflows is more than any allocator has.
    fn lines(&self) -> usize;

    /// The choices of the planner, by name.
    fn config(&self) -> Vec<(String, String)>;

    /// Runs on tensors that were checked against the plan, in a workspace of `lines()`. Allocates nothing.
    fn run(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]);
}

/// The tensors of a run, by role.
#[derive(Debug)]
pub(crate) struct Tensors<'a, 'i, 'o> {
    inputs: (&'a [TensorSpec], &'a [View<'i>]),
    outputs: (&'a [TensorSpec], &'a mut [ViewMut<'o>]),
}

impl<'a, 'i, 'o> Tensors<'a, 'i, 'o> {
    /// The tensors that `specs`, inputs first, list.
    pub(crate) fn new(
        specs: (&'a [TensorSpec], &'a [TensorSpec]),
        inputs: &'a [View<'i>],
        outputs: &'a mut [ViewMut<'o>],
    ) -> Self {
        Self { inputs: (specs.0, inputs), outputs: (specs.1, outputs) }
    }

    /// An input, if the operation has it.
    pub(crate) fn input(&self, role: Role) -> Option<&'a View<'i>> {
        self.inputs.0.iter().position(|spec| spec.role == role).map(|at| &self.inputs.1[at])
    }

    /// An output, if it is wanted.
    pub(crate) fn output(&mut self, role: Role) -> Option<&mut ViewMut<'o>> {
        let at = self.outputs.0.iter().position(|spec| spec.role == role)?;
        Some(&mut self.outputs.1[at])
    }

    /// Every output that is wanted.
    pub(crate) fn outputs(&mut self) -> impl Iterator<Item = (Role, &mut ViewMut<'o>)> {
        self.outputs.0.iter().map(|spec| spec.role).zip(self.outputs.1.iter_mut())
    }
}

/// The threads of a backend, and the instruction set that they run.
#[derive(Clone, Debug)]
pub(crate) struct Crew {
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    pool: Option<Arc<ThreadPool>>,
}

/// Units that are still to do; whoever asks next gets the next.
#[derive(Debug)]
pub(crate) struct Units<'a> {
    next: &'a AtomicUsize,
    count: usize,
}

impl Iterator for Units<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|&unit| unit < self.count)
    }
}

impl Crew {
    pub(crate) fn new(isa: Isa, pool: Option<Arc<ThreadPool>>) -> Self {
        let threads =
            pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads());
        Self { isa, threads, pool }
    }

    /// Runs `work` on every thread, each with its share of `scratch`, which is cut into `threads` equal parts. Every unit
    /// comes to one thread; which one it is may change nothing about its result.
    pub(crate) fn share_out(
        &self,
        units: usize,
        scratch: &mut [Line],
        work: impl Fn(&mut [Line], Units<'_>) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let per_thread = (scratch.len() / self.threads).max(1);
        let task = |lines: &mut [Line]| work(lines, Units { next: &next, count: units });
        let mut run = || scratch.par_chunks_mut(per_thread).with_max_len(1).for_each(task);
        match &self.pool {
            Some(pool) => pool.install(run),
            None => run(),
        }
    }
}
