use proptest::prelude::*;

use super::*;
use crate::program::expr::Buffer;
use crate::program::numeric::{float_binary, float_unary, int_binary};

/// A value of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plain {
    F(f64),
    I(i32),
    B(bool),
}

/// The captures of the tests: their shapes, types and elements.
fn captures() -> Vec<(Vec<usize>, Type, Vec<f64>)> {
    vec![
        (vec![11], Type::I, [3, -2, 0, 7, 7, 1, -5, 12, 4, 4, 31].map(f64::from).to_vec()),
        (vec![3, 4], Type::I, [0, 0, 1, 1, 0, 1, 0, 0, 2, 0, -1, 1].map(f64::from).to_vec()),
        (vec![5], Type::F, vec![0.1, -3.5, 2.0, 0.0, 1e30]),
    ]
}

fn host(captures: &[(Vec<usize>, Type, Vec<f64>)]) -> HostCaptures<'_> {
    HostCaptures { tensors: captures.iter().map(|(shape, _, data)| HostCapture::new(shape, data)).collect() }
}

/// Every node's value for a pair, numbers rounded to f32 where `single`.
fn plain(graph: &Graph, at: &Ranges, captures: &[(Vec<usize>, Type, Vec<f64>)], single: bool) -> Vec<Plain> {
    use Plain::{B, F, I};
    let round = |x: f64| F(if single { f64::from(x as f32) } else { x });
    let mut values: Vec<Plain> = Vec::new();
    for (expr, node) in graph.iter() {
        let get = |e: &Expr| values[e.index()];
        let int = |e: &Expr| match get(e) {
            I(x) => x,
            other => panic!("{other:?}"),
        };
        let value = match node {
            Node::Float(bits) => round(f64::from_bits(*bits)),
            Node::Int(x) => I(*x),
            Node::Bool(x) => B(*x),
            Node::Index(index) => I(index_range(*index, at).lo as i32),
            Node::Load(buffer, index) => {
                let (shape, _, data) = &captures[usize::from(buffer.capture)];
                let number = index.iter().zip(shape).fold(0, |number, (i, &extent)| {
                    number * extent + int(i).clamp(0, extent as i32 - 1) as usize
                });
                if graph.type_of(expr) == Type::I { I(data[number] as i32) } else { round(data[number]) }
            }
            Node::Unary(op, a) => match (op, get(a)) {
                (Unary::ToFloat, I(x)) => round(f64::from(x)),
                (Unary::ToInt, F(x)) => I(x.floor() as i32),
                (Unary::Not, B(x)) => B(!x),
                (Unary::Neg, I(x)) => I(x.wrapping_neg()),
                (Unary::Abs, I(x)) => I(x.wrapping_abs()),
                (op, F(x)) => round(float_unary(*op, x).unwrap()),
                other => panic!("{other:?}"),
            },
            Node::Binary(op, a, b) => match (op, get(a), get(b)) {
                (Binary::And, B(x), B(y)) => B(x && y),
                (Binary::Or, B(x), B(y)) => B(x || y),
                (op, I(x), I(y)) => I(int_binary(*op, x, y)),
                (Binary::FloorDiv, F(x), F(y)) if single => F((x as f32 / y as f32).floor().into()),
                (Binary::Mod, F(x), F(y)) if single => {
                    let (x, y) = (x as f32, y as f32);
                    F((x - y * (x / y).floor()).into())
                }
                (op, F(x), F(y)) => round(float_binary(*op, x, y).unwrap()),
                other => panic!("{other:?}"),
            },
            Node::Compare(op, a, b) => B(match (get(a), get(b)) {
                (I(x), I(y)) => op.of(&x, &y),
                (F(x), F(y)) => op.of(&x, &y),
                other => panic!("{other:?}"),
            }),
            Node::Select(c, a, b) => {
                if get(c) == B(true) {
                    get(a)
                } else {
                    get(b)
                }
            }
            Node::Powi(a, exponent) => match get(a) {
                F(x) => round(if single { f64::from((x as f32).powi(*exponent)) } else { x.powi(*exponent) }),
                other => panic!("{other:?}"),
            },
            Node::Random(..) | Node::Var(_) => panic!("not in a test"),
        };
        values.push(value);
    }
    values
}

