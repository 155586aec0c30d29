//! Linear attention: a recurrence whose state decays from token to token, computed a chunk of tokens at a time.
//!
//! ```text
//! S_t = e^l_t S_(t-1) + k_t v_t^T        o_t = scale q_t S_t
//! ```
//!
//! Within a chunk the outputs are a causal product of matrices, `scale e^(G_a - G_b) ⟨q_a, k_b⟩` with `G` the sum of the
//! logarithms from the chunk's start; between chunks the state carries on. Logarithms are only ever taken from one another
//! before they are exponents, so that a decay which leaves nothing is as exact as none. A run goes in phases, each shared
//! out to threads:
//!
//! | phase | units | makes |
//! |---|---|---|
//! | sums | sequences | the logarithms, summed within chunks |
//! | parts | chunks | what each chunk adds to the state, and to the state's cotangent |
//! | scans | rows of states | the states at the chunks' borders, forward and backward |
//! | outputs, or gradients | chunks | results |
//! | captures | parts of all chunks | the gradients of what the decay loads |
//!
//! A forward run with more sequences than threads takes each sequence as a whole instead, with the same arithmetic in
//! the same order. Forward mode is the same code on matrices with tangents.

mod chunk;
mod decay;
mod gradients;
mod matrix;
mod outputs;
mod states;
mod vectors;

use natten_core::geometry::Coverage;
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Result, Role, padded_tile};

use self::chunk::{Cut, Scratch, Sums};
use self::decay::{Decay, Numbers};
use self::gradients::Logs;
use self::matrix::Matrix;
use self::states::{ROWS_A_UNIT, Scan};
use crate::dispatch::run_on;
use crate::element::Real;
use crate::engine::{Crew, Engine, Line, Tensors, lines};
use crate::simd::{Outlined, Simd, lanes};
use crate::slab::{Slab, lines_of, take};
use crate::tokens::Tokens;
use crate::vector::{CapturedSet, check};

/// Tokens of a chunk, where the caller does not say: products within a chunk cost as much then as those with states of
/// common size.
const CHUNK: usize = 64;

/// An input, and its tangent where it has one.
type Pair<R> = (Tokens<R>, Option<Tokens<R>>);

/// A result, and its tangent: each where it is wanted.
type Outputs<R> = [Option<Tokens<R>>; 2];

/// The vectors of a run, and the states that it begins and ends with.
#[derive(Debug)]
struct Operands<R: Real> {
    query: Pair<R>,
    key: Pair<R>,
    value: Pair<R>,
    initial: Option<Pair<R>>,
    grad_output: Option<Pair<R>>,
    grad_final: Option<Pair<R>>,
}

/// The results of a run.
#[derive(Debug)]
struct Results<R: Real> {
    output: Outputs<R>,
    /// The final state.
    last: Outputs<R>,
    query: Outputs<R>,
    key: Outputs<R>,
    value: Outputs<R>,
    initial: Outputs<R>,
}

/// A run: what to compute on, and how it is cut.
#[derive(Debug)]
struct Kernel<'m, R: Real> {
    cut: Cut,
    scale: R,
    operands: Operands<R>,
    results: Results<R>,
    /// The logarithms' sums.
    sums: Numbers<'m, f64>,
    /// The states that chunks begin with.
    states: Numbers<'m, R>,
    /// The cotangents of the states that chunks end with.
    costates: Numbers<'m, R>,
    /// The gradients of the logarithms, where they are wanted.
    logs: Numbers<'m, R>,
    needs_states: bool,
    needs_costates: bool,
}

impl<'m, R: Real> Kernel<'m, R> {
    /// The batch entry and the query head of a sequence.
    const fn head_of(&self, row: usize) -> (usize, usize) {
        (row / self.cut.heads, row % self.cut.heads)
    }

    /// The batch entry and the key head that a query head uses.
    const fn key_head(&self, (batch, head): (usize, usize)) -> (usize, usize) {
        (batch, head / (self.cut.heads / self.cut.heads_kv))
    }

