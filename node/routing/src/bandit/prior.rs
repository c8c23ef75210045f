//! What to expect of a model that nobody has judged yet, from its size.
//!
//! The figures are rough means of public benchmark tables by parameter count (MMLU-like tasks, 2024–2026 open
//! models); they only order the arms until judgements come in, and weigh as much as ten of them.

use crate::registry::ModelSpec;
use crate::units::Score;

/// Bytes of weights for one parameter: the common 4-bit files, with their tables.
const BYTES_PER_PARAM: f64 = 0.6;

/// Number of parameters, coarsely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SizeClass {
    /// Up to 0.3 billion.
    Tiny,
    /// Up to 1.5 billion.
    Small,
    /// Up to 4 billion.
    Compact,
    /// Up to 9 billion, or unknown.
    Medium,
    /// Up to 16 billion.
    Large,
    /// Up to 40 billion, and the small models of providers.
    Big,
    /// Up to 80 billion.
    Huge,
    /// Above, and the large models of providers.
    Frontier,
}

impl SizeClass {
    /// All classes, smallest first.
    pub const ALL: [Self; 8] = [
        Self::Tiny,
        Self::Small,
        Self::Compact,
        Self::Medium,
        Self::Large,
        Self::Big,
        Self::Huge,
        Self::Frontier,
    ];

    /// Returns the word under which the class is kept and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Compact => "compact",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::Big => "big",
            Self::Huge => "huge",
            Self::Frontier => "frontier",
        }
    }

    /// Returns the class of a word; `None` for any other.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }

    /// Returns the class of a number of parameters, in billions.
    pub fn of_billions(billions: f64) -> Self {
        match billions {
            b if b <= 0.3 => Self::Tiny,
            b if b <= 1.5 => Self::Small,
            b if b <= 4.0 => Self::Compact,
            b if b <= 9.0 => Self::Medium,
            b if b <= 16.0 => Self::Large,
            b if b <= 40.0 => Self::Big,
            b if b <= 80.0 => Self::Huge,
            _ => Self::Frontier,
        }
    }

    /// Returns the quality to expect before anything was judged.
    pub fn expected_quality(self) -> Score {
        let value = match self {
            Self::Tiny => 0.25,
            Self::Small => 0.40,
            Self::Compact => 0.52,
            Self::Medium => 0.60,
            Self::Large => 0.66,
            Self::Big => 0.74,
            Self::Huge => 0.78,
            Self::Frontier => 0.86,
        };
        Score::new(value).expect("every value of the table lies between 0 and 1")
    }

    /// Returns the time per token to expect before any was measured, milliseconds: a laptop without a GPU.
    pub fn expected_ms_per_token(self) -> f64 {
        match self {
            Self::Tiny => 8.0,
            Self::Small => 20.0,
            Self::Compact => 45.0,
            Self::Medium => 80.0,
            Self::Large => 120.0,
            Self::Big => 150.0,
            Self::Huge => 250.0,
            Self::Frontier => 300.0,
        }
    }
}

/// Returns the size class of a model: from its name, else from the size of its weights, else medium.
pub fn size_class(model: &ModelSpec) -> SizeClass {
    let name = model.id.to_ascii_lowercase();
    if let Some(billions) = billions_in(&name) {
        return SizeClass::of_billions(billions);
    }
    if let Some(bytes) = model.size_bytes.filter(|bytes| *bytes > 0) {
        return SizeClass::of_billions(bytes as f64 / BYTES_PER_PARAM / 1e9);
    }
    provider_class(&name).unwrap_or(SizeClass::Medium)
}

/// Reads a number of parameters out of a name, in billions: `135m`, `0.5b`, `8x7b`, `70b`.
fn billions_in(name: &str) -> Option<f64> {
    name.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'))
        .filter_map(billions_of_word)
        .reduce(f64::max)
}

fn billions_of_word(word: &str) -> Option<f64> {
    let (number, scale) = match word.strip_suffix('b') {
        Some(number) => (number, 1.0),
        None => (word.strip_suffix('m')?, 1e-3),
    };
    let number = number.strip_prefix('e').unwrap_or(number);
    let billions = match number.split_once('x') {
        Some((experts, each)) => experts.parse::<f64>().ok()? * each.parse::<f64>().ok()?,
        None => number.parse().ok()?,
    };
    (billions > 0.0).then_some(billions * scale)
}

/// Knows the families of models whose names hold no size.
fn provider_class(name: &str) -> Option<SizeClass> {
    const SMALL: [&str; 7] = ["mini", "nano", "flash", "haiku", "lite", "small", "turbo"];
    const LARGE: [&str; 9] = ["gpt-", "claude", "gemini", "opus", "sonnet", "o1", "o3", "o4", "grok"];
    let words = || name.split(|c: char| !c.is_ascii_alphanumeric());
    let large = LARGE.iter().any(|mark| match mark.len() {
        2 => words().any(|word| word == *mark),
        _ => name.contains(mark),
    });
    match large {
        true if words().any(|word| SMALL.contains(&word)) => Some(SizeClass::Big),
        true => Some(SizeClass::Frontier),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_names_then_from_weights() {
        let cases = [
            ("SmolLM2-135M-Instruct", SizeClass::Tiny),
            ("qwen2.5:0.5b", SizeClass::Small),
            ("llama3.2:1b", SizeClass::Small),
            ("gemma-3n-e4b", SizeClass::Compact),
            ("qwen2.5-coder-7b-instruct", SizeClass::Medium),
            ("mixtral:8x7b", SizeClass::Huge),
            ("llama-3.3-70b", SizeClass::Huge),
            ("qwen3:235b-a22b", SizeClass::Frontier),
            ("gpt-4o-mini", SizeClass::Big),
            ("openai/gpt-4o", SizeClass::Frontier),
            ("claude-3-5-haiku", SizeClass::Big),
            ("o3", SizeClass::Frontier),
            ("gemini-2.0-flash", SizeClass::Big),
            ("phi", SizeClass::Medium),
        ];
        for (name, expected) in cases {
            assert_eq!(size_class(&ModelSpec::new(name, "test")), expected, "{name}");
        }
        let mut sized = ModelSpec::new("phi", "test");
        sized.size_bytes = Some(1_600_000_000);
        assert_eq!(size_class(&sized), SizeClass::Compact);
    }

    #[test]
    fn larger_classes_are_better_and_slower() {
        let classes = [0.1, 1.0, 3.0, 7.0, 14.0, 32.0, 70.0, 400.0].map(SizeClass::of_billions);
        for pair in classes.windows(2) {
            assert!(pair[0].expected_quality() < pair[1].expected_quality());
            assert!(pair[0].expected_ms_per_token() < pair[1].expected_ms_per_token());
        }
    }
}
