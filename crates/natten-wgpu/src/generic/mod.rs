//! Every operation on every device: plain arithmetic in f32, or in f64 for f64 problems, an invocation a row, a key or a
//! piece of work, without barriers, subgroups or atomics. What the faster families decline ends here, so that whatever
//! the oracle computes, wgpu computes. No result depends on the order in which invocations run.

mod attention;
mod boxed;
pub(crate) mod convert;
mod functions;
mod linear;
mod loops;
mod parts;
mod regions;
mod tables;
mod unfused;
mod vectors;
mod windows;

use std::collections::BTreeMap;

use natten_core::program::Involved;
use natten_core::{Error, OpRequest, PlanOptions, Problem, Result, Role, TensorSpec, padded_tile};

use self::functions::Names;
use self::regions::{Captures, Regions};
use self::tables::Tables;
use crate::NAME;
use crate::family::Choice;
use crate::render::math::{Real, functions as math, prelude};
use crate::sequence::{Binding, Packed, Run, Sequence, Step, workgroups};
use crate::target::Target;
use crate::template::Fill;

const ATTENTION: &str = include_str!("../wgsl/attention.wgsl");

pub(crate) use self::parts::sequence;

/// Where a part of a problem begins: what is added to its batch entries and heads to have those of the whole.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    batch: usize,
    head: usize,
    head_kv: usize,
    /// Heads of the whole.
    heads: usize,
}

/// What an operation does, whatever the arena takes.
///
/// # Errors
/// [`Error::Unsupported`] for what the device has no numbers for; [`Error::Invalid`] as [`Problem::tensors`] and for
/// boxes that are none.
fn piece(
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    target: &Target,
    first: First,
) -> Result<Sequence> {
    let tensors = problem.tensors(request)?;
    for (name, tile) in [("query_tile", &options.query_tile), ("key_tile", &options.key_tile)] {
        if let Some(tile) = tile {
            padded_tile(name, tile, problem)?;
        }
    }
    target.check_dtype(problem.dtype())?;
    let mut builder = Builder { first, ..Builder::new(problem, request, target, tensors) };
    builder.choice = Choice::of(problem, request, options, target, builder.real)?;
    match builder.choice {
        Choice::Matrix(shape) => builder.packed = shape.packed(problem).to_vec(),
        Choice::MatrixBackward(shape) => builder.packed = shape.packed(problem),
        _ => {}
    }
    builder.read_inputs()?;
    if problem.program().decay().is_some() {
        builder.recurrence()?;
    } else if request.op.is_unfused() {
        builder.unfused()?;
    } else {
        builder.attention()?;
    }
    builder.finish()
}

/// A sequence in the making.
struct Builder<'p> {
    problem: &'p Problem,
    request: &'p OpRequest,
    target: &'p Target,
    first: First,
    real: Real,
    tensors: Vec<TensorSpec>,
    /// Elements of the arena so far.
    arena: u64,
    integers: u64,
    regions: Regions,
    captures: Captures,
    tangents: Involved,
    wanted: Involved,
    /// Where results lie when everything is done.
    results: BTreeMap<Role, u64>,
    tables: Tables,
    /// What vector functions took the place of, of queries, keys and values.
    replaced: [Option<vectors::Replaced>; 3],
    steps: Vec<Step>,
    /// What does the operation.
    choice: Choice,
    packed: Vec<Packed>,
}

/// Vectors of one kind: what they are called in templates, themselves, their tangents, and the roles that they have;
/// additional ones lie behind those of the grid.
struct Operand {
    names: [&'static str; 2],
    roles: [Role; 2],
    has_tangent: fn(&Involved) -> bool,
}

const OPERANDS: [Operand; 3] = [
    Operand { names: ["Q", "QT"], roles: [Role::Query, Role::Query], has_tangent: |t| t.query },
    Operand { names: ["K", "KT"], roles: [Role::Key, Role::AdditionalKey], has_tangent: |t| t.key },
    Operand { names: ["V", "VT"], roles: [Role::Value, Role::AdditionalValue], has_tangent: |t| t.value },
];

/// Additional vectors lie behind those of the grid: what is of one is of both.
fn joined(mut involved: Involved) -> Involved {
    involved.key |= involved.additional_key;
    involved.value |= involved.additional_value;
    involved
}

/// The other inputs, by their names in templates.
const OTHERS: [(&str, Role); 14] = [
    ("RPB", Role::Rpb),
    ("RPBT", Role::TangentRpb),
    ("A", Role::Attention),
    ("AT", Role::TangentAttention),
    ("DA", Role::GradAttention),
    ("OUT", Role::Output),
    ("LSE", Role::Logsumexp),
    ("DO", Role::GradOutput),
    ("DOT", Role::TangentGradOutput),
    ("DL", Role::GradLogsumexp),
    ("DLT", Role::TangentGradLogsumexp),
    ("S", Role::InitialState),
    ("ST", Role::TangentInitialState),
    ("DS", Role::GradFinalState),
];

impl<'p> Builder<'p> {
    fn new(
        problem: &'p Problem,
        request: &'p OpRequest,
        target: &'p Target,
        tensors: Vec<TensorSpec>,
    ) -> Self {
        let real = if problem.dtype() == natten_core::DType::F64 { Real::F64 } else { Real::F32 };
        Self {
            problem,
            request,
            target,
            first: First::default(),
            real,
            tensors,
            arena: 0,
            integers: 0,
            regions: Regions::default(),
            captures: Captures::default(),
            tangents: joined(Involved::tangents(problem, request)),
            wanted: joined(Involved::wanted(problem, request)),
            results: BTreeMap::new(),
            tables: Tables::default(),
            replaced: [None; 3],
            steps: Vec::new(),
            choice: Choice::Generic,
            packed: Vec::new(),
        }
    }

