//! Framing of streams is always ours: only payloads of upstreams cross, never their events, ids or comments.

use bytes::{BufMut, Bytes, BytesMut};

use crate::pipeline::ticket::Ticket;

/// Comment that keeps a connection open while nothing was said yet; clients skip it.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Last line of a stream that ended well.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Frames one payload as an SSE event. A payload holds no line break (JSON on one line).
pub fn frame(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 8);
    out.put_slice(b"data: ");
    // An upstream that pretty-prints its JSON would otherwise break the framing.
    if payload.iter().any(|b| matches!(b, b'\n' | b'\r')) {
        out.extend(payload.iter().filter(|b| !matches!(b, b'\n' | b'\r')));
    } else {
        out.put_slice(payload);
    }
    out.put_slice(b"\n\n");
    out.freeze()
}

/// Frames a payload as a named SSE event. A payload that we wrote holds no line break.
pub fn event(name: &str, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + name.len() + 18);
    out.put_slice(b"event: ");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\ndata: ");
    out.put_slice(payload);
    out.put_slice(b"\n\n");
    out.freeze()
}

/// Adds a member to a JSON object given as bytes, before its closing brace.
///
/// Returns the object unchanged when it does not end with a brace.
pub fn splice(object: &[u8], key: &str, value: &[u8]) -> Bytes {
    let Some(end) = object.iter().rposition(|b| *b == b'}') else { return Bytes::copy_from_slice(object) };
    let empty = object[..end].iter().rev().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    let mut out = BytesMut::with_capacity(object.len() + key.len() + value.len() + 4);
    out.put_slice(object[..end].trim_ascii_end());
    if !empty {
        out.put_u8(b',');
    }
    out.put_u8(b'"');
    out.put_slice(key.as_bytes());
    out.put_slice(b"\":");
    out.put_slice(value);
    out.put_u8(b'}');
    out.freeze()
}

/// Adds to an answer's JSON object what the request's ticket says of it.
pub fn describe(object: &[u8], ticket: &Ticket) -> Bytes {
    let described = splice(object, "shoal_metadata", &ticket.metadata());
    match ticket.lfo_metadata() {
        Some(metadata) => splice(&described, "lfo_metadata", &metadata),
        None => described,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_with_line_breaks_stays_one_event() {
        assert_eq!(&frame(b"{\"a\":\r\n1}")[..], b"data: {\"a\":1}\n\n");
    }

    #[test]
    fn splice_adds_to_full_and_empty_objects() {
        assert_eq!(&splice(b"{\"a\":1}", "b", b"2")[..], b"{\"a\":1,\"b\":2}");
        assert_eq!(&splice(b"{ }\n", "b", b"2")[..], b"{\"b\":2}");
        assert_eq!(&splice(b"nonsense", "b", b"2")[..], b"nonsense");
    }
}
