//! Who chooses the device: the balancer of a node, and its rivals.
//!
//! All see the same news of the devices, late as it is. Only [`Policy::Perfect`] sees the devices themselves.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use shoal_routing::admission::Host;
use shoal_routing::{
    Asking, Balancer, Forecast, InFlight, Line, LoadBook, ModelSpec, Offer, Priority, Tokens, UpstreamId,
    Work,
};

use super::device::Kind;

/// A way to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Knows each device as it is, each answer's length and each outage to come, and takes the device that will finish
    /// the request first.
    Perfect,
    /// The balancer of a node.
    Ours,
    /// One after the other.
    RoundRobin,
    /// The one with fewer requests of two by lot.
    TwoChoices,
    /// Fewest requests: own ones, and others' by the last news.
    LeastConnections,
    /// By lot.
    Random,
}

impl Policy {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Perfect, Self::Ours, Self::LeastConnections, Self::TwoChoices, Self::RoundRobin, Self::Random];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Perfect => "perfect knowledge",
            Self::Ours => "ours",
            Self::RoundRobin => "round robin",
            Self::LeastConnections => "least connections",
            Self::TwoChoices => "two choices",
            Self::Random => "random",
        })
    }
}

/// What a router heard of a device last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    pub(super) running: u32,
    pub(super) waiting: u32,
}

/// One router: what it heard, what it measured, what it has under way.
pub(super) struct Router {
    offers: Vec<Arc<Offer>>,
    /// Offers of devices that are believed to be there.
    alive: Vec<Arc<Offer>>,
    book: LoadBook,
    /// Who waits here for each device: a node sends no more than a device has slots.
    lines: Vec<Line>,
    own: Vec<u32>,
    /// Own requests when the last news came, and the news.
    heard: Vec<(u32, News)>,
    reports: u64,
    turn: usize,
    rng: StdRng,
}

impl Router {
    pub(super) fn new(fleet: &[Kind], seed: u64, mut rng: StdRng) -> Self {
        let spec = Arc::new(ModelSpec::new("m", "sim"));
        let offers: Vec<Arc<Offer>> = (0..)
            .zip(fleet)
            .map(|(at, kind): (usize, _)| {
                let upstream = UpstreamId::Device(at.to_string().into());
                Arc::new(Offer { slots: kind.slots, ..Offer::new(upstream, spec.clone()) })
            })
            .collect();
        Self {
            alive: offers.clone(),
            book: LoadBook::new(seed),
            lines: fleet.iter().map(|_| Line::default()).collect(),
            own: vec![0; fleet.len()],
            heard: vec![(0, News::default()); fleet.len()],
            reports: 0,
            turn: rng.random_range(0..fleet.len()),
            offers,
            rng,
        }
    }

    /// Takes in the news of all devices; `None` = nothing was heard of it for too long.
    pub(super) fn hear(&mut self, news: &[Option<News>], now: Instant) {
        self.reports += 1;
        for (at, heard) in news.iter().enumerate() {
            let Some(heard) = heard else { continue };
            self.heard[at] = (self.own[at], *heard);
            let offer = Arc::make_mut(&mut self.offers[at]);
            (offer.in_flight_reported, offer.queued_reported) = (heard.running, heard.waiting);
            self.book.report(&offer.upstream, (0, self.reports), offer.requests_reported(), now);
        }
        self.alive = self
            .offers
            .iter()
            .zip(news)
            .filter(|(_, heard)| heard.is_some())
            .map(|(o, _)| o.clone())
            .collect();
    }

