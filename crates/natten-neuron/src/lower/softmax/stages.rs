//! The stages that a tile goes through, as instructions: scores, weights, their transposes, products with the values,
//! output.

use natten_core::Role;

use super::masks::Hiding;
use super::pipeline::Tile;
use super::{HIDDEN, Lowering, MOVED, Masks, Numbers};
use crate::ir::{Alu, Engine, Function, Op, Operand, View};
use crate::lower::layout::{Layout, Tokens};

impl Lowering<'_> {
    /// Where the numbers of a tile's rows are.
    fn numbers(&self, tile: &Tile) -> Numbers {
        self.rows[tile.number % self.rows.len()]
    }

    /// The scores of a block of a tile, and their maxima; behind the last block those of the tile.
    pub(super) fn score(&mut self, tile: &Tile, number: usize) {
        let (rows, turn) = (tile.rows(), tile.number % self.turns);
        let queries = self.transposed_tokens(0, tile.query_owner(), &Tokens::Box(tile.queries));
        let (block, column) = (&tile.blocks[number], tile.column(number));
        let psum = self.scores[self.scored % 4];
        self.scored += 1;
        let hiding = self.hiding(tile, block);
        for (at, keys) in block.runs() {
            let mut at = at;
            for piece in self.transposed_tokens(1, tile.key_owner(self.problem), &keys) {
                let len = piece[0].len();
                for (chunk, (stationary, moving)) in queries[0].iter().zip(piece).enumerate() {
                    let dst = self.b.at(psum, rows, at, len);
                    self.b.matmul(dst, stationary.clone(), moving, chunk > 0);
                }
                at += len;
            }
        }
        let (len, scale) = (block.len(), self.problem.scale() as f32);
        let scores = self.b.at(psum, rows, 0, len);
        let dst = self.b.at(self.strips[turn], rows, column, len);
        let result = self.b.at(self.numbers(tile).maxima, rows, number, 1);
        match hiding {
            Hiding::Selects(selects) => {
                self.b.tensor_scalar(dst.clone(), Alu::Multiply, scores, Operand::Const(scale));
                for (offset, channel, step) in selects {
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
            Hiding::Table(mask) if self.choice.masks == Masks::BiasAdd => {
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
            hiding => {
                if let Hiding::Table(mask) = hiding {
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
            self.maximum(tile);
        }
    }

    /// The maximum of a tile's scores, and of those of the sections before: what is taken off.
    fn maximum(&mut self, tile: &Tile) {
        let (rows, numbers) = (tile.rows(), self.numbers(tile));
        let maxima = self.b.at(numbers.maxima, rows, 0, tile.blocks.len());
        let minus_max = self.b.at(numbers.minus_max, rows, 0, 1);
        self.b.reduce(minus_max.clone(), Alu::Max, maxima, true);
        let Some(running) = self.running.filter(|_| tile.sections > 1) else { return };
        // One for the section before and one for this, in turn.
        let kept = |section: usize| self.b.at(running.minus_max, rows, 2 * tile.slot + section % 2, 1);
        let (before, after) = (kept(tile.section + 1), kept(tile.section));
        if tile.section > 0 {
            self.b.tensor_tensor(minus_max.clone(), Alu::Min, minus_max.clone(), before.clone());
            let decay = self.b.at(numbers.decay, rows, 0, 1);
            let (bias, scale) = (Some(minus_max.clone()), Operand::Const(-1.0));
            self.b.activation(decay, Function::Exp, before, bias, scale, None);
        }
        if !tile.is_last() {
            self.b.copy(Engine::Vector, after, minus_max);
        }
    }

    /// The weights of a block of a tile, before their sum is known.
    pub(super) fn weigh(&mut self, tile: &Tile, number: usize) {
        let (rows, turn) = (tile.rows(), tile.number % self.turns);
        let (column, len) = (tile.column(number), tile.blocks[number].len());
        let dst = self.b.at(self.weights[turn], rows, column, len);
        let data = self.b.at(self.strips[turn], rows, column, len);
        let bias = self.b.at(self.numbers(tile).minus_max, rows, 0, 1);
        let sum = self.b.at(self.numbers(tile).sums, rows, number, 1);
        self.b.activation(dst, Function::Exp, data, Some(bias), Operand::Const(1.0), Some(sum));
    }

    /// The transposes of a set of a tile's weights.
    pub(super) fn transpose(&mut self, tile: &Tile, number: usize) {
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
    pub(super) fn multiply(&mut self, tile: &Tile, number: usize) {
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

    /// The output of a tile; before the last section what the next goes on with.
    pub(super) fn write(&mut self, tile: &Tile) {
        let (rows, numbers, dim) = (tile.rows(), self.numbers(tile), self.problem.head_dim_v());
        let mut output = self.b.at(self.outputs[tile.number % 2], rows, 0, dim);
        let mut sum = self.b.at(numbers.sums, rows, 0, 1);
        if tile.blocks.len() > 1 {
            let sums = self.b.at(numbers.sums, rows, 0, tile.blocks.len());
            sum = self.b.at(numbers.sum, rows, 0, 1);
            self.b.reduce(sum.clone(), Alu::Add, sums, false);
        }
        if let Some(running) = self.running.filter(|_| tile.sections > 1) {
            let decay = self.b.at(numbers.decay, rows, 0, 1);
            let total = self.b.at(running.sum, rows, tile.slot, 1);
            let outputs = self.b.at(running.output, rows, tile.slot * dim, dim);
            for (total, part) in [(&total, &mut sum), (&outputs, &mut output)] {
                let part = std::mem::replace(part, total.clone());
                if tile.section == 0 {
                    self.b.copy(Engine::Vector, total.clone(), part);
                    continue;
                }
                let op = Op::ScalarTensorTensor {
                    dst: total.clone(),
                    data: total.clone(),
                    op0: Alu::Multiply,
                    operand: Operand::Row(decay.clone()),
                    op1: Alu::Add,
                    b: part,
                };
                self.b.push(Engine::Vector, op);
            }
        }
        if !tile.is_last() {
            return;
        }
        let queries = Tokens::Box(tile.queries);
        if let Some(tensor) = self.output {
            let inverse = self.b.at(numbers.inverse, rows, 0, 1);
            self.b.push(Engine::Vector, Op::Reciprocal { dst: inverse.clone(), data: sum });
            let dst = self.b.at(self.results[tile.number % 2], rows, 0, dim);
            self.b.tensor_scalar(dst.clone(), Alu::Multiply, output, Operand::Row(inverse));
            let (first, pairs) = self.layouts[3].vectors(tile.batch, tile.head, &queries, 0, dim);
            let to = self.b.pattern(tensor, 1, first, pairs);
            self.b.dma(to, dst);
        }
    }

    /// The logsumexp of a tile. All by the scalar engine, and behind what else it does meanwhile: no engine waits.
    pub(super) fn log(&mut self, tile: &Tile) {
        let Some(tensor) = self.logsumexp.filter(|_| tile.is_last()) else { return };
        let (rows, numbers) = (tile.rows(), self.numbers(tile));
        let sum = match self.running {
            Some(running) if tile.sections > 1 => self.b.at(running.sum, rows, tile.slot, 1),
            _ if tile.blocks.len() > 1 => self.b.at(numbers.sum, rows, 0, 1),
            _ => self.b.at(numbers.sums, rows, 0, 1),
        };
        let log = self.b.at(numbers.log, rows, 0, 1);
        self.b.activation(log.clone(), Function::Log, sum, None, Operand::Const(1.0), None);
        let minus_max = Operand::Row(self.b.at(numbers.minus_max, rows, 0, 1));
        let first = (Alu::Subtract, minus_max, false);
        let op = Op::TensorScalar { dst: log.clone(), data: log.clone(), first, second: None };
        self.b.push(Engine::Scalar, op);
        let layout = Layout::of(self.problem, Role::Logsumexp);
        let (first, pairs) = layout.vectors(tile.batch, tile.head, &Tokens::Box(tile.queries), 0, 1);
        let to = self.b.pattern(tensor, 1, first, pairs);
        self.b.dma(to, log);
    }
}
