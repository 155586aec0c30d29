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
//! Masks are added by the tensor engine: the product of the identity and a table of 0 and -1e30, in bf16. Keys and
//! queries are transposed once and stay; values are loaded chunk by chunk.

use natten_core::{OpRequest, Problem, Role};

mod pipeline;

pub use self::pipeline::Choice;
use self::pipeline::{Stage, Tile, columns_of, sets, steps};
use super::builder::Builder;
use super::constants::{Cache, Constants};
use super::launch::{Launch, Sink, Source};
use super::layout::{Layout, Tokens};
use super::reroll::reroll;
use super::windows::{Block, Windows};
use crate::dtype::Dtype;
use crate::ir::{Alu, Engine, Function, MOVING_MAX, Op, Operand, PARTITIONS, Space, Stmt, TensorId, View};

/// What hides a pair, before the scale: finite, since the tensor engine spreads what is not, and exact in no type.
const HIDDEN: f32 = -1e30;
/// The most columns of a strip.
pub const MAX_STRIP: usize = 8192;
/// Transposed weights that wait for their products: one more than the largest delay.
const MOVED: usize = 5;
/// The longest strip that there are four of; of longer ones there are two.
const SHORT_STRIP: usize = 2048;
/// Columns that are transposed and moved out at a time.
const TRANSPOSED: usize = 512;

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
        && windows.query_boxes().all(|tile| columns_of(&windows.blocks(&tile, MOVING_MAX)) <= MAX_STRIP)
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
    /// Transposed queries and keys, by turn and chunk of the head dim.
    resident: [Vec<TensorId>; 2],
    /// Which blocks of 512 tokens are there, of which head.
    loaded: [Vec<Option<usize>>; 2],
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
    rows: Vec<Rows>,
    /// Tiles at work at a time.
    turns: usize,
}

/// Numbers of the rows of a tile.
#[derive(Clone, Copy)]
struct Rows {
    maxima: TensorId,
    minus_max: TensorId,
    sums: TensorId,
    sum: TensorId,
    inverse: TensorId,
    log: TensorId,
}

/// Lowers a problem that [`suits`].
pub fn lower(
    problem: &Problem,
    request: &OpRequest,
    windows: &Windows,
    choice: Choice,
    dtype: Dtype,
) -> Launch {
    let mut tiles = Vec::new();
    let (mut head_number, mut first_set) = (0, 0);
    for batch in 0..problem.batch() {
        for head in 0..problem.heads() {
            for queries in windows.query_boxes() {
                let blocks = windows.blocks(&queries, MOVING_MAX);
                let sets = sets(queries.volume(), &blocks);
                let number = tiles.len();
                let count = sets.len();
                tiles.push(Tile { batch, head, queries, blocks, number, head_number, sets, first_set });
                first_set += count;
            }
            head_number += 1;
        }
    }
    let mut lowering = Lowering::new(problem, request, windows, choice, dtype, &tiles);
    let body = lowering.all(&tiles);
    lowering.finish(body)
}

