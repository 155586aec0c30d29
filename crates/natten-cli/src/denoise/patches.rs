//! Pictures as attention tensors. A query and a key stand for the patch around a pixel, so that their dot product tells
//! how alike two patches are.
//!
//! Non-local means gives pixel j the weight exp(-|p_i - p_j|^2 / h^2) in the new value of pixel i, where |.|^2 is a
//! weighted mean over the numbers of a patch. Of -|p_i|^2 + 2 p_i.p_j - |p_j|^2 the first term is the same for all j and
//! cancels in the softmax. What is left is an ordinary dot product with one number more: query (p_i, 1), key
//! (p_j, -|p_j|^2 / 2), scale 2. The weights and 1/h are in the patches.

use std::ops::Range;

use super::picture::{Picture, WHITE};

/// What scores are multiplied with.
pub(super) const SCALE: f64 = 2.0;

/// How a pixel's surroundings become a patch.
#[derive(Clone, Debug)]
pub(super) struct PatchShape {
    side: usize,
    /// The weights of the pixels, row-major. Their sum is 1.
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
        let weights: Vec<f64> =
            (0..side * side).map(|index| falls(index / side) * falls(index % side)).collect();
        let sum: f64 = weights.iter().sum();
        Self { side, weights: weights.into_iter().map(|weight| weight / sum).collect() }
    }

    /// Numbers in a query or key of a picture of so many channels.
    pub(super) const fn head_dim(&self, channels: usize) -> usize {
        self.side * self.side * channels + 1
    }

    /// How many equally weighted numbers would average noise as well as this patch does.
    pub(super) fn effective_numbers(&self, channels: usize) -> f64 {
        channels as f64 / self.weights.iter().map(|weight| weight * weight).sum::<f64>()
    }
}

/// The patches of a picture, ready to be written out as queries and keys.
#[derive(Debug)]
pub(super) struct Patches {
    width: usize,
    channels: usize,
    side: usize,
    /// The levels from -127.5 to 127.5 over h, with a border of half a patch that the picture is mirrored into.
    bordered: Vec<f32>,
    /// What a row of a patch is multiplied with: the square roots of the weights, for each channel.
    roots: Vec<f32>,
}

impl Patches {
    /// Patches of a picture. `h` is on the 0-255 scale.
    pub(super) fn new(picture: &Picture, shape: &PatchShape, h: f64) -> Self {
        let &Picture { width, height, channels, .. } = picture;
        let radius = shape.side / 2;
        let per_h = (1.0 / h) as f32;
        // Counting levels from the middle changes no distance and keeps the dot products small.
        let level = |index: usize| (picture.levels[index] - WHITE / 2.0) * per_h;
        let bordered = (0..height + 2 * radius)
            .map(|y| mirrored(y, radius, height))
            .flat_map(|y| (0..width + 2 * radius).map(move |x| y * width + mirrored(x, radius, width)))
            .flat_map(|pixel| (0..channels).map(move |channel| level(pixel * channels + channel)))
            .collect();
        let roots = shape
            .weights
            .iter()
            .flat_map(|weight| std::iter::repeat_n((weight / channels as f64).sqrt() as f32, channels))
            .collect();
        Self { width, channels, side: shape.side, bordered, roots }
    }

    /// The queries and the keys of some rows of pixels, in row-major order.
    pub(super) fn tokens(&self, rows: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let row_len = self.side * self.channels;
        let numbers = self.side * row_len;
        let pitch = (self.width + 2 * (self.side / 2)) * self.channels;
        let mut queries = vec![0.0; rows.len() * self.width * (numbers + 1)];
        let mut keys = vec![0.0; queries.len()];
        let pixels = rows.flat_map(|y| (0..self.width).map(move |x| y * pitch + x * self.channels));
        let tokens = queries.chunks_exact_mut(numbers + 1).zip(keys.chunks_exact_mut(numbers + 1));
        for (start, (query, key)) in pixels.zip(tokens) {
            for (row, roots) in self.roots.chunks_exact(row_len).enumerate() {
                let levels = &self.bordered[start + row * pitch..][..row_len];
                let patch = &mut query[row * row_len..][..row_len];
                patch.iter_mut().zip(levels).zip(roots).for_each(|((to, level), root)| *to = level * root);
            }
            query[numbers] = 1.0;
            key[..numbers].copy_from_slice(&query[..numbers]);
            key[numbers] = -0.5 * query[..numbers].iter().map(|number| number * number).sum::<f32>();
        }
        (queries, keys)
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
        let radius = (shape.side / 2) as isize;
        let mut sum = 0.0;
        for (index, weight) in shape.weights.iter().enumerate() {
            let (dy, dx) = ((index / shape.side) as isize - radius, (index % shape.side) as isize - radius);
            for channel in 0..picture.channels {
                let of = |at: [isize; 2]| level(picture, at[0] + dy, at[1] + dx, channel);
                sum += weight / picture.channels as f64 * (of(a) - of(b)).powi(2);
            }
        }
        sum
    }

