//! The calls of an answer and the tokens that they were written in: how sure the model was of what it passes.
//!
//! Of use where an engine tells log probabilities of a call's tokens, as the embedded one and llama.cpp do; without
//! them, or where the values are not found in the tokens, nothing is said.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use shoal_routing::TokenSignals;
use shoal_routing::confidence::{CallValue, CallValues, TokenLog};

/// Most calls of an answer that are read, and most bytes of their arguments together.
const MAX_CALLS: usize = 16;
const MAX_ARGUMENTS: usize = 64 << 10;

/// What was seen of an answer's calls so far.
#[derive(Debug, Clone, Default)]
pub(super) struct CallWatch {
    log: TokenLog,
    calls: Vec<Called>,
    bytes: usize,
}

#[derive(Debug, Clone, Default)]
struct Called {
    index: u64,
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    function: Function,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

impl CallWatch {
    /// Takes in a token.
    pub(super) fn token(&mut self, bytes: &[u8], logprob: f64, top: &[f64]) {
        self.log.push(bytes, logprob, top);
    }

    /// Takes in the calls of a whole answer, or pieces of them.
    pub(super) fn calls(&mut self, raw: &RawValue) {
        let Ok(deltas) = serde_json::from_str::<Vec<Delta>>(raw.get()) else { return };
        for (place, delta) in deltas.into_iter().enumerate() {
            let index = delta.index.unwrap_or(place as u64);
            let at = self.calls.iter().position(|called| called.index == index);
            let Some(at) = at.or_else(|| self.open(index)) else { return };
            let arguments = delta.function.arguments.unwrap_or_default();
            self.bytes += arguments.len();
            if self.bytes > MAX_ARGUMENTS {
                return;
            }
            self.calls[at].arguments.push_str(&arguments);
            if let Some(name) = delta.function.name.filter(|_| self.calls[at].name.is_empty()) {
                self.calls[at].name = name;
            }
        }
    }

    fn open(&mut self, index: u64) -> Option<usize> {
        if self.calls.len() >= MAX_CALLS {
            return None;
        }
        self.calls.push(Called { index, ..Called::default() });
        Some(self.calls.len() - 1)
    }

    /// Returns what is known of the least sure value of all calls; `None` before one is whole.
    pub(super) fn least_sure(&self) -> Option<TokenSignals> {
        if self.bytes > MAX_ARGUMENTS {
            return None;
        }
        let read = |called: &Called| {
            let arguments = match called.arguments.trim() {
                "" => Value::Null,
                text => serde_json::from_str(text).ok()?,
            };
            let mut values = Vec::new();
            leaves(None, &arguments, &mut values);
            Some(CallValues { name: called.name.clone(), values })
        };
        let calls: Vec<CallValues> = self.calls.iter().filter_map(read).collect();
        self.log.least_sure(&calls)
    }
}

/// Collects the leaves of arguments in their order, each with the key that stands before it. What was parsed is at most
/// 128 levels deep.
fn leaves(key: Option<&str>, value: &Value, into: &mut Vec<CallValue>) {
    let spellings = match value {
        Value::Object(map) => {
            return map.iter().for_each(|(key, value)| leaves(Some(key), value, into));
        }
        Value::Array(list) => {
            // Only the first stands behind the key.
            let keys = std::iter::once(key).chain(std::iter::repeat(None));
            return keys.zip(list).for_each(|(key, value)| leaves(key, value, into));
        }
        Value::Null if key.is_none() => return,
        Value::String(text) => {
            let escaped = Value::from(text.as_str()).to_string();
            vec![escaped[1..escaped.len() - 1].to_owned(), text.clone()]
        }
        other => vec![other.to_string()],
    };
    into.push(CallValue { key: key.map(str::to_owned), spellings });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn least(tokens: &[(&str, f64)], calls: &[&str]) -> Option<f64> {
        let mut watch = CallWatch::default();
        for (text, probability) in tokens {
            watch.token(text.as_bytes(), probability.ln(), &[]);
        }
        for call in calls {
            watch.calls(&RawValue::from_string((*call).to_owned()).unwrap());
        }
        watch.least_sure().map(|signals| (signals.mean_logprob.exp() * 1e3).round() / 1e3)
    }

    #[test]
    fn the_least_sure_value_of_a_call_is_found_in_pieces_and_as_a_whole() {
        let tokens = [
            ("{\"name\": \"book\", \"parameters\": {\"to\": {\"city\": \"", 0.99),
            ("S\\u00e3o", 0.4),
            (" Paulo\"}, \"days\": [", 0.99),
            ("1", 0.9),
            (", ", 0.99),
            ("3", 0.3),
            ("], \"note\": null}}", 0.99),
        ];
        let whole = r#"[{"function":{"name":"book","arguments":"{\"to\":{\"city\":\"S\\u00e3o Paulo\"},\"days\":[1,3],\"note\":null}"}}]"#;
        assert_eq!(least(&tokens, &[whole]), Some(0.3));
        let pieces = [
            r#"[{"index":0,"function":{"name":"book","arguments":"{\"days\""}}]"#,
            r#"[{"index":0,"function":{"arguments":":[1,3]}"}}]"#,
        ];
        assert_eq!(least(&tokens, &pieces), Some(0.3));
        assert_eq!(least(&tokens, &pieces[..1]), None, "not whole yet");
    }

    #[test]
    fn calls_beyond_the_bound_are_not_read() {
        let long = "x".repeat(MAX_ARGUMENTS);
        let call = format!(r#"[{{"function":{{"name":"f","arguments":"{{\"a\":\"{long}\"}}"}}}}]"#);
        assert_eq!(least(&[("f", 0.5)], &[&call]), None);
        let many = (0..100).map(|n| format!(r#"{{"index":{n},"function":{{"name":"f"}}}}"#));
        let mut watch = CallWatch::default();
        let raw = format!("[{}]", many.collect::<Vec<_>>().join(","));
        watch.calls(&RawValue::from_string(raw).unwrap());
        assert_eq!(watch.calls.len(), MAX_CALLS);
    }
}
