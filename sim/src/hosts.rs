//! What happens to an attempt outside of its router: the way, the host or the other router, and the way back.

use std::time::Duration;

use rand::RngExt;
use shoal_routing::{ModelChoice, Request, Reward, Route, Tokens, UpstreamId};

use crate::breakage::Breakage;
use crate::events::{At, Event};
use crate::request::{Break, Failure, Host, News, PIECE, Run, Worker};
use crate::world::World;

/// How often a connection under way is tried, and misses after which it is given up: 1.5 s.
const PING_EVERY: Duration = Duration::from_millis(500);
const MISSES: u32 = 3;

/// When whoever works for an attempt notices that the connection is gone.
const NOTICES: Duration = Duration::from_millis(1_500);

/// How long a frozen device's work waits before it is looked at again.
const FROZEN: Duration = Duration::from_millis(200);

/// Where an attempt goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    Host(Host),
    Router(usize),
    /// Whoever it was is not known here: a device that a liar made up.
    Nobody,
}

impl World {
    fn target(&self, id: u64) -> Target {
        let attempt = self.jobs.get(&id).and_then(|job| job.attempt.as_ref());
        let Some(attempt) = attempt else { return Target::Nobody };
        match (&attempt.choice.route, &attempt.choice.offer.upstream) {
            (Route::Via(name), _) => self.numbers.get(name).map_or(Target::Nobody, |n| Target::Router(*n)),
            (Route::Direct, UpstreamId::Provider(name)) => {
                let provider = crate::request::PROVIDERS.iter().position(|known| **known == **name);
                provider.map_or(Target::Nobody, |n| Target::Host(Host::Provider(n)))
            }
            (Route::Direct, UpstreamId::Device(name) | UpstreamId::Peer(name)) => {
                self.device_numbers.get(name).map_or(Target::Nobody, |n| Target::Host(Host::Device(*n)))
            }
        }
    }

    /// The life of whoever an attempt goes to, and whether a connection to it lives.
    fn far_end(&self, node: usize, target: Target) -> (u32, bool) {
        match target {
            Target::Router(to) => (self.nodes[to].life, self.connects(node, to)),
            Target::Host(Host::Device(device)) => {
                (self.devices[device].life, !self.devices[device].is_silent())
            }
            Target::Host(Host::Provider(_)) => (0, true),
            Target::Nobody => (0, false),
        }
    }

