//! Program expressions as CUDA C: temporaries in topological order, each shared subexpression once, and what does not
//! change in a loop apart from what does. What a rendered text calls (`f_sigmoid`, `i_mod`, `clamped`, …) is defined in
//! `kernels/generic_prelude.cu`, which a kernel puts in front of it; the number type there is `R`.
//!
//! A kernel says what variables, indices and loads are called by its [`Leaves`].

mod operation;
mod vector;

use natten_core::program::{Buffer, Expr, Graph, Index, Node, Program, Type, Var};
use natten_core::{Error, Result};

use crate::NAME;

#[cfg(test)]
pub(crate) use self::operation::integer;
pub(crate) use self::vector::{VectorLeaves, VectorText, render_vector};

/// The texts of what an expression is made of. `None` refuses it.
pub(crate) trait Leaves {
    /// A variable.
    fn var(&self, var: Var) -> Option<String>;

    /// An index.
    fn index(&self, index: Index) -> Option<String>;

    /// An element of a captured tensor, from the texts of its indices, not yet clamped.
    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String>;

    /// The random number of the pair, from the texts of the two words of seed.
    fn random(&self, low: &str, high: &str) -> Option<String>;
}

/// A value that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Temporary {
    /// `R`, `int` or `bool`.
    pub(crate) ty: &'static str,
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Expressions as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// What stays the same for a row, in order.
    pub(crate) fixed: Vec<Temporary>,
    /// Those of `fixed` that `each` and the results read, by type and name, behind the prefix that was asked for.
    pub(crate) exported: Vec<(&'static str, String)>,
    /// What is computed for each pair, in order.
    pub(crate) each: Vec<Temporary>,
    /// The texts of the expressions, behind `each`.
    pub(crate) results: Vec<String>,
}

impl Rendered {
    /// Declarations of temporaries, a line each.
    pub(crate) fn lines(temporaries: &[Temporary], indent: &str) -> String {
        temporaries.iter().map(|t| format!("{indent}const {} {} = {};\n", t.ty, t.name, t.text)).collect()
    }
}

/// Renders expressions of a graph of `program`. `changes` picks the leaves that differ from pair to pair; what is made of
/// no such leaf is rendered into `fixed`, and read in the loop as `prefix` and its name.
///
/// # Errors
/// [`Error::Unsupported`] for what the leaves refuse, with its place in the program's text.
pub(crate) fn render(
    program: &Program,
    graph: &Graph,
    roots: &[Expr],
    leaves: &dyn Leaves,
    prefix: &str,
    changes: &dyn Fn(&Node) -> bool,
) -> Result<Rendered> {
    let reached = graph.reached(roots);
    let mut rendered = Rendered::default();
    // By node: whether it changes, and its text in each of the two parts.
    let mut texts: Vec<Option<Text>> = vec![None; graph.len()];
    for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
        let arguments = node.arguments();
        let of = |texts: &[Option<Text>], argument: Expr| texts[argument.index()].clone().unwrap_or_default();
        let is_each = changes(node) || arguments.iter().any(|&argument| of(&texts, argument).is_each);
        let mut names = Vec::with_capacity(arguments.len());
        for &argument in &arguments {
            let text = of(&texts, argument);
            names.push(if is_each { export(&mut rendered, &text, prefix) } else { text.name });
        }
        let text = operation::text_of(graph, expr, &names, leaves);
        let text = text.ok_or_else(|| refused(program, graph, expr))?;
        let ty = type_name(graph.type_of(expr));
        let name = match arguments.is_empty() && !matches!(node, Node::Load(..)) {
            true => text,
            false => {
                let name = format!("t{}", expr.index());
                let part = if is_each { &mut rendered.each } else { &mut rendered.fixed };
                part.push(Temporary { ty, name: name.clone(), text });
                name
            }
        };
        let is_named = !arguments.is_empty() || matches!(node, Node::Load(..));
        texts[expr.index()] = Some(Text { ty, name, is_each, is_exported_by_name: is_named && !is_each });
    }
    let results: Vec<Text> =
        roots.iter().map(|root| texts[root.index()].clone().unwrap_or_default()).collect();
    rendered.results = results.iter().map(|text| export(&mut rendered, text, prefix)).collect();
    Ok(rendered)
}

/// What is known of a node that has been rendered.
#[derive(Clone, Debug, Default)]
struct Text {
    ty: &'static str,
    name: String,
    is_each: bool,
    /// Whether the loop has to be handed it.
    is_exported_by_name: bool,
}

/// The text of a node in the loop.
fn export(rendered: &mut Rendered, text: &Text, prefix: &str) -> String {
    if !text.is_exported_by_name {
        return text.name.clone();
    }
    let export = (text.ty, text.name.clone());
    if !rendered.exported.contains(&export) {
        rendered.exported.push(export);
    }
    format!("{prefix}{}", text.name)
}

fn refused(program: &Program, graph: &Graph, expr: Expr) -> Error {
    let what = match program.place_of(expr) {
        Some(place) => format!("a program with {place}"),
        None => format!("a program with '{}'", program.print(graph, expr)),
    };
    Error::unsupported(NAME, what, "it stands where the kernel has no such number; use another backend")
}

const fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::F => "R",
        Type::I => "int",
        Type::B => "bool",
    }
}

#[cfg(test)]
mod tests {
    use natten_core::program::Program;

    use super::*;

    struct Plain;

    impl Leaves for Plain {
        fn var(&self, var: Var) -> Option<String> {
            (var == Var::Score).then(|| "s".to_owned())
        }

        fn index(&self, index: Index) -> Option<String> {
            Some(format!("{index:?}").to_lowercase())
        }

        fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
            Some(format!("capture{}({})", buffer.capture, index.join(", ")))
        }

        fn random(&self, _: &str, _: &str) -> Option<String> {
            None
        }
    }

    fn rendered(score: &str) -> Result<Rendered> {
        let program = Program::builder(1).score(score).build().unwrap();
        let changes = |node: &Node| matches!(node, Node::Var(Var::Score) | Node::Index(Index::Key));
        render(&program, program.graph(), &[program.score()], &Plain, "fixed.", &changes)
    }

    #[test]
    fn what_the_row_knows_is_computed_once() {
        let rendered = rendered("score*sin(float(q)) + cos(float(q))").unwrap();
        assert_eq!(rendered.exported.len(), 2);
        assert!(rendered.fixed.len() == 3 && rendered.each.len() == 2, "{rendered:?}");
        assert!(rendered.each.iter().all(|t| !t.text.contains("f_sin")));
    }

    #[test]
    fn what_is_shared_is_computed_once() {
        let rendered = rendered("tanh(2*score) + exp(tanh(2*score))").unwrap();
        assert_eq!(rendered.each.iter().filter(|t| t.text.contains("f_tanh")).count(), 1);
    }

    #[test]
    fn what_cannot_be_rendered_is_refused_with_its_place() {
        let message = rendered("score + random(3)").unwrap_err().to_string();
        assert!(message.contains("random(3)") && message.contains("column 9"), "{message}");
    }
}
