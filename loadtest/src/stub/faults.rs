//! Faults below HTTP, or that no HTTP server would commit: resets, half heads, wrong lengths, broken framing.
//!
//! Each is a list of raw bytes with pauses and a way to end, written past the server. Those of a stream come after
//! `at` tokens of a good one, so that every fault can be had before the first byte of content and in its midst.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};

/// A line longer than any reader should keep, in bytes.
const HUGE_LINE: usize = 2 << 20;
/// A head longer than any reader should keep, in bytes.
const HUGE_HEAD: usize = 512 << 10;
/// Levels of nesting, far above what any answer has.
const DEEP: usize = 10_000;
/// Comments, or chunks without content, that come where content is due.
const FLOOD: usize = 400;
/// Tags whose requests are counted; a test has far fewer.
const MAX_TAGS: usize = 100_000;

/// How a raw answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// In order.
    Fin,
    /// By a reset.
    Reset,
    /// Never, until the client goes.
    Hang,
}

/// What a good answer would have been.
#[derive(Debug)]
pub(super) struct Parts {
    /// A stream was asked for.
    pub(super) stream: bool,
    /// Payloads of the stream before the fault.
    pub(super) before: Vec<String>,
    /// Those after it.
    pub(super) after: Vec<String>,
    /// The whole answer.
    pub(super) whole: String,
}

/// A raw answer.
#[derive(Debug)]
pub(super) struct Plan {
    /// Pauses and what follows each.
    pub(super) pieces: Vec<(Duration, Vec<u8>)>,
    /// Its end.
    pub(super) last: Last,
}

type Build = fn(&Parts) -> Plan;

