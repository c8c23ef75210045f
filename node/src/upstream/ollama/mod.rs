//! Ollama in its own words (`/api/chat`), told in OpenAI's.
//!
//! Its OpenAI API has no way to ask for a context window, and cuts a prompt that is longer than the one the model was
//! loaded with without a word. Its own API has: a long prompt is given a window that holds it, and the window of a
//! model never shrinks, since each change loads the model anew. What only the OpenAI API can say goes there.

mod answer;
mod request;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header;
use reqwest::{Client, Request};
use serde::Deserialize;
use serde_json::Value;

use self::answer::Answer;
use super::openai_http::{self, Line, Malformed, OpenAi, Settings, exchange, join, post, secret};
use super::sse::Framing;
use super::{ApiPath, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse};
use crate::store::unix_ms;

/// Window that Ollama gives a model unless told otherwise, tokens.
pub const DEFAULT_WINDOW: u32 = 4096;

/// Largest window that is asked for, tokens: the cache of a small model takes about 1 GiB for it.
pub const MAX_WINDOW: u32 = 16_384;

/// Longest wait for the list of loaded models.
const PS_WAIT: Duration = Duration::from_secs(1);

/// Largest answer of the list of loaded models.
const MAX_PS: usize = 1 << 20;

/// An Ollama server as an upstream; cheap to clone, all clones know the same windows.
#[derive(Debug, Clone)]
pub struct Ollama {
    client: Client,
    settings: Arc<Settings>,
    windows: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Ollama {
    /// Makes the upstream; nothing is sent yet.
    pub fn new(client: Client, settings: Settings) -> Self {
        Self { client, settings: Arc::new(settings), windows: Arc::default() }
    }

    async fn run(self, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
        let native = match request.path {
            ApiPath::ChatCompletions => request::translate(&request.body),
            _ => None,
        };
        let line = Line::Mesh(self.client.clone());
        let Some(mut body) = native else {
            return exchange(line, self.settings.clone(), Box::new(OpenAi), request).await;
        };
        if let Some(window) = self.window(&request.model, request::tokens_needed(&body)).await {
            body["options"]["num_ctx"] = window.into();
        }
        let answer = Answer::new(&request.id, &request.model, unix_ms() / 1000);
        let dialect =
            Dialect { body: serde_json::to_vec(&body).expect("a JSON value serialises").into(), answer };
        exchange(line, self.settings.clone(), Box::new(dialect), request).await
    }

    /// Returns the window to ask for, `None` to leave it to the server.
    async fn window(&self, model: &str, needed: u32) -> Option<u32> {
        let known = self.windows().get(model).copied();
        if known.is_none() && needed <= DEFAULT_WINDOW {
            return None;
        }
        let loaded = match known {
            Some(window) => window,
            None => self.loaded_window(model).await.unwrap_or(0),
        };
        let window =
            if loaded >= needed { loaded } else { needed.next_power_of_two().min(MAX_WINDOW).max(loaded) };
        let mut windows = self.windows();
        let entry = windows.entry(model.to_owned()).or_default();
        *entry = window.max(*entry);
        Some(*entry)
    }

    fn windows(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u32>> {
        // Numbers that only grow: a poisoned lock still holds valid ones.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks with which window a model is loaded now.
    async fn loaded_window(&self, model: &str) -> Option<u32> {
        #[derive(Deserialize)]
        struct Running {
            model: Option<String>,
            context_length: Option<u32>,
        }
        #[derive(Deserialize)]
        struct Ps {
            models: Vec<Running>,
        }
        let mut asked = self.client.get(join(&self.settings.base, "/api/ps"));
        if let Some(key) = &self.settings.key {
            asked = asked.header(header::AUTHORIZATION, secret("Bearer ", key).ok()?);
        }
        let answered = async {
            let mut response = asked.send().await.ok()?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.ok()? {
                if body.len() + chunk.len() > MAX_PS {
                    return None;
                }
                body.extend_from_slice(&chunk);
            }
            serde_json::from_slice::<Ps>(&body).ok()
        };
        let ps = tokio::time::timeout(PS_WAIT, answered).await.ok()??;
        ps.models.into_iter().find(|running| running.model.as_deref() == Some(model))?.context_length
    }
}

impl tower::Service<UpstreamRequest> for Ollama {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        Box::pin(self.clone().run(request))
    }
}

/// Ollama's dialect for one request, translated before.
#[derive(Debug)]
struct Dialect {
    body: Bytes,
    answer: Answer,
}

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        let mut out = post(join(&settings.base, "/api/chat"), request, self.body.clone());
        if let Some(key) = &settings.key {
            out.headers_mut().insert(header::AUTHORIZATION, secret("Bearer ", key)?);
        }
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        let told = serde_json::from_slice(&body).map_err(|_| "an answer of a form that is not known")?;
        Ok(bytes(&self.answer.whole(told)?))
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        let told = serde_json::from_slice(&payload).map_err(|_| "a stream of a form that is not known")?;
        out.extend(self.answer.chunks(told).iter().map(bytes));
        Ok(())
    }

    fn framing(&self) -> Framing {
        Framing::Lines
    }
}

fn bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("a JSON value serialises").into()
}
