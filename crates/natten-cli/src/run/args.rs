//! The command line of `natten run`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use natten::{DType, Op, Precision};

use crate::program::ProgramArgs;

/// What `natten run` is asked.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The operations, one or several.
    ///
    /// forward: output and logsumexp.
    /// backward: the gradient of every input, from grad_output; computes the forward pass that it needs.
    /// jvp: tangent_output and tangent_logsumexp, from the tangents of the inputs that the file has.
    /// double-backward: the gradients of <tangents, gradients>, grad2_query … and grad2_grad_output, from grad_output
    /// and the tangents that the file has.
    /// qk: attention, the scores. av: output, from attention as final weights and value.
    /// qk-backward, from grad_attention, and av-backward, from grad_output: their gradients. qk-jvp, av-jvp: their
    /// tangents.
    ///
    /// What is named is computed, whatever the input file holds.
    #[arg(long, required = true, value_delimiter = ',', value_parser = operation(), verbatim_doc_comment)]
    op: Vec<Op>,

    /// The safetensors file with query, key, value and, where wanted, rpb, additional_key and additional_value,
    /// grad_output and grad_logsumexp; heads-last, [batch, tokens…, heads, head_dim].
    ///
    /// tangent_NAME is the tangent of the tensor NAME; one that is not there is zero. attention and grad_attention are
    /// heads-first, [batch, heads, tokens…, window + additional tokens]. initial_state and grad_final_state, of a
    /// recurrence, are [batch, heads, head_dim, value dim].
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

    /// How products of f32 are computed: full, or, of CUDA on Hopper and of forward passes only, bf16x3 or bf16x6: on
    /// tensor cores, from two or three parts of 8 bits an operand.
    #[arg(long, default_value_t)]
    pub(super) precision: Precision,

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

    #[command(flatten)]
    pub(super) program: ProgramArgs,

    /// A tensor of the input file that the program's texts use, by the name that they use. Of floats or integers.
    ///
    /// May be given several times. A captured rpb, or additional_key, is the program's alone: it is not added to the
    /// scores beside.
    #[arg(long, value_name = "NAME=TENSOR", value_parser = capture, help_heading = "Program")]
    pub(super) capture: Vec<CaptureArg>,
}

impl RunArgs {
    /// The operations, each once, forward before what takes its results.
    pub(super) fn ops(&self) -> Vec<Op> {
        Op::ALL.iter().copied().filter(|op| self.op.contains(op)).collect()
    }

    /// Whether the forward results in the file serve backward.
    pub(super) fn reuses_forward(&self) -> bool {
        self.reuse_forward && self.op.contains(&Op::Backward) && !self.op.contains(&Op::Forward)
    }
}

/// A tensor of the input file, and what the program calls it.
#[derive(Clone, Debug)]
pub(super) struct CaptureArg {
    pub(super) name: String,
    pub(super) tensor: String,
}

fn capture(text: &str) -> Result<CaptureArg, &'static str> {
    let (name, tensor) = text.split_once('=').ok_or("it must be NAME=TENSOR, such as slope=alibi_slopes")?;
    Ok(CaptureArg { name: name.to_owned(), tensor: tensor.to_owned() })
}

/// Operations go by the names that the library has for them.
fn operation() -> impl TypedValueParser<Value = Op> {
    let named = |name: &str| Op::ALL.iter().copied().find(|op| op.name() == name);
    PossibleValuesParser::new(Op::ALL.iter().map(|op| op.name()))
        .try_map(move |name| named(&name).ok_or("it is no operation"))
}

/// Where the diagonal of a causal mask begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Corner {
    /// Query i sees the keys up to i.
    TopLeft,
    /// The last query sees every key.
    BottomRight,
}
