//! What a seed stands for: a mesh, its traffic and its bad luck.
//!
//! Time of a run: requests come for two thirds of it and faults begin in its first half, so that the end is quiet
//! and everything that should have healed can be asked for.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::events::At;

/// Virtual time of a run.
pub const LASTS: Duration = Duration::from_secs(60);

/// When the last request comes.
pub(crate) const TRAFFIC_ENDS: At = Duration::from_secs(38);

/// When the last fault has ended, whatever it was.
pub(crate) const FAULTS_END: At = Duration::from_secs(34);

/// The mesh of a run.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// Routers at the start, 3 to 100.
    pub(crate) nodes: usize,
    /// Devices.
    pub(crate) devices: usize,
    /// Of the routers, the one with a valid certificate that lies.
    pub(crate) hostile: Option<usize>,
    /// Requests that the whole mesh gets in a second.
    pub(crate) rate: f64,
    /// Time between two rounds of gossip.
    pub(crate) interval: Duration,
    /// Time between two looks of a router at its view.
    pub(crate) tick: Duration,
    /// How frames travel.
    pub(crate) weather: Weather,
    /// What goes wrong, when, and how long.
    pub(crate) faults: Vec<Trouble>,
}

/// How frames travel between routers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Weather {
    /// Share that is lost.
    pub(crate) loss: f64,
    /// Share that arrives twice.
    pub(crate) twice: f64,
    /// Share that is overtaken, by up to a second.
    pub(crate) late: f64,
    /// Shortest time of a frame, and what chance adds to it.
    pub(crate) delay: Duration,
    /// See [`delay`](Self::delay).
    pub(crate) jitter: Duration,
}

/// One fault with its time.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    /// When it begins.
    pub(crate) at: Duration,
    /// How long it lasts; not at all for what cannot be taken back.
    pub(crate) lasts: Duration,
    /// What.
    pub(crate) fault: Fault,
}

/// What can go wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// A router's process dies; it comes back with its data, as another router without, or never.
    Crash {
        /// Which.
        node: usize,
        /// How it comes back.
        back: Back,
    },
    /// The routers below `split` in a drawn order are cut off from the others.
    Partition {
        /// One side.
        left: Vec<usize>,
        /// Frames still go from the left to the right.
        one_way: bool,
    },
    /// One pair of routers is cut.
    Cut {
        /// From.
        a: usize,
        /// To.
        b: usize,
        /// The other way is open.
        one_way: bool,
    },
    /// Everything between routers becomes this lossy.
    Storm {
        /// Share of frames that are lost.
        loss: f64,
    },
    /// A router is slow: everything it sends comes later.
    SlowNode {
        /// Which.
        node: usize,
        /// By how much.
        by: Duration,
    },
    /// A router's wall clock is set.
    ClockJump {
        /// Which.
        node: usize,
        /// By how many milliseconds.
        by_ms: i64,
    },
    /// A router's identity is revoked.
    Revoke {
        /// Which.
        node: usize,
    },
    /// A router takes nothing new.
    Drain {
        /// Which.
        node: usize,
    },
    /// A device is silent, frozen as it is.
    Nap {
        /// Which.
        device: usize,
    },
    /// A device is silent again and again, a second or two each.
    Flap {
        /// Which.
        device: usize,
    },
    /// A device's process dies and starts again.
    DeviceCrash {
        /// Which.
        device: usize,
    },
    /// A device goes to other routers.
    Move {
        /// Which.
        device: usize,
    },
    /// A device is slower.
    SlowDevice {
        /// Which.
        device: usize,
        /// How often.
        times: f64,
    },
    /// A device fails a share of what it is asked.
    Faulty {
        /// Which.
        device: usize,
        /// The share.
        share: f64,
    },
    /// A provider is out.
    ProviderOut {
        /// Which.
        provider: usize,
    },
}

/// How a router that died comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// With its data: the same router, a later life.
    WithData,
    /// Without: another router.
    Without,
    /// Not at all.
    Never,
}

impl Scenario {
    /// Draws one. Most meshes are small, as most are; one in two hundred has up to a hundred routers.
    pub(crate) fn draw(most_nodes: usize, rng: &mut StdRng) -> Self {
        let nodes: usize = match rng.random_range(0..1_000) {
            0..640 => rng.random_range(3..=5),
            640..880 => rng.random_range(6..=9),
            880..970 => rng.random_range(10..=16),
            970..991 => rng.random_range(17..=30),
            991..998 => rng.random_range(31..=60),
            _ => rng.random_range(61..=100),
        };
        let nodes = if most_nodes > 0 { nodes.min(most_nodes.max(3)) } else { nodes };
        let devices = (nodes / 2 + rng.random_range(1..=nodes + 1)).min(40);
        let slow_mesh = nodes > 16;
        let weather = Weather {
            loss: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.0..0.15) },
            twice: if rng.random_bool(0.7) { 0.0 } else { rng.random_range(0.0..0.1) },
            late: if rng.random_bool(0.7) { 0.0 } else { rng.random_range(0.0..0.05) },
            delay: Duration::from_millis(rng.random_range(1..80)),
            jitter: Duration::from_millis(rng.random_range(1..60)),
        };
        let mut scenario = Self {
            nodes,
            devices,
            hostile: rng.random_bool(0.3).then(|| rng.random_range(1..nodes)),
            rate: rng.random_range(2.0..10.0),
            interval: Duration::from_millis(if slow_mesh { 500 } else { 300 }),
            tick: Duration::from_millis(match nodes {
                0..10 => 250,
                10..31 => 500,
                _ => 1_000,
            }),
            weather,
            faults: Vec::new(),
        };
        for _ in 0..rng.random_range(1..=7) {
            let trouble = scenario.trouble(rng);
            scenario.faults.push(trouble);
        }
        scenario
    }

    fn trouble(&self, rng: &mut StdRng) -> Trouble {
        let at = Duration::from_millis(rng.random_range(5_000..30_000));
        let most = (FAULTS_END - at).as_millis() as u64;
        let lasts = Duration::from_millis(rng.random_range(500..20_000).min(most));
        let (node, device) = (rng.random_range(0..self.nodes), rng.random_range(0..self.devices));
        let fault = match rng.random_range(0..18) {
            0..3 => Fault::Crash {
                node,
                back: match rng.random_range(0..5) {
                    0..3 => Back::WithData,
                    3 => Back::Without,
                    _ => Back::Never,
                },
            },
            3..5 => Fault::Partition {
                left: (0..self.nodes).filter(|_| rng.random_bool(0.5)).collect(),
                one_way: rng.random_bool(0.3),
            },
            5 => Fault::Cut { a: node, b: rng.random_range(0..self.nodes), one_way: rng.random_bool(0.5) },
            6 => Fault::Storm { loss: rng.random_range(0.1..0.5) },
            7 => Fault::SlowNode { node, by: Duration::from_millis(rng.random_range(100..900)) },
            8 => Fault::ClockJump { node, by_ms: rng.random_range(-3_600_000..3_600_000) },
            9 => Fault::Revoke { node },
            10 => Fault::Drain { node },
            11 => Fault::Nap { device },
            12 => Fault::Flap { device },
            13 => Fault::DeviceCrash { device },
            14 => Fault::Move { device },
            15 => Fault::SlowDevice { device, times: rng.random_range(2.0..20.0) },
            16 => Fault::Faulty { device, share: rng.random_range(0.2..1.0) },
            _ => Fault::ProviderOut { provider: rng.random_range(0..2) },
        };
        Trouble { at, lasts, fault }
    }
}
