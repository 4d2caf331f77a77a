//! The `xdp-lb` command.

fn main() {}
