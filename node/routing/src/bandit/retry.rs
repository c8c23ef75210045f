//! Sees that somebody asks the same again at once: the answer before was not what they wanted.
//!
//! Nothing of the text is kept but keyed hashes, for a minute. "The same" is narrow on purpose: the same words in the
//! same place of the same conversation, or the same words with some added before or after them. One word *replaced*
//! is another question ("the capital of France", "… of Spain"), and batch jobs send thousands of those.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::request::{Message, MessageRole};

/// Longest time between an answer and a retry that is due to it.
pub const RETRY_WINDOW: Duration = Duration::from_secs(60);

/// Answers remembered; at some 400 bytes each, with a question of the longest kind.
const MAX_ENTRIES: usize = 4_096;

/// Longest question of which a reworded form is recognised, words.
const MAX_WORDS: usize = 60;

/// Fewest words that say something by themselves: "continue" twice is no retry.
const MIN_WORDS: usize = 4;

/// Least share of its words that a reworded question has from the first one.
const MIN_SHARE: f64 = 0.6;

/// Words of a shingle.
const SHINGLE: usize = 3;

/// Retries of one question that are learnt from. Who goes on is a program.
const MAX_CHAIN: u32 = 2;

/// Bytes looked at from either end of an earlier message, and of a long question.
const EDGE: usize = 64;
const QUESTION_EDGE: usize = 2_048;

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// What a conversation looks like from its end, as keyed hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// All messages before the last question.
    before: u64,
    /// All messages before the question one turn earlier; `None` when something else than an answer lies between.
    before_last_turn: Option<u64>,
    /// The words of the question.
    question: u64,
    words: usize,
    /// Hashes of all runs of three words, sorted; empty for long questions.
    shingles: Vec<u32>,
}

impl Fingerprint {
    /// Takes the fingerprint; `None` when the last message is no question of a user (a tool's result, for example).
    ///
    /// `seed` keys the hashes. Bounded: 4 KiB of the question, 128 bytes of each message before.
    pub fn of(messages: &[Message<'_>], seed: u64) -> Option<Self> {
        let (last, earlier) = messages.split_last()?;
        if last.role != MessageRole::User {
            return None;
        }
        let [.., question, answer] = earlier else {
            return Some(Self::with(prefix(earlier, seed), None, &last.text, seed));
        };
        let is_turn = question.role == MessageRole::User && answer.role == MessageRole::Assistant;
        let before_turn = prefix(&earlier[..earlier.len() - 2], seed);
        let before = [question, answer].into_iter().fold(before_turn, message);
        Some(Self::with(before, is_turn.then_some(before_turn), &last.text, seed))
    }

    fn with(before: u64, before_last_turn: Option<u64>, text: &str, seed: u64) -> Self {
        let mut question = seed ^ FNV_OFFSET;
        let mut words = Vec::new();
        let mut count = 0;
        for piece in edges(text, QUESTION_EDGE) {
            for word in piece.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
                let hash = word
                    .chars()
                    .flat_map(char::to_lowercase)
                    .fold(seed ^ FNV_OFFSET, |h, c| mix(h, u64::from(c)));
                question = mix(question, hash);
                count += 1;
                if count <= MAX_WORDS {
                    words.push(hash);
                }
            }
        }
        let mut shingles: Vec<u32> = Vec::new();
        if count <= MAX_WORDS {
            shingles.extend(words.windows(SHINGLE).map(|run| {
                let hash = run.iter().fold(FNV_OFFSET, |h, word| mix(h, *word));
                (hash >> 32) as u32
            }));
            shingles.sort_unstable();
            shingles.dedup();
        } else {
            // Two long texts may differ in the middle only.
            question = mix(question, text.len() as u64);
        }
        Self { before, before_last_turn, question, words: count, shingles }
    }

    /// True when `self`, asked later, is the same question as `first` in the same place, reworded at most at its ends.
    fn repeats(&self, first: &Self) -> bool {
        let in_place = self.before == first.before;
        let after_answer = self.before_last_turn == Some(first.before) && first.words >= MIN_WORDS;
        (in_place || after_answer) && (self.question == first.question || self.rewords(first))
    }

