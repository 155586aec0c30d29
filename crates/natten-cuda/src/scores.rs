//! A program's functions of a pair for the forward kernels on tensor cores: the mask and the score function, with the relative positional
//! bias before them. The row must be softmax, which the kernels have built in.

use natten_core::program::{Buffer, Index, Lowered, Node, Var};
use natten_core::{DType, Error, OpRequest, Problem, Result, Role};

use crate::NAME;
use crate::family::Argument;
use crate::render::{Leaves, Rendered, render};

/// Functions of scores and places that programs call, in the same words as on every architecture.
const PRELUDE: &str = include_str!("../kernels/generic_prelude.cu");

/// Faster forms of the functions that a score passes through most. The error of `exp` is 2^-22, relative.
const QUICK: &str = "
DEVICE float quick_exp(float x) {
    return exp2_fast(x * 1.4426950408889634f);
}
#define f_exp quick_exp
#define f_tanh quick_tanh
";

/// `tanh`: two instructions of the special-function units, and an absolute error of 2^-22.
const TANH: &str = "
DEVICE float quick_tanh(float x) {
    return 1.0f - 2.0f * reciprocal(1.0f + quick_exp(2.0f * x));
}
";

/// `tanh` for bf16 over many keys: one instruction, since these units are what limits a capped softmax, and a relative error
/// of 2^-11, a quarter of what a weight is rounded by. In a logsumexp, which is not rounded, it averages out.
const SHORT_TANH: &str = "
DEVICE float quick_tanh(float x) {
    return tanh_fast(x);
}
";

/// Keys of a query from which on the short `tanh` is taken.
const MANY_KEYS: u128 = 64;

/// What a kernel is told of a program.
#[derive(Debug)]
pub(crate) struct Functions {
    /// `namespace program`.
    pub(crate) text: String,
    /// Whether there is a function at all.
    pub(crate) is_there: bool,
    /// The further parameters of a kernel, and their names, each behind a comma or between commas.
    pub(crate) parameters: String,
    pub(crate) names: String,
    /// What is passed for them.
    pub(crate) arguments: Vec<Argument>,
}

impl Functions {
    /// The functions of a problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a program that is more than a score function and a mask before a softmax.
    pub(crate) fn of(problem: &Problem, request: &OpRequest) -> Result<Self> {
        let program = problem.program();
        if !program.has_softmax_row()
            || program.post().is_some()
            || program.decay().is_some()
            || program.mods() != [None; 3]
        {
            return Err(Error::unsupported(
                NAME,
                "this program on tensor cores",
                "the kernel computes softmax of scores under a score function and a mask",
            ));
        }
        if program.is_plain_softmax() && !problem.has_rpb() {
            return Ok(Self {
                text: "namespace program {\nstruct Captures {};\n}\n".to_owned(),
                is_there: false,
                parameters: String::new(),
                names: String::new(),
                arguments: Vec::new(),
            });
        }
        let mut tensors: Vec<(String, Role, DType)> = program
            .captures()
            .iter()
            .zip(0u8..)
            .map(|(capture, number)| (format!("capture_{number}"), Role::Capture(number), capture.dtype))
            .collect();
        let is_bound = |role: &Role| problem.inputs_of(request.op).contains(*role) || request.gives(*role);
        tensors.retain(|(_, role, _)| is_bound(role));
        if problem.has_rpb() {
            tensors.push(("bias".to_owned(), Role::Rpb, problem.dtype()));
        }
        let types: String = tensors
            .iter()
            .map(|(name, _, dtype)| format!("typedef View<const {}> type_of_{name};\n", element_type(*dtype)))
            .collect();
        let members: String =
            tensors.iter().map(|(name, ..)| format!("    type_of_{name} {name};\n")).collect();
        let parameters =
            tensors.iter().map(|(name, ..)| format!(", const program::type_of_{name} {name}")).collect();
        let names = tensors.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>().join(", ");
        let functions = functions(problem)?;
        let queries: u128 = problem.shape(Role::Logsumexp).iter().map(|&extent| extent as u128).product();
        let is_short = problem.dtype() == DType::Bf16 && problem.useful_pairs() >= MANY_KEYS * queries;
        let tanh = if is_short { SHORT_TANH } else { TANH };
        let text = format!(
            "#define REAL float\n#define RANK {}\nnamespace program {{\n{PRELUDE}{QUICK}{tanh}{types}\
             struct Captures {{\n{members}}};\n{functions}}}\n",
            problem.neighborhood().rank()
        );
        let arguments = tensors.iter().map(|&(_, role, _)| Argument::View(role)).collect();
        Ok(Self { text, is_there: true, parameters, names, arguments })
    }
}

