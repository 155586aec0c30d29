//! The fused self attention of Stable Diffusion 2.1 as AWS's samples have it: `fused_self_attn_for_SD_small_head_size`,
//! the kernel that this backend grew from, and its later variant with explicit allocation. Both take q, k, v of shape
//! [S, d] with S a multiple of 128 and d at most 128, keep the whole score strip of 128 queries in SBUF, and divide at
//! the end. They are here to be measured against; [`softmax`](super::softmax) is faster.

use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::{DType, Error, OpRequest, Problem, Result, Role};

use super::builder::Builder;
use super::launch::{Launch, Sink, Source};
use super::reroll::reroll;
use crate::dtype::Dtype;
use crate::ir::{Alu, Engine, Function, Kernel, Op, Operand, PARTITIONS, Space, TensorId, View};

/// What a hidden score becomes: AWS's own constant, exact in bf16.
const HIDDEN: f32 = -9984.0;
/// The softmax scale of the kernel, for d = 64.
pub const SCALE: f32 = 0.125;
/// Tiles on their way from HBM at a time.
const STAGED: usize = 8;
/// Keys of a matrix product in the allocated variant.
const WIDE: usize = 512;

/// How the kernel is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// As the tutorial writes it: 128 keys at a time, tile after tile. Engines as it implies: the vector engine moves
    /// scores out, the scalar engine takes exponentials with their sum and moves transposes out.
    Tutorial,
    /// As the allocated variant writes it: 512 keys at a time, the row maximum taken on the way out of PSUM, four
    /// transposes a bank, two query tiles in turn: scores of one before the products of the other.
    Allocated,
}

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SdAttention {
    /// Tokens.
    pub len: usize,
    /// Elements of a vector.
    pub dim: usize,
    /// The type of q, k, v and the output.
    pub dtype: Dtype,
    /// Whether matrix products take bf16, whatever the dtype.
    pub mixed_precision: bool,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// The schedule.
    pub schedule: Schedule,
}

impl SdAttention {
    /// Absolute and relative tolerance of a comparison with plain attention: `np.allclose(atol=1e-5, rtol=1e-3)`, as the
    /// tutorial's script has it, where the tensors are f32 and a rounding of operands to bf16 averages out, since every
    /// query sees every key. It does not over the few keys that the first queries of a causal row see, and tensors of 16
    /// bits are rounded themselves: there 1e-2, as AWS's unit tests have it.
    pub const fn tolerance(&self) -> (f64, f64) {
        let averages = !self.causal || !self.mixed_precision;
        if self.dtype.size() == 4 && averages { (1e-5, 1e-3) } else { (1e-2, 1e-2) }
    }

