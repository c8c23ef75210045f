//! A client's request, the jobs that routers make of it, their attempts, and what hosts do for them.

use std::sync::LazyLock;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use shoal_routing::limit::ActiveRequest;
use shoal_routing::{
    Candidates, Choice, DataClass, InFlight, Mode, ModelChoice, Preference, Request, RequestProfile,
    RetryKind, RetryPermit, Tokens, Tries,
};

use crate::events::At;

/// Names of the models that devices serve.
pub(crate) const MODELS: [&str; 3] = ["tiny-1b", "mid-8b", "large-70b"];

/// Names of the providers; the second is not fit for internal data.
pub(crate) const PROVIDERS: [&str; 2] = ["openai", "acme"];

/// The model that each provider has.
pub(crate) const PROVIDER_MODEL: &str = "gpt-x";

/// Tokens of a piece of an answer.
pub(crate) const PIECE: u32 = 8;

/// What clients ask; profiles take longer than everything else, so each is made once.
static PROMPTS: LazyLock<Vec<(&'static str, RequestProfile)>> = LazyLock::new(|| {
    let texts = [
        "Write a haiku about the sea in autumn.",
        "Explain why the sum of two odd numbers is even, step by step.",
        "fn main() { let x: u32 = -1; } What is wrong with this program?",
        "Summarise the following minutes of the meeting in three sentences: we met, we spoke, we left.",
    ];
    texts.map(|text| (text, RequestProfile::of(&asks(text)))).to_vec()
});

fn asks(text: &'static str) -> Request<'static> {
    Request { max_output: Some(Tokens(64)), ..Request::of_text(text) }
}

/// A client's request and what became of it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) request: Request<'static>,
    pub(crate) profile: &'static RequestProfile,
    pub(crate) node: usize,
    /// How often it was told an end.
    pub(crate) ends: u32,
    pub(crate) ended_at: At,
    /// The run whose words it has, and the piece that comes next.
    pub(crate) source: Option<u64>,
    pub(crate) next_piece: u32,
    /// Requests that hosts got for it.
    pub(crate) sends: u32,
}

impl Client {
    /// Draws one that asks a router.
    pub(crate) fn draw(node: usize, rng: &mut StdRng) -> Self {
        let (text, profile) = &PROMPTS[rng.random_range(0..PROMPTS.len())];
        let named = |rng: &mut StdRng| MODELS[rng.random_range(0..MODELS.len())].to_owned();
        let choice = match rng.random_range(0..20) {
            0..10 => ModelChoice::Named(named(rng)),
            10..16 => ModelChoice::Auto(Preference::Balanced),
            16..18 => ModelChoice::AutoLocal,
            _ => ModelChoice::Provider {
                provider: PROVIDERS[rng.random_range(0..2)].into(),
                model: PROVIDER_MODEL.into(),
            },
        };
        let data_class = match rng.random_range(0..4) {
            0 => DataClass::Restricted,
            1 => DataClass::Public,
            _ => DataClass::Internal,
        };
        let mode = match rng.random_range(0..12) {
            0 => Mode::Cloud,
            1 => Mode::Local,
            _ => Mode::Auto,
        };
        let request = Request { stream: rng.random_bool(0.7), choice, data_class, mode, ..asks(text) };
        Self { request, profile, node, ends: 0, ended_at: At::ZERO, source: None, next_piece: 0, sends: 0 }
    }
}

/// A request at one router.
pub(crate) struct Job {
    pub(crate) client: usize,
    pub(crate) node: usize,
    pub(crate) life: u32,
    /// Routers that forwarded it before.
    pub(crate) hop: u32,
    pub(crate) request: Request<'static>,
    pub(crate) candidates: Candidates,
    pub(crate) tries: Tries,
    /// The checker's own count of attempts that were sent.
    pub(crate) made: u32,
    pub(crate) numbers: u32,
    pub(crate) active: Option<ActiveRequest>,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) last: Option<Failure>,
    pub(crate) is_full: bool,
    /// The job at another router that waits for it, and its attempt.
    pub(crate) parent: Option<(u64, u32)>,
    pub(crate) committed: bool,
    pub(crate) began: At,
    /// Nothing that it tells its parent may arrive before this.
    pub(crate) told_at: At,
    /// A piece of its answer was lost with the connection: nothing more gets through.
    pub(crate) is_cut: bool,
    /// The decision had a host that this router may ask.
    pub(crate) is_servable: bool,
}

