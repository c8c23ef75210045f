//! Incremental decoder of server-sent events, or of JSON lines: bytes in, payloads out.
//!
//! Follows the WHATWG parsing rules byte by byte (LF, CR and CRLF endings, a leading byte order mark, comments,
//! several `data` lines joined by LF), because upstreams differ in all of these and reads split anywhere. The
//! fields `event`, `id` and `retry` mean nothing to an inference stream and are dropped. A payload that lies
//! within one read is a slice of it; only what spans reads is copied. Lines and events are bounded, so a
//! peer that never ends a line costs a known amount of memory.

use bytes::{Buf, Bytes, BytesMut};

/// Longest line in bytes, without its ending: two orders of magnitude above a chunk with 20 log-probabilities.
pub const MAX_LINE: usize = 1024 * 1024;

/// Largest event in bytes, over all its `data` lines.
pub const MAX_EVENT: usize = 8 * 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a stream of events consists of, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The joined `data` lines of one event.
    Data(Bytes),
    /// A comment line: no content, but a sign of life.
    Comment,
}

/// Input that exceeds a bound; the decoder is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line longer than [`MAX_LINE`].
    #[error("a line of the event stream exceeds {MAX_LINE} bytes")]
    LineTooLong,
    /// An event larger than [`MAX_EVENT`].
    #[error("an event of the event stream exceeds {MAX_EVENT} bytes")]
    EventTooLarge,
}

/// The `data` lines seen since the last event; the first stays a slice of the input.
#[derive(Debug, Default)]
enum Payload {
    #[default]
    None,
    One(Bytes),
    Joined(BytesMut),
}

impl Payload {
    fn len(&self) -> usize {
        match self {
            Payload::None => 0,
            Payload::One(line) => line.len(),
            Payload::Joined(lines) => lines.len(),
        }
    }

    fn push(self, line: Bytes) -> Self {
        let mut lines = match self {
            Payload::None => return Payload::One(line),
            Payload::One(first) => BytesMut::from(first),
            Payload::Joined(lines) => lines,
        };
        lines.extend_from_slice(b"\n");
        lines.extend_from_slice(&line);
        Payload::Joined(lines)
    }
}

/// How payloads are laid out in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// Server-sent events.
    #[default]
    Events,
    /// One payload a line, as Ollama's own API does it; empty lines are nothing.
    Lines,
}

/// Decoder state between reads.
///
/// Feed it with [`push`](Decoder::push), then take items with [`next_item`](Decoder::next_item) until it returns
/// `None`. An event without its closing empty line is never delivered.
#[derive(Debug, Default)]
pub struct Decoder {
    input: Bytes,
    /// Start of a line whose end has not been read yet.
    carry: BytesMut,
    payload: Payload,
    /// The last line ended with CR, so an LF that follows belongs to it.
    after_cr: bool,
    past_first_line: bool,
    framing: Framing,
}

impl Decoder {
    /// Returns a decoder at the start of a stream of events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a decoder at the start of a stream that is laid out otherwise.
    pub fn of(framing: Framing) -> Self {
        Self { framing, ..Self::default() }
    }

    /// Adds the next read. All items of the one before should have been taken; what is left is copied.
    pub fn push(&mut self, bytes: Bytes) {
        if self.input.is_empty() {
            self.input = bytes;
        } else {
            let mut joined = BytesMut::from(std::mem::take(&mut self.input));
            joined.extend_from_slice(&bytes);
            self.input = joined.freeze();
        }
    }

