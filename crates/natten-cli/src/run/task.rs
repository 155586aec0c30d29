//! From the command line and the input file to what is to be done: the problem, the operations in the order in which
//! they run, and every tensor that they take, checked.

use std::collections::BTreeMap;

use natten::{Error, Op, OpRequest, Problem, Result, Role, RoleSet, TensorSpec};

use super::args::RunArgs;
use super::inputs::{Inputs, Loader};
use super::problem;
use crate::console;
use crate::tensors::TensorFile;

/// The work of a run.
pub(super) struct Task {
    pub(super) problem: Problem,
    pub(super) steps: Vec<Step>,
    pub(super) inputs: Inputs,
}

/// One operation.
pub(super) struct Step {
    pub(super) request: OpRequest,
    /// Whether its results are written. Those of a forward pass that only serves backward are not.
    pub(super) is_asked: bool,
    /// Whether its results are inputs of backward.
    pub(super) serves_backward: bool,
}

impl Task {
    /// Reads everything that the operations need.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Program`] where the command line and the tensors do not fit each other.
    pub(super) fn read(args: &RunArgs, file: &TensorFile) -> Result<Self> {
        let ops = args.ops();
        let mut loader = Loader::new(args, file);
        loader.load_shaping(&ops)?;
        let rank = problem::rank(args, loader.inputs())?;
        let captures = loader.load_captures()?;
        let program = args.program.build(rank, captures)?;
        loader.number_captures(&program);
        let problem = problem::describe(args, loader.inputs(), loader.dtype(), program)?;

        let steps = steps(args, &ops, &problem, &mut loader)?;
        check_results(&problem, &steps)?;
        let mut specs = Vec::new();
        for step in &steps {
            specs.extend(problem.tensors(&step.request)?.into_iter().map(|spec| (step.request.op, spec)));
        }
        check_names(specs.iter().map(|(_, spec)| spec))?;
        for (op, spec) in specs.iter().filter(|(_, spec)| !spec.is_output) {
            let is_forwards = *op == Op::Backward && matches!(spec.role, Role::Output | Role::Logsumexp);
            if !is_forwards {
                loader.load(spec, &format!("{op} needs it"))?;
            } else if args.reuses_forward() {
                loader.load(spec, "--reuse-forward takes it from the input file")?;
            }
        }
        loader.note_unused();
        if args.reuse_forward && !args.reuses_forward() {
            console::note("--reuse-forward does nothing: it is for --op backward without forward");
        }
        Ok(Self { problem, steps, inputs: loader.into_inputs() })
    }
}

/// What runs, in this order: a forward pass first, where it is asked for or backward needs it.
fn steps(args: &RunArgs, ops: &[Op], problem: &Problem, loader: &mut Loader<'_>) -> Result<Vec<Step>> {
    let needs_forward = ops.contains(&Op::Backward)
        && !args.reuses_forward()
        && problem.inputs_of(Op::Backward).contains(Role::Output);
    let mut steps = Vec::new();
    if needs_forward && !ops.contains(&Op::Forward) {
        let request = OpRequest::forward(problem);
        steps.push(Step { request, is_asked: false, serves_backward: true });
    }
    for &op in ops {
        let request = request(op, problem, loader)?;
        steps.push(Step { request, is_asked: true, serves_backward: needs_forward && op == Op::Forward });
    }
    Ok(steps)
}

/// An operation with every optional input that the file has.
fn request(op: Op, problem: &Problem, loader: &mut Loader<'_>) -> Result<OpRequest> {
    let is_there = |role: &Role| loader.has(&problem.name(*role));
    let mut given: RoleSet = problem.optional_inputs_of(op).iter().filter(is_there).collect();
    if op == Op::BackwardJvp {
        // The tangent of a cotangent that is not there is that of a zero, whose second gradient is a result too.
        for role in [Role::GradLogsumexp, Role::GradFinalState] {
            let has_tangent = role.tangent().is_some_and(|tangent| given.contains(tangent));
            if has_tangent && !given.contains(role) {
                loader.insert_zeros(role, problem)?;
                given = given.with(role);
            }
        }
    }
    let request = OpRequest::of(op, problem, given.iter());
    if op != Op::BackwardJvp {
        return Ok(request);
    }
    let always = [Role::Query, Role::Key, Role::Value, Role::GradOutput];
    let is_wanted = |role: &Role| {
        role.second_gradient_of().is_some_and(|of| {
            always.contains(&of) || of.tangent().is_some_and(|tangent| given.contains(tangent))
        })
    };
    Ok(request.wanting(request.wants.iter().filter(is_wanted)))
}

/// Refuses two operations that write tensors of one name, of which only one could be kept.
fn check_results(problem: &Problem, steps: &[Step]) -> Result<()> {
    let mut writers: BTreeMap<Role, Op> = BTreeMap::new();
    for Step { request, .. } in steps.iter().filter(|step| step.is_asked) {
        for role in request.wants.iter() {
            if let Some(other) = writers.insert(role, request.op) {
                return Err(Error::invalid(
                    "op",
                    format!("{other},{}", request.op),
                    format!("both write {}", problem.name(role)),
                    "run them one by one",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses captured tensors whose names, or those of their derivatives, are those of other tensors.
fn check_names<'a>(specs: impl Iterator<Item = &'a TensorSpec>) -> Result<()> {
    let mut roles: BTreeMap<&str, Role> = BTreeMap::new();
    for spec in specs {
        if roles.insert(spec.name(), spec.role).is_some_and(|other| other != spec.role) {
            return Err(Error::invalid(
                "capture",
                format!("a tensor whose name makes it '{}'", spec.name()),
                "the operations have another tensor of this name",
                "capture it under another name, as in --capture bias=rpb",
            ));
        }
    }
    Ok(())
}
