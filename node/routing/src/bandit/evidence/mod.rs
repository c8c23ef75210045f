//! What a mesh has learnt, by who observed it: the newest testimony of each origin, and what they add up to.
//!
//! [`Evidence`] is a join-semilattice (Shapiro et al. 2011): a map from origins to a register that keeps the newest
//! [`Testimony`], so testimonies may be lost, repeated and reordered, and readers that got the same ones hold the same
//! totals. Nothing is weighed in the totals. How far each origin is believed is decided when a posterior is formed
//! ([`influence`]), and what is refused on receipt by [`Scrutiny`]; neither is ever passed on.

pub mod influence;
pub mod scrutiny;
pub mod testimony;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use scrutiny::{Scrutiny, Suspicion};
pub use testimony::{ArmEvidence, Judged, MAX_ARMS, MAX_ARMS_READ, Testimony};

use crate::ids::ArmId;

/// The newest testimony of each origin.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evidence {
    origins: BTreeMap<Arc<str>, Arc<Testimony>>,
}

impl Evidence {
    /// Keeps a testimony if it is newer than the one known of its origin; tells whether it was.
    pub fn put(&mut self, origin: &Arc<str>, testimony: Arc<Testimony>) -> bool {
        let newer = match self.origins.get(origin) {
            Some(known) => testimony.newness(known) == Ordering::Greater,
            None => true,
        };
        if newer {
            self.origins.insert(origin.clone(), testimony);
        }
        newer
    }

    /// Takes in everything that another reader knows.
    pub fn merge(&mut self, other: &Self) {
        for (origin, testimony) in &other.origins {
            self.put(origin, testimony.clone());
        }
    }

    /// Forgets an origin.
    pub fn forget(&mut self, origin: &str) {
        self.origins.remove(origin);
    }

    /// Returns the newest testimony of one origin.
    pub fn of(&self, origin: &str) -> Option<&Arc<Testimony>> {
        self.origins.get(origin)
    }

    /// Returns every origin with its newest testimony, sorted.
    pub fn origins(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Arc<Testimony>)> {
        self.origins.iter()
    }

    /// Adds the origins up, in order of origin: equal testimonies give equal totals, bit by bit.
    pub fn totals(&self) -> BTreeMap<ArmId, ArmEvidence> {
        let mut totals: BTreeMap<ArmId, ArmEvidence> = BTreeMap::new();
        for testimony in self.origins.values() {
            for (arm, evidence) in &testimony.arms {
                totals.entry(arm.clone()).or_default().add(evidence);
            }
        }
        totals
    }

    /// Adds up what `me`, with these own observations, believes: every origin within its
    /// [`influence`](influence::Influence).
    pub fn posterior(
        &self,
        me: &str,
        own: &Testimony,
        flagged: &BTreeSet<Arc<str>>,
    ) -> BTreeMap<ArmId, ArmEvidence> {
        let mut by_arm: BTreeMap<&ArmId, Vec<influence::Voice<'_>>> = BTreeMap::new();
        for (arm, evidence) in &own.arms {
            let voice = influence::Voice { evidence, standing: influence::Standing::Own };
            by_arm.entry(arm).or_default().push(voice);
        }
        for (origin, testimony) in self.origins.iter().filter(|(origin, _)| ***origin != *me) {
            let standing = match flagged.contains(origin) {
                true => influence::Standing::Flagged,
                false => influence::Standing::Good,
            };
            for (arm, evidence) in &testimony.arms {
                by_arm.entry(arm).or_default().push(influence::Voice { evidence, standing });
            }
        }
        let origins = 1 + self.origins.keys().filter(|origin| ***origin != *me).count();
        by_arm.into_iter().map(|(arm, voices)| (arm.clone(), influence::weighed(&voices, origins))).collect()
    }
}
