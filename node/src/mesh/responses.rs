//! Responses that clients keep with another router, asked for over the mesh.

use std::time::Duration;

use futures_util::future::BoxFuture;
use shoal_cluster::Handle;
use shoal_proto::KeptResponseRequest;
use shoal_proto::control_client::ControlClient;
use tonic::transport::Channel;

use crate::api::responses::{Away, Elsewhere, home_of};

/// How long another router may take; a client waits for it before its request begins.
const ASK_WAIT: Duration = Duration::from_secs(5);

/// Asks the router whose id is in a response's id.
pub struct MeshResponses(pub Handle);

impl MeshResponses {
    async fn client(&self, id: &str) -> Result<ControlClient<Channel>, Away> {
        let home = home_of(id).ok_or(Away)?;
        let view = self.0.view().borrow().clone();
        let owner = view
            .alive()
            .find(|member| member.id.short() == home)
            .map(|member| member.id.clone())
            .ok_or(Away)?;
        self.0.control(&owner).await.map_err(|error| {
            tracing::debug!(%error, home, "the node that keeps a response is not reached");
            Away
        })
    }
}

/// Waits for an answer, but not long.
async fn asked<T>(answer: impl Future<Output = Result<T, Away>>) -> Result<T, Away> {
    tokio::time::timeout(ASK_WAIT, answer).await.unwrap_or(Err(Away))
}

fn refused(status: &tonic::Status) -> Away {
    tracing::debug!(%status, "the node that keeps a response does not tell of it");
    Away
}

impl Elsewhere for MeshResponses {
    fn fetch<'a>(&'a self, id: &'a str, owner: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>, Away>> {
        Box::pin(asked(async move {
            let request = KeptResponseRequest { id: id.to_owned(), owner: owner.to_owned() };
            let reply =
                self.client(id).await?.get_response(request).await.map_err(|status| refused(&status))?;
            let reply = reply.into_inner();
            Ok(reply.found.then_some(reply.sealed))
        }))
    }

    fn remove<'a>(&'a self, id: &'a str, owner: &'a str) -> BoxFuture<'a, Result<bool, Away>> {
        Box::pin(asked(async move {
            let request = KeptResponseRequest { id: id.to_owned(), owner: owner.to_owned() };
            let reply =
                self.client(id).await?.remove_response(request).await.map_err(|status| refused(&status))?;
            Ok(reply.into_inner().found)
        }))
    }
}
