//! What other nodes learnt, fetched: from whoever announced something newer, and all at once from whoever appears.
//!
//! Gossip says which state each node has published, the bytes are pulled. A router that becomes alive is asked for
//! everything it keeps, testimonies of nodes that are gone among them: so a node that joins, or comes back out of a
//! partition, knows what the mesh knows after one answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use shoal_cluster::ids::NodeId;
use shoal_cluster::{ClusterView, Handle};
use shoal_proto::{BlobVersion, PullStatisticsReply, PullStatisticsRequest, SignedBlob};
use tokio_util::sync::CancellationToken;

use crate::feedback::{FeedbackHandle, Learnt};

/// Wait for one answer.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// Pulls at once: a node that meets a mesh asks few, since the first answer brings most.
const PULLS: usize = 2;
/// Answers taken of one router in a row; each brings up to 1 MiB.
const ROUNDS: usize = 32;
/// Bytes of blobs in one answer; tonic takes messages of 4 MiB.
const REPLY_BYTES: usize = 1024 * 1024;
/// Most blobs of one answer that are looked at.
const MAX_BLOBS: usize = 256;
/// Shortest time between two pulls from one router, however often it announces something.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest time before a router whose statistics are not believed is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The same for one that did not answer: it may be the way to it, which is mended without anybody being told.
const UNHEARD_PAUSE: Duration = Duration::from_secs(1);
/// How often some router is asked for everything: news of the dead spreads no other way.
const EXCHANGE_EVERY: Duration = Duration::from_secs(30);

/// Position of an origin's testimony: its generation and version.
pub type Position = (u64, u64);