impl<'a> Lowering<'a> {
    fn new(
        problem: &'a Problem,
        request: &OpRequest,
        windows: &'a Windows,
        choice: Choice,
        dtype: Dtype,
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
        let turns = if problem.batch() * problem.heads() > 1 { 2 } else { 1 };
        let resident = [("q_t", tokens[0]), ("k_t", tokens[1])].map(|(name, tokens)| {
            let mut all = Vec::new();
            for turn in 0..turns {
                for (chunk, &(_, len)) in dims.iter().enumerate() {
                    all.push(b.sbuf(format!("{name}{turn}_{chunk}"), &[len, tokens], dtype));
                }
            }
            all
        });
        let loaded = tokens.map(|tokens| vec![None; turns * tokens.div_ceil(TRANSPOSED)]);
        let strip = tiles.iter().map(Tile::columns).max().unwrap_or(1);
        let blocks = tiles.iter().map(|tile| tile.blocks.len()).max().unwrap_or(1);
        let chunks =
            tiles.iter().flat_map(|tile| tile.blocks.iter().map(|block| block.chunks.len())).sum::<usize>();
        // Two tiles' worth, or all of a head's where that is less.
        let per_tile =
            tiles.iter().map(|tile| tile.blocks.iter().map(|x| x.chunks.len()).sum::<usize>()).max();
        let slots = (6 * per_tile.unwrap_or(1)).clamp(8, 64).min(chunks.max(1));
        let mask_slots = 32;
        let buffers = if strip <= SHORT_STRIP { 4 } else { 2 };
        let many = |b: &mut Builder, name: &str, columns: usize, dtype| -> Vec<TensorId> {
            (0..buffers).map(|turn| b.sbuf(format!("{name}{turn}"), &[PARTITIONS, columns], dtype)).collect()
        };
        let rows = (0..2 * buffers).map(|turn| {
            let mut row =
                |name: &str, columns| b.sbuf(format!("{name}{turn}"), &[PARTITIONS, columns], Dtype::F32);
            Rows {
                maxima: row("m_part", blocks),
                minus_max: row("neg_m", 1),
                sums: row("l_part", blocks),
                sum: row("l", 1),
                inverse: row("l_inv", 1),
                log: row("lse", 1),
            }
        });
        let rows = rows.collect();
        Self {
            dims,
            identity: b.sbuf("identity", &[PARTITIONS, PARTITIONS], Dtype::Bf16),
            resident,
            loaded,
            staging: b.sbuf("staging", &[PARTITIONS, 3 * 4 * dim], dtype),
            staged: 0,
            values: b.sbuf("v", &[PARTITIONS, slots * dim_v], dtype),
            value_cache: Cache::new(slots),
            mask_slots: b.sbuf("mask", &[PARTITIONS, mask_slots * MOVING_MAX], Dtype::Bf16),
            mask_cache: Cache::new(mask_slots),
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
            }
            groups.resize_with(groups.len().max(group + 1), Vec::new);
            groups[group].extend(self.b.take_body());
        }
        body.extend(reroll(groups, 0, &[1, 2, 4]));
        body
    }

    /// Makes sure that a run of tokens is there, transposed; 0 for queries, 1 for keys.
    fn ensure(
        &mut self,
        which: usize,
        batch: usize,
        head: usize,
        turn: usize,
        owner: usize,
        tokens: &Tokens,
    ) {
        let (first, pairs) = self.layouts[which].places(tokens);
        let last = first + pairs.iter().map(|&(stride, count)| stride * (count - 1)).sum::<usize>();
        let per_turn = self.layouts[which].tokens().div_ceil(TRANSPOSED);
        for block in first / TRANSPOSED..=last / TRANSPOSED {
            if self.loaded[which][turn * per_turn + block] != Some(owner) {
                self.loaded[which][turn * per_turn + block] = Some(owner);
                self.load(which, batch, head, turn, block);
            }
        }
    }

    /// Loads 512 tokens and transposes them.
    fn load(&mut self, which: usize, batch: usize, head: usize, turn: usize, block: usize) {
        let layout = self.layouts[which];
        let start = block * TRANSPOSED;
        let count = TRANSPOSED.min(layout.tokens() - start);
        let dim = layout.dim();
        let slot = self.staged % 3 * 4 * dim;
        self.staged += 1;
        let whole = count / PARTITIONS;
        // A partition takes tokens that are neighbours: longer runs of bytes, fewer descriptors. Piece j of the
        // transposes then has the tokens p * whole + j.
        if whole > 0 {
            let (first, pairs) = layout.vectors(batch, head, &Tokens::Range(start, PARTITIONS), 0, dim);
            let pitch = pairs[0].0;
            let src = vec![(pitch * whole, PARTITIONS), (pitch, whole), (1, dim)];
            let src = self.b.pattern(self.inputs[which], 1, first, src);
            let dst = self.b.at(self.staging, PARTITIONS, slot, whole * dim);
            self.b.dma(dst, src);
        }
        let ragged = count - whole * PARTITIONS;
        if ragged > 0 {
            let tokens = Tokens::Range(start + whole * PARTITIONS, ragged);
            let (first, pairs) = layout.vectors(batch, head, &tokens, 0, dim);
            let src = self.b.pattern(self.inputs[which], 1, first, pairs);
            let dst = self.b.at(self.staging, ragged, slot + whole * dim, dim);
            self.b.dma(dst, src);
        }
        for (chunk, (from, len)) in self.dims.clone().into_iter().enumerate() {
            let psum = self.transposes[self.transposed % 2];
            let engine = if self.transposed.is_multiple_of(2) { Engine::Vector } else { Engine::Scalar };
            self.transposed += 1;
            for piece in 0..count.div_ceil(PARTITIONS) {
                let rows = PARTITIONS.min(count - piece * PARTITIONS);
                let data = self.b.at(self.staging, rows, slot + piece * dim + from, len);
                let dst = self.b.at(psum, len, piece * PARTITIONS, rows);
                self.b.transpose(dst, data);
            }
            let to = self.resident[which][turn * self.dims.len() + chunk];
            if whole > 0 {
                let dst = self.b.pattern(to, len, start, vec![(1, whole), (whole, PARTITIONS)]);
                let src = self.b.at(psum, len, 0, whole * PARTITIONS);
                self.b.copy(engine, dst, src);
            }
            if ragged > 0 {
                let at = whole * PARTITIONS;
                let (dst, src) = (self.b.at(to, len, start + at, ragged), self.b.at(psum, len, at, ragged));
                self.b.copy(engine, dst, src);
            }
        }
    }

    /// Where a head's transposed tokens are, and whose they are.
    fn turn_of(&self, which: usize, tile: &Tile) -> (usize, usize, usize) {
        let turns = self.resident[0].len() / self.dims.len();
        let head_kv = tile.head / self.problem.heads_per_kv();
        match which {
            0 => (tile.head, tile.head_number % turns, tile.head_number),
            _ => {
                let number = tile.batch * self.problem.heads_kv() + head_kv;
                (head_kv, number % turns, number)
            }
        }
    }

    /// A view of transposed tokens.
    fn transposed_view(&mut self, which: usize, tile: &Tile, tokens: &Tokens, chunk: usize) -> View {
        let (_, turn, _) = self.turn_of(which, tile);
        let (first, pairs) = self.layouts[which].places(tokens);
        let tensor = self.resident[which][turn * self.dims.len() + chunk];
        self.b.pattern(tensor, self.dims[chunk].1, first, pairs)
    }

    /// The scores of a block of a tile, and their maxima; behind the last block those of the tile.
    fn score(&mut self, tile: &Tile, number: usize) {
        let (rows, turn) = (tile.rows(), tile.number % self.turns);
        let queries = Tokens::Box(tile.queries);
        let (head, query_turn, owner) = self.turn_of(0, tile);
        self.ensure(0, tile.batch, head, query_turn, owner, &queries);
        let (head_kv, key_turn, key_owner) = self.turn_of(1, tile);
        let (block, column) = (&tile.blocks[number], tile.column(number));
        let psum = self.scores[self.scored % 4];
        self.scored += 1;
        let selects = match self.choice.masks {
            Masks::AffineSelect if block.is_edge => self.selects(tile, block),
            _ => None,
        };
        let is_masked = block.is_edge && selects.is_none();
        let mask = is_masked.then(|| self.mask(tile, block)).flatten();
        for (at, keys) in block.runs() {
            self.ensure(1, tile.batch, head_kv, key_turn, key_owner, &keys);
            for chunk in 0..self.dims.len() {
                let stationary = self.transposed_view(0, tile, &queries, chunk);
                let moving = self.transposed_view(1, tile, &keys, chunk);
                let dst = self.b.at(psum, rows, at, keys.len());
                self.b.matmul(dst, stationary, moving, chunk > 0);
            }
        }
        let (len, scale) = (block.len(), self.problem.scale() as f32);
        let scores = self.b.at(psum, rows, 0, len);
        let dst = self.b.at(self.strips[turn], rows, column, len);
        let result = self.b.at(self.rows[tile.number % self.rows.len()].maxima, rows, number, 1);
        match mask {
            None if selects.is_some() => {
                self.b.tensor_scalar(dst.clone(), Alu::Multiply, scores, Operand::Const(scale));
                for (offset, channel, step) in selects.into_iter().flatten() {
                    let op = Op::AffineSelect {
                        dst: dst.clone(),
                        data: dst.clone(),
                        pattern: vec![(step, len)],
                        offset,
                        channel,
                        fill: HIDDEN,
                    };
                    self.b.push(Engine::GpSimd, op);
                }
                self.b.reduce(result, Alu::Max, dst, false);
            }
            Some(mask) if self.choice.masks == Masks::BiasAdd => {
                let op = Op::ScalarTensorTensor {
                    dst: dst.clone(),
                    data: scores,
                    op0: Alu::Multiply,
                    operand: Operand::Const(scale),
                    op1: Alu::Add,
                    b: mask,
                };
                self.b.push(Engine::Vector, op);
                self.b.reduce(result, Alu::Max, dst, false);
            }
            mask => {
                if let Some(mask) = mask {
                    let identity = self.b.at(self.identity, rows, 0, rows);
                    self.b.matmul(scores.clone(), identity, mask, true);
                }
                let op = Op::TensorScalarReduce {
                    dst,
                    data: scores,
                    op: Alu::Multiply,
                    operand: Operand::Const(scale),
                    reduce: Alu::Max,
                    result,
                };
                self.b.push(Engine::Vector, op);
            }
        }
        // Long before they are needed.
        for chunk in &block.chunks {
            self.value(tile, chunk);
        }
        if number + 1 == tile.blocks.len() {
            let maxima =
                self.b.at(self.rows[tile.number % self.rows.len()].maxima, rows, 0, tile.blocks.len());
            let dst = self.b.at(self.rows[tile.number % self.rows.len()].minus_max, rows, 0, 1);
            self.b.reduce(dst, Alu::Max, maxima, true);
        }
    }

    /// The mask of a block as predicates `offset + channel * row + step * column >= 0`, where its windows slide one key a
    /// query: of runs of one axis, away from the borders.
    fn selects(&self, tile: &Tile, block: &Block) -> Option<Vec<(i64, i64, i64)>> {
        let [Tokens::Box(keys)] = block.runs().into_iter().map(|(_, run)| run).collect::<Vec<_>>()[..] else {
            return None;
        };
        if tile.queries.extent[..2] != [1, 1] || keys.extent[..2] != [1, 1] {
            return None;
        }
        let axis = &self.problem.neighborhood().axes()[2];
        let windows: Vec<_> =
            tile.queries.span(2).map(|query| axis.window(tile.queries.group[2], query)).collect();
        let span = keys.span(2);
        let mut selects = Vec::new();
        let first = windows.first()?;
        if windows.iter().any(|window| window.start > span.start) {
            if !windows.iter().enumerate().all(|(row, window)| window.start == first.start + row) {
                return None;
            }
            // key - start >= 0
            selects.push((span.start as i64 - first.start as i64, -1, 1));
        }
        if windows.iter().any(|window| window.end < span.end) {
            if !windows.iter().enumerate().all(|(row, window)| window.end == first.end + row) {
                return None;
            }
            // end - 1 - key >= 0
            selects.push((first.end as i64 - 1 - span.start as i64, 1, -1));
        }
        Some(selects)
    }

    /// The mask of a block in SBUF: what is added to its scores.
    fn mask(&mut self, tile: &Tile, block: &Block) -> Option<View> {
        let (rows, columns) = (tile.rows(), block.len());
        // Added before the scale by the tensor engine, after it by the vector engine.
        let sign =
            if self.choice.masks == Masks::BiasAdd { 1.0 } else { self.problem.scale().signum() as f32 };
        let mut table = vec![0.0; rows * columns];
        for (column, chunk) in block.columns() {
            let Tokens::Box(keys) = chunk else { continue };
            for row in 0..rows {
                for key in 0..chunk.len() {
                    if !self.windows.sees(&tile.queries, row, keys, key) {
                        table[row * columns + column + key] = sign * HIDDEN;
                    }
                }
            }
        }
        let at = self.constants.add(&table);
        let (slot, is_new) = self.mask_cache.slot(&(at, rows, columns));
        let mask = self.b.at(self.mask_slots, rows, slot * MOVING_MAX, columns);
        if is_new {
            let src = self.constants.view(&self.b, at, rows, columns);
            self.b.push(Engine::GpSimd, Op::DmaCopy { dst: mask.clone(), src });
        }
        Some(mask)
    }

    /// The weights of a block of a tile, before their sum is known.
    fn weigh(&mut self, tile: &Tile, number: usize) {
        let (rows, turn) = (tile.rows(), tile.number % self.turns);
        let (column, len) = (tile.column(number), tile.blocks[number].len());
        let dst = self.b.at(self.weights[turn], rows, column, len);
        let data = self.b.at(self.strips[turn], rows, column, len);
        let bias = self.b.at(self.rows[tile.number % self.rows.len()].minus_max, rows, 0, 1);
        let sum = self.b.at(self.rows[tile.number % self.rows.len()].sums, rows, number, 1);
        self.b.activation(dst, Function::Exp, data, Some(bias), Operand::Const(1.0), Some(sum));
    }

    /// The transposes of a set of a tile's weights.
    fn transpose(&mut self, tile: &Tile, number: usize) {
        let (rows, turn) = (tile.rows(), tile.number % self.turns);
        let set = &tile.sets[number];
        let psum = self.transposes[self.transposed % 2];
        self.transposed += 1;
        let len = set[0].1.len();
        for (at, (column, _)) in set.iter().enumerate() {
            let data = self.b.at(self.weights[turn], rows, *column, len);
            let dst = self.b.at(psum, len, at * rows, rows);
            self.b.transpose(dst, data);
        }
        let dst = self.b.at(self.moved[(tile.first_set + number) % MOVED], len, 0, set.len() * rows);
        let src = self.b.at(psum, len, 0, set.len() * rows);
        self.b.copy(Engine::Scalar, dst, src);
    }

    /// The products of a set of a tile's weights and the values.
    fn multiply(&mut self, tile: &Tile, number: usize) {
        let rows = tile.rows();
        let dim = self.problem.head_dim_v();
        for (at, (_, chunk)) in tile.sets[number].iter().enumerate() {
            let moving = self.value(tile, chunk);
            let moved = self.moved[(tile.first_set + number) % MOVED];
            let stationary = self.b.at(moved, chunk.len(), at * rows, rows);
            let dst = self.b.at(self.outputs[tile.number % 2], rows, 0, dim);
            self.b.matmul(dst, stationary, moving, number > 0 || at > 0);
        }
    }

    /// The values of a chunk, in SBUF.
    fn value(&mut self, tile: &Tile, chunk: &Tokens) -> View {
        let head = tile.head / self.problem.heads_per_kv();
        let dim = self.problem.head_dim_v();
        let (slot, is_new) = self.value_cache.slot(&(tile.batch, head, *chunk));
        let view = self.b.at(self.values, chunk.len(), slot * dim, dim);
        if is_new {
            let (first, pairs) = self.layouts[2].vectors(tile.batch, head, chunk, 0, dim);
            let src = self.b.pattern(self.inputs[2], 1, first, pairs);
            self.b.push(Engine::GpSimd, Op::DmaCopy { dst: view.clone(), src });
        }
        view
    }

    /// The output and the logsumexp of a tile.
    fn write(&mut self, tile: &Tile) {
        let rows = tile.rows();
        let numbers = self.rows[tile.number % self.rows.len()];
        let dim = self.problem.head_dim_v();
        let sum = match tile.blocks.len() {
            1 => self.b.at(numbers.sums, rows, 0, 1),
            blocks => {
                let (dst, data) =
                    (self.b.at(numbers.sum, rows, 0, 1), self.b.at(numbers.sums, rows, 0, blocks));
                self.b.reduce(dst.clone(), Alu::Add, data, false);
                dst
            }
        };
        let queries = Tokens::Box(tile.queries);
        if let Some(output) = self.output {
            let inverse = self.b.at(numbers.inverse, rows, 0, 1);
            self.b.push(Engine::Vector, Op::Reciprocal { dst: inverse.clone(), data: sum.clone() });
            let (dst, data) = (
                self.b.at(self.results[tile.number % 2], rows, 0, dim),
                self.b.at(self.outputs[tile.number % 2], rows, 0, dim),
            );
            self.b.tensor_scalar(dst.clone(), Alu::Multiply, data, Operand::Row(inverse));
            let (first, pairs) = self.layouts[3].vectors(tile.batch, tile.head, &queries, 0, dim);
            let to = self.b.pattern(output, 1, first, pairs);
            self.b.dma(to, dst);
        }
        if let Some(logsumexp) = self.logsumexp {
            let log = self.b.at(numbers.log, rows, 0, 1);
            self.b.activation(log.clone(), Function::Log, sum, None, Operand::Const(1.0), None);
            let minus_max = self.b.at(numbers.minus_max, rows, 0, 1);
            self.b.tensor_tensor(log.clone(), Alu::Subtract, log.clone(), minus_max);
            let layout = Layout::of(self.problem, Role::Logsumexp);
            let (first, pairs) = layout.vectors(tile.batch, tile.head, &queries, 0, 1);
            let to = self.b.pattern(logsumexp, 1, first, pairs);
            self.b.dma(to, log);
        }
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
