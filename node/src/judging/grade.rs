//! Reads a grade out of what a model says: JSON where the engine holds it to a schema, else whatever it wrote.

use shoal_routing::Score;

/// The worst and the best grade that the prompt allows.
const WORST: f64 = 1.0;
const BEST: f64 = 10.0;

/// Words after which a grade may stand.
const WORDS: [&str; 4] = ["grade", "rating", "score", "verdict"];

/// Characters between such a word and its number.
const GAP: usize = 12;

/// A grade, 1 to 10.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grade(f64);

impl Grade {
    fn new(value: f64) -> Option<Self> {
        (WORST..=BEST).contains(&value).then_some(Self(value))
    }

    pub(super) fn value(self) -> f64 {
        self.0
    }

    /// Returns the same between 0 and 1.
    pub(super) fn score(self) -> Score {
        Score::clamped((self.0 - WORST) / (BEST - WORST))
    }

    /// Reads a grade; `None` when there is none, or when it cannot be told which number is meant.
    ///
    /// In this order: the last number after one of "grade", "rating", "score", "verdict"; the last "n/10"; `[[n]]` or
    /// a number alone. What stands before the end of a model's thinking does not count.
    pub(super) fn read(text: &str) -> Option<Self> {
        let said = text.rsplit("</think>").next().unwrap_or(text).to_ascii_lowercase();
        after_a_word(&said).or_else(|| out_of_ten(&said)).or_else(|| {
            let bare = said.trim_matches(|c: char| !c.is_ascii_digit() && c != '-');
            bare.parse().ok().and_then(Self::new)
        })
    }
}

fn after_a_word(said: &str) -> Option<Grade> {
    let places = WORDS.iter().flat_map(|word| said.match_indices(word).map(|(at, word)| at + word.len()));
    let mut found: Vec<(usize, Grade)> =
        places.filter_map(|at| number_near(&said[at..]).map(|g| (at, g))).collect();
    found.sort_by_key(|(at, _)| *at);
    found.pop().map(|(_, grade)| grade)
}

/// The number that begins within a few characters, if nothing but marks and small words stand before it.
fn number_near(rest: &str) -> Option<Grade> {
    let start = rest.find(|c: char| c.is_ascii_digit()).filter(|start| *start <= GAP)?;
    if rest[..start].ends_with('-') {
        return None;
    }
    leading_number(&rest[start..])
}

fn out_of_ten(said: &str) -> Option<Grade> {
    let (at, _) = said.match_indices("/10").chain(said.match_indices("/ 10")).max_by_key(|(at, _)| *at)?;
    let before = said[..at].trim_end();
    let start = before.rfind(|c: char| !(c.is_ascii_digit() || c == '.')).map_or(0, |place| place + 1);
    before.get(start..)?.parse().ok().and_then(Grade::new)
}

fn leading_number(text: &str) -> Option<Grade> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    text[..end].trim_end_matches('.').parse().ok().and_then(Grade::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_are_read_however_they_are_said() {
        let cases: &[(&str, Option<f64>)] = &[
            (r#"{"grade": 7}"#, Some(7.0)),
            (r#"{"grade":"9"}"#, Some(9.0)),
            ("```json\n{\"reason\":\"2 mistakes\",\"grade\": 4}\n```", Some(4.0)),
            ("Grade: 8", Some(8.0)),
            ("**Rating:** 8.5 out of 10", Some(8.5)),
            ("I would say 6/10.", Some(6.0)),
            ("7 / 10", Some(7.0)),
            ("[[3]]", Some(3.0)),
            ("10", Some(10.0)),
            ("<think>grade 2? no, grade 9</think>\n{\"grade\": 5}", Some(5.0)),
            ("First I gave grade 3, but my final grade is 6.", Some(6.0)),
            ("grade: 0", None),
            ("grade: 11", None),
            ("grade: -3", None),
            ("It has 3 mistakes and 2 good points.", None),
            ("excellent", None),
            ("", None),
            ("[2, 7]", None),
            ("grade é 7", Some(7.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(Grade::read(text).map(Grade::value), *expected, "{text}");
        }
    }

    #[test]
    fn the_scale_ends_at_zero_and_one() {
        assert_eq!(Grade(1.0).score(), Score::ZERO);
        assert_eq!(Grade(10.0).score(), Score::ONE);
    }
}
