//! A `multipart/form-data` body read in place, so that a field can be renamed or taken out and every other byte stays.
//!
//! Libraries read forms from streams and give no places, and writing a form anew would change what a client sent. The
//! reading is strict where two readers could disagree: nothing before the first boundary, no field that counts twice, no
//! boundary inside of a part.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// Most parts of a form; OpenAI's have about a dozen fields.
const MAX_PARTS: usize = 128;
/// Most bytes of the headers of one part.
const MAX_HEAD: usize = 4096;
/// Longest boundary, by RFC 2046.
const MAX_BOUNDARY: usize = 70;
/// Largest field of text, in bytes.
pub const MAX_TEXT: usize = 64 << 10;

const MEDIA: &str = "multipart/form-data";
const NEW_LINE: &[u8] = b"\r\n";

/// Why a body is no form; completes the sentence "the form …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(&'static str);

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// True when it is a file.
    pub is_file: bool,
    /// Its content.
    pub content: &'a [u8],
    /// From its boundary to the next one, in the body.
    whole: Range<usize>,
    /// Its content, in the body.
    place: Range<usize>,
}

impl<'a> Part<'a> {
    /// Returns its text; `None` for a file, for what is no text, and above [`MAX_TEXT`].
    pub fn text(&self) -> Option<&'a str> {
        let is_text = !self.is_file && self.content.len() <= MAX_TEXT;
        is_text.then(|| std::str::from_utf8(self.content).ok()).flatten()
    }
}

/// What happens to a part when the form is written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It goes.
    Remove,
    /// It has this text.
    Say(String),
}

/// A form, in the order of its fields.
#[derive(Debug)]
pub struct Form<'a> {
    /// Its fields.
    pub parts: Vec<Part<'a>>,
}

/// True for a media type that says it is a form.
pub fn is_form(media: &str) -> bool {
    let kind = media.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(MEDIA)
}

impl<'a> Form<'a> {
    /// Reads a form; `media` is the whole content type, with the boundary.
    ///
    /// # Errors
    /// [`Broken`], with what is wrong.
    pub fn parse(media: &str, body: &'a [u8]) -> Result<Self, Broken> {
        let boundary = boundary(media)?;
        let opening = format!("--{boundary}");
        let between = format!("\r\n{opening}");
        let finder = memmem::Finder::new(between.as_bytes());
        if !body.starts_with(opening.as_bytes()) {
            return Err(Broken("does not begin with the boundary that its content type names"));
        }
        let mut parts: Vec<Part<'a>> = Vec::new();
        let mut start = 0;
        loop {
            let after = start + opening.len();
            match body.get(after..after + 2) {
                Some(b"--") => return Ok(Self { parts }),
                Some(NEW_LINE) => {}
                _ => return Err(Broken("has a boundary that neither begins a part nor ends the form")),
            }
            if parts.len() == MAX_PARTS {
                return Err(Broken("has more than 128 parts"));
            }
            let head = after + 2;
            // The end of the headers is looked for from the line before, since a part may have none.
            let near = &body[after..body.len().min(head + MAX_HEAD)];
            let blank =
                memmem::find(near, b"\r\n\r\n").ok_or(Broken("has a part without an end of its headers"))?;
            let content = after + blank + 4;
            let end = finder
                .find(&body[content - 2..])
                .map(|at| content - 2 + at)
                .ok_or(Broken("ends before its last boundary"))?;
            // A boundary right after the blank line closes an empty part.
            let place = content..end.max(content);
            let (name, is_file) = named(&body[head..(after + blank).max(head)])?;
            let next = end + NEW_LINE.len();
            parts.push(Part { name, is_file, content: &body[place.clone()], whole: start..next, place });
            start = next;
        }
    }

