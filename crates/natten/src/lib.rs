//! Neighborhood attention on any hardware.
#![forbid(unsafe_code)]

mod device;
mod registry;

pub use device::{Device, Outputs, block_on};
pub use natten_core::*;
pub use registry::{BACKEND_VARIABLE, Entry, Registry};
