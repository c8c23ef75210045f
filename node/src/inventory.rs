//! The task that knows which device runs which model: own engines, linked devices and the cluster view become
//! one immutable registry snapshot, and what is attached here is published to the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shoal_cluster::ClusterView;
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::{Key, Value};
use shoal_proto::{DeviceInfo, ProviderInfo};
use shoal_routing::{LoadBook, Offer, Registry, UpstreamId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::replication;

/// Link events that may wait; the sender waits when it is full, since none may be lost.
pub const EVENT_QUEUE: usize = 256;

/// What happens on the links of devices to this node.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// A device said what it has.
    Announced {
        /// Id from the device's certificate.
        device: NodeId,
        /// Its announcement.
        info: DeviceInfo,
        /// True when it is about to leave.
        leaving: bool,
    },
    /// The last link of a device is gone.
    Closed {
        /// The device.
        device: NodeId,
    },
}

/// What is attached here and what the mesh has, at one moment.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Every model on every host, for the router.
    pub registry: Registry,
    /// Devices attached to this node, its own engines under its own id.
    pub direct: BTreeMap<NodeId, DeviceInfo>,
    /// Names of the providers that this node or another one has, also one that is away.
    pub providers: BTreeSet<Arc<str>>,
    /// When another router or a device was heard of first since the start.
    pub heard_at: Option<Instant>,
    /// Models that nobody serves now and somebody did lately, and when they were last seen.
    pub(crate) departed: BTreeMap<Arc<str>, Instant>,
}

/// How long a model whose last host went away is told from one that does not exist: phones and laptops come back.
const DEPARTED: Duration = Duration::from_secs(600);
/// Most names of such models.
const MAX_DEPARTED: usize = 256;

impl Inventory {
    /// True when nobody serves a model now and somebody did in the last ten minutes.
    pub fn has_departed(&self, model: &str, now: Instant) -> bool {
        self.departed.get(model).is_some_and(|at| now.saturating_duration_since(*at) < DEPARTED)
    }

    /// The models that are missed once `registry` takes the place of this one's.
    fn missed(&self, registry: &Registry, now: Instant) -> BTreeMap<Arc<str>, Instant> {
        let served = registry.models();
        let still = self.departed.iter().map(|(model, at)| (model.clone(), *at));
        let gone = self.registry.models().iter().map(|model| (model.clone(), now));
        still
            .chain(gone)
            .filter(|(model, at)| !served.contains(model) && now.saturating_duration_since(*at) < DEPARTED)
            .take(MAX_DEPARTED)
            .collect()
    }
}

/// Readers' side.
pub type Snapshot = Arc<ArcSwap<Inventory>>;

/// The owning task.
pub struct Service {
    me: NodeId,
    own: watch::Receiver<DeviceInfo>,
    events: mpsc::Receiver<LinkEvent>,
    view: watch::Receiver<Arc<ClusterView>>,
    clouds: watch::Receiver<Arc<Vec<Offer>>>,
    linked: BTreeMap<NodeId, DeviceInfo>,
    published: BTreeMap<NodeId, DeviceInfo>,
    published_providers: BTreeMap<String, ProviderInfo>,
    snapshot: Snapshot,
    loads: Option<Arc<LoadBook>>,
    heard_at: Option<Instant>,
}

/// What the task does to the mesh.
pub trait Publish: Send {
    /// Publishes a value of this node.
    fn publish(&self, value: Value);
    /// Takes a value back.
    fn withdraw(&self, key: &Key);
}

impl Service {
    /// Makes the service; `own` describes this node's own engines and may have no models, `clouds` are the offers
    /// of its providers.
    pub fn new(
        me: NodeId,
        own: watch::Receiver<DeviceInfo>,
        events: mpsc::Receiver<LinkEvent>,
        view: watch::Receiver<Arc<ClusterView>>,
        clouds: watch::Receiver<Arc<Vec<Offer>>>,
    ) -> (Self, Snapshot) {
        let snapshot = Snapshot::default();
        let service = Self {
            me,
            own,
            events,
            view,
            clouds,
            linked: BTreeMap::new(),
            published: BTreeMap::new(),
            published_providers: BTreeMap::new(),
            snapshot: snapshot.clone(),
            loads: None,
            heard_at: None,
        };
        (service, snapshot)
    }

    /// Tells a book of loads what devices say they run, so that other routers' requests are counted.
    #[must_use]
    pub fn reporting_to(self, loads: Arc<LoadBook>) -> Self {
        Self { loads: Some(loads), ..self }
    }

