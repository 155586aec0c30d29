//! CUDA on NVIDIA GPUs: kernels are written for the problem when it is planned, compiled by NVRTC for the very device,
//! and launched through the driver. Nothing of CUDA is linked or needed to build: the driver and the compiler are looked
//! for at run time, and [`probe`] says which one is missing.
//!
//! A family of kernels answers a problem with source texts, launches and workspace; [`generate`] shows them and
//! [`Compiler`] compiles them, both without a GPU.

mod backend;
mod cache;
mod compile;
mod device;
mod error;
mod family;
mod forward;
mod generic;
mod hopper;
mod launch;
mod matmul;
mod mma;
#[cfg(test)]
mod on_host;
mod plan;
mod probe;
mod queue;
mod render;
mod scores;
mod target;
mod tensor;

use std::sync::Arc;

/// The driver's bindings, for callers with streams and slices of their own.
pub use cudarc;
use natten_core::{Backend, Error, Result};

pub use self::backend::CudaBackend;
pub use self::cache::CACHE_VARIABLE;
pub use self::compile::{Compiled, Compiler};
pub use self::family::{Class, FAMILY_VARIABLE, Generated, generate};
pub use self::matmul::generate_matmul_probes;
pub use self::plan::CudaPlan;
pub use self::queue::CudaQueue;
pub use self::target::Target;
pub use self::tensor::{CudaStorage, DeviceView};

/// The backend's name in the registry.
pub const NAME: &str = "cuda";

/// The environment variable that names the device that [`probe`] takes, by its number. Without it, the first.
pub const DEVICE_VARIABLE: &str = "NATTEN_CUDA_DEVICE";

/// The device, if it can be used on this machine: the first, or the one that [`DEVICE_VARIABLE`] names.
///
/// # Errors
/// [`Error::Unavailable`], with the reason and a way out; [`Error::Invalid`] where the variable names no device.
pub fn probe() -> Result<Arc<dyn Backend>> {
    let index = match std::env::var(DEVICE_VARIABLE) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| {
            Error::invalid(
                DEVICE_VARIABLE,
                format!("'{text}'"),
                "it must be a device's number, from 0",
                "leave it out for the first device",
            )
        })?,
        _ => 0,
    };
    CudaBackend::new(index).map(|backend| Arc::new(backend) as Arc<dyn Backend>)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine with a GPU this proves that it opens, on others that each missing part has a reason and a way out.
    #[test]
    fn opens_the_device_or_says_why_not() {
        match probe() {
            Ok(backend) => assert_eq!(backend.device().backend, NAME),
            Err(Error::Unavailable { why, hint, .. }) => {
                assert!(why.contains("NVIDIA's driver") || why.contains("NVRTC"), "{why}");
                assert!(hint.contains("--backend cpu"), "{hint}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
