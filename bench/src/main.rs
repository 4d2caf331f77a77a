//! The daemon that is measured: the `xdp-lb` command, built with the benches.

use std::process::ExitCode;

use clap::Parser as _;
use xdp_lb::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
