//! What the Hopper family declines, how it lays out its tensor maps, and that the copy engine loads boxes by them.

mod boxes;

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::program::Program;
use natten_core::{Op, ProblemBuilder};

use super::*;

fn builder(axes: &[AxisParams], dtype: DType) -> ProblemBuilder {
    Problem::builder(Neighborhood::new(axes).unwrap(), dtype).batch(2).heads(4).head_dim(64)
}

fn sequence(builder: ProblemBuilder, op: Op) -> Result<Sequence> {
    let problem = builder.build()?;
    let request = OpRequest::of(op, &problem, []);
    Hopper.sequence(&problem, &request, &PlanOptions::default(), &Target::of_arch(9, 0))
}

#[test]
fn what_the_kernel_does_not_compute_is_declined() {
    let axis = AxisParams::new(90, 9);
    let declined = |builder, op| matches!(sequence(builder, op), Err(Error::Unsupported { .. }));
    assert!(!declined(builder(&[axis, axis], DType::F16), Op::Forward));
    assert!(declined(builder(&[axis], DType::F32), Op::Forward));
    assert!(declined(builder(&[axis], DType::F16), Op::Backward));
    assert!(declined(builder(&[axis.dilation(9)], DType::F16), Op::Forward));
    assert!(declined(builder(&[axis], DType::Bf16).head_dim(20), Op::Forward));
    assert!(declined(builder(&[axis; 3], DType::Bf16).head_dim(40), Op::Forward), "six axes");
    let sigmoid = Program::builder(1).row("sigmoid").build();
    if let Ok(program) = sigmoid {
        assert!(declined(builder(&[axis], DType::Bf16).program(program), Op::Forward));
    }
}

#[test]
fn three_axes_fold_heads_into_columns_and_two_do_not_have_to() {
    let axis = AxisParams::new(30, 9);
    let layout = |axes: &[AxisParams], dim| {
        sequence(builder(axes, DType::Bf16).head_dim(dim), Op::Forward).unwrap().layout
    };
    assert_eq!(layout(&[axis; 3], 128), Layout::TmaPacked);
    assert_eq!(layout(&[axis; 2], 40), Layout::Tma);
}

#[test]
fn a_dilated_row_is_loaded_in_parts_that_the_copy_engine_spans() {
    let problem = builder(&[AxisParams::new(900, 63).dilation(7)], DType::Bf16).build().unwrap();
    let key =
        Mapped { problem: &problem, source: MapSource::Tensor(Role::Key), planes: 1, heads: 4, dim: 64 };
    let map = key.of_tokens([1, 1, 900], [1, 1, 128]);
    let tokens = map.dims.iter().find(|dim| dim.every == 7).unwrap();
    assert_eq!(tokens.boxed, 32 * 7);
}
