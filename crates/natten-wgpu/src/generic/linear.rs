//! Linear attention: the recurrence, a column or a row of a head's state an invocation, and its gradients.

use std::collections::HashMap;
use std::fmt::Write;

use natten_core::program::{LoweredVector, Primal, Var};
use natten_core::{Op, Result, Role};

use super::functions::{Names, load_roots, loads_struct, store_loads};
use super::{Builder, Regions};
use crate::render::math::Real;
use crate::render::{Leaves, render};
use crate::template::Fill;

const LINEAR: &str = include_str!("../wgsl/linear.wgsl");
const FORWARD: &str = include_str!("../wgsl/linear_forward.wgsl");
const VALUES: &str = include_str!("../wgsl/linear_values.wgsl");
const KEYS: &str = include_str!("../wgsl/linear_keys.wgsl");
const SUM: &str = include_str!("../wgsl/linear_sum.wgsl");
const DECAY: &str = include_str!("../wgsl/linear_decay.wgsl");

/// The leaves of the decay and of its gradient.
struct OfToken<'p>(Names<'p>);

impl Leaves for OfToken<'_> {
    fn real(&self) -> Real {
        self.0.real
    }

    fn var(&self, var: Var) -> Option<String> {
        match var {
            Var::GradX => Some("grad".to_owned()),
            Var::Tangent(Primal::GradX) => Some("grad_t".to_owned()),
            _ => None,
        }
    }

    fn index(&self, index: natten_core::program::Index) -> Option<String> {
        self.0.index(index)
    }

    fn load(&self, buffer: natten_core::program::Buffer, index: &[String]) -> Option<String> {
        self.0.load(buffer, index)
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        self.0.random(low, high)
    }
}

/// A shader of the recurrence.
struct Shader<'a> {
    label: &'a str,
    body: &'a str,
    invocations: u64,
    /// Declarations, beside those that all have.
    constants: String,
    fill: Fill,
    functions: String,
}

