//! The one place that spawns tasks in this package, so that each has a name.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument;

/// Spawns a task inside a span that carries its name. The caller keeps the handle and ends the task.
#[allow(clippy::disallowed_methods)] // the one wrapper that the lint points to
pub fn spawn_named<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::info_span!("task", name)))
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(JoinHandle<()>);

impl Running {
    /// Spawns a named task that lives as long as its owner.
    pub(crate) fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(spawn_named(name, future))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}
