//! The `natten` program as a library: the commands, the tensor files they read and write, and how results and errors
//! are shown. [`main`] is the whole program; the binary only calls it.
//!
//! Results go to stdout, everything else (progress, notes, the error) to stderr. The exit code is 0 where the work was
//! done, 1 where `check` found a backend that is wrong or `bench` could not measure a case, and 2 for every error. An
//! error leaves no output file.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natten::{Registry, Result};

mod bench;
mod check;
mod console;
mod denoise;
mod devices;
mod emit;
#[cfg(feature = "neuron")]
mod neuron;
mod output;
mod program;
mod run;
pub mod tensors;

/// Neighborhood attention on any hardware.
#[derive(Debug, Parser)]
#[command(name = "natten", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List every backend: what it runs on, or why it is not there.
    Devices,
    /// Compute attention or its derivatives on the tensors of a file.
    Run(Box<run::RunArgs>),
    /// Take the noise out of a picture by non-local means: neighborhood attention over patches.
    Denoise(Box<denoise::DenoiseArgs>),
    /// Print what is made of a description: of a program its derivatives and its row algorithm.
    Emit(emit::EmitArgs),
    /// Tell how long a kernel takes on a NeuronCore, engine by engine, by a simulator.
    #[cfg(feature = "neuron")]
    Simulate(neuron::SimulateArgs),
    /// Run the conformance suite on a backend and compare every result with the f64 oracle.
    Check(check::CheckArgs),
    /// Measure how fast a backend is on named cases.
    Bench(bench::BenchArgs),
}

/// The exit code of a check, or of a measurement, that found something wrong.
const WRONG: u8 = 1;

/// Runs the program on a command line, its own name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    console::set_up();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return console::usage(&error),
    };
    match execute(&cli.command) {
        Ok(code) => code,
        Err(error) => console::failure(error),
    }
}

fn execute(command: &Command) -> Result<ExitCode> {
    let registry = Registry::probe();
    let is_right = match command {
        Command::Devices => devices::run(&registry).map(|()| true)?,
        Command::Run(args) => run::run(args, &registry).map(|()| true)?,
        Command::Denoise(args) => denoise::run(args, &registry).map(|()| true)?,
        Command::Emit(args) => emit::run(args).map(|()| true)?,
        #[cfg(feature = "neuron")]
        Command::Simulate(args) => neuron::simulate(args)?,
        Command::Check(args) => check::run(args, &registry)?,
        Command::Bench(args) => bench::run(args, &registry)?,
    };
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}
