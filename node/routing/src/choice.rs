//! The `model` field of a request, parsed: a served name, a pinned device, a provider's model, or ours to choose.

use std::sync::Arc;

use crate::class::Preference;

/// Which model a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelChoice {
    /// A served name, `llama3.2:1b`. May contain a slash (`bartowski/Qwen`).
    Named(String),
    /// A model on one device, `device:pixel/llama3.2:1b`; the device by name or id.
    OnDevice {
        /// Name or id of the device.
        device: Arc<str>,
        /// Served name on it.
        model: Arc<str>,
    },
    /// A model of one provider, `openai/gpt-4o`.
    Provider {
        /// Configured name of the provider.
        provider: Arc<str>,
        /// The provider's name for the model; may contain slashes.
        model: Arc<str>,
    },
    /// Ours to choose, with what matters most.
    Auto(Preference),
    /// Ours to choose among the devices of the mesh.
    AutoLocal,
}

impl ModelChoice {
    /// Parses a `model` field. Never fails: what is no known form is a name, and the registry says if it is served.
    ///
    /// Served names may hold slashes themselves, so `x/y` is a provider's model only if `is_provider("x")`.
    pub fn parse(text: &str, is_provider: &dyn Fn(&str) -> bool) -> Self {
        match text {
            "auto" => return Self::Auto(Preference::Balanced),
            "auto:local" => return Self::AutoLocal,
            _ => {}
        }
        if let Some(preference) = text.strip_prefix("auto:").and_then(|word| word.parse().ok()) {
            return Self::Auto(preference);
        }
        if let Some((device, model)) = text.strip_prefix("device:").and_then(|rest| rest.split_once('/'))
            && !device.is_empty()
            && !model.is_empty()
        {
            return Self::OnDevice { device: device.into(), model: model.into() };
        }
        match text.split_once('/') {
            Some((provider, model)) if !model.is_empty() && is_provider(provider) => {
                Self::Provider { provider: provider.into(), model: model.into() }
            }
            _ => Self::Named(text.to_owned()),
        }
    }

    /// True when the model is ours to choose.
    pub fn is_auto(&self) -> bool {
        matches!(self, Self::Auto(_) | Self::AutoLocal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_model_field_is_understood() {
        let named = |name: &str| ModelChoice::Named(name.to_owned());
        let cases = [
            ("auto", ModelChoice::Auto(Preference::Balanced)),
            ("auto:cheap", ModelChoice::Auto(Preference::Cheap)),
            ("auto:fast", ModelChoice::Auto(Preference::Fast)),
            ("auto:best", ModelChoice::Auto(Preference::Best)),
            ("auto:local", ModelChoice::AutoLocal),
            ("auto:quick", named("auto:quick")),
            ("llama3.2:1b", named("llama3.2:1b")),
            ("bartowski/Qwen2.5", named("bartowski/Qwen2.5")),
            ("openai/", named("openai/")),
            ("device:pixel", named("device:pixel")),
            ("device:/m", named("device:/m")),
            ("device:pixel/a/b", ModelChoice::OnDevice { device: "pixel".into(), model: "a/b".into() }),
            ("openai/gpt-4o", ModelChoice::Provider { provider: "openai".into(), model: "gpt-4o".into() }),
            (
                "openrouter/meta/llama",
                ModelChoice::Provider { provider: "openrouter".into(), model: "meta/llama".into() },
            ),
        ];
        for (text, expected) in cases {
            let is_provider = |name: &str| matches!(name, "openai" | "openrouter");
            assert_eq!(ModelChoice::parse(text, &is_provider), expected, "{text}");
        }
    }
}
