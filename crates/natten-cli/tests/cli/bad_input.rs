//! Everything that a user can get wrong gives one clear error that names the thing, exit code 2, no panic, nothing on
//! stdout and no output file.

use natten::{DType, HostTensor};

use crate::program::{Directory, Finished, Tensors, inputs, noise};

const COMMAND: &str = "--op forward,backward --backend reference --kernel-size 3";

/// Checks a refusal: its exit code, that it is one error, and that it says all of `parts`.
pub(crate) fn assert_refused(what: &str, directory: &Directory, finished: &Finished, parts: &[&str]) {
    let Finished { code, stdout, stderr } = finished;
    assert_eq!((*code, stdout.as_str()), (Some(2), ""), "{what}: {stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{what}: {stderr}");
    let errors: Vec<&str> =
        stderr.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("note: ")).collect();
    // What clap refuses has a usage below it, and a program's text is shown; everything else is one line.
    let shows_place = errors.len() == 3 && errors[2].ends_with('^');
    assert!(errors.len() == 1 || shows_place || errors[0].starts_with("error: "), "{what}: {stderr}");
    let missing: Vec<_> = parts.iter().filter(|part| !stderr.contains(**part)).collect();
    assert!(missing.is_empty(), "{what}: {stderr} does not say {missing:?}");
    let entries = directory.entries();
    assert!(
        entries.iter().all(|name| !name.contains("out") && !name.contains("natten")),
        "{what}: {entries:?}"
    );
}

fn assert_run_refused(what: &str, tensors: &Tensors, words: &str, parts: &[&str]) {
    let directory = Directory::with_input(tensors);
    assert_refused(what, &directory, &directory.run(words), parts);
}

fn with(name: &str, tensor: HostTensor) -> Tensors {
    let mut tensors = inputs(DType::F32, &[9]);
    tensors.insert(name.to_owned(), tensor);
    tensors
}

#[test]
fn tensors_that_do_not_fit() {
    let cases: [(&str, &[usize], &[&str]); 22] = [
        ("query", &[9, 2, 4], &["query is [9, 2, 4]", "one to three token axes"]),
        ("query", &[], &["query is []"]),
        ("query", &[1, 2, 2, 2, 9, 2, 4], &["query is [1, 2, 2, 2, 9, 2, 4]", "one to three token axes"]),
        ("query", &[1, 0, 2, 4], &["query is [1, 0, 2, 4]", "only the batch may be 0"]),
        ("query", &[1, 9, 2, 0], &["query is [1, 9, 2, 0]", "only the batch may be 0"]),
        ("query", &[1, 9, 0, 4], &["query is [1, 9, 0, 4]"]),
        ("query", &[2, 9, 2, 4], &["key is [1, 9, 2, 4]", "[2, 9, 2, 4]"]),
        ("query", &[0, 9, 2, 4], &["key is [1, 9, 2, 4]", "[0, 9, 2, 4]"]),
        ("query", &[1, 9, 3, 4], &["key is [1, 9, 2, 4]", "2 heads must divide the 3 heads of query"]),
        ("key", &[1, 9, 4], &["key is [1, 9, 4]", "as many axes as query"]),
        ("key", &[1, 8, 2, 4], &["key is [1, 8, 2, 4]", "[1, 9, 2, 4]"]),
        ("key", &[1, 9, 2, 5], &["key is [1, 9, 2, 5]", "[1, 9, 2, 4]"]),
        ("key", &[1, 9, 0, 4], &["key is [1, 9, 0, 4]", "only the batch may be 0"]),
        ("value", &[1, 9, 1, 4], &["value is [1, 9, 1, 4]", "[1, 9, 2, 4]"]),
        ("value", &[1, 10, 2, 4], &["value is [1, 10, 2, 4]", "[1, 9, 2, 4]"]),
        ("value", &[1, 9, 2, 0], &["value is [1, 9, 2, 0]"]),
        ("grad_output", &[1, 9, 2, 3], &["grad_output is [1, 9, 2, 3]", "[1, 9, 2, 4]"]),
        ("grad_output", &[], &["grad_output is []"]),
        ("grad_logsumexp", &[1, 9, 2, 1], &["grad_logsumexp is [1, 9, 2, 1]", "[1, 9, 2]"]),
        ("rpb", &[2, 4], &["rpb is [2, 4]", "[2, 5]"]),
        ("rpb", &[1, 5], &["rpb is [1, 5]", "[2, 5]"]),
        ("rpb", &[2, 5, 5], &["rpb is [2, 5, 5]"]),
    ];
    for (name, shape, parts) in cases {
        let tensors = with(name, noise(DType::F32, shape, 5));
        assert_run_refused(&format!("{name} of {shape:?}"), &tensors, COMMAND, parts);
    }
}

