//! Turns what goes wrong at an HTTP upstream into an [`UpstreamError`].
//!
//! The question behind each mapping is whose fault it was: the client's (its request is refused everywhere, so no
//! other upstream is tried), the upstream's (another may do better) or ours towards the upstream (a refused key
//! is no reason to tell a client that *its* key is wrong). Texts from an upstream reach the client only after
//! they were bounded, stripped of our key, and found not to quote the request.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use crate::egress;
use crate::upstream::UpstreamError;

/// Longest text of an upstream that is passed on, in characters.
const MAX_MESSAGE: usize = 300;

/// Longest believable `Retry-After`; beyond it the value says more about the server than about the load.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// A text that shares this many bytes with the request is taken to quote it.
const QUOTE: usize = 24;

/// Requests above this are not searched for quotes; the upstream's text is dropped instead.
const MAX_SEARCHED_BODY: usize = 256 * 1024;

/// Causes that stand for a status where none came along, as in an error inside a stream.
const STATUS_OF_WORD: [(&str, u16); 8] = [
    ("rate_limit", 429),
    ("overloaded", 529),
    ("authentication_error", 401),
    ("permission_error", 403),
    ("billing_error", 402),
    ("not_found_error", 404),
    ("request_too_large", 413),
    ("timeout_error", 504),
];

/// How Anthropic begins to say that a prompt does not fit; its error has no word for it.
const PROMPT_TOO_LONG: &str = "prompt is too long";

/// What is needed to word an error about one exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    /// Display name of the upstream.
    pub(super) upstream: &'a str,
    /// Model that was asked for.
    pub(super) model: &'a str,
    /// The key we sent, never to be shown.
    pub(super) key: Option<&'a str>,
    /// The request body, never to be quoted.
    pub(super) request: &'a [u8],
}

