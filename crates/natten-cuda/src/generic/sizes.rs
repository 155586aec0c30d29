//! A problem's sizes as the kernels' `struct Sizes`: they are arguments, so that problems of one kind share a kernel.

use natten_core::Problem;
use natten_core::geometry::{Alignment, Axis};

/// The bytes of `struct Sizes` in `kernels/generic_prelude.cu`.
pub(super) fn sizes(problem: &Problem) -> Vec<u8> {
    let neighborhood = problem.neighborhood();
    let slots = neighborhood.window_len().saturating_add(problem.additional_tokens());
    let ints = [
        problem.batch(),
        problem.heads(),
        problem.heads_kv(),
        problem.heads_per_kv(),
        problem.head_dim(),
        problem.head_dim_v(),
        problem.additional_tokens(),
    ];
    let tokens = |shape: Vec<usize>| shape.iter().product::<usize>() as i64;
    let mut bytes: Vec<u8> = neighborhood.axes().iter().flat_map(axis).flat_map(i32::to_le_bytes).collect();
    bytes.extend(ints.into_iter().flat_map(|n| (n as i32).to_le_bytes()));
    // Slots only matter to operations that have them in memory, whose windows are not this long.
    bytes.extend((i32::try_from(slots).unwrap_or(i32::MAX)).to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(tokens(neighborhood.query_shape()).to_le_bytes());
    bytes.extend(tokens(neighborhood.key_shape()).to_le_bytes());
    bytes.extend(problem.scale().to_le_bytes());
    bytes
}

/// `struct Axis`.
fn axis(axis: &Axis) -> [i32; 6] {
    let kind = match (axis.params(), axis.alignment()) {
        (Some(params), _) => 3 + i32::from(params.is_causal),
        (None, None) => 0,
        (None, Some(Alignment::TopLeft)) => 1,
        (None, _) => 2,
    };
    let stride = axis.params().map_or(1, |params| params.stride);
    let lengths = [axis.query_len(), axis.key_len(), axis.window_len(), stride, axis.dilation()];
    let [queries, keys, kernel, stride, dilation] = lengths.map(|n| n as i32);
    [queries, keys, kernel, stride, dilation, kind]
}
