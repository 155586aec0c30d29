//! The forward pass of plain softmax, the fast way. A score strip per query tile stays in SBUF, so that the exact maximum
//! is taken off in one pass, and the tiles are software-pipelined: while the scalar engine takes exponentials of one
//! tile and the tensor engine multiplies them with the values, the scores of the next are computed and moved out.
//!
//! ```text
//! tensor   Q K^T + mask      transpose P       P^T V
//! vector   scale, move out, row maximum                        1 / l, times
//! scalar                exp, row sum     move P^T out
//! ```
//!
//! Keys and queries are transposed once and stay, values are loaded chunk by chunk. Where SBUF is too small for that or
//! for a whole row of scores, it is divided otherwise: rows are done in sections of their keys by the online
//! softmax, and what a section adds is kept per query tile.

use natten_core::{OpRequest, Problem, Role};

mod masks;
mod memory;
mod pipeline;
mod resident;
mod stages;

use self::memory::Memory;
pub use self::pipeline::Choice;
use self::pipeline::{Stage, Tile, steps, tiles};
use self::resident::Resident;
use super::builder::Builder;
use super::constants::{Cache, Constants};
use super::launch::{Launch, Sink, Source};
use super::layout::{Layout, Tokens};
use super::reroll::reroll;
use super::windows::Windows;
use crate::dtype::Dtype;
use crate::ir::{MOVING_MAX, PARTITIONS, Space, Stmt, TensorId};
use crate::target::Target;

/// What hides a pair, before the scale: finite, since the tensor engine spreads what is not, and exact in no type.
const HIDDEN: f32 = -1e30;
/// The most columns of a strip.
pub const MAX_STRIP: usize = 8192;
/// Transposed weights that wait for their products: more than the largest delay, and a power of two, so that tiles repeat
/// and become loops.
const MOVED: usize = 8;
/// The longest strip that there are four of; of longer ones there are two.
const SHORT_STRIP: usize = 2048;
/// Columns that are transposed and moved out at a time.
const TRANSPOSED: usize = 512;
/// Blocks of tokens on their way from HBM at a time.
const STAGED: usize = 6;

/// How masks get onto the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masks {
    /// By the tensor engine, as a product with the identity.
    BiasMatmul,
    /// By the vector engine, as it moves the scores out.
    BiasAdd,
    /// By GpSimd, on one-dimensional tiles whose windows slide without a clamp; the others as `BiasMatmul`.
    AffineSelect,
}

impl Masks {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::BiasMatmul, Self::BiasAdd, Self::AffineSelect];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BiasMatmul => "bias-matmul",
            Self::BiasAdd => "bias-add",
            Self::AffineSelect => "affine-select",
        }
    }
}

/// Whether this lowering does a problem: plain softmax over a grid alone, with finite masks.
pub fn suits(problem: &Problem, windows: &Windows) -> bool {
    let scale = problem.scale().abs();
    problem.program().is_plain_softmax()
        && !problem.has_rpb()
        && problem.additional_tokens() == 0
        && (1e-6..1e6).contains(&scale)
        && !windows.has_blind_queries()
        && problem.head_dim_v() <= MOVING_MAX
}

struct Lowering<'a> {
    problem: &'a Problem,
    windows: &'a Windows,
    choice: Choice,
    wants: OpRequest,
    b: Builder,
    inputs: [TensorId; 3],
    layouts: [Layout; 4],
    output: Option<TensorId>,
    logsumexp: Option<TensorId>,
    constants: Constants,
    /// Chunks of the head dim: first element and number.
    dims: Vec<(usize, usize)>,
    identity: TensorId,
    /// Transposed queries, and keys.
    resident: [Resident; 2],
    staging: TensorId,
    staged: usize,
    values: TensorId,
    value_cache: Cache<(usize, usize, Tokens)>,
    mask_slots: TensorId,
    mask_cache: Cache<(usize, usize, usize)>,
    scores: [TensorId; 4],
    scored: usize,
    transposes: [TensorId; 2],
    transposed: usize,
    outputs: [TensorId; 2],
    strips: Vec<TensorId>,
    weights: Vec<TensorId>,
    moved: [TensorId; MOVED],
    results: [TensorId; 2],
    rows: Vec<Numbers>,
    running: Option<Running>,
    /// Tiles at work at a time.
    turns: usize,
}