    /// Elements of the arena, the first of them.
    fn reserve(&mut self, len: u64) -> u64 {
        let at = self.arena;
        self.arena += len;
        at
    }

    /// Elements of a tensor of the problem.
    fn len(&self, role: Role) -> u64 {
        self.problem.shape(role).iter().map(|&extent| extent as u64).product()
    }

    fn input(&self, role: Role) -> Option<&TensorSpec> {
        self.tensors.iter().find(|spec| spec.role == role && !spec.is_output)
    }

    /// Reads an input, if it is one, to a place; clears the place if it is none.
    fn read(&mut self, role: Role, at: u64) {
        let len = self.len(role);
        match self.input(role) {
            _ if len == 0 => {}
            Some(spec) => {
                let run = convert::step(spec, self.real, at, self.target);
                self.steps.push(Step::Run(run));
            }
            None => self.steps.push(Step::Clear { at, len }),
        }
    }

    /// Lays out all inputs and reads them.
    fn read_inputs(&mut self) -> Result<()> {
        for Operand { names, roles, .. } in &OPERANDS {
            if self.pack_inputs(*roles) {
                continue;
            }
            for (name, roles) in [(names[0], *roles), (names[1], roles.map(tangent))] {
                let mut roles = roles.to_vec();
                roles.dedup();
                if roles.iter().any(|&role| self.input(role).is_some()) {
                    let len = roles.iter().map(|&role| self.len(role)).sum();
                    let mut at = self.reserve(len);
                    self.regions.put(name, at);
                    for role in roles {
                        self.read(role, at);
                        at += self.len(role);
                    }
                }
            }
        }
        let others = OTHERS.into_iter().chain([("DST", Role::TangentGradFinalState)]);
        for (name, role) in others {
            if self.input(role).is_some() && !self.pack_inputs([role; 2]) {
                let at = self.reserve(self.len(role));
                self.regions.put(name, at);
                self.read(role, at);
            }
        }
        for number in 0..self.problem.program().captures().len() as u8 {
            let (role, mut places) = (Role::Capture(number), [None, None, None]);
            if let Some(spec) = self.input(role).cloned() {
                let len = self.len(role);
                if convert::is_integer(&spec) {
                    places[2] = Some(self.integers);
                    let run = convert::step(&spec, self.real, self.integers, self.target);
                    self.integers += len;
                    self.steps.push(Step::Run(run));
                } else {
                    for (place, role) in places.iter_mut().zip([role, Role::TangentCapture(number)]) {
                        if self.input(role).is_some() {
                            let at = self.reserve(len);
                            self.read(role, at);
                            *place = Some(at);
                        }
                    }
                }
            }
            let [numbers, tangents, integers] = places;
            self.captures.numbers.push(numbers);
            self.captures.tangents.push(tangents);
            self.captures.integers.push(integers);
        }
        Ok(())
    }

    /// Packs the vectors of some roles, where shaders take them so.
    fn pack_inputs(&mut self, roles: [Role; 2]) -> bool {
        let Some(packed) = self.packed.iter().copied().find(|packed| packed.role == roles[0]) else {
            return false;
        };
        let mut first = 0;
        let mut roles = roles.to_vec();
        roles.dedup();
        for role in roles {
            if let Some(spec) = self.input(role).filter(|spec| !spec.is_empty()) {
                let run = convert::pack(spec, &packed, first, self.target);
                first += spec.len() as u64 / packed.dim;
                self.steps.push(Step::Run(run));
            }
        }
        true
    }

    /// A result that lies in the arena when everything is done, new.
    fn result(&mut self, role: Role) -> u64 {
        let at = self.reserve(self.len(role));
        self.results.insert(role, at);
        at
    }

    fn wants(&self, role: Role) -> bool {
        self.request.wants.contains(role)
    }

