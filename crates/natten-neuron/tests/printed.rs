//! Printed kernels: kept as snapshots, and run by Python on a numpy model of NKI, which must give what the simulator
//! gives. A machine without python3 and numpy fails here.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use natten_conformance::{HostTensors, evaluate};
use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::Program;
use natten_core::{Backend, DType, HostTensor, OpRequest, PlanOptions, Problem, Role, SourceKind};
use natten_neuron::ir::Space;
use natten_neuron::print::Dialect;
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
    let directory = tempfile::tempdir().unwrap();
    for (name, problem, request) in problems() {
        let plan = plan(&problem, &request);
        let plan = plan.as_any().downcast_ref::<NeuronPlan>().unwrap();
        let path = directory.path().join(format!("{name}.py"));
        std::fs::write(&path, plan.print(Dialect::Legacy)).unwrap();
        python(&["-m", "py_compile", path.to_str().unwrap()]);
    }
}

fn python(arguments: &[&str]) {
    let output = Command::new("python3").args(arguments).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_numpy_model_gives_what_the_simulator_gives() {
    for (name, problem, request) in problems() {
        let inputs = inputs(&problem, &request);
        let backend = NeuronBackend::default();
        let simulated = evaluate(&backend, &problem, &request, &PlanOptions::default(), &inputs).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(&problem, &request);
        launch(&plan, &problem, &inputs, directory.path());
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

/// Writes inputs and module to a directory and runs the model on them.
fn launch(
    plan: &std::sync::Arc<dyn natten_core::Plan>,
    problem: &Problem,
    inputs: &HostTensors,
    directory: &Path,
) {
    let mut tensors = serde_json::Map::new();
    for (&role, tensor) in inputs {
        let name = problem.name(role).into_owned();
        let bytes: Vec<u8> = tensor.to_f64().iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
        std::fs::write(directory.join(format!("{name}.in")), bytes).unwrap();
        tensors.insert(name, tensor.shape().to_vec().into());
    }
    let kernels = plan.as_any().downcast_ref::<NeuronPlan>().unwrap().kernels();
    let dtypes: BTreeMap<String, Vec<&str>> = kernels
        .iter()
        .map(|compiled| {
            let kernel = &compiled.launch.kernel;
            let inputs = kernel.tensors.iter().filter(|tensor| tensor.space == Space::Input);
            (kernel.name.clone(), inputs.map(|tensor| tensor.dtype.name()).collect())
        })
        .collect();
    let json = serde_json::json!({ "tensors": tensors, "dtypes": dtypes });
    std::fs::write(directory.join("inputs.json"), json.to_string()).unwrap();
    let module = directory.join("printed.py");
    std::fs::write(&module, plan.emit(SourceKind::Nki).unwrap().text).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nki_model.py");
    python(&[model, module.to_str().unwrap(), directory.to_str().unwrap()]);
}
