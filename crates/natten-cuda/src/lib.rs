//! CUDA on NVIDIA GPUs. So far this crate only says that it is not there: [`probe`] answers
//! [`Error::Unavailable`] with the reason, and no result is ever made up.
#![forbid(unsafe_code)]

use std::sync::Arc;

use natten_core::{Backend, Error, Result};

/// The backend's name in the registry.
pub const NAME: &str = "cuda";

/// The device, if it can be used on this machine.
///
/// # Errors
/// Always [`Error::Unavailable`], with the reason and a way out.
pub fn probe() -> Result<Arc<dyn Backend>> {
    Err(Error::unavailable(
        NAME,
        "the CUDA backend has no kernels yet",
        "use --backend cpu; the CUDA kernels are planned, see docs/architecture.md",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_why_it_is_not_there() {
        let message = probe().unwrap_err().to_string();
        assert!(message.contains(NAME) && message.contains("--backend cpu"), "{message}");
    }
}
