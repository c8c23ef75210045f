//! A provider's money: reserved before a request goes out, settled when it is over.

use std::sync::Arc;

use shoal_routing::MicroUsd;

use super::budget::Budget;
use crate::store::{self, Store, unix_ms};
use crate::upstream::UpstreamError;

/// The purse of one provider; cheap to clone.
#[derive(Debug, Clone)]
pub struct Purse {
    provider: Arc<str>,
    budget: Budget,
    store: Store,
}

/// What a purse holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Money of the period.
    pub budget: Budget,
    /// Spent in it, running requests at their highest price.
    pub spent: MicroUsd,
}

impl Purse {
    /// Opens the purse of a provider; what was spent before counts.
    pub fn new(provider: Arc<str>, budget: Budget, store: Store) -> Self {
        Self { provider, budget, store }
    }

    /// Sets money aside for a request, durably, before anything is sent.
    ///
    /// # Errors
    /// 429 `insufficient_quota` when the rest of the period's money does not cover it; 503 when the books cannot
    /// be written, since nothing may be spent off the books.
    pub async fn reserve(&self, amount: MicroUsd) -> Result<Reservation, UpstreamError> {
        let period = self.budget.period_at(unix_ms());
        let purse = self.clone();
        let (name, booked) = (period.clone(), amount.0);
        let done = tokio::task::spawn_blocking(move || {
            purse.store.reserve_spend(&purse.provider, &name, booked, purse.budget.amount.0)
        });
        match done.await {
            Ok(Ok(true)) => Ok(Reservation { purse: self.clone(), period, amount, spent: MicroUsd(0) }),
            Ok(Ok(false)) => {
                metrics::counter!("shoal_purse_refusals_total", "provider" => self.provider.to_string())
                    .increment(1);
                Err(UpstreamError::retryable(429, "insufficient_quota", self.refusal(amount)))
            }
            Ok(Err(error)) => {
                tracing::error!(%error, provider = %self.provider, "the purse cannot be written; nothing is sent");
                Err(books_closed())
            }
            Err(_) => Err(books_closed()),
        }
    }

    fn refusal(&self, amount: MicroUsd) -> String {
        format!(
            "the purse of '{name}' ({budget}) does not cover this request, which may cost up to {cost:.6} USD; ask for \
             fewer tokens with max_tokens, or raise it with `shoal cloud add {name} --budget`",
            name = self.provider,
            budget = self.budget,
            cost = amount.as_usd(),
        )
    }

    /// Returns what the purse holds now.
    ///
    /// # Errors
    /// The store failed.
    pub fn balance(&self) -> Result<Balance, store::Error> {
        let spent = self.store.spend(&self.provider, &self.budget.period_at(unix_ms()))?;
        Ok(Balance { budget: self.budget, spent: MicroUsd(spent) })
    }
}

fn books_closed() -> UpstreamError {
    UpstreamError::retryable(
        503,
        "store_failed",
        "this node cannot write down what it spends, so it spends nothing",
    )
}

/// Money set aside for one request. Dropped, it is settled at what was last told.
#[derive(Debug)]
pub struct Reservation {
    purse: Purse,
    period: String,
    amount: MicroUsd,
    spent: MicroUsd,
}

impl Reservation {
    /// Tells what the request has cost so far.
    pub fn spent(&mut self, amount: MicroUsd) {
        self.spent = amount;
    }
}

impl Drop for Reservation {
    /// Settles in the background: the write waits for the disk, and an answer should not.
    fn drop(&mut self) {
        let (purse, period) = (self.purse.clone(), std::mem::take(&mut self.period));
        let (amount, spent) = (self.amount.0, self.spent.0);
        metrics::counter!("shoal_spend_micro_usd_total", "provider" => purse.provider.to_string())
            .increment(spent);
        // Outside of a runtime (a late drop at the end of the process) the reservation stays booked, which is safe.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn_blocking(move || {
            if let Err(error) = purse.store.settle_spend(&purse.provider, &period, amount, spent) {
                tracing::error!(%error, provider = %purse.provider, "a purse keeps a reservation that is no longer due");
            }
        });
    }
}
