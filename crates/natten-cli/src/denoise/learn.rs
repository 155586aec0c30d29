//! How `h` and `s` are learnt where the clean picture is known: gradient descent on the mean squared error, with the
//! gradients that the attention's backward pass has for its captured scalars.
//!
//! What is sought are the logarithms of both, in which a step means the same for any noise. Of two numbers the curvature
//! is soon known from the gradients that are seen on the way (the BFGS update of the inverse Hessian); it turns steps along
//! the valley in which more `s` makes up for less `h`. A step that does not lower the error is halved.

use std::fmt::Write;
use std::sync::Arc;

use indicatif::ProgressBar;
use nalgebra::{Matrix2, Vector2};
use natten::{Device, OpRequest, Plan, Result, Role};

use super::attention::{Denoiser, H2, Pass, S2, Uploaded, Weighing};
use super::patches::{PatchShape, Patches};
use super::picture::{self, Picture};

/// How often the error and its gradient are computed, at most.
pub(super) const MOST_TRIES: usize = 20;

/// Pixels that are learnt from, at most: pieces of a larger picture.
const MOST_PIXELS: usize = 1 << 18;

/// Pixels across a piece, at least.
const LEAST_SIDE: usize = 128;

/// The length of the first step and of the longest, in logarithms.
const FIRST_STEP: f64 = 0.2;
const LONGEST_STEP: f64 = 0.5;

/// A step below this is the last, and one that gains less than this part of the error.
const LEAST_STEP: f64 = 1e-3;
const LEAST_GAIN: f64 = 1e-5;

/// The mean squared error, and its derivatives by the logarithms of `h` and of `s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loss {
    value: f64,
    gradient: Vector2<f64>,
}

/// A point on the way: what the error is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) weighing: Weighing,
    pub(super) loss: Loss,
}

/// Noisy pictures on the device, beside what they should become.
pub(super) struct Lesson {
    denoiser: Denoiser,
    /// Each strip, with the clean levels of its kept rows.
    strips: Vec<(Uploaded, Vec<f32>)>,
    forward: Arc<dyn Plan>,
    backward: Arc<dyn Plan>,
}

impl Lesson {
    /// Plans the forward pass and the gradients of the captured scalars, and uploads the picture or pieces of it.
    /// `sigma` is the noise that the patches are made for.
    ///
    /// # Errors
    /// As [`Denoiser::new`].
    pub(super) fn new(
        device: &Device,
        noisy: &Picture,
        clean: &Picture,
        shape: &PatchShape,
        kernel_size: usize,
        sigma: f64,
    ) -> Result<Self> {
        let cut = |picture: &Picture| match picture.width * picture.height <= MOST_PIXELS {
            true => vec![picture.clone()],
            false => picture.pieces(LEAST_SIDE.max(kernel_size.saturating_mul(2)), MOST_PIXELS),
        };
        let (noisy, clean) = (cut(noisy), cut(clean));
        let denoiser = Denoiser::new(device.clone(), &noisy[0], kernel_size, shape.len(noisy[0].channels))?;
        let mut strips = Vec::new();
        for (noisy, clean) in noisy.iter().zip(&clean) {
            let mut levels = clean.levels.iter().copied();
            for strip in denoiser.upload(noisy, &Patches::new(noisy, shape, sigma)) {
                let strip = strip?;
                let kept = levels.by_ref().take(denoiser.kept(&strip).len()).collect();
                strips.push((strip, kept));
            }
        }
        let gradients = [S2, H2].into_iter().filter_map(Role::gradient);
        let forward = denoiser.plan(OpRequest::forward)?;
        let backward = denoiser.plan(|problem| OpRequest::backward(problem).wanting(gradients.clone()))?;
        Ok(Self { denoiser, strips, forward, backward })
    }

    /// How many steps of progress [`learn`](Self::learn) makes, at most.
    pub(super) const fn work(&self) -> usize {
        MOST_TRIES * self.strips.len()
    }

