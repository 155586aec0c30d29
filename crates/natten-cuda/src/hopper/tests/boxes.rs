//! That the bulk copy engine loads boxes of heads-last tensors exactly, by the family's own maps: rows, boxes of two and
//! three axes, dilated ones, with and without heads folded into columns, beginning before the first token and ending
//! behind the last, zeros outside. Needs a GPU that has the engine; `NATTEN_REQUIRE=cuda` makes its absence a failure. The
//! test's binary runs on a machine without Rust too.

#![allow(clippy::print_stdout, reason = "a test that says what it did not do")]

use std::sync::Arc;

use natten_conformance::required_backends;
use natten_core::geometry::{AxisParams, Coverage, MAX_RANK, Neighborhood};
use natten_core::{DType, OpRequest, Problem, Role, contiguous_strides};

use super::super::{Mapped as Input, chunk};
use crate::compile::Compiler;
use crate::device::{Device, DeviceMemory};
use crate::family::{
    Argument, Class, Kernel, Layout, MapSource, MapStride, Sequence, Step, Swizzle, TensorMapSpec,
};
use crate::launch::{Loaded, lines};
use crate::tensor::DeviceView;
use crate::{NAME, probe};

/// Boxes that are loaded of each form.
const BOXES: usize = 96;

/// A map of a tensor of a problem.
struct Form {
    problem: Problem,
    map: TensorMapSpec,
}

/// An input as the family reads it where it is bound.
fn of(problem: &Problem, role: Role, heads: usize, dim: usize) -> Input<'_> {
    Input { problem, source: MapSource::Tensor(role), planes: 1, heads, dim }
}

/// A form of keys: each axis's tokens and dilation.
fn form(axes: &[(usize, usize)], batch: usize, dim: usize, tile: [usize; MAX_RANK]) -> Form {
    let axes: Vec<AxisParams> = axes.iter().map(|&(len, d)| AxisParams::new(len, 2).dilation(d)).collect();
    let neighborhood = Neighborhood::new(&axes).unwrap();
    let builder = Problem::builder(neighborhood, DType::Bf16).batch(batch).heads(3).head_dim(dim);
    let problem = builder.additional_tokens(11).build().unwrap();
    let tokens = problem.neighborhood().axes().map(|axis| axis.key_len());
    let map = of(&problem, Role::Key, 3, dim).of_tokens(tokens, tile);
    Form { problem, map }
}

/// Every form that the family's kernels load.
fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for dim in [32, 40, 64, 72, 128, 256] {
        forms.push(form(&[(300, 1)], 2, dim, [1, 1, 128]));
        forms.push(form(&[(37, 1), (29, 1)], 2, dim, [1, 16, 8]));
        // Without heads folded into columns, three axes leave no dimension for the batch.
        forms.push(form(&[(9, 1), (13, 1), (19, 1)], if dim % 64 == 0 { 2 } else { 1 }, dim, [4, 4, 8]));
    }
    forms.push(form(&[(301, 3)], 2, 64, [1, 1, 64]));
    // In parts of 32 tokens, because a box spans at most 256 of them.
    forms.push(form(&[(907, 7)], 2, 64, [1, 1, 128]));
    for tile in [[1, 8, 8], [1, 4, 20]] {
        forms.push(form(&[(37, 1), (29, 1)], 2, 64, tile));
    }
    for dilation in [2, 4, 8] {
        forms.push(form(&[(41, dilation), (53, dilation)], 2, 64, [1, 8, 16]));
        forms.push(form(&[(17, 2), (41, dilation), (23, 1)], 2, 128, [2, 8, 8]));
    }
    for tile in [[2, 8, 8], [8, 4, 4], [6, 4, 4]] {
        forms.push(form(&[(9, 1), (13, 1), (19, 1)], 2, 64, tile));
    }
    for dim in [40, 64] {
        let Form { problem, .. } = form(&[(30, 1)], 2, dim, [1, 1, 16]);
        let map = of(&problem, Role::AdditionalKey, problem.heads_kv(), dim).of_additional(16);
        forms.push(Form { problem, map });
    }
    forms
}

/// Numbers without pattern (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number of a range.
    fn of(&mut self, from: i64, to: i64) -> i64 {
        from + (self.next() % (to - from) as u64) as i64
    }
}