/// The boxes of single pairs that a pair of boxes is made of.
fn pairs(rank: usize, queries: &TokenBox, keys: &TokenBox) -> Vec<Ranges> {
    let tokens = |b: &TokenBox| -> Vec<TokenBox> {
        let [z, y, x] = b.tokens.map(|[lo, hi]| lo..=hi);
        let all = z.flat_map(|i| y.clone().map(move |j| (i, j)));
        all.flat_map(|(i, j)| {
            x.clone().map(move |k| TokenBox { grid: b.grid, tokens: [[i; 2], [j; 2], [k; 2]] })
        })
        .collect()
    };
    let keys = tokens(keys);
    let with_keys = |q: TokenBox| keys.iter().map(|k| ranges_of(rank, 1, 2, 0, &q, k)).collect::<Vec<_>>();
    tokens(queries).into_iter().flat_map(with_keys).collect()
}

const UNARY: &[Unary] = &[
    Unary::Neg,
    Unary::Abs,
    Unary::Exp,
    Unary::Exp2,
    Unary::Log,
    Unary::Log2,
    Unary::Expm1,
    Unary::Log1p,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Softplus,
    Unary::Erf,
    Unary::Sin,
    Unary::Cos,
    Unary::Floor,
];
const FLOAT_BINARY: &[Binary] = &[
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::FloorDiv,
    Binary::Mod,
    Binary::Min,
    Binary::Max,
];
const INT_BINARY: &[Binary] = &[
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::FloorDiv,
    Binary::Mod,
    Binary::Min,
    Binary::Max,
    Binary::BitAnd,
    Binary::BitOr,
    Binary::BitXor,
    Binary::Shl,
    Binary::Shr,
];
const COMPARE: &[Compare] = &[Compare::Lt, Compare::Le, Compare::Eq, Compare::Ne];

/// A graph of random nodes of every type, each made of earlier ones.
fn random_graph(rank: usize, picks: &[[usize; 4]], constants: &[i32]) -> Graph {
    let mut g = Graph::new();
    let mut ints =
        vec![g.index(Index::Query), g.index(Index::Key), g.index(Index::Head), g.index(Index::Batch)];
    for axis in 0..rank as u8 {
        ints.extend([g.index(Index::QueryAxis(axis)), g.index(Index::KeyAxis(axis))]);
    }
    ints.extend(constants.iter().map(|&c| g.int(c)));
    let mut floats = vec![g.float(0.1), g.float(2.0), g.unary(Unary::ToFloat, ints[0])];
    let mut bools = vec![g.compare(Compare::Le, ints[1], ints[0])];
    for &[kind, op, a, b] in picks {
        let (i, j) = (ints[a % ints.len()], ints[b % ints.len()]);
        let (x, y) = (floats[a % floats.len()], floats[b % floats.len()]);
        let (c, d) = (bools[a % bools.len()], bools[b % bools.len()]);
        let condition = bools[op % bools.len()];
        match kind % 16 {
            0..4 => ints.push(g.binary(INT_BINARY[op % INT_BINARY.len()], i, j)),
            4 => ints.push(g.unary([Unary::Neg, Unary::Abs][op % 2], i)),
            5 => ints.push(match op % 3 {
                0 => g.load(Buffer { capture: 0, tangent: false }, Type::I, &[i]),
                1 => g.load(Buffer { capture: 1, tangent: false }, Type::I, &[i, j]),
                _ => g.select(condition, i, j),
            }),
            6 => ints.push(g.unary(Unary::ToInt, x)),
            7 => floats.push(match op % 4 {
                0 => g.load(Buffer { capture: 2, tangent: false }, Type::F, &[i]),
                1 => g.select(condition, x, y),
                2 => g.powi(x, b as i32 % 9 - 4),
                _ => g.unary(Unary::ToFloat, i),
            }),
            8..10 => floats.push(g.binary(FLOAT_BINARY[op % FLOAT_BINARY.len()], x, y)),
            10..12 => floats.push(g.unary(UNARY[op % UNARY.len()], x)),
            12 => bools.push(g.compare(COMPARE[op % 4], i, j)),
            13 => bools.push(g.compare(COMPARE[op % 4], x, y)),
            14 => bools.push(g.unary(Unary::Not, c)),
            _ => bools.push(match op % 3 {
                0 => g.select(condition, c, d),
                1 => g.binary(Binary::And, c, d),
                _ => g.binary(Binary::Or, c, d),
            }),
        }
    }
    g
}

