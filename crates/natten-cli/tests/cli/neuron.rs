//! `natten simulate` and `natten emit nki`: what they print, the timelines they write, and how they refuse.

use crate::program::Directory;

fn natten(words: &str) -> String {
    let finished = Directory::with_bytes(b"").natten(&words.split(' ').collect::<Vec<_>>());
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{words}");
    finished.stdout
}

#[test]
fn the_tutorials_kernel_is_right_and_has_a_time() {
    let words = "simulate sd-attention --mode accuracy --length 256";
    for more in ["", " --causal", " --full-precision"] {
        assert_eq!(
            natten(&format!("{words}{more}")),
            ">>>> SD attention matches CPU reference? True\n",
            "{more}"
        );
    }
    let text = natten("simulate sd-attention --mode perf --length 256");
    assert!(text.contains("latency.p50 = ") && text.contains("latency.p99 = "), "{text}");
    assert!(["tensor", "vector", "scalar", "dma"].iter().all(|lane| text.contains(lane)), "{text}");
}

#[test]
fn windows_have_reports_and_timelines() {
    let directory = Directory::with_bytes(b"");
    for (file, part) in [("t.svg", "<svg"), ("t.json", "traceEvents")] {
        let path = directory.path(file);
        let path = path.to_str().unwrap();
        let words = ["simulate", "attention", "--shape", "12x16", "--kernel-size", "5x5", "--timeline", path];
        let finished = directory.natten(&words);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stdout.contains("MFU") && finished.stdout.contains("query tile"), "{finished:?}");
        assert!(std::fs::read_to_string(path).unwrap().contains(part));
    }
}

#[test]
fn kernels_print_in_both_spellings() {
    let text = natten("emit nki attention --shape 64 --kernel-size 5");
    assert!(text.contains("import nki\n") && text.contains("nisa.nc_matmul(dst="), "{text}");
    let text = natten("emit nki sd-attention --length 256 --dialect legacy");
    assert!(text.contains("neuronxcc.nki") && text.contains("= nisa.nc_matmul("), "{text}");
}

#[test]
fn what_there_is_no_kernel_for_is_refused() {
    let directory = Directory::with_bytes(b"");
    for (words, reason) in [
        ("simulate sd-attention --length 100", "multiple of 128"),
        ("simulate attention --shape 64 --dtype f64", "f32, f16 or bf16"),
        ("simulate attention --shape 64x64 --kernel-size 3", "2 axes"),
        ("emit nki attention --shape 64 --score sin(score)", "scalar engine"),
    ] {
        let finished = directory.natten(&words.split(' ').collect::<Vec<_>>());
        assert_eq!(finished.code, Some(2), "{words}: {finished:?}");
        let said = finished.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(reason), "{words}: {said}");
    }
}
