//! `natten bench`: times the cases of a suite on a backend, and sets the rates beside those of an earlier run or of
//! another library.

mod cases;
mod measure;
mod plot;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use natten::{DType, Device, DeviceKind, Error, Op, PlanOptions, Precision, Registry, Result, block_on};

use self::cases::Suite;
use self::measure::{Effort, measure};
use self::report::{Entry, Results};
use crate::{console, output};

/// What `natten bench` is asked.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(long, value_enum, default_value_t = Suite::Peers)]
    suite: Suite,

    /// The backend: auto, reference, cpu, cuda, wgpu or neuron.
    #[arg(long, default_value = "auto")]
    backend: String,

    /// The operations, with commas between them.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "forward")]
    op: Vec<Operation>,

    /// The dtypes, with commas between them. Default: bf16 on a GPU, f32 elsewhere.
    #[arg(long, value_delimiter = ',', value_parser = |text: &str| text.parse::<DType>().map_err(|e| e.to_string()))]
    dtype: Vec<DType>,

    /// How products of f32 are computed: full, or, of CUDA on Hopper and of forward passes only, bf16x3 or bf16x6.
    #[arg(long, default_value_t)]
    precision: Precision,

    /// Measure every family of kernels that does a case, not only the one that is chosen for it: of wgpu.
    #[arg(long)]
    families: bool,

    /// Only the cases whose name contains this.
    #[arg(long)]
    filter: Option<String>,

    /// How long to measure each case, in seconds, about.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// What the inputs are drawn from. Default: other numbers every time.
    #[arg(long)]
    seed: Option<u64>,

    /// Where to write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Where to draw the rates, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// A JSON file of an earlier run, or of benches/peers/torch_gpu.py, to compare with. May be given several times.
    #[arg(long, value_name = "FILE")]
    compare: Vec<PathBuf>,

    /// Print the cases as JSON, and measure nothing.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Operation {
    Forward,
    Jvp,
    Backward,
    DoubleBackward,
}

impl Operation {
    const fn op(self) -> Op {
        match self {
            Self::Forward => Op::Forward,
            Self::Jvp => Op::ForwardJvp,
            Self::Backward => Op::Backward,
            Self::DoubleBackward => Op::BackwardJvp,
        }
    }
}

/// Measures, and prints a table. What a backend refuses or fails at is a line that says why, and the others are measured
/// all the same; whether all were.
///
/// # Errors
/// [`Error::Unavailable`] for a backend that is absent, [`Error::Invalid`] where no case has the wanted name,
/// [`Error::Io`].
pub(crate) fn run(args: &BenchArgs, registry: &Registry) -> Result<bool> {
    let device = registry.device(&args.backend)?;
    let is_gpu = matches!(device.info().kind, DeviceKind::Gpu | DeviceKind::SharedGpu);
    let wanted = |name: &str| args.filter.as_deref().is_none_or(|part| name.contains(part));
    let cases: Vec<_> = cases::of(args.suite, is_gpu).into_iter().filter(|case| wanted(case.name)).collect();
    if cases.is_empty() {
        return Err(Error::invalid(
            "--filter",
            format!("'{}'", args.filter.as_deref().unwrap_or_default().escape_debug()),
            "no case of this suite has it in its name",
            "run with --list to see the names",
        ));
    }
    if args.list {
        let list: Vec<_> = cases.iter().map(cases::Case::describe).collect();
        console::print(&format!("{:#}\n", serde_json::Value::from(list)))?;
        return Ok(true);
    }
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        let rule = "it must be above 0, and an hour at most";
        return Err(Error::invalid("--seconds", args.seconds, rule, "leave it out for one second a case"));
    }
    for path in args.json.iter().chain(&args.plot) {
        output::check(path)?;
    }
    let others = args.compare.iter().map(|path| Results::read(path)).collect::<Result<Vec<_>>>()?;
    let effort =
        Effort { time: Duration::from_secs_f64(args.seconds), seed: args.seed.unwrap_or_else(rand::random) };
    let dtypes = match (&args.dtype[..], is_gpu) {
        ([], true) => vec![DType::Bf16],
        ([], false) => vec![DType::F32],
        (dtypes, _) => dtypes.to_vec(),
    };
    let options = PlanOptions::default().precision(args.precision);
    let mut results = Results::new(device.info());
    let families = if args.families { Registry::families(device.info().backend)? } else { Vec::new() };
    if args.families && families.is_empty() {
        let rule = "the backend has one family of kernels, or none that can be asked for by name";
        return Err(Error::invalid(
            "--families",
            device.info().backend,
            rule,
            "use --backend wgpu, or leave it out",
        ));
    }
    let count = cases.len() * dtypes.len() * args.op.len() * families.len().max(1);
    let bar = console::progress_bar(count as u64, "measuring");
    // What a rate is a fraction of is measured first: a device that fails at this fails at the cases too, and says so there.
    bar.set_message("large matrix products");
    let rates: Vec<Option<f64>> = (dtypes.iter())
        .map(|&dtype| block_on(device.backend().matmul_rate(dtype)).ok().flatten().map(|rate| rate / 1e12))
        .collect();
    results.matmul_tflops = rates.first().copied().flatten();
    for case in &cases {
        for (&dtype, &rate) in dtypes.iter().zip(&rates) {
            for op in args.op.iter().map(|operation| operation.op()) {
                let measured_on = |device: &Device| {
                    case.problem(dtype).and_then(|problem| measure(device, &problem, op, &options, effort))
                };
                if families.is_empty() {
                    bar.set_message(format!("{} {dtype} {op}", case.name));
                    let entry = Entry::new(case.name, op, dtype, device.info().backend, measured_on(&device));
                    results.entries.push(entry.beside(rate));
                    bar.inc(1);
                }
                for (family, device) in &families {
                    bar.set_message(format!("{} {dtype} {op} {family}", case.name));
                    let measured = measured_on(device);
                    bar.inc(1);
                    // Not every family does everything.
                    if !matches!(measured, Err(Error::Unsupported { .. })) {
                        let peer = format!("{} {family}", device.info().backend);
                        results.entries.push(Entry::new(case.name, op, dtype, &peer, measured).beside(rate));
                    }
                }
            }
        }
    }
    bar.finish_and_clear();
    console::print(&results.table(&others))?;
    if let Some(path) = &args.json {
        results.write(path)?;
    }
    if let Some(path) = &args.plot {
        plot::write(path, &results, &others)?;
    }
    Ok(results.entries.iter().all(|entry| entry.failure.is_none()))
}
