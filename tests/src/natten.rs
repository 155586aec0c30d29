//! NATTEN's own test parameters (`tests/test_fna.py`, `test_hopper_fna.py`, `test_blackwell_fna.py`, `test_fmha.py` and
//! `test_torch_compile.py` of version 0.21.7, `test_fna1d.py` to `test_fna3d.py` of 0.17.5), with its distribution of
//! numbers: unit normal inputs, `grad_output` of deviation 0.05.
//!
//! NATTEN checks outputs and gradients of these against its own kernels; here the logsumexp and the gradients of the bias
//! and of additional tokens are checked too, against the oracle. What is too large for the oracle is cut by the rule of
//! the module `cut`.
//!
//! Every tuple runs with every combination of causal axes, in f32 where `Dv = D`; the repetitions with `Dv != D` go
//! round f64, f16 and bf16, and the others draw one of all four.

use natten_core::geometry::AxisParams;
use natten_core::{DType, Role};

use crate::case::Case;
use crate::cut::{Grid, Tuple, afford};
use crate::data::hash;

/// Tuples 1 to 16: `(batch, heads, heads_kv, head_dim, length, kernel_size, strides, dilations)`.
type Tuple1 = (usize, usize, usize, usize, usize, usize, &'static [usize], &'static [usize]);
const RANK_1: [Tuple1; 16] = [
    (4, 3, 3, 128, 256, 255, &[82], &[1]),
    (4, 3, 1, 128, 256, 255, &[82], &[1]),
    (2, 4, 2, 128, 128, 63, &[31], &[1]),
    (2, 4, 1, 128, 128, 63, &[31], &[1]),
    (1, 1, 1, 32, 128, 3, &[2], &[5]),
    (1, 1, 1, 32, 128, 3, &[2], &[10]),
    (1, 1, 1, 64, 128, 8, &[7], &[5]),
    (1, 1, 1, 128, 128, 61, &[33], &[1]),
    (1, 2, 2, 64, 125, 15, &[1], &[1]),
    (1, 1, 1, 128, 256, 3, &[2], &[10]),
    (1, 1, 1, 32, 67, 8, &[1], &[1]),
    (1, 1, 1, 32, 17, 12, &[1], &[1]),
    (1, 1, 1, 128, 256, 136, &[136], &[1]),
    (1, 1, 1, 128, 256, 128, &[127], &[1]),
    (1, 1, 1, 128, 32768, 2048, &[1, 128, 256, 2048], &[1]),
    (1, 1, 1, 128, 32768, 63, &[1], &[4, 8, 16]),
];

/// Tuples 17 to 31, and 32 to 43: `(batch, heads, heads_kv, head_dim, shape, kernel_size, stride, dilation)`.
type TupleN<const N: usize> = (usize, usize, usize, usize, [usize; N], [usize; N], [usize; N], [usize; N]);
const RANK_2: [TupleN<2>; 15] = [
    (1, 4, 2, 32, [5, 25], [5, 16], [1, 16], [1, 1]),
    (1, 4, 1, 32, [5, 25], [5, 16], [1, 16], [1, 1]),
    (1, 1, 1, 32, [84, 19], [7, 3], [1, 1], [5, 1]),
    (1, 1, 1, 128, [19, 29], [8, 8], [1, 1], [2, 3]),
    (1, 1, 1, 128, [48, 17], [24, 16], [1, 1], [2, 1]),
    (1, 1, 1, 128, [67, 80], [12, 7], [8, 4], [5, 11]),
    (1, 1, 1, 128, [33, 33], [24, 16], [1, 1], [1, 1]),
    (1, 1, 1, 32, [40, 20], [3, 7], [1, 1], [1, 1]),
    (1, 1, 1, 64, [28, 40], [17, 31], [1, 1], [1, 1]),
    (1, 1, 1, 64, [36, 40], [36, 40], [12, 13], [1, 1]),
    (1, 1, 1, 128, [44, 80], [44, 80], [4, 8], [1, 1]),
    (1, 1, 1, 32, [84, 69], [7, 20], [1, 6], [5, 1]),
    (1, 1, 1, 128, [44, 80], [32, 32], [22, 16], [1, 1]),
    (1, 1, 1, 128, [72, 80], [24, 16], [1, 1], [3, 5]),
    (1, 12, 4, 32, [17, 16], [3, 8], [1, 2], [1, 1]),
];
const RANK_3: [TupleN<3>; 12] = [
    (4, 8, 8, 64, [32, 10, 10], [7, 3, 3], [5, 1, 1], [1, 2, 3]),
    (1, 4, 1, 32, [8, 8, 16], [3, 3, 3], [2, 1, 2], [2, 2, 4]),
    (1, 1, 1, 64, [18, 37, 12], [14, 16, 12], [12, 8, 1], [1, 2, 1]),
    (1, 1, 1, 32, [13, 11, 9], [3, 4, 3], [2, 3, 3], [3, 2, 2]),
    (1, 1, 1, 32, [8, 4, 8], [7, 3, 7], [1, 1, 1], [1, 1, 1]),
    (1, 1, 1, 32, [16, 16, 16], [16, 16, 16], [2, 4, 5], [1, 1, 1]),
    (1, 12, 12, 64, [14, 8, 8], [7, 5, 5], [2, 1, 3], [2, 1, 1]),
    (2, 3, 3, 32, [5, 45, 73], [2, 7, 32], [1, 4, 32], [2, 2, 2]),
    (1, 2, 2, 32, [8, 8, 12], [5, 8, 11], [2, 3, 4], [1, 1, 1]),
    (2, 2, 1, 128, [68, 64, 8], [14, 32, 2], [3, 4, 1], [1, 2, 3]),
    (1, 1, 1, 128, [30, 48, 18], [3, 2, 8], [1, 1, 1], [8, 18, 2]),
    (1, 1, 1, 128, [16, 44, 80], [12, 32, 32], [8, 22, 16], [1, 1, 1]),
];

