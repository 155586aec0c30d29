//! What `natten run` promises beside the numbers: which results an operation gives, their dtypes, what is said on
//! stderr, and that what is named is computed. And `natten devices`.

use natten::{DType, HostTensor};

use crate::program::{Directory, Tensors, assert_close, inputs, noise};

const GRADIENTS: [&str; 3] = ["grad_key", "grad_query", "grad_value"];

fn names(tensors: &Tensors) -> Vec<&str> {
    tensors.keys().map(String::as_str).collect()
}

fn zeros_like(tensor: &HostTensor) -> HostTensor {
    HostTensor::zeros(tensor.dtype(), tensor.shape()).unwrap()
}

#[test]
fn devices_lists_every_backend() {
    let finished = Directory::with_bytes(b"").natten(&["devices"]);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    let first: Vec<&str> = finished
        .stdout
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .filter(|w| !w.is_empty())
        .collect();
    for (name, is_built) in [
        ("reference", true),
        ("cpu", cfg!(feature = "cpu")),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("neuron", cfg!(feature = "neuron")),
    ] {
        let count = first.iter().filter(|&&word| word == name).count();
        assert_eq!(count, usize::from(is_built), "{name}: {}", finished.stdout);
    }
}

#[test]
fn results_are_those_of_the_named_operations() {
    let directory = Directory::with_input(&inputs(DType::F64, &[9]));
    let window = "--backend reference --kernel-size 3";
    let (both, _) = directory.results(&format!("--op forward,backward {window}"));
    assert_eq!(names(&both), ["grad_key", "grad_query", "grad_value", "logsumexp", "output"]);
    let (forward, finished) = directory.results(&format!("--op forward {window}"));
    assert_eq!(names(&forward), ["logsumexp", "output"]);
    assert!(
        finished.stderr.contains("nothing uses") && finished.stderr.contains(": grad_output\n"),
        "{finished:?}"
    );
    assert!(finished.stdout.contains("output [1, 9, 2, 4] f64\n"), "{finished:?}");
    let (backward, finished) = directory.results(&format!("--op backward {window}"));
    assert_eq!(names(&backward), GRADIENTS);
    assert_eq!(finished.stderr, "");
    let separate: Tensors = forward.into_iter().chain(backward).collect();
    assert_eq!(separate, both);
    assert_eq!(directory.entries(), ["in.safetensors", "out.safetensors"]);
}

#[test]
fn stored_results_serve_only_where_asked() {
    let honest = inputs(DType::F64, &[9]);
    let window = "--backend reference --kernel-size 3";
    let (computed, _) = Directory::with_input(&honest).results(&format!("--op forward,backward {window}"));

    let mut false_results = honest.clone();
    for name in ["output", "logsumexp"] {
        false_results.insert(name.to_owned(), zeros_like(&computed[name]));
    }
    let directory = Directory::with_input(&false_results);
    for words in
        ["--op forward,backward", "--op forward,backward --reuse-forward", "--op forward", "--op backward"]
    {
        let (found, finished) = directory.results(&format!("{words} {window}"));
        for (name, tensor) in &found {
            assert_eq!(tensor, &computed[name], "{words} {name}");
        }
        assert!(finished.stderr.contains("logsumexp, output\n"), "{finished:?}");
        assert_eq!(finished.stderr.contains("--reuse-forward does nothing"), words.contains("reuse"));
    }
    let (found, finished) = directory.results(&format!("--op backward --reuse-forward {window}"));
    assert_eq!((names(&found), finished.stderr.as_str()), (GRADIENTS.to_vec(), ""));
    assert_ne!(found["grad_query"], computed["grad_query"], "the stored results were not used");

    let mut true_results = honest;
    for name in ["output", "logsumexp"] {
        true_results.insert(name.to_owned(), computed[name].clone());
    }
    let directory = Directory::with_input(&true_results);
    let (found, _) = directory.results(&format!("--op backward --reuse-forward {window}"));
    assert!(found.iter().all(|(name, tensor)| tensor == &computed[name]));
}

#[test]
fn dtypes_are_those_of_query_or_as_asked() {
    let window = "--op forward,backward --backend reference --kernel-size 3";
    for stored in DType::FLOATS {
        let mut tensors = inputs(stored, &[9]);
        tensors.insert("grad_logsumexp".to_owned(), noise(stored.accumulator(), &[1, 9, 2], 9));
        let directory = Directory::with_input(&tensors);
        for asked in [None, Some(DType::F64), Some(DType::F32), Some(DType::F16), Some(DType::Bf16)] {
            let option = asked.map(|dtype| format!("--dtype {dtype}")).unwrap_or_default();
            let (found, _) = directory.results(&format!("{window} {option}"));
            let dtype = asked.unwrap_or(stored);
            for (name, tensor) in found {
                let expected = if name == "logsumexp" { dtype.accumulator() } else { dtype };
                assert_eq!(tensor.dtype(), expected, "{name}, {stored} as {asked:?}");
            }
        }
    }
    let mut mixed = inputs(DType::F32, &[9]);
    mixed.insert("value".to_owned(), noise(DType::F64, &[1, 9, 2, 4], 3));
    let (found, _) = Directory::with_input(&mixed).results(&format!("{window} --dtype f32"));
    assert_eq!(found["output"].dtype(), DType::F32);
}

