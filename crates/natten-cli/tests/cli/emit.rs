//! `natten emit expr`: what it prints of a program, and how it refuses.

use crate::program::Directory;

/// What the program prints, which must be there.
fn emit(words: &[&str]) -> String {
    let finished = Directory::with_bytes(b"").natten(&[&["emit", "expr"], words].concat());
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{words:?}");
    finished.stdout
}

/// The text of a row by its name, in a section whose title begins like this.
fn row<'a>(page: &'a str, section: &str, name: &str) -> &'a str {
    let mut lines = page.lines().skip_while(|line| !line.starts_with(section)).skip(1);
    let row = lines.by_ref().take_while(|line| !line.is_empty()).find_map(|line| {
        let (found, text) = line.trim_start().split_once("  ").unwrap_or((line, ""));
        (found == name).then_some(text.trim_start())
    });
    row.unwrap_or_else(|| panic!("no {name} of {section} in:\n{page}"))
}

#[test]
fn alibi_and_its_derivatives() {
    let page = emit(&["--score", "score - slope[h]*abs(q-k)", "--mask", "k <= q", "--capture", "slope:8"]);
    assert_eq!(row(&page, "program", "slope"), "captured, f32 [8]");
    assert_eq!(row(&page, "program", "score"), "score - slope[h]*float(abs(q - k))");
    assert_eq!(row(&page, "program", "mask"), "k <= q");
    assert_eq!(row(&page, "program", "row"), "l = lse(x); exp(x - l)");
    assert_eq!(row(&page, "row, in one pass", "factor"), "exp(shift - l)");
    assert_eq!(row(&page, "backward", "grad_l"), "grad_logsumexp - delta");
    assert_eq!(row(&page, "backward", "ds"), "weight*grad_l + weight*g");
    assert_eq!(row(&page, "backward", "grad_slope[h] +="), "-float(abs(q - k))*ds");
    assert_eq!(row(&page, "tangents", "x'"), "score' - float(abs(q - k))*slope'[h]");
    assert_eq!(row(&page, "tangents", "weight'"), "weight*(x' - l')");
    assert_eq!(row(&page, "tangents", "grad_slope[h]' +="), "-float(abs(q - k))*ds'");
    // The texts of all sections stand below each other.
    let columns = page.lines().filter(|line| line.starts_with("  ")).map(|line| {
        let name = line.trim_start().split("  ").next().unwrap();
        line.len() - line[2 + name.len()..].trim_start().len()
    });
    let columns: Vec<usize> = columns.collect();
    assert!(columns.iter().all(|column| *column == columns[0]), "{page}");
}

#[test]
fn rows_in_one_pass_and_in_two() {
    let page = emit(&["--row", "retention"]);
    assert_eq!(row(&page, "program", "row"), "a = sum(abs(x)); x/max(a, 1.0)");
    assert_eq!(row(&page, "row, in one pass", "local"), "score");
    assert_eq!(row(&page, "row, in one pass", "factor"), "1.0/max(a, 1.0)");
    let page = emit(&["--row", "m = sum(x); n = sum(1); sigmoid(x - m/n)"]);
    assert_eq!(row(&page, "row, in two passes", "m"), "sum(score)");
    assert!(row(&page, "backward", "grad_m").starts_with("sum("), "{page}");
    let page = emit(&["--dropout", "0.25", "--seed", "3"]);
    assert!(row(&page, "program", "post").contains("random(3)"), "{page}");
}

#[test]
fn vector_functions_and_recurrences() {
    let page = emit(&["--rank", "2", "--query-mod", "x*w[q0, q1, d]", "--capture", "w:f64:8,9,16"]);
    assert_eq!(row(&page, "program", "w"), "captured, f64 [8, 9, 16]");
    assert_eq!(row(&page, "query_mod", "grad_w[q0, q1, d] +="), "x*grad_x");
    let page = emit(&["--decay", "log(a[h])", "--capture", "a:4"]);
    assert!(page.contains("recurrence") && !page.contains("tangents"), "{page}");
    assert!(row(&page, "recurrence", "y'").ends_with("*a'[h]"), "{page}");
    let page = emit(&[
        "--score",
        "score*gain + select(table[q] == 1, 1, 0)",
        "--capture",
        "gain",
        "--capture",
        "table:i32:9",
    ]);
    assert_eq!(row(&page, "program", "gain"), "captured, f32 []");
    assert_eq!(row(&page, "backward", "grad_gain +=").matches("grad_table").count(), 0);
    assert!(!page.contains("grad_table"), "integers have no gradient: {page}");
}

#[test]
fn what_is_wrong_is_refused() {
    for (words, parts) in [
        (&["--score", "scor"][..], &["score: unknown name 'scor' at column 1"][..]),
        (&["--score", "score + k1"], &["column 9"]),
        (&["--rank", "4"], &["--rank", "4"]),
        (&["--rank", "0"], &["--rank", "0"]),
        (&["--capture", "exp:3"], &["'exp'", "meaning"]),
        (&["--capture", "a:3x3"], &["3x3", "--capture"]),
        (&["--capture", "a:f8:3"], &["f8", "--capture"]),
        (&["--capture", "a:i32:3:4"], &["--capture", "NAME"]),
        (&["--capture", "a:0", "--score", "a[q]"], &["a is [0]", "at least 1"]),
        (&["--capture", "a:4294967296,4294967296,4294967296"], &["overflow"]),
    ] {
        let directory = Directory::with_bytes(b"");
        let finished = directory.natten(&[&["emit", "expr"], words].concat());
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{words:?}: {finished:?}");
        assert!(parts.iter().all(|part| finished.stderr.contains(part)), "{words:?}: {}", finished.stderr);
    }
    let finished = Directory::with_bytes(b"").natten(&["emit", "expr", "--capture", "a:3"]);
    assert_eq!(finished.stderr, "note: no expression uses these captured tensors: a\n");
}
