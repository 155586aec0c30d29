//! The source of the Hopper kernel: the problem's constants and the two wgmma instructions of its shapes, in front of the
//! text that all problems share.

use natten_core::geometry::{Alignment, Axis};
use natten_core::{DType, Problem};

use super::program::Functions;
use super::shape::Shape;

/// The kernel, its parts in order.
const KERNEL: &str = concat!(
    include_str!("../../kernels/forward_common.cu"),
    include_str!("../../kernels/forward_sm90_boxes.cu"),
    include_str!("../../kernels/forward_sm90_instructions.cu"),
    include_str!("../../kernels/forward_sm90.cu"),
);

/// Heads that are walked together where queries differ in work: so few that their keys stay in the cache, so many that
/// all blocks begin with the heaviest boxes.
const SECTION: usize = 32;

/// The whole text.
pub(super) fn source(
    problem: &Problem,
    shape: &Shape,
    functions: &Functions,
    writes_logsumexp: bool,
) -> String {
    let mut text = String::from(
        "typedef unsigned short u16;\ntypedef unsigned int u32;\ntypedef unsigned long long u64;\ntypedef long long i64;\n",
    );
    let mut define = |name: &str, value: String| text += &format!("#define {name} {value}\n");
    let is_uneven = problem.neighborhood().axes().iter().any(|axis| axis.alignment().is_some());
    let rows = problem.batch() * problem.heads();
    define("ELEMENT_BF16", i32::from(problem.dtype() == DType::Bf16).to_string());
    define("BATCH", problem.batch().to_string());
    define("HEADS", problem.heads().to_string());
    define("HEADS_KV", problem.heads_kv().to_string());
    define("HEAD_DIM", problem.head_dim().to_string());
    define("HEAD_DIM_V", problem.head_dim_v().to_string());
    for (a, axis) in problem.neighborhood().axes().iter().enumerate() {
        define(&format!("AXIS{a}"), axis_text(axis));
        define(&format!("SUB{a}"), shape.sub[a].to_string());
        define(&format!("GROUPS{a}"), shape.groups[a].to_string());
        define(&format!("TILE{a}"), shape.query_tile()[a].to_string());
        define(&format!("KEYS{a}"), shape.keys[a].to_string());
    }
    define("BOX_KEYS", shape.box_keys().to_string());
    define("RING", shape.ring.to_string());
    define("QUERY_RING", shape.query_ring.to_string());
    define("ADDITIONAL", problem.additional_tokens().to_string());
    define("CHUNK", super::chunk(problem).to_string());
    define("FOLD_HEADS", i32::from(super::folds_heads(problem)).to_string());
    define("SECTION", if is_uneven { SECTION.min(rows) } else { 1 }.to_string());
    define("REVERSE", i32::from(is_uneven).to_string());
    // Through f32 and exactly: the shortest decimal that is this number.
    define("SCALE", format!("({:e}f)", problem.scale() as f32));
    define("PING_PONG", i32::from(shape.warpgroups() > 1).to_string());
    define("WRITE_LOGSUMEXP", i32::from(writes_logsumexp).to_string());
    define("BLOCKS", shape.blocks.to_string());
    define("PROGRAM", i32::from(functions.is_there).to_string());
    define("EXTRA_PARAMETERS", functions.parameters.clone());
    define("EXTRA_ARGUMENTS", functions.names.clone());
    let (producer, consumer) = shape.registers();
    define("PRODUCER_REGISTERS", producer.to_string());
    define("CONSUMER_REGISTERS", consumer.to_string());
    let element = if problem.dtype() == DType::Bf16 { "bf16" } else { "f16" };
    text += &functions.text;
    text += &wgmma_scores(shape.box_keys(), element);
    text += &wgmma_values(problem.head_dim_v(), element);
    text + KERNEL
}

/// The arguments of the kernel's `Axis`: queries, keys, kind, window, stride, dilation.
fn axis_text(axis: &Axis) -> String {
    let (queries, keys) = (axis.query_len(), axis.key_len());
    match (axis.params(), axis.alignment()) {
        (Some(p), _) => {
            let kind = if p.is_causal { "CAUSAL_WINDOW" } else { "WINDOW" };
            format!("{queries}, {keys}, {kind}, {}, {}, {}", p.kernel_size, p.stride, p.dilation)
        }
        (None, Some(Alignment::TopLeft)) => format!("{queries}, {keys}, CAUSAL_TOP_LEFT, 1, 1, 1"),
        // The family takes no other alignment.
        (None, Some(_)) => format!("{queries}, {keys}, CAUSAL_BOTTOM_RIGHT, 1, 1, 1"),
        (None, None) => format!("{queries}, {keys}, EVERYTHING, 1, 1, 1"),
    }
}

/// Scores of 64 queries and `keys` keys, both in shared memory.
fn wgmma_scores(keys: usize, element: &str) -> String {
    let n = keys / 2;
    format!(
        "__device__ __forceinline__ void wgmma_scores(float (&d)[{n}], u64 a, u64 b, bool accumulate) {{\n    \
         asm volatile(\"{{.reg .pred p; setp.ne.b32 p, %{}, 0; {}{{{}}}, %{n}, %{}, p, 1, 1, 0, 0;}}\"\n        \
         : {} : \"l\"(a), \"l\"(b), \"r\"((int)accumulate));\n}}\n",
        n + 2,
        instruction(keys, element),
        operands(0, n),
        n + 1,
        accumulators(n),
    )
}

/// Adds 64 queries' weights of 16 keys, in registers, times `columns` columns of their values in shared memory.
fn wgmma_values(columns: usize, element: &str) -> String {
    let n = columns / 2;
    format!(
        "__device__ __forceinline__ void wgmma_values(float (&d)[{n}], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {{\n    \
         asm volatile(\"{}{{{}}}, {{{}}}, %{}, 1, 1, 1, 1;\"\n        \
         : {} : \"r\"(a0), \"r\"(a1), \"r\"(a2), \"r\"(a3), \"l\"(b));\n}}\n",
        instruction(columns, element),
        operands(0, n),
        operands(n, n + 4),
        n + 4,
        accumulators(n),
    )
}

fn instruction(n: usize, element: &str) -> String {
    format!("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{element}.{element} ")
}

fn operands(from: usize, to: usize) -> String {
    (from..to).map(|i| format!("%{i}")).collect::<Vec<_>>().join(",")
}

fn accumulators(n: usize) -> String {
    (0..n).map(|i| format!("\"+f\"(d[{i}])")).collect::<Vec<_>>().join(",")
}
