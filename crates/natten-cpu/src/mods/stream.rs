//! The vectors of one tensor, on their way through a vector function, and their gradients on the way back.
//!
//! Vectors lie in the workspace head by head, tokens one after another. A unit of work is some blocks of neighbouring
//! tokens of one head; a block is what the evaluator takes at once.

use natten_core::program::{Field, Index, LoadGradient, LoweredVector, Primal, Var, derive};
use natten_core::{OpRequest, Problem, Role};

use crate::dispatch::run_on;
use crate::element::Real;
use crate::engine::{Crew, Line};
use crate::simd::{Outlined, Simd};
use crate::slab::Slab;
use crate::tokens::Tokens;
use crate::vector::{CapturedSet, Domain, Registers, Scatter, Tables, Tape, User};

/// Numbers of a block: some registers of them stay in the first-level cache.
const NUMBERS_A_BLOCK: usize = 1024;

/// Blocks of a unit: what a batch entry and head begin with is computed once for all of them.
const BLOCKS_A_UNIT: usize = 16;

/// The values, and the tangents, of vectors in the workspace; empty where there are none.
pub(super) type Buffers<'m, R> = [Slab<'m, R>; 2];

/// Which tokens' vectors a tensor holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// Heads of queries for each head that uses the same key.
    heads_per_kv: usize,
    /// Extents of the tensor's token axes.
    grid: [usize; 3],
    /// Extents of the user's token axes, of which there are `rank`: what coordinates are of.
    axes: [usize; 3],
    rank: usize,
    /// The number of the first token.
    first: usize,
    pub(super) dim: usize,
}

impl Shape {
    fn new(problem: &Problem, role: Role) -> Self {
        let is_query = role == Role::Query;
        let is_additional = matches!(role, Role::AdditionalKey | Role::AdditionalValue);
        let neighborhood = problem.neighborhood();
        let user = if is_query { neighborhood.query_shape() } else { neighborhood.key_shape() };
        let rank = user.len();
        let mut axes = [1; 3];
        axes[..rank].copy_from_slice(&user);
        let mut grid = [1; 3];
        grid[3 - rank..].copy_from_slice(&user);
        let shape = problem.shape(role);
        Self {
            batch: problem.batch(),
            heads: shape[shape.len() - 2],
            heads_per_kv: if is_query { problem.heads_per_kv() } else { 1 },
            grid: if is_additional { [1, 1, problem.additional_tokens()] } else { grid },
            axes,
            rank,
            first: if is_additional { user.iter().product() } else { 0 },
            dim: shape[shape.len() - 1],
        }
    }

    pub(super) fn tokens(&self) -> usize {
        self.grid.iter().product()
    }

    /// Where a token lies in the tensor.
    fn place(&self, token: usize) -> [usize; 3] {
        let [_, y, x] = self.grid;
        [token / (x * y), token / x % y, token % x]
    }

    /// What an index of a token is: its number, or its coordinate, which along the first axis runs on beyond the grid.
    fn index(&self, index: Index, token: usize) -> usize {
        let number = self.first + token;
        match index {
            Index::QueryAxis(axis) | Index::KeyAxis(axis) => {
                let axis = usize::from(axis).min(self.rank - 1);
                let below: usize = self.axes[axis + 1..self.rank].iter().product();
                if axis == 0 { number / below } else { number / below % self.axes[axis] }
            }
            _ => number,
        }
    }

    /// The strides of the vectors in the workspace, `[B, tokens…, H, D]` as the tensor's axes are.
    pub(super) fn strides(&self, axes: &[usize]) -> Vec<isize> {
        let token_axes = &axes[1..axes.len() - 2];
        let tokens: usize = token_axes.iter().product();
        let mut strides = vec![self.heads * tokens * self.dim];
        strides
            .extend((0..token_axes.len()).map(|a| token_axes[a + 1..].iter().product::<usize>() * self.dim));
        strides.extend([tokens * self.dim, 1]);
        strides.into_iter().map(usize::cast_signed).collect()
    }
}

/// The way back: gradients of the tensor's vectors, and of what the function loads.
#[derive(Debug)]
struct Backward {
    tape: Tape,
    /// Whether the tensor's own gradient is wanted: the first root.
    is_wanted: bool,
    scatter: Scatter,
}

