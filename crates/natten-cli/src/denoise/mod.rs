//! `natten denoise`: takes the noise out of a picture by non-local means, which is neighborhood attention. Queries and
//! keys are the patches around the pixels, values are the pixels: each pixel becomes the mean of those in its window
//! whose surroundings look like its own. How alike they look is a program over the dot product of the patches, with
//! scalars that can be learnt.

mod attention;
mod files;
mod learn;
mod noise;
mod patches;
mod picture;
mod sigma;
mod strength;
mod strips;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use natten::{Device, Error, Registry, Result};

use self::attention::{Denoiser, Weighing};
use self::learn::{Lesson, Step};
use self::patches::{PatchShape, Patches};
use self::picture::Picture;
use crate::{console, output};

/// A patch's side, at most: larger ones do not help, and need memory for their square.
const MOST_PATCH: usize = 31;

/// Below this h, in levels, no pixel changes by a step of an 8-bit file.
const LEAST_H: f64 = 0.05;

/// What `natten denoise` is asked.
#[derive(Debug, Args)]
pub(crate) struct DenoiseArgs {
    /// The picture, PNG or JPEG, grey or colour. An alpha channel is kept as it is.
    input: PathBuf,

    /// The file to write: .png, .jpg or .jpeg.
    output: PathBuf,

    /// Pixels across the window that a pixel is compared with. Clamped to the picture.
    #[arg(long, default_value_t = 21, allow_negative_numbers = true)]
    kernel_size: usize,

    /// Pixels across a patch: odd.
    #[arg(long, default_value_t = 7, allow_negative_numbers = true)]
    patch: usize,

    /// The standard deviation of the noise on the 0-255 scale. Default: estimated from the picture.
    #[arg(long, allow_negative_numbers = true)]
    sigma: Option<f64>,

    /// How unlike patches may be: h = strength * sigma. More removes more noise and more detail. Default: chosen for the
    /// picture, mostly 0.5 to 1.
    #[arg(long, allow_negative_numbers = true)]
    strength: Option<f64>,

    /// The same picture without noise, to measure the result against.
    #[arg(long, conflicts_with = "add_noise")]
    clean: Option<PathBuf>,

    /// Take the input as the clean picture and add Gaussian noise of this standard deviation first.
    #[arg(long, allow_negative_numbers = true)]
    add_noise: Option<f64>,

    /// Learn h and the part of noise in distances by gradient descent on the error against the clean picture, which
    /// --clean or --add-noise must give, and print the way. Begins at --sigma and --strength.
    #[arg(long)]
    fit: bool,

    /// What the added noise is drawn from: the same seed gives the same noise.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, requires = "add_noise")]
    seed: u64,

    /// Also write a picture of noisy, denoised and, where it is known, clean next to each other.
    #[arg(long)]
    side_by_side: Option<PathBuf>,

    /// Where to compute: auto, reference, cpu, cuda, wgpu or neuron. 'natten devices' lists what is there.
    #[arg(long, default_value = "auto")]
    backend: String,
}

/// Does what the command line asks.
///
/// # Errors
/// [`Error::Invalid`] for options out of range and files that are no pictures or do not fit each other,
/// [`Error::Unavailable`] and [`Error::Unsupported`] for a backend that cannot do it, [`Error::Io`]. No output file
/// appears then.
pub(crate) fn run(args: &DenoiseArgs, registry: &Registry) -> Result<()> {
    let start = Instant::now();
    check(args)?;
    let device = registry.device(&args.backend)?;
    let input = files::load(&args.input)?;
    files::check_alpha(&input, &args.output)?;
    let (noisy, clean) = match (args.add_noise, &args.clean) {
        (Some(sigma), _) => (noise::add(&input, sigma, args.seed), Some(input)),
        (None, Some(path)) => (input, Some(files::load(path)?)),
        (None, None) => (input, None),
    };
    let before = clean.as_ref().map(|clean| picture::psnr(clean, &noisy)).transpose()?;

    let mut report = format!("picture  {}", noisy.describe());
    if let Some(sigma) = args.add_noise {
        let _ = write!(report, ", noise of sigma {sigma} added (seed {})", args.seed);
    }
    let settings = Settings::choose(args, &device, &noisy, clean.as_ref())?;
    let source = if args.sigma.is_some() { "given" } else { "estimated" };
    let _ = write!(report, "\nnoise    sigma {:.2}, {source}", settings.sigma);
    if !settings.way.is_empty() {
        let _ = write!(report, "\n\n{}\n", learn::table(&settings.way));
    }
    let (denoised, took) = denoise(&device, &noisy, &settings, &mut report)?;
    if let (Some(before), Some(clean)) = (before, &clean) {
        let after = picture::psnr(clean, &denoised)?;
        let _ = write!(report, "\nPSNR     {before:.2} dB before, {after:.2} dB after");
    }

    // Everything is encoded before anything is written: what cannot be encoded leaves no file.
    let mut encoded = vec![(&args.output, files::encode(&denoised, &args.output)?)];
    if let Some(path) = &args.side_by_side {
        let pictures: Vec<&Picture> = [&noisy, &denoised].into_iter().chain(&clean).collect();
        encoded.push((path, files::encode(&picture::side_by_side(&pictures), path)?));
    }
    for (path, bytes) in encoded {
        files::save(path, &bytes)?;
        let _ = write!(report, "\nwrote    {}", path.display());
    }
    let _ = writeln!(report, "\ntime     {:.2?}, {took:.2?} of it attention", start.elapsed());
    console::print(&report)
}

