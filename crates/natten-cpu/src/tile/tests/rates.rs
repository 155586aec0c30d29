//! What an expression costs a pair: `cargo test --release -p natten-cpu --lib tile::tests::rates -- --ignored --nocapture`.

use std::time::Instant;

use natten_core::program::Unary::*;
use natten_core::program::{Binary, Compare};

use super::hoisting::alibi;
use super::*;

const ROWS: usize = 64;

/// Nanoseconds a pair of an output.
fn measure<S: Simd>(g: &Graph, output: &Output, direction: Direction) -> f64 {
    let outputs = std::slice::from_ref(output);
    let code = TileCode::new(g, outputs, direction, HEADS, &source, &captures()).unwrap();
    let world = World {
        direction,
        rows: ROWS,
        lanes: MAX_WIDTH,
        numbers: (0..997).map(|i| f64::from(i) * 0.016 - 8.0).collect(),
        integers: (0..211).collect(),
        masks: vec![u32::MAX; ROWS],
        first: [100, 200],
        step: [0, 0],
    };
    let data = Data::<S::T>::new(&world, S::WIDTH);
    let tiles = usize::from(matches!(output, Output::Tile(_)));
    let mut best = f64::INFINITY;
    data.run::<S>(&code, (tiles, false, 20), |run| {
        for _ in 0..30 {
            let start = Instant::now();
            for _ in 0..200 {
                run();
            }
            best = best.min(start.elapsed().as_secs_f64() / 200.0);
        }
    });
    best * 1e9 / (ROWS * S::WIDTH) as f64
}

fn programs(g: &mut Graph) -> Vec<(String, Output)> {
    let (score, grad) = (g.var(Var::Score), g.var(Var::Grad));
    let twenty = g.float(20.0);
    let softcap = |g: &mut Graph| {
        let ratio = g.div(score, twenty);
        let t = g.unary(Tanh, ratio);
        g.mul(twenty, t)
    };
    let mut all =
        vec![("softcap".to_owned(), Output::Tile(softcap(g))), ("alibi".to_owned(), Output::Tile(alibi(g)))];
    let [query, key] = [Index::Query, Index::Key].map(|index| g.index(index));
    let causal = g.compare(Compare::Le, key, query);
    all.push(("mask k <= q".to_owned(), Output::Mask(causal)));
    let seed = g.int(7);
    let random = g.random(seed, seed);
    all.push(("random".to_owned(), Output::Tile(random)));
    let zero = g.int(0);
    let difference = g.sub(query, key);
    let load = g.load(Buffer { capture: 0, tangent: false }, Type::F, &[zero, difference]);
    all.push(("load[q - k]".to_owned(), Output::Tile(load)));
    for (name, index) in
        [("[h]", g.index(Index::Head)), ("[q]", query), ("[k]", key), ("[q - k]", difference)]
    {
        let scatter = Output::Scatter { capture: 0, table: 0, index: vec![zero, index], gradient: grad };
        all.push((format!("scatter{name}"), scatter));
    }
    for op in [Exp, Exp2, Log, Log2, Expm1, Log1p, Sqrt, Rsqrt, Tanh, Sigmoid, Softplus, Erf, Sin, Floor, Abs]
    {
        let y = g.unary(op, score);
        all.push((format!("{op:?}"), Output::Tile(y)));
    }
    for op in [Binary::Add, Binary::Mul, Binary::Div, Binary::Max] {
        let y = g.binary(op, score, grad);
        all.push((format!("{op:?}"), Output::Tile(y)));
    }
    let select = g.select(causal, score, grad);
    all.push(("select(k <= q, ...)".to_owned(), Output::Tile(select)));
    all
}

#[test]
#[ignore = "prints times"]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn rates() {
    let mut g = Graph::new();
    let programs = programs(&mut g);
    println!("ns a pair, lanes queries and lanes keys");
    for (name, output) in &programs {
        let mut line = format!("{name:20}");
        let mut add =
            |isa: &str, times: [f64; 2]| line += &format!("  {isa} {:6.3} {:6.3}", times[0], times[1]);
        let directions = [Direction::Keys, Direction::Queries];
        macro_rules! isa {
            ($isa:ty, $name:literal) => {
                add(concat!($name, " f32"), directions.map(|d| measure::<<$isa as Isa>::F32>(&g, output, d)));
                add(concat!($name, " f64"), directions.map(|d| measure::<<$isa as Isa>::F64>(&g, output, d)));
            };
        }
        #[cfg(target_arch = "x86_64")]
        {
            if crate::Isa::Avx512.is_available() {
                isa!(crate::simd::Avx512, "avx512");
            }
            if crate::Isa::Avx2.is_available() {
                isa!(crate::simd::Avx2, "avx2");
            }
        }
        isa!(Portable, "portable");
        println!("{line}");
    }
}
