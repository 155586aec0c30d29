//! Machine code on disk, so that a kernel is compiled once a machine and not once a process. An entry is found by a hash
//! of all that it depends on, holds that text itself, and ends with a checksum: what does not match is not there.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The environment variable that names the folder of compiled kernels; `off` or nothing for none. Without it, it is
/// `natten/cuda` in the user's cache folder. The folder keeps itself to 256 MiB: the oldest kernels leave first.
pub const CACHE_VARIABLE: &str = "NATTEN_CUDA_CACHE";

/// Begins an entry; change it with the layout of entries.
const MAGIC: &[u8] = b"natten cubin 1\n";

/// Bytes that entries may have together. A kernel has some tens of thousands.
const LIMIT: u64 = 256 << 20;

/// The end of an entry's name, behind the hash.
const SUFFIX: &str = ".cubin";

/// All that machine code depends on, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    text: String,
    hash: u128,
}

impl Key {
    /// Of a source, the compiler's options (the architecture among them) and its version.
    pub(crate) fn new(source: &str, options: &[&str], version: (i32, i32)) -> Self {
        let text = format!("nvrtc {}.{}\n{}\n{source}", version.0, version.1, options.join(" "));
        Self { hash: fnv(text.as_bytes()), text }
    }
}

/// The 128-bit hash of Fowler, Noll and Vo (FNV-1a).
pub(crate) fn fnv(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// A folder of entries.
#[derive(Clone, Debug)]
pub(crate) struct DiskCache {
    folder: PathBuf,
    limit: u64,
}

impl DiskCache {
    /// In a folder, which is made when the first entry is written.
    pub(crate) fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), limit: LIMIT }
    }

    /// In the folder that the environment names.
    pub(crate) fn from_environment() -> Option<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match std::env::var_os(CACHE_VARIABLE) {
            Some(value) if value.is_empty() || value == "off" => None,
            Some(value) => Some(Self::new(value)),
            None => variable("XDG_CACHE_HOME")
                .or_else(|| variable("LOCALAPPDATA"))
                .or_else(|| variable("HOME").map(|home| home.join(".cache")))
                .map(|folder| Self::new(folder.join("natten").join("cuda"))),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{:032x}{SUFFIX}", key.hash))
    }

    /// The machine code, where a whole entry of this key is there.
    pub(crate) fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(key)).ok()?;
        let (body, checksum) = bytes.split_last_chunk::<16>()?;
        let is_whole = fnv(body).to_le_bytes() == *checksum;
        let rest = body.strip_prefix(MAGIC).filter(|_| is_whole)?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (text, cubin) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        (text == key.text.as_bytes()).then(|| cubin.to_vec())
    }

    /// Writes an entry, whole or not at all. A folder that cannot be written is no cache, and no error: the code is there.
    pub(crate) fn store(&self, key: &Key, cubin: &[u8]) {
        let length = (key.text.len() as u64).to_le_bytes();
        let mut bytes = [MAGIC, &length, key.text.as_bytes(), cubin].concat();
        bytes.extend(fnv(&bytes).to_le_bytes());
        if write_whole(&self.folder, &self.path(key), &bytes).is_ok() {
            self.shrink();
        }
    }

    /// Removes the entries that were written longest ago, until the others are within the limit. Whoever reads one at
    /// that moment has it already, or compiles it anew.
    fn shrink(&self) {
        let Ok(folder) = fs::read_dir(&self.folder) else { return };
        let entries = folder.filter_map(|file| {
            let file = file.ok().filter(|file| is_entry(&file.file_name()))?;
            let metadata = file.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), file.path()))
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable_by(|a, b| b.cmp(a));
        let mut total = 0u64;
        for (_, bytes, path) in entries {
            total = total.saturating_add(bytes);
            if total > self.limit {
                // Another process may have removed it.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Whether a file has the name of an entry: the folder may be one that has other files too.
fn is_entry(name: &OsStr) -> bool {
    let hash = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
    hash.is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Writes beside the place and renames, so that no reader sees half of it.
fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn key(source: &str) -> Key {
        Key::new(source, &["--gpu-architecture=sm_90a"], (13, 0))
    }

    #[test]
    fn entries_come_back_and_every_part_of_the_key_counts() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(folder.path().join("made when needed"));
        assert_eq!(cache.load(&key("a")), None);
        cache.store(&key("a"), b"code");
        assert_eq!(cache.load(&key("a")).as_deref(), Some(&b"code"[..]));
        let others = [
            key("b"),
            Key::new("a", &["--gpu-architecture=sm_80"], (13, 0)),
            Key::new("a", &["--gpu-architecture=sm_90a"], (12, 0)),
        ];
        for other in others {
            assert_eq!(cache.load(&other), None, "{other:?}");
        }
    }

    #[test]
    fn a_damaged_entry_is_not_there_and_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(folder.path());
        cache.store(&key("a"), b"code");
        let path = cache.path(&key("a"));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x20;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.load(&key("a")), None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(cache.load(&key("a")), None, "cut at {at}");
        }
        cache.store(&key("a"), b"code");
        assert_eq!(cache.load(&key("a")).as_deref(), Some(&b"code"[..]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no file is left behind");
    }

    #[test]
    fn the_oldest_entries_leave_when_there_are_too_many_bytes_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache { limit: 2500, ..DiskCache::new(folder.path()) };
        let other = folder.path().join("kept.cubin");
        fs::write(&other, vec![0; 5000]).unwrap();
        let start = SystemTime::now() - Duration::from_secs(100);
        for (age, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            cache.store(&key(name), &[0; 1000]);
            let written = start + Duration::from_secs(age as u64);
            if let Ok(file) = fs::File::options().write(true).open(cache.path(&key(name))) {
                file.set_modified(written).unwrap();
            }
        }
        let kept = ["a", "b", "c", "d"].map(|name| cache.load(&key(name)).is_some());
        assert_eq!(kept, [false, false, true, true]);
        assert!(other.exists());
    }

    #[test]
    fn a_colliding_name_is_not_taken_for_the_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(folder.path());
        cache.store(&key("a"), b"code");
        let other = Key { hash: key("a").hash, text: "another".to_owned() };
        assert_eq!(cache.load(&other), None);
    }
}
