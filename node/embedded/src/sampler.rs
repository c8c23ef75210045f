//! Choice of the next token from the logits, and the exact logprobs of the choice.
//!
//! Logprobs are the log-softmax of the *raw* logits: what the model believes, whatever the temperature, the penalties,
//! the cut of the tail or the form of the answer did to the draw: a token that only the form allowed is improbable, and
//! says so. Confidence estimates rest on them, so they are never approximated.

use std::collections::HashMap;

use llguidance::toktrie::SimpleVob;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Error, GenerateRequest};

/// Alternatives that a request may ask for at each token, as in the OpenAI API.
pub const MAX_TOP_LOGPROBS: u8 = 20;

/// Tokens that nearly always hold the nucleus: sorting these few instead of a whole vocabulary saves milliseconds.
const NUCLEUS_GUESS: usize = 512;

/// State of the draw for one generation.
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    frequency_penalty: f32,
    presence_penalty: f32,
    bias: Vec<(u32, f32)>,
    counts: HashMap<u32, u32>,
    rng: StdRng,
}

/// A chosen token and what the model believed.
pub(crate) struct Choice {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

impl Sampler {
    pub(crate) fn new(request: &GenerateRequest) -> Result<Self, Error> {
        let within = |name: &str, value: f32, low: f32, high: f32| {
            if value.is_finite() && (low..=high).contains(&value) {
                Ok(value)
            } else {
                Err(Error::InvalidRequest(format!("{name} must lie between {low} and {high}, not {value}")))
            }
        };
        if request.top_logprobs.is_some_and(|n| n > MAX_TOP_LOGPROBS) {
            return Err(Error::InvalidRequest(format!("top_logprobs must be at most {MAX_TOP_LOGPROBS}")));
        }
        Ok(Self {
            temperature: within("temperature", request.temperature, 0.0, 2.0)?,
            top_p: within("top_p", request.top_p, 0.0, 1.0)?,
            top_k: request.top_k.unwrap_or(usize::MAX).max(1),
            frequency_penalty: within("frequency_penalty", request.frequency_penalty, -2.0, 2.0)?,
            presence_penalty: within("presence_penalty", request.presence_penalty, -2.0, 2.0)?,
            bias: request
                .logit_bias
                .iter()
                .map(|(id, bias)| Ok((*id, within("logit_bias", *bias, -100.0, 100.0)?)))
                .collect::<Result<_, Error>>()?,
            counts: HashMap::new(),
            rng: match request.seed {
                Some(seed) => StdRng::seed_from_u64(seed),
                None => StdRng::from_rng(&mut rand::rng()),
            },
        })
    }

    /// Chooses a token among those that `mask` allows; `top` alternatives are reported, best first, allowed or not.
    pub(crate) fn choose(
        &mut self,
        logits: &[f32],
        top: usize,
        mask: Option<&SimpleVob>,
    ) -> Result<Choice, Error> {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !greatest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Compute("the model's output is not a number; its file may be damaged".into()));
        }
        let mass: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
        let log_mass = f64::from(greatest) + mass.ln();
        let logprob = |id: u32| (f64::from(logits[id as usize]) - log_mass) as f32;

        let penalised = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        let biased = !self.bias.is_empty() || (penalised && !self.counts.is_empty());
        let id = if biased || mask.is_some() {
            let mut changed = logits.to_vec();
            for (id, count) in &self.counts {
                changed[*id as usize] -= self.presence_penalty + self.frequency_penalty * *count as f32;
            }
            for (id, bias) in &self.bias {
                if let Some(logit) = changed.get_mut(*id as usize) {
                    *logit += bias;
                }
            }
            if let Some(mask) = mask {
                mask.iter_unset_entries(|id| changed[id] = f32::NEG_INFINITY);
            }
            self.draw(&changed)
        } else {
            self.draw(logits)
        };
        *self.counts.entry(id).or_default() += 1;
        let top = best(logits, top).into_iter().map(|id| (id, logprob(id))).collect();
        Ok(Choice { id, logprob: logprob(id), top })
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return best(logits, 1).first().copied().unwrap_or(0);
        }
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |id: u32| f64::from((logits[id as usize] - greatest) / self.temperature).exp();
        let mass = |ids: &[u32]| ids.iter().map(|id| weight(*id)).sum::<f64>();
        let all = logits.len();
        let mut candidates: Vec<u32> =
            if self.top_k < all { best(logits, self.top_k) } else { (0..all as u32).collect() };
        let mut total = mass(&candidates);
        if self.top_p < 1.0 {
            // Nucleus (Holtzman et al. 2019): the fewest tokens that together reach the mass top_p.
            let wanted = f64::from(self.top_p) * total;
            if candidates.len() == all {
                candidates = best(logits, NUCLEUS_GUESS);
                if mass(&candidates) < wanted {
                    candidates = best(logits, all);
                }
            }
            let mut reached = 0.0;
            let kept = candidates.iter().take_while(|id| {
                let short = reached < wanted;
                reached += weight(**id);
                short
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
            total = mass(&candidates);
        }
        let mut target = self.rng.random::<f64>() * total;
        let mut chosen = candidates.first().copied().unwrap_or(0);
        for id in candidates {
            // Of no mass: the form of the answer, or a limit of numbers, rules it out.
            let mass = weight(id);
            if mass > 0.0 {
                chosen = id;
                target -= mass;
                if target <= 0.0 {
                    break;
                }
            }
        }
        chosen
    }
}

