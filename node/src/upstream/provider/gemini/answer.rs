//! From Gemini's `GenerateContentResponse`, whole or in pieces, to OpenAI's answers and chunks.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::upstream::openai_http::Malformed;

/// A response, or one piece of a streamed one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Response {
    candidates: Vec<Candidate>,
    prompt_feedback: Feedback,
    usage_metadata: Option<Usage>,
    model_version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Candidate {
    index: u32,
    content: Content,
    finish_reason: Option<String>,
    logprobs_result: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Content {
    parts: Vec<Part>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Part {
    text: Option<String>,
    thought: bool,
    function_call: Option<FunctionCall>,
    thought_signature: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FunctionCall {
    id: Option<String>,
    name: String,
    args: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Feedback {
    block_reason: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Usage {
    prompt_token_count: u64,
    candidates_token_count: u64,
    thoughts_token_count: u64,
    tool_use_prompt_token_count: u64,
    cached_content_token_count: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Logprobs {
    chosen_candidates: Vec<Token>,
    top_candidates: Vec<Top>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Top {
    candidates: Vec<Token>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Token {
    token: String,
    log_probability: f64,
}

/// What one candidate said so far; only what later chunks depend on.
#[derive(Debug, Clone, Copy, Default)]
struct Choice {
    opened: bool,
    calls: usize,
}

/// State of one answer's translation.
#[derive(Debug)]
pub(super) struct Answer {
    id: String,
    model: String,
    created: u64,
    choices: Vec<Choice>,
    usage: Option<Usage>,
    /// The finish reason went out, and no usage with it yet.
    awaits_usage: bool,
}

/// Most candidates of an answer; Gemini's own bound is 8.
const MAX_CANDIDATES: u32 = 128;

impl Answer {
    pub(super) fn new(request: &str, model: &str, created: u64) -> Self {
        let id = format!("chatcmpl-{request}");
        Self { id, model: model.to_owned(), created, choices: Vec::new(), usage: None, awaits_usage: false }
    }

    /// Translates a whole answer.
    pub(super) fn whole(&mut self, response: Response) -> Result<Value, Malformed> {
        self.note(&response);
        let blocked = response.prompt_feedback.block_reason.is_some();
        if response.candidates.is_empty() && !blocked {
            return Err("no candidates");
        }
        let mut choices = Vec::new();
        for candidate in response.candidates {
            let said = self.read(&candidate)?;
            let choice = self.choice(candidate.index)?;
            choice.calls += said.calls.len();
            let finish =
                finish_reason(candidate.finish_reason.as_deref().unwrap_or("STOP"), choice.calls > 0)?;
            let mut message = json!({"role": "assistant", "content": said.text, "refusal": null});
            if !said.calls.is_empty() {
                message["tool_calls"] = said.calls.into();
            }
            choices.push(json!({"index": candidate.index, "message": message,
                "logprobs": candidate.logprobs_result.as_ref().map(logprobs), "finish_reason": finish}));
        }
        if choices.is_empty() {
            let message = json!({"role": "assistant", "content": null, "refusal": null});
            choices.push(
                json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "content_filter"}),
            );
        }
        let mut whole = self.object("chat.completion", choices);
        if let Some(usage) = self.usage {
            whole["usage"] = usage_of(usage);
        }
        Ok(whole)
    }

    /// Translates one piece of a stream into the chunks that say the same.
    pub(super) fn chunks(&mut self, response: Response) -> Result<Vec<Value>, Malformed> {
        self.note(&response);
        let mut out = Vec::new();
        if response.candidates.is_empty() && response.prompt_feedback.block_reason.is_some() {
            self.open(0, &mut out)?;
            out.push(self.chunk(0, json!({}), Value::Null, "content_filter".into()));
            self.awaits_usage = true;
        }
        for candidate in &response.candidates {
            let index = candidate.index;
            let said = self.read(candidate)?;
            self.open(index, &mut out)?;
            let logprobs = candidate.logprobs_result.as_ref().map_or(Value::Null, logprobs);
            if let Some(text) = said.text {
                out.push(self.chunk(index, json!({"content": text}), logprobs, Value::Null));
            }
            for mut call in said.calls {
                let choice = self.choice(index)?;
                call["index"] = choice.calls.into();
                choice.calls += 1;
                out.push(self.chunk(index, json!({"tool_calls": [call]}), Value::Null, Value::Null));
            }
            if let Some(reason) = &candidate.finish_reason {
                let called = self.choice(index)?.calls > 0;
                let finish = finish_reason(reason, called)?;
                out.push(self.chunk(index, json!({}), Value::Null, finish.into()));
                self.awaits_usage = true;
            }
        }
        // Counts come with every piece and grow; those that stand with the end are the ones to tell.
        if self.awaits_usage && response.usage_metadata.is_some() {
            self.awaits_usage = false;
            let mut chunk = self.object("chat.completion.chunk", Vec::new());
            chunk["usage"] = self.usage.map_or(Value::Null, usage_of);
            out.push(chunk);
        }
        Ok(out)
    }

    fn note(&mut self, response: &Response) {
        self.usage = response.usage_metadata.or(self.usage);
        if let Some(version) = &response.model_version {
            self.model.clone_from(version);
        }
    }

    /// Reads text and calls of a candidate; thoughts are not part of an answer.
    fn read(&self, candidate: &Candidate) -> Result<Said, Malformed> {
        let mut said = Said { text: None, calls: Vec::new() };
        let earlier = self.choices.get(candidate.index as usize).map_or(0, |choice| choice.calls);
        for part in candidate.content.parts.iter().filter(|part| !part.thought) {
            if let Some(text) = part.text.as_deref().filter(|text| !text.is_empty()) {
                said.text.get_or_insert_with(String::new).push_str(text);
            }
            if let Some(call) = &part.function_call {
                let number = earlier + said.calls.len();
                said.calls.push(self.tool_call(candidate.index, number, call, part));
            }
        }
        Ok(said)
    }

    fn tool_call(&self, candidate: u32, number: usize, call: &FunctionCall, part: &Part) -> Value {
        let own = || format!("call_{}_{candidate}_{number}", self.id.trim_start_matches("chatcmpl-"));
        let id = call.id.clone().filter(|id| !id.is_empty()).unwrap_or_else(own);
        let arguments = call.args.as_ref().map_or_else(|| "{}".to_owned(), Value::to_string);
        let mut out = json!({"id": id, "type": "function",
            "function": {"name": call.name, "arguments": arguments}});
        if let Some(signature) = &part.thought_signature {
            // Google's own place for it; a client that sends it back keeps the model's train of thought.
            out["extra_content"] = json!({"google": {"thought_signature": signature}});
        }
        out
    }

    fn choice(&mut self, index: u32) -> Result<&mut Choice, Malformed> {
        if index >= MAX_CANDIDATES {
            return Err("more candidates than were asked for");
        }
        let index = index as usize;
        if self.choices.len() <= index {
            self.choices.resize(index + 1, Choice::default());
        }
        Ok(&mut self.choices[index])
    }

    fn open(&mut self, index: u32, out: &mut Vec<Value>) -> Result<(), Malformed> {
        if !std::mem::replace(&mut self.choice(index)?.opened, true) {
            let delta = json!({"role": "assistant", "content": ""});
            out.push(self.chunk(index, delta, Value::Null, Value::Null));
        }
        Ok(())
    }

    fn chunk(&self, index: u32, delta: Value, logprobs: Value, finish: Value) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.object("chat.completion.chunk", vec![choice])
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
}

struct Said {
    text: Option<String>,
    calls: Vec<Value>,
}

/// Translates a finish reason; whatever a filter stopped is `content_filter`.
fn finish_reason(reason: &str, called: bool) -> Result<&'static str, Malformed> {
    match reason {
        "STOP" | "FINISH_REASON_UNSPECIFIED" if called => Ok("tool_calls"),
        "STOP" | "FINISH_REASON_UNSPECIFIED" => Ok("stop"),
        "MAX_TOKENS" => Ok("length"),
        "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "TOO_MANY_TOOL_CALLS" => {
            Err("a function call that its model garbled")
        }
        // SAFETY, RECITATION, LANGUAGE, BLOCKLIST, PROHIBITED_CONTENT, SPII, IMAGE_SAFETY, and what comes later.
        _ => Ok("content_filter"),
    }
}

fn usage_of(usage: Usage) -> Value {
    let prompt = usage.prompt_token_count + usage.tool_use_prompt_token_count;
    // Thoughts are billed as output, and OpenAI counts reasoning there too.
    let completion = usage.candidates_token_count + usage.thoughts_token_count;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_content_token_count},
        "completion_tokens_details": {"reasoning_tokens": usage.thoughts_token_count},
    })
}

fn logprobs(result: &Logprobs) -> Value {
    let entry = |token: &Token| json!({"token": token.token, "logprob": token.log_probability, "bytes": token.token.as_bytes()});
    let content: Vec<Value> = result
        .chosen_candidates
        .iter()
        .enumerate()
        .map(|(at, token)| {
            let top = result.top_candidates.get(at);
            let top: Vec<Value> = top.iter().flat_map(|top| &top.candidates).map(entry).collect();
            let mut out = entry(token);
            out["top_logprobs"] = top.into();
            out
        })
        .collect();
    json!({"content": content, "refusal": null})
}
