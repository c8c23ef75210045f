//! What a stub does with one request: its pace and its faults, from flags or from a marker in the prompt.
//!
//! The marker, `[[stub ttft=5 itl=20 n=64 cut=10]]`, survives every router on the way, which a header would not.

use std::time::Duration;

use crate::words::MAX_WORDS;

/// Pace and faults of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// Time to first token (`ttft`, milliseconds). Default 0.
    pub ttft: Duration,
    /// Time between tokens (`itl`, milliseconds). Default 0.
    pub itl: Duration,
    /// Tokens in the whole answer (`n`). Default 16, at most [`MAX_WORDS`].
    pub tokens: usize,
    /// Answers with this HTTP status and an OpenAI error body (`err` or `status`).
    pub status: Option<u16>,
    /// `retry-after` header on such an answer (`retry_after`, seconds).
    pub retry_after: Option<u64>,
    /// Breaks the connection after this many tokens (`cut`); not streamed, in the middle of the body.
    pub cut: Option<usize>,
    /// Stops sending for good after this many tokens (`hang`); 0, or not streamed: before the head.
    pub hang: Option<usize>,
    /// Sends an error object inside the stream after this many tokens (`inband`), then ends.
    pub inband: Option<usize>,
    /// Breaks the connection before the head (`drop=1`).
    pub drop: bool,
    /// Puts bytes that are no JSON into the answer (`garbage=1`).
    pub garbage: bool,
    /// Answers 200 with an HTML page (`html=1`), as captive portals do.
    pub html: bool,
    /// Leaves out the final `[DONE]` (`no_done=1`).
    pub no_done: bool,
    /// Leaves out the chunk with the `finish_reason` (`no_finish=1`).
    pub no_finish: bool,
    /// Ends lines by CR LF (`crlf=1`).
    pub crlf: bool,
    /// Adds comments, `event:` and `id:` lines (`noise=1`).
    pub noise: bool,
    /// Writes the stream in pieces of this many bytes (`split`).
    pub split: Option<usize>,
    /// Answers by a call of the first tool, if the request has tools (`tool=1`).
    pub tool: bool,
    /// Thinks this many words before the answer to a chat (`think`), where the engine tells thoughts. Default 0.
    pub think: usize,
    /// Answers with this text (`say`, `_` for a space), in pieces of a word.
    pub say: Option<String>,
    /// Shows the text of the last user message in the log (`show=1`).
    pub show: bool,
    /// Ignores a wish for logprobs (`no_logprobs=1`).
    pub no_logprobs: bool,
    /// Logprob of each token (`logprob`, at most 0). Default -0.1.
    pub logprob: f64,
    /// A phone's confidence in its answer (`conf`, 0 to 1; `conf=none` tells none). Default 0.9.
    pub confidence: Option<f64>,
    /// A phone asks for a stronger model (`handoff=1`).
    pub handoff: bool,
    /// Name under which the request shows in the log (`tag`).
    pub tag: Option<String>,
    /// A fault that no HTTP server would commit ([`crate::stub::faults`]; `fault=NAME`).
    pub fault: Option<&'static str>,
    /// Tokens of a stream before that fault (`at`). Default 0.
    pub fault_at: usize,
    /// Requests of this tag that are harmed; later ones are served as if no fault were asked for (`times`). Stubs of
    /// one process count together, so a second attempt elsewhere is spared.
    pub times: Option<usize>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            itl: Duration::ZERO,
            tokens: 16,
            status: None,
            retry_after: None,
            cut: None,
            hang: None,
            inband: None,
            drop: false,
            garbage: false,
            html: false,
            no_done: false,
            no_finish: false,
            crlf: false,
            noise: false,
            split: None,
            tool: false,
            think: 0,
            say: None,
            show: false,
            no_logprobs: false,
            logprob: -0.1,
            confidence: Some(0.9),
            handoff: false,
            tag: None,
            fault: None,
            fault_at: 0,
            times: None,
        }
    }
}

/// A script that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A word without `=`.
    #[error("`{0}` in a stub script is not of the form key=value")]
    NotAPair(String),
    /// A key that no script has.
    #[error("a stub script has no key `{0}`")]
    UnknownKey(String),
    /// A value outside its range.
    #[error("`{0}` in a stub script has a value out of range")]
    BadValue(String),
}

