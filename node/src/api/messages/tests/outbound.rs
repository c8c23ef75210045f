//! What becomes of an answer, whole and streamed.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use shoal_routing::Tokens;

use super::super::voice::Messages;
use crate::api::error::ApiError;
use crate::api::voice::Voice;

pub(super) fn voice() -> Messages {
    let mut voice = Messages::new("asked".into(), vec!["END".into()]);
    voice.accepted("req_1", Tokens(11));
    voice
}

fn whole(answer: &Value) -> Result<Value, ApiError> {
    voice().whole(answer.to_string().into()).map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

/// The events of a stream of chunks, to its good end.
fn streamed(chunks: &[Value]) -> Vec<Value> {
    let (mut voice, mut out) = (voice(), VecDeque::new());
    for chunk in chunks {
        voice.payload(chunk.to_string().as_bytes(), &mut out);
    }
    voice.end(&mut out);
    events(&out)
}

pub(super) fn events(frames: &VecDeque<Bytes>) -> Vec<Value> {
    frames.iter().map(|frame| event(std::str::from_utf8(frame).unwrap())).collect()
}

/// Reads one frame, and checks its form.
pub(super) fn event(frame: &str) -> Value {
    let (name, data) = frame.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
    let data = data.strip_suffix("\n\n").unwrap();
    assert!(!data.contains('\n'), "{frame}");
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["type"], name);
    data
}

/// Puts a message together as a client does, and checks the order of events on the way.
fn assembled(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let mut open: Option<(usize, String)> = None;
    for (at, event) in events.iter().enumerate() {
        match event["type"].as_str().unwrap() {
            "message_start" => {
                assert_eq!(at, 0);
                message = event["message"].clone();
            }
            "content_block_start" => {
                assert!(open.is_none(), "{event}");
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(event["index"], content.len());
                open = Some((content.len(), String::new()));
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let (index, json) = open.as_mut().unwrap();
                assert_eq!(event["index"], *index);
                let block = &mut message["content"][*index];
                let delta = &event["delta"];
                let (field, kind) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "input_json_delta" => {
                        assert_eq!(block["type"], "tool_use");
                        json.push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    other => panic!("{other}"),
                };
                assert_eq!(block["type"], kind);
                let text = block[field].as_str().unwrap().to_owned() + delta[field].as_str().unwrap();
                block[field] = text.into();
            }
            "content_block_stop" => {
                let (index, json) = open.take().unwrap();
                assert_eq!(event["index"], index);
                if !json.is_empty() {
                    message["content"][index]["input"] = serde_json::from_str(&json).unwrap();
                }
            }
            "message_delta" => {
                assert!(open.is_none());
                message["usage"] = event["usage"].clone();
                for field in ["stop_reason", "stop_sequence"] {
                    message[field] = event["delta"][field].clone();
                }
                if let Some(metadata) = event.get("shoal_metadata") {
                    message["shoal_metadata"] = metadata.clone();
                }
            }
            "message_stop" => assert_eq!(at, events.len() - 1),
            other => panic!("{other}"),
        }
    }
    message
}

fn chunk(delta: Value) -> Value {
    json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": null}], "usage": null})
}

fn finish(reason: &str) -> Value {
    json!({"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn usage() -> Value {
    json!({"model": "m", "choices": [], "shoal_metadata": {"target": "local"},
           "usage": {"prompt_tokens": 30, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 20}}})
}

fn piece(index: u64, id: &str, name: &str, arguments: &str) -> Value {
    let mut call = json!({"index": index, "function": {"arguments": arguments}});
    if !id.is_empty() {
        call["id"] = id.into();
    }
    if !name.is_empty() {
        call["function"]["name"] = name.into();
    }
    chunk(json!({"tool_calls": [call]}))
}

#[test]
fn a_whole_answer_becomes_a_message() {
    let message = whole(&json!({
        "id": "c", "object": "chat.completion", "model": "m", "shoal_metadata": {"target": "local"},
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "I look.", "reasoning_content": "hm", "reasoning": "hm", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\"}"}},
                {"type": "function", "function": {"name": "time", "arguments": ""}}]}}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37,
                  "prompt_tokens_details": {"cached_tokens": 20}, "completion_tokens_details": {"reasoning_tokens": 2}},
    }))
    .unwrap();
    assert_eq!(
        message,
        json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bonn"}},
                {"type": "tool_use", "id": "toolu_1_1", "name": "time", "input": {}}],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 10, "output_tokens": 7, "cache_creation_input_tokens": 0,
                      "cache_read_input_tokens": 20, "output_tokens_details": {"thinking_tokens": 2}},
            "shoal_metadata": {"target": "local"},
        })
    );
}

