//! One run: all state, and the loop that lets one event happen after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::{ModelSpec, Offer, Price, UpstreamId};

use crate::Options;
use crate::breakage::Breakage;
use crate::check::Truth;
use crate::device::Device;
use crate::events::{At, Event, Events};
use crate::identity::SimAuthority;
use crate::money::Purse;
use crate::net::Net;
use crate::node::{Freed, Node};
use crate::request::{Client, Job, PROVIDER_MODEL, PROVIDERS, Run, Worker};
use crate::scenario::{LASTS, Scenario, TRAFFIC_ENDS};
use crate::trace::Trace;

/// Wall clock at the start of a run, milliseconds since the Unix epoch.
const EPOCH_MS: i64 = 1_750_000_000_000;

/// How often everything is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Price of each provider, micro-USD per million tokens of prompt and answer, and what a router may spend there:
/// some twenty requests.
const PRICE: u64 = 40_000_000;
const PURSE: u64 = 60_000;

/// Everything.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) breakage: Option<Breakage>,
    pub(crate) rng: StdRng,
    pub(crate) now: At,
    base: Instant,
    pub(crate) events: Events,
    pub(crate) trace: Trace,
    pub(crate) net: Net,
    pub(crate) authority: Arc<SimAuthority>,
    pub(crate) nodes: Vec<Node>,
    /// Routers by their id.
    pub(crate) numbers: BTreeMap<Arc<str>, usize>,
    pub(crate) devices: Vec<Device>,
    pub(crate) device_numbers: BTreeMap<Arc<str>, usize>,
    pub(crate) providers_out: [u32; 2],
    pub(crate) clients: Vec<Client>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) runs: BTreeMap<u64, Run>,
    pub(crate) workers: BTreeMap<(u64, u32), Worker>,
    pub(crate) next_id: u64,
    pub(crate) freed: Freed,
    /// Jobs that lost their place in a line just now.
    pub(crate) displaced: Vec<u64>,
    pub(crate) truth: Truth,
    pub(crate) violation: Option<String>,
    /// When the paths between routers last changed.
    pub(crate) paths_changed: At,
    pub(crate) storms: Vec<(usize, f64)>,
    pub(crate) most_sends: u32,
}

impl World {
    /// Draws a world from a seed and plans how it begins.
    pub(crate) fn new(seed: u64, base: Instant, options: &Options) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let scenario = Scenario::draw(options.most_nodes, &mut rng);
        let mut world = Self {
            breakage: options.breakage,
            now: At::ZERO,
            base,
            events: Events::default(),
            trace: Trace::new(options.trace),
            net: Net::new(scenario.weather),
            authority: Arc::default(),
            nodes: Vec::new(),
            numbers: BTreeMap::new(),
            devices: Vec::new(),
            device_numbers: BTreeMap::new(),
            providers_out: [0; 2],
            clients: Vec::new(),
            jobs: BTreeMap::new(),
            runs: BTreeMap::new(),
            workers: BTreeMap::new(),
            next_id: 0,
            freed: Freed::default(),
            displaced: Vec::new(),
            truth: Truth::default(),
            violation: None,
            paths_changed: At::ZERO,
            storms: Vec::new(),
            most_sends: 0,
            scenario,
            rng,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        for number in 0..self.scenario.nodes {
            self.add_node();
            if number == 0 || self.rng.random_bool(0.3) {
                self.give_provider(number, 0);
            }
            if self.rng.random_bool(0.2) {
                self.give_provider(number, 1);
            }
            self.start_node(number);
        }
        for number in 0..self.scenario.devices {
            let device = Device::draw(number, &mut self.rng);
            self.device_numbers.insert(device.name.clone(), number);
            self.devices.push(device);
            let at = Duration::from_millis(self.rng.random_range(0..1_500));
            self.events.plan(at, Event::Announce { device: number, life: 0 });
        }
        for (index, trouble) in self.scenario.faults.iter().enumerate() {
            self.events.plan(trouble.at, Event::Fault { index });
        }
        if let Some(node) = self.scenario.hostile {
            self.events.plan(Duration::from_secs(4), Event::Mischief { node });
        }
        self.trace.describe(&self.scenario);
        self.events.plan(Duration::from_secs(3), Event::Arrival);
        self.events.plan(CHECK_EVERY, Event::Check);
    }

    /// Adds a router that was never there; returns its number.
    pub(crate) fn add_node(&mut self) -> usize {
        let number = self.nodes.len();
        let node = Node::new(number, &self.authority, self.instant());
        self.numbers.insert(node.name.clone(), number);
        self.nodes.push(node);
        number
    }

