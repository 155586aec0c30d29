//! What has to be there before anything is called: the driver, a device. Each missing thing is told apart, because each
//! has another way out. The bindings panic where a library is missing, so this looks first.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use natten_core::{Error, Result};

use crate::NAME;
use crate::error::describe;

/// Checks the driver, and that there is a device of this number.
///
/// # Errors
/// [`Error::Unavailable`] where there is no driver or no device; [`Error::Invalid`] where there are fewer devices.
pub(crate) fn check_driver(index: usize) -> Result<()> {
    let devices = device_count()?;
    if index < devices {
        return Ok(());
    }
    Err(Error::invalid(
        "device",
        index,
        format!("there are {devices} devices, counted from 0"),
        "name one that is there; CUDA_VISIBLE_DEVICES may hide others",
    ))
}

/// The devices that the driver shows.
///
/// # Errors
/// [`Error::Unavailable`] where there is no driver, or it does not start, or it has none.
pub(crate) fn device_count() -> Result<usize> {
    if !is_driver_present() {
        return Err(Error::unavailable(
            NAME,
            "NVIDIA's driver (libcuda) is not on this machine",
            "install the driver of an NVIDIA GPU, or use --backend cpu",
        ));
    }
    result::init().map_err(|error| {
        Error::unavailable(
            NAME,
            format!("NVIDIA's driver does not start: {}", describe(error)),
            "see that nvidia-smi lists a GPU here (in a container, that it was given one), or use --backend cpu",
        )
    })?;
    let count = result::device::get_count().map_err(|error| {
        Error::unavailable(
            NAME,
            format!("NVIDIA's driver does not count its devices: {}", describe(error)),
            "see that nvidia-smi lists a GPU here, or use --backend cpu",
        )
    })?;
    usize::try_from(count).ok().filter(|&count| count > 0).ok_or_else(|| {
        Error::unavailable(
            NAME,
            "NVIDIA's driver shows no GPU",
            "see that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES does not hide it, or use --backend cpu",
        )
    })
}

/// The driver's version as it counts them: 13000 is 13.0. To be asked where the driver is there; 0 where it does not tell.
pub(crate) fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: it points to an integer that lives through the call.
    let answer = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    answer.result().map_or(0, |()| version)
}

/// Whether the loader finds the driver; asked once, because each answer opens libraries.
fn is_driver_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: it opens shared libraries by name and closes them; that runs their initialisers, as using them would.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}