/// Pulls what is newer than what is known here, until shutdown.
pub async fn keep_statistics_equal(mesh: Handle, feedback: FeedbackHandle, shutdown: CancellationToken) {
    let mut view = mesh.view();
    let mut plan = Plan::new(Instant::now());
    loop {
        let known = positions(&feedback.learnt());
        let now_seen = view.borrow_and_update().clone();
        let wanted = plan.wanted(&now_seen, &known, Instant::now(), rand::random());
        let pulls = stream::iter(wanted)
            .map(async |id| {
                let result = pull(&mesh, &feedback, &id).await;
                (id, result)
            })
            .buffer_unordered(PULLS)
            .collect::<Vec<_>>();
        let ended = tokio::select! {
            ended = pulls => ended,
            () = shutdown.cancelled() => return,
        };
        let known = positions(&feedback.learnt());
        for (id, result) in ended {
            if let Err(error) = &result {
                tracing::debug!(node = %id.short(), %error, "statistics could not be pulled");
            }
            plan.ended(&now_seen, &known, &id, result.is_ok(), Instant::now());
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Answers a router: what is known here beyond what it knows, as far as one answer carries.
pub fn newer_than(
    request: &PullStatisticsRequest,
    learnt: &Learnt,
    caller: Option<&NodeId>,
) -> PullStatisticsReply {
    let known: BTreeMap<&str, Position> =
        request.known.iter().map(|k| (k.origin.as_str(), (k.generation, k.version))).collect();
    let newer = learnt.blobs.iter().filter(|(origin, blob)| {
        caller.is_none_or(|caller| caller.as_str() != &***origin)
            && known.get(&***origin).is_none_or(|known| (blob.generation, blob.version) > *known)
    });
    let mut reply = PullStatisticsReply::default();
    let mut bytes = 0;
    for (_, blob) in newer {
        bytes += prost::Message::encoded_len(blob.as_ref());
        if bytes > REPLY_BYTES && !reply.blobs.is_empty() {
            reply.more = true;
            break;
        }
        reply.blobs.push(blob.as_ref().clone());
    }
    reply
}

/// Takes everything newer that a router has.
async fn pull(mesh: &Handle, feedback: &FeedbackHandle, from: &NodeId) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        let before = positions(&feedback.learnt());
        let reply = tokio::time::timeout(PULL_WAIT, ask(mesh, from, &before)).await??;
        let blobs: Vec<SignedBlob> = reply
            .blobs
            .into_iter()
            .take(MAX_BLOBS)
            .filter(|blob| before.get(blob.origin.as_str()).is_none_or(|known| position(blob) > *known))
            .filter(|blob| match mesh.open_blob(blob) {
                Ok(_) => true,
                Err(refusal) => {
                    let reason = refusal.as_str();
                    metrics::counter!("shoal_statistics_refused_total", "reason" => reason).increment(1);
                    tracing::warn!(from = %from.short(), reason, "a router passed on statistics that nobody signed");
                    false
                }
            })
            .collect();
        if blobs.is_empty() {
            return Ok(());
        }
        metrics::counter!("shoal_statistics_pulled_total").increment(blobs.len() as u64);
        feedback.testify(blobs).await;
        // What is refused would come again and again.
        if !reply.more || positions(&feedback.learnt()) == before {
            return Ok(());
        }
    }
    Ok(())
}

async fn ask(
    mesh: &Handle,
    from: &NodeId,
    known: &BTreeMap<Arc<str>, Position>,
) -> anyhow::Result<PullStatisticsReply> {
    let known = known.iter().map(|(origin, (generation, version))| BlobVersion {
        origin: origin.to_string(),
        generation: *generation,
        version: *version,
    });
    let mut request = tonic::Request::new(PullStatisticsRequest { known: known.collect() });
    request.set_timeout(PULL_WAIT);
    Ok(mesh.control(from).await?.pull_statistics(request).await?.into_inner())
}

fn position(blob: &SignedBlob) -> Position {
    (blob.generation, blob.version)
}

fn positions(learnt: &Learnt) -> BTreeMap<Arc<str>, Position> {
    learnt.blobs.iter().map(|(origin, blob)| (origin.clone(), position(blob))).collect()
}

/// Whom to ask, and when again. Pure.
pub struct Plan {
    peers: BTreeMap<NodeId, Peer>,
    exchange_at: Instant,
}

/// What is remembered of a live router.
#[derive(Debug, Clone, Copy, Default)]
struct Peer {
    /// It was asked for everything since it became alive.
    greeted: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl Plan {
    /// Makes the plan of a node that starts.
    pub fn new(now: Instant) -> Self {
        Self { peers: BTreeMap::new(), exchange_at: now + EXCHANGE_EVERY }
    }

    /// Returns the routers to ask now: new ones, those that announced something newer, and now and then any.
    ///
    /// `known` are the positions of testimonies that are held; `chance` picks the one that is asked now and then.
    pub fn wanted(
        &mut self,
        view: &ClusterView,
        known: &BTreeMap<Arc<str>, Position>,
        now: Instant,
        chance: u32,
    ) -> Vec<NodeId> {
        let alive: Vec<&NodeId> = view.alive().map(|m| &m.id).filter(|id| **id != view.me).collect();
        self.peers.retain(|id, _| alive.contains(&id));
        let mut wanted: Vec<NodeId> = Vec::new();
        for id in &alive {
            let peer = self.peers.entry((*id).clone()).or_default();
            let due = peer.not_before.is_none_or(|at| now >= at);
            if due && (!peer.greeted || is_behind(view, known, id)) {
                wanted.push((*id).clone());
            }
        }
        if now >= self.exchange_at && !alive.is_empty() {
            self.exchange_at = now + EXCHANGE_EVERY;
            let any = alive[chance as usize % alive.len()];
            if !wanted.contains(any) {
                wanted.push(any.clone());
            }
        }
        wanted
    }

    /// Notes how a pull ended. An answer that left this node as far behind as before counts as a failure.
    pub fn ended(
        &mut self,
        view: &ClusterView,
        known: &BTreeMap<Arc<str>, Position>,
        id: &NodeId,
        answered: bool,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.greeted |= answered;
        if !answered {
            peer.not_before = Some(now + UNHEARD_PAUSE);
            return;
        }
        peer.failures = if is_behind(view, known, id) { peer.failures.saturating_add(1) } else { 0 };
        let pause = PAUSE * 2_u32.saturating_pow(peer.failures.min(10));
        peer.not_before = Some(now + pause.min(LONGEST_PAUSE));
    }
}

/// Tells whether a router announced something newer of itself than is known here.
fn is_behind(view: &ClusterView, known: &BTreeMap<Arc<str>, Position>, id: &NodeId) -> bool {
    let announced = view.members.get(id).and_then(|member| member.stats.as_ref());
    let known = known.get(id.as_str()).copied().unwrap_or_default();
    announced.is_some_and(|stats| (stats.generation, stats.version) > known)
}

#[cfg(test)]
mod tests {
    use shoal_cluster::Member;
    use shoal_proto::{ArmSummaries, NodeInfo};

    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId::from_spki(&[n])
    }

    fn view(members: &[(u8, Position)]) -> ClusterView {
        let members = members.iter().map(|(n, (generation, version))| Member {
            id: id(*n),
            info: NodeInfo::default(),
            devices: BTreeMap::new(),
            providers: BTreeMap::new(),
            stats: Some(ArmSummaries { arms: Vec::new(), generation: *generation, version: *version }),
            alive: true,
            last_seen: Instant::now(),
            generation: 1,
        });
        ClusterView { me: id(0), members: members.map(|m| (m.id.clone(), m)).collect() }
    }

    fn known(states: &[(u8, Position)]) -> BTreeMap<Arc<str>, Position> {
        states.iter().map(|(n, position)| (id(*n).as_str().into(), *position)).collect()
    }

    #[test]
    fn a_router_is_asked_when_it_appears_and_when_it_announces_news() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let (seen, nothing) = (view(&[(0, (1, 9)), (1, (0, 0))]), known(&[]));
        assert_eq!(plan.wanted(&seen, &nothing, now, 0), [id(1)], "it appeared");
        plan.ended(&seen, &nothing, &id(1), true, now);
        let later = now + PAUSE;
        assert!(plan.wanted(&seen, &nothing, later, 0).is_empty(), "nothing is new");
        let news = view(&[(1, (1, 5))]);
        assert_eq!(plan.wanted(&news, &nothing, later, 0), [id(1)]);
        assert!(plan.wanted(&news, &known(&[(1, (1, 5))]), later, 0).is_empty());
        assert_eq!(plan.wanted(&news, &known(&[(1, (0, 99))]), later, 0), [id(1)], "a new life");
        plan.wanted(&view(&[]), &nothing, later, 0);
        assert_eq!(plan.wanted(&seen, &nothing, later, 0), [id(1)], "it came back");
    }

    #[test]
    fn who_is_not_believed_is_asked_ever_less_often() {
        let mut now = Instant::now();
        let mut plan = Plan { peers: BTreeMap::new(), exchange_at: now + Duration::from_secs(86_400) };
        let (seen, nothing) = (view(&[(1, (1, 5))]), known(&[]));
        let mut pulls = 0;
        for _ in 0..6_000 {
            for id in plan.wanted(&seen, &nothing, now, 0) {
                plan.ended(&seen, &nothing, &id, true, now);
                pulls += 1;
            }
            now += Duration::from_millis(100);
        }
        assert!((10..20).contains(&pulls), "{pulls} in ten minutes");
        let believed = known(&[(1, (1, 5))]);
        plan.ended(&seen, &believed, &id(1), true, now);
        assert!(plan.peers[&id(1)].failures == 0);
    }

    #[test]
    fn who_does_not_answer_is_asked_again_soon_however_long_it_was_cut_off() {
        let mut now = Instant::now();
        let mut plan = Plan::new(now);
        let (seen, nothing) = (view(&[(1, (1, 5))]), known(&[]));
        for _ in 0..100 {
            assert_eq!(plan.wanted(&seen, &nothing, now, 0), [id(1)]);
            plan.ended(&seen, &nothing, &id(1), false, now);
            assert!(plan.wanted(&seen, &nothing, now, 0).is_empty(), "not at once");
            now += UNHEARD_PAUSE;
        }
    }

    #[test]
    fn now_and_then_anybody_is_asked_for_everything() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let (seen, all) = (view(&[(1, (1, 5)), (2, (1, 5))]), known(&[(1, (1, 5)), (2, (1, 5))]));
        for id in plan.wanted(&seen, &all, now, 0) {
            plan.ended(&seen, &all, &id, true, now);
        }
        assert!(plan.wanted(&seen, &all, now + PAUSE, 0).is_empty());
        assert_eq!(plan.wanted(&seen, &all, now + EXCHANGE_EVERY, 3).len(), 1);
        assert!(plan.wanted(&seen, &all, now + EXCHANGE_EVERY, 3).is_empty());
    }

    #[test]
    fn an_answer_holds_what_the_caller_lacks_and_is_bounded() {
        let blob = |n: u8, version| SignedBlob {
            origin: id(n).to_string(),
            generation: 1,
            version,
            payload: vec![0; 300 * 1024],
            ..SignedBlob::default()
        };
        let blobs = (1..=6).map(|n| (id(n).as_str().into(), Arc::new(blob(n, 5)))).collect();
        let learnt = Learnt { blobs, ..Learnt::default() };
        let mut have: Vec<BlobVersion> = Vec::new();
        let mut got = Vec::new();
        loop {
            let request = PullStatisticsRequest { known: have.clone() };
            let reply = newer_than(&request, &learnt, Some(&id(6)));
            assert!((1..=3).contains(&reply.blobs.len()));
            for blob in reply.blobs {
                have.push(BlobVersion { origin: blob.origin.clone(), generation: 1, version: 5 });
                got.push(blob.origin);
            }
            if !reply.more {
                break;
            }
        }
        got.sort();
        let mut others: Vec<String> = (1..=5).map(|n| id(n).to_string()).collect();
        others.sort();
        assert_eq!(got, others, "everything but its own");
        let request = PullStatisticsRequest { known: have };
        assert!(newer_than(&request, &learnt, Some(&id(6))).blobs.is_empty());
    }
}
