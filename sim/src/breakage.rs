//! Deliberate defects: each must be found by the invariants, or they prove nothing.

use std::fmt;
use std::str::FromStr;

/// One defect that a run carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// A reader takes an older testimony for news.
    OlderTestimony,
    /// A router that comes back starts under a lower number than before.
    GenerationGoesBack,
    /// A device that is linked to two routers counts twice.
    SumLinked,
    /// Nobody asks the purse.
    IgnorePurse,
    /// An answer that broke after its first word is begun again elsewhere.
    RetryAfterCommit,
    /// A request gets a fourth attempt.
    FourAttempts,
    /// What a stranger says of a router is believed.
    ForeignOwner,
    /// A router takes every request for public.
    ForgetClass,
    /// A request that is given up keeps its place in the load of its host.
    LeakSlot,
    /// An answer's end is told twice.
    EndTwice,
    /// A revoked router is spoken to as before.
    RevokedStays,
    /// The registry keeps what dead routers offered.
    DeadPicked,
    /// Retries ask no budget.
    IgnoreRetryBudget,
    /// A host whose breaker is open is never chosen, though it be the last.
    EjectLast,
    /// A router adds up what it heard with what others added up.
    CountTwice,
}

impl Breakage {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::OlderTestimony,
        Self::GenerationGoesBack,
        Self::SumLinked,
        Self::IgnorePurse,
        Self::RetryAfterCommit,
        Self::FourAttempts,
        Self::ForeignOwner,
        Self::ForgetClass,
        Self::LeakSlot,
        Self::EndTwice,
        Self::RevokedStays,
        Self::DeadPicked,
        Self::IgnoreRetryBudget,
        Self::EjectLast,
        Self::CountTwice,
    ];

    /// Returns its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OlderTestimony => "older-testimony",
            Self::GenerationGoesBack => "generation-goes-back",
            Self::SumLinked => "sum-linked",
            Self::IgnorePurse => "ignore-purse",
            Self::RetryAfterCommit => "retry-after-commit",
            Self::FourAttempts => "four-attempts",
            Self::ForeignOwner => "foreign-owner",
            Self::ForgetClass => "forget-class",
            Self::LeakSlot => "leak-slot",
            Self::EndTwice => "end-twice",
            Self::RevokedStays => "revoked-stays",
            Self::DeadPicked => "dead-picked",
            Self::IgnoreRetryBudget => "ignore-retry-budget",
            Self::EjectLast => "eject-last",
            Self::CountTwice => "count-twice",
        }
    }
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Breakage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|breakage| breakage.as_str() == text);
        found.ok_or_else(|| format!("'{text}' is no breakage; known: {}", known()))
    }
}