#[test]
fn additional_tokens_that_do_not_fit() {
    for (key, value, parts) in [
        (&[1, 3, 4][..], &[1, 3, 2, 4][..], &["additional_key is [1, 3, 4]"][..]),
        (&[1, 0, 2, 4], &[1, 0, 2, 4], &["additional_key is [1, 0, 2, 4]", "only the batch may be 0"]),
        (&[1, 3, 2, 5], &[1, 3, 2, 4], &["additional_key is [1, 3, 2, 5]", "[1, 3, 2, 4]"]),
        (&[2, 3, 2, 4], &[1, 3, 2, 4], &["additional_key is [2, 3, 2, 4]", "[1, 3, 2, 4]"]),
        (&[1, 3, 2, 4], &[1, 2, 2, 4], &["additional_value is [1, 2, 2, 4]", "[1, 3, 2, 4]"]),
        (&[1, 3, 2, 4], &[4], &["additional_value is [4]", "[1, 3, 2, 4]"]),
    ] {
        let mut tensors = with("additional_key", noise(DType::F32, key, 5));
        tensors.insert("additional_value".to_owned(), noise(DType::F32, value, 6));
        assert_run_refused(&format!("{key:?} {value:?}"), &tensors, COMMAND, parts);
    }
    for (given, other) in [("additional_key", "additional_value"), ("additional_value", "additional_key")] {
        let half = with(given, noise(DType::F32, &[1, 3, 2, 4], 5));
        assert_run_refused(
            "half a pair",
            &half,
            COMMAND,
            &[&format!("{other} is missing: {given} is given")],
        );
    }
}

#[test]
fn tensors_that_are_missing() {
    for name in ["query", "key", "value", "grad_output"] {
        let mut tensors = inputs(DType::F32, &[9]);
        tensors.remove(name);
        assert_run_refused(name, &tensors, COMMAND, &[&format!("{name} is missing")]);
    }
    let words = "--op backward --reuse-forward --backend reference --kernel-size 3";
    assert_run_refused("reuse", &inputs(DType::F32, &[9]), words, &["output is missing", "--reuse-forward"]);
    let half = with("output", noise(DType::F32, &[1, 9, 2, 4], 7));
    assert_run_refused("reuse", &half, words, &["logsumexp is missing", "--reuse-forward"]);
}

#[test]
fn dtypes_that_do_not_fit() {
    for (name, dtype, shape) in [
        ("key", DType::F64, &[1, 9, 2, 4][..]),
        ("query", DType::F16, &[1, 9, 2, 4]),
        ("grad_output", DType::Bf16, &[1, 9, 2, 4]),
        ("grad_logsumexp", DType::F64, &[1, 9, 2]),
        ("rpb", DType::F64, &[2, 5]),
    ] {
        let parts = ["its dtype must be", "--dtype"];
        assert_run_refused(name, &with(name, noise(dtype, shape, 5)), COMMAND, &parts);
    }
    let mut half = inputs(DType::F16, &[9]);
    half.insert("grad_logsumexp".to_owned(), noise(DType::F16, &[1, 9, 2], 5));
    assert_run_refused("f16", &half, COMMAND, &["grad_logsumexp is f16: its dtype must be f32"]);
}

