//! The forward pass on tiles: boxes of queries, tiles of keys, and their shared memory.

use natten_core::{DType, Error, Result};

use super::{Builder, text};
use crate::NAME;
use crate::family::{Argument, Step};

/// Queries of a box, keys of a tile, and blocks that a multiprocessor shall have room for, from best to worst.
const SHAPES: [(u64, u64, u64); 2] = [(64, 64, 1), (32, 32, 1)];

/// The same on tensor cores, which are to be fed by eight warps: of two blocks, so that one computes while the other waits,
/// or of one. Scores, which grow with the keys, and output share the registers.
const DMMA_SHAPES: [(u64, u64, u64); 4] = [(64, 32, 2), (128, 16, 1), (64, 16, 1), (32, 16, 1)];

/// The sizes that the kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    queries: u64,
    keys: u64,
    /// Whether the products run on the tensor cores of f64.
    is_dmma: bool,
}

impl Shape {
    /// The largest shape that fits shared memory.
    fn choose(builder: &Builder<'_>) -> Result<Self> {
        let problem = builder.problem;
        // The generations that have them, as long as a warp's output fits registers.
        let is_dmma = problem.dtype() == DType::F64
            && matches!(builder.target.arch, (8, 0) | (9, 0))
            && problem.head_dim_v() <= 128;
        let room = u64::from(builder.target.shared_bytes);
        let shapes = if is_dmma { &DMMA_SHAPES[..] } else { &SHAPES[..] };
        let mut shapes = shapes.iter().filter_map(|&(queries, keys, blocks)| {
            let shape = Self { queries, keys, is_dmma };
            (blocks * (shape.shared_bytes(builder) + shape.own_bytes()) <= room).then_some(shape)
        });
        shapes.next().ok_or_else(|| {
            let what = format!("vectors of {} numbers", problem.head_dim().max(problem.head_dim_v()));
            Error::unsupported(NAME, what, "tiles of them do not fit shared memory")
        })
    }

    /// Bytes of the tiles: queries, keys and values, weights; with what rows are padded by.
    fn shared_bytes(&self, builder: &Builder<'_>) -> u64 {
        let (of_vector, of_value) = if self.is_dmma { (64, 16) } else { (16, 16) };
        let line = |dim: usize, padding: u64| dim.next_multiple_of(32) as u64 * builder.real() + padding;
        let query = line(builder.problem.head_dim(), of_vector);
        let value = line(builder.problem.head_dim_v(), of_value);
        // Tensor cores have a tile's keys and values at once, and the next ones behind them.
        let streamed = if self.is_dmma { 2 * (query + value) } else { query.max(value) };
        let weights = if self.is_dmma { 0 } else { self.queries * (self.keys * builder.real() + 16) };
        self.queries * query + self.keys * streamed + weights
    }

    /// Bytes that the kernel declares itself: 28 of each key, in three places where tiles are copied ahead, and little more.
    const fn own_bytes(&self) -> u64 {
        let places = if self.is_dmma { 3 } else { 1 };
        places * self.keys * 28 + 256
    }

    /// Threads of a block.
    fn threads(&self) -> u32 {
        let threads = if self.is_dmma { self.queries * 2 } else { self.queries / 4 * (self.keys / 4) };
        threads as u32
    }
}

/// The defines of the kernel.
pub(super) fn defines(builder: &Builder<'_>) -> Result<[(&'static str, String); 3]> {
    let shape = Shape::choose(builder)?;
    Ok([
        ("BQ", shape.queries.to_string()),
        ("BK", shape.keys.to_string()),
        ("DMMA", i32::from(shape.is_dmma).to_string()),
    ])
}

/// Launches the kernel behind a source that has everything else.
pub(super) fn launch(
    builder: &mut Builder<'_>,
    source: String,
    mut arguments: Vec<Argument>,
    is_one_sweep: bool,
) -> Result<()> {
    if !is_one_sweep {
        let why = "its tiles are for row functions of one pass, and for their output";
        return Err(Error::unsupported(NAME, "this row function", why));
    }
    let shape = Shape::choose(builder)?;
    let axes = builder.problem.neighborhood().axes();
    let lengths = axes.each_ref().map(|axis| axis.query_len().div_ceil(axis.dilation()) as u64);
    let extents = box_of(shape.queries, lengths);
    let counts: [u64; 3] = std::array::from_fn(|a| lengths[a].div_ceil(extents[a]));
    let boxes: u64 = (0..3).map(|a| counts[a] * axes[a].dilation() as u64).product();
    let data = extents.into_iter().chain(counts).flat_map(|n| (n as i32).to_le_bytes()).collect();
    arguments.push(Argument::Bytes { data, align: 4 });
    let blocks = boxes * (builder.problem.batch() * builder.problem.heads()) as u64;
    let bytes = shape.shared_bytes(builder) as u32;
    builder.launch_blocks(source + text::TILES, "tiles", blocks, shape.threads(), arguments);
    if let Some(Step::Launch(kernel)) = builder.steps.last_mut() {
        kernel.shared_bytes = bytes;
    }
    Ok(())
}

/// A box of `volume` queries, as near to a cube as powers of two allow, no longer than the axes.
fn box_of(volume: u64, lengths: [u64; 3]) -> [u64; 3] {
    let mut extents = [1; 3];
    while extents.iter().product::<u64>() < volume {
        let shorter = (0..3).rev().filter(|&a| extents[a] < lengths[a]).min_by_key(|&a| extents[a]);
        match shorter {
            Some(axis) => extents[axis] *= 2,
            None => break,
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_compact_and_fit() {
        assert_eq!(box_of(64, [1, 1, 4096]), [1, 1, 64]);
        assert_eq!(box_of(64, [1, 56, 56]), [1, 8, 8]);
        assert_eq!(box_of(64, [16, 24, 24]), [4, 4, 4]);
        assert_eq!(box_of(64, [1, 3, 56]), [1, 4, 16]);
        assert_eq!(box_of(64, [1, 1, 5]), [1, 1, 8]);
    }
}
