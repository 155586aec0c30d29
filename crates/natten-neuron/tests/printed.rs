//! Printed kernels: kept as snapshots, and run by Python on a numpy model of NKI, which must give what the simulator
//! gives. Where there is no python3 with numpy, the tests say so; `NATTEN_REQUIRE=neuron` makes that a failure.

#![allow(clippy::print_stderr, reason = "what was left out is worth knowing")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use natten_conformance::{HostTensors, evaluate, required_backends};
use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{Backend, DType, HostTensor, OpRequest, PlanOptions, Problem, Role, SourceKind};
use natten_neuron::dtype::Dtype;
use natten_neuron::ir::Space;
use natten_neuron::lower::launch::Launch;
use natten_neuron::lower::sd::{Schedule, SdAttention};
use natten_neuron::print::{Dialect, module};
use natten_neuron::{NeuronBackend, NeuronPlan};

fn problems() -> Vec<(&'static str, Problem, OpRequest)> {
    let windows = |axes: &[AxisParams]| Neighborhood::new(axes).unwrap();
    let build = |window: Neighborhood, dtype| Problem::builder(window, dtype).heads(2).head_dim(8);
    let na1d = build(windows(&[AxisParams::new(150, 9)]), DType::Bf16).build().unwrap();
    let na2d = windows(&[AxisParams::new(8, 3).causal(true), AxisParams::new(10, 4).stride(2).dilation(2)]);
    let na2d = build(na2d, DType::F32).heads_kv(1).relative_positional_bias(true).additional_tokens(3);
    let na2d = na2d.build().unwrap();
    let full = Neighborhood::full(40, 150, Some(Alignment::BottomRight)).unwrap();
    let softcap = Program::builder(1).score("4*tanh(score/4)").row("sigmoid").build().unwrap();
    let softcap = build(full, DType::F16).program(softcap).build().unwrap();
    let jvp =
        build(windows(&[AxisParams::new(24, 5).dilation(3)]), DType::F32).head_dim_v(6).build().unwrap();
    let tangents = [Role::TangentQuery, Role::TangentKey, Role::TangentValue];
    vec![
        ("na1d-forward", na1d.clone(), OpRequest::forward(&na1d)),
        ("na2d-backward", na2d.clone(), OpRequest::backward(&na2d)),
        ("softcap-sigmoid-forward", softcap.clone(), OpRequest::forward(&softcap)),
        ("na1d-jvp", jvp.clone(), OpRequest::forward_jvp(&jvp, tangents)),
    ]
}

fn plan(problem: &Problem, request: &OpRequest) -> std::sync::Arc<dyn natten_core::Plan> {
    let options = PlanOptions::default();
    pollster::block_on(NeuronBackend::default().plan(problem, request, &options)).unwrap()
}

/// Some numbers for every input; of a backward pass the oracle's own forward results.
fn inputs(problem: &Problem, request: &OpRequest) -> HostTensors {
    let mut all = HostTensors::new();
    for spec in problem.tensors(request).unwrap().into_iter().filter(|spec| !spec.is_output) {
        let salt = spec.name.len() * 11;
        let tensor = HostTensor::from_fn(spec.dtype, &spec.shape, |at| ((at * 37 + salt) as f64 * 0.7).sin());
        all.insert(spec.role, tensor.unwrap());
    }
    if all.contains_key(&Role::Output) {
        let forward = OpRequest::forward(problem);
        let results = evaluate(
            &natten_core::reference::ReferenceBackend::new(),
            problem,
            &forward,
            &PlanOptions::default(),
            &all,
        );
        all.extend(results.unwrap());
    }
    all
}

#[test]
fn snapshots() {
    for (name, problem, request) in problems() {
        let text = plan(&problem, &request).emit(SourceKind::Nki).unwrap().text;
        insta::assert_snapshot!(name, text);
    }
}

