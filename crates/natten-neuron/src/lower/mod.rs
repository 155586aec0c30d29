//! From problems to kernels.

pub mod builder;
pub mod constants;
pub mod launch;
pub mod layout;
pub mod program;
pub mod reroll;
pub mod sd;
pub mod softmax;
pub mod windows;
