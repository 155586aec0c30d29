//! A plan of the CPU: everything chosen, nothing left to decide; and its run, which shares units out to threads.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytemuck::{Pod, Zeroable};
use natten_core::{
    Bindings, Cost, DType, DeviceInfo, Error, Op, OpRequest, Plan, PlanOptions, PlanReport, Problem, Queue,
    Result, Role, Submission, TensorSpec, Workspace, coverage_of,
};
use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::NAME;
use crate::element::Real;
use crate::isa::Isa;
use crate::kernel::{
    Bias, BiasGradient, Kernel, Operands, Phase, Scratch, ScratchSizes, bias_partials_per_head,
};
use crate::lanes::Direction;
use crate::simd::{self, Simd};
use crate::tiling::Pass;
use crate::tokens::{Entries, Tokens};
use crate::view::{View, ViewMut};

/// A cache line: what workspaces are made of.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: bytes, all of which may be zero.
unsafe impl Zeroable for Line {}
// SAFETY: as above, without padding: 64 bytes aligned to 64.
unsafe impl Pod for Line {}

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

    const fn bytes(&self) -> usize {
        self.lines().saturating_mul(size_of::<Line>())
    }
}

/// A prepared operation on the CPU.
#[derive(Debug)]
pub struct CpuPlan {
    problem: Problem,
    request: OpRequest,
    tensors: Vec<TensorSpec>,
    report: PlanReport,
    isa: Isa,
    queries: Pass,
    keys: Pass,
    sizes: ScratchSizes,
    layout: WorkspaceLayout,
    pool: Option<Arc<ThreadPool>>,
}

/// Lanes of a vector of the type that `dtype` is computed in.
fn lanes(isa: Isa, dtype: DType) -> usize {
    fn of<I: simd::Isa>(dtype: DType) -> usize {
        if dtype == DType::F64 { <I::F64 as Simd>::LANES } else { <I::F32 as Simd>::LANES }
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => of::<simd::Avx512>(dtype),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => of::<simd::Avx2>(dtype),
        _ => of::<simd::Portable>(dtype),
    }
}

