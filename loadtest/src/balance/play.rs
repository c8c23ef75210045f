//! One run of a trace over the fleet under one policy, event by event in virtual time.
//!
//! Equal seeds give every policy the same arrivals, the same noise and the same outages. Devices queue what rivals and
//! perfect knowledge send beyond their slots; the balancer's requests wait at their routers, as a node has it, and a
//! device that is full refuses them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::{InFlight, MAX_ATTEMPTS, Tokens, Work};

use super::device::{Device, Event, Kind};
use super::policy::{News, Policy, Router, known_work};
use super::trace::Arrival;

/// Routers that share the fleet; each request comes to one of them by lot.
const ROUTERS: usize = 3;

/// Seconds between two reports of a device, and until a report is with all routers.
const REPORT_EVERY: f64 = 0.5;
const REPORT_TAKES: f64 = 0.25;

/// Seconds of silence after which a device is taken to be gone.
const GONE_AFTER: f64 = 4.0;

/// Seconds until a request to a device that is gone, or full, is known to have failed, and pause before the next try.
const FAILS_AFTER: f64 = 0.02;
const RETRY_AFTER: f64 = 0.05;

/// Retries of a client, and seconds after which it comes back when nobody says: what OpenAI's SDKs do.
const CLIENT_RETRIES: u32 = 2;
const CLIENT_RETRIES_AFTER: f64 = 1.0;

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Played {
    /// Seconds from arrival to the whole answer, of each request that got one.
    pub completion_s: Vec<f64>,
    /// Answers that were cut after their first token.
    pub cut: u32,
    /// Requests that no device took within the attempts that a node makes.
    pub failed: u32,
    /// Requests that each device was given.
    pub given: Vec<u32>,
}

/// What runs a trace.
#[derive(Debug, Clone, Copy)]
pub struct Play<'a> {
    /// The devices.
    pub fleet: &'a [Kind],
    /// The requests.
    pub arrivals: &'a [Arrival],
    /// Seed of noise, outages, and of which router gets which request.
    pub seed: u64,
}

struct Attempt {
    request: usize,
    router: usize,
    device: usize,
    first_token_at: f64,
    guard: InFlight,
}

struct Request {
    router: usize,
    noise: f64,
    /// Retries that the client still makes.
    retries: u32,
    attempts: u32,
    tried: Vec<usize>,
}

/// A request that waits at its router for a slot of a device.
struct Waiting {
    request: usize,
    guard: InFlight,
}

struct Run<'a> {
    play: Play<'a>,
    policy: Policy,
    origin: Instant,
    devices: Vec<Device>,
    routers: Vec<Router>,
    requests: Vec<Request>,
    attempts: BTreeMap<usize, Attempt>,
    /// By router, device and number in the line.
    waiting: BTreeMap<(usize, usize, u64), Waiting>,
    /// Tries to come: when, in order of asking, which request.
    tries: BTreeMap<(u64, usize), usize>,
    reports: BTreeMap<u64, Vec<Option<News>>>,
    heard_at: Vec<f64>,
    next_id: usize,
    played: Played,
}

