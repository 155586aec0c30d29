//! How unlike patches may be and still count: `h = strength * sigma`, where the user does not say it.
//!
//! A formula serves most photographs. Pictures that are smooth gain from more, by half a decibel to several, so some
//! pieces of the picture are denoised with more or less strength for as long as the mean squared error falls. The error is not
//! known, but Stein's estimate of it (SURE) needs only the noise's variance and how much the result follows a change of
//! the picture, which a random change tells: Ramani, Blu and Unser, "Monte-Carlo SURE: A Black-Box Optimization of
//! Regularization Parameters for General Denoising Algorithms", IEEE TIP 17(9), 2008.

use indicatif::ProgressBar;
use natten::{Device, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::attention::{Denoiser, Uploaded, Weighing};
use super::noise::Clipping;
use super::patches::{PatchShape, Patches};
use super::picture::Picture;

/// What of the noise is taken off distances, over sigma: a little more, since half of all equal patches are further apart
/// than noise makes them on average, and it does not hurt to count more of them in full.
const TAKEN_OFF: f64 = 1.05;

/// What the strength changes by from one try to the next: the fourth root of 2.
const RATIO: f64 = 1.189_207_115;

/// How often it may change.
const MOST_STEPS: usize = 6;

/// What part of the error must go for the next try to be made. Less may be chance.
const GAIN: f64 = 0.005;

/// Pixels across a piece, at least.
const LEAST_SIDE: usize = 40;

/// What part of the picture the pieces may be, where that leaves one at all.
const PART: usize = 8;

/// The strength that serves pictures of many kinds, found by trying.
///
/// Where two patches show the same thing, their distance is 2 sigma^2 and scatters by 2 sigma^2 sqrt(2 / n) for patches
/// of `n` effective numbers; h^2 must be in proportion to that, or chance decides which patches weigh most. Where sigma
/// is small, what matters more is that two patches of a photograph are never quite the same.
fn formula(sigma: f64, effective_numbers: f64) -> f64 {
    1.3 * effective_numbers.powf(-0.25) * (1.0 + 7.0 / sigma).min(1.8)
}

/// How patches weigh under noise of this sigma, at this strength.
pub(super) fn weighing(sigma: f64, strength: f64) -> Weighing {
    Weighing { h: strength * sigma, s: TAKEN_OFF * sigma }
}

/// The strength to begin with, for a picture with noise of this sigma.
pub(super) fn first(noisy: &Picture, shape: &PatchShape, sigma: f64) -> f64 {
    formula(sigma, shape.effective_numbers(noisy.channels))
}

/// The strength for a picture with noise of this sigma, which is not 0.
///
/// # Errors
/// As [`Denoiser::new`] and [`Denoiser::run`].
pub(super) fn choose(
    device: &Device,
    noisy: &Picture,
    shape: &PatchShape,
    kernel_size: usize,
    sigma: f64,
) -> Result<f64> {
    let side = LEAST_SIDE.max(kernel_size.saturating_mul(2));
    let trial = Trial::new(device, noisy, shape, kernel_size, sigma, side)?;
    let mut strength = first(noisy, shape, sigma);
    let denoised = trial.denoise(strength)?;
    // What is left of the noise where it is clipped is decided once, by the first try: the tries must differ in nothing
    // but the strength.
    let clipping = Clipping::of(sigma);
    let share = |level: &f32| sigma * sigma * clipping.share(f64::from(*level));
    let variances: Vec<f64> = denoised[0].iter().map(share).collect();
    let first = trial.error(&denoised, &variances);
    let mut error = first;
    for ratio in [RATIO, 1.0 / RATIO] {
        for _ in 0..MOST_STEPS {
            let next = trial.error(&trial.denoise(strength * ratio)?, &variances);
            if next >= error * (1.0 - GAIN) {
                break;
            }
            strength *= ratio;
            error = next;
        }
        // Where more is better, less is not.
        if error < first {
            break;
        }
    }
    Ok(strength)
}

/// Pieces of a picture, each as it is and slightly changed.
struct Trial {
    denoiser: Denoiser,
    sigma: f64,
    /// The levels of all pieces.
    levels: Vec<f32>,
    pieces: Vec<Uploaded>,
    changed: Vec<Uploaded>,
    /// The changes, in levels.
    changes: Vec<f32>,
}

/// The levels of the denoised pieces, and of the denoised changed pieces.
type Denoised = [Vec<f32>; 2];

impl Trial {
    fn new(
        device: &Device,
        noisy: &Picture,
        shape: &PatchShape,
        kernel_size: usize,
        sigma: f64,
        side: usize,
    ) -> Result<Self> {
        let mut pieces = noisy.pieces(side, noisy.width * noisy.height / PART);
        let denoiser = Denoiser::new(device.clone(), &pieces[0], kernel_size, shape.len(noisy.channels))?;
        let upload = |pieces: &[Picture]| -> Result<Vec<Uploaded>> {
            let upload =
                |piece| denoiser.upload(piece, &Patches::new(piece, shape, sigma)).collect::<Vec<_>>();
            pieces.iter().flat_map(upload).collect()
        };
        let levels: Vec<f32> = pieces.iter().flat_map(|piece| &piece.levels).copied().collect();
        let plain = upload(&pieces)?;
        // Up or down by a tenth of the noise: small beside h, and large beside the errors of rounding.
        let mut random = StdRng::seed_from_u64(0);
        let size = (0.1 * sigma) as f32;
        let changes: Vec<f32> = levels.iter().map(|_| if random.random() { size } else { -size }).collect();
        let to_change = pieces.iter_mut().flat_map(|piece| &mut piece.levels);
        to_change.zip(&changes).for_each(|(level, change)| *level += change);
        let changed = upload(&pieces)?;
        Ok(Self { denoiser, sigma, levels, pieces: plain, changed, changes })
    }

    fn denoise(&self, strength: f64) -> Result<Denoised> {
        let (weighing, hidden) = (weighing(self.sigma, strength), ProgressBar::hidden());
        let denoise = |pieces: &[Uploaded]| self.denoiser.run(pieces.iter().map(Ok), weighing, &hidden);
        Ok([denoise(&self.pieces)?, denoise(&self.changed)?])
    }

    /// The estimate of the mean squared error: with y the noisy picture, f(y) the denoised one and v the noise's variance,
    /// the mean of `(f(y) - y)^2 - v + 2 v df/dy`, where a random change b of unit size makes `b (f(y + b) - f(y))` an
    /// estimate of the derivative's sum.
    fn error(&self, denoised: &Denoised, variances: &[f64]) -> f64 {
        let [plain, changed] = denoised;
        let terms = self.levels.iter().zip(plain.iter().zip(changed)).zip(self.changes.iter().zip(variances));
        let sum: f64 = terms
            .map(|((noisy, (plain, changed)), (change, variance))| {
                let slope = f64::from((changed - plain) / change);
                f64::from(plain - noisy).powi(2) + variance * (2.0 * slope - 1.0)
            })
            .sum();
        sum / variances.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::{noise, picture};
    use super::*;
    use natten::Registry;

    fn drawn(width: usize, height: usize, level: impl Fn(usize, usize) -> f32) -> Picture {
        let levels = (0..width * height).map(|index| level(index % width, index / width)).collect();
        Picture { width, height, channels: 1, levels, alpha: None, is_deep: false, profile: None }
    }

    #[test]
    fn the_formula_depends_on_what_it_should() {
        let seven = |channels| PatchShape::new(7).effective_numbers(channels);
        let colour = formula(25.0, seven(3));
        assert!((colour - 0.558).abs() < 1e-3, "{colour}");
        // Grey patches have a third of the numbers, and scatter more.
        assert!((formula(25.0, seven(1)) / colour - 3f64.powf(0.25)).abs() < 1e-9);
        // h itself grows with sigma.
        assert!(5.0 * formula(5.0, seven(3)) < 10.0 * formula(10.0, seven(3)));
        assert_eq!(formula(1e-9, seven(3)), formula(1.0, seven(3)));
    }

    #[test]
    fn the_error_is_estimated_without_the_clean_picture() {
        let clean =
            drawn(64, 64, |x, y| 128.0 + 50.0 * (x as f32 / 9.0).sin() + 30.0 * (y as f32 / 5.0).cos());
        let (sigma, shape) = (20.0, PatchShape::new(3));
        let noisy = noise::add(&clean, sigma, 4);
        let device = Registry::probe().device("reference").unwrap();
        let trial = Trial::new(&device, &noisy, &shape, 9, sigma, 64).unwrap();
        let variances = vec![sigma * sigma; 64 * 64];
        for strength in [0.3, 0.6, 1.2] {
            let denoised = trial.denoise(strength).unwrap();
            let estimate = trial.error(&denoised, &variances);
            let result = noisy.with_levels(denoised[0].clone());
            let error = 255.0f64.powi(2) / 10f64.powf(picture::psnr(&clean, &result).unwrap() / 10.0);
            assert!((estimate - error).abs() < 0.05 * sigma * sigma, "{strength}: {estimate} {error}");
        }
    }

    #[test]
    fn smooth_pictures_get_more() {
        let device = Registry::probe().device("reference").unwrap();
        let (sigma, shape) = (25.0, PatchShape::new(3));
        let strength = |clean: &Picture| {
            choose(&device, &noise::add(clean, sigma, 2), &shape, 9, sigma).unwrap()
                / formula(sigma, shape.effective_numbers(1))
        };
        let smooth = strength(&drawn(60, 60, |x, y| 80.0 + x as f32 + 0.5 * y as f32));
        let busy = strength(&drawn(60, 60, |x, y| if (x / 2 + y / 2) % 2 == 0 { 60.0 } else { 190.0 }));
        assert!(smooth > 1.3 && busy < smooth, "{smooth} {busy}");
    }
}
