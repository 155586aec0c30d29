//! `natten simulate`: the time that a kernel takes on a NeuronCore, and for the seed's kernel whether it is right.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use natten::reference::ReferenceBackend;
use natten::{Error, HostTensor, OpRequest, PlanOptions, Result, Role};
use natten_conformance::{HostTensors, evaluate};
use natten_neuron::error::NeuronError;
use natten_neuron::lower::sd::SdAttention;
use natten_neuron::sim::compute;
use natten_neuron::sim::report::Report;
use natten_neuron::{Compiled, timeline};

use super::kernel::{AttentionArgs, Generation, SdArgs};
use crate::console;

/// What `natten simulate` is asked.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(subcommand)]
    kernel: Simulated,
}

#[derive(Debug, Subcommand)]
enum Simulated {
    /// Attention of any window and program.
    Attention(Box<Timed<AttentionArgs>>),
    /// The fused self attention of Stable Diffusion 2.1, as AWS's tutorial has it.
    SdAttention(Box<Sd>),
}

#[derive(Debug, Args)]
struct Timed<T: Args> {
    #[command(flatten)]
    of: T,

    /// Write the timeline: a picture to FILE.svg, or a trace for chrome://tracing to FILE.json.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,

    /// The part of the time that a picture shows, in microseconds.
    #[arg(long, value_name = "FROM-TO", value_parser = range)]
    window: Option<(f64, f64)>,
}

#[derive(Debug, Args)]
struct Sd {
    #[command(flatten)]
    timed: Timed<SdArgs>,

    /// Whether the result is compared with a plain one, or the time is told.
    #[arg(long, value_enum, default_value = "perf")]
    mode: Mode,

    /// The machine.
    #[arg(long, value_enum, default_value = "v2")]
    target: Generation,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Accuracy,
    Perf,
}

fn range(text: &str) -> Result<(f64, f64), String> {
    let wrong = || format!("'{text}' must be two numbers with a hyphen between, as in 10-20");
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    Ok((from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?))
}

/// Simulates.
///
/// # Errors
/// Where there is no such kernel, with the reason; [`Error::Io`] for the timeline.
pub(crate) fn run(args: &SimulateArgs) -> Result<bool> {
    match &args.kernel {
        Simulated::Attention(timed) => attention(timed).map(|()| true),
        Simulated::SdAttention(sd) => match sd.mode {
            Mode::Accuracy => accuracy(sd),
            Mode::Perf => perf(sd).map(|()| true),
        },
    }
}

fn attention(timed: &Timed<AttentionArgs>) -> Result<()> {
    let plan = timed.of.plan()?;
    let mut text = String::new();
    for (name, value) in plan.config() {
        let _ = writeln!(text, "{name:<14} {value}");
    }
    let mut range = [0.0; 2];
    for kernel in plan.kernels() {
        let _ = writeln!(text, "\n{}\n{}", kernel.launch.kernel.name, kernel.report);
        range.iter_mut().zip(kernel.range()).for_each(|(sum, end)| *sum += end / 1e3);
    }
    let reports = plan.kernels().iter().map(|kernel| kernel.report.clone());
    let Some(report) = reports.reduce(|all, next| all.followed_by(&next)) else {
        return console::print(&text);
    };
    let [least, most] = range;
    let _ = writeln!(
        text,
        "\n{:.1} us in all ({least:.1} to {most:.1} where the model guesses), MFU {:.1}%",
        report.microseconds(),
        100.0 * report.model_flops_utilisation(plan.flops)
    );
    console::print(&text)?;
    write_timeline(&report, timed.timeline.as_deref(), timed.window)
}

fn write_timeline(report: &Report, path: Option<&Path>, window: Option<(f64, f64)>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let (from, to) = window.unwrap_or((0.0, f64::INFINITY));
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => timeline::svg(report, from * 1e3, to * 1e3),
        Some("json") => timeline::chrome_trace(report),
        _ => {
            return Err(Error::invalid(
                "timeline",
                path.display(),
                "its name must end in .svg or .json",
                "use one of the two",
            ));
        }
    };
    std::fs::write(path, text)
        .map_err(|source| Error::Io { action: format!("write {}", path.display()), source })
}

/// The seed's kernel.
fn compiled(sd: &Sd) -> Result<Compiled> {
    let (_, _, launch) = sd.timed.of.attention()?.launch()?;
    Compiled::new(launch, &sd.target.target())
}

/// The time, as the tutorial's script prints it: the median is the model's time, and the 99th percentile its most where
/// it guesses.
fn perf(sd: &Sd) -> Result<()> {
    let kernel = compiled(sd)?;
    let report = &kernel.report;
    let [least, most] = kernel.range().map(|end| end / 1e3);
    let flops = 4.0 * (sd.timed.of.length as f64).powi(2) * sd.timed.of.head_dim as f64;
    let mfu = 100.0 * report.model_flops_utilisation(flops);
    console::print(&format!(
        "latency.p50 = {:.0} us ({least:.0} to {most:.0} where the model guesses)\nlatency.p99 = {most:.0} us\n\n\
         {report}\nMFU {mfu:.1}%\n",
        report.microseconds(),
    ))?;
    write_timeline(report, sd.timed.timeline.as_deref(), sd.timed.window)
}

/// Whether the kernel gives what plain attention gives, on uniform numbers as in the tutorial's script, within the
/// kernel's tolerance.
fn accuracy(sd: &Sd) -> Result<bool> {
    let args = sd.timed.of.attention()?;
    let target = sd.target.target();
    let kernel = compiled(sd)?.launch.kernel;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        args.dtype.round((state >> 40) as f32 / (1_u32 << 24) as f32)
    };
    let inputs: Vec<Vec<f32>> =
        (0..3).map(|_| (0..args.len * args.dim).map(|_| uniform()).collect()).collect();
    let outputs = compute::run(&kernel, &target, &inputs).map_err(NeuronError::into_error)?;
    let expected = plain(&args, &inputs)?;
    let (absolute, relative) = args.tolerance();
    let found = outputs.first().map_or(&[][..], Vec::as_slice);
    let is_close = |(&x, &y): (&f32, &f64)| (f64::from(x) - y).abs() <= absolute + relative * y.abs();
    let is_right = found.len() == expected.len() && found.iter().zip(&expected).all(is_close);
    let answer = if is_right { "True" } else { "False" };
    console::print(&format!(">>>> SD attention matches CPU reference? {answer}\n"))?;
    Ok(is_right)
}

/// What the f64 oracle gives.
fn plain(kernel: &SdAttention, inputs: &[Vec<f32>]) -> Result<Vec<f64>> {
    let problem = kernel.problem()?;
    let tensors = [Role::Query, Role::Key, Role::Value].into_iter().zip(inputs).map(|(role, numbers)| {
        let tensor = HostTensor::from_fn(problem.dtype(), &problem.shape(role), |at| f64::from(numbers[at]))?;
        Ok((role, tensor))
    });
    let tensors: HostTensors = tensors.collect::<Result<_>>()?;
    let request = OpRequest::forward(&problem);
    let oracle = ReferenceBackend::new();
    let results = evaluate(&oracle, &problem, &request, &PlanOptions::default(), &tensors)?;
    Ok(results.get(&Role::Output).map(HostTensor::to_f64).unwrap_or_default())
}
