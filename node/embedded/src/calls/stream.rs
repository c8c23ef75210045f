//! Finds calls in an answer while it comes: what may become a call waits, text goes on.
//!
//! Every token is handed on in its place. Those of a call lose their text, and the one that completes it carries the call,
//! so that logprobs are told of each and the order is that of generation. What turns out to be no call gets its text back.

use std::collections::VecDeque;

use super::{CallFormat, ToolCall, read};
use crate::Token;

/// Bytes of one call; what is longer is text.
const MAX_CALL_BYTES: usize = 256 << 10;

/// Tokens that wait until it is known whether they belong to a call.
pub(crate) struct CallStream {
    format: CallFormat,
    names: Vec<String>,
    /// Text of the waiting tokens that has not been handed on.
    text: String,
    waiting: VecDeque<Waiting>,
    /// Where text begins that may hold a call; what stands before it is known to be none.
    from: usize,
    /// Calls were found.
    found: bool,
    /// No call can follow any more (a form without markers, and the answer began otherwise).
    plain: bool,
}

struct Waiting {
    token: Token,
    /// Where its text ends in `text`.
    end: usize,
}

impl CallStream {
    /// Looks for calls of these tools.
    pub(crate) fn new(format: CallFormat, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            format,
            names: names.into_iter().collect(),
            text: String::new(),
            waiting: VecDeque::new(),
            from: 0,
            found: false,
            plain: false,
        }
    }

    /// Takes a token and returns those that are certain.
    pub(crate) fn push(&mut self, mut token: Token) -> Vec<Token> {
        self.text.push_str(&std::mem::take(&mut token.text));
        self.waiting.push_back(Waiting { token, end: self.text.len() });
        let certain = match self.format.markers() {
            Some((open, close)) => self.marked(open, close),
            None => self.whole(),
        };
        self.release(certain)
    }

    /// Returns the rest, and whether calls were found in the whole answer.
    pub(crate) fn finish(mut self) -> (Vec<Token>, bool) {
        let start = match self.format.markers() {
            // Some models end their answer in place of closing the call.
            Some((open, _)) => self.text[self.from..].find(open).map(|at| (self.from + at, open.len())),
            None => (!self.plain).then_some((0, 0)),
        };
        if let Some((at, open)) = start
            && let Some(calls) = self.read(&self.text[at + open..])
        {
            self.swallow(at, self.text.len(), calls);
        }
        if self.found && self.text[self.from..].trim().is_empty() {
            self.text.truncate(self.from);
            self.waiting.iter_mut().for_each(|waiting| waiting.end = waiting.end.min(self.from));
        }
        (self.release(self.text.len()), self.found)
    }

    /// Takes out all complete calls between markers; returns how much of the text is certain.
    fn marked(&mut self, open: &str, close: &str) -> usize {
        loop {
            let Some(at) = self.text[self.from..].find(open).map(|at| self.from + at) else {
                let text = &self.text;
                let begun = (1..open.len()).rev().find(|n| text.ends_with(&open[..*n])).unwrap_or(0);
                // Whitespace before a call is no part of the text.
                return text[..text.len() - begun].trim_end().len().max(self.from);
            };
            let body = at + open.len();
            let Some(end) = self.text[body..].find(close).map(|end| body + end) else {
                if self.text.len() - at > MAX_CALL_BYTES {
                    self.from = self.text.len();
                    return self.from;
                }
                return self.text[..at].trim_end().len().max(self.from);
            };
            match self.read(&self.text[body..end]) {
                Some(calls) => self.swallow(at, end + close.len(), calls),
                None => self.from = end + close.len(),
            }
        }
    }

    /// Holds an answer that may be a call as a whole; returns how much of the text is certain.
    fn whole(&mut self) -> usize {
        let begins = self.text.trim_start();
        let tag = CallFormat::PYTHON_TAG;
        let may_be = begins.is_empty()
            || begins.starts_with('{')
            || begins.starts_with(tag)
            || tag.starts_with(begins);
        self.plain |= !may_be || self.text.len() > MAX_CALL_BYTES;
        if self.plain { self.text.len() } else { 0 }
    }

    fn read(&self, body: &str) -> Option<Vec<ToolCall>> {
        let calls = read::calls(self.format, body)?;
        calls.iter().all(|call| self.names.contains(&call.name)).then_some(calls)
    }

    /// Takes the text from `at` to `end` out, with the whitespace before it, and gives the calls to the token that reaches
    /// `end`.
    fn swallow(&mut self, at: usize, end: usize, calls: Vec<ToolCall>) {
        let at = self.text[..at].trim_end().len().max(self.from);
        if let Some(last) = self.waiting.iter_mut().find(|waiting| waiting.end >= end) {
            last.token.calls.extend(calls);
        }
        for waiting in &mut self.waiting {
            waiting.end = match waiting.end {
                before if before <= at => before,
                within if within <= end => at,
                behind => behind - (end - at),
            };
        }
        self.text.replace_range(at..end, "");
        self.from = at;
        self.found = true;
    }

    fn release(&mut self, certain: usize) -> Vec<Token> {
        let mut released = Vec::new();
        let mut from = 0;
        while let Some(mut waiting) = self.waiting.pop_front_if(|waiting| waiting.end <= certain) {
            waiting.token.text = self.text[from..waiting.end].to_owned();
            from = waiting.end;
            released.push(waiting.token);
        }
        self.text.drain(..from);
        self.from = self.from.saturating_sub(from);
        self.waiting.iter_mut().for_each(|waiting| waiting.end -= from);
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that was shown, calls as `name(arguments)`, and whether calls were found.
    fn run(format: CallFormat, pieces: &[&str]) -> (String, Vec<String>, bool) {
        let mut stream = CallStream::new(format, ["f", "g"].map(str::to_owned));
        let mut tokens = Vec::new();
        for (id, piece) in pieces.iter().enumerate() {
            tokens.extend(stream.push(Token {
                id: id as u32,
                text: (*piece).to_owned(),
                ..Token::default()
            }));
        }
        let (rest, found) = stream.finish();
        tokens.extend(rest);
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        assert_eq!(ids, (0..pieces.len() as u32).collect::<Vec<_>>(), "each token once and in order");
        let text = tokens.iter().map(|token| token.text.as_str()).collect();
        let calls = tokens.iter().flat_map(|token| &token.calls);
        (text, calls.map(|call| format!("{}({})", call.name, call.arguments)).collect(), found)
    }

    /// The same in one piece, in characters, and in pieces of three.
    fn check(format: CallFormat, answer: &str, text: &str, calls: &[&str]) {
        let letters: Vec<String> = answer.chars().map(String::from).collect();
        let threes: Vec<String> = letters.chunks(3).map(|three| three.concat()).collect();
        for pieces in [vec![answer.to_owned()], letters, threes] {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (shown, found, any) = run(format, &pieces);
            assert_eq!((shown.as_str(), any), (text, !calls.is_empty()), "{answer}");
            assert_eq!(found, calls, "{answer}");
        }
    }

    const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

    #[test]
    fn text_before_a_call_is_content_and_the_call_is_not() {
        check(CallFormat::Hermes, &format!("Let me see.\n{CALL}"), "Let me see.", &["f({\"a\": 1})"]);
        check(CallFormat::Hermes, CALL, "", &["f({\"a\": 1})"]);
        check(CallFormat::Hermes, "a < b \n", "a < b \n", &[]);
    }

    #[test]
    fn several_calls_and_text_behind_them() {
        let two = format!("{CALL}\n{}\n", CALL.replace("\"f\"", "\"g\""));
        check(CallFormat::Hermes, &two, "", &["f({\"a\": 1})", "g({\"a\": 1})"]);
        check(CallFormat::Hermes, &format!("x {CALL} y"), "x y", &["f({\"a\": 1})"]);
        let gemma = "<start_function_call>call:f{}<end_function_call><start_function_call>call:g{x:<escape>\u{e9}<escape>}<end_function_call>";
        check(CallFormat::FunctionGemma, gemma, "", &["f({})", "g({\"x\":\"\u{e9}\"})"]);
    }

    #[test]
    fn what_is_no_sound_call_stays_text() {
        for text in [
            "<tool_call>\n{\"name\": \"f\"\n</tool_call>",
            "<tool_call>{\"name\": \"unknown\"}</tool_call> and more",
            "<tool_call>\n{\"name\": \"f\", \"arg",
            "<tool_",
        ] {
            check(CallFormat::Hermes, text, text, &[]);
        }
        let broken = "<tool_call>{</tool_call>";
        check(CallFormat::Hermes, &format!("{broken}{CALL}"), broken, &["f({\"a\": 1})"]);
    }

    #[test]
    fn a_call_that_the_end_of_the_answer_closes_counts() {
        check(CallFormat::Hermes, &CALL.replace("\n</tool_call>", ""), "", &["f({\"a\": 1})"]);
    }

    #[test]
    fn an_answer_that_is_a_call_as_a_whole() {
        let call = "{\"name\": \"f\", \"parameters\": {}}";
        check(CallFormat::Llama, call, "", &["f({})"]);
        check(CallFormat::Llama, &format!("\n<|python_tag|>{call}"), "", &["f({})"]);
        check(CallFormat::Llama, "{\"name\": \"you\"}", "{\"name\": \"you\"}", &[]);
        let behind = format!("Sure: {call}");
        check(CallFormat::Llama, &behind, &behind, &[]);
    }

    #[test]
    fn text_is_handed_on_at_once_unless_it_may_begin_a_call() {
        let mut stream = CallStream::new(CallFormat::Hermes, ["f".to_owned()]);
        let mut shown = |text: &str| {
            let tokens = stream.push(Token { text: text.to_owned(), ..Token::default() });
            tokens.into_iter().map(|token| token.text).collect::<Vec<_>>()
        };
        assert_eq!(shown("Hi"), ["Hi"]);
        assert_eq!(shown("<tool"), Vec::<String>::new());
        assert_eq!(shown("box>"), ["<tool", "box>"]);
        let mut stream = CallStream::new(CallFormat::Llama, ["f".to_owned()]);
        assert_eq!(stream.push(Token { text: "Hello".to_owned(), ..Token::default() }).len(), 1);
    }
}
