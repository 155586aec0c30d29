//! Denoises a picture by neighborhood attention, strip by strip, so that memory does not grow with the picture.

use std::ops::Range;
use std::sync::Arc;

use indicatif::ProgressBar;
use natten::geometry::{AxisParams, Neighborhood};
use natten::{
    Bindings, DType, Device, Error, HostTensor, OpRequest, Plan, PlanOptions, Problem, Result, Role, Tensor,
    block_on,
};

use super::patches::{Patches, SCALE};
use super::picture::Picture;

/// Bytes of queries and keys that a strip may have, where it can be made small enough.
const STRIP_BYTES: usize = 1 << 30;

/// How many times the rows that two strips share a strip is high: more strips show progress, and computing the shared
/// rows twice costs time.
const STRIP_HEIGHT: usize = 10;

/// The attention that denoises a picture.
#[derive(Debug)]
pub(super) struct Denoiser {
    device: Device,
    plan: Arc<dyn Plan>,
    strips: Strips,
    problem: Problem,
}

impl Denoiser {
    /// Plans the work. The window is clamped to the picture.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a window of zero; as [`Device::plan`].
    pub(super) fn new(
        device: Device,
        picture: &Picture,
        kernel_size: usize,
        head_dim: usize,
    ) -> Result<Self> {
        let row_bytes = picture.width.saturating_mul(head_dim).saturating_mul(2 * size_of::<f32>());
        Self::with_strips(device, picture, kernel_size, head_dim, STRIP_BYTES / row_bytes.max(1))
    }

    /// As [`new`](Self::new), with at most so many rows in a strip, where so few will do.
    fn with_strips(
        device: Device,
        picture: &Picture,
        kernel_size: usize,
        head_dim: usize,
        most_rows: usize,
    ) -> Result<Self> {
        let fit = |height| {
            let axes = [AxisParams::new(height, kernel_size), AxisParams::new(picture.width, kernel_size)];
            Neighborhood::fit(&axes, false)
        };
        let strips = Strips::new(picture.height, fit(picture.height)?.kernel_size()[0], most_rows);
        let problem = Problem::builder(fit(strips.rows)?, DType::F32)
            .head_dim(head_dim)
            .head_dim_v(picture.channels)
            .relative_positional_bias(true)
            .scale(Some(SCALE))
            .build()?;
        let request = OpRequest::forward(&problem).wanting([Role::Output]);
        let plan = device.plan(&problem, &request, &PlanOptions::default())?;
        Ok(Self { device, plan, strips, problem })
    }

    /// Keys in a window: rows and columns.
    pub(super) fn window(&self) -> Vec<usize> {
        self.problem.neighborhood().kernel_size()
    }

    /// How many steps [`run`](Self::run) takes.
    pub(super) const fn steps(&self) -> usize {
        self.strips.count
    }

    /// The denoised levels of the picture whose patches these are. `self_score` is the score that a pixel gets for itself
    /// beside what its patch says.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub(super) fn run(
        &self,
        picture: &Picture,
        patches: &Patches,
        self_score: f64,
        progress: &ProgressBar,
    ) -> Result<Vec<f32>> {
        let (backend, queue) = (self.device.backend(), &**self.device.queue());
        let upload = |role: Role, numbers: Vec<f32>| {
            backend.upload(queue, HostTensor::new(&self.problem.shape(role), numbers)?)
        };
        let bias = upload(Role::Rpb, self.bias(self_score))?;
        let mut outputs: Vec<Tensor> = Vec::new();
        for spec in self.plan.tensors().iter().filter(|spec| spec.is_output) {
            outputs.push(backend.empty(spec)?);
        }
        let mut workspace = self.plan.new_workspace()?;

        let row_len = picture.width * picture.channels;
        let mut denoised = Vec::with_capacity(picture.levels.len());
        for strip in self.strips.iter() {
            let (queries, keys) = patches.tokens(strip.rows.clone());
            let levels = &picture.levels[strip.rows.start * row_len..strip.rows.end * row_len];
            let inputs = [
                &upload(Role::Query, queries)?,
                &upload(Role::Key, keys)?,
                &upload(Role::Value, levels.to_vec())?,
                &bias,
            ];
            let bindings = Bindings { inputs: &inputs, outputs: &mut outputs };
            self.plan.run(queue, bindings, &mut workspace)?;
            let output = block_on(backend.download(queue, &outputs[0]))?;
            let output = output.as_slice::<f32>().ok_or_else(|| Error::Device {
                backend: self.device.info().backend.into(),
                message: "it gave another dtype than f32".to_owned(),
            })?;
            denoised.extend_from_slice(&output[strip.kept.start * row_len..strip.kept.end * row_len]);
            progress.inc(1);
        }
        Ok(denoised)
    }

    /// A bias table of zeros, but for the offset of a pixel to itself.
    fn bias(&self, self_score: f64) -> Vec<f32> {
        // One entry an offset, from -(kernel_size - 1) to kernel_size - 1 on each axis: zero offset is in the middle.
        let mut bias = vec![0.0; self.problem.shape(Role::Rpb).iter().product()];
        let middle = bias.len() / 2;
        bias[middle] = self_score as f32;
        bias
    }
}

/// A picture's rows, cut into strips of one height that overlap by what their windows reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strips {
    height: usize,
    /// Rows of each strip.
    rows: usize,
    count: usize,
    /// Rows at an inner edge of a strip whose windows would reach beyond it.
    margin: usize,
}

