//! The `[escalation]` table: what may be spent to find out whether an answer is good enough.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::judging::{AgreementSettings, DEFAULT_PER_HOUR};

/// Longest wait of a client for a second opinion where nobody says otherwise: a short answer of a small model.
const DEFAULT_WAIT_S: u64 = 10;

/// The `[escalation]` table.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileEscalation {
    /// Asks another model of a device whether it says the same, where nothing is known of an answer and it can turn the
    /// decision to ask a stronger model. Default false: the client waits for it.
    pub agreement: bool,
    /// Most such calls in an hour. Default 240.
    pub agreement_per_hour: u32,
    /// Such calls at once, 1 to 64. Default 1.
    pub agreement_max_concurrent: u32,
    /// Seconds that a client may be kept waiting by one, 1 to 120. Default 10.
    pub agreement_wait_s: u64,
}

impl Default for FileEscalation {
    fn default() -> Self {
        Self {
            agreement: false,
            agreement_per_hour: DEFAULT_PER_HOUR,
            agreement_max_concurrent: 1,
            agreement_wait_s: DEFAULT_WAIT_S,
        }
    }
}

impl FileEscalation {
    /// Checks the table; `None` where nobody is asked.
    pub(super) fn check(&self) -> Result<Option<AgreementSettings>, Error> {
        let wrong =
            |name: &str, message: String| Error::Invalid { origin: format!("escalation.{name}"), message };
        if !(1..=64).contains(&self.agreement_max_concurrent) {
            let message = format!(
                "{} is out of range; agreement_max_concurrent lies between 1 and 64",
                self.agreement_max_concurrent
            );
            return Err(wrong("agreement_max_concurrent", message));
        }
        if !(1..=120).contains(&self.agreement_wait_s) {
            let message = format!(
                "{} is out of range; agreement_wait_s lies between 1 and 120, since a client waits",
                self.agreement_wait_s
            );
            return Err(wrong("agreement_wait_s", message));
        }
        Ok(self.agreement.then(|| AgreementSettings {
            per_hour: self.agreement_per_hour,
            max_concurrent: self.agreement_max_concurrent as usize,
            wait: Duration::from_secs(self.agreement_wait_s),
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::testing::checked;

    #[test]
    fn nobody_is_asked_for_a_second_opinion_unless_it_is_switched_on() {
        assert_eq!(checked("").unwrap().agreement, None);
        let on =
            checked("[escalation]\nagreement = true\nagreement_per_hour = 60").unwrap().agreement.unwrap();
        assert_eq!((on.per_hour, on.max_concurrent, on.wait.as_secs()), (60, 1, 10));
    }

    #[test]
    fn settings_out_of_range_are_refused_with_a_reason() {
        for (text, expected) in [
            ("agreement_wait_s = 0", "between 1 and 120"),
            ("agreement_max_concurrent = 65", "between 1 and 64"),
            ("agreements = true", "did you mean 'agreement'"),
        ] {
            let error = checked(&format!("[escalation]\n{text}")).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
