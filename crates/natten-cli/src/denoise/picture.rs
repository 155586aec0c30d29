//! A picture as numbers: levels on the 0-255 scale whatever the file's depth, and beside them what denoising leaves
//! alone, which is the alpha channel and the colour profile.

use natten::{Error, Result};

/// The largest level.
pub(super) const WHITE: f32 = 255.0;

/// Pieces of a picture along each axis, at most.
const MOST_PIECES: usize = 4;

/// 16-bit steps in one level: 65535 / 255.
const FINE: f32 = 257.0;

/// A picture, grey or colour.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Numbers in a pixel: 1 for grey, 3 for colour.
    pub(super) channels: usize,
    /// Row-major, the channels of a pixel side by side, each from 0 to 255.
    pub(super) levels: Vec<f32>,
    /// One 16-bit number a pixel, where the file has an alpha channel.
    pub(super) alpha: Option<Vec<u16>>,
    /// Whether the file has 16 bits a number. It has 8 otherwise.
    pub(super) is_deep: bool,
    /// The ICC colour profile. It goes into the output as it came.
    pub(super) profile: Option<Vec<u8>>,
}

impl Picture {
    /// The same picture with other levels, which are brought into range and onto the steps that a file of its depth
    /// has: what is measured and shown is then what is written.
    pub(super) fn with_levels(&self, mut levels: Vec<f32>) -> Self {
        let steps = if self.is_deep { FINE } else { 1.0 };
        for level in &mut levels {
            *level = (level.clamp(0.0, WHITE) * steps).round() / steps;
        }
        Self { levels, alpha: self.alpha.clone(), profile: self.profile.clone(), ..*self }
    }

    /// The samples as a file of this depth holds them, alpha behind each pixel where it is there; 16-bit samples in the
    /// byte order of the machine, which is what the encoders take.
    pub(super) fn samples(&self, is_deep: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * (self.levels.len() + self.width * self.height));
        let mut push = |sample: u16| {
            if is_deep {
                bytes.extend(sample.to_ne_bytes());
            } else {
                bytes.push((f32::from(sample) / FINE).round() as u8);
            }
        };
        for (index, pixel) in self.levels.chunks_exact(self.channels).enumerate() {
            pixel.iter().for_each(|&level| push((level * FINE).round() as u16));
            if let Some(alpha) = &self.alpha {
                push(alpha[index]);
            }
        }
        bytes
    }

    /// The levels of one row.
    fn row(&self, y: usize) -> &[f32] {
        &self.levels[y * self.width * self.channels..][..self.width * self.channels]
    }

    /// The piece of `width` times `height` pixels at a corner, as it is but for its alpha.
    fn piece(&self, x: usize, y: usize, width: usize, height: usize) -> Self {
        let columns = x * self.channels..(x + width) * self.channels;
        let rows = (y..y + height).flat_map(|y| &self.row(y)[columns.clone()]);
        Self { width, height, levels: rows.copied().collect(), alpha: None, profile: None, ..*self }
    }

    /// Square pieces of `side` pixels, evenly spread over the picture, that have about `room` pixels together; at least
    /// one, and not wider or higher than the picture.
    pub(super) fn pieces(&self, side: usize, room: usize) -> Vec<Self> {
        let (width, height) = (side.min(self.width), side.min(self.height));
        let along = (room / (width * height)).isqrt().clamp(1, MOST_PIECES);
        // The middles of equal parts.
        let starts = |length: usize, extent: usize| -> Vec<usize> {
            let count = along.min(length / extent);
            (0..count)
                .map(|part| (length - extent * count) * (2 * part + 1) / (2 * count) + part * extent)
                .collect()
        };
        let columns = starts(self.width, width);
        let corners =
            starts(self.height, height).into_iter().flat_map(|y| columns.iter().map(move |&x| (x, y)));
        corners.map(|(x, y)| self.piece(x, y, width, height)).collect()
    }

    /// `512x512 colour`, for messages.
    pub(super) fn describe(&self) -> String {
        let kind = if self.channels == 1 { "grey" } else { "colour" };
        let depth = if self.is_deep { ", 16 bits" } else { "" };
        let alpha = if self.alpha.is_some() { ", alpha kept" } else { "" };
        format!("{}x{} {kind}{depth}{alpha}", self.width, self.height)
    }
}

/// The peak signal-to-noise ratio of two pictures, in dB, over all channels but alpha: `10 log10(255^2 / mse)`. It is
/// infinite where they are the same.
///
/// # Errors
/// [`Error::Invalid`] where the pictures differ in size or in the number of channels.
pub(super) fn psnr(clean: &Picture, other: &Picture) -> Result<f64> {
    let shape = |picture: &Picture| (picture.width, picture.height, picture.channels);
    if shape(clean) != shape(other) {
        return Err(Error::invalid(
            "clean",
            clean.describe(),
            format!("the picture to compare it with is {}", other.describe()),
            "give the clean version of the same picture",
        ));
    }
    let squares = clean.levels.iter().zip(&other.levels).map(|(&a, &b)| f64::from(a - b).powi(2));
    Ok(psnr_of(squares.sum::<f64>() / clean.levels.len() as f64))
}

