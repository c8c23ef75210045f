//! What another router may ask of this one, and what it gets, over scripted upstreams and an in-memory stream.

use std::time::Duration;

use bytes::Bytes;
use shoal_proto::infer_frame::Kind;
use shoal_proto::{DataClass as WireClass, InferError, InferFrame};

use super::*;
use crate::testing::{Act, Beat, Scene, WORD, broken, offer, say, stream_answer, whole_answer};
use crate::upstream::reply::MAX_CHUNK;

struct Sender(mpsc::UnboundedSender<Kind>);

impl Respond for Sender {
    async fn send(&mut self, frame: InferFrame) -> Result<(), Gone> {
        self.0.send(frame.kind.unwrap()).map_err(|_| Gone)
    }

    async fn finish(self) -> Result<(), Gone> {
        Ok(())
    }

    async fn cancelled(&mut self) {
        self.0.closed().await;
    }
}

fn forwarded(stream: bool) -> InferRequest {
    let body = format!(r#"{{"model":"m","stream":{stream},"messages":[{{"role":"user","content":"x"}}]}}"#);
    InferRequest {
        request_id: "req_ffffffff_1".into(),
        path: "/v1/chat/completions".into(),
        model: "m".into(),
        body: body.into(),
        data_class: WireClass::Internal.into(),
        attempts_left: 3,
        stream,
        device: "a".into(),
        ..InferRequest::default()
    }
}

async fn ask(scene: &Scene, from: Role, request: InferRequest) -> Vec<Kind> {
    let (sender, mut frames) = mpsc::unbounded_channel();
    serve(scene.pipeline.clone(), from, request, Sender(sender)).await;
    std::iter::from_fn(|| frames.try_recv().ok()).collect()
}

fn error(frames: &[Kind]) -> &InferError {
    match frames {
        [.., Kind::Error(error)] => error,
        _ => panic!("an error at the end expected, got {frames:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_passed_on_frame_by_frame_and_learnt_about_at_the_entry_only() {
    let mut scene = Scene::new(vec![offer("a", "m", &["router"])]);
    scene.script("a/m", [stream_answer()]);
    let frames = ask(&scene, Role::Router, forwarded(true)).await;
    let [Kind::Head(head), Kind::Chunk(_), Kind::Chunk(word), .., Kind::End(end)] = &frames[..] else {
        panic!("{frames:?}")
    };
    assert_eq!((head.upstream.as_str(), &word[..], end.complete), ("a", WORD.as_bytes(), true));
    let (row, outcome) = scene.only_outcome();
    assert_eq!((row.outcome.as_str(), row.completion_tokens), ("completed", 4));
    assert_eq!(outcome, None);
    assert_eq!(scene.asked()[0].hop, 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_cut_into_frames() {
    let body = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "x".repeat(2 * MAX_CHUNK));
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", [Act::Play(vec![say(&body), Beat::End(true)])]);
    let frames = ask(&scene, Role::Router, forwarded(false)).await;
    let parts: Vec<&Bytes> =
        frames.iter().filter_map(|f| if let Kind::Chunk(c) = f { Some(c) } else { None }).collect();
    assert!(parts.len() == 3 && parts.iter().all(|part| part.len() <= MAX_CHUNK));
    assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), body.len());
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn a_cut_answer_ends_with_its_error() {
    for beats in [vec![say(WORD), Beat::Break(broken())], vec![say(WORD), Beat::End(false)], vec![say(WORD)]]
    {
        let mut scene = Scene::new(vec![offer("a", "m", &[])]);
        scene.script("a/m", [Act::Play(beats)]);
        let frames = ask(&scene, Role::Router, forwarded(true)).await;
        assert_eq!(error(&frames).status, 502);
        assert_eq!(scene.only_outcome().0.outcome, "failed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_router_that_goes_away_cancels_in_every_phase() {
    for beats in [vec![Beat::Silence], vec![say(WORD), Beat::Silence]] {
        let mut scene = Scene::new(vec![offer("a", "m", &[])]);
        scene.script("a/m", [Act::Play(beats)]);
        let (sender, frames) = mpsc::unbounded_channel();
        let leave = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(frames);
        };
        tokio::join!(serve(scene.pipeline.clone(), Role::Router, forwarded(true), Sender(sender)), leave);
        assert_eq!(scene.only_outcome().0.outcome, "cancelled");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_device_keeps_what_it_says_about_trying_elsewhere() {
    for retryable in [true, false] {
        let refusal = UpstreamError { retryable, ..UpstreamError::new(403, "policy_blocked", "not here") };
        let mut scene = Scene::new(vec![offer("a", "m", &[])]);
        scene.script("a/m", [Act::Fail(refusal)]);
        let frames = ask(&scene, Role::Router, forwarded(false)).await;
        assert_eq!((error(&frames).status, error(&frames).retryable), (403, retryable));
        assert_eq!(scene.only_outcome().0.outcome, "failed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_request_is_not_forwarded_again() {
    // The only way to the device is another router.
    let mut far = offer("a", "m", &["router"]);
    far.routes.remove(0);
    let mut scene = Scene::new(vec![far]);
    let frames = ask(&scene, Role::Router, forwarded(false)).await;
    assert_eq!(error(&frames).code, "no_device");
    assert!(scene.tried().is_empty());
    assert_eq!(scene.only_outcome().0.outcome, "rejected");
}

#[tokio::test(start_paused = true)]
async fn a_class_is_kept_over_hops_and_a_missing_one_is_the_strictest() {
    for (class, allowed) in
        [(WireClass::Internal, true), (WireClass::Restricted, false), (WireClass::Unspecified, false)]
    {
        let mut cloudy = offer("a", "m", &[]);
        Arc::make_mut(&mut cloudy.model).remote = true;
        let scene = Scene::new(vec![cloudy]);
        scene.script("a/m", [whole_answer()]);
        let request = InferRequest { data_class: class.into(), ..forwarded(false) };
        let frames = ask(&scene, Role::Router, request).await;
        assert_eq!(matches!(frames.last(), Some(Kind::End(_))), allowed, "{class:?}: {frames:?}");
        assert_eq!(scene.tried().is_empty(), !allowed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_come_in_is_refused_before_it_is_accepted() {
    let good = || forwarded(false);
    let cases = [
        (Role::Device, good(), 403),
        (Role::Router, InferRequest { hop: 2, ..good() }, 508),
        (Role::Router, InferRequest { hop: u32::MAX, ..good() }, 508),
        (Role::Router, InferRequest { attempts_left: 0, ..good() }, 508),
        (Role::Router, InferRequest { path: "/v1/models".into(), ..good() }, 404),
        (Role::Router, InferRequest { body: "{".into(), ..good() }, 400),
        (Role::Router, InferRequest { request_id: "a\r\nb".into(), ..good() }, 400),
        (Role::Router, InferRequest { request_id: String::new(), ..good() }, 400),
    ];
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    for (from, request, status) in cases {
        let frames = ask(&scene, from, request).await;
        assert_eq!(error(&frames).status, status);
    }
    assert_eq!(scene.pipeline.sinks.totals.of("accepted"), 0);
    assert!(scene.tried().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_far_away_is_as_good_as_none() {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", [whole_answer()]);
    ask(&scene, Role::Router, InferRequest { deadline_ms: u64::MAX, ..forwarded(false) }).await;
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}
