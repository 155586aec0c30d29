//! The command line of `natten run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use natten::DType;

/// What `natten run` is asked.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The operations: forward, backward, or both.
    ///
    /// forward writes output and logsumexp; backward writes the gradients of every input, and computes the forward pass
    /// that it needs. What is named is computed, whatever the input file holds.
    #[arg(long, required = true, value_delimiter = ',')]
    pub(super) op: Vec<OpName>,

    /// The safetensors file with query, key, value and, where wanted, rpb, additional_key and additional_value,
    /// grad_output and grad_logsumexp; heads-last, [batch, tokens…, heads, head_dim].
    #[arg(long)]
    pub(super) input: PathBuf,

    /// The safetensors file to write.
    #[arg(long)]
    pub(super) output: PathBuf,

    /// Where to compute: auto, reference, cpu, cuda, wgpu or neuron. 'natten devices' lists what is there.
    #[arg(long, default_value = "auto")]
    pub(super) backend: String,

    /// Cast the inputs to f64, f32, f16 or bf16, and compute in it. Default: the dtype of query.
    #[arg(long)]
    pub(super) dtype: Option<DType>,

    /// Keys in a window, one number an axis, or one for all axes.
    #[arg(long, value_delimiter = ',', required_unless_present = "full", conflicts_with = "full")]
    pub(super) kernel_size: Vec<usize>,

    /// Neighbouring queries that share a window, an axis or for all. Default: 1.
    #[arg(long, value_delimiter = ',', conflicts_with = "full")]
    pub(super) stride: Vec<usize>,

    /// The distance between the keys of a window, an axis or for all. Default: 1.
    #[arg(long, value_delimiter = ',', conflicts_with = "full")]
    pub(super) dilation: Vec<usize>,

    /// Whether a query sees only what is not after it: true or false, an axis or for all. Default: false.
    #[arg(long, value_delimiter = ',')]
    pub(super) causal: Vec<bool>,

    /// What scores are multiplied with. Default: head_dim^-1/2.
    #[arg(long, allow_negative_numbers = true)]
    pub(super) scale: Option<f64>,

    /// Make the window smaller where it does not fit the input, instead of refusing it.
    #[arg(long, conflicts_with = "full")]
    pub(super) fit: bool,

    /// Ordinary attention on [batch, tokens, heads, head_dim], without a window.
    #[arg(long)]
    pub(super) full: bool,

    /// Which corner of the scores the diagonal of a causal --full mask touches. Default: top-left.
    #[arg(long, conflicts_with = "kernel_size")]
    pub(super) align: Option<Corner>,

    /// Take output and logsumexp from the input file for backward, where forward is not among the operations.
    #[arg(long)]
    pub(super) reuse_forward: bool,
}

impl RunArgs {
    pub(super) fn computes(&self, op: OpName) -> bool {
        self.op.contains(&op)
    }

    /// Whether the forward results in the file serve backward.
    pub(super) fn reuses_forward(&self) -> bool {
        self.reuse_forward && self.computes(OpName::Backward) && !self.computes(OpName::Forward)
    }
}

/// An operation, as it is named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OpName {
    /// Output and logsumexp.
    Forward,
    /// The gradients of the inputs.
    Backward,
}

/// Where the diagonal of a causal mask begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Corner {
    /// Query i sees the keys up to i.
    TopLeft,
    /// The last query sees every key.
    BottomRight,
}
