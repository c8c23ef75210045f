//! One loaded model that answers any number of requests at a time.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use serde_json::Value;

use crate::calls::{CallFormat, CallStream};
use crate::chat::{ChatMessage, ChatTemplate};
use crate::config::Config;
use crate::constraint::{Constraint, Next, Vocabulary};
use crate::form::grammar;
use crate::gguf::Gguf;
use crate::model::{Cache, Model};
use crate::sampler::Sampler;
use crate::stream::TextStream;
use crate::tokenizer::Tokenizer;
use crate::{Error, FinishReason, Finished, GenerateRequest, LoadOptions, ModelInfo, Token, device};

/// Prompt tokens that are computed in one go: large enough to fill the kernels, small enough that a cancelled request
/// ends within a fraction of a second.
pub(crate) const PREFILL_CHUNK: usize = 64;

/// Context if the options do not say: a cache at this length stays below a gigabyte for models of 1B.
const DEFAULT_CONTEXT: usize = 8_192;

/// A loaded model. Weights are shared; each generation has its own cache of keys and values.
///
/// Cheap to share behind an `Arc`; all methods take `&self`. The caller bounds how many generations run: each one
/// takes its thread and its cache, and they share the cores.
pub struct Engine {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    template: ChatTemplate,
    /// How the model writes calls of tools, if that is known.
    calls: Option<CallFormat>,
    vocabulary: Vocabulary,
    info: ModelInfo,
}

