//! Denoises pictures by neighborhood attention, strip by strip, so that memory does not grow with the picture.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use indicatif::ProgressBar;
use natten::geometry::{AxisParams, Neighborhood};
use natten::program::{Capture, Program};
use natten::{
    Bindings, DType, Device, Error, HostTensor, OpRequest, Plan, PlanOptions, Problem, Result, Role, Tensor,
    Workspace, block_on,
};

use super::patches::Patches;
use super::picture::Picture;
use super::strips::{Strip, Strips};

/// Bytes of patches that a strip may have, where it can be made small enough.
const STRIP_BYTES: usize = 1 << 29;

/// The logit of a pair of pixels, of which `score` is the dot product of their patches: minus the squared distance of
/// the patches, less what noise makes of it where they show the same thing.
const SCORE: &str = "-max(nq[q] + nk[k] - 2*score - 2*s2, 0)/h2";

/// The program's captured tensors, in the order that it is given them.
const NORM_OF_QUERY: Role = Role::Capture(0);
const NORM_OF_KEY: Role = Role::Capture(1);
pub(super) const S2: Role = Role::Capture(2);
pub(super) const H2: Role = Role::Capture(3);

/// How the distance of two patches becomes a weight. Both numbers are on the 0-255 scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weighing {
    /// How unlike patches may be and still count.
    pub(super) h: f64,
    /// The standard deviation of the noise whose part in distances is taken off.
    pub(super) s: f64,
}

/// The attention that denoises pictures of one size.
#[derive(Debug)]
pub(super) struct Denoiser {
    device: Device,
    problem: Problem,
    plan: Arc<dyn Plan>,
    strips: Strips,
}

/// A strip of a picture on the device.
#[derive(Debug)]
pub(super) struct Uploaded {
    strip: Strip,
    patches: Tensor,
    norms: Tensor,
    levels: Tensor,
}

impl Denoiser {
    /// Plans the work. The window is clamped to the picture; a patch has `patch_len` numbers.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a window of zero; as [`Device::plan`].
    pub(super) fn new(
        device: Device,
        picture: &Picture,
        kernel_size: usize,
        patch_len: usize,
    ) -> Result<Self> {
        let row_bytes = picture.width.saturating_mul(patch_len).saturating_mul(size_of::<f32>());
        Self::with_strips(device, picture, kernel_size, patch_len, STRIP_BYTES / row_bytes.max(1))
    }

    /// As [`new`](Self::new), with at most so many rows in a strip, where so few will do.
    pub(super) fn with_strips(
        device: Device,
        picture: &Picture,
        kernel_size: usize,
        patch_len: usize,
        most_rows: usize,
    ) -> Result<Self> {
        let fit = |height| {
            let axes = [AxisParams::new(height, kernel_size), AxisParams::new(picture.width, kernel_size)];
            Neighborhood::fit(&axes, false)
        };
        let strips = Strips::new(picture.height, fit(picture.height)?.kernel_size()[0], most_rows);
        let norms = |name| Capture::new(name, &[strips.rows * picture.width], DType::F32).constant();
        let program = Program::builder(2)
            .capture(norms("nq"))
            .capture(norms("nk"))
            .capture(Capture::new("s2", &[], DType::F32))
            .capture(Capture::new("h2", &[], DType::F32))
            .score(SCORE)
            .build()?;
        let problem = Problem::builder(fit(strips.rows)?, DType::F32)
            .head_dim(patch_len)
            .head_dim_v(picture.channels)
            .scale(Some(1.0))
            .program(program)
            .build()?;
        let request = OpRequest::forward(&problem).wanting([Role::Output]);
        let plan = device.plan(&problem, &request, &PlanOptions::default())?;
        Ok(Self { device, problem, plan, strips })
    }

    /// Keys in a window: rows and columns.
    pub(super) fn window(&self) -> Vec<usize> {
        self.problem.neighborhood().kernel_size()
    }

    /// How many strips a picture has.
    pub(super) const fn strip_count(&self) -> usize {
        self.strips.count
    }