/// One tensor and the function of its vectors.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) role: Role,
    pub(super) shape: Shape,
    /// Tokens of a block.
    rows: usize,
    forward: Tape,
    /// Whether what comes of the vectors has tangents.
    pub(super) has_tangent: bool,
    backward: Option<Backward>,
    /// Whether the way back needs the values of the cotangents, not their tangents alone.
    pub(super) needs_cotangents: bool,
}

/// A stream before the tables of gradients are known.
#[derive(Debug)]
pub(super) struct Draft {
    role: Role,
    pub(super) shape: Shape,
    lowered: LoweredVector,
    loads: Vec<LoadGradient>,
    has_tangent: bool,
    is_wanted: bool,
    has_result: bool,
    in_forward_mode: bool,
}

impl Draft {
    /// The function `field` of a tensor's vectors, and of `captures` the gradients that are wanted.
    pub(super) fn new(
        problem: &Problem,
        request: &OpRequest,
        field: Field,
        role: Role,
        captures: &[u8],
    ) -> Option<Self> {
        let program = problem.program();
        let expr = program.field(field)?;
        let of_field = program.captures_of(&[field]);
        let given: Vec<u8> =
            of_field.iter().copied().filter(|&n| request.gives(Role::TangentCapture(n))).collect();
        let has_own = role.tangent().is_some_and(|tangent| request.gives(tangent));
        let in_forward_mode = request.op.is_forward_mode();
        let lowered = LoweredVector::new(program, expr, has_own, in_forward_mode, &given);
        let loads: Vec<LoadGradient> =
            lowered.loads.iter().filter(|load| captures.contains(&load.capture)).cloned().collect();
        let wants = |role: Option<Role>| role.is_some_and(|role| request.wants.contains(role));
        let is_wanted = wants(role.gradient()) || wants(role.second_gradient());
        Some(Self {
            role,
            shape: Shape::new(problem, role),
            has_tangent: has_own || !given.is_empty(),
            has_result: is_wanted || of_field.iter().any(|n| captures.contains(n)),
            lowered,
            loads,
            is_wanted,
            in_forward_mode,
        })
    }

    /// What it loads from captured tensors.
    pub(super) fn user(&self) -> User<'_> {
        let is_query = self.role == Role::Query;
        let shape = &self.shape;
        let (number, axis) = match is_query {
            true => (Index::Query, Index::QueryAxis(0)),
            false => (Index::Key, Index::KeyAxis(0)),
        };
        const HEADS: &[Index] = &[Index::Head, Index::HeadKv];
        User {
            graph: &self.lowered.graph,
            loads: &self.loads,
            batch: shape.batch,
            heads: shape.heads,
            head: if shape.heads_per_kv == 1 { HEADS } else { &HEADS[..1] },
            tokens: shape.first + shape.tokens(),
            token: if shape.rank == 1 { vec![number, axis] } else { vec![number] },
            lanes: shape.dim,
        }
    }

    /// Compiles it.
    pub(super) fn compile(self, tables: &Tables) -> Stream {
        let Self { role, shape, lowered, loads, has_tangent, is_wanted, has_result, in_forward_mode } = self;
        let rows = (NUMBERS_A_BLOCK / shape.dim).clamp(1, 64);
        let graph = &lowered.graph;
        let tape = |roots: &[_]| Tape::new(graph, roots, Domain::Vectors, rows, shape.dim);
        let mut roots = vec![lowered.value.value];
        roots.extend(has_tangent.then_some(lowered.value.tangent));
        let forward = tape(&roots);
        let gradient = if in_forward_mode { lowered.gradient.tangent } else { lowered.gradient.value };
        let of_load =
            |load: &LoadGradient| if in_forward_mode { load.gradient.tangent } else { load.gradient.value };
        let mut roots = vec![gradient];
        roots.extend(Scatter::roots(&loads, of_load));
        let needs_cotangents =
            has_result && roots.iter().any(|&root| derive::depends_on(graph, root, Var::GradX));
        let backward = has_result.then(|| {
            let tape = tape(&roots);
            let scatter = Scatter::new(&tape, graph, &loads, 1, tables);
            Backward { tape, is_wanted, scatter }
        });
        Stream { role, shape, rows, forward, has_tangent, backward, needs_cotangents }
    }
}

