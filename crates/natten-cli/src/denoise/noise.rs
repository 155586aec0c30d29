//! Gaussian noise as a picture file can hold it: added, then cut off at black and white; and what the cut leaves of its
//! strength.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

use super::picture::{Picture, WHITE};

/// The picture with Gaussian noise of standard deviation `sigma` in every channel, cut off at black and white. The same
/// seed gives the same noise.
pub(super) fn add(picture: &Picture, sigma: f64, seed: u64) -> Picture {
    let mut random = StdRng::seed_from_u64(seed);
    let mut noisy = |&level: &f32| {
        let standard: f64 = StandardNormal.sample(&mut random);
        (f64::from(level) + sigma * standard) as f32
    };
    let levels = picture.levels.iter().map(&mut noisy).collect();
    picture.with_levels(levels)
}

/// What the cut at black and white does to noise: tells how much of its variance is left, by the mean level that is
/// seen.
#[derive(Debug)]
pub(super) struct Clipping {
    /// The mean that is seen of each level, increasing.
    means: Vec<f64>,
    /// The share of the variance that is left at each level.
    shares: Vec<f64>,
}

impl Clipping {
    /// For noise of this standard deviation.
    pub(super) fn of(sigma: f64) -> Self {
        // Moments of the clipped variable by the trapezoid rule over 5 deviations to each side.
        let nodes: Vec<(f64, f64)> = (-200..=200)
            .map(|step| f64::from(step) / 40.0)
            .map(|z| (z, (-z * z / 2.0).exp() / (40.0 * std::f64::consts::TAU.sqrt())))
            .collect();
        let moments = |level: u8| {
            let clipped = |z: f64| (f64::from(level) + sigma * z).clamp(0.0, f64::from(WHITE));
            let mean: f64 = nodes.iter().map(|(z, weight)| weight * clipped(*z)).sum();
            let variance: f64 = nodes.iter().map(|(z, weight)| weight * (clipped(*z) - mean).powi(2)).sum();
            (mean, variance / (sigma * sigma))
        };
        let (means, shares) = (0..=u8::MAX).map(moments).unzip();
        Self { means, shares }
    }

    /// The share of the noise's variance that is left where this mean level is seen.
    pub(super) fn share(&self, mean: f64) -> f64 {
        let above = self.means.partition_point(|&m| m < mean).clamp(1, self.means.len() - 1);
        let (low, high) = (self.means[above - 1], self.means[above]);
        let part = if high > low { ((mean - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 };
        self.shares[above - 1] + part * (self.shares[above] - self.shares[above - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(level: f32, is_deep: bool) -> Picture {
        Picture {
            width: 400,
            height: 300,
            channels: 1,
            levels: vec![level; 120_000],
            alpha: None,
            is_deep,
            profile: None,
        }
    }

    fn moments(picture: &Picture) -> (f64, f64) {
        let levels = || picture.levels.iter().map(|&level| f64::from(level));
        let mean = levels().sum::<f64>() / picture.levels.len() as f64;
        let variance =
            levels().map(|level| (level - mean).powi(2)).sum::<f64>() / picture.levels.len() as f64;
        (mean, variance)
    }

    #[test]
    fn noise_has_the_deviation_that_was_asked_for() {
        for (sigma, is_deep) in [(5.0, false), (25.0, false), (0.1, true)] {
            let (mean, variance) = moments(&add(&flat(128.0, is_deep), sigma, 7));
            // Four standard errors of 120000 samples; rounding to levels adds 1/12 at 8 bits.
            assert!((mean - 128.0).abs() < 4.0 * sigma / 346.0, "{mean}");
            let expected = if is_deep { sigma * sigma } else { sigma * sigma + 1.0 / 12.0 };
            assert!((variance / expected - 1.0).abs() < 4.0 * 1.42 / 346.0, "{sigma}: {variance}");
        }
    }

    #[test]
    fn the_seed_decides() {
        let picture = flat(128.0, false);
        assert_eq!(add(&picture, 25.0, 1), add(&picture, 25.0, 1));
        assert_ne!(add(&picture, 25.0, 1), add(&picture, 25.0, 2));
        assert_eq!(add(&picture, 0.0, 1), picture);
    }

    #[test]
    fn clipping_is_predicted() {
        let sigma = 40.0;
        let clipping = Clipping::of(sigma);
        for level in [0.0, 20.0, 100.0, 128.0, 230.0, 255.0] {
            let noisy = add(&flat(level, false), sigma, 3);
            assert!(noisy.levels.iter().all(|level| (0.0..=WHITE).contains(level)));
            let (mean, variance) = moments(&noisy);
            let share = clipping.share(mean);
            assert!((variance / (sigma * sigma) - share).abs() < 0.01, "{level}: {variance} {share}");
        }
        // Half of a normal distribution: 1/2 - 1/(2 pi).
        assert!((clipping.share(0.0) - 0.340_845).abs() < 1e-3);
        assert!((Clipping::of(5.0).share(128.0) - 1.0).abs() < 1e-4);
    }
}
