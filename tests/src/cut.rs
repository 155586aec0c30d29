//! Cuts NATTEN's test tuples down to what a plain f64 oracle does in a moment, by one rule for all.
//!
//! The cost of a tuple is its visible pairs, over batch and heads, and 50 more for each query (which stand for making and
//! comparing its vectors), times `D + Dv + 16` (the 16 stands for what a pair takes whatever its vectors). [`afford`]
//! brings it under [`ENOUGH`], or as near as it can, in this order, each step only while it is needed:
//!
//! 1. the batch goes down to 1;
//! 2. the heads go down to those of one key head, query heads in proportion;
//! 3. both head dims are halved, to multiples of 8, down to 16; if they differed they stay different;
//! 4. additional tokens lose multiples of 64 while there are more;
//! 5. lengths lose whole multiples of `stride * dilation`, which leaves every residue group, every ragged end and the
//!    phase of every stride block as it was; at least a window and two blocks are left. Lengths of ordinary attention
//!    lose multiples of 128, which leaves ragged ends of tiles as they were.
//!
//! Only where the cost is still above [`TOO_MUCH`], kernels lose half of themselves, the largest first, strides in
//! proportion (an odd kernel stays odd, an even one even, a stride of 1 stays 1, one of the whole kernel the whole
//! kernel), and step 5 follows again. Rank, dilation and causal flags are never touched.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::{DType, Problem, Result};

/// A cost that nothing is cut below: about ten milliseconds of the oracle.
const ENOUGH: usize = 50_000 * (16 + 16 + 16);

/// A cost that kernels are cut above.
const TOO_MUCH: usize = 15 * ENOUGH;

/// Who sees whom in a tuple, before causal flags.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Grid {
    Windows(Vec<AxisParams>),
    Full { queries: usize, keys: usize },
}

/// The parameters of a test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tuple {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) heads_kv: usize,
    pub(crate) head_dim: usize,
    pub(crate) head_dim_v: usize,
    pub(crate) grid: Grid,
    pub(crate) additional: usize,
    pub(crate) has_rpb: bool,
}

impl Tuple {
    fn cost(&self) -> usize {
        let (queries, seen) = match &self.grid {
            Grid::Windows(axes) => {
                (axes.iter().map(|a| a.len).product(), axes.iter().map(|a| a.kernel_size).product())
            }
            Grid::Full { queries, keys } => (*queries, *keys),
        };
        let pairs = usize::saturating_mul(queries, seen + self.additional + 50);
        pairs.saturating_mul(self.batch * self.heads * (self.head_dim + self.head_dim_v + 16))
    }

    /// The axes along which the problem can be causal.
    pub(crate) fn rank(&self) -> usize {
        match &self.grid {
            Grid::Windows(axes) => axes.len(),
            Grid::Full { .. } => 1,
        }
    }

    /// The problem, causal along the axes that `causal` names.
    pub(crate) fn problem(&self, dtype: DType, causal: &[bool]) -> Result<Problem> {
        let neighborhood = match &self.grid {
            Grid::Windows(axes) => {
                let axes = axes.iter().zip(causal).map(|(&axis, &is_causal)| axis.causal(is_causal));
                Neighborhood::new(&axes.collect::<Vec<_>>())?
            }
            Grid::Full { queries, keys } => {
                Neighborhood::full(*queries, *keys, causal[0].then_some(Alignment::TopLeft))?
            }
        };
        Problem::builder(neighborhood, dtype)
            .batch(self.batch)
            .heads(self.heads)
            .heads_kv(self.heads_kv)
            .head_dim(self.head_dim)
            .head_dim_v(self.head_dim_v)
            .additional_tokens(self.additional)
            .relative_positional_bias(self.has_rpb)
            .build()
    }
}

/// The tuple, cut by the rule of this module.
pub(crate) fn afford(mut tuple: Tuple) -> Tuple {
    while tuple.cost() > ENOUGH && tuple.batch > 1 {
        tuple.batch -= 1;
    }
    let group = tuple.heads / tuple.heads_kv;
    while tuple.cost() > ENOUGH && tuple.heads_kv > 1 {
        tuple.heads_kv -= 1;
        tuple.heads = group * tuple.heads_kv;
    }
    while tuple.cost() > ENOUGH && tuple.head_dim.max(tuple.head_dim_v) > 16 {
        halve_dims(&mut tuple);
    }
    while tuple.cost() > ENOUGH && tuple.additional > 64 {
        tuple.additional -= 64;
    }
    while tuple.cost() > ENOUGH && shorten(&mut tuple.grid) {}
    if tuple.cost() > TOO_MUCH {
        while tuple.cost() > ENOUGH && halve_kernel(&mut tuple.grid) {
            while tuple.cost() > ENOUGH && shorten(&mut tuple.grid) {}
        }
    }
    tuple
}

