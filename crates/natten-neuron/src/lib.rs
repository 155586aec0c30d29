//! AWS NeuronCore: attention as NKI kernels. A problem is lowered to the [`ir`], which is verified against the rules of
//! the hardware ([`verify`]), placed in its memories ([`allocate`]), printed as NKI Python ([`mod@print`]), and simulated
//! ([`sim`]): right to the rounding, and with the time that each engine spends. Nothing here needs the hardware.
#![forbid(unsafe_code)]

pub mod allocate;
mod backend;
pub mod dtype;
pub mod error;
pub mod ir;
pub mod lower;
mod plan;
pub mod print;
pub mod sim;
pub mod target;
pub mod timeline;
pub mod verify;

use std::sync::Arc;

use natten_core::{Backend, Result};

pub use backend::NeuronBackend;
pub use plan::{Compiled, NeuronPlan};

/// The backend's name in the registry.
pub const NAME: &str = "neuron";

/// The device, which is a simulator and so always there.
///
/// # Errors
/// Never; other backends have some.
pub fn probe() -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(NeuronBackend::default()))
}
