//! Prints kernels as NKI Python: in the spelling of NKI 0.6.0, or in that of the first NKI, of which the tutorials were.
//! What is printed is what is simulated, instruction for instruction.

mod launcher;
mod legacy;
mod nki;
mod reference;

use std::fmt::Write;

use natten_core::{OpRequest, Problem};

pub use self::launcher::launcher;

use crate::ir::{Affine, Kernel, Space, Stmt};
use crate::lower::launch::Launch;

/// A spelling of NKI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// NKI 0.6.0: `nki.isa`, the destination first.
    #[default]
    Nki,
    /// NKI 0.1: `neuronxcc.nki`, instructions return their results.
    Legacy,
}

/// A module with the kernels of an operation; in the newer spelling also with how they are launched, `launch`, and
/// with what they are compared with, `attention` and `check`.
pub fn module(problem: &Problem, request: &OpRequest, launches: &[&Launch], dialect: Dialect) -> String {
    let mut text = String::new();
    for launch in launches {
        text += "\n\n";
        text += &kernel(&launch.kernel, dialect);
    }
    if dialect == Dialect::Nki {
        text += "\n\n";
        text += &launcher(launches);
        text += "\n\n";
        text += &reference::reference(problem, request);
    }
    let math = if text.contains("math.") { "import math\n\n" } else { "" };
    math.to_owned() + header(dialect) + &text
}

/// The imports of a module.
pub const fn header(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Nki => nki::HEADER,
        Dialect::Legacy => legacy::HEADER,
    }
}

/// One kernel, without imports.
pub fn kernel(kernel: &Kernel, dialect: Dialect) -> String {
    let names = |space: Space| {
        let tensors = kernel.tensors.iter().filter(move |tensor| tensor.space == space);
        tensors.map(|tensor| tensor.name.clone()).collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    let _ = writeln!(text, "@nki.jit\ndef {}({}):", kernel.name, names(Space::Input));
    for tensor in &kernel.tensors {
        let line = match dialect {
            Dialect::Nki => nki::declaration(tensor),
            Dialect::Legacy => legacy::declaration(tensor),
        };
        if let Some(line) = line {
            let _ = writeln!(text, "    {line}");
        }
    }
    statements(kernel, &kernel.body, dialect, 1, &mut text);
    let _ = writeln!(text, "    return {}", names(Space::Output));
    text
}

fn statements(kernel: &Kernel, body: &[Stmt], dialect: Dialect, depth: usize, text: &mut String) {
    let indent = "    ".repeat(depth);
    for stmt in body {
        match stmt {
            Stmt::For { count, body } => {
                let range = match dialect {
                    Dialect::Nki => "range",
                    Dialect::Legacy => "nl.static_range",
                };
                let _ = writeln!(text, "{indent}for i{} in {range}({count}):", depth - 1);
                statements(kernel, body, dialect, depth + 1, text);
            }
            Stmt::Instr(instr) => {
                let line = match dialect {
                    Dialect::Nki => nki::instruction(kernel, instr),
                    Dialect::Legacy => legacy::instruction(kernel, instr),
                };
                let _ = writeln!(text, "{indent}{line}");
            }
        }
    }
}

/// A number as Python reads it.
fn number(x: f32) -> String {
    match x {
        x if x.is_nan() => "float('nan')".to_owned(),
        f32::INFINITY => "float('inf')".to_owned(),
        f32::NEG_INFINITY => "float('-inf')".to_owned(),
        x => format!("{x:?}"),
    }
}

const fn truth(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

/// A sum of loop variables, with `more` added.
fn affine(affine: &Affine, more: usize) -> String {
    let mut parts = Vec::new();
    if affine.base + more > 0 || affine.terms.is_empty() {
        parts.push((affine.base + more).to_string());
    }
    parts.extend(affine.terms.iter().map(|&(var, factor)| format!("{factor} * i{var}")));
    parts.join(" + ")
}

/// A shape as a Python tuple.
fn tuple(shape: &[usize]) -> String {
    match shape {
        [one] => format!("({one},)"),
        shape => format!("({})", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}
