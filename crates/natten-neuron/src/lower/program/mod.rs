//! Attention of any program: forward, its tangents, and backward, from the functions that the core derives.
//!
//! A kernel walks query tiles of at most 128 rows, and of each its keys in blocks of at most 256 columns, as often as
//! the row needs: once for maxima and sums, once for sums of exponentials, once for the product. Scores are recomputed
//! each time rather than kept, so any number of keys does. Backward is two kernels: [`queries`](self) gives the gradient
//! of the queries and the numbers of the rows, the second walks the keys and the queries that see each of them, and
//! needs no transpose of weights.

mod emitter;
mod eval;
mod keys;
mod queries;
mod rows;
mod site;

use std::collections::BTreeMap;

use natten_core::geometry::TileBox;
use natten_core::program::{Expr, Given, GradStages, Lowered, Primal, Var};
use natten_core::{Op, OpRequest, Problem, Result, Role};

use self::emitter::Emitter;
use self::eval::{Value, check};
use self::site::Site;
use super::launch::Launch;
use super::layout::Tokens;
use super::windows::{Block, Windows};
use crate::dtype::Dtype;
use crate::ir::{Alu, Engine, Op as Instruction, Operand, View};

/// Numbers of a tile's rows.
type Rows = BTreeMap<Var, Value>;

/// The functions of a program, on the grid and on additional keys.
#[derive(Debug)]
struct Functions {
    grid: Lowered,
    additional: Lowered,
}

impl Functions {
    fn new(problem: &Problem, request: &OpRequest) -> Self {
        let gives = |roles: &[Role]| roles.iter().any(|&role| request.gives(role));
        let mut given = Given::default();
        given.score =
            gives(&[Role::TangentQuery, Role::TangentKey, Role::TangentRpb, Role::TangentAdditionalKey]);
        given.captures = (0..problem.program().captures().len() as u8)
            .filter(|&n| request.gives(Role::TangentCapture(n)))
            .collect();
        Self {
            grid: Lowered::new(problem.program(), false, &given),
            additional: Lowered::new(problem.program(), true, &given),
        }
    }

    fn of(&self, block: &Block) -> &Lowered {
        if block.additional { &self.additional } else { &self.grid }
    }
}

/// Whether a program can be lowered.
///
/// # Errors
/// [`Error::Unsupported`](natten_core::Error::Unsupported) with the operation that no engine has.
pub fn supports(problem: &Problem, request: &OpRequest) -> Result<()> {
    let functions = Functions::new(problem, request);
    for lowered in [&functions.grid, &functions.additional] {
        let mut roots: Vec<Expr> = lowered.stages.iter().map(|stage| stage.element.value).collect();
        roots.push(lowered.weight.value);
        roots.extend(lowered.mask);
        match request.op {
            Op::ForwardJvp => {
                roots.extend(lowered.stages.iter().map(|stage| stage.element.tangent));
                roots.push(lowered.weight.tangent);
            }
            Op::Backward => {
                roots.push(lowered.grad_score.value);
                roots.extend(lowered.loads.iter().map(|load| load.gradient.value));
                let (GradStages::OfRow(stages) | GradStages::OfPairs(stages)) = &lowered.grad_stages else {
                    continue;
                };
                roots.extend(stages.iter().map(|stage| stage.value));
            }
            _ => {}
        }
        for root in roots {
            check(&lowered.graph, root)?;
        }
        for load in &lowered.loads {
            for &index in &load.index {
                if request.op == Op::Backward && !Site::is_known(&lowered.graph, index) {
                    check(&lowered.graph, index)?;
                }
            }
        }
    }
    Ok(())
}

/// The kernels of an operation, in the order that they run in.
///
/// # Errors
/// As [`supports`].
pub fn lower(
    problem: &Problem,
    request: &OpRequest,
    windows: &Windows,
    key_windows: &Windows,
    dtype: Dtype,
    is_exact: bool,
) -> Result<Vec<Launch>> {
    let functions = Functions::new(problem, request);
    match request.op {
        Op::Backward => {
            let mut launches = Vec::new();
            let of_keys =
                [Role::GradKey, Role::GradValue, Role::GradAdditionalKey, Role::GradAdditionalValue];
            let needs_keys = of_keys.iter().any(|&role| request.wants.contains(role));
            let stats = needs_keys && !functions.grid.stages.is_empty();
            let others = request.wants.iter().any(|role| !of_keys.contains(&role));
            if others || stats {
                launches.push(queries::lower(problem, request, windows, &functions, dtype, is_exact, stats)?);
            }
            if needs_keys {
                launches.push(keys::lower(problem, request, key_windows, &functions, dtype, is_exact)?);
            }
            Ok(launches)
        }
        _ => Ok(vec![queries::lower(problem, request, windows, &functions, dtype, is_exact, false)?]),
    }
}