/// A map whose tensor lies somewhere: what the engine ought to do with it.
struct Mapped<'f> {
    map: &'f TensorMapSpec,
    /// Elements of a box along each dimension.
    counts: Vec<i64>,
    /// The distance of neighbours, in elements.
    strides: Vec<i64>,
}

impl<'f> Mapped<'f> {
    /// Of a tensor with these strides, its token axes padded to three.
    fn new(map: &'f TensorMapSpec, padded: &[i64]) -> Self {
        let counts = map.dims.iter().map(|dim| i64::from(dim.boxed.div_ceil(dim.every))).collect();
        let stride = |stride| match stride {
            MapStride::Bytes(bytes) => (bytes / 2) as i64,
            MapStride::Axis { axis, times } => padded[axis] * times as i64,
        };
        Self { map, counts, strides: map.dims.iter().map(|dim| stride(dim.stride)).collect() }
    }

    fn elements(&self) -> usize {
        self.counts.iter().product::<i64>() as usize
    }

    /// Where a box begins: columns at a whole chunk as in the kernels, everything else anywhere.
    fn start(&self, random: &mut Random) -> Vec<i64> {
        let dims = self.map.dims.iter().enumerate();
        dims.map(|(i, dim)| {
            let (extent, span) = (dim.extent as i64, i64::from(dim.boxed));
            match (i, dim.boxed) {
                (0, _) => random.of(0, (extent + span - 1) / span) * span,
                (_, 1) => random.of(0, extent),
                _ => random.of(-span - 2, extent + 3),
            }
        })
        .collect()
    }

    /// Shared memory after the box that begins at `start` was loaded.
    fn expected(&self, start: &[i64], tensor: &[u16]) -> Vec<u16> {
        let mut shared = vec![0; self.elements()];
        for element in 0..self.elements() {
            let (mut rest, mut at, mut is_inside) = (element as i64, 0, true);
            for (i, dim) in self.map.dims.iter().enumerate() {
                let place = start[i] + rest % self.counts[i] * i64::from(dim.every);
                rest /= self.counts[i];
                is_inside &= (0..dim.extent as i64).contains(&place);
                at += place * self.strides[i];
            }
            // Sixteen bytes change places by the number of the 128 bytes that they are in.
            let byte = 2 * element;
            let mask = match self.map.swizzle {
                Swizzle::None => 0,
                Swizzle::B32 => 1,
                Swizzle::B64 => 3,
                Swizzle::B128 => 7,
            };
            let byte = byte ^ (byte >> 7 & mask) << 4;
            shared[byte / 2] = if is_inside { tensor[at as usize] } else { 0 };
        }
        shared
    }
}

/// The device, if it has the engine; `None`, having said so, where there is none and none is required.
fn device() -> Option<Arc<Device>> {
    let open = || {
        probe::check_driver(0)?;
        Device::open(0, Compiler::new()?).map(Arc::new)
    };
    let known = ["reference", "cpu", NAME, "wgpu", "neuron"];
    let is_required = required_backends(&known).unwrap().iter().any(|name| name == NAME);
    match open() {
        Ok(device) if device.target().arch >= (9, 0) => Some(device),
        Ok(device) => {
            println!("not checked: {} has no bulk copy engine", device.target().name());
            None
        }
        Err(error) => {
            assert!(!is_required, "a GPU is required: {error}");
            println!("not checked: {error}");
            None
        }
    }
}

