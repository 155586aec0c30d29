//! Linear attention by its recurrence: forward, backward, and the tangents of both, by the same text on numbers that carry
//! tangents.

use natten_core::program::{Buffer, Expr, Index, LoadGradient, LoweredVector, Node, Primal, Pushed, Var};
use natten_core::{Error, Op, Result, Role};

use super::functions::{Names, element};
use super::given::{Tangents, Wants, result};
use super::mods::put_input;
use super::tensors::Places;
use super::{Builder, pieces, text};
use crate::NAME;
use crate::family::Argument;
use crate::render::{Leaves, Rendered, render};

pub(super) fn build(
    builder: &mut Builder<'_>,
    places: &mut Places,
    tangents: &Tangents,
    wants: &Wants,
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
    let forward = ["to_output", "to_output_t", "to_final_state", "to_final_state_t"];
    if forward.iter().any(|name| places.get(name).is_some()) {
        linear.forward(builder, places, &forward)?;
    }
    if matches!(op, Op::Backward | Op::BackwardJvp) {
        linear.backward(builder, places, wants)?;
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
        pass: u8,
        loads: &[&LoadGradient],
        shape: &[usize],
    ) -> Result<(String, Vec<Argument>)> {
        let problem = builder.problem;
        let program = problem.program();
        let is_second = builder.request.op == Op::BackwardJvp;
        let defines = [
            ("TANGENTS", i32::from(builder.request.op.is_forward_mode()).to_string()),
            ("PASS", pass.to_string()),
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
        let blocks = (count as u64).div_ceil(128).min(i32::MAX as u64);
        builder.launch_blocks(source, entry, blocks, 128, arguments);
    }

    fn forward(&self, builder: &mut Builder<'_>, places: &Places, written: &[&str]) -> Result<()> {
        let (source, arguments) = self.source(builder, places, written, 0, &[], &[])?;
        let problem = builder.problem;
        let columns = problem.batch() * problem.heads() * problem.head_dim_v();
        Self::threads(builder, source, "linear_forward", columns, arguments);
        Ok(())
    }

    fn backward(&self, builder: &mut Builder<'_>, places: &Places, wants: &Wants) -> Result<()> {
        let problem = builder.problem;
        let numbers = if builder.request.op == Op::BackwardJvp { 2 } else { 1 };
        let tokens: usize = problem.neighborhood().key_shape().iter().product();
        let groups = problem.batch() * problem.heads_kv();
        let reserve = |builder: &mut Builder<'_>, counts: &[usize]| {
            let count = counts.iter().fold(numbers, |product: u64, &n| product.saturating_mul(n as u64));
            Argument::Workspace(builder.reserve(count))
        };
        // States are kept so often that both parts of the memory are about as large.
        let segment = (tokens as f64).sqrt().ceil() as usize;
        let kept = tokens.div_ceil(segment) + segment;
        let decays = reserve(builder, &[problem.batch(), problem.heads(), tokens, problem.head_dim()]);
        let written = [
            "to_grad_query",
            "to_grad_query_t",
            "to_grad_key",
            "to_grad_key_t",
            "to_grad_initial_state",
            "to_grad_initial_state_t",
        ];
        let of_rows = written.iter().any(|name| places.get(name).is_some());
        if of_rows || !wants.captures.is_empty() {
            let sums = reserve(builder, &[tokens, groups, problem.head_dim()]);
            let kept = reserve(builder, &[kept, groups, problem.head_dim(), problem.head_dim_v()]);
            let (source, mut arguments) = self.source(builder, places, &written, 1, &[], &[])?;
            arguments.extend([sums, kept, decays.clone(), Argument::I32(segment as i32)]);
            Self::threads(builder, source, "linear_rows", groups * problem.head_dim(), arguments);
        }
        if wants.value {
            let sums = reserve(builder, &[tokens, groups, problem.head_dim_v()]);
            let written = ["to_grad_value", "to_grad_value_t"];
            let (source, mut arguments) = self.source(builder, places, &written, 2, &[], &[])?;
            arguments.push(sums);
            Self::threads(builder, source, "linear_columns", groups * problem.head_dim_v(), arguments);
        }
        for &capture in &wants.captures {
            self.scatter(builder, places, capture, decays.clone())?;
        }
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
        let role = result(builder.request.op, Role::Capture(capture)).unwrap_or(Role::Capture(capture));
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
        let (source, mut arguments) = self.source(builder, places, &[], 3, &loads, shape)?;
        arguments.push(decays);
        let tokens: usize = problem.neighborhood().key_shape().iter().product();
        let extents = [problem.batch(), problem.heads(), tokens].map(|n| n as u64);
        let has = |which: usize, indices: &[Index]| {
            loads.iter().all(|load| {
                let is_it =
                    |at: Expr| matches!(graph.node(at), Node::Index(index) if indices.contains(index));
                shape
                    .iter()
                    .zip(&load.index)
                    .any(|(&extent, &at)| extent as u64 >= extents[which] && is_it(at))
            })
        };
        let determined = [has(0, &[Index::Batch]), has(1, &[Index::Head]), has(2, &[Index::Key])];
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
