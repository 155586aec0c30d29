//! How kernels plug in. A [`Family`] answers a problem with a [`Sequence`]: source texts, launches, arguments and
//! workspace; nothing of it needs a device. The families are asked in order, the fastest first, and the first that does
//! not decline makes the plan.

use std::fmt::Debug;

use natten_core::geometry::Coverage;
use natten_core::{DType, Error, OpRequest, PlanOptions, Precision, Problem, Result, Role};

use crate::NAME;
use crate::generic::{Generic, Tiled};
use crate::hopper::{Hopper, Split};
use crate::mma::Mma;
use crate::target::Target;

/// The environment variable that names the only family that may be taken.
pub const FAMILY_VARIABLE: &str = "NATTEN_CUDA_FAMILY";

/// Every family, in the order in which they are asked.
static FAMILIES: &[&dyn Family] = &[&Hopper, &Split, &Mma, &Tiled, &Generic];

/// And where windows are small.
static FAMILIES_OF_SMALL_WINDOWS: &[&dyn Family] = &[&Mma, &Hopper, &Split, &Tiled, &Generic];

/// Kernels of one kind.
pub(crate) trait Family: Debug + Send + Sync {
    /// The name in reports.
    fn name(&self) -> &'static str;

    /// The precisions that it computes in; it is not asked about others.
    fn precisions(&self) -> &'static [Precision] {
        &[Precision::Full]
    }

    /// The kernels that do an operation.
    ///
    /// # Errors
    /// [`Error::Unsupported`] declines, and the next family is asked; any other error is the plan's.
    fn sequence(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
    ) -> Result<Sequence>;
}

/// What a run does, in order, and what it needs.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// The steps.
    pub(crate) steps: Vec<Step>,
    /// Bytes of workspace. Its base is aligned to 256 bytes, and its contents are unspecified when a run starts.
    pub(crate) workspace: u64,
    /// Constant tables that the planner made; they lie on the device for as long as the plan lives.
    pub(crate) tables: Vec<Vec<u8>>,
    /// What the bound tensors have to be like.
    pub(crate) layout: Layout,
    /// The boxes that the kernels walk.
    pub(crate) coverage: Coverage,
    /// The choices of the planner, by name.
    pub(crate) config: Vec<(String, String)>,
}

/// A step of a run.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Launches a kernel.
    Launch(Kernel),
    /// Sets bytes of the workspace to zero.
    Zero {
        /// The first byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
}

/// What the bound tensors have to be like for a sequence to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Any strides, and any alignment that the element type allows.
    Any,
    /// What the bulk copy engine takes, of the tensors with maps and the output: the last axis contiguous, the first
    /// element and all other strides on multiples of 16 bytes. A run whose tensors are not like this takes the next
    /// family that takes any.
    Tma,
    /// As `Tma`, of the queries, keys, values, those of additional tokens too, and the output.
    Aligned,
    /// As `Tma`, and a token's heads one behind the other in the tensors with maps: these fold heads and columns.
    TmaPacked,
}

/// How strictly the compiler's messages about a kernel are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Plain arithmetic: it has to compile.
    Plain,
    /// Tensor cores by `mma.sync`: no spills and no stack.
    Mma,
    /// Tensor cores by `wgmma`: nothing serialised either, and every register hint obeyed.
    Wgmma,
}

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The whole text, with its constants in front.
    pub(crate) source: String,
    /// The `extern "C"` name.
    pub(crate) entry: &'static str,
    /// Blocks an axis. A launch without blocks is left out.
    pub(crate) grid: [u64; 3],
    /// Threads a block.
    pub(crate) block: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared_bytes: u32,
    /// What the kernel's parameters are, in their order.
    pub(crate) arguments: Vec<Argument>,
    /// Options of the compiler beyond those that every kernel has.
    pub(crate) options: &'static [&'static str],
    /// How strictly its compilation is judged.
    pub(crate) class: Class,
}

/// A parameter of a kernel.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "a kernel of each family uses some of them")]
pub(crate) enum Argument {
    /// `T*`: the first element of a tensor.
    Tensor(Role),
    /// `struct { T* data; long long stride[8]; }`: a tensor, with its strides in elements. Token axes, and window axes
    /// of the bias, are padded in front to three by strides of 0, so that every rank reads alike.
    View(Role),
    /// `void*`: a place in the workspace, in bytes.
    Workspace(u64),
    /// `const void*`: a table of the sequence.
    Table(usize),
    /// `const __grid_constant__ CUtensorMap`.
    TensorMap(TensorMapSpec),
    /// `int`.
    I32(i32),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
    /// A struct by value.
    Bytes {
        /// Its bytes.
        data: Vec<u8>,
        /// Its alignment.
        align: usize,
    },
}

/// A map of a tensor for the bulk copy engine, encoded at each run for the tensor that is bound.
#[derive(Clone, Debug)]
pub(crate) struct TensorMapSpec {
    /// Whose memory.
    pub(crate) source: MapSource,
    /// Bytes from the first element to where the map begins.
    pub(crate) bytes_ahead: u64,
    /// The element type.
    pub(crate) dtype: DType,
    /// The dimensions, innermost first, at most five. The innermost has stride 1.
    pub(crate) dims: Vec<MapDim>,
    /// How a box's rows are shuffled in shared memory.
    pub(crate) swizzle: Swizzle,
}