#[test]
fn an_answer_without_usage_or_model_is_told_with_our_own() {
    let message =
        whole(&json!({"choices": [{"message": {"content": "Hello, world"}, "finish_reason": "stop"}]}))
            .unwrap();
    assert_eq!((&message["model"], &message["stop_reason"]), (&json!("asked"), &json!("end_turn")));
    assert_eq!(
        (&message["usage"]["input_tokens"], &message["usage"]["output_tokens"]),
        (&json!(11), &json!(3))
    );
    let null = json!({"choices": [{"message": {"content": null}, "delta": null, "finish_reason": "stop"}],
                      "usage": {"prompt_tokens": null}});
    assert_eq!(whole(&null).unwrap()["content"], json!([]));
}

#[test]
fn a_met_stop_sequence_is_told_where_the_engine_tells_it() {
    for (field, value, reason, sequence) in [
        ("stop_reason", json!("END"), "stop_sequence", json!("END")),
        ("matched_stop", json!("END"), "stop_sequence", json!("END")),
        ("stop_reason", json!(151_645), "end_turn", Value::Null),
    ] {
        let mut choice = json!({"message": {"content": "x"}, "finish_reason": "stop"});
        choice[field] = value;
        let message = whole(&json!({"choices": [choice]})).unwrap();
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(reason), &sequence));
    }
}

#[test]
fn what_cannot_be_told_is_an_error_and_not_an_empty_message() {
    let call = |arguments: &str, reason: &str| {
        whole(&json!({"choices": [{"finish_reason": reason, "message": {"content": null, "tool_calls": [
            {"id": "i", "function": {"name": "n", "arguments": arguments}}]}}]}))
    };
    for arguments in ["{\"a\": ", "[1]", "no", "\"text\""] {
        let error = call(arguments, "tool_calls").unwrap_err();
        assert_eq!((error.status, error.code.as_ref()), (502, "upstream_error"), "{arguments}");
    }
    let cut = call("{\"a\": ", "length").unwrap();
    assert_eq!((&cut["stop_reason"], &cut["content"][0]["input"]), (&json!("max_tokens"), &json!({})));
    for body in [json!({}), json!({"choices": []}), json!({"choices": [{}]}), json!([])] {
        assert_eq!(whole(&body).unwrap_err().status, 502, "{body}");
    }
}

#[test]
fn a_stream_becomes_events() {
    let events = streamed(&[
        chunk(json!({"role": "assistant", "content": ""})),
        chunk(json!({"reasoning": "hm"})),
        chunk(json!({"content": "Hel"})),
        chunk(json!({"content": "lo"})),
        finish("stop"),
        usage(),
    ]);
    let start = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 11, "output_tokens": 0,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}});
    assert_eq!(
        Value::from(events),
        json!([
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0,
             "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "lo"}},
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
             "usage": {"input_tokens": 10, "output_tokens": 7, "cache_creation_input_tokens": 0,
                       "cache_read_input_tokens": 20},
             "shoal_metadata": {"target": "local"}},
            {"type": "message_stop"},
        ])
    );
}

#[test]
fn calls_in_sequence_flow_as_they_come() {
    let (mut voice, mut out) = (voice(), VecDeque::new());
    let mut tell = |chunk: Value| {
        voice.payload(chunk.to_string().as_bytes(), &mut out);
        let told: Vec<String> =
            events(&out).iter().map(|e| e["type"].as_str().unwrap().replace("content_block_", "")).collect();
        out.clear();
        told.join(" ")
    };
    assert_eq!(tell(chunk(json!({"content": "a"}))), "message_start start delta");
    assert_eq!(tell(piece(0, "c0", "f", "")), "stop start");
    assert_eq!(tell(piece(0, "", "", "{\"a\":")), "delta");
    assert_eq!(tell(piece(0, "", "", "1}")), "delta");
    assert_eq!(tell(piece(1, "c1", "g", "{}")), "stop start delta");
    assert_eq!(tell(piece(0, "", "", " ")), "");
    assert_eq!(tell(finish("tool_calls")), "");
}

