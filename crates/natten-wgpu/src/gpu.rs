//! A device of wgpu: its pipelines, its memory, and its failures as [`Error`]s.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use natten_core::{Error, Result};
use pollster::block_on;

use crate::NAME;
use crate::cache::DiskCache;
use crate::signal::signal;
use crate::spirv::{self, Compiled};
use crate::target::MOST_BINDING;

/// A device, shared by everything that uses it.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// Where its memory is, for tensors.
    pub(crate) place: String,
    /// Whether the host's processor does the work.
    pub(crate) is_software: bool,
    /// Bytes of the largest binding.
    pub(crate) most_binding: u64,
    is_checked: bool,
    /// Whether it is Vulkan's, which has a memory model to be kept where there are cooperative matrices.
    is_vulkan: bool,
    pipelines: Mutex<HashMap<String, Arc<wgpu::ComputePipeline>>>,
    cache: Option<DiskCache>,
    failures: Arc<Failures>,
}

/// What a device says of itself outside of any call.
#[derive(Debug, Default)]
struct Failures {
    /// Why it is lost, once it is.
    lost: OnceLock<String>,
    /// What it complained of since someone looked, the first: what follows is its consequence.
    complaint: Mutex<Option<String>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Pipelines that are kept for plans to come: a driver in software takes a megabyte and more for each.
const MOST_PIPELINES: usize = 1024;

/// Forgets the pipelines that no plan holds, where there are too many.
fn make_room<P>(pipelines: &mut HashMap<String, Arc<P>>) {
    if pipelines.len() >= MOST_PIPELINES {
        pipelines.retain(|_, pipeline| Arc::strong_count(pipeline) > 1);
    }
}

impl Gpu {
    pub(crate) fn new(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        is_checked: bool,
    ) -> Self {
        let failures = Arc::new(Failures::default());
        let of_device = Arc::clone(&failures);
        device.set_device_lost_callback(move |reason, message| {
            let _ = of_device.lost.set(format!("the device is lost ({reason:?}): {message}"));
        });
        let of_device = Arc::clone(&failures);
        device.on_uncaptured_error(Arc::new(move |error| {
            let mut complaint = of_device.complaint.lock().unwrap_or_else(PoisonError::into_inner);
            complaint.get_or_insert(error.to_string());
        }));
        let info = adapter.get_info();
        let cache = DiskCache::folder().and_then(|folder| DiskCache::open(&folder, &device, &info));
        Self {
            most_binding: device.limits().max_storage_buffer_binding_size.min(MOST_BINDING),
            device,
            queue,
            place: format!("{NAME}:{}", info.name),
            is_software: info.device_type == wgpu::DeviceType::Cpu,
            is_checked,
            is_vulkan: info.backend == wgpu::Backend::Vulkan,
            pipelines: Mutex::default(),
            cache,
            failures,
        }
    }

    /// The pipeline of a shader's entry point `main`, compiled once.
    ///
    /// # Errors
    /// [`Error::Compile`] with the text and the compiler's words; [`Error::Device`] where the device is lost.
    pub(crate) async fn pipeline(&self, label: &str, source: &str) -> Result<Arc<wgpu::ComputePipeline>> {
        let known = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = known().get(source) {
            return Ok(Arc::clone(pipeline));
        }
        let spirv = match self.is_vulkan && source.contains(spirv::MATRICES) {
            true => Some(spirv::compile(source, self.is_checked)?),
            false => None,
        };
        let (pipeline, errors) = self.compile(label, source, spirv.as_ref());
        for error in errors {
            if let Some(error) = error.await {
                self.check()?;
                return Err(Error::Compile {
                    backend: NAME.into(),
                    log: error.to_string(),
                    source_text: source.to_owned(),
                });
            }
        }
        // A lost device takes everything, and makes nothing of it.
        self.check()?;
        let pipeline = Arc::new(pipeline);
        let mut known = known();
        make_room(&mut known);
        known.insert(source.to_owned(), Arc::clone(&pipeline));
        drop(known);
        Ok(pipeline)
    }

