//! WGSL templates: texts with `$NAME$` to fill in, and lines that are there under conditions,
//! `//:if NAME`, `//:if !NAME`, `//:else`, `//:end`; lines between `//:each NAME` and `//:end` are there for every `d`
//! below the number of that name.

use std::collections::{BTreeMap, BTreeSet};

/// A directive that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    If(bool),
    /// The lines before an `else`.
    Done,
    Each(usize),
}

fn close(open: Option<(Open, String)>) -> String {
    match open {
        Some((Open::If(true) | Open::Done, text)) => text,
        Some((Open::Each(count), text)) => each(count, &text),
        _ => String::new(),
    }
}

/// Iterations of [`each`] that are written out. Some drivers end an invocation's loops after 65535 iterations in all
/// (llvmpipe), and others are faster with long bodies.
pub(crate) const UNROLLED: usize = 8;

/// Statements for every `d: u32` below `count`: a loop over several at a time, and the rest.
pub(crate) fn each(count: usize, body: &str) -> String {
    let mut text = String::new();
    let whole = count / UNROLLED * UNROLLED;
    if whole > 0 {
        text += &format!("for (var d0 = 0u; d0 < {whole}u; d0 += {UNROLLED}u) {{\n");
        for i in 0..UNROLLED {
            text += &format!("{{\nlet d = d0 + {i}u;\n{body}}}\n");
        }
        text += "}\n";
    }
    for d in whole..count {
        text += &format!("{{\nlet d = {d}u;\n{body}}}\n");
    }
    text
}

/// What a template is filled in with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fill {
    flags: BTreeSet<&'static str>,
    values: BTreeMap<&'static str, String>,
}

impl Fill {
    /// The same with a condition that holds or not.
    pub(crate) fn flag(mut self, name: &'static str, holds: bool) -> Self {
        if holds {
            self.flags.insert(name);
        }
        self
    }

    /// The same with a text.
    pub(crate) fn value(mut self, name: &'static str, text: impl ToString) -> Self {
        self.values.insert(name, text.to_string());
        self
    }

    /// The template filled in. Conditions and repetitions are those of lines, and nest.
    pub(crate) fn apply(&self, template: &str) -> String {
        // Every open directive, with the text inside it; the first is the whole.
        let mut open = vec![(Open::If(true), String::new())];
        for line in template.lines() {
            let Some(directive) = line.trim_start().strip_prefix("//:") else {
                if let Some((_, text)) = open.last_mut().filter(|(of, _)| *of != Open::If(false)) {
                    self.push(line, text);
                    text.push('\n');
                }
                continue;
            };
            match directive.trim().split_once(' ') {
                Some(("if", name)) => open.push((Open::If(self.holds(name.trim())), String::new())),
                Some(("each", name)) => open.push((Open::Each(self.count(name.trim())), String::new())),
                _ if directive.trim() == "else" => {
                    if let Some((Open::If(holds), text)) = open.pop() {
                        // What was there stays; what follows is there where it was not.
                        if holds {
                            open.push((Open::Done, text));
                            open.push((Open::If(false), String::new()));
                        } else {
                            open.push((Open::Done, String::new()));
                            open.push((Open::If(true), String::new()));
                        }
                    }
                }
                _ => {
                    let mut text = close(open.pop());
                    while matches!(open.last(), Some((Open::Done, _))) {
                        text = close(open.pop()) + &text;
                    }
                    if let Some((_, outer)) = open.last_mut() {
                        outer.push_str(&text);
                    }
                }
            }
        }
        open.pop().map_or_else(String::new, |(_, text)| text)
    }

    fn holds(&self, name: &str) -> bool {
        match name.strip_prefix('!') {
            Some(name) => !self.flags.contains(name),
            None => self.flags.contains(name),
        }
    }

    fn count(&self, name: &str) -> usize {
        self.values.get(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn push(&self, line: &str, text: &mut String) {
        for (i, piece) in line.split('$').enumerate() {
            match (i % 2, self.values.get(piece)) {
                (1, Some(value)) => text.push_str(value),
                (1, None) => debug_assert!(false, "the template names ${piece}$, which nothing fills in"),
                _ => text.push_str(piece),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_nest_and_values_are_filled_in() {
        let fill = Fill::default().flag("A", true).flag("B", false).value("N", 3);
        let text =
            fill.apply("//:if A\na $N$\n//:if B\nb\n//:else\nc\n//:end\n//:end\n//:if !A\nd\n//:end\ne\n");
        assert_eq!(text, "a 3\nc\ne\n");
        let text =
            fill.apply("//:if A\nx\n//:else\ny\n//:end\n//:if B\nx\n//:else\n//:if A\nz\n//:end\n//:end\n");
        assert_eq!(text, "x\nz\n");
    }

    #[test]
    fn repetitions_cover_every_number() {
        let text = Fill::default().value("N", 19).apply("//:each N\nf(d);\n//:end\n");
        assert_eq!(text.matches("f(d);").count(), 8 + 3);
        assert!(text.contains("d0 < 16u") && text.contains("let d = 18u;"), "{text}");
    }
}