#[test]
fn mixed_calls_wait_for_their_turn() {
    let message = assembled(&streamed(&[
        piece(0, "c0", "f", "{\"a\":"),
        piece(1, "c1", "g", "{\"b\":"),
        chunk(json!({"content": "meanwhile"})),
        piece(0, "", "", "1}"),
        piece(1, "", "", "2}"),
        finish("stop"),
        usage(),
    ]));
    assert_eq!(
        message["content"],
        json!([{"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
               {"type": "tool_use", "id": "c1", "name": "g", "input": {"b": 2}},
               {"type": "text", "text": "meanwhile"}])
    );
    assert_eq!(message["stop_reason"], "tool_use");
}

#[test]
fn calls_are_told_apart_by_id_where_all_have_one_number_or_none() {
    let expected = json!([{"type": "tool_use", "id": "c0", "name": "f", "input": {}},
                          {"type": "tool_use", "id": "c1", "name": "g", "input": {"b": 2}}]);
    let same = [piece(0, "c0", "f", "{}"), piece(0, "c1", "g", "{\"b\":2}"), finish("tool_calls")];
    assert_eq!(assembled(&streamed(&same))["content"], expected);
    let none = json!({"tool_calls": [
        {"id": "c0", "function": {"name": "f", "arguments": "{}"}},
        {"id": "c1", "function": {"name": "g", "arguments": {"b": 2}}}]});
    assert_eq!(assembled(&streamed(&[chunk(none), finish("tool_calls")]))["content"], expected);
}

#[test]
fn an_error_is_the_last_event() {
    let (mut voice, mut out) = (voice(), VecDeque::new());
    voice.payload(chunk(json!({"content": "a"})).to_string().as_bytes(), &mut out);
    voice.fail(&ApiError::new(502, "upstream_interrupted", "it broke"), &mut out);
    voice.payload(chunk(json!({"content": "b"})).to_string().as_bytes(), &mut out);
    voice.end(&mut out);
    let events = events(&out);
    assert_eq!(events.len(), 4);
    assert_eq!(
        events[3],
        json!({"type": "error",
               "error": {"type": "api_error", "message": "it broke", "code": "upstream_interrupted"}})
    );
}

#[test]
fn a_part_that_cannot_be_read_or_kept_ends_the_stream_with_an_error() {
    let broken = json!({"choices": [{"delta": {"tool_calls": "all of them"}}]});
    let many: Vec<Value> = (0..200).map(|i| piece(i, &format!("c{i}"), "f", "{")).collect();
    let huge = "x".repeat(5 << 20);
    let waiting = [piece(0, "c0", "f", "{"), piece(1, "c1", "g", &huge), piece(1, "", "", &huge)];
    for chunks in [&[broken][..], &many, &waiting] {
        let events = streamed(chunks);
        assert_eq!(events.iter().filter(|e| e["type"] == "error").count(), 1);
        assert_eq!(events.last().unwrap()["type"], "error");
    }
}

/// What a model says, as its chunks would bring it without any cutting: words first, then calls.
#[derive(Debug, Clone)]
struct Answer {
    thinking: String,
    text: String,
    calls: Vec<(String, Value)>,
}

fn answer() -> impl Strategy<Value = Answer> {
    let value = prop_oneof![
        any::<i32>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::collection::vec("[{}\\[\\]\",\\\\a]{0,6}".prop_map(Value::from), 0..3).prop_map(Value::from),
    ];
    let input = prop::collection::btree_map("[a-z\"{}]{1,5}", value, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()));
    let calls = prop::collection::vec(("[a-z]{1,8}", input), 0..4);
    (".{0,20}", ".{0,40}", calls).prop_map(|(thinking, text, calls)| Answer { thinking, text, calls })
}