/// The peak signal-to-noise ratio, in dB, of a mean squared error.
pub(super) fn psnr_of(mse: f64) -> f64 {
    10.0 * (f64::from(WHITE).powi(2) / mse).log10()
}

/// Pictures of one shape next to each other, from left to right, in 8 bits and without alpha.
pub(super) fn side_by_side(pictures: &[&Picture]) -> Picture {
    let first = pictures[0];
    let rows = (0..first.height).flat_map(|y| pictures.iter().flat_map(move |picture| picture.row(y)));
    Picture {
        width: first.width * pictures.len(),
        levels: rows.copied().collect(),
        alpha: None,
        is_deep: false,
        profile: first.profile.clone(),
        ..*first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, levels: &[f32]) -> Picture {
        Picture {
            width,
            height: levels.len() / width,
            channels: 1,
            levels: levels.to_vec(),
            alpha: None,
            is_deep: false,
            profile: None,
        }
    }

    #[test]
    fn psnr_follows_its_formula() {
        let clean = grey(2, &[10.0, 20.0, 30.0, 40.0]);
        let mut other = clean.clone();
        assert_eq!(psnr(&clean, &other).unwrap(), f64::INFINITY);
        other.levels = vec![15.0, 15.0, 35.0, 35.0];
        // An error of 5 everywhere: 20 log10(255 / 5).
        assert!((psnr(&clean, &other).unwrap() - 34.151_4).abs() < 1e-4);
        other.levels = vec![10.0, 20.0, 30.0, 50.0];
        // 10 on one pixel in four: the same mean square.
        assert!((psnr(&clean, &other).unwrap() - 34.151_4).abs() < 1e-4);
        assert!((psnr(&grey(1, &[0.0]), &grey(1, &[255.0])).unwrap()).abs() < 1e-9);
        let error = psnr(&clean, &grey(1, &[0.0; 4])).unwrap_err().to_string();
        assert!(error.contains("clean is 2x2 grey") && error.contains("1x4 grey"), "{error}");
    }

    #[test]
    fn levels_land_on_the_steps_of_the_file() {
        let mut picture = grey(4, &[0.0; 4]);
        let levels = vec![-3.0, 0.4, 100.6, 300.0];
        assert_eq!(picture.with_levels(levels.clone()).levels, [0.0, 0.0, 101.0, 255.0]);
        picture.is_deep = true;
        let deep = picture.with_levels(levels);
        assert_eq!(deep.levels[1], 103.0 / 257.0);
        let samples: Vec<u16> =
            deep.samples(true).chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect();
        assert_eq!(samples, [0, 103, 25854, 65535]);
        assert_eq!(deep.samples(false), [0, 0, 101, 255]);
    }

    #[test]
    fn pieces_lie_in_the_picture() {
        let drawn = |width: usize, height: usize| {
            let levels: Vec<f32> = (0..width * height).map(|at| (at % width + at / width) as f32).collect();
            grey(width, &levels)
        };
        let picture = drawn(200, 150);
        for (side, count) in [(10, 16), (20, 9), (40, 1), (200, 1)] {
            let pieces = picture.pieces(side, 200 * 150 / 8);
            assert_eq!(pieces.len(), count, "{side}");
            let (width, height) = (side, side.min(150));
            assert!(pieces.iter().all(|piece| (piece.width, piece.height) == (width, height)));
            // Spread evenly: as much is left before the first as behind the last.
            let last = pieces.last().unwrap();
            let behind = 200 + 150 - 2 - last.levels[width * height - 1] as usize;
            assert!((pieces[0].levels[0] as usize).abs_diff(behind) <= 2, "{side}: {behind}");
        }
        assert_eq!(drawn(1, 1).pieces(40, 0).len(), 1);
        assert_eq!(drawn(1000, 3).pieces(40, 375)[0].height, 3);
    }

    #[test]
    fn pieces_are_cut_out() {
        let piece = grey(3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]).piece(1, 0, 2, 2);
        assert_eq!((piece.width, piece.height), (2, 2));
        assert_eq!(piece.levels, [2.0, 3.0, 5.0, 6.0]);
    }

    #[test]
    fn pictures_stand_side_by_side() {
        let (left, mut right) = (grey(2, &[1.0, 2.0, 3.0, 4.0]), grey(2, &[5.0, 6.0, 7.0, 8.0]));
        right.alpha = Some(vec![0; 4]);
        let both = side_by_side(&[&left, &right]);
        assert_eq!((both.width, both.height, &both.alpha), (4, 2, &None));
        assert_eq!(both.levels, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
    }
}
