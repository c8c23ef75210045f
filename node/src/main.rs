//! The program `shoal`: reads the command line and hands over to the library.

use std::process::ExitCode;

use clap::Parser;
use shoal_node::cli::{self, args::Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only if a provider was installed before, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
