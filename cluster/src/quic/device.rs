//! A device's side: links to a few routers, kept up by dialling out only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use shoal_proto::{DeviceAnnounce, DeviceWelcome};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::frames::{FrameReader, FrameWriter, StreamKind};
use super::pulse::{self, WorkList};
use super::rpc::{ANNOUNCE_LIMIT, INBOUND, SEND_DEADLINE, serve_infer};
use super::{Alpn, Error, Inbound, Link, Net, RouterAddr, code};
use crate::identity::Identity;
use crate::ids::NodeId;

/// The announcement is repeated so often even if nothing changed.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);
/// First wait before a router is dialled again.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait before a router is dialled again.
const BACK_OFF_LAST: Duration = Duration::from_secs(5);
/// How often a device asks its routers whether they are there: with [`ROUTER_SILENT`] a dead one is replaced within 4 s,
/// where the connection alone would be believed for 15.
const PULSE_EVERY: Duration = Duration::from_millis(1_500);
/// The same on battery, where each question wakes a radio.
const PULSE_EVERY_ON_BATTERY: Duration = Duration::from_secs(10);
/// A router that has not answered for so long is doubted: another is linked to beside it.
const ROUTER_SILENT: Duration = Duration::from_millis(1_750);
/// Routers remembered for dialling; a device needs a few that live, not the whole mesh.
const ROUTERS_REMEMBERED: usize = 64;

/// How a device links to its mesh.
#[derive(Debug, Clone)]
pub struct DeviceSettings {
    /// UDP address to dial from, usually `[::]:0`.
    pub listen: SocketAddr,
    /// Routers to dial at first; more are learnt from them.
    pub routers: Vec<RouterAddr>,
    /// Links to keep, each to another router; 2 survive the loss of one.
    pub links: usize,
}

/// A link that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// The router.
    pub router: NodeId,
    /// Its name for people.
    pub name: String,
    /// Where it was dialled.
    pub addr: SocketAddr,
}

/// Keeps a device's links up.
#[derive(Debug)]
pub struct DeviceLink {
    shared: Arc<Shared>,
    wanted: usize,
}

/// Talks to the running [`DeviceLink`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    net: Net,
    announce: watch::Sender<Option<DeviceAnnounce>>,
    links: watch::Sender<Vec<LinkState>>,
    routers: watch::Sender<Vec<RouterAddr>>,
    inbound: mpsc::Sender<Inbound>,
    work: WorkList,
    /// Linked routers that do not answer just now. Their links stay, since a router that is only slow still carries
    /// answers, but they count for nothing.
    doubted: watch::Sender<BTreeSet<NodeId>>,
}

impl DeviceHandle {
    /// Sets what the device says of itself: sent at once on every link, repeated every 5 s and on new links.
    pub fn announce(&self, announce: DeviceAnnounce) {
        self.shared.announce.send_replace(Some(announce));
    }

    /// Links that are up.
    pub fn links(&self) -> watch::Receiver<Vec<LinkState>> {
        self.shared.links.subscribe()
    }

    /// Routers known, newest knowledge; worth keeping for the next start.
    pub fn routers(&self) -> watch::Receiver<Vec<RouterAddr>> {
        self.shared.routers.subscribe()
    }
}

#[cfg(test)]
impl DeviceHandle {
    pub(super) fn learn(&self, router: RouterAddr) {
        self.shared.routers.send_modify(|routers| routers.push(router));
    }

    pub(super) async fn connection_to(&self, id: &NodeId, addr: SocketAddr) -> quinn::Connection {
        self.shared.net.connect_to(id, &[addr], Alpn::Rpc).await.expect("linked").connection
    }
}

/// When a router may be dialled again.
#[derive(Debug, Clone, Copy)]
struct BackOff {
    failures: u32,
    until: Instant,
}

impl DeviceLink {
    /// Binds the socket to dial from. Nothing is dialled until [`DeviceLink::run`].
    ///
    /// # Errors
    /// As [`Net::bind`].
    pub fn bind(
        settings: DeviceSettings,
        identity: Arc<Identity>,
    ) -> Result<(Self, DeviceHandle, mpsc::Receiver<Inbound>), Error> {
        let (net, _, _) = Net::bind(identity, settings.listen)?;
        let (inbound, receiver) = mpsc::channel(INBOUND);
        let shared = Arc::new(Shared {
            net,
            announce: watch::Sender::new(None),
            links: watch::Sender::new(Vec::new()),
            routers: watch::Sender::new(settings.routers),
            inbound,
            work: WorkList::default(),
            doubted: watch::Sender::new(BTreeSet::new()),
        });
        let handle = DeviceHandle { shared: shared.clone() };
        Ok((Self { shared, wanted: settings.links.max(1) }, handle, receiver))
    }

