//! A router node, as its handlers know it, and the questions that it answers for them.

mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use shoal_cluster::Handle;
use shoal_cluster::identity::Identity;
use shoal_cluster::ids::NodeId;
use shoal_proto::{FeedbackRequest, FeedbackVerdict, GetRequestRequest};
use shoal_routing::Score;
use tokio_util::sync::CancellationToken;

use crate::api::error::ApiError;
use crate::api::front::Front;
use crate::cloud::Clouds;
use crate::config::Config;
use crate::dashboard;
use crate::judge::Judge;
use crate::mesh::{self};
use crate::pipeline::Pipeline;
use crate::store::{KeyRing, Store, StoreBook};
use crate::tasks::{self, TaskKind};

pub use start::{Parts, Started, lock_data_dir};

/// Wait for another router's answer about a request.
const ASK_WAIT: Duration = Duration::from_secs(5);
/// Everything that handlers need.
pub struct Node {
    /// Settings.
    pub config: Config,
    /// Base URL of the API.
    pub api_url: String,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// The mesh.
    pub mesh: Handle,
    /// Requests.
    pub pipeline: Arc<Pipeline>,
    /// What clients' requests meet.
    pub front: Front,
    /// Cloud providers.
    pub clouds: Arc<Clouds>,
    /// Database.
    pub store: Store,
    /// API keys.
    pub keys: Arc<KeyRing>,
    /// Join tokens.
    pub book: Arc<StoreBook>,
    /// Feedback on requests that this node accepted.
    pub judge: Judge,
    /// Who may look at the dashboard.
    pub door: dashboard::Door,
    /// Metrics in Prometheus' text form.
    pub metrics: PrometheusHandle,
    /// Cancelled when the node stops.
    pub shutdown: CancellationToken,
    /// Start on the monotonic clock.
    pub started: Instant,
    /// Start on the wall clock, milliseconds.
    pub started_ms: u64,
    draining: AtomicBool,
}

impl Node {
    /// Returns the dashboard's URL; unless no key is needed, with a code that logs one browser in.
    pub fn dashboard_url(&self) -> String {
        if self.config.no_auth {
            return format!("{}/dashboard", self.api_url);
        }
        format!("{}/dashboard?code={}", self.api_url, self.door.new_code(Instant::now()))
    }

    /// Returns true once the node began to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Tells the other routers of changed keys, in the background.
    pub fn share_keys(&self) {
        tasks::spawn(TaskKind::Keys, mesh::push_keys(self.mesh.clone(), self.keys.clone()));
    }

    /// Takes feedback on a request, here or at the node that accepted it.
    pub async fn take_feedback(
        &self,
        id: &str,
        score: Score,
        comment: &str,
    ) -> Result<FeedbackVerdict, ApiError> {
        let failed = |e: &dyn std::fmt::Display| ApiError::new(500, "store_failed", e.to_string());
        let owner = match self.owner_of(id)? {
            Owner::Me => return self.judge.take(id, score, comment).await.map_err(|e| failed(&e)),
            Owner::Gone => return Ok(FeedbackVerdict::Unknown),
            Owner::Other(owner) => owner,
        };
        let asked = async {
            let mut client = self.mesh.control(&owner).await?;
            let request =
                FeedbackRequest { id: id.to_owned(), score: score.value(), comment: comment.to_owned() };
            anyhow::Ok(client.give_feedback(request).await?.into_inner().verdict())
        };
        match tokio::time::timeout(ASK_WAIT, asked).await {
            Ok(Ok(verdict)) => Ok(verdict),
            _ => {
                let message = "the node that accepted this request does not answer now; try again";
                Err(ApiError::new(503, "node_away", message).after(Duration::from_secs(1)))
            }
        }
    }

    fn owner_of(&self, id: &str) -> Result<Owner, ApiError> {
        let short = id.strip_prefix("req_").and_then(|rest| rest.split('_').next()).unwrap_or_default();
        if short.len() != 8 || id.len() > 96 {
            let message = "a request id looks like req_ab12cd34_…; the header x-request-id shows it";
            return Err(ApiError::invalid("id", message));
        }
        if short == self.mesh.node_id().short() {
            return Ok(Owner::Me);
        }
        let view = self.mesh.view().borrow().clone();
        let owner = view.alive().find(|m| m.id.short() == short).map(|m| m.id.clone());
        Ok(owner.map_or(Owner::Gone, Owner::Other))
    }

    /// Finds a request's record, whether it runs still or has ended, at the node that accepted it.
    ///
    /// A router that passed a request on has a record of its part too; it is shown only when the first one is away.
    pub async fn find_request(&self, id: &str) -> Result<Value, ApiError> {
        let found = match self.owner_of(id)? {
            Owner::Me | Owner::Gone => None,
            Owner::Other(owner) => {
                let asked = async {
                    let mut client = self.mesh.control(&owner).await?;
                    let reply =
                        client.get_request(GetRequestRequest { id: id.to_owned() }).await?.into_inner();
                    anyhow::Ok(reply.found.then(|| serde_json::from_slice(&reply.json)).transpose()?)
                };
                match tokio::time::timeout(ASK_WAIT, asked).await {
                    Ok(Ok(found)) => found,
                    failed => {
                        tracing::debug!(?failed, "the node that accepted a request does not tell of it");
                        None
                    }
                }
            }
        };
        match found {
            Some(record) => Ok(record),
            None => self.find_here(id).await,
        }
    }

    async fn find_here(&self, id: &str) -> Result<Value, ApiError> {
        let sinks = &self.pipeline.sinks;
        let found = match sinks.live.find(id) {
            Some(running) => Some(running),
            None => {
                let (history, wanted) = (sinks.history.clone(), id.to_owned());
                let record = tokio::task::spawn_blocking(move || history.find(&wanted)).await;
                record.ok().and_then(Result::ok).flatten()
            }
        };
        let Some(record) = found else {
            let message = "no record of this request; the node that accepted it is away, or it is older than the history kept";
            return Err(ApiError::new(404, "not_found", message));
        };
        serde_json::to_value(record).map_err(|e| ApiError::new(500, "internal_error", e.to_string()))
    }
}

/// Who accepted a request.
enum Owner {
    Me,
    Other(NodeId),
    Gone,
}
