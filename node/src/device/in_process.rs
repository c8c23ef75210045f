//! An engine inside this process, spoken to in OpenAI JSON like any other.
//!
//! Whatever generates tokens (see [`Generator`]) blocks a thread; this is the bridge to it: a bounded channel from the
//! blocking thread to the answer, closed by whoever gives up first. The generator asks between tokens whether
//! anybody still listens, so dropping the answer ends the work within a token. A slot is given back only
//! when the generation has really ended, not when the client turned away.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use serde_json::Value;
use shoal_proto::ModelInfo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::detect::EngineKind;
use super::engine::{Engine, EngineStatus};
use crate::upstream::{
    ApiPath, BoxUpstream, Event, ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse,
};
use answer::Writer;
use parse::Parsed;

pub use form::{Call, CallRules, JsonForm, Tool};

mod answer;
mod embeddings;
mod form;
mod parse;
#[cfg(test)]
mod tests;

/// Tokens that may wait for a slow reader before the generation does.
const TOKENS_AHEAD: usize = 32;

/// Longest wait for a slot: what a cancelled generation needs to notice.
const SLOT_WAIT: Duration = Duration::from_secs(1);

/// One message of a conversation, its content reduced to text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Name of the author or tool.
    pub name: Option<String>,
    /// Calls that the assistant made, as in the OpenAI API.
    pub tool_calls: Option<Value>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
}

/// What to generate from a rendered prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text to go on from.
    pub prompt: String,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// 0 = the likeliest token each time.
    pub temperature: f32,
    /// Mass of the likeliest tokens that are drawn from, 0..1.
    pub top_p: f32,
    /// Makes the draw repeatable.
    pub seed: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Alternatives reported with each token; `None` = no log-probabilities are wanted.
    pub top_logprobs: Option<u8>,
    /// -2..2.
    pub frequency_penalty: f32,
    /// -2..2.
    pub presence_penalty: f32,
    /// Added to the logits of tokens, by id, -100..100.
    pub logit_bias: Vec<(u32, f32)>,
    /// JSON that the answer must be; with calls that are not required, it is either.
    pub json: Option<JsonForm>,
    /// Tools that the answer may or must call.
    pub calls: Option<CallRules>,
}

/// One generated token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Token {
    /// Text that it completes; may be empty in the middle of a character.
    pub text: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Likeliest tokens at its place, best first.
    pub top: Vec<(String, f32)>,
    /// The bytes it stands for.
    pub bytes: Vec<u8>,
    /// Calls of tools that it completes; their text is in no token.
    pub calls: Vec<Call>,
}

/// Account of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
}

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or at a stop text.
    Stop,
    /// As `Stop`, with calls of tools.
    Calls,
    /// At a limit.
    Length,
    /// Nobody wanted it any longer.
    Cancelled,
}

/// Why nothing was generated; the texts are sentences for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The prompt does not fit into the context.
    #[error("{0}")]
    ContextTooLong(String),
    /// The request makes no sense to the model.
    #[error("{0}")]
    Invalid(String),
    /// The model or its engine cannot do it, another may.
    #[error("{0}")]
    Unsupported(String),
    /// The engine failed.
    #[error("{0}")]
    Failed(String),
}

/// Something that generates tokens, blocking the thread it is called on.
pub trait Generator: Send + Sync + 'static {
    /// Describes the model as it is announced.
    fn describe(&self) -> ModelInfo;

    /// Renders a conversation as the model was trained to read it.
    ///
    /// # Errors
    /// [`GenerateError::Invalid`] if it takes no such conversation.
    fn render_chat(&self, messages: &[Message], tools: Option<&Value>) -> Result<String, GenerateError>;

    /// Generates until the end, a limit, or until `cancel` or `on_token` says to stop.
    ///
    /// # Errors
    /// See [`GenerateError`]; all but `Failed` and `Unsupported` come before the first token.
    fn generate(
        &self,
        generation: &Generation,
        cancel: &dyn Fn() -> bool,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<Summary, GenerateError>;

    /// Returns the vector of a text, of length 1, and how many tokens the text has; `None` if `cancel` said to stop.
    ///
    /// # Errors
    /// [`GenerateError::Unsupported`] unless the model is described as one for embeddings.
    fn embed(
        &self,
        _text: &str,
        _cancel: &dyn Fn() -> bool,
    ) -> Result<Option<(Vec<f32>, usize)>, GenerateError> {
        Err(GenerateError::Unsupported("the model makes no embeddings".to_owned()))
    }
}

