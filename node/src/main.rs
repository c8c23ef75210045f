//! The program `shoal`: reads the command line and hands over to the library.

use std::process::ExitCode;

use clap::Parser;
use shoal_node::cli::{self, args::Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(all(unix, feature = "embedded"))]
    if let Some(error) = cli::with_engine_threads(&cli) {
        return error.report();
    }
    // Fails only if a provider was installed before, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
