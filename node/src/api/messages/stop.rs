//! Why an answer ended, in the words of a message.

use serde::Serialize;

/// A message's `stop_reason`, as far as an engine gives cause for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StopReason {
    /// The model was done.
    EndTurn,
    /// The limit was met.
    MaxTokens,
    /// One of the stop sequences was met.
    StopSequence,
    /// The model calls tools.
    ToolUse,
    /// The model, or a filter, refused.
    Refusal,
}

/// What is known of an answer's end.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending<'a> {
    /// OpenAI's finish reason.
    pub(super) finish: Option<&'a str>,
    /// The stop sequence that the engine says it met.
    pub(super) matched: Option<String>,
    /// At least one tool is called.
    pub(super) called: bool,
    /// The model said a refusal.
    pub(super) refused: bool,
}

impl Ending<'_> {
    /// Returns the stop reason, and the stop sequence where that is it.
    ///
    /// Few engines tell which stop sequence they met, or that it was one at all; then the turn has just ended.
    pub(super) fn told(self, stops: &[String]) -> (StopReason, Option<String>) {
        let reason = match self.finish {
            Some("length") => StopReason::MaxTokens,
            Some("content_filter") => StopReason::Refusal,
            // Some engines end a call with `stop`.
            _ if self.called => StopReason::ToolUse,
            _ if self.refused => StopReason::Refusal,
            _ => StopReason::EndTurn,
        };
        match self.matched.filter(|matched| reason == StopReason::EndTurn && stops.contains(matched)) {
            Some(matched) => (StopReason::StopSequence, Some(matched)),
            None => (reason, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_word() {
        let stops = ["END".to_owned()];
        let told = |finish, matched: Option<&str>, called, refused| {
            let matched = matched.map(str::to_owned);
            Ending { finish: Some(finish), matched, called, refused }.told(&stops).0
        };
        assert_eq!(told("stop", None, false, false), StopReason::EndTurn);
        assert_eq!(told("length", None, true, false), StopReason::MaxTokens);
        assert_eq!(told("tool_calls", None, true, false), StopReason::ToolUse);
        assert_eq!(told("stop", None, true, false), StopReason::ToolUse);
        assert_eq!(told("content_filter", None, false, false), StopReason::Refusal);
        assert_eq!(told("stop", None, false, true), StopReason::Refusal);
        assert_eq!(told("stop", Some("END"), false, false), StopReason::StopSequence);
        assert_eq!(told("stop", Some("</s>"), false, false), StopReason::EndTurn);
        assert_eq!(Ending::default().told(&stops), (StopReason::EndTurn, None));
    }
}
