//! The calls as a user makes them.

mod basic;
mod common;
mod linear;
mod programs;
mod second;
mod unfused;
