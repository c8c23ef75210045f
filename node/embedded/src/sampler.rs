//! Choice of the next token from the logits, and the exact logprobs of the choice.
//!
//! Logprobs are the log-softmax of the *raw* logits: what the model believes, whatever the temperature, the penalties
//! or the cut of the tail did to the draw. Confidence estimates rest on them, so they are never approximated.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Error, GenerateRequest};

/// Alternatives that a request may ask for at each token, as in the OpenAI API.
pub const MAX_TOP_LOGPROBS: u8 = 20;

/// State of the draw for one generation.
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    frequency_penalty: f32,
    presence_penalty: f32,
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
            counts: HashMap::new(),
            rng: match request.seed {
                Some(seed) => StdRng::seed_from_u64(seed),
                None => StdRng::from_rng(&mut rand::rng()),
            },
        })
    }

    /// Chooses a token; `top` alternatives are reported, best first.
    pub(crate) fn choose(&mut self, logits: &[f32], top: usize) -> Result<Choice, Error> {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !greatest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Compute("the model's output is not a number; its file may be damaged".into()));
        }
        let mass: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
        let log_mass = f64::from(greatest) + mass.ln();
        let logprob = |id: u32| (f64::from(logits[id as usize]) - log_mass) as f32;

        let id = if self.counts.is_empty() || (self.frequency_penalty == 0.0 && self.presence_penalty == 0.0)
        {
            self.draw(logits)
        } else {
            let mut penalised = logits.to_vec();
            for (id, count) in &self.counts {
                penalised[*id as usize] -= self.presence_penalty + self.frequency_penalty * *count as f32;
            }
            self.draw(&penalised)
        };
        *self.counts.entry(id).or_default() += 1;
        let top = best(logits, top).into_iter().map(|id| (id, logprob(id))).collect();
        Ok(Choice { id, logprob: logprob(id), top })
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return best(logits, 1).first().copied().unwrap_or(0);
        }
        let mut candidates: Vec<u32> = if self.top_k < logits.len() {
            best(logits, self.top_k)
        } else {
            (0..logits.len() as u32).collect()
        };
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |id: u32| f64::from((logits[id as usize] - greatest) / self.temperature).exp();
        let mut total: f64 = candidates.iter().map(|id| weight(*id)).sum();
        if self.top_p < 1.0 {
            // Nucleus (Holtzman et al. 2019): the fewest tokens that together reach the mass top_p.
            candidates.sort_unstable_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            let mut reached = 0.0;
            let wanted = f64::from(self.top_p) * total;
            let kept = candidates.iter().take_while(|id| {
                let short = reached < wanted;
                reached += weight(**id);
                short
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
            total = candidates.iter().map(|id| weight(*id)).sum();
        }
        let mut target = self.rng.random::<f64>() * total;
        for id in &candidates {
            target -= weight(*id);
            if target <= 0.0 {
                return *id;
            }
        }
        candidates.last().copied().unwrap_or(0)
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
