//! How sure a model was of the values that its tool call passes, by its least sure one.
//!
//! Most tokens of a call are braces, keys and quotes, which a model is sure of whatever it calls for; a mean over all of
//! them drowns the one token where it guessed the city. So the tokens are kept as they were spelled, each value of the call is
//! looked for in them, and what counts is the value with the least mean log probability, the tool's name being one.
//! Nothing is assumed of the form of a call but that names and values stand in it in their order, with marks between.

use super::TokenSignals;
use super::fold::Tally;

/// Most tokens that are kept, and most bytes of them: calls are short, and what is longer is judged as a text.
const MAX_TOKENS: usize = 4096;
const MAX_BYTES: usize = 64 << 10;

/// Most values that are looked for.
const MAX_VALUES: usize = 256;

/// Marks between a key and its value, or two values, in JSON and in the forms that open models were taught.
const MARKS: &[u8] = b" \t\r\n\"':=,[]{}()";
const TAGS: [&[u8]; 2] = [b"<escape>", b"<|\"|>"];

/// The tokens of an answer as they were spelled.
#[derive(Debug, Clone, Default)]
pub struct TokenLog {
    text: Vec<u8>,
    tokens: Vec<Logged>,
    is_full: bool,
}

#[derive(Debug, Clone, Copy)]
struct Logged {
    /// Where it ends in the text.
    end: usize,
    logprob: f64,
    top: Option<(f64, f64)>,
}

/// A value that a call passes.
#[derive(Debug, Clone, PartialEq)]
pub struct CallValue {
    /// The key before it; `None` within a list.
    pub key: Option<String>,
    /// How it may be spelled in the model's own text: escaped as in JSON, or as it is. Empty ones are passed over.
    pub spellings: Vec<String>,
}

/// A call that an answer makes, with its values in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CallValues {
    /// The tool.
    pub name: String,
    /// Its arguments' leaves.
    pub values: Vec<CallValue>,
}

impl TokenLog {
    /// Keeps a token: its bytes, its log probability, and those of the likeliest tokens in its place.
    pub fn push(&mut self, bytes: &[u8], logprob: f64, top: &[f64]) {
        self.is_full |= self.tokens.len() >= MAX_TOKENS || self.text.len() + bytes.len() > MAX_BYTES;
        let Some((logprob, top)) = Tally::read(logprob, top).filter(|_| !self.is_full) else { return };
        self.text.extend_from_slice(bytes);
        self.tokens.push(Logged { end: self.text.len(), logprob, top });
    }

    /// Returns what the log probabilities say of the least sure value of these calls; `None` where none of them is found in
    /// the tokens, or not all tokens were kept.
    pub fn least_sure(&self, calls: &[CallValues]) -> Option<TokenSignals> {
        if self.is_full {
            return None;
        }
        let mut least: Option<TokenSignals> = None;
        let mut take = |signals: Option<TokenSignals>| {
            if let Some(signals) = signals
                && least.is_none_or(|known| signals.mean_logprob < known.mean_logprob)
            {
                least = Some(signals);
            }
        };
        let (mut from, mut seen) = (0, 0);
        for call in calls {
            let Some(at) = find(&self.text, from, call.name.as_bytes()) else { continue };
            let begin = at + call.name.len();
            take(self.signals(at, begin));
            from = begin;
            for value in &call.values {
                seen += 1;
                if seen > MAX_VALUES {
                    return least;
                }
                let place = self.place(from, value).or_else(|| self.place(begin, value));
                let Some((at, end)) = place else { continue };
                take(self.signals(at, end));
                from = end;
            }
        }
        least
    }

    /// Finds a value behind its key, or behind nothing but marks.
    fn place(&self, from: usize, value: &CallValue) -> Option<(usize, usize)> {
        let mut from = from;
        loop {
            if let Some(key) = &value.key {
                from = find(&self.text, from, key.as_bytes())? + key.len();
            }
            let at = skip_marks(&self.text, from);
            let spelled =
                |spelling: &&String| !spelling.is_empty() && self.text[at..].starts_with(spelling.as_bytes());
            if let Some(spelling) = value.spellings.iter().filter(spelled).max_by_key(|s| s.len()) {
                return Some((at, at + spelling.len()));
            }
            value.key.as_ref()?;
        }
    }

    /// Sums up the tokens that reach into a part of the text.
    fn signals(&self, at: usize, end: usize) -> Option<TokenSignals> {
        let first = self.tokens.partition_point(|token| token.end <= at);
        let mut tally = Tally::default();
        let mut begin = first.checked_sub(1).map_or(0, |before| self.tokens[before].end);
        for token in &self.tokens[first..] {
            if begin >= end {
                break;
            }
            tally.add(token.logprob, token.top);
            begin = token.end;
        }
        tally.signals()
    }
}

fn find(text: &[u8], from: usize, wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return None;
    }
    text.get(from..)?.windows(wanted.len()).position(|window| window == wanted).map(|at| from + at)
}

