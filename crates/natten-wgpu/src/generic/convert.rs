//! The first and the last steps of a plan: tensors of any strides and dtype to numbers in a row, and back.

use natten_core::{DType, Error, Result, Role, Tensor, TensorSpec};

use crate::render::math::Real;
use crate::sequence::{Binding, Run, WORKGROUP, workgroups};
use crate::target::Target;
use crate::template::Fill;

const CONVERT: &str = include_str!("../wgsl/convert.wgsl");

/// Reads a tensor into the arena, or among the captured integers, from element `at` on; or writes it from the arena.
pub(crate) fn step(spec: &TensorSpec, real: Real, at: u64, target: &Target) -> Run {
    let is_packed = matches!(spec.dtype, DType::F16 | DType::Bf16);
    let is_integer = spec.dtype == DType::I32;
    let (widen, narrow) = match spec.dtype {
        DType::F16 => ("from_half", "to_half"),
        _ => ("from_brain", "to_brain"),
    };
    let word = match spec.dtype {
        DType::F64 => "f64",
        DType::F32 => "f32",
        DType::I32 => "i32",
        _ => "u32",
    };
    let source = Fill::default()
        .flag("WRITES", spec.is_output)
        .flag("PACKED", is_packed)
        .flag("PACKED_WRITES", is_packed && spec.is_output)
        .value("REAL", real.name())
        .value("WORD", word)
        .value("NUMBER", if is_integer { "i32" } else { "R" })
        .value("WIDEN", widen)
        .value("NARROW", narrow)
        .apply(CONVERT);
    let numbers = match is_integer {
        true => Binding::Integers { is_written: true },
        false => Binding::Arena,
    };
    // A packed tensor may begin in the middle of a word, and a view of it may be spread out in memory: the invocations
    // are as many as its storage can need, since strides are known when it runs.
    let invocations = spec.len() as u64 + 1;
    Run {
        label: format!("{} {}", if spec.is_output { "write" } else { "read" }, spec.name),
        source,
        bindings: vec![
            Binding::Tensor { role: spec.role, is_written: spec.is_output },
            numbers,
            Binding::Parameters { role: spec.role, at: at as u32 },
        ],
        workgroups: workgroups(invocations.next_multiple_of(u64::from(WORKGROUP)), target.workgroups),
    }
}

/// How a tensor lies in memory, as `wgsl/convert.wgsl` reads it.
///
/// # Errors
/// [`Error::Unsupported`] for a view that is spread over more memory than its numbers need, of 16-bit results; for more
/// axes than the table holds.
pub(crate) fn parameters(tensor: &Tensor, at: u32, is_output: bool) -> Result<Vec<i32>> {
    let is_packed_write = is_output && matches!(tensor.dtype(), DType::F16 | DType::Bf16);
    let mut number_stride = tensor.len() as i64;
    let mut axes: Vec<[i64; 3]> = Vec::new();
    for (&extent, &stride) in tensor.shape().iter().zip(tensor.strides()) {
        number_stride /= extent.max(1) as i64;
        if extent != 1 {
            axes.push([extent as i64, stride as i64, number_stride]);
        }
    }
    let (mut first, mut place, mut count) = (i64::from(at), tensor.offset() as i64, tensor.len() as i64);
    if is_packed_write && !tensor.is_empty() {
        // Axes that run backwards are turned around, so that a place is a sum of positive strides.
        for [extent, stride, number] in axes.iter_mut().filter(|axis| axis[1] < 0) {
            place += *stride * (*extent - 1);
            first += *number * (*extent - 1);
            (*stride, *number) = (-*stride, -*number);
        }
        axes.sort_by_key(|axis| -axis[1]);
        let last = place + axes.iter().map(|[extent, stride, _]| stride * (extent - 1)).sum::<i64>();
        count = last / 2 - place / 2 + 1;
        if count > tensor.len() as i64 + 1 {
            return Err(Error::unsupported(
                crate::NAME,
                "a 16-bit result with gaps",
                "two of its numbers share a word, and the words between them are too many; use a tensor without gaps",
            ));
        }
    }
    let mut parameters = vec![count, first, place, axes.len() as i64];
    parameters.extend(axes.into_iter().flatten());
    if parameters.len() > 64 {
        return Err(Error::unsupported(
            crate::NAME,
            "a tensor of more than 20 axes",
            "join some of its axes",
        ));
    }
    let fits = |n: i64| {
        i32::try_from(n).map_err(|_| {
            let rule = "places in memory are counted in 32 bits";
            Error::unsupported(crate::NAME, format!("a tensor of {} elements", tensor.len()), rule)
        })
    };
    parameters.resize(64, 0);
    parameters.into_iter().map(fits).collect()
}

/// How a contiguous tensor lies in memory.
pub(crate) fn contiguous(spec: &TensorSpec, at: u32) -> Result<Vec<i32>> {
    // A view of nothing but shape and dtype: no memory is touched.
    let strides = natten_core::contiguous_strides(&spec.shape);
    let tensor = Tensor::view(std::sync::Arc::new(Shape(spec.dtype, spec.len())), &spec.shape, &strides, 0)?;
    parameters(&tensor, at, spec.is_output)
}

/// Storage that is not there.
#[derive(Debug)]
struct Shape(DType, usize);

impl natten_core::Storage for Shape {
    fn device(&self) -> &str {
        "nowhere"
    }

    fn dtype(&self) -> DType {
        self.0
    }

    fn len(&self) -> usize {
        self.1
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Whether a role is of captured integers.
pub(crate) fn is_integer(spec: &TensorSpec) -> bool {
    spec.dtype == DType::I32 && matches!(spec.role, Role::Capture(_))
}