/// `struct Functions`: what stays the same for a row, and the score of a pair, -inf where the mask hides it.
fn functions(problem: &Problem) -> Result<String> {
    let program = problem.program();
    let lowered = Lowered::new(program, false, &Default::default());
    let mut graph = lowered.graph.clone();
    let mask = lowered.mask.unwrap_or_else(|| graph.bool(true));
    let rendered =
        render(program, &graph, &[lowered.score.value, mask], &Names { problem }, "fixed.", &changes)?;
    let fields: String = rendered.exported.iter().map(|(ty, name)| format!(" {ty} {name};")).collect();
    let values = rendered.exported.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
    Ok(format!(
        "struct Functions {{\n    struct Fixed {{{fields} }};\n    \
         static DEVICE Fixed fix(const Captures& t, const Site& at) {{\n{}        return {{{values}}};\n    }}\n    \
         static DEVICE R score(const Captures& t, const Site& at, const Fixed& fixed, R s) {{\n{}{}        \
         return {} ? {} : -R_INF;\n    }}\n}};\n",
        Rendered::lines(&rendered.fixed, "        "),
        bias(problem),
        Rendered::lines(&rendered.each, "        "),
        rendered.results[1],
        rendered.results[0],
    ))
}

/// Adds the bias of a pair's offset. Where the pair is not visible the index is clamped, and the sum is masked later.
fn bias(problem: &Problem) -> String {
    if !problem.has_rpb() {
        return String::new();
    }
    let axes = problem.neighborhood().axes().iter().enumerate();
    let offsets: String = axes
        .filter_map(|(a, axis)| Some((a, axis.params()?)))
        .map(|(a, p)| {
            let (middle, extent) = (p.kernel_size - 1, 2 * p.kernel_size - 1);
            format!(
                " + clamped({middle} + (at.kc[{a}] - at.qc[{a}]) / {}, {extent})*t.bias.stride[{}]",
                p.dilation,
                a + 1
            )
        })
        .collect();
    format!("        s += number(t.bias.data[at.h*t.bias.stride[0]{offsets}]);\n")
}

/// What differs between the pairs of a row.
fn changes(node: &Node) -> bool {
    match node {
        Node::Var(_) | Node::Random(..) => true,
        Node::Index(index) => matches!(index, Index::Key | Index::KeyAxis(_)),
        _ => false,
    }
}

/// The kernel's names for what functions are made of.
struct Names<'p> {
    problem: &'p Problem,
}

impl Leaves for Names<'_> {
    fn var(&self, var: Var) -> Option<String> {
        (var == Var::Score).then(|| "s".to_owned())
    }

    fn index(&self, index: Index) -> Option<String> {
        // The user's axes are the last of the three.
        let padding = 3 - self.problem.neighborhood().rank();
        Some(match index {
            Index::Batch => "at.b".to_owned(),
            Index::Head => "at.h".to_owned(),
            Index::HeadKv => "at.hkv".to_owned(),
            Index::Query => "at.q".to_owned(),
            Index::Key => "at.k".to_owned(),
            Index::QueryAxis(a) => format!("at.qc[{}]", padding + usize::from(a)),
            Index::KeyAxis(a) => format!("at.kc[{}]", padding + usize::from(a)),
            _ => return None,
        })
    }

    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
        if buffer.tangent {
            return None;
        }
        let capture = &self.problem.program().captures()[usize::from(buffer.capture)];
        let tensor = format!("t.capture_{}", buffer.capture);
        let offsets: String = index
            .iter()
            .zip(&capture.shape)
            .enumerate()
            .map(|(axis, (index, extent))| format!(" + clamped({index}, {extent})*{tensor}.stride[{axis}]"))
            .collect();
        let element = format!("{tensor}.data[0{offsets}]");
        Some(if capture.dtype.is_float() { format!("number({element})") } else { element })
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        Some(format!("random_of(at, {low}, {high})"))
    }
}

const fn element_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::F16 => "Half",
        DType::Bf16 => "Brain",
        DType::I32 => "int",
        _ => "float",
    }
}
