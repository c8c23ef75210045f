//! What a request says of itself about leaving the mesh: nothing until egress has sent it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cloud::is_provider_name;

/// Most names that another router is believed; a request has three attempts.
const MAX_TOLD: usize = 8;
/// What stands for a name that is none.
const UNKNOWN: &str = "unknown";

/// Providers that one client's request was sent to, over all its attempts; shared by its clones.
///
/// Egress writes it at the moment of sending, so that the header `x-shoal-egress` is a fact and not an
/// intention: a request refused for an empty purse never left. What a device's engine sends on is out of our
/// sight, so there the attempt itself counts.
#[derive(Debug, Clone, Default)]
pub struct EgressMark {
    names: Arc<Mutex<BTreeSet<Arc<str>>>>,
    /// Written with the names, but of one attempt alone.
    was_sent: Arc<AtomicBool>,
}

impl EgressMark {
    /// Returns `none`, or the providers separated by commas.
    pub fn text(&self) -> String {
        let sent = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.is_empty() {
            return "none".into();
        }
        sent.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",")
    }

    /// Returns the same mark for one attempt, which tells by itself whether it was sent.
    pub(crate) fn of_attempt(&self) -> Self {
        Self { names: self.names.clone(), was_sent: Arc::default() }
    }

    /// True once the attempt whose mark it is was sent.
    pub(crate) fn was_sent(&self) -> bool {
        self.was_sent.load(Ordering::Relaxed)
    }

    /// True while the request was sent nowhere.
    pub(crate) fn is_blank(&self) -> bool {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Notes that the request goes to a device whose engine sends it out of the mesh.
    pub(crate) fn handed_to(&self, device: &Arc<str>) {
        self.sent_to(device);
    }

    /// Takes over what another router says: names separated by commas, `none` or nothing. What it may say is bounded; that
    /// the request left stands also where the name cannot be one.
    pub(crate) fn told_by_peer(&self, names: &str) {
        let names = names.split(',').filter(|name| !matches!(*name, "" | "none")).take(MAX_TOLD);
        for name in names {
            if is_provider_name(name) {
                self.sent_to(&name.into());
            } else if self.is_blank() {
                self.sent_to(&UNKNOWN.into());
            }
        }
    }

    /// Notes that the request goes out.
    pub(super) fn sent_to(&self, provider: &Arc<str>) {
        self.was_sent.store(true, Ordering::Relaxed);
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(provider.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_is_taken_over_in_bounds() {
        let mark = EgressMark::default();
        mark.told_by_peer("none");
        mark.told_by_peer("");
        assert_eq!(mark.text(), "none");
        mark.told_by_peer("my\r\nllm");
        assert_eq!(mark.text(), "unknown", "it left, wherever to");
        mark.told_by_peer("openai,Big Box,");
        assert_eq!(mark.text(), "openai,unknown");
        mark.told_by_peer(&"x".repeat(10_000));
        mark.told_by_peer("my-llm");
        mark.told_by_peer(&(0..100).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
        assert_eq!(mark.text().split(',').count(), 3 + MAX_TOLD);
        assert!(mark.text().len() < 200);
    }
}
