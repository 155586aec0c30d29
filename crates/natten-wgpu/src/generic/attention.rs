//! The four fused operations: a walk with stationary queries, one with stationary keys for the gradients of keys and
//! values, and tables for the gradients of captured tensors and the bias.

use std::fmt::Write;

use natten_core::program::{Given, GradStages, Lowered, Reduce};
use natten_core::{Op, Result, Role};

use super::functions::{Functions, of_row};
use super::{Builder, OPERANDS};
use crate::family::Choice;
use crate::sequence::Step;
use crate::template::{Fill, each};
use crate::tiled_backward::Side;

const ROWS: &str = include_str!("../wgsl/rows.wgsl");
const KEYS: &str = include_str!("../wgsl/keys.wgsl");
const COTANGENTS_OF_ROW: &str = include_str!("../wgsl/cotangents_of_row.wgsl");
const COTANGENTS_OF_PAIRS: &str = include_str!("../wgsl/cotangents_of_pairs.wgsl");
const ADD_PAIR: &str = include_str!("../wgsl/add_pair.wgsl");

/// The functions of window pairs, and of pairs with additional keys where there are any.
pub(super) type Pairs<'a> = Vec<Functions<'a>>;

/// A row's stages and what a walk does about them.
struct Stages {
    reduce: Vec<Reduce>,
    /// Those that are reduced from pairs; the others are given.
    swept: Vec<usize>,
}

/// A sweep over a row's pairs: statements for each, as [`Builder::sweep`] takes them, and those behind the last.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) pairs: String,
    pub(super) then: String,
}

