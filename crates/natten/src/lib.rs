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
//! * [`na1d`], [`na2d`], [`na3d`] and [`attention`] are the fused calls; each returns an [`Attention`] to set options and a
//!   [`program`] on, and gives gradients, forward mode and second order.
//! * [`linear_attention`] is a recurrence with a decay: retention, simple GLA, Mamba-2.
//! * [`na1d_qk`], [`na1d_av`] and those of 2 and 3 axes are the unfused pair, heads-first; [`compat`] has their older names.
//! * [`Registry`] finds the backends, with the reason for each that is absent; [`Device`] is one that was picked. Without
//!   a word the calls take what [`Registry::auto`] does: `NATTEN_BACKEND`, or CUDA, WebGPU, CPU in this order.
//! * [`Problem`], [`Plan`] and [`Backend`] are the layer below, for callers that run one plan many times.
//!
//! Backends are features, all on by default: `cpu`, `cuda`, `wgpu`, `neuron`. CUDA is looked for at run time and never
//! linked.
#![forbid(unsafe_code)]

mod array;
mod attention;
mod block_mask;
pub mod compat;
mod device;
mod execute;
mod linear;
mod registry;
mod script;
mod tangents;
mod unfused;
mod window;

pub use array::{Array, PerAxis};
pub use attention::{
    Attention, Forward, Gradients, Jvp, SecondGradients, attention, na1d, na2d, na3d, retention_parallel,
};
pub use block_mask::BlockMask;
pub use device::{Device, Outputs, block_on};
pub use linear::{LinearAttention, LinearForward, LinearGradients, LinearJvp, linear_attention};
pub use natten_core::*;
#[cfg(feature = "wgpu")]
pub use natten_wgpu::wgsl;
pub use registry::{BACKEND_VARIABLE, Entry, Registry};
pub use tangents::Tangents;
pub use unfused::{Av, AvGradients, Qk, QkGradients, na1d_av, na1d_qk, na2d_av, na2d_qk, na3d_av, na3d_qk};

/// The README's example is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
