//! A device in virtual time: slots, a bounded queue, a shared processor, and times when it is gone.
//!
//! Prompts that are read at once share the prefill rate, since reading is bound by arithmetic. Answers slow each other
//! a little, since writing is bound by memory and a batch reads the weights once. Both as llama.cpp and vLLM behave.

use std::collections::VecDeque;

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// Name in the table.
    pub name: &'static str,
    /// Requests that run at once.
    pub slots: u32,
    /// Prompt tokens read in a second, all prompts together.
    pub prefill_per_s: f64,
    /// Seconds for a token of a lone answer.
    pub token_s: f64,
    /// What each other running request adds to that, as a share.
    pub crowd: f64,
    /// Mean seconds up and down; `None` = always up.
    pub flaps: Option<(f64, f64)>,
}

/// Seconds that a request takes beside reading and writing: the way there, tokenising.
const BASE_S: f64 = 0.03;

/// Requests that wait for a slot, per slot; more are refused.
const QUEUE_PER_SLOT: usize = 2;

impl Kind {
    /// Returns the requests of a mean size that it completes in a second when all its slots are busy.
    pub fn capacity(&self, prompt: f64, output: f64) -> f64 {
        let slots = f64::from(self.slots);
        let token_s = self.token_s * (1.0 + self.crowd * (slots - 1.0));
        let up = self.flaps.map_or(1.0, |(up, down)| up / (up + down));
        up / (prompt / self.prefill_per_s + output * token_s / slots)
    }
}

/// A request on a device.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Number of the attempt.
    pub id: usize,
    phase: Phase,
    /// Tokens of the phase that are left.
    left: f64,
    /// Answer tokens after the first.
    output: f64,
    /// How much slower than the device's mean this one is.
    noise: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reading,
    Writing,
}

/// What happens on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The prompt is read and the first token is out.
    FirstToken(usize),
    /// The answer is whole.
    Finished(usize),
}

/// The state at one moment.
#[derive(Debug, Clone)]
pub struct Device {
    kind: Kind,
    now: f64,
    running: Vec<Job>,
    queue: VecDeque<Job>,
    /// Times when it is gone, in order: from, to.
    outages: Vec<(f64, f64)>,
}

impl Device {
    /// Makes an idle device.
    pub fn new(kind: Kind, outages: Vec<(f64, f64)>) -> Self {
        Self { kind, now: 0.0, running: Vec::new(), queue: VecDeque::new(), outages }
    }

    /// Makes the work that a request is here; `noise` is how much slower than usual this one runs.
    pub fn job(&self, id: usize, prompt: u32, output: u32, noise: f64) -> Job {
        let left = f64::from(prompt) + BASE_S * self.kind.prefill_per_s;
        Job { id, phase: Phase::Reading, left, output: f64::from(output.max(1) - 1), noise }
    }

