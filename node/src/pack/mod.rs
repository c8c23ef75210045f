//! Router packs: files in which what was learnt is handed from one mesh to another.
//!
//! A pack is trusted input only after three questions: are the bytes a pack over *these* features ([`mod@format`]), who
//! signed it ([`seal`]), and what would it have done to this node's own decisions ([`crate::evaluate`]). Its sums
//! enter beside what the mesh observed and weigh little ([`shoal_routing::bandit::pack`]); they are never gossiped.

pub mod desk;
pub mod format;
pub mod rows;
pub mod seal;
pub mod train;

use std::collections::BTreeMap;

use shoal_routing::bandit::prior;
use shoal_routing::bandit::sums::{MEMORY, QualitySums};
use shoal_routing::{ArmEvidence, ArmId, ModelSpec, Pack, SizeClass};

pub use format::{Error, Header, MAX_BYTES, RouterPack, Source};
pub use seal::{Refusal, Trust};

use crate::feedback::Learnt;
use crate::store::Store;

/// The pack that every node begins with: outcomes of public benchmarks by size of model.
///
/// Made by `scripts/pack_router.sh`; part of the program, so the program's own signature covers it.
static SHIPPED: &[u8] = include_bytes!("../../assets/router.pack");

/// Reads the pack inside the program.
pub fn shipped() -> RouterPack {
    RouterPack::read(SHIPPED).expect("the pack in the program was read when it was made")
}

/// Returns the SHA-256 of the price list in the program; a pack names it for information.
pub fn prices_sha256() -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, crate::cloud::price_list().as_bytes()).as_ref().to_vec()
}

/// Puts together what a node starts from: the adopted pack, and the shipped one where the adopted says nothing.
pub fn effective(adopted: Option<&Pack>, shipped: bool) -> Pack {
    let mut pack = adopted.cloned().unwrap_or_default();
    if shipped && pack.classes.0.is_empty() {
        pack.classes = self::shipped().pack.classes;
    }
    pack
}

/// Reads what a node starts from; an adopted pack that can no longer be read is left aside with a warning, since the
/// node routes well without it.
pub fn at_start(store: &Store, shipped: bool) -> Result<Pack, crate::store::Error> {
    let adopted = match store.adopted_pack()? {
        Some(kept) => RouterPack::read(&kept.bytes)
            .inspect_err(|error| tracing::warn!(pack = kept.name, %error, "the adopted pack is not used; `shoal router import --remove` drops it"))
            .ok(),
        None => None,
    };
    Ok(effective(adopted.as_ref().map(|read| &read.pack), shipped))
}

/// Returns the size class of an arm, by the name of its model.
pub fn size_of(arm: &ArmId) -> SizeClass {
    let model = arm.as_str().split('@').next().unwrap_or_default();
    prior::size_class(&ModelSpec::new(model, "pack"))
}

/// Packs what the mesh has learnt: plain sums over all origins that were not caught lying, without any pack's.
pub fn of_mesh(learnt: &Learnt) -> Pack {
    let mut arms: BTreeMap<ArmId, ArmEvidence> = BTreeMap::new();
    for state in learnt.origins.iter().filter(|state| !state.flagged) {
        for (arm, evidence) in &state.testimony.arms {
            arms.entry(arm.clone()).or_default().add(evidence);
        }
    }
    of_arms(arms)
}

/// Makes a pack of the sums of arms: those judged most, and the sums by size that they add up to.
pub fn of_arms(arms: BTreeMap<ArmId, ArmEvidence>) -> Pack {
    let mut pack = Pack::default();
    let mut most: Vec<(ArmId, ArmEvidence)> =
        arms.into_iter().filter(|(_, evidence)| evidence.quality.weight() > 0.0).collect();
    most.sort_by_key(|(_, evidence)| std::cmp::Reverse(evidence.quality.version));
    most.truncate(shoal_routing::bandit::evidence::MAX_ARMS);
    for (arm, evidence) in most {
        let size = size_of(&arm);
        pack.classes.0.entry(size).or_default().add(&evidence.quality, 1.0);
        // How requests ended here is no other mesh's business.
        let evidence = bounded(evidence);
        let answers = evidence.answers.lasting();
        // Nor are its words, which another mesh could not tell apart anyway: it hashes them under another key.
        let (stats, pairs) = Default::default();
        let evidence = ArmEvidence { stats, answers, pairs, ..evidence };
        pack.arms.insert(arm, evidence);
    }
    for sums in pack.classes.0.values_mut() {
        *sums = bounded_sums(sums);
    }
    pack.rounded()
}

fn bounded(evidence: ArmEvidence) -> ArmEvidence {
    let weight = evidence.quality.weight();
    if weight > MEMORY { evidence.lighter(MEMORY / weight) } else { evidence }
}

fn bounded_sums(sums: &QualitySums) -> QualitySums {
    let mut bounded = QualitySums::default();
    bounded.add(sums, if sums.weight() > MEMORY { MEMORY / sums.weight() } else { 1.0 });
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_routing::{Features, PairKey, PairSum, Score};

    #[test]
    fn the_shipped_pack_is_small_plausible_and_about_sizes_only() {
        let shipped = shipped();
        assert!(SHIPPED.len() < 100_000, "{} bytes", SHIPPED.len());
        assert!(shipped.pack.classes.0.len() >= 3 && shipped.pack.arms.is_empty());
        assert!(shipped.header.sources.iter().all(|source| !source.licence.is_empty()));
        assert!(!effective(None, true).classes.0.is_empty());
        assert_eq!(effective(None, false), Pack::default());
    }

    #[test]
    fn a_pack_of_arms_knows_their_sizes_and_says_nothing_of_traffic() {
        let mut evidence = ArmEvidence::default();
        evidence.stats.count = 77;
        evidence.pairs.insert(PairKey(1), PairSum { count: 9.0, score: 1.0, expected: 8.0 });
        for _ in 0..30 {
            evidence.quality.record(&Features::default(), Score::ONE);
        }
        let judged = ArmId::new("llama-3.1-8b", Some("0123456789abcdef"));
        let arms = [(judged.clone(), evidence), (ArmId::new("silent-70b", None), ArmEvidence::default())];
        let pack = of_arms(arms.into());
        assert_eq!(pack.arms.keys().collect::<Vec<_>>(), [&judged]);
        assert_eq!(pack.arms[&judged].stats.count, 0);
        assert!(pack.arms[&judged].pairs.is_empty());
        assert_eq!(pack.classes.0.keys().collect::<Vec<_>>(), [&SizeClass::Medium]);
        assert!(pack.is_plausible());
    }
}
