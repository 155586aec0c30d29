//! WGSL templates: texts with `$NAME$` to fill in, and lines that are there under conditions,
//! `//:if NAME`, `//:if !NAME`, `//:else`, `//:end`.

use std::collections::{BTreeMap, BTreeSet};

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

    /// The template filled in. Conditions are those of lines, and nest.
    pub(crate) fn apply(&self, template: &str) -> String {
        let mut text = String::new();
        // For every open condition, whether its lines are there.
        let mut open: Vec<bool> = Vec::new();
        for line in template.lines() {
            match line.trim_start().strip_prefix("//:") {
                Some(directive) => match directive.trim().split_once(' ') {
                    Some(("if", name)) => open.push(match name.trim().strip_prefix('!') {
                        Some(name) => !self.flags.contains(name),
                        None => self.flags.contains(name.trim()),
                    }),
                    _ if directive.trim() == "else" => {
                        if let Some(last) = open.last_mut() {
                            *last = !*last;
                        }
                    }
                    _ => _ = open.pop(),
                },
                None if open.iter().all(|&holds| holds) => {
                    self.push(line, &mut text);
                    text.push('\n');
                }
                None => {}
            }
        }
        text
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
        let text = fill.apply("//:if A\na $N$\n//:if B\nb\n//:else\nc\n//:end\n//:end\n//:if !A\nd\n//:end\ne\n");
        assert_eq!(text, "a 3\nc\ne\n");
    }
}
