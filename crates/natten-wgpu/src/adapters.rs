//! The graphics adapters of a machine: which there are, what each can do, and which is taken.

use natten_core::{DeviceInfo, DeviceKind, Error, Result};
use pollster::block_on;

use crate::target::{MOST_BINDING, Matrices, Target};
use crate::{ADAPTER_VARIABLE, NAME};

/// Every adapter that wgpu finds, the best first.
#[derive(Debug)]
pub struct Adapters {
    list: Vec<wgpu::Adapter>,
}

/// What is known of an adapter, for users to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceSummary {
    /// The adapter's name, its driver and the API behind it.
    pub name: String,
    /// Features and limits by name.
    pub features: Vec<(String, String)>,
}

/// The features that shaders use, where an adapter has them.
pub(crate) const FEATURES: wgpu::Features = wgpu::Features::SHADER_F64
    .union(wgpu::Features::SHADER_INT64)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
    .union(PASSTHROUGH);

/// Shaders in the driver's own language: Vulkan's cooperative matrices need them, see [`crate::spirv`].
pub(crate) const PASSTHROUGH: wgpu::Features = wgpu::Features::PASSTHROUGH_SHADERS;

impl Adapters {
    /// Looks for adapters.
    pub fn find() -> Self {
        block_on(Self::search())
    }

    /// As [`Adapters::find`], where nothing may block.
    pub async fn search() -> Self {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let mut list = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
        list.retain(|adapter| adapter.get_info().backend != wgpu::Backend::Noop);
        list.sort_by_key(|adapter| rank(adapter.get_info().device_type));
        Self { list }
    }

    /// What is known of each.
    pub fn summaries(&self) -> Vec<DeviceSummary> {
        let of = |adapter: &wgpu::Adapter| DeviceSummary { name: name(adapter), features: features(adapter) };
        self.list.iter().map(of).collect()
    }

    /// The adapter of this number, or whose name has this part; the best where nothing is asked.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where there is none, or none like it.
    pub(crate) fn pick(&self, wanted: Option<&str>) -> Result<&wgpu::Adapter> {
        if self.list.is_empty() {
            return Err(Error::unavailable(
                NAME,
                "no Vulkan, Metal or DX12 adapter was found",
                "install a graphics driver; Debian's mesa-vulkan-drivers has one in software (lavapipe)",
            ));
        }
        let found = match wanted {
            None => self.list.first(),
            Some(wanted) => match wanted.parse::<usize>() {
                Ok(number) => self.list.get(number),
                Err(_) => {
                    let part = wanted.to_lowercase();
                    self.list.iter().find(|adapter| name(adapter).to_lowercase().contains(&part))
                }
            },
        };
        found.ok_or_else(|| {
            let names: Vec<String> =
                self.list.iter().enumerate().map(|(n, adapter)| format!("{n}: {}", name(adapter))).collect();
            Error::unavailable(
                NAME,
                format!(
                    "{ADAPTER_VARIABLE} is '{}', and no adapter is called so",
                    wanted.unwrap_or_default()
                ),
                format!("there are {}", names.join("; ")),
            )
        })
    }
}

/// Real hardware before software.
const fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn name(adapter: &wgpu::Adapter) -> String {
    let info = adapter.get_info();
    format!("{} ({}, {} {})", info.name, info.backend, info.driver, info.driver_info).trim().to_owned()
}

fn features(adapter: &wgpu::Adapter) -> Vec<(String, String)> {
    let (info, limits, has) = (adapter.get_info(), adapter.limits(), adapter.features());
    let yes = |feature: wgpu::Features| if has.contains(feature) { "yes" } else { "no" }.to_owned();
    let matrices: Vec<String> = adapter
        .cooperative_matrix_properties()
        .iter()
        .map(|p| format!("{}x{}x{} {:?}->{:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type))
        .collect();
    [
        ("api", info.backend.to_string()),
        ("driver", format!("{} {}", info.driver, info.driver_info).trim().to_owned()),
        ("shader f16", yes(wgpu::Features::SHADER_F16)),
        ("shader f64", yes(wgpu::Features::SHADER_F64)),
        ("subgroups", yes(wgpu::Features::SUBGROUP)),
        ("subgroup size", format!("{}-{}", info.subgroup_min_size, info.subgroup_max_size)),
        ("cooperative matrices", if matrices.is_empty() { "none".to_owned() } else { matrices.join(", ") }),
        ("workgroup storage", format!("{} bytes", limits.max_compute_workgroup_storage_size)),
        ("workgroup invocations", limits.max_compute_invocations_per_workgroup.to_string()),
        ("storage binding", format!("{} bytes", limits.max_storage_buffer_binding_size.min(MOST_BINDING))),
        ("largest buffer", format!("{} bytes", limits.max_buffer_size)),
        ("storage buffers a stage", limits.max_storage_buffers_per_shader_stage.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Lanes of a subgroup, where there is no choice of them.
pub(crate) fn subgroup(adapter: &wgpu::Adapter) -> Option<u32> {
    let info = adapter.get_info();
    let is_fixed = info.subgroup_min_size == info.subgroup_max_size && info.subgroup_min_size > 0;
    (adapter.features().contains(wgpu::Features::SUBGROUP) && is_fixed).then_some(info.subgroup_min_size)
}

/// The largest square matrices of f16 with sums in f32.
fn matrices(adapter: &wgpu::Adapter) -> Option<Matrices> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let mut needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if adapter.get_info().backend == wgpu::Backend::Vulkan {
        needed |= PASSTHROUGH;
    }
    let lanes = subgroup(adapter).filter(|_| adapter.features().contains(needed))?;
    let offered = adapter.cooperative_matrix_properties();
    let has = |&edge: &u32| {
        offered
            .iter()
            .any(|p| [p.m_size, p.n_size, p.k_size] == [edge; 3] && (p.ab_type, p.cr_type) == (F16, F32))
    };
    let edge = [16, 8].into_iter().find(has)?;
    Some(Matrices { edge, lanes, is_native: true })
}

/// What plans may use of an adapter.
pub(crate) fn target(adapter: &wgpu::Adapter) -> Target {
    let (info, limits, has) = (adapter.get_info(), adapter.limits(), adapter.features());
    Target {
        has_f64: has.contains(wgpu::Features::SHADER_F64 | wgpu::Features::SHADER_INT64),
        binding_bytes: limits.max_storage_buffer_binding_size.min(MOST_BINDING),
        buffer_bytes: limits.max_buffer_size,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        invocations: limits.max_compute_invocations_per_workgroup,
        workgroups: limits.max_compute_workgroups_per_dimension,
        // A software driver has one lane work after the other, and is long about the compilation.
        subgroup: subgroup(adapter).filter(|_| info.device_type != wgpu::DeviceType::Cpu),
        matrices: matrices(adapter),
        family: None,
        // gallivm counts them over all loops of an invocation.
        loop_iterations: info.name.contains("llvmpipe").then_some(65_535),
    }
}

/// The adapter, for [`natten_core::Backend::device`].
pub(crate) fn info(adapter: &wgpu::Adapter) -> DeviceInfo {
    let kind = match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceKind::Gpu,
        _ => DeviceKind::SharedGpu,
    };
    let mut info = DeviceInfo::new(NAME, name(adapter), kind);
    info.features = features(adapter);
    info
}
