//! What a run costs in memory: nothing is allocated, and the workspace grows with the number of rows alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{Backend, DType, HostTensor, OpRequest, Plan, PlanOptions, Problem, Role};
use natten_cpu::{CpuBackend, CpuPlan, View, ViewMut};

/// The system's allocator, counting.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn problem(len: usize) -> Problem {
    with_program(len, Program::softmax(2))
}

/// A program that takes copies of captured tensors, tables of their gradients, and the classes of its mask.
fn program() -> Program {
    let table = Capture::new("table", &[2, 13, 13], DType::F16);
    let id = Capture::new("id", &[24], DType::I32);
    let score = "2*tanh(score/2) + table[h, k0 - q0 + 6, k1 - q1 + 6]";
    Program::builder(2).capture(table).capture(id).score(score).mask("id[q1] <= id[k1]").build().unwrap()
}

fn with_program(len: usize, program: Program) -> Problem {
    let axis = |len| AxisParams::new(len, 7);
    let window = Neighborhood::new(&[axis(len), axis(24)]).unwrap();
    Problem::builder(window, DType::F16)
        .heads(2)
        .head_dim(16)
        .additional_tokens(5)
        .relative_positional_bias(true)
        .program(program)
        .build()
        .unwrap()
}

fn plan(problem: &Problem, request: &OpRequest) -> std::sync::Arc<dyn Plan> {
    let cpu = CpuBackend::new().unwrap().with_threads(2).unwrap();
    pollster::block_on(cpu.plan(problem, request, &PlanOptions::default())).unwrap()
}

#[test]
fn runs_allocate_nothing() {
    let (problem, programmed) = (problem(40), with_program(40, program()));
    let tangents = [Role::TangentQuery, Role::TangentCapture(0)];
    for (problem, request) in [
        (&problem, OpRequest::forward(&problem)),
        (&problem, OpRequest::backward(&problem)),
        (&programmed, OpRequest::forward(&programmed)),
        (&programmed, OpRequest::backward(&programmed)),
        (&programmed, OpRequest::backward_jvp(&programmed, tangents)),
    ] {
        let plan = plan(problem, &request);
        let cpu = plan.as_any().downcast_ref::<CpuPlan>().unwrap();
        let mut tensors: Vec<HostTensor> = plan
            .tensors()
            .iter()
            .map(|spec| HostTensor::from_fn(spec.dtype, &spec.shape, |i| (i % 7) as f64).unwrap())
            .collect();
        let outputs = tensors.split_off(plan.tensors().iter().filter(|spec| !spec.is_output).count());
        let inputs: Vec<View<'_>> = tensors.iter().map(|t| View::of_host(t).unwrap()).collect();
        let mut outputs = outputs;
        let mut views: Vec<ViewMut<'_>> = outputs.iter_mut().map(|t| ViewMut::of_host(t).unwrap()).collect();
        let mut workspace = plan.new_workspace().unwrap();
        let mut run = || {
            let before = ALLOCATED.load(Ordering::Relaxed);
            cpu.run_views(&inputs, &mut views, &mut workspace).unwrap();
            ALLOCATED.load(Ordering::Relaxed) - before
        };
        // The thread pool's queues allocate a block now and then, of a size of their own: the least of some runs has none.
        let least = (0..8).map(|_| run()).min();
        assert_eq!(least, Some(0), "{}", request.op);
    }
}

#[test]
fn workspace_grows_with_rows_alone() {
    let [small, large] = [64, 6400].map(|len| {
        let problem = problem(len);
        plan(&problem, &OpRequest::backward(&problem)).report().workspace
    });
    let rows = (6400 - 64) * 24 * 2;
    assert!(large - small <= rows * size_of::<f32>() + 64, "{small} {large}");
    // Forward needs tiles alone, whatever the size.
    let [small, large] =
        [64, 6400].map(|len| plan(&problem(len), &OpRequest::forward(&problem(len))).report().workspace);
    assert_eq!(small, large);
}

#[test]
fn what_cannot_be_had_is_an_error() {
    let window = Neighborhood::new(&[AxisParams::new(9, 3)]).unwrap();
    let problem = Problem::builder(window, DType::F32).batch(0).head_dim(1 << 56).build().unwrap();
    for request in [OpRequest::forward(&problem), OpRequest::backward(&problem)] {
        let error = plan(&problem, &request).new_workspace().unwrap_err();
        assert!(matches!(error, natten_core::Error::OutOfMemory { .. }), "{error}");
    }
}
