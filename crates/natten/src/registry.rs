//! Which backends there are. A [`Registry`] is a value: probe it once and pass it on; nothing global is set. It keeps
//! each absent backend with its reason, so that `natten devices` and errors can say why.

use std::sync::Arc;

use natten_core::reference::{self, ReferenceBackend};
use natten_core::{Backend, DeviceKind, Error, Result};

use crate::device::Device;

/// The environment variable that names the backend where a call does not.
pub const BACKEND_VARIABLE: &str = "NATTEN_BACKEND";

/// A backend by name, present or not.
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name: `cuda`, `wgpu`, `cpu`, `neuron`, `reference`.
    pub name: &'static str,
    /// The backend, or why it cannot be used here.
    pub backend: Result<Arc<dyn Backend>>,
}

impl Entry {
    /// An entry, for a backend of your own.
    pub const fn new(name: &'static str, backend: Result<Arc<dyn Backend>>) -> Self {
        Self { name, backend }
    }
}

/// The backends of this build, probed.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Vec<Entry>,
}

impl Registry {
    /// Without any backend; [`push`](Self::push) adds.
    pub const fn empty() -> Self {
        Self { entries: Vec::new() }
    }

    /// Looks for every backend that this build has. Never fails: what is absent is an entry with a reason.
    pub fn probe() -> Self {
        let mut registry = Self::empty();
        #[cfg(feature = "cuda")]
        registry.push(Entry::new(natten_cuda::NAME, natten_cuda::probe()));
        #[cfg(feature = "wgpu")]
        registry.push(Entry::new(natten_wgpu::NAME, natten_wgpu::probe()));
        #[cfg(feature = "cpu")]
        registry.push(Entry::new(
            natten_cpu::NAME,
            natten_cpu::CpuBackend::new().map(|cpu| Arc::new(cpu) as Arc<dyn Backend>),
        ));
        #[cfg(feature = "neuron")]
        registry.push(Entry::new(natten_neuron::NAME, natten_neuron::probe()));
        registry.push(Entry::new(reference::NAME, Ok(Arc::new(ReferenceBackend::new()))));
        registry
    }

    /// Adds a backend, of this library or not.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Every backend, present or not.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A backend once for each of its families of kernels, held to it, by the family's name; empty where the backend has
    /// no such choice.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a backend that is absent.
    pub fn families(name: &str) -> Result<Vec<(&'static str, Device)>> {
        #[cfg(feature = "wgpu")]
        if name == natten_wgpu::NAME {
            let families = natten_wgpu::families()?.into_iter();
            return families.map(|(family, backend)| Ok((family, Device::new(backend)?))).collect();
        }
        let _ = name;
        Ok(Vec::new())
    }

    /// The backend of that name. `auto` is [`auto`](Self::auto).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that this build does not know, [`Error::Unavailable`] for a backend that is absent.
    pub fn device(&self, name: &str) -> Result<Device> {
        if name == "auto" {
            return self.auto();
        }
        let known = || self.entries.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
        let entry = self.entries.iter().find(|entry| entry.name == name).ok_or_else(|| {
            Error::invalid(
                "backend",
                format!("'{name}'"),
                "this build has no backend of that name",
                format!("it has auto, {}", known()),
            )
        })?;
        match &entry.backend {
            Ok(backend) => Device::new(Arc::clone(backend)),
            Err(error) => Err(absent(entry.name, error)),
        }
    }

    /// The backend that `NATTEN_BACKEND` names, or else the first that is there of: CUDA, WebGPU on a real GPU, CPU.
    ///
    /// # Errors
    /// As [`device`](Self::device); [`Error::Unavailable`] where none of them is there.
    pub fn auto(&self) -> Result<Device> {
        match std::env::var(BACKEND_VARIABLE) {
            Ok(name) if !name.is_empty() && name != "auto" => self.device(&name),
            _ => self.first_suitable(),
        }
    }

    fn first_suitable(&self) -> Result<Device> {
        let suits = |backend: &dyn Backend| match backend.device().backend {
            "cuda" | "cpu" => true,
            "wgpu" => backend.device().kind == DeviceKind::Gpu,
            _ => false,
        };
        let found = ["cuda", "wgpu", "cpu"].into_iter().find_map(|name| {
            let entry = self.entries.iter().find(|entry| entry.name == name)?;
            entry.backend.as_ref().ok().filter(|backend| suits(&***backend))
        });
        match found {
            Some(backend) => Device::new(Arc::clone(backend)),
            None => Err(Error::unavailable(
                "auto",
                "none of cuda, wgpu and cpu is there",
                "name a backend: 'natten devices' tells why each is absent",
            )),
        }
    }
}

/// The reason again: errors are not `Clone`, and the registry keeps its own.
fn absent(name: &'static str, error: &Error) -> Error {
    match error {
        Error::Unavailable { why, hint, .. } => Error::unavailable(name, why, hint),
        other => Error::unavailable(name, other.to_string(), "'natten devices' lists what is there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_unknown_backends_say_so() {
        let mut registry = Registry::empty();
        registry.push(Entry::new("cuda", Err(Error::unavailable("cuda", "no driver", "install one"))));
        let absent = registry.device("cuda").unwrap_err().to_string();
        assert!(absent.contains("no driver") && absent.contains("install one"), "{absent}");
        let unknown = registry.device("tpu").unwrap_err().to_string();
        assert!(unknown.contains("'tpu'") && unknown.contains("cuda"), "{unknown}");
        assert!(registry.first_suitable().is_err());
    }

    #[test]
    fn auto_never_takes_the_oracle() {
        let mut registry = Registry::empty();
        registry.push(Entry::new(reference::NAME, Ok(Arc::new(ReferenceBackend::new()))));
        assert!(registry.first_suitable().is_err());
        assert_eq!(registry.device("reference").unwrap().info().backend, "reference");
    }
}
