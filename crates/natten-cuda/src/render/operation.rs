//! The text of one operation, from the texts of its arguments.

use natten_core::program::{Binary, Compare, Expr, Graph, Node, Type, Unary};

use super::Leaves;

/// A node's text; `None` where it has none. Operations between the elements of a vector are the vector renderer's.
pub(super) fn text_of(
    graph: &Graph,
    expr: Expr,
    arguments: &[String],
    leaves: &dyn Leaves,
) -> Option<String> {
    let ty = graph.type_of(expr);
    Some(match graph.node(expr) {
        Node::Float(bits) => number(f64::from_bits(*bits)),
        Node::Int(value) => integer(*value),
        Node::Bool(value) => value.to_string(),
        Node::Var(var) => leaves.var(*var)?,
        Node::Index(index) => leaves.index(*index)?,
        Node::Load(buffer, _) => leaves.load(*buffer, arguments)?,
        Node::Unary(op, _) => unary(*op, ty, &arguments[0])?,
        Node::Binary(op, ..) => binary(*op, ty, &arguments[0], &arguments[1])?,
        Node::Compare(op, ..) => {
            let op = match op {
                Compare::Lt => "<",
                Compare::Le => "<=",
                Compare::Eq => "==",
                Compare::Ne => "!=",
            };
            format!("{} {op} {}", arguments[0], arguments[1])
        }
        Node::Select(..) => format!("{} ? {} : {}", arguments[0], arguments[1], arguments[2]),
        Node::Powi(_, exponent) => format!("f_powi({}, {})", arguments[0], integer(*exponent)),
        Node::Random(..) => leaves.random(&arguments[0], &arguments[1])?,
        _ => return None,
    })
}

fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => "R_NAN".to_owned(),
        f64::INFINITY => "R_INF".to_owned(),
        f64::NEG_INFINITY => "(-R_INF)".to_owned(),
        // The shortest decimal that is this number.
        _ => format!("(R)({value:?})"),
    }
}

/// An integer. The smallest has no literal of its own.
pub(crate) fn integer(value: i32) -> String {
    match value {
        i32::MIN => "(-2147483647 - 1)".to_owned(),
        _ => format!("({value})"),
    }
}

fn unary(op: Unary, ty: Type, a: &str) -> Option<String> {
    let call = |name: &str| Some(format!("{name}({a})"));
    match (op, ty) {
        (Unary::Neg, Type::I) => call("i_neg"),
        (Unary::Abs, Type::I) => call("i_abs"),
        (Unary::Neg, _) => Some(format!("-{a}")),
        (Unary::Not, _) => Some(format!("!{a}")),
        (Unary::StopGrad, _) => Some(a.to_owned()),
        (Unary::ToFloat, _) => call("(R)"),
        (Unary::ToInt, _) => call("i_of"),
        (Unary::Abs, _) => call("f_abs"),
        (Unary::Exp, _) => call("f_exp"),
        (Unary::Exp2, _) => call("f_exp2"),
        (Unary::Log, _) => call("f_log"),
        (Unary::Log2, _) => call("f_log2"),
        (Unary::Expm1, _) => call("f_expm1"),
        (Unary::Log1p, _) => call("f_log1p"),
        (Unary::Sqrt, _) => call("f_sqrt"),
        (Unary::Rsqrt, _) => call("f_rsqrt"),
        (Unary::Tanh, _) => call("f_tanh"),
        (Unary::Sigmoid, _) => call("f_sigmoid"),
        (Unary::Softplus, _) => call("f_softplus"),
        (Unary::Erf, _) => call("f_erf"),
        (Unary::Sin, _) => call("f_sin"),
        (Unary::Cos, _) => call("f_cos"),
        (Unary::Floor, _) => call("f_floor"),
        _ => None,
    }
}

fn binary(op: Binary, ty: Type, a: &str, b: &str) -> Option<String> {
    let infix = |op: &str| Some(format!("{a} {op} {b}"));
    let call = |name: &str| Some(format!("{name}({a}, {b})"));
    match (op, ty) {
        (Binary::Add, Type::I) => call("i_add"),
        (Binary::Sub, Type::I) => call("i_sub"),
        (Binary::Mul, Type::I) => call("i_mul"),
        (Binary::Div | Binary::FloorDiv, Type::I) => call("i_floordiv"),
        (Binary::Mod, Type::I) => call("i_mod"),
        (Binary::Min, Type::I) => call("i_min"),
        (Binary::Max, Type::I) => call("i_max"),
        (Binary::BitAnd, Type::I) => infix("&"),
        (Binary::BitOr, Type::I) => infix("|"),
        (Binary::BitXor, Type::I) => infix("^"),
        (Binary::Shl, Type::I) => call("i_shl"),
        (Binary::Shr, Type::I) => call("i_shr"),
        (Binary::And, _) => infix("&&"),
        (Binary::Or, _) => infix("||"),
        (Binary::Add, _) => infix("+"),
        (Binary::Sub, _) => infix("-"),
        (Binary::Mul, _) => infix("*"),
        (Binary::Div, _) => infix("/"),
        (Binary::FloorDiv, _) => call("f_floordiv"),
        (Binary::Mod, _) => call("f_mod"),
        (Binary::Min, _) => call("f_min"),
        (Binary::Max, _) => call("f_max"),
        _ => None,
    }
}
