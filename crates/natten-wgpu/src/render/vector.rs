//! Vector functions: expressions of a vector's elements, which sums over all elements, and elements elsewhere in the
//! vector, take part in. An invocation computes them element by element; each sum is a loop of its own before.

use std::collections::HashMap;
use std::fmt::Write;

use natten_core::Result;
use natten_core::program::{Expr, Graph, Node, Program, Unary};

use super::{Leaves, operation, refused, type_name};

/// A vector function as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VectorText {
    /// Statements that compute the sums over the vector, of `dim` elements.
    pub(crate) sums: String,
    /// Statements of the element `d`.
    pub(crate) each: String,
    /// The texts of the expressions at the element, behind `each`.
    pub(crate) results: Vec<String>,
}

/// Renders expressions of a vector's element `d`. `leaves` gives the leaves at the element whose number is a text.
///
/// # Errors
/// [`natten_core::Error::Unsupported`] for what the leaves refuse.
pub(crate) fn render_vector<'l>(
    program: &Program,
    graph: &Graph,
    roots: &[Expr],
    leaves: &dyn Fn(&str) -> Box<dyn Leaves + 'l>,
) -> Result<VectorText> {
    let reached = graph.reached(roots);
    let mut writer = Writer { program, graph, leaves, sums: HashMap::new(), next: 0 };
    let mut sums = String::new();
    // In topological order, so that a sum of sums finds those.
    for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
        if let Node::Unary(Unary::LaneSum, argument) = node {
            let mut body = Body::default();
            let element = writer.element(*argument, "d", &mut body)?;
            let name = format!("sum{}", expr.index());
            let _ = write!(
                sums,
                "    var {name} = R(0.0);\n    for (var d = 0; d < dim; d++) {{\n{}    {name} += {element};\n    }}\n",
                body.text
            );
            writer.sums.insert(expr, name);
        }
    }
    let mut body = Body::default();
    let results =
        roots.iter().map(|&root| writer.element(root, "d", &mut body)).collect::<Result<Vec<_>>>()?;
    Ok(VectorText { sums, each: body.text, results })
}

/// The statements of one loop over elements, and the names that they gave to expressions at elements.
#[derive(Default)]
struct Body {
    text: String,
    known: HashMap<(Expr, String), String>,
}

struct Writer<'a, 'l> {
    program: &'a Program,
    graph: &'a Graph,
    leaves: &'a dyn Fn(&str) -> Box<dyn Leaves + 'l>,
    /// The names of the sums over the vector.
    sums: HashMap<Expr, String>,
    next: usize,
}

impl Writer<'_, '_> {
    /// The text of an expression at the element whose number is the text `lane`.
    fn element(&mut self, expr: Expr, lane: &str, body: &mut Body) -> Result<String> {
        if let Some(sum) = self.sums.get(&expr) {
            return Ok(sum.clone());
        }
        let key = (expr, lane.to_owned());
        if let Some(name) = body.known.get(&key) {
            return Ok(name.clone());
        }
        let node = self.graph.node(expr);
        let text = match node {
            Node::Unary(Unary::LaneHalf, a) => {
                return self.element(*a, &format!("(({lane} + dim / 2) % dim)"), body);
            }
            Node::Unary(Unary::LanePair, a) => return self.element(*a, &format!("({lane} ^ 1)"), body),
            _ => {
                let arguments = node.arguments();
                let arguments = arguments
                    .into_iter()
                    .map(|argument| self.element(argument, lane, body))
                    .collect::<Result<Vec<_>>>()?;
                operation::text_of(self.graph, expr, &arguments, &*(self.leaves)(lane))
                    .ok_or_else(|| refused(self.program, self.graph, expr))?
            }
        };
        let name = format!("e{}", self.next);
        self.next += 1;
        let ty = type_name(self.graph.type_of(expr));
        let _ = writeln!(body.text, "    let {name}: {ty} = {text};");
        body.known.insert(key, name.clone());
        Ok(name)
    }
}
