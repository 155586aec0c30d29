//! A plan as one self-contained JSON text, so that a page can run it with nothing but `navigator.gpu`: shaders, what each
//! binds with sizes and initial contents, and how many workgroups it takes.

use natten_core::{Artifact, Result, SourceKind};
use serde_json::{Value, json};

use crate::generic::convert::{self, Layout};
use crate::sequence::{Binding, Part, Run, Sequence, Step};

/// The version of the format, for readers to check.
const VERSION: u32 = 1;

/// The plan of `sequence` on contiguous tensors.
///
/// # Errors
/// [`natten_core::Error::Unsupported`] where tensors are larger than 32 bits can count.
pub(crate) fn artifact(problem: &str, sequence: &Sequence) -> Result<Artifact> {
    let bytes = |elements: u64, size: u64| (elements * size).max(16).next_multiple_of(8);
    let mut buffers = vec![
        json!({"name": "arena", "kind": "scratch", "bytes": bytes(sequence.arena, sequence.element)}),
        json!({"name": "integers", "kind": "scratch", "bytes": bytes(sequence.integers, 4)}),
    ];
    for packed in &sequence.packed {
        let bytes = bytes(packed.bytes(), 1);
        buffers.push(json!({"name": packed_name(packed.role), "kind": "scratch", "bytes": bytes}));
    }
    for spec in &sequence.tensors {
        buffers.push(json!({
            "name": spec.name,
            "kind": if spec.is_output { "output" } else { "input" },
            "dtype": spec.dtype.name(),
            "shape": spec.shape,
            "bytes": bytes(spec.len() as u64, spec.dtype.size() as u64),
        }));
    }
    let name = |role| {
        let spec = sequence.tensors.iter().find(|spec| spec.role == role);
        spec.map_or_else(|| role.to_string(), |spec| spec.name.clone())
    };
    let mut shaders: Vec<&str> = Vec::new();
    let mut steps: Vec<Value> = Vec::new();
    let mut part = None;
    for step in &sequence.steps {
        steps.push(match step {
            Step::Begin(next) => {
                part = Some((part.map_or(0, |(number, _)| number + 1), next));
                continue;
            }
            Step::Clear { at, len } => json!({
                "clear": "arena", "offset": at * sequence.element, "bytes": len * sequence.element,
            }),
            Step::Run(run) => {
                let shader = shaders.iter().position(|known| *known == run.source).unwrap_or_else(|| {
                    shaders.push(&run.source);
                    shaders.len() - 1
                });
                let bindings = bindings(run, sequence, part, &mut buffers, &name)?;
                json!({
                    "label": run.label,
                    "shader": shader,
                    "entry": "main",
                    "constants": {},
                    "bindings": bindings,
                    "workgroups": run.workgroups,
                })
            }
        });
    }
    let text = json!({
        "format": "natten-wgsl",
        "version": VERSION,
        "problem": problem,
        "family": sequence.family,
        "buffers": buffers,
        "shaders": shaders,
        "steps": steps,
    });
    Ok(Artifact::new(SourceKind::Wgsl, format!("{text:#}\n")))
}

fn packed_name(role: natten_core::Role) -> String {
    format!("packed {role}")
}

/// The names of the buffers that a shader binds, in order; tables of parameters become buffers with contents.
fn bindings(
    run: &Run,
    sequence: &Sequence,
    part: Option<(usize, &Part)>,
    buffers: &mut Vec<Value>,
    name: &dyn Fn(natten_core::Role) -> String,
) -> Result<Vec<String>> {
    let of = |binding: &Binding| match binding {
        Binding::Arena => Ok("arena".to_owned()),
        Binding::Integers { .. } => Ok("integers".to_owned()),
        Binding::Tensor { role, .. } => Ok(name(*role)),
        Binding::Packed { role, .. } => Ok(packed_name(*role)),
        Binding::Parameters { role, at } => {
            let name = match part {
                None => format!("parameters of {}", name(*role)),
                Some((number, _)) => format!("parameters of {}, part {number}", name(*role)),
            };
            if let Some(spec) = sequence.tensors.iter().find(|spec| spec.role == *role) {
                let layout = Layout::contiguous(spec).cut(part.map_or(&[], |(_, part)| part.cuts(*role)));
                let values = convert::parameters(&layout, *at, spec.is_output)?;
                buffers.push(json!({
                    "name": name, "kind": "constant", "bytes": values.len() * 4, "values": values,
                }));
            }
            Ok(name)
        }
    };
    run.bindings.iter().map(of).collect()
}
