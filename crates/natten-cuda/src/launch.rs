//! A sequence made ready for a device: modules loaded, tables uploaded, every argument's place in the launch fixed. A run
//! fills in pointers and strides, and launches.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use cudarc::driver::{CudaFunction, CudaStream, result};
use natten_core::{Error, Result, Role, TensorSpec};

use crate::device::{Device, DeviceMemory};
use crate::family::{Argument, Kernel, MapDim, MapSource, MapStride, Sequence, Step, Swizzle, TensorMapSpec};
use crate::tensor::DeviceView;
use crate::{NAME, error};

/// The most parameters of a kernel.
const MAX_ARGUMENTS: usize = 128;

/// The strides that a kernel is handed of a tensor.
const MAX_AXES: usize = 8;

/// What a block of launch arguments is aligned to: what a tensor map needs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(crate) struct Line([u8; 128]);

/// A sequence that a device can run.
#[derive(Debug)]
pub(crate) struct Loaded {
    device: Arc<Device>,
    steps: Vec<LoadedStep>,
    tables: Vec<DeviceMemory>,
    /// For each tensor of the plan: the axis behind which its three padded axes begin, and its own number of them.
    pads: Vec<(usize, usize)>,
    /// Lines of launch arguments of the kernel that has most.
    lines: usize,
}

#[derive(Debug)]
enum LoadedStep {
    Launch(Box<Launch>),
    Zero { offset: u64, bytes: u64 },
}

#[derive(Debug)]
struct Launch {
    function: CudaFunction,
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    arguments: Vec<(usize, Value)>,
}

/// What is written at a parameter's place. Tensors are numbered as in the plan.
#[derive(Debug)]
enum Value {
    Tensor(usize),
    View(usize),
    Workspace(u64),
    Table(usize),
    Map { tensor: Option<usize>, spec: TensorMapSpec },
    Bytes(Vec<u8>),
}

impl Value {
    /// Size and alignment.
    const fn layout(&self, align: usize) -> (usize, usize) {
        match self {
            Self::Tensor(_) | Self::Workspace(_) | Self::Table(_) => (8, 8),
            Self::View(_) => (8 + 8 * MAX_AXES, 8),
            Self::Map { .. } => (128, 128),
            Self::Bytes(bytes) => (bytes.len(), align),
        }
    }
}

/// A defect of a kernel family, told rather than asserted.
fn defect(what: String) -> Error {
    Error::Device { backend: NAME.into(), message: format!("a plan's launch is malformed: {what}") }
}

impl Loaded {
    /// Compiles, loads and uploads.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::OutOfMemory`], [`Error::Device`]; [`Error::Unsupported`] for more blocks than the
    /// device launches.
    pub(crate) fn new(
        device: &Arc<Device>,
        sequence: Sequence,
        tensors: &[TensorSpec],
        rank: usize,
    ) -> Result<Self> {
        let mut tables = Vec::with_capacity(sequence.tables.len());
        if !sequence.tables.is_empty() {
            let stream = device.stream()?;
            for table in &sequence.tables {
                let memory = DeviceMemory::new(device, table.len())?;
                memory.write(&stream, table)?;
                tables.push(memory);
            }
        }
        let mut steps = Vec::with_capacity(sequence.steps.len());
        let mut lines = 0;
        for step in sequence.steps {
            match step {
                Step::Zero { offset, bytes } => steps.push(LoadedStep::Zero { offset, bytes }),
                Step::Launch(kernel) if kernel.grid.contains(&0) => {}
                Step::Launch(kernel) => {
                    let (launch, end) = Launch::new(device, kernel, tensors)?;
                    lines = lines.max(end.div_ceil(size_of::<Line>()));
                    steps.push(LoadedStep::Launch(Box::new(launch)));
                }
            }
        }
        let pads = tensors.iter().map(|spec| (first_token_axis(spec.role), rank)).collect();
        Ok(Self { device: Arc::clone(device), steps, tables, pads, lines })
    }

