//! From tokens to text that may be shown: whole characters only, and nothing that may become a stop string.
//!
//! A token may end within a character, and a stop string may span tokens; so tokens wait here until their text is
//! certain. What lies at or behind a stop string is never released.

use std::collections::VecDeque;

use crate::Token;

/// Tokens whose text is not yet certain.
pub(crate) struct TextStream {
    stops: Vec<String>,
    /// Bytes that do not yet make a character.
    raw: Vec<u8>,
    /// Decoded text that has not been released.
    held: String,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    token: Token,
    /// Where the token's text ends in `held`; `None` while its last character is open.
    end: Option<usize>,
}

impl TextStream {
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, raw: Vec::new(), held: String::new(), waiting: VecDeque::new() }
    }

    /// Takes a token and returns the tokens that may be shown now, and whether a stop string was met.
    pub(crate) fn push(&mut self, token: Token) -> (Vec<Token>, bool) {
        self.raw.extend_from_slice(&token.bytes);
        self.waiting.push_back(Waiting { token, end: None });
        self.decode(false);
        self.settle();
        let stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        match stop {
            Some(at) => {
                self.held.truncate(at);
                let last = self.waiting.iter().position(|w| w.end.is_none_or(|end| end >= at));
                if let Some(last) = last {
                    // The token that reaches the stop string keeps the text before it, if there is any.
                    let begins = if last == 0 { 0 } else { self.waiting[last - 1].end.unwrap_or(at) };
                    self.waiting.truncate(if begins < at { last + 1 } else { last });
                }
                for waiting in &mut self.waiting {
                    waiting.end = Some(waiting.end.map_or(at, |end| end.min(at)));
                }
                (self.release(at), true)
            }
            None => {
                let certain = self.held.len() - self.longest_start_of_a_stop();
                (self.release(certain), false)
            }
        }
    }

    /// Returns all tokens that are left; an open character becomes U+FFFD.
    pub(crate) fn finish(mut self) -> Vec<Token> {
        self.decode(true);
        self.settle();
        self.release(self.held.len())
    }

    fn decode(&mut self, last: bool) {
        loop {
            match std::str::from_utf8(&self.raw) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.raw.clear();
                    return;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.held.push_str(&String::from_utf8_lossy(&self.raw[..valid]));
                    let bad = match error.error_len() {
                        Some(bad) => bad,
                        None if last => self.raw.len() - valid,
                        None => {
                            self.raw.drain(..valid);
                            return;
                        }
                    };
                    self.held.push('\u{FFFD}');
                    self.raw.drain(..valid + bad);
                }
            }
        }
    }

    /// Fixes where tokens end, once no character is open.
    fn settle(&mut self) {
        if self.raw.is_empty() {
            let end = self.held.len();
            for waiting in self.waiting.iter_mut().rev().take_while(|w| w.end.is_none()) {
                waiting.end = Some(end);
            }
        }
    }

    /// Returns how many bytes at the end of the held text may be the start of a stop string.
    fn longest_start_of_a_stop(&self) -> usize {
        let held = self.held.as_bytes();
        let starts = |stop: &String| {
            let longest = (stop.len() - 1).min(held.len());
            (1..=longest).rev().find(|n| held.ends_with(&stop.as_bytes()[..*n])).unwrap_or(0)
        };
        self.stops.iter().map(starts).max().unwrap_or(0)
    }

    fn release(&mut self, certain: usize) -> Vec<Token> {
        let mut released = Vec::new();
        let mut from = 0;
        while let Some(end) = self.waiting.front().and_then(|w| w.end).filter(|end| *end <= certain) {
            let Some(mut waiting) = self.waiting.pop_front() else { break };
            waiting.token.text = self.held[from..end].to_owned();
            from = end;
            released.push(waiting.token);
        }
        self.held.drain(..from);
        for waiting in &mut self.waiting {
            waiting.end = waiting.end.map(|end| end - from);
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut texts = Vec::new();
        for (id, bytes) in tokens.iter().enumerate() {
            let token = Token { id: id as u32, bytes: bytes.to_vec(), ..Token::default() };
            let (released, stopped) = stream.push(token);
            texts.extend(released.into_iter().map(|token| token.text));
            if stopped {
                return (texts, true);
            }
        }
        texts.extend(stream.finish().into_iter().map(|token| token.text));
        (texts, false)
    }

    #[test]
    fn plain_tokens_pass_at_once() {
        let mut stream = TextStream::new(&[]);
        let (released, _) = stream.push(Token { bytes: b"hi".to_vec(), ..Token::default() });
        assert_eq!(released[0].text, "hi");
    }

    #[test]
    fn a_character_in_two_tokens_is_shown_whole() {
        let (texts, _) = run(&[], &[b"a\xF0\x9F", b"\x98\x80b"]);
        assert_eq!(texts.concat(), "a\u{1F600}b");
        assert_eq!(texts.len(), 2);
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        assert_eq!(run(&[], &[b"a\xFFb", b"\xF0\x9F"]).0.concat(), "a\u{FFFD}b\u{FFFD}");
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_never_shown() {
        let (texts, stopped) = run(&["END"], &[b"one ", b"two E", b"N", b"D three"]);
        assert!(stopped);
        assert_eq!(texts.concat(), "one two ");
    }

    #[test]
    fn a_false_start_of_a_stop_string_is_shown_later() {
        let (texts, stopped) = run(&["END"], &[b"E", b"N", b"X", b"E"]);
        assert!(!stopped);
        assert_eq!(texts, ["E", "N", "X", "E"]);
    }

    #[test]
    fn tokens_that_are_all_stop_string_are_dropped() {
        let (texts, stopped) = run(&["END"], &[b"x", b"EN", b"D"]);
        assert!(stopped);
        assert_eq!(texts, ["x"]);
    }

    #[test]
    fn the_earliest_stop_string_counts() {
        assert_eq!(run(&["c", "b"], &[b"abc"]).0.concat(), "a");
    }

    #[test]
    fn a_stop_string_of_wide_characters_is_held_back() {
        let emoji = "\u{1F600}\u{1F601}";
        let bytes = emoji.as_bytes();
        let (texts, stopped) = run(&[emoji], &[b"a", &bytes[..2], &bytes[2..5], &bytes[5..]]);
        assert!(stopped);
        assert_eq!(texts.concat(), "a");
    }
}
