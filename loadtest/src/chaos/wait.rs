//! Waiting for a condition, never for a length of time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks.
const EVERY: Duration = Duration::from_millis(20);
/// A loaded two-core machine may take ten times what a quiet one takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until there is something, and returns it with the time that took.
///
/// # Errors
/// Names `what` when nothing was there within `within`.
pub(super) async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<(T, Duration)> {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return Ok((found, started.elapsed()));
        }
        if started.elapsed() >= within {
            bail!("not within {} s: {what}", within.as_secs_f32());
        }
        tokio::time::sleep(EVERY).await;
    }
}
