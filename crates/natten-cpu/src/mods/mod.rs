//! `query_mod`, `key_mod` and `value_mod`: vector functions around an engine that knows nothing of them.
//!
//! Before the engine runs, queries, keys and values go through their functions into the workspace, in the type that is
//! computed in, and the engine is handed those; behind it, the gradients that it left there go the way back, to those of
//! the tensors and of what the functions load. In forward mode tangents go along both ways. Where the way back of a
//! tangent needs the gradient itself, as it does of any function that is not linear, the engines of the forward and the
//! backward pass run before that of the tangents.

mod stream;

use natten_core::geometry::Coverage;
use natten_core::program::Field;
use natten_core::{
    DType, Op, OpRequest, PlanOptions, Problem, Result, Role, RoleSet, TensorSpec, contiguous_strides,
};

use self::stream::{Buffers, Draft, Stream};
use crate::element::Real;
use crate::engine::{Crew, Engine, Line, Tensors, lines};
use crate::slab::{Slab, lines_of, take};
use crate::tokens::Tokens;
use crate::vector::{CapturedSet, Tables, check};
use crate::view::{View, ViewMut};

/// The functions' fields, and the tensors that each is of.
const FIELDS: [(Field, &[Role]); 3] = [
    (Field::QueryMod, &[Role::Query]),
    (Field::KeyMod, &[Role::Key, Role::AdditionalKey]),
    (Field::ValueMod, &[Role::Value, Role::AdditionalValue]),
];

/// More than there are tensors in the workspace, inputs of an engine, or outputs.
const MAX_TENSORS: usize = 64;

/// Makes the engine of an operation.
pub(crate) type Make = fn(&Problem, &OpRequest, &PlanOptions, Crew) -> Result<(Box<dyn Engine>, Coverage)>;

/// A tensor in the workspace.
#[derive(Clone, Debug)]
struct Buffer {
    role: Role,
    shape: Vec<usize>,
    strides: Vec<isize>,
}

impl Buffer {
    fn len(&self) -> usize {
        self.shape.iter().fold(1, |len: usize, &extent| len.saturating_mul(extent))
    }
}

/// An engine, and its tensors, inputs first.
#[derive(Debug)]
struct Inner {
    engine: Box<dyn Engine>,
    tensors: Vec<TensorSpec>,
}

/// Vector functions around an engine, prepared.
#[derive(Debug)]
pub(crate) struct Mods {
    problem: Problem,
    op: Op,
    crew: Crew,
    streams: Vec<Stream>,
    tables: Tables,
    buffers: Vec<Buffer>,
    /// In the order that they run in.
    engines: Vec<Inner>,
    coverage: Coverage,
}

impl Mods {
    /// Whether the vector functions can be computed.
    ///
    /// # Errors
    /// [`natten_core::Error::Unsupported`] with the operation that cannot, and its place.
    pub(crate) fn supports(problem: &Problem) -> Result<()> {
        let program = problem.program();
        program.mods().into_iter().flatten().try_for_each(|expr| check(program, program.graph(), expr))
    }

