//! The task that knows which device runs which model: own engines, linked devices and the cluster view become
//! one immutable registry snapshot, and what is attached here is published to the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shoal_cluster::ClusterView;
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::{Key, Value};
use shoal_proto::DeviceInfo;
use shoal_routing::Registry;
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
}

/// Readers' side.
pub type Snapshot = Arc<ArcSwap<Inventory>>;

/// The owning task.
pub struct Service {
    me: NodeId,
    own: watch::Receiver<DeviceInfo>,
    events: mpsc::Receiver<LinkEvent>,
    view: watch::Receiver<Arc<ClusterView>>,
    linked: BTreeMap<NodeId, DeviceInfo>,
    published: BTreeMap<NodeId, DeviceInfo>,
    snapshot: Snapshot,
}

/// What the task does to the mesh.
pub trait Publish: Send {
    /// Publishes a value of this node.
    fn publish(&self, value: Value);
    /// Takes a value back.
    fn withdraw(&self, key: &Key);
}

impl Service {
    /// Makes the service; `own` describes this node's own engines and may have no models.
    pub fn new(
        me: NodeId,
        own: watch::Receiver<DeviceInfo>,
        events: mpsc::Receiver<LinkEvent>,
        view: watch::Receiver<Arc<ClusterView>>,
    ) -> (Self, Snapshot) {
        let snapshot = Snapshot::default();
        let service = Self {
            me,
            own,
            events,
            view,
            linked: BTreeMap::new(),
            published: BTreeMap::new(),
            snapshot: snapshot.clone(),
        };
        (service, snapshot)
    }

    /// Runs until shutdown.
    pub async fn run(mut self, mesh: impl Publish, shutdown: CancellationToken) {
        loop {
            self.refresh(&mesh);
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.apply(event),
                    None => return,
                },
                changed = self.view.changed() => if changed.is_err() { return },
                changed = self.own.changed() => if changed.is_err() { return },
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
                info.name = replication::clean(&info.name, 64);
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
        let registry = replication::registry(direct.values(), &view);
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
        self.snapshot.store(Arc::new(Inventory { registry, direct }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use shoal_proto::ModelInfo;

    use super::*;

    #[derive(Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Publish for Log {
        fn publish(&self, value: Value) {
            if let Value::Device(d) = value {
                self.0.lock().unwrap().push(format!("+{}", d.name));
            }
        }
        fn withdraw(&self, key: &Key) {
            self.0.lock().unwrap().push(format!("-{key}"));
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

    #[tokio::test]
    async fn devices_come_go_and_are_published_under_their_certificate() {
        let me = NodeId::from_spki(b"me");
        let phone = NodeId::from_spki(b"phone");
        let (_own, own) = watch::channel(DeviceInfo::default());
        let (events, queue) = mpsc::channel(EVENT_QUEUE);
        let (_view, view) = watch::channel(Arc::new(ClusterView::empty(me.clone())));
        let (service, snapshot) = Service::new(me, own, queue, view);
        let log = Log::default();
        let lines = log.0.clone();
        let mut forged = device(&NodeId::from_spki(b"other"), "phone", 2);
        events
            .send(LinkEvent::Announced { device: phone.clone(), info: forged.clone(), leaving: false })
            .await
            .unwrap();
        forged.name = "older".into();
        forged.seq = 1;
        events
            .send(LinkEvent::Announced { device: phone.clone(), info: forged, leaving: false })
            .await
            .unwrap();
        let task = crate::tasks::spawn(
            crate::tasks::TaskKind::Inventory,
            service.run(log, CancellationToken::new()),
        );
        events.send(LinkEvent::Closed { device: phone.clone() }).await.unwrap();
        drop(events);
        task.await.unwrap();
        assert_eq!(*lines.lock().unwrap(), ["+phone".to_owned(), format!("-dev/{phone}")]);
        assert!(snapshot.load().direct.is_empty());
    }
}