    /// What it computes, as a problem of one head.
    ///
    /// # Errors
    /// [`Error::Invalid`] for extents that no problem has.
    pub fn problem(&self) -> Result<Problem> {
        let dtype = match self.dtype {
            Dtype::Bf16 => DType::Bf16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        let causal = self.causal.then_some(Alignment::TopLeft);
        let problem = Problem::builder(Neighborhood::full(self.len, self.len, causal)?, dtype);
        problem.head_dim(self.dim).scale(Some(f64::from(SCALE))).build()
    }

    /// The operation and the kernel with its inputs and outputs.
    ///
    /// # Errors
    /// Those of [`lower`](Self::lower).
    pub fn launch(&self) -> Result<(Problem, OpRequest, Launch)> {
        let kernel = self.lower()?;
        let problem = self.problem()?;
        let request = OpRequest::forward(&problem).wanting([Role::Output]);
        let sources = [Role::Query, Role::Key, Role::Value].map(Source::Role).into();
        Ok((problem, request, Launch { kernel, sources, sinks: vec![Sink::Role(Role::Output)] }))
    }

    /// Lowers the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that it does not do.
    pub fn lower(&self) -> Result<Kernel> {
        let multiple = match self.schedule {
            Schedule::Tutorial => PARTITIONS,
            Schedule::Allocated => 1024,
        };
        if self.len == 0 || !self.len.is_multiple_of(multiple) {
            let rule = format!("it must be a multiple of {multiple}");
            return Err(Error::invalid(
                "length",
                self.len,
                rule,
                "pad the sequence, or use another schedule",
            ));
        }
        if self.dim == 0 || self.dim > PARTITIONS {
            return Err(Error::invalid(
                "head_dim",
                self.dim,
                "it must be from 1 to 128",
                "use natten run --backend neuron, which splits it",
            ));
        }
        if self.causal && self.schedule == Schedule::Allocated {
            return Err(Error::invalid(
                "causal",
                true,
                "the allocated variant has no mask",
                "use the tutorial's",
            ));
        }
        Ok(Sd::new(*self).kernel())
    }
}

struct Sd {
    args: SdAttention,
    b: Builder,
    inputs: [TensorId; 3],
    output: TensorId,
    q_t: TensorId,
    k_t: TensorId,
    v: TensorId,
    staging: TensorId,
    rounded: TensorId,
    strips: [TensorId; 2],
    weights: [TensorId; 2],
    moved: [TensorId; 2],
    maxima: [TensorId; 2],
    minus_max: [TensorId; 2],
    sums: [TensorId; 2],
    sum: [TensorId; 2],
    inverse: [TensorId; 2],
    spread: TensorId,
    divisor: TensorId,
    results: [TensorId; 2],
    turned: [TensorId; 2],
    scores: [TensorId; 4],
    transposes: [TensorId; 2],
    outputs: [TensorId; 2],
    banks: usize,
}

impl Sd {
    fn new(args: SdAttention) -> Self {
        let SdAttention { len, dim, dtype, mixed_precision, .. } = args;
        let of_products = if mixed_precision { Dtype::Bf16 } else { dtype };
        let mut b = Builder::new("sd_attention");
        let inputs = ["query", "key", "value"].map(|name| b.tensor(name, Space::Input, &[len, dim], dtype));
        let output = b.tensor("output", Space::Output, &[len, dim], dtype);
        let tiles = len / PARTITIONS;
        let pair = |b: &mut Builder, name: &str, shape: &[usize], dtype| {
            [0, 1].map(|turn| b.sbuf(format!("{name}{turn}"), shape, dtype))
        };
        let row = |b: &mut Builder, name: &str, columns| pair(b, name, &[PARTITIONS, columns], Dtype::F32);
        let spread = b.sbuf("sum_divisor", &[PARTITIONS, dim], Dtype::F32);
        Self {
            inputs,
            output,
            q_t: b.sbuf("trans_q", &[dim, len], of_products),
            k_t: b.sbuf("trans_k", &[dim, len], of_products),
            v: b.sbuf("trans_v", &[PARTITIONS, tiles * dim], of_products),
            staging: b.sbuf("staging", &[PARTITIONS, STAGED * dim], dtype),
            rounded: b.sbuf("rounded", &[PARTITIONS, STAGED * dim], of_products),
            strips: pair(&mut b, "qk_res_buf", &[PARTITIONS, len], Dtype::F32),
            weights: pair(&mut b, "softmax_res", &[PARTITIONS, len], of_products),
            moved: pair(&mut b, "trans_softmax", &[PARTITIONS, WIDE], of_products),
            maxima: row(&mut b, "neg_max_res", tiles),
            minus_max: row(&mut b, "neg_max", 1),
            sums: row(&mut b, "sum_res", tiles),
            sum: row(&mut b, "sum", 1),
            inverse: row(&mut b, "sum_reciprocal", 1),
            spread,
            divisor: b.sbuf("trans_divisor", &[dim, PARTITIONS], Dtype::F32),
            turned: pair(&mut b, "attn_out", &[PARTITIONS, dim], dtype),
            results: pair(&mut b, "attn_res", &[PARTITIONS, PARTITIONS], dtype),
            scores: [0, 1, 2, 3].map(|turn| b.psum(format!("qk_psum{turn}"), &[PARTITIONS, WIDE])),
            transposes: [0, 1].map(|turn| b.psum(format!("trans_psum{turn}"), &[PARTITIONS, WIDE])),
            outputs: [0, 1].map(|turn| b.psum(format!("attn_res_psum{turn}"), &[PARTITIONS, PARTITIONS])),
            banks: 0,
            args,
            b,
        }
    }