fn halve_dims(tuple: &mut Tuple) {
    let halve = |dim: usize| if dim > 16 { (dim / 2).next_multiple_of(8) } else { dim };
    let differ = tuple.head_dim != tuple.head_dim_v;
    tuple.head_dim = halve(tuple.head_dim);
    tuple.head_dim_v = halve(tuple.head_dim_v);
    if differ && tuple.head_dim == tuple.head_dim_v {
        tuple.head_dim_v = if tuple.head_dim < 16 { tuple.head_dim + 8 } else { tuple.head_dim - 8 };
    }
}

/// Takes the least step off the axis that has most to spare; says whether there was one.
fn shorten(grid: &mut Grid) -> bool {
    match grid {
        Grid::Windows(axes) => {
            let spare = |a: &AxisParams| a.len.saturating_sub((a.kernel_size + 3 * a.stride) * a.dilation);
            let longest = axes.iter_mut().max_by_key(|axis| spare(axis));
            match longest.filter(|axis| spare(axis) > 0) {
                Some(axis) => axis.len -= axis.stride * axis.dilation,
                None => return false,
            }
        }
        Grid::Full { queries, keys } => {
            let longest = if *queries > *keys { queries } else { keys };
            if *longest <= 128 {
                return false;
            }
            *longest -= 128;
        }
    }
    true
}

/// Halves the largest kernel; says whether there was one of at least 8.
fn halve_kernel(grid: &mut Grid) -> bool {
    let Grid::Windows(axes) = grid else {
        return false;
    };
    let Some(axis) = axes.iter_mut().max_by_key(|axis| axis.kernel_size).filter(|axis| axis.kernel_size >= 8)
    else {
        return false;
    };
    let kernel_size = axis.kernel_size;
    let half = kernel_size / 2 + (kernel_size / 2 + kernel_size) % 2;
    axis.stride = match axis.stride {
        1 => 1,
        stride if stride == kernel_size => half,
        stride => (stride * half / kernel_size).clamp(2, half - 1),
    };
    // The axis keeps what it has beyond the window.
    axis.len -= (kernel_size - half) * axis.dilation;
    axis.kernel_size = half;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(len: usize, kernel_size: usize, stride: usize, dilation: usize) -> Tuple {
        let axis = AxisParams::new(len, kernel_size).stride(stride).dilation(dilation);
        Tuple {
            batch: 4,
            heads: 6,
            heads_kv: 3,
            head_dim: 128,
            head_dim_v: 128,
            grid: Grid::Windows(vec![axis]),
            additional: 0,
            has_rpb: false,
        }
    }

    #[test]
    fn what_is_cheap_is_not_cut() {
        let cheap = Tuple { batch: 1, heads: 1, heads_kv: 1, ..tuple(128, 3, 2, 5) };
        assert_eq!(afford(cheap.clone()), cheap);
    }

    #[test]
    fn batch_and_heads_go_before_head_dims_and_lengths() {
        let cut = afford(tuple(100, 31, 7, 2));
        assert_eq!((cut.batch, cut.heads, cut.heads_kv), (1, 2, 1));
        assert_eq!(cut.head_dim, 64);
        assert_eq!(cut.grid, tuple(100, 31, 7, 2).grid);
    }

    #[test]
    fn lengths_keep_groups_and_phases() {
        let cut = afford(tuple(32_771, 23, 5, 4));
        let Grid::Windows(axes) = &cut.grid else { panic!("still a window") };
        assert_eq!((axes[0].kernel_size, axes[0].stride, axes[0].dilation), (23, 5, 4));
        assert_eq!(axes[0].len % 20, 32_771 % 20);
        assert!(axes[0].len >= (23 + 10) * 4 && cut.cost() <= ENOUGH, "{cut:?}");
    }

    #[test]
    fn kernels_are_cut_last_and_keep_their_kind() {
        for (len, kernel_size, stride) in [(32_768, 2048, 2048), (32_768, 2047, 1), (5_000, 5_000, 13)] {
            let cut = afford(tuple(len, kernel_size, stride, 1));
            let Grid::Windows(axes) = &cut.grid else { panic!("still a window") };
            let axis = axes[0];
            assert!(axis.kernel_size < kernel_size && axis.kernel_size % 2 == kernel_size % 2, "{axis:?}");
            assert_eq!(axis.stride == 1, stride == 1, "{axis:?}");
            assert_eq!(axis.stride == axis.kernel_size, stride == kernel_size, "{axis:?}");
            assert_eq!(axis.len == axis.kernel_size, len == kernel_size, "{axis:?}");
            assert!(cut.problem(DType::F32, &[true]).is_ok());
        }
    }
}
