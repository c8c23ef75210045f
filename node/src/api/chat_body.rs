//! A chat completion's request, for the APIs that are translated into one.
//!
//! Written field by field, so that schemas and arguments keep their bytes: the order of a schema's properties is the
//! order in which a model fills them.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

/// A JSON object on its way, in the order in which its fields are put.
#[derive(Debug, Clone)]
pub struct Object(Vec<u8>);

impl Default for Object {
    fn default() -> Self {
        Self(vec![b'{'])
    }
}

impl Object {
    /// Adds a field.
    pub fn put(&mut self, name: &str, value: &(impl Serialize + ?Sized)) -> &mut Self {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        serde_json::to_writer(&mut self.0, name).expect("a string serialises");
        self.0.push(b':');
        serde_json::to_writer(&mut self.0, value).expect("plain fields serialise");
        self
    }

    /// Adds a field if there is something to put into it.
    pub fn put_some(&mut self, name: &str, value: Option<&(impl Serialize + ?Sized)>) -> &mut Self {
        match value {
            Some(value) => self.put(name, value),
            None => self,
        }
    }

    /// Returns the object's JSON.
    pub fn finish(mut self) -> Bytes {
        self.0.push(b'}');
        self.0.into()
    }

    /// Returns the object as raw JSON, to be put into another.
    pub fn into_raw(mut self) -> Box<RawValue> {
        self.0.push(b'}');
        let text = String::from_utf8(self.0).expect("JSON writers write UTF-8");
        RawValue::from_string(text).expect("an object of JSON fields is JSON")
    }
}

/// One message.
#[derive(Debug, Default, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// What it says; `null` for an assistant that only called tools.
    pub content: Option<Content>,
    /// What an assistant thought; engines of thinking models read it, others ignore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tools that an assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's result belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Makes a message of text alone.
    pub fn text(role: &'static str, text: impl Into<String>) -> Self {
        Self { role, content: Some(Content::Text(text.into())), ..Self::default() }
    }
}

/// What a message says.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Text and more.
    Parts(Vec<Part>),
}

impl Content {
    /// Makes the simplest content of parts: engines that know no parts take text.
    pub fn of(mut parts: Vec<Part>) -> Self {
        match (parts.pop(), parts.is_empty()) {
            (None, _) => Self::Text(String::new()),
            (Some(Part::Text { text }), true) => Self::Text(text),
            (Some(last), _) => {
                parts.push(last);
                Self::Parts(parts)
            }
        }
    }
}

/// A part of a message.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    ImageUrl {
        /// Where it is.
        image_url: ImageUrl,
    },
    /// A sound.
    InputAudio {
        /// `{data, format}`
        input_audio: Box<RawValue>,
    },
    /// A document.
    File {
        /// Its content.
        file: File,
    },
}

/// A picture: an address, or the picture itself in a `data:` URL.
#[derive(Debug, Serialize)]
pub struct ImageUrl {
    /// The URL.
    pub url: String,
    /// `low`, `high` or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A document in the request itself.
#[derive(Debug, Serialize)]
pub struct File {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// A `data:` URL.
    pub file_data: String,
}

/// A tool that was called.
#[derive(Debug, Clone, Serialize)]
pub struct ToolCall {
    /// Its id, repeated by the result.
    pub id: String,
    /// Always `function`.
    pub r#type: &'static str,
    /// What was called.
    pub function: Called,
}

impl ToolCall {
    /// Makes a call of a function.
    pub fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, r#type: "function", function: Called { name, arguments } }
    }
}

/// A function with its arguments.
#[derive(Debug, Clone, Serialize)]
pub struct Called {
    /// Its name.
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

/// A function that may be called.
#[derive(Debug, Serialize)]
pub struct Tool {
    /// Always `function`.
    pub r#type: &'static str,
    /// Which one.
    pub function: Function,
}

/// What a model is told of a function.
#[derive(Debug, Serialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Box<RawValue>>,
    /// Arguments must follow the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_the_order_and_the_bytes_of_its_fields() {
        let schema = RawValue::from_string(r#"{"z":1, "a":2.50}"#.into()).unwrap();
        let mut object = Object::default();
        object.put("b", "x\"y").put("schema", &schema).put_some("none", None::<&str>).put_some("a", Some(&1));
        assert_eq!(&object.finish()[..], br#"{"b":"x\"y","schema":{"z":1, "a":2.50},"a":1}"#);
        assert_eq!(&Object::default().finish()[..], b"{}");
    }

    #[test]
    fn one_text_is_no_list() {
        let json = |parts| serde_json::to_string(&Content::of(parts)).unwrap();
        let text = |text: &str| Part::Text { text: text.into() };
        assert_eq!(json(vec![text("a")]), r#""a""#);
        assert_eq!(
            json(vec![text("a"), text("b")]),
            r#"[{"type":"text","text":"a"},{"type":"text","text":"b"}]"#
        );
        assert_eq!(json(vec![]), r#""""#);
    }
}
