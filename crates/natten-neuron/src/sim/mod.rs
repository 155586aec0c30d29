//! The simulator. [`compute`](compute::run) gives a kernel's results, right to the rounding; [`time`](time::time) gives
//! the time that each engine spends on it. Nothing of the time depends on data, so the two are apart.

pub mod compute;
pub mod cost;
pub mod memory;
pub mod report;
pub mod time;
