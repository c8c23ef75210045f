//! Mixed traffic at a fixed rate: streamed and whole chats, answers by the Responses API, vectors, recordings, speech,
//! requests sent twice under one key, and clients that leave. Each answer is checked for what its kind promises.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use futures_util::StreamExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::{RequestBuilder, header};
use serde_json::{Value, json};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::super::super::{
    load::{self, Ask, End, Sample},
    mesh::{CLOUD, Mesh, OWN, SHARED},
    node::Api,
    row::Row,
};
use crate::{http_client, tasks, words::fnv1a};

/// Models of the device for everything but chat; engines are asked for what their names say they do.
pub(super) const EAR: &str = "whisper-small";
pub(super) const VOICE: &str = "kokoro-82m";
pub(super) const VECTORS: &str = "bge-m3";
/// Requests under way at once; what would be more is left out and counted.
const MAX_OPEN: usize = 512;
/// Cap on one request.
const REQUEST_CAP: Duration = Duration::from_secs(60);
/// Answers kept for the comparison with what nodes recorded.
const KEPT_SAMPLES: usize = 300;
/// Chats by data class: one of four must not leave.
const RESTRICTED: f64 = 0.25;
/// Longest patience of a client that leaves, milliseconds: some leave before the head, some within the stream.
const LEAVES_AFTER_MS: std::ops::Range<u64> = 5..150;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Streamed,
    Whole,
    Responses,
    Vectors,
    Transcript,
    Speech,
    SentTwice,
    Leaves,
}

/// Twenty requests as they are mixed.
const MIX: [Kind; 20] = {
    use Kind::{Leaves, Responses, SentTwice, Speech, Streamed, Transcript, Vectors, Whole};
    [
        Streamed, Whole, Streamed, Vectors, Streamed, Whole, Leaves, Streamed, Responses, Whole, Streamed,
        SentTwice, Transcript, Whole, Streamed, Vectors, Leaves, Speech, SentTwice, Whole,
    ]
};

/// How one request ended.
enum Ended {
    Good,
    /// An explicit error, as faults bring.
    Error(String),
    /// What must not be.
    Wrong(String),
    /// A chat, judged word by word.
    Chat(Box<Sample>),
}

/// Counts of ends, and the latest chats.
#[derive(Debug, Default)]
pub(super) struct Tally {
    ends: BTreeMap<(Kind, &'static str), usize>,
    errors: BTreeMap<String, usize>,
    wrong: Vec<String>,
    left_out: usize,
    pub(super) samples: VecDeque<Sample>,
}

impl Tally {
    fn count(&mut self, kind: Kind, ended: Ended) {
        let (what, text) = match ended {
            Ended::Good => ("good", None),
            Ended::Error(text) => ("errors", Some(text)),
            Ended::Wrong(text) => {
                self.wrong.push(format!("{kind:?}: {text}"));
                ("wrong", None)
            }
            Ended::Chat(sample) => {
                let told = match sample.end() {
                    End::Complete => ("good", None),
                    End::Error => ("errors", Some(sample.what())),
                    End::Forbidden => {
                        self.wrong.push(format!("{kind:?}: {}", sample.what()));
                        ("wrong", None)
                    }
                };
                self.keep(*sample);
                told
            }
        };
        if let Some(text) = text {
            *self.errors.entry(text).or_default() += 1;
        }
        *self.ends.entry((kind, what)).or_default() += 1;
    }