/// The old spelling is valid Python too.
#[test]
fn the_legacy_dialect_parses() {
    if !has_numpy() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for (name, problem, request) in problems() {
        let plan = plan(&problem, &request);
        let plan = plan.as_any().downcast_ref::<NeuronPlan>().unwrap();
        let path = directory.path().join(format!("{name}.py"));
        std::fs::write(&path, plan.print(Dialect::Legacy)).unwrap();
        python(&["-m", "py_compile", path.to_str().unwrap()]).unwrap();
    }
}

/// What Python says to some arguments: its errors, where it fails.
fn python(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("python3").args(arguments).output().map_err(|error| error.to_string())?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said()) }
}

/// Whether there is a python3 with numpy.
///
/// # Panics
/// Where there is none and it is required.
fn has_numpy() -> bool {
    let Err(error) = python(&["-c", "import numpy"]) else { return true };
    let required = required_backends(&["cpu", "cuda", "wgpu", "neuron", "reference"]).unwrap();
    assert!(
        !required.iter().any(|name| name == "neuron"),
        "printed kernels need python3 with numpy: {error}"
    );
    eprintln!("no python3 with numpy, so printed kernels are not run: {error}");
    false
}

#[test]
fn the_numpy_model_gives_what_the_simulator_gives() {
    if !has_numpy() {
        return;
    }
    for (name, problem, request) in problems() {
        let inputs = inputs(&problem, &request);
        let backend = NeuronBackend::default();
        let simulated = evaluate(&backend, &problem, &request, &PlanOptions::default(), &inputs).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(&problem, &request);
        let plan = plan.as_any().downcast_ref::<NeuronPlan>().unwrap();
        let launches: Vec<&Launch> = plan.kernels().iter().map(|kernel| &kernel.launch).collect();
        launch(&plan.print(Dialect::Nki), &launches, &problem, &inputs, directory.path()).unwrap();
        for (role, expected) in simulated {
            let path = directory.path().join(format!("{}.out", problem.name(role)));
            let bytes = std::fs::read(path).unwrap();
            let found: Vec<f64> =
                bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
            let expected = expected.to_f64();
            assert!(found.len() >= expected.len() || role == Role::GradRpb, "{name} {role}");
            // Sums run in another order, and functions differ in the last place: a rounding of the dtype apart.
            let e = problem.dtype().roundoff().max(1e-6);
            let largest = expected.iter().fold(1e-3_f64, |max, x| max.max(x.abs()));
            for (at, x) in expected.iter().enumerate() {
                let y = found.get(at).copied().unwrap_or(0.0);
                assert!((x - y).abs() <= 4.0 * e * (x.abs() + largest), "{name} {role}[{at}]: {x} and {y}");
            }
        }
    }
}

/// Writes inputs and module to a directory and runs the model on them: the launcher on these inputs, and then the
/// module's own check.
fn launch(
    text: &str,
    launches: &[&Launch],
    problem: &Problem,
    inputs: &HostTensors,
    directory: &Path,
) -> Result<(), String> {
    let mut tensors = serde_json::Map::new();
    for (&role, tensor) in inputs {
        let name = problem.name(role).into_owned();
        let bytes: Vec<u8> = tensor.to_f64().iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
        std::fs::write(directory.join(format!("{name}.in")), bytes).unwrap();
        tensors.insert(name, tensor.shape().to_vec().into());
    }
    let dtypes: BTreeMap<String, Vec<&str>> = launches
        .iter()
        .map(|launch| {
            let inputs = launch.kernel.tensors.iter().filter(|tensor| tensor.space == Space::Input);
            (launch.kernel.name.clone(), inputs.map(|tensor| tensor.dtype.name()).collect())
        })
        .collect();
    let json = serde_json::json!({ "tensors": tensors, "dtypes": dtypes });
    std::fs::write(directory.join("inputs.json"), json.to_string()).unwrap();
    let module = directory.join("printed.py");
    std::fs::write(&module, text).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nki_model.py");
    python(&[model, module.to_str().unwrap(), directory.to_str().unwrap()])
}

