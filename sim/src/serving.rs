//! Requests at routers: decided by Shoal's router, ordered by its candidates, held by its lines and budgets.
//!
//! What the node's pipeline awaits is an event here; the order of steps is the pipeline's.

use std::time::Duration;

use shoal_routing::{
    Balancer, Candidates, DataClass, Request, Reward, Router, Snapshot, Thompson, Tokens, Tries,
};

use crate::breakage::Breakage;
use crate::events::{At, Event};
use crate::lines::Passed;
use crate::node::budget_of;
use crate::request::{Attempt, Failure, Job, News, PIECE, Stage};
use crate::world::World;

/// Patience until the first piece and between two; the entry router's is longer, so that the owner's word comes first.
pub(crate) const FIRST_PIECE: Duration = Duration::from_secs(6);
const BETWEEN: Duration = Duration::from_secs(3);
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// When a whole request gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(12);

/// Wait for a permit to retry, and between two looks, as in the node.
const RETRY_WAIT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl World {
    /// Takes a request in at a router: a client's, or one that another router hands on.
    pub(crate) fn accept(
        &mut self,
        node: usize,
        client: usize,
        request: Request<'static>,
        hop: u32,
        left: u32,
        parent: Option<(u64, u32)>,
    ) {
        let mut request = Request { hop, ..request };
        if self.is_broken(Breakage::ForgetClass) {
            request.data_class = DataClass::Public;
        }
        let now = self.instant();
        let router = &self.nodes[node];
        let (registry, posterior) = (&router.registry, &router.learning.posterior);
        let snapshot = Snapshot { registry, posterior, loads: &router.loads };
        let profile = self.clients[client].profile;
        let decided = Router::<Thompson>::default().decide(&request, profile, &snapshot, now, &mut self.rng);
        let decision = match decided {
            Ok(decision) => decision,
            Err(no) => {
                let retryable = matches!(
                    no,
                    shoal_routing::NoRoute::UnknownModel { .. }
                        | shoal_routing::NoRoute::NoDevice { .. }
                        | shoal_routing::NoRoute::ProviderAway { .. }
                        | shoal_routing::NoRoute::NoLocalCapacity
                );
                let news = News::Failed(Failure::NoRoute(retryable));
                return match parent {
                    Some((job, attempt)) => {
                        self.tell_across(node, job, attempt, At::ZERO, news);
                    }
                    None => self.end_client(client, "rejected"),
                };
            }
        };
        let router = &mut self.nodes[node];
        router.tally.active += 1;
        let job = Job {
            client,
            node,
            life: router.life,
            hop,
            request,
            candidates: Candidates::new(&decision),
            tries: Tries::new(left),
            made: 0,
            numbers: 0,
            active: Some(router.retries.enter()),
            attempt: None,
            last: None,
            is_full: false,
            parent,
            committed: false,
            began: self.now,
            told_at: At::ZERO,
            is_cut: false,
            is_servable: decision.offers.iter().any(|offer| offer.routes_at(hop).next().is_some()),
        };
        let id = self.fresh_id();
        if let Some(parent) = parent {
            self.workers.insert(parent, crate::request::Worker::Job(id));
        }
        self.jobs.insert(id, job);
        self.advance(id);
    }

    /// Asks the next candidate.
    pub(crate) fn advance(&mut self, id: u64) {
        loop {
            let now = self.instant();
            let four = self.is_broken(Breakage::FourAttempts);
            let ejects = self.is_broken(Breakage::EjectLast);
            let Some(job) = self.jobs.get_mut(&id) else { return };
            if four && job.made == 3 && job.hop == 0 {
                job.tries = Tries::new(1);
            }
            if !job.tries.are_left() {
                break;
            }
            let profile = self.clients[job.client].profile;
            let balancer = Balancer::for_work(profile.work()).that_waits();
            let router = &self.nodes[job.node];
            let loads = router.loads.clone();
            let Some(choice) = job.candidates.next(&loads, job.hop, balancer, now, &mut self.rng) else {
                break;
            };
            job.numbers += 1;
            let number = job.numbers;
            if ejects && !loads.of(&choice.offer, now).admits {
                break;
            }
            let passed = self.pass(id, &choice.offer);
            let Some(job) = self.jobs.get_mut(&id) else { return };
            let (guard, stage) = match passed {
                Passed::Goes(guard) => (guard, Stage::Sent),
                Passed::Waits(guard, place) => (guard, Stage::Waits(place)),
                Passed::Shed => {
                    job.is_full = true;
                    continue;
                }
            };
            job.attempt = Some(Attempt {
                number,
                choice,
                guard: Some(guard),
                permit: None,
                is_counted: false,
                stage,
                left: 0,
                peer_life: 0,
                misses: 0,
                progress: 0,
                sent_at: At::ZERO,
                reserved: None,
                pieces: 0,
            });
            if stage == Stage::Sent {
                self.ask_permit(id);
            }
            return;
        }
        self.give_up(id);
    }

    fn give_up(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.is_servable && job.made == 0 && !job.is_full {
            let node = job.node;
            return self
                .violated(format!("router {node} gives a request up that it has hosts for, and asked none"));
        }
        let failure = match (job.last, job.is_full) {
            (Some(failure), _) => failure,
            (None, true) => Failure::Full,
            (None, false) => Failure::NoRoute(true),
        };
        self.end_job(id, Err(failure));
    }

    /// A retry needs a permit; the first attempt needs none.
    pub(crate) fn ask_permit(&mut self, id: u64) {
        let until = self.now + RETRY_WAIT;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (is_retry, until) = (job.last.is_some(), until.min(job.began + DEADLINE));
        let Some(attempt) = &mut job.attempt else { return };
        if !is_retry {
            return self.send(id);
        }
        attempt.stage = Stage::AsksPermit(until);
        let number = attempt.number;
        self.ask_permit_again(id, number);
    }

    /// Asks for it, until there is one or time is up.
    pub(crate) fn ask_permit_again(&mut self, id: u64, number: u32) {
        let no_budget = self.is_broken(Breakage::IgnoreRetryBudget);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (Some(failure), Some(attempt)) = (job.last, &mut job.attempt) else { return };
        let Stage::AsksPermit(until) = attempt.stage else { return };
        if attempt.number != number {
            return;
        }
        let router = &mut self.nodes[job.node];
        let upstream = &attempt.choice.offer.upstream;
        let permit = router.retries.try_retry(failure.retry(), upstream);
        if permit.is_some() || no_budget {
            router.tally.retrying += 1;
            router.tally.budgets[budget_of(upstream)].retries[failure.retry() as usize] += 1;
            attempt.permit = permit;
            attempt.is_counted = true;
            attempt.stage = Stage::Sent;
            let node = job.node;
            self.check_retries(node);
            return self.send(id);
        }
        if self.now >= until || router.retries.is_spent(failure.retry(), upstream) {
            drop(job.attempt.take());
            return self.give_up(id);
        }
        self.after(RETRY_PAUSE, Event::Advance { job: id, attempt: number });
    }

    /// Ends an attempt's own state; the guard is finished with what it was, or dropped when nobody can tell.
    pub(crate) fn close_attempt(&mut self, id: u64, ok: Option<bool>) -> Option<Attempt> {
        let now = self.instant();
        let leaks = self.is_broken(Breakage::LeakSlot);
        let job = self.jobs.get_mut(&id)?;
        let mut attempt = job.attempt.take()?;
        let (node, life) = (job.node, job.life);
        match (attempt.guard.take(), ok) {
            (Some(guard), Some(ok)) => guard.finish(now, ok),
            (Some(guard), None) if leaks => std::mem::forget(guard),
            (Some(guard), None) => drop(guard),
            (None, _) => {}
        }
        if let Stage::Waits(place) = attempt.stage
            && let Some(queue) = self.nodes[node].lines.get_mut(&attempt.choice.offer.upstream)
        {
            queue.line.leave(place);
            queue.turns.remove(&place);
        }
        self.release_permit(node, life, &mut attempt);
        if let Some((provider, most)) = attempt.reserved.take() {
            self.settle(node, provider, most, &attempt);
        }
        Some(attempt)
    }

    /// Gives a retry's permit back.
    fn release_permit(&mut self, node: usize, life: u32, attempt: &mut Attempt) {
        attempt.permit = None;
        if std::mem::take(&mut attempt.is_counted) && self.nodes[node].life == life {
            let tally = &mut self.nodes[node].tally;
            tally.retrying = tally.retrying.saturating_sub(1);
        }
    }

    /// An attempt failed before anything was given on, or after.
    pub(crate) fn attempt_failed(&mut self, id: u64, failure: Failure) {
        let now = self.instant();
        let again = self.is_broken(Breakage::RetryAfterCommit);
        let Some(attempt) = self.close_attempt(id, Some(failure.is_blameless())) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.committed && !again {
            return self.end_job(id, Err(failure));
        }
        job.committed = false;
        if let Some(pause) = failure.pause() {
            let loads = &self.nodes[job.node].loads;
            job.candidates.throttled(&attempt.choice, failure == Failure::Full, pause, loads, now);
        }
        job.last = Some(failure);
        if failure.is_retryable() { self.advance(id) } else { self.give_up(id) }
    }

    /// The first piece, or a whole answer: from here on there is no other attempt.
    pub(crate) fn commit(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.committed = true;
        let (node, life, is_first) = (job.node, job.life, job.tries.is_first());
        let attempt = job.attempt.take();
        if let Some(mut attempt) = attempt {
            if is_first {
                let upstream = &attempt.choice.offer.upstream;
                self.nodes[node].retries.deposit(upstream);
                self.nodes[node].tally.budgets[budget_of(upstream)].deposits += 1;
            }
            self.release_permit(node, life, &mut attempt);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.attempt = Some(attempt);
            }
        }
        self.leave_budget(id);
    }

    /// A request is under way, to the retry budget, until it commits or ends.
    fn leave_budget(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.active.take().is_some() && self.nodes[job.node].life == job.life {
            let tally = &mut self.nodes[job.node].tally;
            tally.active = tally.active.saturating_sub(1);
        }
    }

    /// A job is over: its outcome is learnt, and whoever waits hears of it.
    pub(crate) fn end_job(&mut self, id: u64, how: Result<(u64, u32), Failure>) {
        if let Some(attempt) = self.close_attempt(id, how.is_ok().then_some(true)) {
            drop(attempt);
        }
        self.leave_budget(id);
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some(parent) = job.parent {
            self.workers.remove(&parent);
        }
        self.trace.note(self.now, if how.is_ok() { "done" } else { "fails" }, job.node, id);
        match job.parent {
            Some((parent, attempt)) if !job.is_cut => {
                let news = match how {
                    Ok((source, pieces)) => News::End { source, pieces },
                    Err(failure) => News::Failed(failure),
                };
                let _ = self.tell_across(job.node, parent, attempt, job.told_at, news);
            }
            Some(_) => {}
            None => match how {
                Ok((source, pieces)) => self.client_end(job.client, source, pieces),
                Err(_) => self.end_client(job.client, "failed"),
            },
        }
    }

    /// Counts how an attempt's host did, for all to learn.
    pub(crate) fn learn(
        &mut self,
        node: usize,
        arm: &shoal_routing::ArmId,
        reward: Reward,
        ttft_ms: Option<u64>,
    ) {
        *self.nodes[node].learned.entry(arm.clone()).or_default() += 1;
        self.nodes[node].learning.own.record_end(arm, reward, ttft_ms);
    }

    /// A client goes away.
    pub(crate) fn hang_up(&mut self, client: usize) {
        if self.clients[client].ends > 0 {
            return;
        }
        let job = self.jobs.iter().find(|(_, job)| job.client == client && job.parent.is_none());
        if let Some(id) = job.map(|(id, _)| *id) {
            self.abandon(id);
        }
        self.end_client(client, "cancelled");
    }

    /// Drops a job as its future is dropped: nothing is recorded of its host, its workers hear of it.
    pub(crate) fn abandon(&mut self, id: u64) {
        let number = self.jobs.get(&id).and_then(|job| job.attempt.as_ref()).map(|attempt| attempt.number);
        if let Some(number) = number {
            self.tell_worker_to_stop(id, number);
        }
        self.close_attempt(id, None);
        self.leave_budget(id);
        if let Some(parent) = self.jobs.remove(&id).and_then(|job| job.parent) {
            self.workers.remove(&parent);
        }
    }

    /// Times out what is silent.
    pub(crate) fn patience(&mut self, id: u64, number: u32) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(attempt) = job.attempt.as_ref().filter(|attempt| attempt.number == number) else { return };
        let grace = if job.hop == 0 { GRACE } else { Duration::ZERO };
        let limit = grace + if attempt.progress == 0 { FIRST_PIECE } else { BETWEEN };
        let (silent_at, dead_at) = (attempt.sent_at + limit, job.began + DEADLINE);
        let at = silent_at.min(dead_at);
        if self.now < at {
            return self.events.plan(at, Event::Patience { job: id, attempt: number });
        }
        self.tell_worker_to_stop(id, number);
        let failure = if self.now >= dead_at { Failure::Deadline } else { Failure::Timeout };
        self.attempt_failed(id, failure);
    }

    /// Leaves what an attempt set aside in the books: its router died, and bills come all the same.
    pub(crate) fn forget_to_settle(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let node = job.node;
        let Some(attempt) = &mut job.attempt else { return };
        let Some((provider, most)) = attempt.reserved.take() else { return };
        let cost = cost_of(attempt, most);
        if let Some(purse) = self.nodes[node].disk.purses.get_mut(&provider) {
            purse.billed += cost;
        }
    }

    /// What an attempt at a provider cost, by what came of it.
    fn settle(&mut self, node: usize, provider: usize, most: u64, attempt: &Attempt) {
        let cost = cost_of(attempt, most);
        if let Some(purse) = self.nodes[node].disk.purses.get_mut(&provider) {
            purse.billed += cost;
            purse.settle(most, cost);
        }
        self.check_purse(node, provider);
    }
}

/// What a provider bills for an attempt, micro-USD: its prompt and the pieces that came.
fn cost_of(attempt: &Attempt, most: u64) -> u64 {
    let price = attempt.choice.offer.price.unwrap_or_default();
    price.cost(Tokens(32), Tokens(attempt.pieces * PIECE)).0.min(most)
}