#[test]
fn the_cotangent_of_logsumexp_counts() {
    let window = "--op backward --backend reference --kernel-size 5";
    let mut tensors = inputs(DType::F64, &[9]);
    let (without, _) = Directory::with_input(&tensors).results(window);
    tensors.insert("grad_logsumexp".to_owned(), zeros_like(&noise(DType::F64, &[1, 9, 2], 0)));
    let (zero, finished) = Directory::with_input(&tensors).results(window);
    assert_eq!(finished.stderr, "");
    assert_close("grad_query", &zero["grad_query"], &without["grad_query"], 1e-14);
    tensors.insert("grad_logsumexp".to_owned(), noise(DType::F64, &[1, 9, 2], 9));
    let (given, _) = Directory::with_input(&tensors).results(window);
    assert_ne!(given["grad_query"], without["grad_query"]);
    assert_eq!(given["grad_value"], without["grad_value"]);
}

#[test]
fn one_value_stands_for_all_axes() {
    let directory = Directory::with_input(&inputs(DType::F64, &[6, 7]));
    let short = "--kernel-size 3 --stride 2 --dilation 2 --causal true";
    let long = "--kernel-size 3,3 --stride 2,2 --dilation 2,2 --causal true,true";
    let command = "--op forward --backend reference";
    let (one, _) = directory.results(&format!("{command} {short}"));
    let (all, finished) = directory.results(&format!("{command} {long}"));
    assert_eq!(one, all);
    assert!(
        finished.stdout.contains("6x7 kernel 3x3 stride 2x2 dilation 2x2 causal true,true"),
        "{finished:?}"
    );
}

#[test]
fn fit_clamps_the_window_and_says_so() {
    let directory = Directory::with_input(&inputs(DType::F64, &[6, 7]));
    let command = "--op forward --backend reference";
    let (fitted, finished) =
        directory.results(&format!("{command} --kernel-size 9,3 --stride 9,2 --dilation 4 --fit"));
    assert!(finished.stderr.contains("6x7 kernel 6x3 stride 6x2 dilation 1x2"), "{finished:?}");
    let (given, _) = directory.results(&format!("{command} --kernel-size 6,3 --stride 6,2 --dilation 1,2"));
    assert_eq!(fitted, given);
    let (_, finished) = directory.results(&format!("{command} --kernel-size 6,3 --fit"));
    assert!(!finished.stderr.contains("--fit"), "{finished:?}");
}

#[test]
fn an_empty_batch_gives_empty_results() {
    let shape = [0, 5, 2, 4];
    let tensors: Tensors = ["query", "key", "value", "grad_output"]
        .into_iter()
        .map(|name| (name.to_owned(), HostTensor::zeros(DType::F32, &shape).unwrap()))
        .collect();
    let backends: &[&str] = if cfg!(feature = "cpu") { &["reference", "cpu"] } else { &["reference"] };
    for backend in backends {
        let command = format!("--op forward,backward --kernel-size 3 --backend {backend}");
        let (found, _) = Directory::with_input(&tensors).results(&command);
        assert_eq!((found["output"].shape(), found["grad_key"].shape()), (&shape[..], &shape[..]));
    }
}

#[test]
fn files_are_replaced_whole_and_input_may_be_output() {
    let directory = Directory::with_input(&inputs(DType::F32, &[9]));
    let command =
        "run --op forward --backend reference --kernel-size 3 --input in.safetensors --output in.safetensors";
    let finished = directory.natten(&command.split(' ').collect::<Vec<_>>());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(names(&crate::program::read(&directory.path("in.safetensors"))), ["logsumexp", "output"]);
    assert_eq!(directory.entries(), ["in.safetensors"]);
}

#[cfg(unix)]
#[test]
fn a_link_stays_and_its_file_is_replaced() {
    let directory = Directory::with_input(&inputs(DType::F32, &[9]));
    std::fs::create_dir(directory.path("elsewhere")).unwrap();
    let target = directory.path("elsewhere/real.safetensors");
    std::fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, directory.path("out.safetensors")).unwrap();
    directory.results("--op forward --backend reference --kernel-size 3");
    assert!(directory.path("out.safetensors").is_symlink());
    assert_eq!(names(&crate::program::read(&target)), ["logsumexp", "output"]);
}
