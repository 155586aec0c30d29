//! The figures of `docs/neuron.md`, simulated: what the lowerings promise, and what the model of the machine has to
//! reproduce. AWS gives limits of its kernels' tests, which are bounds with slack, not measurements.

use std::sync::Arc;

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::{Backend, DType, OpRequest, Plan, PlanOptions, Problem, Role};
use natten_neuron::dtype::Dtype;
use natten_neuron::lower::sd::{Schedule, SdAttention};
use natten_neuron::sim::report::Lane;
use natten_neuron::target::Target;
use natten_neuron::{Compiled, NeuronBackend, NeuronPlan};

fn sd(len: usize, dim: usize, schedule: Schedule) -> Compiled {
    let (dtype, mixed_precision, causal) = (Dtype::Bf16, true, false);
    let kernel = SdAttention { len, dim, dtype, mixed_precision, causal, schedule };
    Compiled::new(kernel.launch().unwrap().2, &Target::v2()).unwrap()
}

fn plan(target: Target, window: Neighborhood, head_dim: usize) -> Arc<dyn Plan> {
    let problem = Problem::builder(window, DType::Bf16).head_dim(head_dim).build().unwrap();
    let request = OpRequest::forward(&problem).wanting([Role::Output]);
    let options = PlanOptions::default();
    pollster::block_on(NeuronBackend::new(target).plan(&problem, &request, &options)).unwrap()
}

fn kernel(plan: &Arc<dyn Plan>) -> &Compiled {
    &plan.as_any().downcast_ref::<NeuronPlan>().unwrap().kernels()[0]
}

fn within(name: &str, kernel: &Compiled, from: f64, to: f64) {
    let us = kernel.report.microseconds();
    assert!((from..=to).contains(&us), "{name}: {us} us\\n{}", kernel.report);
    let [least, most] = kernel.range();
    assert!(
        least < kernel.report.nanoseconds && kernel.report.nanoseconds < most,
        "{name}: {least} to {most} ns"
    );
}

/// AWS's own kernels: 520 to 600 us and 15 % about, 350 to 380 us.
#[test]
fn the_model_reproduces_the_tutorials_kernels() {
    within("tutorial, D 64", &sd(4096, 64, Schedule::Tutorial), 442.0, 690.0);
    within("allocated, D 128", &sd(4096, 128, Schedule::Allocated), 350.0, 380.0);
}

#[test]
fn full_attention_is_as_fast_as_promised() {
    let full = |len| Neighborhood::full(len, len, None).unwrap();
    within("D 64", kernel(&plan(Target::v2(), full(4096), 64)), 211.0, 260.0);
    within("D 128", kernel(&plan(Target::v2(), full(4096), 128)), 211.0, 300.0);
    // A logsumexp makes no engine wait.
    let problem = Problem::builder(full(4096), DType::Bf16).head_dim(64).build().unwrap();
    let (request, options) = (OpRequest::forward(&problem), PlanOptions::default());
    let with = pollster::block_on(NeuronBackend::default().plan(&problem, &request, &options)).unwrap();
    within("D 64 with logsumexp", kernel(&with), 211.0, 265.0);
}

#[test]
fn windows_are_as_fast_as_promised() {
    let na1d = plan(Target::v2(), Neighborhood::new(&[AxisParams::new(4096, 129)]).unwrap(), 64);
    within("1-D", kernel(&na1d), 10.0, 45.0);
    let na2d = plan(Target::v2(), Neighborhood::new(&[AxisParams::new(64, 13); 2]).unwrap(), 64);
    within("2-D", kernel(&na2d), 10.0, 53.0);
    assert!(kernel(&na2d).report.busiest().1 > 0.7, "{}", kernel(&na2d).report);
}

/// Rows in sections cost no more per pair than rows in one piece, and causal ones half of that.
#[test]
fn sections_cost_as_much_a_pair() {
    let nanoseconds = |keys, causal| {
        let window = Neighborhood::full(2048, keys, causal).unwrap();
        kernel(&plan(Target::v2(), window, 64)).report.nanoseconds
    };
    let whole = nanoseconds(8192, None);
    let sections = nanoseconds(16_384, None);
    assert!(sections < 2.1 * whole, "{whole} {sections}");
    let window = |causal| Neighborhood::full(10_240, 10_240, causal).unwrap();
    let [full, causal] = [None, Some(Alignment::TopLeft)]
        .map(|causal| kernel(&plan(Target::v2(), window(causal), 64)).report.nanoseconds);
    assert!(causal < 0.6 * full, "{full} {causal}");
}

/// The report has all that there is to know: time, every engine's share and what it waited for, traffic, peaks.
#[test]
fn reports_add_up() {
    let compiled = sd(512, 64, Schedule::Tutorial);
    let report = &compiled.report;
    let size = 512 * 64 * 2;
    assert_eq!(report.hbm_bytes, 4 * size);
    assert!((1..=report.target.sbuf_bytes).contains(&report.sbuf_peak), "{report}");
    assert!((1..=report.target.psum_bytes()).contains(&report.psum_peak), "{report}");
    assert_eq!(report.events.iter().map(|event| event.end).fold(0.0, f64::max), report.nanoseconds);
    for lane in Lane::ALL {
        let usage = report.usage(lane);
        let events = report.events.iter().filter(|event| event.lane == lane);
        let busy: f64 = events.clone().map(|event| event.end - event.start).sum();
        assert!((busy - usage.busy).abs() < 1e-6 && events.count() == usage.instructions, "{}", lane.name());
        assert!(
            usage.busy + usage.dependency + usage.dma + usage.port <= report.nanoseconds + 1e-6,
            "{report}"
        );
        assert!(report.to_string().contains(lane.name()));
    }
    let flops = 4.0 * 512.0 * 512.0 * 64.0;
    let share = report.model_flops_utilisation(flops);
    assert!((share - flops / report.nanoseconds / 91_750.4).abs() < 1e-9, "{share}");
}

/// Kernels of one plan run one behind the other.
#[test]
fn reports_of_kernels_are_joined() {
    let (first, second) = (sd(256, 64, Schedule::Tutorial).report, sd(512, 64, Schedule::Tutorial).report);
    let both = first.clone().followed_by(&second);
    assert_eq!(both.nanoseconds, first.nanoseconds + second.nanoseconds);
    assert_eq!(both.events.len(), first.events.len() + second.events.len());
    assert_eq!(both.events.last().unwrap().end, first.nanoseconds + second.events.last().unwrap().end);
    assert_eq!((both.hbm_bytes, both.sbuf_peak), (first.hbm_bytes + second.hbm_bytes, second.sbuf_peak));
}

/// The next generation has no shared ports and more of everything but clocks.
#[test]
fn the_next_generation_is_an_option() {
    let window = || Neighborhood::full(1024, 1024, None).unwrap();
    let (v2, v3) = (plan(Target::v2(), window(), 64), plan(Target::v3(), window(), 64));
    assert!(kernel(&v2).report.usage(Lane::Engine(natten_neuron::ir::Engine::Scalar)).port > 0.0);
    assert!(Lane::ALL.iter().all(|&lane| kernel(&v3).report.usage(lane).port == 0.0));
    assert!(kernel(&v3).report.nanoseconds < kernel(&v2).report.nanoseconds);
}
