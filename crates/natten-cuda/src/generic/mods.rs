//! The fused operations and linear attention, and around them `query_mod`, `key_mod` and `value_mod`: vectors go through
//! their functions into the workspace first, and the gradients that the walks leave there go the way back behind them,
//! to those of the tensors and of what the functions load.

use natten_core::program::{
    Buffer, Expr, Field, Index, Involved, LoadGradient, Loads, LoweredVector, Primal, Pushed, Var,
};
use natten_core::{Op, Problem, Result, Role};

use super::attention::Attention;
use super::functions::{Names, element};
use super::linear;
use super::tensors::{Place, Places, Vectors};
use super::{Builder, text};
use crate::family::Argument;
use crate::render::{Leaves, VectorLeaves, VectorText, render_vector};

/// Every operand that is made of vectors: its role, whose function it goes through, and how it lies in the workspace.
const OPERANDS: [(Role, Field, Vectors); 5] = [
    (Role::Query, Field::QueryMod, Vectors::Queries),
    (Role::Key, Field::KeyMod, Vectors::Keys),
    (Role::Value, Field::ValueMod, Vectors::Values),
    (Role::AdditionalKey, Field::KeyMod, Vectors::AdditionalKeys),
    (Role::AdditionalValue, Field::ValueMod, Vectors::AdditionalValues),
];

/// An operand that goes through a function.
struct Stream {
    role: Role,
    vectors: Vectors,
    lowered: LoweredVector,
    /// Whether it has a tangent in front of the function, and behind it.
    tangent: [bool; 2],
    /// The captured tensors of the function whose gradients are wanted.
    captures: Vec<u8>,
}

pub(super) fn build(builder: &mut Builder<'_>) -> Result<()> {
    let (problem, request) = (builder.problem, builder.request);
    let tangents = Involved::tangents(problem, request);
    let wants = Involved::wanted(problem, request);
    let mut places = Places::default();
    let mut streams = Vec::new();
    for (role, field, vectors) in OPERANDS.into_iter().filter(|(role, ..)| problem.has_input(*role)) {
        match problem.program().field(field) {
            Some(expr) => streams.push(Stream::new(builder, &tangents, &wants, role, field, vectors, expr)),
            None => put_operand(builder, &mut places, role),
        }
    }
    for role in [Role::Rpb, Role::GradOutput, Role::GradLogsumexp] {
        put_input(builder, &mut places, role);
    }
    if request.op == Op::Backward {
        put_input(builder, &mut places, Role::Output);
        put_input(builder, &mut places, Role::Logsumexp);
    }
    put_results(builder, &mut places);
    builder.put_captures(&mut places);
    for stream in &streams {
        stream.apply(builder, &mut places)?;
    }
    if problem.program().decay().is_some() {
        linear::build(builder, &mut places, &tangents, &wants)?;
    } else {
        Attention::new(problem, request, &tangents, wants).build(builder, &mut places)?;
    }
    for stream in &streams {
        stream.pull(builder, &places)?;
    }
    Ok(())
}

/// An input and its tangent, as they are bound.
pub(super) fn put_input(builder: &Builder<'_>, places: &mut Places, role: Role) {
    if let Some(place) = builder.bound(role) {
        places.put(role.name(), place);
    }
    if let Some(tangent) = role.tangent()
        && let Some(place) = builder.bound(tangent)
    {
        places.put(tangent.name(), place);
    }
}

/// An operand that goes through no function, and its gradient or that one's tangent.
pub(super) fn put_operand(builder: &Builder<'_>, places: &mut Places, role: Role) {
    put_input(builder, places, role);
    if !matches!(builder.request.op, Op::Backward | Op::BackwardJvp | Op::QkBackward | Op::AvBackward) {
        return;
    }
    let suffix = if builder.request.op == Op::BackwardJvp { "_t" } else { "" };
    if let (Some(gradient), Some(result)) = (role.gradient(), builder.request.op.result_of(role))
        && let Some(place) = builder.bound(result)
    {
        places.put(format!("to_{}{suffix}", gradient.name()), place);
    }
}

