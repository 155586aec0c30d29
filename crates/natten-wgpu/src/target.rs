//! What a plan may use of a device: its features and limits, in numbers that planners check. wgpu itself does not reject
//! a shader for the workgroup memory that it takes, so nothing may be left to the driver.

use natten_core::{DType, Error, Result};

use crate::NAME;
use crate::family::Family;

/// Square matrices that a subgroup holds together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    /// Rows and columns of all three.
    pub(crate) edge: u32,
    /// Lanes of a subgroup.
    pub(crate) lanes: u32,
    /// Whether the device has them (cooperative matrices); otherwise they are written as loops, for tests.
    pub(crate) is_native: bool,
}

/// Features and limits that matter to generated shaders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Doubles in shaders, and 64-bit integers, which their elementary functions need.
    pub(crate) has_f64: bool,
    /// Bytes of the largest storage binding, at most 2^31 - 1 whatever the driver says.
    pub(crate) binding_bytes: u64,
    /// Bytes of the largest buffer.
    pub(crate) buffer_bytes: u64,
    /// Bytes of memory that a workgroup shares.
    pub(crate) workgroup_bytes: u32,
    /// The most invocations of a workgroup.
    pub(crate) invocations: u32,
    /// The most workgroups along one axis of a dispatch.
    pub(crate) workgroups: u32,
    /// Lanes of a subgroup, where shaders may use subgroups and all have the same size.
    pub(crate) subgroup: Option<u32>,
    /// Products of small matrices, of f16 with sums in f32.
    pub(crate) matrices: Option<Matrices>,
    /// The only family that plans may take, where someone says so.
    pub(crate) family: Option<Family>,
    /// Iterations of loops, nested ones counted, after which the driver ends an invocation's loops, where it does.
    pub(crate) loop_iterations: Option<u64>,
}

/// What no binding is larger than, on any device.
pub(crate) const MOST_BINDING: u64 = (1 << 31) - 1;

impl Target {
    /// What every browser that has WebGPU offers: for shaders that are emitted rather than run here.
    pub(crate) const BROWSER: Self = Self {
        has_f64: false,
        binding_bytes: 128 << 20,
        buffer_bytes: 256 << 20,
        workgroup_bytes: 16 << 10,
        invocations: 256,
        workgroups: 65535,
        subgroup: None,
        matrices: None,
        family: None,
        loop_iterations: None,
    };

    /// That tensors of this type can be computed with.
    pub(crate) fn check_dtype(&self, dtype: DType) -> Result<()> {
        if dtype == DType::F64 && !self.has_f64 {
            return Err(Error::unsupported(
                NAME,
                "f64",
                "this adapter has no doubles in shaders (SHADER_F64 and SHADER_INT64: Vulkan drivers alone); \
                 use f32, or --backend cpu",
            ));
        }
        Ok(())
    }

    /// Bytes of the largest buffer that can be bound.
    pub(crate) fn most_binding(&self) -> u64 {
        self.binding_bytes.min(self.buffer_bytes).min(MOST_BINDING)
    }

    /// That a buffer of so many bytes can be bound.
    pub(crate) fn check_binding(&self, what: &str, bytes: u64) -> Result<()> {
        let most = self.most_binding();
        if bytes > most {
            return Err(Error::unsupported(
                NAME,
                format!("{what} of {bytes} bytes"),
                format!(
                    "this adapter binds at most {most} bytes at a time \
                     (max_storage_buffer_binding_size {}, max_buffer_size {}); split the batch or the heads",
                    self.binding_bytes, self.buffer_bytes
                ),
            ));
        }
        Ok(())
    }
}
