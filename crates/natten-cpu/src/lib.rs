//! Attention on the CPU: fused and tiled, forward and backward, in f64, f32, f16 and bf16, with the instruction set
//! picked at run time. Scores are never held: extra memory is tiles times threads, one number a row for backward, and
//! the partial tables of a bias gradient. Results are the same bytes run to run and for any number of threads.
//!
//! Use it through the `natten` facade, as a [`Backend`](natten_core::Backend), or by its typed, zero-copy entry
//! [`CpuPlan::run_views`]:
//!
//! ```
//! use natten_core::geometry::{AxisParams, Neighborhood};
//! use natten_core::{Backend, DType, OpRequest, Plan, PlanOptions, Problem};
//! use natten_cpu::{CpuBackend, CpuPlan, View, ViewMut};
//! # fn main() -> natten_core::Result<()> {
//! let window = Neighborhood::new(&[AxisParams::new(16, 5)])?;
//! let problem = Problem::builder(window, DType::F32).heads(2).head_dim(8).build()?;
//! let request = OpRequest::forward(&problem);
//! let cpu = CpuBackend::new()?;
//! let plan = pollster::block_on(cpu.plan(&problem, &request, &PlanOptions::default()))?;
//! let plan = plan.as_any().downcast_ref::<CpuPlan>().expect("the CPU makes plans of its own");
//!
//! let heads_first = vec![1f32; 2 * 16 * 8];
//! let qkv = View::new(&heads_first, &[1, 16, 2, 8], &[256, 8, 128, 1], 0)?;
//! let (mut output, mut logsumexp) = (vec![0f32; 256], vec![0f32; 32]);
//! let mut outputs = [
//!     ViewMut::new(&mut output, &[1, 16, 2, 8], &[256, 16, 8, 1], 0)?,
//!     ViewMut::new(&mut logsumexp, &[1, 16, 2], &[32, 2, 1], 0)?,
//! ];
//! plan.run_views(&[qkv, qkv, qkv], &mut outputs, &mut plan.new_workspace()?)?;
//! assert!(output.iter().all(|&x| (x - 1.0).abs() < 1e-6));
//! # Ok(())
//! # }
//! ```

mod backend;
mod dispatch;
mod element;
mod engine;
mod fma;
mod isa;
mod kernel;
mod lanes;
mod linear;
mod mods;
mod plan;
mod program;
mod simd;
mod slab;
mod slots;
mod softmax;
mod tile;
mod tiling;
mod tokens;
mod vector;
mod view;

pub use backend::{CpuBackend, NAME};
pub use isa::{ISA_VARIABLE, Isa};
pub use plan::CpuPlan;
pub use view::{MAX_AXES, View, ViewMut};