/// Returns the ids of the `count` greatest logits, greatest first; ties go to the smaller id.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    match count {
        0 => Vec::new(),
        1 => (0..logits.len() as u32).min_by(order).into_iter().collect(),
        _ => {
            let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
            if count < ids.len() {
                ids.select_nth_unstable_by(count - 1, order);
                ids.truncate(count);
            }
            ids.sort_unstable_by(order);
            ids
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(request: GenerateRequest, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler =
            Sampler::new(&GenerateRequest { seed: Some(1), ..request }).expect("valid settings");
        (0..times).map(|_| sampler.choose(logits, 0, None).expect("a choice").id).collect()
    }

    #[test]
    fn logprobs_are_those_of_the_raw_logits_whatever_the_draw() {
        let logits = [1.0f32, 3.0, 2.0];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let request = GenerateRequest {
            temperature: 0.3,
            top_p: 0.5,
            presence_penalty: 1.0,
            ..GenerateRequest::default()
        };
        let mut sampler = Sampler::new(&request).expect("valid settings");
        for _ in 0..3 {
            let choice = sampler.choose(&logits, 3, None).expect("a choice");
            let exact = |id: u32| (f64::from(logits[id as usize]) - sum.ln()) as f32;
            assert_eq!(choice.logprob, exact(choice.id));
            assert_eq!(choice.top, [(1, exact(1)), (2, exact(2)), (0, exact(0))]);
        }
    }

    #[test]
    fn only_allowed_tokens_are_drawn_and_the_logprobs_stay_those_of_all() {
        let logits = [5.0f32, -20.0, 3.0, -30.0];
        let mut mask = SimpleVob::alloc(logits.len());
        mask.allow_token(1);
        mask.allow_token(3);
        for temperature in [0.0, 1.0, 2.0] {
            let request =
                GenerateRequest { temperature, top_p: 0.9, seed: Some(1), ..GenerateRequest::default() };
            let mut sampler = Sampler::new(&request).expect("valid settings");
            for _ in 0..50 {
                let choice = sampler.choose(&logits, 1, Some(&mask)).expect("a choice");
                assert_eq!(choice.id, 1);
                assert!((choice.logprob + 25.127).abs() < 1e-3, "{}", choice.logprob);
                assert_eq!(choice.top[0].0, 0);
            }
        }
    }

    #[test]
    fn a_bias_moves_the_draw_and_not_the_logprobs() {
        let request = GenerateRequest {
            temperature: 0.0,
            logit_bias: vec![(0, 5.0), (9, 100.0)],
            ..GenerateRequest::default()
        };
        let mut sampler = Sampler::new(&request).expect("valid settings");
        let choice = sampler.choose(&[0.0, 1.0], 0, None).expect("a choice");
        assert_eq!(choice.id, 0);
        assert!((choice.logprob + 1.3133).abs() < 1e-3, "{}", choice.logprob);
        let hard = GenerateRequest { logit_bias: vec![(0, 101.0)], ..GenerateRequest::default() };
        assert!(Sampler::new(&hard).is_err());
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let ids = drawn(GenerateRequest::default(), &[0.0, 3.0f32.ln(), f32::NEG_INFINITY], 4_000);
        let share = ids.iter().filter(|id| **id == 1).count() as f64 / 4_000.0;
        assert!((share - 0.75).abs() < 0.04, "{share}");
        assert!(!ids.contains(&2));
    }

    #[test]
    fn the_nucleus_holds_the_fewest_tokens_that_reach_its_mass() {
        // Probabilities 0.5, 0.3, 0.2 in another order.
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()];
        let kept = |top_p| {
            let mut ids = drawn(GenerateRequest { top_p, ..GenerateRequest::default() }, &logits, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(kept(0.45), [1]);
        assert_eq!(kept(0.7), [1, 2]);
        assert_eq!(kept(0.9), [0, 1, 2]);
    }

    #[test]
    fn a_flat_vocabulary_larger_than_the_guess_is_still_cut_by_mass() {
        let ids = drawn(GenerateRequest { top_p: 0.9, ..GenerateRequest::default() }, &[0.0; 2_000], 4_000);
        assert!(ids.iter().any(|id| *id > 1_500) && ids.iter().all(|id| *id < 1_801));
    }

    #[test]
    fn output_that_is_no_number_is_an_error() {
        let mut sampler = Sampler::new(&GenerateRequest::default()).expect("valid settings");
        assert!(sampler.choose(&[0.0, f32::NAN], 0, None).is_err());
        assert!(sampler.choose(&[f32::NEG_INFINITY; 2], 0, None).is_err());
        assert!(sampler.choose(&[f32::INFINITY, 0.0], 0, None).is_err());
    }
}
