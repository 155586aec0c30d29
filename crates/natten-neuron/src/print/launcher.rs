//! The Python that launches printed kernels: which of its arguments are whose, the tables that the plan made, and what
//! becomes of the results. It takes and gives numpy arrays by the names of the problem's tensors.

use std::fmt::Write;

use super::number;
use crate::ir::{Space, Tensor};
use crate::lower::launch::{Launch, Sink, Source};

/// `def launch(tensors, run=…)`: runs the kernels on a dict of arrays, and gives a dict of arrays.
pub fn launcher(launches: &[&Launch]) -> String {
    let mut text = String::from(
        "def launch(tensors, run=lambda kernel, *arguments: kernel(*arguments)):\n    \
         \"\"\"Runs the kernels on arrays by name; `run=nki.simulate` style wrappers go between.\"\"\"\n    \
         results, kept = {}, []\n",
    );
    for launch in launches {
        let of = |space: Space| {
            launch.kernel.tensors.iter().filter(move |tensor| tensor.space == space).collect::<Vec<&Tensor>>()
        };
        let mut arguments = Vec::new();
        for (tensor, source) in of(Space::Input).into_iter().zip(&launch.sources) {
            let name = &tensor.name;
            let value = match source {
                Source::Role(_) => format!("tensors[{name:?}]"),
                Source::Constant(numbers) => runs(numbers),
                Source::Gather(_, places) => {
                    let of = name.trim_end_matches("_tiles");
                    format!("tensors[{of:?}].reshape(-1)[{}]", steps(places))
                }
                Source::Result(kernel, output) => format!("kept[{kernel}][{output}]"),
            };
            arguments.push(value);
        }
        let _ = writeln!(text, "    outputs = run(\n        {},", launch.kernel.name);
        for argument in arguments {
            let _ = writeln!(text, "        {argument},");
        }
        let _ = writeln!(text, "    )");
        let _ = writeln!(text, "    outputs = outputs if isinstance(outputs, tuple) else (outputs,)");
        let _ = writeln!(text, "    kept.append(outputs)");
        for (at, (tensor, sink)) in of(Space::Output).into_iter().zip(&launch.sinks).enumerate() {
            let name = &tensor.name;
            match sink {
                Sink::Role(_) => {
                    let _ = writeln!(text, "    results[{name:?}] = outputs[{at}]");
                }
                Sink::Scatter(_, places) => {
                    let of = name.trim_end_matches("_tiles");
                    let places: Vec<u32> = places.iter().map(|&at| at.wrapping_add(1)).collect();
                    let _ = writeln!(
                        text,
                        "    results[{of:?}] = np.bincount({}, np.asarray(outputs[{at}], np.float64).reshape(-1))[1:]",
                        steps(&places)
                    );
                }
                Sink::Kept => {}
            }
        }
    }
    text += "    return results\n";
    text
}

/// Numbers as runs of equal ones.
fn runs(numbers: &[f32]) -> String {
    let mut values: Vec<String> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    let mut last = None;
    for x in numbers {
        if last == Some(x.to_bits()) {
            if let Some(count) = counts.last_mut() {
                *count += 1;
            }
        } else {
            last = Some(x.to_bits());
            values.push(number(*x));
            counts.push(1);
        }
    }
    let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
    format!("np.repeat(np.array([{}], np.float32), [{}])", values.join(", "), counts.join(", "))
}

/// Places as sums of runs of equal steps.
pub(super) fn steps(places: &[u32]) -> String {
    let mut values: Vec<i64> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    let mut before = 0;
    for &place in places {
        let step = i64::from(place) - before;
        before = i64::from(place);
        match (values.last(), counts.last_mut()) {
            (Some(&last), Some(count)) if last == step => *count += 1,
            _ => {
                values.push(step);
                counts.push(1);
            }
        }
    }
    let join = |numbers: Vec<String>| numbers.join(", ");
    let values = join(values.iter().map(ToString::to_string).collect());
    let counts = join(counts.iter().map(ToString::to_string).collect());
    format!("np.cumsum(np.repeat([{values}], [{counts}]))")
}