    /// Around the engine that `make` makes for the problem without them.
    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        crew: Crew,
        make: Make,
    ) -> Result<Self> {
        let plain = problem.without_mods();
        let captures = captures_of_mods(problem, request);
        let drafts: Vec<Draft> = FIELDS
            .iter()
            .flat_map(|&(field, roles)| roles.iter().map(move |&role| (field, role)))
            .filter(|&(_, role)| problem.has_input(role))
            .filter_map(|(field, role)| Draft::new(problem, request, field, role, &captures))
            .collect();
        let tables = Tables::new(problem, &captures, &drafts.iter().map(Draft::user).collect::<Vec<_>>());
        let streams: Vec<Stream> = drafts.into_iter().map(|draft| draft.compile(&tables)).collect();

        let requests = requests(&plain, request, &streams);
        let mut engines = Vec::new();
        let mut coverage = Coverage::default();
        for request in &requests {
            let (engine, covered) = make(&plain, request, options, crew.clone())?;
            coverage = covered;
            engines.push(Inner { engine, tensors: plain.tensors(request)? });
        }
        let mut this = Self {
            problem: problem.clone(),
            op: request.op,
            crew,
            streams,
            tables,
            buffers: Vec::new(),
            engines,
            coverage,
        };
        this.lay_out(request);
        Ok(this)
    }

    /// The pairs that the engine visits.
    pub(crate) const fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Finds the tensors of the engines that have to lie in the workspace: all that are not tensors of the operation, and
    /// those whose vectors go through a function first or last.
    fn lay_out(&mut self, request: &OpRequest) {
        let outer: Vec<Role> =
            self.problem.tensors(request).into_iter().flatten().map(|spec| spec.role).collect();
        let is_shared = |role: Role| match role {
            Role::GradCapture(n) | Role::Grad2Capture(n) => self.tables.has(n),
            _ => false,
        };
        let mut buffers: Vec<Buffer> = Vec::new();
        for spec in self.engines.iter().flat_map(|inner| &inner.tensors) {
            let stream = self.streams.iter().find(|stream| stream.roles().contains(&spec.role));
            let is_here = stream.is_some() || is_shared(spec.role) || !outer.contains(&spec.role);
            if is_here && !buffers.iter().any(|buffer| buffer.role == spec.role) {
                let strides = match stream {
                    Some(stream) => stream.shape.strides(&spec.shape),
                    None => contiguous_strides(&spec.shape),
                };
                buffers.push(Buffer { role: spec.role, shape: spec.shape.clone(), strides });
            }
        }
        self.buffers = buffers;
    }

    fn bytes(&self) -> usize {
        self.problem.dtype().accumulator().size()
    }

    /// Lines of a thread's scratch.
    fn scratch(&self) -> usize {
        let most = |stream: &Stream| stream.elements(self.bytes()).saturating_add(stream.shape.dim);
        let elements = self.streams.iter().map(most).max().unwrap_or(0);
        lines(elements.saturating_mul(self.bytes())).max(1)
    }

    /// Lines that the functions and the engines use one after another.
    fn shared(&self) -> usize {
        let engines = self.engines.iter().map(|inner| inner.engine.lines()).max().unwrap_or(0);
        self.scratch().saturating_mul(self.crew.threads).max(engines)
    }

    fn run_typed<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        let captured = CapturedSet::new(tensors);
        let rest = &mut &mut *memory;
        let mut buffers: [&mut [R]; MAX_TENSORS] = std::array::from_fn(|at| match self.buffers.get(at) {
            Some(buffer) => take::<R>(rest, buffer.len()),
            None => &mut [],
        });
        let sums = self.tables.clear(take(rest, self.tables.len()));
        let (scratch, shared) = (self.scratch() * self.crew.threads, &mut **rest);

        for stream in &self.streams {
            let to = self.slabs(&mut buffers, stream.inputs());
            stream.apply(&self.crew, &captured, &input(tensors, stream.role), to, &mut shared[..scratch]);
        }
        for inner in &self.engines {
            self.run_inner(inner, tensors, &mut buffers, shared);
        }
        for stream in self.streams.iter().filter(|stream| stream.has_result()) {
            let from = self.slabs(&mut buffers, stream.gradients());
            let input = input(tensors, stream.role);
            let [gradient, second] = stream.gradients();
            let result = if self.op.is_forward_mode() { second } else { gradient };
            let to = tensors.output(result).map(Tokens::<R>::output);
            let tables = (&self.tables, sums);
            stream.pull(&self.crew, &captured, &input, from, to, tables, &mut shared[..scratch]);
        }
        let role = if self.op.is_forward_mode() { Role::Grad2Capture } else { Role::GradCapture };
        let more = |capture: u8, entry: usize| {
            let at = self.buffers.iter().position(|buffer| buffer.role == role(capture));
            at.map_or(0.0, |at| buffers[at][entry].to_f64())
        };
        self.tables.write(&self.crew, &mut shared[..scratch], sums, tensors, role, more);
    }

    /// The tensors of some roles in the workspace; nothing where they do not lie there.
    fn slabs<'b, R: Real>(&self, buffers: &'b mut [&mut [R]], roles: [Role; 2]) -> Buffers<'b, R> {
        let mut slabs = [Slab::new(&mut []); 2];
        for (buffer, numbers) in self.buffers.iter().zip(buffers) {
            if let Some(at) = roles.iter().position(|role| *role == buffer.role) {
                slabs[at] = Slab::new(numbers);
            }
        }
        slabs
    }

    /// Runs an engine on the operation's tensors and those in the workspace.
    fn run_inner<R: Real>(
        &self,
        inner: &Inner,
        tensors: &mut Tensors<'_, '_, '_>,
        buffers: &mut [&mut [R]],
        memory: &mut [Line],
    ) {
        let inputs_end = inner.tensors.iter().take_while(|spec| !spec.is_output).count();
        let (input_specs, output_specs) = inner.tensors.split_at(inputs_end);
        let mut inputs = [View::default(); MAX_TENSORS];
        let mut outputs: [ViewMut<'_>; MAX_TENSORS] = std::array::from_fn(|_| ViewMut::default());
        for (spec, view) in input_specs.iter().zip(&mut inputs) {
            *view = tensors.input(spec.role).copied().unwrap_or_default();
        }
        let place = |specs: &[TensorSpec], role: Role| specs.iter().position(|spec| spec.role == role);
        for (role, view) in tensors.outputs() {
            if let Some(at) = place(output_specs, role) {
                outputs[at] = view.again();
            }
        }
        for (buffer, numbers) in self.buffers.iter().zip(buffers) {
            let Buffer { role, shape, strides } = buffer;
            // A buffer's shape and strides are those of its memory.
            if let Some(at) = place(input_specs, *role) {
                inputs[at] = View::new(numbers, shape, strides, 0).unwrap_or_default();
            } else if let Some(at) = place(output_specs, *role) {
                outputs[at] = ViewMut::new(numbers, shape, strides, 0).unwrap_or_default();
            }
        }
        let specs = (input_specs, output_specs);
        let outputs = &mut outputs[..output_specs.len()];
        inner.engine.run(&mut Tensors::new(specs, &inputs[..inputs_end], outputs), memory);
    }
}

