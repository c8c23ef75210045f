//! The live part: sections that changed, at most once a second, while somebody looks.
//!
//! Each viewer's stream takes its own look and keeps what it sent last; nothing runs without a viewer. A stream
//! ends when the node begins to stop, so that an open page never holds up the drain, and when its session ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use http::{HeaderMap, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::gather::{self, Facts};
use super::page::{self, Section};
use crate::node::Node;

/// Streams at once: each costs one look a second, about a millisecond.
pub(super) const MAX_VIEWERS: usize = 16;
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two signs of life while nothing changes, shorter than what proxies cut.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Places for viewers.
#[derive(Debug, Clone)]
pub(super) struct Viewers(Arc<Semaphore>);

impl Default for Viewers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_VIEWERS)))
    }
}

/// `GET /dashboard/events`
pub(super) async fn stream(
    State(node): State<Arc<Node>>,
    Extension(Viewers(places)): Extension<Viewers>,
    headers: HeaderMap,
) -> Response {
    let Ok(place) = places.try_acquire_owned() else {
        let retry = [(header::RETRY_AFTER, "10")];
        let why = format!("{MAX_VIEWERS} pages are watching this node already; close one of them\n");
        return (StatusCode::SERVICE_UNAVAILABLE, retry, why).into_response();
    };
    Sse::new(sections(node, headers, place)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Viewer {
    node: Arc<Node>,
    headers: HeaderMap,
    ticks: Interval,
    sent: Sent,
    _place: OwnedSemaphorePermit,
}

fn sections(
    node: Arc<Node>,
    headers: HeaderMap,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let viewer = Viewer { node, headers, ticks, sent: Sent::default(), _place: place };
    stream::unfold(viewer, |mut viewer| async move {
        loop {
            tokio::select! {
                biased;
                () = viewer.node.shutdown.cancelled() => return None,
                _ = viewer.ticks.tick() => {}
            }
            if !super::admits(&viewer.node, &viewer.headers) {
                return None;
            }
            // A look that fails, as when the disk is full, is tried again a second later.
            let Ok(facts) = gather::overview(&viewer.node).await else { continue };
            if let Some(event) = viewer.sent.changes(&facts) {
                return Some((Ok(event), viewer));
            }
        }
    })
}

/// What a viewer has been sent, by section.
#[derive(Default)]
struct Sent([String; Section::ALL.len()]);

impl Sent {
    fn changes(&mut self, facts: &Facts) -> Option<Event> {
        let mut changed = serde_json::Map::new();
        for (section, sent) in Section::ALL.into_iter().zip(&mut self.0) {
            let html = page::section(section, facts).into_string();
            if *sent != html {
                changed.insert(section.id().to_owned(), html.as_str().into());
                *sent = html;
            }
        }
        // JSON has no raw line ends, so it is one line of the stream whatever the names contain.
        let data = serde_json::Value::Object(changed);
        data.as_object().is_some_and(|m| !m.is_empty()).then(|| Event::default().data(data.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sections_that_changed_are_sent() {
        let mut sent = Sent::default();
        let mut facts = Facts::default();
        assert!(sent.changes(&facts).is_some(), "all of them at first");
        assert!(sent.changes(&facts).is_none());
        facts.models.push(serde_json::json!({"id": "new-model"}));
        assert!(sent.changes(&facts).is_some());
        assert!(sent.changes(&facts).is_none());
    }
}
