//! One suite for every backend of neighborhood attention. It depends on `natten-core` alone, so anybody can run it on a
//! backend of their own:
//!
//! ```
//! use natten_conformance::{Options, run_all};
//! use natten_core::reference::ReferenceBackend;
//!
//! let backend = ReferenceBackend::new();
//! let options = Options::default().filter("feature-kernel-1").random(4);
//! let report = run_all(&backend, &options, &mut |outcome| assert!(outcome.failures.is_empty(), "{outcome}"));
//! assert!(report.passed(), "{report}");
//! ```
//!
//! [`cases`] are the deterministic cases: golden ones with inputs from files, NATTEN's own test tuples, features that
//! those miss, values that are not finite, programs, linear attention, and the unfused pair. [`strategies`] draws random
//! ones, of programs that [`drafts`] draws. [`run_case`] runs one case twice on outputs that hold rubbish before, and
//! compares every result with the f64 oracle of `natten-core` within a bound of its own for every element, derived in
//! [`tolerance`] and, where no formula is written down, in [`sensitivity`].
#![forbid(unsafe_code)]

mod case;
mod compare;
mod cut;
pub mod data;
pub mod drafts;
mod expected;
mod features;
pub mod golden;
mod linear;
mod memory;
mod merge;
mod natten;
mod outcome;
mod pairs;
mod programs;
mod require;
mod run;
pub mod sensitivity;
mod special;
pub mod strategies;
mod suite;
pub mod tolerance;
mod unfused;

pub use case::{Case, describe, with_dtype};
pub use memory::Layout;
pub use merge::{MergeCase, merge_cases, run_merge_case};
pub use natten::natten_cases;
pub use outcome::{Outcome, Refusal, Report, Status, TensorCheck};
pub use require::{parse_required, required_backends};
pub use run::{HostTensors, evaluate, run_case};
pub use suite::{Options, cases, run_all};