/// A printed module's own check on the model.
fn checked(problem: &Problem, request: &OpRequest, change: impl Fn(String) -> String) -> Result<(), String> {
    let plan = plan(problem, request);
    let plan = plan.as_any().downcast_ref::<NeuronPlan>().unwrap();
    let launches: Vec<&Launch> = plan.kernels().iter().map(|kernel| &kernel.launch).collect();
    let directory = tempfile::tempdir().unwrap();
    let inputs = inputs(problem, request);
    launch(&change(plan.print(Dialect::Nki)), &launches, problem, &inputs, directory.path())
}

/// The check of a printed module fails where a kernel is wrong: a factor, a mask, a sign of a gradient.
#[test]
fn the_printed_check_finds_faults() {
    if !has_numpy() {
        return;
    }
    let faults = [
        ("na1d-forward", "op=nl.exp", "op=nl.tanh"),
        ("na1d-forward", "operand0=0.35355338", "operand0=0.4"),
        ("na1d-jvp", "operand0=0.35355338", "operand0=0.36"),
        ("na2d-backward", "op0=nl.subtract", "op0=nl.add"),
        ("softcap-sigmoid-forward", "op=nl.sigmoid", "op=nl.relu"),
    ];
    let problems = problems();
    for (of, right, wrong) in faults {
        let (_, problem, request) = problems.iter().find(|(name, ..)| *name == of).unwrap();
        let change = |text: String| {
            let (kernels, rest) = text.split_once("def launch").unwrap();
            assert!(kernels.contains(right), "{of} has no {right}");
            format!("{}def launch{rest}", kernels.replace(right, wrong))
        };
        let error = checked(problem, request, change).expect_err(of);
        assert!(error.contains("AssertionError") && error.contains("off, "), "{of}: {error}");
    }
}

/// The float64 text has every kind of expression that a kernel can have.
#[test]
fn programs_are_checked_too() {
    if !has_numpy() {
        return;
    }
    let captured = |name: &str, shape: &[usize]| Capture::new(name, shape, DType::F32);
    let programs = [
        Program::builder(1).mask("(q - k) % 3 != 1 && b + h <= k // 2 + 2").row("relu"),
        Program::builder(1)
            .score("softplus(-score) + exp2(min(score, 1)) - erf(score)")
            .row("a = sum(abs(x)); x / max(a, 1)"),
        Program::builder(1)
            .capture(captured("slope", &[2]))
            .capture(captured("table", &[5, 7]))
            .score("score*slope[h] + table[q0 - 3, k0]"),
        Program::builder(1)
            .score("select(random(7) < 0.3, rsqrt(2 + score*score), max(score, -1))")
            .row("m = max(x); exp(x - m) / 8")
            .post("select(random(3) >= 0.25, 4/3, 0)"),
    ];
    for program in programs {
        let program = program.build().unwrap();
        let window = Neighborhood::new(&[AxisParams::new(14, 5)]).unwrap();
        let problem = Problem::builder(window, DType::F32).batch(2).heads(2).head_dim(4).additional_tokens(2);
        let problem = problem.program(program).build().unwrap();
        for request in [OpRequest::forward(&problem), OpRequest::backward(&problem)] {
            checked(&problem, &request, |text| text).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        }
    }
}

/// The tutorial's kernel too, whose mask is `affine_select`'s.
#[test]
fn the_tutorials_kernel_is_checked_too() {
    if !has_numpy() {
        return;
    }
    let kernel = SdAttention {
        len: 256,
        dim: 32,
        dtype: Dtype::Bf16,
        mixed_precision: true,
        causal: true,
        schedule: Schedule::Tutorial,
    };
    let (problem, request, sd) = kernel.launch().unwrap();
    let text = module(&problem, &request, &[&sd], Dialect::Nki);
    assert!(text.contains("nisa.affine_select"));
    let directory = tempfile::tempdir().unwrap();
    launch(&text, &[&sd], &problem, &inputs(&problem, &request), directory.path()).unwrap();
}
