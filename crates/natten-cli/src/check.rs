//! `natten check`: runs the conformance suite on a backend and prints how far each case is from the f64 oracle.

use std::fmt::Write;

use clap::Args;
use natten::{Device, Error, Registry, Result};
use natten_conformance::{Options, Outcome, Report, cases, merge_cases, run_all};

use crate::console;

/// What `natten check` is asked.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The backend to check: auto, reference, cpu, cuda, wgpu or neuron.
    #[arg(long, default_value = "auto")]
    backend: String,

    /// Only the cases whose name contains this.
    #[arg(long)]
    filter: Option<String>,

    /// How many random cases to run beside the fixed ones.
    #[arg(long, default_value_t = Options::default().random)]
    random: usize,

    /// What the random cases are drawn from: another number gives others.
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,

    /// Only one of so many parts of the suite, for processes that run beside each other: 1/8 to 8/8.
    #[arg(long, value_name = "NUMBER/PARTS", default_value = "1/1", value_parser = part)]
    part: (u64, u64),
}

/// The number of a part, from 0, and how many there are.
fn part(text: &str) -> Result<(u64, u64), String> {
    let numbers = text.split_once('/').and_then(|(number, parts)| {
        Some((number.parse::<u64>().ok()?.checked_sub(1)?, parts.parse::<u64>().ok()?))
    });
    numbers
        .filter(|(number, parts)| number < parts)
        .ok_or_else(|| "it must be like 1/8, up to 8/8".to_owned())
}

/// Runs the suite and prints its table; whether the backend passed.
///
/// # Errors
/// [`Error::Unavailable`] for a backend that is absent, [`Error::Invalid`] where no case has the wanted name,
/// [`Error::Io`]. A case that fails is no error of the program.
pub(crate) fn run(args: &CheckArgs, registry: &Registry) -> Result<bool> {
    let report = report(args, &registry.device(&args.backend)?)?;
    console::print(&table(&report))?;
    Ok(report.passed())
}

fn report(args: &CheckArgs, device: &Device) -> Result<Report> {
    let mut options = Options::default().random(args.random).seed(args.seed).part(args.part.0, args.part.1);
    options.filter.clone_from(&args.filter);
    let bar = console::progress_bar(expected_cases(args), "checking");
    let report = run_all(&**device.backend(), &options, &mut |outcome| {
        bar.set_message(outcome.case.clone());
        bar.inc(1);
    });
    bar.finish_and_clear();
    if report.outcomes.is_empty() {
        let filter = args.filter.as_deref().unwrap_or_default();
        return Err(Error::invalid(
            "--filter",
            format!("'{}'", filter.escape_debug()),
            "no case has it in its name",
            "run without --filter to see the names",
        ));
    }
    Ok(report)
}

/// How many cases the suite will run; of a part of it about.
fn expected_cases(args: &CheckArgs) -> u64 {
    let fixed = cases().into_iter().map(|case| case.name);
    let merged = merge_cases().into_iter().map(|case| case.name);
    let random = (0..args.random).map(|number| format!("random-{number}"));
    let wanted = |name: &String| args.filter.as_deref().is_none_or(|part| name.contains(part));
    fixed.chain(merged).chain(random).filter(wanted).count() as u64 / args.part.1
}

/// A line a case, then what the report says of them all.
fn table(report: &Report) -> String {
    let rows: Vec<[String; 6]> = report.outcomes.iter().map(row).collect();
    let header = ["case", "backend", "error", "tolerance", "time", "status"].map(str::to_owned);
    let mut text = String::new();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        rows.iter().chain([&header]).map(|row| row[column].len()).max().unwrap_or_default()
    });
    for row in [&header].into_iter().chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    let _ = writeln!(text, "\n{report}");
    text
}

/// The error shown is that of the result which comes nearest to its tolerance, or exceeds it most.
fn row(outcome: &Outcome) -> [String; 6] {
    let number = |value: f64| format!("{value:.1e}");
    let (error, tolerance) = match outcome.worst() {
        Some(worst) => (number(worst.error), number(worst.tolerance)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let time = format!("{:.3} ms", outcome.elapsed.as_secs_f64() * 1e3);
    let status = outcome.status().name().to_owned();
    [outcome.case.clone(), outcome.backend.clone(), error, tolerance, time, status]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use natten::{
        Backend, DeviceInfo, DeviceKind, HostQueue, HostTensor, OpRequest, Pending, Plan, PlanOptions,
        Problem, Queue, Tensor, TensorSpec, ready,
    };

    use super::*;

    /// A backend that says it can do everything and then does nothing.
    #[derive(Debug)]
    struct Broken(DeviceInfo);

    fn broken<T>() -> Result<T> {
        Err(Error::Device { backend: "broken".into(), message: "out of order".to_owned() })
    }

    impl Backend for Broken {
        fn device(&self) -> &DeviceInfo {
            &self.0
        }

        fn supports(&self, _: &Problem, _: &OpRequest) -> Result<()> {
            Ok(())
        }

        fn plan<'a>(
            &'a self,
            _: &'a Problem,
            _: &'a OpRequest,
            _: &'a PlanOptions,
        ) -> Pending<'a, Arc<dyn Plan>> {
            ready(broken())
        }

        fn queue(&self) -> Result<Arc<dyn Queue>> {
            Ok(Arc::new(HostQueue))
        }

        fn empty(&self, _: &TensorSpec) -> Result<Tensor> {
            broken()
        }

        fn upload(&self, _: &dyn Queue, _: HostTensor) -> Result<Tensor> {
            broken()
        }

        fn download<'a>(&'a self, _: &'a dyn Queue, _: &'a Tensor) -> Pending<'a, HostTensor> {
            ready(broken())
        }
    }

    #[test]
    fn a_broken_backend_fails_and_the_table_says_why() {
        let backend = Broken(DeviceInfo::new("broken", "broken", DeviceKind::Cpu));
        let filter = Some("golden-na1d".to_owned());
        let args = CheckArgs { backend: "broken".to_owned(), filter, random: 0, seed: 0, part: (0, 1) };
        let report = report(&args, &Device::new(Arc::new(backend)).unwrap()).unwrap();
        assert!(!report.passed());
        assert_eq!(report.outcomes.len() as u64, expected_cases(&args));
        let text = table(&report);
        assert!(text.lines().nth(1).unwrap().ends_with("failed"), "{text}");
        assert!(text.contains("broken failed: out of order"), "{text}");
    }
}
