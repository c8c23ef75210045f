//! What routing is compared with: rules, an oracle, mixes by lot, and the ceiling of two models.

use super::rows::{Asked, Row, Set};
use super::tally::latency_ms;

/// Words by which a rule takes a prompt for a hard one: those that rule-based routers look for.
const HARD_WORDS: [&str; 24] = [
    "analyze",
    "analyse",
    "prove",
    "proof",
    "derive",
    "calculate",
    "compute",
    "evaluate",
    "compare",
    "explain",
    "step by step",
    "algorithm",
    "function",
    "equation",
    "integral",
    "theorem",
    "probability",
    "diagnosis",
    "patient",
    "treatment",
    "contract",
    "statute",
    "implement",
    "debug",
];

/// Tokens from which a rule takes a prompt for a hard one.
const HARD_TOKENS: u32 = 400;

/// The most that two models can reach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ceiling {
    /// Share of requests to the cloud.
    pub(super) calls: f64,
    /// Accuracy of the local model alone.
    pub(super) local: f64,
    /// Accuracy with every call spent on a request that only the cloud gets right.
    pub(super) most: f64,
    /// Share of calls that an oracle has a use for.
    pub(super) useful: f64,
}

/// Returns the local arm that was right most often in training.
pub(super) fn best_local(set: &Set, train: &[usize]) -> usize {
    let right = |arm: &usize| -> f64 { train.iter().map(|row| set.rows[*row].y[*arm]).sum() };
    let locals = (0..set.arms.len()).filter(|arm| set.arms[*arm].local);
    locals.max_by(|a, b| right(a).total_cmp(&right(b))).unwrap_or(set.cloud)
}

/// The rule: a long prompt, or one with a telling word, is hard.
pub(super) fn looks_hard(row: &Row) -> bool {
    let text = row.prompt.to_lowercase();
    row.in_tok >= HARD_TOKENS || HARD_WORDS.iter().any(|word| text.contains(word))
}

/// Returns the cheapest arm with the best answer to a row; of equally cheap ones the quickest.
pub(super) fn oracle(set: &Set, row: &Row) -> usize {
    let key = |arm: usize| (-row.y[arm], set.bill(row, arm), latency_ms(set, row, arm));
    let by = |a: &usize, b: &usize| {
        let (a, b) = (key(*a), key(*b));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2))
    };
    (0..set.arms.len()).min_by(by).unwrap_or(set.cloud)
}

/// Returns the mix of at most two arms by lot that is right most often among those that cost no more. Chosen in
/// hindsight, with the outcomes of the very requests that it is compared on.
pub(super) fn best_mix(set: &Set, stream: &[Asked], cost: f64) -> Vec<(usize, f64)> {
    let points: Vec<(f64, f64)> = (0..set.arms.len()).map(|arm| point(set, stream, arm)).collect();
    let mut best = (f64::NEG_INFINITY, Vec::new());
    let mut offer = |accuracy: f64, mix: Vec<(usize, f64)>| {
        if accuracy > best.0 {
            best = (accuracy, mix);
        }
    };
    for (low, (cheap, below)) in points.iter().enumerate().filter(|(_, point)| point.0 <= cost) {
        offer(*below, vec![(low, 1.0)]);
        for (high, (dear, above)) in points.iter().enumerate().filter(|(_, point)| point.0 > cost) {
            let share = (cost - cheap) / (dear - cheap);
            offer(below + share * (above - below), vec![(low, 1.0 - share), (high, share)]);
        }
    }
    best.1
}

/// Returns the chances of the local and the cloud arm at which a lot costs what is given.
pub(super) fn lot(set: &Set, stream: &[Asked], local: usize, cost: f64) -> Vec<(usize, f64)> {
    let share = (cost / point(set, stream, set.cloud).0.max(f64::MIN_POSITIVE)).min(1.0);
    vec![(local, 1.0 - share), (set.cloud, share)]
}

/// Returns the mean bill and the accuracy of an arm.
fn point(set: &Set, stream: &[Asked], arm: usize) -> (f64, f64) {
    let requests = stream.len().max(1) as f64;
    let sum = |of: &dyn Fn(&Row) -> f64| stream.iter().map(|asked| of(&set.rows[asked.row])).sum::<f64>();
    (sum(&|row| set.bill(row, arm)) / requests, sum(&|row| row.y[arm]) / requests)
}

/// Returns the most that the best local and the cloud model can reach together at a share of calls, on all rows.
pub(super) fn ceiling(set: &Set, calls: f64) -> Ceiling {
    let everything: Vec<usize> = (0..set.rows.len()).collect();
    let local = best_local(set, &everything);
    let rows = set.rows.len() as f64;
    let alone = set.rows.iter().map(|row| row.y[local]).sum::<f64>() / rows;
    // A call is worth what the cloud's answer is better by; an oracle spends its calls on the most worthy ones.
    let mut gains: Vec<f64> =
        set.rows.iter().map(|row| row.y[set.cloud] - row.y[local]).filter(|gain| *gain > 0.0).collect();
    gains.sort_by(|a, b| b.total_cmp(a));
    let spent = gains.iter().take((calls * rows) as usize).sum::<f64>() / rows;
    Ceiling { calls, local: alone, most: alone + spent, useful: gains.len() as f64 / rows }
}
