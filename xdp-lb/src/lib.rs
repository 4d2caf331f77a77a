//! The daemon, the command line and the lab of xdp-lb. All I/O of the project is here.

pub mod config;
pub mod lab;
pub mod net;
pub mod object;
