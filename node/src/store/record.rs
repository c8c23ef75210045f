//! What is kept of one request: values, as they are stored and as people and clients see them. No text of it.

use serde::{Deserialize, Serialize};
use shoal_routing::{Features, Words};

/// What is kept of one request; the same JSON that `GET /shoal/v1/requests/{id}` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestRecord {
    /// `req_<node8>_<uuidv7>`
    pub id: String,
    /// Milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Node that accepted it.
    pub node: String,
    /// API path.
    pub path: String,
    /// Model the client asked for.
    pub model_requested: String,
    /// Model that answered; empty if none.
    pub model: String,
    /// The same with its build: the name under which it is learnt about.
    pub arm: String,
    /// `local`, `peer` or `cloud`; empty if nothing was reached.
    pub target: String,
    /// Who answered.
    pub upstream: String,
    /// Its id.
    pub upstream_id: String,
    /// Why it went there.
    pub routing_reason: String,
    /// Rule that led there; empty if no rule was about it.
    pub rule: String,
    /// Other candidates with their scores.
    pub considered: Vec<Considered>,
    /// Candidates that were not weighed, and why.
    pub removed: Vec<Removed>,
    /// The choice was not the one with the best score: it was drawn in order to learn.
    pub explored: bool,
    /// What the request was taken for.
    pub profile: Option<ProfileRecord>,
    /// Probability with which the policy took this choice.
    pub propensity: Option<f64>,
    /// `completed`, `failed`, `cancelled` or `rejected`.
    pub outcome: String,
    /// HTTP status that the client saw, or would have seen.
    pub status: u16,
    /// Error code; empty if none.
    pub error: String,
    /// `stop`, `length`, `tool_calls`, ...; empty if none.
    pub finish_reason: String,
    /// True for a streamed answer.
    pub stream: bool,
    /// Tokens of the prompt, from the upstream, else counted here.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Milliseconds to the first byte of content; absent if none came.
    pub ttft_ms: Option<u64>,
    /// Milliseconds from acceptance to the end.
    pub duration_ms: u64,
    /// Attempts made.
    pub attempts: u32,
    /// Times that another device went on with an answer that broke off.
    pub resumed: u32,
    /// True when a device of the mesh was asked, whoever answered in the end.
    pub local_attempt: bool,
    /// Each attempt: upstream, model, confidence and how it ended.
    pub attempt_log: Vec<AttemptRecord>,
    /// Calibrated probability that the answer is good; absent = unknown.
    pub confidence: Option<f64>,
    /// The same before calibration: what feedback teaches it with.
    pub raw_confidence: Option<f64>,
    /// True when a stronger model took over.
    pub escalated: bool,
    /// Why it did: `low_confidence`, `cloud_handoff` or `expected_gain`; empty if it did not.
    pub escalation: String,
    /// Tokens of answers that were not good enough; they are not in `completion_tokens`.
    pub rejected_tokens: u64,
    /// `public`, `internal` or `restricted`.
    pub data_class: String,
    /// `none` or the provider.
    pub egress: String,
    /// Cost, rejected answers included; 0 for local answers.
    pub cost_usd: Option<f64>,
    /// Id of the API key; never its secret.
    pub key_id: String,
    /// What the request looked like to the bandit, for feedback that comes later; never shown. Boxed: a record is
    /// held across most awaits of a request.
    #[serde(skip)]
    pub features: Option<Box<Features>>,
    /// The words that it was about, hashed, for the same; in memory only, and only of the newest requests.
    #[serde(skip)]
    pub words: Option<Box<Words>>,
    /// For whom it ran: `client`, or the node itself: `shadow`, `agreement`, `evaluation`.
    pub kind: String,
    /// The client's request that a shadow call, a second opinion or a grade is about; empty for a client's own.
    pub about: String,
    /// What a second model said of the first answer; absent where none was wanted.
    pub agreement: Option<Box<AgreementRecord>>,
    /// What a grade said; absent unless this is an evaluation that gave one.
    pub evaluation: Option<Box<EvaluationRecord>>,
}

/// A second model's opinion of an answer, or why there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgreementRecord {
    /// The call, as a request of its own; empty if nobody was asked.
    pub request_id: String,
    /// Model that was asked.
    pub model: String,
    /// Who served it.
    pub upstream: String,
    /// Share of the first answer that it says, too, 0 to 1; absent = unknown.
    pub share: Option<f64>,
    /// Tokens that it read and wrote.
    pub tokens: u64,
    /// Milliseconds that the client waited for it.
    pub duration_ms: u64,
    /// Why there is no share: `allowance`, `no_other_model`, `slow`, `busy`, `late`, `failed`, `unlike`; empty if there is one.
    pub skipped: String,
}

