//! A purse as the store keeps it: what is set aside counts as spent until it is settled, also over a crash.
//!
//! The rule is that of `store::spend`, one conditional statement there; the database is tested beside it.

/// Books of one provider at one router, micro-USD.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purse {
    /// Most that may be spent.
    pub(crate) limit: u64,
    /// Booked, with what is set aside.
    pub(crate) booked: u64,
    /// The checker's own count of what the provider billed, which no book may be below.
    pub(crate) billed: u64,
}

impl Purse {
    /// Sets an amount aside; false when the rest does not cover it.
    pub(crate) fn reserve(&mut self, amount: u64) -> bool {
        let fits = self.booked + amount <= self.limit;
        if fits {
            self.booked += amount;
        }
        fits
    }

    /// Replaces what was set aside by what it cost.
    pub(crate) fn settle(&mut self, reserved: u64, cost: u64) {
        self.booked = (self.booked + cost).saturating_sub(reserved);
    }
}