impl Answer {
    fn body(&self) -> Value {
        let calls: Vec<Value> = self
            .calls
            .iter()
            .enumerate()
            .map(|(i, (name, input))| {
                json!({"id": format!("c{i}"), "function": {"name": name, "arguments": input.to_string()}})
            })
            .collect();
        let mut body = usage();
        let finish = if calls.is_empty() { "stop" } else { "tool_calls" };
        body["choices"] = json!([{"finish_reason": finish, "message": {
            "content": self.text, "reasoning_content": self.thinking, "tool_calls": calls}}]);
        body
    }

    /// The chunks: words cut anywhere, the calls' pieces cut anywhere and mixed as `order` says.
    fn chunks(&self, cuts: &[usize], order: &[usize]) -> Vec<Value> {
        let mut cuts = cuts.iter().copied().cycle();
        let mut chunks = vec![chunk(json!({"role": "assistant"}))];
        for (field, text) in [("reasoning_content", &self.thinking), ("content", &self.text)] {
            chunks.extend(cut(text, &mut cuts).into_iter().map(|piece| chunk(json!({field: piece}))));
        }
        // A call begins after those before it, since its number says so; the pieces mix as they like.
        let mut begun = 0;
        let mut left: Vec<VecDeque<Value>> = Vec::new();
        for (i, (name, input)) in self.calls.iter().enumerate() {
            let head = piece(i as u64, &format!("c{i}"), name, "");
            let rest =
                cut(&input.to_string(), &mut cuts).into_iter().map(|text| piece(i as u64, "", "", &text));
            left.push(std::iter::once(head).chain(rest).collect());
        }
        let mut order = order.iter().copied().cycle();
        while left.iter().any(|call| !call.is_empty()) {
            let at = order.next().unwrap_or(0) % (begun + 1).min(left.len());
            let at =
                if left[at].is_empty() { left.iter().position(|call| !call.is_empty()).unwrap() } else { at };
            chunks.extend(left[at].pop_front());
            begun = begun.max(at + 1);
        }
        chunks.push(finish(if self.calls.is_empty() { "stop" } else { "tool_calls" }));
        chunks.push(usage());
        chunks
    }
}

/// Cuts a text at character boundaries into pieces of the next lengths.
fn cut(text: &str, lengths: &mut impl Iterator<Item = usize>) -> Vec<String> {
    let mut characters = text.chars().peekable();
    let mut pieces = Vec::new();
    while characters.peek().is_some() {
        let length = lengths.next().unwrap_or(1).max(1);
        pieces.push(characters.by_ref().take(length).collect());
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn however_it_is_cut_and_mixed_the_message_is_the_whole_one(
        answer in answer(),
        cuts in prop::collection::vec(1usize..9, 1..12),
        order in prop::collection::vec(0usize..4, 1..12),
    ) {
        let streamed = assembled(&streamed(&answer.chunks(&cuts, &order)));
        prop_assert_eq!(streamed, whole(&answer.body()).unwrap());
    }

    #[test]
    fn no_chunk_however_odd_breaks_the_order_of_events(
        chunks in prop::collection::vec(odd_chunk(), 0..12),
    ) {
        let (mut voice, mut out) = (voice(), VecDeque::new());
        for chunk in &chunks {
            voice.payload(chunk.to_string().as_bytes(), &mut out);
        }
        voice.end(&mut out);
        let events = events(&out);
        let open: i32 = events.iter().map(|event| match event["type"].as_str().unwrap() {
            "content_block_start" => 1,
            "content_block_stop" => -1,
            _ => 0,
        }).sum();
        prop_assert_eq!(open, 0);
        prop_assert_eq!(&events.last().unwrap()["type"], "message_stop");
    }
}

fn odd_chunk() -> impl Strategy<Value = Value> {
    let call = (0u64..3, "[a-c]{0,1}", "[f-g]{0,1}", "[{}\"\\\\:1 ]{0,4}")
        .prop_map(|(index, id, name, arguments)| piece(index, &id, &name, &arguments));
    prop_oneof![
        call,
        "[a ]{0,2}".prop_map(|text| chunk(json!({"content": text}))),
        "[b]{0,2}".prop_map(|text| chunk(json!({"reasoning": text}))),
        Just(json!({"novel": [1]})),
        Just(finish("stop")),
        Just(usage()),
    ]
}