/// Loads boxes on the device and returns shared memory after each.
fn load(device: &Arc<Device>, form: &Form, mapped: &Mapped<'_>, starts: &[i64], tensor: &[u16]) -> Vec<u16> {
    let MapSource::Tensor(role) = form.map.source else { panic!("a map of a tensor") };
    let elements = mapped.elements();
    let kernel = Kernel {
        source: include_str!("boxes.cu").to_owned(),
        entry: "load_boxes",
        grid: [BOXES as u64, 1, 1],
        block: 128,
        shared_bytes: (2 * elements + 1024) as u32,
        arguments: vec![
            Argument::TensorMap(form.map.clone()),
            Argument::Workspace(0),
            Argument::Table(0),
            Argument::I32(elements as i32),
        ],
        options: &[],
        class: Class::Plain,
    };
    let sequence = Sequence {
        steps: vec![Step::Launch(kernel)],
        workspace: 0,
        tables: vec![starts.iter().flat_map(|&start| (start as i32).to_ne_bytes()).collect()],
        layout: Layout::Tma,
        coverage: Coverage::default(),
        config: Vec::new(),
    };
    let tensors = form.problem.tensors(&OpRequest::forward(&form.problem)).unwrap();
    let loaded = Loaded::new(device, sequence, &tensors, form.problem.neighborhood().rank()).unwrap();
    let stream = device.stream().unwrap();
    let input = DeviceMemory::new(device, 2 * tensor.len()).unwrap();
    input.write(&stream, bytemuck::cast_slice(tensor)).unwrap();
    let results = DeviceMemory::new(device, 2 * BOXES * elements).unwrap();
    let strides: Vec<Vec<isize>> = tensors.iter().map(|spec| contiguous_strides(&spec.shape)).collect();
    let views: Vec<DeviceView<'_>> = (tensors.iter().zip(&strides))
        .map(|(spec, strides)| DeviceView {
            pointer: if spec.role == role { input.pointer() } else { 0 },
            dtype: spec.dtype,
            shape: &spec.shape,
            strides,
        })
        .collect();
    loaded.run(&stream, &views, results.pointer(), &mut lines(loaded.lines())).unwrap();
    stream.synchronize().unwrap();
    let mut shared = vec![0u16; BOXES * elements];
    // SAFETY: both have as many bytes, and the kernel that writes them is done.
    unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut shared, results.pointer()) }.unwrap();
    shared
}

/// Strides of a contiguous tensor of this role, its token axes padded to three as kernels count them.
fn padded_strides(problem: &Problem, role: Role) -> Vec<i64> {
    let shape = problem.shape(role);
    let mut strides: Vec<i64> = contiguous_strides(&shape).into_iter().map(|stride| stride as i64).collect();
    if role == Role::Key {
        let rank = problem.neighborhood().rank();
        strides.splice(1..1, std::iter::repeat_n(0, MAX_RANK - rank));
    }
    strides
}

#[test]
fn boxes_are_loaded_exactly_in_every_form() {
    let Some(device) = device() else { return };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for form in forms() {
        let MapSource::Tensor(role) = form.map.source else { panic!("a map of a tensor") };
        let mapped = Mapped::new(&form.map, &padded_strides(&form.problem, role));
        let len = form.problem.shape(role).iter().product();
        // No zeros inside, so that those outside are told from them.
        let tensor: Vec<u16> = (0..len).map(|_| random.next() as u16 | 1).collect();
        let starts: Vec<Vec<i64>> = (0..BOXES).map(|_| mapped.start(&mut random)).collect();
        let loaded = load(&device, &form, &mapped, &starts.concat(), &tensor);
        for (start, shared) in starts.iter().zip(loaded.chunks(mapped.elements())) {
            let expected = mapped.expected(start, &tensor);
            let wrong = expected.iter().zip(shared).filter(|(a, b)| a != b).count();
            assert_eq!(wrong, 0, "of {} elements of the box at {start:?} of {:?}", shared.len(), form.map);
        }
    }
    println!("{} forms of boxes, {BOXES} of each: exact", forms().len());
}

/// The formula itself, without a GPU: a row of a box is a token's columns, sixteen bytes of it shuffled.
#[test]
fn the_formula_places_tokens_as_wgmma_reads_them() {
    let form = form(&[(6, 1), (5, 1)], 1, 64, [1, 2, 8]);
    assert_eq!((chunk(&form.problem), form.map.dims.len()), (64, 5));
    let mapped = Mapped::new(&form.map, &padded_strides(&form.problem, Role::Key));
    let tensor: Vec<u16> = (0..6 * 5 * 3 * 64).map(|i| i as u16).collect();
    // The second head's columns of tokens (4 and 5, -1 and on).
    let shared = mapped.expected(&[64, -1, 4, 0, 0], &tensor);
    assert_eq!(shared.len(), 16 * 64);
    assert!(shared[..64].iter().all(|&x| x == 0), "the column before the first");
    let token = |x: usize, y: usize| ((x * 5 + y) * 3 + 1) * 64;
    assert_eq!(usize::from(shared[64 + 8]), token(4, 0), "row 1: the first sixteen bytes are the second");
    assert_eq!(usize::from(shared[9 * 64 + 8]), token(5, 0));
}