    #[test]
    fn patches_are_those_of_the_picture() {
        for (width, height, channels, side) in
            [(9, 8, 3, 5), (4, 6, 1, 3), (5, 4, 3, 1), (2, 3, 1, 7), (1, 5, 3, 5), (1, 1, 1, 3)]
        {
            let (picture, shape) = (picture(width, height, channels), PatchShape::new(side));
            let h = 20.0;
            let (queries, keys) = Patches::new(&picture, &shape, h).tokens(0..height);
            let dim = shape.head_dim(channels);
            assert_eq!((queries.len(), keys.len()), (width * height * dim, width * height * dim));
            let radius = (side / 2) as isize;
            for (token, query) in queries.chunks_exact(dim).enumerate() {
                for (number, &found) in query[..dim - 1].iter().enumerate() {
                    let (pixel, channel) = (number / channels, number % channels);
                    let y = (token / width + pixel / side) as isize - radius;
                    let x = (token % width + pixel % side) as isize - radius;
                    let root = (shape.weights[pixel] / channels as f64).sqrt();
                    let expected = (level(&picture, y, x, channel) - 127.5) / h * root;
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
                }
                let key = &keys[token * dim..][..dim];
                assert_eq!((&key[..dim - 1], query[dim - 1]), (&query[..dim - 1], 1.0));
                let norm: f32 = query[..dim - 1].iter().map(|x| x * x).sum();
                assert!((key[dim - 1] + norm / 2.0).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn dot_products_give_the_weights_of_non_local_means() {
        let (picture, shape, h) = (picture(6, 5, 3), PatchShape::new(3), 60.0);
        let (queries, keys) = Patches::new(&picture, &shape, h).tokens(0..5);
        let dim = shape.head_dim(3);
        let softmax = |scores: &[f64]| {
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            scores.iter().map(|score| (score - most).exp() / sum).collect::<Vec<_>>()
        };
        for (token, query) in queries.chunks_exact(dim).enumerate() {
            let dot =
                |key: &[f32]| query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
            let scores: Vec<f64> = keys.chunks_exact(dim).map(|key| SCALE * dot(key)).collect();
            let place = |token: usize| [(token / 6) as isize, (token % 6) as isize];
            let expected: Vec<f64> = (0..30)
                .map(|other| -distance(&picture, &shape, place(token), place(other)) / (h * h))
                .collect();
            for (found, expected) in softmax(&scores).into_iter().zip(softmax(&expected)) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }

    #[test]
    fn some_rows_are_a_part_of_all_rows() {
        let picture = picture(5, 7, 1);
        let patches = Patches::new(&picture, &PatchShape::new(3), 10.0);
        let (all, some) = (patches.tokens(0..7), patches.tokens(2..5));
        assert_eq!(some.0, all.0[2 * 5 * 10..5 * 5 * 10]);
        assert_eq!(some.1, all.1[2 * 5 * 10..5 * 5 * 10]);
    }

    #[test]
    fn effective_numbers_count_what_averages() {
        assert_eq!(PatchShape::new(1).effective_numbers(3), 3.0);
        let seven = PatchShape::new(7).effective_numbers(1);
        // Computed with numpy.
        assert!((seven - 26.4).abs() < 0.1, "{seven}");
    }
}
