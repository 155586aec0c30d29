//! `natten check`: its table, its exit codes, and that cases can be chosen.

use crate::program::Directory;

#[test]
fn the_oracle_passes_and_the_table_says_so() {
    let words = ["check", "--backend", "reference", "--filter", "golden-na1d", "--random", "0"];
    let finished = Directory::with_bytes(b"").natten(&words);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    let mut lines = finished.stdout.lines();
    let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["case", "backend", "error", "tolerance", "time", "status"]);
    let rows: Vec<Vec<&str>> = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(rows.len() >= 8, "{}", finished.stdout);
    for row in rows {
        assert!(row[0].contains("golden-na1d") && row[1] == "reference" && row[6] == "passed", "{row:?}");
        let (error, tolerance): (f64, f64) = (row[2].parse().unwrap(), row[3].parse().unwrap());
        assert!(error <= tolerance && row[5] == "ms", "{row:?}");
    }
    assert!(lines.next().unwrap().contains("0 failed"), "{}", finished.stdout);
}

#[test]
fn random_cases_are_as_many_as_asked() {
    let words = ["check", "--backend", "reference", "--filter", "random-", "--random", "3", "--seed", "5"];
    let finished = Directory::with_bytes(b"").natten(&words);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(finished.stdout.matches("\nrandom-").count(), 3, "{}", finished.stdout);
}
