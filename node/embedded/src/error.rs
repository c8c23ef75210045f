//! What can go wrong when a model is opened, or while it answers.

use std::path::PathBuf;

/// Failure of the embedded engine; each text is a sentence for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot read the model file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a GGUF file, is cut short, or contradicts itself.
    #[error("{path} is not a usable GGUF file: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is a sound GGUF of a kind that this engine does not run.
    #[error("{path}: {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what is.
        what: String,
    },
    /// The prompt does not fit into the model's context.
    #[error("the prompt has {tokens} tokens; this model takes at most {limit}")]
    ContextTooLong {
        /// Largest accepted prompt, in tokens.
        limit: usize,
        /// Size of the refused prompt, in tokens.
        tokens: usize,
    },
    /// The prompt holds no tokens, so there is nothing to go on from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The request's settings make no sense.
    #[error("invalid generation setting: {0}")]
    InvalidRequest(String),
    /// An answer cannot be held to the form that was asked for; another engine may be able to.
    #[error("the embedded engine cannot keep an answer to this form: {0}")]
    Form(String),
    /// The model's chat template refuses these messages or is broken.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// The computation itself failed; this is a defect or memory is short.
    #[error("the engine failed: {0}")]
    Compute(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(error.to_string())
    }
}
