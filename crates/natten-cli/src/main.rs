//! The `natten` program: everything it does is in the library beside it, where tests and fuzz targets reach it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    natten_cli::main(std::env::args_os())
}
