//! Names of the things that a request can be sent to and learnt about.

use std::fmt;
use std::sync::Arc;

/// Characters of a model's digest that go into its arm: enough to tell builds apart, short in gossip.
const DIGEST_CHARS: usize = 12;

/// Whatever a node forwards an inference to. Ordered, so that maps and tests are reproducible.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpstreamId {
    /// A device of the mesh, by its id.
    Device(Arc<str>),
    /// Another router, by its node id, that chooses among its own devices.
    Peer(Arc<str>),
    /// A cloud service, by its configured name.
    Provider(Arc<str>),
}

impl UpstreamId {
    /// Returns the id without its kind.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Device(name) | Self::Peer(name) | Self::Provider(name) => name,
        }
    }

    /// Returns the kind as a word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Device(_) => "device",
            Self::Peer(_) => "peer",
            Self::Provider(_) => "provider",
        }
    }
}

impl fmt::Display for UpstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.name())
    }
}

/// A model as the bandit sees it: its name and, when known, the build of its weights.
///
/// Another quantisation of the same name is another arm: what was learnt about one says little about the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArmId(pub Arc<str>);

impl ArmId {
    /// Makes the arm of a model: `name`, or `name@` and the first 12 characters of the digest.
    ///
    /// An algorithm's prefix (`sha256:`) is not part of the digest.
    pub fn new(model: &str, digest: Option<&str>) -> Self {
        let hex = digest.map(|digest| digest.rsplit(':').next().unwrap_or(digest)).unwrap_or_default();
        let short = hex.char_indices().nth(DIGEST_CHARS).map_or(hex, |(end, _)| &hex[..end]);
        if short.is_empty() { Self(model.into()) } else { Self(format!("{model}@{short}").into()) }
    }

    /// Returns the text form, as it travels in gossip.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_is_a_name_and_the_start_of_a_digest() {
        assert_eq!(ArmId::new("llama", None).as_str(), "llama");
        assert_eq!(ArmId::new("llama", Some("")).as_str(), "llama");
        assert_eq!(ArmId::new("llama", Some("sha256:0123456789abcdef")).as_str(), "llama@0123456789ab");
        assert_eq!(ArmId::new("llama", Some("abc")).as_str(), "llama@abc");
    }

    #[test]
    fn an_upstream_shows_its_kind() {
        assert_eq!(UpstreamId::Device("a1".into()).to_string(), "device:a1");
        assert_eq!(UpstreamId::Provider("openai".into()).to_string(), "provider:openai");
    }
}
