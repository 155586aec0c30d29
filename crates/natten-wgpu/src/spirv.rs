//! Shaders with cooperative matrices as SPIR-V that keeps to the memory model of Vulkan.
//!
//! Such modules have to declare that model. In it a load or a store is the invocation's own affair unless it says
//! `NonPrivatePointer`, and a barrier makes nothing known to others unless it says `MakeAvailable` and `MakeVisible`.
//! naga declares the model and says none of it (gfx-rs/wgpu#8805), so that drivers might keep workgroup memory in
//! registers. So these texts go through naga here, as wgpu would have it, and get what is missing.

use std::collections::{HashMap, HashSet};

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use natten_core::{Error, Result};
use spirv::{MemoryAccess, MemorySemantics, Op, StorageClass};

use crate::NAME;

/// What a text begins with that needs this.
pub(crate) const MATRICES: &str = "enable wgpu_cooperative_matrix;\n";

/// A shader's entry point `main` for Vulkan.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) words: Vec<u32>,
    /// The storage buffers of group 0: the number of each binding, and whether it is only read.
    pub(crate) bindings: Vec<(u32, bool)>,
}

/// The module of a text, with the checks that wgpu adds to shaders or without.
///
/// # Errors
/// [`Error::Compile`] with the text and naga's words.
pub(crate) fn compile(source: &str, is_checked: bool) -> Result<Compiled> {
    let refused = |log: String| Error::Compile { backend: NAME.into(), log, source_text: source.to_owned() };
    let module =
        naga::front::wgsl::parse_str(source).map_err(|error| refused(error.emit_to_string(source)))?;
    let capabilities = naga::valid::Capabilities::SHADER_FLOAT16
        | naga::valid::Capabilities::SUBGROUP
        | naga::valid::Capabilities::COOPERATIVE_MATRIX;
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .validate(&module)
        .map_err(|error| refused(error.emit_to_string(source)))?;
    let place = module.entry_points.iter().position(|entry| entry.name == "main");
    let entry = place.map(|index| info.get_entry_point(index)).ok_or_else(|| refused("no main".into()))?;
    let mut bindings: Vec<(u32, bool)> = Vec::new();
    for (handle, variable) in module.global_variables.iter().filter(|(handle, _)| !entry[*handle].is_empty())
    {
        match (&variable.binding, variable.space) {
            (None, _) => {}
            (Some(binding), naga::AddressSpace::Storage { access }) if binding.group == 0 => {
                bindings.push((binding.binding, !access.contains(naga::StorageAccess::STORE)));
            }
            _ => return Err(refused(format!("{handle:?} is no storage buffer of group 0"))),
        }
    }
    bindings.sort_unstable();
    // wgpu gives descriptors numbers in the order of bindings.
    let binding_map = bindings.iter().zip(0..).map(|(&(binding, _), number)| {
        let info = spv::BindingInfo { descriptor_set: 0, binding: number, binding_array_size: None };
        (naga::ResourceBinding { group: 0, binding }, info)
    });
    let policy = if is_checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let options = spv::Options {
        // What Vulkan 1.3 takes, which is older than cooperative matrices are; from 1.6 on subgroups are full.
        lang_version: (1, 6),
        flags: spv::WriterFlags::empty(),
        binding_map: binding_map.collect(),
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: policy,
        },
        // Every cell of workgroup memory is written before it is read.
        zero_initialize_workgroup_memory: match is_checked {
            true => spv::ZeroInitializeWorkgroupMemoryMode::Polyfill,
            false => spv::ZeroInitializeWorkgroupMemoryMode::None,
        },
        force_loop_bounding: is_checked,
        emit_int_div_checks: is_checked,
        // Entry points take and hand out no f16, and not every device could.
        use_storage_input_output_16: false,
        ..Default::default()
    };
    let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
    let words =
        spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|error| refused(error.to_string()))?;
    Ok(Compiled { words: share_memory(&words).map_err(refused)?, bindings })
}

/// Words before the first instruction; the fourth is above every identifier.
const HEADER: usize = 5;
const BOUND: usize = 3;

/// The instructions of a module: of each its operation and its words.
///
/// # Errors
/// In words, where there is something else.
fn instructions(words: &[u32]) -> std::result::Result<Vec<(Op, &[u32])>, String> {
    let header = words.split_at_checked(HEADER).filter(|(header, _)| header[0] == spirv::MAGIC_NUMBER);
    let (_, mut rest) = header.ok_or("this is no SPIR-V")?;
    let mut all = Vec::new();
    while let Some(&first) = rest.first() {
        let op = Op::from_u32(first & 0xffff).ok_or_else(|| format!("no operation has number {first:#x}"))?;
        let count = (first >> 16) as usize;
        let (words, behind) =
            rest.split_at_checked(count).filter(|_| count > 0).ok_or_else(|| format!("{op:?} is cut off"))?;
        all.push((op, words));
        rest = behind;
    }
    Ok(all)
}