    /// A pipeline, valid or not, and what will be known to be wrong with it: of a text, or of the SPIR-V that it is to be.
    fn compile(
        &self,
        label: &str,
        source: &str,
        spirv: Option<&Compiled>,
    ) -> (wgpu::ComputePipeline, [ErrorToCome; 2]) {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let module = match spirv {
            Some(compiled) => self.module_of_words(label, &compiled.words),
            None => self.module_of_text(label, source),
        };
        // wgpu knows the bindings of texts alone.
        let layout = spirv.map(|compiled| self.layout(label, &compiled.bindings));
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: layout.as_ref(),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every cell of workgroup memory is written before it is read.
                zero_initialize_workgroup_memory: self.is_checked,
                ..Default::default()
            },
            cache: self.cache.as_ref().map(DiskCache::pipelines),
        });
        (pipeline, [Box::pin(internal.pop()), Box::pin(scope.pop())])
    }

    fn module_of_text(&self, label: &str, source: &str) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        if self.is_checked {
            return self.device.create_shader_module(descriptor);
        }
        // SAFETY: The texts are this crate's own. Every index into a buffer follows from shapes that the plan has checked
        // against the buffers' sizes, or is clamped into its axis; every loop ends.
        unsafe {
            self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }

    fn module_of_words(&self, label: &str, words: &[u32]) -> wgpu::ShaderModule {
        let main = wgpu::PassthroughShaderEntryPoint {
            name: "main".into(),
            // Metal's alone.
            workgroup_size: (0, 0, 0),
        };
        // SAFETY: naga has validated one of this crate's own texts, for which the argument of `module_of_text` holds, and
        // written the words; what `spirv::compile` adds makes accesses known to more invocations, never to fewer. The
        // device has the capabilities: planners look for its features before they take such a text.
        unsafe {
            self.device.create_shader_module_passthrough(wgpu::ShaderModuleDescriptorPassthrough {
                label: Some(label),
                entry_points: vec![main].into(),
                spirv: Some(words.into()),
                ..Default::default()
            })
        }
    }

    /// The layout of storage buffers: of each the number of its binding, and whether it is only read.
    fn layout(&self, label: &str, bindings: &[(u32, bool)]) -> wgpu::PipelineLayout {
        let entry = |&(binding, read_only): &(u32, bool)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = bindings.iter().map(entry).collect();
        let group = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(label),
            entries: &entries,
        });
        self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(label),
            bind_group_layouts: &[Some(&group)],
            immediate_size: 0,
        })
    }

    /// Keeps the compiled pipelines for other processes, where that can be done.
    pub(crate) fn store_pipelines(&self) {
        if let Some(cache) = &self.cache {
            cache.store();
        }
    }

    /// A buffer of at least so many bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`].
    pub(crate) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let size = bytes.max(16).next_multiple_of(8);
        let limit = self.device.limits().max_buffer_size;
        if size > limit {
            return Err(Error::OutOfMemory { needed: size as usize, available: Some(limit as usize) });
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        match block_on(scope.pop()) {
            Some(wgpu::Error::OutOfMemory { .. }) => {
                Err(Error::OutOfMemory { needed: size as usize, available: None })
            }
            Some(error) => Err(failed(error)),
            None => self.check().map(|()| buffer),
        }
    }

    /// Waits until everything that was submitted is done.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost, or complained.
    pub(crate) async fn finish(&self) -> Result<()> {
        let (sender, receiver) = signal();
        self.queue.on_submitted_work_done(move || sender.send(()));
        self.advance()?;
        let _ = receiver.await;
        self.check()
    }

    /// Has callbacks called. A browser does so by itself; elsewhere somebody has to wait.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn advance(&self) -> Result<()> {
        if cfg!(not(target_family = "wasm")) {
            self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(failed)?;
        }
        Ok(())
    }

    /// That the device is not lost, and has not complained since this was asked last.
    pub(crate) fn check(&self) -> Result<()> {
        let complaint = || self.failures.complaint.lock().unwrap_or_else(PoisonError::into_inner).take();
        match self.failures.lost.get().cloned().or_else(complaint) {
            Some(message) => Err(failed(message)),
            None => Ok(()),
        }
    }
}

