//! Runs the program in a directory of its own, and makes the tensor files that it is given.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use natten::{DType, HostTensor};
use natten_cli::tensors::{self, TensorFile};
use tempfile::TempDir;

/// Named tensors.
pub(crate) type Tensors = BTreeMap<String, HostTensor>;

/// A directory with an input file, which the program runs in.
pub(crate) struct Directory(TempDir);

/// What the program did.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Directory {
    pub(crate) fn with_input(tensors: &Tensors) -> Self {
        let directory = Self(TempDir::new().unwrap());
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        tensors::write(&directory.path("in.safetensors"), named).unwrap();
        directory
    }

    pub(crate) fn with_bytes(bytes: &[u8]) -> Self {
        let directory = Self(TempDir::new().unwrap());
        fs::write(directory.path("in.safetensors"), bytes).unwrap();
        directory
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of everything in the directory.
    pub(crate) fn entries(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        names.sort_unstable();
        names
    }

    /// Runs the program with these words.
    pub(crate) fn natten(&self, words: &[&str]) -> Finished {
        let output = Command::new(env!("CARGO_BIN_EXE_natten"))
            .args(words)
            .current_dir(self.0.path())
            .env_remove(natten::BACKEND_VARIABLE)
            // A layer of Mesa's looks for a display there, and complains on the standard error where it is not set.
            .env(
                "XDG_RUNTIME_DIR",
                std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_else(|| self.0.path().into()),
            )
            .output()
            .unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `natten run` from the input file to `out.safetensors`, with these words beside.
    pub(crate) fn run(&self, words: &str) -> Finished {
        let files = ["run", "--input", "in.safetensors", "--output", "out.safetensors"];
        self.natten(&files.into_iter().chain(words.split_whitespace()).collect::<Vec<_>>())
    }

    /// As [`run`](Self::run), which must work; what it wrote, and what it said.
    pub(crate) fn results(&self, words: &str) -> (Tensors, Finished) {
        let finished = self.run(words);
        assert_eq!(finished.code, Some(0), "{words}: {}", finished.stderr);
        (read(&self.path("out.safetensors")), finished)
    }
}

/// Every tensor of a file.
pub(crate) fn read(path: &Path) -> Tensors {
    let file = TensorFile::read(path).unwrap();
    let tensor = |name: String| {
        let tensor = file.captured(&name).unwrap().unwrap();
        (name, tensor)
    };
    file.names().into_iter().map(tensor).collect()
}

/// A tensor of numbers between -1 and 1 that look random; another `seed` gives others.
pub(crate) fn noise(dtype: DType, shape: &[usize], seed: u64) -> HostTensor {
    HostTensor::from_fn(dtype, shape, |index| {
        let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed << 32);
        let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
    .unwrap()
}

/// Query, key, value and grad_output of a token grid, two heads of 4, batch 1.
pub(crate) fn inputs(dtype: DType, grid: &[usize]) -> Tensors {
    let shape = [&[1], grid, &[2, 4]].concat();
    let names = ["query", "key", "value", "grad_output"];
    names.into_iter().zip(1..).map(|(name, seed)| (name.to_owned(), noise(dtype, &shape, seed))).collect()
}

/// Checks that two tensors agree to `tolerance` of the largest magnitude of the second. Infinities must be the same.
pub(crate) fn assert_close(name: &str, found: &HostTensor, expected: &HostTensor, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{name}");
    let expected = expected.to_f64();
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0, |most: f64, x| most.max(x.abs()));
    for (index, (found, expected)) in found.to_f64().into_iter().zip(expected).enumerate() {
        let close = found == expected || (found - expected).abs() <= tolerance * largest;
        assert!(close, "{name}[{index}] is {found}, expected {expected}, largest {largest}");
    }
}
