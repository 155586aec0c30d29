//! From problems to kernels.

pub mod builder;
pub mod constants;
pub mod launch;
pub mod layout;
pub mod reroll;
pub mod softmax;
pub mod windows;
pub mod program;
pub mod sd;
