//! What a chat completion says, read once for the APIs that tell it in other words.
//!
//! A chunk of a stream and a whole answer read the same: a whole answer is a stream of one chunk. Fields that engines
//! spell differently have one name here, and a call of a tool has an index and arguments as text whatever was sent.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::body::Text;
use super::error::ApiError;

/// What one payload says. Of several answers (`n`) only the first is told.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Model that answers, where it is named.
    pub model: Option<String>,
    /// More of the model's thinking.
    pub reasoning: String,
    /// More text.
    pub text: String,
    /// More of a refusal.
    pub refusal: String,
    /// More of calls of tools.
    pub calls: Vec<CallPart>,
    /// Log probabilities of the text, one JSON object for each token.
    pub logprobs: Vec<Box<RawValue>>,
    /// Why the answer ended: `stop`, `length`, `tool_calls`, `content_filter`.
    pub finish: Option<String>,
    /// Tokens, where they are told.
    pub usage: Option<Usage>,
    /// Our own members (`shoal_metadata`, `lfo_metadata`) with their names.
    pub metadata: Vec<(&'static str, Box<RawValue>)>,
}

/// A part of one call of a tool.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CallPart {
    /// Which call of the answer, from 0.
    pub index: usize,
    /// Its id, with the first part.
    pub id: Option<String>,
    /// The tool, with the first part.
    pub name: Option<String>,
    /// More of its arguments, JSON as text.
    pub arguments: String,
}

/// Tokens of an answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, cached ones included.
    pub prompt: u64,
    /// Of the prompt, read from a cache.
    pub cached: u64,
    /// Of the answer, thinking included.
    pub completion: u64,
    /// Of the thinking.
    pub reasoning: u64,
}

impl Chunk {
    /// Reads a payload of a stream, or a whole answer.
    ///
    /// # Errors
    /// It is no chat completion: the upstream is at fault (502).
    pub fn read(payload: &[u8]) -> Result<Self, ApiError> {
        let payload: Payload<'_> = serde_json::from_slice(payload).map_err(|_| {
            ApiError::new(
                502,
                "upstream_error",
                "the device sent something that is no chat completion; try again",
            )
        })?;
        let metadata = [("shoal_metadata", payload.shoal_metadata), ("lfo_metadata", payload.lfo_metadata)];
        let mut chunk = Self {
            model: payload.model.map(|text| text.0.into_owned()).filter(|name| !name.is_empty()),
            usage: payload.usage.map(Usage::from),
            metadata: metadata.into_iter().filter_map(|(name, raw)| Some((name, raw?.to_owned()))).collect(),
            ..Self::default()
        };
        let first =
            payload.choices.unwrap_or_default().into_iter().find(|choice| choice.index.unwrap_or(0) == 0);
        if let Some(choice) = first {
            chunk.finish =
                choice.finish_reason.map(|reason| reason.0.into_owned()).filter(|reason| !reason.is_empty());
            chunk.logprobs = choice.logprobs.and_then(|l| l.content).unwrap_or_default();
            if let Some(said) = choice.delta.or(choice.message) {
                chunk.take(said);
            }
        }
        Ok(chunk)
    }

    fn take(&mut self, said: Said<'_>) {
        // Some servers write both names and fill one of them.
        let mut thoughts = [said.reasoning_content, said.reasoning].into_iter().flatten().map(text_of);
        self.reasoning = thoughts.find(|text| !text.is_empty()).unwrap_or_default();
        self.text = said.content.map(text_of).unwrap_or_default();
        self.refusal = said.refusal.map(text_of).unwrap_or_default();
        let calls = said.tool_calls.unwrap_or_default().into_iter().enumerate();
        self.calls = calls
            .map(|(place, call)| {
                let function = call.function.unwrap_or_default();
                CallPart {
                    index: call.index.unwrap_or(place),
                    id: call.id.map(|id| id.0.into_owned()).filter(|id| !id.is_empty()),
                    name: function.name.map(|name| name.0.into_owned()).filter(|name| !name.is_empty()),
                    arguments: function.arguments.map(arguments_of).unwrap_or_default(),
                }
            })
            .collect();
    }
}

/// Reads a whole answer, which must hold one.
///
/// # Errors
/// It is no chat completion, or one without an answer: the upstream is at fault (502).
pub fn read_whole(answer: &Bytes) -> Result<Chunk, ApiError> {
    #[derive(Deserialize)]
    struct Counted {
        choices: Vec<serde::de::IgnoredAny>,
    }
    let chunk = Chunk::read(answer)?;
    let counted = serde_json::from_slice::<Counted>(answer).map_or(0, |counted| counted.choices.len());
    if counted == 0 {
        return Err(ApiError::new(502, "upstream_error", "the device sent no answer; try again"));
    }
    Ok(chunk)
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    usage: Option<RawUsage>,
    #[serde(borrow)]
    shoal_metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    lfo_metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    delta: Option<Said<'a>>,
    #[serde(borrow)]
    message: Option<Said<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<Vec<Call<'a>>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    index: Option<usize>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize, Default)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct RawUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    completion_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
}

