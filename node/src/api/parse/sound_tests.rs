//! Requests about sound, read and refused.

use shoal_routing::{DataClass, Mode};

use http::HeaderMap;

use super::super::{Floor, Parsed, parse};
use super::*;

const NAMING: Naming<'_> = Naming { is_provider: &|_| false, lfo_manners: false };
const MEDIA: &str = "multipart/form-data; boundary=b";

fn form(parts: &[(&str, &str)]) -> Bytes {
    let part = |(name, content): &(&str, &str)| {
        let file = if *name == "file" { "; filename=\"a.mp3\"" } else { "" };
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n")
    };
    (parts.iter().map(part).collect::<String>() + "--b--\r\n").into()
}

fn heard(parts: &[(&str, &str)]) -> Result<Parsed, ApiError> {
    let body = form(parts);
    let parsed =
        parse(ApiPath::Transcriptions, Some(MEDIA), &body, &HeaderMap::new(), Floor::default(), NAMING);
    parsed.map(|(parsed, _)| parsed)
}

fn spoken(json: &'static str) -> Result<Parsed, ApiError> {
    let body = Bytes::from_static(json.as_bytes());
    parse(ApiPath::Speech, None, &body, &HeaderMap::new(), Floor::default(), NAMING).map(|(parsed, _)| parsed)
}

#[test]
fn a_form_goes_on_without_what_was_said_to_us() {
    let parsed = heard(&[
        ("metadata[data_class]", "restricted"),
        ("file", "sound"),
        ("model", "whisper-1"),
        ("api_base", "http://elsewhere"),
        ("metadata", "{\"mode\": \"local\"}"),
        ("temperature", "0.2"),
        ("stream", "true"),
    ])
    .unwrap();
    assert_eq!((parsed.shape.data_class, parsed.shape.mode), (DataClass::Restricted, Mode::Local));
    assert!(parsed.shape.needs.transcription && parsed.shape.stream);
    assert_eq!(parsed.warnings, ["'api_base' is not allowed and was left out"]);
    let rest = [("file", "sound"), ("model", "whisper-1"), ("temperature", "0.2"), ("stream", "true")];
    assert_eq!(parsed.body, form(&rest));
    let renamed = parsed.body_for("own/whisper-1", false, true);
    let rest = [("file", "sound"), ("model", "own/whisper-1"), ("temperature", "0.2"), ("stream", "true")];
    assert_eq!(renamed, form(&rest));
    assert_eq!(parsed.body_for("whisper-1", false, true), parsed.body);
}

#[test]
fn a_form_that_cannot_be_served_says_which_field() {
    for (parts, param) in [
        (&[("file", "x")][..], "model"),
        (&[("model", "m")], "file"),
        (&[("model", "m"), ("file", "")], "file"),
        (&[("model", "m"), ("file", "x"), ("file", "y")], "file"),
        (&[("model", "m"), ("model", "n"), ("file", "x")], "model"),
        (&[("model", "m"), ("file", "x"), ("stream", "maybe")], "stream"),
        (&[("model", "m"), ("file", "x"), ("metadata[mode]", "far")], "metadata.mode"),
        (&[("model", "m"), ("file", "x"), ("metadata", "[]")], "metadata"),
        (
            &[("model", "m"), ("file", "x"), ("metadata[mode]", "local"), ("metadata[mode]", "auto")],
            "metadata",
        ),
    ] {
        let error = heard(parts).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{}", error.message);
    }
    let body = form(&[]);
    let asked =
        |media| parse(ApiPath::Translations, media, &body, &HeaderMap::new(), Floor::default(), NAMING);
    assert_eq!(asked(Some("application/json")).unwrap_err().status, 415);
    assert_eq!(asked(None).unwrap_err().code, "unsupported_media_type");
}

#[test]
fn a_text_to_read_is_checked_and_passed_on() {
    let parsed = spoken(
        r#"{"model":"m","input":"hello","voice":"alloy","stream_format":"sse","metadata":{"mode":"local"},"speed": 1.50}"#,
    )
    .unwrap();
    assert_eq!(
        (&parsed.body[..], parsed.work.unwrap().chars),
        (&br#"{"model":"m","input":"hello","voice":"alloy","stream_format":"sse","speed":1.50}"#[..], 5)
    );
    assert!(parsed.shape.needs.speech && parsed.shape.stream && parsed.media.is_none());
    for (json, param) in [
        (r#"{"input":"hello"}"#, "model"),
        (r#"{"model":"m"}"#, "input"),
        (r#"{"model":"m","input":"  "}"#, "input"),
        (r#"{"model":"m","input":7}"#, "input"),
        (r#"{"model":"m","input":"x","stream_format":"mp3"}"#, "stream_format"),
        (r#"{"model":"m","input":"x","speed":"fast"}"#, "speed"),
    ] {
        assert_eq!(spoken(json).unwrap_err().param.as_deref(), Some(param), "{json}");
    }
}