    /// Sends an attempt.
    pub(crate) fn send(&mut self, id: u64) {
        let target = self.target(id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(attempt) = &job.attempt else { return };
        if !attempt.choice.is_open(&self.nodes[job.node].registry) {
            // Nothing is sent, so it is no attempt.
            job.is_servable = false;
            self.close_attempt(id, None);
            return self.advance(id);
        }
        let left = job.tries.begin(&attempt.choice.route);
        job.made += 1;
        let node = job.node;
        self.check_send(id);
        let (peer_life, _) = self.far_end(node, target);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(attempt) = &mut job.attempt else { return };
        (attempt.left, attempt.sent_at, attempt.peer_life) = (left, self.now, peer_life);
        let number = attempt.number;
        let wait = match target {
            Target::Router(_) => self.net.direct(node),
            Target::Host(Host::Device(device)) => {
                if !self.nodes[node].linked.contains_key(&device) {
                    return self.attempt_failed(id, Failure::Broken);
                }
                self.link_delay(Host::Device(device))
            }
            Target::Host(Host::Provider(provider)) => {
                if !self.reserve(id, node, provider) {
                    return self.attempt_failed(id, Failure::Quota);
                }
                self.link_delay(Host::Provider(provider))
            }
            Target::Nobody => return self.attempt_failed(id, Failure::Broken),
        };
        self.trace.note(self.now, "sends", node, id);
        self.after(wait, Event::Asked { job: id, attempt: number });
        self.after(PING_EVERY, Event::Ping { job: id, attempt: number });
        self.after(Duration::from_secs(1), Event::Patience { job: id, attempt: number });
    }

    /// Sets aside what an attempt may cost at most.
    fn reserve(&mut self, id: u64, node: usize, provider: usize) -> bool {
        let careless = self.is_broken(Breakage::IgnorePurse);
        let Some(attempt) = self.jobs.get_mut(&id).and_then(|job| job.attempt.as_mut()) else { return false };
        let price = attempt.choice.offer.price.unwrap_or_default();
        let most = price.cost(Tokens(32), Tokens(64)).0;
        let Some(purse) = self.nodes[node].disk.purses.get_mut(&provider) else { return false };
        let covered = purse.reserve(most);
        if !covered && careless {
            purse.booked += most;
        } else if !covered {
            return false;
        }
        attempt.reserved = Some((provider, most));
        self.check_purse(node, provider);
        true
    }

    /// A request arrives where it was sent.
    pub(crate) fn asked(&mut self, id: u64, number: u32) {
        let target = self.target(id);
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(attempt) = job.attempt.as_ref().filter(|attempt| attempt.number == number) else { return };
        let (node, client, hop, left) = (job.node, job.client, job.hop, attempt.left);
        let (life, connected) = self.far_end(node, target);
        if !connected || life != attempt.peer_life {
            return;
        }
        match target {
            Target::Nobody => {}
            Target::Router(to) => {
                let (model, upstream) = (&attempt.choice.offer.model.id, &attempt.choice.offer.upstream);
                let choice = match upstream {
                    UpstreamId::Device(device) | UpstreamId::Peer(device) => {
                        ModelChoice::OnDevice { device: device.clone(), model: model.clone() }
                    }
                    UpstreamId::Provider(provider) => ModelChoice::Provider {
                        provider: provider.clone(),
                        model: crate::request::PROVIDER_MODEL.into(),
                    },
                };
                let request = Request { choice, ..job.request.clone() };
                self.accept(to, client, request, hop + 1, left, Some((id, number)));
            }
            Target::Host(host) => self.asked_host(id, number, host, life),
        }
    }

    fn asked_host(&mut self, id: u64, number: u32, host: Host, host_life: u32) {
        let client = self.jobs[&id].client;
        let stream = self.jobs[&id].request.stream;
        self.clients[client].sends += 1;
        self.most_sends = self.most_sends.max(self.clients[client].sends);
        self.check_sends(client);
        let refusal = match host {
            Host::Device(device) => {
                let device = &self.devices[device];
                (device.running >= device.slots).then_some(Failure::Full)
            }
            Host::Provider(provider) => {
                let out = self.providers_out[provider] > 0;
                out.then(|| if self.rng.random_bool(0.5) { Failure::Broken } else { Failure::Throttled })
            }
        };
        if let Some(failure) = refusal {
            let wait = self.link_delay(host);
            return self.after(wait, Event::Told { job: id, attempt: number, news: News::Failed(failure) });
        }
        let (first_ms, gap_ms, failing) = match host {
            Host::Device(device) => {
                let device = &mut self.devices[device];
                device.running += 1;
                (device.first_ms * device.slow, device.gap_ms * device.slow, device.failing)
            }
            Host::Provider(_) => (400.0, 40.0, 0.01),
        };
        let pieces = self.rng.random_range(1..=8);
        let breaks = self.rng.random_bool(failing).then(|| {
            let how = if self.rng.random_bool(0.75) { Break::Fails } else { Break::Hangs };
            (self.rng.random_range(0..pieces), how)
        });
        let run = Run {
            job: id,
            attempt: number,
            host,
            host_life,
            stream,
            piece: 0,
            pieces,
            gap: Duration::from_secs_f64(gap_ms / 1e3),
            breaks,
            told_at: At::ZERO,
            is_cut: false,
        };
        let run_id = self.fresh_id();
        self.runs.insert(run_id, run);
        self.workers.insert((id, number), Worker::Run(run_id));
        self.after(Duration::from_secs_f64(first_ms / 1e3), Event::Step { run: run_id });
    }

    /// A run makes its next piece.
    pub(crate) fn step(&mut self, id: u64) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if let Host::Device(device) = run.host
            && self.devices[device].naps > 0
        {
            return self.after(FROZEN, Event::Step { run: id });
        }
        let (piece, gap) = (run.piece, run.gap);
        match run.breaks {
            Some((at, Break::Hangs)) if at == piece => return,
            Some((at, Break::Fails)) if at == piece => {
                let failure = if piece > 0 && run.stream { Failure::Interrupted } else { Failure::Broken };
                self.tell_router(id, News::Failed(failure));
                return self.end_run(id);
            }
            _ => {}
        }
        run.piece += 1;
        let (stream, pieces) = (run.stream, run.pieces);
        if stream {
            self.tell_router(id, News::Piece { source: id, number: piece });
        }
        if piece + 1 == pieces {
            self.tell_router(id, News::End { source: id, pieces });
            return self.end_run(id);
        }
        self.after(gap, Event::Step { run: id });
    }

    /// Sends news of a run to its router.
    fn tell_router(&mut self, id: u64, news: News) {
        let Some(run) = self.runs.get(&id) else { return };
        let reached = match run.host {
            Host::Device(device) => !self.devices[device].is_silent(),
            Host::Provider(_) => true,
        };
        let at = (self.now + self.link_delay(run.host)).max(run.told_at + Duration::from_micros(1));
        let (job, attempt, lost) = (run.job, run.attempt, run.is_cut || !reached);
        if let Some(run) = self.runs.get_mut(&id) {
            (run.told_at, run.is_cut) = (at, lost);
        }
        if !lost {
            self.events.plan(at, Event::Told { job, attempt, news });
        }
    }

