//! Which kernel is meant, and how it is made.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use natten::geometry::{Alignment, AxisParams, Neighborhood};
use natten::{DType, Error, Op, OpRequest, PlanOptions, Problem, Result, Role};
use natten_neuron::dtype::Dtype;
use natten_neuron::lower::sd::{Schedule, SdAttention};
use natten_neuron::print::{self, Dialect};
use natten_neuron::target::Target;
use natten_neuron::{Compiled, NeuronBackend, NeuronPlan};

use crate::program::ProgramArgs;

/// A generation of the machine.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Generation {
    /// NeuronCore-v2: Trainium, Inferentia2.
    V2,
    /// NeuronCore-v3: Trainium2.
    V3,
}

impl Generation {
    pub(super) const fn target(self) -> Target {
        match self {
            Self::V2 => Target::v2(),
            Self::V3 => Target::v3(),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Direction {
    Forward,
    Jvp,
    Backward,
}

/// A problem without tensors.
#[derive(Debug, Args)]
pub(super) struct AttentionArgs {
    /// Tokens an axis, as in 4096 or 64x64.
    #[arg(long, value_name = "SHAPE", value_parser = extents)]
    shape: Extents,

    /// Kernel size an axis; without it ordinary attention of one axis.
    #[arg(long, value_name = "SHAPE", value_parser = extents)]
    kernel_size: Option<Extents>,

    /// Stride an axis.
    #[arg(long, value_name = "SHAPE", value_parser = extents)]
    stride: Option<Extents>,

    /// Dilation an axis.
    #[arg(long, value_name = "SHAPE", value_parser = extents)]
    dilation: Option<Extents>,

    /// Hide later tokens along every axis.
    #[arg(long)]
    causal: bool,

    /// Batch entries.
    #[arg(long, default_value_t = 1)]
    batch: usize,

    /// Query heads.
    #[arg(long, default_value_t = 1)]
    heads: usize,

    /// Elements of a vector.
    #[arg(long, default_value_t = 64)]
    head_dim: usize,

    /// f32, f16 or bf16.
    #[arg(long, default_value = "bf16")]
    dtype: DType,

    /// The operation.
    #[arg(long, value_enum, default_value = "forward")]
    op: Direction,

    /// The machine.
    #[arg(long, value_enum, default_value = "v2")]
    target: Generation,

    #[command(flatten)]
    program: ProgramArgs,
}

/// Extents, one an axis.
#[derive(Clone, Debug)]
pub(super) struct Extents(Vec<usize>);

fn extents(text: &str) -> Result<Extents, String> {
    let parse =
        |part: &str| part.parse().map_err(|_| format!("'{part}' is no extent: it must be like 64x64"));
    text.split('x').map(parse).collect::<Result<_, _>>().map(Extents)
}

impl AttentionArgs {
    fn neighborhood(&self) -> Result<Neighborhood> {
        let shape = &self.shape.0;
        let Some(kernel_size) = &self.kernel_size else {
            return match shape[..] {
                [len] => Neighborhood::full(len, len, self.causal.then_some(Alignment::TopLeft)),
                _ => Err(Error::invalid(
                    "kernel_size",
                    "not given",
                    "ordinary attention has one axis",
                    "give a --kernel-size, or the number of tokens as --shape",
                )),
            };
        };
        let of = |name: &'static str, given: &Option<Extents>| -> Result<Vec<usize>> {
            let extents = given.as_ref().map_or_else(|| vec![1; shape.len()], |extents| extents.0.clone());
            check_rank(name, &extents, shape.len())?;
            Ok(extents)
        };
        check_rank("kernel_size", &kernel_size.0, shape.len())?;
        let (stride, dilation) = (of("stride", &self.stride)?, of("dilation", &self.dilation)?);
        let axes: Vec<AxisParams> = (0..shape.len())
            .map(|a| {
                let axis = AxisParams::new(shape[a], kernel_size.0[a]).stride(stride[a]);
                axis.dilation(dilation[a]).causal(self.causal)
            })
            .collect();
        Neighborhood::new(&axes)
    }

    /// The problem and what is wanted of it.
    pub(super) fn problem(&self) -> Result<(Problem, OpRequest)> {
        let program = self.program.build(self.shape.0.len(), Vec::new())?;
        let problem = Problem::builder(self.neighborhood()?, self.dtype)
            .batch(self.batch)
            .heads(self.heads)
            .head_dim(self.head_dim)
            .program(program)
            .build()?;
        let request = match self.op {
            Direction::Forward => OpRequest::forward(&problem),
            Direction::Backward => OpRequest::backward(&problem),
            Direction::Jvp => {
                OpRequest::forward_jvp(&problem, [Role::TangentQuery, Role::TangentKey, Role::TangentValue])
            }
        };
        Ok((problem, request))
    }

    /// The plan.
    pub(super) fn plan(&self) -> Result<Planned> {
        let (problem, request) = self.problem()?;
        let backend = NeuronBackend::new(self.target.target());
        let plan =
            natten::block_on(natten::Backend::plan(&backend, &problem, &request, &PlanOptions::default()))?;
        Ok(Planned { plan, flops: flops(&problem, request.op) })
    }
}

fn flops(problem: &Problem, op: Op) -> f64 {
    problem.useful_pairs() as f64 * problem.flops_per_pair(op) as f64
}

fn check_rank(name: &'static str, extents: &[usize], rank: usize) -> Result<()> {
    if extents.len() == rank {
        return Ok(());
    }
    let rule = format!("the shape has {rank} axes");
    Err(Error::invalid(name, format!("{extents:?}"), rule, "give one extent an axis, as in 13x13"))
}

/// A plan of the NeuronCore.
pub(super) struct Planned {
    plan: Arc<dyn natten::Plan>,
    pub(super) flops: f64,
}

impl Planned {
    /// Its kernels.
    pub(super) fn kernels(&self) -> &[Compiled] {
        self.neuron().map_or(&[], NeuronPlan::kernels)
    }

    /// What the planner chose.
    pub(super) fn config(&self) -> &[(String, String)] {
        &self.plan.report().config
    }

    pub(super) fn print(&self, dialect: Dialect) -> String {
        self.neuron().map_or_else(String::new, |plan| plan.print(dialect))
    }

    fn neuron(&self) -> Option<&NeuronPlan> {
        self.plan.as_any().downcast_ref()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    /// As AWS's tutorial writes it.
    Tutorial,
    /// As the variant with explicit allocation writes it.
    Allocated,
}

/// The seed's kernel.
#[derive(Debug, Args)]
pub(super) struct SdArgs {
    /// Tokens: a multiple of 128.
    #[arg(long, default_value_t = 4096)]
    pub(super) length: usize,

    /// Elements of a vector: at most 128.
    #[arg(long, default_value_t = 64)]
    pub(super) head_dim: usize,

    /// The type of the tensors: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    pub(super) dtype: DType,

    /// Multiply in the tensors' own type rather than in bf16.
    #[arg(long)]
    full_precision: bool,

    /// Hide later tokens.
    #[arg(long)]
    pub(super) causal: bool,

    /// How the kernel is scheduled.
    #[arg(long, value_enum, default_value = "tutorial")]
    schedule: ScheduleArg,
}

impl SdArgs {
    pub(super) fn attention(&self) -> Result<SdAttention> {
        let Some(dtype) = Dtype::of(self.dtype) else {
            return Err(Error::invalid(
                "dtype",
                self.dtype,
                "the NeuronCore has f32, f16 and bf16",
                "use one of them",
            ));
        };
        Ok(SdAttention {
            len: self.length,
            dim: self.head_dim,
            dtype,
            mixed_precision: !self.full_precision,
            causal: self.causal,
            schedule: match self.schedule {
                ScheduleArg::Tutorial => Schedule::Tutorial,
                ScheduleArg::Allocated => Schedule::Allocated,
            },
        })
    }

    pub(super) fn print(&self, dialect: Dialect) -> Result<String> {
        let (problem, request, launch) = self.attention()?.launch()?;
        Ok(print::module(&problem, &request, &[&launch], dialect))
    }
}
