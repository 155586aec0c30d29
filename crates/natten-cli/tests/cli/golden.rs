//! `natten run` against results made with another program: every stored case of neighborhood and ordinary attention,
//! forward and backward, in f64 and f32, on every backend that a plain machine has.

use std::fs;
use std::path::{Path, PathBuf};

use natten::DType;
use natten_cli::tensors::TensorFile;
use serde_json::Value;

use crate::program::{Directory, Tensors, assert_close, read};

/// What the program may be given; everything else in a file is a result of some operation.
const INPUTS: [&str; 7] =
    ["query", "key", "value", "rpb", "additional_key", "additional_value", "grad_output"];

/// The results that `forward,backward` writes, where the case has them.
const RESULTS: [&str; 8] = [
    "output",
    "logsumexp",
    "grad_query",
    "grad_key",
    "grad_value",
    "grad_rpb",
    "grad_additional_key",
    "grad_additional_value",
];

struct Case {
    name: String,
    words: String,
    inputs: Tensors,
    results: Tensors,
}

fn cases() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".safetensors") && (name.starts_with("na") || name.starts_with("full"))
    });
    paths.sort_unstable();
    paths.iter().map(|path| case(path)).collect()
}

fn case(path: &Path) -> Case {
    let file = TensorFile::read(path).unwrap();
    let case: Value = serde_json::from_str(file.text("case").unwrap()).unwrap();
    let of = |names: &[&str]| {
        read(path).into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect::<Tensors>()
    };
    Case {
        name: case["name"].as_str().unwrap().to_owned(),
        words: words(&case),
        inputs: of(&INPUTS),
        results: of(&RESULTS),
    }
}

/// A case's parameters on the command line.
fn words(case: &Value) -> String {
    let list =
        |key: &str| case[key].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    let mut words = format!("--causal {}", list("is_causal"));
    if case["full"] == true {
        words += " --full";
        if let Some(corner) = case["align"].as_str() {
            words += &format!(" --align {corner}");
        }
    } else {
        for (option, key) in [("kernel-size", "kernel_size"), ("stride", "stride"), ("dilation", "dilation")]
        {
            words += &format!(" --{option} {}", list(key));
        }
    }
    if let Some(scale) = case["scale"].as_f64() {
        words += &format!(" --scale {scale}");
    }
    words
}

fn reproduce(backend: &str, dtype: DType, tolerance: f64) {
    let cases = cases();
    assert!(cases.len() >= 25, "{} cases are there", cases.len());
    for case in cases {
        let directory = Directory::with_input(&case.inputs);
        let words = format!("--op forward,backward --backend {backend} --dtype {dtype} {}", case.words);
        let (found, finished) = directory.results(&words);
        assert_eq!(finished.stderr, "", "{}", case.name);
        assert!(
            found.keys().eq(case.results.keys()),
            "{}: {:?} for {:?}",
            case.name,
            found.keys(),
            case.results.keys()
        );
        for (name, expected) in &case.results {
            assert_eq!(found[name].dtype(), dtype, "{} {name}", case.name);
            assert_close(&format!("{} {name}", case.name), &found[name], expected, tolerance);
        }
    }
}

#[test]
fn reference_in_f64() {
    reproduce("reference", DType::F64, 1e-10);
}

#[test]
fn reference_in_f32() {
    reproduce("reference", DType::F32, 2e-5);
}

#[cfg(feature = "cpu")]
#[test]
fn cpu_in_f64() {
    reproduce("cpu", DType::F64, 1e-10);
}

#[cfg(feature = "cpu")]
#[test]
fn cpu_in_f32() {
    reproduce("cpu", DType::F32, 2e-5);
}