/// What an error scope caught.
type ErrorToCome = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;

/// A failure of the device.
pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device { backend: NAME.into(), message: error.to_string() }
}

#[cfg(test)]
pub(crate) mod tests {
    use natten_core::{Backend, DType, HostTensor, OpRequest, PlanOptions, Problem};
    use pollster::block_on;

    use super::*;
    use crate::memory::memory_of;
    use crate::{Options, WgpuBackend};

    /// What `NATTEN_REQUIRE` may name; the last is that the device has cooperative matrices.
    pub(crate) const REQUIRABLE: [&str; 5] = ["cpu", "cuda", NAME, "neuron", "wgpu-matrices"];

    /// The best adapter's device, where there is an adapter.
    pub(crate) fn backend() -> Option<WgpuBackend> {
        let backend = WgpuBackend::new(&Options::from_environment());
        let required = natten_conformance::required_backends(&REQUIRABLE).unwrap();
        assert!(
            backend.is_ok() || !required.iter().any(|name| name == NAME),
            "wgpu is required: {backend:?}"
        );
        backend.ok()
    }

    #[test]
    fn shaders_that_are_refused_come_back_with_their_text() {
        let Some(backend) = backend() else { return };
        for source in ["fn main() {", "@compute @workgroup_size(64) fn main() { let x: f32 = 1u; }"] {
            match block_on(backend.gpu().pipeline("broken", source)) {
                Err(Error::Compile { backend, log, source_text }) => {
                    assert_eq!((&*backend, source_text.as_str()), (NAME, source));
                    assert!(!log.is_empty());
                }
                other => panic!("{other:?}"),
            }
        }
        // The device is as good as before.
        let whole = "@compute @workgroup_size(64) fn main() {}";
        assert!(block_on(backend.gpu().pipeline("whole", whole)).is_ok());
    }

    /// What a workgroup of a shader leaves in its last buffer, of so many f32; what is given is its first.
    pub(crate) fn left_by(
        backend: &WgpuBackend,
        pipeline: &wgpu::ComputePipeline,
        given: Option<HostTensor>,
        len: usize,
    ) -> Vec<f64> {
        let (gpu, queue) = (backend.gpu(), backend.queue().unwrap());
        let left = backend.upload(&*queue, HostTensor::zeros(DType::F32, &[len]).unwrap()).unwrap();
        let given = given.map(|host| backend.upload(&*queue, host).unwrap());
        let entries: Vec<_> = given
            .iter()
            .chain([&left])
            .zip(0..)
            .map(|(tensor, binding)| {
                let resource = memory_of(gpu, "tensor", tensor).unwrap().buffer.as_entire_binding();
                wgpu::BindGroupEntry { binding, resource }
            })
            .collect();
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        gpu.queue.submit([encoder.finish()]);
        block_on(backend.download(&*queue, &left)).unwrap().to_f64()
    }

