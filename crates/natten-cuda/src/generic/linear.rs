//! Linear attention in chunks of its recurrence: forward, backward, and the tangents of both, by the same text on numbers
//! that carry tangents.

use natten_core::program::{
    Buffer, Expr, Index, Involved, LoadGradient, Loads, LoweredVector, Node, Primal, Pushed, Var,
};
use natten_core::{Error, Op, Result, Role};

use super::functions::{Names, element};
use super::mods::put_input;
use super::tensors::Places;
use super::{Builder, pieces, text};
use crate::NAME;
use crate::family::Argument;
use crate::render::{Leaves, Rendered, render};

/// Results, and their tangents, by the kernels' names.
const OUTPUT: [&str; 2] = ["to_output", "to_output_t"];
const FINAL_STATE: [&str; 2] = ["to_final_state", "to_final_state_t"];
const GRAD_INITIAL_STATE: [&str; 2] = ["to_grad_initial_state", "to_grad_initial_state_t"];
const ROWS: [&str; 4] = ["to_grad_query", "to_grad_query_t", "to_grad_key", "to_grad_key_t"];
const COLUMNS: [&str; 2] = ["to_grad_value", "to_grad_value_t"];

/// Tokens of a chunk: `CHUNK` of the kernels.
const CHUNK: usize = 64;

/// Rows that a thread keeps of a chunk's states: one every `SEGMENT` tokens of the kernels, and a segment.
const KEPT: usize = 8 + 8;

/// Threads of a block.
const THREADS: usize = 128;

/// Threads a multiprocessor that keep such rows: about as many as it has registers for.
const KEEPERS: usize = 256;

/// What each text is made for: `PASS` of the kernels.
#[derive(Clone, Copy, Debug)]
enum Pass {
    Outputs,
    Rows,
    Columns,
    Decays,
    States,
    Grads,
}

pub(super) fn build(
    builder: &mut Builder<'_>,
    places: &mut Places,
    tangents: &Involved,
    wants: &Involved,
) -> Result<()> {
    let (problem, op) = (builder.problem, builder.request.op);
    let Some(decay) = problem.program().decay() else {
        return Err(Error::unsupported(NAME, op.name(), "the program has no decay"));
    };
    let is_second = op == Op::BackwardJvp;
    for role in [Role::InitialState, Role::GradFinalState] {
        put_input(builder, places, role);
    }
    put_states(builder, places);
    let lowered = LoweredVector::new(problem.program(), decay, false, is_second, &tangents.captures);
    let linear = Linear { lowered };
    let is_backward = matches!(op, Op::Backward | Op::BackwardJvp);
    let is_there = |names: &[&str]| names.iter().any(|name| places.get(name).is_some());
    let of_outputs = is_there(&OUTPUT);
    let of_rows = is_backward && (is_there(&ROWS) || !wants.captures.is_empty());
    let of_columns = is_backward && wants.value;
    let chunked = [problem.batch(), problem.heads(), linear.chunks(builder)];
    let mut states = None;
    if of_outputs || of_rows || is_there(&FINAL_STATE) {
        states = Some(linear.states(builder, places, chunked, Pass::States, &FINAL_STATE)?);
    }
    if let Some(states) = states.clone().filter(|_| of_outputs) {
        linear.outputs(builder, places, chunked, states)?;
    }
    if of_rows || of_columns || is_backward && is_there(&GRAD_INITIAL_STATE) {
        let grads = linear.states(builder, places, chunked, Pass::Grads, &GRAD_INITIAL_STATE)?;
        if of_columns {
            linear.columns(builder, places, grads.clone())?;
        }
        if let Some(states) = states.filter(|_| of_rows) {
            linear.rows(builder, places, wants, [states, grads])?;
        }
    }
    Ok(())
}

/// The final state, and the gradient of the initial one, or their tangents, where those are results.
fn put_states(builder: &Builder<'_>, places: &mut Places) {
    let list = match builder.request.op {
        Op::Forward => [("to_final_state", Role::FinalState), ("", Role::FinalState)],
        Op::ForwardJvp => [("to_final_state_t", Role::TangentFinalState), ("", Role::FinalState)],
        Op::Backward => [("to_grad_initial_state", Role::GradInitialState), ("", Role::FinalState)],
        _ => [
            ("to_grad_initial_state_t", Role::Grad2InitialState),
            ("to_final_state_t", Role::Grad2GradFinalState),
        ],
    };
    for (name, role) in list.into_iter().filter(|(name, _)| !name.is_empty()) {
        if let Some(place) = builder.bound(role) {
            places.put(name, place);
        }
    }
}

