//! Programs, forward mode, double backward and recurrences through `natten run`: which tensors go in and come out, and
//! that derivatives are those of what comes out.

use natten::{DType, HostTensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::golden::BACKENDS;
use crate::program::{Directory, Tensors, assert_close, inputs, noise};

fn names(tensors: &Tensors) -> Vec<&str> {
    tensors.keys().map(String::as_str).collect()
}

fn zip(a: &HostTensor, b: &HostTensor, f: impl Fn(f64, f64) -> f64) -> HostTensor {
    assert_eq!(a.shape(), b.shape());
    let numbers = a.to_f64().into_iter().zip(b.to_f64()).map(|(a, b)| f(a, b));
    HostTensor::new(a.shape(), numbers.collect()).unwrap()
}

fn with<const N: usize>(tensors: &Tensors, more: [(&str, HostTensor); N]) -> Tensors {
    let more = more.into_iter().map(|(name, tensor)| (name.to_owned(), tensor));
    tensors.clone().into_iter().chain(more).collect()
}

/// Every float input that a run may have: a window of 3 of 9 tokens, two heads, two additional tokens, and a captured
/// tensor that the score, the row's sink and the key's function use.
const EVERYTHING: &str = "--kernel-size 3 --score score*gain+cap*tanh(score-slope[h]*abs(q-k)) \
     --row softmax-sink:slope --post 1+0.1*sin(q-k+slope[h]) --key-mod x*w[d]+half(x) \
     --capture slope=slopes --capture gain=gain --capture cap=cap --capture w=w";

const FLOATS: [(&str, &[usize]); 11] = [
    ("query", &[1, 9, 2, 4]),
    ("key", &[1, 9, 2, 4]),
    ("value", &[1, 9, 2, 4]),
    ("grad_output", &[1, 9, 2, 4]),
    ("rpb", &[2, 5]),
    ("additional_key", &[1, 2, 2, 4]),
    ("additional_value", &[1, 2, 2, 4]),
    ("grad_logsumexp", &[1, 9, 2]),
    ("slope", &[2]),
    ("gain", &[]),
    ("w", &[4]),
];

/// The tensors of [`FLOATS`], under their names in the file.
fn everything() -> Tensors {
    let tensors = FLOATS.iter().zip(1..).map(|((name, shape), seed)| {
        let in_file = if *name == "slope" { "slopes" } else { name };
        (in_file.to_owned(), noise(DType::F64, shape, seed))
    });
    let cap = [("cap", noise(DType::F64, &[], 99))];
    with(&tensors.collect(), cap)
}

fn tangents() -> Tensors {
    let tangent = |((name, shape), seed): (&(&str, &[usize]), u64)| {
        (format!("tangent_{name}"), noise(DType::F64, shape, seed))
    };
    FLOATS.iter().zip(101..).map(tangent).collect()
}

/// The inputs, `step` along the tangents.
fn moved(step: f64) -> Tensors {
    let tangents = tangents();
    let along = |(name, tensor): (String, HostTensor)| {
        let tangent = if name == "slopes" { "slope" } else { &name };
        let moved = match tangents.get(&format!("tangent_{tangent}")) {
            Some(tangent) => zip(&tensor, tangent, |x, t| x + step * t),
            None => tensor,
        };
        (name, moved)
    };
    everything().into_iter().map(along).collect()
}

#[test]
fn tangents_are_differences() {
    for backend in BACKENDS {
        let words = |op: &str| format!("--op {op} --backend {backend} {EVERYTHING}");
        let (jvp, finished) = Directory::with_input(&everything().into_iter().chain(tangents()).collect())
            .results(&words("jvp,double-backward"));
        assert_eq!(finished.stderr, "");
        let step = 1e-5;
        let at = |step| Directory::with_input(&moved(step)).results(&words("forward,backward")).0;
        let (after, before) = (at(step), at(-step));
        let mut expected: Vec<String> = FLOATS.iter().map(|(name, _)| format!("grad2_{name}")).collect();
        expected.extend(["tangent_logsumexp", "tangent_output"].map(str::to_owned));
        expected.sort_unstable();
        assert_eq!(jvp.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
        assert!(after.contains_key("grad_cap"), "a captured tensor without a tangent has a gradient");
        for (name, found) in &jvp {
            let of = match name.as_str() {
                "tangent_output" | "grad2_grad_output" => "output".to_owned(),
                "tangent_logsumexp" | "grad2_grad_logsumexp" => "logsumexp".to_owned(),
                name => name.replace("grad2_", "grad_"),
            };
            let difference = zip(&after[&of], &before[&of], |a, b| (a - b) / (2.0 * step));
            assert_close(&format!("{backend} {name}"), found, &difference, 1e-7);
        }
    }
}

#[test]
fn a_tangent_that_is_absent_is_zero() {
    let words = "--op jvp,double-backward --kernel-size 3 --backend reference";
    let rpb = [("rpb", noise(DType::F64, &[2, 5], 7))];
    let (base, tangent) = (with(&inputs(DType::F64, &[9]), rpb), noise(DType::F64, &[1, 9, 2, 4], 8));
    let zeros = HostTensor::zeros(DType::F64, &[1, 9, 2, 4]).unwrap();
    let given = |tensors| Directory::with_input(&tensors).results(words);
    let (short, finished) = given(with(&base, [("tangent_key", tangent.clone())]));
    assert_eq!(finished.stderr, "");
    let always = ["grad2_grad_output", "grad2_key", "grad2_query", "grad2_value"];
    assert_eq!(names(&short), [&always[..], &["tangent_logsumexp", "tangent_output"]].concat());
    let (long, _) = given(with(
        &base,
        [
            ("tangent_key", tangent),
            ("tangent_query", zeros.clone()),
            ("tangent_value", zeros.clone()),
            ("tangent_grad_output", zeros),
            ("tangent_rpb", HostTensor::zeros(DType::F64, &[2, 5]).unwrap()),
        ],
    ));
    for (name, tensor) in &short {
        assert_close(name, tensor, &long[name], 1e-14);
    }
    assert_eq!(long.len(), short.len() + 1);
    assert!(long.contains_key("grad2_rpb"));
}

/// The cotangent of the logsumexp that is not there is zero, and a zero can have a tangent.
#[test]
fn a_cotangent_that_is_absent_has_a_tangent() {
    let words = "--op double-backward --kernel-size 3 --backend reference";
    let tangent = [("tangent_grad_logsumexp", noise(DType::F64, &[1, 9, 2], 8))];
    let base = with(&inputs(DType::F64, &[9]), tangent);
    let (short, finished) = Directory::with_input(&base).results(words);
    assert_eq!(finished.stderr, "");
    let zero = [("grad_logsumexp", HostTensor::zeros(DType::F64, &[1, 9, 2]).unwrap())];
    let (long, _) = Directory::with_input(&with(&base, zero)).results(words);
    assert!(short.contains_key("grad2_grad_logsumexp"));
    assert_eq!(short, long);
}

#[test]
fn the_unfused_pair_has_tangents() {
    let base = inputs(DType::F64, &[9]);
    let window = "--kernel-size 3 --backend reference";
    let tangent = [("tangent_key", base["value"].clone())];
    let (found, _) = Directory::with_input(&with(&base, tangent)).results(&format!("--op qk-jvp {window}"));
    let other = with(&base, [("key", base["value"].clone())]);
    let (scores, _) = Directory::with_input(&other).results(&format!("--op qk {window}"));
    assert_close("qk is linear", &found["tangent_attention"], &scores["attention"], 1e-14);

    let attention = [("attention", scores["attention"].clone()), ("tangent_value", base["key"].clone())];
    let directory = Directory::with_input(&with(&base, attention));
    let (found, finished) = directory.results(&format!("--op av-jvp {window}"));
    assert!(finished.stderr.contains("nothing uses these tensors of the input: grad_output, key, query\n"));
    let other = [("attention", scores["attention"].clone()), ("value", base["key"].clone())];
    let (output, _) =
        Directory::with_input(&with(&base, other)).results(&format!("--op av {window}"));
    assert_close("av is linear", &found["tangent_output"], &output["output"], 1e-14);
}

/// `av` takes the file's attention, which is weights, and not what `qk` of the same call gives, which is scores.
#[test]
fn av_takes_the_attention_of_the_file() {
    let attention = [("attention", noise(DType::F64, &[1, 2, 9, 3], 8))];
    let directory = Directory::with_input(&with(&inputs(DType::F64, &[9]), attention));
    let window = "--kernel-size 3 --backend reference";
    let (both, _) = directory.results(&format!("--op qk,av {window}"));
    let (scores, _) = directory.results(&format!("--op qk {window}"));
    let (output, _) = directory.results(&format!("--op av {window}"));
    assert_eq!(both, scores.into_iter().chain(output).collect());
}

#[test]
fn rows_are_presets_or_texts() {
    let directory = Directory::with_input(&inputs(DType::F64, &[9]));
    let run = |row: &str| directory.results(&format!("--op forward,backward --kernel-size 5 --backend reference {row}"));
    let (plain, _) = run("");
    for row in ["--row softmax", "--row l=lse(x);exp(x-l)", "--score score"] {
        assert_eq!(run(row).0, plain, "{row}");
    }
    let (retention, finished) = run("--row retention");
    assert_eq!(names(&retention), ["grad_key", "grad_query", "grad_value", "output"], "{finished:?}");
    assert_eq!(run("--row a=sum(abs(x));x/max(a,1)").0, retention);
    let (detached, _) = run("--row retention:detach");
    assert_eq!(detached["output"], retention["output"]);
    assert_ne!(detached["grad_query"], retention["grad_query"]);
    assert_ne!(run("--row relu:2").0["output"], run("--row relu").0["output"]);
}

/// Backward of a row without a logsumexp needs the output alone; with stored results it is the same.
#[test]
fn stored_results_serve_programs() {
    let directory = Directory::with_input(&inputs(DType::F64, &[9]));
    let words = "--kernel-size 5 --backend reference --row retention";
    let (found, _) = directory.results(&format!("--op forward,backward {words}"));
    let stored = with(&inputs(DType::F64, &[9]), [("output", found["output"].clone())]);
    let directory = Directory::with_input(&stored);
    let (reused, finished) = directory.results(&format!("--op backward --reuse-forward {words}"));
    assert_eq!(finished.stderr, "");
    assert!(reused.iter().all(|(name, tensor)| *tensor == found[name]));
}

#[test]
fn captured_tensors_keep_their_dtype() {
    let slope = [("slope", noise(DType::F64, &[2], 5))];
    let directory = Directory::with_input(&with(&inputs(DType::F32, &[9]), slope));
    let words = "--op backward --kernel-size 3 --backend reference --score score-slope[h]*abs(q-k) --capture slope=slope";
    let (own, _) = directory.results(words);
    assert_eq!((own["grad_slope"].dtype(), own["grad_query"].dtype()), (DType::F64, DType::F32));
    let (cast, _) = directory.results(&format!("{words} --dtype f32"));
    assert_eq!(cast["grad_slope"].dtype(), DType::F32);
}

/// A tensor file of query, key and value of 6 tokens, and of a tensor of integers in some format.
fn documents(dtype: Dtype, bytes: &[u8], len: usize) -> Directory {
    let floats: Vec<(String, Vec<u8>)> = inputs(DType::F64, &[6])
        .into_iter()
        .filter(|(name, _)| name != "grad_output")
        .map(|(name, tensor)| (name, tensor.to_le_bytes()))
        .collect();
    let mut views: Vec<(&str, TensorView<'_>)> = Vec::new();
    for (name, bytes) in &floats {
        views.push((name, TensorView::new(Dtype::F64, vec![1, 6, 2, 4], bytes).unwrap()));
    }
    views.push(("documents", TensorView::new(dtype, vec![len], bytes).unwrap()));
    Directory::with_bytes(&safetensors::serialize(views, None).unwrap())
}

#[test]
fn integers_are_captured_from_every_format() {
    let words = "--op forward --full --backend reference --mask doc[q]==doc[k] --capture doc=documents";
    let ids = [0u8, 0, 1, 1, 1, 0];
    let wide = |size: usize| -> Vec<u8> {
        ids.iter().flat_map(|&id| std::iter::once(id).chain(std::iter::repeat_n(0, size - 1))).collect()
    };
    let (expected, finished) = documents(Dtype::I32, &wide(4), 6).results(words);
    assert_eq!(finished.stderr, "");
    let (unmasked, _) = documents(Dtype::I32, &wide(4), 6).results("--op forward --full --backend reference");
    assert_ne!(expected["output"], unmasked["output"]);
    for (dtype, size) in [
        (Dtype::BOOL, 1),
        (Dtype::U8, 1),
        (Dtype::I8, 1),
        (Dtype::U16, 2),
        (Dtype::I16, 2),
        (Dtype::U32, 4),
        (Dtype::U64, 8),
        (Dtype::I64, 8),
    ] {
        assert_eq!(documents(dtype, &wide(size), 6).results(words).0, expected, "{dtype:?}");
    }
    // Integers stay integers whatever is computed in.
    let (half, _) = documents(Dtype::I64, &wide(8), 6).results(&format!("{words} --dtype f16"));
    assert_eq!(half["output"].dtype(), DType::F16);
}

#[test]
fn integers_that_do_not_fit_are_refused() {
    let words = "--op forward --full --backend reference --mask doc[q]<9 --capture doc=documents";
    for (dtype, bytes) in [
        (Dtype::I64, (-(1i64 << 31) - 1).to_le_bytes().to_vec()),
        (Dtype::I64, (1i64 << 31).to_le_bytes().to_vec()),
        (Dtype::U64, u64::MAX.to_le_bytes().to_vec()),
        (Dtype::U32, u32::MAX.to_le_bytes().to_vec()),
    ] {
        let directory = documents(dtype, &bytes, 1);
        let parts = ["documents is ", "element 0", "32 bits"];
        crate::bad_input::assert_refused("too large", &directory, &directory.run(words), &parts);
    }
    let directory = documents(Dtype::I64, &i64::from(i32::MIN).to_le_bytes(), 1);
    directory.results(words);
    let directory = documents(Dtype::C64, &[0; 8], 1);
    let parts = ["documents is C64", "integers"];
    crate::bad_input::assert_refused("complex", &directory, &directory.run(words), &parts);
}

#[test]
fn captured_tensors_that_nothing_uses_are_noted() {
    let slope = [("slope", noise(DType::F32, &[2], 5))];
    let directory = Directory::with_input(&with(&inputs(DType::F32, &[9]), slope));
    let window = "--op forward,backward,qk --kernel-size 3 --backend reference";
    let (found, finished) = directory.results(&format!("{window} --capture slope=slope"));
    assert_eq!(finished.stderr, "note: no expression uses these captured tensors: slope\n");
    let (plain, finished) = directory.results(window);
    assert_eq!(finished.stderr, "note: nothing uses these tensors of the input: slope\n");
    assert_eq!(found, plain);
}

/// A captured bias is the program's: it is not added by the built-in way too, and its gradient is the same.
#[test]
fn a_captured_bias_is_added_once() {
    let directory =
        Directory::with_input(&with(&inputs(DType::F64, &[9]), [("rpb", noise(DType::F64, &[2, 5], 7))]));
    let window = "--op forward,backward --kernel-size 3 --backend reference";
    let (built_in, _) = directory.results(window);
    let (captured, finished) = directory.results(&format!("{window} --score score+rpb[h,k-q+2] --capture rpb=rpb"));
    assert_eq!((names(&captured), finished.stderr.as_str()), (names(&built_in), ""));
    for (name, tensor) in &captured {
        assert_close(name, tensor, &built_in[name], 1e-13);
    }
}

#[test]
fn dropout_is_a_post_and_goes_by_its_seed() {
    let directory = Directory::with_input(&inputs(DType::F64, &[9]));
    let run = |words: &str| {
        directory.results(&format!("--op forward,backward --kernel-size 5 --backend reference {words}")).0
    };
    let dropped = run("--dropout 0.5 --seed 7");
    assert_eq!(run("--dropout 0.5 --seed 7"), dropped);
    assert_eq!(run("--post select(random(7)>=0.5,2.0,0.0)"), dropped);
    assert_eq!(run("--dropout 0.5"), run("--dropout 0.5 --seed 0"));
    assert_ne!(run("--dropout 0.5"), dropped);
    assert_ne!(run("--dropout 0.4 --seed 7"), dropped);
    // The weights are normalised before they are dropped.
    assert_eq!(run("")["logsumexp"], dropped["logsumexp"]);
    assert_eq!(run("--dropout 0")["output"], run("")["output"]);
    // The largest seed is one too.
    run("--dropout 0.5 --seed 18446744073709551615");
}

/// The tokens `range` of a `[1, tokens, …]` tensor.
fn tokens(tensor: &HostTensor, range: std::ops::Range<usize>) -> HostTensor {
    let (shape, numbers) = (tensor.shape(), tensor.to_f64());
    let row: usize = shape[2..].iter().product();
    let part = numbers[range.start * row..range.end * row].to_vec();
    HostTensor::new(&[&[1, range.len()], &shape[2..]].concat(), part).unwrap()
}

#[test]
fn a_recurrence_goes_on_from_its_state() {
    let words = "--full --causal true --decay -softplus(g[b,k,h]) --capture g=gates";
    for backend in BACKENDS {
        let gates = [("gates", noise(DType::F64, &[1, 12, 2], 9))];
        let whole = with(&inputs(DType::F64, &[12]), gates);
        let run = |tensors: &Tensors, op: &str| {
            let (found, finished) =
                Directory::with_input(tensors).results(&format!("--op {op} --backend {backend} {words}"));
            assert_eq!(finished.stderr, "");
            found
        };
        let part = |range: std::ops::Range<usize>| -> Tensors {
            whole.iter().map(|(name, tensor)| (name.clone(), tokens(tensor, range.clone()))).collect()
        };
        let all = run(&whole, "forward,backward");
        let expected = ["final_state", "grad_g", "grad_key", "grad_query", "grad_value", "output"];
        assert_eq!(names(&all), expected);
        assert_eq!(all["final_state"].shape(), [1, 2, 4, 4]);

        let without = |tensors: Tensors| tensors.into_iter().filter(|(name, _)| name != "grad_output").collect();
        let first = run(&without(part(0..5)), "forward");
        let state = [("initial_state", first["final_state"].clone())];
        let second = run(&with(&part(5..12), state), "forward,backward");
        for (found, range) in [(&first, 0..5), (&second, 5..12)] {
            assert_close("output", &found["output"], &tokens(&all["output"], range), 1e-12);
        }
        assert_close("final_state", &second["final_state"], &all["final_state"], 1e-12);
        // The gradient goes back through the state.
        let cotangent = [("grad_final_state", second["grad_initial_state"].clone())];
        let first = run(&with(&part(0..5), cotangent), "backward");
        for name in ["grad_query", "grad_key", "grad_value", "grad_g"] {
            for (found, range) in [(&first, 0..5), (&second, 5..12)] {
                assert_close(name, &found[name], &tokens(&all[name], range), 1e-12);
            }
        }
    }
}