/// Of an operation that reads or writes memory: where the pointer is among its words, and where the memory operands
/// begin, which may be missing.
const fn memory_operands(op: Op) -> Option<(usize, usize)> {
    match op {
        Op::Load => Some((3, 4)),
        Op::Store => Some((1, 3)),
        Op::CooperativeMatrixLoadKHR => Some((3, 6)),
        Op::CooperativeMatrixStoreKHR => Some((1, 5)),
        _ => None,
    }
}

/// The pointers to memory that invocations share.
fn shared_pointers(instructions: &[(Op, &[u32])]) -> HashSet<u32> {
    let shared = [StorageClass::Workgroup as u32, StorageClass::StorageBuffer as u32];
    let mut types = HashSet::new();
    let mut pointers = HashSet::new();
    for (op, words) in instructions {
        match op {
            Op::TypePointer if shared.contains(&words[2]) => {
                types.insert(words[1]);
            }
            // Whatever has a pointer for its result.
            Op::Variable
            | Op::FunctionParameter
            | Op::FunctionCall
            | Op::AccessChain
            | Op::InBoundsAccessChain
            | Op::CopyObject
            | Op::Select
            | Op::Phi
                if types.contains(&words[1]) =>
            {
                pointers.insert(words[2]);
            }
            _ => {}
        }
    }
    pointers
}

/// Where the semantics of a barrier are among its words.
const fn semantics(op: Op) -> Option<usize> {
    match op {
        Op::ControlBarrier => Some(3),
        Op::MemoryBarrier => Some(2),
        _ => None,
    }
}

