//! Random numbers of pairs: [`natten_core::program::random`] a row of lanes at a time.
//!
//! A block of the generator serves four neighbouring keys. Where rows are keys, the lanes' blocks are kept for the rows
//! that they serve; where lanes are keys, neighbouring lanes share a block.

use natten_core::program::random::{KEY_STEPS, MULTIPLIERS, ROUNDS};

use super::run::{Operand, Strip};
use crate::element::Real;
use crate::lanes::Direction;
use crate::simd::{MAX_WIDTH, Simd};

/// Blocks of the generator side by side: word by word, a block a slot.
struct Blocks {
    /// The counters' first two words; all share the other two.
    key: [u32; MAX_WIDTH],
    query: [u32; MAX_WIDTH],
    seed: [[u32; MAX_WIDTH]; 2],
    words: [[u32; MAX_WIDTH]; 4],
}

impl Blocks {
    /// Computes the first `slots` blocks.
    #[inline(always)]
    fn generate(&mut self, slots: usize, row: u32) {
        const TOGETHER: usize = 8;
        for first in (0..slots).step_by(TOGETHER) {
            let of =
                |words: &[u32; MAX_WIDTH]| -> [u32; TOGETHER] { std::array::from_fn(|i| words[first + i]) };
            let (mut c0, mut c1, mut c2, mut c3) =
                (of(&self.key), of(&self.query), [row; TOGETHER], [0; TOGETHER]);
            let (mut k0, mut k1) = (of(&self.seed[0]), of(&self.seed[1]));
            for _ in 0..ROUNDS {
                for i in 0..TOGETHER {
                    let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[i]);
                    let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[i]);
                    (c0[i], c2[i]) = ((p1 >> 32) as u32 ^ c1[i] ^ k0[i], (p0 >> 32) as u32 ^ c3[i] ^ k1[i]);
                    (c1[i], c3[i]) = (p1 as u32, p0 as u32);
                    (k0[i], k1[i]) = (k0[i].wrapping_add(KEY_STEPS[0]), k1[i].wrapping_add(KEY_STEPS[1]));
                }
            }
            for (words, of) in self.words.iter_mut().zip([c0, c1, c2, c3]) {
                words[first..first + TOGETHER].copy_from_slice(&of);
            }
        }
    }
}

/// The word's upper 24 bits as a fraction.
#[inline(always)]
fn fraction<R: Real>(word: u32) -> R {
    R::of(f64::from(word >> 8)) * R::of(1.0 / f64::from(1 << 24))
}

/// The random numbers of the strip's pairs, of two words of seed.
///
/// # Safety
/// The operands are of the strip.
#[inline(always)]
pub(super) unsafe fn fill<S: Simd>(to: Operand, seed: [Operand; 2], strip: &Strip<'_, S::T>) {
    let tile = strip.tile;
    let row_of_run = tile.batch.wrapping_mul(strip.heads).wrapping_add(tile.head).cast_unsigned();
    let rows = &tile.row_index.flat[strip.rows.clone()];
    let lanes = &tile.lane_index.flat[..S::WIDTH];
    let (zeros, four) = ([0; MAX_WIDTH], [[0; MAX_WIDTH]; 4]);
    let mut blocks = Blocks { key: zeros, query: zeros, seed: [zeros; 2], words: four };
    let seeds_move = seed.iter().any(|seed| seed.moves != 0);
    let mut known = None;
    for (row, &streamed) in rows.iter().enumerate() {
        let streamed = streamed.cast_unsigned();
        // SAFETY: the caller's.
        let (seed, to) = unsafe {
            let seed = seed.map(|seed| {
                let words = seed.at.cast::<u32>().add(row * seed.moves * S::WIDTH);
                std::slice::from_raw_parts(words, S::WIDTH)
            });
            (seed, std::slice::from_raw_parts_mut(to.at.cast::<S::T>().add(row * S::WIDTH), S::WIDTH))
        };
        match strip.direction {
            Direction::Keys => {
                if seeds_move || known != Some(streamed / 4) {
                    for (lane, &query) in lanes.iter().enumerate() {
                        blocks.key[lane] = streamed / 4;
                        blocks.query[lane] = query.cast_unsigned();
                        blocks.seed[0][lane] = seed[0][lane];
                        blocks.seed[1][lane] = seed[1][lane];
                    }
                    blocks.generate(S::WIDTH, row_of_run);
                    known = Some(streamed / 4);
                }
                let words = &blocks.words[(streamed % 4) as usize];
                for (to, &word) in to.iter_mut().zip(words) {
                    *to = fraction(word);
                }
            }
            Direction::Queries => {
                let mut slots = 0;
                let mut slot_of = [0; MAX_WIDTH];
                for (lane, &key) in lanes.iter().enumerate() {
                    let block = (key.cast_unsigned() / 4, seed[0][lane], seed[1][lane]);
                    let is_last =
                        |slot| (blocks.key[slot], blocks.seed[0][slot], blocks.seed[1][slot]) == block;
                    if slots == 0 || !is_last(slots - 1) {
                        blocks.key[slots] = block.0;
                        blocks.query[slots] = streamed;
                        (blocks.seed[0][slots], blocks.seed[1][slots]) = (block.1, block.2);
                        slots += 1;
                    }
                    slot_of[lane] = slots - 1;
                }
                blocks.generate(slots, row_of_run);
                for (lane, to) in to.iter_mut().enumerate() {
                    let word = (lanes[lane].cast_unsigned() % 4) as usize;
                    *to = fraction(blocks.words[word][slot_of[lane]]);
                }
            }
        }
    }
}
