//! The account of a decision: who was weighed with what, who was not weighed and why.
//!
//! Kept as values, so that a dry run, `shoal explain` and the decision log say the same.

use std::fmt;
use std::sync::Arc;

use crate::bandit::{ArmView, SizeClass};
use crate::ids::ArmId;
use crate::units::MicroUsd;

/// Most removed candidates that an account names; a mesh of hundreds of devices needs no list of all of them.
pub(super) const MAX_REMOVED: usize = 32;

/// An arm that was weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct Considered {
    /// Served name.
    pub model: Arc<str>,
    /// Its arm.
    pub arm: ArmId,
    /// How large the model is.
    pub size: SizeClass,
    /// Expected utility: quality of a request sent there, less the penalty.
    pub score: f64,
    /// Expected quality of a whole answer to this request, 0 to 1.
    pub quality: f64,
    /// Standard deviation of that expectation.
    pub deviation: f64,
    /// Price, of the cheapest offer.
    pub cost: MicroUsd,
    /// Time to the whole answer at its best host, milliseconds.
    pub latency_ms: f64,
    /// What price and waiting take from quality, at the caller's rate of exchange.
    pub penalty: f64,
    /// Answers of it that were judged, over the mesh.
    pub judged: u64,
    /// A pair of the request's words tells more of its answer than the words by themselves.
    pub by_pair: bool,
}

impl Considered {
    pub(super) fn new(model: &Arc<str>, view: &ArmView<'_>, score: f64, by_pair: bool) -> Self {
        Self {
            model: model.clone(),
            arm: view.arm.clone(),
            size: view.size,
            score,
            quality: view.answer.mean,
            deviation: view.answer.deviation,
            cost: view.cost,
            latency_ms: view.latency_ms,
            penalty: view.penalty,
            judged: view.stats.scored,
            by_pair,
        }
    }
}

/// A candidate that was not weighed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Served name.
    pub model: Arc<str>,
    /// Display name of the host or provider; `None` for all of them.
    pub upstream: Option<Arc<str>>,
    /// Why.
    pub why: Removal,
}

/// Why a candidate was not weighed. Policy comes before ability, ability before time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Removal {
    /// The request's data class forbids it.
    DataClass,
    /// The mode asks for another place.
    Mode,
    /// The request was forwarded too often.
    Hops,
    /// What is left of the key's money does not cover it.
    KeyBudget,
    /// It cannot be reached or takes no new work.
    NotReachable,
    /// The model is known to lack this.
    Lacks(&'static str),
    /// Prompt and answer do not fit its context.
    Context,
    /// It is predicted to need longer than the caller waits.
    Deadline,
    /// Others are known to have what the request needs, and of this one it is not known.
    NotKnownToFit,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataClass => f.write_str("data class forbids it"),
            Self::Mode => f.write_str("mode asks for another place"),
            Self::KeyBudget => f.write_str("key budget does not cover it"),
            Self::Hops => f.write_str("forwarded too often"),
            Self::NotReachable => f.write_str("not reachable"),
            Self::Lacks(what) => write!(f, "lacks {what}"),
            Self::Context => f.write_str("context too short"),
            Self::Deadline => f.write_str("predicted to miss the deadline"),
            Self::NotKnownToFit => f.write_str("not known to fit"),
        }
    }
}
