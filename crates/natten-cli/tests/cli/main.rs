//! Tests of the built program: what it computes, what it prints, and how it refuses.
#![forbid(unsafe_code)]

mod bad_input;
mod check;
mod denoise;
mod denoise_bad_input;
mod emit;
mod golden;
#[cfg(feature = "neuron")]
mod neuron;
mod program;
mod programs;
mod run;
#[cfg(feature = "wgpu")]
mod wgpu;
