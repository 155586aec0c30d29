//! What does not differ between pairs costs pairs nothing.

use natten_core::program::{Binary, Compare, Unary};

use super::*;

/// `score - table[h, 0] * abs(q - k)`.
pub(super) fn alibi(g: &mut Graph) -> Expr {
    let [head, query, key] = [Index::Head, Index::Query, Index::Key].map(|index| g.index(index));
    let zero = g.int(0);
    let slope = g.load(Buffer { capture: 0, tangent: false }, Type::F, &[head, zero]);
    let distance = g.sub(query, key);
    let distance = g.unary(Unary::Abs, distance);
    let distance = g.unary(Unary::ToFloat, distance);
    let bias = g.mul(slope, distance);
    let score = g.var(Var::Score);
    g.sub(score, bias)
}

fn compile(g: &Graph, outputs: &[Output], direction: Direction) -> TileCode {
    TileCode::new(g, outputs, direction, HEADS, &source, &captures()).unwrap()
}

#[test]
fn a_slope_and_indices_are_not_evaluated_by_pair() {
    let mut g = Graph::new();
    let root = alibi(&mut g);
    for direction in [Direction::Keys, Direction::Queries] {
        let code = compile(&g, &[Output::Tile(root)], direction);
        // The row's index spread, the difference, its magnitude as a number, the product, and the result.
        assert_eq!(code.pairs.len(), 6, "{:?}", code.pairs);
        assert_eq!(code.rows.len(), 1);
        assert!(code.registers.pair <= 2, "{:?}", code.registers);
    }
}

#[test]
fn functions_of_one_token_are_evaluated_once() {
    let mut g = Graph::new();
    let [query, key] = [Index::Query, Index::Key].map(|index| g.index(index));
    let block = g.int(64);
    let [a, b] = [query, key].map(|index| g.binary(Binary::FloorDiv, index, block));
    let same = g.compare(Compare::Eq, a, b);
    let code = compile(&g, &[Output::Mask(same)], Direction::Keys);
    // The row's quotient spread, and the comparison.
    assert_eq!((code.pairs.len(), code.rows.len()), (2, 2));
}

#[test]
fn a_long_chain_needs_few_registers() {
    let mut g = Graph::new();
    let score = g.var(Var::Score);
    let root = (0..100).fold(score, |x, i| {
        let y = g.float(f64::from(i) + 0.5);
        let sum = g.add(x, y);
        let t = g.unary(Unary::Tanh, sum);
        g.mul(t, x)
    });
    let code = compile(&g, &[Output::Tile(root)], Direction::Keys);
    assert!(code.registers.pair <= 3, "{:?}", code.registers);
}

#[test]
fn what_no_pair_can_evaluate_is_refused() {
    let mut g = Graph::new();
    let x = g.var(Var::X);
    let lane = g.index(Index::Lane);
    let lane = g.unary(Unary::ToFloat, lane);
    let half = g.unary(Unary::LaneHalf, lane);
    for root in [x, lane, half] {
        let code = TileCode::new(&g, &[Output::Tile(root)], Direction::Keys, HEADS, &source, &captures());
        assert!(code.is_err(), "{:?}", g.node(root));
    }
    let index = g.int(0);
    let load = g.load(Buffer { capture: 0, tangent: false }, Type::F, &[index, index]);
    let huge = [Capture::new("huge", &[1 << 16, 1 << 16], DType::F32)];
    let code = TileCode::new(&g, &[Output::Tile(load)], Direction::Keys, HEADS, &source, &huge);
    assert!(code.unwrap_err().to_string().contains("2^31"));
}