/// Tuples 44 to 46, of 0.17.5: `(batch, heads, shape, head_dim, kernel_size, dilation)`, stride 1.
type Old<const N: usize> = (usize, usize, [usize; N], usize, [usize; N], [usize; N]);
const OLD_1: [Old<1>; 6] = [
    (1, 1, [3], 16, [3], [1]),
    (1, 2, [33], 40, [15], [2]),
    (4, 3, [256], 56, [255], [1]),
    (2, 4, [4096], 72, [2047], [2]),
    (4, 3, [5000], 88, [255], [16]),
    (1, 48, [512], 256, [45], [4]),
];
const OLD_2: [Old<2>; 5] = [
    (1, 1, [8, 10], 24, [3, 5], [1, 2]),
    (1, 2, [15, 20], 32, [5, 15], [3, 1]),
    (1, 2, [17, 19], 40, [9, 7], [1, 2]),
    (2, 4, [64, 128], 72, [21, 29], [3, 4]),
    (4, 3, [28, 46], 88, [11, 13], [1, 1]),
];
const OLD_3: [Old<3>; 3] = [
    (1, 2, [6, 8, 12], 24, [5, 7, 11], [1, 1, 1]),
    (1, 4, [6, 8, 12], 32, [3, 3, 3], [2, 2, 4]),
    (1, 12, [32, 8, 8], 48, [7, 5, 5], [2, 1, 1]),
];

/// Tuple 49, ordinary attention: `(batch, heads, head_dim, head_dim_v, queries, keys)`.
const FULL: [(usize, usize, usize, usize, usize, usize); 5] = [
    (1, 1, 192, 64, 3584, 381),
    (1, 1, 288, 256, 12072, 1680),
    (1, 1, 32, 32, 8, 17),
    (2, 4, 16, 16, 128, 237),
    (1, 1, 128, 128, 256, 10240),
];

/// Every case of NATTEN's that the oracle can afford, at most cut.
///
/// # Panics
/// Where a tuple is no problem: a mistake of this crate, which its tests would find.
pub fn natten_cases() -> Vec<Case> {
    let mut list = List::default();
    let mut number = 0;
    for (batch, heads, heads_kv, head_dim, len, kernel_size, strides, dilations) in RANK_1 {
        number += 1;
        for &stride in strides {
            for &dilation in dilations {
                let axis = AxisParams::new(len, kernel_size).stride(stride).dilation(dilation);
                let name = match (strides.len(), dilations.len()) {
                    (1, 1) => format!("natten-{number}"),
                    (_, 1) => format!("natten-{number}-stride-{stride}"),
                    _ => format!("natten-{number}-dilation-{dilation}"),
                };
                list.with_and_without_dv(
                    &name,
                    number,
                    heads_of(batch, heads, heads_kv, head_dim, vec![axis]),
                );
            }
        }
    }
    for tuple in RANK_2.map(grid).into_iter().chain(RANK_3.map(grid)) {
        number += 1;
        list.with_and_without_dv(&format!("natten-{number}"), number, tuple);
    }
    for (number, rank) in
        [(44, OLD_1.map(old).to_vec()), (45, OLD_2.map(old).to_vec()), (46, OLD_3.map(old).to_vec())]
    {
        for (index, tuple) in rank.into_iter().enumerate() {
            list.old(&format!("natten-{number}-{index}"), &tuple);
        }
    }
    for (index, (batch, heads, head_dim, head_dim_v, queries, keys)) in FULL.into_iter().enumerate() {
        let tuple = heads_of(batch, heads, heads, head_dim, Vec::new());
        let tuple = Tuple { head_dim_v, grid: Grid::Full { queries, keys }, ..tuple };
        let name = format!("natten-49-{index}");
        list.every_causal(&name, drawn_dtype(&name), tuple);
    }
    for (index, (heads, axes, causal)) in fast_path().into_iter().enumerate() {
        for additional in [0, 64] {
            let tuple = Tuple { additional, ..heads_of(1, heads, heads, 32, axes.clone()) };
            let name = format!("natten-52-{index}-extra-{additional}");
            list.push(&name, drawn_dtype(&name), tuple, &causal);
        }
    }
    list.cases
}

