//! Escalation by pipe: a request with the signals of a local answer in, confidence and expected gain out.
//!
//! What answers is what judges in a node: the same sums ([`Testimony`]), the same model made of them ([`GainModel`]),
//! the same rule ([`EscalationPolicy`]). Warming by a set is no other thing than having seen its answers judged before; it
//! goes on learning from what the scorer, who holds the truth back, lets out.

mod logits;
mod models;
mod rows;
mod signals;

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use shoal_routing::{
    ArmId, Confidence, Domain, EscalationPolicy, Features, Grounds, JudgeInput, Judged, MicroUsd, ModelSpec,
    Permitted, Preference, Quality, RequestProfile, Score, Testimony, Tokens,
    bandit::prior::size_class,
    escalate::gain::{AnswerSignals, GainModel},
};

use logits::LogitRow;
use models::Models;
use rows::Row;
use signals::SignalFields;

/// Judged requests between two fits, while warming and live: a node makes them as judgements come in, a few at a time.
const WARM_REFIT: usize = 25;
const LIVE_REFIT: usize = 5;

/// Requests that may wait for their outcome; more is a scorer that sends none.
const MAX_PENDING: usize = 10_000;

/// What the command is told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Names of the models; may be missing when they are given by the names of `signals`.
    pub models: Option<PathBuf>,
    /// The local model, by number or name.
    pub local: String,
    /// The strong one.
    pub strong: String,
    /// Models whose agreement with the local one is a signal.
    pub peers: Vec<String>,
    /// Set to learn from, both outcomes.
    pub warm: Option<PathBuf>,
    /// Table of option probabilities to learn from, and to look signals up in by id.
    pub signals: Option<PathBuf>,
    /// Price of a strong call in units of quality: escalates above it.
    pub lambda: f64,
    /// Seed of everything random.
    pub seed: u64,
}

/// A cascade that answers line by line.
#[derive(Debug)]
pub struct Cascade {
    own: Testimony,
    model: GainModel,
    /// Judged requests that the model does not know of yet.
    unfitted: usize,
    local: ArmId,
    /// What is expected of the local model before anything was judged.
    answered: Quality,
    /// The strong model, for nothing and at once: its price is `lambda`.
    strong: Permitted,
    lambda: f64,
    table: BTreeMap<String, SignalFields>,
    pending: BTreeMap<String, Judged>,
}

/// What became known of a pair of answers. Scores, or `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Known {
    local: Option<Score>,
    strong: Option<Score>,
}

#[derive(Debug, Deserialize)]
struct Line {
    id: Option<String>,
    prompt: Option<String>,
    in_tok: Option<f64>,
    signals: Option<SignalFields>,
    y_local: Option<f64>,
    y_strong: Option<f64>,
    mean_cost_uusd: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    id: &'a str,
    confidence: Option<f64>,
    gain: f64,
    escalate: bool,
}

/// Numbers of the models of a set.
struct Pair {
    local: usize,
    strong: usize,
    peers: Vec<usize>,
}

impl Cascade {
    /// Reads the files and learns from them.
    ///
    /// # Errors
    /// If a file cannot be read, is not what it should be or does not know a model.
    pub fn new(options: &Options) -> Result<Self> {
        let models = options.models.as_deref().map(Models::read).transpose()?;
        let name = |model: &String| match &models {
            Some(models) => models.index(model).map(|index| models.models[index].clone()),
            None => Ok(model.clone()),
        };
        let (local, strong) = (name(&options.local)?, name(&options.strong)?);
        let blank = Self::blank(&local, &strong, options.lambda);
        let table = options.signals.as_deref().map(|path| logits::read(path, &local, &strong));
        let table = table.transpose()?.unwrap_or_default();
        let Some(models) = models else {
            if options.warm.is_some() || options.signals.is_none() {
                bail!("--models is needed, unless the models are given by their names in --signals alone");
            }
            return blank.warmed(options.seed, &[], None, table);
        };
        let peers = options.peers.iter().map(|peer| models.index(peer)).collect::<Result<_>>()?;
        let pair =
            Pair { local: models.index(&options.local)?, strong: models.index(&options.strong)?, peers };
        let rows = options.warm.as_deref().map(rows::read).transpose()?.unwrap_or_default();
        blank.warmed(options.seed, &rows, Some(&pair), table)
    }