    /// The way from `start` to where the error is least.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub(super) fn learn(&self, start: Weighing, progress: &ProgressBar) -> Result<Vec<Step>> {
        let weighing = |at: Vector2<f64>| Weighing { h: at[0].exp(), s: at[1].exp() };
        let way = descend(Vector2::new(start.h.ln(), start.s.ln()), |at| self.loss(weighing(at), progress))?;
        Ok(way.into_iter().map(|(at, loss)| Step { weighing: weighing(at), loss }).collect())
    }

    /// The error over all strips, and its gradient.
    fn loss(&self, weighing: Weighing, progress: &ProgressBar) -> Result<Loss> {
        let mut forward = Pass::new(&self.denoiser, self.forward.clone())?;
        let mut backward = Pass::new(&self.denoiser, self.backward.clone())?;
        let scalars = self.denoiser.scalars(weighing)?;
        let count = self.strips.iter().map(|(_, clean)| clean.len()).sum::<usize>() as f64;
        let (mut value, mut gradient) = (0.0, Vector2::zeros());
        for (strip, clean) in &self.strips {
            let mut inputs = strip.inputs(&scalars);
            forward.run(&inputs)?;
            let output = forward.download(Role::Output)?;
            let kept = self.denoiser.kept(strip);
            // Rows outside are another strip's, and count there.
            let mut cotangent = vec![0.0; output.len()];
            for ((to, found), clean) in cotangent[kept.clone()].iter_mut().zip(&output[kept]).zip(clean) {
                let error = f64::from(found - clean);
                value += error * error / count;
                *to = (2.0 * error / count) as f32;
            }
            let cotangent = self.denoiser.tensor(Role::GradOutput, cotangent)?;
            inputs.extend([
                (Role::Output, forward.result(Role::Output)?),
                (Role::Logsumexp, forward.result(Role::Logsumexp)?),
                (Role::GradOutput, &cotangent),
            ]);
            backward.run(&inputs)?;
            // With x = ln h, d/dx = 2 h^2 d/d(h^2).
            for (at, (of, number)) in [(H2, weighing.h), (S2, weighing.s)].into_iter().enumerate() {
                gradient[at] += 2.0 * number * number * backward.gradient(of)?;
            }
            progress.inc(1);
            progress.set_message(format!("fitting, {:.2} dB", picture::psnr_of(value)));
        }
        Ok(Loss { value, gradient })
    }
}

/// Goes down from `start` and tells the way, each point of which is lower than the one before it.
fn descend(
    start: Vector2<f64>,
    mut loss: impl FnMut(Vector2<f64>) -> Result<Loss>,
) -> Result<Vec<(Vector2<f64>, Loss)>> {
    let (mut at, mut here) = (start, loss(start)?);
    let mut way = vec![(at, here)];
    let mut inverse = None;
    let mut step = step_from(here.gradient, inverse);
    for _ in 1..MOST_TRIES {
        let length = step.norm();
        // It is no number where the gradient is none, or is zero.
        if length.is_nan() || length < LEAST_STEP {
            break;
        }
        let there = loss(at + step)?;
        let gain = here.value - there.value;
        if gain > 0.0 {
            inverse = updated(inverse, step, there.gradient - here.gradient);
            (at, here) = (at + step, there);
            way.push((at, here));
            if gain < LEAST_GAIN * here.value {
                break;
            }
            step = step_from(here.gradient, inverse);
        } else {
            step /= 2.0;
        }
    }
    Ok(way)
}

/// The step to try first, with what is known of the inverse Hessian.
fn step_from(gradient: Vector2<f64>, inverse: Option<Matrix2<f64>>) -> Vector2<f64> {
    match inverse {
        Some(inverse) => (-(inverse * gradient)).cap_magnitude(LONGEST_STEP),
        None => gradient * (-FIRST_STEP / gradient.norm()),
    }
}

/// The inverse Hessian (BFGS) after a step over which the gradient changed by `bend`. Where that is no valley it stays as
/// it was, so that it is positive definite and leads down.
fn updated(inverse: Option<Matrix2<f64>>, step: Vector2<f64>, bend: Vector2<f64>) -> Option<Matrix2<f64>> {
    let curvature = step.dot(&bend);
    if curvature <= 0.0 {
        return inverse;
    }
    let before = inverse.unwrap_or_else(|| Matrix2::identity() * (curvature / bend.norm_squared()));
    let across = Matrix2::identity() - step * bend.transpose() / curvature;
    Some(across * before * across.transpose() + step * step.transpose() / curvature)
}

/// The way as a table.
pub(super) fn table(way: &[Step]) -> String {
    let mut text = format!("{:>4}  {:>9}  {:>8}  {:>7}  {:>7}", "step", "mse", "PSNR", "h", "s");
    for (at, Step { weighing, loss }) in way.iter().enumerate() {
        let (Weighing { h, s }, mse) = (weighing, loss.value);
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{at:>4}  {mse:>9.3}  {:>5.2} dB  {h:>7.3}  {s:>7.3}", picture::psnr_of(mse));
    }
    text
}
