//! Pictures as attention tensors. The patch around a pixel is both its query and its key, so that a dot product tells how
//! alike two patches are: |p_i - p_j|^2 = |p_i|^2 + |p_j|^2 - 2 p_i.p_j, where |.|^2 is a weighted mean over the numbers
//! of a patch, the square roots of whose weights are multiplied into the patches.
//!
//! Noise of deviation sigma makes the distance of two patches that show the same thing 2 sigma^2, and less where it is
//! cut off at black and white. What the cut takes away is added to the norms, so that noise counts alike everywhere.

use std::ops::Range;

use super::noise::Clipping;
use super::picture::Picture;

/// How a pixel's surroundings become a patch.
#[derive(Clone, Debug)]
pub(super) struct PatchShape {
    /// The weights along a row, and along a column. Their sum is 1; a pixel's weight is the product of its two.
    weights: Vec<f64>,
}

impl PatchShape {
    /// Patches of `side` times `side` pixels; `side` is odd. A pixel's weight falls with its distance from the centre as
    /// a normal distribution of deviation `(side - 1) / 4`, since what is far from the centre tells less about it.
    pub(super) fn new(side: usize) -> Self {
        let (radius, deviation) = ((side / 2) as f64, (side - 1) as f64 / 4.0);
        let falls = |offset: usize| match deviation {
            0.0 => 1.0,
            _ => (-(offset as f64 - radius).powi(2) / (2.0 * deviation * deviation)).exp(),
        };
        let sum: f64 = (0..side).map(falls).sum();
        Self { weights: (0..side).map(|offset| falls(offset) / sum).collect() }
    }

    const fn side(&self) -> usize {
        self.weights.len()
    }

    /// Numbers in the patch of a picture of so many channels.
    pub(super) const fn len(&self, channels: usize) -> usize {
        self.side() * self.side() * channels
    }

    /// How many equally weighted numbers would average noise as well as this patch does.
    pub(super) fn effective_numbers(&self, channels: usize) -> f64 {
        channels as f64 / self.weights.iter().map(|weight| weight * weight).sum::<f64>().powi(2)
    }

    /// The weighted mean over the patch around each number of a plane.
    fn average(&self, plane: &[f64], width: usize, height: usize) -> Vec<f64> {
        let radius = self.side() / 2;
        let seen =
            |length| (0..length + 2 * radius).map(|at| mirrored(at, radius, length)).collect::<Vec<_>>();
        let (columns, rows) = (seen(width), seen(height));
        let along: Vec<f64> = plane
            .chunks_exact(width)
            .flat_map(|row| columns.windows(self.side()).map(|seen| self.mean(seen.iter().map(|&x| row[x]))))
            .collect();
        rows.windows(self.side())
            .flat_map(|seen| (0..width).map(move |x| (seen, x)))
            .map(|(seen, x)| self.mean(seen.iter().map(|&y| along[y * width + x])))
            .collect()
    }

    fn mean(&self, numbers: impl Iterator<Item = f64>) -> f64 {
        numbers.zip(&self.weights).map(|(number, weight)| number * weight).sum()
    }
}

/// The patches of a picture, ready to be written out as queries and keys.
#[derive(Debug)]
pub(super) struct Patches {
    width: usize,
    channels: usize,
    side: usize,
    /// The levels, counted from their mean, with a border of half a patch that the picture is mirrored into.
    bordered: Vec<f32>,
    /// What a patch is multiplied with: the square roots of the weights, for each channel.
    roots: Vec<f32>,
    /// The squared norm of each pixel's patch, with what the noise lacks where it is cut off.
    norms: Vec<f32>,
}

