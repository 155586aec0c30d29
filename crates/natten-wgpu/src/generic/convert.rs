//! The first and the last steps of a plan: tensors of any strides and dtype to numbers in a row, and back.

use natten_core::{DType, Error, Result, Role, Tensor, TensorSpec};

use crate::render::math::Real;
use crate::sequence::{Binding, Cut, Packed, Run, WORKGROUP, workgroups};
use crate::target::Target;
use crate::template::Fill;

const CONVERT: &str = include_str!("../wgsl/convert.wgsl");
const PACK: &str = include_str!("../wgsl/pack.wgsl");

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
    Run {
        label: format!("{} {}", if spec.is_output { "write" } else { "read" }, spec.name),
        source,
        bindings: vec![
            Binding::Tensor { role: spec.role, is_written: spec.is_output },
            numbers,
            Binding::Parameters { role: spec.role, at: at as u32 },
        ],
        workgroups: workgroups((spec.len() as u64).next_multiple_of(u64::from(WORKGROUP)), target.workgroups),
    }
}

/// Copies a tensor of f16 to packed vectors, from number `first` of them on; or from there. A run leaves this out where
/// the tensor itself is bound in their place.
pub(crate) fn pack(spec: &TensorSpec, packed: &Packed, first: u64, target: &Target) -> Run {
    let fill = Fill::default().value("WORDS", packed.dims / 2).value("DIM", packed.dim);
    let (source, invocations) = match spec.is_output {
        false => (fill.apply(PACK), spec.len() as u64 / packed.dim * packed.dims / 2),
        true => {
            let fill = fill
                .flag("WRITES", true)
                .flag("PACKED", true)
                .flag("PACKED_WRITES", true)
                .flag("HALVES", true)
                .value("REAL", "f32")
                .value("WORD", "u32")
                .value("NUMBER", "u32")
                .value("WIDEN", "from_half")
                .value("NARROW", "to_half");
            (fill.apply(CONVERT), spec.len() as u64)
        }
    };
    Run {
        label: format!("{} {}", if spec.is_output { "unpack" } else { "pack" }, spec.name),
        source,
        bindings: vec![
            Binding::Tensor { role: spec.role, is_written: spec.is_output },
            Binding::Packed { role: packed.role, is_written: !spec.is_output },
            Binding::Parameters { role: spec.role, at: first as u32 },
        ],
        workgroups: workgroups(invocations.next_multiple_of(u64::from(WORKGROUP)), target.workgroups),
    }
}

/// Where the elements of a tensor lie in its memory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<isize>,
    offset: isize,
}

impl Layout {
    /// That of a tensor.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        let (shape, strides) = (tensor.shape().to_vec(), tensor.strides().to_vec());
        Self { dtype: tensor.dtype(), shape, strides, offset: tensor.offset() as isize }
    }

    /// One element behind the other.
    pub(crate) fn contiguous(spec: &TensorSpec) -> Self {
        let strides = natten_core::contiguous_strides(&spec.shape);
        Self { dtype: spec.dtype, shape: spec.shape.clone(), strides, offset: 0 }
    }

    /// What is left of it along some axes.
    #[must_use]
    pub(crate) fn cut(mut self, cuts: &[Cut]) -> Self {
        for &(axis, first, len) in cuts {
            self.offset += first as isize * self.strides[axis];
            self.shape[axis] = len;
        }
        self
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The places of the first and the last element in memory, where there is one.
    pub(crate) fn span(&self) -> Option<(isize, isize)> {
        let reach = |is_behind: bool| -> isize {
            let axes = self.shape.iter().zip(&self.strides);
            axes.filter(|(_, stride)| (**stride > 0) == is_behind).map(|(&n, &s)| (n as isize - 1) * s).sum()
        };
        (self.len() > 0).then(|| (self.offset + reach(false), self.offset + reach(true)))
    }

    /// The same in memory that begins at this element.
    #[must_use]
    pub(crate) const fn behind(mut self, element: isize) -> Self {
        self.offset -= element;
        self
    }
}

/// A tensor's layout, as `wgsl/convert.wgsl` reads it.
///
/// # Errors
/// [`Error::Unsupported`] for 16-bit results whose axes run through each other, for more axes than the table holds, and
/// for places that 32 bits do not count.
pub(crate) fn parameters(layout: &Layout, at: u32, is_output: bool) -> Result<Vec<i32>> {
    let is_packed_write = is_output && matches!(layout.dtype, DType::F16 | DType::Bf16);
    let len = layout.len() as i64;
    let mut number_stride = len;
    let mut axes: Vec<[i64; 3]> = Vec::new();
    for (&extent, &stride) in layout.shape.iter().zip(&layout.strides) {
        number_stride /= extent.max(1) as i64;
        if extent != 1 {
            axes.push([extent as i64, stride as i64, number_stride]);
        }
    }
    let (mut first, mut place) = (i64::from(at), layout.offset as i64);
    if is_packed_write && len > 0 {
        // Axes that run backwards are turned around, so that a place is a sum of positive strides, and falls apart by
        // division where every stride is longer than all that the shorter ones reach.
        for [extent, stride, number] in axes.iter_mut().filter(|axis| axis[1] < 0) {
            place += *stride * (*extent - 1);
            first += *number * (*extent - 1);
            (*stride, *number) = (-*stride, -*number);
        }
        axes.sort_by_key(|axis| -axis[1]);
        let mut reach = 0;
        for [extent, stride, _] in axes.iter().rev() {
            if *stride <= reach {
                return Err(Error::unsupported(
                    crate::NAME,
                    format!("a 16-bit result of shape {:?} and strides {:?}", layout.shape, layout.strides),
                    "two of its numbers share a word, and its axes run through each other; use a tensor whose axes do not",
                ));
            }
            reach += stride * (extent - 1);
        }
    }
    let mut parameters = vec![len, first, place, axes.len() as i64];
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
            Error::unsupported(crate::NAME, format!("a tensor of {len} elements"), rule)
        })
    };
    parameters.resize(64, 0);
    parameters.into_iter().map(fits).collect()
}

/// Whether a role is of captured integers.
pub(crate) fn is_integer(spec: &TensorSpec) -> bool {
    spec.dtype == DType::I32 && matches!(spec.role, Role::Capture(_))
}
