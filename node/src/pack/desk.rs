//! What is done with packs on a node's data: measured, written, checked, adopted. The same whether the node runs, and is
//! asked over its admin socket, or does not, and the command opens its data directory itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shoal_cluster::identity::Identity;
use shoal_routing::Pack;

use super::{Header, RouterPack, Source, Trust, seal};
use crate::evaluate::{self, Candidate, Choice, Known, MAX_DECISIONS, Verdict, verdict_json};
use crate::feedback::Learnt;
use crate::store::{self, DecisionLog, Store, unix_ms};

/// Time that an import's estimate looks back.
const IMPORT_LOOKS_BACK_MS: u64 = 30 * 86_400_000;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to write.
    #[error(
        "the mesh has learnt nothing yet that a pack could hold: give feedback on some answers first (POST /v1/feedback)"
    )]
    NothingLearnt,
    /// The bytes are no pack over these features.
    #[error(transparent)]
    Unusable(#[from] super::Error),
    /// Nobody trusted stands behind it.
    #[error(transparent)]
    Untrusted(#[from] seal::Refusal),
    /// A field of the wish cannot be meant.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// Why.
        message: String,
    },
    /// No pack is adopted.
    #[error("no pack is adopted; `shoal router import FILE` adopts one")]
    NotAdopted,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// `shoal router export`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Export {
    /// The pack's name; the node's by default.
    pub(crate) name: Option<String>,
}

/// `shoal router import`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Import {
    /// The file, base64.
    pub(crate) pack: String,
    /// Key that it must be signed by, hexadecimal.
    pub(crate) key: Option<String>,
    /// Takes one that nobody known signed.
    #[serde(default)]
    pub(crate) allow_unsigned: bool,
    /// Adopts it; else it is only looked at.
    #[serde(default)]
    pub(crate) adopt: bool,
}

/// `shoal router eval`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Eval {
    /// A word of [`Choice`].
    pub(crate) policy: String,
    /// Pack to begin with, base64; the present one by default.
    pub(crate) pack: Option<String>,
    /// How far to look back.
    pub(crate) since_s: u64,
}

/// A node's data, and what it has learnt. Its methods block on the disk for seconds.
pub(crate) struct Desk {
    pub(crate) store: Store,
    pub(crate) data_dir: PathBuf,
    pub(crate) identity: Arc<Identity>,
    /// The node's name.
    pub(crate) name: String,
    /// The configuration begins with the shipped pack.
    pub(crate) shipped: bool,
    pub(crate) learnt: Arc<Learnt>,
}

impl Desk {
    /// Writes what the mesh has learnt, signed by the node.
    pub(crate) fn export(&self, wish: Export) -> Result<Value, Error> {
        let packed = super::of_mesh(&self.learnt);
        if packed.arms.is_empty() {
            return Err(Error::NothingLearnt);
        }
        let name = wish.name.unwrap_or_else(|| self.name.clone());
        let rows = packed.arms.values().map(|arm| arm.quality.version).sum();
        let header = Header {
            name: name.clone(),
            made_ms: unix_ms(),
            sources: vec![Source { name: format!("mesh of {name}"), licence: String::new(), rows }],
            prices_sha256: super::prices_sha256(),
        };
        let bytes = RouterPack::write_signed(&header, &packed, &self.identity);
        let written = RouterPack::read(&bytes)?;
        Ok(json!({
            "pack": BASE64.encode(&bytes),
            "bytes": bytes.len(),
            "name": name,
            "key": written.seal.map(|seal| seal.key_text()),
            "judgements": rows,
            "arms": packed.arms.keys().map(|arm| arm.as_str()).collect::<Vec<_>>(),
        }))
    }

