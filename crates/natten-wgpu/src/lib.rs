//! WebGPU on Vulkan, Metal and DX12, through wgpu: attention with every derivative on any GPU.
//!
//! A plan is a sequence of WGSL shaders that are generated from the problem and its program.
//! Everything that a plan computes lies in one buffer, the arena, of the type that is computed in (f32, or f64 for f64
//! problems): the first steps widen the inputs into it, whatever their strides and dtype, the last ones round the
//! results out of it. So every other shader has one binding, sees contiguous vectors, and runs where eight storage
//! buffers are all there is.

mod adapters;
mod backend;
mod boxes;
mod cache;
mod emit;
mod family;
#[cfg(test)]
mod family_tests;
mod generic;
mod gpu;
mod matrix;
mod matrix_backward;
#[cfg(test)]
mod matrix_tests;
mod memory;
mod pieces;
mod plan;
mod rate;
mod register_tile;
mod render;
mod row;
mod sequence;
mod signal;
mod spirv;
mod target;
mod template;
#[cfg(test)]
mod tests;
mod tiled;
mod tiled_backward;

use std::sync::Arc;

use natten_core::{Artifact, Backend, OpRequest, PlanOptions, Problem, Result};

use self::target::Target;

pub use self::adapters::{Adapters, DeviceSummary};
pub use self::backend::{Options, WgpuBackend};
pub use self::cache::CACHE_VARIABLE;
pub use self::family::{FAMILY_VARIABLE, Family};

/// The backend's name in the registry.
pub const NAME: &str = "wgpu";

/// The environment variable that picks an adapter: a number, or a part of its name.
pub const ADAPTER_VARIABLE: &str = "NATTEN_WGPU_ADAPTER";

/// The environment variable that turns the driver's checks of generated shaders on where it is `1`.
pub const CHECKED_VARIABLE: &str = "NATTEN_WGPU_CHECKED";

/// The best adapter of this machine, or the one that `NATTEN_WGPU_ADAPTER` names.
///
/// # Errors
/// [`Error::Unavailable`](natten_core::Error::Unavailable) where there is none, with the reason and a way out.
pub fn probe() -> Result<Arc<dyn Backend>> {
    let options = Options::from_environment();
    WgpuBackend::new(&options).map(|backend| Arc::new(backend) as Arc<dyn Backend>)
}

/// The same adapter once for every family of shaders that is worth measuring, held to it: what [`Family`] says, but for
/// the one that does everything and takes its time.
///
/// # Errors
/// As [`probe`].
pub fn families() -> Result<Vec<(&'static str, Arc<dyn Backend>)>> {
    let backend = WgpuBackend::new(&Options::from_environment())?;
    let measured = Family::ALL.into_iter().filter(|&family| family != Family::Generic);
    Ok(measured.map(|f| (f.name(), Arc::new(backend.held_to(f)) as Arc<dyn Backend>)).collect())
}

/// The WGSL of an operation as one self-contained JSON text, without a device: for what every browser with WebGPU has.
/// A page runs it with nothing but `navigator.gpu`.
///
/// # Errors
/// [`Error::Unsupported`](natten_core::Error::Unsupported) for f64 and for tensors beyond what browsers bind;
/// [`Error::Invalid`](natten_core::Error::Invalid) as [`Problem::tensors`](natten_core::Problem::tensors).
pub fn wgsl(problem: &Problem, request: &OpRequest, options: &PlanOptions) -> Result<Artifact> {
    let sequence = generic::sequence(problem, request, options, &Target::BROWSER)?;
    for spec in &sequence.tensors {
        Target::BROWSER.check_binding(spec.name(), spec.bytes() as u64)?;
    }
    emit::artifact(&plan::title(problem, request), &sequence)
}
