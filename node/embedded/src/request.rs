//! What a caller asks of the engine and what it gets back.

use crate::calls::ToolCall;
use crate::form::{CallRules, JsonForm};

/// Replaces slow or large weight types by faster ones while loading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Requantize {
    /// What is fast at the same quality: types without a fast kernel, and 16-bit floats, become Q8_0.
    #[default]
    Auto,
    /// Leaves the file's types as they are.
    Never,
    /// All matrices become Q4_0.
    Q4_0,
    /// All matrices become Q8_0.
    Q8_0,
}

/// Settings of [`Engine::load`](crate::Engine::load).
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Which weights are converted.
    pub requantize: Requantize,
    /// Largest context in tokens, prompt and answer together; default 8,192, never more than the model's own.
    pub context_limit: Option<usize>,
    /// The file's SHA-256 in hex, if the caller knows it; passed on in [`ModelInfo`](crate::ModelInfo).
    pub sha256: Option<String>,
    /// Computes on the CPU even if a GPU is there.
    pub cpu_only: bool,
}

/// One generation.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The text to go on from, already rendered; names of control tokens in it count as those tokens.
    pub prompt: String,
    /// Most tokens to generate; the context may end it earlier.
    pub max_tokens: usize,
    /// 0 takes the likeliest token each time; at most 2.
    pub temperature: f32,
    /// Draws from the likeliest tokens that together have this mass, 0 to 1.
    pub top_p: f32,
    /// Draws from this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Makes the draw repeatable on one machine.
    pub seed: Option<u64>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Alternatives reported with each token, at most 20.
    pub top_logprobs: Option<u8>,
    /// Taken off a token's logit for each time it was generated, -2 to 2.
    pub frequency_penalty: f32,
    /// Taken off a token's logit if it was generated at all, -2 to 2.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100; ids that the model has not are ignored.
    pub logit_bias: Vec<(u32, f32)>,
    /// JSON that the answer must be; `None` leaves its text free. With calls that are not required it is either.
    pub json: Option<JsonForm>,
    /// Calls of tools that the answer may or must hold; `None` looks for none.
    pub calls: Option<CallRules>,
}

impl Default for GenerateRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            max_tokens: 512,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            seed: None,
            stop: Vec::new(),
            top_logprobs: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            json: None,
            calls: None,
        }
    }
}

/// A generated token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Token {
    /// Text that this token completes: whole characters; empty if it ends within one.
    pub text: String,
    /// Its id in the model's vocabulary.
    pub id: u32,
    /// Natural logarithm of its probability: log-softmax of the raw logits.
    pub logprob: f32,
    /// The likeliest tokens at this place with their logprobs, best first.
    pub top: Vec<(String, f32)>,
    /// The bytes that the token stands for.
    pub bytes: Vec<u8>,
    /// Calls of tools that this token completes; the text of a call is in no token.
    pub calls: Vec<ToolCall>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, a stop text was met, or the form of the answer is complete.
    Stop,
    /// As `Stop`, and the answer calls tools.
    Calls,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The caller gave it up.
    Cancelled,
}

/// Account of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Generated tokens, without the end token.
    pub completion_tokens: usize,
    /// Time until the first token could be chosen, in milliseconds.
    pub prefill_ms: f64,
    /// Time from then to the end, in milliseconds.
    pub decode_ms: f64,
}
