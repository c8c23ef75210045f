//! Listens to a far end that may be dead or hung: in each moment of silence it is asked whether it still works on the
//! request, and a request is taken away from a host that says nothing at all for about a second.
//!
//! A process that is killed or stopped keeps its connection for as long as that is believed, and a first byte may take
//! minutes, so neither bound notices it. Silence is counted in short ticks of our own timer, not by the clock: where this
//! process is late itself, the other end may have spoken. Any datagram of the connection breaks it, whichever request
//! it is for. How much of it is borne follows from what would be lost ([`Commitment`]), from what kind of host it is
//! (phones' radios sleep) and from the path's own round trip and losses. Only the request leaves; the connection stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use shoal_cluster::quic::Vitals;
use shoal_proto::InferFrame;
use tokio::time::Instant;

use super::tunnel::{Frames, Interrupted};

/// Time since the far end last spoke of this request after which it is asked for it, however lively its connection is.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// Silence of a host that cannot be replaced: nothing is gained by giving it up sooner.
const ALONE: Duration = Duration::from_secs(9);
/// Time in which a far end whose datagrams come must also answer: its transport runs, but maybe nothing above it.
const STUCK: Duration = Duration::from_secs(9);
/// A tick that comes so much late says that this process was not running; it is no silence of the other end.
const STARVED: Duration = Duration::from_millis(150);
/// Ticks that are passed over because of that.
const MAX_EXCUSES: u32 = 20;
/// Questions under way at once; each is a stream.
const MAX_QUESTIONS: usize = 8;
/// Round trips of silence that are no sign of anything: a question, its loss, and another one.
const ROUND_TRIPS: u32 = 6;
/// How much longer losses make the wait: by a fifth at 5 %.
const LOSS_WEIGHT: f64 = 4.0;
/// Share of losses beyond which the wait grows no more.
const MAX_LOSS: f64 = 0.5;
/// Time in which a request arrives at the far end, and bytes of its body that arrive in a second on a poor link.
const ARRIVAL: Duration = Duration::from_secs(2);
const ARRIVAL_RATE: f64 = 50e3;
/// The far end says for so long that it knows nothing of the request before that is believed.
const UNKNOWN_FOR: Duration = Duration::from_millis(900);

/// Values of a [`Commitment`]; any other = the request may move.
const LAST_RESORT: u8 = 1;
const COMMITTED: u8 = 2;

/// Whether the answer that a request gets may still come from elsewhere; shared by all who look after the request.
#[derive(Debug, Clone, Default)]
pub struct Commitment(Arc<AtomicU8>);

impl Commitment {
    /// Makes that of a request which no other host could take over even now.
    pub fn of_last_resort() -> Self {
        Self(Arc::new(AtomicU8::new(LAST_RESORT)))
    }

    #[cfg(test)]
    pub(crate) fn is_committed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == COMMITTED
    }

    #[cfg(test)]
    pub(crate) fn is_last_resort(&self) -> bool {
        self.0.load(Ordering::Relaxed) == LAST_RESORT
    }

    /// Notes that no other host can take over any more: the client has a part of the answer.
    pub fn commit(&self) {
        self.0.store(COMMITTED, Ordering::Relaxed);
    }
}

/// What kind of host is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Host {
    /// A machine on mains, or a router: silent when it is gone.
    #[default]
    Steady,
    /// One with a battery, most likely a phone: its radio sleeps for seconds, and each question wakes it.
    Napping,
}

impl Host {
    /// Pace at which silence is counted.
    fn tick(self) -> Duration {
        Duration::from_millis(match self {
            Self::Steady => 100,
            Self::Napping => 250,
        })
    }

    /// Silence after which it is asked, and asked again.
    fn ask_after(self) -> Duration {
        Duration::from_millis(match self {
            Self::Steady => 300,
            Self::Napping => 1_000,
        })
    }