    fn kernel(mut self) -> Kernel {
        let tiles = self.args.len / PARTITIONS;
        let mut body = Vec::new();
        for which in 0..3 {
            let groups = (0..tiles).map(|tile| {
                self.load(which, tile);
                self.b.take_body()
            });
            let groups = groups.collect();
            body.extend(reroll(groups, 0, &[1, STAGED]));
        }
        let mut groups = Vec::new();
        match self.args.schedule {
            Schedule::Tutorial => {
                // The compiler's order is not published; of independent tiles it overlaps some.
                self.score_by_128(0);
                groups.push(self.b.take_body());
                for tile in 0..tiles {
                    self.weigh(tile, self.args.len);
                    if tile + 1 < tiles {
                        self.score_by_128(tile + 1);
                    }
                    self.multiply_as_tutorial(tile);
                    groups.push(self.b.take_body());
                }
            }
            Schedule::Allocated => {
                self.score_by_512(0);
                groups.push(self.b.take_body());
                for tile in 0..tiles {
                    self.weigh(tile, 1024);
                    if tile + 1 < tiles {
                        self.score_by_512(tile + 1);
                    }
                    self.multiply_as_allocated(tile);
                    groups.push(self.b.take_body());
                }
            }
        }
        body.extend(reroll(groups, 0, &[1, 2]));
        self.b.extend(body);
        self.b.finish()
    }

    /// Loads 128 tokens; of queries and keys their transposes, the queries scaled.
    fn load(&mut self, which: usize, tile: usize) {
        let dim = self.args.dim;
        let from =
            self.b.pattern(self.inputs[which], 1, tile * PARTITIONS * dim, vec![(dim, PARTITIONS), (1, dim)]);
        let turn = tile % STAGED;
        let staged = self.b.at(self.staging, PARTITIONS, turn * dim, dim);
        self.b.dma(staged.clone(), from);
        if which == 2 {
            let dst = self.b.at(self.v, PARTITIONS, tile * dim, dim);
            self.b.copy(Engine::Vector, dst, staged);
            return;
        }
        let scale = if which == 0 { SCALE } else { 1.0 };
        let rounded = self.b.at(self.rounded, PARTITIONS, turn * dim, dim);
        self.b.tensor_scalar(rounded.clone(), Alu::Multiply, staged, Operand::Const(scale));
        let psum = self.b.at(self.transposes[tile % 2], dim, 0, PARTITIONS);
        self.b.transpose(psum.clone(), rounded);
        let to = if which == 0 { self.q_t } else { self.k_t };
        let dst = self.b.at(to, dim, tile * PARTITIONS, PARTITIONS);
        self.b.copy(Engine::Scalar, dst, psum);
    }

    fn queries(&self, tile: usize) -> View {
        self.b.at(self.q_t, self.args.dim, tile * PARTITIONS, PARTITIONS)
    }

    fn bank(&mut self, columns: usize) -> View {
        let tensor = self.scores[self.banks % 4];
        self.banks += 1;
        self.b.at(tensor, PARTITIONS, 0, columns)
    }

