//! Escalation by pipe: a request with the signals of a local answer in, confidence and expected gain out.
//!
//! The model behind it is [`GainModel`] of the router's pure core. It may be warmed by a set whose outcomes are known,
//! and goes on learning from what the scorer, who holds the truth back, lets out.

mod logits;
mod models;
mod rows;

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use rand::{SeedableRng, rngs::StdRng, seq::IteratorRandom};
use serde::{Deserialize, Serialize};
use shoal_routing::{
    Features, RequestProfile, Score, Tokens,
    embed::Embedding,
    escalate::gain::{AnswerSignals, Evidence, GainModel, Known, Landmarks},
};

use logits::LogitRow;
use models::Models;
use rows::Row;

/// Prompts of the warming set that others are compared with. 64 rank known subjects by 0.001 APGR worse, 256 no better.
const LANDMARKS: usize = 128;

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
    model: GainModel,
    lambda: f64,
    table: BTreeMap<String, AnswerSignals>,
    pending: BTreeMap<String, Evidence>,
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

#[derive(Debug, Default, Deserialize)]
struct SignalFields {
    margin: Option<f64>,
    pmax: Option<f64>,
    entropy: Option<f64>,
    agreement: Option<f64>,
    out_tok: Option<f64>,
    valid: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    id: &'a str,
    confidence: Option<f64>,
    gain: f64,
    escalate: bool,
}

impl SignalFields {
    fn read(&self) -> AnswerSignals {
        AnswerSignals {
            margin: self.margin,
            top_probability: self.pmax,
            entropy: self.entropy,
            agreement: self.agreement,
            out_tokens: self.out_tok,
            valid: self.valid,
        }
    }
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
        let table = options.signals.as_deref().map(|path| {
            let name = |model: &String| match &models {
                Some(models) => models.index(model).map(|index| models.models[index].clone()),
                None => Ok(model.clone()),
            };
            logits::read(path, &name(&options.local)?, &name(&options.strong)?)
        });
        let table = table.transpose()?.unwrap_or_default();
        let Some(models) = models else {
            if options.warm.is_some() || options.signals.is_none() {
                bail!("--models is needed, unless the models are given by their names in --signals alone");
            }
            return Self::warmed(options, &[], None, table);
        };
        let peers = options.peers.iter().map(|peer| models.index(peer)).collect::<Result<_>>()?;
        let pair =
            Pair { local: models.index(&options.local)?, strong: models.index(&options.strong)?, peers };
        let rows = options.warm.as_deref().map(rows::read).transpose()?.unwrap_or_default();
        Self::warmed(options, &rows, Some(&pair), table)
    }

    fn warmed(options: &Options, rows: &[Row], pair: Option<&Pair>, table: Vec<LogitRow>) -> Result<Self> {
        let mut by_id: BTreeMap<&str, &LogitRow> = table.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut known = Vec::with_capacity(rows.len() + table.len());
        let mut embeddings = Vec::with_capacity(rows.len());
        for (row, pair) in rows.iter().filter_map(|row| Some((row, pair?))) {
            let (features, embedding) = read(&row.prompt, row.in_tok);
            let mut signals = pair.signals(row);
            if let Some(seen) = by_id.remove(row.id.as_str()) {
                let AnswerSignals { margin, top_probability, entropy, .. } = seen.signals;
                signals = AnswerSignals { margin, top_probability, entropy, ..signals };
            }
            let known_of = || -> Result<Known> {
                let score = |model: usize| {
                    let score = row.y.get(model).with_context(|| format!("no outcome of model {model}"))?;
                    Score::new(*score).map_err(anyhow::Error::from)
                };
                Ok(Known { local: Some(score(pair.local)?), strong: Some(score(pair.strong)?) })
            };
            let outcome = known_of().with_context(|| format!("warming row {}", row.id))?;
            known.push((Evidence::new(features, embedding, &signals), outcome));
            embeddings.push(embedding);
        }
        // With a set to learn from, the table says what signals are, not what is learnt.
        for row in by_id.values().filter(|_| rows.is_empty()) {
            let score = |value: Option<f64>| value.map(Score::new).transpose();
            let outcome = Known { local: score(row.local)?, strong: score(row.strong)? };
            let (features, embedding) = (Features::default(), Embedding::NEUTRAL);
            known.push((Evidence::new(features, embedding, &row.signals), outcome));
        }
        let mut rng = StdRng::seed_from_u64(options.seed);
        let landmarks = Landmarks::new(embeddings.iter().sample(&mut rng, LANDMARKS));
        let mut model = GainModel::new(landmarks);
        model.train(&known);
        let table = table.into_iter().map(|row| (row.id, row.signals)).collect();
        Ok(Self { model, lambda: options.lambda, table, pending: BTreeMap::new() })
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
        if let Some(evidence) = self.pending.remove(id) {
            self.model.observe(&evidence, &known);
        }
        Ok(None)
    }

    fn request(&mut self, id: &str, line: &Line) -> Result<String> {
        if self.pending.len() >= MAX_PENDING {
            bail!("{MAX_PENDING} requests await their outcome: a third line must follow each answer");
        }
        let signals = match (&line.signals, self.table.get(id)) {
            (Some(signals), Some(known)) => merged(signals.read(), known),
            (Some(signals), None) => signals.read(),
            (None, Some(signals)) => *signals,
            (None, None) => AnswerSignals::default(),
        };
        let (features, embedding) = match &line.prompt {
            Some(text) => read(text, line.in_tok),
            None => (Features::default(), Embedding::NEUTRAL),
        };
        let evidence = Evidence::new(features, embedding, &signals);
        let estimate = self.model.estimate(&evidence);
        self.pending.insert(id.to_owned(), evidence);
        let answer = Answer {
            id,
            confidence: estimate.confidence.value(),
            gain: estimate.gain,
            escalate: estimate.gain > self.lambda,
        };
        serde_json::to_string(&answer).context("writing an answer")
    }
}

/// Fills in what the request does not say from the table.
fn merged(said: AnswerSignals, known: &AnswerSignals) -> AnswerSignals {
    AnswerSignals {
        margin: said.margin.or(known.margin),
        top_probability: said.top_probability.or(known.top_probability),
        entropy: said.entropy.or(known.entropy),
        agreement: said.agreement.or(known.agreement),
        out_tokens: said.out_tokens.or(known.out_tokens),
        valid: said.valid.or(known.valid),
    }
}

impl Pair {
    /// Forms the signals of a row: agreement of the peers with the local answer, its length, whether it is one.
    fn signals(&self, row: &Row) -> AnswerSignals {
        let choice =
            |model: usize| row.pred.as_ref().and_then(|choices| choices.as_bytes().get(model)).copied();
        let local = choice(self.local);
        let agreement = local.filter(|_| !self.peers.is_empty()).map(|local| {
            let same = self.peers.iter().filter(|peer| choice(**peer) == Some(local)).count();
            same as f64 / self.peers.len() as f64
        });
        AnswerSignals {
            agreement,
            out_tokens: row.out_tok.as_ref().and_then(|tokens| tokens.get(self.local)).copied(),
            valid: local.map(|choice| choice != b'-'),
            ..AnswerSignals::default()
        }
    }
}

/// Reads a prompt that stands for one of `in_tok` tokens.
fn read(prompt: &str, in_tok: Option<f64>) -> (Features, Embedding) {
    let profile = RequestProfile::of_text(prompt, in_tok.map(|count| Tokens(count as u32)));
    (profile.features, profile.embedding)
}
