//! What this process holds: bytes on its heap, and tasks that have not ended.
//!
//! Resident memory says little about a leak: the system's allocator keeps what was freed. Live bytes tell it, so every
//! allocation is counted by size, one relaxed addition each. SQLite's own memory is not among them; its cache is bounded.

use std::alloc::System;

use cap::Cap;

/// The system's allocator, counted and without a limit. It is here and not in `main.rs` so that tests see it, too.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes allocated and not yet freed.
#[must_use]
pub fn allocated_bytes() -> usize {
    ALLOCATOR.allocated()
}

/// Sets the gauges of what is held; called when somebody reads them, since nobody else needs them.
///
/// # Panics
/// Outside a tokio runtime.
#[allow(clippy::cast_precision_loss)] // a heap of 2^53 bytes is none
pub fn observe() {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    metrics::gauge!("shoal_allocated_bytes").set(allocated_bytes() as f64);
    metrics::gauge!("shoal_alive_tasks").set(tasks as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_until_it_is_freed() {
        // Far more than other tests of this process take meanwhile.
        const BYTES: usize = 512 << 20;
        let before = allocated_bytes();
        let held = Vec::<u8>::with_capacity(BYTES);
        let with = allocated_bytes();
        drop(held);
        let after = allocated_bytes();
        assert!(with >= before + BYTES / 2, "{before} {with}");
        assert!(after <= with - BYTES / 2, "{with} {after}");
    }
}
