//! What the benchmarks share: prompts that differ, and the time of single calls.

use std::time::Instant;

/// Different prompts of one size.
pub(crate) const PROMPTS: usize = 64;

/// Calls that are timed.
const CALLS: usize = 20_000;

/// Prints p50 and p99 of single calls.
pub(crate) fn time(name: &str, bytes: usize, mut call: impl FnMut(usize)) {
    (0..CALLS / 10).for_each(&mut call);
    let mut times: Vec<u128> = (0..CALLS)
        .map(|index| {
            let start = Instant::now();
            call(index);
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    let micros = |share: f64| times[(share * (CALLS - 1) as f64) as usize] as f64 / 1e3;
    println!("{name:32} {bytes:>6} B   p50 {:7.1} µs   p99 {:7.1} µs", micros(0.5), micros(0.99));
}

/// Prose and code from this repository, a different piece for each seed.
pub(crate) fn prompt(bytes: usize, seed: usize) -> String {
    const TEXTS: [&str; 4] = [
        include_str!("../../src/lib.rs"),
        include_str!("../../../../docs/api.md"),
        include_str!("../../../../README.md"),
        include_str!("../../src/registry.rs"),
    ];
    let all = TEXTS.concat().repeat(1 + bytes / 20_000);
    let start = all.ceil_char_boundary(seed * 997 % (all.len() - bytes));
    all[start..all.ceil_char_boundary(start + bytes)].to_owned()
}
