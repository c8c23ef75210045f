//! What is allowed and what is possible, offer by offer; remembers why offers fell away, so that the client can
//! be told the reason it can do something about.

use std::sync::Arc;

use crate::class::{DataClass, Mode};
use crate::limit::MAX_HOPS;
use crate::profile::RequestProfile;
use crate::registry::{Craft, Offer};
use crate::request::Request;
use crate::router::NoRoute;
use crate::router::account::{MAX_REMOVED, Removal, Removed};
use crate::tokens;
use crate::units::{MicroUsd, Tokens};

/// An estimate this close to a limit is replaced by an exact count: one part in so many.
const NEAR_LIMIT: u32 = 10;

/// Passes offers one by one and counts what it refused.
pub(super) struct Filter<'a> {
    request: &'a Request<'a>,
    prompt: Tokens,
    context: Tokens,
    expected_output: Tokens,
    exact: bool,
    mode: Mode,
    seen: bool,
    refused_class: bool,
    refused_dead: bool,
    refused_budget: bool,
    refused_need: Option<&'static str>,
    longest_context: Option<Tokens>,
    removed: Vec<Removed>,
}

impl<'a> Filter<'a> {
    pub(super) fn new(request: &'a Request<'a>, profile: &RequestProfile) -> Self {
        Self {
            request,
            prompt: profile.prompt_tokens,
            context: profile.context_tokens(),
            expected_output: profile.expected_output,
            exact: profile.exact,
            mode: request.effective_mode(),
            seen: false,
            refused_class: false,
            refused_dead: false,
            refused_budget: false,
            refused_need: None,
            longest_context: None,
            removed: Vec::new(),
        }
    }

    /// True when the offer may and can serve the request. Policy first, then what is possible.
    pub(super) fn admits(&mut self, offer: &Offer) -> bool {
        self.seen = true;
        let Some(why) = self.forbidden(offer).or_else(|| self.impossible(offer)) else { return true };
        self.note(&offer.model.id, Some(&offer.name), why);
        false
    }

    fn forbidden(&mut self, offer: &Offer) -> Option<Removal> {
        if !offer.admits(self.request.data_class) {
            self.refused_class = true;
            return Some(Removal::DataClass);
        }
        let wanted = match self.mode {
            Mode::Auto => true,
            Mode::Local => !offer.is_cloud(),
            Mode::Cloud => offer.is_cloud(),
        };
        match wanted {
            false => Some(Removal::Mode),
            true if self.request.hop >= MAX_HOPS => Some(Removal::Hops),
            true if self.is_too_dear(offer) => {
                self.refused_budget = true;
                Some(Removal::KeyBudget)
            }
            true => None,
        }
    }

    /// True when the key's money does not cover what the request is expected to cost there. Once nothing is left,
    /// also what seems to be free is too dear, since a provider's price is only believed, not known.
    fn is_too_dear(&self, offer: &Offer) -> bool {
        let Some(left) = self.request.budget_left.filter(|_| offer.is_cloud()) else { return false };
        let cost = offer.price.map_or(MicroUsd(0), |price| price.cost(self.prompt, self.expected_output));
        left == MicroUsd(0) || cost > left
    }

    fn impossible(&mut self, offer: &Offer) -> Option<Removal> {
        // A router that was forwarded to uses only what it reaches itself; a device that left it is gone for it.
        if !offer.is_alive() || offer.routes_at(self.request.hop).next().is_none() {
            self.refused_dead = true;
            return Some(Removal::NotReachable);
        }
        if let Some(what) = self.missing(offer) {
            self.refused_need = Some(what);
            return Some(Removal::Lacks(what));
        }
        let limit = offer.model.context.filter(|limit| !self.fits(*limit))?;
        self.longest_context = self.longest_context.max(Some(limit));
        Some(Removal::Context)
    }

    /// Notes that a candidate is not weighed.
    pub(super) fn note(&mut self, model: &Arc<str>, upstream: Option<&Arc<str>>, why: Removal) {
        if self.removed.len() < MAX_REMOVED {
            self.removed.push(Removed { model: model.clone(), upstream: upstream.cloned(), why });
        }
    }

    /// Returns who was not weighed, and why.
    pub(super) fn removed(&mut self) -> Vec<Removed> {
        std::mem::take(&mut self.removed)
    }