    /// The sums of a chunk.
    ///
    /// # Safety
    /// Nobody writes them any more.
    #[inline(always)]
    unsafe fn sums_of(&self, row: usize, tokens: (usize, usize)) -> Sums<'m> {
        let numbers = self.cut.numbers_of(row, tokens);
        // SAFETY: the caller's.
        unsafe {
            Sums { value: self.sums.value.read(numbers.clone()), tangent: self.sums.tangent.read(numbers) }
        }
    }

    /// Where the gradients of a chunk's logarithms go.
    ///
    /// # Safety
    /// No other thread has this chunk.
    #[inline(always)]
    unsafe fn logs_of(&self, row: usize, tokens: (usize, usize)) -> Logs<'m, R> {
        let numbers = self.cut.numbers_of(row, tokens);
        // SAFETY: the caller's.
        unsafe {
            Logs { value: self.logs.value.part(numbers.clone()), tangent: self.logs.tangent.part(numbers) }
        }
    }

    /// The state at a border of a chunk.
    ///
    /// # Safety
    /// No other thread has this chunk, and no other matrix is of this state.
    #[inline(always)]
    unsafe fn state_of(&self, states: Numbers<'m, R>, row: usize, chunk: usize) -> Matrix<'m, R> {
        let numbers = self.cut.state_of(row, chunk);
        // SAFETY: the caller's.
        let (value, tangent) = unsafe { (states.value.part(numbers.clone()), states.tangent.part(numbers)) };
        Matrix { value, tangent, stride: self.cut.strides[1], is_constant: false }
    }
}

/// What the threads share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// One sequence's outputs, from its beginning to its end.
    Sequences,
    Parts,
    Scan(Scan),
    Outputs,
    Gradients,
}

impl Phase {
    fn units(self, cut: &Cut) -> usize {
        match self {
            Self::Sequences => cut.rows(),
            Self::Parts | Self::Outputs => cut.rows() * cut.chunks(),
            Self::Scan(_) => cut.rows() * cut.dims[0].div_ceil(ROWS_A_UNIT),
            Self::Gradients => cut.batch * cut.heads_kv * cut.chunks(),
        }
    }
}

/// A unit of a phase.
struct Unit<'u, 'k, 's, R: Real> {
    kernel: &'u Kernel<'k, R>,
    phase: Phase,
    unit: usize,
    scratch: &'u mut Scratch<'s, R>,
}

impl<R: Real> Outlined for Unit<'_, '_, '_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        let Self { kernel, phase, unit, scratch } = self;
        // SAFETY: the caller's processor has `S`; the operands live until the run returns, and every unit comes to one
        // thread.
        unsafe {
            match phase {
                Phase::Sequences => kernel.sequence_unit::<S>(unit, scratch),
                Phase::Parts => kernel.parts_unit::<S>(unit, scratch),
                Phase::Scan(scan) => kernel.scan_unit::<S>(scan, unit, scratch),
                Phase::Outputs => kernel.outputs_unit::<S>(unit, scratch),
                Phase::Gradients => kernel.gradients_unit::<S>(unit, scratch),
            }
        }
    }
}

/// Linear attention, prepared.
#[derive(Debug)]
pub(crate) struct Linear {
    problem: Problem,
    crew: Crew,
    cut: Cut,
    decay: Decay,
    /// Whether a forward run takes sequences as a whole.
    by_sequence: bool,
    needs_states: bool,
    needs_costates: bool,
    needs_logs: bool,
}

