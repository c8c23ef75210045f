//! The checking client: every answer is judged word by word, and every end is one of three.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    mesh::{CANARY, Mesh, SHARED},
    node::Api,
};
use crate::{
    check::{self, Answer, Expected, Verdict},
    tasks,
};

/// Requests under way at once in an open loop; more are not sent but counted as late, so that memory is bounded.
const MAX_OPEN: usize = 512;
/// Routers that a balancer tries for one request before it gives up.
const MAX_TURNS: usize = 50;
/// Every so many requests is one that must not leave.
const RESTRICTED_EVERY: u64 = 4;

/// How a request ended, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// A whole answer, checked.
    Complete,
    /// An explicit error: a status, an error in the stream, or a broken connection.
    Error,
    /// What no router may ever give: cut and looking complete, or with words lost, repeated or spliced.
    Forbidden,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When it was sent.
    pub(super) sent: Instant,
    /// Which of the load's URLs was asked first.
    pub(super) url: usize,
    /// It must not leave the mesh.
    pub(super) restricted: bool,
    pub(super) answer: Answer,
}

impl Sample {
    pub(super) fn end(&self) -> End {
        end_of(&self.answer.verdict)
    }

    /// Error code, or what else the verdict says.
    pub(super) fn what(&self) -> String {
        match &self.answer.verdict {
            Verdict::Ok => "ok".to_owned(),
            Verdict::Refused { status, code } => format!("{status} {code}"),
            Verdict::NoAnswer(kind) => format!("no answer: {kind}"),
            Verdict::CutMarked(code) => format!("cut: {code}"),
            Verdict::CutUnmarked(why) => format!("looked complete: {why}"),
            Verdict::Corrupt(why) => format!("corrupt: {why}"),
        }
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.answer.headers.get(name).map_or("", String::as_str)
    }
}

pub(super) fn end_of(verdict: &Verdict) -> End {
    match verdict {
        Verdict::Ok => End::Complete,
        Verdict::Refused { .. } | Verdict::NoAnswer(_) | Verdict::CutMarked(_) => End::Error,
        Verdict::CutUnmarked(_) | Verdict::Corrupt(_) => End::Forbidden,
    }
}

/// What to ask.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) model: String,
    /// Words of the stub's marker.
    pub(super) script: String,
    pub(super) stream: bool,
    /// Data class `restricted`, with the canary in the prompt.
    pub(super) restricted: bool,
}

impl Ask {
    pub(super) fn new(model: &str, script: &str, stream: bool) -> Self {
        Self { model: model.to_owned(), script: script.to_owned(), stream, restricted: false }
    }
}

/// Numbers every prompt of this process: equal ones would count as a user's impatience.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A prompt that no other request has, with the marker.
pub(super) fn prompt(ask: &Ask) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let canary = if ask.restricted { CANARY } else { "" };
    format!("Order {number}: name a town. {canary} [[stub {}]]", ask.script)
}

pub(super) fn body(ask: &Ask, prompt: &str) -> Value {
    let mut body = json!({"model": ask.model, "messages": [{"role": "user", "content": prompt}]});
    if ask.stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
    }
    if ask.restricted {
        body["metadata"] = json!({"data_class": "restricted"});
    }
    body
}

/// Sends one request to one router and judges the answer.
pub(super) async fn ask(api: &Api, url: &str, ask: &Ask) -> Sample {
    let prompt = prompt(ask);
    let body = body(ask, &prompt);
    let sent = Instant::now();
    let request = api.http.post(format!("{url}/v1/chat/completions")).bearer_auth(&api.key).json(&body);
    let expected = Expected { prompt: &prompt, max_tokens: None, stream: ask.stream };
    let answer = check::judge(request.send().await, sent, expected).await;
    Sample { sent, url: 0, restricted: ask.restricted, answer }
}

/// A stream of requests over the running routers.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) urls: Vec<String>,
    pub(super) model: String,
    pub(super) script: String,
    pub(super) pace: Pace,
    /// Share of streams, 0 to 1.
    pub(super) streams: f64,
    /// Which routers are in service, where a balancer stands before them: it sends to no other, and asks the next one
    /// where a router does not accept (refused connection, `503 draining`).
    pub(super) balancer: Option<Arc<Vec<AtomicBool>>>,
    /// Keys to use in turn; empty = the mesh's first.
    pub(super) keys: Vec<String>,
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// So many at once, each followed by the next.
    Closed(usize),
    /// So many a second, whatever comes back.
    Open(f64),
}

impl Shape {
    /// Eight at once over all routers, half of them streams, of the devices' model.
    pub(super) fn usual(mesh: &Mesh) -> Self {
        Self {
            urls: mesh.urls(),
            model: SHARED.to_owned(),
            script: "n=8 itl=4".to_owned(),
            pace: Pace::Closed(8),
            streams: 0.5,
            balancer: None,
            keys: Vec::new(),
        }
    }
}

/// A load under way; it ends when dropped.
#[derive(Debug)]
pub(super) struct Load {
    stop: CancellationToken,
    workers: Vec<JoinHandle<Vec<Sample>>>,
    done: Arc<AtomicUsize>,
    late: Arc<AtomicUsize>,
}

struct Shared {
    api: Api,
    shape: Shape,
    stop: CancellationToken,
    done: Arc<AtomicUsize>,
    late: Arc<AtomicUsize>,
}

