//! Vectors longer than a matrix product contracts at a time: head dims up to 256 in chunks of 128, in every operation.

use natten_conformance::{Case, Status, run_case};
use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::{DType, OpRequest, Problem, Role};
use natten_neuron::NeuronBackend;

fn runs(name: &str, problem: &Problem) {
    let tangents = [Role::TangentQuery, Role::TangentKey, Role::TangentValue];
    let requests = [
        OpRequest::forward(problem),
        OpRequest::forward_jvp(problem, tangents),
        OpRequest::backward(problem),
    ];
    let case = Case::new(name, problem.clone()).requests(requests);
    let outcome = run_case(&NeuronBackend::default(), &case);
    assert_eq!(outcome.status(), Status::Passed, "{outcome}");
    assert!(outcome.refusals.is_empty(), "{outcome}");
}

#[test]
fn long_vectors_are_contracted_in_chunks() {
    let windows = [
        Neighborhood::new(&[AxisParams::new(9, 3), AxisParams::new(20, 5).dilation(2)]).unwrap(),
        Neighborhood::full(40, 70, None).unwrap(),
    ];
    for (window, dtype) in windows.into_iter().zip([DType::Bf16, DType::F32]) {
        for (head_dim, head_dim_v) in [(129, 128), (192, 40), (256, 256), (64, 256)] {
            let problem = Problem::builder(window.clone(), dtype).heads(2).heads_kv(1);
            let problem = problem.head_dim(head_dim).head_dim_v(head_dim_v).build().unwrap();
            runs(&format!("dims-{head_dim}-{head_dim_v}-{dtype}"), &problem);
        }
    }
}

/// The bias table's gradient and additional tokens too, which other lowerings do.
#[test]
fn long_vectors_of_everything_else() {
    let window = Neighborhood::new(&[AxisParams::new(50, 7)]).unwrap();
    let problem = Problem::builder(window, DType::F16).head_dim(256).head_dim_v(200);
    let problem = problem.relative_positional_bias(true).build().unwrap();
    runs("dims-bias", &problem);
    let window = Neighborhood::new(&[AxisParams::new(50, 7).causal(true)]).unwrap();
    let problem = Problem::builder(window, DType::F32).head_dim(256).additional_tokens(5).build().unwrap();
    runs("dims-additional", &problem);
}