/// Numbers of the rows of a tile.
#[derive(Clone, Copy)]
struct Numbers {
    maxima: TensorId,
    minus_max: TensorId,
    /// What the sums of the sections before are multiplied by.
    decay: TensorId,
    sums: TensorId,
    sum: TensorId,
    inverse: TensorId,
    log: TensorId,
}

/// What is kept of query tiles from section to section of their keys.
#[derive(Clone, Copy)]
struct Running {
    minus_max: TensorId,
    sum: TensorId,
    output: TensorId,
}

/// Lowers a problem that [`suits`], and tells how many sections its longest row of keys is done in; None where SBUF is
/// too small for any division of it.
pub fn lower(
    problem: &Problem,
    request: &OpRequest,
    windows: &Windows,
    choice: Choice,
    dtype: Dtype,
    target: &Target,
) -> Option<(Launch, usize)> {
    Memory::candidates(problem, windows).into_iter().find_map(|memory| {
        let tiles = tiles(problem, windows, &memory);
        let mut lowering = Lowering::new(problem, request, windows, choice, dtype, &memory, &tiles);
        (lowering.b.sbuf_bytes() <= target.sbuf_bytes).then(|| {
            let body = lowering.all(&tiles);
            (lowering.finish(body), tiles.iter().map(|tile| tile.sections).max().unwrap_or(1))
        })
    })
}

impl<'a> Lowering<'a> {
    fn new(
        problem: &'a Problem,
        request: &OpRequest,
        windows: &'a Windows,
        choice: Choice,
        dtype: Dtype,
        memory: &Memory,
        tiles: &[Tile],
    ) -> Self {
        let mut b = Builder::new("natten_softmax");
        let layouts =
            [Role::Query, Role::Key, Role::Value, Role::Output].map(|role| Layout::of(problem, role));
        let inputs = [Role::Query, Role::Key, Role::Value]
            .map(|role| b.tensor(problem.name(role), Space::Input, &problem.shape(role), dtype));
        let constants = Constants::new(&mut b, "tables", Dtype::Bf16);
        let mut output = |role: Role, dtype| {
            request
                .wants
                .contains(role)
                .then(|| b.tensor(problem.name(role), Space::Output, &problem.shape(role), dtype))
        };
        let (output, logsumexp) = (output(Role::Output, dtype), output(Role::Logsumexp, Dtype::F32));
        let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
        let dims: Vec<(usize, usize)> = (0..dim.div_ceil(PARTITIONS))
            .map(|chunk| (chunk * PARTITIONS, PARTITIONS.min(dim - chunk * PARTITIONS)))
            .collect();
        let tokens = [layouts[0].tokens(), layouts[1].tokens()];
        let room = match memory.newest {
            None => tokens,
            Some(newest) => [0, 1].map(|at| newest[at].min(tokens[at].next_multiple_of(TRANSPOSED))),
        };
        let resident = [("q_t", room[0]), ("k_t", room[1])]
            .map(|(name, room)| Resident::new(&mut b, name, &dims, dtype, memory.heads, room));
        let strip = tiles.iter().map(Tile::columns).max().unwrap_or(1);
        let blocks = tiles.iter().map(|tile| tile.blocks.len()).max().unwrap_or(1);
        let chunks: usize = tiles.iter().flat_map(|tile| &tile.blocks).map(|block| block.chunks.len()).sum();
        let values = memory.values.min(chunks.max(1));
        let buffers = if strip <= SHORT_STRIP { 4 } else { 2 };
        let many = |b: &mut Builder, name: &str, columns: usize, dtype| -> Vec<TensorId> {
            (0..buffers).map(|turn| b.sbuf(format!("{name}{turn}"), &[PARTITIONS, columns], dtype)).collect()
        };
        let rows = (0..2 * buffers).map(|turn| {
            let mut row =
                |name: &str, columns| b.sbuf(format!("{name}{turn}"), &[PARTITIONS, columns], Dtype::F32);
            Numbers {
                maxima: row("m_part", blocks),
                minus_max: row("neg_m", 1),
                decay: row("decay", 1),
                sums: row("l_part", blocks),
                sum: row("l", 1),
                inverse: row("l_inv", 1),
                log: row("lse", 1),
            }
        });
        let rows = rows.collect();
        let mut kept =
            |name: &str, columns| b.sbuf(name, &[PARTITIONS, memory.sharing * columns], Dtype::F32);
        let running = tiles.iter().any(|tile| tile.sections > 1).then(|| Running {
            minus_max: kept("neg_m_run", 2),
            sum: kept("l_run", 1),
            output: kept("o_run", dim_v),
        });
        Self {
            dims,
            identity: b.sbuf("identity", &[PARTITIONS, PARTITIONS], Dtype::Bf16),
            resident,
            staging: b.sbuf("staging", &[PARTITIONS, STAGED * 4 * dim], dtype),
            staged: 0,
            values: b.sbuf("v", &[PARTITIONS, values * dim_v], dtype),
            value_cache: Cache::new(values),
            mask_slots: b.sbuf("mask", &[PARTITIONS, memory.masks * MOVING_MAX], Dtype::Bf16),
            mask_cache: Cache::new(memory.masks),
            scores: [0, 1, 2, 3].map(|turn| b.psum(format!("s{turn}"), &[PARTITIONS, MOVING_MAX])),
            scored: 0,
            transposes: [0, 1].map(|turn| b.psum(format!("t{turn}"), &[PARTITIONS, TRANSPOSED])),
            transposed: 0,
            outputs: [0, 1].map(|turn| b.psum(format!("o_psum{turn}"), &[PARTITIONS, dim_v])),
            strips: many(&mut b, "strip", strip, Dtype::F32),
            weights: many(&mut b, "p", strip, dtype),
            moved: std::array::from_fn(|turn| b.sbuf(format!("p_t{turn}"), &[PARTITIONS, TRANSPOSED], dtype)),
            results: [0, 1].map(|turn| b.sbuf(format!("o_sb{turn}"), &[PARTITIONS, dim_v], dtype)),
            rows,
            running,
            turns: buffers,
            problem,
            windows,
            choice,
            wants: *request,
            inputs,
            layouts,
            output,
            logsumexp,
            constants,
            b,
        }
    }

