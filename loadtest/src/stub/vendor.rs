//! What the stubs of providers' own APIs do alike: faults, pace and log; each says how its vendor words them.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Shared,
    answer::{self, Choice},
    body::{self, Framing, Outgoing},
    conn::KillSwitch,
    infer::{entry, nonce, refuse, whole},
    log::{End, Phase},
    render::{Frame, tokens_of},
    request::{Path, Request},
};
use crate::script::Script;

/// Why a stub refuses.
pub(super) enum Refused<'a> {
    /// The real server would not take such a request.
    Malformed(&'a str),
    /// It serves no model of that name.
    UnknownModel(&'a str),
    /// The script wants it: with this status, to be tried again after so many seconds.
    Scripted(StatusCode, Option<u64>),
}

/// A provider's own API.
pub(super) trait Vendor {
    /// As what it stands in the log.
    const PATH: Path;
    /// How it frames the events of a stream.
    const FRAMING: Framing;

    /// Words an error.
    fn refusal(why: Refused<'_>) -> Response;

    /// Makes the events of a stream.
    fn frames(request: &Request, script: &Script, choices: &[Choice]) -> Vec<Frame>;

    /// Makes a whole answer.
    fn whole(request: &Request, choices: &[Choice]) -> Value;
}

/// Answers a request as its script wants it.
pub(super) async fn serve<V: Vendor>(
    shared: Arc<Shared>,
    connection: KillSwitch,
    parsed: Result<Request, String>,
) -> Response {
    let parsed = parsed.and_then(|request| {
        let script = shared.options.script.for_prompt(&request.prompt).map_err(|error| error.to_string())?;
        Ok((request, script))
    });
    let (request, script) = match parsed {
        Ok(parsed) => parsed,
        Err(message) => {
            let guard = shared.log.open(entry(V::PATH, None, None));
            return refuse(guard, V::refusal(Refused::Malformed(&message)));
        }
    };
    let mut guard = shared.log.open(entry(V::PATH, Some(&request), script.tag.clone()));
    if !shared.options.models.contains(&request.model) {
        return refuse(guard, V::refusal(Refused::UnknownModel(&request.model)));
    }
    let slot = Arc::clone(&shared.slots).acquire_owned().await.expect("the semaphore is never closed");
    guard.phase(Phase::Prefill);
    if script.drop {
        guard.end(End::Fault, 0);
        connection.kill();
        return StatusCode::NO_CONTENT.into_response();
    }
    let first = Instant::now() + script.ttft;
    tokio::time::sleep_until(first).await;
    if let Some(status) = script.status {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return refuse(guard, V::refusal(Refused::Scripted(status, script.retry_after)));
    }
    if script.hang == Some(0) || (script.hang.is_some() && !request.stream) {
        return std::future::pending().await;
    }
    if script.html {
        guard.end(End::Fault, 200);
        return ([(header::CONTENT_TYPE, "text/html")], "<html><body>Sign in</body></html>").into_response();
    }
    let choices = answer::plan(&request, &script, nonce(&shared, guard.seq()));
    if request.stream {
        // No vendor's stream has a farewell line: it ends with its last event.
        let script = Script { no_done: true, ..script };
        let frames = V::frames(&request, &script, &choices).into_iter();
        let out = Outgoing { script, frames, guard, _slot: slot, first, framing: V::FRAMING };
        return ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body::events(out)))
            .into_response();
    }
    let longest = choices.iter().map(|choice| choice.pieces.len()).max().unwrap_or(0);
    tokio::time::sleep_until(first + body::pace(script.itl, longest.saturating_sub(1))).await;
    whole(&script, guard, V::whole(&request, &choices), tokens_of(&choices))
}
