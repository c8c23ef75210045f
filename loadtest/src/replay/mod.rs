//! Routing evaluation by pipe: requests in, choices out, and only then what the choice was worth.
//!
//! A scorer holds the truth back and answers each choice with the outcome of the chosen arm alone, so what is
//! measured is a bandit and not a fit. The choosing is done by the code of production: profile, sums, discriminant
//! and policy of `shoal-routing`; only price is expressed as the caller asks, as a share of the dearest arm's mean cost.

mod lines;
mod mesh;
pub(crate) mod models;
mod pack;
mod warm;

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::bandit::{SizeClass, prior};
use shoal_routing::{
    ArmId, ArmStats, ArmView, Belief, MicroUsd, ModelSpec, Policy, Posterior, Score, Thompson, Words,
};

use self::lines::{Answer, Head, Looks, Outcome, Request};
use self::mesh::Mesh;
pub use self::mesh::Mode;
use self::models::Models;

/// Share of requests with permission for which a shadow call is asked.
const SHADOW_SHARE: f64 = 0.1;

/// Every request of a replay is answered; what is judged is the answer.
const ALWAYS_ANSWERS: ArmStats = ArmStats {
    count: 1_000_000_000,
    failures: 0,
    scored: 0,
    reward_sum: 0.0,
    ttft_count: 0,
    ttft_ms_sum: 0.0,
    version: 0,
};

/// How the replay chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// Thompson sampling over the arms' discriminants: what a node does.
    Thompson,
    /// The arm with the highest expected utility, never exploring.
    Greedy,
    /// Thompson sampling over one mean per arm, blind to the request.
    Blind,
    /// Any arm.
    Random,
    /// Always the arm of this index in the models file.
    Fixed(usize),
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "thompson" => Ok(Self::Thompson),
            "greedy" => Ok(Self::Greedy),
            "blind" => Ok(Self::Blind),
            "random" => Ok(Self::Random),
            other => other
                .strip_prefix("fixed:")
                .and_then(|index| index.parse().ok())
                .map(Self::Fixed)
                .ok_or_else(|| "one of thompson, greedy, blind, random, fixed:ARM".to_owned()),
        }
    }
}

/// What to replay, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The models file of the data set.
    pub models: PathBuf,
    /// Arms that may be chosen, by index; empty = all.
    pub arms: Vec<usize>,
    /// How to choose.
    pub policy: Choice,
    /// Price of the dearest arm's mean cost, in units of quality.
    pub lambda: f64,
    /// Leading dimensions of the embedding that are used, 0 to 16.
    pub dim: usize,
    /// Learn by pairs of words, too.
    pub words: bool,
    /// Seed of all randomness.
    pub seed: u64,
    /// A file to learn from first.
    pub warm: Option<PathBuf>,
    /// Learn from every arm's outcome in that file, not the chosen one's alone.
    pub warm_full: bool,
    /// A router pack to begin with.
    pub pack: Option<PathBuf>,
    /// Learn nothing from the stream.
    pub frozen: bool,
    /// Routers that share what they learn.
    pub nodes: usize,
    /// Own requests of a router between two rounds of sharing; 0 = never.
    pub sync: usize,
    /// Whom a router shares with.
    pub mode: Mode,
}

/// Reads requests from `input` until it ends and writes a choice for each to `output`.
///
/// # Errors
/// Whatever is wrong with the files or a line, with its number.
pub fn run(options: &Options, input: impl BufRead, mut output: impl Write) -> Result<()> {
    let models = Models::read(&options.models, &options.arms)?;
    let mut lines = input.lines().enumerate().map(|(at, line)| (at + 1, line));
    let Some((_, first)) = lines.next() else { return Ok(()) };
    let head: Head = parse(1, &first.context("reading the first line")?)?;
    let mut replay = Replay::new(options, models, &head)?;
    if let Some(path) = &options.warm {
        warm::learn(&mut replay, path, options.warm_full)?;
    }
    let mut served = 0;
    while let Some((at, line)) = lines.next() {
        let line = line.with_context(|| format!("reading line {at}"))?;
        if line.trim().is_empty() {
            continue;
        }
        let request: Request = parse(at, &line)?;
        let node = request.node.unwrap_or(served) % options.nodes;
        let looks = replay.looks(&request.prompt, request.in_tok);
        let choice = replay.choose(node, &looks, request.shadow_ok);
        let answer = Answer {
            id: &request.id,
            arm: replay.models.arms[choice.index].index,
            scores: &choice.scores,
            shadow: &choice.shadow,
        };
        serde_json::to_writer(&mut output, &answer).context("writing an answer")?;
        output.write_all(b"\n").and_then(|()| output.flush()).context("writing an answer")?;
        served += 1;
        let Some((at, line)) = lines.next() else { break };
        let outcome: Outcome = parse(at, &line.with_context(|| format!("reading line {at}"))?)?;
        if outcome.id != request.id {
            bail!("line {at}: the outcome of '{}' where that of '{}' was due", outcome.id, request.id);
        }
        if !options.frozen {
            for (arm, y) in outcome.y.into_iter().flatten() {
                replay.learn(node, arm, &looks, y).with_context(|| format!("line {at}"))?;
            }
        }
        replay.mesh.served(node, &mut replay.rng);
    }
    Ok(())
}

fn parse<'a, T: serde::Deserialize<'a>>(at: usize, line: &'a str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("line {at} is not what was expected"))
}

