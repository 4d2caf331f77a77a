//! What tests of the packet path need, on the host and in the kernel: packets, a checker, tables and
//! frames in memory, and the fixtures.

pub mod check;
pub mod fixtures;
pub mod packet;
mod tables;
pub mod world;

pub use crate::memory::{HEADROOM, MemoryFrame};
pub use fixtures::{Fixture, fixtures};
pub use tables::MemoryTables;
pub use world::world;