    /// Lines of memory that a run puts launch arguments in.
    pub(crate) const fn lines(&self) -> usize {
        self.lines
    }

    /// Submits everything to the stream. `views` are the plan's tensors in order.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn run(
        &self,
        stream: &CudaStream,
        views: &[DeviceView<'_>],
        workspace: u64,
        lines: &mut [Line],
    ) -> Result<()> {
        for step in &self.steps {
            match step {
                LoadedStep::Zero { offset, bytes } => {
                    // SAFETY: the bytes lie in the workspace, whose size the plan made to hold them.
                    unsafe {
                        result::memset_d8_async(workspace + offset, 0, *bytes as usize, stream.cu_stream())
                    }
                    .map_err(|e| error::driver("clearing the workspace", e))?;
                }
                LoadedStep::Launch(launch) => self.launch(launch, stream, views, workspace, lines)?,
            }
        }
        Ok(())
    }

    fn launch(
        &self,
        launch: &Launch,
        stream: &CudaStream,
        views: &[DeviceView<'_>],
        workspace: u64,
        lines: &mut [Line],
    ) -> Result<()> {
        let memory = lines.as_flattened_bytes();
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for ((offset, value), pointer) in launch.arguments.iter().zip(&mut pointers) {
            let (size, _) = value.layout(1);
            let place = &mut memory[*offset..offset + size];
            self.write(value, views, workspace, place)?;
            *pointer = place.as_mut_ptr().cast();
        }
        let [x, y, z] = launch.grid;
        let count = launch.arguments.len();
        // SAFETY: the function is of a loaded module, and the arguments are those of its parameters, which the family
        // that wrote the source listed. The tensors that they point to were checked against the plan; who bound them
        // keeps them until the stream is done. The driver copies the arguments before it returns.
        unsafe {
            result::launch_kernel(
                launch.function.cu_function(),
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared_bytes,
                stream.cu_stream(),
                &mut pointers[..count],
            )
        }
        .map_err(|e| error::driver("launching a kernel", e))
    }

    /// Writes an argument's bytes.
    fn write(&self, value: &Value, views: &[DeviceView<'_>], workspace: u64, place: &mut [u8]) -> Result<()> {
        match value {
            Value::Tensor(tensor) => place.copy_from_slice(&views[*tensor].pointer.to_ne_bytes()),
            Value::View(tensor) => {
                let (head, strides) = place.split_at_mut(8);
                head.copy_from_slice(&views[*tensor].pointer.to_ne_bytes());
                for (place, stride) in strides.chunks_exact_mut(8).zip(self.strides(*tensor, views)) {
                    place.copy_from_slice(&(stride as i64).to_ne_bytes());
                }
            }
            Value::Workspace(offset) => place.copy_from_slice(&(workspace + offset).to_ne_bytes()),
            Value::Table(table) => place.copy_from_slice(&self.tables[*table].pointer().to_ne_bytes()),
            Value::Bytes(bytes) => place.copy_from_slice(bytes),
            Value::Map { tensor, spec } => {
                let (base, strides) = match (tensor, spec.source) {
                    (Some(tensor), _) => (views[*tensor].pointer, self.strides(*tensor, views)),
                    (None, MapSource::Workspace(offset)) => (workspace + offset, [0; MAX_AXES]),
                    (None, MapSource::Tensor(role)) => {
                        return Err(defect(format!("a map of {role}, which the operation does not have")));
                    }
                };
                encode(spec, base, &strides, place)?;
            }
        }
        Ok(())
    }

    /// A tensor's strides, its token axes padded to three.
    fn strides(&self, tensor: usize, views: &[DeviceView<'_>]) -> [isize; MAX_AXES] {
        let (first, rank) = self.pads[tensor];
        let mut padded = [0; MAX_AXES];
        for (axis, &stride) in views[tensor].strides.iter().enumerate() {
            let at = if axis < first { axis } else { axis + (3 - rank) };
            if let Some(place) = padded.get_mut(at) {
                *place = stride;
            }
        }
        padded
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Kernels of these modules may still run, and must not be unloaded under them.
        let _ = self.device.bind();
        let _ = self.device.context().synchronize();
    }
}

impl Launch {
    /// The launch, and the bytes of its arguments.
    fn new(device: &Arc<Device>, kernel: Kernel, tensors: &[TensorSpec]) -> Result<(Self, usize)> {
        let module = device.module(&kernel.source, kernel.options)?;
        let function =
            module.load_function(kernel.entry).map_err(|e| error::driver("finding a kernel's entry", e))?;
        let static_bytes = function.shared_size_bytes().map_err(|e| error::driver("asking a kernel", e))?;
        let limit = device.target().shared_bytes.saturating_sub(static_bytes.unsigned_abs());
        if kernel.shared_bytes > limit {
            return Err(defect(format!("{} bytes of shared memory of {limit}", kernel.shared_bytes)));
        }
        // Always the most there is: plans with other sizes share the function.
        function
            .set_attribute(
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                i32::try_from(limit).unwrap_or(i32::MAX),
            )
            .map_err(|e| error::driver("asking for shared memory", e))?;
        let mut grid = [1; 3];
        for (a, most) in [(0, u64::from(u32::MAX >> 1)), (1, 65_535), (2, 65_535)] {
            grid[a] =
                u32::try_from(kernel.grid[a]).ok().filter(|&n| u64::from(n) <= most).ok_or_else(|| {
                    Error::unsupported(
                        NAME,
                        format!("{:?} blocks", kernel.grid),
                        format!(
                            "a device launches at most {most} along axis {a}: split the batch or the heads"
                        ),
                    )
                })?;
        }
        if kernel.arguments.len() > MAX_ARGUMENTS {
            return Err(defect(format!("{} parameters of {MAX_ARGUMENTS}", kernel.arguments.len())));
        }
        let mut end = 0usize;
        let mut arguments = Vec::with_capacity(kernel.arguments.len());
        for argument in kernel.arguments {
            let align = if let Argument::Bytes { align, .. } = argument { align } else { 1 };
            let value = Value::of(argument, tensors)?;
            // Aligned to 8 at least, so that every scalar is.
            let (size, align) = value.layout(align.max(8));
            let offset = end.next_multiple_of(align);
            end = offset + size;
            arguments.push((offset, value));
        }
        let launch =
            Self { function, grid, block: kernel.block, shared_bytes: kernel.shared_bytes, arguments };
        Ok((launch, end))
    }
}

impl Value {
    fn of(argument: Argument, tensors: &[TensorSpec]) -> Result<Self> {
        let find = |role: Role| {
            tensors
                .iter()
                .position(|spec| spec.role == role)
                .ok_or_else(|| defect(format!("{role}, which the operation does not have")))
        };
        Ok(match argument {
            Argument::Tensor(role) => Self::Tensor(find(role)?),
            Argument::View(role) => {
                let tensor = find(role)?;
                if tensors[tensor].shape.len() > MAX_AXES {
                    let shape = &tensors[tensor].shape;
                    return Err(Error::unsupported(
                        NAME,
                        format!("{role} of shape {shape:?}"),
                        format!("kernels take tensors of at most {MAX_AXES} axes"),
                    ));
                }
                Self::View(tensor)
            }
            Argument::Workspace(offset) => Self::Workspace(offset),
            Argument::Table(table) => Self::Table(table),
            Argument::TensorMap(spec) => {
                let tensor = match spec.source {
                    MapSource::Tensor(role) => Some(find(role)?),
                    MapSource::Workspace(_) => None,
                };
                Self::Map { tensor, spec }
            }
            Argument::I32(value) => Self::Bytes(value.to_ne_bytes().to_vec()),
            Argument::I64(value) => Self::Bytes(value.to_ne_bytes().to_vec()),
            Argument::F32(value) => Self::Bytes(value.to_ne_bytes().to_vec()),
            Argument::F64(value) => Self::Bytes(value.to_ne_bytes().to_vec()),
            Argument::Bytes { data, .. } => Self::Bytes(data),
        })
    }
}

/// The axis of a tensor at which its token axes begin, or the bias's window axes; past all axes where it has none.
fn first_token_axis(role: Role) -> usize {
    match role.gradient_of().or(role.tangent_of()).or(role.second_gradient_of()) {
        Some(of) => first_token_axis(of),
        None => match role {
            Role::Query | Role::Key | Role::Value | Role::Output | Role::Logsumexp | Role::Rpb => 1,
            Role::Attention => 2,
            _ => usize::MAX,
        },
    }
}

/// Encodes a tensor map. The driver checks what the hardware demands.
fn encode(spec: &TensorMapSpec, base: u64, strides: &[isize; MAX_AXES], place: &mut [u8]) -> Result<()> {
    use sys::CUtensorMapDataType as Type;
    let dtype = match spec.dtype {
        natten_core::DType::F64 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        natten_core::DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        natten_core::DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        natten_core::DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        other => return Err(defect(format!("a map of {other}"))),
    };
    let rank = spec.dims.len();
    if !(1..=5).contains(&rank) {
        return Err(defect(format!("a map of {rank} dimensions")));
    }
    let bytes = spec.dtype.size() as u64;
    let (mut extents, mut boxed, mut every, mut distances) = ([1u64; 5], [1u32; 5], [1u32; 5], [0u64; 5]);
    for (i, MapDim { extent, boxed: in_box, every: steps, stride }) in spec.dims.iter().enumerate() {
        (extents[i], boxed[i], every[i]) = (*extent, *in_box, *steps);
        distances[i] = match *stride {
            MapStride::Bytes(distance) => distance,
            MapStride::Axis { axis, times } => {
                // Axes of one element may have any stride; theirs is never used, and must still be a legal one.
                let stride = strides.get(axis).copied().unwrap_or_default().unsigned_abs() as u64;
                if *extent == 1 { 16 } else { stride.wrapping_mul(bytes).wrapping_mul(times) }
            }
        };
    }
    let swizzle = match spec.swizzle {
        Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    // SAFETY: `place` is 128 bytes aligned to 128, as a map is; the arrays hold as many numbers as the map has
    // dimensions (one stride less), and live through the call. The driver keeps the address and reads nothing there.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            place.as_mut_ptr().cast(),
            dtype,
            rank as u32,
            (base + spec.bytes_ahead) as *mut c_void,
            extents.as_ptr(),
            distances[1..].as_ptr(),
            boxed.as_ptr(),
            every.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(|e| error::driver(&format!("encoding a tensor map {spec:?} with strides {distances:?}"), e))
}

/// Lines as the bytes that they are.
trait AsFlattenedBytes {
    fn as_flattened_bytes(&mut self) -> &mut [u8];
}

impl AsFlattenedBytes for [Line] {
    fn as_flattened_bytes(&mut self) -> &mut [u8] {
        // SAFETY: a line is 128 bytes without padding, so a slice of lines is as many times 128 bytes, borrowed alike.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(self)) }
    }
}

/// Memory for launch arguments, zeroed.
pub(crate) fn lines(count: usize) -> Vec<Line> {
    vec![Line([0; 128]); count]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_axes_are_found_through_derivatives() {
        assert_eq!(first_token_axis(Role::Grad2GradOutput), 1);
        assert_eq!(first_token_axis(Role::TangentAttention), 2);
        assert_eq!(first_token_axis(Role::GradAdditionalKey), usize::MAX);
        assert_eq!(first_token_axis(Role::Grad2Capture(3)), usize::MAX);
    }
}