/// A strip: the rows that it is computed from, and which of them have their whole windows in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Strip {
    rows: Range<usize>,
    kept: Range<usize>,
}

impl Strips {
    /// Cuts `height` rows, which windows of `window` rows go over, into strips of about `most` rows.
    fn new(height: usize, window: usize, most: usize) -> Self {
        // A window at the picture's edge is moved inside, so it is as high as any other.
        let margin = window / 2;
        let shared = 2 * margin;
        // At least one row must be left that a strip does not share.
        let rows = most.min(STRIP_HEIGHT * shared).max(64.min(most)).max(shared + 1).max(window);
        let count = match height.checked_sub(rows) {
            Some(rest) => 1 + rest.div_ceil(rows - shared),
            None => 1,
        };
        // As many strips, as low as they can be.
        let rows = (height + shared * (count - 1)).div_ceil(count).max(window);
        Self { height, rows: rows.min(height), count, margin }
    }

    fn iter(self) -> impl Iterator<Item = Strip> {
        let mut done = 0usize;
        (0..self.count).map(move |_| {
            let start = done.saturating_sub(self.margin).min(self.height - self.rows);
            let rows = start..start + self.rows;
            let end = if rows.end == self.height { self.height } else { rows.end - self.margin };
            let kept = done - start..end - start;
            done = end;
            Strip { rows, kept }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::patches::PatchShape;
    use super::*;
    use natten::Registry;

    #[test]
    fn strips_keep_every_row_once_with_its_whole_window() {
        for height in (1..70).chain([511, 512, 1000]) {
            for window in [1, 2, 3, 8, 21] {
                let window = window.min(height);
                for most in [0, 5, 30, 100, 10_000] {
                    let strips = Strips::new(height, window, most);
                    let mut next = 0;
                    for Strip { rows, kept } in strips.iter() {
                        assert_eq!((rows.len(), rows.start + kept.start), (strips.rows, next));
                        assert!(rows.end <= height && kept.end <= rows.len() && !kept.is_empty());
                        for row in kept.clone() {
                            let start = |row: usize, length: usize| {
                                row.saturating_sub(window / 2).min(length - window)
                            };
                            let inside = rows.start + start(row, strips.rows);
                            assert_eq!(inside, start(rows.start + row, height), "{strips:?} {row}");
                        }
                        next = rows.start + kept.end;
                    }
                    assert_eq!(next, height, "{strips:?}");
                }
            }
        }
    }

    #[test]
    fn strips_are_high_enough_to_pay() {
        assert_eq!(Strips::new(512, 21, 900), Strips { height: 512, rows: 184, count: 3, margin: 10 });
        assert_eq!(Strips::new(3000, 21, 900).rows, 196);
        assert_eq!(Strips::new(50, 21, 900).count, 1);
    }

    fn picture(width: usize, height: usize) -> Picture {
        let levels = (0..width * height * 3).map(|i| (i * 71 % 256) as f32).collect();
        Picture { width, height, channels: 3, levels, alpha: None, is_deep: false, profile: None }
    }

    fn denoise(picture: &Picture, shape: &PatchShape, h: f64, self_score: f64, most_rows: usize) -> Vec<f32> {
        let device = Registry::probe().device("reference").unwrap();
        let head_dim = shape.head_dim(picture.channels);
        let denoiser = Denoiser::with_strips(device, picture, 5, head_dim, most_rows).unwrap();
        assert_eq!(denoiser.steps() > 1, most_rows < picture.height);
        let patches = Patches::new(picture, shape, h);
        denoiser.run(picture, &patches, self_score, &ProgressBar::hidden()).unwrap()
    }

    #[test]
    fn strips_give_what_the_whole_picture_gives() {
        let (picture, shape) = (picture(7, 40), PatchShape::new(3));
        let whole = denoise(&picture, &shape, 40.0, -1.0, 40);
        assert_eq!(denoise(&picture, &shape, 40.0, -1.0, 12), whole);
        assert_eq!(denoise(&picture, &shape, 40.0, -1.0, 30), whole);
    }

    /// Non-local means of single pixels, which needs no patches, written as it is defined.
    #[test]
    fn attention_is_non_local_means() {
        let (picture, h, self_score) = (picture(6, 9), 90.0, -0.7);
        let found = denoise(&picture, &PatchShape::new(1), h, self_score, 9);
        let pixel =
            |at: usize| -> [f64; 3] { std::array::from_fn(|c| f64::from(picture.levels[3 * at + c])) };
        for (at, found) in found.chunks_exact(3).enumerate() {
            let start = |at: usize, length: usize| at.saturating_sub(2).min(length - 5);
            let (top, left) = (start(at / 6, 9), start(at % 6, 6));
            let (mut sum, mut weights) = ([0.0; 3], 0.0);
            for other in (top..top + 5).flat_map(|y| (left..left + 5).map(move |x| y * 6 + x)) {
                let squares = pixel(at).iter().zip(pixel(other)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let itself = if other == at { self_score } else { 0.0 };
                let weight = (itself - squares / 3.0 / (h * h)).exp();
                weights += weight;
                sum.iter_mut().zip(pixel(other)).for_each(|(sum, level)| *sum += weight * level);
            }
            for (found, sum) in found.iter().zip(sum) {
                assert!((f64::from(*found) - sum / weights).abs() < 1e-3, "{at}: {found} {}", sum / weights);
            }
        }
    }
}