/// The output and the logsumexp, or their tangents, where those are results.
fn put_results(builder: &Builder<'_>, places: &mut Places) {
    let results = match builder.request.op {
        Op::Forward => [Role::Output, Role::Logsumexp],
        Op::ForwardJvp => [Role::TangentOutput, Role::TangentLogsumexp],
        Op::BackwardJvp => [Role::Grad2GradOutput, Role::Grad2GradLogsumexp],
        _ => return,
    };
    let suffix = if builder.request.op == Op::Forward { "" } else { "_t" };
    for (name, role) in ["to_output", "to_logsumexp"].into_iter().zip(results) {
        if let Some(place) = builder.bound(role) {
            places.put(format!("{name}{suffix}"), place);
        }
    }
}

impl Stream {
    fn new(
        builder: &Builder<'_>,
        tangents: &Involved,
        wants: &Involved,
        role: Role,
        field: Field,
        vectors: Vectors,
        expr: Expr,
    ) -> Self {
        let program = builder.problem.program();
        let op = builder.request.op;
        let own = role.tangent().is_some_and(|tangent| builder.request.gives(tangent));
        let used = program.captures_of(&[field]);
        let through = used.iter().any(|n| tangents.captures.contains(n));
        let is_pulled = op == Op::BackwardJvp;
        let lowered = LoweredVector::new(program, expr, own, is_pulled, &tangents.captures);
        let captures = used.into_iter().filter(|n| wants.captures.contains(n)).collect();
        Self { role, vectors, lowered, tangent: [own, own || through], captures }
    }

    fn kind(&self) -> (u8, bool) {
        match self.vectors {
            Vectors::Queries => (0, false),
            Vectors::Outputs => (0, true),
            Vectors::Keys => (1, false),
            Vectors::Values => (1, true),
            Vectors::AdditionalKeys => (2, false),
            Vectors::AdditionalValues => (2, true),
        }
    }

    /// The number of vectors: of a batch entry and head, and of all.
    fn extents(&self, problem: &Problem) -> [u64; 3] {
        let tokens = |shape: Vec<usize>| shape.iter().map(|&n| n as u64).product::<u64>();
        let neighborhood = problem.neighborhood();
        let (heads, tokens) = match self.vectors {
            Vectors::Queries | Vectors::Outputs => (problem.heads(), tokens(neighborhood.query_shape())),
            Vectors::Keys | Vectors::Values => (problem.heads_kv(), tokens(neighborhood.key_shape())),
            _ => (problem.heads_kv(), problem.additional_tokens() as u64),
        };
        [problem.batch() as u64, heads as u64, tokens]
    }