    /// Every tile, software-pipelined, in loops where tiles repeat.
    fn all(&mut self, tiles: &[Tile]) -> Vec<Stmt> {
        let mut body = Vec::new();
        if tiles.iter().flat_map(|tile| &tile.blocks).any(|block| block.is_edge) {
            let table: Vec<f32> = (0..PARTITIONS * PARTITIONS)
                .map(|i| f32::from(u8::from(i / PARTITIONS == i % PARTITIONS)))
                .collect();
            let at = self.constants.add(&table);
            let src = self.constants.view(&self.b, at, PARTITIONS, PARTITIONS);
            let dst = self.b.at(self.identity, PARTITIONS, 0, PARTITIONS);
            self.b.dma(dst, src);
            body.extend(self.b.take_body());
        }
        let mut groups: Vec<Vec<Stmt>> = Vec::new();
        for (group, stage, tile, part) in steps(tiles, self.turns, self.choice) {
            let tile = &tiles[tile];
            match stage {
                Stage::Score => self.score(tile, part),
                Stage::Weigh => self.weigh(tile, part),
                Stage::Transpose => self.transpose(tile, part),
                Stage::Multiply => self.multiply(tile, part),
                Stage::Write => self.write(tile),
                Stage::Log => self.log(tile),
            }
            groups.resize_with(groups.len().max(group + 1), Vec::new);
            groups[group].extend(self.b.take_body());
        }
        body.extend(reroll(groups, 0, &[1, 2, 4]));
        body
    }

    fn finish(mut self, body: Vec<Stmt>) -> Launch {
        self.b.extend(body);
        let tables = self.constants.finish(&mut self.b);
        let mut sources: Vec<Source> = [Role::Query, Role::Key, Role::Value].map(Source::Role).into();
        sources.push(Source::Constant(tables));
        let sinks = [Role::Output, Role::Logsumexp];
        let sinks =
            sinks.into_iter().filter(|&role| self.wants.wants.contains(role)).map(Sink::Role).collect();
        Launch { kernel: self.b.finish(), sources, sinks }
    }
}