impl Load {
    pub(super) fn start(api: &Api, shape: Shape) -> Self {
        let (stop, done, late) = (CancellationToken::new(), Arc::default(), Arc::default());
        let pace = shape.pace;
        let shared = Arc::new(Shared {
            api: api.clone(),
            shape,
            stop: stop.clone(),
            done: Arc::clone(&done),
            late: Arc::clone(&late),
        });
        let workers = match pace {
            Pace::Closed(at_once) => (0..at_once.max(1))
                .map(|worker| {
                    tasks::spawn_named("load", closed(Arc::clone(&shared), worker as u64, at_once as u64))
                })
                .collect(),
            Pace::Open(rate) => vec![tasks::spawn_named("load", open(Arc::clone(&shared), rate))],
        };
        Self { stop, workers, done, late }
    }

    /// Requests that have ended so far.
    pub(super) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Requests of an open loop that were not sent since too many were under way.
    pub(super) fn late(&self) -> usize {
        self.late.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for what is under way, and returns all answers.
    pub(super) async fn finish(mut self) -> Vec<Sample> {
        self.stop.cancel();
        let mut samples = Vec::new();
        for worker in std::mem::take(&mut self.workers) {
            samples.extend(worker.await.unwrap_or_default());
        }
        samples.sort_by_key(|sample| sample.sent);
        samples
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
        self.workers.iter().for_each(JoinHandle::abort);
    }
}

async fn closed(shared: Arc<Shared>, worker: u64, step: u64) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut number = worker;
    while !shared.stop.is_cancelled() {
        samples.push(shared.one(number).await);
        number += step;
    }
    samples
}

async fn open(shared: Arc<Shared>, rate: f64) -> Vec<Sample> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate.max(0.1)));
    let mut under_way = tokio::task::JoinSet::new();
    let (mut samples, mut number) = (Vec::new(), 0);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(ended) = under_way.join_next() => samples.extend(ended),
            _ = ticks.tick() => {
                number += 1;
                if under_way.len() >= MAX_OPEN {
                    shared.late.fetch_add(1, Ordering::Relaxed);
                } else {
                    let shared = Arc::clone(&shared);
                    under_way.spawn(async move { shared.one(number).await });
                }
            }
        }
    }
    while let Some(ended) = under_way.join_next().await {
        samples.extend(ended);
    }
    samples
}

impl Shared {
    async fn one(&self, number: u64) -> Sample {
        let shape = &self.shape;
        let count = shape.urls.len().max(1) as u64;
        let turn = (number / count) as f64;
        let request = Ask {
            model: shape.model.clone(),
            script: shape.script.clone(),
            stream: ((turn + 1.0) * shape.streams).floor() > (turn * shape.streams).floor(),
            restricted: number.is_multiple_of(RESTRICTED_EVERY),
        };
        let mut api = self.api.clone();
        if !shape.keys.is_empty() {
            api.key = shape.keys[(number as usize) % shape.keys.len()].clone();
        }
        let mut at = (number % count) as usize;
        let mut turns = 0;
        loop {
            turns += 1;
            let last = shape.balancer.is_none() || turns > MAX_TURNS;
            let is_out =
                |at: usize| shape.balancer.as_ref().is_some_and(|set| !set[at].load(Ordering::Relaxed));
            if last || !is_out(at) {
                let mut sample = ask(&api, &shape.urls[at], &request).await;
                sample.url = at;
                if last || !is_not_accepted(&sample.answer.verdict) {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    return sample;
                }
            }
            at = (at + 1) % shape.urls.len();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The router did not take the request, so that asking another repeats nothing.
fn is_not_accepted(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::NoAnswer(kind) => kind == "connect",
        Verdict::Refused { status, code } => *status == 503 && code == "draining",
        Verdict::Ok | Verdict::CutMarked(_) | Verdict::CutUnmarked(_) | Verdict::Corrupt(_) => false,
    }
}

/// Counts of samples by what they ended with, without the good ones.
pub(super) fn failures(samples: &[Sample]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.end() != End::Complete) {
        *counts.entry(sample.what()).or_default() += 1;
    }
    counts
}

pub(super) fn count(samples: &[Sample], end: End) -> usize {
    samples.iter().filter(|sample| sample.end() == end).count()
}

/// A quantile of durations in milliseconds; 0 without any.
pub(super) fn quantile_ms(mut times: Vec<Duration>, q: f64) -> f64 {
    times.sort();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * q).ceil() as usize).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

/// Times to the first token of whole streams.
pub(super) fn first_tokens(samples: &[Sample]) -> Vec<Duration> {
    samples.iter().filter(|one| one.end() == End::Complete).filter_map(|one| one.answer.first_token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_one_end() {
        let refused = Verdict::Refused { status: 503, code: "overloaded".into() };
        assert_eq!(end_of(&Verdict::Ok), End::Complete);
        assert_eq!(end_of(&refused), End::Error);
        assert_eq!(end_of(&Verdict::CutMarked("x".into())), End::Error);
        assert_eq!(end_of(&Verdict::CutUnmarked("x".into())), End::Forbidden);
        assert_eq!(end_of(&Verdict::Corrupt("spliced".into())), End::Forbidden);
        assert!(!is_not_accepted(&refused));
        assert!(is_not_accepted(&Verdict::Refused { status: 503, code: "draining".into() }));
        assert!(!is_not_accepted(&Verdict::NoAnswer("transport".into())));
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile_ms(times.clone(), 1.0), 100.0);
        assert_eq!(quantile_ms(times, 0.5), 51.0);
        assert_eq!(quantile_ms(Vec::new(), 0.99), 0.0);
    }

    #[test]
    fn prompts_differ_and_only_restricted_ones_carry_the_canary() {
        let mut one = Ask::new("m", "n=1", false);
        assert_ne!(prompt(&one), prompt(&one));
        assert!(!prompt(&one).contains(CANARY));
        one.restricted = true;
        let text = prompt(&one);
        assert!(text.contains(CANARY));
        assert_eq!(body(&one, &text)["metadata"]["data_class"], "restricted");
    }
}
