//! What of a problem is in SBUF at a time. The whole row of scores of a query tile where it fits, and every token of a
//! head transposed; where they do not, a row is done in sections of its keys, one after the other, and of the transposed
//! tokens only the newest stay. So SBUF never overflows, whatever the number of keys.

use natten_core::Problem;

use super::pipeline::columns_of;
use super::{MAX_STRIP, TRANSPOSED};
use crate::ir::{MOVING_MAX, PARTITIONS};
use crate::lower::windows::Windows;

/// Sections that are tried, in columns, where rows are not done in one.
const SECTIONS: [usize; 4] = [4096, 2048, 1024, 512];
/// Bytes a partition of the outputs of the query tiles that share the keys of a section.
const SHARED_BYTES: usize = 8 * 1024;
/// The most bytes a partition of the values that are there at a time.
const VALUE_BYTES: usize = 48 * 1024;

/// A division of SBUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// The most columns of a strip of scores.
    pub(super) section: usize,
    /// Query tiles that go through a section of the keys before the next section is loaded; 1 where there is one.
    pub(super) sharing: usize,
    /// Heads whose transposed tokens are there at a time.
    pub(super) heads: usize,
    /// Of the transposed queries and keys of a head the newest so many; None where all are there.
    pub(super) newest: Option<[usize; 2]>,
    /// Masks that are there at a time.
    pub(super) masks: usize,
    /// Chunks of values that are there at a time.
    pub(super) values: usize,
}

impl Memory {
    /// The divisions that a problem allows, the fastest first.
    pub(super) fn candidates(problem: &Problem, windows: &Windows) -> Vec<Self> {
        let neighborhood = problem.neighborhood();
        let strip = windows.query_boxes().map(|tile| columns_of(&windows.blocks(&tile, MOVING_MAX)));
        let strip = strip.max().unwrap_or(1);
        let has_edges = windows
            .query_boxes()
            .any(|tile| windows.blocks(&tile, MOVING_MAX).iter().any(|block| block.is_edge));
        let chunk = windows.shapes().1.iter().product::<usize>().clamp(1, PARTITIONS);
        let (query_tile, _) = windows.shapes();
        // The newest tokens are a ring, which a box of one axis wraps around in two pieces, and a query tile in none.
        let is_line = neighborhood.rank() == 1
            && neighborhood.axes()[2].dilation() == 1
            && TRANSPOSED.is_multiple_of(query_tile[2]);
        let both_heads = if problem.batch() * problem.heads() > 1 { 2 } else { 1 };

        let mut all = Vec::new();
        let whole = (strip <= MAX_STRIP).then_some(strip);
        for section in whole.into_iter().chain(SECTIONS.into_iter().filter(|&section| section < strip)) {
            let is_whole = section == strip;
            let per_output = problem.head_dim_v() * 4;
            let sharing = if is_whole { 1 } else { (SHARED_BYTES / per_output).clamp(4, 16) };
            let per_section = section.div_ceil(chunk);
            let values = if is_whole { (6 * per_section).clamp(8, 64) } else { 2 * per_section + 8 };
            let values = values.min(VALUE_BYTES / (problem.head_dim_v() * problem.dtype().size())).max(4);
            let masks = |count| if has_edges { count } else { 1 };
            let resident =
                Self { section, sharing, heads: both_heads, newest: None, masks: masks(32), values };
            all.push(resident);
            if is_line {
                let queries = ((sharing + 4) * query_tile[2]).next_multiple_of(TRANSPOSED);
                let keys = match is_whole {
                    true => section.next_multiple_of(TRANSPOSED) + 2 * TRANSPOSED,
                    false => 2 * section,
                };
                let newest = Some([queries.max(2 * TRANSPOSED), keys.max(2 * TRANSPOSED)]);
                all.push(Self { newest, masks: masks(8), ..resident });
            } else {
                all.push(Self { heads: 1, masks: masks(8), values: values.min(per_section + 8), ..resident });
            }
        }
        all
    }
}
