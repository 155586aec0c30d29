//! What natten computes: the description of an attention ([`Problem`]), its [`geometry`], the traits of a backend
//! ([`Backend`], [`Plan`]), and the f64 oracle that every backend is checked against ([`mod@reference`]). No threads, no
//! devices, no I/O, no `unsafe`.
//!
//! One truth lives here: where a window starts, which boxes a kernel visits, which tensors an operation takes and
//! gives back. Backends use it; a backend that derives a window of its own is a bug.
#![forbid(unsafe_code)]

mod backend;
mod cost;
mod dtype;
mod error;
pub mod geometry;
mod marker;
mod merge;
mod precision;
mod problem;
pub mod program;
pub mod reference;
mod role;
mod strides;
mod tensor;

pub use backend::{
    Artifact, Backend, Bindings, DeviceInfo, DeviceKind, HostQueue, Pending, Plan, PlanOptions, PlanReport,
    Queue, SourceKind, Submission, Timer, Workspace, check_tensor, padded_tile, ready,
};
pub use cost::{Cost, coverage_of};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use marker::{MaybeSend, MaybeSync};
pub use merge::{Partial, merge_attentions, merge_attentions_backward};
pub use precision::Precision;
pub use problem::{Op, OpRequest, Problem, ProblemBuilder, TensorSpec};
pub use role::{MAX_CAPTURES, Role, RoleSet};
pub use strides::{check_view, checked_len, contiguous_strides, is_injective};
pub use tensor::{HostElement, HostSlice, HostSliceMut, HostTensor, Storage, Tensor};
