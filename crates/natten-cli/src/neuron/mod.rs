//! `natten simulate` and `natten emit nki`: kernels of the NeuronCore, timed by the simulator or printed.

mod kernel;
mod simulate;

use clap::{Args, Subcommand, ValueEnum};
use natten::Result;
use natten_neuron::print::Dialect;

use self::kernel::{AttentionArgs, SdArgs};
pub(crate) use self::simulate::{SimulateArgs, run as simulate};
use crate::console;

/// What `natten emit nki` is asked.
#[derive(Debug, Args)]
pub(crate) struct NkiArgs {
    #[command(subcommand)]
    kernel: NkiKernel,
}

#[derive(Debug, Subcommand)]
enum NkiKernel {
    /// Attention of any window and program.
    Attention(Box<Print<AttentionArgs>>),
    /// The fused self attention of Stable Diffusion 2.1.
    SdAttention(Box<Print<SdArgs>>),
}

#[derive(Debug, Args)]
struct Print<T: Args> {
    #[command(flatten)]
    of: T,

    /// The spelling of NKI.
    #[arg(long, value_enum, default_value = "nki")]
    dialect: DialectArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DialectArg {
    /// NKI 0.6.0.
    Nki,
    /// The first NKI, of the tutorials.
    Legacy,
}

impl DialectArg {
    const fn dialect(self) -> Dialect {
        match self {
            Self::Nki => Dialect::Nki,
            Self::Legacy => Dialect::Legacy,
        }
    }
}

/// Prints a kernel as Python.
///
/// # Errors
/// Where there is no such kernel, with the reason.
pub(crate) fn emit(args: &NkiArgs) -> Result<()> {
    let text = match &args.kernel {
        NkiKernel::Attention(print) => print.of.plan()?.print(print.dialect.dialect()),
        NkiKernel::SdAttention(print) => print.of.print(print.dialect.dialect())?,
    };
    console::print(&text)
}
