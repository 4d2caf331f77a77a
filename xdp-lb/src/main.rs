//! The `xdp-lb` command.

use std::process::ExitCode;

use xdp_lb::cli::Cli;

fn main() -> ExitCode {
    Cli::main()
}
