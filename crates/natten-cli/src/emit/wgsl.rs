//! `natten emit wgsl`: an operation of a problem that the command line describes, as shaders with everything that a page
//! needs to run them.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use natten::geometry::{Alignment, AxisParams, Neighborhood};
use natten::program::Capture;
use natten::{DType, Error, Op, OpRequest, PlanOptions, Problem, Result, Role};

use crate::program::ProgramArgs;
use crate::{console, output};

/// What `natten emit wgsl` is asked.
#[derive(Debug, Args)]
pub(crate) struct WgslArgs {
    /// The operation. Forward mode has the tangents of query, key and value.
    #[arg(long, default_value = "forward", value_parser = operation())]
    op: Op,

    /// Tokens, one number an axis.
    #[arg(long, value_delimiter = ',', required = true)]
    shape: Vec<usize>,

    /// Keys in a window, one number an axis. Without it every query sees every key, of one axis.
    #[arg(long, value_delimiter = ',')]
    kernel_size: Vec<usize>,

    /// Neighbouring queries that share a window, an axis or for all.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    stride: Vec<usize>,

    /// The distance between the keys of a window, an axis or for all.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    dilation: Vec<usize>,

    /// Whether a query sees only what is not after it, an axis or for all.
    #[arg(long, value_delimiter = ',', default_value = "false")]
    causal: Vec<bool>,

    /// Batch entries.
    #[arg(long, default_value_t = 1)]
    batch: usize,

    /// Query heads.
    #[arg(long, default_value_t = 1)]
    heads: usize,

    /// Key heads. Default: as many as query heads.
    #[arg(long)]
    heads_kv: Option<usize>,

    /// Numbers in a query and in a key.
    #[arg(long)]
    head_dim: usize,

    /// Numbers in a value. Default: as many as in a key.
    #[arg(long)]
    head_dim_v: Option<usize>,

    /// Keys that every query sees beside its window.
    #[arg(long, default_value_t = 0)]
    additional_tokens: usize,

    /// What scores are multiplied with. Default: head_dim^-1/2.
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f64>,

    /// The tensors' dtype: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: DType,

    /// Only these results, by name. Default: all.
    #[arg(long, value_delimiter = ',')]
    want: Vec<String>,

    /// The file to write. Default: stdout.
    #[arg(long)]
    output: Option<PathBuf>,

    #[command(flatten)]
    program: ProgramArgs,

    /// A tensor that the texts use: its name, where it is no f32 its dtype, and its shape. May be given several times.
    #[arg(long, value_name = "NAME[:DTYPE][:SHAPE]", value_parser = super::capture, help_heading = "Program")]
    capture: Vec<Capture>,
}

fn operation() -> impl TypedValueParser<Value = Op> {
    let named = |name: &str| Op::ALL.iter().copied().find(|op| op.name() == name);
    PossibleValuesParser::new(Op::ALL.iter().map(|op| op.name()))
        .try_map(move |name| named(&name).ok_or("it is no operation"))
}

/// Writes the shaders.
///
/// # Errors
/// [`Error::Invalid`], [`Error::Program`] and [`Error::Unsupported`] for what is no problem or fits no browser,
/// [`Error::Io`].
pub(super) fn run(args: &WgslArgs) -> Result<()> {
    let problem = problem(args)?;
    let tangents = [Role::TangentQuery, Role::TangentKey, Role::TangentValue];
    let given = problem.optional_inputs_of(args.op);
    let given = tangents.into_iter().filter(|&role| given.contains(role));
    let mut request = OpRequest::of(args.op, &problem, given);
    if !args.want.is_empty() {
        let roles = args.want.iter().map(|name| {
            problem.role(name).ok_or_else(|| {
                Error::invalid(
                    "want",
                    name,
                    "the problem has no tensor of this name",
                    "leave it out for all results",
                )
            })
        });
        request = request.wanting(roles.collect::<Result<Vec<_>>>()?);
    }
    let text = natten::wgsl(&problem, &request, &PlanOptions::default())?.text;
    match &args.output {
        None => console::print(&text),
        Some(path) => {
            output::check(path)?;
            output::write(path, |file| file.write_all(text.as_bytes()))
        }
    }
}

fn problem(args: &WgslArgs) -> Result<Problem> {
    let rank = args.shape.len();
    let neighborhood = if args.kernel_size.is_empty() {
        let [len] = args.shape[..] else {
            return Err(Error::invalid(
                "shape",
                format!("{:?}", args.shape),
                "ordinary attention has one axis",
                "give a --kernel-size",
            ));
        };
        let is_causal = args.causal.first() == Some(&true);
        Neighborhood::full(len, len, is_causal.then_some(Alignment::TopLeft))?
    } else {
        let axes = (0..rank).map(|axis| {
            Ok(AxisParams::new(args.shape[axis], of_axis("kernel_size", &args.kernel_size, axis, rank)?)
                .stride(of_axis("stride", &args.stride, axis, rank)?)
                .dilation(of_axis("dilation", &args.dilation, axis, rank)?)
                .causal(of_axis("causal", &args.causal, axis, rank)?))
        });
        Neighborhood::new(&axes.collect::<Result<Vec<_>>>()?)?
    };
    Problem::builder(neighborhood, args.dtype)
        .batch(args.batch)
        .heads(args.heads)
        .heads_kv(args.heads_kv.unwrap_or(args.heads))
        .head_dim(args.head_dim)
        .head_dim_v(args.head_dim_v.unwrap_or(args.head_dim))
        .additional_tokens(args.additional_tokens)
        .scale(args.scale)
        .program(args.program.build(rank, args.capture.clone())?)
        .build()
}

/// The value of an axis, or the one that all share.
fn of_axis<T: Copy + std::fmt::Debug>(
    name: &'static str,
    values: &[T],
    axis: usize,
    rank: usize,
) -> Result<T> {
    match values {
        [one] => Ok(*one),
        _ if values.len() == rank => Ok(values[axis]),
        _ => Err(Error::invalid(
            name,
            format!("{values:?}"),
            format!("the shape has {rank} axes"),
            "give one value an axis, or one for all",
        )),
    }
}
