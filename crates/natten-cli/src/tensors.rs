//! Tensor files in the safetensors format: named tensors of which the four float types can be loaded, and integers that
//! fit 32 bits where a program captures them.
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

    /// A tensor of floats by name, if it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] where its dtype is not one of the four, or its extents overflow beside a zero.
    pub fn tensor(&self, name: &str) -> Result<Option<HostTensor>> {
        let Some(entry) = self.entry(name)? else { return Ok(None) };
        match float(entry.dtype) {
            Some(dtype) => HostTensor::from_le_bytes(dtype, entry.shape, entry.bytes).map(Some),
            None => Err(entry.wrong_dtype("its dtype must be f64, f32, f16 or bf16")),
        }
    }

    /// A tensor of floats or integers by name, if it is there. Integers and truth values become i32.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); [`Error::Invalid`] where an integer does not fit 32 bits.
    pub fn captured(&self, name: &str) -> Result<Option<HostTensor>> {
        let Some(entry) = self.entry(name)? else { return Ok(None) };
        if let Some(dtype) = float(entry.dtype) {
            return HostTensor::from_le_bytes(dtype, entry.shape, entry.bytes).map(Some);
        }
        let numbers = match entry.dtype {
            Dtype::BOOL => entry.integers(|[byte]| i64::from(byte != 0)),
            Dtype::U8 => entry.integers(|bytes| u8::from_le_bytes(bytes).into()),
            Dtype::I8 => entry.integers(|bytes| i8::from_le_bytes(bytes).into()),
            Dtype::U16 => entry.integers(|bytes| u16::from_le_bytes(bytes).into()),
            Dtype::I16 => entry.integers(|bytes| i16::from_le_bytes(bytes).into()),
            Dtype::U32 => entry.integers(|bytes| u32::from_le_bytes(bytes).into()),
            Dtype::I32 => entry.integers(|bytes| i32::from_le_bytes(bytes).into()),
            Dtype::U64 => entry.integers(|bytes| i64::try_from(u64::from_le_bytes(bytes)).unwrap_or(i64::MAX)),
            Dtype::I64 => entry.integers(i64::from_le_bytes),
            _ => return Err(entry.wrong_dtype("a captured tensor must be of f64, f32, f16, bf16, integers or bool")),
        };
        HostTensor::new(entry.shape, numbers?).map(Some)
    }

    fn entry<'a>(&'a self, name: &'a str) -> Result<Option<Entry<'a>>> {
        let Some(TensorInfo { dtype, shape, data_offsets: (start, end) }) = self.metadata.info(name) else {
            return Ok(None);
        };
        let entry = Entry { name, dtype: *dtype, shape, bytes: &self.bytes[self.data..][*start..*end] };
        match checked_len(shape) {
            Ok(_) => Ok(Some(entry)),
            Err(_) => {
                Err(entry.invalid(&format!("{shape:?}"), "its number of elements overflows".to_owned(), "check the shape"))
            }
        }
    }
}

/// A tensor as it lies in a file.
struct Entry<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl Entry<'_> {
    fn invalid(&self, value: &dyn Display, rule: String, hint: &'static str) -> Error {
        Error::invalid(self.name.escape_debug().to_string(), value, rule, hint)
    }

    fn wrong_dtype(&self, rule: &str) -> Error {
        self.invalid(&self.dtype, rule.to_owned(), "convert the tensor and write the file again")
    }

    /// The integers, each of which `number` reads from its bytes.
    fn integers<const SIZE: usize>(&self, number: impl Fn([u8; SIZE]) -> i64) -> Result<Vec<i32>> {
        let (numbers, _) = self.bytes.as_chunks::<SIZE>();
        let convert = |(index, bytes): (usize, &[u8; SIZE])| {
            let number = number(*bytes);
            i32::try_from(number).map_err(|_| {
                let rule = format!("integers must fit 32 bits, and element {index} does not");
                self.invalid(&self.dtype, rule, "capture smaller integers, or numbers as f64")
            })
        };
        numbers.iter().enumerate().map(convert).collect()
    }
}

fn float(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        _ => return None,
    })
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
        DType::I32 => Dtype::I32,
        other => return Err(Error::unsupported("safetensors", other.name(), "the format has no such type")),
    })
}