/// A grade and what was made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Version of the prompt that asked for it.
    pub prompt: String,
    /// 1 (worst) to 10.
    pub grade: f64,
    /// The same as 0 to 1, without the judge's love of length.
    pub corrected: f64,
    /// What is learnt from, 0 to 1.
    pub score: f64,
    /// Probability with which it is learnt from, 0 to 1.
    pub weight: f64,
}

/// What a request was taken for: no text of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileRecord {
    /// Field of knowledge.
    pub domain: String,
    /// Language.
    pub language: String,
    /// What it wants done.
    pub task: String,
    /// How long its caller can wait.
    pub tolerance: String,
    /// Messages of the user and of the assistant.
    pub turns: u32,
    /// It is unlike all that was judged, so that only the models' overall levels spoke.
    pub strange: bool,
}

impl ProfileRecord {
    /// Takes what a record may keep of a profile.
    pub fn new(profile: &shoal_routing::RequestProfile, strange: bool) -> Self {
        Self {
            domain: profile.domain.as_str().into(),
            language: profile.language.as_str().into(),
            task: profile.task.as_str().into(),
            tolerance: profile.tolerance.as_str().into(),
            turns: profile.turns,
            strange,
        }
    }
}

/// A candidate that the policy weighed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    /// Model.
    pub model: String,
    /// Its score in this request: quality less what price and waiting take; higher is better.
    pub score: f64,
    /// The same with its build: the name under which it is learnt about.
    #[serde(default)]
    pub arm: String,
    /// Expected quality of its answer to this request, 0 to 1.
    #[serde(default)]
    pub quality: Option<f64>,
    /// Standard deviation of that expectation.
    #[serde(default)]
    pub deviation: Option<f64>,
    /// Price, US dollars.
    #[serde(default)]
    pub cost_usd: Option<f64>,
    /// Predicted time to the whole answer, milliseconds.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Answers of it that were judged before, over the mesh.
    #[serde(default)]
    pub judged: u64,
    /// Size class of the model.
    #[serde(default)]
    pub size: String,
    /// What price and waiting took from its quality in the score.
    #[serde(default)]
    pub penalty: Option<f64>,
    /// A pair of words in the prompt told more of its answer than the words by themselves.
    #[serde(default)]
    pub by_pair: bool,
}

impl From<&shoal_routing::Considered> for Considered {
    fn from(weighed: &shoal_routing::Considered) -> Self {
        Self {
            model: weighed.model.to_string(),
            score: weighed.score,
            arm: weighed.arm.as_str().to_owned(),
            quality: Some(weighed.quality),
            deviation: Some(weighed.deviation),
            cost_usd: Some(weighed.cost.as_usd()),
            latency_ms: Some(weighed.latency_ms),
            judged: weighed.judged,
            size: weighed.size.as_str().to_owned(),
            penalty: Some(weighed.penalty),
            by_pair: weighed.by_pair,
        }
    }
}

/// A candidate that was not weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    /// Model.
    pub model: String,
    /// Display name of its host or provider; empty for all of them.
    pub upstream: String,
    /// Why, in words.
    pub why: String,
}

impl From<&shoal_routing::Removed> for Removed {
    fn from(removed: &shoal_routing::Removed) -> Self {
        Self {
            model: removed.model.to_string(),
            upstream: removed.upstream.as_deref().unwrap_or_default().to_owned(),
            why: removed.why.to_string(),
        }
    }
}

/// How an attempt ended whose answer was not good enough.
pub const REJECTED: &str = "rejected";

/// One attempt of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptRecord {
    /// Display name of the upstream.
    pub upstream: String,
    /// Model that was asked there.
    pub model: String,
    /// `ok`, `rejected` where a stronger model took over, or the error code.
    pub ended: String,
    /// Calibrated probability that this answer is good, as far as it was read; absent = unknown or no answer.
    pub confidence: Option<f64>,
    /// The same before calibration.
    pub raw_confidence: Option<f64>,
    /// Tokens of a rejected answer, as far as it was read.
    pub rejected_tokens: Option<u64>,
    /// What a rejected answer cost, by those tokens.
    pub rejected_cost_usd: Option<f64>,
}
