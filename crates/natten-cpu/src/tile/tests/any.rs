//! Random expressions over random tiles, against the plain functions of the core.
//!
//! Every number of the graph is an output, and is compared with its operation on the numbers that the evaluator gave
//! for its arguments, so that no error is blamed on another node or grows from node to node. Then the same again with
//! few outputs, which may change no bit.

use natten_core::program::numeric::{float_binary, float_unary, int_binary};
use natten_core::program::{Binary, Compare, Node, Unary, random};
use proptest::prelude::*;

use super::*;

/// A node of a random graph, of nodes before it.
type Recipe = (u8, u8, [u16; 3], i32, f64);

fn build(recipes: &[Recipe]) -> Graph {
    let mut g = Graph::new();
    let mut pools: [Vec<Expr>; 3] = Default::default();
    pools[0].extend(VARS.map(|(var, _)| g.var(var)));
    let axes = (0..3).flat_map(|a| [Index::QueryAxis(a), Index::KeyAxis(a)]);
    let whole = [Index::Batch, Index::Head, Index::HeadKv, Index::Query, Index::Key];
    pools[1].extend(whole.into_iter().chain(axes).map(|index| g.index(index)));
    let (query, key) = (g.index(Index::Query), g.index(Index::Key));
    pools[2].push(g.compare(Compare::Le, key, query));
    for &(kind, op, [a, b, c], int, float) in recipes {
        let pick = |pool: &[Expr], at: u16| pool[at as usize * pool.len() / (u16::MAX as usize + 1)];
        let number = |at| pick(&pools[0], at);
        let integer = |at| pick(&pools[1], at);
        let condition = |at| pick(&pools[2], at);
        let compare = [Compare::Lt, Compare::Le, Compare::Eq, Compare::Ne][op as usize % 4];
        let node = match kind % 16 {
            0 => g.float(float),
            1 => g.int(int),
            2..=4 => {
                use Unary::*;
                const ALL: [Unary; 19] = [
                    Neg, Abs, Exp, Exp2, Log, Log2, Expm1, Log1p, Sqrt, Rsqrt, Tanh, Sigmoid, Softplus, Erf,
                    Sin, Cos, Floor, StopGrad, Neg,
                ];
                g.unary(ALL[op as usize % ALL.len()], number(a))
            }
            5..=7 => {
                use Binary::*;
                const ALL: [Binary; 8] = [Add, Sub, Mul, Div, FloorDiv, Mod, Min, Max];
                g.binary(ALL[op as usize % ALL.len()], number(a), number(b))
            }
            8 | 9 => {
                use Binary::*;
                const ALL: [Binary; 12] =
                    [Add, Sub, Mul, FloorDiv, Mod, Min, Max, BitAnd, BitOr, BitXor, Shl, Shr];
                g.binary(ALL[op as usize % ALL.len()], integer(a), integer(b))
            }
            10 => match op % 4 {
                0 => g.unary(Unary::Neg, integer(a)),
                1 => g.unary(Unary::Abs, integer(a)),
                2 => g.unary(Unary::ToInt, number(a)),
                _ => g.unary(Unary::ToFloat, integer(a)),
            },
            11 if op % 2 == 0 => g.compare(compare, number(a), number(b)),
            11 => g.compare(compare, integer(a), integer(b)),
            12 => match op % 3 {
                0 => g.binary(Binary::And, condition(a), condition(b)),
                1 => g.binary(Binary::Or, condition(a), condition(b)),
                _ => g.unary(Unary::Not, condition(a)),
            },
            13 => match op % 3 {
                0 => g.select(condition(a), number(b), number(c)),
                1 => g.select(condition(a), integer(b), integer(c)),
                _ => g.select(condition(a), condition(b), condition(c)),
            },
            14 => match op % 4 {
                0 => g.load(Buffer { capture: 0, tangent: int % 2 == 0 }, Type::F, &[integer(a), integer(b)]),
                1 => g.load(Buffer { capture: 1, tangent: false }, Type::F, &[]),
                _ => g.load(Buffer { capture: 2, tangent: false }, Type::I, &[integer(a)]),
            },
            _ if op % 3 == 0 => g.random(integer(a), integer(b)),
            _ => g.powi(number(a), int % 7),
        };
        pools[match g.type_of(node) {
            Type::F => 0,
            Type::I => 1,
            Type::B => 2,
        }]
        .push(node);
    }
    g
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => -8.0..8.0,
        2 => -1e-3..1e-3,
        1 => -1e30..1e30,
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-39, -1e-310, 1e-44]),
        1 => prop::sample::select(vec![f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MAX, f64::MIN_POSITIVE]),
    ]
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    (any::<u8>(), any::<u8>(), any::<[u16; 3]>(), prop_oneof![-9..9i32, any::<i32>()], any_number())
}