/// A count of units; the kernels' loops take what is more than can be launched.
fn product(counts: &[usize]) -> usize {
    counts.iter().fold(1, |product: usize, &n| product.saturating_mul(n))
}

/// The decay's functions.
struct Linear {
    lowered: LoweredVector,
}

impl Linear {
    /// Everything in front of the kernels, `loads` being those whose gradients are wanted.
    fn source(
        &self,
        builder: &Builder<'_>,
        places: &Places,
        written: &[&str],
        pass: Pass,
        loads: &[&LoadGradient],
        shape: &[usize],
    ) -> Result<(String, Vec<Argument>)> {
        let problem = builder.problem;
        let program = problem.program();
        let is_second = builder.request.op == Op::BackwardJvp;
        let defines = [
            ("TANGENTS", i32::from(builder.request.op.is_forward_mode()).to_string()),
            ("PASS", (pass as u8).to_string()),
            ("SCATTER_PAIRS", "0".to_owned()),
            ("LOADS", loads.len().to_string()),
        ];
        let (tensors, arguments) = places.text(problem, written);
        let names = DecayNames(Names { program });
        let lines =
            |roots: &[Expr]| render(program, &self.lowered.graph, roots, &names, "", &|_: &Node| true);
        let Pushed { value, tangent } = self.lowered.value;
        let of_value = lines(&[value, tangent])?;
        let mut decay = format!(
            "struct Decay {{\n    static DEVICE void value(const Tensors& t, const Site& at, R* out) {{\n{}        \
             out[0] = {};\n        out[1] = {};\n    }}\n",
            Rendered::lines(&of_value.each, "        "),
            of_value.results[0],
            of_value.results[1],
        );
        if !loads.is_empty() {
            let mut roots = Vec::new();
            for load in loads {
                roots.extend(&load.index);
                roots.push(if is_second { load.gradient.tangent } else { load.gradient.value });
            }
            let of_loads = lines(&roots)?;
            decay += "    static DEVICE void loads(const Tensors& t, const Site& at, R gx, R gx_t, long long* elements, R* out) {\n";
            decay += &Rendered::lines(&of_loads.each, "        ");
            for (i, results) in of_loads.results.chunks(shape.len() + 1).enumerate() {
                let element = element(shape, &results[..shape.len()]);
                decay += &format!(
                    "        elements[{i}] = {element};\n        out[{i}] = {};\n",
                    results[shape.len()]
                );
            }
            decay += "    }\n";
        }
        decay += "};\n";
        let source = builder.prelude(&defines) + &tensors + &decay + text::SCATTER + text::LINEAR;
        Ok((source, arguments))
    }

    fn threads(
        builder: &mut Builder<'_>,
        source: String,
        entry: &'static str,
        count: usize,
        arguments: Vec<Argument>,
    ) {
        let blocks = count.div_ceil(THREADS).min(i32::MAX as usize) as u64;
        builder.launch_blocks(source, entry, blocks, THREADS as u32, arguments);
    }

    /// Chunks of a sequence.
    fn chunks(&self, builder: &Builder<'_>) -> usize {
        builder.problem.neighborhood().key_shape().iter().product::<usize>().div_ceil(CHUNK)
    }

    /// Room for numbers, with their tangents where there are any.
    fn reserve(builder: &mut Builder<'_>, counts: &[usize]) -> Argument {
        let numbers = 1 + u64::from(builder.request.op.is_forward_mode());
        let count = counts.iter().fold(numbers, |product, &n| product.saturating_mul(n as u64));
        Argument::Workspace(builder.reserve(count))
    }

    /// The states that chunks begin with, or the cotangents of those that they end with, and what comes behind them all.
    fn states(
        &self,
        builder: &mut Builder<'_>,
        places: &Places,
        chunked: [usize; 3],
        pass: Pass,
        written: &[&str],
    ) -> Result<Argument> {
        let entries = match pass {
            Pass::Grads => ["linear_grad_parts", "linear_grad_scan"],
            _ => ["linear_state_parts", "linear_state_scan"],
        };
        let [dim, dim_v] = [builder.problem.head_dim(), builder.problem.head_dim_v()];
        let [batch, heads, chunks] = chunked;
        let states = Self::reserve(builder, &[batch, heads, chunks, dim, dim_v]);
        let factors = Self::reserve(builder, &chunked);
        let (source, mut arguments) = self.source(builder, places, written, pass, &[], &[])?;
        arguments.extend([states.clone(), factors]);
        let of_parts = product(&[batch, heads, chunks, dim_v]);
        Self::threads(builder, source.clone(), entries[0], of_parts, arguments.clone());
        Self::threads(builder, source, entries[1], product(&[batch, heads, dim, dim_v]), arguments);
        Ok(states)
    }