    fn keep(&mut self, sample: Sample) {
        if self.samples.len() >= KEPT_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Adds another's.
    pub(super) fn add(&mut self, other: Self) {
        for (end, count) in other.ends {
            *self.ends.entry(end).or_default() += count;
        }
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
        self.wrong.extend(other.wrong);
        self.left_out += other.left_out;
        for sample in other.samples {
            self.keep(sample);
        }
    }

    /// Writes the counts into the report.
    pub(super) fn tell(&self, row: &mut Row) {
        let of = |kind: Kind, what| self.ends.get(&(kind, what)).copied().unwrap_or(0);
        let sum = |what| MIX_KINDS.iter().map(|kind| of(*kind, what)).sum::<usize>();
        let (good, errors, wrong) = (sum("good"), sum("errors"), sum("wrong"));
        let by_kind: Vec<String> = MIX_KINDS
            .iter()
            .map(|kind| format!("{kind:?} {}+{}", of(*kind, "good"), of(*kind, "errors")))
            .collect();
        row.note(format!(
            "{} requests, {errors} explicit errors under faults, {} left out",
            good + errors + wrong,
            self.left_out
        ));
        row.note(format!("good+errors: {}", by_kind.join(", ")));
        let mut errors: Vec<_> = self.errors.iter().collect();
        errors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (what, count) in errors.into_iter().take(6) {
            row.note(format!("{count} x {what}"));
        }
        for text in self.wrong.iter().take(5) {
            row.note(format!("wrong: {text}"));
        }
        row.most("wrong answers", wrong, 0);
        let without = MIX_KINDS.iter().filter(|kind| of(**kind, "good") == 0).count();
        row.most("kinds of requests of which none was served", without, 0);
    }
}

const MIX_KINDS: [Kind; 8] = [
    Kind::Streamed,
    Kind::Whole,
    Kind::Responses,
    Kind::Vectors,
    Kind::Transcript,
    Kind::Speech,
    Kind::SentTwice,
    Kind::Leaves,
];

/// Traffic under way.
#[derive(Debug)]
pub(super) struct Traffic {
    stop: CancellationToken,
    task: JoinHandle<Tally>,
}

impl Traffic {
    /// Starts with connections of its own, which close with it.
    pub(super) fn start(mesh: &Mesh, rate: f64, seed: u64) -> Result<Self> {
        let api = Api { http: http_client::build(REQUEST_CAP)?, key: mesh.api.key.clone() };
        let stop = CancellationToken::new();
        let flow = flow(Arc::new(api), mesh.urls(), rate, StdRng::seed_from_u64(seed), stop.clone());
        Ok(Self { stop, task: tasks::spawn_named("traffic", flow) })
    }

    /// Sends no more, and waits for what is under way.
    pub(super) async fn finish(self) -> Tally {
        self.stop.cancel();
        self.task.await.unwrap_or_default()
    }
}

async fn flow(
    api: Arc<Api>,
    urls: Vec<String>,
    rate: f64,
    mut rng: StdRng,
    stop: CancellationToken,
) -> Tally {
    let (mut tally, mut under_way) = (Tally::default(), JoinSet::new());
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate.max(1.0)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = under_way.join_next() => count(&mut tally, ended),
            _ = ticks.tick() => {
                let (kind, url) = (MIX[number % MIX.len()], urls[rng.random_range(0..urls.len())].clone());
                number += 1;
                if under_way.len() >= MAX_OPEN {
                    tally.left_out += 1;
                    continue;
                }
                let (api, draw) = (Arc::clone(&api), StdRng::seed_from_u64(rng.random()));
                under_way.spawn(async move { (kind, one(&api, &url, kind, draw).await) });
            }
        }
    }
    while let Some(ended) = under_way.join_next().await {
        count(&mut tally, ended);
    }
    tally
}

fn count(tally: &mut Tally, ended: Result<(Kind, Ended), tokio::task::JoinError>) {
    match ended {
        Ok((kind, ended)) => tally.count(kind, ended),
        Err(error) => tally.wrong.push(format!("a client ended early: {error}")),
    }
}

async fn one(api: &Api, url: &str, kind: Kind, mut rng: StdRng) -> Ended {
    let number: u64 = rng.random();
    match kind {
        Kind::Streamed | Kind::Whole => {
            let model = [SHARED, SHARED, OWN, "auto", CLOUD][rng.random_range(0..5)];
            let restricted = model != CLOUD && rng.random_bool(RESTRICTED);
            let script = format!("n={} itl=4", rng.random_range(2..40));
            let request = Ask { restricted, ..Ask::new(model, &script, kind == Kind::Streamed) };
            Ended::Chat(Box::new(load::ask(api, url, &request).await))
        }
        Kind::Responses => {
            let body = json!({"model": SHARED, "input": format!("Answer {number} [[stub n=5 itl=4]]")});
            checked(post(api, url, "/v1/responses").json(&body), |body| body["status"] == "completed").await
        }
        Kind::Vectors => {
            let body = json!({"model": VECTORS, "input": [format!("text {number}"), "another"]});
            checked(post(api, url, "/v1/embeddings").json(&body), |body| {
                body["data"].as_array().is_some_and(|data| data.len() == 2)
            })
            .await
        }
        Kind::Transcript => transcript(api, url, rng).await,
        Kind::Speech => speech(api, url, number).await,
        Kind::SentTwice => twice(api, url, number).await,
        Kind::Leaves => leaves(api, url, rng).await,
    }
}

fn post(api: &Api, url: &str, path: &str) -> RequestBuilder {
    api.http.post(format!("{url}{path}")).bearer_auth(&api.key)
}