fn any_world() -> impl Strategy<Value = World> {
    let direction = prop::sample::select(vec![Direction::Keys, Direction::Queries]);
    let rows = prop_oneof![1..=9usize, 60..=MAX_ROWS];
    let numbers = prop::collection::vec(any_number(), 997);
    let integers = prop::collection::vec(prop_oneof![-3..70i32, any::<i32>()], 211);
    let masks = prop::collection::vec(prop_oneof![Just(u32::MAX), Just(0), any::<u32>()], MAX_ROWS);
    (direction, rows, 1..=MAX_WIDTH, numbers, integers, masks, [0..500i32, 0..500], [1..4i32, 1..9]).prop_map(
        |(direction, rows, lanes, numbers, integers, masks, first, step)| World {
            direction,
            rows,
            lanes,
            numbers,
            integers,
            masks,
            first,
            step,
        },
    )
}

impl<R: Real> Data<R> {
    /// The value of every node for a pair, given those of the nodes of type F; the exact ones among these are checked
    /// against `given` by the caller.
    fn expected(&self, g: &Graph, pair: (usize, usize), given: &dyn Fn(Expr) -> f64) -> Vec<Expected> {
        let (row, lane) = pair;
        let mut values: Vec<Expected> = Vec::with_capacity(g.len());
        let exact = |x: f64| Expected::number(R::of(x).to_f64(), 0.0);
        for (expr, node) in g.iter() {
            let number = |e: &Expr| given(*e);
            let integer = |e: &Expr| values[e.index()].integer;
            let value = match node {
                Node::Float(bits) => exact(f64::from_bits(*bits)),
                Node::Int(value) => Expected::integer(*value),
                Node::Bool(value) => Expected::integer(i32::from(*value)),
                Node::Var(var) => exact(
                    match source(*var).unwrap() {
                        Source::Lane(n) => self.lane_numbers[n][lane],
                        Source::Row(n) => self.row_numbers[n][row],
                        Source::Tile(n) => self.tiles[n][row * self.width + lane],
                    }
                    .to_f64(),
                ),
                Node::Index(index) => Expected::integer(self.index(*index, pair)),
                Node::Load(buffer, index) => {
                    let at = |axis: usize, extent: i32| integer(&index[axis]).clamp(0, extent - 1) as usize;
                    match buffer.capture {
                        0 => exact(self.table[usize::from(buffer.tangent)][at(0, 5) * 4 + at(1, 4)].to_f64()),
                        1 => exact(self.scalar[0].to_f64()),
                        _ => Expected::integer(self.ids[at(0, 7)]),
                    }
                }
                Node::Unary(op, a) => match (op, g.type_of(*a)) {
                    (Unary::ToInt, _) => Expected::integer(number(a).floor() as i32),
                    (Unary::ToFloat, _) => exact(f64::from(integer(a))),
                    (Unary::Not, _) => Expected::integer(1 - integer(a)),
                    (Unary::Neg, Type::I) => Expected::integer(integer(a).wrapping_neg()),
                    (Unary::Abs, Type::I) => Expected::integer(integer(a).wrapping_abs()),
                    (Unary::Neg | Unary::Abs | Unary::Sqrt | Unary::Floor | Unary::StopGrad, _)
                    | (Unary::Erf | Unary::Sin | Unary::Cos, _) => {
                        exact(float_unary(*op, number(a)).unwrap())
                    }
                    _ => Expected::number(float_unary(*op, number(a)).unwrap(), 4.0),
                },
                Node::Binary(op, a, b) => match (op, g.type_of(*a)) {
                    (_, Type::I | Type::B) => Expected::integer(int_binary(*op, integer(a), integer(b))),
                    (Binary::FloorDiv, _) => exact(R::of(number(a) / number(b)).to_f64().floor()),
                    (Binary::Mod, _) => {
                        let quotient = R::of(number(a) / number(b)).to_f64().floor();
                        exact(number(a) - R::of(number(b) * quotient).to_f64())
                    }
                    _ => exact(float_binary(*op, number(a), number(b)).unwrap()),
                },
                Node::Compare(op, a, b) => Expected::integer(i32::from(match g.type_of(*a) {
                    Type::F => op.of(&number(a), &number(b)),
                    _ => op.of(&integer(a), &integer(b)),
                })),
                Node::Select(c, a, b) => {
                    let picked = if integer(c) == 1 { a } else { b };
                    match g.type_of(expr) {
                        Type::F => exact(number(picked)),
                        _ => Expected::integer(integer(picked)),
                    }
                }
                Node::Powi(a, n) => {
                    let exact = number(a).powi(*n);
                    Expected { least: smallest::<R>(), ..Expected::number(exact, 2.0 * f64::from(n.abs())) }
                }
                Node::Random(a, b) => {
                    let seed = [integer(a), integer(b)].map(|word| word as u32);
                    let [query, key] = [Index::Query, Index::Key].map(|index| self.index(index, pair) as u64);
                    exact(random::uniform(seed, 2 * HEADS as u64 + 1, query, key))
                }
                other => unreachable!("{other:?}"),
            };
            values.push(value);
        }
        values
    }
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    number: f64,
    /// How far a number may be off, in units in the last place, or absolutely.
    ulps: f64,
    least: f64,
    integer: i32,
}

