//! The HTTP client of the load generator: no redirects, no proxies, one TLS provider.

use std::time::Duration;

/// Time to establish a connection; longer than a loaded loopback needs, short enough to notice a dead node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds the client. `timeout` caps one whole request, its stream included.
///
/// # Errors
/// When the TLS backend cannot be set up.
#[allow(clippy::disallowed_methods)] // the one place of this package
pub fn build(timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    // A second call finds the provider already installed, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}