/// Tuple 52: `(heads, axes, causal)`. NATTEN takes its path for ordinary attention on the first.
fn fast_path() -> [(usize, Vec<AxisParams>, Vec<bool>); 4] {
    let axis = |len, kernel_size, dilation, stride| {
        AxisParams::new(len, kernel_size).stride(stride).dilation(dilation)
    };
    [
        (2, vec![axis(111, 111, 1, 1)], vec![true]),
        (8, vec![axis(14, 4, 2, 2), axis(14, 4, 2, 3)], vec![false; 2]),
        (2, vec![axis(19, 4, 2, 2), axis(27, 2, 7, 1)], vec![false; 2]),
        (2, vec![axis(16, 4, 2, 2), axis(24, 6, 3, 1), axis(24, 8, 2, 3)], vec![true, false, false]),
    ]
}

fn heads_of(batch: usize, heads: usize, heads_kv: usize, head_dim: usize, axes: Vec<AxisParams>) -> Tuple {
    Tuple {
        batch,
        heads,
        heads_kv,
        head_dim,
        head_dim_v: head_dim,
        grid: Grid::Windows(axes),
        additional: 0,
        has_rpb: false,
    }
}

fn grid<const N: usize>(tuple: TupleN<N>) -> Tuple {
    let (batch, heads, heads_kv, head_dim, shape, kernel_size, stride, dilation) = tuple;
    let axis = |a: usize| AxisParams::new(shape[a], kernel_size[a]).stride(stride[a]).dilation(dilation[a]);
    heads_of(batch, heads, heads_kv, head_dim, (0..N).map(axis).collect())
}

fn old<const N: usize>((batch, heads, shape, head_dim, kernel_size, dilation): Old<N>) -> Tuple {
    grid((batch, heads, heads, head_dim, shape, kernel_size, [1; N], dilation))
}

#[derive(Default)]
struct List {
    cases: Vec<Case>,
}

impl List {
    fn push(&mut self, name: &str, dtype: DType, tuple: Tuple, causal: &[bool]) {
        let flags: String = causal.iter().map(|&is_causal| if is_causal { 'x' } else { 'o' }).collect();
        let name = format!("{name}-causal-{flags}-{dtype}");
        let problem = afford(tuple).problem(dtype, causal).unwrap_or_else(|error| panic!("{name}: {error}"));
        let case = Case::new(name, problem);
        let data = case.data.clone().deviation(Role::GradOutput, 0.05);
        self.cases.push(case.data(data));
    }

    fn every_causal(&mut self, name: &str, dtype: DType, tuple: Tuple) {
        let rank = tuple.rank();
        for bits in 0..1usize << rank {
            let causal: Vec<bool> = (0..rank).map(|axis| bits >> axis & 1 == 1).collect();
            self.push(name, dtype, tuple.clone(), &causal);
        }
    }

    /// `Dv = D`, and one `Dv` of NATTEN's range, multiples of 8 up to 192, that is another.
    fn with_and_without_dv(&mut self, name: &str, number: usize, tuple: Tuple) {
        self.every_causal(name, DType::F32, tuple.clone());
        let drawn = 8 * (1 + 7 * number % 24);
        let head_dim_v = if drawn == tuple.head_dim { drawn - 8 } else { drawn };
        let dtype = [DType::F64, DType::F16, DType::Bf16][number % 3];
        self.every_causal(&format!("{name}-dv-{head_dim_v}"), dtype, Tuple { head_dim_v, ..tuple });
    }

    /// With additional tokens and without, and with a bias, which 0.17.5 has for windows that are not causal.
    fn old(&mut self, name: &str, tuple: &Tuple) {
        let mut additional = vec![0, 64];
        if let Grid::Windows(axes) = &tuple.grid
            && let [axis] = axes[..]
        {
            additional.push(axis.len);
        }
        for additional in additional {
            let name = format!("{name}-extra-{additional}");
            self.every_causal(&name, drawn_dtype(&name), Tuple { additional, ..tuple.clone() });
        }
        let (name, causal) = (format!("{name}-rpb"), vec![false; tuple.rank()]);
        self.push(&name, drawn_dtype(&name), Tuple { has_rpb: true, ..tuple.clone() }, &causal);
    }
}

/// One of all dtypes, drawn by a name.
fn drawn_dtype(name: &str) -> DType {
    DType::FLOATS[(hash(name) >> 32) as usize % DType::FLOATS.len()]
}
