//! How far two answers to the same question say the same, as text: 0 (something else) to 1.
//!
//! Short answers are compared by what they come down to: an option's letter, a number, yes or no, a word. A long one
//! that ends in such a conclusion ("… so the answer is 42.") counts as the conclusion, since models differ in how they get
//! there. All other texts are compared by where they lie (cosine of their embeddings), their content words (Dice) and
//! their numbers. That is no proof of the same meaning; it is a raw number that orders answers, and
//! [`calibration`](crate::calibration) makes it mean something.

use std::collections::BTreeSet;

use crate::embed::Embedding;

/// Longest text that is compared, bytes: longer ones are no answer that two models give alike.
pub const MAX_BYTES: usize = 64 << 10;

/// Words up to which an answer is a short one.
const SHORT_WORDS: usize = 6;

/// Bytes after a marker within which a conclusion ends.
const CONCLUSION_BYTES: usize = 80;

/// What comes before a conclusion, in lower case.
const MARKERS: [&str; 6] = ["answer is", "answer:", "answer is:", "####", "\\boxed{", "result is"];

/// Options of a question that letters name.
const LAST_OPTION: char = 'J';

/// Largest relative difference of equal numbers: a rounding in the last of six digits.
const ROUNDING: f64 = 1e-6;

/// Part of the likeness that is left where no number is in both, and where one text has numbers and the other none.
const OTHER_NUMBERS: f64 = 0.4;
const NO_NUMBERS: f64 = 0.9;

/// Part that is left where one text denies and the other does not.
const DENIED: f64 = 0.7;

/// Letters from which a word tells something of the subject.
const CONTENT_LETTERS: usize = 4;

const COUNTED: [&str; 13] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
];

/// Returns how far two answers say the same, 0 to 1; `None` where they cannot be compared: one is empty or too long, or
/// one names an option by its letter and the other in words.
pub fn likeness(a: &str, b: &str) -> Option<f64> {
    let (a, b) = (a.trim(), b.trim());
    if a.is_empty() || b.is_empty() || a.len().max(b.len()) > MAX_BYTES {
        return None;
    }
    if a == b {
        return Some(1.0);
    }
    match (Short::of(a), Short::of(b)) {
        (Some(a), Some(b)) => a.equals(&b),
        (Some(short), None) => short.within(b).or_else(|| Some(texts(a, b))),
        (None, Some(short)) => short.within(a).or_else(|| Some(texts(a, b))),
        (None, None) => Some(texts(a, b)),
    }
}

/// What a short answer comes down to.
#[derive(Debug, Clone, PartialEq)]
enum Short {
    Letter(char),
    /// A number and its unit, which may be empty.
    Number(f64, String),
    Polar(bool),
    Words(Vec<String>),
}

impl Short {
    /// Reads a short answer, or the conclusion of a long one; `None` for a text.
    fn of(text: &str) -> Option<Self> {
        let concluded = conclusion(text);
        let bare = bare(concluded.unwrap_or(text));
        if let Some(letter) = option_letter(bare) {
            return Some(Self::Letter(letter));
        }
        let words = words_of(bare);
        if let Some(says) = polar(bare, &words) {
            return Some(Self::Polar(says));
        }
        if words.is_empty() || words.len() > SHORT_WORDS {
            return None;
        }
        if let Some(number) = as_number(&words[0]).filter(|_| words.len() <= 3) {
            let percent = bare.contains('%').then(|| "%".to_owned());
            let unit = percent.unwrap_or_else(|| words[1..].join(" "));
            return Some(Self::Number(number, unit));
        }
        Some(Self::Words(words))
    }

    /// Compares two short answers; `None` where only the question says which option a letter is.
    fn equals(&self, other: &Self) -> Option<f64> {
        let same = match (self, other) {
            (Self::Letter(a), Self::Letter(b)) => a == b,
            (Self::Number(a, unit), Self::Number(b, other)) => {
                near(*a, *b) && (unit.is_empty() || other.is_empty() || unit == other)
            }
            (Self::Polar(a), Self::Polar(b)) => a == b,
            (Self::Words(a), Self::Words(b)) => {
                let (a, b) = (without_articles(a), without_articles(b));
                a == b || contains(&a, &b) || contains(&b, &a)
            }
            (Self::Letter(_), _) | (_, Self::Letter(_)) => return None,
            _ => false,
        };
        Some(f64::from(u8::from(same)))
    }

    /// Looks for a short answer in a long one: found it is the same; else the texts decide.
    fn within(&self, text: &str) -> Option<f64> {
        let found = match self {
            Self::Letter(_) | Self::Polar(_) => false,
            Self::Number(number, _) => {
                words_of(text).iter().any(|word| as_number(word).is_some_and(|n| near(n, *number)))
            }
            Self::Words(words) => contains(&words_of(text), &without_articles(words)),
        };
        found.then_some(1.0)
    }
}

