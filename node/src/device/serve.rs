//! Answers one inference that came over the mesh, by this device's engines.
//!
//! The opener's cancel is raced against every wait: for the upstream's first word, for each next event, and (by
//! the failing send) while the opener reads slowly. Losing that race drops the upstream's future or
//! events, which cancels the work wherever it runs.

use std::time::Duration;

use futures_util::StreamExt;
use shoal_proto::InferRequest;
use tower::ServiceExt;

use super::slots::{Slot, Slots};
use crate::sound;
use crate::upstream::reply::{Gone, Reply, Respond};
use crate::upstream::wire::from_wire;
use crate::upstream::{BoxUpstream, Event, UpstreamError, UpstreamRequest, UpstreamResponse};

/// What an opener is asked to wait when all slots are taken: about a short answer's length.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How an answer ended, for counters and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Delivered, to the engine's own end.
    Complete,
    /// Delivered, but the engine broke off.
    Cut,
    /// An error was delivered.
    Failed,
    /// Refused for want of a slot.
    Refused,
    /// The opener cancelled or went away.
    Cancelled,
}

/// Runs `request` on `upstream` and sends the answer, within `limit` answers at a time counted by `slots`.
pub async fn answer<R: Respond>(
    request: InferRequest,
    responder: R,
    upstream: BoxUpstream,
    slots: &Slots,
    limit: u32,
) -> Ending {
    let reply = Reply::new(responder);
    let Some(slot) = slots.try_take(limit) else {
        return told(reply.fail(&overloaded(slots.is_closed())).await, Ending::Refused);
    };
    match from_wire(request) {
        Ok(request) => run(request, reply, upstream, slot).await,
        Err(error) => told(reply.fail(&error).await, Ending::Failed),
    }
}

fn overloaded(leaving: bool) -> UpstreamError {
    let message =
        if leaving { "this device is about to leave" } else { "all slots of this device are taken" };
    UpstreamError { retry_after: Some(RETRY_AFTER), ..UpstreamError::retryable(503, "overloaded", message) }
}

async fn run<R: Respond>(
    request: UpstreamRequest,
    mut reply: Reply<R>,
    upstream: BoxUpstream,
    slot: Slot,
) -> Ending {
    let (stream, is_sound) = (request.stream, request.path.is_sound());
    let answered = tokio::select! {
        biased;
        () = reply.cancelled() => return Ending::Cancelled,
        answered = upstream.oneshot(request) => answered,
    };
    let UpstreamResponse { served_by, media, mut events } = match answered {
        Ok(answer) => answer,
        Err(error) => return told(reply.fail(&error).await, Ending::Failed),
    };
    // What a sound is told in is what it is; of texts the request says it.
    let stream = if is_sound { sound::is_events(media.as_deref()) } else { stream };
    if reply.head_of(served_by, String::new(), media.as_deref()).await.is_err() {
        return Ending::Cancelled;
    }
    loop {
        let event = tokio::select! {
            biased;
            () = reply.cancelled() => return Ending::Cancelled,
            event = events.next() => event,
        };
        let sent = match event {
            Some(Ok(Event::Chunk(bytes))) if stream => reply.payload(bytes).await,
            Some(Ok(Event::Chunk(bytes))) => reply.body(bytes).await.map(Ok),
            Some(Ok(Event::End { complete })) => {
                let ending = if complete { Ending::Complete } else { Ending::Cut };
                // Before the asker knows: its next request may be here at once, and must find them free.
                drop((events, slot));
                return told(reply.end(complete).await, ending);
            }
            Some(Err(error)) => Ok(Err(error)),
            // An upstream that forgets its end has not ended well.
            None => return told(reply.end(false).await, Ending::Cut),
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return told(reply.fail(&error).await, Ending::Failed),
            Err(Gone) => return Ending::Cancelled,
        }
    }
}

fn told(sent: Result<(), Gone>, ending: Ending) -> Ending {
    sent.map_or(Ending::Cancelled, |()| ending)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use shoal_proto::InferFrame;
    use shoal_proto::infer_frame::Kind;

    use super::*;
    use crate::device::testing::chat;
    use crate::upstream::wire::to_wire;
    use crate::upstream::{ServedBy, UpstreamFuture};

    /// Notes how many slots are taken as each frame leaves.
    struct Asker {
        slots: Slots,
        taken: Arc<Mutex<Vec<(bool, u32)>>>,
    }

    impl Respond for Asker {
        async fn send(&mut self, frame: InferFrame) -> Result<(), Gone> {
            let is_end = matches!(frame.kind, Some(Kind::End(_)));
            self.taken.lock().unwrap().push((is_end, self.slots.taken()));
            Ok(())
        }

        async fn finish(self) -> Result<(), Gone> {
            Ok(())
        }

        async fn cancelled(&mut self) {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_slot_is_free_before_the_asker_learns_that_its_answer_is_whole() {
        let answers = |_: UpstreamRequest| -> UpstreamFuture {
            Box::pin(async {
                let served_by = ServedBy { upstream: "e".into(), upstream_id: "e".into(), model: "m".into() };
                let events = [Ok(Event::Chunk("{}".into())), Ok(Event::End { complete: true })];
                let events = futures_util::stream::iter(events).boxed();
                Ok(UpstreamResponse { served_by, media: None, events })
            })
        };
        let (slots, taken) = (Slots::default(), Arc::default());
        let asker = Asker { slots: slots.clone(), taken: Arc::clone(&taken) };
        let upstream = BoxUpstream::new(tower::service_fn(answers));
        let ending = answer(to_wire(&chat(true)), asker, upstream, &slots, 1).await;
        assert_eq!(ending, Ending::Complete);
        let taken = taken.lock().unwrap();
        assert_eq!(taken.first(), Some(&(false, 1)), "taken while it runs");
        assert_eq!(taken.last(), Some(&(true, 0)), "{taken:?}");
    }
}
