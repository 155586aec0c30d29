//! The Python that a launcher is checked with: the operation in float64 with numpy, pair by pair, from the same program
//! and the same windows, and a comparison on random numbers.

use std::fmt::Write;

use natten_core::program::{Binary, Compare, Expr, Given, Graph, Index, Lowered, Node, Type, Unary, Var};
use natten_core::{DType, OpRequest, Problem, Role};

use super::launcher::steps;
use super::tuple;

/// What does not depend on the problem.
const TEXT: &str = include_str!("reference.py");

/// Random numbers by counter, as expressions have them.
const PHILOX: &str = "\
def _random(seed0, seed1, row, query, key):
    \"\"\"Philox4x32-10: the number in [0, 1) of a pair.\"\"\"
    words = lambda x: np.asarray(x).astype(np.int64).astype(np.uint64) & 0xFFFFFFFF
    c = [words(key) >> 2, words(query), words(row), words(0)]
    k0, k1 = words(seed0), words(seed1)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [p1 >> 32 ^ c[1] ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    lane = words(key) & 3
    word = np.select([lane == n for n in range(4)], np.broadcast_arrays(*c, lane)[:4])
    return (word >> 8).astype(np.float64) * 2.0**-24


";

/// `def attention(tensors)` and `def check(run=…, seed=0)`.
pub(super) fn reference(problem: &Problem, request: &OpRequest) -> String {
    let specs = problem.tensors(request).unwrap_or_default();
    let name = |role| problem.name(role).into_owned();
    let mut text = constants(problem, request);
    let pairs = |pairs: Vec<(Role, Role)>| {
        let shown = pairs.into_iter().map(|(a, b)| format!("{:?}: {:?}", name(a), name(b)));
        format!("{{{}}}", shown.collect::<Vec<_>>().join(", "))
    };
    let given = specs.iter().filter(|spec| !spec.is_output).map(|spec| spec.role);
    let (kept, drawn): (Vec<Role>, Vec<Role>) =
        given.partition(|role| matches!(role, Role::Output | Role::Logsumexp));
    let names = |roles: &[Role]| format!("{:?}", roles.iter().map(|&role| name(role)).collect::<Vec<_>>());
    let of = |outputs: bool, relation: fn(Role) -> Option<Role>| {
        let roles = specs.iter().filter(|spec| spec.is_output == outputs);
        pairs(roles.filter_map(|spec| Some((spec.role, relation(spec.role)?))).collect())
    };
    let _ = writeln!(text, "# Inputs that are drawn, and those that are results of `attention`.");
    let _ = writeln!(text, "INPUTS, KEPT = {}, {}", names(&drawn), names(&kept));
    let _ = writeln!(text, "# What each is of: tangents given and computed, cotangents, gradients.");
    let _ =
        writeln!(text, "GIVEN, TANGENTS = {}, {}", of(false, Role::tangent_of), of(true, Role::tangent_of));
    let _ = writeln!(text, "COTANGENTS = {}", of(false, Role::gradient_of));
    let _ = writeln!(text, "GRADIENTS = {}", of(true, Role::gradient_of));
    let mut parts = vec![("key", "value", "_windows", "grid", false)];
    if problem.additional_tokens() > 0 {
        parts.push(("additional_key", "additional_value", "lambda: True", "additional", true));
    }
    for &(.., part, additional) in &parts {
        let lowered = Lowered::new(problem.program(), additional, &Given::default());
        let _ = write!(text, "\n\n{}", functions(problem, &lowered, part));
    }
    let shown = parts.iter().map(|(keys, values, sees, part, _)| {
        format!("    ({keys:?}, {values:?}, {sees}, _{part}_elements, _{part}_weights),\n")
    });
    text += "\n\n";
    if problem.program().graph().iter().any(|(_, node)| matches!(node, Node::Random(..))) {
        text += PHILOX;
    }
    text += TEXT;
    let _ = write!(text, "PARTS = [\n{}]\n", shown.collect::<String>());
    text
}

/// Shapes, dtypes, windows.
fn constants(problem: &Problem, request: &OpRequest) -> String {
    let mut text = String::new();
    let specs = problem.tensors(request).unwrap_or_default();
    let mut roles: Vec<Role> = specs.iter().map(|spec| spec.role).collect();
    roles.extend([Role::Output, Role::Logsumexp]);
    roles.sort_unstable();
    roles.dedup();
    let entries = |of: &dyn Fn(Role) -> String| {
        let shown = roles.iter().map(|&role| format!("{:?}: {}", problem.name(role), of(role)));
        format!("{{{}}}", shown.collect::<Vec<_>>().join(", "))
    };
    let dtype = |role| match problem.dtype_of(role) {
        DType::Bf16 => "\"bfloat16\"".to_owned(),
        DType::F16 => "\"float16\"".to_owned(),
        _ => "\"float32\"".to_owned(),
    };
    let _ = writeln!(text, "SHAPES = {}", entries(&|role| tuple(&problem.shape(role))));
    let _ = writeln!(text, "DTYPES = {}", entries(&dtype));
    let _ = writeln!(
        text,
        "HEADS, HEADS_KV, SCALE = {}, {}, {:?}",
        problem.heads(),
        problem.heads_kv(),
        problem.scale()
    );
    let _ = writeln!(text, "# Of each axis: dilation, first and last position of each query's window, keys.");
    let _ = writeln!(text, "AXES = [");
    for axis in problem.neighborhood().user_axes() {
        let window = |query: usize| {
            let (group, position) = axis.locate(query);
            axis.window(group, position)
        };
        let runs = |of: &dyn Fn(usize) -> usize| {
            steps(&(0..axis.query_len()).map(|query| of(query) as u32).collect::<Vec<_>>())
        };
        let (first, last) = (runs(&|query| window(query).start), runs(&|query| window(query).end));
        let _ = writeln!(text, "    ({}, {first}, {last}, {}),", axis.dilation(), axis.key_len());
    }
    let _ = writeln!(text, "]");
    let lowered = Lowered::new(problem.program(), false, &Given::default());
    let stages: Vec<&str> = lowered.stages.iter().map(|stage| stage.reduce.name()).collect();
    let logsumexp = lowered.logsumexp.map_or_else(|| "None".to_owned(), |stage| stage.to_string());
    let _ = writeln!(text, "# The reductions of a row, and which of them is the logsumexp.");
    let _ = writeln!(text, "STAGES, LOGSUMEXP = {stages:?}, {logsumexp}");
    text
}

/// The functions of a pair: which count and the elements of the row's stages, and the weight.
fn functions(problem: &Problem, lowered: &Lowered, part: &str) -> String {
    let mut text = String::new();
    let elements: Vec<Expr> = lowered.stages.iter().map(|stage| stage.element.value).collect();
    let roots: Vec<Expr> = lowered.mask.into_iter().chain(elements.iter().copied()).collect();
    let _ = writeln!(text, "def _{part}_elements(t, s, at):");
    expressions(problem, &lowered.graph, &roots, &mut text);
    let mask = lowered.mask.map_or_else(|| "True".to_owned(), variable);
    let elements: String = elements.into_iter().map(|expr| variable(expr) + ", ").collect();
    let _ = writeln!(text, "    return {mask}, ({elements})");
    let _ = writeln!(text, "\n\ndef _{part}_weights(t, s, at, rows):");
    expressions(problem, &lowered.graph, &[lowered.weight.value], &mut text);
    let _ = writeln!(text, "    return {}", variable(lowered.weight.value));
    text
}

fn variable(expr: Expr) -> String {
    format!("e{}", expr.index())
}

/// One line for each expression that the roots need.
fn expressions(problem: &Problem, graph: &Graph, roots: &[Expr], text: &mut String) {
    let reached = graph.reached(roots);
    for (expr, node) in graph.iter().filter(|(expr, _)| reached[expr.index()]) {
        let _ = writeln!(text, "    {} = {}", variable(expr), expression(problem, graph, node));
    }
}

fn expression(problem: &Problem, graph: &Graph, node: &Node) -> String {
    let of = |expr: &Expr| variable(*expr);
    match node {
        Node::Float(bits) => number(f64::from_bits(*bits)),
        Node::Int(value) => format!("np.int32({value})"),
        Node::Bool(value) => super::truth(*value).to_owned(),
        Node::Var(Var::Stage(k)) => format!("rows[{k}]"),
        Node::Var(_) => "s".to_owned(),
        Node::Index(index) => format!("at[{:?}]", index_name(*index)),
        Node::Load(buffer, index) => {
            let role = Role::Capture(buffer.capture);
            let clipped = problem.shape(role).into_iter().zip(index.iter());
            let clipped = clipped.map(|(extent, index)| format!("np.clip({}, 0, {})", of(index), extent - 1));
            format!("t[{:?}][{}]", problem.name(role), clipped.collect::<Vec<_>>().join(", "))
        }
        Node::Unary(op, a) => unary(*op, &of(a)),
        Node::Binary(op, a, b) => binary(*op, graph.type_of(*a) == Type::F, &of(a), &of(b)),
        Node::Compare(op, a, b) => {
            let sign = match op {
                Compare::Lt => "<",
                Compare::Le => "<=",
                Compare::Eq => "==",
                Compare::Ne => "!=",
            };
            format!("{} {sign} {}", of(a), of(b))
        }
        Node::Select(c, a, b) => format!("np.where({}, {}, {})", of(c), of(a), of(b)),
        Node::Powi(a, exponent) => format!("np.float64(1) * {} ** {exponent}", of(a)),
        Node::Random(a, b) => {
            format!("_random({}, {}, at[\"b\"] * HEADS + at[\"h\"], at[\"q\"], at[\"k\"])", of(a), of(b))
        }
        _ => "None".to_owned(),
    }
}

fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "np.nan".to_owned(),
        f64::INFINITY => "np.inf".to_owned(),
        f64::NEG_INFINITY => "-np.inf".to_owned(),
        x => format!("{x:?}"),
    }
}

