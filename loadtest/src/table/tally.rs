//! What a policy comes to over a stream of requests.

use super::rows::{Asked, Row, Set};

/// Time to the first token, at a device as at a provider, milliseconds: what a node assumes before it has measured.
pub(super) const FIRST_TOKEN_MS: f64 = 600.0;

/// Time per token at a provider, milliseconds: what a node assumes before it has measured.
pub(super) const PROVIDER_MS_PER_TOKEN: f64 = 15.0;

/// Sums over requests; a request that is sent to several arms by lot counts for each with its chance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    requests: f64,
    right: f64,
    unseen: f64,
    unseen_right: f64,
    cost_uusd: f64,
    latency_ms: f64,
    /// Restricted requests, and those of them that went to a provider.
    pub(super) restricted: f64,
    pub(super) leaked: f64,
}

impl Tally {
    /// Plays a policy that names arms with their chances for each request.
    pub(super) fn of(
        set: &Set,
        stream: &[Asked],
        mut policy: impl FnMut(&Asked) -> Vec<(usize, f64)>,
    ) -> Self {
        let mut tally = Self::default();
        for asked in stream {
            let row = &set.rows[asked.row];
            for (arm, chance) in policy(asked) {
                tally.add(set, asked, row, arm, chance);
            }
        }
        tally
    }

    fn add(&mut self, set: &Set, asked: &Asked, row: &Row, arm: usize, chance: f64) {
        let when = |condition: bool| if condition { chance } else { 0.0 };
        self.requests += chance;
        self.right += chance * row.y[arm];
        self.unseen += when(asked.unseen);
        self.unseen_right += when(asked.unseen) * row.y[arm];
        self.cost_uusd += chance * set.bill(row, arm);
        self.latency_ms += chance * latency_ms(set, row, arm);
        self.restricted += when(asked.restricted);
        self.leaked += when(asked.restricted && !set.arms[arm].local);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.right += other.right;
        self.unseen += other.unseen;
        self.unseen_right += other.unseen_right;
        self.cost_uusd += other.cost_uusd;
        self.latency_ms += other.latency_ms;
        self.restricted += other.restricted;
        self.leaked += other.leaked;
    }

    /// Returns the bill of a request, millionths of a US dollar.
    pub(super) fn mean_cost(&self) -> f64 {
        self.cost_uusd / self.requests.max(1.0)
    }

    pub(super) fn requests(&self) -> f64 {
        self.requests
    }

    pub(super) fn accuracy(&self) -> f64 {
        self.right / self.requests.max(1.0)
    }

    /// Returns the accuracy on domains that training never saw.
    pub(super) fn unseen_accuracy(&self) -> f64 {
        self.unseen_right / self.unseen.max(1.0)
    }

    pub(super) fn mean_latency_ms(&self) -> f64 {
        self.latency_ms / self.requests.max(1.0)
    }
}

/// Returns the time to an arm's whole answer. One model for all policies: tokens of that answer × time per token of a
/// provider, or of a laptop for a model of that size.
pub(super) fn latency_ms(set: &Set, row: &Row, arm: usize) -> f64 {
    let per_token = match &set.arms[arm] {
        arm if arm.local => arm.size.expected_ms_per_token(),
        _ => PROVIDER_MS_PER_TOKEN,
    };
    FIRST_TOKEN_MS + per_token * f64::from(row.out_tok[arm])
}
