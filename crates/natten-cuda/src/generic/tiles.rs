//! The forward pass on tiles: boxes of queries, tiles of keys, and their shared memory.

use natten_core::{DType, Error, Result};

use super::{Builder, text};
use crate::NAME;
use crate::family::{Argument, Step};

/// Queries of a box, and keys of a tile: the larger where shared memory has room for it.
const SIDES: [u64; 2] = [64, 32];

/// Shared memory that the kernel declares itself, at most.
const OWN_BYTES: u64 = 2048;

/// Bytes that rows of the tiles are padded by, and bytes of the tiles: queries, keys or values, weights.
fn padding(builder: &Builder<'_>) -> u64 {
    if is_on_tensor_cores(builder) { 32 } else { 16 }
}

/// Whether the products run on the tensor cores of f64, which this generation has, and in which the output of a warp fits
/// registers.
fn is_on_tensor_cores(builder: &Builder<'_>) -> bool {
    let problem = builder.problem;
    problem.dtype() == DType::F64
        && matches!(builder.target.arch, (8, 0) | (9, 0))
        && problem.head_dim_v() <= 64
}

fn shared_bytes(builder: &Builder<'_>, side: u64) -> u64 {
    let problem = builder.problem;
    let dim = problem.head_dim().max(problem.head_dim_v()).next_multiple_of(32) as u64;
    let line = dim * builder.real() + padding(builder);
    2 * side * line + side * (side * builder.real() + padding(builder))
}

/// The largest side that fits.
fn side(builder: &Builder<'_>) -> Result<u64> {
    let room = u64::from(builder.target.shared_bytes);
    let fits = |side: &u64| shared_bytes(builder, *side) + OWN_BYTES <= room;
    SIDES.into_iter().find(fits).ok_or_else(|| {
        let what =
            format!("vectors of {} numbers", builder.problem.head_dim().max(builder.problem.head_dim_v()));
        Error::unsupported(NAME, what, "tiles of them do not fit shared memory")
    })
}

/// The defines of the kernel.
pub(super) fn defines(builder: &Builder<'_>) -> Result<[(&'static str, String); 3]> {
    let side = side(builder)?.to_string();
    let dmma = i32::from(is_on_tensor_cores(builder)).to_string();
    Ok([("BQ", side.clone()), ("BK", side), ("DMMA", dmma)])
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
    let side = side(builder)?;
    let axes = builder.problem.neighborhood().axes();
    let lengths = axes.each_ref().map(|axis| axis.query_len().div_ceil(axis.dilation()) as u64);
    let extents = box_of(side, lengths);
    let counts: [u64; 3] = std::array::from_fn(|a| lengths[a].div_ceil(extents[a]));
    let boxes: u64 = (0..3).map(|a| counts[a] * axes[a].dilation() as u64).product();
    let data = extents.into_iter().chain(counts).flat_map(|n| (n as i32).to_le_bytes()).collect();
    arguments.push(Argument::Bytes { data, align: 4 });
    let blocks = boxes * (builder.problem.batch() * builder.problem.heads()) as u64;
    let threads = if is_on_tensor_cores(builder) { side * 2 } else { side / 4 * (side / 4) } as u32;
    let bytes = shared_bytes(builder, side) as u32;
    builder.launch_blocks(source + text::TILES, "tiles", blocks, threads, arguments);
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
