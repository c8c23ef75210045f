//! Parts text as o200k's pattern does, by hand: a general matcher takes most of the time of counting.
//!
//! The alternatives, tried in this order, where U are upper-case and title-case letters, L lower-case ones, X letters
//! without case and marks, N numbers:
//!
//! 1. `[^\r\n letter N]? [UX]* [LX]+ ('s|'t|'re|'ve|'m|'ll|'d)?`
//! 2. `[^\r\n letter N]? [UX]+ [LX]* ('s|…)?`
//! 3. `N{1,3}`
//! 4. ` ? [^\s letter N]+ [\r\n/]*`
//! 5. `\s* [\r\n]+`
//! 6. `\s+` up to the last blank before a word, 7. `\s+`

use super::table::{Class, O200K};

/// Endings that stay with their word; without regard to case, in which `ſ` is an `s`.
const ENDINGS: [&str; 7] = ["re", "ve", "ll", "s", "t", "m", "d"];

/// Iterates over the pieces of a text; together they are the text.
pub(super) struct Pieces<'a> {
    text: &'a str,
}

impl<'a> Pieces<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.text.is_empty() {
            return None;
        }
        let (piece, rest) = self.text.split_at(piece_len(self.text));
        self.text = rest;
        Some(piece)
    }
}

/// Returns the length of the first piece of a text that is not empty.
fn piece_len(text: &str) -> usize {
    let Some((first, width)) = class_at(text, 0) else { return 0 };
    let prefix = match first {
        Class::Upper | Class::Lower | Class::Letter | Class::Number | Class::LineEnd => 0,
        Class::Other | Class::Mark | Class::Blank => width,
    };
    let word = if prefix > 0 {
        // A mark may be what comes before a word, or begin one itself.
        cased_word(text, prefix)
            .or_else(|| cased_word(text, 0))
            .or_else(|| upper_word(text, prefix))
            .or_else(|| upper_word(text, 0))
    } else {
        cased_word(text, 0).or_else(|| upper_word(text, 0))
    };
    if let Some(end) = word {
        return end + ending_len(&text[end..]);
    }
    match first {
        Class::Number => run(text, 0, 3, |class| class == Class::Number),
        Class::Blank | Class::LineEnd => {
            marks(text, width).filter(|_| text.starts_with(' ')).unwrap_or_else(|| blanks(text))
        }
        Class::Other | Class::Mark => marks(text, 0).unwrap_or(width),
        // A letter always begins a word.
        Class::Upper | Class::Lower | Class::Letter => width,
    }
}

/// Returns the class of the character at `at`, and its width in bytes.
#[inline]
fn class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let byte = *text.as_bytes().get(at)?;
    if byte.is_ascii() { Some((ASCII[usize::from(byte)], 1)) } else { wide_class_at(text, at) }
}

#[cold]
fn wide_class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let char = text[at..].chars().next()?;
    Some((O200K.class(char), char.len_utf8()))
}

/// Returns the end of at most `limit` characters from `start` of the wanted classes.
fn run(text: &str, start: usize, limit: usize, wanted: impl Fn(Class) -> bool) -> usize {
    let mut at = start;
    for _ in 0..limit {
        match class_at(text, at) {
            Some((class, width)) if wanted(class) => at += width,
            _ => break,
        }
    }
    at
}

fn is_upper(class: Class) -> bool {
    matches!(class, Class::Upper | Class::Letter | Class::Mark)
}

fn is_lower(class: Class) -> bool {
    matches!(class, Class::Lower | Class::Letter | Class::Mark)
}