    /// Makes the vectors behind the function, and says where they and their gradients lie.
    fn apply(&self, builder: &mut Builder<'_>, places: &mut Places) -> Result<()> {
        let mut own = Places::default();
        builder.put_captures(&mut own);
        self.put_x(builder, &mut own);
        let mut make = |builder: &mut Builder<'_>, name: String, to: Option<&str>| {
            let place = Place::Workspace(builder.reserve_like(self.role), self.vectors);
            places.put(name, place);
            if let Some(to) = to {
                own.put(to, place);
            }
        };
        let name = self.role.name();
        make(builder, name.to_owned(), Some("to_x"));
        let op = builder.request.op;
        if op.is_forward_mode() && self.tangent[1] {
            make(builder, format!("tangent_{name}"), Some("to_x_t"));
        }
        if matches!(op, Op::Backward | Op::BackwardJvp) && self.is_pulled(builder) {
            make(builder, format!("to_grad_{name}"), None);
            if op == Op::BackwardJvp {
                make(builder, format!("to_grad_{name}_t"), None);
            }
        }
        let Pushed { value, tangent } = self.lowered.value;
        self.launch(builder, &own, &[value, tangent])
    }

    /// Whether something behind the gradients of the function's results is wanted.
    fn is_pulled(&self, builder: &Builder<'_>) -> bool {
        let own = builder.request.op.result_of(self.role).and_then(|role| builder.bound(role));
        own.is_some() || !self.captures.is_empty()
    }

    fn put_x(&self, builder: &Builder<'_>, own: &mut Places) {
        if let Some(place) = builder.bound(self.role) {
            own.put("x", place);
        }
        if let Some(place) =
            self.role.tangent().filter(|_| self.tangent[0]).and_then(|role| builder.bound(role))
        {
            own.put("tangent_x", place);
        }
    }

    /// The way back: the gradient of what the function is of, and those of what it loads.
    fn pull(&self, builder: &mut Builder<'_>, places: &Places) -> Result<()> {
        let op = builder.request.op;
        if !matches!(op, Op::Backward | Op::BackwardJvp) || !self.is_pulled(builder) {
            return Ok(());
        }
        let is_second = op == Op::BackwardJvp;
        let mut own = Places::default();
        builder.put_captures(&mut own);
        self.put_x(builder, &mut own);
        let name = self.role.name();
        for (from, to) in [("", "gx"), ("_t", "tangent_gx")] {
            if let Some(place) = places.get(&format!("to_grad_{name}{from}")) {
                own.put(to, place);
            }
        }
        let Pushed { value, tangent } = self.lowered.gradient;
        if let Some(place) = op.result_of(self.role).and_then(|role| builder.bound(role)) {
            own.put(if is_second { "to_x_t" } else { "to_x" }, place);
            self.launch(builder, &own, &[value, tangent])?;
        }
        for &capture in &self.captures {
            let of = |pushed: &Pushed| if is_second { pushed.tangent } else { pushed.value };
            let loads: Vec<&LoadGradient> = (self.lowered.loads.iter())
                .filter(|load| load.capture == capture && !self.lowered.graph.is_zero(of(&load.gradient)))
                .collect();
            if !loads.is_empty() {
                self.scatter(builder, &own, capture, &loads, is_second)?;
            }
        }
        Ok(())
    }

    /// The kernel's text, of a function with these results, and its arguments.
    fn source(
        &self,
        builder: &Builder<'_>,
        own: &Places,
        roots: &[Expr],
        shape: &[usize],
        is_scattered: bool,
    ) -> Result<(String, Vec<Argument>)> {
        let problem = builder.problem;
        let (vectors, of_values) = self.kind();
        let loads = if is_scattered { roots.len() / (shape.len() + 1) } else { 0 };
        let defines = [
            ("TANGENTS", i32::from(builder.request.op.is_forward_mode()).to_string()),
            ("VECTORS", vectors.to_string()),
            ("OF_VALUES", i32::from(of_values).to_string()),
            ("SCATTER_PAIRS", "0".to_owned()),
            ("SCATTER_VECTORS", i32::from(is_scattered).to_string()),
            ("LOADS", loads.to_string()),
        ];
        let (tensors, arguments) = own.text(problem, &["to_x", "to_x_t"]);
        let leaves = ElementLeaves { names: Names { program: problem.program() } };
        let text = render_vector(problem.program(), &self.lowered.graph, roots, &leaves)?;
        let function = function(&text, shape, is_scattered);
        let source = builder.prelude(&defines) + &tensors + &function + text::SCATTER + text::VECTORS;
        Ok((source, arguments))
    }

    fn launch(&self, builder: &mut Builder<'_>, own: &Places, roots: &[Expr]) -> Result<()> {
        let (source, arguments) = self.source(builder, own, roots, &[], false)?;
        let groups = self.extents(builder.problem).iter().product();
        builder.launch(source, "vectors", groups, arguments);
        Ok(())
    }

    fn scatter(
        &self,
        builder: &mut Builder<'_>,
        own: &Places,
        capture: u8,
        loads: &[&LoadGradient],
        tangents: bool,
    ) -> Result<()> {
        let problem = builder.problem;
        let shape = &problem.program().captures()[usize::from(capture)].shape;
        let mut roots = Vec::new();
        for load in loads {
            roots.extend(&load.index);
            roots.push(if tangents { load.gradient.tangent } else { load.gradient.value });
        }
        let (source, arguments) = self.source(builder, own, &roots, shape, true)?;
        let extents = self.extents(problem);
        let told = Loads::new(shape, loads.iter().map(|&load| (&self.lowered.graph, load)));
        let apart = |which: usize, names: &[Index]| told.tell_apart(extents[which] as usize, names);
        let token = if self.vectors == Vectors::Queries { Index::Query } else { Index::Key };
        // The numbers of additional tokens are beyond the grid, where an index that is clamped makes them meet.
        let by_token = !matches!(self.vectors, Vectors::AdditionalKeys | Vectors::AdditionalValues);
        let heads = if self.vectors == Vectors::Queries {
            vec![Index::Head]
        } else {
            vec![Index::Head, Index::HeadKv]
        };
        let determined = [apart(0, &[Index::Batch]), apart(1, &heads), by_token && apart(2, &[token])];
        let role = builder.request.op.result_of(Role::Capture(capture)).unwrap_or(Role::Capture(capture));
        super::pieces::launch(builder, source, "scatter_vectors", arguments, role, extents, determined);
        Ok(())
    }
}

