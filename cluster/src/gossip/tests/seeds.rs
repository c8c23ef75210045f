//! Twenty seeds of chitchat itself, over QUIC, in virtual time: each draws a mesh, its weather and four faults, and
//! must end with equal live sets and the newest values everywhere.
//!
//! The network's schedule follows from the seed; TLS and chitchat draw from the system, so a repetition is near, not
//! equal. `SHOAL_GOSSIP_SEED` runs one seed alone. The model of gossip that runs ten thousand is in `sim/`.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// Seeds of a run, and faults of each.
const SEEDS: u64 = 20;
const FAULTS: usize = 4;

/// When all must be well again after the last fault: leases of both sides, and their way.
const HEALED: Duration = Duration::from_secs(12);

struct Owner {
    generation: u64,
    device: NodeId,
    seq: u64,
}

struct Run {
    seed: u64,
    rng: StdRng,
    mesh: SimMesh,
    owners: Vec<Owner>,
}

impl Run {
    async fn begin(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut mesh = SimMesh::new(seed);
        let (delay, jitter) = (rng.random_range(1..40), rng.random_range(1..20));
        mesh.sim.set_delay(Duration::from_millis(delay), Duration::from_millis(jitter));
        let nodes = rng.random_range(3..=6);
        for _ in 0..nodes {
            mesh.start(1);
        }
        let owner = |n| Owner { generation: 1, device: NodeId::from_spki(name(n).as_bytes()), seq: 0 };
        let mut run = Self { seed, rng, mesh, owners: (0..nodes).map(owner).collect() };
        run.calm();
        (0..nodes).for_each(|n| run.publish(n));
        run.must_agree().await;
        run
    }

    /// The loss of ordinary days.
    fn calm(&mut self) {
        self.mesh.sim.set_loss(if self.seed.is_multiple_of(2) { 0.0 } else { 0.04 });
    }

    fn publish(&mut self, node: usize) {
        self.owners[node].seq += 1;
        self.mesh.publish_device(node, &name(node), self.owners[node].seq);
    }

    async fn pause(&mut self, seconds: std::ops::Range<f64>) {
        let pause = Duration::from_secs_f64(self.rng.random_range(seconds));
        tokio::time::sleep(pause).await;
    }

    async fn fault(&mut self) {
        let nodes = self.owners.len();
        let one = self.rng.random_range(1..nodes);
        match self.rng.random_range(0..4) {
            0 => {
                self.mesh.sim.partition(&self.mesh.addrs(0..one), &self.mesh.addrs(one..nodes));
                (0..nodes).for_each(|n| self.publish(n));
                self.pause(1.0..9.0).await;
                self.mesh.sim.heal();
            }
            1 => {
                let other = self.rng.random_range(0..one);
                self.mesh.sim.cut_one_way(self.mesh.nodes[one].addr, self.mesh.nodes[other].addr);
                self.publish(one);
                self.pause(1.0..9.0).await;
                self.mesh.sim.heal();
            }
            2 => {
                self.mesh.kill(one).await;
                self.pause(0.2..8.0).await;
                self.mesh.sim.heal();
                self.owners[one].generation += 1;
                let old = &self.mesh.nodes[one];
                let (identity, addr) = (old.net.identity().clone(), old.addr);
                let generation = self.owners[one].generation;
                let again = start(&self.mesh.sim, identity, addr, generation, Some(&self.mesh.nodes[0]));
                self.mesh.nodes[one] = again;
                self.publish(one);
            }
            _ => {
                self.mesh.sim.set_loss(0.3);
                (0..nodes).for_each(|n| self.publish(n));
                self.pause(1.0..6.0).await;
                self.calm();
            }
        }
    }

    /// All see all, in their newest lives, with the newest value of each.
    async fn must_agree(&self) {
        let what = format!("all agree (SHOAL_GOSSIP_SEED={})", self.seed);
        within(HEALED, &what, || {
            (0..self.owners.len()).all(|reader| {
                let view = self.mesh.view(reader);
                self.owners.iter().enumerate().all(|(n, owner)| {
                    view.members.get(&self.mesh.nodes[n].id).is_some_and(|member| {
                        let device = member.devices.get(&owner.device);
                        member.alive
                            && member.generation == owner.generation
                            && device.is_some_and(|device| device.seq == owner.seq)
                    })
                })
            })
        })
        .await;
    }
}

fn name(node: usize) -> String {
    format!("device of {node}")
}

#[test]
fn twenty_seeds_of_faults_heal() {
    let alone: Option<u64> = std::env::var("SHOAL_GOSSIP_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = alone.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        // A runtime for each: what is left of a mesh ends with it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let mut run = Run::begin(seed).await;
            for _ in 0..FAULTS {
                run.fault().await;
            }
            run.must_agree().await;
        });
    }
}