/// A grid of the rank and two boxes in it.
fn boxes() -> impl Strategy<Value = (usize, TokenBox, TokenBox)> {
    (1usize..=3).prop_flat_map(|rank| {
        let extents: [usize; 3] = [[1, 1, 40], [1, 9, 7], [4, 3, 5]][rank - 1];
        let corners = || prop::array::uniform3((0usize..64, 0usize..4));
        (corners(), corners()).prop_map(move |(q, k)| {
            let at = |corners: [(usize, usize); 3]| TokenBox {
                grid: extents,
                tokens: std::array::from_fn(|a| {
                    let (lo, len) = (corners[a].0 % extents[a], corners[a].1);
                    [lo, (lo + len).min(extents[a] - 1)]
                }),
            };
            (rank, at(q), at(k))
        })
    })
}

/// Whether a pair's value lies in what is known of the box.
fn within(value: Plain, known: Value) -> bool {
    match (value, known) {
        (Plain::F(x), Value::Real(Real { lo, hi, nan })) => {
            if x.is_nan() {
                nan
            } else {
                lo <= x && x <= hi
            }
        }
        (Plain::I(x), Value::Whole(Whole { lo, hi })) => (lo..=hi).contains(&x.into()),
        (Plain::B(x), Value::Truth(Truth { may_fail, may_hold })) => {
            if x {
                may_hold
            } else {
                may_fail
            }
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Every node of a random graph, over random boxes, in f64 and in f32: each pair's value lies in the interval, so a
    /// mask made of any of them is classified soundly.
    #[test]
    fn every_value_is_within_its_interval(
        (rank, queries, keys) in boxes(),
        picks in prop::collection::vec(prop::array::uniform4(0usize..10_000), 1..24),
        constants in prop::collection::vec(prop_oneof![4 => -9i32..40, 1 => any::<i32>()], 1..4),
    ) {
        let graph = random_graph(rank, &picks, &constants);
        let captures = captures();
        let host = host(&captures);
        let ranges = ranges_of(rank, 1, 2, 0, &queries, &keys);
        let all: Vec<Vec<Plain>> = pairs(rank, &queries, &keys)
            .iter()
            .flat_map(|pair| [plain(&graph, pair, &captures, false), plain(&graph, pair, &captures, true)])
            .collect();
        for (expr, node) in graph.iter() {
            let evaluator = Evaluator::new(&graph, expr);
            let mut scratch = evaluator.scratch();
            let capacity = (scratch.values.capacity(), scratch.index.capacity());
            let verdict = evaluator.classify(&mut scratch, &ranges, &host);
            prop_assert_eq!(capacity, (scratch.values.capacity(), scratch.index.capacity()), "no allocation");
            let mut of_expr = all.iter().map(|values| values[expr.index()]);
            match verdict {
                Verdict::Empty => prop_assert!(of_expr.clone().all(|v| v == Plain::B(false)), "{:?}", node),
                Verdict::Full => prop_assert!(of_expr.clone().all(|v| v == Plain::B(true)), "{:?}", node),
                Verdict::Partial => {}
            }
            // The whole interval too, where the expression is not cut into conjuncts.
            if let [Conjunct { at, .. }] = evaluator.conjuncts[..] {
                let known = scratch.values[at];
                prop_assert!(of_expr.all(|v| within(v, known)), "{:?} {:?} in {:?}", node, known, graph);
            }
        }
    }

    /// Ranges of captures are those of a search, over any box of indices.
    #[test]
    fn ranges_of_captures_are_those_of_a_search(
        shape in prop::collection::vec(1usize..5, 0..3),
        last in 1usize..150,
        spans in prop::collection::vec((-3i64..160, 0i64..160), 3),
        nan in prop::option::of(0usize..600),
    ) {
        let shape = [&shape[..], &[last]].concat();
        let mut data: Vec<f64> = (0..shape.iter().product()).map(|i: usize| ((i * 7919) % 1009) as f64).collect();
        if let Some(at) = nan.filter(|&at| at < data.len()) {
            data[at] = f64::NAN;
        }
        let index: Vec<[i64; 2]> = spans[3 - shape.len()..].iter().map(|&(lo, len)| [lo, lo + len]).collect();
        let mut found = Vec::new();
        for (number, &x) in data.iter().enumerate() {
            let mut rest = number;
            let inside = shape.iter().zip(&index).rev().all(|(&extent, &[lo, hi])| {
                let i = rest as i64 % extent as i64;
                rest /= extent;
                let last = extent as i64 - 1;
                (lo.clamp(0, last)..=hi.clamp(0, last)).contains(&i)
            });
            if inside {
                found.push(x);
            }
        }
        let expected = (!found.iter().any(|x| x.is_nan())).then(|| {
            [found.iter().copied().fold(f64::INFINITY, f64::min), found.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
        });
        let host = HostCaptures { tensors: vec![None, HostCapture::new(&shape, &data)] };
        prop_assert_eq!(host.range(1, &index), expected);
        prop_assert_eq!(host.range(1, &[]), None);
        prop_assert_eq!(host.range(0, &index), None);
        prop_assert_eq!(host.range(2, &index), None);
    }
}

/// Holds the verdict to be the exact one on all pairs of aligned boxes of one axis.
fn exact(
    name: &str,
    captures: &[(Vec<usize>, Type, Vec<f64>)],
    side: [usize; 2],
    build: impl Fn(&mut Graph) -> Expr,
) {
    const LEN: usize = 64;
    let mut graph = Graph::new();
    let mask = build(&mut graph);
    let host = host(captures);
    let evaluator = Evaluator::new(&graph, mask);
    let mut scratch = EvaluatorScratch::default();
    let at = |lo: usize, side: usize| TokenBox {
        grid: [1, 1, LEN],
        tokens: [[0; 2], [0; 2], [lo, (lo + side).min(LEN) - 1]],
    };
    for query in (0..LEN).step_by(side[0]) {
        for key in (0..LEN).step_by(side[1]) {
            let (q, k) = (at(query, side[0]), at(key, side[1]));
            let of_pairs: Vec<bool> = pairs(1, &q, &k)
                .iter()
                .map(|pair| plain(&graph, pair, captures, false)[mask.index()] == Plain::B(true))
                .collect();
            let expected = match (of_pairs.contains(&true), of_pairs.contains(&false)) {
                (false, _) => Verdict::Empty,
                (_, false) => Verdict::Full,
                _ => Verdict::Partial,
            };
            let ranges = ranges_of(1, 1, 2, 0, &q, &k);
            assert_eq!(evaluator.classify(&mut scratch, &ranges, &host), expected, "{name} at {query} {key}");
            assert_eq!(classify(&graph, mask, &ranges, &host), expected);
        }
    }
}

fn load(g: &mut Graph, capture: u8, index: &[Expr]) -> Expr {
    g.load(Buffer { capture, tangent: false }, Type::I, index)
}

#[test]
fn the_verdicts_on_common_masks_are_exact() {
    let documents: Vec<f64> = (0..64).map(|i: usize| [0, 0, 1, 2, 2, 2, 2, 5][i / 8].into()).collect();
    let blocks: Vec<f64> = (0..16).map(|i| f64::from(i % 3 == 0)).collect();
    let captures = [
        (vec![64], Type::I, documents),
        (vec![4, 4], Type::I, blocks),
        (vec![3], Type::I, vec![9.0, 20.0, 5.0]),
    ];
    for side in [[8, 8], [16, 4], [5, 9], [1, 1], [64, 2]] {
        let exact = |name: &str, build: &dyn Fn(&mut Graph, Expr, Expr) -> Expr| {
            exact(name, &captures, side, |g| {
                let (q, k) = (g.index(Index::Query), g.index(Index::Key));
                build(g, q, k)
            });
        };
        exact("causal", &|g, q, k| g.compare(Compare::Le, k, q));
        exact("causal by coordinates, in numbers", &|g, _, _| {
            let (q, k) = (g.index(Index::QueryAxis(0)), g.index(Index::KeyAxis(0)));
            let (q, k) = (g.unary(Unary::ToFloat, q), g.unary(Unary::ToFloat, k));
            g.compare(Compare::Le, k, q)
        });
        exact("window", &|g, q, k| {
            let (distance, four) = (g.sub(q, k), g.int(4));
            let (near, causal) = (g.compare(Compare::Le, distance, four), g.compare(Compare::Le, k, q));
            g.binary(Binary::And, near, causal)
        });
        exact("window both ways, in numbers", &|g, q, k| {
            let (q, k) = (g.unary(Unary::ToFloat, q), g.unary(Unary::ToFloat, k));
            let (difference, half) = (g.sub(q, k), g.float(4.5));
            let distance = g.unary(Unary::Abs, difference);
            g.compare(Compare::Lt, distance, half)
        });
        exact("documents", &|g, q, k| {
            let (q, k) = (load(g, 0, &[q]), load(g, 0, &[k]));
            g.compare(Compare::Eq, q, k)
        });
        exact("prefix", &|g, q, k| {
            let batch = g.index(Index::Batch);
            let prefix = load(g, 2, &[batch]);
            let (within, causal) = (g.compare(Compare::Lt, k, prefix), g.compare(Compare::Le, k, q));
            g.binary(Binary::Or, within, causal)
        });
        exact("dilated", &|g, q, k| {
            let (difference, four, zero) = (g.sub(q, k), g.int(4), g.int(0));
            let rest = g.binary(Binary::Mod, difference, four);
            g.compare(Compare::Eq, rest, zero)
        });
        exact("circle", &|g, q, k| {
            let (difference, most) = (g.sub(q, k), g.int(30));
            let square = g.mul(difference, difference);
            g.compare(Compare::Le, square, most)
        });
    }
    for side in [[16, 16], [8, 4], [1, 2]] {
        exact("block map", &captures, side, |g| {
            let (q, k, sixteen) = (g.index(Index::Query), g.index(Index::Key), g.int(16));
            let (q, k) = (g.binary(Binary::FloorDiv, q, sixteen), g.binary(Binary::FloorDiv, k, sixteen));
            let (block, zero) = (load(g, 1, &[q, k]), g.int(0));
            g.compare(Compare::Ne, block, zero)
        });
    }
}

#[test]
fn a_failing_condition_that_loads_nothing_spares_the_loads() {
    struct Untouched;
    impl Captured for Untouched {
        fn range(&self, _: u8, _: &[[i64; 2]]) -> Option<[f64; 2]> {
            panic!("loaded");
        }
    }
    let mut g = Graph::new();
    let (q, k) = (g.index(Index::Query), g.index(Index::Key));
    let (of_q, of_k) = (load(&mut g, 0, &[q]), load(&mut g, 0, &[k]));
    let (alike, causal) = (g.compare(Compare::Eq, of_q, of_k), g.compare(Compare::Le, k, q));
    let mask = g.binary(Binary::And, alike, causal);
    let at = |lo| TokenBox { grid: [1, 1, 99], tokens: [[0; 2], [0; 2], [lo, lo + 7]] };
    let ranges = ranges_of(1, 0, 0, 0, &at(8), &at(16));
    assert_eq!(classify(&g, mask, &ranges, &Untouched), Verdict::Empty);
}

#[test]
fn what_is_no_range_is_unknown() {
    let mut g = Graph::new();
    let (q, k) = (g.index(Index::Query), g.index(Index::Key));
    let causal = g.compare(Compare::Le, k, q);
    let at = TokenBox { grid: [usize::MAX; 3], tokens: [[usize::MAX; 2]; 3] };
    let none = HostCaptures::default();
    assert_eq!(classify(&g, causal, &ranges_of(9, 0, 0, 0, &at, &at), &none), Verdict::Partial);
    // A mask that is no condition, and one whose captures are not there.
    let ranges = ranges_of(1, 0, 0, 0, &TokenBox { tokens: [[0, 3]; 3], ..at }, &at);
    let loaded = load(&mut g, 0, &[q]);
    let mask = g.compare(Compare::Le, loaded, k);
    assert_eq!(classify(&g, q, &ranges, &none), Verdict::Partial);
    assert_eq!(classify(&g, mask, &ranges, &none), Verdict::Partial);
    assert!(HostCapture::new(&[2, usize::MAX], &[1.0]).is_none());
    assert!(HostCapture::new(&[0], &[]).is_none());
    assert_eq!(HostCapture::new(&[], &[2.0]).and_then(|one| one.range(&[])), Some([2.0, 2.0]));
    assert_eq!(HostCapture::new(&[2], &[2.0, 1.0]).and_then(|two| two.range(&[[1, 0]])), None);
}

/// NaN among otherwise bounded numbers: at 0 to 2 the roots of -3 to -1.
#[test]
fn nan_fails_every_comparison_but_one() {
    let mut g = Graph::new();
    let (q, three, five, nine) = (g.index(Index::Query), g.int(3), g.float(5.0), g.float(9.0));
    let difference = g.sub(q, three);
    let number = g.unary(Unary::ToFloat, difference);
    let root = g.unary(Unary::Sqrt, number);
    let x = g.add(root, five);
    let (whole, four) = (g.unary(Unary::ToInt, x), g.int(4));
    let at = TokenBox { grid: [1, 1, 8], tokens: [[0; 2], [0; 2], [0, 7]] };
    let ranges = ranges_of(1, 0, 0, 0, &at, &at);
    for (op, a, b) in [
        (Compare::Lt, x, nine),
        (Compare::Le, x, nine),
        (Compare::Ne, x, nine),
        (Compare::Le, x, x),
        (Compare::Eq, x, x),
        (Compare::Lt, x, x),
        (Compare::Ne, x, x),
        (Compare::Lt, four, whole),
    ] {
        let mask = g.compare(op, a, b);
        let expected = match op {
            Compare::Ne if a != b => Verdict::Full,
            Compare::Lt if a == b => Verdict::Empty,
            _ => Verdict::Partial,
        };
        assert_eq!(classify(&g, mask, &ranges, &HostCaptures::default()), expected, "{op:?}");
    }
    // A number that f32 does not have may be 0 there, and its logarithm infinite.
    let log = Real { lo: 1e-40, hi: 1.0, nan: false }.unary(Unary::Log);
    assert_eq!((log.lo, log.nan), (f64::NEG_INFINITY, false));
}
