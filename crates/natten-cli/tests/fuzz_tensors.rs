//! A fuzz target for the loader of tensor files: whatever the bytes are, it answers with tensors or an error, and the
//! tensors are no larger than the bytes. `cargo test` runs it for a moment, `cargo bolero test` for as long as wanted.
#![forbid(unsafe_code)]

use bolero::check;
use natten_cli::tensors::TensorFile;

/// Loads everything that the bytes hold.
fn load(bytes: Vec<u8>) {
    let most = bytes.len();
    let Ok(file) = TensorFile::parse(bytes, "fuzz") else {
        return;
    };
    let loaded = file.names().into_iter().filter_map(|name| file.tensor(&name).ok().flatten());
    let total: usize = loaded.map(|tensor| tensor.len() * tensor.dtype().size()).sum();
    assert!(total <= most);
}

#[test]
fn any_bytes() {
    check!().with_iterations(20_000).for_each(|bytes: &[u8]| load(bytes.to_vec()));
}

/// Bytes after a right length, so that the header is looked at.
#[test]
fn any_header() {
    check!().with_type::<(String, Vec<u8>)>().with_iterations(20_000).for_each(|(header, data)| {
        load([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat());
    });
}

/// What a header says of one tensor. `spoil` decides whether it is right, and `huge` is what is then wrong with it.
#[derive(Debug, bolero::TypeGenerator)]
struct Entry {
    dtype: u8,
    shape: Vec<u8>,
    spoil: u8,
    huge: u64,
}

/// Headers that are nearly right, so that the checks behind the JSON are reached; about half are right.
#[test]
fn nearly_right() {
    check!().with_type::<(Vec<Entry>, Vec<u8>)>().with_iterations(20_000).for_each(|(entries, data)| {
        let mut end = 0;
        let entries: Vec<String> = entries.iter().enumerate().map(|(i, e)| e.text(i, &mut end)).collect();
        let header = format!("{{{}}}", entries.join(","));
        let mut data = data.clone();
        if end <= 1 << 16 {
            data.resize(end as usize, 0);
        }
        load([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat());
    });
}

impl Entry {
    /// The entry in a header, after tensors that end at `end`, which is moved to its own end.
    fn text(&self, index: usize, end: &mut u64) -> String {
        const DTYPES: [(&str, u64); 6] =
            [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("U8", 1)];
        let (dtype, size) = DTYPES[usize::from(self.dtype) % DTYPES.len()];
        let mut shape: Vec<u64> = self.shape.iter().take(5).map(|extent| u64::from(extent % 4)).collect();
        let start = *end;
        if self.spoil == 0 {
            shape.push(self.huge);
        }
        *end = match self.spoil {
            1 => self.huge,
            _ => start.wrapping_add(shape.iter().fold(size, |bytes, extent| bytes.wrapping_mul(*extent))),
        };
        format!(r#""t{index}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
    }
}
