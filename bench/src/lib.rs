//! What the benches measure with, apart from what they print: tests keep it alive.

#![forbid(unsafe_code)]

pub mod control;
pub mod path;
pub mod pods;
mod random;
pub mod report;
pub mod resilience;
