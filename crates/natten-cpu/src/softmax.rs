//! The engine of plain softmax attention, forward and backward: kernels of their own, the scores never held.

use bytemuck::cast_slice_mut;
use natten_core::geometry::Coverage;
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use crate::element::Real;
use crate::engine::{Crew, Engine, Line, Tensors, lines};
use crate::isa::Isa;
use crate::kernel::{
    Bias, BiasGradient, Kernel, Operands, Phase, Scratch, ScratchSizes, bias_partials_per_head,
    sum_bias_tables,
};
use crate::lanes::Direction;
use crate::simd::{self, lanes};
use crate::tiling::Pass;
use crate::tokens::Tokens;

/// Where the parts of a workspace lie, in lines.
#[derive(Clone, Copy, Debug)]
struct WorkspaceLayout {
    /// Δ, a number a query and head.
    delta: usize,
    /// Partial tables of the bias gradient.
    tables: usize,
    /// One thread's scratch.
    scratch: usize,
    threads: usize,
}

impl WorkspaceLayout {
    const fn lines(&self) -> usize {
        self.delta.saturating_add(self.tables).saturating_add(self.scratch.saturating_mul(self.threads))
    }
}

/// Softmax attention, prepared.
#[derive(Debug)]
pub(crate) struct Softmax {
    problem: Problem,
    request: OpRequest,
    crew: Crew,
    queries: Pass,
    keys: Pass,
    sizes: ScratchSizes,
    layout: WorkspaceLayout,
}

impl Softmax {
    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        crew: Crew,
    ) -> Result<Self> {
        let accumulator = problem.dtype().accumulator();
        let lanes = lanes(crew.isa, problem.dtype());
        let pass = |direction| {
            Pass::new(direction, problem, options, 2 * lanes, accumulator.size())
                .map(|pass| pass.with_rows_for(problem.additional_tokens()))
        };
        let (queries, keys) = (pass(Direction::Keys)?, pass(Direction::Queries)?);
        let dims = [problem.head_dim(), problem.head_dim_v()];
        let sizes = match request.op {
            Op::Forward => ScratchSizes::new(lanes, dims, [&queries]),
            _ => ScratchSizes::new(lanes, dims, [&queries, &keys]),
        };
        let is_backward = request.op == Op::Backward;
        let rows: usize = problem.shape(Role::Logsumexp).iter().product();
        let table: usize = if request.wants.contains(Role::GradRpb) {
            problem.shape(Role::GradRpb)[1..].iter().product()
        } else {
            0
        };
        let tables = problem.heads() * bias_partials_per_head(problem.heads());
        let layout = WorkspaceLayout {
            delta: if is_backward { lines(rows * accumulator.size()) } else { 0 },
            tables: lines(tables.saturating_mul(table).saturating_mul(size_of::<f64>())),
            scratch: lines(sizes.elements().saturating_mul(accumulator.size())),
            threads: crew.threads,
        };
        Ok(Self { problem: problem.clone(), request: *request, crew, queries, keys, sizes, layout })
    }

    /// The boxes that the forward walk visits.
    pub(crate) fn coverage(&self) -> Coverage {
        coverage_of(&self.problem, &self.queries.tiles)
    }

    fn run_typed<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        let (delta, rest) = memory.split_at_mut(self.layout.delta);
        let (tables, rest) = rest.split_at_mut(self.layout.tables);
        let scratch = &mut rest[..self.layout.scratch * self.layout.threads];
        let delta: &mut [R] = cast_slice_mut(delta);
        let tables: &mut [f64] = cast_slice_mut(tables);
        let kernel = self.kernel::<R>(tensors, delta, tables);
        match self.request.op {
            Op::Backward => {
                self.share_out(&kernel, Phase::Delta, scratch);
                self.share_out(&kernel, Phase::Gradients, scratch);
            }
            _ => self.share_out(&kernel, Phase::Forward, scratch),
        }
        // With batch 0 too: the bias has no batch axis, and the sum of no boxes is zero.
        if let Some(view) = tensors.output(Role::GradRpb) {
            sum_bias_tables::<R>(tables, bias_partials_per_head(self.problem.heads()), view);
        }
    }

    /// The run's tensors, found in the views by role.
    fn kernel<R: Real>(
        &self,
        tensors: &mut Tensors<'_, '_, '_>,
        delta: &mut [R],
        tables: &mut [f64],
    ) -> Kernel<'_, R> {
        let mut output = |role| tensors.output(role).map(Tokens::<R>::output);
        let grad_query = output(Role::GradQuery);
        let grad_key = output(Role::GradKey);
        let grad_value = output(Role::GradValue);
        let grad_additional_key = output(Role::GradAdditionalKey);
        let grad_additional_value = output(Role::GradAdditionalValue);
        let written = output(Role::Output);
        let logsumexp = tensors.output(Role::Logsumexp).map(Tokens::<R>::row_output);
        let input = |role| tensors.input(role);
        let vectors = |role| input(role).map(Tokens::<R>::input);
        // `Problem::tensors` always lists these three.
        let always =
            |role| vectors(role).unwrap_or_else(|| unreachable!("{role} is an input of every operation"));
        let delta = (self.request.op == Op::Backward)
            .then(|| Tokens::<R>::rows(delta, self.queries.tiles.axes(), self.problem.heads()));
        let operands = Operands {
            query: always(Role::Query),
            key: always(Role::Key),
            value: always(Role::Value),
            bias: input(Role::Rpb).map(|view| Bias::new(&self.problem, view)),
            additional: vectors(Role::AdditionalKey).zip(vectors(Role::AdditionalValue)),
            output: vectors(Role::Output).or(written),
            logsumexp: input(Role::Logsumexp).map(Tokens::<R>::row_input).or(logsumexp),
            grad_output: vectors(Role::GradOutput),
            grad_logsumexp: input(Role::GradLogsumexp).map(Tokens::<R>::row_input),
            delta,
            grad_query,
            grad_key,
            grad_value,
            grad_additional_key,
            grad_additional_value,
            grad_bias: self
                .request
                .wants
                .contains(Role::GradRpb)
                .then(|| BiasGradient::new(&self.problem, tables)),
        };
        Kernel {
            problem: &self.problem,
            queries: &self.queries,
            keys: &self.keys,
            sizes: &self.sizes,
            operands,
        }
    }

    fn share_out<R: Real>(&self, kernel: &Kernel<'_, R>, phase: Phase, scratch: &mut [Line]) {
        self.crew.share_out(kernel.units(phase), scratch, |memory, units| {
            let mut scratch = self.sizes.carve::<R>(cast_slice_mut(memory));
            for unit in units {
                // SAFETY: the instruction set was detected; scratch was just carved by the kernel's sizes; the operands
                // are views that live until the run returns; every unit comes to one thread.
                unsafe { run_unit(self.crew.isa, kernel, phase, unit, &mut scratch) };
            }
        });
    }
}