    /// A picture's strips, each made when it is asked for. `patches` are the picture's.
    pub(super) fn upload(
        &self,
        picture: &Picture,
        patches: &Patches,
    ) -> impl Iterator<Item = Result<Uploaded>> {
        let row_len = picture.width * picture.channels;
        self.strips.iter().map(move |strip| {
            let Range { start, end } = strip.rows;
            let (numbers, norms) = patches.tokens(start..end);
            Ok(Uploaded {
                strip,
                patches: self.tensor(Role::Query, numbers)?,
                norms: self.tensor(NORM_OF_QUERY, norms)?,
                levels: self.tensor(Role::Value, picture.levels[start * row_len..end * row_len].to_vec())?,
            })
        })
    }

    /// The captured scalars.
    ///
    /// # Errors
    /// As [`natten::Backend::upload`].
    pub(super) fn scalars(&self, weighing: Weighing) -> Result<[Tensor; 2]> {
        let square = |role, number: f64| self.tensor(role, vec![(number * number) as f32]);
        Ok([square(S2, weighing.s)?, square(H2, weighing.h)?])
    }

    /// A tensor of this problem, uploaded.
    ///
    /// # Errors
    /// As [`natten::Backend::upload`].
    pub(super) fn tensor(&self, role: Role, numbers: Vec<f32>) -> Result<Tensor> {
        let host = HostTensor::new(&self.problem.shape(role), numbers)?;
        self.device.backend().upload(&**self.device.queue(), host)
    }

    /// Which numbers of a strip's output are the picture's: those of rows that have their whole windows in it.
    pub(super) fn kept(&self, strip: &Uploaded) -> Range<usize> {
        let row_len = self.problem.shape(Role::Output)[2..].iter().product::<usize>();
        let rows = &strip.strip.kept;
        rows.start * row_len..rows.end * row_len
    }

    /// The denoised levels of a picture, from its strips.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub(super) fn run<S: std::borrow::Borrow<Uploaded>>(
        &self,
        strips: impl IntoIterator<Item = Result<S>>,
        weighing: Weighing,
        progress: &ProgressBar,
    ) -> Result<Vec<f32>> {
        let mut pass = Pass::new(self, self.plan.clone())?;
        let scalars = self.scalars(weighing)?;
        let mut denoised = Vec::new();
        for strip in strips {
            let strip = strip?;
            let strip = strip.borrow();
            pass.run(&strip.inputs(&scalars))?;
            denoised.extend_from_slice(&pass.download(Role::Output)?[self.kept(strip)]);
            progress.inc(1);
        }
        Ok(denoised)
    }

    /// Prepares an operation on this attention.
    ///
    /// # Errors
    /// As [`Device::plan`].
    pub(super) fn plan(&self, request: impl Fn(&Problem) -> OpRequest) -> Result<Arc<dyn Plan>> {
        self.device.plan(&self.problem, &request(&self.problem), &PlanOptions::default())
    }
}

impl Uploaded {
    /// The inputs of the forward pass. A pixel's patch is both its query and its key.
    pub(super) fn inputs<'a>(&'a self, [s2, h2]: &'a [Tensor; 2]) -> BTreeMap<Role, &'a Tensor> {
        BTreeMap::from([
            (Role::Query, &self.patches),
            (Role::Key, &self.patches),
            (Role::Value, &self.levels),
            (NORM_OF_QUERY, &self.norms),
            (NORM_OF_KEY, &self.norms),
            (S2, s2),
            (H2, h2),
        ])
    }
}

/// An operation, with memory to run it in again and again.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    device: &'a Device,
    plan: Arc<dyn Plan>,
    outputs: Vec<Tensor>,
    workspace: Workspace,
}

impl<'a> Pass<'a> {
    /// Allocates everything.
    ///
    /// # Errors
    /// As [`Plan::new_workspace`] and [`natten::Backend::empty`].
    pub(super) fn new(denoiser: &'a Denoiser, plan: Arc<dyn Plan>) -> Result<Self> {
        let device = &denoiser.device;
        let outputs = plan.tensors().iter().filter(|spec| spec.is_output);
        let outputs = outputs.map(|spec| device.backend().empty(spec)).collect::<Result<_>>()?;
        Ok(Self { device, outputs, workspace: plan.new_workspace()?, plan })
    }