    fn rewords(&self, first: &Self) -> bool {
        let (shorter, longer) = if self.shingles.len() <= first.shingles.len() {
            (&self.shingles, &first.shingles)
        } else {
            (&first.shingles, &self.shingles)
        };
        self.words.min(first.words) >= MIN_WORDS
            && !shorter.is_empty()
            && shorter.len() as f64 >= MIN_SHARE * longer.len() as f64
            && shorter.iter().all(|shingle| longer.binary_search(shingle).is_ok())
    }
}

/// Answers of the last minute that a retry would speak against. `T` is what to tell then.
#[derive(Debug)]
pub struct RetryBook<T> {
    entries: VecDeque<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    who: u64,
    fingerprint: Arc<Fingerprint>,
    /// `None` once it was told.
    answer: Option<T>,
    /// Retries before this one.
    chain: u32,
    at: Instant,
}

impl<T> Default for RetryBook<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<T> RetryBook<T> {
    /// Remembers an answer that was given whole. `who` tells callers apart.
    pub fn answered(&mut self, who: &str, fingerprint: Arc<Fingerprint>, answer: T, now: Instant) {
        self.expire(now);
        let who = hash_of(who);
        let known = self
            .entries
            .iter()
            .rev()
            .find(|entry| entry.who == who && fingerprint.repeats(&entry.fingerprint));
        let chain = known.map_or(0, |entry| entry.chain);
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        let answer = (chain < MAX_CHAIN).then_some(answer);
        self.entries.push_back(Entry { who, fingerprint, answer, chain, at: now });
    }

    /// Looks whether a question repeats one that was answered just now; returns that answer, once.
    pub fn asked(&mut self, who: &str, fingerprint: &Fingerprint, now: Instant) -> Option<T> {
        self.expire(now);
        let who = hash_of(who);
        let known = self
            .entries
            .iter_mut()
            .rev()
            .find(|entry| entry.who == who && fingerprint.repeats(&entry.fingerprint))?;
        known.chain += 1;
        known.answer.take()
    }

    /// Returns the number of answers remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn expire(&mut self, now: Instant) {
        while self.entries.front().is_some_and(|entry| now.saturating_duration_since(entry.at) > RETRY_WINDOW)
        {
            self.entries.pop_front();
        }
    }
}

