//! Random numbers by counter: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, 2011).
//!
//! A number is a function of the seed and of the pair that it belongs to, so it is the same whatever the tiling, the
//! backend and the pass, and nothing has to be stored between a forward and a backward run. One block of the generator
//! gives the numbers of four neighbouring keys:
//!
//! ```text
//! key     = the two words of the seed
//! counter = (k / 4, q, b * heads + h, 0)        lane = k % 4
//! number  = (word[lane] >> 8) * 2^-24
//! ```
//!
//! 24 bits are what an f32 holds, so the number is exact in f32 and in f64 and never reaches 1.

/// What the two multiplied words of a counter are multiplied with in a round.
pub const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What the two words of the key grow by from round to round.
pub const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
/// The number of rounds.
pub const ROUNDS: usize = 10;

/// One block of Philox4x32 with ten rounds.
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < ROUNDS {
        let (p0, p1) = (MULTIPLIERS[0] as u64 * c0 as u64, MULTIPLIERS[1] as u64 * c2 as u64);
        (c0, c2) = ((p1 >> 32) as u32 ^ c1 ^ k0, (p0 >> 32) as u32 ^ c3 ^ k1);
        (c1, c3) = (p1 as u32, p0 as u32);
        (k0, k1) = (k0.wrapping_add(KEY_STEPS[0]), k1.wrapping_add(KEY_STEPS[1]));
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// The random number in [0, 1) of a pair; `row` is `batch * heads + head`. Indices count modulo 2^32.
pub const fn uniform(seed: [u32; 2], row: u64, query: u64, key: u64) -> f64 {
    // The key is truncated first, as a backend with 32-bit indices does.
    let key = key as u32;
    fraction(block(seed, row, query, key / 4)[(key % 4) as usize]) as f64
}

/// The random numbers of a query and the four keys from `4 * key4` on, as [`uniform`] gives them.
pub const fn uniform4(seed: [u32; 2], row: u64, query: u64, key4: u64) -> [f32; 4] {
    // As of the truncated keys, so that both functions agree beyond 2^32 too.
    let [a, b, c, d] = block(seed, row, query, key4 as u32 & (u32::MAX >> 2));
    [fraction(a), fraction(b), fraction(c), fraction(d)]
}

const fn block(seed: [u32; 2], row: u64, query: u64, key4: u32) -> [u32; 4] {
    philox4x32_10([key4, query as u32, row as u32, 0], seed)
}

/// The word's upper 24 bits as a fraction.
const fn fraction(word: u32) -> f32 {
    (word >> 8) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes for philox4x32 with 10 rounds.
    #[test]
    fn the_known_answers() {
        let ones = u32::MAX;
        for (counter, key, answer) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn four_keys_are_four_times_one() {
        for (row, query, key4) in
            [(0, 0, 0), (3, 17, 5), (u64::MAX, 1 << 40, (1 << 32) + 7), (1, 2, (1 << 30) + 3)]
        {
            let four = uniform4([1, 2], row, query, key4);
            for (lane, of_four) in four.into_iter().enumerate() {
                let one = uniform([1, 2], row, query, key4.wrapping_mul(4).wrapping_add(lane as u64));
                assert_eq!(one, f64::from(of_four));
            }
        }
    }

    #[test]
    fn numbers_are_spread_over_the_unit_interval() {
        assert_eq!((fraction(0), fraction(u32::MAX)), (0.0, 1.0 - 2f32.powi(-24)));
        let numbers: Vec<f64> =
            (0..64).flat_map(|q| (0..64).map(move |k| uniform([7, 9], 3, q, k))).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        // 5 standard deviations of the mean of 4096.
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0f64 / 4096.0).sqrt(), "{mean}");
        assert!(numbers.iter().all(|u| (0.0..1.0).contains(u)));
        assert_ne!(uniform([7, 9], 3, 1, 2), uniform([7, 9], 3, 2, 1));
        assert_ne!(uniform([7, 9], 3, 1, 2), uniform([7, 8], 3, 1, 2));
    }
}