impl From<RawUsage> for Usage {
    fn from(raw: RawUsage) -> Self {
        Self {
            prompt: raw.prompt_tokens.unwrap_or(0),
            cached: raw.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0),
            completion: raw.completion_tokens.unwrap_or(0),
            reasoning: raw.completion_tokens_details.and_then(|d| d.reasoning_tokens).unwrap_or(0),
        }
    }
}

/// Returns the text of a field that is text, or a list of parts with text.
fn text_of(raw: &RawValue) -> String {
    #[derive(Deserialize)]
    struct Part<'a> {
        #[serde(borrow)]
        text: Option<Text<'a>>,
    }
    if let Ok(text) = serde_json::from_str::<Text<'_>>(raw.get()) {
        return text.0.into_owned();
    }
    let parts: Vec<Part<'_>> = serde_json::from_str(raw.get()).unwrap_or_default();
    parts.into_iter().filter_map(|part| part.text).map(|text| text.0).collect()
}

/// Returns arguments as text; some engines send the object itself.
fn arguments_of(raw: &RawValue) -> String {
    match serde_json::from_str::<Text<'_>>(raw.get()) {
        Ok(text) => text.0.into_owned(),
        Err(_) if raw.get() == "null" => String::new(),
        Err(_) => raw.get().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn engines_that_spell_it_differently_say_the_same() {
        for (text, reasoning, said) in [
            (r#"{"choices":[{"delta":{"content":"a"}}]}"#, "", "a"),
            (r#"{"choices":[{"index":0,"delta":{"reasoning_content":"b","content":null}}]}"#, "b", ""),
            (r#"{"choices":[{"delta":{"reasoning":"c"}}]}"#, "c", ""),
            (r#"{"choices":[{"delta":{"reasoning_content":"","reasoning":"c"}}]}"#, "c", ""),
            (r#"{"choices":[{"message":{"content":[{"type":"text","text":"d"},{"text":"e"}]}}]}"#, "", "de"),
            (r#"{"choices":[{"index":1,"delta":{"content":"another answer"}}]}"#, "", ""),
            (r#"{"choices":null}"#, "", ""),
        ] {
            let chunk = chunk(text);
            assert_eq!((chunk.reasoning.as_str(), chunk.text.as_str()), (reasoning, said), "{text}");
        }
    }

    #[test]
    fn calls_have_an_index_and_arguments_as_text() {
        let text = r#"{"choices":[{"message":{"tool_calls":[
            {"id":"x","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},
            {"id":"","function":{"name":"g","arguments":{"b":2}}}]},"finish_reason":"tool_calls"}]}"#;
        let chunk = chunk(text);
        let call = |index, id: Option<&str>, name: &str, arguments: &str| CallPart {
            index,
            id: id.map(str::to_owned),
            name: Some(name.into()),
            arguments: arguments.into(),
        };
        assert_eq!(chunk.calls, [call(0, Some("x"), "f", "{\"a\":1}"), call(1, None, "g", "{\"b\":2}")]);
        assert_eq!(chunk.finish.as_deref(), Some("tool_calls"));
        assert_eq!(self::chunk(r#"{"choices":[{"delta":{},"finish_reason":""}]}"#).finish, None);
    }

    #[test]
    fn usage_and_our_metadata_are_found_wherever_they_ride() {
        let chunk = chunk(
            r#"{"model":"m","choices":[],"shoal_metadata":{"target":"local"},"usage":{"prompt_tokens":3,
            "completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":null}}"#,
        );
        assert_eq!(chunk.usage, Some(Usage { prompt: 3, cached: 2, completion: 4, reasoning: 0 }));
        assert_eq!(
            (chunk.metadata[0].0, chunk.metadata[0].1.get()),
            ("shoal_metadata", r#"{"target":"local"}"#)
        );
        assert_eq!(chunk.model.as_deref(), Some("m"));
    }

    #[test]
    fn what_is_no_answer_is_the_upstreams_fault() {
        for bad in [&b"[]"[..], b"{", br#"{"choices":7}"#] {
            assert_eq!(Chunk::read(bad).unwrap_err().status, 502);
        }
        assert_eq!(read_whole(&Bytes::from_static(br#"{"choices":[]}"#)).unwrap_err().status, 502);
        assert!(read_whole(&Bytes::from_static(br#"{"choices":[{"message":{}}]}"#)).is_ok());
    }
}