/// The inputs of matrix products that an operation has.
fn product_inputs(problem: &Problem, request: &OpRequest) -> Vec<Role> {
    let mut roles = vec![Role::Query, Role::Key, Role::Value];
    if problem.additional_tokens() > 0 {
        roles.extend([Role::AdditionalKey, Role::AdditionalValue]);
    }
    if request.op == Op::Backward {
        roles.push(Role::GradOutput);
    }
    let tangents = [
        Role::TangentQuery,
        Role::TangentKey,
        Role::TangentValue,
        Role::TangentAdditionalKey,
        Role::TangentAdditionalValue,
    ];
    roles.extend(tangents.into_iter().filter(|&role| request.gives(role)));
    roles
}

/// Whether a number of an input can spread by way of pairs that nobody sees, through products and transposes of the
/// tensor engine: what is not finite does. The logsumexp of a row that sees nothing does not, and neither does a bias or
/// a captured number of -inf, which is a mask.
pub const fn spreads(role: Role, x: f32) -> bool {
    match role {
        Role::Logsumexp => x.is_nan(),
        Role::Rpb | Role::Capture(_) => !(x.is_finite() || x == f32::NEG_INFINITY),
        _ => !x.is_finite(),
    }
}

/// The tensor of additional tokens that belongs to a tensor of keys or values.
const fn of_additional(role: Role) -> Role {
    match role {
        Role::Key => Role::AdditionalKey,
        Role::Value => Role::AdditionalValue,
        Role::TangentKey => Role::TangentAdditionalKey,
        Role::TangentValue => Role::TangentAdditionalValue,
        other => other,
    }
}

/// A kernel of a program: the emitter, the functions, and what both kernels do with them.
struct Kernel<'a> {
    em: Emitter<'a>,
    problem: &'a Problem,
    functions: &'a Functions,
    request: OpRequest,
}

