//! The launch that adds pairs' gradients to tables: how rows are shared out among its units.

use natten_core::Role;

use super::Builder;
use crate::family::Argument;

/// Launches the kernel `entry` of a source, which shares out rows of these extents: batch entries, heads, tokens.
/// `determined` says which of them the elements' indices determine.
pub(super) fn launch(
    builder: &mut Builder<'_>,
    source: String,
    entry: &'static str,
    mut arguments: Vec<Argument>,
    role: Role,
    extents: [u64; 3],
    determined: [bool; 3],
) {
    let of = |is: bool| extents.iter().zip(determined).filter(|(_, d)| *d == is).map(|(&n, _)| n).product();
    let (outer, inner): (u64, u64) = (of(true), of(false));
    let entries: u64 = builder.problem.shape(role).iter().map(|&n| n as u64).product();
    let pieces = builder.pieces(entries, outer, inner);
    builder.fills_tables(role, pieces, arguments.len());
    arguments.push(Argument::Workspace(0));
    let mut shares: Vec<u8> = determined.into_iter().flat_map(|d| i32::from(d).to_le_bytes()).collect();
    shares.extend((pieces as i32).to_le_bytes());
    shares.extend((entries as i64).to_le_bytes());
    arguments.push(Argument::Bytes { data: shares, align: 8 });
    builder.launch(source, entry, outer.saturating_mul(pieces), arguments);
}
