//! The four fused operations on the walks: which sweeps there are, which functions they call, and what each launch is
//! handed.

use natten_core::program::derive::depends_on;
use natten_core::program::{
    Algorithm, GradStages, Involved, LoadGradient, Loads, Lowered, Primal, Pushed, Reduce, StageElement, Var,
};
use natten_core::{Op, OpRequest, Problem, Result, Role};

use super::functions::{Functions, Wanted, of_row, stage_kind};
use super::tensors::{Place, Places, Vectors};
use super::{Builder, pieces, text, tiles};
use crate::family::Argument;

/// What an operation is made of.
pub(super) struct Attention<'p> {
    problem: &'p Problem,
    op: Op,
    pub(super) wants: Involved,
    /// On the window's keys, and on additional ones.
    functions: Vec<Functions<'p>>,
    /// The stages that something depends on, and of those the ones that are swept for.
    needed: Vec<u8>,
    swept: Vec<u8>,
    /// Whether the cotangents of the stages are wanted, and whether the inner product with the output is for them.
    uses_cotangents: bool,
    uses_delta: bool,
}

impl<'p> Attention<'p> {
    /// The operation `request.op` on vectors that have been through the program's functions, of which `tangents` says
    /// which have tangents.
    pub(super) fn new(
        problem: &'p Problem,
        request: &OpRequest,
        tangents: &Involved,
        wants: Involved,
    ) -> Self {
        let op = request.op;
        let has_cotangent =
            problem.has_logsumexp() && request.gives(Role::GradLogsumexp) || tangents.logsumexp;
        let given = match op.is_forward_mode() {
            true => tangents.given(),
            false => Default::default(),
        };
        let kinds: &[bool] = if problem.additional_tokens() > 0 { &[false, true] } else { &[false] };
        let functions = kinds
            .iter()
            .map(|&is_additional| {
                let mut lowered = Lowered::new(problem.program(), is_additional, &given);
                lowered.drop_zeros(has_cotangent);
                Functions::new(problem, lowered, is_additional)
            })
            .collect();
        let mut this = Self {
            problem,
            op,
            wants,
            functions,
            needed: Vec::new(),
            swept: Vec::new(),
            uses_cotangents: false,
            uses_delta: false,
        };
        this.find_needs();
        this
    }

    fn is_backward(&self) -> bool {
        matches!(self.op, Op::Backward | Op::BackwardJvp)
    }

    fn lowered(&self) -> &Lowered {
        &self.functions[0].lowered
    }

    /// Whether a function that the operation calls depends on a variable.
    fn uses(&self, var: Var) -> bool {
        self.functions.iter().any(|functions| {
            let lowered = &functions.lowered;
            let mut called: Vec<Pushed> = vec![lowered.weight];
            if self.is_backward() {
                called.push(lowered.grad_score);
                called.extend(lowered.loads.iter().map(|load| load.gradient));
                called.extend(lowered.grad_stages.cotangents());
            }
            let mut exprs = called.iter().flat_map(|pushed| [pushed.value, pushed.tangent]);
            exprs.any(|expr| depends_on(&lowered.graph, expr, var))
        })
    }

    fn find_needs(&mut self) {
        let stages = self.lowered().stages.iter().enumerate();
        let is_needed = |k: u8, stage: &StageElement| {
            let vars = [Var::Stage(k), Var::Tangent(Primal::Stage(k))];
            stage.reduce == Reduce::Lse || vars.into_iter().any(|var| self.uses(var))
        };
        let needed = stages.filter(|(k, stage)| is_needed(*k as u8, stage)).map(|(k, _)| k as u8).collect();
        let given = self.lowered().logsumexp.filter(|_| self.op == Op::Backward);
        let count = self.lowered().stages.len() as u8;
        let vars = (0..count).flat_map(|k| [Var::GradStage(k), Var::Tangent(Primal::GradStage(k))]);
        let uses_cotangents = self.is_backward() && vars.into_iter().any(|var| self.uses(var));
        let of_row = matches!(self.lowered().grad_stages, GradStages::OfRow(_));
        let deltas = [Var::Delta, Var::Tangent(Primal::Delta)];
        self.uses_delta = uses_cotangents && of_row && deltas.into_iter().any(|var| self.uses(var));
        self.uses_cotangents = uses_cotangents;
        self.needed = needed;
        self.swept = self.needed.iter().copied().filter(|&k| Some(k) != given).collect();
    }

    /// The exponential stage of a forward pass that finds stages and output in one sweep.
    fn one_sweep(&self) -> Option<Option<u8>> {
        match self.lowered().algorithm {
            Algorithm::OnePass { exponential, .. } if self.op == Op::Forward && self.wants.output => {
                Some(exponential)
            }
            _ => None,
        }
    }

    fn sweeps_output(&self) -> bool {
        self.wants.output || self.uses_delta && self.op == Op::BackwardJvp
    }

