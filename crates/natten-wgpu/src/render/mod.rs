//! Program expressions as WGSL: temporaries in topological order, each shared subexpression once. What a rendered text
//! calls (`f_sigmoid`, `i_mod`, `clamped`, …) is defined in `wgsl/math.wgsl`; the type of numbers there is `R`.

pub(crate) mod math;
mod operation;
mod vector;

use std::fmt::Write;

use natten_core::program::{Buffer, Expr, Graph, Index, Node, Program, Type, Var};
use natten_core::{Error, Result};

use self::math::Real;
use crate::NAME;

pub(crate) use self::operation::number;
pub(crate) use self::vector::render_vector;

/// The texts of what an expression is made of. `None` refuses it.
pub(crate) trait Leaves {
    /// The type of numbers.
    fn real(&self) -> Real;

    /// A variable.
    fn var(&self, var: Var) -> Option<String>;

    /// An index.
    fn index(&self, index: Index) -> Option<String>;

    /// An element of a captured tensor, from the texts of its indices, not yet clamped.
    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String>;

    /// The random number of the pair, from the texts of the two words of seed.
    fn random(&self, low: &str, high: &str) -> Option<String>;
}

/// Expressions as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// Declarations, a line each.
    pub(crate) lines: String,
    /// The texts of the expressions behind them.
    pub(crate) results: Vec<String>,
}

/// Renders expressions of a graph of `program`.
///
/// # Errors
/// [`Error::Unsupported`] for what the leaves refuse, with its place in the program's text.
pub(crate) fn render(
    program: &Program,
    graph: &Graph,
    roots: &[Expr],
    leaves: &dyn Leaves,
) -> Result<Rendered> {
    let reached = graph.reached(roots);
    let mut rendered = Rendered::default();
    let mut names: Vec<String> = vec![String::new(); graph.len()];
    for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
        let arguments: Vec<String> =
            node.arguments().iter().map(|argument| names[argument.index()].clone()).collect();
        let text = operation::text_of(graph, expr, &arguments, leaves)
            .ok_or_else(|| refused(program, graph, expr))?;
        let is_leaf = arguments.is_empty() && !matches!(node, Node::Load(..));
        names[expr.index()] = if is_leaf {
            text
        } else {
            let name = format!("t{}", expr.index());
            let ty = type_name(graph.type_of(expr));
            let _ = writeln!(rendered.lines, "    let {name}: {ty} = {text};");
            name
        };
    }
    rendered.results = roots.iter().map(|root| names[root.index()].clone()).collect();
    Ok(rendered)
}

fn refused(program: &Program, graph: &Graph, expr: Expr) -> Error {
    let what = match program.place_of(expr) {
        Some(place) => format!("a program with {place}"),
        None => format!("a program with '{}'", program.print(graph, expr)),
    };
    Error::unsupported(NAME, what, "it stands where the shader has no such number; use --backend cpu")
}

const fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::F => "R",
        Type::I => "i32",
        Type::B => "bool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;

    impl Leaves for Plain {
        fn real(&self) -> Real {
            Real::F32
        }

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
        render(&program, program.graph(), &[program.score()], &Plain)
    }

    #[test]
    fn what_is_shared_is_computed_once() {
        let rendered = rendered("tanh(2*score) + exp(tanh(2*score))").unwrap();
        assert_eq!(rendered.lines.matches("f_tanh").count(), 1, "{}", rendered.lines);
    }

    #[test]
    fn what_cannot_be_rendered_is_refused_with_its_place() {
        let message = rendered("score + random(3)").unwrap_err().to_string();
        assert!(message.contains("random(3)") && message.contains("column 9"), "{message}");
    }
}