    fn warmed(mut self, seed: u64, rows: &[Row], pair: Option<&Pair>, table: Vec<LogitRow>) -> Result<Self> {
        let mut by_id: BTreeMap<&str, &LogitRow> = table.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut known = Vec::with_capacity(rows.len() + table.len());
        for (row, pair) in rows.iter().filter_map(|row| Some((row, pair?))) {
            let seen = by_id.remove(row.id.as_str()).map(|seen| seen.signals).unwrap_or_default();
            let signals = seen.or(&pair.signals(row)).read();
            let known_of = || -> Result<Known> {
                let score = |model: usize| {
                    let score = row.y.get(model).with_context(|| format!("no outcome of model {model}"))?;
                    Score::new(*score).map_err(anyhow::Error::from)
                };
                Ok(Known { local: Some(score(pair.local)?), strong: Some(score(pair.strong)?) })
            };
            let outcome = known_of().with_context(|| format!("warming row {}", row.id))?;
            known.push((asked(Some(&row.prompt), row.in_tok, signals), outcome));
        }
        // With a set to learn from, the table says what signals are, not what is learnt.
        for row in by_id.values().filter(|_| rows.is_empty()) {
            let score = |value: Option<f64>| value.map(Score::new).transpose();
            let outcome = Known { local: score(row.local)?, strong: score(row.strong)? };
            known.push((asked(None, None, row.signals.read()), outcome));
        }
        // A node meets its subjects mixed; a set may come sorted by them.
        known.shuffle(&mut StdRng::seed_from_u64(seed));
        self.table = table.into_iter().map(|row| (row.id, row.signals)).collect();
        for (at, (judged, outcome)) in known.iter().enumerate() {
            self.learn(judged, outcome);
            if at % WARM_REFIT == 0 {
                self.refit();
            }
        }
        self.refit();
        Ok(self)
    }

