//! Tells answers in Ollama's words: a JSON object, or one on each line.
//!
//! Calls of tools are told when they are whole, since their arguments are objects here. Times are measured by whoever
//! makes the voice: clients divide tokens by them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::chat_body::Object;
use crate::api::chat_chunk::{CallPart, Chunk, Usage, read_whole};
use crate::api::error::ApiError;
use crate::api::kept::Kept;
use crate::api::shape;
use crate::api::voice::Voice;

/// Returns the time since the request came.
pub(super) type Elapsed = Box<dyn Fn() -> Duration + Send>;

/// Which of Ollama's two ways to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `/api/chat`: a message.
    Chat,
    /// `/api/generate`: a text.
    Generate,
}

/// When a request came, and how long ago that is.
pub(super) struct Times {
    /// Milliseconds since the Unix epoch.
    pub(super) came_ms: u64,
    /// Since then.
    pub(super) elapsed: Elapsed,
}

impl Times {
    /// Returns the moment at which it came, as text.
    pub(super) fn moment_it_came(&self) -> String {
        self.moment(Duration::ZERO)
    }

    /// Returns the moment `after` it came, as text.
    fn moment(&self, after: Duration) -> String {
        let ns = (u128::from(self.came_ms) * 1_000_000).saturating_add(after.as_nanos());
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::try_from(ns).unwrap_or(i128::MAX));
        moment
            .ok()
            .and_then(|moment| moment.format(&Rfc3339).ok())
            .unwrap_or_else(|| "1970-01-01T00:00:00Z".into())
    }
}

/// The voice of `/api/chat` and `/api/generate`.
pub(super) struct Ollama {
    way: Way,
    /// Model as the client knows it.
    model: String,
    thinks: bool,
    times: Times,
    /// When the first word came.
    first: Option<Duration>,
    calls: BTreeMap<usize, CallPart>,
    kept: Kept,
    finish: Option<String>,
    usage: Usage,
    metadata: Vec<(&'static str, Box<RawValue>)>,
    over: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Serialize)]
struct Call<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    function: Called<'a>,
}

#[derive(Serialize)]
struct Called<'a> {
    index: usize,
    name: &'a str,
    arguments: Box<RawValue>,
}

impl<'a> Call<'a> {
    fn of(part: &'a CallPart) -> Option<Self> {
        // Arguments that are no object would break every client; the call then has none.
        let object = |text: &str| {
            RawValue::from_string(text.trim().to_owned()).ok().filter(|raw| raw.get().starts_with('{'))
        };
        let arguments = object(&part.arguments).or_else(|| object("{}"))?;
        let function = Called { index: part.index, name: part.name.as_deref()?, arguments };
        Some(Self { id: part.id.as_deref(), function })
    }
}

impl Ollama {
    pub(super) fn new(way: Way, model: String, thinks: bool, times: Times) -> Self {
        Self {
            way,
            model,
            thinks,
            times,
            first: None,
            calls: BTreeMap::new(),
            kept: Kept::default(),
            finish: None,
            usage: Usage::default(),
            metadata: Vec::new(),
            over: false,
        }
    }

    /// Takes what is not told at once.
    fn note(&mut self, chunk: &mut Chunk) -> Result<(), ApiError> {
        self.kept.calls(&chunk.calls)?;
        if !self.thinks {
            chunk.reasoning.clear();
        }
        if chunk.text.is_empty() {
            chunk.text = std::mem::take(&mut chunk.refusal);
        }
        let says = !(chunk.text.is_empty() && chunk.reasoning.is_empty() && chunk.calls.is_empty());
        if says && self.first.is_none() {
            self.first = Some((self.times.elapsed)());
        }
        for part in std::mem::take(&mut chunk.calls) {
            let call = self
                .calls
                .entry(part.index)
                .or_insert_with(|| CallPart { index: part.index, ..CallPart::default() });
            call.id = call.id.take().or(part.id);
            call.name = call.name.take().or(part.name);
            call.arguments.push_str(&part.arguments);
        }
        self.finish = chunk.finish.take().or(self.finish.take());
        self.usage = chunk.usage.unwrap_or(self.usage);
        if !chunk.metadata.is_empty() {
            self.metadata = std::mem::take(&mut chunk.metadata);
        }
        Ok(())
    }

    fn object(&self, chunk: &Chunk, calls: Vec<Call<'_>>, now: Duration) -> Object {
        let mut object = Object::default();
        object.put("model", &self.model).put("created_at", &self.times.moment(now));
        match self.way {
            Way::Chat => {
                let (content, thinking) = (chunk.text.as_str(), chunk.reasoning.as_str());
                object.put("message", &Message { role: "assistant", content, thinking, tool_calls: calls });
            }
            Way::Generate => {
                object.put("response", &chunk.text);
                object.put_some("thinking", Some(&chunk.reasoning).filter(|text| !text.is_empty()));
                object.put_some("tool_calls", Some(&calls).filter(|calls| !calls.is_empty()));
            }
        }
        if !chunk.logprobs.is_empty() {
            object.put("logprobs", &chunk.logprobs);
        }
        object
    }