fn prefix(messages: &[Message<'_>], seed: u64) -> u64 {
    messages.iter().fold(seed ^ FNV_OFFSET, message)
}

fn message(hash: u64, message: &Message<'_>) -> u64 {
    let role = match message.role {
        MessageRole::System => 1,
        MessageRole::User => 2,
        MessageRole::Assistant => 3,
        MessageRole::Tool => 4,
    };
    let hash = mix(mix(hash, role), message.text.len() as u64);
    edges(&message.text, EDGE).into_iter().flat_map(str::bytes).fold(hash, |h, byte| mix(h, u64::from(byte)))
}

/// Returns the first and the last `size` bytes of a text, to whole characters; a short one as one piece.
fn edges(text: &str, size: usize) -> [&str; 2] {
    if text.len() <= 2 * size {
        return [text, ""];
    }
    [&text[..text.floor_char_boundary(size)], &text[text.ceil_char_boundary(text.len() - size)..]]
}

fn hash_of(text: &str) -> u64 {
    text.bytes().fold(FNV_OFFSET, |hash, byte| mix(hash, u64::from(byte)))
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(FNV_PRIME).rotate_left(23)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::testing::start;

    const QUESTION: &str = "How long do I boil an egg so that it stays soft?";

    fn talk(turns: &[(MessageRole, &str)]) -> Fingerprint {
        let messages: Vec<Message<'_>> =
            turns.iter().map(|(role, text)| Message { role: *role, text: Cow::Borrowed(text) }).collect();
        Fingerprint::of(&messages, 7).unwrap()
    }

    fn asks(text: &str) -> Fingerprint {
        talk(&[(MessageRole::System, "Be brief."), (MessageRole::User, text)])
    }

    /// Whether `second` is taken for a retry of `first`, `after` seconds after its answer.
    fn is_retry(first: &Fingerprint, second: &Fingerprint, after: u64) -> bool {
        let mut book = RetryBook::default();
        book.answered("key", Arc::new(first.clone()), (), start());
        book.asked("key", second, start() + Duration::from_secs(after)).is_some()
    }

    #[test]
    fn the_same_question_again_within_a_minute_is_a_retry() {
        assert!(is_retry(&asks(QUESTION), &asks(QUESTION), 59));
        assert!(!is_retry(&asks(QUESTION), &asks(QUESTION), 62));
        assert!(is_retry(&asks("hi"), &asks("Hi!"), 1), "letter case and marks do not matter");
    }

    #[test]
    fn words_added_at_the_ends_are_a_retry_and_words_replaced_are_not() {
        let reworded = [
            "Please: how long do I boil an egg so that it stays soft?",
            "How long do I boil an egg so that it stays soft? In minutes!",
        ];
        for text in reworded {
            assert!(is_retry(&asks(QUESTION), &asks(text), 5), "{text}");
        }
        let others = [
            "How long do I boil an egg so that it gets hard?",
            "How long do I boil a potato so that it stays soft?",
            "How long do I boil an egg?",
            "Thanks. Now tell me what goes well with it, which wine to serve, and how long do I boil an egg so that it stays soft?",
        ];
        for text in others {
            assert!(!is_retry(&asks(QUESTION), &asks(text), 5), "{text}");
        }
    }

    #[test]
    fn a_long_template_with_another_end_is_another_question() {
        let template = "Answer with one letter. Here are examples of how to do it well. ".repeat(40);
        let first = asks(&format!("{template}Which planet is largest?"));
        let second = asks(&format!("{template}Which planet is hottest?"));
        assert!(is_retry(&first, &first, 1) && !is_retry(&first, &second, 1));
    }

    #[test]
    fn asking_again_after_the_answer_is_a_retry_but_not_after_a_tool() {
        use MessageRole::{Assistant, System, Tool, User};
        let first = asks(QUESTION);
        let again = talk(&[
            (System, "Be brief."),
            (User, QUESTION),
            (Assistant, "Eggs are healthy."),
            (User, "I asked: how long do I boil an egg so that it stays soft?"),
        ]);
        assert!(is_retry(&first, &again, 20));
        let with_tool = talk(&[
            (System, "Be brief."),
            (User, QUESTION),
            (Assistant, ""),
            (Tool, "6 minutes"),
            (User, QUESTION),
        ]);
        assert!(!is_retry(&first, &with_tool, 20));
        let go_on = talk(&[(User, "go on"), (Assistant, "..."), (User, "go on")]);
        assert!(!is_retry(&talk(&[(User, "go on")]), &go_on, 5), "too short to be a question");
        let tool_last = [Message { role: Tool, text: Cow::Borrowed("x") }];
        assert_eq!(Fingerprint::of(&tool_last, 7), None);
    }

    #[test]
    fn another_conversation_or_another_caller_is_no_retry() {
        let elsewhere = talk(&[(MessageRole::System, "Be long."), (MessageRole::User, QUESTION)]);
        assert!(!is_retry(&asks(QUESTION), &elsewhere, 1));
        let mut book = RetryBook::default();
        book.answered("a", Arc::new(asks(QUESTION)), (), start());
        assert_eq!(book.asked("b", &asks(QUESTION), start()), None);
    }

    #[test]
    fn one_answer_is_told_once_and_a_program_that_repeats_itself_only_twice() {
        let mut book = RetryBook::default();
        let mut told = 0;
        for second in 0..50 {
            let now = start() + Duration::from_secs(second);
            told += usize::from(book.asked("key", &asks(QUESTION), now).is_some());
            assert_eq!(book.asked("key", &asks(QUESTION), now), None, "the same answer twice");
            book.answered("key", Arc::new(asks(QUESTION)), second, now);
        }
        assert!(told <= 2, "{told}");
    }

    #[test]
    fn the_book_is_bounded_and_forgets() {
        let mut book = RetryBook::default();
        for n in 0..MAX_ENTRIES + 100 {
            book.answered("key", Arc::new(asks(&format!("question {n}"))), n, start());
        }
        assert_eq!(book.len(), MAX_ENTRIES);
        assert_eq!(book.asked("key", &asks("nothing"), start() + Duration::from_secs(70)), None);
        assert!(book.is_empty());
    }

    #[test]
    fn the_seed_keys_the_hashes() {
        let message = [Message { role: MessageRole::User, text: Cow::Borrowed(QUESTION) }];
        assert_ne!(Fingerprint::of(&message, 1), Fingerprint::of(&message, 2));
    }
}
