//! Is this very request still being worked on? A small question on the connection that carries it.
//!
//! A connection that lives proves little: keep-alives tolerate seconds of silence, since phones' radios sleep, and a
//! stopped process keeps its connections until they run out. So whoever waits for an answer asks, on a stream of its
//! own, for the request by its id. The answer comes from the task that serves streams, so that a process which is
//! stopped, or whose runtime is stuck, gives none. No id asks for the process alone: devices look after their routers
//! that way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use shoal_proto::{PulseReply, PulseRequest};

use super::Error;
use super::frames::{FrameReader, FrameWriter, StreamKind};
use crate::ids::NodeId;

/// Largest question or answer, bytes.
const PULSE_LIMIT: usize = 1024;
/// Longest id that is remembered; ours have 45 characters.
const MAX_ID: usize = 128;
/// Longest wait for a question once its stream is open.
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);

/// What the far end says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// It works on it.
    Working,
    /// It knows nothing of it (any more).
    Unknown,
    /// Its version cannot be asked.
    Unasked,
}

/// What a connection knows of its other end and of the way there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Vitals {
    /// Datagrams that came so far. They are sent by the process, not by its system: where more come, it runs.
    pub datagrams: u64,
    /// Round trip, smoothed; a third of a second before the first was measured.
    pub rtt: Duration,
    /// Share of the packets sent that were lost since the connection began, 0 to 1.
    pub loss: f64,
}

impl Vitals {
    pub(super) fn of(connection: &Connection) -> Self {
        let stats = connection.stats();
        let loss = stats.path.lost_packets as f64 / stats.path.sent_packets.max(1) as f64;
        Self { datagrams: stats.udp_rx.datagrams, rtt: stats.path.rtt, loss }
    }
}

/// Inferences that this process works on, by who asked and the request's id. Clones share the list.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkList(Arc<Mutex<BTreeMap<Asked, u32>>>);

type Asked = (NodeId, String);

/// One inference on the list until dropped.
#[derive(Debug)]
pub(super) struct Listed {
    list: WorkList,
    asked: Option<Asked>,
}

impl WorkList {
    /// Enters an inference. One with an absurd id is not found later, which its asker then sees.
    pub(super) fn enter(&self, from: &NodeId, id: &str) -> Listed {
        let asked = (id.len() <= MAX_ID).then(|| (from.clone(), id.to_owned()));
        if let Some(asked) = &asked {
            *self.lock().entry(asked.clone()).or_insert(0) += 1;
        }
        Listed { list: self.clone(), asked }
    }

    fn has(&self, from: &NodeId, id: &str) -> bool {
        id.is_empty() || self.lock().contains_key(&(from.clone(), id.to_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Asked, u32>> {
        // Counts: a poisoned lock still holds valid ones.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let Some(asked) = self.asked.take() else { return };
        let mut list = self.list.lock();
        if let Some(count) = list.get_mut(&asked) {
            *count -= 1;
            if *count == 0 {
                list.remove(&asked);
            }
        }
    }
}

/// Answers one question.
pub(super) async fn answer(
    from: &NodeId,
    mut writer: FrameWriter,
    mut reader: FrameReader,
    list: &WorkList,
) -> Result<(), Error> {
    let question = tokio::time::timeout(QUESTION_DEADLINE, reader.next::<PulseRequest>(PULSE_LIMIT)).await;
    let question = question.unwrap_or(Ok(None))?.ok_or(Error::Truncated)?;
    let reply = PulseReply { working: list.has(from, &question.request_id) };
    writer.send_within(&reply, PULSE_LIMIT, QUESTION_DEADLINE).await?;
    writer.finish()
}

/// Asks the far end of a connection about a request of ours; an empty id asks whether it is there at all. Waits for
/// ever where nobody answers: the caller bounds it.
///
/// # Errors
/// The connection is gone.
pub(super) async fn ask(connection: Connection, request_id: String) -> Result<Pulse, Error> {
    let (send, receive) = connection.open_bi().await?;
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    let asked = async {
        writer.kind(StreamKind::Pulse).await?;
        writer.send(&PulseRequest { request_id }, PULSE_LIMIT).await?;
        writer.finish()?;
        reader.next::<PulseReply>(PULSE_LIMIT).await?.ok_or(Error::Truncated)
    };
    match asked.await {
        Ok(PulseReply { working: true }) => Ok(Pulse::Working),
        Ok(PulseReply { working: false }) => Ok(Pulse::Unknown),
        Err(Error::Connection(lost)) => Err(Error::Connection(lost)),
        // It refused the kind of stream, so it is there.
        Err(_) => Ok(Pulse::Unasked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_as_long_as_any_of_its_attempts_runs() {
        let list = WorkList::default();
        let (a, b) = (NodeId::from_spki(b"a"), NodeId::from_spki(b"b"));
        let first = list.enter(&a, "req_1");
        let second = list.enter(&a, "req_1");
        assert!(list.has(&a, "req_1") && list.has(&a, ""));
        assert!(!list.has(&b, "req_1"), "who did not ask learns nothing");
        drop(first);
        assert!(list.has(&a, "req_1"));
        drop(second);
        assert!(!list.has(&a, "req_1"));
        let absurd = list.enter(&a, &"x".repeat(MAX_ID + 1));
        assert!(list.lock().is_empty());
        drop(absurd);
    }
}
