//! The features of one request that decisions rest on, all computed here, in bounded time.

use crate::domain::Domain;
use crate::features::Features;
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
    /// Field of knowledge, from the words of the last message of the user.
    pub domain: Domain,
    /// What the bandit learns from.
    pub features: Features,
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
        let expected_output = if request.needs.embeddings {
            Tokens(0)
        } else {
            request.max_output.map_or(TYPICAL_OUTPUT, |limit| limit.min(TYPICAL_OUTPUT))
        };
        Self {
            prompt_tokens,
            exact,
            max_output: request.max_output,
            expected_output,
            turns: Tokens::from_len(turns).0,
            last_user_chars: Tokens::from_len(text.chars().count()).0,
            needs: request.needs,
            domain: Domain::of(text),
            features: Features::default(),
            interactive: request.stream,
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
    use crate::choice::ModelChoice;
    use crate::class::{DataClass, Mode, Preference};
    use crate::request::Message;

    fn request<'a>(messages: Vec<Message<'a>>, max_output: Option<u32>) -> Request<'a> {
        Request {
            messages,
            max_output: max_output.map(Tokens),
            needs: Needs::default(),
            stream: true,
            choice: ModelChoice::AutoLocal,
            mode: Mode::Auto,
            preference: Preference::Balanced,
            data_class: DataClass::Internal,
            hop: 0,
            max_local_tokens: None,
        }
    }

    #[test]
    fn a_profile_counts_turns_and_looks_at_the_last_question() {
        let message = |role, text: &'static str| Message { role, text: text.into() };
        let messages = vec![
            message(MessageRole::System, "Be kind."),
            message(MessageRole::User, "Hi"),
            message(MessageRole::Assistant, "Hello!"),
            message(MessageRole::User, "Write a python function to parse json, für mich"),
            message(MessageRole::Tool, "42"),
        ];
        let profile = RequestProfile::of(&request(messages, Some(50)));
        assert_eq!((profile.turns, profile.last_user_chars), (3, 47));
        assert_eq!(profile.domain, Domain::Code);
        assert!(profile.exact && profile.interactive);
        assert_eq!(profile.expected_output, Tokens(50));
        assert_eq!(profile.context_tokens(), profile.prompt_tokens + Tokens(50));
    }

    #[test]
    fn an_unbounded_answer_is_expected_to_be_of_typical_length() {
        assert_eq!(RequestProfile::of(&request(vec![], None)).expected_output, TYPICAL_OUTPUT);
        assert_eq!(RequestProfile::of(&request(vec![], Some(100_000))).expected_output, TYPICAL_OUTPUT);
    }
}
