//! Random numbers of pairs: [`natten_core::program::random`] a row of lanes at a time.
//!
//! A block of the generator serves four neighbouring keys. Where rows are keys, the lanes' blocks are kept for the rows
//! that they serve; where lanes are keys, neighbouring lanes share a block.

use natten_core::program::random::{KEY_STEPS, MULTIPLIERS, ROUNDS};

use super::run::{Operand, Strip};
use crate::element::Real;
use crate::lanes::Direction;
use crate::simd::{Integers, MAX_WIDTH, Simd};

type Lanes = [i32; MAX_WIDTH];

/// Blocks of the generator, a slot each.
struct Blocks {
    /// The first two words of the counters.
    key: Lanes,
    query: Lanes,
    seed: [Lanes; 2],
    /// Four words a block, word by word.
    words: [i32; 4 * MAX_WIDTH],
}

impl Blocks {
    /// Computes the first `slots` blocks; `row` is the third word of all counters.
    #[inline(always)]
    unsafe fn generate<S: Simd>(&mut self, slots: usize, row: i32) {
        for first in (0..slots).step_by(S::LANES) {
            // SAFETY: the caller's processor has the instruction set; `MAX_WIDTH` is a multiple of `LANES`.
            unsafe {
                let (mut c0, mut c1) = (load::<S>(&self.key, first), load::<S>(&self.query, first));
                let (mut c2, mut c3) = (S::I::splat(row), S::I::splat(0));
                let (mut k0, mut k1) = (load::<S>(&self.seed[0], first), load::<S>(&self.seed[1], first));
                let [by0, by1] = MULTIPLIERS.map(|by| S::I::splat(by.cast_signed()));
                let [step0, step1] = KEY_STEPS.map(|step| S::I::splat(step.cast_signed()));
                for _ in 0..ROUNDS {
                    let (high0, low0) = (c0.mul_high(by0), c0.mul(by0));
                    let (high1, low1) = (c2.mul_high(by1), c2.mul(by1));
                    (c0, c1, c2, c3) = (high1.xor(c1).xor(k0), low1, high0.xor(c3).xor(k1), low0);
                    (k0, k1) = (k0.add(step0), k1.add(step1));
                }
                c0.store(self.words[first..].as_mut_ptr());
                c1.store(self.words[MAX_WIDTH + first..].as_mut_ptr());
                c2.store(self.words[2 * MAX_WIDTH + first..].as_mut_ptr());
                c3.store(self.words[3 * MAX_WIDTH + first..].as_mut_ptr());
            }
        }
    }

    /// Gives every lane's key a block, and the lane the word that is the key's. Returns the number of blocks.
    #[inline(always)]
    fn share(&mut self, keys: &[i32], seed: [&[i32]; 2], word_of: &mut [usize; MAX_WIDTH]) -> usize {
        let mut slots = 0;
        for (lane, &key) in keys.iter().enumerate() {
            let block = [(key.cast_unsigned() / 4).cast_signed(), seed[0][lane], seed[1][lane]];
            let is_block = |slot: usize| [self.key[slot], self.seed[0][slot], self.seed[1][slot]] == block;
            if slots == 0 || !is_block(slots - 1) {
                [self.key[slots], self.seed[0][slots], self.seed[1][slots]] = block;
                slots += 1;
            }
            word_of[lane] = (key.cast_unsigned() % 4) as usize * MAX_WIDTH + slots - 1;
        }
        slots
    }

    /// Repeats the first `slots` keys and seeds, `times` in all.
    #[inline(always)]
    fn repeat(&mut self, slots: usize, times: usize) {
        for slot in slots..slots * times {
            self.key[slot] = self.key[slot - slots];
            for seed in &mut self.seed {
                seed[slot] = seed[slot - slots];
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(from: &Lanes, first: usize) -> S::I {
    // SAFETY: the caller's processor has the instruction set; the slice has `LANES` integers.
    unsafe { S::I::load(from[first..first + S::LANES].as_ptr()) }
}

/// The words' upper 24 bits as fractions, a row of them.
#[inline(always)]
unsafe fn store_fractions<S: Simd>(to: Operand, row: usize, words: &[i32]) {
    // SAFETY: the caller's processor has the instruction set, and the place the row.
    unsafe {
        let unit = S::splat(S::T::of(1.0 / f64::from(1 << 24)));
        for (vector, words) in words[..S::WIDTH].chunks_exact(S::LANES).enumerate() {
            let whole = S::from_integers(S::I::load(words.as_ptr()).shift_right_8());
            S::store(to.numbers::<S>(row, vector), S::mul(whole, unit));
        }
    }
}

/// The random numbers of the strip's pairs, of two words of seed.
///
/// # Safety
/// The processor has `S`; the operands are of the strip.
#[inline(always)]
pub(super) unsafe fn fill<S: Simd>(to: Operand, seed: [Operand; 2], strip: &Strip<'_, S::T>) {
    let tile = strip.tile;
    let row_of_run = tile.batch.wrapping_mul(strip.heads).wrapping_add(tile.head);
    let streamed = &tile.row_index.flat[strip.rows.clone()];
    let lanes = &tile.lane_index.flat[..S::WIDTH];
    let none = [0; MAX_WIDTH];
    let mut blocks = Blocks { key: none, query: none, seed: [none; 2], words: [0; 4 * MAX_WIDTH] };
    let seed_moves = seed.iter().any(|seed| seed.moves != 0);
    // SAFETY: the caller's.
    unsafe {
        let seed_of = |row| seed.map(|seed| seed.row::<i32>(row, S::WIDTH));
        match strip.direction {
            Direction::Keys => {
                let mut known = None;
                blocks.query[..S::WIDTH].copy_from_slice(lanes);
                for (row, &key) in streamed.iter().enumerate() {
                    let key = key.cast_unsigned();
                    if seed_moves || known != Some(key / 4) {
                        known = Some(key / 4);
                        blocks.key.fill((key / 4).cast_signed());
                        for (to, from) in blocks.seed.iter_mut().zip(seed_of(row)) {
                            to[..S::WIDTH].copy_from_slice(from);
                        }
                        blocks.generate::<S>(S::WIDTH, row_of_run);
                    }
                    store_fractions::<S>(to, row, &blocks.words[(key % 4) as usize * MAX_WIDTH..]);
                }
            }
            Direction::Queries => {
                // Some rows together, so that their blocks fill vectors.
                let (mut slots, mut first, mut word_of) = (0, 0, [0; MAX_WIDTH]);
                while first < streamed.len() {
                    if seed_moves || first == 0 {
                        slots = blocks.share(lanes, seed_of(first), &mut word_of);
                    }
                    let together = if seed_moves { 1 } else { MAX_WIDTH / slots };
                    if first == 0 {
                        blocks.repeat(slots, together);
                    }
                    let rows = &streamed[first..streamed.len().min(first + together)];
                    for (queries, &query) in blocks.query.chunks_mut(slots).zip(rows) {
                        queries.fill(query);
                    }
                    blocks.generate::<S>(rows.len() * slots, row_of_run);
                    for row in 0..rows.len() {
                        let mut words = [0; MAX_WIDTH];
                        for (to, word) in words.iter_mut().zip(&word_of[..S::WIDTH]) {
                            *to = blocks.words[(word + row * slots) % blocks.words.len()];
                        }
                        store_fractions::<S>(to, first + row, &words);
                    }
                    first += rows.len();
                }
            }
        }
    }
}
