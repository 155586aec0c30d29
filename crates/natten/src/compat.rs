//! The unfused operations under the names that they had in older versions of NATTEN, with the order of arguments that
//! they had then. Each is another name of a call of today, named beside it; options that came later are set on the
//! result.
//!
//! ```
//! use natten::compat::{natten2dav, natten2dqkrpb};
//! use ndarray::{Array3, Array5};
//! # fn main() -> natten::Result<()> {
//! let x = Array5::<f64>::from_elem((1, 2, 5, 6, 4), 0.5);
//! let rpb = Array3::<f64>::zeros((2, 5, 5));
//! let device = natten::Registry::probe().device("reference")?;
//! let scores = natten2dqkrpb(&x, &x, &rpb, 3, 1).device(&device).forward()?;
//! assert_eq!(scores.shape(), [1, 2, 5, 6, 9]);
//! let output = natten2dav(&scores, &x, 3, 1).device(&device).forward()?;
//! assert_eq!(output.shape(), x.shape());
//! # Ok(())
//! # }
//! ```

use natten_core::HostElement;

use crate::array::{Array, PerAxis};
use crate::unfused::{Av, Qk, na1d_av, na1d_qk, na2d_av, na2d_qk, na3d_av, na3d_qk};

macro_rules! qk {
    ($($name:ident is $successor:ident;)*) => {$(
        #[doc = concat!("[`", stringify!($successor), "`] with a dilation.")]
        pub fn $name<'a, T: HostElement>(
            query: impl Into<Array<'a, T>>,
            key: impl Into<Array<'a, T>>,
            kernel_size: impl Into<PerAxis<usize>>,
            dilation: impl Into<PerAxis<usize>>,
        ) -> Qk<'a, T> {
            $successor(query, key, kernel_size).dilation(dilation)
        }
    )*};
}

macro_rules! qk_with_bias {
    ($($name:ident is $successor:ident;)*) => {$(
        #[doc = concat!("[`", stringify!($successor), "`] with a dilation and [`rpb`](Qk::rpb).")]
        pub fn $name<'a, T: HostElement>(
            query: impl Into<Array<'a, T>>,
            key: impl Into<Array<'a, T>>,
            rpb: impl Into<Array<'a, T>>,
            kernel_size: impl Into<PerAxis<usize>>,
            dilation: impl Into<PerAxis<usize>>,
        ) -> Qk<'a, T> {
            $successor(query, key, kernel_size).dilation(dilation).rpb(rpb)
        }
    )*};
}

macro_rules! av {
    ($($name:ident is $successor:ident;)*) => {$(
        #[doc = concat!("[`", stringify!($successor), "`] with a dilation.")]
        pub fn $name<'a, T: HostElement>(
            attention: impl Into<Array<'a, T>>,
            value: impl Into<Array<'a, T>>,
            kernel_size: impl Into<PerAxis<usize>>,
            dilation: impl Into<PerAxis<usize>>,
        ) -> Av<'a, T> {
            $successor(attention, value, kernel_size).dilation(dilation)
        }
    )*};
}

qk! {
    natten1dqk is na1d_qk;
    natten2dqk is na2d_qk;
}

qk_with_bias! {
    na1d_qk_with_bias is na1d_qk;
    na2d_qk_with_bias is na2d_qk;
    na1d_with_bias is na1d_qk;
    na2d_with_bias is na2d_qk;
    natten1dqkrpb is na1d_qk;
    natten2dqkrpb is na2d_qk;
}

av! {
    natten1dav is na1d_av;
    natten2dav is na2d_av;
}

/// A kernel size, or a dilation, of three axes: the first has one of its own.
const fn deep(depth: usize, size: usize) -> [usize; 3] {
    [depth, size, size]
}

/// [`na3d_qk`], the kernel size and the dilation of the first axis apart.
pub fn natten3dqk<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    kernel_size_d: usize,
    kernel_size: usize,
    dilation_d: usize,
    dilation: usize,
) -> Qk<'a, T> {
    na3d_qk(query, key, deep(kernel_size_d, kernel_size)).dilation(deep(dilation_d, dilation))
}

/// [`na3d_qk`] with [`rpb`](Qk::rpb), the kernel size and the dilation of the first axis apart.
pub fn na3d_qk_with_bias<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    rpb: impl Into<Array<'a, T>>,
    kernel_size_d: usize,
    kernel_size: usize,
    dilation_d: usize,
    dilation: usize,
) -> Qk<'a, T> {
    natten3dqk(query, key, kernel_size_d, kernel_size, dilation_d, dilation).rpb(rpb)
}

pub use self::na3d_qk_with_bias as na3d_with_bias;
pub use self::na3d_qk_with_bias as natten3dqkrpb;

/// [`na3d_av`], the kernel size and the dilation of the first axis apart.
pub fn natten3dav<'a, T: HostElement>(
    attention: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
    kernel_size_d: usize,
    kernel_size: usize,
    dilation_d: usize,
    dilation: usize,
) -> Av<'a, T> {
    na3d_av(attention, value, deep(kernel_size_d, kernel_size)).dilation(deep(dilation_d, dilation))
}
