//! How strong the noise of a picture is, from the picture alone.
//!
//! Patches of a picture lie near a subspace of few dimensions, and noise adds its variance in every direction, so the
//! small eigenvalues of the patches' covariance are all sigma^2. Which ones are small is decided as in Chen, Zhu and
//! Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015: drop the largest eigenvalue
//! until the mean of those that are left is no more than their median.
//!
//! Two things are added. Patches whose differences of neighbours are larger than noise makes them are left out, as in
//! Liu, Tanaka and Okutomi, "Single-Image Noise Level Estimation for Blind Denoising", IEEE TIP 22(12), 2013: fine
//! texture fills all directions and passes for noise. And noise is cut off at black and white: dark and bright patches
//! are left out, and what the cut takes from the others is computed from their mean ([`Clipping`]).
//!
//! It takes the noise to be white, which holds for noise that was added; that of a JPEG file is partly smoothed away and
//! will be underestimated.

use nalgebra::{DMatrix, DVector};
use natten::{Error, Result};

use super::noise::Clipping;
use super::picture::{Picture, WHITE};

/// Numbers in a patch, at most: more need more patches to tell their eigenvalues apart, and more time.
const MOST_NUMBERS: usize = 75;

/// Patches for each number in one, that make eigenvalues of pure noise close enough to each other. Chen's rule answers
/// too little where there are few: with 30 it is 4 % off, with 10 it is 10 % off.
const ENOUGH: usize = 100;

/// The same for the patches that are left when textured and clipped ones have gone.
const ENOUGH_CHOSEN: usize = 40;

/// Patches that are looked at, at most.
const MOST_PATCHES: usize = 1 << 16;

/// A patch counts as textured from this many standard deviations above what noise would give it.
const TEXTURE_LIMIT: f64 = 3.0;

/// Patches are wanted whose mean is this many sigma away from black and white.
const DISTANCE_FROM_ENDS: f64 = 0.5;

const MOST_ROUNDS: usize = 6;

/// The standard deviation of the noise, on the 0-255 scale.
///
/// # Errors
/// [`Error::Invalid`] where the picture is too small to tell.
pub(super) fn estimate(picture: &Picture) -> Result<f64> {
    let side = patch_side(picture).ok_or_else(|| {
        Error::invalid(
            "sigma",
            "not given",
            format!("a picture of {} is too small to estimate its noise", picture.describe()),
            "give --sigma",
        )
    })?;
    let patches = Patches::of(picture, side);
    let mut sigma = noise_variance(&patches.covariance(&patches.all)).sqrt();
    // What to choose depends on sigma, and the other way round; a few rounds settle it.
    for _ in 0..MOST_ROUNDS {
        if sigma == 0.0 {
            break;
        }
        let clipping = Clipping::of(sigma);
        let chosen = patches.choose(sigma);
        let share = chosen.iter().map(|patch| patch.share(&clipping)).sum::<f64>() / chosen.len() as f64;
        let next = (noise_variance(&patches.covariance(&chosen)) / share).sqrt();
        let change = (next - sigma).abs();
        sigma = next;
        if change <= 0.002 * sigma {
            break;
        }
    }
    Ok(sigma)
}

/// The largest patches that the picture has enough of.
fn patch_side(picture: &Picture) -> Option<usize> {
    [7, 5, 3].into_iter().find(|&side| {
        let numbers = side * side * picture.channels;
        let places = |length: usize| (length + 1).saturating_sub(side);
        // The smallest patches are better than none where there are too few: with a fifth of them, sigma is 10 % off.
        let enough = if side == 3 { ENOUGH / 5 } else { ENOUGH };
        numbers <= MOST_NUMBERS && places(picture.width) * places(picture.height) >= enough * numbers
    })
}

/// Chen's rule on the eigenvalues of a covariance.
fn noise_variance(covariance: &DMatrix<f64>) -> f64 {
    let mut values: Vec<f64> = covariance.symmetric_eigenvalues().iter().copied().collect();
    values.sort_unstable_by(f64::total_cmp);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let median = |values: &[f64]| (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
    let noise =
        (1..=values.len()).rev().map(|count| &values[..count]).find(|kept| median(kept) >= mean(kept));
    // One value is its own mean and median, so there always is one; rounding may leave it below zero.
    noise.map_or(0.0, |kept| mean(kept).max(0.0))
}

/// Square patches of a picture.
struct Patches<'a> {
    picture: &'a Picture,
    side: usize,
    all: Vec<Patch>,
}

