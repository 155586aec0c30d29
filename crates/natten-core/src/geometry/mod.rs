//! Who sees whom. [`Axis`] answers, in closed form, which keys a query sees along one axis and which queries see a
//! key; [`Neighborhood`] is the product of one to three axes; [`Tiles`] turns a neighborhood and two box shapes into
//! what a kernel walks. Written once here, tested against brute force here, used by every backend.
//!
//! A dilated axis falls apart into `dilation` interleaved *residue groups* that never see one another. Inside a group
//! everything is contiguous, so boxes, windows and walks all live in group coordinates: the token `i` is position
//! `i / dilation` of group `i % dilation`.

mod axis;
mod neighborhood;
mod tiles;

pub use axis::{Alignment, Axis, AxisParams, Span};
pub use neighborhood::{MAX_RANK, Neighborhood};
pub use tiles::{Coverage, TileBox, TileClass, Tiles};