impl Context<'_> {
    /// Maps an answer other than 2xx.
    pub(super) fn refused(self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> UpstreamError {
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let error = self.classify(status.as_u16(), parsed.as_ref());
        let wait = retry_after(headers, SystemTime::now()).or_else(|| retry_info(parsed.as_ref()?));
        UpstreamError { retry_after: wait, ..error }
    }

    /// Maps an error object that came with status 200, whole or inside a stream; `None` if it is none.
    pub(super) fn error_object(self, payload: &[u8]) -> Option<UpstreamError> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        let error = value.get("error").filter(|error| !error.is_null())?;
        // OpenRouter ends a stream by a choice that says so, beside the error.
        let says_something = |choice: &Value| choice["finish_reason"] != "error";
        let choices = value.get("choices").and_then(Value::as_array);
        if choices.is_some_and(|list| list.iter().any(says_something)) {
            return None;
        }
        let number = |key: &str| error.get(key).or_else(|| value.get(key)).and_then(status_number);
        let status = number("code").or_else(|| number("status")).unwrap_or_else(|| {
            let words = words(error).unwrap_or_default();
            let known = STATUS_OF_WORD.iter().find(|(word, _)| words.contains(word));
            known.map_or(502, |(_, status)| *status)
        });
        Some(self.classify(status, Some(&value)))
    }

    /// The answer is not what the API promises: HTML, a stream that is none, broken JSON.
    pub(super) fn malformed(self, what: &str) -> UpstreamError {
        UpstreamError::retryable(502, "upstream_error", format!("{} answered with {what}", self.upstream))
    }

    /// The request did not go out, or its connection broke before an answer.
    pub(super) fn unsent(self, error: &egress::Error) -> UpstreamError {
        match error {
            egress::Error::Http(error) => self.broken(error, false),
            egress::Error::WrongAddress => {
                UpstreamError::retryable(502, "upstream_error", format!("{}: {error}", self.upstream))
            }
        }
    }

    /// The connection could not be made or broke.
    pub(super) fn broken(self, error: &reqwest::Error, started: bool) -> UpstreamError {
        let Self { upstream, .. } = self;
        if started {
            let message = format!("{upstream} broke off in the middle of its answer");
            return UpstreamError::retryable(502, "upstream_interrupted", message).without_answer();
        }
        let (status, code, message) = match error {
            e if e.is_timeout() => {
                (504, "upstream_timeout", format!("{upstream} did not accept a connection in time"))
            }
            e if e.is_connect() => (502, "upstream_error", format!("{upstream} is not reachable")),
            _ => (502, "upstream_error", format!("{upstream} closed the connection without an answer")),
        };
        let failed = UpstreamError::retryable(status, code, message);
        if error.is_connect() { failed } else { failed.without_answer() }
    }

    /// Nothing came for too long.
    pub(super) fn silent(self, limit: Duration) -> UpstreamError {
        let message = format!("{} sent nothing for {} s", self.upstream, limit.as_secs_f32());
        UpstreamError::retryable(504, "upstream_timeout", message).without_answer()
    }

    /// The whole request's time is over; no other upstream has time left either.
    pub(super) fn past_deadline(self) -> UpstreamError {
        UpstreamError::new(
            504,
            "upstream_timeout",
            format!("{} did not finish in the time allowed", self.upstream),
        )
        .without_answer()
    }

    fn classify(self, status: u16, body: Option<&Value>) -> UpstreamError {
        let Self { upstream, model, .. } = self;
        let said = body.and_then(|body| self.passable_text(body));
        let with = |what: &str| match &said {
            Some(text) => format!("{upstream} {what}: {text}"),
            None => format!("{upstream} {what}"),
        };
        let retryable = UpstreamError::retryable;
        let reasons = body.map(reasons).unwrap_or_default();
        match status {
            _ if status < 500 && reasons.contains("API_KEY_INVALID") => {
                retryable(502, "upstream_error", format!("{upstream} refused the key that Shoal has for it"))
            }
            429 if reasons.contains("insufficient_quota") => {
                retryable(429, "insufficient_quota", format!("the account at {upstream} has no credit left"))
            }
            401 | 403 => {
                retryable(502, "upstream_error", format!("{upstream} refused the key that Shoal has for it"))
            }
            402 => {
                retryable(429, "insufficient_quota", format!("the account at {upstream} has no credit left"))
            }
            404 => retryable(404, "model_not_found", format!("{upstream} does not serve '{model}'")),
            408 | 504 => retryable(504, "upstream_timeout", with("ran out of time")),
            409 | 425 => retryable(503, "overloaded", with("cannot take the request now")),
            429 => retryable(429, "rate_limit_exceeded", with("asks for fewer requests")),
            503 | 529 => retryable(503, "overloaded", with("is overloaded")),
            // Another router, which found that the request goes in a circle: no other way out of it is better.
            508 => UpstreamError::new(508, "too_many_hops", with("refused the request")),
            400..=499 => {
                let has = |word: &&str| reasons.contains(*word);
                let long = ["context_length", "exceed_context", "context_size"].iter().any(has)
                    || said.as_ref().is_some_and(|text| text.contains(PROMPT_TOO_LONG));
                let code = match long {
                    true => "context_length_exceeded",
                    // The words of Azure's filter in front of its models.
                    false if has(&"content_filter") => "content_filter",
                    false => "invalid_request_error",
                };
                UpstreamError::new(status, code, with("refused the request"))
            }
            _ => retryable(502, "upstream_error", with(&format!("failed with status {status}"))),
        }
    }

    /// The upstream's own words, if they are safe to repeat.
    fn passable_text(self, body: &Value) -> Option<String> {
        let error = body.get("error").unwrap_or(body);
        let text = [error.get("message"), Some(error), body.get("detail"), body.get("message")]
            .into_iter()
            .flatten()
            .find_map(Value::as_str)?;
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        let mut text: String = text.chars().take(MAX_MESSAGE).map(clean).collect();
        if let Some(key) = self.key.filter(|key| !key.is_empty()) {
            text = text.replace(key, "…");
        }
        let text = text.trim().to_owned();
        (!text.is_empty() && !self.quotes_request(&text)).then_some(text)
    }

    fn quotes_request(self, text: &str) -> bool {
        if self.request.len() > MAX_SEARCHED_BODY {
            return true;
        }
        // Every fourth window: a shared run of `QUOTE + 3` bytes always holds one of them whole.
        let mut windows = text.as_bytes().windows(QUOTE).step_by(4);
        windows.any(|window| super::scan::find(self.request, window).is_some())
    }
}