impl Linear {
    /// Whether the decay can be computed.
    ///
    /// # Errors
    /// [`natten_core::Error::Unsupported`] with the operation that cannot, and its place.
    pub(crate) fn supports(problem: &Problem) -> Result<()> {
        let program = problem.program();
        program.decay().map_or(Ok(()), |decay| check(program, program.graph(), decay))
    }

    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        crew: Crew,
    ) -> Result<Self> {
        let tile = |name, tile: &Option<Vec<usize>>| {
            tile.as_ref().map(|tile| padded_tile(name, tile, problem)).transpose()
        };
        let chunk = tile("query_tile", &options.query_tile)?.or(tile("key_tile", &options.key_tile)?);
        let tokens = problem.neighborhood().axes()[2].query_len();
        let chunk = chunk.map_or(CHUNK, |tile| tile[2]).clamp(1, tokens.max(1));
        let lanes = lanes(crew.isa, problem.dtype());
        let dims = [problem.head_dim(), problem.head_dim_v()];
        let (is_backward, has_tangents) = match request.op {
            Op::Backward => (true, false),
            Op::BackwardJvp => (true, true),
            op => (false, op.is_forward_mode()),
        };
        let whole = |count: usize| count.checked_next_multiple_of(lanes).unwrap_or(usize::MAX);
        let cut = Cut {
            batch: problem.batch(),
            heads: problem.heads(),
            heads_kv: problem.heads_kv(),
            tokens,
            chunk,
            dims,
            strides: dims.map(whole),
            width: whole(chunk),
            has_tangents,
            is_backward,
        };
        let wanted: Vec<u8> = (0..problem.program().captures().len() as u8)
            .filter(|&n| {
                [Role::GradCapture(n), Role::Grad2Capture(n)].iter().any(|&role| request.wants.contains(role))
            })
            .collect();
        let decay = Decay::new(problem, &wanted, request.given, has_tangents, chunk);
        let wants = |roles: &[Role]| roles.iter().any(|&role| request.wants.contains(role));
        let needs_logs = !wanted.is_empty();
        Ok(Self {
            by_sequence: !is_backward && cut.rows() >= crew.threads,
            needs_states: !is_backward
                || needs_logs
                || wants(&[
                    Role::GradQuery,
                    Role::Grad2Query,
                    Role::Grad2GradOutput,
                    Role::Grad2GradFinalState,
                ]),
            needs_costates: is_backward
                && (needs_logs
                    || wants(&[
                        Role::GradKey,
                        Role::GradValue,
                        Role::GradInitialState,
                        Role::Grad2Key,
                        Role::Grad2Value,
                        Role::Grad2InitialState,
                    ])),
            needs_logs,
            problem: problem.clone(),
            crew,
            cut,
            decay,
        })
    }

    /// The pairs that are computed as pairs: those within a chunk.
    pub(crate) fn coverage(&self) -> Coverage {
        let (chunk, tokens) = (self.cut.chunk as u128, self.cut.tokens as u128);
        let pairs = |tokens: u128| tokens * (tokens + 1) / 2;
        let mut coverage = Coverage::default();
        if self.cut.batch > 0 {
            coverage.useful = tokens / chunk * pairs(chunk) + pairs(tokens % chunk);
            coverage.edge = self.cut.chunks() as u128;
            coverage.visited = coverage.edge * chunk * chunk;
        }
        coverage
    }
}

/// How many numbers the parts of a workspace have.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// A number a sequence and token.
    sums: usize,
    sum_tangents: usize,
    states: usize,
    state_tangents: usize,
    costates: usize,
    costate_tangents: usize,
    logs: usize,
    log_tangents: usize,
    tables: usize,
    /// Lines of one thread's scratch.
    scratch: usize,
    threads: usize,
}

impl Layout {
    fn lines<R: Real>(&self) -> usize {
        let doubles = [self.sums, self.sum_tangents, self.tables].map(lines_of::<f64>);
        let reals = [
            self.states,
            self.state_tangents,
            self.costates,
            self.costate_tangents,
            self.logs,
            self.log_tangents,
        ];
        let scratch = self.scratch.saturating_mul(self.threads);
        doubles.into_iter().chain(reals.map(lines_of::<R>)).fold(scratch, usize::saturating_add)
    }
}

impl Linear {
    fn layout(&self) -> Layout {
        let Cut { has_tangents, is_backward, .. } = self.cut;
        let only = |is_there: bool, count: usize| if is_there { count } else { 0 };
        let tokens = self.cut.rows().saturating_mul(self.cut.tokens);
        let states = only(self.needs_states && !self.by_sequence, self.cut.states());
        let costates = only(self.needs_costates, self.cut.states());
        let bytes = self.problem.dtype().accumulator().size();
        let scratch = self.cut.elements().max(self.decay.elements(bytes));
        Layout {
            sums: tokens,
            sum_tangents: only(has_tangents, tokens),
            states,
            state_tangents: only(has_tangents, states),
            costates,
            costate_tangents: only(has_tangents, costates),
            logs: only(is_backward && self.needs_logs, tokens),
            log_tangents: only(is_backward && self.needs_logs && has_tangents, tokens),
            tables: self.decay.tables.len(),
            scratch: lines(scratch.saturating_mul(bytes)),
            threads: self.crew.threads,
        }
    }

