//! Recordings in requests and answers: how much there is of them, and what it costs.
//!
//! Nothing here decodes sound. What a provider will bill is bounded from the bytes alone before a request is sent, and
//! replaced by what the answer says of it.

mod bill;
mod usage;

use shoal_routing::SoundWork;

pub use self::bill::{Bill, FLAT};
pub use self::usage::{Ear, SoundUsage};
use crate::api::body::{Body, Text};
use crate::api::form::Form;
use crate::upstream::ApiPath;

/// Field of a form that holds the recording.
pub const FILE: &str = "file";
/// Media type of server-sent events.
pub const EVENTS: &str = "text/event-stream";

/// Bytes of a second of a recording whose header does not say: 16 kbit/s, at which speech is still understood. More
/// bytes a second mean less to pay, so a length reckoned with it is an upper bound for all but the thriftiest codecs.
const LEAST_BYTES_PER_SECOND: u64 = 2_000;
/// Bytes of a second that a WAV header may claim: from telephones to eight channels of a studio.
const WAV_BYTES_PER_SECOND: std::ops::RangeInclusive<u64> = 4_000..=1_536_000;
/// Formats of plain samples: integers, floats, and either with more said of their channels.
const WAV_PLAIN: [u16; 3] = [1, 3, 0xfffe];
/// Most chunks before the one with the format.
const WAV_CHUNKS: usize = 16;
/// Characters that are read aloud in a second, slowly; 15 is usual.
const CHARS_PER_SECOND: u64 = 10;

/// True when an answer of this media type comes as events.
pub fn is_events(media: Option<&str>) -> bool {
    media.is_some_and(|media| {
        media.get(..EVENTS.len()).is_some_and(|start| start.eq_ignore_ascii_case(EVENTS))
    })
}

/// Returns how much a request has of what sound is charged by, at most. A body that cannot be read has nothing: whoever
/// sends it on finds out.
pub fn work(path: ApiPath, media: Option<&str>, body: &[u8]) -> SoundWork {
    match path {
        ApiPath::Speech => {
            let body = Body::parse(body).ok();
            let input = body.as_ref().and_then(|body| body.raw("input"));
            let text = input.and_then(|raw| serde_json::from_str::<Text<'_>>(raw.get()).ok());
            spoken(text.map_or(0, |text| text.0.chars().count() as u64))
        }
        ApiPath::Transcriptions | ApiPath::Translations => {
            let form = media.and_then(|media| Form::parse(media, body).ok());
            heard(form.as_ref().and_then(|form| form.file(FILE)).unwrap_or_default())
        }
        ApiPath::ChatCompletions | ApiPath::Completions | ApiPath::Embeddings => SoundWork::default(),
    }
}

/// The work of reading a text aloud.
pub fn spoken(chars: u64) -> SoundWork {
    SoundWork { millis: chars.saturating_mul(1000) / CHARS_PER_SECOND, chars }
}

/// The work of writing a recording down.
pub fn heard(recording: &[u8]) -> SoundWork {
    let bytes = recording.len() as u64;
    let per_second = wav_bytes_per_second(recording).unwrap_or(LEAST_BYTES_PER_SECOND);
    SoundWork { millis: bytes.saturating_mul(1000) / per_second, chars: 0 }
}

/// Returns what the header of a WAV file says; `None` for other files, and where it says what cannot be: only of plain
/// samples is the rate more than a claim.
fn wav_bytes_per_second(file: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    let is_wav = file.get(..4)? == b"RIFF" && file.get(8..12)? == b"WAVE";
    let mut at = is_wav.then_some(12)?;
    // The chunk with the format may have others before it; they are few.
    for _ in 0..WAV_CHUNKS {
        let (kind, size) = (file.get(at..at + 4)?, word(at + 4)? as usize);
        if kind == b"fmt " {
            let (format, samples, bytes, block) =
                (half(at + 8)?, word(at + 12)?, word(at + 16)?, half(at + 20)?);
            let is_plain =
                WAV_PLAIN.contains(&format) && u64::from(samples) * u64::from(block) == u64::from(bytes);
            return Some(u64::from(bytes)).filter(|rate| is_plain && WAV_BYTES_PER_SECOND.contains(rate));
        }
        // Chunks begin at even places.
        at = at.checked_add(8)?.checked_add(size)?.checked_add(size % 2)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAV file of silence, 16 kHz, one channel of 16 bits.
    fn wav(seconds: usize) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
        file.extend(16_000u32.to_le_bytes());
        file.extend(32_000u32.to_le_bytes());
        file.extend(b"\x02\0\x10\0data\0\0\0\0");
        file.resize(file.len() + seconds * 32_000, 0);
        file
    }

    #[test]
    fn a_wav_file_that_holds_anything_else_claims_in_vain() {
        let mut file = wav(3);
        file[20] = 0x55; // MP3 under the rate of plain samples
        assert_eq!(heard(&file).millis, file.len() as u64 * 1000 / LEAST_BYTES_PER_SECOND);
        let mut file = wav(3);
        file[28..32].copy_from_slice(&1_000_000u32.to_le_bytes());
        assert_eq!(heard(&file).millis, file.len() as u64 * 1000 / LEAST_BYTES_PER_SECOND);
    }

    #[test]
    fn a_wav_file_says_its_length_and_others_are_reckoned_long() {
        let millis = heard(&wav(3)).millis;
        assert!((3_000..3_010).contains(&millis), "{millis}");
        assert_eq!(heard(&[0xff; 4_000]).millis, 2_000);
        let mut odd = wav(3);
        odd[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(heard(&odd).millis > 40_000, "a rate that cannot be is not believed");
    }

    #[test]
    fn a_text_is_counted_in_characters() {
        let body = r#"{"model":"tts-1","input":"größer","voice":"alloy"}"#;
        assert_eq!(work(ApiPath::Speech, None, body.as_bytes()), SoundWork { millis: 600, chars: 6 });
        assert_eq!(work(ApiPath::Speech, None, b"{").chars, 0);
    }

    #[test]
    fn events_are_told_by_their_media_type() {
        assert!(is_events(Some("text/event-stream; charset=utf-8")) && is_events(Some("Text/Event-Stream")));
        assert!(!is_events(Some("text/plain")) && !is_events(None) && !is_events(Some("é")));
    }
}
