//! How long an answer may be where the context is shorter than the agent believes.
//!
//! `max_tokens` is a bound here, not a wish: agents send 32,000 with every request, and Anthropic's newer models take
//! more than is left and stop at the end of their context. Taken at its word it would rule out every model whose
//! context is not that much longer than the prompt, which is most of those at home. So it is lowered to what is left.

use shoal_routing::{ModelChoice, Registry};

/// Least room worth having on a device before the longer context of a provider is looked at.
const WORTHWHILE: u64 = 1024;
/// Tokens kept free beside a tenth of the prompt: our count is an estimate of what the model's own table gives.
const MARGIN: u64 = 64;

/// Longest contexts among those that may be asked, tokens; a context that nobody knows is taken to be long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contexts {
    /// Of devices.
    devices: u64,
    /// Of all.
    all: u64,
}

impl Contexts {
    /// Looks up the contexts of a model, or of all for a choice of ours; `None` where nobody serves it.
    pub(super) fn of(registry: &Registry, choice: &ModelChoice) -> Option<Self> {
        let models: Vec<&str> = match choice {
            ModelChoice::Named(model) => vec![model],
            ModelChoice::Auto(_) | ModelChoice::AutoLocal => {
                registry.models().iter().map(AsRef::as_ref).collect()
            }
            // Pinned to one place, which says itself what it can take.
            ModelChoice::OnDevice { .. } | ModelChoice::Provider { .. } => return None,
        };
        let mut longest: Option<Self> = None;
        for offer in models.into_iter().flat_map(|model| registry.by_model(model)) {
            let context = offer.model.context.map_or(u64::MAX, |context| context.0.into());
            let longest = longest.get_or_insert(Self { devices: 0, all: 0 });
            longest.all = longest.all.max(context);
            if !offer.is_cloud() {
                longest.devices = longest.devices.max(context);
            }
        }
        longest
    }

    /// Returns the limit that leaves the prompt its place: on a device where that is worthwhile, else anywhere. A
    /// prompt that fits nowhere keeps its limit, and is refused for its length.
    pub(super) fn fit(self, limit: u64, prompt_tokens: u64) -> u64 {
        let (device, any) = (left(self.devices, prompt_tokens), left(self.all, prompt_tokens));
        if device >= WORTHWHILE {
            limit.min(device)
        } else if any > 0 {
            limit.min(any)
        } else {
            limit
        }
    }

    /// Tells that a body of so many bytes leaves room for the limit, without counting: a token is a byte or more.
    pub(super) fn are_ample(self, limit: u64, bytes: usize) -> bool {
        let first = if self.devices > 0 { self.devices } else { self.all };
        left(first, bytes as u64) >= limit
    }
}

fn left(context: u64, prompt_tokens: u64) -> u64 {
    context.saturating_sub(prompt_tokens + prompt_tokens / 10 + MARGIN)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shoal_routing::{Offer, Tokens, UpstreamId};

    use super::*;
    use crate::testing::offer;

    #[test]
    fn an_answer_gets_what_a_device_leaves_and_else_what_a_provider_does() {
        let contexts = Contexts { devices: 32_768, all: 200_000 };
        assert_eq!(contexts.fit(1000, 10_000), 1000);
        assert_eq!(contexts.fit(32_000, 10_000), 32_768 - 11_064);
        assert_eq!(contexts.fit(32_000, 30_000), 32_000, "no device has room, a provider has all of it");
        assert_eq!(contexts.fit(32_000, 170_000), 200_000 - 187_064);
        assert_eq!(contexts.fit(32_000, 190_000), 32_000, "refused as it is");
        let small = Contexts { devices: 4096, all: 4096 };
        assert_eq!(small.fit(32_000, 3000), 4096 - 3364, "little is better than nothing");
        assert_eq!(Contexts { devices: u64::MAX, all: u64::MAX }.fit(32_000, 9), 32_000);
        assert!(contexts.are_ample(1000, 20_000) && !contexts.are_ample(1000, 30_000));
        assert!(Contexts { devices: 0, all: 4096 }.are_ample(1000, 2000));
    }

    #[test]
    fn contexts_are_those_of_who_may_be_asked() {
        let with = |device: &str, model: &str, context: Option<u32>, cloud: bool| {
            let mut offer: Offer = offer(device, model, &[]);
            Arc::make_mut(&mut offer.model).context = context.map(Tokens);
            if cloud {
                offer.upstream = UpstreamId::Provider(device.into());
            }
            offer
        };
        let registry = Registry::new(vec![
            with("a", "small", Some(4096), false),
            with("b", "small", Some(8192), false),
            with("c", "large", Some(200_000), true),
            with("d", "dark", None, false),
        ]);
        let of = |model: &str| Contexts::of(&registry, &ModelChoice::parse(model, &|_| false));
        assert_eq!(of("small"), Some(Contexts { devices: 8192, all: 8192 }));
        assert_eq!(of("large"), Some(Contexts { devices: 0, all: 200_000 }));
        assert_eq!(of("auto"), Some(Contexts { devices: u64::MAX, all: u64::MAX }));
        assert_eq!((of("nobody"), of("device:a/small")), (None, None));
    }
}