#[test]
fn windows_and_options_that_are_wrong() {
    let line = inputs(DType::F32, &[9]);
    let reference = "--op forward --backend reference";
    for (words, parts) in [
        ("--kernel-size 10", &["kernel_size[0] is 10", "9 long"][..]),
        ("--kernel-size 0", &["kernel_size[0] is 0", "at least 1"]),
        ("--kernel-size 0 --fit", &["kernel_size[0] is 0", "at least 1"]),
        ("--kernel-size 3 --stride 0", &["stride[0] is 0"]),
        ("--kernel-size 3 --dilation 0", &["dilation[0] is 0"]),
        ("--kernel-size 3 --stride 4", &["stride[0] is 4"]),
        ("--kernel-size 3 --dilation 4", &["dilation[0] is 4"]),
        ("--kernel-size 18446744073709551615", &["kernel_size[0] is 18446744073709551615"]),
        ("--kernel-size 3 --dilation 18446744073709551615", &["dilation[0] is 18446744073709551615"]),
        ("--kernel-size 18446744073709551616", &["18446744073709551616", "--kernel-size"]),
        ("--kernel-size 3,3", &["kernel_size is 3,3", "1 token axis"]),
        ("--kernel-size 3 --stride 1,1", &["stride is 1,1"]),
        ("--kernel-size 3 --dilation 1,1,1", &["dilation is 1,1,1"]),
        ("--kernel-size 3 --causal true,false", &["causal is true,false"]),
        ("--kernel-size three", &["'three'", "--kernel-size"]),
        ("--kernel-size 3,", &["--kernel-size"]),
        ("--kernel-size 3 --causal maybe", &["'maybe'", "--causal", "true, false"]),
        ("--kernel-size 3 --scale NaN", &["scale is NaN"]),
        ("--kernel-size 3 --scale inf", &["scale is inf"]),
        ("--kernel-size 3 --scale big", &["'big'", "--scale"]),
        ("--kernel-size 3 --dtype f8", &["'f8'", "--dtype", "bf16"]),
        ("--kernel-size 3 --op sideways", &["'sideways'", "--op", "backward"]),
        ("--kernel-size 3 --align top-left", &["--align", "--kernel-size"]),
        ("--align top-left", &["--kernel-size"]),
        ("--kernel-size 3 --full", &["--full", "--kernel-size"]),
        ("--full --stride 1", &["--full", "--stride"]),
        ("--full --align middle", &["'middle'", "--align", "bottom-right"]),
        ("--full --causal true,false", &["causal is true,false"]),
        ("--kernel-size 3 --frobnicate", &["--frobnicate"]),
        ("", &["--kernel-size"]),
    ] {
        assert_run_refused(words, &line, &format!("{reference} {words}"), parts);
    }
    let plane = inputs(DType::F32, &[4, 5]);
    assert_run_refused(
        "plane",
        &plane,
        &format!("{reference} --full"),
        &["query is [1, 4, 5, 2, 4]", "--full"],
    );
    assert_run_refused("plane", &plane, &format!("{reference} --kernel-size 3,6"), &["kernel_size[1] is 6"]);
    assert_run_refused("plane", &plane, &format!("{reference} --kernel-size 3,3,3"), &["2 token axes"]);
    assert_run_refused("no op", &line, "--kernel-size 3", &["--op"]);
}

#[test]
fn a_bias_that_cannot_be() {
    let tensors = with("rpb", noise(DType::F32, &[2, 5], 5));
    let full = "--op forward --backend reference --full";
    assert_run_refused("full", &tensors, full, &["rpb is given", "--full has none"]);
    let tensors = with("rpb", noise(DType::F32, &[2, 19], 5));
    let fit = "--op forward --backend reference --kernel-size 10 --fit";
    assert_run_refused("fit", &tensors, fit, &["kernel_size[0] is 10", "bias table of 19 entries"]);
}

/// Checks that an error shows a text with a caret below this part of it.
pub(crate) fn assert_points_at(what: &str, stderr: &str, part: &str) {
    let lines: Vec<&str> = stderr.trim_end().lines().collect();
    let [.., text, caret] = lines[..] else { panic!("{what}: {stderr}") };
    let before: String = text.chars().take(caret.chars().count() - 1).collect();
    assert!(caret.ends_with('^') && text[before.len()..].starts_with(part), "{what}: {stderr}");
}

