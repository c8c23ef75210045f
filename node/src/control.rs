//! The gRPC control service: what routers ask of each other. Certificates are the cluster package's own affair.

use std::sync::Arc;

use shoal_cluster::Caller;
use shoal_proto::control_server::{Control, ControlServer};
use shoal_proto::{
    Empty, FeedbackReply, FeedbackRequest, GetRequestReply, GetRequestRequest, GetResponseReply, HealthReply,
    KeptResponseRequest, KeyRecords, PullStatisticsReply, PullStatisticsRequest, RemoveResponseReply,
};
use shoal_routing::Score;
use tonic::{Request, Response, Status};

use crate::judge::Judge;
use crate::mesh;
use crate::pipeline::live::Live;
use crate::replication;
use crate::store::{KeyRing, ResponseShelf};

/// Most key records of one message.
const MAX_KEYS: usize = 10_000;

/// The service; the transport admits routers of this mesh only.
pub struct ControlService {
    judge: Judge,
    keys: Arc<KeyRing>,
    live: Live,
    responses: Arc<ResponseShelf>,
}

impl ControlService {
    /// Makes the gRPC routes of this node.
    pub fn routes(
        judge: Judge,
        keys: Arc<KeyRing>,
        live: Live,
        responses: Arc<ResponseShelf>,
    ) -> tonic::service::Routes {
        tonic::service::Routes::new(ControlServer::new(Self { judge, keys, live, responses }))
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn push_keys(&self, request: Request<KeyRecords>) -> Result<Response<Empty>, Status> {
        let records = request.into_inner().keys;
        if records.len() > MAX_KEYS {
            return Err(Status::resource_exhausted("too many key records"));
        }
        let records: Vec<_> = records.into_iter().filter_map(replication::key_from_proto).collect();
        let keys = self.keys.clone();
        blocking(move || keys.merge(records)).await?;
        Ok(Response::new(Empty {}))
    }

    async fn pull_keys(&self, _: Request<Empty>) -> Result<Response<KeyRecords>, Status> {
        let keys = self.keys.list().into_iter().map(replication::key_to_proto).collect();
        Ok(Response::new(KeyRecords { keys }))
    }

    async fn get_request(
        &self,
        request: Request<GetRequestRequest>,
    ) -> Result<Response<GetRequestReply>, Status> {
        let id = request.into_inner().id;
        let record = match self.live.find(&id) {
            Some(running) => Some(running),
            None => {
                let history = self.judge.history.clone();
                blocking(move || history.find(&id)).await?
            }
        };
        let json = record.as_ref().and_then(|r| serde_json::to_vec(r).ok());
        Ok(Response::new(GetRequestReply { found: record.is_some(), json: json.unwrap_or_default() }))
    }

    async fn give_feedback(
        &self,
        request: Request<FeedbackRequest>,
    ) -> Result<Response<FeedbackReply>, Status> {
        let request = request.into_inner();
        let score = Score::new(request.score)
            .map_err(|_| Status::invalid_argument("a score lies between 0 and 1"))?;
        let verdict = self
            .judge
            .take(&request.id, score, &request.comment)
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(FeedbackReply { verdict: verdict.into() }))
    }

    async fn pull_statistics(
        &self,
        request: Request<PullStatisticsRequest>,
    ) -> Result<Response<PullStatisticsReply>, Status> {
        let caller = request.extensions().get::<Caller>().and_then(|caller| caller.peer.clone());
        let learnt = self.judge.feedback.learnt();
        let caller = caller.map(|peer| peer.id);
        Ok(Response::new(mesh::newer_than(&request.into_inner(), &learnt, caller.as_ref())))
    }

    async fn get_response(
        &self,
        request: Request<KeptResponseRequest>,
    ) -> Result<Response<GetResponseReply>, Status> {
        let (shelf, request) = (self.responses.clone(), request.into_inner());
        let sealed = blocking(move || shelf.find(&request.id, &request.owner)).await?;
        Ok(Response::new(GetResponseReply { found: sealed.is_some(), sealed: sealed.unwrap_or_default() }))
    }

    async fn remove_response(
        &self,
        request: Request<KeptResponseRequest>,
    ) -> Result<Response<RemoveResponseReply>, Status> {
        let (shelf, request) = (self.responses.clone(), request.into_inner());
        let found = blocking(move || shelf.remove(&request.id, &request.owner)).await?;
        Ok(Response::new(RemoveResponseReply { found }))
    }

    async fn health(&self, _: Request<Empty>) -> Result<Response<HealthReply>, Status> {
        Ok(Response::new(HealthReply { version: env!("CARGO_PKG_VERSION").into(), ready: true }))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::store::Error> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Status::internal("the store failed"))?
        .map_err(|e| Status::internal(e.to_string()))
}