    /// Scores of a query tile, 128 keys at a time: out by one instruction, the maximum by another.
    fn score_by_128(&mut self, tile: usize) {
        let turn = tile % 2;
        let tiles = self.args.len / PARTITIONS;
        let mut groups = Vec::new();
        let before = self.b.take_body();
        for keys in 0..tiles {
            let psum = self.bank(PARTITIONS);
            let moving = self.b.at(self.k_t, self.args.dim, keys * PARTITIONS, PARTITIONS);
            let stationary = self.queries(tile);
            self.b.matmul(psum.clone(), stationary, moving, false);
            let dst = self.b.at(self.strips[turn], PARTITIONS, keys * PARTITIONS, PARTITIONS);
            self.b.copy(Engine::Vector, dst.clone(), psum);
            if self.args.causal {
                let op = Op::AffineSelect {
                    dst: dst.clone(),
                    data: dst.clone(),
                    pattern: vec![(-1, PARTITIONS)],
                    offset: (tile * PARTITIONS) as i64 - (keys * PARTITIONS) as i64,
                    channel: 1,
                    fill: HIDDEN,
                };
                self.b.push(Engine::GpSimd, op);
            }
            let max = self.b.at(self.maxima[turn], PARTITIONS, keys, 1);
            self.b.reduce(max, Alu::Max, dst, true);
            groups.push(self.b.take_body());
        }
        self.b.extend(before);
        self.b.extend(reroll(groups, 1, &[1, 4]));
        let maxima = self.b.at(self.maxima[turn], PARTITIONS, 0, tiles);
        let dst = self.b.at(self.minus_max[turn], PARTITIONS, 0, 1);
        self.b.reduce(dst, Alu::Min, maxima, false);
    }

    /// Scores of a query tile, 512 keys at a time, the maximum on the way.
    fn score_by_512(&mut self, tile: usize) {
        let turn = tile % 2;
        let count = self.args.len / WIDE;
        for block in 0..count {
            let data = self.bank(WIDE);
            let moving = self.b.at(self.k_t, self.args.dim, block * WIDE, WIDE);
            let stationary = self.queries(tile);
            self.b.matmul(data.clone(), stationary, moving, false);
            let dst = self.b.at(self.strips[turn], PARTITIONS, block * WIDE, WIDE);
            let result = self.b.at(self.maxima[turn], PARTITIONS, block, 1);
            let operand = Operand::Const(1.0);
            let op =
                Op::TensorScalarReduce { dst, data, op: Alu::Multiply, operand, reduce: Alu::Max, result };
            self.b.push(Engine::Vector, op);
        }
        let maxima = self.b.at(self.maxima[turn], PARTITIONS, 0, count);
        let dst = self.b.at(self.minus_max[turn], PARTITIONS, 0, 1);
        self.b.reduce(dst, Alu::Max, maxima, true);
    }

    /// Exponentials and their sums, so many columns at a time, and the sums' inverses.
    fn weigh(&mut self, tile: usize, columns: usize) {
        let turn = tile % 2;
        let pieces = self.args.len / columns;
        for piece in 0..pieces {
            let dst = self.b.at(self.weights[turn], PARTITIONS, piece * columns, columns);
            let data = self.b.at(self.strips[turn], PARTITIONS, piece * columns, columns);
            let bias = self.b.at(self.minus_max[turn], PARTITIONS, 0, 1);
            let sum = self.b.at(self.sums[turn], PARTITIONS, piece, 1);
            self.b.activation(dst, Function::Exp, data, Some(bias), Operand::Const(1.0), Some(sum));
        }
        let sums = self.b.at(self.sums[turn], PARTITIONS, 0, pieces);
        let sum = self.b.at(self.sum[turn], PARTITIONS, 0, 1);
        self.b.reduce(sum.clone(), Alu::Add, sums, false);
        let dst = self.b.at(self.inverse[turn], PARTITIONS, 0, 1);
        self.b.push(Engine::Vector, Op::Reciprocal { dst, data: sum });
    }

