//! Prompt of a set or pipe as the router sees it.

use shoal_routing::{embed::Embedding, features::Features};

/// Reads a prompt; `in_tok` is its length in tokens, estimated from its characters where it is not said.
pub fn read(prompt: &str, in_tok: Option<f64>) -> (Features, Embedding) {
    let embedding = Embedding::of(prompt);
    let surface = surface(prompt, in_tok.unwrap_or(prompt.chars().count() as f64 / 4.0));
    (Features::new(embedding.leading(), &surface), embedding)
}

/// Returns the looks of a prompt in the order of [`Features::new`].
fn surface(prompt: &str, in_tok: f64) -> [f32; 7] {
    let (mut chars, mut digits, mut others, mut breaks) = (0u32, 0u32, 0u32, 0u32);
    for c in prompt.chars() {
        chars += 1;
        digits += u32::from(c.is_ascii_digit());
        others += u32::from(!c.is_alphabetic() && !c.is_whitespace());
        breaks += u32::from(c == '\n');
    }
    let share = |count: u32| count as f32 / chars.max(1) as f32;
    let is_option = |line: &&str| matches!(line.as_bytes(), [b'A'..=b'Z', b'.' | b')', b' ', ..]);
    let options = prompt.lines().filter(is_option).count();
    let question: String = prompt.lines().take_while(|line| !is_option(line)).collect();
    let (words, letters) = prompt
        .split_whitespace()
        .fold((0u32, 0u32), |(words, letters), word| (words + 1, letters + word.chars().count() as u32));
    [
        in_tok.max(0.0).ln_1p() as f32,
        share(digits),
        share(others),
        (breaks as f32).ln_1p(),
        f32::from(u8::from(question.trim_end().ends_with('?'))),
        options as f32,
        letters as f32 / words.max(1) as f32,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_with_options_looks_like_one() {
        let looks = surface("What is 2 + 2?\nA. 3\nB. 4", 20.0);
        assert_eq!((looks[4], looks[5]), (1.0, 2.0));
        assert!((looks[3] - 3f32.ln()).abs() < 1e-6 && (looks[1] - 4.0 / 24.0).abs() < 1e-6);
        assert!(surface("", 0.0).iter().all(|value| value.is_finite()));
    }
}