impl Expected {
    fn number(number: f64, ulps: f64) -> Self {
        Self { number, ulps, least: 0.0, integer: 0 }
    }

    fn integer(integer: i32) -> Self {
        Self { number: 0.0, ulps: 0.0, least: 0.0, integer }
    }

    fn allows<R: Real>(&self, actual: f64) -> bool {
        close::<R>(actual, self.number, self.ulps) || (actual - self.number).abs() <= self.least
    }
}

fn numbers_of(g: &Graph) -> Vec<Expr> {
    g.iter().map(|(expr, _)| expr).filter(|&expr| g.type_of(expr) == Type::F).collect()
}

fn check<S: Simd>(g: &Graph, world: &World) -> Result<(), TestCaseError> {
    let data = Data::<S::T>::new(world, S::WIDTH);
    let compile =
        |outputs: &[Output]| TileCode::new(g, outputs, world.direction, HEADS, &source, &captures()).unwrap();
    let numbers = numbers_of(g);
    let tiles: Vec<Output> = numbers.iter().map(|&expr| Output::Tile(expr)).collect();
    let all = data.run::<S>(&compile(&tiles), (tiles.len(), false, 0), |run| run());
    prop_assert_eq!(&all.masks, &data.masks, "a code without masks changed them");
    let slot = |expr: Expr| numbers.binary_search(&expr).unwrap();
    let value = |expr: Expr, row: usize, lane: usize| all.tiles[slot(expr)][row * S::WIDTH + lane];

    // The last condition, as a mask, and sums at places of every class.
    let condition = g.iter().map(|(expr, _)| expr).rfind(|&expr| g.type_of(expr) == Type::B).unwrap();
    let integers: Vec<Expr> =
        g.iter().map(|(expr, _)| expr).filter(|&expr| g.type_of(expr) == Type::I).collect();
    let picks: Vec<[Expr; 3]> = (0..4)
        .map(|i| {
            let integer = |n: usize| integers[integers.len() - 1 - (7 * i + n) % integers.len()];
            [integer(0), integer(3), numbers[numbers.len() - 1 - (5 * i) % numbers.len()]]
        })
        .collect();
    let mut outputs: Vec<Output> = numbers.iter().rev().take(2).map(|&expr| Output::Tile(expr)).collect();
    outputs.push(Output::Mask(condition));
    outputs.extend(picks.iter().enumerate().map(|(i, &[a, b, gradient])| Output::Scatter {
        capture: 0,
        table: i,
        index: vec![a, b],
        gradient,
    }));
    let few = compile(&outputs);
    let [apart, aliased] = [false, true].map(|alias| data.run::<S>(&few, (2, alias, 80), |run| run()));
    let mut sums = vec![(0.0, 0.0); 80];
    for row in 0..data.rows {
        for lane in 0..data.lanes {
            let expected = data.expected(g, (row, lane), &|expr| value(expr, row, lane).to_f64());
            for &expr in &numbers {
                let (actual, expected) = (value(expr, row, lane).to_f64(), expected[expr.index()]);
                prop_assert!(
                    expected.allows::<S::T>(actual),
                    "{:?} is {actual:e}, not {expected:?}, at row {row}, lane {lane}; of {:?}",
                    g.node(expr),
                    g.node(expr).arguments().iter().map(|a| (g.node(*a), expected)).collect::<Vec<_>>()
                );
            }
            for (n, &expr) in numbers.iter().rev().take(2).enumerate() {
                let before = value(expr, row, lane).to_f64().to_bits();
                for results in [&apart, &aliased] {
                    let after = results.tiles[n][row * S::WIDTH + lane].to_f64().to_bits();
                    prop_assert_eq!(before, after, "of few outputs, row {}, lane {}", row, lane);
                }
            }
            let counts = data.masks[row] >> lane & 1 == 1 && expected[condition.index()].integer == 1;
            prop_assert_eq!(apart.masks[row] >> lane & 1 == 1, counts, "mask of row {}, lane {}", row, lane);
            for (i, [a, b, gradient]) in picks.iter().enumerate().filter(|_| counts) {
                let at =
                    |expr: &Expr, extent: i32| expected[expr.index()].integer.clamp(0, extent - 1) as usize;
                let (sum, size) = &mut sums[20 * i + at(a, 5) * 4 + at(b, 4)];
                *sum += value(*gradient, row, lane).to_f64();
                *size += value(*gradient, row, lane).to_f64().abs();
            }
        }
    }
    prop_assert_eq!(&apart.masks, &aliased.masks);
    for (at, (&actual, (sum, size))) in apart.tables.iter().zip(sums).enumerate() {
        // Where numbers are infinite, or overflow on the way, the order may matter.
        let is_close = !size.is_finite() || (actual - sum).abs() <= 1e-13 * size;
        prop_assert!(is_close, "entry {at} is {actual}, not {sum}");
        prop_assert_eq!(actual.to_bits(), aliased.tables[at].to_bits());
    }
    Ok(())
}

fn check_isa<I: Isa>(recipes: &[Recipe], world: &World) -> Result<(), TestCaseError> {
    let g = build(recipes);
    check::<I::F32>(&g, world)?;
    check::<I::F64>(&g, world)
}

proptest! {
    // A case is six tiles, and every node of each pair.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn any_graph_over_any_tile(recipes in prop::collection::vec(any_recipe(), 1..40), world in any_world()) {
        check_isa::<Portable>(&recipes, &world)?;
        #[cfg(target_arch = "x86_64")]
        {
            if crate::Isa::Avx2.is_available() {
                check_isa::<crate::simd::Avx2>(&recipes, &world)?;
            }
            if crate::Isa::Avx512.is_available() {
                check_isa::<crate::simd::Avx512>(&recipes, &world)?;
            }
        }
    }
}
