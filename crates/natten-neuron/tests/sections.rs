//! Attention of more keys than SBUF has room for: in sections, by the online softmax, on machines whose SBUF is smaller
//! than the real one, so that few keys do. What fits nowhere is the generic lowering's.

use natten_conformance::{Case, Status, run_case};
use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{Backend, DType, OpRequest, PlanOptions, Problem, Role};
use natten_neuron::target::Target;
use natten_neuron::{NeuronBackend, NeuronPlan};

fn machine(kilobytes: usize) -> NeuronBackend {
    NeuronBackend::new(Target { sbuf_bytes: kilobytes * 1024, ..Target::v2() })
}

/// The kernels' name and a line of the plan's configuration.
fn planned(backend: &NeuronBackend, problem: &Problem, key: &str) -> (String, Option<String>) {
    let request = OpRequest::forward(problem);
    let plan = pollster::block_on(backend.plan(problem, &request, &PlanOptions::default())).unwrap();
    let config = plan.report().config.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    let plan = plan.as_any().downcast_ref::<NeuronPlan>().unwrap();
    for kernel in plan.kernels() {
        assert!(kernel.report.sbuf_peak <= kernel.report.target.sbuf_bytes);
        assert!(kernel.report.psum_peak <= kernel.report.target.psum_bytes());
    }
    (plan.kernels()[0].launch.kernel.name.clone(), config)
}

/// The largest machine on which the fast lowering does a problem in sections.
fn in_sections(problem: &Problem) -> Option<NeuronBackend> {
    (36..=84).rev().step_by(4).map(machine).find(|backend| {
        let (kernel, sections) = planned(backend, problem, "sections");
        kernel == "natten_softmax" && sections.is_some_and(|sections| sections != "1")
    })
}

/// Rows in sections give what rows in one piece give, to the bounds of the suite.
#[test]
fn sections_are_right() {
    let na1d = |axis: AxisParams| Neighborhood::new(&[axis]).unwrap();
    let full = |queries, keys, causal| Neighborhood::full(queries, keys, causal).unwrap();
    let cases = [
        ("full", full(140, 2100, None), DType::F32),
        ("causal", full(1400, 1400, Some(Alignment::TopLeft)), DType::Bf16),
        ("causal-to-the-end", full(300, 1333, Some(Alignment::BottomRight)), DType::F16),
        ("window", na1d(AxisParams::new(1500, 901)), DType::F32),
        ("stride", na1d(AxisParams::new(1500, 801).stride(5)), DType::Bf16),
        ("dilation", na1d(AxisParams::new(1500, 701).dilation(2)), DType::F16),
    ];
    for (name, window, dtype) in cases {
        let problem = Problem::builder(window, dtype).heads(2).heads_kv(1).head_dim(8).head_dim_v(12);
        let problem = problem.build().unwrap();
        let backend = in_sections(&problem).unwrap_or_else(|| panic!("{name} is never done in sections"));
        let request = OpRequest::forward(&problem);
        let outcome = run_case(&backend, &Case::new(name, problem).requests([request]));
        assert_eq!(outcome.status(), Status::Passed, "{outcome}");
    }
}

/// Long rows are planned on the real machine without an overflow, whatever the dtype and the head dim.
#[test]
fn long_rows_are_planned() {
    for (len, dtype, head_dim) in [
        (16_384, DType::F32, 64),
        (16_384, DType::F32, 256),
        (16_384, DType::Bf16, 128),
        (32_768, DType::Bf16, 64),
    ] {
        for causal in [None, Some(Alignment::BottomRight)] {
            // Four query tiles walk all of the keys; more would do it again.
            let window = Neighborhood::full(512, len, causal).unwrap();
            let problem = Problem::builder(window, dtype).head_dim(head_dim).build().unwrap();
            let (kernel, sections) = planned(&NeuronBackend::default(), &problem, "sections");
            assert_eq!(kernel, "natten_softmax");
            assert!(sections.is_some_and(|sections| sections.parse::<usize>().unwrap() > 1));
        }
    }
}

/// The most tensors that an operation can have, of the longest vectors and the widest type, and a program that needs
/// much scratch: everything has room.
#[test]
fn the_generic_lowering_has_room_for_everything() {
    let program = Program::builder(1)
        .capture(Capture::new("table", &[7, 5], DType::F32))
        .score("4*tanh(score/4) + table[q % 7, k % 5]*softplus(score)")
        .mask("(q + k) % 5 != 3")
        .row("m = max(x); a = sum(abs(x)); exp(x - m)/(1 + a)")
        .post("select(random(3) >= 0.25, 4/3, 0)")
        .build()
        .unwrap();
    for head_dim in [64, 256, 512] {
        for dtype in [DType::F32, DType::Bf16] {
            let window = Neighborhood::full(140, 3000, Some(Alignment::BottomRight)).unwrap();
            let problem = Problem::builder(window, dtype).head_dim(head_dim).additional_tokens(150);
            let problem = problem.program(program.clone()).build().unwrap();
            let tangents = [
                Role::TangentQuery,
                Role::TangentKey,
                Role::TangentValue,
                Role::TangentAdditionalKey,
                Role::TangentAdditionalValue,
                Role::TangentCapture(0),
            ];
            for request in [
                OpRequest::forward(&problem),
                OpRequest::forward_jvp(&problem, tangents),
                OpRequest::backward(&problem),
            ] {
                let backend = NeuronBackend::default();
                backend.supports(&problem, &request).unwrap();
                let plan = pollster::block_on(backend.plan(&problem, &request, &PlanOptions::default()));
                plan.unwrap_or_else(|error| panic!("{head_dim} {dtype} {}: {error}", request.op));
            }
        }
    }
}