/// Returns the end of `[UX]*[LX]+`.
fn cased_word(text: &str, start: usize) -> Option<usize> {
    let ascii = ascii_lower_end(text, start);
    // Most words by far: nothing but lower-case ASCII, up to something that no word can hold.
    if ascii > start && text.as_bytes().get(ascii).is_none_or(u8::is_ascii) {
        return Some(ascii);
    }
    let (mut at, mut caseless_end) = (start, None);
    while let Some((class, width)) = class_at(text, at) {
        if !is_upper(class) {
            break;
        }
        at += width;
        if class != Class::Upper {
            caseless_end = Some(at);
        }
    }
    let end = run(text, at, usize::MAX, is_lower);
    // Where no lower-case letter follows, the first part gives back what the second can take.
    if end > at { Some(end) } else { caseless_end }
}

fn ascii_lower_end(text: &str, start: usize) -> usize {
    start + text.as_bytes()[start..].iter().take_while(|byte| byte.is_ascii_lowercase()).count()
}

/// Returns the end of `[UX]+[LX]*`, where [`cased_word`] found nothing.
fn upper_word(text: &str, start: usize) -> Option<usize> {
    let end = run(text, start, usize::MAX, is_upper);
    (end > start).then_some(end)
}

fn ending_len(rest: &str) -> usize {
    let Some(rest) = rest.strip_prefix('\'') else { return 0 };
    if rest.starts_with('ſ') {
        return 1 + 'ſ'.len_utf8();
    }
    let fits =
        |ending: &&&str| rest.get(..ending.len()).is_some_and(|start| start.eq_ignore_ascii_case(ending));
    ENDINGS.iter().find(fits).map_or(0, |ending| 1 + ending.len())
}

/// Returns the end of `[^\s letter N]+[\r\n/]*`.
fn marks(text: &str, start: usize) -> Option<usize> {
    let end = run(text, start, usize::MAX, |class| matches!(class, Class::Other | Class::Mark));
    (end > start).then(|| {
        let tail = text[end..].bytes().take_while(|byte| matches!(byte, b'\r' | b'\n' | b'/')).count();
        end + tail
    })
}

/// Returns the end of white space: after its last line end, else before the last blank in front of a word.
fn blanks(text: &str) -> usize {
    let (mut at, mut last_width, mut line_end) = (0, 0, None);
    while let Some((class @ (Class::Blank | Class::LineEnd), width)) = class_at(text, at) {
        at += width;
        last_width = width;
        if class == Class::LineEnd {
            line_end = Some(at);
        }
    }
    match line_end {
        Some(end) => end,
        None if at == text.len() || at == last_width => at,
        None => at - last_width,
    }
}

/// Classes of ASCII characters, so that most text skips the pages.
static ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut code = 0u8;
    while code < 128 {
        classes[code as usize] = match code {
            b'A'..=b'Z' => Class::Upper,
            b'a'..=b'z' => Class::Lower,
            b'0'..=b'9' => Class::Number,
            b'\r' | b'\n' => Class::LineEnd,
            b'\t' | b' ' | 0x0b | 0x0c => Class::Blank,
            _ => Class::Other,
        };
        code += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        Pieces::of(text).collect()
    }

    #[test]
    fn words_take_the_blank_before_them_and_the_ending_after() {
        assert_eq!(pieces("Hello, it's John'Ll  go"), ["Hello", ",", " it's", " John'Ll", " ", " go"]);
        assert_eq!(pieces("camelCase HTTPServer"), ["camel", "Case", " HTTPServer"]);
        assert_eq!(pieces("漢A b"), ["漢", "A", " b"]);
    }

    #[test]
    fn numbers_marks_and_blanks_stand_apart() {
        assert_eq!(pieces("12345 + x"), ["123", "45", " +", " x"]);
        assert_eq!(pieces("a;\n\n  b"), ["a", ";\n\n", " ", " b"]);
        assert_eq!(pieces(" \n \n x  "), [" \n \n", " x", "  "]);
        assert_eq!(pieces("http://a/b//\n"), ["http", "://", "a", "/b", "//\n"]);
    }

    #[test]
    fn the_classes_of_ascii_are_those_of_the_pages() {
        for code in 0..128u8 {
            assert_eq!(ASCII[usize::from(code)], O200K.class(char::from(code)), "{code}");
        }
    }
}
