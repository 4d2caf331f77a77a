//! The daemon, the command line and the lab of xdp-lb. All I/O of the project is here.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod demo;
pub mod error;
pub mod lab;
pub mod maps;
pub mod net;
pub mod object;
pub mod pins;
pub mod stats;
pub mod topology;
