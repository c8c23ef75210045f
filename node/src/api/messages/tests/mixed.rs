//! Streams cut and mixed in every way are the same message.

use std::collections::VecDeque;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::outbound::{assembled, chunk, events, finish, piece, streamed, usage, voice, whole};
use crate::api::voice::Voice;

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
