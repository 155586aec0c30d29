//! `natten run`: reads tensors from a file, computes the named operations on a backend and writes what they give.

mod args;
mod inputs;
mod problem;
mod task;

use std::fmt::Write;

use natten::{Device, OpRequest, PlanOptions, Problem, Registry, Result};

pub(crate) use self::args::RunArgs;
use self::inputs::Inputs;
use self::task::Task;
use crate::tensors::TensorFile;
use crate::{console, output, tensors};

/// Does what the command line asks.
///
/// # Errors
/// [`Error::Invalid`](natten::Error::Invalid) for tensors and options that do not fit each other,
/// [`Error::Program`](natten::Error::Program) for the texts of a program,
/// [`Error::Unavailable`](natten::Error::Unavailable) and [`Error::Unsupported`](natten::Error::Unsupported) for a
/// backend that cannot do it, [`Error::Io`](natten::Error::Io). No output file appears then.
pub(crate) fn run(args: &RunArgs, registry: &Registry) -> Result<()> {
    let device = registry.device(&args.backend)?;
    output::check(&args.output)?;
    // Everything is checked, and every operation planned, before the first runs, which may take long.
    let Task { problem, steps, mut inputs } = Task::read(args, &TensorFile::read(&args.input)?)?;
    let options = PlanOptions::default().precision(args.precision);
    for step in &steps {
        device.plan(&problem, &step.request, &options)?;
    }

    let mut summary = format!("{} {} {}\n", device.info().backend, problem.dtype(), problem.neighborhood());
    let mut results = Inputs::new();
    for step in &steps {
        let computed = execute(&device, &problem, &step.request, &options, &inputs, &mut summary)?;
        if step.is_asked {
            results.extend(computed.clone());
        }
        if step.serves_backward {
            inputs.extend(computed);
        }
    }
    for (&role, tensor) in &results {
        let _ = writeln!(summary, "{} {:?} {}", problem.name(role), tensor.shape(), tensor.dtype());
    }
    let names: Vec<_> = results.keys().map(|&role| problem.name(role)).collect();
    tensors::write(&args.output, names.iter().map(|name| &**name).zip(results.values()))?;
    console::print(&summary)
}

/// Runs one operation and adds its line to the summary.
fn execute(
    device: &Device,
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    inputs: &Inputs,
    summary: &mut String,
) -> Result<Inputs> {
    let spinner = console::spinner(request.op.name());
    let done = device.execute_with(problem, request, options, inputs);
    spinner.finish_and_clear();
    let done = done?;
    if let Some(elapsed) = done.submission.elapsed {
        let _ = writeln!(summary, "{} {:.3} ms", request.op, elapsed.as_secs_f64() * 1e3);
    }
    Ok(done.tensors)
}
