//! Which model is worth it: statistics that add up over the mesh, and the policies that read them.
//!
//! Every node counts what it saw itself ([`ArmStats`], [`QualitySums`]). Nodes exchange those sums, keyed by who
//! observed them and in which life ([`Evidence`]); a reader adds the origins when it reads, so no message order and
//! no duplicate can count anything twice. A [`Policy`] turns the sums, a prior and what is known of price and speed
//! into a choice, and says with what probability it made it.
//!
//! Who judges: people, what anyone can see of an answer ([`Sign`], [`RetryBook`]), and a model ([`Grading`]).

pub mod discriminant;
pub mod evidence;
pub mod judge;
mod linear;
pub mod offpolicy;
pub mod pack;
pub mod pairs;
pub mod policy;
pub mod prior;
pub mod retry;
pub mod reward;
mod shrinkage;
pub mod signs;
pub mod stats;
pub mod sums;
pub mod thompson;

pub use discriminant::{Belief, Discriminant, Level, Placed};
pub use evidence::{ArmEvidence, Evidence, Judged, Scrutiny, Suspicion, Testimony};
pub use judge::{EvaluatorTrust, Grading, LengthBias, Reading};
pub use pack::{ClassPriors, Pack};
pub use pairs::{PairKey, PairSalt, PairSearch, PairSum, PairSums, Telling};
pub use policy::{ArmView, Policy, Selection};
pub use prior::SizeClass;
pub use retry::{Fingerprint, RetryBook};
pub use reward::Reward;
pub use signs::{Form, Proportion, Sign, SignKind};
pub use stats::{ArmStats, Implausible, Observations, Posterior};
pub use sums::QualitySums;
pub use thompson::{Quality, Thompson, Weights, expected_quality};