impl Stream {
    /// The roles of the vectors, and of their tangents.
    pub(super) fn inputs(&self) -> [Role; 2] {
        [self.role, self.role.tangent().unwrap_or(self.role)]
    }

    /// The roles of their gradients, and of the gradients' tangents.
    pub(super) fn gradients(&self) -> [Role; 2] {
        [self.role.gradient(), self.role.second_gradient()].map(|role| role.unwrap_or(self.role))
    }

    /// All of them.
    pub(super) fn roles(&self) -> [Role; 4] {
        let ([value, tangent], [gradient, second]) = (self.inputs(), self.gradients());
        [value, tangent, gradient, second]
    }

    /// Whether there is a way back.
    pub(super) const fn has_result(&self) -> bool {
        self.backward.is_some()
    }

    /// Elements of a thread's registers.
    pub(super) fn elements(&self, bytes: usize) -> usize {
        let backward = self.backward.as_ref().map_or(0, |backward| backward.tape.elements(bytes));
        self.forward.elements(bytes).max(backward)
    }

    /// Blocks of tokens of one head that a unit takes, and units a head.
    fn units_a_head(&self) -> usize {
        self.shape.tokens().div_ceil(self.rows * BLOCKS_A_UNIT)
    }

    fn units(&self) -> usize {
        self.shape.batch * self.shape.heads * self.units_a_head()
    }

    fn begin<R: Real>(
        &self,
        tape: &Tape,
        crew: &Crew,
        registers: &mut Registers<'_, R>,
        captured: &CapturedSet,
        row: usize,
    ) {
        let head = row % self.shape.heads;
        tape.begin(crew.isa, registers, captured, |index| match index {
            Index::Batch => row / self.shape.heads,
            Index::HeadKv => head / self.shape.heads_per_kv,
            _ => head,
        });
    }

