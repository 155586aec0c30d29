//! From a graph to a [`Tape`]: which registers expressions live in, and for how long.

use natten_core::program::{Expr, Graph, Index, Node, Program, Type, Unary};
use natten_core::{Error, Result};

use super::{Action, Domain, Instruction, Place, Register, Registers, Tape};
use crate::NAME;
use crate::element::Real;

/// What an expression differs between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Varies {
    rows: bool,
    lanes: bool,
    blocks: bool,
}

impl Varies {
    const ELEMENTS: Self = Self { rows: true, lanes: true, blocks: true };
    const TOKENS: Self = Self { rows: true, lanes: false, blocks: true };

    fn or(self, other: Self) -> Self {
        Self {
            rows: self.rows || other.rows,
            lanes: self.lanes || other.lanes,
            blocks: self.blocks || other.blocks,
        }
    }

    /// Along the one row of a block of tokens.
    fn of(self, domain: Domain) -> Self {
        match domain {
            Domain::Vectors => self,
            Domain::Tokens => Self { rows: false, lanes: self.rows, ..self },
        }
    }
}

fn varies_of(node: &Node, domain: Domain, arguments: impl Fn(Expr) -> Varies) -> Varies {
    match node {
        Node::Var(_) => Varies::ELEMENTS.of(domain),
        Node::Index(Index::Batch | Index::Head | Index::HeadKv | Index::Dim) => Varies::default(),
        Node::Index(Index::Lane) => Varies { lanes: true, ..Varies::default() },
        Node::Index(_) => Varies::TOKENS.of(domain),
        Node::Unary(Unary::LaneSum, a) => Varies { lanes: false, ..arguments(*a) },
        node => node.arguments().into_iter().map(arguments).fold(Varies::default(), Varies::or),
    }
}

/// That a tape can compute an expression of a program, or of a graph that was derived from it.
///
/// # Errors
/// [`Error::Unsupported`] with the operation and its place in the text.
pub(crate) fn check(program: &Program, graph: &Graph, expr: Expr) -> Result<()> {
    let reached = graph.reached(&[expr]);
    let Some((at, _)) =
        graph.iter().find(|(at, node)| reached[at.index()] && matches!(node, Node::Random(..)))
    else {
        return Ok(());
    };
    let what = match program.place_of(at) {
        Some(place) => place.to_string(),
        None => program.print(graph, at),
    };
    Err(Error::unsupported(NAME, what, "a random number belongs to a pair, and this is computed of a token"))
}

/// Registers of one type, those of temporaries used again by others of the same extent.
#[derive(Debug, Default)]
struct File {
    len: usize,
    free: Vec<Register>,
}

impl File {
    fn take(&mut self, varies: Varies, rows: usize, lanes: usize) -> Register {
        let fits = |r: &Register| (r.rows, r.lanes) == (varies.rows, varies.lanes);
        if let Some(at) = self.free.iter().position(fits) {
            return self.free.swap_remove(at);
        }
        let register = Register { at: self.len, rows: varies.rows, lanes: varies.lanes };
        let extent = |differs: bool, extent: usize| if differs { extent } else { 1 };
        let len = extent(varies.rows, rows).saturating_mul(extent(varies.lanes, lanes));
        self.len = self.len.saturating_add(len.checked_next_multiple_of(16).unwrap_or(usize::MAX));
        register
    }
}