/// Refuses what is wrong whatever the picture is.
fn check(args: &DenoiseArgs) -> Result<()> {
    let numbers = [
        ("sigma", args.sigma, 255.0),
        ("strength", args.strength, 100.0),
        ("add-noise", args.add_noise, 255.0),
    ];
    for (name, value, most) in numbers {
        if let Some(value) = value.filter(|value| !(0.0..=most).contains(value)) {
            let rule = format!("it must be from 0 to {most}");
            return Err(Error::invalid(
                name,
                value,
                rule,
                "10 to 50 is common for sigma, 0.5 to 1 for strength",
            ));
        }
    }
    if args.patch.is_multiple_of(2) || args.patch > MOST_PATCH {
        return Err(Error::invalid(
            "patch",
            args.patch,
            format!("it must be odd, so that a patch has a centre, and at most {MOST_PATCH}"),
            "5 to 9 serve most pictures",
        ));
    }
    if args.fit && args.clean.is_none() && args.add_noise.is_none() {
        return Err(Error::invalid(
            "fit",
            "given",
            "only the clean picture tells what to fit to",
            "name it with --clean, or add noise to a clean input with --add-noise",
        ));
    }
    if args.side_by_side.as_ref() == Some(&args.output) {
        return Err(Error::invalid(
            "side-by-side",
            format!("'{}'", args.output.display()),
            "the denoised picture goes there",
            "name another file",
        ));
    }
    for path in std::iter::once(&args.output).chain(&args.side_by_side) {
        files::format_of(path)?;
        output::check(path)?;
    }
    Ok(())
}

/// How a picture is denoised.
#[derive(Debug)]
struct Settings {
    kernel_size: usize,
    patch: usize,
    shape: PatchShape,
    sigma: f64,
    weighing: Weighing,
    /// How the weighing was learnt, where it was.
    way: Vec<Step>,
}

impl Settings {
    /// What the command line says, and the rest from the picture.
    fn choose(args: &DenoiseArgs, device: &Device, noisy: &Picture, clean: Option<&Picture>) -> Result<Self> {
        let &DenoiseArgs { kernel_size, patch, .. } = args;
        let shape = PatchShape::new(patch);
        let spinner = console::spinner("estimating the noise");
        let sigma = args.sigma.map_or_else(|| sigma::estimate(noisy), Ok)?;
        spinner.set_message("choosing the strength");
        let to_fit = clean.filter(|_| args.fit);
        let strength = match args.strength {
            Some(strength) => strength,
            // There is nothing to do, and h will say so.
            None if sigma < LEAST_H => 1.0,
            None if to_fit.is_some() => strength::first(noisy, &shape, sigma),
            None => strength::choose(device, noisy, &shape, kernel_size, sigma)?,
        };
        spinner.finish_and_clear();
        let mut settings = Self {
            kernel_size,
            patch,
            shape,
            sigma,
            weighing: strength::weighing(sigma, strength),
            way: Vec::new(),
        };
        if let Some(clean) = to_fit {
            settings.fit(device, noisy, clean)?;
        }
        Ok(settings)
    }

    /// Learns the weighing, beginning at what it is.
    fn fit(&mut self, device: &Device, noisy: &Picture, clean: &Picture) -> Result<()> {
        if self.weighing.h < LEAST_H {
            return Err(Error::invalid(
                "fit",
                format!("from h = {:.3}", self.weighing.h),
                format!("what it begins from must be at least {LEAST_H}, or no pixel changes"),
                "give --sigma and --strength to begin from, or denoise without --fit",
            ));
        }
        let lesson = Lesson::new(device, noisy, clean, &self.shape, self.kernel_size, self.sigma)?;
        let progress = console::progress_bar(lesson.work() as u64, "fitting");
        progress.tick();
        let way = lesson.learn(self.weighing, &progress);
        progress.finish_and_clear();
        self.way = way?;
        if let Some(last) = self.way.last() {
            self.weighing = last.weighing;
        }
        Ok(())
    }
}

/// The denoised picture, and how long the attention took.
fn denoise(
    device: &Device,
    noisy: &Picture,
    settings: &Settings,
    report: &mut String,
) -> Result<(Picture, Duration)> {
    let Settings { sigma, weighing, .. } = *settings;
    let Weighing { h, s } = weighing;
    let patch_len = settings.shape.len(noisy.channels);
    let denoiser = Denoiser::new(device.clone(), noisy, settings.kernel_size, patch_len)?;
    if h < LEAST_H {
        let _ = write!(report, "\nwindow   none: with h {h:.3} the picture stays as it is");
        return Ok((noisy.clone(), Duration::ZERO));
    }
    let start = Instant::now();
    let progress = console::progress_bar(denoiser.strip_count() as u64, "denoising");
    progress.tick();
    let patches = Patches::new(noisy, &settings.shape, sigma);
    let levels = denoiser.run(denoiser.upload(noisy, &patches), weighing, &progress);
    progress.finish_and_clear();
    let (levels, took) = (levels?, start.elapsed());
    let [rows, columns] = [denoiser.window()[0], denoiser.window()[1]];
    let _ = write!(
        report,
        "\nwindow   {columns}x{rows}, patch {0}x{0}, h {h:.2} = {1:.3} * sigma, s {s:.2}{2}, on {3}",
        settings.patch,
        h / sigma,
        if settings.way.is_empty() { "" } else { ", fitted" },
        device.info().backend,
    );
    Ok((noisy.with_levels(levels), took))
}