    /// Puts what the last object of an answer says.
    fn conclude(&self, object: &mut Object, now: Duration) {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let first = self.first.unwrap_or(now);
        let reason = match self.finish.as_deref() {
            Some("tool_calls" | "function_call") | None => "stop",
            Some(reason) => reason,
        };
        object
            .put("done", &true)
            .put("done_reason", reason)
            .put("total_duration", &ns(now))
            .put("load_duration", &0)
            .put("prompt_eval_count", &self.usage.prompt)
            .put("prompt_eval_duration", &ns(first))
            .put("eval_count", &self.usage.completion)
            .put("eval_duration", &ns(now.saturating_sub(first)).max(1));
        for (name, value) in &self.metadata {
            object.put(name, value);
        }
    }

    fn told_calls(&self) -> Vec<Call<'_>> {
        self.calls.values().filter_map(Call::of).collect()
    }
}

impl Voice for Ollama {
    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError> {
        let mut chunk = read_whole(&answer)?;
        self.note(&mut chunk)?;
        // When its first word came is not known of a whole answer; all of its time counts as the answer's.
        self.first = Some(Duration::ZERO);
        let now = (self.times.elapsed)();
        let mut object = self.object(&chunk, self.told_calls(), now);
        self.conclude(&mut object, now);
        Ok(object.finish())
    }

    fn payload(&mut self, payload: &[u8], out: &mut VecDeque<Bytes>) {
        if self.over {
            return;
        }
        let mut chunk = match Chunk::read(payload) {
            Ok(chunk) => chunk,
            Err(error) => return self.fail(&error, out),
        };
        if let Err(error) = self.note(&mut chunk) {
            return self.fail(&error, out);
        }
        if !(chunk.text.is_empty() && chunk.reasoning.is_empty()) {
            let mut object = self.object(&chunk, Vec::new(), (self.times.elapsed)());
            object.put("done", &false);
            out.push_back(line(&object.finish()));
        }
    }

    fn end(&mut self, out: &mut VecDeque<Bytes>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let (now, nothing) = ((self.times.elapsed)(), Chunk::default());
        let calls = self.told_calls();
        if !calls.is_empty() {
            let mut object = self.object(&nothing, calls, now);
            object.put("done", &false);
            out.push_back(line(&object.finish()));
        }
        let mut object = self.object(&nothing, Vec::new(), now);
        self.conclude(&mut object, now);
        out.push_back(line(&object.finish()));
    }

    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        if !std::mem::replace(&mut self.over, true) {
            out.push_back(line(shape::ollama(error).to_string().as_bytes()));
        }
    }

    fn keep_alive(&self) -> Option<Bytes> {
        None
    }

    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("application/x-ndjson")
    }
}

/// Which form embeddings are told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `/api/embed`: a list for each input.
    Embed,
    /// `/api/embeddings`: one list.
    Embeddings,
}

/// The voice of embeddings; they are never streamed.
pub(super) struct Embeddings {
    pub(super) form: Form,
    /// Model as the client knows it.
    pub(super) model: String,
    pub(super) times: Times,
}

impl Voice for Embeddings {
    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            data: Vec<Row<'a>>,
            usage: Option<Tokens>,
            #[serde(borrow)]
            shoal_metadata: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Row<'a> {
            index: Option<usize>,
            #[serde(borrow)]
            embedding: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Tokens {
            prompt_tokens: Option<u64>,
        }
        let wrong = || ApiError::new(502, "upstream_error", "the device sent no embeddings; try again");
        let mut answer: Answer<'_> = serde_json::from_slice(&answer).map_err(|_| wrong())?;
        answer.data.sort_by_key(|row| row.index);
        let rows: Vec<&RawValue> = answer.data.iter().map(|row| row.embedding).collect();
        let mut object = Object::default();
        match self.form {
            Form::Embed => {
                let now = u64::try_from((self.times.elapsed)().as_nanos()).unwrap_or(u64::MAX);
                object.put("model", &self.model).put("embeddings", &rows);
                object.put("total_duration", &now).put("load_duration", &0);
                object.put(
                    "prompt_eval_count",
                    &answer.usage.and_then(|usage| usage.prompt_tokens).unwrap_or(0),
                );
            }
            Form::Embeddings => {
                object.put("embedding", rows.first().ok_or_else(wrong)?);
            }
        }
        object.put_some("shoal_metadata", answer.shoal_metadata);
        Ok(object.finish())
    }

    fn payload(&mut self, _: &[u8], _: &mut VecDeque<Bytes>) {}

    fn end(&mut self, _: &mut VecDeque<Bytes>) {}

    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        out.push_back(line(shape::ollama(error).to_string().as_bytes()));
    }

    fn keep_alive(&self) -> Option<Bytes> {
        None
    }
}

fn line(json: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(json.len() + 1);
    out.put_slice(json);
    out.put_u8(b'\n');
    out.freeze()
}

/// Returns the answer to who only wants a model loaded.
pub(super) fn loaded(way: Way, model: String, times: Times) -> Bytes {
    let voice = Ollama::new(way, model, false, times);
    let now = (voice.times.elapsed)();
    let mut object = voice.object(&Chunk::default(), Vec::new(), now);
    object.put("done", &true).put("done_reason", "load");
    object.finish()
}
