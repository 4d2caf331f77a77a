//! The `xdp-lb` command.

use std::process::ExitCode;

use clap::Parser as _;
use xdp_lb::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