    /// Keeps links up until `shutdown`.
    ///
    /// # Errors
    /// None at present; a router that cannot be reached is tried again.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut sessions = JoinSet::new();
        let mut busy = BTreeSet::new();
        let mut back_off = BTreeMap::<NodeId, BackOff>::new();
        let mut routers = self.shared.routers.subscribe();
        let mut doubted = self.shared.doubted.subscribe();
        loop {
            let mut retry_at = None;
            // Twice as many at most: where nobody answers, it is this device that is cut off.
            while busy.len() - self.doubted_among(&busy) < self.wanted && busy.len() < 2 * self.wanted {
                match self.choose(&busy, &back_off) {
                    Choice::Dial(id, addrs) => {
                        busy.insert(id.clone());
                        let session = session(self.shared.clone(), id, addrs);
                        sessions.spawn(session.in_current_span());
                    }
                    Choice::Wait(until) => {
                        retry_at = until;
                        break;
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = sessions.join_next() => {
                    let Ok((id, was_up)) = ended else { continue }; // a panic; the runtime reports it
                    busy.remove(&id);
                    let failures = if was_up { 0 } else { back_off.get(&id).map_or(0, |old| old.failures + 1) };
                    let until = Instant::now() + back_off_after(failures);
                    back_off.insert(id, BackOff { failures, until });
                }
                Ok(()) = routers.changed() => {}
                Ok(()) = doubted.changed() => {}
                () = sleep_until(retry_at), if retry_at.is_some() => {}
            }
        }
        self.shared.net.close();
        sessions.shutdown().await;
        self.shared.net.drained().await;
        Ok(())
    }

    fn doubted_among(&self, busy: &BTreeSet<NodeId>) -> usize {
        self.shared.doubted.borrow().intersection(busy).count()
    }

    /// Picks the router that has failed least, any of those at random.
    fn choose(&self, busy: &BTreeSet<NodeId>, back_off: &BTreeMap<NodeId, BackOff>) -> Choice {
        let now = Instant::now();
        let mut addrs = BTreeMap::<NodeId, Vec<SocketAddr>>::new();
        for router in self.shared.routers.borrow().iter() {
            if !busy.contains(&router.id) {
                addrs.entry(router.id.clone()).or_default().push(router.addr);
            }
        }
        let rest = |id: &NodeId| back_off.get(id).filter(|back_off| back_off.until > now);
        let failures = |id: &NodeId| back_off.get(id).map_or(0, |back_off| back_off.failures);
        let ready = addrs.keys().filter(|id| rest(id).is_none());
        let chosen = ready.min_by_key(|id| (failures(id), rand::rng().random::<u32>())).cloned();
        match chosen {
            Some(id) => {
                let addrs = addrs.remove(&id).unwrap_or_default();
                Choice::Dial(id, addrs)
            }
            None => Choice::Wait(addrs.keys().filter_map(rest).map(|back_off| back_off.until).min()),
        }
    }
}

enum Choice {
    Dial(NodeId, Vec<SocketAddr>),
    Wait(Option<Instant>),
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Doubles from 100 ms to 5 s, of which a random half to all is waited, so that devices do not come in step.
fn back_off_after(failures: u32) -> Duration {
    let full = BACK_OFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACK_OFF_LAST);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// One link from dial to end; says whether it was ever up.
async fn session(shared: Arc<Shared>, id: NodeId, addrs: Vec<SocketAddr>) -> (NodeId, bool) {
    let link = match shared.net.connect_to(&id, &addrs, Alpn::Rpc).await {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(router = %id, %error, "cannot link");
            return (id, false);
        }
    };
    let mut was_up = false;
    let result = converse(&shared, &link, &mut was_up).await;
    shared.links.send_if_modified(|links| {
        let before = links.len();
        links.retain(|state| state.router != id);
        links.len() != before
    });
    shared.doubt(&id, false);
    if let Err(error) = result {
        tracing::info!(router = %id, %error, "a link closed");
    }
    link.connection.close(code::DONE, b"link ended");
    (id, was_up)
}

/// Announces, listens and takes work until the connection ends.
async fn converse(shared: &Arc<Shared>, link: &Link, was_up: &mut bool) -> Result<(), Error> {
    let (send, receive) = link.connection.open_bi().await?;
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    writer.kind(StreamKind::Announce).await?;
    let mut announce = shared.announce.subscribe();
    announce.mark_changed();
    let mut repeat = tokio::time::interval(ANNOUNCE_EVERY);
    let mut work = JoinSet::new();
    let mut pulse = std::pin::pin!(look_after(shared, link));
    loop {
        let say = tokio::select! {
            lost = &mut pulse => return Err(lost),
            Ok(()) = announce.changed() => true,
            _ = repeat.tick() => true,
            Some(_) = work.join_next() => false,
            welcome = reader.next::<DeviceWelcome>(ANNOUNCE_LIMIT) => {
                let welcome = welcome?.ok_or(Error::Truncated)?;
                if !std::mem::replace(was_up, true) {
                    tracing::info!(router = %link.peer.id, name = welcome.node_name, "linked");
                }
                learn(shared, link, &welcome);
                false
            }
            accepted = link.connection.accept_bi() => {
                let (send, receive) = accepted?;
                let (writer, reader) = (FrameWriter::new(send), FrameReader::new(receive));
                let serve = take_work(shared.clone(), link.clone(), writer, reader);
                work.spawn(serve.in_current_span());
                false
            }
        };
        if say {
            repeat.reset();
            let newest = announce.borrow_and_update().clone();
            if let Some(newest) = newest {
                writer.send_within(&newest, ANNOUNCE_LIMIT, SEND_DEADLINE).await?;
            }
        }
    }
}

/// Asks the router whether it is there, for as long as the link lives; doubts it while it does not answer.
async fn look_after(shared: &Arc<Shared>, link: &Link) -> Error {
    let id = &link.peer.id;
    loop {
        tokio::time::sleep(shared.pulse_every()).await;
        let mut answer = std::pin::pin!(pulse::ask(link.connection.clone(), String::new()));
        let answered = match tokio::time::timeout(ROUTER_SILENT, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                shared.doubt(id, true);
                answer.await
            }
        };
        if let Err(lost) = answered {
            return lost;
        }
        shared.doubt(id, false);
    }
}