impl Patches {
    /// Patches of a picture that has noise of standard deviation `sigma`, which is not 0.
    pub(super) fn new(picture: &Picture, shape: &PatchShape, sigma: f64) -> Self {
        let &Picture { width, height, channels, .. } = picture;
        let side = shape.side();
        let radius = side / 2;
        let planes: Vec<Vec<f64>> = (0..channels)
            .map(|channel| picture.levels.iter().skip(channel).step_by(channels).map(|&l| l.into()).collect())
            .collect();
        // Counting levels from their mean changes no distance and keeps the dot products small, and with them what
        // rounding makes of the differences.
        let means: Vec<f64> =
            planes.iter().map(|plane| plane.iter().sum::<f64>() / plane.len() as f64).collect();
        let level = |pixel: usize, channel: usize| (planes[channel][pixel] - means[channel]) as f32;
        let bordered = (0..height + 2 * radius)
            .map(|y| mirrored(y, radius, height))
            .flat_map(|y| (0..width + 2 * radius).map(move |x| y * width + mirrored(x, radius, width)))
            .flat_map(|pixel| (0..channels).map(move |channel| (pixel, channel)))
            .map(|(pixel, channel)| level(pixel, channel))
            .collect();
        let roots = (0..side * side)
            .map(|pixel| shape.weights[pixel / side] * shape.weights[pixel % side])
            .flat_map(|weight| std::iter::repeat_n((weight / channels as f64).sqrt() as f32, channels))
            .collect();

        let clipping = Clipping::of(sigma);
        let mut norms = vec![0.0; width * height];
        for (plane, &mean) in planes.iter().zip(&means) {
            let around = shape.average(plane, width, height);
            let lost = |around: f64| sigma * sigma * (1.0 - clipping.share(around));
            let squares: Vec<f64> = plane
                .iter()
                .zip(around)
                .map(|(level, around)| (level - mean).powi(2) + lost(around))
                .collect();
            for (norm, square) in norms.iter_mut().zip(shape.average(&squares, width, height)) {
                *norm += square / channels as f64;
            }
        }
        let norms = norms.into_iter().map(|norm| norm as f32).collect();
        Self { width, channels, side, bordered, roots, norms }
    }

    /// The patches of some rows of pixels, in row-major order, and their squared norms.
    pub(super) fn tokens(&self, rows: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let row_len = self.side * self.channels;
        let pitch = (self.width + 2 * (self.side / 2)) * self.channels;
        let norms = self.norms[rows.start * self.width..rows.end * self.width].to_vec();
        let mut patches = Vec::with_capacity(norms.len() * self.roots.len());
        let pixels = rows.flat_map(|y| (0..self.width).map(move |x| y * pitch + x * self.channels));
        for start in pixels {
            for (row, roots) in self.roots.chunks_exact(row_len).enumerate() {
                let levels = &self.bordered[start + row * pitch..][..row_len];
                patches.extend(levels.iter().zip(roots).map(|(level, root)| level * root));
            }
        }
        (patches, norms)
    }
}

