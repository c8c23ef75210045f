//! Policy of the way out: the one function that grants a permit.

use std::sync::Arc;

use reqwest::Url;
use shoal_routing::DataClass;

use super::mark::EgressMark;
use crate::upstream::UpstreamRequest;

/// What a provider is and may see, from the configuration alone; nothing in it comes from a client.
#[derive(Debug, Clone)]
pub struct ProviderZone {
    /// Configured name.
    pub name: Arc<str>,
    /// Base URL; a permit is good for this server only.
    pub base: Url,
    /// May be sent data of class `internal`.
    pub internal_ok: bool,
}

/// Leave to send one request to one provider. It cannot be copied, and sending uses it up.
#[derive(Debug)]
pub struct EgressPermit {
    request: Arc<str>,
    class: DataClass,
    provider: Arc<str>,
    base: Url,
    mark: EgressMark,
}

/// Policy forbids that a request goes to a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data of class '{class}' may not be sent to the provider '{provider}'")]
pub struct Denied {
    /// Class of the request.
    pub class: DataClass,
    /// Name of the provider.
    pub provider: Arc<str>,
}

/// Grants a permit if the request's class allows what the provider may see.
///
/// A request of mode `local` travels as restricted, so it gets none.
///
/// # Errors
/// [`Denied`] names class and provider.
pub fn grant(request: &UpstreamRequest, zone: &ProviderZone) -> Result<EgressPermit, Denied> {
    let allowed = match request.data_class {
        DataClass::Public => true,
        DataClass::Internal => zone.internal_ok,
        DataClass::Restricted => false,
    };
    if !allowed {
        metrics::counter!("shoal_egress_denied_total", "provider" => zone.name.to_string()).increment(1);
        return Err(Denied { class: request.data_class, provider: zone.name.clone() });
    }
    Ok(EgressPermit {
        request: request.id.clone(),
        class: request.data_class,
        provider: zone.name.clone(),
        base: zone.base.clone(),
        mark: request.egress.clone(),
    })
}

impl EgressPermit {
    pub(super) fn request(&self) -> &str {
        &self.request
    }

    pub(super) fn class(&self) -> DataClass {
        self.class
    }

    pub(super) fn provider(&self) -> &str {
        &self.provider
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// Uses the permit up: the request counts as sent from here on.
    pub(super) fn spend(self) {
        self.mark.sent_to(&self.provider);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing::chat;

    #[test]
    fn a_permit_follows_class_and_zone() {
        use DataClass::{Internal, Public, Restricted};
        let cases = [
            (Public, true, true),
            (Public, false, true),
            (Internal, true, true),
            (Internal, false, false),
            (Restricted, true, false),
            (Restricted, false, false),
        ];
        for (data_class, internal_ok, allowed) in cases {
            let base = "https://api.example.com/v1".parse().unwrap();
            let zone = ProviderZone { name: "p".into(), base, internal_ok };
            let request = UpstreamRequest { data_class, ..chat(true) };
            assert_eq!(grant(&request, &zone).is_ok(), allowed, "{data_class} {internal_ok}");
            assert_eq!(request.egress.text(), "none", "a permit alone sends nothing");
        }
    }

    #[test]
    fn sending_is_marked_on_every_clone() {
        let base: Url = "https://api.example.com/v1".parse().unwrap();
        let request = UpstreamRequest { data_class: DataClass::Public, ..chat(true) };
        let mark = request.egress.clone();
        for name in ["b", "a", "b"] {
            let zone = ProviderZone { name: name.into(), base: base.clone(), internal_ok: true };
            grant(&request, &zone).unwrap().spend();
        }
        assert_eq!(mark.text(), "a,b");
    }
}