/// The bytes of a whole answer with status 200, or how it ended.
async fn bytes(request: RequestBuilder) -> Result<Vec<u8>, Ended> {
    let lost = |error: reqwest::Error| {
        Ended::Error(format!("no answer: {}", if error.is_timeout() { "timeout" } else { "transport" }))
    };
    let answer = request.send().await.map_err(lost)?;
    let status = answer.status().as_u16();
    let body = answer.bytes().await.map_err(lost)?.to_vec();
    if status == 200 {
        return Ok(body);
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match body["error"]["code"].as_str() {
        // A model whose only device is away is not among those that are served.
        Some(code) if status >= 429 || code == "model_not_found" => {
            Err(Ended::Error(format!("{status} {code}")))
        }
        // All that is sent is well formed: what names the client's fault is wrong, as is an error without a body.
        _ => Err(Ended::Wrong(format!("{status} {body}"))),
    }
}

async fn checked(request: RequestBuilder, holds: impl Fn(&Value) -> bool) -> Ended {
    match bytes(request).await {
        Err(ended) => ended,
        Ok(body) => match serde_json::from_slice::<Value>(&body) {
            Ok(body) if holds(&body) => Ended::Good,
            Ok(body) => Ended::Wrong(format!("200 with {body}")),
            Err(error) => Ended::Wrong(format!("200 and no JSON: {error}")),
        },
    }
}

async fn transcript(api: &Api, url: &str, mut rng: StdRng) -> Ended {
    const BOUNDARY: &str = "soak-7d1e";
    let sound: Vec<u8> = (0..rng.random_range(100..60_000)).map(|_| rng.random()).collect();
    let expected = format!("heard {} bytes {:016x} of talk.mp3 as audio/mpeg", sound.len(), fnv1a(&sound));
    let mut form = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{EAR}\r\n--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"talk.mp3\"\r\ncontent-type: audio/mpeg\r\n\r\n"
    )
    .into_bytes();
    form.extend_from_slice(&sound);
    form.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let request = post(api, url, "/v1/audio/transcriptions")
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(form);
    checked(request, |body| body["text"] == expected.as_str()).await
}

async fn speech(api: &Api, url: &str, number: u64) -> Ended {
    let text = format!("line {number}");
    let body = json!({"model": VOICE, "input": text, "voice": "alloy"});
    match bytes(post(api, url, "/v1/audio/speech").json(&body)).await {
        Err(ended) => ended,
        Ok(sound) if sound.starts_with(format!("mp3|alloy|{text}{text}").as_bytes()) => Ended::Good,
        Ok(sound) => Ended::Wrong(format!("{} bytes of another recording", sound.len())),
    }
}

/// The same request twice under one key: run once, and answered twice with the same bytes.
async fn twice(api: &Api, url: &str, number: u64) -> Ended {
    let request = Ask::new(SHARED, "n=6 itl=2", number.is_multiple_of(2));
    let prompt = load::prompt(&request);
    let body = load::body(&request, &prompt);
    let send = || {
        let key = format!("soak-{number:x}");
        bytes(post(api, url, "/v1/chat/completions").header("idempotency-key", key).json(&body))
    };
    let first = match send().await {
        Ok(first) => first,
        Err(ended) => return ended,
    };
    // A stream that ended in an error is not kept, and then the second one runs anew.
    if first.windows(8).any(|window| window == b"\"error\":") {
        return Ended::Error("cut: sent twice".to_owned());
    }
    match send().await {
        Ok(second) if second == first => Ended::Good,
        Ok(_) => Ended::Wrong("the second answer is another".to_owned()),
        Err(ended) => ended,
    }
}

/// A client that goes away: before the head, or after the first bytes of a stream.
async fn leaves(api: &Api, url: &str, mut rng: StdRng) -> Ended {
    let request = Ask::new(SHARED, "ttft=30 n=400 itl=20", true);
    let prompt = load::prompt(&request);
    let send = post(api, url, "/v1/chat/completions").json(&load::body(&request, &prompt)).send();
    let patience = Duration::from_millis(rng.random_range(LEAVES_AFTER_MS));
    let left = tokio::time::timeout(patience, async {
        match send.await {
            Ok(answer) => {
                let mut stream = answer.bytes_stream();
                while stream.next().await.is_some_and(|piece| piece.is_ok()) {}
            }
            // Not accepted under a fault: it has nothing to leave.
            Err(_) => std::future::pending().await,
        }
    });
    // Both are what it wanted: gone in time, or refused before.
    let _ = left.await;
    Ended::Good
}