    /// Runs with these inputs, of which there may be more than the operation takes.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub(super) fn run(&mut self, inputs: &BTreeMap<Role, &Tensor>) -> Result<()> {
        let specs = self.plan.tensors().iter().filter(|spec| !spec.is_output);
        let inputs: Vec<&Tensor> = specs.filter_map(|spec| inputs.get(&spec.role).copied()).collect();
        let bindings = Bindings { inputs: &inputs, outputs: &mut self.outputs };
        self.plan.run(&**self.device.queue(), bindings, &mut self.workspace).map(|_| ())
    }

    /// A result of the last run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it was not asked for.
    pub(super) fn result(&self, role: Role) -> Result<&Tensor> {
        let mut specs = self.plan.tensors().iter().filter(|spec| spec.is_output).zip(&self.outputs);
        specs.find(|(spec, _)| spec.role == role).map(|(_, tensor)| tensor).ok_or_else(|| {
            Error::invalid("role", role, "it was not asked for", "add it to the request's wants")
        })
    }

    /// The gradient of a captured scalar.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub(super) fn gradient(&self, scalar: Role) -> Result<f64> {
        let gradient = self.download(scalar.gradient().unwrap_or(scalar))?;
        Ok(gradient.first().copied().unwrap_or(f32::NAN).into())
    }

    /// The numbers of a result of the last run.
    ///
    /// # Errors
    /// As [`result`](Self::result) and [`natten::Backend::download`].
    pub(super) fn download(&self, role: Role) -> Result<Vec<f32>> {
        let host = block_on(self.device.backend().download(&**self.device.queue(), self.result(role)?))?;
        host.as_slice::<f32>().map(<[f32]>::to_vec).ok_or_else(|| Error::Device {
            backend: self.device.info().backend.into(),
            message: "it gave another dtype than f32".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::patches::PatchShape;
    use super::*;
    use natten::Registry;

    fn picture(width: usize, height: usize) -> Picture {
        let levels = (0..width * height * 3).map(|i| (i * 71 % 256) as f32).collect();
        Picture { width, height, channels: 3, levels, alpha: None, is_deep: false, profile: None }
    }

    fn denoise(picture: &Picture, shape: &PatchShape, weighing: Weighing, most_rows: usize) -> Vec<f32> {
        let device = Registry::probe().device("reference").unwrap();
        let len = shape.len(picture.channels);
        let denoiser = Denoiser::with_strips(device, picture, 5, len, most_rows).unwrap();
        assert_eq!(denoiser.strip_count() > 1, most_rows < picture.height);
        let patches = Patches::new(picture, shape, 1e-3);
        denoiser.run(denoiser.upload(picture, &patches), weighing, &ProgressBar::hidden()).unwrap()
    }

    #[test]
    fn strips_give_what_the_whole_picture_gives() {
        let (picture, shape) = (picture(7, 40), PatchShape::new(3));
        let weighing = Weighing { h: 40.0, s: 20.0 };
        let whole = denoise(&picture, &shape, weighing, 40);
        assert_eq!(denoise(&picture, &shape, weighing, 12), whole);
        assert_eq!(denoise(&picture, &shape, weighing, 30), whole);
    }

    /// Non-local means of single pixels, which needs no patches, written as it is defined.
    #[test]
    fn attention_is_non_local_means() {
        let (picture, h, s) = (picture(6, 9), 60.0, 50.0);
        let found = denoise(&picture, &PatchShape::new(1), Weighing { h, s }, 9);
        let pixel =
            |at: usize| -> [f64; 3] { std::array::from_fn(|c| f64::from(picture.levels[3 * at + c])) };
        for (at, found) in found.chunks_exact(3).enumerate() {
            let start = |at: usize, length: usize| at.saturating_sub(2).min(length - 5);
            let (top, left) = (start(at / 6, 9), start(at % 6, 6));
            let (mut sum, mut weights) = ([0.0; 3], 0.0);
            for other in (top..top + 5).flat_map(|y| (left..left + 5).map(move |x| y * 6 + x)) {
                let squares = pixel(at).iter().zip(pixel(other)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let weight = (-(squares / 3.0 - 2.0 * s * s).max(0.0) / (h * h)).exp();
                weights += weight;
                sum.iter_mut().zip(pixel(other)).for_each(|(sum, level)| *sum += weight * level);
            }
            for (found, sum) in found.iter().zip(sum) {
                assert!((f64::from(*found) - sum / weights).abs() < 1e-3, "{at}: {found} {}", sum / weights);
            }
        }
    }
}
