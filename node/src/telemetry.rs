//! Logs and metrics of the process. Prompts, completions and keys are never logged at any level.

pub mod holdings;

use std::io::IsTerminal;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Starts logging to standard error: plain lines on a terminal, JSON otherwise when asked for by `SHOAL_LOG_JSON`.
///
/// `verbose` counts `-v`; `quiet` shows warnings only. `SHOAL_LOG` sets filters by module and wins.
pub fn start_logs(verbose: u8, quiet: bool, env: &[(String, String)]) {
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    // Other people's crates speak at `warn` unless asked for by name: quinn alone fills a disk at `debug`.
    let default =
        format!("warn,shoal={level},shoal_node={level},shoal_cluster={level},shoal_embedded={level}");
    let filter = crate::config::lookup(env, "SHOAL_LOG").map_or(default, str::to_owned);
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // Fails only if logging was started before, by a test.
    let _ = if crate::config::lookup(env, "SHOAL_LOG_JSON").is_some() {
        subscriber.json().try_init()
    } else {
        subscriber.with_target(false).try_init()
    };
}

/// Installs the metrics recorder of the process.
pub fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    // OpenTelemetry's buckets for server durations and first tokens, seconds.
    const SECONDS: &[f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
    const DECISION: &[f64] = &[2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3];
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("shoal_decision_seconds".into()), DECISION)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?;
    Ok(builder.install_recorder()?)
}
