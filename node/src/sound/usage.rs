//! Listens for what an answer about sound says of its own cost, while it passes.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use shoal_routing::Tokens;

use super::bill::TokensTold;
use super::is_events;

/// Most of a JSON answer that is kept to be read: hours of words with their times.
const MAX_JSON: usize = 8 << 20;

/// What an answer says that it took; `None` = it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoundUsage {
    /// Tokens of the request and of the answer.
    pub tokens: Option<TokensTold>,
    /// Length of the recording in milliseconds.
    pub millis: Option<u64>,
}

#[derive(Deserialize)]
struct Told {
    usage: Option<Usage>,
    /// Of `verbose_json`, seconds; some servers write it as text.
    duration: Option<Number>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
    seconds: Option<Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(f64),
    Text(String),
}

impl Number {
    fn as_millis(&self) -> Option<u64> {
        let seconds = match self {
            Self::Number(seconds) => *seconds,
            Self::Text(text) => text.trim().parse().ok()?,
        };
        (0.0..=1e7).contains(&seconds).then_some((seconds * 1e3).ceil() as u64)
    }
}

/// How an answer is listened to.
#[derive(Debug)]
enum Kind {
    Events,
    Json(BytesMut),
    /// Sound, plain text, subtitles: nothing to hear.
    Other,
}

/// Reads one answer as it passes.
#[derive(Debug)]
pub struct Ear {
    kind: Kind,
    usage: SoundUsage,
}

impl Ear {
    /// Begins to listen to an answer of a media type; `None` = JSON.
    pub fn new(media: Option<&str>) -> Self {
        let kind = if is_events(media) {
            Kind::Events
        } else if media.is_none_or(|media| media.contains("json")) {
            Kind::Json(BytesMut::new())
        } else {
            Kind::Other
        };
        Self { kind, usage: SoundUsage::default() }
    }

    /// Takes in a payload of events, or the next bytes of another answer.
    pub fn hear(&mut self, bytes: &Bytes) {
        match &mut self.kind {
            Kind::Events if memmem::find(bytes, b"\"usage\"").is_some() => self.read(bytes),
            Kind::Json(kept) if kept.len() + bytes.len() <= MAX_JSON => kept.extend_from_slice(bytes),
            Kind::Json(_) => self.kind = Kind::Other,
            Kind::Events | Kind::Other => {}
        }
    }

    /// Notes that the answer is whole.
    pub fn end(&mut self) {
        if let Kind::Json(kept) = std::mem::replace(&mut self.kind, Kind::Other) {
            self.read(&kept);
        }
    }

    /// Returns what was heard so far.
    pub fn usage(&self) -> SoundUsage {
        self.usage
    }

    fn read(&mut self, json: &[u8]) {
        let Ok(told) = serde_json::from_slice::<Told>(json) else { return };
        let duration = told.duration.as_ref().and_then(Number::as_millis);
        let usage = told.usage.as_ref();
        let count = |count: Option<u32>| count.map(Tokens);
        let input = usage.and_then(|usage| count(usage.input_tokens));
        let output = usage.and_then(|usage| count(usage.output_tokens));
        self.usage.tokens = input.or(output).map(|_| (input.unwrap_or_default(), output.unwrap_or_default()));
        self.usage.millis =
            usage.and_then(|usage| usage.seconds.as_ref()).and_then(Number::as_millis).or(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(media: Option<&str>, parts: &[&'static str]) -> SoundUsage {
        let mut ear = Ear::new(media);
        parts.iter().for_each(|part| ear.hear(&Bytes::from_static(part.as_bytes())));
        ear.end();
        ear.usage()
    }

    #[test]
    fn tokens_and_seconds_are_heard_in_each_form() {
        let counted = SoundUsage { tokens: Some((Tokens(14), Tokens(5))), millis: None };
        let usage = r#""usage":{"type":"tokens","input_tokens":14,"output_tokens":5,"total_tokens":19}}"#;
        assert_eq!(heard(Some("application/json"), &["{\"text\":\"hi\",", usage]), counted);
        let done = r#"{"type":"transcript.text.done","usage":{"input_tokens":14,"output_tokens":5}}"#;
        let delta = r#"{"type":"transcript.text.delta","delta":"hi"}"#;
        assert_eq!(heard(Some("text/event-stream"), &[delta, done, "[DONE]"]), counted);
        let timed = SoundUsage { tokens: None, millis: Some(2_500) };
        assert_eq!(heard(None, &[r#"{"usage":{"type":"duration","seconds":2.5}}"#]), timed);
        assert_eq!(heard(None, &[r#"{"duration":"2.5","text":""}"#]), timed);
    }

    #[test]
    fn what_says_nothing_is_no_usage() {
        for (media, part) in [
            (Some("audio/mpeg"), r#"{"usage":{"seconds":3}}"#),
            (Some("text/plain"), "hello"),
            (None, "{\"text\":"),
            (None, r#"{"usage":{"seconds":-3}}"#),
        ] {
            assert_eq!(heard(media, &[part]), SoundUsage::default(), "{part}");
        }
    }
}