/// Returns what stands after the last marker of a conclusion, if it ends soon.
fn conclusion(text: &str) -> Option<&str> {
    // Markers are ASCII, so positions hold in the text itself.
    let lower = text.to_ascii_lowercase();
    let from = MARKERS.iter().filter_map(|marker| lower.rfind(marker).map(|at| at + marker.len())).max()?;
    let rest = text[from..].trim_start_matches(|c: char| c.is_whitespace() || c == ':' || c == '*');
    let line = rest.lines().next().unwrap_or_default();
    let line = line.split_once('}').map_or(line, |(inside, _)| inside);
    let sentence = line.split_once(". ").map_or(line, |(sentence, _)| sentence);
    (!sentence.trim().is_empty() && sentence.len() <= CONCLUSION_BYTES).then_some(sentence)
}

/// Takes off the dress of an answer: marks of emphasis, quotes, a full stop.
fn bare(text: &str) -> &str {
    let is_dress = |c: char| c.is_whitespace() || "*_\"'`$#>.,;:!。".contains(c);
    text.trim_start_matches(|c: char| is_dress(c) && c != '.').trim_end_matches(is_dress)
}

/// Reads `B`, `(b)`, `B) Paris`, `B. Paris`.
fn option_letter(text: &str) -> Option<char> {
    let text = text.strip_prefix(['(', '[']).unwrap_or(text);
    let mut chars = text.chars();
    let letter = chars.next()?.to_ascii_uppercase();
    let is_option = ('A'..=LAST_OPTION).contains(&letter);
    let rest = chars.as_str();
    let ends = rest.is_empty() || {
        let after = rest.strip_prefix([')', '.', ':', ']']);
        after.is_some_and(|after| after.is_empty() || after.starts_with(char::is_whitespace))
    };
    (is_option && ends).then_some(letter)
}

/// Reads yes or no, alone or before a comma, a stop or a few words.
fn polar(text: &str, words: &[String]) -> Option<bool> {
    let first = words.first()?;
    let says = match first.as_str() {
        "yes" | "true" | "correct" => true,
        "no" | "false" | "incorrect" => false,
        _ => return None,
    };
    let rest = &text[first.len().min(text.len())..];
    let is_by_itself = words.len() == 1 || rest.starts_with([',', '.', ';', ':', '!', '\n']);
    is_by_itself.then_some(says)
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= ROUNDING * a.abs().max(b.abs())
}

fn as_number(word: &str) -> Option<f64> {
    if let Some(counted) = COUNTED.iter().position(|counted| *counted == word) {
        return Some(counted as f64);
    }
    let starts_right = word.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    starts_right.then(|| word.parse().ok())?.filter(|number: &f64| number.is_finite())
}

fn without_articles(words: &[String]) -> Vec<String> {
    words.iter().filter(|word| !matches!(word.as_str(), "a" | "an" | "the")).cloned().collect()
}

/// True when the words of `part` stand in `all` one after the other.
fn contains(all: &[String], part: &[String]) -> bool {
    !part.is_empty() && all.windows(part.len()).any(|window| window == part)
}

/// Cuts a text into lower-case words. Numbers keep sign and fraction and lose their separators; each sign of a script
/// that writes without spaces is a word.
fn words_of(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    let mut end = |word: &mut String| {
        if !word.is_empty() && word != "-" {
            words.push(std::mem::take(word));
        }
        word.clear();
    };
    while let Some(c) = chars.next() {
        let in_number = word.ends_with(|c: char| c.is_ascii_digit());
        let digit_follows = chars.peek().is_some_and(char::is_ascii_digit);
        match c {
            '.' if in_number && digit_follows => word.push('.'),
            ',' if in_number && digit_follows && !word.contains('.') => {}
            '-' | '−' if word.is_empty() && digit_follows => word.push('-'),
            '\'' | '’' if !word.is_empty() => word.push('\''),
            c if is_ideographic(c) => {
                end(&mut word);
                word.push(c);
                end(&mut word);
            }
            c if c.is_alphanumeric() => word.extend(c.to_lowercase()),
            _ => end(&mut word),
        }
    }
    end(&mut word);
    words
}

