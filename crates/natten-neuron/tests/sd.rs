//! The tutorial's kernel against the oracle, in both schedules, with and without a mask, in every precision.

use natten_conformance::{HostTensors, evaluate};
use natten_core::reference::ReferenceBackend;
use natten_core::{DType, HostTensor, OpRequest, PlanOptions, Role};
use natten_neuron::dtype::Dtype;
use natten_neuron::lower::sd::{Schedule, SdAttention};
use natten_neuron::sim::compute;
use natten_neuron::target::Target;

/// The largest error relative to what the products' rounding of the weights and the result's own rounding grant, on
/// inputs that the products take as they are; and whether all is within the tolerance of the kernel's own comparison,
/// on inputs as they come.
fn compare(kernel: SdAttention) -> (f64, bool) {
    let dtype = kernel.problem().unwrap().dtype();
    let of_products = if kernel.mixed_precision { DType::Bf16 } else { dtype };
    let problem = kernel.problem().unwrap();
    let run = |round: Dtype| {
        let numbers = [Role::Query, Role::Key, Role::Value].map(|role| {
            let salt = role.to_string().len() * 13;
            let number = |at: usize| (((at + salt) * 7919) % 10_007) as f32 / 10_007.0;
            (0..kernel.len * kernel.dim)
                .map(|at| kernel.dtype.round(round.round(number(at))))
                .collect::<Vec<f32>>()
        });
        let tensor = |role, numbers: &Vec<f32>| {
            let shape = problem.shape(role);
            HostTensor::from_fn(dtype, &shape, |at| f64::from(numbers[at])).unwrap()
        };
        let roles = [Role::Query, Role::Key, Role::Value];
        let inputs: HostTensors =
            roles.iter().zip(&numbers).map(|(&role, numbers)| (role, tensor(role, numbers))).collect();
        let request = OpRequest::forward(&problem);
        let options = PlanOptions::default();
        let expected = evaluate(&ReferenceBackend::new(), &problem, &request, &options, &inputs).unwrap();
        let found = compute::run(&kernel.lower().unwrap(), &Target::v2(), &numbers).unwrap().remove(0);
        (found, expected[&Role::Output].to_f64())
    };
    let (found, expected) = run(Dtype::of(of_products).unwrap());
    // No input is negative, so an output is the sum of the weighted values' magnitudes. The oracle rounds its output.
    let granted = of_products.roundoff() + 2.0 * dtype.roundoff() + 1e-5;
    let errors = found.iter().zip(&expected).map(|(&x, y)| (f64::from(x) - y).abs() / (granted * y.abs()));
    let (found, expected) =
        if kernel.dtype.size() == 4 { run(Dtype::F32) } else { (found.clone(), expected.clone()) };
    let (absolute, relative) = kernel.tolerance();
    let is_close = |(&x, y): (&f32, &f64)| (f64::from(x) - y).abs() <= absolute + relative * y.abs();
    (errors.fold(0.0, f64::max), found.iter().zip(&expected).all(is_close))
}

/// A regression: the first queries of a causal row see few keys, over which the rounding of the values to bf16 does not
/// average out, as the tutorial's tolerance supposes.
#[test]
fn every_schedule_mask_and_precision_is_right() {
    for (dtype, mixed_precision) in
        [(Dtype::F32, true), (Dtype::F32, false), (Dtype::Bf16, true), (Dtype::F16, false)]
    {
        for (schedule, len, causal) in [
            (Schedule::Tutorial, 256, false),
            (Schedule::Tutorial, 256, true),
            (Schedule::Allocated, 1024, false),
        ] {
            let kernel = SdAttention { len, dim: 64, dtype, mixed_precision, causal, schedule };
            let (error, is_within) = compare(kernel);
            assert!(error <= 1.0 && is_within, "{kernel:?}: {error}, {is_within}");
        }
    }
}

/// A later key has no influence, to the last bit.
#[test]
fn hidden_keys_do_not_matter() {
    let (len, dim) = (256, 16);
    let (dtype, schedule) = (Dtype::F32, Schedule::Tutorial);
    let kernel = SdAttention { len, dim, dtype, mixed_precision: true, causal: true, schedule };
    let inputs: Vec<Vec<f32>> =
        (0..3).map(|which| (0..len * dim).map(|at| ((at * 31 + which * 7) as f32).sin()).collect()).collect();
    let mut changed = inputs.clone();
    for tensor in &mut changed[1..] {
        tensor[100 * dim..].iter_mut().for_each(|x| *x = 3.0 - *x);
    }
    let run = |inputs: &[Vec<f32>]| {
        compute::run(&kernel.lower().unwrap(), &Target::v2(), inputs).unwrap().remove(0)
    };
    let (before, after) = (run(&inputs), run(&changed));
    assert_eq!(before[..100 * dim], after[..100 * dim]);
    assert_ne!(before[100 * dim..], after[100 * dim..]);
}
