//! A JSON object read once: its top-level fields stay raw bytes, so that what nobody changes is never
//! serialised again.

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Most top-level fields of a request; real ones have about 40.
const MAX_FIELDS: usize = 256;

/// Top-level fields of a JSON object, in their order, values untouched.
pub struct Body<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

/// What happens to one field when the body is written again.
pub enum Edit {
    /// The field gets this JSON text; it is added if it was absent.
    Set(String),
    /// The field goes.
    Remove,
}

impl<'a> Body<'a> {
    /// Parses an object; duplicate keys are refused, since two readers would disagree on which one counts.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Returns a field's raw text; JSON `null` counts as absent.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.fields.iter().find(|(k, _)| k == name).map(|(_, v)| *v).filter(|v| v.get() != "null")
    }

    /// Returns the names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(k, _)| k.as_ref())
    }

    /// Writes the object again with the edits; unchanged values are copied byte for byte.
    pub fn rebuild(&self, edits: &[(&str, Edit)]) -> Bytes {
        let size: usize = self.fields.iter().map(|(k, v)| k.len() + v.get().len() + 6).sum();
        let added: usize = edits.iter().map(|(k, e)| k.len() + e.len() + 6).sum();
        let mut out = BytesMut::with_capacity(size + added + 2);
        let mut first = true;
        let mut put = |out: &mut BytesMut, key: &str, value: &str| {
            out.put_u8(if std::mem::take(&mut first) { b'{' } else { b',' });
            // Keys may need escapes; they are short, so the encoder may do it.
            out.put_slice(serde_json::to_string(key).expect("a string serialises").as_bytes());
            out.put_u8(b':');
            out.put_slice(value.as_bytes());
        };
        for (key, value) in &self.fields {
            match edits.iter().find(|(k, _)| k == key) {
                Some((_, Edit::Remove)) => {}
                Some((_, Edit::Set(text))) => put(&mut out, key, text),
                None => put(&mut out, key, value.get()),
            }
        }
        for (key, edit) in edits {
            if let Edit::Set(text) = edit
                && !self.fields.iter().any(|(k, _)| k == key)
            {
                put(&mut out, key, text);
            }
        }
        if first {
            out.put_u8(b'{');
        }
        out.put_u8(b'}');
        out.freeze()
    }
}

impl Edit {
    fn len(&self) -> usize {
        match self {
            Edit::Set(text) => text.len(),
            Edit::Remove => 0,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Body<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Body<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body<'de>, A::Error> {
                let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(12);
                while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
                    if fields.len() == MAX_FIELDS {
                        return Err(A::Error::custom(format_args!("more than {MAX_FIELDS} fields")));
                    }
                    if fields.iter().any(|(k, _)| *k == key) {
                        return Err(A::Error::custom(format_args!("the field '{key}' occurs twice")));
                    }
                    fields.push((key, map.next_value()?));
                }
                Ok(Body { fields })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A key that borrows where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Text that borrows where it has no escapes.
#[derive(serde::Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_values_keep_their_bytes() {
        let text =
            br#"{"model":"a", "seed": 1e400, "x":{"deep" : [1, 2.50, "\u00e9"]},"n":9007199254740993}"#;
        let body = Body::parse(text).unwrap();
        let out = body.rebuild(&[("model", Edit::Set("\"b\"".into())), ("stream", Edit::Set("true".into()))]);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            r#"{"model":"b","seed":1e400,"x":{"deep" : [1, 2.50, "\u00e9"]},"n":9007199254740993,"stream":true}"#
        );
    }

    #[test]
    fn removing_everything_leaves_an_empty_object() {
        let body = Body::parse(br#"{"a":1}"#).unwrap();
        assert_eq!(&body.rebuild(&[("a", Edit::Remove)])[..], b"{}");
    }

    #[test]
    fn duplicates_arrays_and_garbage_are_refused() {
        for bad in [&br#"{"a":1,"a":2}"#[..], b"[1]", b"", b"{", b"{\"a\":1} x", b"\xff\xfe", b"null"] {
            assert!(Body::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
