//! The three words by which a caller steers a request: how secret it is, where it may run, what matters most.

use std::fmt;
use std::str::FromStr;

/// A word that is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not a {what}: use one of {expected}")]
pub struct UnknownWord {
    /// What was to be named, "data class".
    pub what: &'static str,
    /// The words that would have been understood, separated by commas.
    pub expected: &'static str,
    /// What was given instead.
    pub given: String,
}

/// Gives an enum its words: `as_str`, `Display` and a `FromStr` that names the known ones when it fails.
macro_rules! words {
    ($type:ident, $what:literal, $expected:literal, $($variant:ident = $word:literal),+) => {
        impl $type {
            /// Returns the word used in requests, config, answers and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    other => Err(UnknownWord { what: $what, expected: $expected, given: other.to_owned() }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// How far a request may travel. Ordered: a larger class is more secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum DataClass {
    /// May go to any provider.
    Public,
    /// May go to providers that the operator marked as fit for internal data.
    #[default]
    Internal,
    /// Never leaves the devices of the mesh.
    Restricted,
}

words!(
    DataClass,
    "data class",
    "public, internal, restricted",
    Public = "public",
    Internal = "internal",
    Restricted = "restricted"
);

impl DataClass {
    /// Returns the stricter of two classes: a client can raise the class of its key, never lower it.
    pub fn raised_to(self, other: Self) -> Self {
        self.max(other)
    }
}

/// Where a request may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Mode {
    /// Anywhere that the data class allows.
    #[default]
    Auto,
    /// On devices of the mesh only, without exception.
    Local,
    /// On providers only.
    Cloud,
}

words!(Mode, "mode", "auto, local, cloud", Auto = "auto", Local = "local", Cloud = "cloud");

/// What the caller cares about most when the model is ours to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Preference {
    /// Quality, with an eye on price and waiting time.
    #[default]
    Balanced,
    /// A low price first.
    Cheap,
    /// A quick answer first.
    Fast,
    /// Quality, nearly whatever it costs.
    Best,
}

words!(
    Preference,
    "preference",
    "balanced, cheap, fast, best",
    Balanced = "balanced",
    Cheap = "cheap",
    Fast = "fast",
    Best = "best"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_text_and_errors_name_the_known_ones() {
        for class in [DataClass::Public, DataClass::Internal, DataClass::Restricted] {
            assert_eq!(class.to_string().parse::<DataClass>().unwrap(), class);
        }
        for mode in [Mode::Auto, Mode::Local, Mode::Cloud] {
            assert_eq!(mode.as_str().parse::<Mode>().unwrap(), mode);
        }
        let error = "quick".parse::<Preference>().unwrap_err().to_string();
        assert_eq!(error, "'quick' is not a preference: use one of balanced, cheap, fast, best");
    }

    #[test]
    fn a_class_can_only_be_raised() {
        assert_eq!(DataClass::Internal.raised_to(DataClass::Public), DataClass::Internal);
        assert_eq!(DataClass::Internal.raised_to(DataClass::Restricted), DataClass::Restricted);
        assert_eq!(DataClass::default(), DataClass::Internal);
    }
}