fn is_ideographic(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// Compares two texts by place, content words, numbers and denial.
fn texts(a: &str, b: &str) -> f64 {
    let (a_words, b_words) = (words_of(a), words_of(b));
    let place = cosine(&Embedding::of(a), &Embedding::of(b)).max(0.0);
    let content = |words: &[String]| -> BTreeSet<String> {
        let tells =
            |word: &&String| !word.is_ascii() || (word.len() >= CONTENT_LETTERS && as_number(word).is_none());
        words.iter().filter(tells).cloned().collect()
    };
    let (a_content, b_content) = (content(&a_words), content(&b_words));
    let both = a_content.len() + b_content.len();
    let shared =
        if both == 0 { place } else { 2.0 * a_content.intersection(&b_content).count() as f64 / both as f64 };
    let numbers = |words: &[String]| -> BTreeSet<String> {
        words.iter().filter_map(|word| as_number(word)).map(|number| number.to_string()).collect()
    };
    let (a_numbers, b_numbers) = (numbers(&a_words), numbers(&b_words));
    let of_numbers = match (a_numbers.is_empty(), b_numbers.is_empty()) {
        (true, true) => 1.0,
        (false, false) => {
            let all = a_numbers.union(&b_numbers).count() as f64;
            let share = a_numbers.intersection(&b_numbers).count() as f64 / all;
            OTHER_NUMBERS + (1.0 - OTHER_NUMBERS) * share
        }
        _ => NO_NUMBERS,
    };
    let denies = |words: &[String]| {
        let is_denial = |word: &String| {
            matches!(word.as_str(), "not" | "no" | "never" | "cannot" | "neither" | "nor")
                || word.ends_with("n't")
        };
        words.iter().any(is_denial)
    };
    let of_denial = if denies(&a_words) == denies(&b_words) { 1.0 } else { DENIED };
    (f64::midpoint(place, shared) * of_numbers * of_denial).clamp(0.0, 1.0)
}

fn cosine(a: &Embedding, b: &Embedding) -> f64 {
    let product = |a: &Embedding, b: &Embedding| -> f64 {
        a.all().iter().zip(b.all()).map(|(a, b)| f64::from(a * b)).sum()
    };
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths > 0.0 { product(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cases: &[(&str, &str, Option<f64>)]) {
        for (a, b, expected) in cases {
            assert_eq!(likeness(a, b), *expected, "{a:?} and {b:?}");
            assert_eq!(likeness(b, a), *expected, "{b:?} and {a:?}");
        }
    }

    #[test]
    fn options_are_compared_by_their_letter() {
        check(&[
            ("B", "(b)", Some(1.0)),
            ("B) Paris", "**B**", Some(1.0)),
            ("Answer: B", "C. Lyon", Some(0.0)),
            ("Paris lies north of Lyon, so the answer is (B).", "B", Some(1.0)),
            ("I weighed all four.\nFinal answer: D", "Thinking it over, the answer is C.", Some(0.0)),
            ("B", "Paris", None),
        ]);
    }

    #[test]
    fn numbers_are_compared_by_value() {
        check(&[
            ("42", "42.0", Some(1.0)),
            ("$1,234.50", "1234.5", Some(1.0)),
            ("four", "4", Some(1.0)),
            ("-3", "3", Some(0.0)),
            ("5 km", "5 miles", Some(0.0)),
            ("5 km", "5", Some(1.0)),
            ("12 %", "12", Some(1.0)),
            ("We add 20 and 22.\n#### 42", "\\boxed{42}", Some(1.0)),
            ("42", "There are 40 here and 2 there, which makes 42 in all of them together", Some(1.0)),
        ]);
    }

    #[test]
    fn yes_no_and_words_are_compared_without_their_dress() {
        check(&[
            ("Yes", "yes, that is so because water boils at a lower temperature there", Some(1.0)),
            ("No.", "Yes!", Some(0.0)),
            ("Paris", "`paris`.", Some(1.0)),
            ("The Seine", "seine", Some(1.0)),
            ("Paris", "Lyon", Some(0.0)),
            ("Paris", "The capital of France, as every child there learns, is Paris", Some(1.0)),
            ("東京", "京都", Some(0.0)),
            ("", "Paris", None),
            (" \n", "", None),
        ]);
        assert_eq!(likeness("a b", &"long ".repeat(MAX_BYTES)), None);
    }

    #[test]
    fn texts_of_the_same_content_are_more_alike_than_others() {
        let sky = "The sky is blue because molecules of the air scatter short wavelengths of sunlight more than long ones.";
        let same = "Sunlight is scattered by molecules of the air, and short wavelengths more than long ones, so the sky looks blue.";
        let other = "Bread rises because yeast ferments sugar and the gas is held by the gluten of the dough in the oven.";
        let alike = |a: &str, b: &str| likeness(a, b).unwrap();
        assert!(alike(sky, same) > 0.6, "{}", alike(sky, same));
        assert!(alike(sky, other) < 0.2, "{}", alike(sky, other));
        let not = sky.replace("is blue", "is not blue");
        assert!(alike(sky, &not) <= DENIED);
        let (of_1789, of_1848) = (
            "The revolution that began in 1789 ended the old order of the French kingdom for good and all.",
            "The revolution that began in 1848 ended the old order of the French kingdom for good and all.",
        );
        assert!(alike(of_1789, of_1848) < 0.5, "{}", alike(of_1789, of_1848));
    }
}