impl Builder<'_> {
    pub(super) fn attention(&mut self) -> Result<()> {
        self.apply_mods()?;
        let op = self.request.op;
        let is_backward = matches!(op, Op::Backward | Op::BackwardJvp);
        self.place_results_of_rows();
        if matches!(self.choice, Choice::Matrix(_)) && self.regions.get("TO_LSE").is_none() {
            // The arena is bound always; this is what is always written to it.
            let rows = self.len(Role::Query) / self.problem.head_dim() as u64;
            let at = self.reserve(rows);
            self.regions.put("TO_LSE", at);
        }
        if is_backward && !matches!(self.choice, Choice::MatrixBackward(_)) {
            self.place_gradients();
        }
        let given = if op.is_forward_mode() { self.tangents.given() } else { Given::default() };
        let has_cotangent =
            self.request.gives(Role::GradLogsumexp) || self.request.gives(Role::TangentGradLogsumexp);
        let kinds = if self.problem.additional_tokens() > 0 { 2 } else { 1 };
        let lowered: Vec<Lowered> = (0..kinds)
            .map(|kind| {
                let mut lowered = Lowered::new(self.problem.program(), kind == 1, &given);
                lowered.drop_zeros(has_cotangent);
                lowered
            })
            .collect();
        self.regions_of_rows(is_backward);
        let builder = &*self;
        let names = builder.names();
        let pairs: Pairs<'_> = (0..)
            .zip(&lowered)
            .map(|(kind, lowered)| Functions::new(builder.problem, lowered.clone(), names, kind == 1))
            .collect();
        match builder.choice {
            Choice::Matrix(shape) => {
                let run = builder.matrix_forward(&shape, &pairs[0])?;
                self.check_loops("matrices", shape.iterations(self.problem))?;
                self.steps.push(Step::Run(run));
                return Ok(());
            }
            Choice::Tiled(shape) => {
                let source = builder.tiled_forward(&shape, &pairs[0])?;
                self.check_loops("tiles", shape.iterations(self.problem))?;
                self.run_workgroups("tiles", source, shape.workgroups());
                return Ok(());
            }
            Choice::Row(shape) => {
                let source = builder.row_forward(&shape);
                self.check_loops("a query each", shape.iterations(self.problem))?;
                self.run_workgroups("a query each", source, shape.workgroups());
                return Ok(());
            }
            Choice::MatrixBackward(_) | Choice::Backward(_) | Choice::Generic => {}
        }
        let rows = builder.rows(&pairs)?;
        if let Choice::MatrixBackward(shape) = builder.choice {
            let runs = builder.matrix_backward(&shape, &pairs[0])?;
            let row_count = self.len(Role::Query) / self.problem.head_dim() as u64;
            self.steps.push(Step::Run(self.rows_of_packed(rows, row_count)));
            for (side, run) in runs {
                self.check_loops(&run.label, shape.iterations(self.problem, side))?;
                self.steps.push(Step::Run(run));
            }
            return Ok(());
        }
        if let Choice::Backward(shape) = builder.choice {
            let sides = builder.tiled_backward(&shape, &pairs[0])?;
            let row_count = self.len(Role::Query) / self.problem.head_dim() as u64;
            self.run("rows", rows, row_count);
            for (side, source) in sides {
                let label = if side == Side::Keys { "tiles of keys" } else { "tiles of queries" };
                self.check_loops(label, shape.iterations(self.problem, side))?;
                self.run_workgroups(label, source, shape.workgroups(side));
            }
            self.scatter_all(&lowered)?;
            return self.pull_mods();
        }
        let keys = if is_backward { builder.keys(&pairs)? } else { None };
        let row_count = self.len(Role::Query) / self.problem.head_dim() as u64;
        self.check_loops("rows", self.of_row())?;
        self.run("rows", rows, row_count);
        if let Some(keys) = keys {
            let count = self.key_vectors();
            self.check_loops("keys", self.of_key())?;
            self.run("keys", keys, count);
        }
        if is_backward {
            self.scatter_all(&lowered)?;
            self.pull_mods()?;
        }
        Ok(())
    }

    /// Vectors of keys, additional ones counted.
    pub(super) fn key_vectors(&self) -> u64 {
        (self.len(Role::Key) + self.len(Role::AdditionalKey)) / self.problem.head_dim() as u64
    }

    /// Lays out the results of rows, by what they are called in the templates.
    fn place_results_of_rows(&mut self) {
        let op = self.request.op;
        let of_rows = match op {
            Op::Forward => [("TO_OUT", Role::Output), ("TO_LSE", Role::Logsumexp)],
            Op::ForwardJvp => [("TO_OUT_T", Role::TangentOutput), ("TO_LSE_T", Role::TangentLogsumexp)],
            _ => [("TO_OUT_T", Role::Grad2GradOutput), ("TO_LSE_T", Role::Grad2GradLogsumexp)],
        };
        for (name, role) in of_rows {
            if self.packed.iter().any(|packed| packed.role == role) {
                continue;
            }
            if self.wants(role) {
                let at = self.result(role);
                self.regions.put(name, at);
            }
        }
    }

    /// Lays out the gradients of vectors: results, or what their functions' gradients start from.
    pub(super) fn place_gradients(&mut self) {
        let op = self.request.op;
        let is_tangent = op == Op::BackwardJvp;
        let wanted = [self.wanted.query, self.wanted.key, self.wanted.value];
        let names = [["TO_DQ", "TO_DQ_T"], ["TO_DK", "TO_DK_T"], ["TO_DV", "TO_DV_T"]];
        for ((operand, is_wanted), names) in OPERANDS.iter().zip(wanted).zip(names) {
            if !is_wanted {
                continue;
            }
            // A vector function's gradient needs that of its vector beside the tangent.
            let has_mod = self.mod_of(operand.roles[0]).is_some();
            for (name, is_needed) in [(names[0], !is_tangent || has_mod), (names[1], is_tangent)] {
                if is_needed {
                    let (at, is_result) = (self.arena, is_tangent == name.ends_with('T') && !has_mod);
                    self.reserve_vectors(operand.roles, op, is_result);
                    self.regions.put(name, at);
                }
            }
        }
    }

    /// Room for vectors of some roles, which are results or not.
    pub(super) fn reserve_vectors(&mut self, roles: [Role; 2], op: Op, is_result: bool) {
        let mut roles = roles.to_vec();
        roles.dedup();
        for role in roles {
            let at = self.reserve(self.len(role));
            if let Some(of) = op.result_of(role).filter(|_| is_result) {
                self.results.insert(of, at);
            }
        }
    }

    /// Room for the numbers that later walks take from the rows.
    fn regions_of_rows(&mut self, is_backward: bool) {
        let wanted = &self.wanted;
        let is_tiled = matches!(self.choice, Choice::Backward(_) | Choice::MatrixBackward(_));
        if is_backward
            && (is_tiled || wanted.key || wanted.value || wanted.rpb || !wanted.captures.is_empty())
        {
            let stages = self.problem.program().row().stages.len().max(1) as u64;
            let rows = self.len(Role::Query) / self.problem.head_dim() as u64;
            let at = self.reserve(rows * (1 + 4 * stages));
            self.regions.put("NUMBERS", at);
        }
    }

    fn stages(&self) -> Stages {
        let row = self.problem.program().row();
        let given = self.regions.get("LSE").and(row.logsumexp()).map(usize::from);
        let swept = (0..row.stages.len()).filter(|&k| Some(k) != given).collect();
        Stages { reduce: row.stages.iter().map(|stage| stage.reduce).collect(), swept }
    }

    /// The shader with stationary queries.
    fn rows(&self, pairs: &Pairs<'_>) -> Result<String> {
        let op = self.request.op;
        let lowered = &pairs[0].lowered;
        let is_backward = matches!(op, Op::Backward | Op::BackwardJvp);
        let has_tangents = op.is_forward_mode();
        let stages = self.stages();
        // What is given says too whether a row sees anything: a logsumexp.
        let sweeps_stages = !stages.swept.is_empty() || self.regions.get("LSE").is_none();
        let of_row = is_backward && matches!(lowered.grad_stages, GradStages::OfRow(_));
        let of_pairs = is_backward && !of_row && !lowered.grad_stages.cotangents().is_empty();
        let has_output = ["TO_OUT", "TO_OUT_T"].iter().any(|name| self.regions.get(name).is_some());
        let sweeps_output = has_output || op == Op::BackwardJvp && of_row;
        let sweeps_tangents = has_tangents
            && pairs.iter().any(|pair| {
                pair.lowered.stages.iter().any(|stage| !pair.lowered.graph.is_zero(stage.element.tangent))
            });
        // Boxes of queries do that, where there are such.
        let sweeps_query = !matches!(self.choice, Choice::Backward(_))
            && ["TO_DQ", "TO_DQ_T"].iter().any(|name| self.regions.get(name).is_some());

        // Where vectors are packed, no sweep is left.
        let is_packed = matches!(self.choice, Choice::MatrixBackward(_));
        let mut functions = String::new();
        for pair in pairs.iter().filter(|_| !is_packed) {
            functions += &pair.mask()?;
            if sweeps_stages {
                functions += &pair.stages()?;
            }
            if sweeps_tangents {
                functions += &pair.stage_tangents()?;
            }
            if sweeps_output {
                functions += &pair.weight()?;
            }
            if of_pairs {
                functions += &pair.grad_stages()?;
            }
            if sweeps_query {
                functions += &pair.grad_score()?;
            }
        }
        if of_row {
            functions += &self::of_row(&self.names(), lowered)?;
        }
        let add_numbers = |name: &str, by: &str| {
            let count = stages.reduce.len();
            format!(
                "let numbers = $P$_{name}(at, row, x);\nfor (var k = 0u; k < {by}{count}u; k++) {{ sums[k] += numbers[k]; }}\n"
            )
        };
        let of_row_text = |template: &str| {
            let fill = Fill::default()
                .flag("TANGENTS", has_tangents)
                .flag("LOGSUMEXP", self.problem.has_logsumexp())
                .value("LOGSUMEXP", self.problem.program().logsumexp().unwrap_or(0))
                .value("DIM_V", self.problem.head_dim_v())
                .flag("PACKED", is_packed)
                .value("CELLS", self.problem.head_dim_v().next_multiple_of(16) / 4);
            self.regions.flags(fill).apply(template)
        };
        let mut sweeps = Vec::new();
        if sweeps_stages {
            let then = format!("row.alive = seen;\n{}{}", stages.finish(), stages.dead());
            sweeps.push(Sweep { pairs: stages.add(), then });
        }
        if sweeps_tangents {
            let then = "for (var k = 0u; k < STAGES; k++) { row.stage_t[k] = sums[k]; sums[k] = R(0.0); }\n";
            sweeps.push(Sweep { pairs: add_numbers("stage_tangents", ""), then: then.to_owned() });
        }
        if sweeps_output {
            sweeps.push(Sweep { pairs: self.add_value(), then: String::new() });
        }
        let mut before_sweeps = if sweeps_stages { String::new() } else { stages.dead() };
        if of_row {
            let then = sweeps.last_mut().map_or(&mut before_sweeps, |last| &mut last.then);
            then.push_str(&of_row_text(COTANGENTS_OF_ROW));
        }
        if of_pairs {
            let then = of_row_text(COTANGENTS_OF_PAIRS);
            sweeps.push(Sweep { pairs: add_numbers("grad_stages", "2u * "), then });
        }
        if sweeps_query {
            sweeps.push(Sweep { pairs: self.add_key(), then: String::new() });
        }
        let fill = Fill::default()
            .flag("SCORES", !is_packed)
            .flag("TANGENTS", has_tangents)
            .flag("GRADS", of_pairs || sweeps_query)
            .flag("SWEEP_STAGES", sweeps_stages)
            .flag("SWEEP_NUMBERS", sweeps_tangents || of_pairs)
            .flag("SWEEP_OUTPUT", sweeps_output)
            .flag("SWEEP_GRAD_QUERY", sweeps_query)
            .value("BEFORE_SWEEPS", before_sweeps)
            .value("SWEEPS", self.sweeps(pairs.len(), &sweeps));
        Ok(self.walk(&self.regions, ROWS, fill, &functions))
    }

    /// Statements that show a row's pairs, one after the other, to statements of `at` and the pair's numbers `x`; `$P$`
    /// in these is the prefix of the functions.
    pub(super) fn sweep(&self, kinds: usize, body: &str) -> String {
        let body_of = |prefix: &str| {
            let lines = body.replace("$P$", prefix);
            lines.lines().map(|line| format!("            {line}\n")).collect::<String>()
        };
        let mut text = format!(
            "    {{\n        let window = windows(query.qc);\n        let residue = query.qc % DILATION;\n        \
             for (var kx = window.start.x; kx < window.end.x; kx++) {{\n        \
             for (var ky = window.start.y; ky < window.end.y; ky++) {{\n        \
             for (var kz = window.start.z; kz < window.end.z; kz++) {{\n            \
             let at = with_key(query, residue + DILATION * vec3<i32>(kx, ky, kz));\n            \
             if (!w_mask(at, row)) {{ continue; }}\n            let x = pair_of(at);\n{}        }}\n        }}\n        }}\n    }}\n",
            body_of("w")
        );
        if kinds > 1 {
            let _ = write!(
                text,
                "    for (var n = 0; n < ADDITIONAL; n++) {{\n            \
                 let at = with_additional(query, n);\n            let x = pair_of(at);\n{}    }}\n",
                body_of("a")
            );
        }
        text
    }

    /// Sweeps one behind the other, until the row turns out to be dead. The walk stands in the text once: drivers write
    /// out every call, and a pair's numbers are most of the code.
    pub(super) fn sweeps(&self, kinds: usize, sweeps: &[Sweep]) -> String {
        if sweeps.is_empty() {
            return String::new();
        }
        let of_each = |part: fn(&Sweep) -> &str| match sweeps {
            [sweep] => part(sweep).to_owned(),
            _ => (0..).zip(sweeps).filter(|(_, sweep)| !part(sweep).is_empty()).fold(
                String::new(),
                |text, (number, sweep): (u32, _)| {
                    format!("{text}if (number_of_sweep == {number}u) {{\n{}}}\n", part(sweep))
                },
            ),
        };
        format!(
            "    for (var number_of_sweep = 0u; number_of_sweep < {}u; number_of_sweep++) {{\n    \
             if (!row.alive) {{ break; }}\n{}{}    }}\n",
            sweeps.len(),
            self.sweep(kinds, &of_each(|sweep| &sweep.pairs)),
            of_each(|sweep| &sweep.then),
        )
    }

    /// Adds a pair's value to the row's output.
    pub(super) fn add_value(&self) -> String {
        let mut text = "let v = arena[V + at.kv * DIM_V + d];\noutput[d] += w[0] * v;\n".to_owned();
        if self.request.op.is_forward_mode() {
            text += "output_t[d] += w[1] * v;\n";
            if self.regions.get("VT").is_some() {
                text += "output_t[d] += w[0] * arena[VT + at.kv * DIM_V + d];\n";
            }
        }
        "let w = $P$_weight(at, row, x);\n".to_owned() + &each(self.problem.head_dim_v(), &text)
    }

    /// Adds a pair's key to the gradient of the row's query.
    pub(super) fn add_key(&self) -> String {
        let mut text = "let k = arena[K + at.kv * DIM + d];\ngrad[d] += ds[0] * k;\n".to_owned();
        if self.request.op.is_forward_mode() {
            text += "grad_t[d] += ds[1] * k;\n";
            if self.regions.get("KT").is_some() {
                text += "grad_t[d] += ds[0] * arena[KT + at.kv * DIM + d];\n";
            }
        }
        "let ds = $P$_grad_score(at, row, x);\n".to_owned() + &each(self.problem.head_dim(), &text)
    }

    /// The shader with stationary keys, where some of its gradients are wanted.
    fn keys(&self, pairs: &Pairs<'_>) -> Result<Option<String>> {
        if !(self.wanted.key || self.wanted.value) {
            return Ok(None);
        }
        let mut functions = String::new();
        for pair in pairs {
            functions += &pair.mask()?;
            if self.wanted.key {
                functions += &pair.grad_score()?;
            }
            if self.wanted.value {
                functions += &pair.weight()?;
            }
        }
        Ok(Some(self.keys_shader(pairs.len(), true, self.wanted.key, self.wanted.value, &functions)))
    }

    /// The walk with stationary keys on some functions.
    pub(super) fn keys_shader(
        &self,
        kinds: usize,
        has_scores: bool,
        of_keys: bool,
        of_values: bool,
        functions: &str,
    ) -> String {
        let of_pair = |prefix: &str| {
            let fill = Fill::default()
                .flag("KEY_GRADS", of_keys)
                .flag("VALUE_GRADS", of_values)
                .flag("TANGENTS", self.request.op.is_forward_mode())
                .value("DIM", self.problem.head_dim())
                .value("DIM_V", self.problem.head_dim_v())
                .value("P", prefix);
            self.regions.flags(fill).apply(ADD_PAIR)
        };
        let add: String = ["w", "a"][..kinds].iter().map(|prefix| of_pair(prefix)).collect();
        let fill = Fill::default()
            .flag("SCORES", has_scores)
            .flag("GRADS", of_keys && has_scores)
            .flag("TANGENTS", self.request.op.is_forward_mode())
            .value("ADD_PAIRS", add);
        self.walk(&self.regions, KEYS, fill, functions)
    }
}

