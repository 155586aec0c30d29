//! The engine of programs: any score function, mask, row function and weight, forward and backward, each with tangents.
//!
//! What a program's kernel computes of a pair and of a row comes from [`Lowered`](natten_core::program::Lowered);
//! [`passes`] makes sweeps and steps of it, [`code`] tiles and their codes; [`walk`] does one tile of pairs, [`queries`]
//! and [`keys`] the boxes around it. Whatever the operation, there are these phases, each shared out in units:
//!
//! | phase | does |
//! |---|---|
//! | captures | copies captured tensors that are not contiguous, or not of the type that is computed in |
//! | tables | clears the gradient tables that units share |
//! | queries | rows, and everything that is summed over the keys of a query |
//! | keys | everything that is summed over the queries of a key |
//! | sums | adds up gradient tables |

mod captures;
mod code;
mod columns;
mod keys;
mod numbers;
mod operands;
mod passes;
mod queries;
mod scratch;
mod sight;
mod tables;
mod walk;
mod zeros;

use bytemuck::cast_slice_mut;
use natten_core::geometry::Coverage;
use natten_core::program::{Field, Involved, Program};
use natten_core::{DType, Error, Op, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use crate::NAME;
use crate::element::Real;
use crate::engine::{Crew, Engine, Line, Tensors, lines};
use crate::isa::Isa;
use crate::kernel::{Bias, BiasGradient, bias_partials_per_head, sum_bias_tables};
use crate::lanes::Direction;
use crate::simd::{self, Outlined, Simd, lanes};
use crate::tiling::Pass;
use crate::tokens::{Entries, Tokens};

use self::code::{Context, SweepCode};
use self::operands::Operands;
use self::passes::{Passes, Step};
use self::scratch::ScratchSizes;
use self::sight::Mask;
use self::tables::{Load, Tables};
use self::walk::{Desk, MAX_NUMBERS, MAX_TILES, Walk};

/// Where the parts of a workspace lie, in lines.
#[derive(Clone, Copy, Debug)]
struct WorkspaceLayout {
    /// Copies of captured tensors.
    captures: usize,
    /// Numbers of every query that the walk with stationary keys reads.
    stored: usize,
    /// Gradient tables of captured tensors, and of the bias.
    tables: usize,
    bias: usize,
    /// One thread's scratch.
    scratch: usize,
    threads: usize,
}

impl WorkspaceLayout {
    const fn lines(&self) -> usize {
        self.captures
            .saturating_add(self.stored)
            .saturating_add(self.tables)
            .saturating_add(self.bias)
            .saturating_add(self.scratch.saturating_mul(self.threads))
    }
}

/// An operation on a problem with a program, prepared.
#[derive(Debug)]
pub(crate) struct Programs {
    problem: Problem,
    request: OpRequest,
    crew: Crew,
    wants: Involved,
    passes: Passes,
    mask: Option<Mask>,
    queries: Pass,
    keys: Pass,
    sizes: ScratchSizes,
    captures: captures::Layout,
    tables: tables::Layout,
    layout: WorkspaceLayout,
}

impl Programs {
    /// Whether this engine does it.
    ///
    /// # Errors
    /// [`Error::Unsupported`], with the part of the program that it does not do.
    pub(crate) fn supports(problem: &Problem, request: &OpRequest) -> Result<()> {
        let program = problem.program();
        let refused = [Field::QueryMod, Field::KeyMod, Field::ValueMod, Field::Decay];
        for field in refused {
            if let Some(expr) = program.field(field) {
                return Err(unsupported(program, request.op, field, expr));
            }
        }
        Ok(())
    }

    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        crew: Crew,
    ) -> Result<Self> {
        Self::supports(problem, request)?;
        let tangents = Involved::tangents(problem, request);
        let mut wants = Involved::wanted(problem, request);
        // Gradients of what vector functions load are not the pairs' to give.
        let of_pairs = problem.program().captures_of(&[Field::Score, Field::Row, Field::Post]);
        wants.captures.retain(|n| of_pairs.contains(n));
        let has_cotangent =
            problem.has_logsumexp() && request.gives(Role::GradLogsumexp) || tangents.logsumexp;
        let passes = Passes::new(problem, request.op, &tangents, &wants, has_cotangent)?;
        let context = |direction| Context {
            direction,
            heads: problem.heads(),
            captures: problem.program().captures(),
            stationary: [true; 4],
            streamed: [true; 4],
        };
        let mask = Mask::new(problem, crew.threads, context)?;
        let accumulator = problem.dtype().accumulator();
        let lanes = lanes(crew.isa, problem.dtype());
        let pass = |direction| {
            Pass::new(direction, problem, options, 2 * lanes, accumulator.size())
                .map(|pass| pass.with_rows_for(problem.additional_tokens()))
        };
        let (queries, keys) = (pass(Direction::Keys)?, pass(Direction::Queries)?);
        let sizes = sizes(problem, request.op, &wants, lanes, [&queries, &keys], &passes, mask.as_ref());
        if sizes.tiles > MAX_TILES || passes.queries.numbers.len() > MAX_NUMBERS {
            let what = format!("{} of this program", request.op);
            return Err(Error::unsupported(NAME, what, "its rows have too many numbers; use fewer stages"));
        }
        let captures = captures::Layout::new(problem, &tangents.captures);
        let loads: Vec<Load<'_>> = passes
            .lowered
            .iter()
            .flat_map(|lowered| lowered.loads.iter().map(|gradient| Load { graph: &lowered.graph, gradient }))
            .collect();
        let partials = bias_partials_per_head(problem.heads());
        let tables = tables::Layout::new(problem, &wants.captures, &loads, partials);
        let rows: usize = problem
            .shape(Role::Output)
            .iter()
            .rev()
            .skip(1)
            .product::<usize>()
            .saturating_mul(passes.keys.stored.len());
        let bias_entries: usize = if wants.rpb { problem.shape(Role::Rpb)[1..].iter().product() } else { 0 };
        let bias_tables = problem.heads() * tables.pieces();
        let layout = WorkspaceLayout {
            captures: lines(captures.len.saturating_mul(accumulator.size())),
            stored: lines(rows.saturating_mul(accumulator.size())),
            tables: lines(tables.len.saturating_mul(size_of::<f64>())),
            bias: lines(bias_tables.saturating_mul(bias_entries).saturating_mul(size_of::<f64>())),
            scratch: lines(sizes.elements().saturating_mul(accumulator.size())),
            threads: crew.threads,
        };
        Ok(Self {
            problem: problem.clone(),
            request: *request,
            crew,
            wants,
            passes,
            mask,
            queries,
            keys,
            sizes,
            captures,
            tables,
            layout,
        })
    }

    /// The boxes that the walk with stationary queries visits, where no mask leaves any out.
    pub(crate) fn coverage(&self) -> Coverage {
        coverage_of(&self.problem, &self.queries.tiles)
    }

    fn run_typed<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        let (captures, rest) = memory.split_at_mut(self.layout.captures);
        let (stored, rest) = rest.split_at_mut(self.layout.stored);
        let (tables, rest) = rest.split_at_mut(self.layout.tables);
        let (bias, rest) = rest.split_at_mut(self.layout.bias);
        let scratch = &mut rest[..self.layout.scratch * self.layout.threads];
        let bias: &mut [f64] = cast_slice_mut(bias);

        let copies = self.captures.copies::<R>(tensors, cast_slice_mut(captures));
        // SAFETY: units copy elements of their own, into memory of this run.
        self.share_out(copies.units(), scratch, |_, unit| unsafe { copies.copy(unit) });
        let tables = Tables::new(&self.tables, cast_slice_mut(tables));
        // SAFETY: units clear entries of their own.
        self.share_out(tables.clear_units(), scratch, |_, unit| unsafe { tables.clear_shared(unit) });

        let operands = self.operands::<R>(tensors, cast_slice_mut(stored), bias);
        let walk = Walk {
            problem: &self.problem,
            op: self.request.op,
            passes: &self.passes,
            mask: self.mask.as_ref(),
            queries: &self.queries,
            keys: &self.keys,
            sizes: &self.sizes,
            operands: &operands,
            // SAFETY: the copies are made, and nobody writes captured tensors or their copies in what follows.
            captures: unsafe { self.captures.captured(tensors, &copies) },
            tables: &tables,
        };
        self.walk(&walk, Phase::Queries, walk.query_units(), scratch);
        self.walk(&walk, Phase::Keys, walk.key_units(), scratch);

        let grad_bias = if self.request.op == Op::BackwardJvp { Role::Grad2Rpb } else { Role::GradRpb };
        if let Some(view) = tensors.output(grad_bias) {
            sum_bias_tables::<R>(bias, self.tables.pieces(), view);
        }
        self.sum_tables::<R>(&tables, tensors, scratch);
    }

    /// The run's tensors, found in the views by role.
    fn operands<R: Real>(
        &self,
        tensors: &mut Tensors<'_, '_, '_>,
        stored: &mut [R],
        bias: &mut [f64],
    ) -> Operands<R> {
        let op = self.request.op;
        let mut result =
            |role: Role| op.result_of(role).and_then(|role| tensors.output(role)).map(Tokens::<R>::output);
        let grad_query = result(Role::Query);
        let grad_key = result(Role::Key);
        let grad_value = result(Role::Value);
        let grad_additional_key = result(Role::AdditionalKey);
        let grad_additional_value = result(Role::AdditionalValue);
        let (tangent_output, tangent_logsumexp) = match op {
            Op::BackwardJvp => (Role::Grad2GradOutput, Role::Grad2GradLogsumexp),
            _ => (Role::TangentOutput, Role::TangentLogsumexp),
        };
        let written =
            [Role::Output, tangent_output].map(|role| tensors.output(role).map(Tokens::<R>::output));
        let written_rows = [Role::Logsumexp, tangent_logsumexp]
            .map(|role| tensors.output(role).map(Tokens::<R>::row_output));
        let tensors = &*tensors;
        let vectors = |role| tensors.input(role).map(Tokens::<R>::input);
        let dual = |role: Role| [vectors(role), role.tangent().and_then(vectors)];
        let rows = |role| tensors.input(role).map(Tokens::<R>::row_input);
        let bias_of = |role| tensors.input(role).map(|view| Bias::new(&self.problem, view));
        let [output, tangent_output] = written;
        let [logsumexp, tangent_logsumexp] = written_rows;
        let slots = self.passes.keys.stored.len();
        let grid = self.problem.neighborhood().axes().each_ref().map(|axis| axis.query_len());
        Operands {
            query: dual(Role::Query),
            key: dual(Role::Key),
            value: dual(Role::Value),
            additional_key: dual(Role::AdditionalKey),
            additional_value: dual(Role::AdditionalValue),
            grad_output: dual(Role::GradOutput),
            grad_logsumexp: [rows(Role::GradLogsumexp), rows(Role::TangentGradLogsumexp)],
            bias: [bias_of(Role::Rpb), bias_of(Role::TangentRpb)],
            output: [vectors(Role::Output).or(output), tangent_output],
            logsumexp: [rows(Role::Logsumexp).or(logsumexp), tangent_logsumexp],
            grad_query,
            grad_key,
            grad_value,
            grad_additional_key,
            grad_additional_value,
            grad_bias: self.wants.rpb.then(|| BiasGradient::new(&self.problem, bias)),
            stored: (slots > 0).then(|| Tokens::contiguous(stored, grid, self.problem.heads(), slots)),
        }
    }

    /// Shares out units that need no more of their scratch than its memory.
    fn share_out(&self, units: usize, scratch: &mut [Line], work: impl Fn(&mut [Line], usize) + Sync) {
        if units > 0 {
            self.crew.share_out(units, scratch, |memory, units| {
                for unit in units {
                    work(memory, unit);
                }
            });
        }
    }

    fn walk<R: Real>(&self, walk: &Walk<'_, R>, phase: Phase, units: usize, scratch: &mut [Line]) {
        if units == 0 {
            return;
        }
        self.crew.share_out(units, scratch, |memory, units| {
            let scratch = self.sizes.carve::<R>(cast_slice_mut(memory));
            let mut desk = Desk { scratch, room: self.mask.as_ref().map(Mask::room) };
            for unit in units {
                let unit = Unit { walk, phase, unit, desk: &mut desk };
                // SAFETY: the instruction set was detected; scratch was just carved by the walk's sizes; the operands
                // are views that live until the run returns; every unit comes to one thread.
                unsafe {
                    match self.crew.isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => <R as Real>::On::<simd::Avx512>::outlined(unit),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => <R as Real>::On::<simd::Avx2>::outlined(unit),
                        _ => <R as Real>::On::<simd::Portable>::outlined(unit),
                    }
                }
            }
        });
    }

    /// Sums the gradient tables of captured tensors into their results.
    fn sum_tables<R: Real>(
        &self,
        tables: &Tables<'_>,
        tensors: &mut Tensors<'_, '_, '_>,
        scratch: &mut [Line],
    ) {
        for (table, capture) in self.tables.captures().enumerate() {
            let role = match self.request.op {
                Op::BackwardJvp => Role::Grad2Capture(capture),
                _ => Role::GradCapture(capture),
            };
            let Some(view) = tensors.output(role) else { continue };
            let result = Entries::new(view);
            // SAFETY: units sum entries of their own, and the walks are done.
            self.share_out(tables.sum_units(&result), scratch, |_, unit| unsafe {
                tables.sum::<R>(table, unit, &result);
            });
        }
    }
}