impl Shared {
    fn pulse_every(&self) -> Duration {
        let announce = self.announce.borrow();
        let device = announce.as_ref().and_then(|announce| announce.device.as_ref());
        let on_battery = device.is_some_and(|d| d.battery_percent.is_some() && d.charging != Some(true));
        if on_battery { PULSE_EVERY_ON_BATTERY } else { PULSE_EVERY }
    }

    fn doubt(&self, router: &NodeId, is_silent: bool) {
        self.doubted.send_if_modified(|doubted| {
            if is_silent {
                tracing::info!(%router, "a router does not answer; linking to another beside it");
                doubted.insert(router.clone())
            } else {
                doubted.remove(router)
            }
        });
    }
}

async fn take_work(shared: Arc<Shared>, link: Link, writer: FrameWriter, mut reader: FrameReader) {
    let result = match reader.kind().await {
        Ok(StreamKind::Infer) => serve_infer(&link.peer, writer, reader, &shared.inbound, &shared.work).await,
        Ok(StreamKind::Pulse) => pulse::answer(&link.peer.id, writer, reader, &shared.work).await,
        Ok(StreamKind::Announce) => Err(Error::Protocol("a router announces nothing".to_owned())),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::debug!(router = %link.peer.id, %error, "a stream ended early");
    }
}

/// Enters the router as linked, and remembers the routers that it names.
fn learn(shared: &Shared, link: &Link, welcome: &DeviceWelcome) {
    let state =
        LinkState { router: link.peer.id.clone(), name: welcome.node_name.clone(), addr: link.remote() };
    shared.links.send_if_modified(|links| {
        if links.contains(&state) {
            return false;
        }
        links.retain(|other| other.router != state.router);
        links.push(state);
        true
    });
    let mut known: Vec<RouterAddr> =
        welcome.routers.iter().filter_map(|text| text.parse().ok()).take(ROUTERS_REMEMBERED).collect();
    known.sort();
    known.dedup();
    // A router that names nobody (it has just started) must not make the device forget the others.
    shared.routers.send_if_modified(|routers| {
        let mut merged = known;
        for old in routers.iter() {
            let replaced = merged.iter().any(|new| new.id == old.id);
            if !replaced && merged.len() < ROUTERS_REMEMBERED {
                merged.push(old.clone());
            }
        }
        merged.sort();
        let changed = merged != *routers;
        *routers = merged;
        changed
    });
}
