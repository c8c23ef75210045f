//! The device's agent: tells the mesh what its engines can do, and answers what the mesh sends.
//!
//! It announces at once whenever an engine's status or the number of running answers changes; the link repeats the
//! newest announcement by itself. On shutdown it first says that it leaves, refuses what still arrives, and lets
//! running answers finish for a while, so that a router never sees a device vanish with its work.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use prost::Message;
use shoal_proto::{DeviceAnnounce, DeviceInfo, InferRequest};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::dispatch::Dispatch;
use super::engine::Engine;
use super::power::Power;
use super::serve;
use super::set::{load, models};
use super::slots::Slots;
use crate::upstream::BoxUpstream;
use crate::upstream::reply::Respond;

#[cfg(test)]
mod tests;

/// Longest time for running answers after the device said that it leaves.
pub const DRAIN: Duration = Duration::from_secs(30);

/// Largest description of a device: what fits, signed and in text form, into one gossip value.
pub const MAX_DESCRIPTION: usize = 5 * 1024;

/// Who the device is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Device id, from its certificate.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Start number; grows at each restart.
    pub generation: u64,
    /// Bound on answers at once, over all engines; `None` = the sum of what they take.
    pub max_slots: Option<u32>,
    /// Longest time for running answers at shutdown, usually [`DRAIN`].
    pub drain: Duration,
}

/// The mesh as the agent sees it; the cluster's device handle, or a fake in tests.
pub trait Mesh: Send + 'static {
    /// Address of a router, worth remembering.
    type Router: Clone + Send + Sync + 'static;

    /// Sets what the device says of itself, on all links.
    fn announce(&self, announce: DeviceAnnounce);
    /// Returns the routers that the device knows, as they are learnt.
    fn routers(&self) -> watch::Receiver<Vec<Self::Router>>;
}

/// A request that arrived, and where its answer goes.
#[derive(Debug)]
pub struct Work<R> {
    /// The request.
    pub request: InferRequest,
    /// Where the answer goes.
    pub responder: R,
}

/// Offers engines to the mesh.
#[derive(Debug)]
pub struct Agent<M> {
    settings: Settings,
    engines: Vec<Engine>,
    power: watch::Receiver<Power>,
    mesh: M,
    slots: Slots,
    seq: u64,
    cut_announced: bool,
}

impl<M: Mesh> Agent<M> {
    /// Makes the agent; nothing is announced until [`run`](Self::run).
    pub fn new(settings: Settings, engines: Vec<Engine>, power: watch::Receiver<Power>, mesh: M) -> Self {
        Self { settings, engines, power, mesh, slots: Slots::default(), seq: 0, cut_announced: false }
    }

    /// Announces and serves until `shutdown`, then drains.
    ///
    /// `remember` gets the routers whenever they change, to be kept for the next start. `work` is what the link
    /// receives; the link has to run until this returns.
    pub async fn run<R: Respond>(
        mut self,
        mut work: mpsc::Receiver<Work<R>>,
        mut remember: impl FnMut(&[M::Router]) + Send,
        shutdown: CancellationToken,
    ) {
        let upstream =
            BoxUpstream::new(Dispatch::new(&self.engines, &*self.settings.name, &*self.settings.id));
        let statuses = self.engines.iter().map(|engine| WatchStream::from_changes(engine.status.clone()));
        let mut statuses = stream::select_all(statuses);
        let mut in_flight = self.slots.changes();
        let mut power = WatchStream::from_changes(self.power.clone());
        let mut routers = self.mesh.routers();
        let mut answers = JoinSet::new();
        self.announce(false);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = statuses.next() => self.announce(false),
                () = in_flight.next() => self.announce(false),
                Some(_) = power.next() => self.announce(false),
                Ok(()) = routers.changed() => remember(&routers.borrow_and_update()),
                Some(_) = answers.join_next() => {}
                job = work.recv() => match job {
                    Some(job) => self.start(job, &upstream, &mut answers),
                    None => break,
                },
            }
        }
        self.drain(work, &upstream, answers).await;
    }

    fn start<R: Respond>(&self, job: Work<R>, upstream: &BoxUpstream, answers: &mut JoinSet<()>) {
        let (slots, upstream, limit) = (self.slots.clone(), upstream.clone(), self.limit());
        let span = tracing::debug_span!("infer", id = job.request.request_id, model = job.request.model);
        let answer = async move {
            let ending = serve::answer(job.request, job.responder, upstream, &slots, limit).await;
            tracing::debug!(?ending, "answered");
        };
        answers.spawn(answer.instrument(span));
    }

    /// Says goodbye and waits for running answers; what is left then is reset.
    async fn drain<R: Respond>(
        &mut self,
        mut work: mpsc::Receiver<Work<R>>,
        upstream: &BoxUpstream,
        mut answers: JoinSet<()>,
    ) {
        self.slots.close();
        self.announce(true);
        let finish = async {
            let mut idle = self.slots.changes();
            loop {
                tokio::select! {
                    biased;
                    Some(job) = work.recv() => self.start(job, upstream, &mut answers),
                    () = idle.idle() => break,
                    Some(_) = answers.join_next() => {}
                }
            }
            while answers.join_next().await.is_some() {}
        };
        if tokio::time::timeout(self.settings.drain, finish).await.is_err() {
            tracing::warn!(answers = self.slots.taken(), "leaving although answers are running");
        }
        answers.shutdown().await;
    }

    fn limit(&self) -> u32 {
        let sum = self.engines.iter().map(|engine| engine.status.borrow().slots).fold(0, u32::saturating_add);
        self.settings.max_slots.map_or(sum, |most| most.min(sum))
    }

    fn announce(&mut self, leaving: bool) {
        self.seq += 1;
        let load = load(&self.engines);
        let mut device = DeviceInfo {
            id: self.settings.id.clone(),
            name: self.settings.name.clone(),
            version: self.settings.version.clone(),
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            generation: self.settings.generation,
            seq: self.seq,
            slots: self.limit(),
            // Others may use the engines past the mesh.
            in_flight: self.slots.taken().saturating_add(load.running),
            queued: load.waiting,
            kv_percent: load.kv_percent.map(u32::from),
            models: models(&self.engines),
            ..DeviceInfo::default()
        };
        self.power.borrow().announce(&mut device);
        let offered = device.models.len();
        while device.encoded_len() > MAX_DESCRIPTION && device.models.pop().is_some() {}
        let cut = offered > device.models.len();
        if cut && !std::mem::replace(&mut self.cut_announced, cut) {
            let shown = device.models.len();
            tracing::warn!(
                offered,
                shown,
                "too many models for one announcement: the last by name are not offered"
            );
        }
        self.mesh.announce(DeviceAnnounce { device: Some(device), leaving });
    }
}
