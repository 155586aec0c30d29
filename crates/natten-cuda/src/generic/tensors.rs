//! The tensors of a kernel: where each lies, and the text and the arguments by which the kernel gets it.
//!
//! Kernels know tensors by name, and all names are always there: one that an operation does not have is a view without
//! data, so that the code that would read it folds away.

use std::collections::BTreeMap;
use std::fmt::Write;

use natten_core::{DType, Problem, Role};

use super::sizes::sizes;
use crate::family::Argument;

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is bound to the operation.
    Bound(Role, DType),
    /// Contiguous in the workspace, in the type that is computed in.
    Workspace(u64, Vectors),
}

/// Which vectors a tensor of the workspace holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    Queries,
    Outputs,
    Keys,
    Values,
    AdditionalKeys,
    AdditionalValues,
}

impl Vectors {
    /// The kernels' view of such a tensor.
    fn view(self, data: &str) -> String {
        match self {
            Self::Queries => format!("vectors_in<R>({data}, z, true, z.heads, z.dim)"),
            Self::Outputs => format!("vectors_in<R>({data}, z, true, z.heads, z.dim_v)"),
            Self::Keys => format!("vectors_in<R>({data}, z, false, z.heads_kv, z.dim)"),
            Self::Values => format!("vectors_in<R>({data}, z, false, z.heads_kv, z.dim_v)"),
            Self::AdditionalKeys => format!("additional_in<R>({data}, z, z.dim)"),
            Self::AdditionalValues => format!("additional_in<R>({data}, z, z.dim_v)"),
        }
    }
}

/// The names of what kernels read, beside captured tensors; each has a tangent, which begins with `tangent_`. A vector
/// function is of `x`, and `gx` is the cotangent of its result.
const INPUTS: [&str; 16] = [
    "output",
    "logsumexp",
    "query",
    "key",
    "value",
    "additional_key",
    "additional_value",
    "rpb",
    "attention",
    "grad_output",
    "grad_logsumexp",
    "grad_attention",
    "x",
    "gx",
    "initial_state",
    "grad_final_state",
];

/// The names of what kernels write; each has a tangent, which ends in `_t`. `to_output_again` is a copy of the output's
/// tangent that the kernel itself reads.
const OUTPUTS: [&str; 12] = [
    "to_output",
    "to_logsumexp",
    "to_grad_query",
    "to_grad_key",
    "to_grad_value",
    "to_grad_additional_key",
    "to_grad_additional_value",
    "to_attention",
    "to_x",
    "to_output_again",
    "to_final_state",
    "to_grad_initial_state",
];

/// The tensors of an operation, by the names that kernels have for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    by_name: BTreeMap<String, Place>,
    /// Where the rows' numbers lie in the workspace.
    pub(super) numbers: Option<u64>,
}

impl Places {
    /// Puts a tensor somewhere.
    pub(super) fn put(&mut self, name: impl Into<String>, place: Place) {
        self.by_name.insert(name.into(), place);
    }

    /// Where a tensor lies, if it is anywhere.
    pub(super) fn get(&self, name: &str) -> Option<Place> {
        self.by_name.get(name).copied()
    }

    /// The kernel's view of the tensors: the text in front of it, and its arguments. Of what it writes, only names in
    /// `written` are there.
    pub(super) fn text(&self, problem: &Problem, written: &[&str]) -> (String, Vec<Argument>) {
        let mut fields = String::new();
        let mut parameters = Vec::new();
        let mut values = Vec::new();
        let mut arguments = Vec::new();
        let mut field = |name: &str, is_const: bool, place: Option<&Place>| {
            let ty = match place {
                Some(Place::Bound(_, dtype)) => storage(*dtype),
                _ => "R",
            };
            let ty = if is_const { format!("const {ty}") } else { ty.to_owned() };
            let _ = writeln!(fields, "    View<{ty}> {name};");
            match place {
                Some(Place::Bound(role, _)) => {
                    parameters.push(format!("View<{ty}> {name}"));
                    values.push(name.to_owned());
                    arguments.push(Argument::View(*role));
                }
                Some(Place::Workspace(at, vectors)) => {
                    parameters.push(format!("void* {name}"));
                    let made = vectors.view(name);
                    values.push(if is_const { format!("as_const({made})") } else { made });
                    arguments.push(Argument::Workspace(*at));
                }
                None => values.push(format!("nothing<{ty}>()")),
            }
        };
        let captures = (0..problem.program().captures().len()).map(|number| format!("capture_{number}"));
        let inputs = INPUTS.iter().map(|name| (*name).to_owned()).chain(captures);
        for name in inputs.flat_map(|name| [format!("tangent_{name}"), name]) {
            field(&name, true, self.by_name.get(&name));
        }
        let outputs = OUTPUTS.iter().flat_map(|name| [(*name).to_owned(), format!("{name}_t")]);
        for name in outputs {
            let place = self.by_name.get(&name).filter(|_| written.contains(&&*name));
            field(&name, false, place);
        }
        let _ = writeln!(fields, "    R* numbers;");
        match self.numbers {
            Some(at) => {
                parameters.push("void* numbers".to_owned());
                values.push("(R*)numbers".to_owned());
                arguments.push(Argument::Workspace(at));
            }
            None => values.push("nullptr".to_owned()),
        }
        parameters.push("const Sizes z".to_owned());
        arguments.push(Argument::Bytes { data: sizes(problem), align: 8 });
        let text = format!(
            "struct Tensors {{\n{fields}}};\n#define PARAMETERS {}\n#define TENSORS {{{}}}\n",
            parameters.join(", "),
            values.join(", ")
        );
        (text, arguments)
    }
}

/// The prelude's name of an element type.
pub(super) const fn storage(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::F16 => "Half",
        DType::Bf16 => "Brain",
        DType::I32 => "int",
        _ => "float",
    }
}
