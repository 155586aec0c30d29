//! Tensor files in the safetensors format: named tensors of which the four float types can be loaded.
//!
//! A file is not trusted. Its header is checked against its length with checked arithmetic before anything is
//! allocated, so that a damaged or hostile file is an error that names the file, never a panic and never memory out of
//! proportion to the file.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::Path;

use natten::{DType, Error, HostTensor, Result, checked_len};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use crate::output;

/// Bytes of the number at the beginning that tells the header's length.
const PREFIX: usize = size_of::<u64>();

/// The most bytes that a header may have: the format's own limit.
const MAX_HEADER: usize = 100_000_000;

const HINT: &str = "write it again with a safetensors library, or name another file";

/// A tensor file in memory.
#[derive(Debug)]
pub struct TensorFile {
    metadata: Metadata,
    bytes: Vec<u8>,
    /// Where the tensors begin in `bytes`.
    data: usize,
}

impl TensorFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, [`Error::Invalid`] where it is not a whole safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)
            .map_err(|source| Error::Io { action: format!("read '{}'", path.display()), source })?;
        Self::parse(bytes, &path.display().to_string())
    }

    /// Takes the contents of a file. `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are not a whole safetensors file.
    pub fn parse(bytes: Vec<u8>, name: &str) -> Result<Self> {
        let invalid =
            |rule: String| Error::invalid("input", format!("'{}'", name.escape_debug()), rule, HINT);
        let not_safetensors = |why: &str| invalid(format!("it is not a safetensors file: {why}"));
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
            return Err(not_safetensors("it is shorter than a header's length"));
        };
        let length = usize::try_from(u64::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > MAX_HEADER {
            return Err(not_safetensors(&format!("its header would be {length} bytes long")));
        }
        let Some(header) = rest.get(..length) else {
            return Err(invalid(format!(
                "it is truncated or no safetensors file: its header should have {length} bytes, and {} are there",
                rest.len()
            )));
        };
        // The library's own check of the whole file adds lengths without looking for overflow; reading the header alone
        // has each tensor's shape, dtype and place checked, and what is left is one comparison.
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|error| not_safetensors(&error.to_string()))?;
        let (needed, there) = (metadata.data_len(), rest.len() - length);
        if needed != there {
            return Err(invalid(format!(
                "it is truncated or damaged: its tensors should have {needed} bytes, and {there} are there"
            )));
        }
        Ok(Self { metadata, bytes, data: PREFIX + length })
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    /// The text that the file's writer stored under `key`, beside the tensors.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// A tensor by name, if it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] where its dtype is not one of the four, or its extents overflow beside a zero.
    pub fn tensor(&self, name: &str) -> Result<Option<HostTensor>> {
        let Some(TensorInfo { dtype, shape, data_offsets: (start, end) }) = self.metadata.info(name) else {
            return Ok(None);
        };
        let invalid = |value: &dyn Display, rule: &'static str, hint: &'static str| {
            Error::invalid(name.escape_debug().to_string(), value, rule, hint)
        };
        let dtype = match dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                let hint = "convert the tensor and write the file again";
                return Err(invalid(other, "its dtype must be f64, f32, f16 or bf16", hint));
            }
        };
        if checked_len(shape).is_err() {
            return Err(invalid(
                &format!("{shape:?}"),
                "its number of elements overflows",
                "check the shape",
            ));
        }
        let bytes = &self.bytes[self.data..][*start..*end];
        HostTensor::from_le_bytes(dtype, shape, bytes).map(Some)
    }
}

/// Writes tensors by their names, whole or not at all.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a HostTensor)>) -> Result<()> {
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, Stored { dtype: dtype_in_file(tensor.dtype())?, tensor })))
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(tensors, None).map_err(|error| Error::Io {
        action: format!("write '{}'", path.display()),
        source: std::io::Error::other(error),
    })?;
    output::write(path, |file| file.write_all(&bytes))
}

/// A tensor as the library wants to see it. Its bytes are made when they are written, one tensor at a time.
struct Stored<'a> {
    dtype: Dtype,
    tensor: &'a HostTensor,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.tensor.to_le_bytes().into()
    }

    fn data_len(&self) -> usize {
        self.tensor.len() * self.tensor.dtype().size()
    }
}

fn dtype_in_file(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        other => return Err(Error::unsupported("safetensors", other.name(), "the format has no such type")),
    })
}