/// The captured tensors that vector functions load, and whose gradients are wanted.
fn captures_of_mods(problem: &Problem, request: &OpRequest) -> Vec<u8> {
    let mut captures = problem.program().captures_of(&FIELDS.map(|(field, _)| field));
    captures.retain(|&n| {
        [Role::GradCapture(n), Role::Grad2Capture(n)].iter().any(|&role| request.wants.contains(role))
    });
    captures
}

/// What the engines are asked, in the order that they run in.
fn requests(plain: &Problem, request: &OpRequest, streams: &[Stream]) -> Vec<OpRequest> {
    let op = request.op;
    // A tensor whose vectors go through a function has tangents where these have, or where what the function loads has.
    let mut given =
        plain.optional_inputs_of(op).iter().filter(|&role| request.gives(role)).collect::<RoleSet>();
    for stream in streams {
        let [_, tangent] = stream.inputs();
        given = if stream.has_tangent { given.with(tangent) } else { given.without(tangent) };
    }
    let results = plain.results_of(op, given);
    let mut wants = request.wants.iter().filter(|&role| results.contains(role)).collect::<RoleSet>();
    for stream in streams {
        let [gradient, second] = stream.gradients();
        for role in [gradient, second].into_iter().filter(|&role| results.contains(role)) {
            wants = if stream.has_result() { wants.with(role) } else { wants.without(role) };
        }
    }
    let mut last = *request;
    (last.wants, last.given) = (wants, given);
    if op != Op::BackwardJvp || !streams.iter().any(|stream| stream.needs_cotangents) {
        return vec![last];
    }
    let gradients =
        streams.iter().filter(|stream| stream.needs_cotangents).map(|stream| stream.gradients()[0]);
    let cotangents =
        [Role::GradLogsumexp, Role::GradFinalState].into_iter().filter(|&role| request.gives(role));
    let backward = OpRequest::backward(plain).wanting(gradients).giving(cotangents);
    let needed = plain.inputs_of(Op::Backward);
    let forward = OpRequest::forward(plain);
    let results = forward.wants.iter().filter(|&role| needed.contains(role)).collect::<RoleSet>();
    let forward = (!results.is_empty()).then(|| forward.wanting(results.iter()));
    forward.into_iter().chain([backward, last]).collect()
}

/// A tensor's vectors, and their tangents where they are given.
fn input<R: Real>(tensors: &Tensors<'_, '_, '_>, role: Role) -> [Option<Tokens<R>>; 2] {
    [Some(role), role.tangent()].map(|role| role.and_then(|role| tensors.input(role)).map(Tokens::<R>::input))
}

impl Engine for Mods {
    fn lines(&self) -> usize {
        let buffer = |buffer: &Buffer| match self.problem.dtype() {
            DType::F64 => lines_of::<f64>(buffer.len()),
            _ => lines_of::<f32>(buffer.len()),
        };
        let buffers = self.buffers.iter().map(buffer).fold(0, usize::saturating_add);
        buffers.saturating_add(lines_of::<f64>(self.tables.len())).saturating_add(self.shared())
    }

    fn config(&self) -> Vec<(String, String)> {
        let names: Vec<&str> = self.streams.iter().map(|stream| stream.role.name()).collect();
        let mut config = vec![("vector functions".to_owned(), names.join(" "))];
        config.extend(self.engines.last().map(|inner| inner.engine.config()).into_iter().flatten());
        config
    }

    fn run(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        match self.problem.dtype() {
            DType::F64 => self.run_typed::<f64>(tensors, memory),
            _ => self.run_typed::<f32>(tensors, memory),
        }
    }
}
