//! `natten run`: reads tensors from a file, computes the named operations on a backend and writes what they give.

mod args;
mod problem;

use std::fmt::Write;

use natten::{DType, Device, Error, OpRequest, Problem, Registry, Result, Role};

use self::args::OpName;
pub(crate) use self::args::RunArgs;
use self::problem::{Inputs, missing};
use crate::tensors::TensorFile;
use crate::{console, output, tensors};

/// Does what the command line asks.
///
/// # Errors
/// [`Error::Invalid`] for tensors and options that do not fit each other, [`Error::Unavailable`] and
/// [`Error::Unsupported`] for a backend that cannot do it, [`Error::Io`]. No output file appears then.
pub(crate) fn run(args: &RunArgs, registry: &Registry) -> Result<()> {
    let device = registry.device(&args.backend)?;
    output::check(&args.output)?;
    let (mut inputs, dtype) = load(args, &TensorFile::read(&args.input)?)?;
    let problem = problem::describe(args, &inputs, dtype)?;
    // All inputs are checked before the first operation runs, which may take long.
    let forward = OpRequest::forward(&problem);
    let backward =
        OpRequest::backward(&problem).with_grad_logsumexp(inputs.contains_key(&Role::GradLogsumexp));
    problem::check(&problem, &forward, &inputs)?;
    problem::check(&problem, &backward, &inputs)?;

    let mut summary = format!("{} {dtype} {}\n", device.info().backend, problem.neighborhood());
    let mut results = Inputs::new();
    if !args.reuses_forward() {
        let computed = execute(&device, &problem, &forward, &inputs, &mut summary)?;
        if args.computes(OpName::Backward) {
            inputs.extend(computed.clone());
        }
        if args.computes(OpName::Forward) {
            results = computed;
        }
    }
    if args.computes(OpName::Backward) {
        results.extend(execute(&device, &problem, &backward, &inputs, &mut summary)?);
    }
    for (role, tensor) in &results {
        let _ = writeln!(summary, "{role} {:?} {}", tensor.shape(), tensor.dtype());
    }
    tensors::write(&args.output, results.iter().map(|(role, tensor)| (role.name(), tensor)))?;
    console::print(&summary)
}

/// The tensors that the operations use, in the dtype to compute in, and that dtype.
fn load(args: &RunArgs, file: &TensorFile) -> Result<(Inputs, DType)> {
    let mut inputs = Inputs::new();
    let mut take = |role: Role, needed: Option<&str>| {
        match (file.tensor(role.name())?, needed) {
            (Some(tensor), _) => _ = inputs.insert(role, tensor),
            (None, Some(why)) => return Err(missing(role, why)),
            (None, None) => {}
        }
        Ok(())
    };
    for role in [Role::Query, Role::Key, Role::Value] {
        take(role, Some("every operation needs it"))?;
    }
    for role in [Role::Rpb, Role::AdditionalKey, Role::AdditionalValue] {
        take(role, None)?;
    }
    if args.computes(OpName::Backward) {
        take(Role::GradOutput, Some("backward needs it"))?;
        take(Role::GradLogsumexp, None)?;
    }
    if args.reuses_forward() {
        for role in [Role::Output, Role::Logsumexp] {
            take(role, Some("--reuse-forward takes it from the input file"))?;
        }
    }
    note_unused(args, file, &inputs);
    check_companions(args, &inputs)?;
    let dtype = args.dtype.unwrap_or_else(|| inputs[&Role::Query].dtype());
    for (role, tensor) in &mut inputs {
        let wanted = match role {
            Role::Logsumexp | Role::GradLogsumexp => dtype.accumulator(),
            _ => dtype,
        };
        if tensor.dtype() == wanted {
            continue;
        }
        if args.dtype.is_none() {
            return Err(Error::invalid(
                role.name(),
                tensor.dtype(),
                format!("its dtype must be {wanted}, since query is {dtype}"),
                "cast all inputs with --dtype",
            ));
        }
        *tensor = tensor.cast(wanted)?;
    }
    Ok((inputs, dtype))
}

/// Tells which tensors of the file, and which options, do nothing.
fn note_unused(args: &RunArgs, file: &TensorFile, inputs: &Inputs) {
    let is_used = |name: &str| inputs.keys().any(|role| role.name() == name);
    let names = file.names();
    let unused: Vec<String> =
        names.iter().filter(|name| !is_used(name)).map(|name| name.escape_debug().to_string()).collect();
    if !unused.is_empty() {
        console::note(&format!("nothing uses these tensors of the input: {}", unused.join(", ")));
    }
    if args.reuse_forward && !args.reuses_forward() {
        console::note("--reuse-forward does nothing: it is for --op backward without forward");
    }
}

/// Refuses tensors that come without, or with, what they cannot.
fn check_companions(args: &RunArgs, inputs: &Inputs) -> Result<()> {
    let pair = [Role::AdditionalKey, Role::AdditionalValue];
    for (given, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
        if inputs.contains_key(&given) && !inputs.contains_key(&other) {
            return Err(missing(other, &format!("{given} is given, and neither works without the other")));
        }
    }
    if args.full && inputs.contains_key(&Role::Rpb) {
        return Err(Error::invalid(
            "rpb",
            "given",
            "a relative positional bias needs a window, and --full has none",
            "leave it out of the file, or use a --kernel-size that spans the axis",
        ));
    }
    Ok(())
}

/// Runs one operation and adds its line to the summary.
fn execute(
    device: &Device,
    problem: &Problem,
    request: &OpRequest,
    inputs: &Inputs,
    summary: &mut String,
) -> Result<Inputs> {
    let spinner = console::spinner(request.op.name());
    let done = device.execute(problem, request, inputs);
    spinner.finish_and_clear();
    let done = done?;
    if let Some(elapsed) = done.submission.elapsed {
        let _ = writeln!(summary, "{} {:.3} ms", request.op, elapsed.as_secs_f64() * 1e3);
    }
    Ok(done.tensors)
}