/// Makes an engine of a generator that runs at most `slots` answers at a time.
pub fn engine<G: Generator>(generator: G, slots: u32) -> Engine {
    let slots = slots.max(1);
    let model = generator.describe();
    let status = EngineStatus {
        kind: Some(EngineKind::Embedded),
        models: vec![model.clone()],
        slots,
        ..EngineStatus::default()
    };
    let service = InProcess {
        generator: Arc::new(generator),
        model: Arc::new(model),
        slots: Arc::new(Semaphore::new(slots as usize)),
    };
    // The status never changes, and a receiver stays readable without its sender.
    let (_, status) = watch::channel(status);
    Engine::new("embedded", status, BoxUpstream::new(service))
}

struct InProcess<G> {
    generator: Arc<G>,
    model: Arc<ModelInfo>,
    slots: Arc<Semaphore>,
}

impl<G> Clone for InProcess<G> {
    fn clone(&self) -> Self {
        Self { generator: self.generator.clone(), model: self.model.clone(), slots: self.slots.clone() }
    }
}

impl<G: Generator> tower::Service<UpstreamRequest> for InProcess<G> {
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

/// What comes from the blocking thread: for each choice its tokens and its summary, then exactly one end.
enum Step {
    Token(Token),
    /// The choice is complete; what follows belongs to the next.
    Choice(Summary),
    End(Result<(), UpstreamError>),
}

impl<G: Generator> InProcess<G> {
    async fn run(self, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
        if *request.model != *self.model.id {
            let message = format!("the embedded engine does not serve '{}'", request.model);
            return Err(UpstreamError::retryable(404, "model_not_found", message));
        }
        let parsed = match request.path {
            ApiPath::ChatCompletions => parse::chat(&request.body)?,
            ApiPath::Completions => parse::completion(&request.body)?,
            ApiPath::Embeddings => return self.embeddings(request).await,
            ApiPath::Transcriptions | ApiPath::Translations | ApiPath::Speech => {
                let message = "the embedded engine takes and makes no recordings";
                return Err(UpstreamError::retryable(400, "unsupported", message));
            }
        };
        let writer = Writer::new(&request, &parsed, SystemTime::now());
        let served_by = self.served_by();
        let mut steps = self.start(parsed, request.deadline).await?;
        let events = if request.stream {
            // The first step tells whether there is an answer at all.
            let first = match steps.recv().await {
                Some(Step::End(Err(error))) => return Err(error),
                Some(first) => first,
                None => return Err(died()),
            };
            streamed(writer, first, steps).boxed()
        } else {
            let body = whole(writer, steps).await?;
            stream::iter([Ok(Event::Chunk(body)), Ok(Event::End { complete: true })]).boxed()
        };
        Ok(UpstreamResponse { served_by, media: None, events })
    }

    /// Takes a slot and starts to generate on a blocking thread.
    async fn start(
        self,
        parsed: Parsed,
        deadline: Option<Instant>,
    ) -> Result<mpsc::Receiver<Step>, UpstreamError> {
        let slot = self.slot().await?;
        let (send, steps) = mpsc::channel(TOKENS_AHEAD);
        tokio::task::spawn_blocking(move || {
            let late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let end = self.choices(parsed, &send, &|| send.is_closed() || late());
            // Before the last step: a client that asks again the moment it is done finds the slot free.
            drop(slot);
            let _ = send.blocking_send(Step::End(end));
        });
        Ok(steps)
    }

