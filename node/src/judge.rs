//! Explicit feedback on a finished request, at the node that accepted it.
//!
//! The record says which arm answered; the score goes to that arm's statistics, once for each request.

use shoal_proto::FeedbackVerdict;
use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{ArmId, Confidence, Domain, Score};

use crate::feedback::{FeedbackHandle, JudgedBy, Judgement};
use crate::judging::witness::WitnessHandle;
use crate::store::{Error, HistoryWriter, Store};

/// Longest comment that is kept, characters.
pub const MAX_COMMENT: usize = 4096;

/// Takes judgements of this node's own requests.
#[derive(Clone)]
pub struct Judge {
    /// Where scores are kept.
    pub store: Store,
    /// Where records are found.
    pub history: HistoryWriter,
    /// Where they are learnt from.
    pub feedback: FeedbackHandle,
    /// Who compares them with what others say.
    pub witness: WitnessHandle,
}

impl Judge {
    /// Takes a score for a request that this node accepted; the first one counts.
    pub async fn take(&self, id: &str, score: Score, comment: &str) -> Result<FeedbackVerdict, Error> {
        let (judge, wanted) = (self.clone(), id.to_owned());
        let comment: String = comment.chars().take(MAX_COMMENT).collect();
        let kept =
            tokio::task::spawn_blocking(move || -> Result<Result<Judgement, FeedbackVerdict>, Error> {
                let Some(record) = judge.history.find(&wanted)? else {
                    return Ok(Err(FeedbackVerdict::Unknown));
                };
                if record.outcome != "completed" || record.arm.is_empty() {
                    return Ok(Err(FeedbackVerdict::NoAnswer));
                }
                if !judge.store.keep_score(&wanted, score.value(), &comment)? {
                    return Ok(Err(FeedbackVerdict::Repeated));
                }
                let raw = record.raw_confidence.and_then(|c| Score::new(c).ok());
                let raw = raw.map_or(Confidence::Unknown, Confidence::Known);
                let out_tokens = (record.completion_tokens > 0).then_some(record.completion_tokens as f64);
                let profile = record.profile.as_ref();
                let domain = profile.and_then(|profile| Domain::parse(&profile.domain)).unwrap_or_default();
                Ok(Ok(Judgement {
                    request: wanted.into(),
                    arm: ArmId(record.arm.into()),
                    score,
                    seen: AnswerSignals { raw, out_tokens },
                    features: record.features.map(|features| *features),
                    words: record.words.map(|words| *words).unwrap_or_default(),
                    domain,
                    by: JudgedBy::Client,
                }))
            })
            .await
            .unwrap_or(Ok(Err(FeedbackVerdict::Unspecified)))?;
        match kept {
            Ok(judgement) => {
                self.witness.explicit(id, judgement.arm.clone(), score);
                self.feedback.judge(judgement).await;
                Ok(FeedbackVerdict::Taken)
            }
            Err(verdict) => Ok(verdict),
        }
    }
}