/// The module with every access to shared memory marked as such, and barriers that make what was written known.
/// Modules of another memory model are what they were.
///
/// Atomics need nothing: they are never private, and naga's are relaxed. The scope of those on buffers is the device,
/// which is a capability of its own in this model; wgpu turns it on wherever it offers cooperative matrices.
fn share_memory(words: &[u32]) -> std::result::Result<Vec<u32>, String> {
    let instructions = instructions(words)?;
    let vulkan = spirv::MemoryModel::Vulkan as u32;
    if !instructions.iter().any(|(op, words)| *op == Op::MemoryModel && words[2] == vulkan) {
        return Ok(words.to_vec());
    }
    let pointers = shared_pointers(&instructions);
    let barriers: HashSet<u32> =
        instructions.iter().filter_map(|(op, words)| semantics(*op).map(|at| words[at])).collect();
    let mut out = words[..HEADER].to_vec();
    // By the constant that a barrier names, the one in its place: others may name it too.
    let mut replaced = HashMap::new();
    let capability = spirv::Capability::VulkanMemoryModel as u32;
    for (op, words) in instructions {
        let begin = out.len();
        out.extend_from_slice(words);
        match op {
            Op::Capability if words[1] == capability => {
                out.extend([words[0], spirv::Capability::VulkanMemoryModelDeviceScope as u32]);
            }
            Op::Constant if barriers.contains(&words[2]) => {
                let known = MemorySemantics::MAKE_AVAILABLE | MemorySemantics::MAKE_VISIBLE;
                let new = out[BOUND];
                out[BOUND] += 1;
                out.extend([words[0], words[1], new, words[3] | known.bits()]);
                replaced.insert(words[2], new);
            }
            Op::ControlBarrier | Op::MemoryBarrier => {
                let at = semantics(op).unwrap_or_default();
                let new = replaced.get(&words[at]).ok_or("the semantics of a barrier are no constant")?;
                out[begin + at] = *new;
            }
            // They would have operands for both of their pointers; naga has no use for them.
            Op::CopyMemory | Op::CopyMemorySized => return Err(format!("{op:?} is not known here")),
            _ => {}
        }
        let Some((pointer, mask)) = memory_operands(op) else { continue };
        if pointers.contains(&words[pointer]) {
            let shared = MemoryAccess::NON_PRIVATE_POINTER.bits();
            match (words.len(), out.get_mut(begin + mask)) {
                (_, Some(operands)) => *operands |= shared,
                (len, None) if len == mask => {
                    out.push(shared);
                    out[begin] += 1 << 16;
                }
                _ => return Err(format!("{op:?} has no stride")),
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// That nothing in a module of Vulkan's memory model is the invocation's own affair that others see, and that every
    /// identifier is one instruction's alone. Returns how many accesses to shared memory there are.
    pub(crate) fn check(words: &[u32]) -> usize {
        let instructions = instructions(words).unwrap();
        let constants = instructions.iter().filter(|(op, _)| *op == Op::Constant);
        let values: HashMap<u32, u32> =
            constants.clone().map(|(_, constant)| (constant[2], constant[3])).collect();
        assert_eq!(values.len(), constants.count(), "two constants are one identifier");
        assert!(values.keys().all(|&id| id < words[BOUND]));
        let pointers = shared_pointers(&instructions);
        let mut accesses = 0;
        for (op, words) in instructions {
            if let Some((_, mask)) = memory_operands(op).filter(|&(at, _)| pointers.contains(&words[at])) {
                assert!(words.get(mask).is_some_and(|mask| mask & 0x20 != 0), "{op:?} {words:?}");
                accesses += 1;
            }
            if let Some(at) = semantics(op) {
                let value = values[&words[at]];
                // MakeAvailable and MakeVisible; AcquireRelease; buffers or workgroup memory.
                assert!(value & 0x6008 == 0x6008 && value & 0x140 != 0, "{op:?} {value:#x}");
            }
        }
        accesses
    }

    const PRODUCT: &str = "enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(2) var<storage, read_write> sums: array<u32>;
@group(0) @binding(0) var<storage, read> factors: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> unused: array<f32>;
var<workgroup> tile: array<vec4<f16>, 64>;
var<workgroup> count: atomic<u32>;
@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) lane: u32) {
    tile[lane] = factors[lane];
    atomicAdd(&count, 1u);
    workgroupBarrier();
    let a = coopLoadT<coop_mat16x16<f16, A>>(&tile[0], 4u);
    let b = coopLoad<coop_mat16x16<f16, B>>(&tile[0], 4u);
    var c = coopMultiplyAdd(a, b, coop_mat16x16<f32, C>());
    storageBarrier();
    sums[lane] = 264u;
}
";

    #[test]
    fn shared_memory_is_marked_as_such() {
        for is_checked in [false, true] {
            let compiled = compile(PRODUCT, is_checked).unwrap();
            // In the order of their numbers, and those alone that are used.
            assert_eq!(compiled.bindings, [(0, true), (2, false)]);
            // A load and two stores, and two loads of matrices; zeros before them where there are checks.
            assert!(check(&compiled.words) >= 5);
        }
    }

    /// The semantics of `workgroupBarrier` are 264, AcquireRelease for workgroup memory: that constant is one of the text's.
    #[test]
    fn constants_of_the_text_stay_as_they_are() {
        let compiled = compile(PRODUCT, false).unwrap();
        let instructions = instructions(&compiled.words).unwrap();
        let of = |id| instructions.iter().find(|(op, words)| *op == Op::Constant && words[2] == id);
        let values: Vec<u32> = instructions
            .iter()
            .filter(|(op, _)| *op == Op::Store)
            .filter_map(|(_, words)| of(words[2]).map(|(_, constant)| constant[3]))
            .collect();
        assert_eq!(values, [264]);
    }

    #[test]
    fn other_memory_operands_are_kept() {
        let instruction = |op: Op, operands: &[u32]| {
            let mut words = vec![(operands.len() as u32 + 1) << 16 | op as u32];
            words.extend(operands);
            words
        };
        let module = |model: spirv::MemoryModel, masks: [u32; 2]| {
            let mut words = vec![spirv::MAGIC_NUMBER, 0x0001_0600, 0, 100, 0];
            words.extend(instruction(Op::MemoryModel, &[0, model as u32]));
            words.extend(instruction(Op::TypePointer, &[1, StorageClass::Workgroup as u32, 9]));
            words.extend(instruction(Op::TypePointer, &[2, StorageClass::Function as u32, 9]));
            words.extend(instruction(Op::Variable, &[1, 3, StorageClass::Workgroup as u32]));
            words.extend(instruction(Op::Variable, &[2, 4, StorageClass::Function as u32]));
            words.extend(instruction(Op::Load, &[9, 5, 3, masks[0], 16]));
            words.extend(instruction(Op::Store, &[4, 5, masks[1], 16]));
            words
        };
        let aligned = MemoryAccess::ALIGNED.bits();
        let vulkan = share_memory(&module(spirv::MemoryModel::Vulkan, [aligned; 2])).unwrap();
        assert_eq!(vulkan, module(spirv::MemoryModel::Vulkan, [aligned | 0x20, aligned]));
        let other = module(spirv::MemoryModel::GLSL450, [aligned; 2]);
        assert_eq!(share_memory(&other).unwrap(), other);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(share_memory(&[]).is_err());
        assert!(share_memory(&[spirv::MAGIC_NUMBER, 0, 0, 0, 0, 0]).is_err());
        assert!(share_memory(&[spirv::MAGIC_NUMBER, 0, 0, 0, 0, 4 << 16 | Op::Load as u32]).is_err());
        let text = "@compute @workgroup_size(1) fn other() {}";
        assert!(
            matches!(compile(text, false), Err(Error::Compile { source_text, .. }) if source_text == text)
        );
        assert!(matches!(compile("fn main() {", false), Err(Error::Compile { .. })));
    }
}