impl Engine for Softmax {
    fn lines(&self) -> usize {
        self.layout.lines()
    }

    fn config(&self) -> Vec<(String, String)> {
        let shape = |shape: [usize; 3]| shape.map(|n| n.to_string()).join("x");
        let mut config = vec![
            ("lanes".to_owned(), shape(self.queries.lane_shape)),
            ("query tile".to_owned(), shape(self.queries.tiles.query_tile())),
            ("key tile".to_owned(), shape(self.queries.tiles.key_tile())),
        ];
        if self.request.op == Op::Backward {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<R: Real>(kernel: &Kernel<'_, R>, phase: Phase, unit: usize, scratch: &mut Scratch<'_, R>) {
    // SAFETY: the caller's.
    unsafe { kernel.run::<<R as Real>::On<simd::Avx2>>(phase, unit, scratch) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn run_avx512<R: Real>(
    kernel: &Kernel<'_, R>,
    phase: Phase,
    unit: usize,
    scratch: &mut Scratch<'_, R>,
) {
    // SAFETY: the caller's.
    unsafe { kernel.run::<<R as Real>::On<simd::Avx512>>(phase, unit, scratch) };
}

/// Runs a unit with the kernels of an instruction set.
///
/// # Safety
/// The processor has `isa`; the rest as [`Kernel::run`].
unsafe fn run_unit<R: Real>(
    isa: Isa,
    kernel: &Kernel<'_, R>,
    phase: Phase,
    unit: usize,
    scratch: &mut Scratch<'_, R>,
) {
    // SAFETY: the caller's.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => run_avx512(kernel, phase, unit, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => run_avx2(kernel, phase, unit, scratch),
            _ => kernel.run::<<R as Real>::On<simd::Portable>>(phase, unit, scratch),
        }
    }
}