    /// Silence after which the request leaves it.
    fn patience(self, commitment: &Commitment, path: &Vitals) -> Duration {
        let base = match (self, commitment.0.load(Ordering::Relaxed)) {
            (_, LAST_RESORT) => ALONE,
            (Self::Steady, COMMITTED) => Duration::from_millis(1_200),
            (Self::Steady, _) => Duration::from_millis(700),
            (Self::Napping, COMMITTED) => ALONE,
            (Self::Napping, _) => Duration::from_millis(2_750),
        };
        base.max(path.rtt * ROUND_TRIPS).mul_f64(1.0 + LOSS_WEIGHT * path.loss.clamp(0.0, MAX_LOSS))
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
    host: Host,
    /// Until then the far end may not have all of the request, and so not know of it.
    arriving_until: Instant,
}

impl Listening {
    /// Begins when a request with a body of so many bytes was handed to the connection.
    pub(super) fn new(commitment: Commitment, host: Host, bytes: usize) -> Self {
        let arriving = ARRIVAL + Duration::from_secs_f64(bytes as f64 / ARRIVAL_RATE);
        Self { commitment, host, arriving_until: Instant::now() + arriving }
    }
}

/// Waits for the next frame for as long as the far end says that it works on it.
pub(super) async fn next_frame<F: Frames>(
    frames: &mut F,
    listening: &Listening,
) -> Result<Result<Option<InferFrame>, Interrupted>, Lost> {
    let mut watch = Watch::new(frames.vitals());
    let mut questions = FuturesUnordered::<BoxFuture<'static, Pulse>>::new();
    loop {
        let tick = Instant::now() + listening.host.tick();
        let answer = tokio::select! {
            biased;
            frame = frames.next() => return Ok(frame),
            Some(answer) = questions.next(), if !questions.is_empty() => Some(answer),
            () = tokio::time::sleep_until(tick) => None,
        };
        match answer {
            Some(Pulse::Unasked) => return Ok(frames.next().await),
            Some(answer) => {
                questions.clear();
                watch.answered(answer, listening)?;
            }
            None => {
                watch.tick(frames.vitals(), tick.elapsed(), listening)?;
                if questions.len() < MAX_QUESTIONS && watch.asks(listening.host) {
                    questions.push(frames.pulse());
                }
            }
        }
    }
}

/// What was heard since the last frame.
#[derive(Debug)]
struct Watch {
    datagrams: u64,
    /// Silence of the connection, in counted ticks.
    silence: Duration,
    excuses: u32,
    /// When the far end last spoke of this request, or the wait began.
    spoke: Instant,
    /// First and last question since then.
    asked: Option<(Instant, Instant)>,
    unknown_since: Option<Instant>,
}

impl Watch {
    fn new(vitals: Vitals) -> Self {
        Self {
            datagrams: vitals.datagrams,
            silence: Duration::ZERO,
            excuses: 0,
            spoke: Instant::now(),
            asked: None,
            unknown_since: None,
        }
    }

    fn answered(&mut self, answer: Pulse, listening: &Listening) -> Result<(), Lost> {
        let now = Instant::now();
        (self.silence, self.spoke, self.asked) = (Duration::ZERO, now, None);
        match answer {
            Pulse::Working | Pulse::Unasked => self.unknown_since = None,
            Pulse::Unknown if now < listening.arriving_until => {}
            Pulse::Unknown => {
                if now - *self.unknown_since.get_or_insert(now) >= UNKNOWN_FOR {
                    return Err(Lost::Unknown);
                }
            }
        }
        Ok(())
    }

    /// Takes in a tick that came `late`.
    fn tick(&mut self, vitals: Vitals, late: Duration, listening: &Listening) -> Result<(), Lost> {
        if vitals.datagrams != self.datagrams {
            (self.datagrams, self.silence) = (vitals.datagrams, Duration::ZERO);
        } else if late >= STARVED && self.excuses < MAX_EXCUSES {
            self.excuses += 1;
            metrics::counter!("shoal_pulses_excused_total").increment(1);
        } else {
            self.silence += listening.host.tick();
        }
        let is_stuck = self.asked.is_some_and(|(first, _)| first.elapsed() >= STUCK);
        let is_silent = self.silence >= listening.host.patience(&listening.commitment, &vitals);
        if is_silent || is_stuck { Err(Lost::Silent) } else { Ok(()) }
    }

    /// True when it is time for a question, which is then taken to be asked.
    fn asks(&mut self, host: Host) -> bool {
        let now = Instant::now();
        let asks = match self.asked {
            None => self.silence >= host.ask_after() || now - self.spoke >= ASK_AFTER,
            // The first one, or its answer, may be lost.
            Some((_, last)) => self.silence > Duration::ZERO && now - last >= host.ask_after(),
        };
        if asks {
            self.asked = Some((self.asked.map_or(now, |(first, _)| first), now));
        }
        asks
    }
}

#[cfg(test)]
mod tests;