impl CpuPlan {
    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        device: &DeviceInfo,
        isa: Isa,
        pool: Option<Arc<ThreadPool>>,
    ) -> Result<Self> {
        let tensors = problem.tensors(request)?;
        let accumulator = problem.dtype().accumulator();
        let lanes = lanes(isa, problem.dtype());
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
        let threads =
            pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads());
        let lines = |bytes: usize| bytes.div_ceil(size_of::<Line>());
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
            threads,
        };
        let coverage = coverage_of(problem, &queries.tiles);
        let shape = |shape: [usize; 3]| shape.map(|n| n.to_string()).join("x");
        let mut config = vec![
            ("isa".to_owned(), isa.name().to_owned()),
            ("threads".to_owned(), threads.to_string()),
            ("lanes".to_owned(), shape(queries.lane_shape)),
            ("query tile".to_owned(), shape(queries.tiles.query_tile())),
            ("key tile".to_owned(), shape(queries.tiles.key_tile())),
        ];
        if is_backward {
            config.push(("inverse key tile".to_owned(), shape(keys.tiles.key_tile())));
            config.push(("inverse query tile".to_owned(), shape(keys.tiles.query_tile())));
        }
        let cost = Cost::of(problem, request, &coverage, device);
        let report = PlanReport::new(NAME, config, coverage, cost, layout.bytes());
        Ok(Self {
            problem: problem.clone(),
            request: *request,
            tensors,
            report,
            isa,
            queries,
            keys,
            sizes,
            layout,
            pool,
        })
    }

    /// The inputs, and the outputs.
    fn specs(&self) -> (&[TensorSpec], &[TensorSpec]) {
        self.tensors.split_at(self.tensors.iter().filter(|spec| !spec.is_output).count())
    }

    /// The number of an output among the outputs.
    fn output_index(&self, role: Role) -> Option<usize> {
        self.specs().1.iter().position(|spec| spec.role == role)
    }

    /// The typed entry: runs on borrowed memory, without a copy. Inputs and outputs are in the order of
    /// [`Plan::tensors`].
    ///
    /// # Errors
    /// [`Error::Invalid`] where the views or the workspace do not fit the plan.
    pub fn run_views(
        &self,
        inputs: &[View<'_>],
        outputs: &mut [ViewMut<'_>],
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        let (input_specs, output_specs) = self.specs();
        for (what, given, expected) in
            [("inputs", inputs.len(), input_specs.len()), ("outputs", outputs.len(), output_specs.len())]
        {
            if given != expected {
                return Err(Error::invalid(
                    what,
                    format!("{given} views"),
                    format!("the plan has {expected}"),
                    "bind the tensors that Plan::tensors lists, in its order",
                ));
            }
        }
        for (spec, view) in input_specs.iter().zip(inputs) {
            view.check(spec)?;
        }
        for (spec, view) in output_specs.iter().zip(outputs.iter()) {
            view.check(spec)?;
        }
        let bytes = workspace.bytes();
        let memory = workspace.memory::<Vec<Line>>()?;
        if memory.len() < self.layout.lines() {
            return Err(Error::invalid(
                "workspace",
                format!("{bytes} bytes"),
                format!("this plan needs {}", self.report.workspace),
                "call new_workspace of the plan that runs",
            ));
        }
        let start = Instant::now();
        match self.problem.dtype() {
            DType::F64 => self.run_typed::<f64>(inputs, outputs, memory),
            _ => self.run_typed::<f32>(inputs, outputs, memory),
        }
        Ok(Submission::done(start.elapsed()))
    }

    fn run_typed<R: Real>(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>], memory: &mut [Line]) {
        let (delta, rest) = memory.split_at_mut(self.layout.delta);
        let (tables, rest) = rest.split_at_mut(self.layout.tables);
        let scratch = &mut rest[..self.layout.scratch * self.layout.threads];
        let delta: &mut [R] = bytemuck::cast_slice_mut(delta);
        let tables: &mut [f64] = bytemuck::cast_slice_mut(tables);
        let kernel = self.kernel::<R>(inputs, outputs, delta, tables);
        match self.request.op {
            Op::Backward => {
                self.share_out(&kernel, Phase::Delta, scratch);
                self.share_out(&kernel, Phase::Gradients, scratch);
            }
            _ => self.share_out(&kernel, Phase::Forward, scratch),
        }
        // With batch 0 too: the bias has no batch axis, and the sum of no boxes is zero.
        self.sum_tables::<R>(tables, outputs);
    }

    /// The run's tensors, found in the views by role.
    fn kernel<R: Real>(
        &self,
        inputs: &[View<'_>],
        outputs: &mut [ViewMut<'_>],
        delta: &mut [R],
        tables: &mut [f64],
    ) -> Kernel<'_, R> {
        let input = |role| self.specs().0.iter().position(|spec| spec.role == role).map(|i| &inputs[i]);
        let mut output = |role| self.output_index(role).map(|i| Tokens::<R>::output(&mut outputs[i]));
        let grad_query = output(Role::GradQuery);
        let grad_key = output(Role::GradKey);
        let grad_value = output(Role::GradValue);
        let grad_additional_key = output(Role::GradAdditionalKey);
        let grad_additional_value = output(Role::GradAdditionalValue);
        let written = output(Role::Output);
        let logsumexp = self.output_index(Role::Logsumexp).map(|i| Tokens::<R>::row_output(&mut outputs[i]));
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

    /// Runs the units of a phase on all threads. Each takes the next unit when it is done with one; which thread runs a
    /// unit changes nothing about its result.
    fn share_out<R: Real>(&self, kernel: &Kernel<'_, R>, phase: Phase, scratch: &mut [Line]) {
        let units = kernel.units(phase);
        let next = AtomicUsize::new(0);
        let work = |lines: &mut [Line]| {
            let mut scratch = self.sizes.carve::<R>(bytemuck::cast_slice_mut(lines));
            loop {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                if unit >= units {
                    break;
                }
                // SAFETY: the instruction set was detected; scratch was just carved by the kernel's sizes; the operands
                // are views that live until `run_views` returns; the counter gives every unit to one thread.
                unsafe { run_unit(self.isa, kernel, phase, unit, &mut scratch) };
            }
        };
        let per_thread = self.layout.scratch.max(1);
        let mut run = || scratch.par_chunks_mut(per_thread).with_max_len(1).for_each(work);
        match &self.pool {
            Some(pool) => pool.install(run),
            None => run(),
        }
    }

    /// Sums the partial tables of the bias gradient, in their order.
    fn sum_tables<R: Real>(&self, tables: &[f64], outputs: &mut [ViewMut<'_>]) {
        let Some(index) = self.output_index(Role::GradRpb) else { return };
        let (heads, parts) = (self.problem.heads(), bias_partials_per_head(self.problem.heads()));
        let entries: usize = self.specs().1[index].shape[1..].iter().product();
        let table = Entries::new(&mut outputs[index]);
        for head in 0..heads {
            for entry in 0..entries {
                let sum: f64 = (0..parts).map(|part| tables[(head * parts + part) * entries + entry]).sum();
                table.set(head * entries + entry, R::of(sum));
            }
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

impl Plan for CpuPlan {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn report(&self) -> &PlanReport {
        &self.report
    }

    fn new_workspace(&self) -> Result<Workspace> {
        let lines = self.layout.lines();
        let bytes = self.layout.bytes();
        let mut memory: Vec<Line> = Vec::new();
        memory.try_reserve_exact(lines).map_err(|_| Error::OutOfMemory { needed: bytes, available: None })?;
        memory.resize(lines, Line::zeroed());
        Ok(Workspace::new(bytes, memory))
    }

    fn run(
        &self,
        _queue: &dyn Queue,
        bindings: Bindings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Submission> {
        bindings.check(&self.tensors)?;
        // At most six inputs of the problem, and four more of backward; six gradients: on the stack.
        let mut inputs = [None; MAX_TENSORS];
        for (slot, tensor) in inputs.iter_mut().zip(bindings.inputs) {
            *slot = Some(View::of(tensor)?);
        }
        let mut outputs = [const { None }; MAX_TENSORS];
        let count = bindings.outputs.len();
        for (slot, tensor) in outputs.iter_mut().zip(bindings.outputs) {
            *slot = Some(ViewMut::of(tensor)?);
        }
        let inputs = inputs.map(|view| view.unwrap_or_default());
        let mut outputs = outputs.map(Option::unwrap_or_default);
        self.run_views(&inputs[..bindings.inputs.len()], &mut outputs[..count], workspace)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// More than any operation has of inputs, and of outputs.
const MAX_TENSORS: usize = 16;
