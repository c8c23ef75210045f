//! A small reader of server-sent events, as strict as a client that has to judge a server.
//!
//! WHATWG's rules for lines (LF, CR LF, CR) and `data:` fields; other fields are counted, not interpreted.

/// Longest line kept, in bytes; far above any chunk a server of ours sends.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Takes bytes in any split, gives whole `data` payloads.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    data: Option<String>,
    after_cr: bool,
    /// Lines that were comments or fields other than `data`.
    pub other_lines: u64,
}

/// A line longer than the reader keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the event stream is longer than {MAX_LINE_BYTES} bytes")]
pub struct LineTooLong;

impl Reader {
    /// Feeds bytes and appends each completed event's payload to `events`.
    ///
    /// # Errors
    /// When a line outgrows the bound.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<String>) -> Result<(), LineTooLong> {
        for byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' => self.end_line(events),
                b'\r' => {
                    self.after_cr = true;
                    self.end_line(events);
                }
                _ if self.line.len() >= MAX_LINE_BYTES => return Err(LineTooLong),
                _ => self.line.push(*byte),
            }
        }
        Ok(())
    }

    /// Whether the stream stopped inside an event.
    pub fn is_mid_event(&self) -> bool {
        !self.line.is_empty() || self.data.is_some()
    }

    fn end_line(&mut self, events: &mut Vec<String>) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            events.extend(self.data.take());
            return;
        }
        let line = String::from_utf8_lossy(&line);
        match line.strip_prefix("data:") {
            Some(value) => {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.data = Some(value.to_owned()),
                }
            }
            None => self.other_lines += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> (Vec<String>, Reader) {
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        for piece in pieces {
            reader.push(piece.as_bytes(), &mut events).expect("short lines");
        }
        (events, reader)
    }

    #[test]
    fn every_line_ending_and_every_split_gives_the_same_events() {
        for text in ["data: a\n\ndata: b\n\n", "data: a\r\n\r\ndata: b\r\n\r\n", "data:a\r\rdata:b\r\r"] {
            for at in 0..=text.len() {
                let (events, reader) = read(&[&text[..at], &text[at..]]);
                assert_eq!(events, ["a", "b"], "{text:?} split at {at}");
                assert!(!reader.is_mid_event());
            }
        }
    }

    #[test]
    fn comments_and_other_fields_are_not_events() {
        let (events, reader) = read(&[": hi\n\nevent: x\nid: 3\ndata: a\ndata: b\n\n"]);
        assert_eq!(events, ["a\nb"]);
        assert_eq!(reader.other_lines, 3);
    }

    #[test]
    fn a_stream_that_stops_inside_an_event_says_so() {
        assert!(read(&["data: a\n"]).1.is_mid_event());
        assert!(read(&["da"]).1.is_mid_event());
    }
}