/// `vector_function`: shows a body the results at each element, and where its loads lie.
fn function(text: &VectorText, shape: &[usize], is_scattered: bool) -> String {
    let mut results = Vec::new();
    let mut elements = Vec::new();
    if is_scattered {
        for load in text.results.chunks(shape.len() + 1) {
            elements.push(element(shape, &load[..shape.len()]));
            results.push(load[shape.len()].clone());
        }
    } else {
        results.clone_from(&text.results);
    }
    elements.push("0".to_owned());
    format!(
        "template <class X, class XT, class G, class GT, class Body>\n\
         DEVICE void vector_function(const Tensors& t, const Site& at, int dim, X x, XT x_t, G gx, GT gx_t, Body body) {{\n{}\
         \x20       for (int first = 0; first < dim; first += LANES) {{\n            \
         const bool live = first + lane_of_group() < dim;\n            \
         const int d = least(first + lane_of_group(), dim - 1);\n{}            \
         const R results[] = {{{}}};\n            const long long elements[] = {{{}}};\n            \
         body(d, live, results, elements);\n        }}\n}}\n",
        text.sums,
        text.each,
        results.join(", "),
        elements.join(", "),
    )
}

/// The names of a vector's elements.
struct ElementLeaves<'p> {
    names: Names<'p>,
}

impl VectorLeaves for ElementLeaves<'_> {
    fn at(&self, lane: &str) -> Box<dyn Leaves + '_> {
        Box::new(ElementAt { names: &self.names, lane: lane.to_owned() })
    }
}

struct ElementAt<'p> {
    names: &'p Names<'p>,
    lane: String,
}

impl Leaves for ElementAt<'_> {
    fn var(&self, var: Var) -> Option<String> {
        let vector = match var {
            Var::X => "x",
            Var::GradX => "gx",
            Var::Tangent(Primal::X) => "x_t",
            Var::Tangent(Primal::GradX) => "gx_t",
            _ => return None,
        };
        Some(format!("{vector}({})", self.lane))
    }

    fn index(&self, index: Index) -> Option<String> {
        match index {
            Index::Lane => Some(self.lane.clone()),
            Index::Dim => Some("dim".to_owned()),
            index => self.names.index(index),
        }
    }

    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
        self.names.load(buffer, index)
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        self.names.random(low, high)
    }
}