    /// Checks a pack and says what it would have earned; keeps it where that is wished, and returns what the node
    /// begins with from now on.
    pub(crate) fn import(&self, wish: &Import) -> Result<(Value, Option<Pack>), Error> {
        let (bytes, read) = decode(&wish.pack)?;
        let key = wish.key.as_deref().map(parse_key).transpose()?;
        let now = SystemTime::now();
        let trust =
            seal::trust(read.seal.as_ref(), &self.identity, key.as_deref(), wish.allow_unsigned, now)?;
        let with = super::effective(Some(&read.pack), self.shipped);
        let since_ms = unix_ms().saturating_sub(IMPORT_LOOKS_BACK_MS);
        let estimate = self.estimate(Choice::Thompson, with.clone(), since_ms)?;
        if wish.adopt {
            self.store.adopt_pack(&read.header.name, trust.as_str(), &bytes)?;
            tracing::info!(pack = read.header.name, trust = trust.as_str(), "a router pack was adopted");
        }
        let signer = match &trust {
            Trust::OwnMesh(id) => Some(id.clone()),
            Trust::NamedKey | Trust::Unproven => None,
        };
        let shown = json!({
            "name": read.header.name,
            "made_unix_ms": read.header.made_ms,
            "sources": read.header.sources.iter().map(|source| json!({
                "name": source.name, "licence": source.licence, "rows": source.rows,
            })).collect::<Vec<_>>(),
            "key": read.seal.as_ref().map(seal::Seal::key_text),
            "trust": trust.as_str(),
            "signer": signer,
            "arms": read.pack.arms.iter().map(|(arm, evidence)| json!({
                "arm": arm.as_str(), "weight": evidence.quality.weight(), "mean": evidence.quality.mean(),
            })).collect::<Vec<_>>(),
            "classes": read.pack.classes.0.iter().map(|(class, sums)| json!({
                "class": class.as_str(), "weight": sums.weight(),
            })).collect::<Vec<_>>(),
            "estimate": estimate,
            "adopted": wish.adopt,
        });
        Ok((shown, wish.adopt.then_some(with)))
    }

    /// Drops the adopted pack; returns what the node begins with from now on.
    pub(crate) fn remove(&self) -> Result<(Value, Pack), Error> {
        if !self.store.remove_pack()? {
            return Err(Error::NotAdopted);
        }
        tracing::info!("the adopted router pack was removed");
        Ok((json!({"removed": true}), super::effective(None, self.shipped)))
    }

    /// Says what a policy would have earned on the node's judged decisions.
    pub(crate) fn eval(&self, wish: &Eval) -> Result<Value, Error> {
        let choice: Choice =
            wish.policy.parse().map_err(|message| Error::Invalid { param: "policy", message })?;
        let pack = match &wish.pack {
            Some(text) => super::effective(Some(&decode(text)?.1.pack), self.shipped),
            None => (*self.learnt.priors).clone(),
        };
        let since_ms = unix_ms().saturating_sub(wish.since_s.saturating_mul(1000));
        let mut answer = self.estimate(choice, pack, since_ms)?;
        answer["policy"] = json!(wish.policy);
        answer["since_s"] = json!(wish.since_s);
        Ok(answer)
    }

    /// Evaluates a candidate beside what the node does now, by the same rule.
    fn estimate(&self, choice: Choice, pack: Pack, since_ms: u64) -> Result<Value, Error> {
        // A connection of its own: reading tens of thousands of rows must not hold up what pays and records.
        let log = store::decision_log_at(&self.data_dir, since_ms, MAX_DECISIONS)?;
        let me = self.identity.node_id().as_str();
        let known = Known::of(&self.learnt, me, (*self.learnt.priors).clone());
        let candidate = Candidate { choice, pack };
        let present = Candidate { choice: Choice::Thompson, pack: known.present.clone() };
        let measure = |candidate| evaluate::evaluate(&log.decisions, &known, candidate);
        Ok(report(&log, measure(&candidate).as_ref(), measure(&present).as_ref()))
    }
}

fn report(log: &DecisionLog, candidate: Option<&Verdict>, present: Option<&Verdict>) -> Value {
    let mut logged: BTreeMap<&str, f64> = BTreeMap::new();
    for row in &log.decisions {
        *logged.entry(row.arm.as_str()).or_default() += 1.0 / log.decisions.len() as f64;
    }
    json!({
        "decisions": log.decisions.len(),
        "too_few": candidate.is_none_or(|verdict| verdict.utility.is_thin()),
        "left_out": {"no_choice": log.no_choice, "taken_over": log.taken_over, "incomplete": log.incomplete},
        "logged_shares": logged,
        "candidate": candidate.map(verdict_json),
        "present": present.map(verdict_json),
    })
}

fn decode(text: &str) -> Result<(Vec<u8>, RouterPack), Error> {
    let bytes = BASE64.decode(text.as_bytes()).map_err(|_| Error::Invalid {
        param: "pack",
        message: "'pack' must be a pack file in base64".into(),
    })?;
    let read = RouterPack::read(&bytes)?;
    Ok((bytes, read))
}

fn parse_key(text: &str) -> Result<Vec<u8>, Error> {
    let key = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok();
    key.filter(|key| key.len() == 32).ok_or_else(|| Error::Invalid {
        param: "key",
        message: "a key has 64 hexadecimal digits; `shoal router export` prints it".into(),
    })
}
