//! Masks: the instruction that hides by a predicate, and the three ways in which the lowering hides pairs.

use natten_conformance::{HostTensors, evaluate};
use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::reference::ReferenceBackend;
use natten_core::{DType, HostTensor, OpRequest, PlanOptions, Problem, Role};
use natten_neuron::dtype::Dtype;
use natten_neuron::ir::{Engine, Kernel, Op, Space, TensorId};
use natten_neuron::lower::builder::Builder;
use natten_neuron::lower::launch::Source;
use natten_neuron::lower::softmax::{self, Choice, Masks};
use natten_neuron::lower::windows::Windows;
use natten_neuron::sim::compute;
use natten_neuron::target::Target;
use natten_neuron::verify::verify;

/// `affine_select` keeps what its predicate holds for: `offset + channel * partition + Σ step * index >= 0`.
#[test]
fn affine_select_hides_where_its_predicate_fails() {
    let (parts, counts) = (70, [3, 4, 5]);
    let len = counts.iter().product::<usize>();
    for (offset, channel, steps) in
        [(0, 1, [-1, 0, 0]), (-7, -1, [9, 2, 1]), (30, 0, [-20, 3, -1]), (-1, 0, [0, 0, 0])]
    {
        let mut b = Builder::new("select");
        let (input, output) = (
            b.tensor("x", Space::Input, &[parts, len], Dtype::F32),
            b.tensor("y", Space::Output, &[parts, len], Dtype::F32),
        );
        let sbuf = b.sbuf("t", &[parts, len], Dtype::F32);
        let tile = b.at(sbuf, parts, 0, len);
        let hbm = |tensor: TensorId, b: &Builder| b.pattern(tensor, 1, 0, vec![(1, parts * len)]);
        let (from, to) = (hbm(input, &b), hbm(output, &b));
        b.dma(tile.clone(), from);
        let pattern = steps.into_iter().zip(counts).collect();
        let select = Op::AffineSelect {
            dst: tile.clone(),
            data: tile.clone(),
            pattern,
            offset,
            channel,
            fill: -9984.0,
        };
        b.push(Engine::GpSimd, select);
        b.dma(to, tile);
        let kernel = b.finish();
        verify(&kernel, &Target::v2()).unwrap();
        let numbers: Vec<f32> = (0..parts * len).map(|at| at as f32).collect();
        let found = compute::run(&kernel, &Target::v2(), std::slice::from_ref(&numbers)).unwrap().remove(0);
        for (at, (&x, &y)) in numbers.iter().zip(&found).enumerate() {
            let (part, column) = ((at / len) as i64, at % len);
            let index = [column / 20, column / 5 % 4, column % 5];
            let value =
                offset + channel * part + (0..3).map(|axis| steps[axis] * index[axis] as i64).sum::<i64>();
            assert_eq!(
                y,
                if value >= 0 { x } else { -9984.0 },
                "{offset} {channel} {steps:?} at {part}, {column}"
            );
        }
    }
}

fn selects(kernel: &Kernel) -> usize {
    let mut count = 0;
    let counted = kernel.for_each(|instr, _| {
        count += usize::from(matches!(instr.op, Op::AffineSelect { .. }));
        Ok::<_, std::convert::Infallible>(())
    });
    counted.map_or(0, |()| count)
}

/// Hidden pairs weigh nothing and visible scores are the same numbers, so the three ways agree to the last bit; and they
/// are right.
#[test]
fn the_three_ways_to_hide_give_the_same_bits() {
    let na = |axes: &[AxisParams]| Neighborhood::new(axes).unwrap();
    let windows = [
        ("window", na(&[AxisParams::new(700, 65)]), true),
        ("even", na(&[AxisParams::new(400, 130)]), true),
        ("causal window", na(&[AxisParams::new(500, 99).causal(true)]), true),
        ("stride", na(&[AxisParams::new(400, 65).stride(8)]), false),
        ("dilation", na(&[AxisParams::new(600, 65).dilation(2)]), true),
        ("causal", Neighborhood::full(600, 600, Some(Alignment::TopLeft)).unwrap(), true),
        ("two axes", na(&[AxisParams::new(20, 7), AxisParams::new(24, 9).causal(true)]), false),
    ];
    for (name, window, slides) in windows {
        for (dtype, scale) in [(DType::Bf16, None), (DType::F32, Some(-0.3))] {
            let problem = Problem::builder(window.clone(), dtype).head_dim(16).scale(scale).build().unwrap();
            let request = OpRequest::forward(&problem);
            let inputs: HostTensors = [Role::Query, Role::Key, Role::Value]
                .map(|role| {
                    let salt = role.to_string().len();
                    let number = |at: usize| ((at * 37 + salt) as f64 * 0.7).sin() * 2.0;
                    (role, HostTensor::from_fn(dtype, &problem.shape(role), number).unwrap())
                })
                .into();
            let results = Masks::ALL.map(|masks| {
                let windows = Windows::new(&problem, &PlanOptions::default()).unwrap();
                let choice = Choice { masks, lag: 2, delay: 4 };
                let element = Dtype::of(dtype).unwrap();
                let (launch, _) =
                    softmax::lower(&problem, &request, &windows, choice, element, &Target::v2()).unwrap();
                verify(&launch.kernel, &Target::v2()).unwrap();
                let selects = selects(&launch.kernel);
                assert_eq!(selects > 0, masks == Masks::AffineSelect && slides, "{name}");
                let numbers = launch.sources.iter().map(|source| match source {
                    Source::Role(role) => inputs[role].to_f64().into_iter().map(|x| x as f32).collect(),
                    Source::Constant(numbers) => numbers.to_vec(),
                    other => panic!("{other:?}"),
                });
                compute::run(&launch.kernel, &Target::v2(), &numbers.collect::<Vec<Vec<f32>>>()).unwrap()
            });
            assert!(results[0] == results[1] && results[0] == results[2], "{name} {dtype}");
            let options = PlanOptions::default();
            let expected = evaluate(&ReferenceBackend::new(), &problem, &request, &options, &inputs).unwrap();
            for (found, role) in results[0].iter().zip([Role::Output, Role::Logsumexp]) {
                let expected = expected[&role].to_f64();
                let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
                let error =
                    found.iter().zip(&expected).map(|(&x, y)| (f64::from(x) - y).abs()).fold(0.0, f64::max);
                assert!(
                    error <= 4.0 * dtype.roundoff().max(1e-6) * largest,
                    "{name} {dtype} {role}: {error}"
                );
            }
        }
    }
}
