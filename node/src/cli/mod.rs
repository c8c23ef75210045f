//! The command line: parses, dispatches, and says what went wrong with a next step.

pub mod args;
mod calibration;
pub mod client;
mod cloud;
mod commands;
mod config;
mod desk;
mod dev;
mod doctor;
pub mod exit;
mod explain;
mod join;
mod launch;
mod router;
mod show;
mod signals;
mod up;

use std::time::Duration;

use clap::CommandFactory;

use self::args::{Cli, Command};
use self::exit::{CliError, Exit};
use crate::config::process_env;
use crate::telemetry;

/// Runs a parsed command line to its end.
pub fn run(cli: Cli) -> Result<(), CliError> {
    let env = process_env();
    let serves = matches!(cli.command, Command::Up(_) | Command::Join(_) | Command::Dev(_));
    // A client command prints its answer; only what is worth looking at goes beside it.
    telemetry::start_logs(cli.verbose, cli.quiet || !serves && cli.verbose == 0, &env);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failure(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(dispatch(cli.command, env))
}

/// Starts the program over with the engine's thread count in its environment, if it may run the engine.
///
/// The engine's pool reads the variable when the process starts and takes every core otherwise: its threads spin
/// while they wait, so that an idle engine starves the rest of the machine (measured: 77 against 15 tokens/s on
/// two busy cores). Returns only if nothing is to be done or the start failed.
#[cfg(all(unix, feature = "embedded"))]
pub fn with_engine_threads(cli: &Cli) -> Option<CliError> {
    use std::os::unix::process::CommandExt;
    let set = crate::config::lookup(&process_env(), shoal_embedded::THREADS_VARIABLE).is_some();
    if set || !matches!(cli.command, Command::Up(_) | Command::Join(_)) {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    let threads = shoal_embedded::recommended_threads(1).to_string();
    let error = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(shoal_embedded::THREADS_VARIABLE, threads)
        .exec();
    Some(CliError::failure(format!("cannot start over with the engine's settings: {error}")))
}

async fn dispatch(command: Command, env: Vec<(String, String)>) -> Result<(), CliError> {
    match command {
        Command::Up(args) => Box::pin(up::run(args, &env)).await,
        Command::Join(args) => Box::pin(join::run(args, &env)).await,
        Command::Dev(args) => dev::run(args, &env).await,
        Command::Chat(args) => commands::chat(&args).await,
        Command::Status(args) => commands::status(&args).await,
        Command::Nodes(args) => commands::nodes(&args).await,
        Command::Devices(args) => commands::devices(&args).await,
        Command::Models(args) => commands::models(&args).await,
        Command::Ps(args) => commands::ps(&args).await,
        Command::Dashboard(args) => commands::dashboard(&args).await,
        Command::Explain(args) => explain::explain(&args).await,
        Command::Token(command) => commands::token(&command).await,
        Command::Keys(command) => commands::keys(&command).await,
        Command::Cloud(command) => cloud::run(command, &env).await,
        Command::Router(command) => router::run(command).await,
        Command::Pull(args) => up::pull(args, &env).await,
        Command::Health(args) => commands::health(&args).await,
        Command::Doctor(args) => Box::pin(doctor::run(&args, &env)).await,
        Command::Env(args) => commands::env(&args).await,
        Command::Launch(args) => launch::run(args, &env).await,
        Command::Down(args) => commands::down(&args).await,
        Command::Config(command) => config::run(command, &env),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "shoal", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Reads a duration such as `90s`, `30m`, `1h` or `7d`.
fn parse_duration(text: &str) -> Result<Duration, CliError> {
    let wrong =
        || CliError::new(Exit::Usage, format!("'{text}' is not a duration; write 90s, 30m, 1h or 7d"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_and_nonsense_is_not() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_secs(seconds));
        }
        for bad in ["", "h", "1", "0s", "-1h", "1w", "99999999999999999999d", "1.5h"] {
            assert_eq!(parse_duration(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
