//! What the families of forward kernels on tensor cores share: what they decline, and the constants in front of
//! `kernels/forward_common.cu`.

use natten_core::geometry::{Alignment, Axis, MAX_RANK};
use natten_core::{DType, Error, Op, OpRequest, Problem, Result, Role};

use crate::NAME;
use crate::scores::Functions;

/// The integers' names.
pub(crate) const TYPES: &str = "typedef unsigned short u16;\ntypedef unsigned int u32;\ntypedef unsigned long long u64;\ntypedef long long i64;\n";

/// The instructions that functions of scores use too.
pub(crate) const INSTRUCTIONS: &str = include_str!("../kernels/forward_instructions.cu");

/// Bytes of an output that nobody wants: a view without memory.
pub(crate) const ABSENT_VIEW: usize = 72;

/// The longest vectors.
const MAX_DIM: usize = 256;

/// Declines what these kernels do not compute.
///
/// # Errors
/// [`Error::Unsupported`] with what it is and why.
pub(crate) fn check(problem: &Problem, request: &OpRequest) -> Result<()> {
    let decline = |what: String, why: &str| Err(Error::unsupported(NAME, what, why));
    if request.op != Op::Forward || !request.wants.contains(Role::Output) {
        let what = request.op.name().to_owned();
        return decline(what, "the tensor-core kernel computes the output of a forward pass");
    }
    for (name, dim) in [("head_dim", problem.head_dim()), ("head_dim_v", problem.head_dim_v())] {
        if !dim.is_multiple_of(8) || dim > MAX_DIM {
            let why = "rows are multiples of 16 bytes, and at most 256 numbers long";
            return decline(format!("{name} {dim}"), why);
        }
    }
    let axes = problem.neighborhood().axes();
    let is_known = |alignment| matches!(alignment, None | Some(Alignment::TopLeft | Alignment::BottomRight));
    if !axes.iter().all(|axis| is_known(axis.alignment())) {
        return decline("this alignment".to_owned(), "the kernel knows top-left and bottom-right");
    }
    // Beyond the last token a box and its reach are counted too.
    let most = (i32::MAX / 4) as usize;
    let tokens = axes.iter().map(|axis| axis.query_len().max(axis.key_len()));
    let rows = problem.batch().checked_mul(problem.heads());
    let queries = tokens.fold(rows, |n, len| n?.checked_mul(len));
    if problem.batch() == 0 || queries.is_none_or(|n| n > most) || problem.additional_tokens() > most {
        return decline("as many queries".to_owned(), "the kernel counts its boxes in 32 bits");
    }
    Ok(())
}

/// The problem's constants, the boxes of a block's queries and of keys, and the program's functions.
pub(crate) fn constants(
    problem: &Problem,
    functions: &Functions,
    tile: [usize; MAX_RANK],
    keys: [usize; MAX_RANK],
    writes_logsumexp: bool,
) -> String {
    let mut text = TYPES.to_owned();
    let mut define = |name: &str, value: String| text += &format!("#define {name} {value}\n");
    // f32 is computed in as planes of bf16.
    define("ELEMENT_BF16", i32::from(problem.dtype() != DType::F16).to_string());
    define("BATCH", problem.batch().to_string());
    define("HEADS", problem.heads().to_string());
    define("HEADS_KV", problem.heads_kv().to_string());
    define("HEAD_DIM", problem.head_dim().to_string());
    define("HEAD_DIM_V", problem.head_dim_v().to_string());
    for (a, axis) in problem.neighborhood().axes().iter().enumerate() {
        define(&format!("AXIS{a}"), axis_text(axis));
        define(&format!("TILE{a}"), tile[a].to_string());
        define(&format!("KEYS{a}"), keys[a].to_string());
    }
    // Through f32 and exactly: the shortest decimal that is this number.
    define("SCALE", format!("({:e}f)", problem.scale() as f32));
    define("WRITE_LOGSUMEXP", i32::from(writes_logsumexp).to_string());
    define("PROGRAM", i32::from(functions.is_there).to_string());
    define("EXTRA_PARAMETERS", functions.parameters.clone());
    define("EXTRA_ARGUMENTS", functions.names.clone());
    text + INSTRUCTIONS + &functions.text
}

/// The arguments of the kernels' `Axis`: queries, keys, kind, window, stride, dilation.
fn axis_text(axis: &Axis) -> String {
    let (queries, keys) = (axis.query_len(), axis.key_len());
    match (axis.params(), axis.alignment()) {
        (Some(p), _) => {
            let kind = if p.is_causal { "CAUSAL_WINDOW" } else { "WINDOW" };
            format!("{queries}, {keys}, {kind}, {}, {}, {}", p.kernel_size, p.stride, p.dilation)
        }
        (None, Some(Alignment::TopLeft)) => format!("{queries}, {keys}, CAUSAL_TOP_LEFT, 1, 1, 1"),
        // The families take no other alignment.
        (None, Some(_)) => format!("{queries}, {keys}, CAUSAL_BOTTOM_RIGHT, 1, 1, 1"),
        (None, None) => format!("{queries}, {keys}, EVERYTHING, 1, 1, 1"),
    }
}