impl Engine {
    /// Loads a GGUF file; takes a second or so for each gigabyte, and about the file's size in memory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Invalid`] for a damaged file, [`Error::Unsupported`] for a model of another kind.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, Error> {
        let mut gguf = Gguf::open(path)?;
        let mut tokenizer = Tokenizer::read(&gguf)?;
        let config = Config::read(&gguf, tokenizer.vocabulary())?;
        let begin = tokenizer.spelling(tokenizer.begin());
        let end = tokenizer.spelling(tokenizer.end());
        let template = ChatTemplate::new(gguf.text("tokenizer.chat_template"), begin, end)?;
        let mut info = ModelInfo::read(&gguf);
        let limit = options.context_limit.unwrap_or(DEFAULT_CONTEXT).max(1);
        info.context_length = config.context.min(limit);
        info.sha256.clone_from(&options.sha256);
        // FunctionGemma's texts are quoted by a token, so without that there is no call.
        let whole = |format: &CallFormat| {
            *format != CallFormat::FunctionGemma
                || format.tokens().iter().all(|token| tokenizer.id_of(token).is_some())
        };
        let calls = template.calls().filter(whole);
        tokenizer.reveal(calls.map_or(&[], CallFormat::tokens));
        info.takes_tools = calls.is_some();
        gguf.read_onto(if options.cpu_only { Device::Cpu } else { device::pick() });
        let model = Model::read(&mut gguf, config, options.requantize)?;
        Ok(Self { model, tokenizer, template, calls, vocabulary: Vocabulary::default(), info })
    }

    /// Returns what is known about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Renders a conversation, and the opening of the answer, by the model's own chat template (ChatML if it has none).
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the messages, for example an order of roles.
    pub fn render_chat(&self, messages: &[ChatMessage], tools: Option<&Value>) -> Result<String, Error> {
        self.template.render(messages, tools)
    }

    /// Returns the tokens of `text`, the begin token included if the model wants one.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.encode(text).map_or(0, |ids| ids.len())
    }

    /// Returns the token ids of `text`, the begin token first if the model wants one.
    ///
    /// # Errors
    /// [`Error::Compute`] if the tokenizer fails, which no text should make it do.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode(text)
    }

    /// Generates until the model ends its answer, a limit is met, `cancel` says so or `on_token` breaks.
    ///
    /// Blocks the thread it runs on. `cancel` is asked between tokens and between chunks of the prompt. `on_token` gets
    /// every token in order, once its text is certain.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`], [`Error::EmptyPrompt`], [`Error::InvalidRequest`] before any token; [`Error::Form`] before
    /// any, or later if only a step of the form is too hard; [`Error::Compute`] at any time.
    pub fn generate(
        &self,
        request: &GenerateRequest,
        cancel: &dyn Fn() -> bool,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<Finished, Error> {
        let started = Instant::now();
        let mut sampler = Sampler::new(request)?;
        let prompt = self.tokenizer.encode(&request.prompt)?;
        let room = self.room(prompt.len())?;
        let budget = request.max_tokens.min(room);
        let mut constraint = self.constraint(request)?;
        let mut finished = Finished {
            reason: FinishReason::Cancelled,
            prompt_tokens: prompt.len(),
            completion_tokens: 0,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        };
        let mut cache = self.model.cache();
        let logits = self.prefill(&prompt, &mut cache, cancel)?;
        finished.prefill_ms = started.elapsed().as_secs_f64() * 1e3;
        let Some(mut logits) = logits else { return Ok(finished) };

        let decoding = Instant::now();
        let top = usize::from(request.top_logprobs.unwrap_or(0));
        let mut stream = TextStream::new(&request.stop);
        let mut calls = match (&request.calls, self.calls) {
            (Some(rules), Some(format)) => {
                Some(CallStream::new(format, rules.tools.iter().map(|tool| tool.name.clone())))
            }
            _ => None,
        };
        finished.reason = loop {
            if finished.completion_tokens >= budget {
                break FinishReason::Length;
            }
            if cancel() {
                break FinishReason::Cancelled;
            }
            let mask = match &mut constraint {
                Some(constraint) => constraint.mask()?,
                None => None,
            };
            let choice = sampler.choose(&logits, top, mask.as_ref())?;
            if self.tokenizer.is_end(choice.id) {
                break FinishReason::Stop;
            }
            finished.completion_tokens += 1;
            let token = Token {
                text: String::new(),
                id: choice.id,
                logprob: choice.logprob,
                top: choice.top.into_iter().map(|(id, logprob)| (self.shown(id), logprob)).collect(),
                bytes: self.tokenizer.bytes(choice.id),
                calls: Vec::new(),
            };
            let (released, stopped) = stream.push(token);
            if hand_over(look_for_calls(&mut calls, released), on_token).is_break() {
                break FinishReason::Cancelled;
            }
            let next = match &mut constraint {
                Some(constraint) => constraint.push(choice.id)?,
                None => Next::More,
            };
            if stopped || next == Next::Complete {
                break FinishReason::Stop;
            }
            if finished.completion_tokens < budget {
                logits = self.model.forward(&[choice.id], &mut cache)?;
            }
        };
        if finished.reason != FinishReason::Cancelled {
            let mut rest = look_for_calls(&mut calls, stream.finish());
            let (last, called) = calls.map_or_else(Default::default, CallStream::finish);
            rest.extend(last);
            if hand_over(rest, on_token).is_break() {
                finished.reason = FinishReason::Cancelled;
            } else if called && finished.reason == FinishReason::Stop {
                finished.reason = FinishReason::Calls;
            }
        }
        finished.decode_ms = decoding.elapsed().as_secs_f64() * 1e3;
        Ok(finished)
    }

    /// Compiles the form that a request asks for.
    fn constraint(&self, request: &GenerateRequest) -> Result<Option<Constraint>, Error> {
        let grammar = grammar(request.json.as_ref(), request.calls.as_ref(), self.calls, &self.tokenizer)?;
        grammar
            .map(|grammar| self.vocabulary.constrain(&self.tokenizer, grammar.text, grammar.trigger))
            .transpose()
    }

    /// Returns how many tokens fit behind a prompt.
    pub(crate) fn room(&self, tokens: usize) -> Result<usize, Error> {
        let limit = self.info.context_length;
        match limit.checked_sub(tokens) {
            _ if tokens == 0 => Err(Error::EmptyPrompt),
            Some(room) if room > 0 => Ok(room),
            _ => Err(Error::ContextTooLong { limit: limit - 1, tokens }),
        }
    }

    /// Feeds the prompt and returns the logits after it, or `None` if the request was cancelled meanwhile.
    fn prefill(
        &self,
        prompt: &[u32],
        cache: &mut Cache,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>, Error> {
        let mut logits = Vec::new();
        for chunk in prompt.chunks(PREFILL_CHUNK) {
            if cancel() {
                return Ok(None);
            }
            logits = self.model.forward(chunk, cache)?;
        }
        Ok(Some(logits))
    }

    /// Returns how a token is shown among alternatives: its text, or the name of a control token.
    fn shown(&self, id: u32) -> String {
        let bytes = self.tokenizer.bytes(id);
        if bytes.is_empty() {
            self.tokenizer.spelling(Some(id)).to_owned()
        } else {
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

fn look_for_calls(calls: &mut Option<CallStream>, tokens: Vec<Token>) -> Vec<Token> {
    match calls {
        Some(calls) => tokens.into_iter().flat_map(|token| calls.push(token)).collect(),
        None => tokens,
    }
}

fn hand_over(tokens: Vec<Token>, on_token: &mut dyn FnMut(Token) -> ControlFlow<()>) -> ControlFlow<()> {
    tokens.into_iter().try_for_each(on_token)
}
