//! What a request says of itself about leaving the mesh: nothing until egress has sent it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Providers that one client's request was sent to, over all its attempts; shared by its clones.
///
/// Egress writes it at the moment of sending (and the pipeline for a device's remote model), so that the header `x-shoal-egress` is a fact and not an
/// intention: a request refused for an empty purse never left.
#[derive(Debug, Clone, Default)]
pub struct EgressMark(Arc<Mutex<BTreeSet<Arc<str>>>>);

impl EgressMark {
    /// Returns `none`, or the providers separated by commas.
    pub fn text(&self) -> String {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.is_empty() {
            return "none".into();
        }
        sent.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",")
    }

    /// Notes that the request goes to a device whose model runs outside of the mesh; no socket of ours leads there.
    pub(crate) fn handed_to_remote(&self, device: &Arc<str>) {
        self.sent_to(device);
    }

    /// Notes that the request goes out.
    pub(super) fn sent_to(&self, provider: &Arc<str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(provider.clone());
    }
}