/// Whose memory a tensor map is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "a kernel of each family uses some of them")]
pub(crate) enum MapSource {
    /// A bound tensor.
    Tensor(Role),
    /// The workspace, from this byte on.
    Workspace(u64),
}

/// A dimension of a tensor map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapDim {
    /// Elements.
    pub(crate) extent: u64,
    /// Elements that a box spans, at most 256.
    pub(crate) boxed: u32,
    /// Of which it takes every so-manyth, up to 8: the dilation of an axis.
    pub(crate) every: u32,
    /// The distance of neighbours.
    pub(crate) stride: MapStride,
}

/// The distance of neighbours along a dimension of a tensor map.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "a kernel of each family uses some of them")]
pub(crate) enum MapStride {
    /// So many times the bound tensor's stride of a padded axis, counted as in [`Argument::View`].
    Axis {
        /// The axis.
        axis: usize,
        /// How many times.
        times: u64,
    },
    /// So many bytes.
    Bytes(u64),
}

/// How the bulk copy engine shuffles a box's rows in shared memory, so that columns of it lie in different banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "a kernel of each family uses some of them")]
pub(crate) enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Sequence {
    /// Whether the sequence reads a tensor through a map, or in pieces of 16 bytes.
    pub(crate) fn maps(&self, role: Role) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Launch(kernel) => kernel.arguments.iter().any(|argument| {
                let is_aligned = self.layout == Layout::Aligned;
                match argument {
                    Argument::TensorMap(spec) => spec.source == MapSource::Tensor(role),
                    Argument::View(
                        Role::Query | Role::Key | Role::Value | Role::AdditionalKey | Role::AdditionalValue,
                    ) if is_aligned => {
                        matches!(argument, Argument::View(read) if *read == role)
                    }
                    _ => false,
                }
            }),
            Step::Zero { .. } => false,
        })
    }
}

/// A sequence and the family that made it.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) family: &'static str,
    pub(crate) sequence: Sequence,
}

/// The sequence of the first family that does not decline; and where that one does not take every layout, the first
/// after it that does.
///
/// # Errors
/// [`Error::Unsupported`] with the last family's reason where all decline, or what a family says is wrong.
pub(crate) fn choose(
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    target: &Target,
) -> Result<(Chosen, Option<Chosen>)> {
    problem.tensors(request)?;
    let forced = std::env::var(FAMILY_VARIABLE).ok().filter(|name| !name.is_empty());
    if let Some(name) = &forced
        && !FAMILIES.iter().any(|family| family.name() == name)
    {
        return Err(Error::invalid(
            FAMILY_VARIABLE,
            format!("'{name}'"),
            "no family of kernels has this name",
            format!("there are {}", names()),
        ));
    }
    let order = if crate::mma::is_for_small_windows(problem) { FAMILIES_OF_SMALL_WINDOWS } else { FAMILIES };
    let families = order.iter().filter(|family| {
        forced.as_deref().is_none_or(|name| family.name() == name)
            && family.precisions().contains(&options.precision)
    });
    let why = "this build has no kernels for it in the precision that is asked for";
    let mut why = Error::unsupported(NAME, request.op.name(), why);
    let mut first = None;
    for family in families {
        match family.sequence(problem, request, options, target) {
            Ok(sequence) => {
                let chosen = Chosen { family: family.name(), sequence };
                match (first.take(), chosen.sequence.layout) {
                    (None, Layout::Any) => return Ok((chosen, None)),
                    (None, Layout::Tma | Layout::Aligned | Layout::TmaPacked) => first = Some(chosen),
                    (Some(first), Layout::Any) => return Ok((first, Some(chosen))),
                    (kept, Layout::Tma | Layout::Aligned | Layout::TmaPacked) => first = kept,
                }
            }
            Err(error @ Error::Unsupported { .. }) => why = error,
            Err(error) => return Err(error),
        }
    }
    first.map(|first| (first, None)).ok_or(why)
}

fn names() -> String {
    FAMILIES.iter().map(|family| family.name()).collect::<Vec<_>>().join(", ")
}

/// A kernel as text, for those who read or check it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// The family that made it.
    pub family: &'static str,
    /// The `extern "C"` name.
    pub entry: &'static str,
    /// The whole text.
    pub source: String,
    /// Options of the compiler beyond those that every kernel has.
    pub options: &'static [&'static str],
    /// How strictly its compilation is to be judged.
    pub class: Class,
}

/// The kernels that a plan on this kind of GPU would launch, those for tensors of unusual layout included. Needs no
/// device and no compiler.
///
/// # Errors
/// As [`Backend::supports`](natten_core::Backend::supports).
pub fn generate(
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    target: &Target,
) -> Result<Vec<Generated>> {
    let (first, second) = choose(problem, request, options, target)?;
    let kernels = [Some(first), second].into_iter().flatten().flat_map(|chosen| {
        chosen.sequence.steps.into_iter().filter_map(move |step| match step {
            Step::Launch(kernel) => Some(Generated {
                family: chosen.family,
                entry: kernel.entry,
                source: kernel.source,
                options: kernel.options,
                class: kernel.class,
            }),
            Step::Zero { .. } => None,
        })
    });
    Ok(kernels.collect())
}
