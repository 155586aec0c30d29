//! Results of a benchmark: as a table, as JSON, and beside others. The JSON of `benches/peers/torch_gpu.py` is the same.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use natten::{DType, DeviceInfo, Error, Op, Result};
use serde_json::{Map, Value, json};

use super::measure::Measured;
use crate::output;

/// What is known of one case in one dtype and operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The case.
    pub(crate) case: String,
    /// The operation's name.
    pub(crate) op: String,
    /// The dtype's name.
    pub(crate) dtype: String,
    /// Who did it.
    pub(crate) peer: String,
    /// The median time, in milliseconds.
    pub(crate) ms: f64,
    /// The rate by visible pairs, in TFLOP/s.
    pub(crate) tflops: f64,
    /// Why it was not measured.
    pub(crate) failure: Option<String>,
    /// What else is known.
    more: Map<String, Value>,
}

impl Entry {
    pub(crate) fn new(case: &str, op: Op, dtype: DType, peer: &str, measured: Result<Measured>) -> Self {
        let mut entry = Self {
            case: case.to_owned(),
            op: op.name().to_owned(),
            dtype: dtype.name().to_owned(),
            peer: format!("natten-rs {peer}"),
            ms: 0.0,
            tflops: 0.0,
            failure: None,
            more: Map::new(),
        };
        match measured {
            Err(error) => entry.failure = Some(error.to_string()),
            Ok(m) => {
                let seconds = m.median.as_secs_f64();
                entry.ms = seconds * 1e3;
                entry.tflops = m.useful_flops / seconds / 1e12;
                let config: Map<String, Value> = m.config.into_iter().map(|(k, v)| (k, v.into())).collect();
                let more = [
                    ("least_ms", json!(m.least.as_secs_f64() * 1e3)),
                    ("visited_tflops", json!(m.visited_flops / seconds / 1e12)),
                    ("memory", json!(m.memory)),
                    ("workspace", json!(m.workspace)),
                    ("error", json!(m.error)),
                    ("config", Value::Object(config)),
                ];
                entry.more = more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            }
        }
        entry
    }

    /// The same, beside the rate of matrix products of its dtype in TFLOP/s, where that was measured.
    pub(crate) fn beside(mut self, matmul_tflops: Option<f64>) -> Self {
        if let (Some(rate), None) = (matmul_tflops, &self.failure) {
            self.more.insert("matmul_tflops".to_owned(), rate.into());
        }
        self
    }

    /// Whether it is of the same work.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (&self.case, &self.op, &self.dtype) == (&other.case, &other.op, &other.dtype)
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (name, text) in
            [("case", &self.case), ("op", &self.op), ("dtype", &self.dtype), ("peer", &self.peer)]
        {
            map.insert(name.to_owned(), text.as_str().into());
        }
        match &self.failure {
            Some(why) => drop(map.insert("failure".to_owned(), why.as_str().into())),
            None => {
                map.insert("ms".to_owned(), self.ms.into());
                map.insert("tflops".to_owned(), self.tflops.into());
                map.extend(self.more.clone());
            }
        }
        Value::Object(map)
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        let failure = text("failure");
        let number = |name: &str| match failure {
            Some(_) => Some(0.0),
            None => value.get(name)?.as_f64(),
        };
        Some(Self {
            case: text("case")?,
            op: text("op")?,
            dtype: text("dtype")?,
            peer: text("peer")?,
            ms: number("ms")?,
            tflops: number("tflops")?,
            failure,
            more: Map::new(),
        })
    }
}

/// The results of a run on a device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Results {
    /// The device's name.
    pub(crate) device: String,
    /// The rate of large matrix products in the same run, in TFLOP/s, where it was measured; of the first dtype.
    pub(crate) matmul_tflops: Option<f64>,
    /// In the order in which they were measured.
    pub(crate) entries: Vec<Entry>,
}

impl Results {
    pub(crate) fn new(device: &DeviceInfo) -> Self {
        Self { device: device.name.clone(), matmul_tflops: None, entries: Vec::new() }
    }