    /// Sends news of a job to the router that handed it on; returns when it arrives, `None` if it does not.
    pub(crate) fn tell_across(
        &mut self,
        from: usize,
        parent: u64,
        attempt: u32,
        earliest: At,
        news: News,
    ) -> Option<At> {
        let to = self.jobs.get(&parent)?.node;
        if !self.connects(from, to) {
            return None;
        }
        let at = (self.now + self.net.direct(from)).max(earliest + Duration::from_micros(1));
        self.events.plan(at, Event::Told { job: parent, attempt, news });
        Some(at)
    }

    /// News of an attempt arrives.
    pub(crate) fn told(&mut self, id: u64, number: u32, news: News) {
        let now = self.instant();
        let at = self.now;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(attempt) = job.attempt.as_mut().filter(|attempt| attempt.number == number) else { return };
        attempt.progress += 1;
        let began = attempt.sent_at;
        attempt.sent_at = at;
        let (node, arm, committed) = (job.node, attempt.choice.arm.clone(), job.committed);
        match news {
            News::Piece { source, number } => {
                attempt.pieces = number + 1;
                if let Some(guard) = &mut attempt.guard {
                    guard.token(now);
                }
                if !committed {
                    self.commit(id);
                }
                self.pass_piece(id, source, number);
            }
            News::End { source, pieces } => {
                attempt.pieces = pieces;
                if let Some(guard) = &mut attempt.guard {
                    guard.whole_answer(now, Tokens(pieces * PIECE));
                }
                if !committed {
                    self.commit(id);
                }
                self.learn(node, &arm, Reward::Valid, Some((at - began).as_millis() as u64));
                self.workers.remove(&(id, number));
                self.end_job(id, Ok((source, pieces)));
            }
            News::Failed(failure) => {
                if !failure.is_blameless() {
                    self.learn(node, &arm, Reward::Failed, None);
                }
                self.workers.remove(&(id, number));
                self.attempt_failed(id, failure);
            }
        }
    }

    /// Gives a piece on: to the router that waits for it, or to the client.
    fn pass_piece(&mut self, id: u64, source: u64, number: u32) {
        let Some(job) = self.jobs.get(&id) else { return };
        match job.parent {
            Some((parent, attempt)) => {
                if job.is_cut {
                    return;
                }
                let (node, earliest) = (job.node, job.told_at);
                let told = self.tell_across(node, parent, attempt, earliest, News::Piece { source, number });
                if let Some(job) = self.jobs.get_mut(&id) {
                    match told {
                        Some(at) => job.told_at = at,
                        None => job.is_cut = true,
                    }
                }
            }
            None => self.client_piece(job.client, source, number),
        }
    }

    /// Tries the connection of an attempt.
    pub(crate) fn ping(&mut self, id: u64, number: u32) {
        let target = self.target(id);
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(attempt) = job.attempt.as_ref().filter(|attempt| attempt.number == number) else { return };
        let (life, connected) = self.far_end(job.node, target);
        let answers = connected && life == attempt.peer_life;
        let misses = if answers { 0 } else { attempt.misses + 1 };
        if misses >= MISSES {
            self.tell_worker_to_stop(id, number);
            return self.attempt_failed(id, Failure::Interrupted);
        }
        if let Some(attempt) = self.jobs.get_mut(&id).and_then(|job| job.attempt.as_mut()) {
            attempt.misses = misses;
        }
        self.after(PING_EVERY, Event::Ping { job: id, attempt: number });
    }

    /// Lets whoever works for an attempt know that nobody waits: at once, or when it notices.
    pub(crate) fn tell_worker_to_stop(&mut self, id: u64, number: u32) {
        let target = self.target(id);
        let Some(node) = self.jobs.get(&id).map(|job| job.node) else { return };
        let (_, connected) = self.far_end(node, target);
        let wait = match target {
            _ if !connected || !self.nodes[node].up => NOTICES,
            Target::Router(_) => self.net.direct(node),
            Target::Host(host) => self.link_delay(host),
            Target::Nobody => NOTICES,
        };
        self.after(wait, Event::Dropped { job: id, attempt: number });
    }

    /// Whoever works for an attempt stops.
    pub(crate) fn drop_worker(&mut self, id: u64, number: u32) {
        match self.workers.remove(&(id, number)) {
            Some(Worker::Run(run)) => self.end_run(run),
            Some(Worker::Job(job)) => self.abandon(job),
            None => {}
        }
    }

    /// Runs on a host.
    pub(crate) fn runs_of(&self, host: Host) -> Vec<u64> {
        self.runs.iter().filter(|(_, run)| run.host == host).map(|(id, _)| *id).collect()
    }

    /// A run is over, however it ended.
    pub(crate) fn end_run(&mut self, id: u64) {
        let Some(run) = self.runs.remove(&id) else { return };
        if self.workers.get(&(run.job, run.attempt)) == Some(&Worker::Run(id)) {
            self.workers.remove(&(run.job, run.attempt));
        }
        if let Host::Device(device) = run.host
            && self.devices[device].life == run.host_life
        {
            self.devices[device].running = self.devices[device].running.saturating_sub(1);
        }
    }
}