impl Stages {
    /// Adds a pair's elements.
    fn add(&self) -> String {
        let mut text = String::new();
        if !self.swept.is_empty() {
            text += "let element = $P$_stages(at, row, x);\n";
        }
        for &k in &self.swept {
            let _ = match self.reduce[k] {
                Reduce::Sum => writeln!(text, "running[{k}] += element[{k}];"),
                Reduce::Max | Reduce::Min => {
                    let name = if self.reduce[k] == Reduce::Max { "f_max" } else { "f_min" };
                    writeln!(
                        text,
                        "running[{k}] = select(element[{k}], {name}(running[{k}], element[{k}]), seen);"
                    )
                }
                // A NaN is no peak, and makes the sum NaN.
                _ => writeln!(
                    text,
                    "if (element[{k}] > peak[{k}]) {{\n    running[{k}] *= f_exp(peak[{k}] - element[{k}]);\n    \
                     peak[{k}] = element[{k}];\n}}\nrunning[{k}] += f_exp(element[{k}] - peak[{k}]);"
                ),
            };
        }
        text + "seen = true;\n"
    }

    fn finish(&self) -> String {
        let mut text = String::new();
        for &k in &self.swept {
            let _ = match self.reduce[k] {
                Reduce::Lse => writeln!(
                    text,
                    "    row.stage[{k}] = select(peak[{k}] + f_log(running[{k}]), -inf(), running[{k}] == R(0.0));"
                ),
                _ => writeln!(text, "    row.stage[{k}] = running[{k}];"),
            };
        }
        text
    }

    /// A row is dead where a logsumexp is -inf.
    fn dead(&self) -> String {
        let lse = self.reduce.iter().enumerate().filter(|(_, reduce)| **reduce == Reduce::Lse);
        lse.map(|(k, _)| format!("    if (is_minus_inf(row.stage[{k}])) {{ row.alive = false; }}\n"))
            .collect()
    }
}