/// What was chosen for a request.
struct Chosen {
    /// Index into the arms that may be chosen.
    index: usize,
    /// Expected quality of each arm, in their order.
    scores: Vec<f64>,
    /// Further arms whose outcome is asked for, by index in the models file.
    shadow: Vec<usize>,
}

/// The state of a replay.
struct Replay {
    models: Models,
    /// Mean cost of each arm as a share of the dearest one's.
    costs: Vec<f64>,
    policy: Choice,
    lambda: f64,
    dim: usize,
    words: bool,
    frozen: bool,
    mesh: Mesh,
    rng: StdRng,
}

impl Replay {
    fn new(options: &Options, models: Models, head: &Head) -> Result<Self> {
        let costs = models
            .arms
            .iter()
            .map(|arm| match head.mean_cost_uusd.get(&arm.index.to_string()) {
                Some(cost) if cost.is_finite() && *cost >= 0.0 => Ok(*cost),
                Some(cost) => bail!("line 1: mean cost {cost} of arm {}", arm.index),
                None => bail!("line 1: no mean cost of arm {}", arm.index),
            })
            .collect::<Result<Vec<f64>>>()?;
        let dearest = costs.iter().copied().fold(0.0, f64::max);
        let costs = costs.iter().map(|cost| if dearest > 0.0 { cost / dearest } else { 0.0 }).collect();
        if let Choice::Fixed(index) = options.policy {
            models.position(index)?;
        }
        let pack = options.pack.as_deref().map(pack::read).transpose()?.unwrap_or_default();
        Ok(Self {
            mesh: Mesh::new(options.nodes, options.sync, options.mode, pack),
            models,
            costs,
            policy: options.policy,
            lambda: options.lambda,
            dim: options.dim,
            words: options.words,
            frozen: options.frozen,
            rng: StdRng::seed_from_u64(options.seed),
        })
    }

    fn looks(&self, prompt: &str, in_tok: Option<u32>) -> Looks {
        if self.policy == Choice::Blind {
            return Looks::default();
        }
        let looks = Looks::of(prompt, in_tok);
        let words = if self.words { looks.words } else { Words::default() };
        Looks { features: looks.features.truncated(self.dim), words }
    }

    fn choose(&mut self, node: usize, looks: &Looks, shadow_ok: bool) -> Chosen {
        let exploration = match self.policy {
            Choice::Greedy => 0.0,
            _ => Thompson::default().exploration,
        };
        let lambda = self.lambda;
        let (mut index, beliefs) = self.select(node, looks, lambda, exploration);
        match self.policy {
            Choice::Random => index = self.rng.random_range(0..beliefs.len()),
            Choice::Fixed(arm) => index = self.models.position(arm).unwrap_or(index),
            // Where nothing is learnt from the answer there is nothing to explore for.
            _ if self.frozen || self.policy == Choice::Greedy => {
                let worth = |at: &usize| beliefs[*at].mean - lambda * self.costs[*at];
                index =
                    (0..beliefs.len()).rev().max_by(|a, b| worth(a).total_cmp(&worth(b))).unwrap_or(index);
            }
            Choice::Thompson | Choice::Greedy | Choice::Blind => {}
        }
        let mut shadow = Vec::new();
        if shadow_ok && self.rng.random::<f64>() < SHADOW_SHARE {
            // The local arm of which least is known; only devices of the mesh are asked for nothing.
            let least_known = (0..beliefs.len())
                .filter(|at| *at != index && self.models.arms[*at].local)
                .max_by(|a, b| beliefs[*a].deviation.total_cmp(&beliefs[*b].deviation));
            shadow.extend(least_known.map(|at| self.models.arms[at].index));
        }
        Chosen { index, scores: beliefs.iter().map(|belief| belief.mean).collect(), shadow }
    }

    /// Asks the policy, at a price. Returns its choice and what is believed of each arm.
    fn select(&mut self, node: usize, looks: &Looks, lambda: f64, exploration: f64) -> (usize, Vec<Belief>) {
        let posterior: &Posterior = self.mesh.posterior(node);
        let placed = posterior.place(&looks.features, &looks.words);
        let views: Vec<ArmView<'_>> = self
            .models
            .arms
            .iter()
            .zip(&self.costs)
            .map(|(arm, cost)| ArmView {
                arm: &arm.id,
                size: arm.size,
                stats: ALWAYS_ANSWERS,
                answer: posterior.answer(&arm.id, arm.size, &placed),
                cost: MicroUsd(0),
                latency_ms: 0.0,
                penalty: lambda * cost,
            })
            .collect();
        let selection = Thompson { exploration }.select(&views, &mut self.rng);
        (selection.index, views.iter().map(|view| view.answer).collect())
    }

    fn learn(&mut self, node: usize, arm: usize, looks: &Looks, y: f64) -> Result<()> {
        let position = self.models.position(arm)?;
        let score = Score::new(y).map_err(|error| anyhow::anyhow!("outcome of arm {arm}: {error}"))?;
        let arm = &self.models.arms[position];
        self.mesh.learn(node, &arm.id, arm.size, looks, score);
        Ok(())
    }
}

/// Returns the arm and the size class of a model's name.
fn arm_of(name: &str) -> (ArmId, SizeClass) {
    (ArmId::new(name, None), prior::size_class(&ModelSpec::new(name, "replay")))
}