/// What the threads share out: units that may run in any order, each writing elements of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queries,
    Keys,
}

/// A unit of a phase, to be run with the features of an instruction set.
struct Unit<'w, 'd, 's, 'm, 'a, R: Real> {
    walk: &'w Walk<'a, R>,
    phase: Phase,
    unit: usize,
    desk: &'d mut Desk<'s, 'm, R>,
}

impl<R: Real> Outlined for Unit<'_, '_, '_, '_, '_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        // SAFETY: the caller's.
        unsafe {
            match self.phase {
                Phase::Queries => self.walk.query_unit::<S>(self.unit, self.desk),
                Phase::Keys => self.walk.key_unit::<S>(self.unit, self.desk),
            }
        }
    }
}

impl Engine for Programs {
    fn lines(&self) -> usize {
        self.layout.lines()
    }

    fn config(&self) -> Vec<(String, String)> {
        let shape = |shape: [usize; 3]| shape.map(|n| n.to_string()).join("x");
        let sweeps = self.passes.queries.sweeps().count();
        let mut config = vec![
            ("lanes".to_owned(), shape(self.queries.lane_shape)),
            ("query tile".to_owned(), shape(self.queries.tiles.query_tile())),
            ("key tile".to_owned(), shape(self.queries.tiles.key_tile())),
            ("sweeps".to_owned(), sweeps.to_string()),
        ];
        if self.passes.keys.sweep.codes.iter().any(Option::is_some) {
            config.push(("inverse key tile".to_owned(), shape(self.keys.tiles.key_tile())));
            config.push(("inverse query tile".to_owned(), shape(self.keys.tiles.query_tile())));
        }
        config
    }

