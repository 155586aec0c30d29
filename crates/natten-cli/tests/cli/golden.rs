//! `natten run` against results made with another program: every stored case of neighborhood attention, ordinary
//! attention and programs, every operation that its file has results of, in f64 and f32.

use std::fs;
use std::path::{Path, PathBuf};

use natten::{DType, HostTensor};
use natten_cli::tensors::TensorFile;
use serde_json::Value;

use crate::program::{Directory, Tensors, assert_close, read};

/// The backends that must do every case.
#[cfg(feature = "cpu")]
pub(crate) const BACKENDS: [&str; 2] = ["reference", "cpu"];
#[cfg(not(feature = "cpu"))]
pub(crate) const BACKENDS: [&str; 1] = ["reference"];

/// What the program may be given; everything else in a file is a result of some operation.
const INPUTS: [&str; 11] = [
    "query",
    "key",
    "value",
    "rpb",
    "additional_key",
    "additional_value",
    "slope",
    "grad_output",
    "tangent_query",
    "tangent_key",
    "tangent_value",
];

struct Case {
    name: String,
    words: String,
    inputs: Tensors,
    results: Tensors,
}

impl Case {
    /// Every operation that the file has results of.
    fn ops(&self) -> Vec<&'static str> {
        let marks = [
            ("forward", "output"),
            ("backward", "grad_query"),
            ("jvp", "tangent_output"),
            ("double-backward", "grad2_query"),
            ("qk", "attention"),
        ];
        marks.into_iter().filter(|(_, result)| self.results.contains_key(*result)).map(|(op, _)| op).collect()
    }

    /// The directory of a run of the unfused pair, which is given these inputs and nothing else.
    fn unfused(&self, names: &[&str], more: &[(&str, &HostTensor)]) -> Directory {
        let inputs = self.inputs.iter().filter(|(name, _)| names.contains(&name.as_str()));
        let inputs = inputs.map(|(name, tensor)| (name.clone(), tensor.clone()));
        let more = more.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone()));
        Directory::with_input(&inputs.chain(more).collect())
    }
}

fn cases() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort_unstable();
    let cases: Vec<Case> = paths.iter().map(|path| case(path)).collect();
    assert!(cases.len() >= 31, "{} cases are there", cases.len());
    cases
}

fn case(path: &Path) -> Case {
    let file = TensorFile::read(path).unwrap();
    let case: Value = serde_json::from_str(file.text("case").unwrap()).unwrap();
    let (inputs, results) = read(path).into_iter().partition(|(name, _)| INPUTS.contains(&name.as_str()));
    Case { name: case["name"].as_str().unwrap().to_owned(), words: words(&case), inputs, results }
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
    if let Some(cap) = case["softcap"].as_f64() {
        words += &format!(" --score {cap}*tanh(score/{cap})");
    }
    if case["alibi"] == true {
        words += " --score score-slope[h]*abs(q-k) --capture slope=slope";
    }
    if let Some(row) = case["row"].as_str() {
        words += &format!(" --row {row}");
    }
    words
}

/// Checks results against those of a case. `tangent_logsumexp` is not stored.
fn assert_results(what: &str, found: &Tensors, case: &Case, dtype: DType, tolerance: f64) {
    for (name, found) in found.iter().filter(|(name, _)| *name != "tangent_logsumexp") {
        let what = format!("{} {what} {name}", case.name);
        assert_eq!(found.dtype(), dtype, "{what}");
        let expected = case.results.get(name).unwrap_or_else(|| panic!("{what} is not stored"));
        assert_close(&what, found, expected, tolerance);
    }
}

fn reproduce(backend: &str, dtype: DType, tolerance: f64) {
    for case in cases() {
        let directory = Directory::with_input(&case.inputs);
        let words =
            format!("--op {} --backend {backend} --dtype {dtype} {}", case.ops().join(","), case.words);
        let (found, finished) = directory.results(&words);
        assert_eq!(finished.stderr, "", "{}", case.name);
        let mut expected: Vec<&str> = case.results.keys().map(String::as_str).collect();
        if case.results.contains_key("logsumexp") {
            expected.push("tangent_logsumexp");
        }
        expected.sort_unstable();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected, "{}", case.name);
        assert_results(backend, &found, &case, dtype, tolerance);
    }
}

#[test]
fn every_operation_in_f64() {
    for backend in BACKENDS {
        reproduce(backend, DType::F64, 1e-10);
    }
}

#[test]
fn every_operation_in_f32() {
    for backend in BACKENDS {
        reproduce(backend, DType::F32, 5e-5);
    }
}

/// What stands between the unfused pair: the weights of scores, and the cotangent of the scores from that of the
/// weights. A row without a key has weights 0.
fn softmax(scores: &HostTensor, grad: Option<&HostTensor>) -> HostTensor {
    let slots = *scores.shape().last().unwrap();
    let values = scores.to_f64();
    let grads = grad.map(HostTensor::to_f64);
    let mut result = Vec::new();
    for (at, row) in values.chunks(slots).enumerate() {
        let most = row.iter().copied().fold(f64::MIN, f64::max);
        let powers: Vec<f64> = row.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let weights = powers.iter().map(|power| if sum > 0.0 { power / sum } else { 0.0 });
        match &grads {
            None => result.extend(weights),
            Some(grads) => {
                let grads = &grads[at * slots..][..slots];
                let delta: f64 = weights.clone().zip(grads).map(|(weight, grad)| weight * grad).sum();
                result.extend(weights.zip(grads).map(|(weight, grad)| weight * (grad - delta)));
            }
        }
    }
    HostTensor::new(scores.shape(), result).unwrap()
}

/// The unfused pair, joined here by a softmax, gives what the fused operations do; each is given only what it needs.
#[test]
fn the_unfused_pair_and_its_gradients() {
    for backend in BACKENDS {
        for case in cases().iter().filter(|case| !case.name.starts_with("program")) {
            let words = |op: &str| format!("--op {op} --backend {backend} --dtype f64 {}", case.words);
            let check = |op: &str, found: &Tensors| assert_results(op, found, case, DType::F64, 1e-10);

            let of_scores = ["query", "key", "rpb", "additional_key"];
            let (scores, finished) = case.unfused(&of_scores, &[]).results(&words("qk"));
            assert_eq!(finished.stderr, "", "{}", case.name);
            if case.results.contains_key("attention") {
                check("qk", &scores);
            }
            let scores = &scores["attention"];

            let weights = softmax(scores, None);
            let weighted = [("attention", &weights)];
            let (output, finished) =
                case.unfused(&["value", "additional_value"], &weighted).results(&words("av"));
            assert_eq!(finished.stderr, "", "{}", case.name);
            assert_eq!(output.keys().collect::<Vec<_>>(), ["output"]);
            check("av", &output);

            let directory = case.unfused(&["value", "additional_value", "grad_output"], &weighted);
            let (mut gradients, _) = directory.results(&words("av-backward"));
            let grad_scores = softmax(scores, gradients.remove("grad_attention").as_ref());
            assert!(gradients.contains_key("grad_value"), "{}", case.name);
            check("av-backward", &gradients);

            let directory = case.unfused(&of_scores, &[("grad_attention", &grad_scores)]);
            let (gradients, _) = directory.results(&words("qk-backward"));
            let given = of_scores.into_iter().filter(|name| case.inputs.contains_key(*name));
            assert!(given.map(|name| format!("grad_{name}")).all(|name| gradients.contains_key(&name)));
            check("qk-backward", &gradients);
        }
    }
}
