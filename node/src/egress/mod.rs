//! The way out of the mesh: the only module that opens a socket to a provider.
//!
//! [`Egress::send`] takes an [`EgressPermit`] by value, and only [`policy::grant`] makes one, from the class of a
//! request and what its provider may see. So there is no path, whatever retries, fails over or escalates, on which
//! a restricted prompt meets a provider's socket: the program would not compile. Routing filters before it ranks;
//! this is the second check, at the last moment, by other code.

mod mark;
pub mod policy;

use reqwest::{Client, Request, Response};

pub use mark::EgressMark;
pub use policy::{Denied, EgressPermit, ProviderZone};

use crate::upstream::http_client::{self, Reach};

/// Log target of the audit lines; `SHOAL_LOG=shoal_audit=info` shows them alone.
pub const AUDIT: &str = "shoal_audit";

/// Holder of the clients for providers; nobody else gets at them.
#[derive(Debug)]
pub struct Egress {
    internet: Client,
    lan: Client,
}

/// Why a permitted request did not go out, or got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request names another server than the permit: a fault of the program, never sent.
    #[error("the request is addressed to another server than its permit")]
    WrongAddress,
    /// The connection failed.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

impl Egress {
    /// Makes the clients; opens nothing.
    ///
    /// # Errors
    /// The TLS or HTTP library refused the settings.
    pub fn new() -> Result<Self, http_client::Error> {
        Ok(Self { internet: http_client::build(Reach::Internet)?, lan: http_client::build(Reach::Lan)? })
    }

    /// Sends one request to the provider that the permit names, and writes the audit line before it does.
    ///
    /// # Errors
    /// [`Error::WrongAddress`] if the URL is not below the provider's base URL; [`Error::Http`] for the rest.
    pub async fn send(&self, permit: EgressPermit, request: Request) -> Result<Response, Error> {
        let bytes = request.body().and_then(|body| body.as_bytes()).map_or(0, <[u8]>::len);
        if request.url().origin() != permit.base().origin() {
            return Err(Error::WrongAddress);
        }
        let (provider, class) = (permit.provider().to_owned(), permit.class().as_str());
        tracing::info!(target: AUDIT, request = permit.request(), class, %provider, bytes, "egress");
        metrics::counter!("shoal_egress_total", "provider" => provider, "class" => class).increment(1);
        let client = match Reach::of(request.url()) {
            Reach::Lan => &self.lan,
            Reach::Internet => &self.internet,
        };
        permit.spend();
        Ok(client.execute(request).await?)
    }
}