    fn run(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        match self.problem.dtype() {
            DType::F64 => self.run_typed::<f64>(tensors, memory),
            _ => self.run_typed::<f32>(tensors, memory),
        }
    }
}

fn unsupported(program: &Program, op: Op, field: Field, expr: natten_core::program::Expr) -> Error {
    let what = match program.place_of(expr) {
        Some(place) => format!("{op} of a program with {place}"),
        None => format!("{op} of a program with {}", field.name()),
    };
    Error::unsupported(NAME, what, "no engine of this backend does it")
}

/// The sizes of a thread's scratch.
fn sizes(
    problem: &Problem,
    op: Op,
    wants: &Involved,
    lanes: usize,
    tilings: [&Pass; 2],
    passes: &Passes,
    mask: Option<&Mask>,
) -> ScratchSizes {
    let width = 2 * lanes;
    let dims = [problem.head_dim(), problem.head_dim_v()];
    let any =
        |of: fn(&SweepCode) -> [bool; 4]| std::array::from_fn(|v| passes.codes().any(|code| of(code)[v]));
    let steps = &passes.queries.steps;
    let writes_output = steps.iter().any(|step| matches!(step, Step::Output));
    let reads_output = steps.iter().any(|step| matches!(step, Step::Delta(_)));
    let rows = steps.iter().filter_map(|step| match step {
        Step::Row(row) => Some(&row.code),
        _ => None,
    });
    let masks = mask.into_iter().flat_map(|mask| [mask.code(Direction::Keys), mask.code(Direction::Queries)]);
    let codes = rows.chain(masks).map(|code| code.scratch(width)).max().unwrap_or(0);
    ScratchSizes {
        width,
        dims,
        stride: dims.map(|dim| dim.checked_next_multiple_of(lanes).unwrap_or(usize::MAX)),
        rows: tilings.iter().map(|pass| pass.rows).max().unwrap_or(0),
        groups: tilings.iter().map(|pass| pass.groups).max().unwrap_or(0),
        extents: tilings.iter().map(|pass| pass.masks).max().unwrap_or(0),
        streamed: any(|code| code.streamed),
        stationary: any(|code| code.stationary),
        // In the order of `Sums`. Results of which nothing is a part are zero, and are written too.
        sums: [
            writes_output || reads_output || wants.value || wants.additional_value,
            writes_output && matches!(op, Op::ForwardJvp | Op::BackwardJvp),
            wants.query || wants.key || wants.additional_key,
        ],
        tiles: passes.codes().map(|code| code.tiles).max().unwrap_or(0),
        lane_numbers: passes.queries.numbers.len(),
        row_numbers: passes.keys.stored.len(),
        code: passes.codes().map(|code| code.scratch(width)).max().unwrap_or(0).max(codes),
    }
}