impl Script {
    /// Applies `key=value` words, separated by spaces, over the present settings.
    ///
    /// # Errors
    /// On an unknown key or a value out of range, so that a misspelt fault cannot pass for a harmless request.
    pub fn apply(&mut self, words: &str) -> Result<(), Error> {
        for word in words.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or_else(|| Error::NotAPair(word.to_owned()))?;
            self.set(key, value).ok_or_else(|| Error::BadValue(word.to_owned()))??;
        }
        Ok(())
    }

    /// These settings with the marker of `prompt` applied, if it has one.
    ///
    /// # Errors
    /// As [`Script::apply`].
    pub fn for_prompt(&self, prompt: &str) -> Result<Self, Error> {
        let mut script = self.clone();
        if let Some(words) = marker(prompt) {
            script.apply(words)?;
        }
        Ok(script)
    }

    /// The same pace and answer without any fault.
    pub fn spared(self) -> Self {
        let good = Self::default();
        Self {
            status: None,
            retry_after: None,
            cut: None,
            hang: None,
            inband: None,
            drop: false,
            garbage: false,
            html: false,
            no_done: false,
            no_finish: false,
            crlf: false,
            noise: false,
            split: None,
            fault: None,
            itl: if self.fault.is_some() { good.itl } else { self.itl },
            ..self
        }
    }

    /// `None`: the value does not parse or is out of range.
    fn set(&mut self, key: &str, value: &str) -> Option<Result<(), Error>> {
        match key {
            "ttft" => self.ttft = millis(value)?,
            "itl" => self.itl = millis(value)?,
            "n" => self.tokens = count(value)?,
            "err" | "status" => {
                self.status = Some(value.parse().ok().filter(|status| (400..600).contains(status))?);
            }
            "retry_after" => self.retry_after = Some(value.parse().ok()?),
            "cut" => self.cut = Some(count(value)?),
            "hang" => self.hang = Some(count(value)?),
            "inband" => self.inband = Some(count(value)?),
            "drop" => self.drop = flag(value)?,
            "garbage" => self.garbage = flag(value)?,
            "html" => self.html = flag(value)?,
            "no_done" => self.no_done = flag(value)?,
            "no_finish" => self.no_finish = flag(value)?,
            "crlf" => self.crlf = flag(value)?,
            "noise" => self.noise = flag(value)?,
            "split" => self.split = Some(count(value).filter(|bytes| *bytes > 0)?),
            "tool" => self.tool = flag(value)?,
            "say" => self.say = Some(value.replace('_', " ")),
            "think" => self.think = count(value)?,
            "show" => self.show = flag(value)?,
            "no_logprobs" => self.no_logprobs = flag(value)?,
            "logprob" => self.logprob = value.parse().ok().filter(|lp: &f64| lp.is_finite() && *lp <= 0.0)?,
            "conf" if value == "none" => self.confidence = None,
            "conf" => self.confidence = Some(value.parse().ok().filter(|c| (0.0..=1.0).contains(c))?),
            "handoff" => self.handoff = flag(value)?,
            "tag" => self.tag = Some(value.to_owned()),
            "fault" => self.fault = Some(crate::stub::faults::known(value)?),
            "at" => self.fault_at = count(value)?,
            "times" => self.times = Some(count(value)?),
            _ => return Some(Err(Error::UnknownKey(key.to_owned()))),
        }
        Some(Ok(()))
    }
}

/// The words between `[[stub` and `]]`, if the text carries a marker.
pub fn marker(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("[[stub")?;
    let (words, _) = rest.split_once("]]")?;
    (words.is_empty() || words.starts_with(' ')).then_some(words)
}

fn millis(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_millis)
}

fn count(value: &str) -> Option<usize> {
    value.parse().ok().filter(|n| *n <= MAX_WORDS)
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_in_a_prompt_overrides_the_flags() {
        let mut flags = Script::default();
        flags.apply("n=3 itl=7").expect("flags");
        let script = flags.for_prompt("say [[stub ttft=5 n=64 cut=10 tag=a]] please").expect("marker");
        assert_eq!(script.ttft, Duration::from_millis(5));
        assert_eq!(script.itl, Duration::from_millis(7));
        assert_eq!(script.tokens, 64);
        assert_eq!(script.cut, Some(10));
        assert_eq!(script.tag.as_deref(), Some("a"));
    }

    #[test]
    fn a_prompt_without_a_marker_changes_nothing() {
        assert_eq!(Script::default().for_prompt("a [[stubborn]] one"), Ok(Script::default()));
        assert_eq!(Script::default().for_prompt("[[stub n=4"), Ok(Script::default()));
    }

    #[test]
    fn a_misspelt_script_is_refused() {
        let refused = |words: &str| Script::default().apply(words).expect_err(words);
        assert_eq!(refused("colour=red"), Error::UnknownKey("colour".into()));
        assert_eq!(refused("n"), Error::NotAPair("n".into()));
        for words in [
            "n=99999999",
            "n=-1",
            "fault=none_such",
            "at=-1",
            "err=200",
            "crlf=maybe",
            "logprob=1",
            "split=0",
        ] {
            assert_eq!(refused(words), Error::BadValue(words.into()));
        }
    }
}
