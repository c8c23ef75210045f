//! The features of one request that decisions rest on, all computed here, in bounded time.

mod language;
mod lexicon;
mod reading;
mod sample;
mod surface;
mod task;
mod tolerance;
mod words;

pub use language::Language;
pub(crate) use reading::Reading;
pub(crate) use sample::Sample;
pub use surface::Surface;
pub use task::Task;
pub use tolerance::Tolerance;
pub use words::{MAX_WORDS, Words};

use crate::balance::{Prefix, Work};
use crate::class::DataClass;
use crate::domain::Domain;
use crate::embed::Embedding;
use crate::features::Features;
use crate::registry::Craft;
use crate::request::{MessageRole, Needs, Request};
use crate::tokens;
use crate::units::Tokens;

/// Length of an answer that nobody bounded: the median of chat traffic, used only to predict price and time.
const TYPICAL_OUTPUT: Tokens = Tokens(256);

/// What the router knows of a request before it chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestProfile {
    /// Tokens of the prompt with the overhead of its messages; see [`exact`](Self::exact).
    pub prompt_tokens: Tokens,
    /// True when every token was counted; else the count is an estimate within 5 %.
    pub exact: bool,
    /// Longest answer that the caller asked for.
    pub max_output: Option<Tokens>,
    /// Length of the answer to expect, for price and time.
    pub expected_output: Tokens,
    /// Messages of the user and of the assistant.
    pub turns: u32,
    /// Characters of the last message of the user.
    pub last_user_chars: u32,
    /// What it asks of a model beyond text.
    pub needs: Needs,
    /// Where it lies among all prompts.
    pub embedding: Embedding,
    /// What it looks like.
    pub surface: Surface,
    /// Field of knowledge.
    pub domain: Domain,
    /// Language that it is written in.
    pub language: Language,
    /// What it wants done.
    pub task: Task,
    /// How long its caller can wait.
    pub tolerance: Tolerance,
    /// What the bandit learns from.
    pub features: Features,
    /// The words that it is about; none of a restricted request.
    pub words: Words,
    /// How the prompt begins, for hosts that have read the same before.
    pub prefix: Prefix,
    /// Somebody watches the answer appear, so the time to its first token matters.
    pub interactive: bool,
}

impl RequestProfile {
    /// Profiles a request. No allocation grows with its text.
    pub fn of(request: &Request<'_>) -> Self {
        let (prompt_tokens, exact) = tokens::estimate_messages(&request.messages);
        let last_user = request.messages.iter().rev().find(|message| message.role == MessageRole::User);
        let text = last_user.map(|message| message.text.as_ref()).unwrap_or_default();
        let turns = request
            .messages
            .iter()
            .filter(|message| matches!(message.role, MessageRole::User | MessageRole::Assistant))
            .count();
        let expected_output = if request.needs.craft() != Craft::Text {
            Tokens(0)
        } else {
            request.max_output.map_or(TYPICAL_OUTPUT, |limit| limit.min(TYPICAL_OUTPUT))
        };
        let sample = Sample::of(&request.messages);
        let (embedding, reading) = (Embedding::of_parts(sample.parts()), Reading::of(&sample));
        let domain = Domain::classify(&embedding, &reading);
        let surface = Surface::of(&reading, prompt_tokens);
        Self {
            prompt_tokens,
            exact,
            max_output: request.max_output,
            expected_output,
            turns: Tokens::from_len(turns).0,
            last_user_chars: Tokens::from_len(text.chars().count()).0,
            needs: request.needs,
            embedding,
            features: Features::of(&embedding, &surface),
            surface,
            words: match request.data_class {
                DataClass::Restricted => Words::default(),
                DataClass::Public | DataClass::Internal => reading.about,
            },
            domain,
            language: Language::of(&reading),
            task: Task::of(&reading, domain, &request.needs),
            tolerance: Tolerance::of(request),
            prefix: Prefix::of(&request.messages, prompt_tokens),
            interactive: request.stream,
        }
    }