#[test]
fn programs_that_are_wrong() {
    let tensors = with("slope", noise(DType::F32, &[2], 5));
    let slope = "--capture slope=slope";
    for (words, parts, place) in [
        ("--score scor", &["score: unknown name 'scor' at column 1", "score"][..], "scor"),
        ("--score score-slop[h]", &["score: unknown name 'slop' at column 7", "'slope'"], "slop["),
        ("--score 2*(score", &["score:", "column 9"], ""),
        ("--score score+k1", &["score:", "column 7"], "k1"),
        ("--score slope[h,q]", &["score:", "slope"], ""),
        ("--mask q-k", &["mask:", "column 1"], "q-k"),
        ("--row exp(score)", &["row:", "column 5"], "score"),
        ("--row a=prod(x);x", &["row:", "column 3"], "prod"),
        ("--post x", &["post:", "column 1"], "x"),
        ("--query-mod x*k", &["query_mod:", "column 3"], "k"),
        ("--key-mod x*q", &["key_mod:", "column 3"], "q"),
        ("--value-mod random(1)", &["value_mod:", "column 1"], "random"),
        ("--score -exp(score)+löwe", &["score:", "column 13"], "löwe"),
    ] {
        let directory = Directory::with_input(&tensors);
        let finished = directory.run(&format!("{COMMAND} {slope} {words}"));
        assert_refused(words, &directory, &finished, parts);
        assert_points_at(words, &finished.stderr, place);
    }
    for (words, parts) in [
        ("--row relu:0", &["row is 'relu:0'", "power"][..]),
        ("--row softmax:detach", &["row is 'softmax:detach'", "no options"]),
        ("--dropout 1", &["dropout is 1", "below 1"]),
        ("--dropout -0.5", &["dropout is -0.5", "at least 0"]),
        ("--dropout NaN", &["dropout is NaN"]),
        ("--dropout often", &["'often'", "--dropout"]),
        ("--dropout 0.5 --seed -1", &["'-1'", "--seed"]),
        ("--seed 1", &["--dropout"]),
        ("--dropout 0.5 --post 1.0", &["--dropout", "--post"]),
        ("--decay -1.0", &["decay is given", "--full --causal true"]),
    ] {
        assert_run_refused(words, &tensors, &format!("{COMMAND} {words}"), parts);
    }
    let line = "--op forward --backend reference --full";
    for (words, parts) in [
        ("--decay -1.0", &["decay is given", "--causal true"][..]),
        ("--causal true --align bottom-right --decay -1.0", &["top-left"]),
        ("--causal true --decay -1.0 --score score", &["score is given", "linear attention"]),
        ("--causal true --decay score", &["decay:", "column 1"]),
    ] {
        assert_run_refused(words, &tensors, &format!("{line} {words}"), parts);
    }
}

#[test]
fn captures_that_are_wrong() {
    let tensors = with("slope", noise(DType::F32, &[2], 5));
    for (words, parts) in [
        ("--capture slope", &["'slope'", "--capture", "NAME=TENSOR"][..]),
        ("--capture slope=steep", &["steep is missing", "--capture slope"]),
        ("--capture score=slope", &["'score'", "meaning in programs"]),
        ("--capture exp=slope", &["'exp'", "meaning in programs"]),
        ("--capture k2=slope", &["'k2'", "meaning in programs"]),
        ("--capture =slope", &["''", "letters"]),
        ("--capture 2slope=slope", &["'2slope'", "letters"]),
        ("--capture slöpe=slope", &["'slöpe'", "letters"]),
        ("--capture slope=slope --capture slope=slope", &["slope", "once"]),
        ("--capture query=slope --score score-query[h]", &["'query'", "another tensor of this name"]),
        ("--capture output=slope --score score-output[h]", &["'output'", "another tensor of this name"]),
        ("--capture key=slope --score score-key[h]", &["'key'", "another tensor of this name"]),
    ] {
        assert_run_refused(words, &tensors, &format!("{COMMAND} {words}"), parts);
    }
    let many: String = (0..17).map(|at| format!(" --capture c{at}=slope")).collect();
    assert_run_refused("many", &tensors, &format!("{COMMAND}{many}"), &["captures is 17", "at most 16"]);
}

