//! Byte searches in stream chunks, so that a chunk is forwarded without being parsed.
//!
//! A key can be found by its bytes because a quote inside a JSON string is always escaped: generated text that
//! spells `"finish_reason"` crosses the wire as `\"finish_reason\"`, which lacks the bytes `"finish_reason"`.

use std::borrow::Cow;

use serde::Deserialize;

/// Returns the offset of the first occurrence.
pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    loop {
        let at = from + haystack.get(from..)?.iter().position(|byte| byte == first)?;
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Tells whether any choice of a chunk carries a finish reason; null and empty ones do not count.
pub(super) fn has_finish_reason(payload: &[u8]) -> bool {
    const KEY: &[u8] = b"\"finish_reason\"";
    let mut rest = payload;
    while let Some(at) = find(rest, KEY) {
        rest = &rest[at + KEY.len()..];
        let value = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        if value.is_some_and(|value| value.starts_with(b"\"") && !value.starts_with(b"\"\"")) {
            return true;
        }
    }
    false
}

/// Returns the indexes of the choices of a chunk that carry a finish reason.
pub(super) fn finished(payload: &[u8]) -> Vec<u64> {
    #[derive(Deserialize)]
    struct Chunk<'a> {
        #[serde(borrow)]
        choices: Vec<Choice<'a>>,
    }
    #[derive(Deserialize)]
    struct Choice<'a> {
        index: Option<u64>,
        #[serde(borrow)]
        finish_reason: Option<Cow<'a, str>>,
    }
    let choices =
        serde_json::from_slice(payload).map_or_else(|_| Vec::new(), |chunk: Chunk<'_>| chunk.choices);
    let ends = |choice: &Choice<'_>| choice.finish_reason.as_ref().is_some_and(|reason| !reason.is_empty());
    choices.into_iter().filter(ends).map(|choice| choice.index.unwrap_or(0)).collect()
}

/// Returns how many answers a request asks for.
pub(super) fn answers_asked(request: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct Request {
        n: Option<u64>,
    }
    // Bodies are long and seldom say it.
    if find(request, b"\"n\"").is_none() {
        return 1;
    }
    serde_json::from_slice(request).ok().and_then(|request: Request| request.n).unwrap_or(1)
}

/// Tells whether a chunk may be an error object and is worth parsing.
pub(super) fn may_be_error(payload: &[u8]) -> bool {
    find(payload, b"\"error\"").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_occurrence() {
        assert_eq!(find(b"aab", b"ab"), Some(1));
        assert_eq!(find(b"abab", b"ab"), Some(0));
        assert_eq!(find(b"aaa", b"ab"), None);
        assert_eq!(find(b"a", b"ab"), None);
        assert_eq!(find(b"", b"a"), None);
    }

    #[test]
    fn choices_end_one_by_one() {
        let payload = br#"{"choices":[{"finish_reason":"stop"},{"index":1,"finish_reason":""},{"index":2,"finish_reason":"length"},{"index":3}]}"#;
        assert_eq!(finished(payload), [0, 2]);
        assert_eq!(finished(b"{}"), [0; 0]);
    }

    #[test]
    fn one_answer_is_asked_for_unless_the_request_says_more() {
        for (request, n) in [("{}", 1), (r#"{"n":2}"#, 2), (r#"{"n":null}"#, 1), (r#"{"m":{"n":2}}"#, 1)] {
            assert_eq!(answers_asked(request.as_bytes()), n, "{request}");
        }
    }

    #[test]
    fn a_finish_reason_counts_only_with_a_value_and_outside_of_text() {
        let check = |payload: &str, expected| {
            assert_eq!(has_finish_reason(payload.as_bytes()), expected, "{payload}")
        };
        check(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, true);
        check(r#"{"choices":[{"delta":{},"finish_reason" : "length"}]}"#, true);
        check(r#"{"choices":[{"finish_reason":null},{"finish_reason":"stop"}]}"#, true);
        check(r#"{"choices":[{"delta":{},"finish_reason":null}]}"#, false);
        check(r#"{"choices":[{"delta":{},"finish_reason":""}]}"#, false);
        check(r#"{"choices":[{"delta":{"content":"\"finish_reason\":\"stop\""}}]}"#, false);
        check(r#"{"choices":[{"delta":{}}]}"#, false);
    }
}