    /// Profiles a text by itself, as the question of one user: of `tokens` in all, where the text is a part.
    pub fn of_text(text: &str, tokens: Option<Tokens>) -> Self {
        let profile = Self::of(&Request::of_text(text));
        let Some(tokens) = tokens else { return profile };
        let surface = Surface { ln_tokens: Surface::ln_tokens_of(tokens), ..profile.surface };
        let features = Features::of(&profile.embedding, &surface);
        Self { prompt_tokens: tokens, surface, features, ..profile }
    }

    /// Returns how much work the request is for a host.
    pub fn work(&self) -> Work {
        Work {
            prompt: self.prompt_tokens,
            output: self.expected_output,
            most: self.max_output,
            task: self.task,
            prefix: self.prefix,
        }
    }

    /// Returns the context that the request takes up: its prompt and the answer that was asked for.
    pub fn context_tokens(&self) -> Tokens {
        self.prompt_tokens + self.max_output.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Message;
    use crate::testing::request;

    fn message(role: MessageRole, text: &str) -> Message<'_> {
        Message { role, text: text.into() }
    }

    #[test]
    fn a_profile_counts_turns_and_looks_at_the_last_question() {
        let messages = vec![
            message(MessageRole::System, "Be kind."),
            message(MessageRole::User, "Hi"),
            message(MessageRole::Assistant, "Hello!"),
            message(MessageRole::User, "Write a python function to parse json, für mich"),
            message(MessageRole::Tool, "42"),
        ];
        let profile = RequestProfile::of(&Request { max_output: Some(Tokens(50)), ..request(messages) });
        assert_eq!((profile.turns, profile.last_user_chars), (3, 47));
        assert_eq!((profile.domain, profile.task), (Domain::Code, Task::Code));
        assert_eq!(profile.language, Language::English);
        assert!(profile.exact && profile.interactive);
        assert_eq!(profile.expected_output, Tokens(50));
        assert_eq!(profile.context_tokens(), profile.prompt_tokens + Tokens(50));
    }

    #[test]
    fn what_is_not_of_the_users_last_turn_leaves_embedding_and_looks_alone() {
        let ask = "Which of these rivers is the longest one, and where does it rise?\nA. Nile\nB. Rhine";
        let bare = RequestProfile::of(&request(vec![message(MessageRole::User, ask)]));
        let framed = RequestProfile::of(&request(vec![
            message(MessageRole::System, "You are a helpful assistant of the ACME company."),
            message(MessageRole::User, "Prove that there are infinitely many primes."),
            message(MessageRole::Assistant, "Assume that there are finitely many."),
            message(MessageRole::User, ask),
        ]));
        assert_eq!(bare.embedding, framed.embedding);
        assert_eq!(bare.embedding, Embedding::of(ask));
        assert_eq!(framed.surface, Surface { ln_tokens: framed.surface.ln_tokens, ..bare.surface });
        assert!(framed.surface.ln_tokens > bare.surface.ln_tokens);
        assert_eq!(bare.surface.options, 2.0);
    }

    #[test]
    fn prompts_of_one_kind_lie_closer_than_others() {
        let embed = |text| RequestProfile::of(&request(vec![message(MessageRole::User, text)])).embedding;
        let distance = |a: &Embedding, b: &Embedding| -> f32 {
            a.leading().iter().zip(b.leading()).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let heart =
            embed("The patient complains of chest pain and shortness of breath. What is the diagnosis?");
        let lungs =
            embed("A woman of 60 has a chronic cough and a fever. Which treatment would you prescribe?");
        let code = embed("Write a function that sorts a list of strings by their length in JavaScript.");
        assert!(distance(&heart, &lungs) < distance(&heart, &code) / 2.0);
    }

    #[test]
    fn an_unbounded_answer_is_expected_to_be_of_typical_length() {
        let expected =
            |max_output| RequestProfile::of(&Request { max_output, ..request(vec![]) }).expected_output;
        assert_eq!(expected(None), TYPICAL_OUTPUT);
        assert_eq!(expected(Some(Tokens(100_000))), TYPICAL_OUTPUT);
    }
}