    fn give_provider(&mut self, node: usize, provider: usize) {
        let name = PROVIDERS[provider];
        let mut spec = ModelSpec::new(format!("{name}/{PROVIDER_MODEL}"), "openai");
        spec.context = Some(shoal_routing::Tokens(128_000));
        let mut offer = Offer::new(UpstreamId::Provider(name.into()), Arc::new(spec));
        let each = shoal_routing::MicroUsd(PRICE);
        offer.price = Some(Price { input_per_million: each, output_per_million: each });
        offer.internal_ok = provider == 0;
        self.nodes[node].clouds.push(offer);
        self.nodes[node].disk.purses.insert(provider, Purse { limit: PURSE, ..Purse::default() });
    }

    /// Lets everything happen until the end, or until something must not have happened.
    pub(crate) fn run(&mut self) {
        while let Some((at, event)) = self.events.next() {
            if at > LASTS || self.violation.is_some() {
                break;
            }
            self.now = at;
            self.happen(event);
            self.serve_freed();
        }
        if self.violation.is_none() {
            self.now = LASTS;
            self.check_end();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Round { node, life } => self.round(node, life),
            Event::Lease { node, life } => self.lease(node, life),
            Event::Tick { node, life } => self.tick(node, life),
            Event::Mischief { node } => self.mischief(node),
            Event::Frame { from, to, message } => self.frame(from, to, message),
            Event::ConnectionLost { a, b } => self.connection_lost(a, b),
            Event::Pull { from, to, life, known } => self.pull(from, to, life, &known),
            Event::Pulled { from, to, life, blobs, answered } => {
                self.pulled(from, to, life, &blobs, answered);
            }
            Event::Announce { device, life } => self.announce(device, life),
            Event::Announced { node, life, device, info, leaving } => {
                self.announced(node, life, device, info, leaving);
            }
            Event::Arrival => self.arrival(),
            Event::HangUp { client } => self.hang_up(client),
            Event::Advance { job, attempt } => self.ask_permit_again(job, attempt),
            Event::Asked { job, attempt } => self.asked(job, attempt),
            Event::Told { job, attempt, news } => self.told(job, attempt, news),
            Event::Step { run } => self.step(run),
            Event::Dropped { job, attempt } => self.drop_worker(job, attempt),
            Event::Ping { job, attempt } => self.ping(job, attempt),
            Event::Patience { job, attempt } => self.patience(job, attempt),
            Event::Fault { index } => self.fault(index),
            Event::Mend { index } => self.mend(index),
            Event::Check => {
                self.check();
                self.after(CHECK_EVERY, Event::Check);
            }
        }
    }

    fn arrival(&mut self) {
        if self.now >= TRAFFIC_ENDS {
            return;
        }
        let mean = 1.0 / self.scenario.rate;
        let gap = -mean * (1.0 - self.rng.random::<f64>()).ln();
        // A burst now and then fills all slots, so that lines and refusals occur.
        let burst = if self.rng.random_bool(0.02) { self.rng.random_range(5..25) } else { 1 };
        self.after(Duration::from_secs_f64(gap * f64::from(burst)), Event::Arrival);
        for _ in 0..burst {
            let open: Vec<usize> =
                (0..self.nodes.len()).filter(|n| self.nodes[*n].up && !self.nodes[*n].draining).collect();
            if open.is_empty() {
                return;
            }
            let node = open[self.rng.random_range(0..open.len())];
            let client = Client::draw(node, &mut self.rng);
            let request = client.request.clone();
            self.clients.push(client);
            let number = self.clients.len() - 1;
            self.trace.note(self.now, "asks", node, number as u64);
            if self.rng.random_bool(0.08) {
                let after = Duration::from_millis(self.rng.random_range(1..3_000));
                self.after(after, Event::HangUp { client: number });
            }
            self.accept(node, number, request, 0, shoal_routing::MAX_ATTEMPTS, None);
        }
    }

    /// Plans an event a while from now.
    pub(crate) fn after(&mut self, wait: Duration, event: Event) {
        self.events.plan(self.now + wait, event);
    }

    /// The moment as Shoal's pure parts take it.
    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// The wall clock of a router, milliseconds since the Unix epoch.
    pub(crate) fn unix_ms(&self, node: usize) -> u64 {
        (EPOCH_MS + self.now.as_millis() as i64 + self.nodes[node].clock_ms) as u64
    }

    /// Makes a number for a job or a run.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Notes that something happened that must not. The first one counts.
    pub(crate) fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.trace.note(self.now, "VIOLATION", 0, 0);
        let at = self.now.as_secs_f64();
        self.violation.get_or_insert_with(|| format!("at {at:.3} s: {what}"));
    }

    /// True when a defect is switched on.
    pub(crate) fn is_broken(&self, breakage: Breakage) -> bool {
        self.breakage == Some(breakage)
    }

    /// True when two routers can hold a connection.
    pub(crate) fn connects(&self, a: usize, b: usize) -> bool {
        let members = self.nodes[a].is_member() && self.nodes[b].is_member();
        (members || self.is_broken(Breakage::RevokedStays) && self.nodes[a].up && self.nodes[b].up)
            && self.net.connects(a, b)
    }
}