    /// The transposed output [d, 128]: values stationary; the divisor transposed too, by the tensor engine in f32.
    fn multiply_as_tutorial(&mut self, tile: usize) {
        let turn = tile % 2;
        let dim = self.args.dim;
        let tiles = self.args.len / PARTITIONS;
        let before = self.b.take_body();
        let out = self.b.at(self.outputs[turn], dim, 0, PARTITIONS);
        let mut groups = Vec::new();
        for keys in 0..tiles {
            let psum = self.b.at(self.transposes[keys % 2], PARTITIONS, 0, PARTITIONS);
            let data = self.b.at(self.weights[turn], PARTITIONS, keys * PARTITIONS, PARTITIONS);
            self.b.transpose(psum.clone(), data);
            let moving = self.b.at(self.moved[keys % 2], PARTITIONS, 0, PARTITIONS);
            self.b.copy(Engine::Scalar, moving.clone(), psum);
            let stationary = self.b.at(self.v, PARTITIONS, keys * dim, dim);
            self.b.matmul(out.clone(), stationary, moving, keys > 0);
            groups.push(self.b.take_body());
        }
        self.b.extend(before);
        self.b.extend(reroll(groups, 1, &[1, 2]));
        let spread = self.b.at(self.spread, PARTITIONS, 0, dim);
        self.b.memset(spread.clone(), 1.0);
        let inverse = Operand::Row(self.b.at(self.inverse[turn], PARTITIONS, 0, 1));
        self.b.tensor_scalar(spread.clone(), Alu::Multiply, spread.clone(), inverse);
        let psum = self.b.at(self.transposes[0], dim, 0, PARTITIONS);
        self.b.transpose(psum.clone(), spread);
        let divisor = self.b.at(self.divisor, dim, 0, PARTITIONS);
        self.b.copy(Engine::Vector, divisor.clone(), psum);
        let result = self.b.at(self.results[turn], dim, 0, PARTITIONS);
        self.b.tensor_tensor(result.clone(), Alu::Multiply, out, divisor);
        // The tutorial stores [d, 128] element by element; compilers transpose once more instead.
        let psum = self.b.at(self.transposes[1], PARTITIONS, 0, dim);
        self.b.transpose(psum.clone(), result);
        let turned = self.b.at(self.turned[turn], PARTITIONS, 0, dim);
        self.b.copy(Engine::Vector, turned.clone(), psum);
        let to = vec![(dim, PARTITIONS), (1, dim)];
        let to = self.b.pattern(self.output, 1, tile * PARTITIONS * dim, to);
        self.b.dma(to, turned);
    }

    /// The output [128, d]: weights stationary, four transposes a bank.
    fn multiply_as_allocated(&mut self, tile: usize) {
        let turn = tile % 2;
        let dim = self.args.dim;
        let out = self.b.at(self.outputs[turn], PARTITIONS, 0, dim);
        let sets = self.args.len / WIDE;
        // The transposes of a set come before the products of the one before it.
        for step in 0..=sets {
            if step < sets {
                let psum = self.transposes[step % 2];
                for part in 0..4 {
                    let column = step * WIDE + part * PARTITIONS;
                    let data = self.b.at(self.weights[turn], PARTITIONS, column, PARTITIONS);
                    let dst = self.b.at(psum, PARTITIONS, part * PARTITIONS, PARTITIONS);
                    self.b.transpose(dst, data);
                }
                let (dst, src) = (
                    self.b.at(self.moved[step % 2], PARTITIONS, 0, WIDE),
                    self.b.at(psum, PARTITIONS, 0, WIDE),
                );
                self.b.copy(Engine::Scalar, dst, src);
            }
            let Some(set) = step.checked_sub(1) else { continue };
            for part in 0..4 {
                let stationary = self.b.at(self.moved[set % 2], PARTITIONS, part * PARTITIONS, PARTITIONS);
                let moving = self.b.at(self.v, PARTITIONS, (set * 4 + part) * dim, dim);
                self.b.matmul(out.clone(), stationary, moving, set > 0 || part > 0);
            }
        }
        let result = self.b.at(self.results[turn], PARTITIONS, 0, dim);
        let inverse = Operand::Row(self.b.at(self.inverse[turn], PARTITIONS, 0, 1));
        self.b.tensor_scalar(result.clone(), Alu::Multiply, out, inverse);
        let to = vec![(dim, PARTITIONS), (1, dim)];
        let to = self.b.pattern(self.output, 1, tile * PARTITIONS * dim, to);
        self.b.dma(to, result);
    }
}