impl Builder<'_> {
    pub(super) fn recurrence(&mut self) -> Result<()> {
        self.apply_mods()?;
        let (op, problem) = (self.request.op, self.problem);
        let is_tangent = op.is_forward_mode();
        let Some(decay) = problem.program().decay() else { return Ok(()) };
        let captures = self.tangents.captures.clone();
        let lowered = LoweredVector::new(problem.program(), decay, false, is_tangent, &captures);
        let heads = (problem.batch() * problem.heads()) as u64;
        let (output, state) = match op {
            Op::Forward => (Role::Output, Role::FinalState),
            Op::ForwardJvp => (Role::TangentOutput, Role::TangentFinalState),
            _ => (Role::Grad2GradOutput, Role::Grad2GradFinalState),
        };
        let mut fill = Fill::default();
        for (name, role) in [("TO_OUT", output), ("TO_S", state)] {
            if self.wants(role) {
                let at = self.result(role);
                self.regions.put(name, at);
            }
        }
        if self.wants(output) || self.wants(state) {
            fill = self.regions.flags(fill);
            let invocations = heads * problem.head_dim_v() as u64;
            let shader = Shader {
                label: "recurrence",
                body: FORWARD,
                invocations,
                constants: String::new(),
                fill,
                functions: String::new(),
            };
            self.run_linear(&lowered, &shader)?;
        }
        if matches!(op, Op::Backward | Op::BackwardJvp) {
            self.recurrence_backward(&lowered, heads)?;
            self.pull_mods()?;
        }
        Ok(())
    }

    fn recurrence_backward(&mut self, lowered: &LoweredVector, heads: u64) -> Result<()> {
        let (op, problem) = (self.request.op, self.problem);
        let is_second = op == Op::BackwardJvp;
        let initial = if is_second { Role::Grad2InitialState } else { Role::GradInitialState };
        self.place_gradients();
        if self.wants(initial) {
            let at = self.result(initial);
            self.regions.put("TO_DS", at);
        }
        // Values with tangents take two elements each.
        let numbers = if op.is_forward_mode() { 2 } else { 1 };
        let (dim, dim_v) = (problem.head_dim() as u64, problem.head_dim_v() as u64);
        let tokens: u64 = problem.neighborhood().key_shape().iter().map(|&n| n as u64).product();
        let chunk = (tokens as f64).sqrt().ceil().max(1.0) as u64;
        let chunks = tokens.div_ceil(chunk);
        for (name, len) in [
            ("KEPT", heads * dim * chunks * dim_v),
            ("INSIDE", heads * dim * chunk * dim_v),
            ("PART_K", heads * tokens * dim),
            ("PART_L", heads * tokens * dim),
            ("PART_V", heads * tokens * dim_v),
        ] {
            let at = self.reserve(numbers * len);
            self.regions.put(name, at);
        }
        let chunks = format!("const CHUNK: i32 = {chunk};\nconst CHUNKS: i32 = {chunks};\n");
        for (label, body, invocations) in
            [("gradients by rows", KEYS, heads * dim), ("gradients by columns", VALUES, heads * dim_v)]
        {
            let fill = self.regions.flags(Fill::default());
            let shader = Shader {
                label,
                body,
                invocations,
                constants: chunks.clone(),
                fill,
                functions: String::new(),
            };
            self.run_linear(lowered, &shader)?;
        }
        for (part, names, extent) in
            [("PART_K", ["TO_DK", "TO_DK_T"], dim), ("PART_V", ["TO_DV", "TO_DV_T"], dim_v)]
        {
            let mut constants = format!("const EXTENT: u32 = {extent}u;\nconst PART: u32 = {part};\n");
            let mut fill = Fill::default();
            for (name, to) in ["TO", "TO_T"].into_iter().zip(names) {
                if let Some(at) = self.regions.get(to) {
                    let _ = writeln!(constants, "const {name}: u32 = {at}u;");
                    fill = fill.flag(name, true);
                }
            }
            let invocations = self.key_vectors() * extent;
            let functions = String::new();
            self.run_linear(
                lowered,
                &Shader { label: "sum", body: SUM, invocations, constants, fill, functions },
            )?;
        }
        self.scatter_decays(lowered, heads * tokens)
    }

    /// What decays add to the gradients of captured tensors.
    fn scatter_decays(&mut self, lowered: &LoweredVector, tokens: u64) -> Result<()> {
        let is_tangent = self.request.op == Op::BackwardJvp;
        for capture in self.wanted.captures.clone() {
            let loads: Vec<_> = lowered.loads.iter().filter(|load| load.capture == capture).collect();
            if loads.is_empty() || tokens == 0 {
                continue;
            }
            let shape = self.problem.program().captures()[usize::from(capture)].shape.clone();
            let role = if is_tangent { Role::Grad2Capture(capture) } else { Role::GradCapture(capture) };
            let (at, pieces) = self.tables_for(role, tokens);
            let roots = load_roots(&loads, is_tangent);
            let rendered = render(self.problem.program(), &lowered.graph, &roots, &OfToken(self.names()))?;
            let functions = format!(
                "{}fn decay_loads(at: Site, grad: R, grad_t: R) -> v_Loads {{\n    var loads = v_Loads();\n{}{}    return loads;\n}}\n",
                loads_struct('v', loads.len()),
                rendered.lines,
                store_loads(&rendered.results, &shape),
            );
            let constants = format!(
                "const TABLE: u32 = {at}u;\nconst ENTRIES: u32 = {}u;\nconst PIECES: u32 = {pieces}u;\n\
                 const TOKENS: u32 = {tokens}u;\n",
                self.len(role)
            );
            let fill = Fill::default().value("LOADS_COUNT", loads.len());
            let shader =
                Shader { label: "decays", body: DECAY, invocations: pieces, constants, fill, functions };
            self.run_linear(lowered, &shader)?;
        }
        Ok(())
    }

    fn run_linear(&mut self, lowered: &LoweredVector, shader: &Shader<'_>) -> Result<()> {
        let has_tangents = self.request.op.is_forward_mode();
        let roots = [lowered.value.value, lowered.value.tangent];
        let rendered = render(self.problem.program(), &lowered.graph, &roots, &OfToken(self.names()))?;
        let decay = format!(
            "fn decay_of(at: Site) -> array<R, 2> {{\n{}    return array<R, 2>({});\n}}\n",
            rendered.lines,
            rendered.results.join(", ")
        );
        let dims = [("DIM", self.problem.head_dim()), ("DIM_V", self.problem.head_dim_v())];
        let fill = dims.into_iter().fold(shader.fill.clone(), |fill, (name, dim)| fill.value(name, dim));
        let body = fill.apply(shader.body);
        let fill = Fill::default()
            .flag("TANGENTS", has_tangents)
            .value("LOADS", self.loads_of_inputs(has_tangents))
            .value("BODY", body);
        let constants = format!("const INVOCATIONS: u32 = {}u;\n{}", shader.invocations, shader.constants);
        // The walks' own functions are not called: nothing of theirs is there but sizes and sites.
        let sites = self.walk(&Regions::default(), "", Fill::default(), "");
        let source = [
            sites,
            self.regions.declarations(),
            constants,
            decay,
            shader.functions.clone(),
            fill.apply(LINEAR),
        ]
        .concat();
        self.check_loops(shader.label, self.of_recurrence())?;
        self.run(shader.label, source, shader.invocations);
        Ok(())
    }

    /// The functions that load an input with its tangent; zero where it is not given.
    fn loads_of_inputs(&self, has_tangents: bool) -> String {
        let inputs = [("Q", "QT"), ("K", "KT"), ("V", "VT"), ("S", "ST"), ("DO", "DOT"), ("DS", "DST")];
        let known: HashMap<&str, bool> = inputs
            .iter()
            .flat_map(|&(name, tangent)| [name, tangent])
            .map(|name| (name, self.regions.get(name).is_some()))
            .collect();
        let read = |name: &str| match known[name] {
            true => format!("arena[{name} + at]"),
            false => "R(0.0)".to_owned(),
        };
        let mut text = String::new();
        for (name, tangent) in inputs {
            let tangent = if has_tangents { read(tangent) } else { "R(0.0)".to_owned() };
            let _ = writeln!(
                text,
                "fn load_{name}(at: u32) -> Num {{ return value({}, {tangent}); }}",
                read(name)
            );
        }
        text
    }
}