    /// Chooses among the devices that were not tried, by a policy that needs no more than the news.
    pub(super) fn pick(
        &mut self,
        policy: Policy,
        work: Work,
        now: Instant,
        tried: &[usize],
    ) -> Option<usize> {
        let excluded: Vec<UpstreamId> = tried.iter().map(|at| self.offers[*at].upstream.clone()).collect();
        if policy == Policy::Ours {
            let balancer = Balancer::for_work(work).that_waits();
            let picked = balancer.pick(&self.alive, &self.book, now, &mut self.rng, &excluded)?;
            return Some(index(&picked));
        }
        let free: Vec<usize> =
            self.alive.iter().map(|offer| index(offer)).filter(|at| !tried.contains(at)).collect();
        if free.is_empty() {
            return None;
        }
        Some(match policy {
            Policy::RoundRobin => {
                self.turn += 1;
                free[self.turn % free.len()]
            }
            Policy::LeastConnections => {
                let first = self.rng.random_range(0..free.len());
                let turned = (0..free.len()).map(|step| free[(first + step) % free.len()]);
                turned.min_by_key(|at| self.connections(*at))?
            }
            Policy::TwoChoices => {
                let mut lot = || free[self.rng.random_range(0..free.len())];
                let (one, other) = (lot(), lot());
                if self.connections(other) < self.connections(one) { other } else { one }
            }
            Policy::Random | Policy::Perfect | Policy::Ours => free[self.rng.random_range(0..free.len())],
        })
    }

    fn connections(&self, at: usize) -> u32 {
        let (own_then, news) = self.heard[at];
        self.own[at] + (news.running + news.waiting).saturating_sub(own_then)
    }

    /// Counts a request as under way.
    pub(super) fn begin(&mut self, at: usize, work: Work, now: Instant) -> InFlight {
        self.own[at] += 1;
        self.book.begin(&self.offers[at], work, now)
    }

    /// Does what a node does before it sends a request: lets it through, lets it wait (with its number in the line),
    /// or says when it is worth coming back.
    pub(super) fn pass(
        &mut self,
        at: usize,
        work: Work,
        now: Instant,
    ) -> Result<(InFlight, Option<u64>), Duration> {
        let (offer, line) = (&self.offers[at], &mut self.lines[at]);
        let load = self.book.of(offer, now);
        let forecast = Forecast::of(work, offer, &load).unwrap_or_default();
        let cost_ms = forecast.total_ms() - forecast.queue_ms;
        let asking = Asking { key: "key".into(), priority: Priority::Client, deadline: None, cost_ms };
        if line.is_empty() && load.in_flight < offer.slots {
            line.charge(&asking);
            return Ok((self.begin(at, work, now), None));
        }
        let host = Host { slots: offer.slots, wait_ms: forecast.queue_ms };
        // One key alone displaces nobody.
        let place = line.enter(asking, host, now).map_err(|shed| shed.retry_after)?;
        self.own[at] += 1;
        Ok((self.book.queue(offer, work, now), Some(place.id)))
    }

    /// Returns whose turn it is at a device, if it has room.
    pub(super) fn turn_at(&mut self, at: usize, now: Instant) -> Option<u64> {
        let (offer, line) = (&self.offers[at], &mut self.lines[at]);
        let sent = self.book.requests(&offer.upstream, now).saturating_sub(line.len() as u32);
        (sent < offer.slots).then(|| line.call_next()).flatten()
    }

    /// Returns who has waited too long at a device.
    pub(super) fn late_at(&mut self, at: usize, now: Instant) -> Vec<u64> {
        self.lines[at].expire(now)
    }

    /// The offer of a device.
    pub(super) fn offer(&self, at: usize) -> &Offer {
        &self.offers[at]
    }

    /// Counts it no more; `guard` tells how it ended, unless it was cancelled.
    pub(super) fn end(&mut self, at: usize) {
        self.own[at] -= 1;
    }

    /// Does what a node does when a device is full.
    pub(super) fn refused(&self, at: usize, now: Instant) {
        self.book.refused(&self.offers[at], now);
    }
}

fn index(offer: &Offer) -> usize {
    offer.upstream.name().parse().expect("devices of the simulation are called by their number")
}

/// What a router knows of a request: the prompt it can count, the answer it cannot.
pub(super) fn known_work(prompt: u32) -> Work {
    Work { prompt: Tokens(prompt), ..Work::UNKNOWN }
}