#[test]
fn operations_that_do_not_fit() {
    let line = "--backend reference --kernel-size 3";
    let tangent = |shape: &[usize], dtype| with("tangent_key", noise(dtype, shape, 5));
    let grid = &[1, 9, 2, 4][..];
    let mut without_cotangent = tangent(grid, DType::F32);
    without_cotangent.remove("grad_output");
    let mut slope = with("slope", noise(DType::F32, &[2], 5));
    slope.insert("tangent_slope".to_owned(), noise(DType::F64, &[2], 6));
    let weights = |shape: &[usize]| with("attention", noise(DType::F32, shape, 5));
    for (what, tensors, words, parts) in [
        ("no tangents", inputs(DType::F32, &[9]), "--op jvp", &["tangents is none", "tangent_query"][..]),
        ("no tangents", inputs(DType::F32, &[9]), "--op double-backward", &["tangents is none", "tangent_value"]),
        ("of grad_output alone", with("tangent_grad_output", noise(DType::F32, grid, 5)), "--op jvp", &["tangents is none"]),
        ("no cotangent", without_cotangent, "--op jvp,double-backward", &["grad_output is missing: double-backward needs it"]),
        ("shape", tangent(&[1, 9, 2, 3], DType::F32), "--op jvp", &["tangent_key is [1, 9, 2, 3]", "[1, 9, 2, 4]"]),
        ("dtype", tangent(grid, DType::F64), "--op jvp", &["tangent_key is f64", "must be f32", "--dtype"]),
        ("dtype of a captured tensor", slope, "--op jvp --capture slope=slope --score score*slope[h]", &["tangent_slope is f64", "must be f32"]),
        ("no weights", inputs(DType::F32, &[9]), "--op av", &["attention is missing: av needs it"]),
        ("no cotangent of weights", inputs(DType::F32, &[9]), "--op qk-backward", &["grad_attention is missing: qk-backward needs it"]),
        ("slots", weights(&[1, 2, 9, 4]), "--op av", &["attention is [1, 2, 9, 4]", "[1, 2, 9, 3]"]),
        ("axes", weights(&[1, 2, 9]), "--op av", &["attention is [1, 2, 9]", "[batch, heads, tokens"]),
        ("heads", weights(&[1, 3, 9, 3]), "--op av", &["value is [1, 9, 2, 4]", "2 heads must divide the 3 heads of attention"]),
        ("a window", inputs(DType::F32, &[9]), "--op qk --row sigmoid", &["program is not plain softmax", "qk"]),
        ("two outputs", weights(&[1, 2, 9, 3]), "--op forward,av", &["op is forward,av: both write output"]),
        ("two gradients", with("grad_attention", noise(DType::F32, &[1, 2, 9, 3], 5)), "--op qk-backward,backward", &["both write grad_query"]),
    ] {
        assert_run_refused(what, &tensors, &format!("{line} {words}"), parts);
    }
}

#[test]
fn backends_that_are_not_there() {
    let tensors = inputs(DType::F32, &[9]);
    let window = "--op forward --kernel-size 3 --backend";
    assert_run_refused("unknown", &tensors, &format!("{window} abacus"), &["'abacus'", "auto", "reference"]);
    let listed = Directory::with_bytes(b"").natten(&["devices"]).stdout;
    for line in listed.lines() {
        if let Some((name, reason)) = line.split_once("not available: ") {
            let name = name.trim_end();
            let parts = [&format!("{name} is not available: {reason}")[..]];
            assert_run_refused(name, &tensors, &format!("{window} {name}"), &parts);
        }
    }
}

#[test]
fn files_that_cannot_be_written_or_read() {
    let directory = Directory::with_input(&inputs(DType::F32, &[9]));
    std::fs::create_dir(directory.path("taken")).unwrap();
    let command = |input: &str, output: &str| {
        let words = ["run", "--op", "forward", "--backend", "reference", "--kernel-size", "3"];
        directory.natten(&[&words[..], &["--input", input, "--output", output]].concat())
    };
    for output in ["nowhere/result", "in.safetensors/result", "taken", ".", "..", "/"] {
        let finished = command("in.safetensors", output);
        assert_refused(output, &directory, &finished, &[&format!("'{output}'")]);
    }
    for input in ["nothing.safetensors", "taken", "in.safetensors/x"] {
        let finished = command(input, "out.safetensors");
        assert_refused(input, &directory, &finished, &[&format!("cannot read '{input}'")]);
    }
    assert_eq!(directory.entries(), ["in.safetensors", "taken"]);
}

