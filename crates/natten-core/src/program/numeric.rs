//! What the operations of expressions do to numbers: the one definition that constants are folded by, that the oracle
//! computes with, and that backends are tested against.

use super::expr::{Binary, Unary};

/// An operation on a number; none for those that are not element by element of numbers.
pub fn float_unary(op: Unary, x: f64) -> Option<f64> {
    Some(match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Exp2 => x.exp2(),
        Unary::Log => x.ln(),
        Unary::Log2 => x.log2(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Unary::Erf => libm::erf(x),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Floor => x.floor(),
        Unary::StopGrad => x,
        Unary::ToFloat | Unary::ToInt | Unary::Not => return None,
        Unary::LaneSum | Unary::LaneHalf | Unary::LanePair => return None,
    })
}

/// Without overflow on either side.
fn sigmoid(x: f64) -> f64 {
    let small = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

/// An operation on numbers; none for those of other types.
pub fn float_binary(op: Binary, x: f64, y: f64) -> Option<f64> {
    Some(match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::FloorDiv => (x / y).floor(),
        Binary::Mod => x - y * (x / y).floor(),
        // NaN of either comes through, as a wrong score should.
        Binary::Min => {
            if x <= y || x.is_nan() {
                x
            } else {
                y
            }
        }
        Binary::Max => {
            if x >= y || x.is_nan() {
                x
            } else {
                y
            }
        }
        _ => return None,
    })
}

/// An operation on integers. Conditions are 0 and 1 to it.
pub fn int_binary(op: Binary, x: i32, y: i32) -> i32 {
    match op {
        Binary::Add => x.wrapping_add(y),
        Binary::Sub => x.wrapping_sub(y),
        Binary::Mul => x.wrapping_mul(y),
        Binary::Div | Binary::FloorDiv if y == 0 => 0,
        Binary::Mod if y == 0 => 0,
        Binary::Div | Binary::FloorDiv => {
            let quotient = x.wrapping_div(y);
            if x.wrapping_rem(y) != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
        }
        Binary::Mod => {
            let rest = x.wrapping_rem(y);
            if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }
        }
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::And | Binary::BitAnd => x & y,
        Binary::Or | Binary::BitOr => x | y,
        Binary::BitXor => x ^ y,
        Binary::Shl => x.wrapping_shl(y as u32),
        Binary::Shr => x.wrapping_shr(y as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_division_is_floor() {
        for (x, y, div, rem) in
            [(7, 2, 3, 1), (-7, 2, -4, 1), (7, -2, -4, -1), (5, 0, 0, 0), (i32::MIN, -1, i32::MIN, 0)]
        {
            assert_eq!(
                (int_binary(Binary::FloorDiv, x, y), int_binary(Binary::Mod, x, y)),
                (div, rem),
                "{x} {y}"
            );
        }
    }
}
