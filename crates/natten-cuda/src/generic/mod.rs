//! Every operation on every GPU: plain arithmetic on the general-purpose cores, in f32, or in f64 for f64 problems. What
//! the faster families decline ends here, so that whatever the oracle computes, CUDA computes.
//!
//! A kernel's text is the prelude, the tensors' declarations, the program's functions as [`render`](crate::render)
//! writes them, and a walk: `generic_queries.cu` with stationary queries, `generic_keys.cu` with stationary keys,
//! `generic_scatter.cu` for gradients of captured tensors. Sizes are arguments, so that problems of one kind share a
//! compiled kernel. No result depends on the order in which threads run.

mod attention;
mod functions;
mod linear;
mod mods;
mod pieces;
mod sizes;
mod tables;
mod tensors;
mod tiles;
mod unfused;

use natten_core::geometry::Tiles;
use natten_core::{Error, Op, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use self::tables::Tables;
use self::tensors::{Place, Places, storage};
use crate::NAME;
use crate::family::{Argument, Class, Family, Kernel, Layout, Sequence, Step};
use crate::target::Target;

/// The family.
#[derive(Debug)]
pub(crate) struct Generic;

/// The texts of the kernels.
mod text {
    pub(super) const PRELUDE: &str = include_str!("../../kernels/generic_prelude.cu");
    pub(super) const WALK: &str = include_str!("../../kernels/generic_walk.cu");
    pub(super) const QUERIES: &str = include_str!("../../kernels/generic_queries.cu");
    pub(super) const KEYS: &str = include_str!("../../kernels/generic_keys.cu");
    pub(super) const SCATTER: &str = include_str!("../../kernels/generic_scatter.cu");
    pub(super) const REDUCE: &str = include_str!("../../kernels/generic_reduce.cu");
    pub(super) const TILES: &str = include_str!("../../kernels/generic_tiles.cu");
    pub(super) const SLOTS: &str = include_str!("../../kernels/generic_slots.cu");
    pub(super) const VECTORS: &str = include_str!("../../kernels/generic_vectors.cu");
    pub(super) const LINEAR: &str = include_str!("../../kernels/generic_linear.cu");
}

/// Threads of a block of the walks, four groups of lanes.
const BLOCK: u32 = 128;

/// The family of tiles in shared memory, for forward passes that need one sweep: the same functions, another walk.
#[derive(Debug)]
pub(crate) struct Tiled;

impl Family for Tiled {
    fn name(&self) -> &'static str {
        "tiles"
    }

    fn sequence(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
    ) -> Result<Sequence> {
        check(problem, options)?;
        if request.op != Op::Forward || problem.program().decay().is_some() || problem.additional_tokens() > 0
        {
            let why = "its tiles are for the forward pass without additional tokens";
            return Err(Error::unsupported(NAME, request.op.name(), why));
        }
        let mut builder = Builder::new(problem, request, target);
        builder.is_tiled = true;
        mods::build(&mut builder)?;
        Ok(builder.finish())
    }
}

impl Family for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn sequence(
        &self,
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
    ) -> Result<Sequence> {
        check(problem, options)?;
        let mut builder = Builder::new(problem, request, target);
        if request.op.is_unfused() {
            unfused::build(&mut builder)?;
        } else {
            mods::build(&mut builder)?;
        }
        Ok(builder.finish())
    }
}

/// That sizes fit the kernels' integers, and that nothing is asked of boxes, of which there are none here.
fn check(problem: &Problem, options: &PlanOptions) -> Result<()> {
    if let Some((name, tile)) = [("query_tile", &options.query_tile), ("key_tile", &options.key_tile)]
        .into_iter()
        .find(|(_, tile)| tile.is_some())
    {
        return Err(Error::unsupported(
            NAME,
            format!("{name} {tile:?}"),
            "its general kernels walk single pairs and have no boxes; leave the choice to the planner",
        ));
    }
    let tokens = |shape: Vec<usize>| shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let neighborhood = problem.neighborhood();
    let counts = [
        ("the number of queries", tokens(neighborhood.query_shape())),
        (
            "the number of keys",
            tokens(neighborhood.key_shape()).and_then(|n| n.checked_add(problem.additional_tokens())),
        ),
        ("batch", Some(problem.batch())),
        ("heads", problem.batch().checked_mul(problem.heads())),
        ("head_dim", Some(problem.head_dim())),
        ("head_dim_v", Some(problem.head_dim_v())),
    ];
    for (name, count) in counts {
        if count.is_none_or(|count| count > i32::MAX as usize) {
            let why = format!("its kernels count at most {} of them", i32::MAX);
            return Err(Error::unsupported(NAME, format!("{name} that large"), why));
        }
    }
    let most_dim = problem.head_dim().max(problem.head_dim_v());
    if most_dim > MAX_DIM {
        let what = format!("vectors of {most_dim} numbers");
        return Err(Error::unsupported(
            NAME,
            what,
            format!("its kernels keep at most {MAX_DIM} in registers"),
        ));
    }
    Ok(())
}

