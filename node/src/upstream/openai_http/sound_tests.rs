//! Answers to requests about sound against scripted servers.

use std::collections::VecDeque;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response as Answer};
use axum::routing::any;
use axum::{body::Body, extract::Request};
use bytes::Bytes;
use futures_util::stream;
use tower::ServiceExt;

use crate::device::testing::{self, chat, collect};
use crate::upstream::http_client::{self, Reach};
use crate::upstream::openai_http::{OpenAiHttp, testing_settings};
use crate::upstream::{ApiPath, Event, UpstreamError, UpstreamRequest, UpstreamResponse};

const MEDIA: &str = "multipart/form-data; boundary=b";
const FORM: &str = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b--\r\n";

async fn asked(
    path: ApiPath,
    answer: impl Fn() -> Answer + Clone + Send + Sync + 'static,
) -> Result<UpstreamResponse, UpstreamError> {
    let base = testing::serve(Router::new().fallback(any(move || async move { answer() }))).await;
    let upstream = OpenAiHttp::new(http_client::build(Reach::Lan).unwrap(), testing_settings(base.as_str()));
    let request = UpstreamRequest { path, media: Some(MEDIA.into()), body: FORM.into(), ..chat(false) };
    tokio::time::timeout(testing::PATIENCE, upstream.oneshot(request)).await.expect("the future resolves")
}

/// An answer in parts, which is cut after them or ends in order.
fn parts(media: &'static str, parts: &[&'static str], cut: bool) -> Answer {
    let mut left: VecDeque<&'static str> = parts.iter().copied().collect();
    let body = stream::unfold(cut, move |cut| {
        let next = left.pop_front();
        async move {
            match next {
                Some(part) => Some((Ok(Bytes::from_static(part.as_bytes())), cut)),
                None if cut => {
                    // The parts are to leave first: an error would overtake them in the server's buffer.
                    for _ in 0..32 {
                        tokio::task::yield_now().await;
                    }
                    Some((Err(std::io::Error::other("cut")), false))
                }
                None => None,
            }
        }
    });
    Answer::builder().header("content-type", media).body(Body::from_stream(body)).unwrap()
}

fn end(complete: bool) -> Event {
    Event::End { complete }
}

fn bytes(events: &[Event]) -> String {
    let chunk = |event: &Event| match event {
        Event::Chunk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Event::End { complete } => format!("|{complete}"),
    };
    events.iter().map(chunk).collect()
}

#[tokio::test]
async fn a_form_arrives_as_it_was_with_its_media_type() {
    let echo = |request: Request| async move {
        let media = request.headers()["content-type"].to_str().unwrap().to_owned();
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        ([("content-type", "text/plain")], format!("{media}\n{body}")).into_response()
    };
    let base =
        testing::serve(Router::new().route("/v1/audio/transcriptions", axum::routing::post(echo))).await;
    let upstream = OpenAiHttp::new(http_client::build(Reach::Lan).unwrap(), testing_settings(base.as_str()));
    let path = ApiPath::Transcriptions;
    let request = UpstreamRequest { path, media: Some(MEDIA.into()), body: FORM.into(), ..chat(false) };
    let answer = upstream.oneshot(request).await.unwrap();
    assert_eq!(answer.media.as_deref(), Some("text/plain"));
    assert_eq!(bytes(&collect(answer).await.0), format!("{MEDIA}\n{FORM}|true"));
}

#[tokio::test]
async fn a_recording_comes_in_parts_and_one_that_breaks_off_says_so() {
    let whole = asked(ApiPath::Speech, || parts("audio/mpeg", &["one", "two"], false)).await.unwrap();
    assert_eq!(whole.media.as_deref(), Some("audio/mpeg"));
    let (events, error) = collect(whole).await;
    assert_eq!((bytes(&events).as_str(), error.is_none()), ("onetwo|true", true));
    let cut = asked(ApiPath::Speech, || parts("audio/mpeg", &["one", "two"], true)).await.unwrap();
    let (events, error) = collect(cut).await;
    assert!(!events.contains(&end(true)), "{events:?}");
    let error = error.expect("a cut is an error");
    assert_eq!((&*error.code, error.unanswered), ("upstream_interrupted", true));
}

#[tokio::test]
async fn a_transcript_that_breaks_off_can_still_be_had_elsewhere() {
    for media in ["text/vtt", "application/json"] {
        let error = asked(ApiPath::Transcriptions, move || parts(media, &["{\"te"], true)).await.unwrap_err();
        assert!(error.retryable && error.status == 502, "{media}");
    }
    let broken = asked(ApiPath::Transcriptions, || parts("application/json", &["{\"te"], false)).await;
    assert_eq!(broken.unwrap_err().status, 502);
}

#[tokio::test]
async fn events_are_whole_when_the_last_of_them_came() {
    const DELTA: &str = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"hi\"}\n\n";
    const LAST: &str = "event: x\ndata: {\"type\":\"transcript.text.done\",\"text\":\"hi\"}\n\n";
    let heard = |parts_of: &'static [&'static str]| async move {
        let answer =
            asked(ApiPath::Transcriptions, move || parts("text/event-stream", parts_of, false)).await;
        collect(answer.unwrap()).await
    };
    let (events, _) = heard(&[": hello\n\n", DELTA, LAST]).await;
    assert_eq!(
        bytes(&events),
        "{\"type\":\"transcript.text.delta\",\"delta\":\"hi\"}{\"type\":\"transcript.text.done\",\"text\":\"hi\"}|true"
    );
    let (events, _) = heard(&[DELTA]).await;
    assert_eq!(events.last(), Some(&end(false)), "a stream without its last event was cut");
    let (events, _) = heard(&[DELTA, "data: [DONE]\n\n"]).await;
    assert!(bytes(&events).ends_with("[DONE]|true"));
    let (_, error) = heard(&[DELTA, "data: {\"error\":{\"message\":\"no\",\"code\":503}}\n\n"]).await;
    assert_eq!(error.expect("an error among the events").status, 503);
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_before_anything_is_told() {
    let refused = |path, answer: fn() -> Answer| async move { asked(path, answer).await.unwrap_err().status };
    let json = |body: &'static str| ([("content-type", "application/json")], body).into_response();
    assert_eq!(refused(ApiPath::Speech, || parts("audio/mpeg", &[], false)).await, 502);
    assert_eq!(refused(ApiPath::Speech, || parts("text/html", &["<html>"], false)).await, 502);
    assert_eq!(refused(ApiPath::Speech, || StatusCode::NOT_FOUND.into_response()).await, 404);
    let answer =
        asked(ApiPath::Speech, move || json("{\"error\":{\"message\":\"full\",\"code\":429}}")).await;
    assert_eq!(answer.unwrap_err().status, 429);
    let answer = asked(ApiPath::Speech, move || json("{\"text\":\"hello\"}")).await;
    assert_eq!(answer.unwrap_err().status, 502, "a text is no recording");
}
