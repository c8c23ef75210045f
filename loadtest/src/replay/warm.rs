//! Learning from a file before the stream: one pass, the chosen arm's outcome only.
//!
//! Nobody waits for these answers, so each row is chosen for at a price of its own, drawn over two and a half decades:
//! what is learnt then serves whoever weighs cost little or much. The posterior is refitted every few rows, as a node
//! does that learns in batches.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::Deserialize;

use super::Replay;
use super::lines::Looks;

/// Rows between two fits.
const BATCH: usize = 16;

/// Decimal logarithm of the lowest and highest price.
const PRICES: (f64, f64) = (-2.0, 0.3);

/// Factor on the posterior's deviation: bolder than in service, since nothing is at stake.
const EXPLORATION: f64 = 1.0;

#[derive(Deserialize)]
struct Row {
    prompt: String,
    in_tok: Option<u32>,
    y: Vec<f64>,
}

/// Learns from every row of a file, in an order drawn from the seed.
pub(super) fn learn(replay: &mut Replay, path: &Path, full: bool) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut rows: Vec<(Looks, Vec<f64>)> = Vec::new();
    let widest = replay.models.arms.iter().map(|arm| arm.index).max().unwrap_or_default();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{} line {}", path.display(), at + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&line).with_context(place)?;
        if row.y.len() <= widest {
            bail!("{}: {} outcomes, but arm {widest} may be chosen", place(), row.y.len());
        }
        rows.push((replay.looks(&row.prompt, row.in_tok), row.y));
    }
    rows.shuffle(&mut replay.rng);
    // The rows are dealt to the routers as requests would be.
    let nodes = replay.mesh.nodes();
    for (number, batch) in rows.chunks(BATCH).enumerate() {
        let node = |at: usize| (number * BATCH + at) % nodes;
        let chosen: Vec<BTreeSet<usize>> = batch
            .iter()
            .enumerate()
            .map(|(at, (looks, _))| {
                if full {
                    return (0..replay.models.arms.len()).collect();
                }
                let price = 10f64.powf(replay.rng.random_range(PRICES.0..PRICES.1));
                BTreeSet::from([replay.select(node(at), looks, price, EXPLORATION).0])
            })
            .collect();
        for (at, ((looks, y), chosen)) in batch.iter().zip(chosen).enumerate() {
            for position in chosen {
                let arm = replay.models.arms[position].index;
                replay
                    .learn(node(at), arm, looks, y[arm])
                    .with_context(|| format!("in {}", path.display()))?;
            }
            replay.mesh.served(node(at), &mut replay.rng);
        }
    }
    replay.mesh.share_all();
    Ok(())
}