    fn outputs(
        &self,
        builder: &mut Builder<'_>,
        places: &Places,
        [batch, heads, chunks]: [usize; 3],
        states: Argument,
    ) -> Result<()> {
        let (source, mut arguments) = self.source(builder, places, &OUTPUT, Pass::Outputs, &[], &[])?;
        arguments.push(states);
        let columns = product(&[batch, heads, chunks, builder.problem.head_dim_v()]);
        Self::threads(builder, source, "linear_forward", columns, arguments);
        Ok(())
    }

    /// The gradients of queries and keys, and of what the decay loads.
    fn rows(
        &self,
        builder: &mut Builder<'_>,
        places: &Places,
        wants: &Involved,
        states_and_grads: [Argument; 2],
    ) -> Result<()> {
        let problem = builder.problem;
        let tokens: usize = problem.neighborhood().key_shape().iter().product();
        let groups = problem.batch() * problem.heads_kv();
        let [dim, dim_v] = [problem.head_dim(), problem.head_dim_v()];
        let units = product(&[groups, self.chunks(builder), dim]);
        let threads = units.min(builder.target.units as usize * KEEPERS).next_multiple_of(THREADS);
        let decays = Self::reserve(builder, &[problem.batch(), problem.heads(), tokens, dim]);
        let sums = Self::reserve(builder, &[tokens, groups, dim]);
        let kept = Self::reserve(builder, &[KEPT, threads, dim_v]);
        let (source, mut arguments) = self.source(builder, places, &ROWS, Pass::Rows, &[], &[])?;
        arguments.extend(states_and_grads);
        arguments.extend([sums, kept, decays.clone()]);
        Self::threads(builder, source, "linear_rows", threads.min(units), arguments);
        for &capture in &wants.captures {
            self.scatter(builder, places, capture, decays.clone())?;
        }
        Ok(())
    }

    /// The gradients of values.
    fn columns(&self, builder: &mut Builder<'_>, places: &Places, grads: Argument) -> Result<()> {
        let problem = builder.problem;
        let tokens: usize = problem.neighborhood().key_shape().iter().product();
        let groups = problem.batch() * problem.heads_kv();
        let sums = Self::reserve(builder, &[tokens, groups, problem.head_dim_v()]);
        let (source, mut arguments) = self.source(builder, places, &COLUMNS, Pass::Columns, &[], &[])?;
        arguments.extend([grads, sums]);
        let units = product(&[groups, self.chunks(builder), problem.head_dim_v()]);
        Self::threads(builder, source, "linear_columns", units, arguments);
        Ok(())
    }

    /// The gradient of a captured tensor that the decay loads.
    fn scatter(
        &self,
        builder: &mut Builder<'_>,
        places: &Places,
        capture: u8,
        decays: Argument,
    ) -> Result<()> {
        let problem = builder.problem;
        let role = builder.request.op.result_of(Role::Capture(capture)).unwrap_or(Role::Capture(capture));
        builder.add_table(role);
        let is_second = builder.request.op == Op::BackwardJvp;
        let graph = &self.lowered.graph;
        let of = |pushed: &Pushed| if is_second { pushed.tangent } else { pushed.value };
        let loads: Vec<&LoadGradient> = (self.lowered.loads.iter())
            .filter(|load| load.capture == capture && !graph.is_zero(of(&load.gradient)))
            .collect();
        if loads.is_empty() {
            return Ok(());
        }
        let shape = &problem.program().captures()[usize::from(capture)].shape;
        let (source, mut arguments) = self.source(builder, places, &[], Pass::Decays, &loads, shape)?;
        arguments.push(decays);
        let tokens: usize = problem.neighborhood().key_shape().iter().product();
        let extents = [problem.batch(), problem.heads(), tokens].map(|n| n as u64);
        let told = Loads::new(shape, loads.iter().map(|&load| (graph, load)));
        let determined = [(0, Index::Batch), (1, Index::Head), (2, Index::Key)]
            .map(|(which, name)| told.tell_apart(extents[which] as usize, &[name]));
        pieces::launch(builder, source, "scatter_decays", arguments, role, extents, determined);
        Ok(())
    }
}

/// The names of what a decay is made of: those of a pair's functions, and the cotangent.
struct DecayNames<'p>(Names<'p>);

impl Leaves for DecayNames<'_> {
    fn var(&self, var: Var) -> Option<String> {
        match var {
            Var::GradX => Some("gx".to_owned()),
            Var::Tangent(Primal::GradX) => Some("gx_t".to_owned()),
            _ => None,
        }
    }

    fn index(&self, index: Index) -> Option<String> {
        self.0.index(index)
    }

    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
        self.0.load(buffer, index)
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        self.0.random(low, high)
    }
}