impl Play<'_> {
    /// Plays the trace to its end under a policy.
    pub fn run(&self, policy: Policy) -> Played {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let until = self.arrivals.last().map_or(0.0, |last| last.at) + 600.0;
        let devices = self.fleet.iter().map(|kind| Device::new(*kind, outages(kind, until, &mut rng)));
        let devices: Vec<Device> = devices.collect();
        let mut request = || Request {
            router: rng.random_range(0..ROUTERS),
            // The same prompt takes a tenth more or less from one time to the next.
            noise: 0.9 + 0.2 * rng.random::<f64>() + if rng.random_bool(0.02) { 0.5 } else { 0.0 },
            retries: CLIENT_RETRIES,
            attempts: 0,
            tried: Vec::new(),
        };
        let requests: Vec<Request> = self.arrivals.iter().map(|_| request()).collect();
        let router = |at: u64| Router::new(self.fleet, at, StdRng::seed_from_u64(self.seed * 31 + at));
        let mut run = Run {
            play: *self,
            policy,
            origin: origin(),
            heard_at: vec![0.0; devices.len()],
            played: Played { given: vec![0; devices.len()], ..Played::default() },
            devices,
            routers: (0..ROUTERS as u64).map(router).collect(),
            requests,
            attempts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            tries: BTreeMap::new(),
            reports: BTreeMap::new(),
            next_id: 0,
        };
        run.play_out();
        run.played
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Next {
    Device(usize),
    Turn(usize),
    Report,
    Heard,
    Arrival,
    Try,
}

impl Run<'_> {
    fn play_out(&mut self) {
        let (mut arrival, mut report_at, mut now) = (0, 0.0, 0.0);
        while arrival < self.requests.len()
            || !(self.attempts.is_empty() && self.tries.is_empty() && self.waiting.is_empty())
        {
            let mut soonest = (report_at, Next::Report);
            let mut consider = |at: Option<f64>, what: Next| {
                if let Some(at) = at.filter(|at| *at < soonest.0) {
                    soonest = (at, what);
                }
            };
            for (index, device) in self.devices.iter().enumerate() {
                consider(device.next_event_at(), Next::Device(index));
                consider(device.next_turn(now), Next::Turn(index));
            }
            consider(self.reports.keys().next().map(|at| seconds(*at)), Next::Heard);
            consider(self.tries.keys().next().map(|(at, _)| seconds(*at)), Next::Try);
            consider(self.play.arrivals.get(arrival).map(|next| next.at), Next::Arrival);
            let (at, what) = soonest;
            now = at.max(now);
            match what {
                Next::Device(index) => self.progress(index),
                Next::Turn(index) => self.turn(index, now),
                Next::Report => {
                    self.report(now);
                    self.send_away(now);
                    report_at = now + REPORT_EVERY;
                }
                Next::Heard => {
                    if let Some((_, news)) = self.reports.pop_first() {
                        let at = self.at(now);
                        self.routers.iter_mut().for_each(|router| router.hear(&news, at));
                    }
                }
                Next::Arrival => {
                    self.attempt(arrival, now);
                    arrival += 1;
                }
                Next::Try => {
                    if let Some((_, request)) = self.tries.pop_first() {
                        self.attempt(request, now);
                    }
                }
            }
            self.let_through(now);
        }
    }

    /// Notes how the devices stand; the routers hear it later.
    fn report(&mut self, now: f64) {
        let mut news = Vec::new();
        for (device, heard_at) in self.devices.iter().zip(&mut self.heard_at) {
            if device.is_up(now) {
                *heard_at = now;
            }
            let (running, waiting) = device.counts();
            news.push((now - *heard_at < GONE_AFTER).then_some(News { running, waiting }));
        }
        self.reports.insert(nanos(now + REPORT_TAKES), news);
    }

    /// A device goes, with all that it has, or comes back.
    fn turn(&mut self, index: usize, now: f64) {
        self.devices[index].pass(now);
        if self.devices[index].is_up(now) {
            return;
        }
        for (id, begun) in self.devices[index].fail_all() {
            let Some(attempt) = self.close(id) else { continue };
            attempt.guard.finish(self.at(now), false);
            if begun {
                self.played.cut += 1;
            } else {
                self.again(attempt.request, now + RETRY_AFTER);
            }
        }
    }

    fn progress(&mut self, index: usize) {
        let Some(now) = self.devices[index].next_event_at() else { return };
        match self.devices[index].step() {
            Some(Event::FirstToken(id)) => {
                let at = self.at(now);
                if let Some(attempt) = self.attempts.get_mut(&id) {
                    attempt.first_token_at = now;
                    attempt.guard.first_token(at);
                }
            }
            Some(Event::Finished(id)) => {
                let Some(mut attempt) = self.close(id) else { return };
                let gaps = self.play.arrivals[attempt.request].output.saturating_sub(1);
                let gap_s = (now - attempt.first_token_at) / f64::from(gaps.max(1));
                for gap in 1..=gaps {
                    attempt.guard.token(self.at(attempt.first_token_at + gap_s * f64::from(gap)));
                }
                attempt.guard.answered(Tokens(gaps + 1));
                attempt.guard.finish(self.at(now), true);
                self.played.completion_s.push(now - self.play.arrivals[attempt.request].at);
            }
            None => {}
        }
    }

    /// Sends a request to the device that the policy chooses.
    fn attempt(&mut self, request: usize, now: f64) {
        let (work, at) = (known_work(self.play.arrivals[request].prompt), self.at(now));
        let mut retry_after = CLIENT_RETRIES_AFTER;
        loop {
            let spent = self.requests[request].attempts >= MAX_ATTEMPTS;
            let Some(index) = (!spent).then(|| self.choose(request, work, now)).flatten() else {
                return self.refuse(request, now + retry_after);
            };
            self.requests[request].tried.push(index);
            let router = self.requests[request].router;
            if self.policy != Policy::Ours {
                let guard = self.routers[router].begin(index, work, at);
                return self.send(request, index, guard, now);
            }
            match self.routers[router].pass(index, work, at) {
                Ok((guard, None)) => return self.send(request, index, guard, now),
                Ok((guard, Some(place))) => {
                    self.waiting.insert((router, index, place), Waiting { request, guard });
                    return;
                }
                // Nothing was sent, so it is no attempt: another device may have room.
                Err(after) => retry_after = after.as_secs_f64(),
            }
        }
    }

    /// Gives the client an error; it comes back at `at`, or has had enough.
    fn refuse(&mut self, request: usize, at: f64) {
        let state = &mut self.requests[request];
        (state.attempts, state.tried) = (0, Vec::new());
        match state.retries.checked_sub(1) {
            Some(left) => {
                state.retries = left;
                self.again(request, at);
            }
            None => self.played.failed += 1,
        }
    }

    fn choose(&mut self, request: usize, work: Work, now: f64) -> Option<usize> {
        let (arrival, at) = (self.play.arrivals[request], self.at(now));
        let Request { router, noise, attempts, ref tried, .. } = self.requests[request];
        match self.policy {
            Policy::Perfect => {
                self.devices.iter_mut().for_each(|device| device.pass(now));
                let finish = |index: usize| {
                    let device = &self.devices[index];
                    device.would_finish(device.job(usize::MAX, arrival.prompt, arrival.output, noise))
                };
                let known = (0..self.devices.len()).filter_map(|index| finish(index).map(|at| (index, at)));
                known.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
            }
            policy => {
                let fresh = self.routers[router].pick(policy, work, at, tried);
                // What failed may be back; what had no room has none.
                let again = attempts > 0 && tried.len() <= attempts as usize;
                fresh.or_else(|| again.then(|| self.routers[router].pick(policy, work, at, &[])).flatten())
            }
        }
    }

    /// Hands a request to a device.
    fn send(&mut self, request: usize, index: usize, guard: InFlight, now: f64) {
        let (arrival, id) = (self.play.arrivals[request], self.next_id);
        let Request { router, noise, .. } = self.requests[request];
        self.next_id += 1;
        self.requests[request].attempts += 1;
        self.played.given[index] += 1;
        let device = &mut self.devices[index];
        device.pass(now);
        let job = device.job(id, arrival.prompt, arrival.output, noise);
        let is_up = device.is_up(now);
        if is_up && device.accept(job, self.policy != Policy::Ours) {
            let attempt = Attempt { request, router, device: index, first_token_at: now, guard };
            self.attempts.insert(id, attempt);
            return;
        }
        let failed_at = now + FAILS_AFTER;
        guard.finish(self.at(failed_at), is_up);
        self.routers[router].end(index);
        if is_up {
            self.routers[router].refused(index, self.at(failed_at));
            // It is known to be full now, and may be waited for.
            self.requests[request].tried.retain(|tried| *tried != index);
        }
        self.again(request, failed_at + RETRY_AFTER);
    }

    /// Sends what waits at the routers to devices that have room.
    fn let_through(&mut self, now: f64) {
        if self.waiting.is_empty() {
            return;
        }
        for (router, device) in self.lines() {
            let at = self.at(now);
            while let Some(place) = self.routers[router].turn_at(device, at) {
                let Some(mut waiting) = self.waiting.remove(&(router, device, place)) else { continue };
                let work = known_work(self.play.arrivals[waiting.request].prompt);
                waiting.guard.sent(self.routers[router].offer(device), work, at);
                self.send(waiting.request, device, waiting.guard, now);
            }
        }
    }

    /// Gives those who waited too long another try elsewhere.
    fn send_away(&mut self, now: f64) {
        for (router, device) in self.lines() {
            let at = self.at(now);
            for place in self.routers[router].late_at(device, at) {
                if let Some(waiting) = self.waiting.remove(&(router, device, place)) {
                    self.routers[router].end(device);
                    self.again(waiting.request, now);
                }
            }
        }
    }

    /// Every line: router and device.
    fn lines(&self) -> Vec<(usize, usize)> {
        let devices = self.devices.len();
        (0..self.routers.len() * devices).map(|line| (line / devices, line % devices)).collect()
    }

    fn again(&mut self, request: usize, at: f64) {
        let id = self.next_id;
        self.next_id += 1;
        self.tries.insert((nanos(at), id), request);
    }

    fn close(&mut self, id: usize) -> Option<Attempt> {
        let attempt = self.attempts.remove(&id)?;
        self.routers[attempt.router].end(attempt.device);
        Some(attempt)
    }

    fn at(&self, seconds: f64) -> Instant {
        self.origin + Duration::from_secs_f64(seconds)
    }
}

/// When a device is gone, up to `until`.
fn outages(kind: &Kind, until: f64, rng: &mut StdRng) -> Vec<(f64, f64)> {
    let Some((up, down)) = kind.flaps else { return Vec::new() };
    let mut about = |mean: f64| mean * (0.5 + rng.random::<f64>());
    let (mut at, mut outages) = (about(up), Vec::new());
    while at < until {
        let back = at + about(down);
        outages.push((at, back));
        at = back + about(up);
    }
    outages
}

/// An instant to count virtual time from; only differences to it matter.
fn origin() -> Instant {
    Instant::now()
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