    fn run_typed<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        let layout = self.layout();
        let captured = CapturedSet::new(tensors);
        let memory = &mut &mut *memory;
        let sums = Numbers {
            value: Slab::new(take(memory, layout.sums)),
            tangent: Slab::new(take(memory, layout.sum_tangents)),
        };
        let mut pair = |value: usize, tangent: usize| Numbers {
            value: Slab::new(take::<R>(memory, value)),
            tangent: Slab::new(take::<R>(memory, tangent)),
        };
        let states = pair(layout.states, layout.state_tangents);
        let costates = pair(layout.costates, layout.costate_tangents);
        let logs = pair(layout.logs, layout.log_tangents);
        let tables = self.decay.tables.clear(take(memory, layout.tables));
        let scratch = &mut memory[..layout.scratch * layout.threads];
        let kernel = Kernel {
            cut: self.cut,
            scale: R::of(self.problem.scale()),
            operands: operands(tensors),
            results: self.results(tensors),
            sums,
            states,
            costates,
            logs,
            needs_states: self.needs_states,
            needs_costates: self.needs_costates,
        };
        self.crew.share_out(self.cut.rows(), scratch, |memory, units| {
            for row in units {
                // SAFETY: the captured tensors and the workspace live until the run returns; a row comes to one thread.
                unsafe {
                    self.decay.sum::<R>(&self.crew, &captured, row, bytemuck::cast_slice_mut(memory), &sums)
                };
            }
        });
        if self.by_sequence {
            self.share_out(&kernel, Phase::Sequences, scratch);
        } else {
            self.share_out(&kernel, Phase::Parts, scratch);
            if self.needs_states {
                self.share_out(&kernel, Phase::Scan(Scan::Forward), scratch);
            }
            if self.needs_costates {
                self.share_out(&kernel, Phase::Scan(Scan::Backward), scratch);
            }
            self.share_out(
                &kernel,
                if self.cut.is_backward { Phase::Gradients } else { Phase::Outputs },
                scratch,
            );
        }
        if self.decay.tables.is_empty() {
            return;
        }
        self.crew.share_out(self.decay.tables.parts(), scratch, |memory, units| {
            for part in units {
                let memory = bytemuck::cast_slice_mut(memory);
                // SAFETY: as above; the gradients of the logarithms are written, and a part comes to one thread.
                unsafe {
                    self.decay.scatter::<R>(
                        &self.crew,
                        &captured,
                        (tables, part),
                        memory,
                        &logs,
                        self.cut.rows(),
                    );
                }
            }
        });
        let role = if self.cut.has_tangents { Role::Grad2Capture } else { Role::GradCapture };
        self.decay.tables.write(&self.crew, scratch, tables, tensors, role, |_, _| 0.0);
    }

    fn share_out<R: Real>(&self, kernel: &Kernel<'_, R>, phase: Phase, scratch: &mut [Line]) {
        self.crew.share_out(phase.units(&self.cut), scratch, |memory, units| {
            let scratch = &mut self.cut.scratch::<R>(bytemuck::cast_slice_mut(memory));
            for unit in units {
                // SAFETY: the instruction set was detected.
                unsafe { run_on(self.crew.isa, Unit { kernel, phase, unit, scratch }) };
            }
        });
    }

    /// The results among a run's tensors.
    fn results<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>) -> Results<R> {
        let mut pair = |value: Role, tangent: Role| {
            [value, tangent].map(|role| tensors.output(role).map(Tokens::<R>::output))
        };
        let forward = |backward: Role, forward: Role| if self.cut.is_backward { backward } else { forward };
        Results {
            output: pair(Role::Output, forward(Role::Grad2GradOutput, Role::TangentOutput)),
            last: pair(Role::FinalState, forward(Role::Grad2GradFinalState, Role::TangentFinalState)),
            query: pair(Role::GradQuery, Role::Grad2Query),
            key: pair(Role::GradKey, Role::Grad2Key),
            value: pair(Role::GradValue, Role::Grad2Value),
            initial: pair(Role::GradInitialState, Role::Grad2InitialState),
        }
    }
}

/// The inputs among a run's tensors.
fn operands<R: Real>(tensors: &Tensors<'_, '_, '_>) -> Operands<R> {
    let tokens = |role: Role| tensors.input(role).map(Tokens::<R>::input);
    let given = |role: Role| tokens(role).map(|value| (value, role.tangent().and_then(tokens)));
    // `Problem::tensors` always lists these three.
    let always =
        |role: Role| given(role).unwrap_or_else(|| unreachable!("{role} is an input of every operation"));
    Operands {
        query: always(Role::Query),
        key: always(Role::Key),
        value: always(Role::Value),
        initial: given(Role::InitialState),
        grad_output: given(Role::GradOutput),
        grad_final: given(Role::GradFinalState),
    }
}

impl Engine for Linear {
    fn lines(&self) -> usize {
        match self.problem.dtype() {
            DType::F64 => self.layout().lines::<f64>(),
            _ => self.layout().lines::<f32>(),
        }
    }

    fn config(&self) -> Vec<(String, String)> {
        let order = if self.by_sequence { "sequence by sequence" } else { "chunk by chunk" };
        vec![("chunk".to_owned(), self.cut.chunk.to_string()), ("order".to_owned(), order.to_owned())]
    }

    fn run(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        match self.problem.dtype() {
            DType::F64 => self.run_typed::<f64>(tensors, memory),
            _ => self.run_typed::<f32>(tensors, memory),
        }
    }
}
