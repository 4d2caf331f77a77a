//! The daemon under test: the `xdp-lb` command, built with the tests.

use std::process::ExitCode;

use xdp_lb::cli::Cli;

fn main() -> ExitCode {
    Cli::main()
}
