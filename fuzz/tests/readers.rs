//! Every reader of bytes that come from outside takes whatever comes: it reads it or says no, and never falls.

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use shoal_cluster::gossip::frame::Frame;
use shoal_cluster::identity::token::JoinToken;
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::{self, Key, Origin, Value};
use shoal_cluster::quic::FrameBuffer;
use shoal_fuzz::strangers;
use shoal_node::api::form::Form;
use shoal_node::api::parse::{Floor, Naming, parse};
use shoal_node::config::FileConfig;
use shoal_node::pack::RouterPack;
use shoal_node::upstream::sse::{Decoder, Framing, Item};
use shoal_node::upstream::{ApiPath, wire};
use shoal_proto::{DeviceAnnounce, InferFrame, InferRequest};

#[test]
fn request_json() {
    let naming = Naming { is_provider: &|name| name == "openai", lfo_manners: false };
    strangers("request_json", |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        for path in [ApiPath::ChatCompletions, ApiPath::Completions, ApiPath::Embeddings] {
            let Ok((parsed, _)) = parse(path, None, &bytes, &HeaderMap::new(), Floor::default(), naming)
            else {
                continue;
            };
            // What is sent on is JSON again, and never what a client may not set.
            let sent = parsed.body_for("m", true, true);
            let again = parse(path, None, &sent, &HeaderMap::new(), Floor::default(), naming);
            assert!(again.is_ok_and(|(again, _)| again.model == "m" && again.warnings.is_empty()));
        }
    });
}

#[test]
fn forms() {
    const MEDIA: &str = "multipart/form-data; boundary=b";
    let naming = Naming { is_provider: &|name| name == "openai", lfo_manners: false };
    let ask = |bytes: &Bytes| {
        let (headers, floor) = (HeaderMap::new(), Floor::default());
        parse(ApiPath::Transcriptions, Some(MEDIA), bytes, &headers, floor, naming).map(|(parsed, _)| parsed)
    };
    strangers("forms", |bytes| {
        let _ = Form::parse(&String::from_utf8_lossy(bytes), bytes);
        let bytes = Bytes::copy_from_slice(bytes);
        let Ok(parsed) = ask(&bytes) else { return };
        // What is sent on is a form again, of that model, and never with what a client may not set.
        let again = ask(&parsed.body_for("m", false, false));
        assert!(again.is_ok_and(|again| again.model == "m" && again.warnings.is_empty()));
    });
}

fn decoded(framing: Framing, reads: &[&[u8]]) -> Option<Vec<Item>> {
    let mut decoder = Decoder::of(framing);
    let mut items = Vec::new();
    for read in reads {
        decoder.push(Bytes::copy_from_slice(read));
        while let Some(item) = decoder.next_item().ok()? {
            items.push(item);
        }
    }
    Some(items)
}

#[test]
fn sse() {
    strangers("sse", |bytes| {
        for framing in [Framing::Events, Framing::Lines] {
            let whole = decoded(framing, &[bytes]);
            for at in [1, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
                let at = at.min(bytes.len());
                assert_eq!(decoded(framing, &[&bytes[..at], &bytes[at..]]), whole, "split at {at}");
            }
            let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(decoded(framing, &bytewise), whole);
        }
    });
}

#[test]
fn gossip_frames() {
    strangers("gossip_frames", |bytes| {
        if let Ok(frame) = Frame::decode(bytes) {
            assert_eq!(Frame::decode(&frame.encode()).ok(), Some(frame), "what was read is what is written");
        }
    });
}

#[test]
fn gossip_values() {
    let origin = Origin {
        id: NodeId::from_spki(b"one"),
        generation: 7,
        addr: "127.0.0.1:7411".parse().expect("an address"),
    };
    strangers("gossip_values", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        assert!(keyspace::open(&origin, "lease", 1, &text, &[7; 32]).is_err(), "nobody signed it");
        let _ = keyspace::open_chain(&text);
        for key in ["lease", "node", "stats", "cert", &*text].iter().filter_map(|name| Key::parse(name)) {
            if let Ok(value) = Value::decode(&key, bytes) {
                assert_eq!(value.key().ok().as_ref(), Some(&key));
            }
        }
    });
}

#[test]
fn quic_frames() {
    const LIMIT: usize = 4096;
    strangers("quic_frames", |bytes| {
        let mut whole = FrameBuffer::default();
        whole.push(bytes);
        let mut slow = FrameBuffer::default();
        let mut from_slow = Vec::new();
        for byte in bytes {
            slow.push(&[*byte]);
            while let Ok(Some(frame)) = slow.next(LIMIT) {
                from_slow.push(frame);
            }
        }
        let mut from_whole = Vec::new();
        while let Ok(Some(frame)) = whole.next(LIMIT) {
            assert!(frame.len() <= LIMIT);
            let _ = InferFrame::decode(frame.clone());
            let _ = DeviceAnnounce::decode(frame.clone());
            if let Ok(request) = InferRequest::decode(frame.clone()) {
                let _ = wire::from_wire(request);
            }
            from_whole.push(frame);
        }
        assert_eq!(from_whole, from_slow);
    });
}

#[test]
fn tokens() {
    strangers("tokens", |bytes| {
        if let Ok(token) = String::from_utf8_lossy(bytes).parse::<JoinToken>() {
            assert!(token.to_string().parse::<JoinToken>().is_ok());
        }
    });
}

#[test]
fn config() {
    strangers("config", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(error) = FileConfig::parse(&text, "shoal.toml", &[]) {
            assert!(!error.to_string().is_empty());
        }
    });
}

#[test]
fn router_pack() {
    strangers("router_pack", |bytes| drop(RouterPack::read(bytes)));
}