    /// True when it is there.
    pub fn is_up(&self, at: f64) -> bool {
        !self.outages.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Returns when it goes next, or came back last, at or after `after`.
    pub fn next_turn(&self, after: f64) -> Option<f64> {
        self.outages.iter().flat_map(|(from, to)| [*from, *to]).find(|turn| *turn > after)
    }

    /// Returns running and waiting requests.
    pub fn counts(&self) -> (u32, u32) {
        (self.running.len() as u32, self.queue.len() as u32)
    }

    /// Takes a request, or puts it into its queue unless that is full or nothing is to be `queued`. The device must have
    /// been brought to the present.
    pub fn accept(&mut self, job: Job, queued: bool) -> bool {
        if self.running.len() < self.kind.slots as usize {
            self.running.push(job);
        } else if queued && self.queue.len() < QUEUE_PER_SLOT * self.kind.slots as usize {
            self.queue.push_back(job);
        } else {
            return false;
        }
        true
    }

    /// Gives up all requests, with whether their first token was out.
    pub fn fail_all(&mut self) -> Vec<(usize, bool)> {
        let begun = |job: &Job| (job.id, job.phase == Phase::Writing);
        let running = self.running.drain(..).collect::<Vec<_>>();
        running.iter().map(begun).chain(self.queue.drain(..).map(|job| (job.id, false))).collect()
    }

    /// Returns when something happens next if nothing new comes.
    pub fn next_event_at(&self) -> Option<f64> {
        self.next().map(|(_, after)| self.now + after)
    }

    /// Goes on to a moment before which nothing happens.
    pub fn pass(&mut self, to: f64) {
        let (rates, passed) = (self.rates(), (to - self.now).max(0.0));
        for job in &mut self.running {
            job.left = (job.left - passed * rates.of(job)).max(0.0);
        }
        self.now = self.now.max(to);
    }

    /// Goes on to the next event and returns it.
    pub fn step(&mut self) -> Option<Event> {
        let (index, after) = self.next()?;
        self.pass(self.now + after);
        let job = &mut self.running[index];
        match job.phase {
            Phase::Reading => {
                (job.phase, job.left) = (Phase::Writing, job.output);
                Some(Event::FirstToken(job.id))
            }
            Phase::Writing => {
                let done = self.running.swap_remove(index);
                self.running.extend(self.queue.pop_front());
                Some(Event::Finished(done.id))
            }
        }
    }

    /// Returns when a request that comes now would be whole if nothing came after it; `None` = never.
    pub fn would_finish(&self, job: Job) -> Option<f64> {
        if !self.is_up(self.now) {
            return None;
        }
        let mut future = self.clone();
        if !future.accept(job, true) {
            return None;
        }
        let gone = self.next_turn(self.now).unwrap_or(f64::INFINITY);
        loop {
            let event = future.step()?;
            if future.now >= gone {
                return None;
            }
            if event == Event::Finished(job.id) {
                return Some(future.now);
            }
        }
    }

    /// The request that comes to its next event first, and the seconds until then.
    fn next(&self) -> Option<(usize, f64)> {
        let rates = self.rates();
        let after = |job: &Job| if job.left > 0.0 { job.left / rates.of(job) } else { 0.0 };
        self.running.iter().map(after).enumerate().min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn rates(&self) -> Rates {
        let reading = self.running.iter().filter(|job| job.phase == Phase::Reading).count();
        let others = self.running.len().saturating_sub(1) as f64;
        Rates {
            read: self.kind.prefill_per_s / reading.max(1) as f64,
            write: 1.0 / (self.kind.token_s * (1.0 + self.kind.crowd * others)),
        }
    }
}

/// Tokens in a second, by phase, for each request.
#[derive(Debug, Clone, Copy)]
struct Rates {
    read: f64,
    write: f64,
}

impl Rates {
    fn of(self, job: &Job) -> f64 {
        let rate = match job.phase {
            Phase::Reading => self.read,
            Phase::Writing => self.write,
        };
        rate / job.noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind =
        Kind { name: "t", slots: 2, prefill_per_s: 1_000.0, token_s: 0.02, crowd: 0.5, flaps: None };

    fn drain(device: &mut Device) -> Vec<(Event, f64)> {
        std::iter::from_fn(|| device.step().map(|event| (event, device.now))).collect()
    }

    fn near(seen: f64, expected: f64) {
        assert!((seen - expected).abs() < 1e-9, "{seen} is not {expected}");
    }

    #[test]
    fn one_request_takes_reading_and_writing() {
        let mut device = Device::new(KIND, Vec::new());
        let job = device.job(7, 970, 51, 1.0);
        let told = device.would_finish(job).unwrap();
        assert!(device.accept(job, true));
        let events = drain(&mut device);
        assert_eq!(
            events.iter().map(|(event, _)| *event).collect::<Vec<_>>(),
            [Event::FirstToken(7), Event::Finished(7)]
        );
        near(events[0].1, 1.0);
        near(events[1].1, 2.0);
        near(told, 2.0);
    }

    #[test]
    fn two_share_the_processor_and_the_third_waits() {
        let mut device = Device::new(KIND, Vec::new());
        for id in 0..3 {
            let job = device.job(id, 970, 51, 1.0);
            assert!(device.accept(job, true));
        }
        let at = |events: &[(Event, f64)], wanted: Event| {
            events.iter().find(|(event, _)| *event == wanted).unwrap().1
        };
        let events = drain(&mut device);
        // Both read for two seconds at half the rate and write for one and a half in each other's company.
        near(at(&events, Event::FirstToken(0)), 2.0);
        near(at(&events, Event::Finished(0)), 3.5);
        assert!(at(&events, Event::FirstToken(2)) > 4.4);
    }

    #[test]
    fn a_full_queue_refuses_and_an_outage_ends_everything() {
        let mut device = Device::new(KIND, vec![(1.5, 9.0)]);
        for id in 0..6 {
            assert!(device.accept(device.job(id, 470, 51, 1.0), true));
        }
        assert!(!device.accept(device.job(6, 1, 1, 1.0), true));
        assert_eq!(device.would_finish(device.job(6, 1, 1, 1.0)), None);
        device.step();
        device.step();
        assert_eq!(device.next_turn(0.0), Some(1.5));
        assert!(device.is_up(1.4) && !device.is_up(1.5) && device.is_up(9.0));
        let failed = device.fail_all();
        assert_eq!(failed.iter().filter(|(_, begun)| *begun).count(), 2, "{failed:?}");
        assert_eq!((failed.len(), device.counts()), (6, (0, 0)));
    }
}
