//! Any expression prints as a text that reads back as it; any text is read or refused.

use proptest::prelude::*;

use super::*;
use crate::program::expr::Compare;
use crate::program::text::names::{log_add_exp, relu};

/// What a byte string builds, on a stack of expressions: well-typed, whatever the bytes.
fn build(graph: &mut Graph, bytes: &[(u8, u8, i32, f64)]) -> Vec<Expr> {
    let mut known = vec![graph.var(Var::Score), graph.index(Index::Query), graph.bool(true)];
    for &(op, pick, int, float) in bytes {
        let of = |ty: Type, at: usize, graph: &Graph| {
            let fitting: Vec<Expr> = known.iter().copied().filter(|&e| graph.type_of(e) == ty).collect();
            // Late ones more often, so that expressions grow.
            fitting[fitting.len() - 1 - (at * at / 8) % fitting.len()]
        };
        let at = usize::from(pick);
        let (f, g) = (of(Type::F, at % 16, graph), of(Type::F, at / 16, graph));
        let (i, j) = (of(Type::I, at % 16, graph), of(Type::I, at / 16, graph));
        let (b, c) = (of(Type::B, at % 16, graph), of(Type::B, at / 16, graph));
        let mut expr = match op % 26 {
            0 => graph.float(float),
            1 => graph.int(int),
            2 => graph.index([Index::Batch, Index::HeadKv, Index::Key, Index::KeyAxis(1)][at % 4]),
            3 => graph.load(Buffer { capture: 0, tangent: false }, Type::F, &[i]),
            4 => graph.load(Buffer { capture: 2, tangent: false }, Type::I, &[i]),
            5 => graph.load(Buffer { capture: 1, tangent: false }, Type::F, &[i, j]),
            6 => graph.load(Buffer { capture: 3, tangent: false }, Type::F, &[]),
            7 => graph.unary([Unary::Neg, Unary::Abs][at % 2], f),
            8 => graph.unary([Unary::Neg, Unary::Abs][at % 2], i),
            9 => {
                use Unary::*;
                let all = [
                    Exp, Exp2, Log, Log2, Expm1, Log1p, Sqrt, Rsqrt, Tanh, Sigmoid, Softplus, Erf, Sin, Cos,
                    Floor, StopGrad,
                ];
                graph.unary(all[int as usize % all.len()], f)
            }
            10 => graph.unary(Unary::ToFloat, i),
            11 => graph.unary(Unary::ToInt, f),
            12 => graph.unary(Unary::Not, b),
            13..=15 => {
                use Binary::*;
                let all = [Add, Sub, Mul, Div, FloorDiv, Mod, Min, Max];
                graph.binary(all[int as usize % all.len()], f, g)
            }
            16 | 17 => {
                use Binary::*;
                let all = [Add, Sub, Mul, FloorDiv, Mod, Min, Max, BitAnd, BitOr, BitXor, Shl, Shr];
                graph.binary(all[int as usize % all.len()], i, j)
            }
            18 => graph.binary([Binary::And, Binary::Or][int as usize % 2], b, c),
            19 | 20 => {
                use Compare::*;
                let op = [Lt, Le, Eq, Ne][int as usize % 4];
                if op == Lt { graph.compare(op, f, g) } else { graph.compare(op, i, j) }
            }
            21 => graph.select(b, f, g),
            22 => graph.select(b, i, j),
            23 => graph.powi(f, int % 7),
            24 => graph.random(i, j),
            _ => {
                if at % 2 == 0 {
                    relu(graph, f)
                } else {
                    log_add_exp(graph, f, g)
                }
            }
        };
        if graph.as_float(expr).is_some_and(f64::is_nan) {
            expr = graph.float(f64::NAN);
        }
        known.push(expr);
    }
    known
}

/// The deepest nesting of brackets.
fn depth_of(text: &str) -> usize {
    let steps = text.chars().map(|c| isize::from("([".contains(c)) - isize::from(")]".contains(c)));
    steps
        .scan(0, |depth: &mut isize, step| {
            *depth += step;
            Some(*depth as usize)
        })
        .max()
        .unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn printing_is_the_way_back(bytes in prop::collection::vec((any::<u8>(), any::<u8>(), any::<i32>(), prop_oneof![
        any::<f64>(), prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 2.0, 0.5, f64::INFINITY, f64::NEG_INFINITY]),
    ]), 1..40)) {
        let mut graph = Graph::new();
        for expr in build(&mut graph, &bytes) {
            let text = written(&graph, expr);
            if text.len() > MAX_TEXT || depth_of(&text) >= MAX_DEPTH {
                continue;
            }
            // Compared as what they are in a score: an integer is made a number, a condition chooses one.
            let (text, whole) = match graph.type_of(expr) {
                Type::F => (text, expr),
                Type::I => (text, graph.unary(Unary::ToFloat, expr)),
                Type::B => {
                    let (one, two) = (graph.float(1.0), graph.float(2.0));
                    (format!("select({text}, 1.0, 2.0)"), graph.select(expr, one, two))
                }
            };
            let again = read_in(&mut graph, Field::Score, &text, 2);
            let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(again, whole, "{}", text);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "([a-z0-9 ]|score|x|slope|exp|select|[-+*/%<>=!&|()\\[\\],;.]){0,40}", rank in 0usize..4) {
        let mut graph = Graph::new();
        for field in Field::ALL {
            if let Err(error) = read_in(&mut graph, field, &text, rank) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
        let _ = row(&mut graph, &text);
    }
}