    fn names(&self) -> Names<'_> {
        Names {
            program: self.problem.program(),
            captures: &self.captures,
            first: self.first,
            real: self.real,
        }
    }

    /// A shader of the walks: a template behind everything that they share.
    fn walk(&self, regions: &Regions, template: &str, fill: Fill, functions: &str) -> String {
        let problem = self.problem;
        let fill = regions
            .flags(fill)
            .flag("UNFUSED", self.request.op.is_unfused())
            .flag("ADDITIONAL", problem.additional_tokens() > 0)
            .flag("ZERO_SCALE", problem.scale() == 0.0)
            .flag("LOGSUMEXP", problem.has_logsumexp())
            .value("LOGSUMEXP", problem.program().logsumexp().unwrap_or(0))
            .value("DIM", problem.head_dim())
            .value("DIM_V", problem.head_dim_v())
            .value("WINDOWS", windows::windows(problem))
            .value("KEY_COORDINATES", windows::key_coordinates(problem))
            .value("FUNCTIONS", functions);
        [
            prelude(self.real, self.integers > 0),
            math(self.real),
            windows::sizes(problem),
            format!("const SCALE: R = {};\n", crate::render::number(self.real, problem.scale())),
            regions.declarations(),
            fill.apply(ATTENTION),
            fill.apply(template),
        ]
        .concat()
    }

    /// Runs a shader of so many invocations on the arena.
    fn run(&mut self, label: &str, source: String, invocations: u64) {
        if invocations == 0 {
            return;
        }
        let workgroups = workgroups(invocations, self.target.workgroups);
        self.run_workgroups(label, source, workgroups);
    }

    /// Runs a shader of so many workgroups on the arena.
    fn run_workgroups(&mut self, label: &str, source: String, workgroups: [u32; 3]) {
        let mut bindings = vec![Binding::Arena];
        if source.contains("ints[") {
            bindings.push(Binding::Integers { is_written: false });
        }
        let source = if bindings.len() > 1 { reaching_integers(&source) } else { source };
        self.steps.push(Step::Run(Run { label: label.to_owned(), source, bindings, workgroups }));
    }

    /// Adds up the tables and writes the results.
    fn finish(mut self) -> Result<Sequence> {
        self.add_up_tables();
        for spec in self.tensors.clone().iter().filter(|spec| spec.is_output && !spec.is_empty()) {
            if let Some(packed) = self.packed.iter().find(|packed| packed.role == spec.role) {
                self.steps.push(Step::Run(convert::pack(spec, packed, 0, self.target)));
                continue;
            }
            let Some(&at) = self.results.get(&spec.role) else {
                let what = format!("{} of {}", spec.name, self.request.op);
                return Err(Error::unsupported(NAME, what, "no shader computes it; use --backend cpu"));
            };
            self.steps.push(Step::Run(convert::step(spec, self.real, at, self.target)));
        }
        self.target.check_binding("captured integers", self.integers * 4)?;
        Ok(Sequence {
            family: self.choice.family().name(),
            element: self.real.size(),
            arena: self.arena,
            integers: self.integers,
            steps: self.steps,
            tensors: self.tensors,
            packed: self.packed,
            tiles: self.choice.tiles(),
        })
    }
}

/// The shader with the captured integers within reach of its entry point. A layout that is made from a text has what is
/// reached from there, and a walk may have a function that it does not call.
fn reaching_integers(source: &str) -> String {
    let entry = source.find("fn main(").and_then(|at| source[at..].find(") {\n").map(|end| at + end + 4));
    let (head, body) = source.split_at(entry.unwrap_or(0));
    format!("{head}    _ = ints[0];\n{body}")
}

/// The role of an operand's tangent; every operand has one.
fn tangent(role: Role) -> Role {
    role.tangent().unwrap_or(role)
}

#[cfg(test)]
mod tests {
    use natten_conformance::{Case, run_case};
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;
    use crate::gpu::tests::backend;

    /// Scores that are multiplied by 0 are NaN where they were no numbers.
    #[test]
    fn zero_scales_keep_what_is_no_number() {
        let Some(backend) = backend() else { return };
        for (dtype, value) in [(DType::F32, f64::NAN), (DType::F32, f64::INFINITY), (DType::F64, f64::NAN)] {
            let window = Neighborhood::new(&[AxisParams::new(6, 3)]).unwrap();
            let problem = Problem::builder(window, dtype).head_dim(4).scale(Some(0.0)).build().unwrap();
            let case = Case::new(format!("zero-scale-{dtype}"), problem);
            let data = case.data.clone().plant(Role::Query, 5, value);
            let outcome = run_case(&backend, &case.data(data));
            assert!(outcome.failures.is_empty(), "{outcome}");
            assert!(!outcome.tensors.is_empty(), "{outcome}");
        }
    }
}