    /// Reads what [`write`](Self::write) or another program wrote.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Invalid`] where the file is something else.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { action: format!("read {}", path.display()), source })?;
        let parse = || {
            let value: Value = serde_json::from_str(&text).ok()?;
            let entries = value.get("entries")?.as_array()?;
            Some(Self {
                device: value.get("device")?.as_str()?.to_owned(),
                matmul_tflops: value.get("matmul_tflops").and_then(Value::as_f64),
                entries: entries.iter().map(Entry::from_json).collect::<Option<_>>()?,
            })
        };
        parse().ok_or_else(|| {
            Error::invalid(
                "--compare",
                format!("'{}'", path.display()),
                "it holds no results of a benchmark",
                "give a file that --json of natten bench, or benches/peers/torch_gpu.py, wrote",
            )
        })
    }

    /// Writes them as JSON.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let entries: Vec<Value> = self.entries.iter().map(Entry::to_json).collect();
        let value = json!({
            "device": self.device, "matmul_tflops": self.matmul_tflops, "entries": entries,
        });
        output::write(path, |file| writeln!(file, "{value:#}"))
    }

    /// A line an entry, and below it how it compares. `products` is the share of the rate of matrix products.
    pub(crate) fn table(&self, others: &[Self]) -> String {
        let mut text = format!("{}\n", self.device);
        let width = self.entries.iter().map(|entry| entry.case.len()).max().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<width$}  {:<5} {:<15} {:>10} {:>10} {:>8} {:>10} {:>9} {:>8}  choices",
            "case", "dtype", "operation", "ms", "TFLOP/s", "products", "visited", "MiB", "error"
        );
        for entry in &self.entries {
            let head = format!("{:<width$}  {:<5} {:<15}", entry.case, entry.dtype, entry.op);
            let _ = match &entry.failure {
                Some(why) => writeln!(text, "{head} not measured: {why}"),
                None => writeln!(text, "{head} {}", numbers(entry)),
            };
            let same = others.iter().flat_map(|other| &other.entries).filter(|other| other.is_of(entry));
            for other in same.filter(|_| entry.failure.is_none()) {
                let _ = match &other.failure {
                    Some(why) => writeln!(text, "{:<width$}  {}: {why}", "", other.peer),
                    None => writeln!(
                        text,
                        "{:<width$}  {:<21} {:>10} {:>10}  {:.2} times as fast",
                        "",
                        other.peer,
                        digits(other.ms),
                        digits(other.tflops),
                        other.ms / entry.ms
                    ),
                };
            }
        }
        if let (Some(rate), Some(first)) = (self.matmul_tflops, self.entries.first()) {
            let _ =
                writeln!(text, "matrix products in {}: {} TFLOP/s in this run", first.dtype, digits(rate));
        }
        for (other, rate) in others.iter().filter_map(|other| Some((other, other.matmul_tflops?))) {
            let best = self.entries.iter().map(|entry| entry.tflops).fold(0.0, f64::max);
            let share = 100.0 * best / rate;
            let _ = writeln!(
                text,
                "large matrix products on {}: {} TFLOP/s; the best rate above is {share:.0} % of it",
                other.device,
                digits(rate)
            );
        }
        text
    }
}

fn numbers(entry: &Entry) -> String {
    let number = |name: &str| entry.more.get(name).and_then(Value::as_f64);
    let bytes = number("memory").unwrap_or_default() + number("workspace").unwrap_or_default();
    let choices = entry.more.get("config").and_then(Value::as_object);
    let choices = choices.map(|map| {
        map.iter()
            .map(|(k, v)| format!("{k} {}", v.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ")
    });
    format!(
        "{:>10} {:>10} {:>8} {:>10} {:>9.1} {:>8}  {}",
        digits(entry.ms),
        digits(entry.tflops),
        number("matmul_tflops")
            .map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", 100.0 * entry.tflops / rate)),
        digits(number("visited_tflops").unwrap_or_default()),
        bytes / f64::from(1 << 20),
        number("error").map_or_else(|| "-".to_owned(), |error| format!("{error:.1e}")),
        choices.unwrap_or_default()
    )
}

/// Four significant digits.
fn digits(value: f64) -> String {
    let places = if value > 0.0 { (3 - value.log10().floor() as i32).clamp(0, 6) } else { 0 };
    format!("{value:.*}", places.unsigned_abs() as usize)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use natten::DeviceKind;

    use super::*;

    fn results(ms: f64) -> Results {
        let measured = Measured {
            median: Duration::from_secs_f64(ms * 1e-3),
            least: Duration::from_secs_f64(ms * 0.9e-3),
            useful_flops: 1e12,
            visited_flops: 2e12,
            memory: 1 << 20,
            workspace: 0,
            config: vec![("family".to_owned(), "plain".to_owned())],
            error: Some(1e-3),
        };
        let mut results = Results::new(&DeviceInfo::new("cuda", "H200", DeviceKind::Gpu));
        results.entries.push(Entry::new("a", Op::Forward, DType::Bf16, "cuda", Ok(measured)));
        results.matmul_tflops = Some(1000.0);
        results.entries[0] = results.entries[0].clone().beside(Some(1000.0));
        let failure = Err(Error::unsupported("cuda", "b", "no kernel"));
        results.entries.push(Entry::new("b", Op::Backward, DType::Bf16, "cuda", failure));
        results
    }

    #[test]
    fn files_round_trip_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let written = results(4.0);
        written.write(&path).unwrap();
        let read = Results::read(&path).unwrap();
        assert_eq!((&*read.device, read.matmul_tflops), ("H200", Some(1000.0)));
        assert_eq!((read.entries[0].ms, read.entries[0].tflops), (4.0, 250.0));
        assert_eq!(read.entries[1].failure, written.entries[1].failure);
        std::fs::write(&path, "{}").unwrap();
        assert!(Results::read(&path).unwrap_err().to_string().contains("results.json"));
    }

    #[test]
    fn the_table_compares_the_same_work_and_tells_failures() {
        let mut other = results(8.0);
        other.matmul_tflops = Some(500.0);
        let text = results(4.0).table(&[other]);
        assert!(text.contains("250.0") && text.contains("500.0"), "{text}");
        assert!(text.contains("2.00 times as fast") && text.contains("50 % of it"), "{text}");
        assert!(text.contains("25.0 %") && text.contains("in bf16: 1000 TFLOP/s"), "{text}");
        assert!(text.contains("not measured: cuda does not support b"), "{text}");
    }

    #[test]
    fn numbers_have_four_digits() {
        for (value, expected) in
            [(638.123, "638.1"), (0.012_345, "0.01235"), (3.4, "3.400"), (12_345.6, "12346"), (0.0, "0")]
        {
            assert_eq!(digits(value), expected);
        }
    }
}
