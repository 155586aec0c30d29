//! The text of one operation, from the texts of its arguments.

use natten_core::program::{Binary, Compare, Expr, Graph, Node, Type, Unary};

use super::Leaves;
use super::math::Real;

/// A node's text; `None` where it has none. Operations between the elements of a vector are the vector renderer's.
pub(super) fn text_of(
    graph: &Graph,
    expr: Expr,
    arguments: &[String],
    leaves: &dyn Leaves,
) -> Option<String> {
    let ty = graph.type_of(expr);
    Some(match graph.node(expr) {
        Node::Float(bits) => number(leaves.real(), f64::from_bits(*bits)),
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
        Node::Select(..) => format!("select({}, {}, {})", arguments[2], arguments[1], arguments[0]),
        Node::Powi(_, exponent) => format!("f_powi({}, {})", arguments[0], integer(*exponent)),
        Node::Random(..) => leaves.random(&arguments[0], &arguments[1])?,
        _ => return None,
    })
}

/// A number. WGSL refuses constants that are not finite, or that the type does not hold.
pub(crate) fn number(real: Real, value: f64) -> String {
    let held = match real {
        Real::F32 => f64::from(value as f32),
        Real::F64 => value,
    };
    match held {
        _ if held.is_nan() => "nan()".to_owned(),
        f64::INFINITY => "inf()".to_owned(),
        f64::NEG_INFINITY => "(-inf())".to_owned(),
        // The shortest decimal that is this number.
        _ => format!("R({held:?})"),
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
        (Unary::Neg, _) => Some(format!("-({a})")),
        (Unary::Not, _) => Some(format!("!({a})")),
        (Unary::StopGrad, _) => Some(a.to_owned()),
        (Unary::ToFloat, _) => call("R"),
        (Unary::ToInt, _) => call("i_of"),
        (Unary::Abs, _) => call("abs"),
        (Unary::Floor, _) => call("floor"),
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
        _ => None,
    }
}

fn binary(op: Binary, ty: Type, a: &str, b: &str) -> Option<String> {
    let infix = |op: &str| Some(format!("({a}) {op} ({b})"));
    let call = |name: &str| Some(format!("{name}({a}, {b})"));
    match (op, ty) {
        (Binary::Div | Binary::FloorDiv, Type::I) => call("i_floordiv"),
        (Binary::Mod, Type::I) => call("i_mod"),
        (Binary::Min, Type::I) => call("min"),
        (Binary::Max, Type::I) => call("max"),
        (Binary::BitAnd, Type::I) => infix("&"),
        (Binary::BitOr, Type::I) => infix("|"),
        (Binary::BitXor, Type::I) => infix("^"),
        (Binary::Shl, Type::I) => Some(format!("({a}) << (u32({b}) & 31u)")),
        (Binary::Shr, Type::I) => Some(format!("({a}) >> (u32({b}) & 31u)")),
        (Binary::And, _) => infix("&&"),
        (Binary::Or, _) => infix("||"),
        // Integers wrap in WGSL.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_such_as_wgsl_takes() {
        assert_eq!(number(Real::F32, 0.5), "R(0.5)");
        assert_eq!(number(Real::F64, f64::NEG_INFINITY), "(-inf())");
        assert_eq!(
            (number(Real::F32, -1e300), number(Real::F64, 1e300)),
            ("(-inf())".into(), "R(1e300)".into())
        );
        assert_eq!(integer(i32::MIN), "(-2147483647 - 1)");
    }
}