    /// The launches, on tensors that lie where `places` says.
    pub(super) fn build(&self, builder: &mut Builder<'_>, places: &mut Places) -> Result<()> {
        if self.is_backward() {
            let stages = self.lowered().stages.len().max(1) as u64;
            let rows: u64 =
                self.problem.shape(Role::Output).iter().rev().skip(1).map(|&n| n as u64).product();
            places.numbers = Some(builder.reserve(rows.saturating_mul(1 + 4 * stages)));
        }
        if self.uses_delta && self.op == Op::BackwardJvp {
            for name in ["to_output", "to_output_again"] {
                places.put(name, Place::Workspace(builder.reserve_like(Role::Output), Vectors::Outputs));
            }
        }
        self.queries(builder, places)?;
        if self.is_backward() {
            self.keys(builder, places)?;
            self.scatters(builder, places)?;
        }
        Ok(())
    }

    /// Everything in front of a walk, with the functions of these names.
    fn source<'w>(
        &self,
        builder: &Builder<'_>,
        places: &Places,
        written: &[&str],
        wanted: &dyn Fn(bool) -> Vec<Wanted<'w>>,
        mut defines: Vec<(&'static str, String)>,
    ) -> Result<(String, Vec<Argument>)> {
        let flag = |is: bool| i32::from(is).to_string();
        defines.push(("STAGES", self.lowered().stages.len().max(1).to_string()));
        defines.push(("TANGENTS", flag(self.op.is_forward_mode())));
        defines.push(("UNFUSED", flag(false)));
        let (tensors, arguments) = places.text(self.problem, written);
        let mut source = builder.prelude(&defines) + STAGE_KINDS + &tensors;
        for functions in &self.functions {
            source += &functions.text(&wanted(functions.is_additional()))?;
        }
        Ok((source + &self.stage_functions() + text::WALK, arguments))
    }

    fn queries(&self, builder: &mut Builder<'_>, places: &Places) -> Result<()> {
        let flag = |is: bool| i32::from(is).to_string();
        let sweeps_tangents = self.op.is_forward_mode() && !self.needed.is_empty();
        let of_pairs = matches!(self.lowered().grad_stages, GradStages::OfPairs(_));
        let grad_stages = match (self.uses_cotangents, of_pairs) {
            (false, _) => 0,
            (_, false) => 1,
            (_, true) => 2,
        };
        let grads_query = self.is_backward() && self.wants.query;
        let one_sweep = self.one_sweep();
        let mut defines = vec![
            ("SWEEP_STAGES", flag(!self.swept.is_empty() && one_sweep.is_none())),
            ("SWEEP_STAGE_TANGENTS", flag(sweeps_tangents)),
            ("SWEEP_OUTPUT", flag(self.sweeps_output() && one_sweep.is_none())),
            ("SWEEP_GRAD_QUERY", flag(grads_query)),
            ("GRAD_STAGES", grad_stages.to_string()),
            ("USES_DELTA", flag(self.uses_delta)),
            ("ONE_SWEEP", flag(one_sweep.is_some())),
            ("EXPONENTIAL", one_sweep.flatten().map_or(-1, i32::from).to_string()),
            ("LOGSUMEXP", self.lowered().logsumexp.map_or(-1, i32::from).to_string()),
        ];
        if builder.is_tiled {
            defines.extend(tiles::defines(builder)?);
        }
        let wanted = |_: bool| {
            let mut wanted = Vec::new();
            if !self.swept.is_empty() || one_sweep.is_some() {
                wanted.push(Wanted::Stages);
            }
            if one_sweep.is_some() {
                wanted.push(Wanted::Local);
                return wanted;
            }
            if sweeps_tangents {
                wanted.push(Wanted::StageTangents(&self.needed));
            }
            if self.sweeps_output() {
                wanted.push(Wanted::Weight);
            }
            if grad_stages == 2 {
                wanted.push(Wanted::GradStages);
            }
            if grads_query {
                wanted.push(Wanted::GradScore);
            }
            wanted
        };
        let written = [
            "to_output",
            "to_output_t",
            "to_output_again",
            "to_logsumexp",
            "to_logsumexp_t",
            "to_grad_query",
            "to_grad_query_t",
        ];
        let (source, arguments) = self.source(builder, places, &written, &wanted, defines)?;
        let row = of_row(self.problem.program(), self.lowered())?;
        let source = source + &row;
        if builder.is_tiled {
            return tiles::launch(builder, source, arguments, one_sweep.is_some());
        }
        let source = source + text::QUERIES;
        let rows: u64 = self.problem.shape(Role::Output).iter().rev().skip(1).map(|&n| n as u64).product();
        builder.launch(source, "queries", rows, arguments);
        Ok(())
    }

