//! Compiled pipelines on disk, where the driver hands them out (Vulkan), so that a machine compiles a shader once and not
//! once a process. One file a driver, with a checksum: what does not match is not there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The environment variable that names the folder of compiled pipelines; `off` or nothing for none. Without it, it is
/// `natten/wgpu` in the user's cache folder.
pub const CACHE_VARIABLE: &str = "NATTEN_WGPU_CACHE";

/// Begins a file; change it with the layout.
const MAGIC: &[u8; 16] = b"natten wgpu 001\n";

/// Bytes beyond which a file is begun anew: drivers only ever add to what they hand out.
const LIMIT: usize = 256 << 20;

/// The pipelines of one driver.
#[derive(Debug)]
pub(crate) struct DiskCache {
    file: PathBuf,
    cache: wgpu::PipelineCache,
    /// What the file holds.
    written: Mutex<Option<Vec<u8>>>,
}

impl DiskCache {
    /// The folder that the environment names.
    pub(crate) fn folder() -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match std::env::var_os(CACHE_VARIABLE) {
            Some(value) if value.is_empty() || value == "off" => None,
            Some(value) => Some(value.into()),
            None => variable("XDG_CACHE_HOME")
                .or_else(|| variable("LOCALAPPDATA"))
                .or_else(|| variable("HOME").map(|home| home.join(".cache")))
                .map(|folder| folder.join("natten").join("wgpu")),
        }
    }

    /// The file of an adapter's driver, where that hands out pipelines.
    pub(crate) fn open(folder: &Path, device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(wgpu::util::pipeline_cache_key(info)?);
        let data = read(&file);
        // SAFETY: `read` returns what `store` wrote, which `PipelineCache::get_data` made: file name and checksum say so.
        // wgpu looks whether it is this driver's, and begins anew where it is not.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("natten"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Some(Self { file, cache, written: Mutex::new(data) })
    }

    /// For pipelines to be looked up in, and added to.
    pub(crate) const fn pipelines(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes what was added. A folder that cannot be written is no cache, and no error: the pipelines are there.
    pub(crate) fn store(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.as_ref() != Some(&data) && write(&self.file, &data).is_some() {
            *written = Some(data);
        }
    }
}

/// What a whole file holds.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (checksum, data) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    (hash(data).to_le_bytes() == *checksum && data.len() <= LIMIT).then(|| data.to_vec())
}

/// Writes a file, whole or not at all: other processes may read it, or write it too.
fn write(file: &Path, data: &[u8]) -> Option<()> {
    let folder = file.parent()?;
    fs::create_dir_all(folder).ok()?;
    let mut new = tempfile::NamedTempFile::new_in(folder).ok()?;
    new.write_all(&[&MAGIC[..], &hash(data).to_le_bytes(), data].concat()).ok()?;
    new.persist(file).ok().map(drop)
}

/// The 64-bit hash of Fowler, Noll and Vo (FNV-1a).
fn hash(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325;
    bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("below").join("driver");
        assert_eq!(read(&file), None);
        write(&file, b"pipelines").unwrap();
        assert_eq!(read(&file).unwrap(), b"pipelines");
        write(&file, b"more of them").unwrap();
        assert_eq!(read(&file).unwrap(), b"more of them");
        let whole = fs::read(&file).unwrap();
        for cut in [0, 10, 20, whole.len() - 1] {
            fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(read(&file), None, "{cut}");
        }
        let mut other = whole;
        *other.last_mut().unwrap() ^= 1;
        fs::write(&file, other).unwrap();
        assert_eq!(read(&file), None);
    }
}
