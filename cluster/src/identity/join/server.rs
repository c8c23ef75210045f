//! The routers' side of joining: redeem one's own tokens, relay those of others, sign issuing certificates.
//!
//! Only the node that made a token redeems it, so "once" needs no agreement with anyone. A relay is a router
//! and sees the secret; routers are trusted with that (see the threat model).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use shoal_proto::issuer_client::IssuerClient;
use shoal_proto::issuer_server::{Issuer, IssuerServer};
use shoal_proto::join_server::{Join, JoinServer};
use shoal_proto::{RedeemReply, RedeemRequest, SignIssuerReply, SignIssuerRequest};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use super::super::certificates::sha256;
use super::super::{Error, Identity, JoinToken, Refusal, TokenBook, TokenRecord, random};
use super::throttle::Throttle;
use super::unix_seconds;
use crate::ids::{NodeId, Peer, Role};
use crate::quic::{Caller, Channels, Directory};

/// Largest request: a CSR of some hundred bytes and a name.
const REQUEST_LIMIT: usize = 16 * 1024;
/// Longest wait for another router; the joiner waits 20 s in all.
const RELAY_DEADLINE: Duration = Duration::from_secs(10);

/// Lets others in. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Arc<Identity>,
    book: Arc<dyn TokenBook>,
    directory: Arc<dyn Directory>,
    channels: Channels,
    throttle: Mutex<Throttle>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

impl Admission {
    /// Puts the parts together; nothing runs yet.
    pub fn new(
        identity: Arc<Identity>,
        book: Arc<dyn TokenBook>,
        directory: Arc<dyn Directory>,
        channels: Channels,
    ) -> Self {
        Self { inner: Arc::new(Inner { identity, book, directory, channels, throttle: Mutex::default() }) }
    }

    /// What is served to joiners, under their own purpose.
    pub fn join_routes(&self) -> Routes {
        Routes::new(JoinServer::new(self.clone()).max_decoding_message_size(REQUEST_LIMIT))
    }

    /// Adds what is served to routers to the control services.
    pub fn add_to(&self, control: Routes) -> Routes {
        control.add_service(IssuerServer::new(self.clone()).max_decoding_message_size(REQUEST_LIMIT))
    }

    /// Makes a token, records it in the book (which may wait for the disk) and returns it with its secret.
    ///
    /// # Errors
    /// [`Error::CannotIssue`] until this node has its issuing certificate; [`Error::Book`].
    pub fn create_token(&self, role: Role, ttl: Duration, uses: u32) -> Result<JoinToken, Error> {
        let identity = &self.inner.identity;
        if !identity.can_issue() {
            return Err(Error::CannotIssue);
        }
        let now = unix_seconds(SystemTime::now());
        let me = identity.node_id();
        // Own addresses first: this node is the one that redeems.
        let mut seeds = self.inner.directory.addrs(me);
        for router in self.inner.directory.routers() {
            if !seeds.contains(&router.addr) {
                seeds.push(router.addr);
            }
        }
        seeds.truncate(super::super::token::SEED_LIMIT);
        let token = JoinToken {
            role,
            mesh_id: identity.mesh_id(),
            ca_pin: identity.ca_pin(),
            token_id: random()?,
            secret: random()?,
            issuer: me.clone(),
            expires_unix_s: now.saturating_add(ttl.as_secs()),
            seeds,
        };
        self.inner.book.insert(&TokenRecord {
            token_id: token.token_id,
            secret_sha256: sha256(&token.secret),
            role,
            uses_left: uses,
            expires_unix_s: token.expires_unix_s,
            created_unix_s: now,
            revoked: false,
        })?;
        Ok(token)
    }

    async fn redeem(&self, request: RedeemRequest) -> Result<RedeemReply, Status> {
        let issuer: NodeId =
            request.issuer.parse().map_err(|_| Status::invalid_argument("the request names no issuer"))?;
        if issuer == *self.inner.identity.node_id() {
            self.redeem_here(request).await
        } else {
            self.relay(&issuer, request).await
        }
    }

    async fn redeem_here(&self, request: RedeemRequest) -> Result<RedeemReply, Status> {
        let malformed = |_| Status::invalid_argument("the request is not a redemption");
        let token_id: [u8; 8] = request.token_id.as_slice().try_into().map_err(malformed)?;
        let secret_sha256 = sha256(&request.secret);
        let role: Role =
            request.role.parse().map_err(|_| Status::invalid_argument("the request names no role"))?;
        let admission = self.clone();
        // The book waits for the disk.
        let admit = move || admission.admit(&token_id, &secret_sha256, role, &request);
        tokio::task::spawn_blocking(admit)
            .await
            .map_err(|_| Status::internal("the join failed; try again"))?
    }