/// Machine-readable causes of an error body, OpenAI's and Google's, joined.
fn reasons(body: &Value) -> String {
    let error = body.get("error").unwrap_or(body);
    let details = error.get("details").and_then(Value::as_array).into_iter().flatten();
    let own = words(error).unwrap_or_default().into_owned();
    details.filter_map(|detail| detail["reason"].as_str()).fold(own, |all, reason| all + " " + reason)
}

/// Reads the `RetryInfo` of Google's errors, bounded by an hour.
fn retry_info(body: &Value) -> Option<Duration> {
    let details = body.get("error")?.get("details")?.as_array()?;
    let delay = details.iter().find_map(|detail| detail["retryDelay"].as_str())?;
    let seconds: f64 = delay.strip_suffix('s')?.parse().ok()?;
    (0.0..1e9).contains(&seconds).then(|| Duration::from_secs_f64(seconds).min(MAX_RETRY_AFTER))
}

/// Machine-readable words of an error object, joined.
fn words(error: &Value) -> Option<Cow<'_, str>> {
    let code = error.get("code").and_then(Value::as_str);
    let kind = error.get("type").and_then(Value::as_str);
    match (code, kind) {
        (Some(code), Some(kind)) => Some(format!("{code} {kind}").into()),
        (code, kind) => code.or(kind).map(Cow::Borrowed),
    }
}

fn status_number(value: &Value) -> Option<u16> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    u16::try_from(number).ok().filter(|status| (400..600).contains(status))
}

