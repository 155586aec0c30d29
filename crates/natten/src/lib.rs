//! **Neighborhood attention on any hardware, with every derivative.** Describe an attention once, pick a backend, get
//! output, logsumexp and gradients.
//!
//! ```
//! use ndarray::Array5;
//! # fn main() -> natten::Result<()> {
//! // A batch of one 16 x 16 picture, two heads of 8 numbers: [B, X, Y, H, D].
//! let query = Array5::<f32>::from_shape_fn((1, 16, 16, 2, 8), |(_, x, y, h, d)| ((x + y * 3 + h + d) % 7) as f32);
//! let (key, value) = (query.clone(), query.clone());
//!
//! let call = natten::na2d(&query, &key, &value, 5).dilation([1, 2]).causal([false, true]);
//! let result = call.forward()?;
//! let gradients = call.backward(&result, &query)?;
//! assert_eq!(gradients.key.shape(), key.shape());
//! # Ok(())
//! # }
//! ```
//!
//! * [`na1d`], [`na2d`], [`na3d`] and [`attention`] are the calls; each returns an [`Attention`] to set options on.
//! * [`Registry`] finds the backends, with the reason for each that is absent; [`Device`] is one that was picked. Without
//!   a word the calls take what [`Registry::auto`] does: `NATTEN_BACKEND`, or CUDA, WebGPU, CPU in this order.
//! * [`Problem`], [`Plan`] and [`Backend`] are the layer below, for callers that run one plan many times.
//!
//! Backends are features, all on by default: `cpu`, `cuda`, `wgpu`, `neuron`. CUDA is looked for at run time and never
//! linked.
#![forbid(unsafe_code)]

mod array;
mod attend;
mod device;
mod execute;
mod registry;

pub use array::{Array, PerAxis};
pub use attend::{Attention, Forward, Gradients, attention, na1d, na2d, na3d};
pub use device::{Device, Outputs, block_on};
pub use natten_core::*;
pub use registry::{BACKEND_VARIABLE, Entry, Registry};

/// The README's example is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