fn index_name(index: Index) -> String {
    match index {
        Index::Batch => "b".to_owned(),
        Index::Head => "h".to_owned(),
        Index::HeadKv => "hkv".to_owned(),
        Index::Query => "q".to_owned(),
        Index::QueryAxis(axis) => format!("q{axis}"),
        Index::KeyAxis(axis) => format!("k{axis}"),
        _ => "k".to_owned(),
    }
}

fn unary(op: Unary, a: &str) -> String {
    match op {
        Unary::Neg => format!("-{a}"),
        Unary::Sigmoid => format!("0.5 + 0.5 * np.tanh(0.5 * {a})"),
        Unary::Softplus => format!("np.logaddexp({a}, 0.0)"),
        Unary::Rsqrt => format!("1 / np.sqrt({a})"),
        Unary::Erf => format!("np.vectorize(math.erf)({a})"),
        Unary::StopGrad => a.to_owned(),
        Unary::ToFloat => format!("np.float64({a})"),
        Unary::ToInt => {
            format!("np.clip(np.nan_to_num(np.floor({a})), -(2**31), 2**31 - 1).astype(np.int32)")
        }
        Unary::Not => format!("np.logical_not({a})"),
        op => format!("np.{}({a})", format!("{op:?}").to_lowercase()),
    }
}

fn binary(op: Binary, of_floats: bool, a: &str, b: &str) -> String {
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::Sub => format!("{a} - {b}"),
        Binary::Mul => format!("{a} * {b}"),
        Binary::Div if of_floats => format!("{a} / {b}"),
        Binary::Div | Binary::FloorDiv => format!("np.floor_divide({a}, {b})"),
        Binary::Mod => format!("np.mod({a}, {b})"),
        Binary::Min => format!("np.minimum({a}, {b})"),
        Binary::Max => format!("np.maximum({a}, {b})"),
        Binary::And | Binary::BitAnd => format!("{a} & {b}"),
        Binary::Or | Binary::BitOr => format!("{a} | {b}"),
        Binary::BitXor => format!("{a} ^ {b}"),
        Binary::Shl => format!("np.left_shift({a}, {b} & 31)"),
        Binary::Shr => format!("np.right_shift({a}, {b} & 31)"),
        _ => format!("{a} + {b}"),
    }
}