impl Kernel<'_> {
    fn head_kv(&self, head: usize) -> usize {
        head / self.problem.heads_per_kv()
    }

    /// Of a block that one query sees, or of one key that queries see: what the program's mask leaves of it, token by
    /// token. With numbers that are not finite about, what is masked must not be an operand.
    fn unmasked(
        &self,
        batch: usize,
        head: usize,
        queries: TileBox,
        blocks: Vec<Block>,
    ) -> Result<Vec<Block>> {
        let lowered = &self.functions.grid;
        let Some(mask) = lowered.mask.filter(|&mask| Site::is_known(&lowered.graph, mask)) else {
            return Ok(blocks);
        };
        let mut kept = Vec::new();
        for block in blocks {
            if block.additional {
                kept.push(block);
                continue;
            }
            let site = Site::new(self.problem, batch, head, queries, &block);
            let holds = site.known(&lowered.graph, mask, site.columns())?;
            let mut chunks = Vec::new();
            for (column, chunk) in block.columns() {
                let Tokens::Box(keys) = chunk else { continue };
                for key in (0..keys.volume()).filter(|key| holds[column + key] != 0.0) {
                    let one = TileBox { start: keys.position(key), extent: [1; 3], ..*keys };
                    chunks.push(Tokens::Box(one));
                }
            }
            if !chunks.is_empty() {
                kept.push(Block { chunks, ..block });
            }
        }
        Ok(kept)
    }

    /// The sum of products of vectors of queries and of keys, pair by pair, in PSUM; None where there is none.
    fn products(&mut self, site: &Site<'_>, pairs: &[(Role, Role)]) -> Option<View> {
        let role_of = |role| if site.block.additional { of_additional(role) } else { role };
        let pairs: Vec<(Role, Role)> = pairs
            .iter()
            .map(|&(query, key)| (query, role_of(key)))
            .filter(|&(query, key)| self.em.has(query) && self.em.has(key))
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let psum = self.em.product(site.rows(), site.columns());
        let queries = Tokens::Box(site.queries);
        let head_kv = self.head_kv(site.head);
        for (column, chunk) in site.block.columns() {
            let dst = psum.columns(column, chunk.len());
            let mut accumulates = false;
            for &(query, key) in &pairs {
                let stationary = self.em.transposed(query, site.batch, site.head, &queries);
                let moving = self.em.transposed(key, site.batch, head_kv, chunk);
                for (stationary, moving) in stationary.into_iter().zip(moving) {
                    self.em.b.matmul(dst.clone(), stationary, moving, accumulates);
                    accumulates = true;
                }
            }
        }
        Some(psum)
    }

    /// A score, or its tangent: scaled, the bias added.
    fn scores(&mut self, site: &Site<'_>, pairs: &[(Role, Role)], bias: Role) -> Value {
        let scale = Operand::Const(self.problem.scale() as f32);
        let is_biased = !site.block.additional
            && self.problem.has_rpb()
            && (bias == Role::Rpb || self.request.gives(bias));
        let bias = is_biased.then(|| {
            let tile = self.em.tile(site.rows(), site.columns());
            self.em.load_gathered(bias, site.bias_entries(), tile.clone());
            tile
        });
        let Some(psum) = self.products(site, pairs) else {
            return bias.map_or(Value::Const(0.0), Value::Tile);
        };
        let dst = self.em.tile(site.rows(), site.columns());
        match bias {
            Some(bias) => {
                let op = Instruction::ScalarTensorTensor {
                    dst: dst.clone(),
                    data: psum,
                    op0: Alu::Multiply,
                    operand: scale,
                    op1: Alu::Add,
                    b: bias.clone(),
                };
                self.em.b.push(Engine::Vector, op);
                self.em.release(&bias);
            }
            None => self.em.b.tensor_scalar(dst.clone(), Alu::Multiply, psum, scale),
        }
        Value::Tile(dst)
    }

    /// What the expressions are functions of, pair by pair: those of these that the graph needs.
    fn leaves(&mut self, site: &Site<'_>, roots: &[Expr], lowered: &Lowered, leaves: &mut Rows) {
        let graph = &lowered.graph;
        let reached = graph.reached(roots);
        for var in [Var::Score, Var::Grad, Var::Tangent(Primal::Score)] {
            let is_needed = graph
                .iter()
                .any(|(expr, node)| reached[expr.index()] && *node == natten_core::program::Node::Var(var));
            if !is_needed || leaves.contains_key(&var) {
                continue;
            }
            let value = match var {
                Var::Score => self.scores(site, &[(Role::Query, Role::Key)], Role::Rpb),
                Var::Grad => match self.products(site, &[(Role::GradOutput, Role::Value)]) {
                    Some(psum) => {
                        let dst = self.em.tile(site.rows(), site.columns());
                        self.em.b.copy(Engine::Scalar, dst.clone(), psum);
                        Value::Tile(dst)
                    }
                    None => Value::Const(0.0),
                },
                _ => {
                    let pairs = [(Role::TangentQuery, Role::Key), (Role::Query, Role::TangentKey)];
                    self.scores(site, &pairs, Role::TangentRpb)
                }
            };
            leaves.insert(var, value);
        }
    }

    /// A tile as operands of products that are added up: rounded to the problem's type. Score gradients of programs
    /// are differences of what may be large, so in 16 bits a second operand takes what the first rounds off.
    fn operands(&mut self, tile: &View, is_gradient: bool) -> Vec<View> {
        let first = self.em.operand(tile.clone());
        if self.em.dtype == Dtype::F32 || !is_gradient || self.problem.program().is_plain_softmax() {
            return vec![first];
        }
        let rest = self.em.tile(tile.parts, tile.len());
        self.em.b.tensor_tensor(rest.clone(), Alu::Subtract, tile.clone(), first.clone());
        let second = self.em.operand(rest.clone());
        self.em.release(&rest);
        vec![first, second]
    }

    /// Gives leaves back.
    fn forget(&mut self, leaves: Rows) {
        for value in leaves.into_values() {
            if let Value::Tile(view) = value {
                self.em.release(&view);
            }
        }
    }
}
