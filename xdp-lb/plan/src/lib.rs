//! Decides what the data path's tables must hold.
//!
//! Pure: no I/O, no clock (time is an argument), no async runtime, no Kubernetes client. What users
//! declare comes in as [`model`] values; out come few, ordered operations on the tables.

#![forbid(unsafe_code)]

pub mod maglev;
pub mod model;
