//! Money of a provider or of an API key: reserved before a request goes out, settled when it is over.

use std::sync::{Arc, Mutex, PoisonError};

use shoal_routing::MicroUsd;

use super::budget::Budget;
use crate::store::{self, Store, unix_ms};
use crate::upstream::UpstreamError;

/// Whose money it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// What may be spent at a provider, by its name.
    Provider(Arc<str>),
    /// What the owner of an API key may spend, by the key's id.
    Key(Arc<str>),
}

impl Owner {
    /// Returns the account in the books; a provider's name has no colon.
    fn account(&self) -> String {
        match self {
            Self::Provider(name) => name.to_string(),
            Self::Key(id) => format!("key:{id}"),
        }
    }
}

/// One purse; cheap to clone.
#[derive(Debug, Clone)]
pub struct Purse {
    owner: Owner,
    account: Arc<str>,
    budget: Budget,
    store: Store,
    /// Period and amount spent as last read from the store, so that a decision waits for no disk.
    known: Arc<Mutex<Option<(String, MicroUsd)>>>,
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
    /// Opens a purse; what was spent before counts.
    pub fn new(owner: Owner, budget: Budget, store: Store) -> Self {
        let account = owner.account().into();
        Self { owner, account, budget, store, known: Arc::default() }
    }

    /// Returns the money of a period.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Sets money aside for a request, durably, before anything is sent.
    ///
    /// # Errors
    /// 429 `insufficient_quota` when the rest of the period's money does not cover it; 503 when the books cannot
    /// be written, since nothing may be spent off the books.
    pub async fn reserve(&self, amount: MicroUsd) -> Result<Reservation, UpstreamError> {
        let period = self.budget.period_at(unix_ms());
        let purse = self.clone();
        let done = tokio::task::spawn_blocking(move || -> Result<_, store::Error> {
            let done = purse.store.reserve_spend(&purse.account, &period, amount.0, purse.budget.amount.0);
            purse.read_again(&period);
            // Made here: an asker who went away meanwhile leaves it to be dropped, and so settled.
            Ok(done?.then(|| Reservation { purse, period, amount, spent: MicroUsd(0) }))
        });
        match done.await {
            Ok(Ok(Some(reservation))) => Ok(reservation),
            Ok(Ok(None)) => {
                match &self.owner {
                    Owner::Provider(name) => {
                        metrics::counter!("shoal_purse_refusals_total", "provider" => name.to_string())
                            .increment(1);
                    }
                    Owner::Key(_) => metrics::counter!("shoal_key_budget_refusals_total").increment(1),
                }
                Err(UpstreamError::retryable(429, "insufficient_quota", self.refusal(amount)))
            }
            Ok(Err(error)) => {
                tracing::error!(%error, account = %self.account, "the purse cannot be written; nothing is sent");
                Err(books_closed())
            }
            Err(_) => Err(books_closed()),
        }
    }

    fn refusal(&self, amount: MicroUsd) -> String {
        let (budget, cost) = (self.budget, amount.as_usd());
        match &self.owner {
            Owner::Provider(name) => format!(
                "the purse of '{name}' ({budget}) does not cover this request, which may cost up to {cost:.6} USD; ask for \
                 fewer tokens with max_tokens, or raise it with `shoal cloud add {name} --budget`"
            ),
            Owner::Key(id) => format!(
                "what is left of the budget of the API key {id} ({budget}) does not cover this request, which may cost \
                 up to {cost:.6} USD; ask for fewer tokens with max_tokens, ask a model of a device, or make a key \
                 with more: `shoal keys create --budget`"
            ),
        }
    }

    /// Returns what the purse holds now.
    ///
    /// # Errors
    /// The store failed.
    pub fn balance(&self) -> Result<Balance, store::Error> {
        let period = self.budget.period_at(unix_ms());
        let spent = MicroUsd(self.store.spend(&self.account, &period)?);
        Ok(Balance { budget: self.budget, spent })
    }

    /// Returns what may still be spent in this period. Reads the store once a period, and else what the last
    /// reservation or settlement left there.
    ///
    /// # Errors
    /// The store failed.
    pub fn left(&self) -> Result<MicroUsd, store::Error> {
        let period = self.budget.period_at(unix_ms());
        // Held while the store is read: what was read first must not replace what was read last.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = match &*known {
            Some((of, spent)) if *of == period => *spent,
            _ => {
                let spent = self.balance()?.spent;
                *known = Some((period, spent));
                spent
            }
        };
        Ok(MicroUsd(self.budget.amount.0.saturating_sub(spent.0)))
    }

    /// Takes over what the store says now, if anybody asked before.
    fn read_again(&self, period: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            let spent = self.store.spend(&self.account, period).ok();
            *known = spent.map(|spent| (period.to_owned(), MicroUsd(spent)));
        }
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
        if let Owner::Provider(name) = &purse.owner {
            metrics::counter!("shoal_spend_micro_usd_total", "provider" => name.to_string()).increment(spent);
        }
        // Outside of a runtime (a late drop at the end of the process) the reservation stays booked, which is safe.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn_blocking(move || {
            let settled = purse.store.settle_spend(&purse.account, &period, amount, spent);
            purse.read_again(&period);
            if let Err(error) = settled {
                tracing::error!(%error, account = %purse.account, "a purse keeps a reservation that is no longer due");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn purse(folder: &tempfile::TempDir) -> Purse {
        let store = Store::open(folder.path()).unwrap();
        Purse::new(Owner::Provider("p".into()), "1usd/day".parse().unwrap(), store)
    }

    #[tokio::test]
    async fn who_goes_away_while_money_is_set_aside_leaves_none_of_it_booked() {
        let folder = tempfile::tempdir().unwrap();
        let purse = purse(&folder);
        // Polled once, so that the write is on its way, and dropped.
        drop(purse.reserve(MicroUsd(7)).now_or_never());
        let _other = purse.reserve(MicroUsd(1)).await.unwrap();
        let settled = async {
            while purse.balance().unwrap().spent != MicroUsd(1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(10), settled).await;
        assert!(done.is_ok(), "{:?} stay booked", purse.balance().unwrap().spent);
    }

    #[test]
    fn what_is_known_is_what_was_booked_last() {
        let folder = tempfile::tempdir().unwrap();
        let purse = purse(&folder);
        let period = purse.budget.period_at(unix_ms());
        purse.left().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        purse.store.reserve_spend(&purse.account, &period, 1, 1_000_000).unwrap();
                        purse.read_again(&period);
                    }
                });
            }
        });
        assert_eq!(purse.left().unwrap(), MicroUsd(1_000_000 - 200));
    }
}
