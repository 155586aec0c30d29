//! Vector functions: expressions of a vector's elements, which sums over all elements, and elements elsewhere in the
//! vector, take part in. A group of lanes computes them, element by element; each sum is a loop of its own before.

use std::collections::HashMap;
use std::fmt::Write;

use natten_core::program::{Expr, Graph, Node, Program, Unary};
use natten_core::{Error, Result};

use super::{Leaves, operation, refused, type_name};

/// The texts of what a vector function is made of, at an element whose number is the text `lane`.
pub(crate) trait VectorLeaves {
    /// The leaves at an element.
    fn at(&self, lane: &str) -> Box<dyn Leaves + '_>;
}

/// A vector function as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VectorText {
    /// Computes the sums over the vector: statements of a group of lanes, of `dim` elements.
    pub(crate) sums: String,
    /// Statements of the element `d`.
    pub(crate) each: String,
    /// The texts of the expressions at the element, behind `each`.
    pub(crate) results: Vec<String>,
}

/// Renders expressions of a vector's element `d`.
///
/// # Errors
/// [`Error::Unsupported`] for what the leaves refuse.
pub(crate) fn render_vector(
    program: &Program,
    graph: &Graph,
    roots: &[Expr],
    leaves: &dyn VectorLeaves,
) -> Result<VectorText> {
    let reached = graph.reached(roots);
    let mut writer = Writer { program, graph, leaves, sums: HashMap::new(), next: 0 };
    let mut text = String::new();
    // In topological order, so that a sum of sums finds those.
    for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
        if let Node::Unary(Unary::LaneSum, argument) = node {
            let mut body = Body::default();
            let element = writer.element(*argument, &[], &mut body)?;
            let name = format!("sum{}", expr.index());
            let _ = write!(
                text,
                "        R {name} = 0;\n        for (int d = lane_of_group(); d < dim; d += LANES) {{\n{}            \
                 {name} += {element};\n        }}\n        {name} = group_sum({name});\n",
                body.text
            );
            writer.sums.insert(expr, name);
        }
    }
    let mut body = Body::default();
    let results =
        roots.iter().map(|&root| writer.element(root, &[], &mut body)).collect::<Result<Vec<_>>>()?;
    Ok(VectorText { sums: text, each: body.text, results })
}

/// The statements of one loop over elements, and the names that they gave to expressions at permuted elements.
#[derive(Default)]
struct Body {
    text: String,
    known: HashMap<(Expr, Vec<Unary>), String>,
}

struct Writer<'a> {
    program: &'a Program,
    graph: &'a Graph,
    leaves: &'a dyn VectorLeaves,
    /// The names of the sums over the vector.
    sums: HashMap<Expr, String>,
    next: usize,
}

impl Writer<'_> {
    /// The text of an expression at the element that the permutations, the last first, lead to from `d`.
    fn element(&mut self, expr: Expr, path: &[Unary], body: &mut Body) -> Result<String> {
        if let Some(sum) = self.sums.get(&expr) {
            return Ok(sum.clone());
        }
        let key = (expr, path.to_vec());
        if let Some(known) = body.known.get(&key) {
            return Ok(known.clone());
        }
        let name = match self.graph.node(expr).clone() {
            Node::Unary(op @ (Unary::LaneHalf | Unary::LanePair), argument) => {
                let mut path = path.to_vec();
                path.push(op);
                self.element(argument, &path, body)?
            }
            node => {
                let mut arguments = Vec::new();
                for argument in node.arguments() {
                    arguments.push(self.element(argument, path, body)?);
                }
                let leaves = self.leaves.at(&lane_of(path));
                let text = operation::text_of(self.graph, expr, &arguments, &*leaves);
                let text = text.ok_or_else(|| -> Error { refused(self.program, self.graph, expr) })?;
                self.next += 1;
                let name = format!("e{}", self.next);
                let ty = type_name(self.graph.type_of(expr));
                let _ = writeln!(body.text, "            const {ty} {name} = {text};");
                name
            }
        };
        body.known.insert(key, name.clone());
        Ok(name)
    }
}

/// The element that the permutations lead to.
fn lane_of(path: &[Unary]) -> String {
    path.iter().fold("d".to_owned(), |lane, op| match op {
        Unary::LaneHalf => format!("(({lane} + dim / 2) % dim)"),
        _ => format!("({lane} ^ 1)"),
    })
}
