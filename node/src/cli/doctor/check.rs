//! One finding: a verdict, its cause as a sentence, and the next command.

use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but somebody should look.
    Warn,
    /// Something does not work.
    Bad,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Bad => "BAD",
        }
    }
}

/// One finding; its JSON form is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    /// How it is.
    pub(super) verdict: Verdict,
    /// Why, for a person.
    pub(super) cause: String,
    /// What to do; none where nothing is to be done.
    pub(super) next: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, cause: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, cause: cause.into(), next: None }
    }

    pub(super) fn warn(name: &'static str, cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, cause: cause.into(), next: Some(next.into()) }
    }

    pub(super) fn bad(name: &'static str, cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Bad, cause: cause.into(), next: Some(next.into()) }
    }
}
