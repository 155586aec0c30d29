//! The source of the Hopper kernel: the problem's constants and the two wgmma instructions of its shapes, in front of the
//! text that all problems share.

use natten_core::geometry::MAX_RANK;
use natten_core::{DType, Problem};

use super::shape::{self, Shape};
use crate::forward;
use crate::scores::Functions;

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
    let is_uneven = problem.neighborhood().axes().iter().any(|axis| axis.alignment().is_some());
    let rows = problem.batch() * problem.heads();
    let mut text = forward::constants(problem, functions, shape.query_tile(), shape.keys, writes_logsumexp);
    let mut define = |name: &str, value: String| text += &format!("#define {name} {value}\n");
    define("PLANES", shape.planes.to_string());
    define("PROMOTE", i32::from(shape::promotes(problem, shape.planes)).to_string());
    for a in 0..MAX_RANK {
        define(&format!("SUB{a}"), shape.sub[a].to_string());
        define(&format!("GROUPS{a}"), shape.groups[a].to_string());
    }
    define("BOX_KEYS", shape.box_keys().to_string());
    define("RING", shape.ring.to_string());
    define("QUERY_RING", shape.query_ring.to_string());
    define("ADDITIONAL", problem.additional_tokens().to_string());
    define("CHUNK", super::chunk(problem).to_string());
    define("FOLD_HEADS", i32::from(super::folds_heads(problem, shape.planes)).to_string());
    define("SECTION", if is_uneven { SECTION.min(rows) } else { 1 }.to_string());
    define("REVERSE", i32::from(is_uneven).to_string());
    define("PING_PONG", i32::from(shape.warpgroups() > 1).to_string());
    define("BLOCKS", shape.blocks.to_string());
    let (producer, consumer) = shape.registers();
    define("PRODUCER_REGISTERS", producer.to_string());
    define("CONSUMER_REGISTERS", consumer.to_string());
    let element = if problem.dtype() == DType::F16 { "f16" } else { "bf16" };
    text += &wgmma_scores(shape.box_keys(), element);
    text += &wgmma_values(problem.head_dim_v(), element);
    text + KERNEL
}

/// Scores of 64 queries and `keys` keys, both in shared memory.
pub(crate) fn wgmma_scores(keys: usize, element: &str) -> String {
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