/// One attempt of a job.
pub(crate) struct Attempt {
    pub(crate) number: u32,
    pub(crate) choice: Choice,
    pub(crate) guard: Option<InFlight>,
    pub(crate) permit: Option<RetryPermit>,
    /// It is a retry in the checker's own count.
    pub(crate) is_counted: bool,
    /// Attempts that were left with it, and the life of whoever is asked.
    pub(crate) left: u32,
    pub(crate) peer_life: u32,
    pub(crate) stage: Stage,
    /// Silences of its connection in a row.
    pub(crate) misses: u32,
    /// News that came.
    pub(crate) progress: u32,
    pub(crate) sent_at: At,
    /// Set aside at a provider, micro-USD, and pieces that came of what it pays for.
    pub(crate) reserved: Option<(usize, u64)>,
    pub(crate) pieces: u32,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In line for a slot; its place.
    Waits(u64),
    /// Before a retry, until when.
    AsksPermit(At),
    /// Under way.
    Sent,
}

/// Who works for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worker {
    /// A host, by its run.
    Run(u64),
    /// Another router, by its job.
    Job(u64),
}

/// An answer in the making on a host.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) job: u64,
    pub(crate) attempt: u32,
    pub(crate) host: Host,
    pub(crate) host_life: u32,
    pub(crate) stream: bool,
    pub(crate) piece: u32,
    pub(crate) pieces: u32,
    pub(crate) gap: Duration,
    /// The piece before which it breaks, and how.
    pub(crate) breaks: Option<(u32, Break)>,
    pub(crate) told_at: At,
    pub(crate) is_cut: bool,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// A device.
    Device(usize),
    /// A provider.
    Provider(usize),
}

/// How a run breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// It says so.
    Fails,
    /// It falls silent.
    Hangs,
}

/// What is heard of an attempt.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// The next piece of a stream, by its run and number.
    Piece { source: u64, number: u32 },
    /// The answer is whole; its pieces.
    End { source: u64, pieces: u32 },
    /// It failed.
    Failed(Failure),
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// All slots are taken: 503 `overloaded`.
    Full,
    /// The provider asks for less: 429.
    Throttled,
    /// The purse does not cover it: 429 `insufficient_quota`.
    Quota,
    /// The upstream broke: 502.
    Broken,
    /// The connection is lost: 502.
    Interrupted,
    /// Silence: 504.
    Timeout,
    /// The request's own time is over: 504, final.
    Deadline,
    /// The router that was asked has no way for it; true when another may.
    NoRoute(bool),
}

impl Failure {
    /// True when the next candidate may be asked.
    pub(crate) fn is_retryable(self) -> bool {
        match self {
            Self::Full | Self::Throttled | Self::Quota | Self::Broken | Self::Interrupted | Self::Timeout => {
                true
            }
            Self::Deadline => false,
            Self::NoRoute(retryable) => retryable,
        }
    }

    /// True when it is no fault of the host.
    pub(crate) fn is_blameless(self) -> bool {
        matches!(self, Self::Full | Self::Throttled | Self::Quota | Self::NoRoute(false))
    }

    /// Of which class a retry after it is.
    pub(crate) fn retry(self) -> RetryKind {
        match self {
            Self::Full | Self::Throttled | Self::Quota => RetryKind::Throttle,
            Self::Broken | Self::Interrupted | Self::Timeout | Self::Deadline | Self::NoRoute(_) => {
                RetryKind::Transient
            }
        }
    }

    /// How long the host wants to be left alone.
    pub(crate) fn pause(self) -> Option<Duration> {
        match self {
            Self::Full => Some(Duration::from_secs(1)),
            Self::Throttled => Some(Duration::from_secs(2)),
            Self::Quota
            | Self::Broken
            | Self::Interrupted
            | Self::Timeout
            | Self::Deadline
            | Self::NoRoute(_) => None,
        }
    }
}
