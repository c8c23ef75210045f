//! The pure core of a Shoal router: which model and which host a request goes to, and what is learnt from it.
//!
//! Everything here is values in, values out. `now`, randomness and all state that others own come in as
//! arguments; nothing in this package reads a clock, a file, a socket or the environment, and the manifest
//! and `clippy.toml` prove it. So the same seed and the same inputs give the same decision, and a month of
//! traffic can be replayed in a second. The shell around it (sockets, tasks, clocks) is the package `shoal`.
//!
//! Four ideas are kept apart, because mixing them is how routers go wrong:
//!
//! * **policy** says what is *allowed*: [`router`] filters candidates by data class and mode before anything ranks them;
//! * **rules** of the operator ([`rules`]) say what a name means and who is asked first, within what is allowed;
//! * **the bandit** says which *model* is worth it: quality is learnt ([`bandit`]), price and speed are known;
//! * **the balancer** says which *host* of that model gets the request ([`balance`]), from what was just measured.
//!
//! After the answer a fourth one looks at it: how far it can be trusted ([`confidence`], [`calibration`]), and
//! whether a stronger model that the policy admitted is worth asking ([`escalate`]).
//!
//! Reading order: [`units`], [`class`], [`ids`], [`request`], [`choice`], [`tokens`], [`embed`], [`domain`],
//! [`profile`], [`features`], [`registry`], [`rules`], [`outcome`], [`bandit`], [`balance`], [`breaker`], [`limit`],
//! [`router`], [`failover`], [`confidence`], [`calibration`], [`escalate`].

pub mod admission;
pub mod balance;
pub mod bandit;
pub mod breaker;
pub mod calibration;
pub mod choice;
pub mod class;
pub mod confidence;
pub mod domain;
pub mod embed;
pub mod escalate;
pub mod failover;
pub mod features;
pub mod hedge;
pub mod ids;
pub mod limit;
pub mod outcome;
pub mod profile;
pub mod registry;
pub mod request;
pub mod router;
pub mod rules;
pub mod tokens;
pub mod units;

#[cfg(test)]
mod testing;

pub use admission::{Asking, Entered, Line, MAX_WAIT, Priority, Shed};
pub use balance::{
    Balancer, ConcurrencyLimit, Forecast, InFlight, Load, LoadBook, PeakEwma, Prefix, Straight, Work,
};
pub use bandit::{
    ArmEvidence, ArmStats, ArmView, Belief, ClassPriors, Discriminant, EvaluatorTrust, Evidence, Fingerprint,
    Form, Grading, Judged, LengthBias, Level, Observations, Pack, PairKey, PairSalt, PairSearch, PairSum,
    PairSums, Placed, Policy, Posterior, Proportion, Quality, QualitySums, Reading, RetryBook, Reward,
    Scrutiny, Selection, Sign, SignKind, SizeClass, Suspicion, Telling, Testimony, Thompson,
};
pub use breaker::{Admission, CircuitBreaker};
pub use calibration::{Calibration, Curve, DomainReliability, Reliability};
pub use choice::ModelChoice;
pub use class::{DataClass, Mode, Preference, UnknownWord};
pub use confidence::{Confidence, Flaw, Repetition, SignalFold, Signals, TokenSignals};
pub use domain::Domain;
pub use embed::Embedding;
pub use escalate::{
    EscalationPolicy, EscalationReason, Grounds, HeldPrefix, Hold, JudgeInput, Ladder, Prospect, Verdict,
    ladder,
};
pub use failover::{Candidates, Choice, Tries};
pub use features::Features;
pub use ids::{ArmId, UpstreamId};
pub use limit::{MAX_ATTEMPTS, MAX_HOPS, RetryBudget, RetryKind, RetryPermit};
pub use outcome::{FinishReason, Outcome, OutcomeStatus};
pub use profile::{Language, RequestProfile, Surface, Task, Tolerance, Words};
pub use registry::{Craft, ModelSpec, Offer, Power, Registry, Route, Zone, edit_distance};
pub use request::{Message, MessageRole, Needs, Request};
pub use router::{
    Considered, Decision, Fallback, NoRoute, Permitted, Planned, Removal, Removed, RouteReason, Router,
    Snapshot,
};
pub use rules::{Alias, Keyword, Plan, Rules, Sticky, Subject, Target, Targets, When};
pub use tokens::count_tokens;
pub use units::{MicroUsd, OutOfRange, Price, Score, SoundPrice, SoundWork, Tokens};