#[derive(Clone, Copy)]
struct Patch {
    /// The index of its first level in the picture.
    start: usize,
    /// The sum of the squared differences of neighbours, over all channels.
    texture: f64,
    /// The means of its channels. A grey picture's is there three times.
    means: [f64; 3],
}

impl Patch {
    /// How far the channel that is nearest to black or white is from the middle: 0 to 1.
    fn extremity(&self) -> f64 {
        let middle = f64::from(WHITE) / 2.0;
        self.means.iter().map(|mean| (mean - middle).abs() / middle).fold(0.0, f64::max)
    }

    fn share(&self, clipping: &Clipping) -> f64 {
        self.means.iter().map(|&mean| clipping.share(mean)).sum::<f64>() / 3.0
    }
}

impl<'a> Patches<'a> {
    fn of(picture: &'a Picture, side: usize) -> Self {
        let (rows, columns) = (picture.height - side + 1, picture.width - side + 1);
        let step = (1..).find(|step| rows.div_ceil(*step) * columns.div_ceil(*step) <= MOST_PATCHES);
        let step = step.unwrap_or(1);
        let mut patches = Self { picture, side, all: Vec::new() };
        patches.all = (0..rows)
            .step_by(step)
            .flat_map(|y| (0..columns).step_by(step).map(move |x| (y * picture.width + x) * picture.channels))
            .map(|start| patches.measure(start))
            .collect();
        patches
    }

    /// The rows of a patch, of `side * channels` levels each.
    fn rows(&self, start: usize) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let (picture, side) = (self.picture, self.side);
        let pitch = picture.width * picture.channels;
        (0..side).map(move |row| &picture.levels[start + row * pitch..][..side * picture.channels])
    }

    fn measure(&self, start: usize) -> Patch {
        let channels = self.picture.channels;
        let difference = |(a, b): (&f32, &f32)| f64::from((a - b).powi(2));
        let across = self.rows(start).flat_map(|row| row.iter().zip(&row[channels..])).map(difference);
        let down = self.rows(start).zip(self.rows(start).skip(1)).flat_map(|(a, b)| a.iter().zip(b));
        let texture = across.sum::<f64>() + down.map(difference).sum::<f64>();
        let mut means = [0.0; 3];
        for (channel, mean) in means.iter_mut().enumerate() {
            let levels =
                self.rows(start).flat_map(|row| row.iter().skip(channel % channels).step_by(channels));
            *mean = levels.map(|&level| f64::from(level)).sum::<f64>() / (self.side * self.side) as f64;
        }
        Patch { start, texture, means }
    }

    /// The patches that show the noise undisturbed, if it has this sigma; those that come nearest, where they are few.
    fn choose(&self, sigma: f64) -> Vec<Patch> {
        let limit = sigma * sigma * texture_of_noise(self.side, self.picture.channels);
        let reach = (1.0 - 2.0 * DISTANCE_FROM_ENDS * sigma / f64::from(WHITE)).max(0.0);
        let fault =
            |patch: &Patch| (patch.texture / limit - 1.0).max(0.0) + (patch.extremity() - reach).max(0.0);
        let mut faults: Vec<f64> = self.all.iter().map(fault).collect();
        let numbers = self.side * self.side * self.picture.channels;
        let fewest = (self.all.len() / 10).max(ENOUGH_CHOSEN * numbers).min(self.all.len() - 1);
        let tolerated = *faults.select_nth_unstable_by(fewest, f64::total_cmp).1;
        self.all.iter().filter(|patch| fault(patch) <= tolerated).copied().collect()
    }

    fn covariance(&self, patches: &[Patch]) -> DMatrix<f64> {
        let numbers = self.side * self.side * self.picture.channels;
        let mut products = DMatrix::zeros(numbers, numbers);
        let mut sums = DVector::zeros(numbers);
        for some in patches.chunks(1024) {
            // Levels count from the middle, so that products stay small beside their differences.
            let levels = some
                .iter()
                .flat_map(|patch| self.rows(patch.start).flatten())
                .map(|&level| f64::from(level - WHITE / 2.0));
            let columns = DMatrix::from_iterator(numbers, some.len(), levels);
            products.gemm(1.0, &columns, &columns.transpose(), 1.0);
            sums += columns.column_sum();
        }
        let count = patches.len() as f64;
        products.ger(-1.0 / count, &sums, &sums, 1.0);
        products / (count - 1.0)
    }
}

