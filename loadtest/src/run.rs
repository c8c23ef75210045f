//! A closed loop over several base URLs: so many requests, so many at once, each answer judged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    check::{self, Answer, Expected},
    http_client,
    report::Report,
    tasks,
};

/// What to send, where, and how much of it.
#[derive(Clone, Debug)]
pub struct Load {
    /// Base URLs, with or without `/v1`; request i goes to URL i mod n.
    pub urls: Vec<String>,
    /// API key, if the server wants one.
    pub key: Option<String>,
    /// Model name.
    pub model: String,
    /// Requests in all.
    pub requests: usize,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Share of requests that ask for a stream, 0 to 1.
    pub stream_share: f64,
    /// Prompt; `{i}` is replaced by the request's number, so that no two prompts are equal.
    pub prompt: String,
    /// `max_tokens`, if any.
    pub max_tokens: Option<usize>,
    /// Cap on one whole request.
    pub timeout: Duration,
}

/// Runs the load to its end and sums it up.
///
/// # Errors
/// When the HTTP client cannot be set up. Failed requests are results, not errors.
pub async fn run(load: Load) -> Result<Report, reqwest::Error> {
    let client = http_client::build(load.timeout)?;
    let (load, next) = (Arc::new(load), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let workers: Vec<_> = (0..load.concurrency.max(1))
        .map(|_| {
            let (load, next, client) = (Arc::clone(&load), Arc::clone(&next), client.clone());
            tasks::spawn_named("worker", async move {
                let mut report = Report::default();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= load.requests {
                        return report;
                    }
                    let url = &load.urls[i % load.urls.len()];
                    let stream = is_streamed(i, load.urls.len(), load.stream_share);
                    report.add(url, stream, &one(&client, &load, i, url, stream).await);
                }
            })
        })
        .collect();
    let mut report = Report::default();
    for worker in workers {
        if let Ok(part) = worker.await {
            report.merge(part);
        }
    }
    report.elapsed = started.elapsed();
    Ok(report)
}

/// Spreads the share evenly within each URL's own sequence of requests.
fn is_streamed(i: usize, urls: usize, share: f64) -> bool {
    let turn = (i / urls.max(1)) as f64;
    ((turn + 1.0) * share).floor() > (turn * share).floor()
}

async fn one(client: &reqwest::Client, load: &Load, i: usize, url: &str, stream: bool) -> Answer {
    let prompt = load.prompt.replace("{i}", &i.to_string());
    let mut request = client.post(endpoint(url)).json(&body(load, &prompt, stream));
    if let Some(key) = &load.key {
        request = request.bearer_auth(key);
    }
    let sent = Instant::now();
    let response = request.send().await;
    check::judge(response, sent, Expected { prompt: &prompt, max_tokens: load.max_tokens, stream }).await
}

fn body(load: &Load, prompt: &str, stream: bool) -> Value {
    let mut body = json!({"model": load.model, "messages": [{"role": "user", "content": prompt}]});
    if let Some(max_tokens) = load.max_tokens {
        body["max_tokens"] = max_tokens.into();
    }
    if stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

fn endpoint(url: &str) -> String {
    let base = url.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    format!("{base}/v1/chat/completions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_end_in_v1() {
        for url in ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"] {
            assert_eq!(endpoint(url), "http://a:1/v1/chat/completions");
        }
    }

    #[test]
    fn the_share_of_streams_holds_on_every_url() {
        for (urls, share, want) in [(3, 0.25, 25), (1, 0.5, 50), (2, 1.0, 100), (4, 0.0, 0)] {
            for url in 0..urls {
                let streams =
                    (0..100 * urls).filter(|i| i % urls == url && is_streamed(*i, urls, share)).count();
                assert_eq!(streams, want, "{urls} {share}");
            }
        }
    }
}
