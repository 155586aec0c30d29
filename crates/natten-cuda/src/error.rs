//! What the driver and the compiler say, as errors of the library.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use cudarc::nvrtc::result::NvrtcError;
use natten_core::Error;

use crate::NAME;

/// A failure of the driver while it did `what`.
pub(crate) fn driver(what: &str, error: DriverError) -> Error {
    Error::Device { backend: NAME.into(), message: format!("{what}: {}", describe(error)) }
}

/// The driver's own words, which need a driver that is there, or the number.
pub(crate) fn describe(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// Whether the driver has no memory left.
pub(crate) fn is_out_of_memory(error: DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// A failure of the compiler that is not about the source.
pub(crate) fn nvrtc(what: &str, error: NvrtcError) -> Error {
    Error::Device { backend: NAME.into(), message: format!("{what}: {error}") }
}