/// The row or column of the picture that is seen `at` steps from where its border of width `radius` begins. The line at
/// the edge is not repeated; a picture smaller than the border is mirrored again and again.
fn mirrored(at: usize, radius: usize, length: usize) -> usize {
    if length == 1 {
        return 0;
    }
    let period = 2 * (length - 1);
    let at = (at + period * radius - radius) % period;
    at.min(period - at)
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    fn picture(width: usize, height: usize, channels: usize) -> Picture {
        let levels = (0..width * height * channels).map(|i| (i * 37 % 251) as f32).collect();
        Picture { width, height, channels, levels, alpha: None, is_deep: false, profile: None }
    }

    /// The level at a place that may be outside, by walking there and turning at the edges.
    fn level(picture: &Picture, y: isize, x: isize, channel: usize) -> f64 {
        let turn = |mut at: isize, length: usize| {
            let last = length as isize - 1;
            while !(0..=last).contains(&at) {
                at = if last == 0 {
                    0
                } else if at < 0 {
                    -at
                } else {
                    2 * last - at
                };
            }
            at as usize
        };
        let (y, x) = (turn(y, picture.height), turn(x, picture.width));
        f64::from(picture.levels[(y * picture.width + x) * picture.channels + channel])
    }

    /// The weighted mean of squared differences of two patches, pixel by pixel.
    fn distance(picture: &Picture, shape: &PatchShape, a: [isize; 2], b: [isize; 2]) -> f64 {
        let radius = (shape.side() / 2) as isize;
        let mut sum = 0.0;
        for index in 0..shape.side() * shape.side() {
            let (row, column) = (index / shape.side(), index % shape.side());
            let weight = shape.weights[row] * shape.weights[column];
            let (dy, dx) = (row as isize - radius, column as isize - radius);
            for channel in 0..picture.channels {
                let of = |at: [isize; 2]| level(picture, at[0] + dy, at[1] + dx, channel);
                sum += weight / picture.channels as f64 * (of(a) - of(b)).powi(2);
            }
        }
        sum
    }

    /// Noise too weak to be missed where it is cut off.
    const FAINT: f64 = 1e-3;

    #[test]
    fn patches_are_those_of_the_picture() {
        for (width, height, channels, side) in
            [(9, 8, 3, 5), (4, 6, 1, 3), (5, 4, 3, 1), (2, 3, 1, 7), (1, 5, 3, 5), (1, 1, 1, 3)]
        {
            let (picture, shape) = (picture(width, height, channels), PatchShape::new(side));
            let (patches, norms) = Patches::new(&picture, &shape, FAINT).tokens(0..height);
            let len = shape.len(channels);
            assert_eq!((patches.len(), norms.len()), (width * height * len, width * height));
            let mean = |channel: usize| {
                let levels = picture.levels.iter().skip(channel).step_by(channels);
                levels.map(|&level| f64::from(level)).sum::<f64>() / (width * height) as f64
            };
            let radius = (side / 2) as isize;
            for (token, patch) in patches.chunks_exact(len).enumerate() {
                for (number, &found) in patch.iter().enumerate() {
                    let (pixel, channel) = (number / channels, number % channels);
                    let (row, column) = (pixel / side, pixel % side);
                    let y = (token / width + row) as isize - radius;
                    let x = (token % width + column) as isize - radius;
                    let root = (shape.weights[row] * shape.weights[column] / channels as f64).sqrt();
                    let expected = (level(&picture, y, x, channel) - mean(channel)) * root;
                    assert!((f64::from(found) - expected).abs() < 1e-4, "{found} {expected}");
                }
                let norm: f32 = patch.iter().map(|x| x * x).sum();
                assert!((norms[token] - norm).abs() < 1e-5 * norm.max(1.0), "{} {norm}", norms[token]);
            }
        }
    }

    #[test]
    fn norms_and_dot_products_give_distances() {
        let (picture, shape) = (picture(6, 5, 3), PatchShape::new(3));
        let (patches, norms) = Patches::new(&picture, &shape, FAINT).tokens(0..5);
        let patch = |token: usize| &patches[token * shape.len(3)..][..shape.len(3)];
        let place = |token: usize| [(token / 6) as isize, (token % 6) as isize];
        for (i, j) in (0..30).flat_map(|i| (0..30).map(move |j| (i, j))) {
            let dot: f32 = patch(i).iter().zip(patch(j)).map(|(a, b)| a * b).sum();
            let found = f64::from(norms[i] + norms[j] - 2.0 * dot);
            let expected = distance(&picture, &shape, place(i), place(j));
            assert!((found - expected).abs() < 0.01, "{i} {j}: {found} {expected}");
        }
    }

    /// Two black patches differ by less than 2 sigma^2, since half of their noise is cut off.
    #[test]
    fn noise_counts_alike_where_it_is_cut_off() {
        let sigma = 30.0;
        for level in [0.0, 60.0, 128.0, 255.0] {
            let flat = Picture { levels: vec![level; 60 * 60], ..picture(60, 60, 1) };
            let (patches, norms) =
                Patches::new(&noise::add(&flat, sigma, 1), &PatchShape::new(5), sigma).tokens(0..60);
            // Every third in both directions, of which neighbours share little.
            let pixels: Vec<usize> = (0..60 * 60).filter(|at| at / 60 % 3 == 0 && at % 3 == 0).collect();
            let distance = |i: usize, j: usize| {
                let pairs = patches[i * 25..][..25].iter().zip(&patches[j * 25..][..25]);
                norms[i] + norms[j] - 2.0 * pairs.map(|(a, b)| a * b).sum::<f32>()
            };
            let (one, other) = pixels.split_at(pixels.len() / 2);
            let sum: f32 = one.iter().zip(other).map(|(&i, &j)| distance(i, j)).sum();
            let mean = f64::from(sum) / one.len() as f64;
            assert!((mean / (2.0 * sigma * sigma) - 1.0).abs() < 0.06, "{level}: {mean}");
        }
    }

    #[test]
    fn some_rows_are_a_part_of_all_rows() {
        let picture = picture(5, 7, 1);
        let patches = Patches::new(&picture, &PatchShape::new(3), 10.0);
        let (all, some) = (patches.tokens(0..7), patches.tokens(2..5));
        assert_eq!(some.0, all.0[2 * 5 * 9..5 * 5 * 9]);
        assert_eq!(some.1, all.1[2 * 5..5 * 5]);
    }

    #[test]
    fn effective_numbers_count_what_averages() {
        assert_eq!(PatchShape::new(1).effective_numbers(3), 3.0);
        let seven = PatchShape::new(7).effective_numbers(1);
        // Computed with numpy.
        assert!((seven - 26.4).abs() < 0.1, "{seven}");
    }
}