fn skip_marks(text: &[u8], mut at: usize) -> usize {
    loop {
        let rest = &text[at..];
        if let Some(tag) = TAGS.iter().find(|tag| rest.starts_with(tag)) {
            at += tag.len();
        } else if rest.first().is_some_and(|byte| MARKS.contains(byte)) {
            at += 1;
        } else {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens, each with its probability where that is not nearly 1.
    fn log(tokens: &[(&str, f64)]) -> TokenLog {
        let mut log = TokenLog::default();
        for (text, probability) in tokens {
            log.push(text.as_bytes(), probability.ln(), &[]);
        }
        log
    }

    fn value(key: &str, spelling: &str) -> CallValue {
        let key = (!key.is_empty()).then(|| key.to_owned());
        CallValue { key, spellings: vec![spelling.to_owned()] }
    }

    fn call(name: &str, values: &[(&str, &str)]) -> CallValues {
        CallValues {
            name: name.into(),
            values: values.iter().map(|(key, spelling)| value(key, spelling)).collect(),
        }
    }

    fn least(tokens: &[(&str, f64)], calls: &[CallValues]) -> Option<f64> {
        log(tokens).least_sure(calls).map(|signals| (signals.mean_logprob.exp() * 1e3).round() / 1e3)
    }

    const SURE: f64 = 0.99;

    #[test]
    fn a_guessed_value_is_not_drowned_by_braces_and_keys() {
        let tokens = [
            ("<tool_call>", SURE),
            ("{\"name\": \"", SURE),
            ("weather", 0.95),
            ("\", \"arguments\": {\"", SURE),
            ("city", SURE),
            ("\": \"", SURE),
            ("Os", 0.2),
            ("lo", 0.8),
            ("\", \"days\": ", SURE),
            ("3", 0.9),
            ("}}", SURE),
            ("</tool_call>", SURE),
        ];
        let calls = [call("weather", &[("city", "Oslo"), ("days", "3")])];
        assert_eq!(least(&tokens, &calls), Some(0.4), "the root of 0.2 × 0.8");
        let signals = log(&tokens).least_sure(&calls).unwrap();
        assert_eq!(signals.tokens, 2);
        assert!((signals.min_logprob.exp() - 0.2).abs() < 1e-9);
    }

    #[test]
    fn the_tools_name_counts_as_a_value() {
        let tokens = [("{\"name\":\"", SURE), ("news", 0.3), ("\",\"arguments\":{}}", SURE)];
        assert_eq!(least(&tokens, &[call("news", &[])]), Some(0.3));
    }

    #[test]
    fn other_forms_than_json_are_read_alike() {
        let gemma = [
            ("<start_function_call>", SURE),
            ("call:", SURE),
            ("weather", 0.9),
            ("{city:", SURE),
            ("<escape>", SURE),
            ("Oslo", 0.5),
            ("<escape>", SURE),
            ("}", SURE),
        ];
        assert_eq!(least(&gemma, &[call("weather", &[("city", "Oslo")])]), Some(0.5));
        let python = [("weather", 0.9), ("(city='", SURE), ("Oslo", 0.6), ("')", SURE)];
        assert_eq!(least(&python, &[call("weather", &[("city", "Oslo")])]), Some(0.6));
    }

    #[test]
    fn lists_and_calls_are_gone_through_in_order() {
        let tokens = [
            ("f", 0.9),
            ("{\"ids\":[", SURE),
            ("1", 0.8),
            (",", SURE),
            ("1", 0.1),
            ("]}", SURE),
            (" g", 0.9),
            ("{\"ids\":[", SURE),
            ("1", 0.7),
            ("]}", SURE),
        ];
        let calls = [call("f", &[("ids", "1"), ("", "1")]), call("g", &[("ids", "1")])];
        assert_eq!(least(&tokens, &calls), Some(0.1));
        assert_eq!(least(&tokens, &calls[1..]), Some(0.7));
    }

    #[test]
    fn what_is_not_there_or_was_cut_says_nothing() {
        assert_eq!(least(&[("hello", 0.5)], &[call("weather", &[("city", "Oslo")])]), None);
        assert_eq!(least(&[], &[]), None);
        let mut long = TokenLog::default();
        for _ in 0..=MAX_TOKENS {
            long.push(b"weather", -1.0, &[]);
        }
        assert!(long.least_sure(&[call("weather", &[])]).is_none());
        assert!(long.tokens.len() <= MAX_TOKENS && long.text.len() <= MAX_BYTES);
    }

    #[test]
    fn a_token_that_holds_a_value_and_its_marks_counts_for_the_value() {
        let tokens = [("f{\"a\":", SURE), ("\"x\",\"b\":\"", 0.5), ("y\"}", 0.7)];
        assert_eq!(least(&tokens, &[call("f", &[("a", "x"), ("b", "y")])]), Some(0.5));
    }
}
