//! Listens to a far end that may be hung: in each second of silence it is asked whether it still works on the request.
//!
//! A process that is stopped keeps its connection for as long as that is believed, and a first byte may take minutes,
//! so neither bound notices it. While nothing was given to the client an unanswered question ends the attempt after
//! less than 3 s of silence: another host costs little. After the commit point an answer cannot move, so its host is
//! given the time in which phones' radios sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shoal_proto::InferFrame;
use tokio::time::Instant;

use super::tunnel::{Frames, Interrupted};

/// Silence after which the far end is asked, and asked again.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// Wait for its answer while the request may still move.
const MOVABLE_WAIT: Duration = Duration::from_millis(1_750);
/// Wait for its answer when it may not.
const COMMITTED_WAIT: Duration = Duration::from_secs(8);
/// A timer that fires so much late says that this process was not running: then the other end may have answered.
const STARVED: Duration = Duration::from_millis(250);
/// Waits that are begun anew because of that.
const MAX_EXCUSES: u32 = 3;
/// How far into a wait signs of life are counted from: those before it may be the last.
const LOOK: Duration = Duration::from_millis(750);
/// Time in which a request arrives at the far end, and bytes of its body that arrive in a second on a poor link.
const ARRIVAL: Duration = Duration::from_secs(2);
const ARRIVAL_RATE: f64 = 50e3;
/// Answers in a row by which the far end says that it knows nothing of the request.
const MAX_UNKNOWN: u32 = 2;

/// Whether the answer that a request gets may still come from elsewhere; shared by all who look after the request.
#[derive(Debug, Clone, Default)]
pub struct Commitment(Arc<AtomicBool>);

impl Commitment {
    /// Notes that no other host can take over any more.
    pub fn commit(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn wait(&self) -> Duration {
        if self.0.load(Ordering::Relaxed) { COMMITTED_WAIT } else { MOVABLE_WAIT }
    }
}

/// What the far end says of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// It works on it.
    Working,
    /// It knows nothing of it.
    Unknown,
    /// It cannot be asked.
    Unasked,
}

/// The far end does not work on the request any more; why, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// It does not answer.
    Silent,
    /// It says that it has no such request.
    Unknown,
}

/// How a request's answer is listened for.
#[derive(Debug, Clone)]
pub(super) struct Listening {
    commitment: Commitment,
    /// Until then the far end may not have all of the request, and so not know of it.
    arriving_until: Instant,
}

impl Listening {
    /// Begins when a request with a body of so many bytes was handed to the connection.
    pub(super) fn new(commitment: Commitment, bytes: usize) -> Self {
        let arriving = ARRIVAL + Duration::from_secs_f64(bytes as f64 / ARRIVAL_RATE);
        Self { commitment, arriving_until: Instant::now() + arriving }
    }
}

/// Waits for the next frame for as long as the far end says that it works on it.
pub(super) async fn next_frame<F: Frames>(
    frames: &mut F,
    listening: &Listening,
) -> Result<Result<Option<InferFrame>, Interrupted>, Lost> {
    let mut unknown = 0;
    loop {
        if let Ok(frame) = tokio::time::timeout(ASK_AFTER, frames.next()).await {
            return Ok(frame);
        }
        let mut answer = frames.pulse();
        let asked = Instant::now();
        let mut excuses = 0;
        let answer = loop {
            let (look, until) = (Instant::now() + LOOK, Instant::now() + listening.commitment.wait());
            tokio::select! {
                biased;
                frame = frames.next() => return Ok(frame),
                answer = &mut answer => break Some(answer),
                () = tokio::time::sleep_until(look) => {}
            }
            let heard = frames.heard();
            tokio::select! {
                biased;
                frame = frames.next() => return Ok(frame),
                answer = &mut answer => break Some(answer),
                () = tokio::time::sleep_until(until) => {}
            }
            // Datagrams of the last second say that its process runs, behind a link that is full perhaps.
            let it_runs = frames.heard() != heard && asked.elapsed() < COMMITTED_WAIT;
            let starved = until.elapsed() >= STARVED && excuses < MAX_EXCUSES;
            if !(it_runs || starved) {
                break None;
            }
            excuses += u32::from(starved);
            metrics::counter!("shoal_pulses_excused_total", "why" => if starved { "starved" } else { "running" })
                .increment(1);
        };
        match answer {
            Some(Pulse::Working) => unknown = 0,
            Some(Pulse::Unasked) => return Ok(frames.next().await),
            Some(Pulse::Unknown) if Instant::now() < listening.arriving_until => {}
            Some(Pulse::Unknown) => {
                unknown += 1;
                if unknown >= MAX_UNKNOWN {
                    return Err(Lost::Unknown);
                }
            }
            None => return Err(Lost::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;

    /// A far end that says nothing of its own accord; answers questions in turn, then no more.
    struct Quiet(std::sync::Mutex<Vec<Pulse>>);

    impl Quiet {
        fn that_says(answers: &[Pulse]) -> Self {
            Self(std::sync::Mutex::new(answers.iter().rev().copied().collect()))
        }
    }

    impl Frames for Quiet {
        async fn next(&mut self) -> Result<Option<InferFrame>, Interrupted> {
            std::future::pending().await
        }

        fn pulse(&self) -> BoxFuture<'static, Pulse> {
            match self.0.lock().unwrap().pop() {
                Some(pulse) => Box::pin(std::future::ready(pulse)),
                None => Box::pin(std::future::pending()),
            }
        }
    }

    async fn lost_after(answers: &[Pulse], commitment: Commitment) -> (Lost, Duration) {
        let began = Instant::now();
        let lost =
            next_frame(&mut Quiet::that_says(answers), &Listening::new(commitment, 0)).await.unwrap_err();
        (lost, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_stops_answering_is_given_up_in_less_than_three_seconds() {
        let (lost, after) = lost_after(&[], Commitment::default()).await;
        assert_eq!((lost, after), (Lost::Silent, ASK_AFTER + MOVABLE_WAIT));
        assert!(after < Duration::from_secs(3));
        let (_, after) = lost_after(&[Pulse::Working; 100], Commitment::default()).await;
        assert_eq!(after, ASK_AFTER * 101 + MOVABLE_WAIT, "not while it works");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_cannot_move_is_waited_for_longer() {
        let commitment = Commitment::default();
        commitment.commit();
        let (lost, after) = lost_after(&[], commitment).await;
        assert_eq!((lost, after), (Lost::Silent, ASK_AFTER + COMMITTED_WAIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_knows_nothing_of_the_request_is_given_up_at_its_second_word() {
        let words = [Pulse::Working, Pulse::Working, Pulse::Unknown, Pulse::Unknown];
        let (lost, after) = lost_after(&words, Commitment::default()).await;
        assert_eq!((lost, after), (Lost::Unknown, ASK_AFTER * 4));
        // As long as it is on its way, it is not missed.
        let listening = Listening::new(Commitment::default(), 500_000);
        let mut quiet = Quiet::that_says(&[Pulse::Unknown; 12]);
        let frame = tokio::time::timeout(ASK_AFTER * 11, next_frame(&mut quiet, &listening));
        assert!(frame.await.is_err(), "10 s at 50 kB/s, and 2 s for the way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_cannot_be_asked_is_listened_to_as_before() {
        let mut quiet = Quiet::that_says(&[Pulse::Unasked]);
        let listening = Listening::new(Commitment::default(), 0);
        let waited = next_frame(&mut quiet, &listening);
        assert!(tokio::time::timeout(Duration::from_secs(3600), waited).await.is_err());
    }
}