/// The longest vectors. A lane keeps a 32nd of a few of them.
const MAX_DIM: usize = 4096;

/// A sequence on its way.
#[derive(Debug)]
struct Builder<'p> {
    problem: &'p Problem,
    request: &'p OpRequest,
    target: &'p Target,
    steps: Vec<Step>,
    workspace: u64,
    tables: Tables,
    /// Whether the forward pass is to go by tiles.
    is_tiled: bool,
}

impl<'p> Builder<'p> {
    fn new(problem: &'p Problem, request: &'p OpRequest, target: &'p Target) -> Self {
        Self {
            problem,
            request,
            target,
            steps: Vec::new(),
            workspace: 0,
            tables: Tables::default(),
            is_tiled: false,
        }
    }

    /// Bytes of a number that is computed with.
    fn real(&self) -> u64 {
        self.problem.dtype().accumulator().size() as u64
    }

    /// Room for numbers in the workspace.
    fn reserve(&mut self, numbers: u64) -> u64 {
        let at = self.workspace;
        let bytes = numbers.saturating_mul(self.real()).checked_next_multiple_of(256).unwrap_or(u64::MAX);
        self.workspace = at.saturating_add(bytes);
        at
    }

    /// Room for a tensor of this role's shape.
    fn reserve_like(&mut self, role: Role) -> u64 {
        self.reserve(self.problem.shape(role).iter().map(|&n| n as u64).product())
    }

    /// The defines that every kernel has in front, and the prelude.
    fn prelude(&self, defines: &[(&str, String)]) -> String {
        let real = storage(self.problem.dtype().accumulator());
        let rounded = |dim: usize| dim.next_multiple_of(32);
        let mut text = format!(
            "#define REAL {real}\n#define RANK {}\n#define DIM {}\n#define DIM_V {}\n#define ADDITIONAL_TOKENS {}\n",
            self.problem.neighborhood().rank(),
            rounded(self.problem.head_dim()),
            rounded(self.problem.head_dim_v()),
            i32::from(self.problem.additional_tokens() > 0),
        );
        for (name, value) in defines {
            text += &format!("#define {name} {value}\n");
        }
        text + text::PRELUDE
    }

    /// Launches a kernel of groups of lanes.
    fn launch(&mut self, source: String, entry: &'static str, groups: u64, arguments: Vec<Argument>) {
        let blocks = groups.div_ceil(u64::from(BLOCK / 32)).min(i32::MAX as u64);
        self.launch_blocks(source, entry, blocks, BLOCK, arguments);
    }

    fn launch_blocks(
        &mut self,
        source: String,
        entry: &'static str,
        blocks: u64,
        block: u32,
        arguments: Vec<Argument>,
    ) {
        self.steps.push(Step::Launch(Kernel {
            source,
            entry,
            grid: [blocks, 1, 1],
            block,
            shared_bytes: 0,
            arguments,
            options: &[],
            class: Class::Plain,
        }));
    }

    fn finish(mut self) -> Sequence {
        tables::finish(&mut self);
        let tiles = Tiles::new(self.problem.neighborhood(), [1; 3], [usize::MAX; 3]);
        Sequence {
            steps: self.steps,
            workspace: self.workspace,
            tables: Vec::new(),
            layout: Layout::Any,
            coverage: coverage_of(self.problem, &tiles),
            config: Vec::new(),
        }
    }

    /// Where a tensor that is bound to the operation lies, if it is.
    fn bound(&self, role: Role) -> Option<Place> {
        let inputs = self.problem.inputs_of(self.request.op);
        let is_there = inputs.contains(role) || self.request.gives(role) || self.request.wants.contains(role);
        is_there.then(|| Place::Bound(role, self.problem.dtype_of(role)))
    }

    /// Puts captured tensors and their tangents where they are.
    fn put_captures(&self, places: &mut Places) {
        for number in 0..self.problem.program().captures().len() as u8 {
            for (name, role) in
                [("capture", Role::Capture(number)), ("tangent_capture", Role::TangentCapture(number))]
            {
                if let Some(place) = self.bound(role) {
                    places.put(format!("{name}_{number}"), place);
                }
            }
        }
    }
}
