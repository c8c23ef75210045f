//! What becomes of an answer, whole and streamed.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};
use shoal_routing::{DataClass, Tokens};

use super::super::voice::Messages;
use crate::api::error::ApiError;
use crate::api::voice::Voice;

pub(super) fn voice() -> Messages {
    let mut voice = Messages::new("asked".into(), vec!["END".into()]);
    voice.accepted("req_1", Tokens(11), DataClass::Internal);
    voice
}

pub(super) fn whole(answer: &Value) -> Result<Value, ApiError> {
    voice().whole(answer.to_string().into()).map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

/// The events of a stream of chunks, to its good end.
pub(super) fn streamed(chunks: &[Value]) -> Vec<Value> {
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
pub(super) fn assembled(events: &[Value]) -> Value {
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

pub(super) fn chunk(delta: Value) -> Value {
    json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": null}], "usage": null})
}

pub(super) fn finish(reason: &str) -> Value {
    json!({"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

pub(super) fn usage() -> Value {
    json!({"model": "m", "choices": [], "shoal_metadata": {"target": "local"},
           "usage": {"prompt_tokens": 30, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 20}}})
}

pub(super) fn piece(index: u64, id: &str, name: &str, arguments: &str) -> Value {
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