    /// Returns what the request needs and the model is known to lack.
    fn missing(&self, offer: &Offer) -> Option<&'static str> {
        self.needs(offer)
            .into_iter()
            .find(|(needed, has, _)| *needed && *has == Some(false))
            .map(|need| need.2)
    }

    /// True when the model is known to have everything that the request needs.
    pub(super) fn is_known_to_fit(&self, offer: &Offer) -> bool {
        self.needs(offer).into_iter().all(|(needed, has, _)| !needed || has == Some(true))
    }

    fn needs(&self, offer: &Offer) -> [(bool, Option<bool>, &'static str); 8] {
        let (needs, model) = (&self.request.needs, &offer.model);
        // By its name, for most: too slow to ask of every offer when nobody wants to know.
        let makes = |needed: bool, craft: Craft| needed.then(|| model.makes(craft));
        [
            (needs.tools, model.tools, "tools"),
            (needs.vision, model.vision, "images"),
            (needs.embeddings, model.embeddings, "embeddings"),
            (needs.logprobs, model.logprobs, "log probabilities"),
            (needs.audio, model.audio, "sound"),
            // Few servers say it and most have no such path at all, so nobody is asked on the chance.
            (needs.transcription, makes(needs.transcription, Craft::Transcripts), "transcription"),
            (needs.speech, makes(needs.speech, Craft::Speech), "speech"),
            // Engines do not say it and most can, so only a known lack counts: a form for the answer is no reason to
            // leave the devices for a provider that says it can.
            (needs.schema && model.schema == Some(false), model.schema, "JSON schemas"),
        ]
    }

    /// True when prompt and answer fit. An estimate near the limit is first replaced by an exact count.
    fn fits(&mut self, limit: Tokens) -> bool {
        if !self.exact && self.context.0.abs_diff(limit.0) <= limit.0 / NEAR_LIMIT {
            self.exact = true;
            self.prompt = tokens::count_messages(&self.request.messages);
            self.context = self.prompt + self.request.max_output.unwrap_or_default();
        }
        self.context <= limit
    }

    /// True when the prompt is longer than the caller lets devices have. An estimate near the limit is counted exactly.
    pub(super) fn is_too_long_for_devices(&self) -> bool {
        let Some(limit) = self.request.max_local_tokens else { return false };
        let near = self.prompt.0.abs_diff(limit.0) <= limit.0 / NEAR_LIMIT;
        let prompt =
            if near && !self.exact { tokens::count_messages(&self.request.messages) } else { self.prompt };
        prompt > limit
    }

    /// True when the filter was shown an offer, whatever it said to it.
    pub(super) fn has_seen(&self) -> bool {
        self.seen
    }

    /// Returns the reason to give when nothing passed: what came closest to serving, since that is what to change.
    pub(super) fn refusal(&self) -> NoRoute {
        if let Some(limit) = self.longest_context {
            return NoRoute::ContextTooLong { limit, tokens: self.context };
        }
        if let Some(what) = self.refused_need {
            return NoRoute::Unsupported { what };
        }
        if self.request.hop >= MAX_HOPS {
            return NoRoute::PolicyBlocked { why: "it was forwarded too often" };
        }
        if self.refused_budget && !self.refused_dead {
            return NoRoute::KeyBudget;
        }
        match self.mode {
            Mode::Local if !self.refused_dead || self.request.choice.is_auto() => NoRoute::NoLocalCapacity,
            Mode::Local => NoRoute::NoDevice { model: None },
            Mode::Auto | Mode::Cloud if self.refused_dead => NoRoute::NoDevice { model: None },
            Mode::Auto | Mode::Cloud if self.refused_class => NoRoute::PolicyBlocked {
                why: match self.request.data_class {
                    DataClass::Restricted => "restricted data stays on the devices of the mesh",
                    DataClass::Internal => "no provider of it is marked as fit for internal data",
                    DataClass::Public => "its data class forbids it",
                },
            },
            Mode::Cloud => {
                NoRoute::PolicyBlocked { why: "mode 'cloud' asks for a provider, and none serves it" }
            }
            Mode::Auto => NoRoute::NoDevice { model: None },
        }
    }
}