/// Every fault by its name.
const FAULTS: &[(&str, Build)] = &[
    ("hang_before_head", |_| Plan { pieces: Vec::new(), last: Last::Hang }),
    ("hang_after_head", |p| open(p, Last::Hang)),
    ("hang_midway", |p| midway(p, b"", Last::Hang)),
    ("reset_before_head", |_| Plan { pieces: Vec::new(), last: Last::Reset }),
    ("reset_after_head", |p| open(p, Last::Reset)),
    ("reset_midway", |p| midway(p, b"", Last::Reset)),
    ("fin_before_head", |_| Plan { pieces: Vec::new(), last: Last::Fin }),
    ("fin_inside_head", |_| raw(b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec(), Last::Fin)),
    ("fin_after_head", |p| open(p, Last::Fin)),
    ("fin_midway", |p| midway(p, b"", Last::Fin)),
    ("end_midway", |p| cut_in_order(p)),
    ("no_length", |p| until_close(p)),
    ("broken_json", |p| midway(p, &sse("{\"choices\": [garbage"), Last::Fin)),
    ("cr_only", |p| framed(p, "\r")),
    ("comments_only", |p| midway(p, ": still thinking\n\n".repeat(FLOOD).as_bytes(), Last::Fin)),
    ("multi_line", |p| multi_line(p)),
    ("byte_order_mark", |p| framed_from(p, "\n", "\u{feff}")),
    ("error_event", |p| midway(p, &error_event(500), Last::Fin)),
    ("error_429_event", |p| midway(p, &error_event(429), Last::Fin)),
    ("empty_body", |p| raw(head(p, "content-length: 0\r\n").into_bytes(), Last::Fin)),
    ("plain_text_type", |p| plain_text(p)),
    ("gzip_unasked", |p| gzip(p)),
    ("huge_line", |p| huge_line(p)),
    ("huge_usage", |p| with_usage(p, "{\"prompt_tokens\":1000000000000000000000,\"completion_tokens\":-7}")),
    ("no_usage", |p| with_usage(p, "null")),
    ("tools_without_index", |p| tools_without_index(p)),
    ("early_hints", |p| prefixed(p, b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")),
    ("redirect", |_| raw(redirect(), Last::Fin)),
    ("length_too_long", |p| wrong_length(p, 64)),
    ("length_too_short", |p| wrong_length(p, -8)),
    ("chunks_twice", |p| twice(p)),
    ("nan_numbers", |p| {
        midway(p, &sse("{\"choices\":[{\"index\":0,\"delta\":{\"content\":\" x\"},\"p\":NaN}]}"), Last::Fin)
    }),
    ("invalid_utf8", |p| invalid_utf8(p)),
    ("deep_json", |p| midway(p, &sse(&format!("{{\"a\":{}", "[".repeat(DEEP))), Last::Fin)),
    ("not_http", |_| raw(b"220 mail.example.org ESMTP\r\n".to_vec(), Last::Fin)),
    ("huge_head", |p| huge_head(p)),
    ("after_done", |p| after_done(p)),
    ("no_content", |p| midway(p, sse_bytes(&vec![ROLE.to_owned(); FLOOD]).as_slice(), Last::Fin)),
    ("other_form", |p| other_form(p)),
    ("bad_chunk_size", |p| bad_chunk_size(p)),
];

const ROLE: &str = "{\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}]}";

/// The name as the table has it, or `None`.
pub(crate) fn known(name: &str) -> Option<&'static str> {
    FAULTS.iter().find(|(known, _)| *known == name).map(|(known, _)| *known)
}

/// The raw answer of a fault that [`known`] gave.
pub(super) fn plan(name: &str, parts: &Parts) -> Plan {
    let build = FAULTS.iter().find(|(known, _)| *known == name).map(|(_, build)| *build);
    build.map_or_else(|| raw(Vec::new(), Last::Fin), |build| build(parts))
}

/// Counts the requests of each tag, over all stubs that share it.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<String, usize>>);

impl Ledger {
    /// Counts a request and returns how many of its tag came before.
    pub(super) fn count(&self, tag: &str) -> usize {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_TAGS && !seen.contains_key(tag) {
            return 0;
        }
        let count = seen.entry(tag.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

fn raw(bytes: Vec<u8>, last: Last) -> Plan {
    Plan { pieces: vec![(Duration::ZERO, bytes)], last }
}

/// The head of an answer of status 200; without a length in `more`, it is chunked.
fn head(parts: &Parts, more: &str) -> String {
    let kind = if parts.stream { "text/event-stream" } else { "application/json" };
    head_of(kind, more)
}

fn head_of(kind: &str, more: &str) -> String {
    let framing = if more.is_empty() { "transfer-encoding: chunked\r\n" } else { more };
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{framing}connection: close\r\n\r\n")
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() {
        return Vec::new();
    }
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn sse(payload: &str) -> Vec<u8> {
    format!("data: {payload}\n\n").into_bytes()
}

fn sse_bytes(payloads: &[String]) -> Vec<u8> {
    payloads.iter().flat_map(|payload| sse(payload)).collect()
}

/// The rest of a good stream with its farewell, or the whole body.
fn good(parts: &Parts) -> Vec<u8> {
    if !parts.stream {
        return parts.whole.clone().into_bytes();
    }
    let all: Vec<String> = parts.before.iter().chain(&parts.after).cloned().collect();
    [sse_bytes(&all), sse("[DONE]")].concat()
}

fn chunked(head: String, body: &[u8]) -> Plan {
    raw([head.as_bytes(), &chunk(body), b"0\r\n\r\n"].concat(), Last::Fin)
}

/// Only the head.
fn open(parts: &Parts, last: Last) -> Plan {
    raw(head(parts, "").into_bytes(), last)
}

/// What is due before the fault, then `fault`, then the end; half of a whole body.
fn midway(parts: &Parts, fault: &[u8], last: Last) -> Plan {
    if !parts.stream {
        let half = &parts.whole.as_bytes()[..parts.whole.len() / 2];
        let fault = if fault.is_empty() { half.to_vec() } else { strip_frame(fault) };
        let end: &[u8] = if last == Last::Fin && fault != half { b"0\r\n\r\n" } else { b"" };
        return raw([head(parts, "").as_bytes(), &chunk(&fault), end].concat(), last);
    }
    let before = [head(parts, "").as_bytes(), &chunk(&sse_bytes(&parts.before))].concat();
    // The pause keeps a reset from overtaking what was sent: a kernel drops what its reader has not fetched.
    let end: &[u8] = if last == Last::Fin && !fault.is_empty() { b"0\r\n\r\n" } else { b"" };
    let then = [chunk(fault).as_slice(), end].concat();
    Plan { pieces: vec![(Duration::ZERO, before), (Duration::from_millis(60), then)], last }
}

/// A payload without its framing, for a body that is not streamed.
fn strip_frame(event: &[u8]) -> Vec<u8> {
    let event = event.strip_prefix(b"data: ").unwrap_or(event);
    event.trim_ascii_end().to_vec()
}

/// The body ends as if it were whole, in the middle of the answer.
fn cut_in_order(parts: &Parts) -> Plan {
    if parts.stream {
        return chunked(head(parts, ""), &sse_bytes(&parts.before));
    }
    chunked(head(parts, ""), &parts.whole.as_bytes()[..parts.whole.len() / 2])
}

/// A whole answer whose end is that of the connection.
fn until_close(parts: &Parts) -> Plan {
    raw([head(parts, "x-stub: 1\r\n").as_bytes(), &good(parts)].concat(), Last::Fin)
}

fn framed(parts: &Parts, end: &str) -> Plan {
    framed_from(parts, end, "")
}

fn framed_from(parts: &Parts, end: &str, start: &str) -> Plan {
    let text = String::from_utf8_lossy(&good(parts)).replace('\n', end);
    chunked(head(parts, ""), format!("{start}{text}").as_bytes())
}

/// Each payload over two `data` lines, parted where JSON allows a line break.
fn multi_line(parts: &Parts) -> Plan {
    let text = String::from_utf8_lossy(&good(parts)).replace("data: {", "data: {\ndata: ");
    chunked(head(parts, ""), text.as_bytes())
}

fn error_event(status: u16) -> Vec<u8> {
    sse(&format!(
        "{{\"error\":{{\"message\":\"scripted error\",\"type\":\"server_error\",\"param\":null,\"code\":{status}}}}}"
    ))
}

fn plain_text(parts: &Parts) -> Plan {
    chunked(head_of("text/plain; charset=utf-8", ""), &good(parts))
}

fn gzip(parts: &Parts) -> Plan {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a vector does not fail.
    let _ = packed.write_all(&good(parts));
    let body = packed.finish().unwrap_or_default();
    let length = format!("content-encoding: gzip\r\ncontent-length: {}\r\n", body.len());
    raw([head(parts, &length).as_bytes(), &body].concat(), Last::Fin)
}

fn huge_line(parts: &Parts) -> Plan {
    let line = [b"data: {\"x\":\"".as_slice(), &vec![b'x'; HUGE_LINE]].concat();
    if parts.stream {
        return midway(parts, &line, Last::Fin);
    }
    chunked(head(parts, ""), &line[6..])
}

/// A good answer with this in place of its usage.
fn with_usage(parts: &Parts, usage: &str) -> Plan {
    let text = String::from_utf8_lossy(&good(parts)).into_owned();
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("\"usage\":{") {
        let (_, after) = after.split_once('}').unwrap_or(("", after));
        out.push_str(&format!("{before}\"usage\":{usage}"));
        rest = after;
    }
    out.push_str(rest);
    chunked(head(parts, ""), out.as_bytes())
}

/// Calls of tools as some servers write them: no index, no id.
fn tools_without_index(parts: &Parts) -> Plan {
    let call = |arguments: &str, named: bool| {
        let name = if named { "\"name\":\"weather\"," } else { "" };
        format!("[{{\"function\":{{{name}\"arguments\":\"{arguments}\"}}}}]")
    };
    if !parts.stream {
        let body = format!(
            "{{\"id\":\"x\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":{}}},\"finish_reason\":\"tool_calls\"}}]}}",
            call("{\\\"city\\\":\\\"Ulm\\\"}", true)
        );
        return chunked(head(parts, ""), body.as_bytes());
    }
    let delta = |calls: String, finish: &str| {
        format!(
            "{{\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{calls},\"finish_reason\":{finish}}}]}}"
        )
    };
    let with = |calls: String| delta(format!("{{\"tool_calls\":{calls}}}"), "null");
    let payloads = [
        with(call("{\\\"city\\\":", true)),
        with(call("\\\"Ulm\\\"}", false)),
        delta("{}".to_owned(), "\"tool_calls\""),
        "[DONE]".to_owned(),
    ];
    chunked(head(parts, ""), &sse_bytes(&payloads))
}

fn prefixed(parts: &Parts, prefix: &[u8]) -> Plan {
    let good = chunked(head(parts, ""), &good(parts));
    let mut pieces = vec![(Duration::ZERO, prefix.to_vec())];
    pieces.extend(good.pieces);
    Plan { pieces, last: good.last }
}

fn redirect() -> Vec<u8> {
    b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        .to_vec()
}

/// A good answer under a length that is `by` bytes off.
fn wrong_length(parts: &Parts, by: isize) -> Plan {
    let body = good(parts);
    let told = body.len().saturating_add_signed(by);
    raw([head(parts, &format!("content-length: {told}\r\n")).as_bytes(), &body].concat(), Last::Fin)
}

/// Every payload but the first words comes twice.
fn twice(parts: &Parts) -> Plan {
    const ONCE: usize = 3;
    let payloads = parts.before.iter().chain(&parts.after).enumerate();
    let all: Vec<String> = payloads
        .flat_map(|(at, one)| std::iter::repeat_n(one.clone(), if at < ONCE { 1 } else { 2 }))
        .collect();
    chunked(head(parts, ""), &[sse_bytes(&all), sse("[DONE]")].concat())
}

fn invalid_utf8(parts: &Parts) -> Plan {
    let bad = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" \xff\xfe\xc3\"},\"finish_reason\":null}]}\n\n";
    if parts.stream {
        return midway(parts, bad, Last::Fin);
    }
    let text = parts.whole.as_bytes();
    let at = parts.whole.find("\"content\":\"").map_or(0, |at| at + "\"content\":\"".len());
    chunked(head(parts, ""), &[&text[..at], b"\xff\xfe\xc3", &text[at..]].concat())
}

fn huge_head(parts: &Parts) -> Plan {
    let more = format!("transfer-encoding: chunked\r\nx-long: {}\r\n", "x".repeat(HUGE_HEAD));
    chunked(head(parts, &more), &good(parts))
}

/// A good stream that goes on after it said that it ended.
fn after_done(parts: &Parts) -> Plan {
    let more: &[u8] = if parts.stream {
        b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"more\"}}]}\n\n"
    } else {
        b" \n"
    };
    chunked(head(parts, ""), &[good(parts).as_slice(), more].concat())
}

/// A stream where none was asked for, a whole body where a stream was.
fn other_form(parts: &Parts) -> Plan {
    if parts.stream {
        return chunked(head_of("application/json", ""), parts.whole.as_bytes());
    }
    let payload = sse(&parts.whole);
    chunked(head_of("text/event-stream", ""), &[payload, sse("[DONE]")].concat())
}

fn bad_chunk_size(parts: &Parts) -> Plan {
    let before = if parts.stream { chunk(&sse_bytes(&parts.before)) } else { Vec::new() };
    let pieces = vec![
        (Duration::ZERO, [head(parts, "").as_bytes(), &before].concat()),
        (Duration::from_millis(60), b"zz\r\nfoo".to_vec()),
    ];
    Plan { pieces, last: Last::Fin }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(stream: bool) -> Parts {
        Parts {
            stream,
            before: vec!["{\"a\":1}".into()],
            after: vec!["{\"b\":1}".into(), "{\"c\":1}".into(), "{\"usage\":{\"n\":2}}".into()],
            whole: "{\"choices\":[{\"message\":{\"content\":\"hi\"}}],\"usage\":{\"n\":2}}".into(),
        }
    }

    #[test]
    fn every_fault_is_told_from_a_good_answer() {
        for stream in [false, true] {
            let good = chunked(head(&parts(stream), ""), &good(&parts(stream)));
            for (name, build) in FAULTS {
                let plan = build(&parts(stream));
                let only_streams = ["cr_only", "multi_line", "chunks_twice"].contains(name) && !stream;
                let same = plan.last == good.last && plan.pieces == good.pieces;
                assert!(!same || only_streams, "{name} is no fault");
            }
        }
    }

    #[test]
    fn a_tag_is_counted_over_all_who_share_the_ledger() {
        let ledger = Ledger::default();
        assert_eq!([ledger.count("a"), ledger.count("b"), ledger.count("a")], [0, 0, 1]);
    }

    #[test]
    fn usage_is_replaced_and_nothing_else() {
        let plan = with_usage(&parts(true), "null");
        let text = String::from_utf8_lossy(&plan.pieces[0].1).into_owned();
        assert!(text.contains("{\"usage\":null}") && text.contains("{\"a\":1}"), "{text}");
    }
}