/// A tensor file of this header, with the length that it has, and this many bytes of zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

#[test]
fn files_that_are_not_tensor_files() {
    let whole = {
        let directory = Directory::with_input(&inputs(DType::F32, &[9]));
        std::fs::read(directory.path("in.safetensors")).unwrap()
    };
    let one = |dtype: &str, shape: &str, end: u64| format!("{{{}}}", entry("query", dtype, shape, 0, end));
    // Eight tensors whose bytes add up to eight less than the address space: the sum with the header's length wraps.
    let most = (1u64 << 61) - 1;
    let wrapping: Vec<String> = (0..8)
        .map(|i| entry(&format!("t{i}"), "U8", &format!("[{most}]"), i * most, (i + 1) * most))
        .collect();
    let input = "input is 'in.safetensors'";
    for (what, bytes, parts) in [
        ("empty", Vec::new(), &[input, "not a safetensors file"][..]),
        ("text", b"This is a letter, not a file of tensors.".to_vec(), &[input, "not a safetensors file"]),
        ("seven bytes", vec![0; 7], &[input, "not a safetensors file"]),
        ("no header", vec![0; 8], &[input, "not a safetensors file"]),
        ("half a header", whole[..40].to_vec(), &[input, "truncated"]),
        ("half the data", whole[..whole.len() - 100].to_vec(), &[input, "truncated"]),
        ("a byte too many", [&whole[..], &[0]].concat(), &[input, "damaged"]),
        ("endless header", [&[0xff; 8][..], &[0x20; 64]].concat(), &[input, "not a safetensors file"]),
        ("no JSON", file("{\"query\":", 0), &[input, "not a safetensors file"]),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), &[input, "not a safetensors file"]),
        ("a list", file("[]", 0), &[input, "not a safetensors file"]),
        ("deep JSON", file(&"[".repeat(100_000), 0), &[input, "not a safetensors file"]),
        ("no tensors", file("{}", 0), &["query is missing"]),
        ("unknown dtype", file(&one("F128", "[1]", 16), 16), &[input, "F128"]),
        ("negative extent", file(&one("F32", "[-1]", 4), 4), &[input, "-1"]),
        ("huge shape", file(&one("F32", "[4294967296,4294967296,4]", 64), 64), &[input, "overflow"]),
        ("shape without data", file(&one("F32", "[1,9,2,4]", 16), 16), &[input, "shape"]),
        (
            "offsets backwards",
            file(r#"{"query":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
            &[input],
        ),
        ("a hole", file(&format!("{{{}}}", entry("query", "F32", "[1]", 4, 8)), 8), &[input, "offset"]),
        ("lengths that wrap", file(&format!("{{{}}}", wrapping.join(",")), 0), &[input, "damaged"]),
        (
            "overflow beside 0",
            file(&one("F32", "[0,4294967296,4294967296,4]", 0), 0),
            &["query is [0, 42949", "overflow"],
        ),
        ("integers", file(&one("I64", "[1,9,2,4]", 576), 576), &["query is I64", "f64, f32, f16 or bf16"]),
    ] {
        let directory = Directory::with_bytes(&bytes);
        assert_refused(what, &directory, &directory.run(COMMAND), parts);
    }
}

#[test]
fn commands_that_are_not_there() {
    let directory = Directory::with_bytes(b"");
    for words in [&[][..], &["dance"], &["devices", "--loud"], &["run"]] {
        let finished = directory.natten(words);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{words:?}: {finished:?}");
        assert!(finished.stderr.contains("Usage"), "{words:?}: {finished:?}");
    }
}

#[test]
fn checks_of_nothing() {
    let directory = Directory::with_bytes(b"");
    for (words, part) in [
        (&["check", "--backend", "reference", "--filter", "no such case"][..], "--filter is 'no such case'"),
        (&["check", "--backend", "abacus"], "'abacus'"),
        (&["check", "--random", "many"], "'many'"),
    ] {
        assert_refused(&words.join(" "), &directory, &directory.natten(words), &[part]);
    }
}
