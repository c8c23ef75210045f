//! What the voice says: whole transcripts, and laws that hold however an answer is cut into chunks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::object::Birth;
use super::request::Telling;
use super::voice::{Keep, Responses};
use crate::api::error::ApiError;
use crate::api::voice::Voice;

fn voice_of(telling: Telling, keep: Option<Keep>) -> Responses {
    Responses::new(Birth { suffix: "ab12cd34_0".into(), created_s: 7 }, telling, keep)
}

fn voice() -> Responses {
    voice_of(Telling { model: "asked".into(), ..Telling::default() }, None)
}

fn delta(delta: Value) -> Value {
    json!({"model": "m", "choices": [{"index": 0, "delta": delta}]})
}

fn finish(reason: &str) -> Value {
    json!({"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn usage() -> Value {
    json!({"choices": [], "shoal_metadata": {"target": "local"},
           "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}})
}

/// Tells chunks; returns the events, each checked to be named as it says itself.
fn told(voice: &mut Responses, chunks: &[Value]) -> Vec<Value> {
    let mut out = VecDeque::new();
    for chunk in chunks {
        voice.payload(chunk.to_string().as_bytes(), &mut out);
    }
    events(&out)
}

fn told_to_the_end(voice: &mut Responses, chunks: &[Value]) -> Vec<Value> {
    let mut all = told(voice, chunks);
    let mut out = VecDeque::new();
    voice.end(&mut out);
    all.extend(events(&out));
    all
}

fn events(frames: &VecDeque<Bytes>) -> Vec<Value> {
    let read = |frame: &Bytes| {
        let text = std::str::from_utf8(frame).unwrap();
        let (name, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let event: Value = serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap();
        assert_eq!(event["type"], name);
        event
    };
    frames.iter().map(read).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect()
}

#[test]
fn a_text_is_told_from_its_creation_to_its_completion() {
    let chunks = [
        delta(json!({"role": "assistant"})),
        delta(json!({"content": "Hel"})),
        delta(json!({"content": "lo"})),
        finish("stop"),
        usage(),
    ];
    let events = told_to_the_end(&mut voice(), &chunks);
    assert_eq!(
        kinds(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
    );
    assert_eq!(events[0]["response"]["status"], "in_progress");
    assert_eq!(
        events[5],
        json!({"type": "response.output_text.delta", "sequence_number": 5, "output_index": 0, "content_index": 0,
               "item_id": "msg_ab12cd34_0_0", "delta": "lo", "logprobs": []})
    );
    let part = json!({"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []});
    let message = json!({"type": "message", "id": "msg_ab12cd34_0_0", "role": "assistant", "status": "completed",
                         "content": [part]});
    assert_eq!(events[7]["part"], part);
    assert_eq!(events[8]["item"], message);
    let response = &events[9]["response"];
    assert_eq!(
        (&response["id"], &response["status"], &response["model"]),
        (&json!("resp_ab12cd34_0"), &json!("completed"), &json!("m"))
    );
    assert_eq!(response["output"], json!([message]));
    assert_eq!(
        response["usage"],
        json!({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 4,
               "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7})
    );
    assert_eq!(response["shoal_metadata"], json!({"target": "local"}));
    assert_eq!(response["store"], false);
}

#[test]
fn thinking_then_calls_each_have_an_item() {
    let call = |index, part: Value| {
        delta(json!({"tool_calls": [{"index": index, "id": part["id"], "function": part}]}))
    };
    let chunks = [
        delta(json!({"reasoning_content": "hm"})),
        call(0, json!({"id": "c0", "name": "f", "arguments": "{\"a\""})),
        call(1, json!({"id": "c1", "name": "g", "arguments": ""})),
        call(0, json!({"arguments": ":1}"})),
        call(1, json!({"arguments": "{}"})),
        finish("tool_calls"),
    ];
    let events = told_to_the_end(&mut voice(), &chunks);
    assert_eq!(
        kinds(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!(
        *output,
        json!([
            {"type": "reasoning", "id": "rs_ab12cd34_0_0", "summary": [], "status": "completed",
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "id": "fc_ab12cd34_0_1", "call_id": "c0", "name": "f", "arguments": "{\"a\":1}", "status": "completed"},
            {"type": "function_call", "id": "fc_ab12cd34_0_2", "call_id": "c1", "name": "g", "arguments": "{}", "status": "completed"},
        ])
    );
}

#[test]
fn reasoning_is_told_as_a_summary_where_one_was_asked_for() {
    let telling = Telling { summarise: true, ..Telling::default() };
    let chunks = [
        delta(json!({"reasoning": "h"})),
        delta(json!({"reasoning": "m"})),
        delta(json!({"content": "x"})),
        finish("stop"),
    ];
    let events = told_to_the_end(&mut voice_of(telling, None), &chunks);
    assert_eq!(
        kinds(&events)[2..8],
        [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
        ]
    );
    let item = &events.last().unwrap()["response"]["output"][0];
    assert_eq!(item["summary"], json!([{"type": "summary_text", "text": "hm"}]));
    assert_eq!(item.get("content"), None);
}

#[test]
fn a_refusal_is_a_part_of_its_own() {
    let chunks = [delta(json!({"content": "Well"})), delta(json!({"refusal": "no"})), finish("stop")];
    let events = told_to_the_end(&mut voice(), &chunks);
    let content = &events.last().unwrap()["response"]["output"][0]["content"];
    assert_eq!(
        (&content[0]["text"], &content[1]),
        (&json!("Well"), &json!({"type": "refusal", "refusal": "no"}))
    );
    assert_eq!(kinds(&events)[8..10], ["refusal.delta", "refusal.done"]);
}

#[test]
fn free_text_of_a_tool_is_told_when_it_is_whole() {
    let telling = Telling { free_tools: ["patch".to_owned()].into(), ..Telling::default() };
    let part = |arguments: &str, name: Value| {
        delta(json!({"tool_calls": [{"index": 0, "function": {"name": name, "arguments": arguments}}]}))
    };
    let chunks = [part("{\"input\":", json!("patch")), part("\"a\\nb\"}", Value::Null), finish("tool_calls")];
    let events = told_to_the_end(&mut voice_of(telling, None), &chunks);
    assert_eq!(
        kinds(&events)[2..6],
        [
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done"
        ]
    );
    let item = &events.last().unwrap()["response"]["output"][0];
    assert_eq!((&item["type"], &item["input"]), (&json!("custom_tool_call"), &json!("a\nb")));
    assert_eq!(item["call_id"], "call_ab12cd34_0_0", "a call without an id gets one");
}

#[test]
fn a_cut_answer_says_what_cut_it() {
    for (reason, told_as) in [("length", "max_output_tokens"), ("content_filter", "content_filter")] {
        let events = told_to_the_end(&mut voice(), &[delta(json!({"content": "He"})), finish(reason)]);
        let last = events.last().unwrap();
        assert_eq!(last["type"], "response.incomplete");
        assert_eq!(last["response"]["incomplete_details"]["reason"], told_as);
        assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    }
}

#[test]
fn after_an_error_nothing_looks_like_a_good_end() {
    let error = ApiError::new(502, "upstream_interrupted", "it broke");
    for begun in [true, false] {
        let kept = Arc::new(Mutex::new(false));
        let seen = kept.clone();
        let keep: Keep = Box::new(move |_, _| std::mem::replace(&mut *seen.lock().unwrap(), true));
        let mut voice = voice_of(Telling::default(), Some(keep));
        let mut all = if begun { told(&mut voice, &[delta(json!({"content": "He"}))]) } else { Vec::new() };
        let mut out = VecDeque::new();
        voice.fail(&error, &mut out);
        voice.end(&mut out);
        voice.payload(delta(json!({"content": "x"})).to_string().as_bytes(), &mut out);
        all.extend(events(&out));
        let last = all.last().unwrap();
        assert_eq!((&all[0]["type"], &last["type"]), (&json!("response.created"), &json!("response.failed")));
        assert_eq!(last["response"]["error"], json!({"code": "upstream_interrupted", "message": "it broke"}));
        assert!(!*kept.lock().unwrap());
    }
    let events = told(&mut voice(), &[json!({"choices": 7})]);
    assert_eq!(events.last().unwrap()["type"], "response.failed");
}

#[test]
fn what_is_kept_is_what_was_told_and_what_could_not_be_kept_says_so() {
    for room in [true, false] {
        let kept = Arc::new(Mutex::new(String::new()));
        let seen = kept.clone();
        let keep: Keep = Box::new(move |response, _| {
            *seen.lock().unwrap() = response.get().to_owned();
            room
        });
        let events = told_to_the_end(
            &mut voice_of(Telling::default(), Some(keep)),
            &[delta(json!({"content": "x"})), finish("stop")],
        );
        let response = &events.last().unwrap()["response"];
        assert_eq!(response["store"], room);
        let kept: Value = serde_json::from_str(&kept.lock().unwrap()).unwrap();
        assert_eq!(kept["output"], response["output"]);
        assert_eq!(kept == *response, room);
    }
}

#[test]
fn log_probabilities_are_told_to_those_who_asked() {
    let token = json!({"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []});
    let chunk = json!({"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [token]}}]});
    for (logprobs, expected) in [(true, json!([token])), (false, json!([]))] {
        let mut voice = voice_of(Telling { logprobs, ..Telling::default() }, None);
        let events = told_to_the_end(&mut voice, &[chunk.clone(), finish("stop")]);
        assert_eq!(events[4]["logprobs"], expected);
        assert_eq!(events.last().unwrap()["response"]["output"][0]["content"][0]["logprobs"], expected);
    }
}

#[test]
fn a_whole_answer_that_is_none_is_an_error() {
    assert_eq!(voice().whole(Bytes::from_static(b"{\"choices\":[]}")).unwrap_err().status, 502);
    assert_eq!(voice().whole(Bytes::from_static(b"[]")).unwrap_err().status, 502);
}

/// A text cut anywhere.
fn cut() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-zé\"\\\\\n{}]{0,4}", 0..5)
}

/// A step of an answer: what it adds to, and the piece.
fn steps() -> impl Strategy<Value = Vec<(usize, String)>> {
    (cut(), cut(), prop::collection::vec((0..3_usize, "[a-z\"{}]{1,4}"), 0..8)).prop_map(
        |(thoughts, words, calls)| {
            let thoughts = thoughts.into_iter().map(|piece| (0, piece));
            let words = words.into_iter().map(|piece| (1, piece));
            let calls = calls.into_iter().map(|(index, piece)| (2 + index, piece));
            thoughts.chain(words).chain(calls).collect()
        },
    )
}

/// Chunks that say the steps, and the whole answer that says the same.
fn chunks_and_whole(steps: &[(usize, String)]) -> (Vec<Value>, Value) {
    let (mut chunks, mut texts) = (Vec::new(), [String::new(), String::new()]);
    // Which call comes first decides its place in the output.
    let mut calls: Vec<(usize, String)> = Vec::new();
    for (to, piece) in steps {
        chunks.push(match to {
            0 => delta(json!({"reasoning_content": piece})),
            1 => delta(json!({"content": piece})),
            index => {
                let known = calls.iter().any(|(known, _)| known == index);
                let id = (!known).then(|| format!("c{index}"));
                let name = (!known).then(|| format!("f{index}"));
                delta(json!({"tool_calls": [{"index": index - 2, "id": id, "function": {"name": name, "arguments": piece}}]}))
            }
        });
        match calls.iter_mut().find(|(known, _)| known == to) {
            Some((_, arguments)) => arguments.push_str(piece),
            None if *to < 2 => texts[*to].push_str(piece),
            None => calls.push((*to, piece.clone())),
        }
    }
    let calls: Vec<Value> = calls
        .iter()
        .enumerate()
        .map(|(place, (index, arguments))| {
            json!({"index": place, "id": format!("c{index}"), "function": {"name": format!("f{index}"), "arguments": arguments}})
        })
        .collect();
    let message = json!({"reasoning_content": texts[0], "content": texts[1], "tool_calls": calls});
    (chunks, json!({"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}))
}

proptest! {
    #[test]
    fn however_it_is_cut_the_parts_add_up_to_the_whole(steps in steps()) {
        let (mut chunks, whole) = chunks_and_whole(&steps);
        chunks.push(finish("stop"));
        let events = told_to_the_end(&mut voice(), &chunks);
        let last = &events.last().unwrap()["response"];
        let whole = voice().whole(whole.to_string().into()).unwrap();
        prop_assert_eq!(last, &serde_json::from_slice::<Value>(&whole).unwrap());

        let mut open: BTreeMap<u64, String> = BTreeMap::new();
        let mut done = Vec::new();
        for (number, event) in events.iter().enumerate() {
            prop_assert_eq!(&event["sequence_number"], &json!(number));
            let Some(place) = event["output_index"].as_u64() else { continue };
            match event["type"].as_str().unwrap() {
                "response.output_item.added" => {
                    prop_assert_eq!(place, (open.len() + done.len()) as u64);
                    open.insert(place, String::new());
                }
                "response.output_item.done" => {
                    let said = open.remove(&place).unwrap();
                    let item = &event["item"];
                    let kept = [&item["arguments"], &item["content"][0]["text"]];
                    prop_assert!(kept.iter().any(|text| **text == json!(said)), "{} is not in {}", said, item);
                    done.push(item.clone());
                }
                kind if kind.ends_with(".delta") => {
                    open.get_mut(&place).unwrap().push_str(event["delta"].as_str().unwrap());
                }
                _ => prop_assert!(open.contains_key(&place)),
            }
        }
        prop_assert!(open.is_empty());
        prop_assert_eq!(&json!(done), &last["output"]);
    }
}

#[test]
fn a_text_between_two_pieces_of_a_call_leaves_the_call_open() {
    let part = |name: Value, piece: &str| {
        delta(
            json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": name, "arguments": piece}}]}),
        )
    };
    let chunks = [
        part(json!("f"), "{\"a\":"),
        delta(json!({"reasoning": "hm"})),
        delta(json!({"content": "so"})),
        part(Value::Null, "1}"),
        finish("tool_calls"),
    ];
    let events = told_to_the_end(&mut voice(), &chunks);
    let done = |kind: &str| {
        let all: Vec<&Value> = events.iter().filter(|event| event["type"] == kind).collect();
        assert_eq!(all.len(), 1, "{kind}");
        all[0].clone()
    };
    assert_eq!(done("response.function_call_arguments.done")["arguments"], "{\"a\":1}");
    let output = done("response.completed")["response"]["output"].clone();
    let kinds: Vec<&Value> = output.as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["function_call", "reasoning", "message"]);
    assert_eq!((&output[0]["arguments"], &output[0]["status"]), (&json!("{\"a\":1}"), &json!("completed")));
}

#[test]
fn calls_and_parts_without_end_are_an_error() {
    let call = |index: usize| {
        let function = json!({"name": "f", "arguments": "{}"});
        delta(json!({"tool_calls": [{"index": index, "id": "c", "function": function}]}))
    };
    let word =
        |n: usize| delta(if n.is_multiple_of(2) { json!({"content": "a"}) } else { json!({"refusal": "b"}) });
    for chunks in [(0..200).map(call).collect::<Vec<_>>(), (0..5000).map(word).collect()] {
        let events = told_to_the_end(&mut voice(), &chunks);
        assert_eq!(kinds(&events).last(), Some(&"failed"));
    }
}