    /// How each stage is reduced, and which are swept for.
    fn stage_functions(&self) -> String {
        let mut kinds = String::new();
        let mut swept = String::new();
        for (k, stage) in self.lowered().stages.iter().enumerate() {
            // A stage that nothing needs is none of those that can make a row dead.
            kinds += &format!("k == {k} ? {} : ", stage_kind(stage.reduce));
            if self.swept.contains(&(k as u8)) {
                swept += &format!("k == {k} || ");
            }
        }
        format!(
            "DEVICE constexpr int stage_kind(int k) {{ return {kinds}SUM_STAGE; }}\n\
             DEVICE constexpr bool is_swept(int k) {{ return {swept}false; }}\n"
        )
    }

    fn keys(&self, builder: &mut Builder<'_>, places: &Places) -> Result<()> {
        let wants = &self.wants;
        let keys = wants.key || wants.additional_key;
        let values = wants.value || wants.additional_value;
        if !keys && !values {
            return Ok(());
        }
        let flag = |is: bool| i32::from(is).to_string();
        let defines = vec![("KEY_GRADS", flag(keys)), ("VALUE_GRADS", flag(values))];
        let wanted = |_: bool| {
            let list = [(keys, Wanted::GradScore), (values, Wanted::Weight)];
            list.into_iter().filter(|(is, _)| *is).map(|(_, wanted)| wanted).collect::<Vec<_>>()
        };
        let written = [
            "to_grad_key",
            "to_grad_key_t",
            "to_grad_value",
            "to_grad_value_t",
            "to_grad_additional_key",
            "to_grad_additional_key_t",
            "to_grad_additional_value",
            "to_grad_additional_value_t",
        ];
        let (source, arguments) = self.source(builder, places, &written, &wanted, defines)?;
        let source = source + text::KEYS;
        let heads = (self.problem.batch() * self.problem.heads_kv()) as u64;
        let tokens: u64 = self.problem.neighborhood().key_shape().iter().map(|&n| n as u64).product();
        if wants.key || wants.value {
            builder.launch(source.clone(), "keys", heads * tokens, arguments.clone());
        }
        if wants.additional_key || wants.additional_value {
            let tokens = self.problem.additional_tokens() as u64;
            builder.launch(source, "additional_keys", heads * tokens, arguments);
        }
        Ok(())
    }

    /// The gradients of the bias and of captured tensors.
    fn scatters(&self, builder: &mut Builder<'_>, places: &Places) -> Result<()> {
        let result = |role: Role| self.op.result_of(role).unwrap_or(role);
        if self.wants.rpb {
            self.scatter(builder, places, result(Role::Rpb), None, [false, true, false])?;
        }
        for &capture in &self.wants.captures {
            let role = result(Role::Capture(capture));
            builder.add_table(role);
            let shape = &self.problem.program().captures()[usize::from(capture)].shape;
            let loads = || {
                self.functions
                    .iter()
                    .flat_map(|f| self.loads_of(f, capture).into_iter().map(|load| (&f.lowered.graph, load)))
            };
            if loads().next().is_some() {
                let determined = Loads::new(shape, loads()).rows_apart(self.problem);
                self.scatter(builder, places, role, Some(capture), determined)?;
            }
        }
        Ok(())
    }

    /// The loads of a captured tensor whose gradient is not zero.
    fn loads_of<'f>(&self, functions: &'f Functions<'p>, capture: u8) -> Vec<&'f LoadGradient> {
        let lowered = &functions.lowered;
        let is_zero = |pushed: &Pushed| {
            lowered.graph.is_zero(if self.op == Op::BackwardJvp { pushed.tangent } else { pushed.value })
        };
        lowered.loads.iter().filter(|load| load.capture == capture && !is_zero(&load.gradient)).collect()
    }

    fn scatter(
        &self,
        builder: &mut Builder<'_>,
        places: &Places,
        role: Role,
        capture: Option<u8>,
        determined: [bool; 3],
    ) -> Result<()> {
        builder.add_table(role);
        let shape: &[usize] = match capture {
            Some(capture) => &self.problem.program().captures()[usize::from(capture)].shape,
            None => &[],
        };
        let tangents = self.op == Op::BackwardJvp;
        let wanted = |is_additional: bool| match capture {
            Some(capture) => {
                let loads = self.loads_of(&self.functions[usize::from(is_additional)], capture);
                vec![Wanted::Loads { loads, shape, tangents }]
            }
            None => vec![Wanted::GradScore],
        };
        let defines = vec![
            ("SCATTER_BIAS", i32::from(capture.is_none()).to_string()),
            ("SCATTER_PAIRS", "1".to_owned()),
        ];
        let (source, arguments) = self.source(builder, places, &[], &wanted, defines)?;
        let queries: usize = self.problem.neighborhood().query_shape().iter().product();
        let extents = [self.problem.batch(), self.problem.heads(), queries].map(|n| n as u64);
        pieces::launch(
            builder,
            source + text::SCATTER,
            "scatter_pairs",
            arguments,
            role,
            extents,
            determined,
        );
        Ok(())
    }
}

/// The numbers by which the walks know reductions.
pub(super) const STAGE_KINDS: &str =
    "#define SUM_STAGE 0\n#define MAX_STAGE 1\n#define MIN_STAGE 2\n#define LSE_STAGE 3\n";