impl Tape {
    /// Compiles expressions that [`check`] lets pass, for blocks of at most `rows` rows and `lanes` lanes.
    pub(crate) fn new(graph: &Graph, roots: &[Expr], domain: Domain, rows: usize, lanes: usize) -> Self {
        let reached = graph.reached(roots);
        let order: Vec<(Expr, &Node)> = graph.iter().filter(|(expr, _)| reached[expr.index()]).collect();
        let mut varies = vec![Varies::default(); graph.len()];
        for &(expr, node) in &order {
            varies[expr.index()] = varies_of(node, domain, |argument| varies[argument.index()]);
        }
        // An alias has the register of what it stands for, which lives as long as both.
        let mut stands_for: Vec<Expr> = graph.iter().map(|(expr, _)| expr).collect();
        for &(expr, node) in &order {
            if let Node::Unary(op, a) = node {
                let moves = matches!(op, Unary::LaneHalf | Unary::LanePair) && !varies[a.index()].lanes;
                if moves || *op == Unary::StopGrad {
                    stands_for[expr.index()] = stands_for[a.index()];
                }
            }
        }
        let mut last_use = vec![0; graph.len()];
        for &(expr, node) in &order {
            for argument in node.arguments() {
                last_use[stands_for[argument.index()].index()] = expr.index();
            }
        }
        for root in roots {
            last_use[stands_for[root.index()].index()] = usize::MAX;
        }

        let mut tape = Self {
            rows,
            lanes,
            numbers: 0,
            integers: 0,
            constants: Vec::new(),
            integer_constants: Vec::new(),
            variables: Vec::new(),
            fixed: Vec::new(),
            moving: Vec::new(),
            before: Vec::new(),
            body: Vec::new(),
            roots: Vec::new(),
        };
        let mut files = [File::default(), File::default()];
        let file_of = |expr: Expr| usize::from(graph.type_of(expr) != Type::F);
        let mut registers: Vec<Option<Register>> = vec![None; graph.len()];
        // What no token changes comes first, then what is set from outside before a block: their registers stay.
        let is_leaf = |node: &Node| matches!(node, Node::Var(_) | Node::Index(_));
        let stage = |(expr, node): (Expr, &Node)| match (varies[expr.index()].blocks, is_leaf(node)) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => 2,
        };
        for now in 0..3 {
            let in_body = now > 0;
            for &(expr, node) in order.iter().filter(|&&node| stage(node) == now) {
                let target = stands_for[expr.index()];
                if target != expr {
                    registers[expr.index()] = registers[target.index()];
                    continue;
                }
                let to = files[file_of(expr)].take(varies[expr.index()], rows, lanes);
                registers[expr.index()] = Some(to);
                let of = |argument: Expr| registers[argument.index()].unwrap_or(to);
                tape.emit(graph, (expr, node), to, in_body, of);
                let mut arguments: Vec<Expr> =
                    node.arguments().iter().map(|argument| stands_for[argument.index()]).collect();
                arguments.sort();
                arguments.dedup();
                for argument in arguments {
                    let is_temporary = stage((argument, graph.node(argument))) == 2;
                    if is_temporary && last_use[argument.index()] == expr.index() {
                        files[file_of(argument)].free.extend(registers[argument.index()]);
                    }
                }
            }
        }
        [tape.numbers, tape.integers] = files.map(|file| file.len);
        tape.roots = roots.iter().filter_map(|root| registers[root.index()]).collect();
        tape
    }

    fn emit(
        &mut self,
        graph: &Graph,
        (expr, node): (Expr, &Node),
        to: Register,
        in_body: bool,
        register: impl Fn(Expr) -> Register,
    ) {
        let arguments = node.arguments();
        let action = match node {
            Node::Float(bits) => return self.constants.push((to, f64::from_bits(*bits))),
            Node::Int(value) => return self.integer_constants.push((to, *value)),
            Node::Bool(value) => return self.integer_constants.push((to, i32::from(*value))),
            Node::Var(var) => return self.variables.push((*var, to)),
            Node::Index(Index::Dim) => {
                return self.integer_constants.push((to, i32::try_from(self.lanes).unwrap_or(i32::MAX)));
            }
            Node::Index(index) if in_body => return self.moving.push((*index, to)),
            Node::Index(index) => return self.fixed.push((*index, to)),
            Node::Load(buffer, index) => {
                Action::Load(*buffer, Place::new(graph, index, index.iter().map(|&i| register(i)).collect()))
            }
            Node::Unary(op, _) => Action::Unary(*op),
            Node::Binary(op, ..) => Action::Binary(*op),
            Node::Compare(op, ..) => Action::Compare(*op),
            Node::Select(..) => Action::Select,
            Node::Powi(_, exponent) => Action::Powi(*exponent),
            // `check` refuses what is left.
            _ => return,
        };
        let of = match action {
            Action::Load(..) => graph.type_of(expr),
            // Of a select the branches; the condition is in the other file anyway.
            _ => arguments.last().map_or(Type::F, |&last| graph.type_of(last)),
        };
        let mut registers = [to; 3];
        if !matches!(action, Action::Load(..)) {
            for (slot, &argument) in registers.iter_mut().zip(&arguments) {
                *slot = register(argument);
            }
        }
        let instruction = Instruction { action, of, to, arguments: registers };
        if in_body { self.body.push(instruction) } else { self.before.push(instruction) }
    }

    /// The element that some expressions are the index of, all of them roots; `first` is the number of the first.
    pub(super) fn place(&self, graph: &Graph, index: &[Expr], first: usize) -> Place {
        Place::new(graph, index, self.roots[first..first + index.len()].to_vec())
    }

    /// Elements of `R`'s size that the registers need.
    pub(crate) fn elements(&self, bytes: usize) -> usize {
        let integers = self.integers.saturating_mul(size_of::<i32>()).div_ceil(bytes);
        self.numbers.saturating_add(integers)
    }

    /// Registers in a memory of [`elements`](Self::elements).
    pub(crate) fn registers<'m, R: Real>(&self, memory: &'m mut [R]) -> Registers<'m, R> {
        let (numbers, integers) = memory.split_at_mut(self.numbers);
        let integers = &mut bytemuck::cast_slice_mut(integers)[..self.integers];
        Registers { numbers, integers }
    }
}

impl Place {
    fn new(graph: &Graph, index: &[Expr], axes: Vec<Register>) -> Self {
        let mut varying =
            axes.iter().enumerate().filter(|(_, register)| register.lanes).map(|(axis, _)| axis);
        let along = match (varying.next(), varying.next()) {
            (Some(axis), None) if matches!(graph.node(index[axis]), Node::Index(_)) => Some(axis),
            _ => None,
        };
        Self { axes, along }
    }
}