    /// Makes one that has seen nothing.
    fn blank(local: &str, strong: &str, lambda: f64) -> Self {
        let quality = |model: &str| {
            let of_answer = size_class(&ModelSpec::new(model, "test")).expected_quality();
            Quality { of_request: of_answer, of_answer, judged: 0 }
        };
        // Told apart even where a set pairs a model with itself.
        let arm = |role: &str, model: &str| ArmId::new(&format!("{role}/{model}"), None);
        Self {
            own: Testimony::default(),
            model: GainModel::default(),
            unfitted: 0,
            local: arm("local", local),
            answered: quality(local),
            strong: Permitted {
                model: strong.into(),
                arm: arm("strong", strong),
                offers: Vec::new(),
                cloud: true,
                quality: quality(strong),
                cost: MicroUsd(0),
                latency_ms: 0.0,
            },
            lambda,
            table: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// Takes in what became known, each answer by itself.
    fn learn(&mut self, judged: &Judged, known: &Known) {
        if let Some(score) = known.local {
            self.own.record_judgement(&self.local, judged, score, &self.model);
        }
        if let Some(score) = known.strong {
            let judged = Judged { signals: AnswerSignals::default(), ..*judged };
            self.own.record_judgement(&self.strong.arm, &judged, score, &self.model);
        }
    }

    fn refit(&mut self) {
        self.model = GainModel::fit(&self.own.arms);
        self.unfitted = 0;
    }

    /// Returns the calibrated confidence of a local answer, and what the strong model is expected to gain over it.
    fn estimate(&self, judged: &Judged) -> (Confidence, f64) {
        let features = judged.features.unwrap_or_default();
        let evidence = self.model.evidence(&self.local, features, judged.domain, &judged.signals);
        let input = JudgeInput {
            confidence: evidence.confidence,
            handoff: false,
            threshold: None,
            // Where nothing is known of an answer, a node leaves it; here a number is asked for.
            answered: Quality { judged: u64::MAX, ..self.answered },
            learnt: Some(Grounds { model: &self.model, arm: &self.local, evidence: &evidence }),
            preference: Preference::Balanced,
            may_spend: true,
            rungs: &[],
        };
        (evidence.confidence, EscalationPolicy.gain(&input, &self.strong).unwrap_or_default())
    }

    /// Answers every request of `input` until it ends.
    ///
    /// # Errors
    /// If a line cannot be understood, with its number; if reading or writing fails.
    pub fn run(&mut self, input: impl BufRead, mut output: impl Write) -> Result<()> {
        for (index, line) in input.lines().enumerate() {
            let line = line.context("reading the input")?;
            if line.trim().is_empty() {
                continue;
            }
            if let Some(answer) = self.line(&line).with_context(|| format!("input line {}", index + 1))? {
                writeln!(output, "{answer}").and_then(|()| output.flush()).context("writing an answer")?;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<Option<String>> {
        let line: Line = serde_json::from_str(line).context("no JSON object of a request or an outcome")?;
        let Some(id) = &line.id else {
            if line.mean_cost_uusd.is_some() {
                return Ok(None);
            }
            bail!("no id");
        };
        let asks = line.prompt.is_some() || line.signals.is_some() || line.in_tok.is_some();
        if asks || !self.pending.contains_key(id) {
            if !asks && !self.table.contains_key(id) {
                bail!("{id} is neither a request (prompt, signals) nor one that awaits its outcome");
            }
            return self.request(id, &line).map(Some);
        }
        let score = |value: Option<f64>| value.map(Score::new).transpose();
        let known = Known {
            local: score(line.y_local).context("y_local")?,
            strong: score(line.y_strong).context("y_strong")?,
        };
        if let Some(judged) = self.pending.remove(id)
            && known != Known::default()
        {
            self.learn(&judged, &known);
            self.unfitted += 1;
            if self.unfitted >= LIVE_REFIT {
                self.refit();
            }
        }
        Ok(None)
    }

    fn request(&mut self, id: &str, line: &Line) -> Result<String> {
        if self.pending.len() >= MAX_PENDING {
            bail!("{MAX_PENDING} requests await their outcome: a third line must follow each answer");
        }
        let said = line.signals.unwrap_or_default();
        let signals = self.table.get(id).map_or(said, |known| said.or(known)).read();
        let judged = asked(line.prompt.as_deref(), line.in_tok, signals);
        let (confidence, gain) = self.estimate(&judged);
        self.pending.insert(id.to_owned(), judged);
        let answer = Answer { id, confidence: confidence.value(), gain, escalate: gain > self.lambda };
        serde_json::to_string(&answer).context("writing an answer")
    }
}

impl Pair {
    /// Forms the signals of a row: agreement of the peers with the local answer, its length, whether it is one.
    fn signals(&self, row: &Row) -> SignalFields {
        let choice =
            |model: usize| row.pred.as_ref().and_then(|choices| choices.as_bytes().get(model)).copied();
        let local = choice(self.local);
        let agreement = local.filter(|_| !self.peers.is_empty()).map(|local| {
            let same = self.peers.iter().filter(|peer| choice(**peer) == Some(local)).count();
            same as f64 / self.peers.len() as f64
        });
        SignalFields {
            agreement,
            out_tok: row.out_tok.as_ref().and_then(|tokens| tokens.get(self.local)).copied(),
            valid: local.map(|choice| choice != b'-'),
            ..SignalFields::default()
        }
    }
}

/// Reads a request that stands for one of `in_tok` tokens; without a prompt nothing is known of it.
fn asked(prompt: Option<&str>, in_tok: Option<f64>, signals: AnswerSignals) -> Judged {
    let profile = prompt.map(|text| RequestProfile::of_text(text, in_tok.map(|count| Tokens(count as u32))));
    let (features, domain) = profile
        .map_or((Features::default(), Domain::default()), |profile| (profile.features, profile.domain));
    Judged { features: Some(features), domain, signals }
}