    /// Runs until shutdown. A mesh that stopped takes its devices with it; the own engines go on.
    pub async fn run(mut self, mesh: impl Publish, shutdown: CancellationToken) {
        let (mut links, mut others, mut engines, mut providers) = (true, true, true, true);
        loop {
            self.refresh(&mesh);
            tokio::select! {
                event = self.events.recv(), if links => match event {
                    Some(event) => self.apply(event),
                    None => {
                        links = false;
                        self.linked.clear();
                    }
                },
                changed = self.view.changed(), if others => others = changed.is_ok(),
                changed = self.clouds.changed(), if providers => providers = changed.is_ok(),
                changed = self.own.changed(), if engines => engines = changed.is_ok(),
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn apply(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Announced { device, leaving: true, .. } | LinkEvent::Closed { device } => {
                if let Some(old) = self.linked.remove(&device) {
                    tracing::info!(device = %device.short(), name = %old.name, "device left");
                }
            }
            LinkEvent::Announced { device, mut info, leaving: false } => {
                // The certificate says who it is, not the message.
                info.id = device.to_string();
                replication::clean_device(&mut info);
                match self.linked.get(&device) {
                    Some(old) if (old.generation, old.seq) > (info.generation, info.seq) => return,
                    Some(_) => {}
                    None => {
                        let models: Vec<&str> = info.models.iter().map(|m| m.id.as_str()).collect();
                        tracing::info!(device = %device.short(), name = %info.name, ?models, "device joined");
                    }
                }
                self.linked.insert(device, info);
            }
        }
    }

    fn refresh(&mut self, mesh: &impl Publish) {
        let mut direct = self.linked.clone();
        let own = self.own.borrow_and_update().clone();
        if !own.models.is_empty() {
            direct.insert(self.me.clone(), own);
        }
        let view = self.view.borrow_and_update().clone();
        let clouds = self.clouds.borrow_and_update().clone();
        let registry = replication::registry(direct.values(), &view, &clouds);
        let is_provider = |offer: &&Arc<Offer>| matches!(offer.upstream, UpstreamId::Provider(_));
        let offered = registry.offers().iter().filter(is_provider);
        let providers = offered.map(|offer| offer.upstream.name().clone()).collect();
        self.publish_providers(replication::providers::to_publish(&clouds), mesh);
        if let Some(loads) = &self.loads {
            let far = view
                .devices()
                .into_iter()
                .filter(|(id, _)| !direct.contains_key(*id))
                .map(|(id, d)| (id, d.info));
            for (id, info) in direct.iter().chain(far) {
                let upstream = UpstreamId::Device(id.as_str().into());
                let version = (info.generation, info.seq);
                loads.report(&upstream, version, replication::requests(info), Instant::now());
            }
        }
        for (id, info) in &direct {
            if self.published.get(id) != Some(info) {
                mesh.publish(Value::Device(info.clone()));
            }
        }
        for id in self.published.keys().filter(|id| !direct.contains_key(*id)) {
            mesh.withdraw(&Key::Device(id.clone()));
        }
        self.published = direct.clone();
        metrics::gauge!("shoal_devices_linked").set(direct.len() as f64);
        if self.heard_at.is_none()
            && (!self.linked.is_empty() || view.alive().any(|member| member.id != view.me))
        {
            self.heard_at = Some(Instant::now());
        }
        let heard_at = self.heard_at;
        let departed = self.snapshot.load().missed(&registry, Instant::now());
        self.snapshot.store(Arc::new(Inventory { registry, direct, providers, heard_at, departed }));
    }
}

impl Service {
    /// Tells the mesh what of this node's providers is new, and what is gone.
    fn publish_providers(&mut self, now: BTreeMap<String, ProviderInfo>, mesh: &impl Publish) {
        for (name, info) in &now {
            if self.published_providers.get(name) != Some(info) {
                mesh.publish(Value::Provider(info.clone()));
            }
        }
        for name in self.published_providers.keys().filter(|name| !now.contains_key(*name)) {
            mesh.withdraw(&Key::Provider(name.clone()));
        }
        self.published_providers = now;
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::ModelInfo;

    use super::*;
    use crate::tasks::{self, TaskKind};

    struct Log(mpsc::UnboundedSender<String>);

    impl Publish for Log {
        fn publish(&self, value: Value) {
            match value {
                Value::Device(d) => drop(self.0.send(format!("+{}", d.name))),
                Value::Provider(p) => {
                    drop(self.0.send(format!("+{} with {} models", p.name, p.models.len())))
                }
                _ => {}
            }
        }
        fn withdraw(&self, key: &Key) {
            let _ = self.0.send(format!("-{key}"));
        }
    }

    fn device(id: &NodeId, name: &str, seq: u64) -> DeviceInfo {
        DeviceInfo {
            id: id.to_string(),
            name: name.into(),
            seq,
            models: vec![ModelInfo { id: "m".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn announced(device: &NodeId, info: DeviceInfo) -> LinkEvent {
        LinkEvent::Announced { device: device.clone(), info, leaving: false }
    }

    #[tokio::test]
    async fn devices_come_go_and_are_published_under_their_certificate() {
        let me = NodeId::from_spki(b"me");
        let phone = NodeId::from_spki(b"phone");
        let (_own, own) = watch::channel(DeviceInfo::default());
        let (events, queue) = mpsc::channel(EVENT_QUEUE);
        let (_view, view) = watch::channel(Arc::new(ClusterView::empty(me.clone())));
        let (_clouds, clouds) = watch::channel(Arc::default());
        let (service, snapshot) = Service::new(me, own, queue, view, clouds);
        let (log, mut lines) = mpsc::unbounded_channel();
        let forged = device(&NodeId::from_spki(b"other"), "ph\u{1b}one", 2);
        events.send(announced(&phone, forged)).await.unwrap();
        events.send(announced(&phone, device(&phone, "older", 1))).await.unwrap();
        let shutdown = CancellationToken::new();
        let task = tasks::spawn(TaskKind::Inventory, service.run(Log(log), shutdown.clone()));
        assert_eq!(lines.recv().await.unwrap(), "+phone");
        events.send(LinkEvent::Closed { device: phone.clone() }).await.unwrap();
        assert_eq!(lines.recv().await.unwrap(), format!("-dev/{phone}"));
        shutdown.cancel();
        task.await.unwrap();
        let (inventory, now) = (snapshot.load(), Instant::now());
        assert!(inventory.direct.is_empty());
        assert!(inventory.has_departed("m", now) && !inventory.has_departed("n", now));
        assert!(!inventory.has_departed("m", now + DEPARTED), "after a while it does not exist");
    }

    #[test]
    fn a_model_that_is_served_again_is_not_missed() {
        let registry = |names: &[&str]| {
            let offer = |name: &&str| {
                let spec = Arc::new(shoal_routing::ModelSpec::new(*name, "d"));
                Offer::new(UpstreamId::Device("d".into()), spec)
            };
            Registry::new(names.iter().map(offer))
        };
        let now = Instant::now();
        let before = Inventory { registry: registry(&["a", "b"]), ..Inventory::default() };
        let departed = before.missed(&registry(&["b"]), now);
        assert_eq!(departed.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
        let after = Inventory { registry: registry(&["b"]), departed, ..Inventory::default() };
        assert!(after.missed(&registry(&["a", "b"]), now).is_empty());
        assert_eq!(after.missed(&registry(&[]), now).len(), 2);
        assert_eq!(after.missed(&registry(&["b"]), now + DEPARTED).len(), 0);
    }

    #[tokio::test]
    async fn providers_are_told_to_the_mesh_and_taken_back() {
        let me = NodeId::from_spki(b"me");
        let (_own, own) = watch::channel(DeviceInfo::default());
        let (_events, queue) = mpsc::channel(EVENT_QUEUE);
        let (_view, view) = watch::channel(Arc::new(ClusterView::empty(me.clone())));
        let spec = Arc::new(shoal_routing::ModelSpec::new("openai/gpt-x", "openai"));
        let offer = Offer::new(UpstreamId::Provider("openai".into()), spec);
        let (clouds, offers) = watch::channel(Arc::new(vec![offer]));
        let (service, snapshot) = Service::new(me, own, queue, view, offers);
        let (log, mut lines) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let task = tasks::spawn(TaskKind::Inventory, service.run(Log(log), shutdown.clone()));
        assert_eq!(lines.recv().await.unwrap(), "+openai with 1 models");
        clouds.send_replace(Arc::default());
        assert_eq!(lines.recv().await.unwrap(), "-prov/openai");
        shutdown.cancel();
        task.await.unwrap();
        assert!(snapshot.load().providers.is_empty());
    }

    #[tokio::test]
    async fn a_mesh_that_stopped_takes_its_devices_and_leaves_the_own_engines() {
        let me = NodeId::from_spki(b"me");
        let phone = NodeId::from_spki(b"phone");
        let (engines, own) = watch::channel(DeviceInfo::default());
        let (events, queue) = mpsc::channel(EVENT_QUEUE);
        let (view_sender, view) = watch::channel(Arc::new(ClusterView::empty(me.clone())));
        let (_clouds, clouds) = watch::channel(Arc::default());
        let (service, snapshot) = Service::new(me.clone(), own, queue, view, clouds);
        let (log, mut lines) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let task = tasks::spawn(TaskKind::Inventory, service.run(Log(log), shutdown.clone()));
        events.send(announced(&phone, device(&phone, "phone", 1))).await.unwrap();
        assert_eq!(lines.recv().await.unwrap(), "+phone");
        drop((events, view_sender));
        assert_eq!(lines.recv().await.unwrap(), format!("-dev/{phone}"));
        engines.send_replace(device(&me, "own", 1));
        assert_eq!(lines.recv().await.unwrap(), "+own");
        shutdown.cancel();
        task.await.unwrap();
        assert_eq!(snapshot.load().registry.models().len(), 1);
    }
}