/// Reads `retry-after-ms` or `retry-after` (seconds or a date), bounded by an hour.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let seconds = |text: &str| text.parse::<f64>().ok().filter(|seconds| (0.0..1e9).contains(seconds));
    let wait = if let Some(ms) = text("retry-after-ms").and_then(seconds) {
        Duration::from_secs_f64(ms / 1000.0)
    } else {
        let text = text(header::RETRY_AFTER.as_str())?;
        match seconds(text) {
            Some(seconds) => Duration::from_secs_f64(seconds),
            None => http_date(text)?.duration_since(now).unwrap_or_default(),
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Parses the one date format that servers may send today, "Sun, 06 Nov 1994 08:49:37 GMT".
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split([' ', ':']);
    let mut next = || parts.next();
    let day = next()?.parse().ok()?;
    let name = next()?;
    let month = u8::try_from(MONTHS.iter().position(|month| *month == name)? + 1).ok()?;
    let year = next()?.parse().ok()?;
    let (hour, minute, second) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?);
    let date = time::Date::from_calendar_date(year, time::Month::try_from(month).ok()?, day).ok()?;
    let seconds = date.with_hms(hour, minute, second).ok()?.assume_utc().unix_timestamp();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const PROMPT: &str =
        r#"{"model":"m","messages":[{"role":"user","content":"the patient is called Ada Lovelace"}]}"#;

    fn context() -> Context<'static> {
        Context { upstream: "box", model: "m", key: Some("sk-secret-key"), request: PROMPT.as_bytes() }
    }

    fn map(status: u16, body: &str) -> UpstreamError {
        context().refused(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn google_says_when_to_come_back_and_that_a_key_is_wrong() {
        let error = map(
            429,
            r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"slow down","details":[
                {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27.5s"}]}}"#,
        );
        assert_eq!((error.status, error.retry_after), (429, Some(Duration::from_millis(27_500))));
        let error = map(
            400,
            r#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[
                {"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}"#,
        );
        assert_eq!((error.status, error.retryable), (502, true));
        let error =
            map(429, r#"{"error":{"message":"x","type":"insufficient_quota","code":"insufficient_quota"}}"#);
        assert_eq!((error.status, &*error.code), (429, "insufficient_quota"));
    }

    #[test]
    fn each_status_says_whose_fault_it_was() {
        let check = |upstream: u16, status: u16, code: &str, retryable: bool| {
            let error = map(upstream, "");
            assert_eq!(
                (error.status, &*error.code, error.retryable),
                (status, code, retryable),
                "{upstream}"
            );
        };
        check(400, 400, "invalid_request_error", false);
        check(413, 413, "invalid_request_error", false);
        check(422, 422, "invalid_request_error", false);
        check(401, 502, "upstream_error", true);
        check(403, 502, "upstream_error", true);
        check(402, 429, "insufficient_quota", true);
        check(404, 404, "model_not_found", true);
        check(408, 504, "upstream_timeout", true);
        check(429, 429, "rate_limit_exceeded", true);
        check(500, 502, "upstream_error", true);
        check(501, 502, "upstream_error", true);
        check(503, 503, "overloaded", true);
        check(504, 504, "upstream_timeout", true);
        check(508, 508, "too_many_hops", false);
        check(307, 502, "upstream_error", true);
    }

    #[test]
    fn the_upstreams_words_are_passed_on_where_they_are_safe() {
        let said = |body: &str| map(400, body).message;
        assert_eq!(
            said(r#"{"error":{"message":"temperature must be below 2"}}"#),
            "box refused the request: temperature must be below 2"
        );
        assert_eq!(said(r#"{"error":"too hot"}"#), "box refused the request: too hot");
        assert_eq!(said(r#"{"detail":"too\nhot"}"#), "box refused the request: too hot");
        assert_eq!(
            said(r#"{"error":"bad value 'the patient is called Ada Lovelace' in messages"}"#),
            "box refused the request"
        );
        assert!(!said(r#"{"error":"key sk-secret-key unknown"}"#).contains("secret"));
        assert!(!map(401, r#"{"error":{"message":"wrong key sk-se...ey"}}"#).message.contains("sk-se"));
        assert!(said(&format!(r#"{{"error":"{}"}}"#, "long ".repeat(1000))).len() < 400);
    }

    #[test]
    fn a_prompt_that_is_too_long_is_told_apart() {
        for body in [
            r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#,
            r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
        ] {
            let error = map(400, body);
            assert_eq!(
                (error.status, &*error.code, error.retryable),
                (400, "context_length_exceeded", false)
            );
        }
    }

    #[test]
    fn a_filter_in_front_of_a_model_has_its_own_code() {
        let error = map(
            400,
            r#"{"error":{"code":"content_filter","status":400,"message":"The response was filtered"}}"#,
        );
        assert_eq!((error.status, &*error.code, error.retryable), (400, "content_filter", false));
    }

    #[test]
    fn error_objects_are_found_and_other_payloads_are_not() {
        let find = |payload: &str| context().error_object(payload.as_bytes());
        assert_eq!(find(r#"{"error":{"message":"no memory","code":500}}"#).unwrap().status, 502);
        assert_eq!(find(r#"{"error":{"message":"slow down","code":429}}"#).unwrap().status, 429);
        assert_eq!(
            find(r#"{"error":{"message":"slow down","type":"rate_limit_error"}}"#).unwrap().status,
            429
        );
        assert_eq!(find(r#"{"error":{"message":"bad","code":"400"}}"#).unwrap().status, 400);
        assert_eq!(find(r#"{"error":"boom"}"#).unwrap().status, 502);
        assert!(find(r#"{"error":null,"choices":[]}"#).is_none());
        assert!(find(r#"{"choices":[{"delta":{"content":"an \"error\" here"}}]}"#).is_none());
        assert!(find("not json").is_none());
        let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        assert_eq!(find(overloaded).unwrap().code, "overloaded");
        let disconnected = r#"{"id":"gen-1","error":{"code":"server_error","message":"Provider disconnected"},
            "choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#;
        assert_eq!(find(disconnected).unwrap().status, 502);
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            retry_after(&headers, now)
        };
        assert_eq!(read("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(read("retry-after", "0.5"), Some(Duration::from_millis(500)));
        assert_eq!(read("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(read("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("retry-after", "999999"), Some(MAX_RETRY_AFTER));
        for bad in ["", "soon", "-1", "NaN", "inf", "Sun, 99 Nov 1994 08:50:07 GMT", "Sun, x"] {
            assert_eq!(read("retry-after", bad), None, "{bad}");
        }
    }
}