    /// Returns the place of the one field of a name among the parts; `None` if there is none.
    ///
    /// # Errors
    /// There are several, of which two readers could take different ones.
    pub fn only(&self, name: &str) -> Result<Option<usize>, Broken> {
        let mut found = self.parts.iter().enumerate().filter(|(_, part)| part.name == name);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(Broken("has a field twice that may stand in it once")),
            (first, None) => Ok(first.map(|(index, _)| index)),
        }
    }

    /// Returns the content of a file.
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        self.parts.iter().find(|part| part.is_file && part.name == name).map(|part| part.content)
    }

    /// Writes the form again with changes to the parts at some places; all other bytes are copied as they are.
    pub fn rebuilt(&self, body: &Bytes, changes: &[(usize, Change)]) -> Bytes {
        if changes.is_empty() {
            return body.clone();
        }
        let mut out = BytesMut::with_capacity(body.len() + 256);
        let mut copied = 0;
        for (index, part) in self.parts.iter().enumerate() {
            let Some((_, change)) = changes.iter().find(|(at, _)| *at == index) else { continue };
            let (until, from, text) = match change {
                Change::Remove => (part.whole.start, part.whole.end, ""),
                Change::Say(text) => (part.place.start, part.place.end, text.as_str()),
            };
            out.extend_from_slice(&body[copied..until]);
            out.extend_from_slice(text.as_bytes());
            copied = from;
        }
        out.extend_from_slice(&body[copied..]);
        out.freeze()
    }
}

/// Returns a form with a model named in it, whether it names another or none. What is no form stays as it is.
pub fn with_model(media: &str, body: &Bytes, model: &str) -> Bytes {
    let Ok(form) = Form::parse(media, body) else { return body.clone() };
    match (form.only("model"), boundary(media)) {
        (Ok(Some(at)), _) if form.parts[at].content != model.as_bytes() => {
            form.rebuilt(body, &[(at, Change::Say(model.to_owned()))])
        }
        (Ok(None), Ok(boundary)) => {
            let part =
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n");
            Bytes::from([part.as_bytes(), body].concat())
        }
        _ => body.clone(),
    }
}

fn boundary(media: &str) -> Result<Cow<'_, str>, Broken> {
    if !is_form(media) {
        return Err(Broken("has another content type than multipart/form-data"));
    }
    let parameters = media.split_once(';').map_or("", |(_, rest)| rest);
    let boundary = parameter(parameters, "boundary").ok_or(Broken("has no boundary in its content type"))?;
    let is_sane =
        (1..=MAX_BOUNDARY).contains(&boundary.len()) && boundary.bytes().all(|b| (b' '..=b'~').contains(&b));
    if is_sane { Ok(boundary) } else { Err(Broken("has a boundary that none can be")) }
}

/// Reads what the headers of a part say of its name, and whether it is a file.
fn named(head: &[u8]) -> Result<(Cow<'_, str>, bool), Broken> {
    let head = std::str::from_utf8(head).map_err(|_| Broken("has a part whose headers are no text"))?;
    let mut dispositions = head.split("\r\n").filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let (Some(told), None) = (dispositions.next(), dispositions.next()) else {
        return Err(Broken("has a part without a single content-disposition"));
    };
    let (kind, parameters) = told.split_once(';').unwrap_or((told, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return Err(Broken("has a part that is no form-data"));
    }
    let name = parameter(parameters, "name").ok_or(Broken("has a part without a name"))?;
    let is_file = parameter(parameters, "filename").or_else(|| parameter(parameters, "filename*")).is_some();
    Ok((name, is_file))
}

/// Returns a parameter of a header: `; name="value"`, quoted or not.
fn parameter<'a>(mut rest: &'a str, wanted: &str) -> Option<Cow<'a, str>> {
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        let (name, after) = rest.split_once('=')?;
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let (value, left) = after.split_once(';').unwrap_or((after, ""));
                (Cow::Borrowed(value.trim()), left)
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = left;
    }
}

/// Reads a quoted text up to its closing quote; returns what follows, too.
fn unquoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = Cow::Borrowed("");
    let mut from = 0;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                let end = &text[from..at];
                let value = if value.is_empty() { Cow::Borrowed(end) } else { value + end };
                return Some((value, &text[at + 1..]));
            }
            // Only these two are escaped; browsers leave the backslashes of paths as they are.
            b'\\' if matches!(text.as_bytes().get(at + 1), Some(b'"' | b'\\')) => {
                value = Cow::Owned(format!("{value}{}", &text[from..at]));
                from = at + 1;
                bytes.next();
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests;