    /// Computes a unit's blocks, one after another: `before` sets what a block is computed from beside its tokens' vectors,
    /// `after` takes the results. Both get where the block lies in the workspace.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that differs between callers")]
    fn blocks<R: Real>(
        &self,
        tape: &Tape,
        crew: &Crew,
        (captured, input): (&CapturedSet, &[Option<Tokens<R>>; 2]),
        registers: &mut Registers<'_, R>,
        unit: usize,
        mut before: impl FnMut(&mut Registers<'_, R>, &Block),
        mut after: impl FnMut(&Registers<'_, R>, &Block),
    ) {
        let shape = &self.shape;
        let (row, first) =
            (unit / self.units_a_head(), unit % self.units_a_head() * self.rows * BLOCKS_A_UNIT);
        let last = (first + self.rows * BLOCKS_A_UNIT).min(shape.tokens());
        for first in (first..last).step_by(self.rows) {
            let count = self.rows.min(last - first);
            let block = Block { at: (row / shape.heads, row % shape.heads), first, count, row };
            tape.move_to(registers, count, |index, token| shape.index(index, first + token));
            for (var, tensor) in [Var::X, Var::Tangent(Primal::X)].into_iter().zip(input) {
                if let (Some(to), Some(tensor)) = (tape.variable(registers, var, count), tensor) {
                    let job = Copy { shape, block, tensor, vectors: Vectors::Read(to) };
                    // SAFETY: the instruction set was detected, and the tensor has such vectors.
                    unsafe { run_on(crew.isa, job) };
                }
            }
            before(registers, &block);
            tape.run(crew.isa, registers, captured, count, shape.dim);
            after(registers, &block);
        }
    }

    /// Sends a tensor's vectors through the function.
    pub(super) fn apply<R: Real>(
        &self,
        crew: &Crew,
        captured: &CapturedSet,
        input: &[Option<Tokens<R>>; 2],
        to: Buffers<'_, R>,
        scratch: &mut [Line],
    ) {
        crew.share_out(self.units(), scratch, |memory, units| {
            let mut registers = self.forward.registers::<R>(bytemuck::cast_slice_mut(memory));
            let mut begun = None;
            for unit in units {
                let row = unit / self.units_a_head();
                if begun.replace(row) != Some(row) {
                    self.begin(&self.forward, crew, &mut registers, captured, row);
                }
                let after = |registers: &Registers<'_, R>, block: &Block| {
                    for (root, to) in to.into_iter().enumerate().filter(|(_, to)| !to.is_empty()) {
                        // SAFETY: the vectors are this unit's.
                        let to = unsafe { to.part(block.numbers(&self.shape)) };
                        for (at, to) in to.chunks_exact_mut(self.shape.dim).enumerate() {
                            self.forward.copy(registers, root, at, to);
                        }
                    }
                };
                self.blocks(&self.forward, crew, (captured, input), &mut registers, unit, |_, _| {}, after);
            }
        });
    }

    /// Sends gradients of what came of the vectors, `gradients`, the way back: to those of the tensor, and of captured
    /// tensors, into `tables`.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that differs between callers")]
    pub(super) fn pull<R: Real>(
        &self,
        crew: &Crew,
        captured: &CapturedSet,
        input: &[Option<Tokens<R>>; 2],
        gradients: Buffers<'_, R>,
        to: Option<Tokens<R>>,
        (tables, sums): (&Tables, Slab<'_, f64>),
        scratch: &mut [Line],
    ) {
        let Some(Backward { tape, is_wanted, scatter }) = &self.backward else { return };
        let to = to.filter(|_| *is_wanted);
        crew.share_out(tables.parts(), scratch, |memory, parts| {
            let (memory, vector) =
                bytemuck::cast_slice_mut::<_, R>(memory).split_at_mut(tape.elements(size_of::<R>()));
            let mut registers = tape.registers::<R>(memory);
            let mut begun = None;
            for (part, unit) in
                parts.flat_map(|part| tables.part(part, self.units()).map(move |unit| (part, unit)))
            {
                let row = unit / self.units_a_head();
                if begun.replace(row) != Some(row) {
                    self.begin(tape, crew, &mut registers, captured, row);
                }
                let before = |registers: &mut Registers<'_, R>, block: &Block| {
                    for (var, from) in [Var::GradX, Var::Tangent(Primal::GradX)].into_iter().zip(gradients) {
                        if let Some(to) = tape.variable(registers, var, block.count) {
                            // SAFETY: the gradients are written.
                            to.copy_from_slice(unsafe { from.read(block.numbers(&self.shape)) });
                        }
                    }
                };
                let after = |registers: &Registers<'_, R>, block: &Block| {
                    if let Some(tensor) = &to {
                        let vectors = Vectors::Write(tape, registers, &mut vector[..self.shape.dim]);
                        let job = Copy { shape: &self.shape, block: *block, tensor, vectors };
                        // SAFETY: the instruction set was detected, the tensor has such vectors, and they are this unit's.
                        unsafe { run_on(crew.isa, job) };
                    }
                    // SAFETY: the part is this thread's.
                    unsafe {
                        scatter.add(tape, registers, tables, (sums, part), block.count, self.shape.dim)
                    };
                };
                self.blocks(tape, crew, (captured, input), &mut registers, unit, before, after);
            }
        });
    }
}

/// Neighbouring tokens of one head.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// The batch entry and head, and the number of both.
    at: (usize, usize),
    row: usize,
    first: usize,
    count: usize,
}

impl Block {
    /// Where its vectors lie in the workspace.
    fn numbers(&self, shape: &Shape) -> std::ops::Range<usize> {
        let at = (self.row * shape.tokens() + self.first) * shape.dim;
        at..at + self.count * shape.dim
    }
}

/// Vectors between a tensor and the registers.
struct Copy<'c, 'm, R> {
    shape: &'c Shape,
    block: Block,
    tensor: &'c Tokens<R>,
    vectors: Vectors<'c, 'm, R>,
}

enum Vectors<'c, 'm, R> {
    Read(&'c mut [R]),
    /// Of the first root of a tape, with room for a vector.
    Write(&'c Tape, &'c Registers<'m, R>, &'c mut [R]),
}

impl<R: Real> Outlined for Copy<'_, '_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        let Block { at: (batch, head), first, count, .. } = self.block;
        // SAFETY: whoever copies vouches for the tensor.
        unsafe {
            match self.vectors {
                Vectors::Read(to) => {
                    for (at, to) in to.chunks_exact_mut(self.shape.dim).enumerate() {
                        self.tensor.read(batch, self.shape.place(first + at), head, to);
                    }
                }
                Vectors::Write(tape, registers, vector) => {
                    for at in 0..count {
                        tape.copy(registers, 0, at, vector);
                        self.tensor.write(batch, self.shape.place(first + at), head, vector);
                    }
                }
            }
        }
    }
}
