//! Holds an answer to a form by leaving only the tokens that can still lead to it.
//!
//! The form is a grammar (see [`crate::form`]), compiled by llguidance against the exact bytes of the model's tokens, so
//! a mask is right for byte-level and SentencePiece vocabularies alike. Masks change the draw alone; logprobs stay those
//! of the raw logits (see [`crate::sampler`]).
//!
//! A grammar comes from a request and is compiled on the request's thread, so its size and every step have limits
//! ([`limits`]): what is above them is refused, before a token is made where that can be told.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, panic_utils};

use crate::Error;
use crate::tokenizer::Tokenizer;

/// Bytes of a token that a form may use; the trie holds 1,024, and longer ones are runs of spaces.
const MAX_SPELLING: usize = 512;

/// Bytes of all spellings together; the trie holds 4 million, Gemma 3 needs 2.
const MAX_SPELLINGS: usize = 4_000_000;

/// The vocabulary as masks need it; made when a first request asks for a form, since it takes a tenth of a second for
/// the largest vocabularies and nobody else needs it.
#[derive(Default)]
pub(crate) struct Vocabulary {
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Vocabulary {
    /// Compiles a grammar.
    ///
    /// # Errors
    /// [`Error::Form`] if it is not understood or too large.
    pub(crate) fn constrain(
        &self,
        tokenizer: &Tokenizer,
        grammar: String,
        trigger: Option<u32>,
    ) -> Result<Constraint, Error> {
        let factory = self.factory.get_or_init(|| factory(tokenizer));
        let factory = factory.as_ref().map_err(|error| Error::Form(error.clone()))?;
        // The library shortens schemas in its messages at bytes, which may split a character and panic.
        let parser = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            factory.create_parser(TopLevelGrammar::from_lark(grammar))
        }));
        let parser = parser.map_err(|error| Error::Form(first_line(&error)))?;
        let fresh = Matcher::new(Ok(parser));
        if let Some(error) = fresh.get_error() {
            return Err(Error::Form(error));
        }
        let matcher = trigger.is_none().then(|| fresh.clone());
        Ok(Constraint { fresh, matcher, trigger })
    }
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let mut words = tokenizer.spellings();
    words.iter_mut().filter(|word| word.len() > MAX_SPELLING).for_each(Vec::clear);
    let [end, ..] = tokenizer.ends() else {
        return Err("the model has no token that ends an answer".to_owned());
    };
    for end in tokenizer.ends() {
        words[*end as usize].clear();
    }
    if words.iter().map(Vec::len).sum::<usize>() > MAX_SPELLINGS {
        return Err("the model's vocabulary is too large".to_owned());
    }
    let info = TokRxInfo::new(words.len() as u32, *end);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(tokenizer.ends());
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|error| first_line(&error))?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(factory)
}

/// A tenth of a second or so to compile, some 20 ms for a mask: schemas as large as those of whole APIs fit, and a hostile
/// one ends as a refusal instead of holding a thread. Messages must not quote what was generated.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// What the library says after its first line is a trace for its authors.
fn first_line(error: &impl Display) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// The form of one answer and how far the answer has come in it.
pub(crate) struct Constraint {
    fresh: Matcher,
    /// `None` while the text is free.
    matcher: Option<Matcher>,
    /// The token from which on the form holds; `None` if it holds from the start.
    trigger: Option<u32>,
}

/// What follows from a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The answer goes on.
    More,
    /// The form is complete and nothing may follow it.
    Complete,
}

impl Constraint {
    /// Returns the tokens that may come next, or `None` if all may.
    pub(crate) fn mask(&mut self) -> Result<Option<SimpleVob>, Error> {
        let Some(matcher) = &mut self.matcher else { return Ok(None) };
        let mask = matcher.compute_mask().map_err(|_| too_hard())?;
        if mask.is_zero() {
            return Err(Error::Compute("no token of the model fits the form of the answer".to_owned()));
        }
        Ok(Some(mask))
    }

    /// Notes the token that was chosen.
    pub(crate) fn push(&mut self, id: u32) -> Result<Next, Error> {
        if self.matcher.is_none() && self.trigger == Some(id) {
            self.matcher = Some(self.fresh.clone());
        }
        let Some(matcher) = &mut self.matcher else { return Ok(Next::More) };
        matcher.consume_token(id).map_err(|_| too_hard())?;
        if !matcher.is_stopped() {
            return Ok(Next::More);
        }
        match self.trigger {
            Some(_) => self.matcher = None,
            None => return Ok(Next::Complete),
        }
        Ok(Next::More)
    }
}

/// The limit of one step was met; rare, since the grammar was found small enough before.
fn too_hard() -> Error {
    Error::Form("a step of it is too hard to follow; simplify its schema".to_owned())
}
