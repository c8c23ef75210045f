//! How a router that joined gets its own issuing certificate: it asks the holder of the root until it has it.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use shoal_proto::SignIssuerRequest;
use shoal_proto::issuer_client::IssuerClient;

use super::Identity;
use crate::ids::Role;
use crate::quic::{Channels, Directory};

/// First wait after a failed attempt; gossip needs about a second to name the root's holder.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait: the root's holder may be away for days.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// Longest wait for an answer.
const SIGN_DEADLINE: Duration = Duration::from_secs(10);

/// Asks until this router can issue certificates, then returns. Returns at once where it can already, and on
/// devices. Drop it to stop.
pub async fn obtain_issuer(identity: Arc<Identity>, channels: Channels, directory: Arc<dyn Directory>) {
    let mut wait = RETRY_FIRST;
    while !identity.can_issue() && identity.role() == Role::Router {
        match ask(&identity, &channels, &*directory).await {
            Ok(()) => {
                tracing::info!("this node can now issue certificates");
                return;
            }
            Err(reason) => tracing::debug!(reason, "no issuing certificate yet"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_LAST);
    }
}

async fn ask(identity: &Identity, channels: &Channels, directory: &dyn Directory) -> Result<(), String> {
    let holder = directory.root_holder().ok_or("the root's holder is not known")?;
    let (key, csr_der) = identity.request_issuer().map_err(|error| error.to_string())?;
    let call = async {
        let channel = channels.to(&holder).await.map_err(|error| error.to_string())?;
        let reply = IssuerClient::new(channel).sign_issuer(SignIssuerRequest { csr_der }).await;
        reply.map_err(|status| status.message().to_owned())
    };
    let reply = tokio::time::timeout(SIGN_DEADLINE, call).await.map_err(|_| "no answer in time")??;
    let certificate = CertificateDer::from(reply.into_inner().certificate_der);
    identity.install_issuer(key, certificate).map_err(|error| error.to_string())
}
