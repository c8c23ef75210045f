//! Sets of public outcomes, and how they are split: a random fifth and whole domains are kept from training.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use shoal_routing::{MicroUsd, Price};

use crate::replay::models::{Arm, Models};

/// Domains that training never sees.
const DOMAINS_OUT: usize = 3;

/// Share of the other domains' rows that is kept from training too.
const HELD: f64 = 0.2;

/// Share of requests whose data must not leave the devices.
const RESTRICTED: f64 = 0.05;

/// One prompt with every model's outcome.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) domain: String,
    pub(super) prompt: String,
    pub(super) in_tok: u32,
    pub(super) out_tok: Vec<u32>,
    /// Score of each model's answer, 0 to 1.
    pub(super) y: Vec<f64>,
    /// What each model's answer cost, millionths of a US dollar.
    cost_uusd: Vec<f64>,
}

/// A set of outcomes with its models.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) arms: Vec<Arm>,
    /// What a provider charges for each arm, as the set's costs imply; `None` for a model on a device.
    pub(super) prices: Vec<Option<Price>>,
    /// The arm that "cloud" means.
    pub(super) cloud: usize,
    pub(super) rows: Vec<Row>,
}

/// A request of the counted part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Index into the set's rows.
    pub(super) row: usize,
    pub(super) restricted: bool,
    /// Its domain is missing from the training part.
    pub(super) unseen: bool,
}

/// Rows to learn from, and requests that count.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) train: Vec<usize>,
    pub(super) stream: Vec<Asked>,
}

impl Set {
    pub(super) fn read(folder: &Path, file: &str, name: &str) -> Result<Self> {
        let arms = Models::read(&folder.join(format!("{file}.models.json")), &[])?.arms;
        let path = folder.join(format!("{file}.jsonl.gz"));
        let packed = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut rows: Vec<Row> = Vec::new();
        for (at, line) in BufReader::new(GzDecoder::new(packed)).lines().enumerate() {
            let place = || format!("{} line {}", path.display(), at + 1);
            let row: Row = serde_json::from_str(&line.with_context(place)?).with_context(place)?;
            let lengths = [row.y.len(), row.cost_uusd.len(), row.out_tok.len()];
            ensure!(lengths == [arms.len(); 3], "{}: {lengths:?} for {} models", place(), arms.len());
            rows.push(row);
        }
        ensure!(!rows.is_empty(), "{} is empty", path.display());
        let cloud = arms.iter().position(|arm| arm.cloud && !arm.local);
        let cloud = cloud.with_context(|| format!("the models of {file} name none in the cloud"))?;
        ensure!(arms.iter().any(|arm| arm.local), "the models of {file} name none on devices");
        let price = |arm: &Arm| (!arm.local).then(|| implied_price(&rows, arm.index));
        let prices = arms.iter().map(price).collect();
        Ok(Self { name: name.to_owned(), arms, prices, cloud, rows })
    }

    /// Returns what providers bill for an answer of an arm, millionths of a US dollar: nothing for own devices.
    pub(super) fn bill(&self, row: &Row, arm: usize) -> f64 {
        if self.arms[arm].local { 0.0 } else { row.cost_uusd[arm] }
    }

    /// Deals the rows out and marks the restricted requests, all by the seed.
    pub(super) fn split(&self, seed: u64) -> Split {
        let mut rng = StdRng::seed_from_u64(seed);
        let domains: BTreeSet<&str> = self.rows.iter().map(|row| row.domain.as_str()).collect();
        let mut domains: Vec<&str> = domains.into_iter().collect();
        domains.shuffle(&mut rng);
        let unseen = &domains[..DOMAINS_OUT.min(domains.len() / 2)];
        let (mut train, mut stream) = (Vec::new(), Vec::new());
        for (index, row) in self.rows.iter().enumerate() {
            let unseen = unseen.contains(&row.domain.as_str());
            if unseen || rng.random::<f64>() < HELD {
                stream.push(Asked { row: index, restricted: rng.random::<f64>() < RESTRICTED, unseen });
            } else {
                train.push(index);
            }
        }
        train.shuffle(&mut rng);
        stream.shuffle(&mut rng);
        Split { train, stream }
    }
}

/// Returns the price per token that a set's costs imply, by least squares over the tokens in and out.
fn implied_price(rows: &[Row], arm: usize) -> Price {
    let (mut ii, mut io, mut oo, mut ic, mut oc) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for row in rows {
        let (input, output, cost) = (f64::from(row.in_tok), f64::from(row.out_tok[arm]), row.cost_uusd[arm]);
        ii += input * input;
        io += input * output;
        oo += output * output;
        ic += input * cost;
        oc += output * cost;
    }
    let determinant = ii * oo - io * io;
    let (input, output) = if determinant > 1e-9 * ii * oo {
        ((ic * oo - oc * io) / determinant, (oc * ii - ic * io) / determinant)
    } else {
        (ic / ii.max(1.0), 0.0)
    };
    // A micro-dollar a token is a dollar a million.
    let per_million = |micro_usd: f64| MicroUsd((micro_usd.max(0.0) * 1e3).round() as u64 * 1_000);
    Price { input_per_million: per_million(input), output_per_million: per_million(output) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_read_off_the_costs() {
        let row = |in_tok, out_tok: u32| Row {
            domain: String::new(),
            prompt: String::new(),
            in_tok,
            out_tok: vec![out_tok],
            y: vec![1.0],
            cost_uusd: vec![1.25 * f64::from(in_tok) + 5.0 * f64::from(out_tok)],
        };
        let price = implied_price(&[row(100, 20), row(40, 90), row(700, 3)], 0);
        assert_eq!(price.input_per_million, MicroUsd(1_250_000));
        assert_eq!(price.output_per_million, MicroUsd(5_000_000));
        let constant = implied_price(&[row(100, 0), row(40, 0)], 0);
        assert_eq!(
            (constant.input_per_million, constant.output_per_million),
            (MicroUsd(1_250_000), MicroUsd(0))
        );
    }
}