/// The largest sum of squared differences of neighbours that noise of variance 1 is taken to give a patch.
///
/// The sum is x'Lx, with L the Laplacian of the grid that the patch is. Its mean is trace L and its variance
/// 2 trace L^2, in each channel.
fn texture_of_noise(side: usize, channels: usize) -> f64 {
    let (side, channels) = (side as f64, channels as f64);
    let edges = 2.0 * side * (side - 1.0);
    let inner = side - 2.0;
    // L has the number of neighbours on its diagonal (2 in the corners, 3 on the border, 4 inside), and -1 for an edge.
    let squares = 4.0 * 4.0 + 4.0 * inner * 9.0 + inner * inner * 16.0 + 2.0 * edges;
    2.0 * edges * channels + TEXTURE_LIMIT * (2.0 * squares * channels).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    /// A picture with soft slopes, edges and a dark corner.
    fn scene(width: usize, height: usize, channels: usize) -> Picture {
        let level = |index: usize| {
            let (channel, x, y) = (index % channels, index / channels % width, index / channels / width);
            let slope = 60.0 + 100.0 * x as f32 / width as f32 + 10.0 * channel as f32;
            let wave = 25.0 * (y as f32 / 9.0 + channel as f32).sin();
            let edge = if (x / 20 + y / 30) % 2 == 0 { 30.0 } else { 0.0 };
            let is_dark = x < width / 3 && y < height / 3;
            if is_dark { 2.0 } else { slope + wave + edge }
        };
        let levels = (0..width * height * channels).map(level).collect();
        Picture { width, height, channels, levels, alpha: None, is_deep: false, profile: None }
    }

    #[test]
    fn sigma_is_found_to_a_few_percent() {
        for (channels, size) in [(1, 160), (3, 160)] {
            for sigma in [5.0, 10.0, 25.0, 50.0] {
                let found = estimate(&noise::add(&scene(size, size, channels), sigma, 1)).unwrap();
                assert!((found / sigma - 1.0).abs() < 0.04, "{channels} channels, {sigma}: {found}");
            }
        }
    }

    #[test]
    fn a_picture_without_noise_has_none() {
        let flat = Picture { levels: vec![77.0; 64 * 64], ..scene(64, 64, 1) };
        assert_eq!(estimate(&flat).unwrap(), 0.0);
        assert!(estimate(&scene(96, 96, 3)).unwrap() < 1.0);
    }

    #[test]
    fn clipped_to_nothing_is_still_finite() {
        for level in [0.0, 255.0] {
            let flat = Picture { levels: vec![level; 64 * 64], ..scene(64, 64, 1) };
            let found = estimate(&noise::add(&flat, 30.0, 1)).unwrap();
            assert!((found / 30.0 - 1.0).abs() < 0.1, "{level}: {found}");
        }
    }

    #[test]
    fn small_pictures_are_refused() {
        for (width, height, channels) in [(1, 1, 1), (2, 300, 3), (15, 15, 1), (25, 24, 3)] {
            let message = estimate(&scene(width, height, channels)).unwrap_err().to_string();
            assert!(message.contains("too small") && message.contains("--sigma"), "{message}");
        }
        assert!(estimate(&scene(16, 16, 1)).is_ok() && estimate(&scene(26, 25, 3)).is_ok());
    }

    #[test]
    fn the_texture_of_noise_is_bounded() {
        let flat = Picture { levels: vec![128.0; 200 * 200 * 3], ..scene(200, 200, 3) };
        let noisy = noise::add(&flat, 20.0, 5);
        let patches = Patches::of(&noisy, 5);
        let limit = 400.0 * texture_of_noise(5, 3);
        let over = patches.all.iter().filter(|patch| patch.texture > limit).count();
        // A tail beyond three standard deviations, a little longer than a normal distribution's.
        assert!(over > 0 && over * 100 < patches.all.len(), "{over} of {}", patches.all.len());
    }

    #[test]
    fn covariance_is_that_of_the_patches() {
        let picture = scene(9, 8, 1);
        let patches = Patches::of(&picture, 3);
        let found = patches.covariance(&patches.all);
        let vectors: Vec<Vec<f64>> = patches
            .all
            .iter()
            .map(|patch| patches.rows(patch.start).flatten().map(|&level| f64::from(level)).collect())
            .collect();
        assert_eq!(vectors.len(), 7 * 6);
        assert_eq!(vectors[8][4], f64::from(picture.levels[2 * 9 + 2]));
        let mean = |i: usize| vectors.iter().map(|v| v[i]).sum::<f64>() / 42.0;
        for (i, j) in [(0, 0), (0, 8), (4, 5), (7, 2)] {
            let expected = vectors.iter().map(|v| (v[i] - mean(i)) * (v[j] - mean(j))).sum::<f64>() / 41.0;
            assert!((found[(i, j)] - expected).abs() < 1e-6 * expected.abs().max(1.0));
        }
    }
}
