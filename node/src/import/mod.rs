//! Configurations of other routers, turned into ours.
//!
//! What is written holds no secret: a key that stood in the other file is replaced by the name of a variable. What has
//! no counterpart is said in a comment where it would have stood, so that nothing is lost in silence.

mod groups;
mod litellm;
mod page;
mod places;
mod tables;
#[cfg(test)]
mod tests;

pub use litellm::import as from_litellm;

/// Why a configuration cannot be turned into ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no YAML, or not of the shape that is expected.
    #[error("{0}")]
    Malformed(String),
    /// What came out is not right; the file is unlike any that was thought of.
    #[error("it cannot be turned into a configuration that is right: {0}")]
    Result(String),
}

/// A configuration of ours, and what is to be known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The text of `shoal.toml`.
    pub text: String,
    /// Devices in it.
    pub devices: usize,
    /// Providers in it.
    pub providers: usize,
    /// Aliases in it.
    pub aliases: usize,
    /// Variables that must hold a key before it can be used.
    pub variables: Vec<String>,
    /// Settings without a counterpart, or with one that differs.
    pub notes: usize,
}
