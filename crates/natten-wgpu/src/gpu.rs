//! A device of wgpu: its pipelines, its memory, and its failures as [`Error`]s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use natten_core::{Error, Result};
use pollster::block_on;

use crate::NAME;

/// A device, shared by everything that uses it.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// Where its memory is, for tensors.
    pub(crate) place: String,
    /// Whether the host's processor does the work.
    pub(crate) is_software: bool,
    is_checked: bool,
    pipelines: Mutex<HashMap<String, Arc<wgpu::ComputePipeline>>>,
    /// Why the device is lost, once it is; what it complained of outside of any scope.
    complaint: Arc<Mutex<Option<String>>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Gpu {
    pub(crate) fn new(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        is_checked: bool,
    ) -> Self {
        let complaint = Arc::new(Mutex::new(None));
        let lost = Arc::clone(&complaint);
        device.set_device_lost_callback(move |reason, message| {
            // A device that is dropped is lost too, and nobody is there to be told.
            if reason != wgpu::DeviceLostReason::Destroyed {
                put(&lost, format!("the device is lost: {message}"));
            }
        });
        let uncaptured = Arc::clone(&complaint);
        device.on_uncaptured_error(Arc::new(move |error| put(&uncaptured, format!("{error}"))));
        let info = adapter.get_info();
        Self {
            device,
            queue,
            place: format!("{NAME}:{}", info.name),
            is_software: info.device_type == wgpu::DeviceType::Cpu,
            is_checked,
            pipelines: Mutex::default(),
            complaint,
        }
    }

    /// The pipeline of a shader's entry point `main`, compiled once.
    ///
    /// # Errors
    /// [`Error::Compile`] with the text and the compiler's words.
    pub(crate) fn pipeline(&self, label: &str, source: &str) -> Result<Arc<wgpu::ComputePipeline>> {
        let known = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = known().get(source) {
            return Ok(Arc::clone(pipeline));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        let module = if self.is_checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: The texts are this crate's own. Every index into a buffer follows from shapes that the plan has
            // checked against the buffers' sizes, or is clamped into its axis; every loop ends.
            unsafe {
                let checks = wgpu::ShaderRuntimeChecks::unchecked();
                self.device.create_shader_module_trusted(descriptor, checks)
            }
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every cell of workgroup memory is written before it is read.
                zero_initialize_workgroup_memory: self.is_checked,
                ..Default::default()
            },
            cache: None,
        });
        let errors = (block_on(internal.pop()), block_on(scope.pop()));
        if let Some(error) = errors.0.or(errors.1) {
            return Err(Error::Compile {
                backend: NAME.into(),
                log: error.to_string(),
                source_text: source.to_owned(),
            });
        }
        let pipeline = Arc::new(pipeline);
        known().insert(source.to_owned(), Arc::clone(&pipeline));
        Ok(pipeline)
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
            None => Ok(buffer),
        }
    }

    /// Waits until everything that was submitted is done.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost, or complained.
    pub(crate) fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(failed)?;
        self.check()
    }

    /// That the device has not failed.
    pub(crate) fn check(&self) -> Result<()> {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        match &*complaint {
            Some(message) => Err(Error::Device { backend: NAME.into(), message: message.clone() }),
            None => Ok(()),
        }
    }
}

/// Keeps the first complaint: what follows is its consequence.
fn put(complaint: &Mutex<Option<String>>, message: String) {
    complaint.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
}

/// A failure of the device.
pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device { backend: NAME.into(), message: error.to_string() }
}
