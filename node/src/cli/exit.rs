//! Exit codes and errors for people: a cause and a next step.

use std::process::ExitCode;

/// Exit codes; stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The node cannot be reached.
    Unreachable = 3,
    /// The caller may not do this.
    NotAllowed = 4,
}

/// An error that ends a command.
#[derive(Debug)]
pub struct CliError {
    /// Exit code.
    pub exit: Exit,
    /// Sentence: the cause and the next step.
    pub message: String,
}

impl CliError {
    /// Makes an error.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// Makes a plain failure out of any error.
    pub fn failure(error: impl std::fmt::Display) -> Self {
        Self::new(Exit::Failure, error.to_string())
    }

    /// Prints the error and returns its exit code.
    #[allow(clippy::print_stderr)] // the one place where a command tells a person what went wrong
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        ExitCode::from(self.exit as u8)
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::failure(format!("{error:#}"))
    }
}
