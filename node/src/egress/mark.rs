//! What a request says of itself about leaving the mesh: nothing until egress has sent it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Providers that one client's request was sent to, over all its attempts; shared by its clones.
///
/// Egress writes it at the moment of sending, so that the header `x-shoal-egress` is a fact and not an
/// intention: a request refused for an empty purse never left. What a device's engine sends on is out of our
/// sight, so there the attempt itself counts.
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

    /// Notes that the request goes to a device whose engine sends it out of the mesh.
    pub(crate) fn handed_to(&self, device: &Arc<str>) {
        self.sent_to(device);
    }

    /// Notes that the request goes out.
    pub(super) fn sent_to(&self, provider: &Arc<str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(provider.clone());
    }
}