    /// Generates one choice after the other.
    fn choices(
        &self,
        parsed: Parsed,
        send: &mpsc::Sender<Step>,
        cancel: &dyn Fn() -> bool,
    ) -> Result<(), UpstreamError> {
        let prompt = parsed.prompt.render(&*self.generator).map_err(map)?;
        let mut generation = Generation { prompt, ..parsed.generation };
        let mut on_token = |token| match send.blocking_send(Step::Token(token)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        for _ in 0..parsed.choices {
            let summary = self.generator.generate(&generation, cancel, &mut on_token).map_err(map)?;
            if summary.finish == Finish::Cancelled || send.blocking_send(Step::Choice(summary)).is_err() {
                return Err(late());
            }
            // The same seed would draw the same answer again.
            generation.seed = generation.seed.map(|seed| seed.wrapping_add(1));
        }
        Ok(())
    }

    /// Waits a moment for a slot.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, UpstreamError> {
        match tokio::time::timeout(SLOT_WAIT, self.slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => {
                let message = "all slots of the embedded engine are taken";
                let busy = UpstreamError::retryable(503, "overloaded", message);
                Err(UpstreamError { retry_after: Some(SLOT_WAIT), ..busy })
            }
        }
    }

    fn served_by(&self) -> ServedBy {
        ServedBy {
            upstream: "embedded".to_owned(),
            upstream_id: "embedded".to_owned(),
            model: self.model.id.clone(),
        }
    }
}

fn late() -> UpstreamError {
    UpstreamError::new(504, "upstream_timeout", "the answer did not finish in the time allowed")
}

fn map(error: GenerateError) -> UpstreamError {
    match error {
        GenerateError::ContextTooLong(text) => UpstreamError::new(400, "context_length_exceeded", text),
        GenerateError::Invalid(text) => UpstreamError::new(400, "invalid_request_error", text),
        GenerateError::Unsupported(text) => UpstreamError::retryable(400, "invalid_request_error", text),
        GenerateError::Failed(text) => UpstreamError::retryable(502, "upstream_error", text),
    }
}

/// The blocking thread ended without an end: it panicked.
fn died() -> UpstreamError {
    UpstreamError::retryable(502, "upstream_error", "the embedded engine broke off")
}

async fn whole(mut writer: Writer, mut steps: mpsc::Receiver<Step>) -> Result<bytes::Bytes, UpstreamError> {
    loop {
        match steps.recv().await.ok_or_else(died)? {
            Step::Token(token) => writer.collect(token),
            Step::Choice(summary) => writer.choice(summary),
            Step::End(end) => return end.map(|()| writer.body()),
        }
    }
}

fn streamed(
    mut writer: Writer,
    first: Step,
    steps: mpsc::Receiver<Step>,
) -> impl stream::Stream<Item = Result<Event, UpstreamError>> + Send {
    let opening = writer.opening().map(|chunk| Ok(Event::Chunk(chunk)));
    let steps = stream::unfold((Some(first), steps, false), |(first, mut steps, over)| async move {
        if over {
            return None;
        }
        let step = match first {
            Some(first) => first,
            None => steps.recv().await.unwrap_or_else(|| Step::End(Err(died()))),
        };
        let over = matches!(step, Step::End(_));
        Some((step, (None, steps, over)))
    });
    let events = steps.flat_map(move |step| {
        let events = match step {
            Step::Token(token) => {
                writer.chunk(token).map(|chunk| Ok(Event::Chunk(chunk))).into_iter().collect()
            }
            Step::Choice(summary) => {
                writer.closing(summary).into_iter().map(|c| Ok(Event::Chunk(c))).collect()
            }
            Step::End(Ok(())) => {
                let usage = writer.usage().map(|chunk| Ok(Event::Chunk(chunk)));
                usage.into_iter().chain([Ok(Event::End { complete: true })]).collect()
            }
            Step::End(Err(error)) => vec![Err(error)],
        };
        stream::iter(events)
    });
    stream::iter(opening).chain(events)
}