    /// Takes the next item, or `None` when more input is needed.
    ///
    /// # Errors
    /// A bound was exceeded; the stream has to be given up.
    pub fn next_item(&mut self) -> Result<Option<Item>, Error> {
        while let Some(line) = self.next_line()? {
            if let Some(item) = self.take_line(line)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// Cuts one line without its ending off the input.
    fn next_line(&mut self) -> Result<Option<Bytes>, Error> {
        if self.after_cr && !self.input.is_empty() {
            self.after_cr = false;
            if self.input[0] == b'\n' {
                self.input.advance(1);
            }
        }
        let end = self.input.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        if self.carry.len() + end.unwrap_or(self.input.len()) > MAX_LINE {
            return Err(Error::LineTooLong);
        }
        let Some(end) = end else {
            self.carry.extend_from_slice(&self.input);
            self.input.clear();
            return Ok(None);
        };
        let mut line = self.input.split_to(end);
        if !self.carry.is_empty() {
            self.carry.extend_from_slice(&line);
            line = self.carry.split().freeze();
        }
        self.after_cr = self.input[0] == b'\r';
        self.input.advance(1);
        if !std::mem::replace(&mut self.past_first_line, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.advance(BYTE_ORDER_MARK.len());
        }
        Ok(Some(line))
    }

    /// Interprets one line; an empty one closes the event.
    fn take_line(&mut self, mut line: Bytes) -> Result<Option<Item>, Error> {
        if self.framing == Framing::Lines {
            return Ok((!line.is_empty()).then_some(Item::Data(line)));
        }
        if line.is_empty() {
            return Ok(match std::mem::take(&mut self.payload) {
                Payload::None => None,
                Payload::One(line) => Some(Item::Data(line)),
                Payload::Joined(lines) => Some(Item::Data(lines.freeze())),
            });
        }
        if line[0] == b':' {
            return Ok(Some(Item::Comment));
        }
        match line.strip_prefix(b"data") {
            Some([b':', b' ', ..]) => line.advance(b"data: ".len()),
            Some([b':', ..]) => line.advance(b"data:".len()),
            Some([]) => line.clear(),
            _ => return Ok(None),
        }
        if self.payload.len() + line.len() >= MAX_EVENT {
            return Err(Error::EventTooLarge);
        }
        self.payload = std::mem::take(&mut self.payload).push(line);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(text: &str) -> Item {
        Item::Data(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn decode<'a>(reads: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Item>, Error> {
        let mut decoder = Decoder::new();
        let mut items = Vec::new();
        for read in reads {
            decoder.push(Bytes::copy_from_slice(read));
            while let Some(item) = decoder.next_item()? {
                items.push(item);
            }
        }
        Ok(items)
    }

    #[test]
    fn json_lines_split_anywhere_are_the_same_payloads() {
        let text = b"{\"a\":1}\n\r\ndata: x\n: y\n{\"b\":2}\n{\"cut\"";
        for at in 0..=text.len() {
            let mut decoder = Decoder::of(Framing::Lines);
            let mut items = Vec::new();
            for read in [&text[..at], &text[at..]] {
                decoder.push(Bytes::copy_from_slice(read));
                while let Some(item) = decoder.next_item().unwrap() {
                    items.push(item);
                }
            }
            assert_eq!(items, [data("{\"a\":1}"), data("data: x"), data(": y"), data("{\"b\":2}")], "{at}");
        }
    }

    /// Inputs as seen from real servers and from the standard's examples, with what they mean.
    fn fixtures() -> Vec<(&'static str, Vec<Item>)> {
        vec![
            ("", vec![]),
            ("data: a\n\n", vec![data("a")]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", vec![data("a"), data("b")]),
            ("data: a\r\rdata: b\r\r", vec![data("a"), data("b")]),
            ("data: a\n\r\ndata: b\r\n\n", vec![data("a"), data("b")]),
            ("\u{feff}data: a\n\n", vec![data("a")]),
            ("data: a\n\n\u{feff}data: b\n\n", vec![data("a")]),
            ("data:a\n\ndata:  b\n\n", vec![data("a"), data(" b")]),
            ("data: one\ndata: two\ndata:\ndata: four\n\n", vec![data("one\ntwo\n\nfour")]),
            ("data\n\n", vec![data("")]),
            ("data\ndata\n\n", vec![data("\n")]),
            ("database: x\n\n", vec![]),
            (": ping\n\ndata: a\n\n:\n", vec![Item::Comment, data("a"), Item::Comment]),
            ("data: a\n: in between\ndata: b\n\n", vec![Item::Comment, data("a\nb")]),
            ("event: x\nid: 3\nretry: 10\ndata: {\"a\": 1}\n\n", vec![data("{\"a\": 1}")]),
            ("\n\n\ndata: a\n\n\n\n", vec![data("a")]),
            ("data: never finished\n", vec![]),
            ("data: never finished", vec![]),
            ("data: 日本🦀\n\ndata: [DONE]\n\n", vec![data("日本🦀"), data("[DONE]")]),
        ]
    }

    #[test]
    fn every_split_of_every_fixture_gives_the_same_items() {
        for (text, expected) in fixtures() {
            let bytes = text.as_bytes();
            assert_eq!(decode([bytes]).unwrap(), expected, "{text:?} whole");
            assert_eq!(decode(bytes.chunks(1)).unwrap(), expected, "{text:?} byte by byte");
            for first in 0..=bytes.len() {
                for second in first..=bytes.len() {
                    let reads = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                    assert_eq!(decode(reads).unwrap(), expected, "{text:?} split at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn a_payload_within_one_read_is_not_copied() {
        let read = Bytes::from_static(b"data: abc\n\n");
        let mut decoder = Decoder::new();
        decoder.push(read.clone());
        let Some(Item::Data(payload)) = decoder.next_item().unwrap() else { panic!("no payload") };
        assert_eq!(payload.as_ptr(), read[6..].as_ptr());
    }

    #[test]
    fn input_pushed_before_the_last_was_used_up_is_kept() {
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from_static(b"data: a\n\ndata: "));
        decoder.push(Bytes::from_static(b"b\n\n"));
        assert_eq!(decoder.next_item().unwrap(), Some(data("a")));
        assert_eq!(decoder.next_item().unwrap(), Some(data("b")));
    }

    #[test]
    fn a_line_at_the_bound_passes_and_one_above_fails_however_it_is_split() {
        let line = |length: usize| {
            let mut line = b"data: ".to_vec();
            line.resize(length, b'x');
            line.extend_from_slice(b"\n\n");
            line
        };
        for size in [MAX_LINE + 2, 64 * 1024, 4096] {
            assert_eq!(decode(line(MAX_LINE).chunks(size)).unwrap().len(), 1);
            assert_eq!(decode(line(MAX_LINE + 1).chunks(size)), Err(Error::LineTooLong));
        }
        let endless = vec![b'x'; MAX_LINE + 1];
        assert_eq!(decode(endless.chunks(4096)), Err(Error::LineTooLong));
    }

    #[test]
    fn an_event_above_the_bound_fails() {
        let mut line = b"data: ".to_vec();
        line.resize(MAX_LINE / 2, b'x');
        line.push(b'\n');
        let lines = vec![line; 17];
        assert_eq!(decode(lines.iter().map(Vec::as_slice)), Err(Error::EventTooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_alike_whole_and_split(
            text in "(data: ?[ab]{0,3}|:|event|\r|\n|\r\n|\n\n){0,12}",
            cuts in prop::collection::vec(0usize..80, 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let reads = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(decode(reads), decode([bytes]));
        }
    }
}
