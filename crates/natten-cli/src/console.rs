//! What the user sees: results on stdout; notes, progress and the error on stderr. Nothing else of the program prints.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use miette::{Diagnostic, MietteHandlerOpts, Report};
use natten::{Error, Result};

/// The exit code of every error, the one that clap uses too.
const FAILURE: u8 = 2;

/// An error as miette shows it. The text of [`Error`] already has the cause and the way out, so nothing is added; in
/// particular no chain of sources, which would print an I/O error's reason twice.
#[derive(Debug)]
struct Failure(Error);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl Diagnostic for Failure {}

/// Decides how errors look. Lines are wrapped for a reader at a terminal only: a log keeps one error on one line.
pub(crate) fn set_up() {
    let hook = |_: &(dyn Diagnostic + 'static)| -> Box<dyn miette::ReportHandler> {
        let wrap = io::stderr().is_terminal();
        Box::new(MietteHandlerOpts::new().wrap_lines(wrap).build())
    };
    // A program that embeds this library and has set a hook of its own keeps it.
    let _ = miette::set_hook(Box::new(hook));
}

/// Shows what clap has to say: an error in the command line, or the help that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell where this fails, such as a closed pipe.
    let _ = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::from(FAILURE), ExitCode::from)
}

/// Shows the error that ends the program.
pub(crate) fn failure(error: Error) -> ExitCode {
    let report = Report::new(Failure(error));
    let _ = writeln!(io::stderr(), "{report:?}");
    ExitCode::from(FAILURE)
}

/// Prints a result. A reader that has seen enough and closed the pipe is not an error.
///
/// # Errors
/// [`Error::Io`] where stdout cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Io { action: "write the results to stdout".to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Tells the user something that is not a result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// A bar for work of `steps` known steps, shown where stderr is a terminal. Finish it with `finish_and_clear`.
pub(crate) fn progress_bar(steps: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed} (eta {eta})")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps).with_style(style).with_message(what)
}

/// A sign of life for work whose length is not known, shown where stderr is a terminal.
pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
