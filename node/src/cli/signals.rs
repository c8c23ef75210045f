//! From the operating system's signals, or a parent's closed pipe, to the shutdown token.

use tokio_util::sync::CancellationToken;

use crate::tasks::{self, TaskKind};

/// Cancels the token at the first interrupt or terminate signal; at the second the process ends at once.
pub(super) fn cancel_on_signal(shutdown: CancellationToken) {
    tasks::spawn(TaskKind::Signals, async move {
        next_signal().await;
        shutdown.cancel();
        next_signal().await;
        // The person asked twice: 130 is what a shell expects of an interrupted program.
        std::process::exit(130);
    });
}

/// Cancels the token when standard input closes, so that no child outlives its parent.
pub(super) fn cancel_on_stdin_end(shutdown: CancellationToken) {
    // A thread of its own: a blocking read in the runtime's pool would hold up its end.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        shutdown.cancel();
    });
}

#[cfg(unix)]
async fn next_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        // Without handlers the system's default ends the process, which is what a signal asks for.
        _ => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn next_signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
