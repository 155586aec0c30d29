//! A plan of the CPU: everything chosen, nothing left to decide. It checks what is bound and hands it to its engine.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use bytemuck::Zeroable;
use natten_core::geometry::Coverage;
use natten_core::{
    Bindings, Cost, DeviceInfo, Error, Op, OpRequest, Plan, PlanOptions, PlanReport, Problem, Queue, Result,
    Submission, TensorSpec, Workspace,
};
use rayon::ThreadPool;

use crate::NAME;
use crate::engine::{Crew, Engine, Line, Tensors};
use crate::isa::Isa;
use crate::linear::Linear;
use crate::program::Programs;
use crate::slots::Unfused;
use crate::softmax::Softmax;
use crate::view::{View, ViewMut};

/// The engine that does an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Linear,
    Softmax,
    Programs,
    Unfused,
}

impl Kind {
    fn of(problem: &Problem, request: &OpRequest) -> Result<Self> {
        match request.op {
            _ if problem.program().decay().is_some() => Linear::supports(problem).map(|()| Self::Linear),
            Op::Forward | Op::Backward if problem.program().is_plain_softmax() => Ok(Self::Softmax),
            Op::Qk | Op::QkJvp | Op::QkBackward | Op::Av | Op::AvJvp | Op::AvBackward => Ok(Self::Unfused),
            Op::Forward | Op::ForwardJvp | Op::Backward | Op::BackwardJvp => {
                Programs::supports(problem, request).map(|()| Self::Programs)
            }
            op => Err(Error::unsupported(NAME, op.name(), "no engine of this backend does it")),
        }
    }
}

/// A prepared operation on the CPU.
#[derive(Debug)]
pub struct CpuPlan {
    tensors: Vec<TensorSpec>,
    report: PlanReport,
    engine: Box<dyn Engine>,
}

impl CpuPlan {
    /// Whether an engine does this.
    pub(crate) fn supports(problem: &Problem, request: &OpRequest) -> Result<()> {
        problem.tensors(request)?;
        Kind::of(problem, request).map(|_| ())
    }

    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        device: &DeviceInfo,
        isa: Isa,
        pool: Option<Arc<ThreadPool>>,
    ) -> Result<Self> {
        Self::supports(problem, request)?;
        let crew = Crew::new(isa, pool);
        let mut config =
            vec![("isa".to_owned(), isa.name().to_owned()), ("threads".to_owned(), crew.threads.to_string())];
        let (engine, coverage): (Box<dyn Engine>, Coverage) = match Kind::of(problem, request)? {
            Kind::Linear => {
                let engine = Linear::new(problem, request, options, crew)?;
                let coverage = engine.coverage();
                (Box::new(engine), coverage)
            }
            Kind::Softmax => {
                let engine = Softmax::new(problem, request, options, crew)?;
                let coverage = engine.coverage();
                (Box::new(engine), coverage)
            }
            Kind::Programs => {
                let engine = Programs::new(problem, request, options, crew)?;
                let coverage = engine.coverage();
                (Box::new(engine), coverage)
            }
            Kind::Unfused => {
                let engine = Unfused::new(problem, request, options, crew)?;
                let coverage = engine.coverage();
                (Box::new(engine), coverage)
            }
        };
        config.extend(engine.config());
        let cost = Cost::of(problem, request, &coverage, device);
        let bytes = engine.lines().saturating_mul(size_of::<Line>());
        Ok(Self {
            tensors: problem.tensors(request)?,
            report: PlanReport::new(NAME, config, coverage, cost, bytes),
            engine,
        })
    }

    /// The inputs, and the outputs.
    fn specs(&self) -> (&[TensorSpec], &[TensorSpec]) {
        self.tensors.split_at(self.tensors.iter().filter(|spec| !spec.is_output).count())
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
        if memory.len() < self.engine.lines() {
            return Err(Error::invalid(
                "workspace",
                format!("{bytes} bytes"),
                format!("this plan needs {}", self.report.workspace),
                "call new_workspace of the plan that runs",
            ));
        }
        let start = Instant::now();
        self.engine.run(&mut Tensors::new(self.specs(), inputs, outputs), memory);
        Ok(Submission::done(start.elapsed()))
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
        let lines = self.engine.lines();
        let bytes = self.report.workspace;
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
        // On the stack: a run allocates nothing.
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
const MAX_TENSORS: usize = 64;