    pub(super) fn admit(
        &self,
        token_id: &[u8; 8],
        secret_sha256: &[u8; 32],
        role: Role,
        request: &RedeemRequest,
    ) -> Result<RedeemReply, Status> {
        let inner = &self.inner;
        let now = SystemTime::now();
        // Signed before a use is taken, so that a bad request costs none, and given out only after.
        let (peer, chain) = inner
            .identity
            .issue(&request.csr_der, role, &request.name, now)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        inner.book.consume(token_id, secret_sha256, role, now).map_err(refusal)?;
        tracing::info!(%peer.role, %peer.id, token = data_encoding::HEXLOWER.encode(token_id), "admitted");
        Ok(RedeemReply {
            certificate_chain: chain.iter().map(|der| der.to_vec()).collect(),
            ca_bundle: inner.identity.roots_der().iter().map(|der| der.to_vec()).collect(),
            routers: inner.directory.routers().iter().map(ToString::to_string).collect(),
            keys: (role == Role::Router).then(|| inner.book.key_records()),
            mesh_name: String::new(),
        })
    }

    async fn relay(&self, issuer: &NodeId, request: RedeemRequest) -> Result<RedeemReply, Status> {
        let name = self.inner.directory.display_name(issuer).unwrap_or_else(|| issuer.short().to_owned());
        let unreachable = || {
            Status::unavailable(format!(
                "node {name} that made this token is not reachable; make a new one on any node with `shoal token create`"
            ))
        };
        let ask = async {
            let channel = self.inner.channels.to(issuer).await.map_err(|_| unreachable())?;
            IssuerClient::new(channel).redeem(request).await
        };
        match tokio::time::timeout(RELAY_DEADLINE, ask).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) if is_verdict(status.code()) => Err(status),
            Ok(Err(_)) | Err(_) => Err(unreachable()),
        }
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.inner.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wrong secret or unknown id is a guess, and counts against its address; the other refusals meet people
/// who hold a real token.
fn refusal(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Unknown | Refusal::WrongSecret => Status::unauthenticated(text),
        Refusal::Used | Refusal::Expired | Refusal::Revoked | Refusal::WrongRole => {
            Status::permission_denied(text)
        }
        Refusal::Store(_) => Status::internal(text),
    }
}

/// True for answers of the issuer itself, as against failures on the way to it.
fn is_verdict(code: Code) -> bool {
    matches!(
        code,
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Internal
    )
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("the caller is unknown"))
}

/// The calling router; the purpose of the connection has checked it already, and this checks it again.
fn calling_router<T>(request: &Request<T>) -> Result<Peer, Status> {
    match caller(request)?.peer {
        Some(peer) if peer.role == Role::Router => Ok(peer),
        _ => Err(Status::permission_denied("only routers may ask for this")),
    }
}

#[tonic::async_trait]
impl Join for Admission {
    async fn redeem(&self, request: Request<RedeemRequest>) -> Result<Response<RedeemReply>, Status> {
        let remote = caller(&request)?.remote.ip();
        if !self.throttle().admits(remote, Instant::now()) {
            let text = "too many wrong tokens from this address; wait a minute, then try again";
            return Err(Status::resource_exhausted(text));
        }
        let result = Admission::redeem(self, request.into_inner()).await;
        if let Err(status) = &result {
            tracing::info!(%remote, reason = status.message(), "refused a join");
            if matches!(status.code(), Code::Unauthenticated | Code::InvalidArgument) {
                self.throttle().record(remote, Instant::now());
            }
        }
        result.map(Response::new)
    }
}

#[tonic::async_trait]
impl Issuer for Admission {
    async fn redeem(&self, request: Request<RedeemRequest>) -> Result<Response<RedeemReply>, Status> {
        calling_router(&request)?;
        let request = request.into_inner();
        if request.issuer != self.inner.identity.node_id().as_str() {
            // Not relayed again: two nodes with each other's old address would play ping-pong.
            return Err(Status::invalid_argument("this node did not make the token"));
        }
        self.redeem_here(request).await.map(Response::new)
    }

    async fn sign_issuer(
        &self,
        request: Request<SignIssuerRequest>,
    ) -> Result<Response<SignIssuerReply>, Status> {
        let router = calling_router(&request)?;
        let csr = request.into_inner().csr_der;
        let certificate = self
            .inner
            .identity
            .sign_issuer(&csr, &router.id, SystemTime::now())
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        tracing::info!(router = %router.id, "signed an issuing certificate");
        Ok(Response::new(SignIssuerReply { certificate_der: certificate.to_vec() }))
    }
}
