//! Scripted HTTP servers on loopback, for the tests of engines and upstreams.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::Url;
use shoal_routing::DataClass;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::tasks::{self, TaskKind};
use crate::upstream::{ApiPath, Event, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Longest wait of a test for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a router on a random loopback port until the test's runtime ends.
pub(crate) async fn serve(router: Router) -> Url {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tasks::spawn(TaskKind::Api, async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// A loopback address on which nothing listens.
pub(crate) async fn nowhere() -> Url {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()
}

/// Sends a word when dropped: how a fake engine tells that it was cancelled.
pub(crate) struct TellsDrop(pub(crate) mpsc::UnboundedSender<&'static str>, pub(crate) &'static str);

impl Drop for TellsDrop {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

/// How a scripted stream ends after its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The body is finished in order.
    Clean,
    /// The connection is cut in the middle of the body.
    Cut,
    /// Nothing more comes.
    Silence,
}

/// An event stream of the given parts.
pub(crate) fn event_stream(parts: &[&'static str], ending: Ending) -> Response {
    let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
    let parts = stream::iter(parts);
    let body = match ending {
        Ending::Clean => Body::from_stream(parts),
        // The pause lets the parts leave: an error would otherwise overtake them in the server's buffer.
        Ending::Cut => Body::from_stream(parts.chain(stream::once(async {
            for _ in 0..32 {
                tokio::task::yield_now().await;
            }
            Err(std::io::Error::other("cut"))
        }))),
        Ending::Silence => Body::from_stream(parts.chain(stream::pending())),
    };
    Response::builder().header("content-type", "text/event-stream; charset=utf-8").body(body).unwrap()
}

/// A request for a chat completion of the model `m`.
pub(crate) fn chat(stream: bool) -> UpstreamRequest {
    UpstreamRequest {
        id: Arc::from("req_test_1"),
        path: ApiPath::ChatCompletions,
        model: Arc::from("m"),
        body: Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#),
        media: None,
        stream,
        deadline: None,
        data_class: DataClass::Internal,
        hop: 0,
        meshes: 0,
        attempts_left: 1,
        device: None,
        egress: Default::default(),
        commitment: Default::default(),
        payer: None,
    }
}

/// All events of an answer, or the error that ended it with the events before.
pub(crate) async fn collect(mut answer: UpstreamResponse) -> (Vec<Event>, Option<UpstreamError>) {
    let mut events = Vec::new();
    let all = async {
        while let Some(event) = answer.events.next().await {
            match event {
                Ok(event) => events.push(event),
                Err(error) => return Some(error),
            }
        }
        None
    };
    let error = tokio::time::timeout(PATIENCE, all).await.expect("the answer ends");
    (events, error)
}
