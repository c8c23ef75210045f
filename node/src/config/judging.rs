//! The `[evaluator]` and `[learning]` tables: who judges answers besides people, and what is done to learn more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_routing::ModelChoice;

use super::Error;
use crate::cloud::Budget;
use crate::judging::{DEFAULT_PER_HOUR, EvaluatorSettings, LearningSettings};

/// Share of answers that are graded where only a model is named: one in 20 is learnt from in a day of light use.
const DEFAULT_SHARE: f64 = 0.05;
/// Longest wait for a grade where nobody says otherwise: a few words from a small device.
const DEFAULT_TIMEOUT_S: u64 = 60;

/// The `[evaluator]` table; without a model nobody is asked.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileEvaluator {
    /// `auto:local`, a served model (asked on devices only) or `provider/model`. Default none: no grades.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Share of completed chat answers that are graded, 0 to 1. Default 0.05.
    pub share: f64,
    /// Most that grades may cost at a provider. Default 0.1 USD a day.
    pub budget: Budget,
    /// Most grades in an hour. Default 240.
    pub per_hour: u32,
    /// Grades asked for at once, 1 to 64. Default 1.
    pub max_concurrent: u32,
    /// Seconds to wait for one, 1 to 3600. Default 60.
    pub timeout_s: u64,
}

impl Default for FileEvaluator {
    fn default() -> Self {
        Self {
            model: None,
            share: DEFAULT_SHARE,
            budget: "0.1usd/day".parse().expect("the default is a budget"),
            per_hour: DEFAULT_PER_HOUR,
            max_concurrent: 1,
            timeout_s: DEFAULT_TIMEOUT_S,
        }
    }
}

/// The `[learning]` table.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileLearning {
    /// Share of completed `auto` chats that another model of a device answers, too, 0 to 1. Default 0.
    pub shadow_share: f64,
    /// Most such calls in an hour. Default 240.
    pub shadow_per_hour: u32,
}

impl Default for FileLearning {
    fn default() -> Self {
        Self { shadow_share: 0.0, shadow_per_hour: DEFAULT_PER_HOUR }
    }
}

impl FileEvaluator {
    pub(super) fn check(self) -> Result<Option<EvaluatorSettings>, Error> {
        let wrong =
            |name: &str, message: String| Error::Invalid { origin: format!("evaluator.{name}"), message };
        let share = share(self.share).map_err(|message| wrong("share", message))?;
        if !(1..=64).contains(&self.max_concurrent) {
            let message =
                format!("{} is out of range; max_concurrent lies between 1 and 64", self.max_concurrent);
            return Err(wrong("max_concurrent", message));
        }
        if !(1..=3600).contains(&self.timeout_s) {
            let message = format!("{} is out of range; timeout_s lies between 1 and 3600", self.timeout_s);
            return Err(wrong("timeout_s", message));
        }
        let Some(model) = self.model.filter(|model| !model.is_empty()) else { return Ok(None) };
        if model.len() > 256 || model.chars().any(char::is_control) {
            return Err(wrong("model", "a model's name has 1 to 256 printable characters".into()));
        }
        if matches!(ModelChoice::parse(&model, &|_| false), ModelChoice::Auto(_)) {
            let message = format!(
                "'{model}' could send answers to a provider that nobody named; write 'auto:local', a model of a device, or 'provider/model'"
            );
            return Err(wrong("model", message));
        }
        Ok(Some(EvaluatorSettings {
            model,
            share,
            budget: self.budget,
            per_hour: self.per_hour,
            max_concurrent: self.max_concurrent as usize,
            timeout: Duration::from_secs(self.timeout_s),
        }))
    }
}

impl FileLearning {
    pub(super) fn check(self, evaluator: Option<&EvaluatorSettings>) -> Result<LearningSettings, Error> {
        let wrong = |message: String| Error::Invalid { origin: "learning.shadow_share".into(), message };
        let shadow_share = share(self.shadow_share).map_err(wrong)?;
        if shadow_share > 0.0 && evaluator.is_none() {
            return Err(wrong(
                "shadow calls teach nothing unless a model grades them; set evaluator.model, for example to 'auto:local', or leave shadow_share at 0".into(),
            ));
        }
        Ok(LearningSettings { shadow_share, shadow_per_hour: self.shadow_per_hour })
    }
}

fn share(value: f64) -> Result<f64, String> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{value} is no share; it lies between 0 and 1"))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::testing::checked;
    use crate::config::{Config, Flags};

    #[test]
    fn nobody_grades_unless_a_model_is_named() {
        assert_eq!(checked("").unwrap().evaluator, None);
        assert_eq!(checked("[evaluator]\nshare = 0.5").unwrap().evaluator, None);
        let named = checked("[evaluator]\nmodel = \"auto:local\"").unwrap().evaluator.unwrap();
        assert_eq!(
            (named.share, named.max_concurrent, named.budget.to_string().as_str()),
            (0.05, 1, "0.1usd/day")
        );
        let env = [("SHOAL_EVALUATOR__MODEL".to_owned(), "judge-8b".to_owned())];
        let named = Config::load(Flags::default(), &env).unwrap().evaluator.unwrap();
        assert_eq!(named.model, "judge-8b");
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_with_a_reason() {
        let cases = [
            ("[evaluator]\nmodel = \"auto\"", "a provider that nobody named"),
            ("[evaluator]\nmodel = \"auto:best\"", "a provider that nobody named"),
            ("[evaluator]\nmodel = \"auto:local\"\nshare = 1.5", "1.5 is no share"),
            ("[evaluator]\nmodel = \"m\"\nbudget = \"much\"", "not a budget"),
            ("[evaluator]\nmodel = \"m\"\nmax_concurrent = 0", "between 1 and 64"),
            ("[evaluator]\nmodell = \"m\"", "did you mean 'model'"),
            ("[learning]\nshadow_share = 0.1", "set evaluator.model"),
            ("[evaluator]\nmodel = \"m\"\n[learning]\nshadow_share = -1", "no share"),
        ];
        for (text, expected) in cases {
            let error = checked(text).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let both = checked("[evaluator]\nmodel = \"m\"\n[learning]\nshadow_share = 0.1").unwrap();
        assert_eq!(both.learning.shadow_share, 0.1);
    }
}
