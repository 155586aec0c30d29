//! Queries and keys in SBUF, transposed: loaded 512 tokens at a time where they are first needed, transposed by the
//! tensor engine, and read from there as any box of them.

use super::{Lowering, STAGED, TRANSPOSED};
use crate::dtype::Dtype;
use crate::ir::{Engine, PARTITIONS, TensorId, View};
use crate::lower::builder::Builder;
use crate::lower::layout::{Pattern, Tokens};

/// Whose tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) batch: usize,
    pub(super) head: usize,
    /// The number of the head among those of all batch entries.
    pub(super) number: usize,
}

/// The transposed tokens of one input.
pub(super) struct Resident {
    /// By head at a time, and chunk of the head dim.
    tensors: Vec<Vec<TensorId>>,
    /// Tokens that there is room for.
    room: usize,
    /// The block of 512 tokens that each part of the room has, and whose.
    loaded: Vec<Vec<Option<(usize, usize)>>>,
}

impl Resident {
    /// Room for so many tokens of each of `heads` heads at a time.
    pub(super) fn new(
        b: &mut Builder,
        name: &str,
        dims: &[(usize, usize)],
        dtype: Dtype,
        heads: usize,
        room: usize,
    ) -> Self {
        let mut tensors = |head| {
            let chunks = dims.iter().enumerate();
            chunks
                .map(|(chunk, &(_, len))| b.sbuf(format!("{name}{head}_{chunk}"), &[len, room], dtype))
                .collect()
        };
        let tensors: Vec<Vec<TensorId>> = (0..heads).map(&mut tensors).collect();
        Self { tensors, room, loaded: vec![vec![None; room.div_ceil(TRANSPOSED)]; heads] }
    }

    /// Whether a block has to be loaded; it counts as loaded from here on.
    fn lacks(&mut self, owner: Owner, block: usize) -> bool {
        let heads = self.loaded.len();
        let blocks = &mut self.loaded[owner.number % heads];
        let slot = block % blocks.len();
        blocks[slot].replace((owner.number, block)) != Some((owner.number, block))
    }

    /// The tensors of the chunks of the head dim.
    fn tensors(&self, owner: Owner) -> &[TensorId] {
        &self.tensors[owner.number % self.tensors.len()]
    }

    /// Tokens as they lie in the room: in one piece, or in two where it ends among them.
    fn pieces(&self, (first, pairs): Pattern) -> Vec<Pattern> {
        let first = first % self.room;
        match pairs[..] {
            [(1, count)] if first + count > self.room => {
                let before = self.room - first;
                vec![(first, vec![(1, before)]), (0, vec![(1, count - before)])]
            }
            _ => vec![(first, pairs)],
        }
    }
}

impl Lowering<'_> {
    /// Some tokens, transposed: of each piece that they lie in the chunks of the head dim. `which` is 0 for queries, 1
    /// for keys.
    pub(super) fn transposed_tokens(
        &mut self,
        which: usize,
        owner: Owner,
        tokens: &Tokens,
    ) -> Vec<Vec<View>> {
        let (first, pairs) = self.layouts[which].places(tokens);
        let last = first + pairs.iter().map(|&(stride, count)| stride * (count - 1)).sum::<usize>();
        for block in first / TRANSPOSED..=last / TRANSPOSED {
            if self.resident[which].lacks(owner, block) {
                self.load(which, owner, block);
            }
        }
        let resident = &self.resident[which];
        let views = |(first, pairs): Pattern| {
            let chunks = resident.tensors(owner).iter().zip(&self.dims);
            chunks.map(|(&tensor, &(_, len))| self.b.pattern(tensor, len, first, pairs.clone())).collect()
        };
        resident.pieces((first, pairs)).into_iter().map(views).collect()
    }

    /// Loads 512 tokens and transposes them.
    fn load(&mut self, which: usize, owner: Owner, block: usize) {
        let layout = self.layouts[which];
        let start = block * TRANSPOSED;
        let count = TRANSPOSED.min(layout.tokens() - start);
        let dim = layout.dim();
        let slot = self.staged % STAGED * 4 * dim;
        self.staged += 1;
        let whole = count / PARTITIONS;
        // A partition takes tokens that are neighbours: longer runs of bytes, fewer descriptors. Piece j of the
        // transposes then has the tokens p * whole + j.
        if whole > 0 {
            let tokens = Tokens::Range(start, PARTITIONS);
            let (first, pairs) = layout.vectors(owner.batch, owner.head, &tokens, 0, dim);
            let pitch = pairs[0].0;
            let src = vec![(pitch * whole, PARTITIONS), (pitch, whole), (1, dim)];
            let src = self.b.pattern(self.inputs[which], 1, first, src);
            let dst = self.b.at(self.staging, PARTITIONS, slot, whole * dim);
            self.b.dma(dst, src);
        }
        let ragged = count - whole * PARTITIONS;
        if ragged > 0 {
            let tokens = Tokens::Range(start + whole * PARTITIONS, ragged);
            let (first, pairs) = layout.vectors(owner.batch, owner.head, &tokens, 0, dim);
            let src = self.b.pattern(self.inputs[which], 1, first, pairs);
            let dst = self.b.at(self.staging, ragged, slot + whole * dim, dim);
            self.b.dma(dst, src);
        }
        let tensors = self.resident[which].tensors(owner).to_vec();
        let start = start % self.resident[which].room;
        for (to, (from, len)) in tensors.into_iter().zip(self.dims.clone()) {
            let psum = self.transposes[self.transposed % 2];
            let engine = if self.transposed.is_multiple_of(2) { Engine::Vector } else { Engine::Scalar };
            self.transposed += 1;
            for piece in 0..count.div_ceil(PARTITIONS) {
                let rows = PARTITIONS.min(count - piece * PARTITIONS);
                let data = self.b.at(self.staging, rows, slot + piece * dim + from, len);
                let dst = self.b.at(psum, len, piece * PARTITIONS, rows);
                self.b.transpose(dst, data);
            }
            if whole > 0 {
                let dst = self.b.pattern(to, len, start, vec![(1, whole), (whole, PARTITIONS)]);
                let src = self.b.at(psum, len, 0, whole * PARTITIONS);
                self.b.copy(engine, dst, src);
            }
            if ragged > 0 {
                let at = whole * PARTITIONS;
                let (dst, src) = (self.b.at(to, len, start + at, ragged), self.b.at(psum, len, at, ragged));
                self.b.copy(engine, dst, src);
            }
        }
    }
}