    /// The way of shaders with cooperative matrices, for one without, which every driver of Vulkan takes.
    #[test]
    fn pipelines_of_spirv_do_what_those_of_text_do() {
        let Some(backend) = backend() else { return };
        let gpu = backend.gpu();
        if !gpu.device.features().contains(crate::adapters::PASSTHROUGH) {
            return;
        }
        let source = "
@group(0) @binding(1) var<storage, read_write> left: array<f32>;
@group(0) @binding(0) var<storage, read> given: array<f32>;
var<workgroup> shared_numbers: array<f32, 64>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    shared_numbers[lane] = given[lane];
    workgroupBarrier();
    for (var i = 0u; i < 3u; i++) { left[lane] += shared_numbers[63u - lane]; }
}
";
        let given = || HostTensor::from_fn(DType::F32, &[64], |i| i as f64).ok();
        let of_text = block_on(gpu.pipeline("text", source)).unwrap();
        let expected = left_by(&backend, &of_text, given(), 64);
        assert_eq!(expected[5], 3.0 * 58.0);
        for is_checked in [false, true] {
            let compiled = spirv::compile(source, is_checked).unwrap();
            let (pipeline, errors) = gpu.compile("words", source, Some(&compiled));
            for error in errors {
                assert!(block_on(error).is_none());
            }
            assert_eq!(left_by(&backend, &pipeline, given(), 64), expected);
        }
    }

    #[test]
    fn complaints_are_errors_of_the_next_call_alone() {
        let Some(backend) = backend() else { return };
        let gpu = backend.gpu();
        let buffer = gpu.buffer("small", 16, wgpu::BufferUsages::COPY_DST).unwrap();
        gpu.queue.write_buffer(&buffer, 0, &[0; 64]);
        let error = block_on(gpu.finish()).unwrap_err();
        assert!(matches!(error, Error::Device { .. }) && error.to_string().contains("overrun"), "{error}");
        block_on(gpu.finish()).unwrap();
    }

    #[test]
    fn lost_devices_say_so() {
        let Some(backend) = backend() else { return };
        let window = natten_core::geometry::Neighborhood::full(4, 4, None).unwrap();
        let problem = Problem::builder(window, DType::F32).head_dim(4).build().unwrap();
        let (request, options) = (OpRequest::forward(&problem), PlanOptions::default());
        let plan = block_on(backend.plan(&problem, &request, &options)).unwrap();
        let queue = backend.queue().unwrap();
        let host = HostTensor::zeros(DType::F32, &[1, 4, 1, 4]).unwrap();
        let tensor = backend.upload(&*queue, host).unwrap();
        backend.gpu().device.destroy();
        let is_lost = |error: Error| {
            assert!(matches!(error, Error::Device { .. }) && error.to_string().contains("lost"), "{error}");
        };
        is_lost(block_on(queue.finish()).unwrap_err());
        is_lost(backend.queue().unwrap_err());
        is_lost(block_on(backend.download(&*queue, &tensor)).unwrap_err());
        is_lost(plan.new_workspace().unwrap_err());
        let other = Problem::builder(problem.neighborhood().clone(), DType::F32).head_dim(5);
        let other = other.build().unwrap();
        let request = OpRequest::forward(&other);
        is_lost(block_on(backend.plan(&other, &request, &options)).map(drop).unwrap_err());
    }

    #[test]
    fn pipelines_that_no_plan_holds_are_forgotten_in_time() {
        let held = Arc::new(0);
        let mut known = HashMap::from([("held".to_owned(), Arc::clone(&held))]);
        known.extend((2..MOST_PIPELINES).map(|number| (number.to_string(), Arc::new(number))));
        make_room(&mut known);
        assert_eq!(known.len(), MOST_PIPELINES - 1);
        known.insert("one more".to_owned(), Arc::new(1));
        make_room(&mut known);
        assert_eq!(known.into_keys().collect::<Vec<_>>(), ["held"]);
    }

    #[test]
    fn pipelines_are_kept_on_disk() {
        let Some(backend) = backend() else { return };
        let gpu = backend.gpu();
        let folder = tempfile::tempdir().unwrap();
        let adapters = crate::Adapters::find();
        let info = adapters.pick(Options::from_environment().adapter.as_deref()).unwrap().get_info();
        let Some(cache) = DiskCache::open(folder.path(), &gpu.device, &info) else {
            // The adapter hands none out.
            assert!(!gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE));
            return;
        };
        cache.store();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files(), 1);
        let again = DiskCache::open(folder.path(), &gpu.device, &info).unwrap();
        again.store();
        assert_eq!(files(), 1);
        block_on(gpu.finish()).unwrap();
    }
}
