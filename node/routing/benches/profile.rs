//! What the profile of a request costs: `cargo bench -p shoal-routing --bench profile`.
//!
//! Prints p50 and p99 of single calls over prompts that differ, so that neither branch prediction nor caches know the
//! text. The bars are those of the whole decision (profile, policy and balance): 15 and 60 µs at 200 bytes, 100 and
//! 250 µs at 32 KiB; the profile may take two thirds.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and prints")]

use std::hint::black_box;
use std::time::Instant;

use shoal_routing::{
    DataClass, Embedding, Message, MessageRole, Mode, ModelChoice, Needs, Preference, Request,
    RequestProfile, Tokens, domain, tokens,
};

/// Different prompts of one size.
const PROMPTS: usize = 64;

/// Calls that are timed.
const CALLS: usize = 20_000;

fn main() {
    for bytes in [200, 1_000, 4_000, 32 * 1024] {
        let prompts: Vec<String> = (0..PROMPTS).map(|seed| prompt(bytes, seed)).collect();
        let requests: Vec<Request<'_>> = prompts.iter().map(|text| request(text)).collect();
        time("profile", bytes, |call| {
            black_box(RequestProfile::of(black_box(&requests[call % PROMPTS])));
        });
        time("  tokens", bytes, |call| {
            black_box(tokens::estimate_messages(black_box(&requests[call % PROMPTS].messages)));
        });
        let texts: Vec<&str> = prompts.iter().map(|text| &text[..text.len().min(1_024)]).collect();
        time("  embedding of up to 1 KiB", bytes, |call| {
            black_box(Embedding::of(black_box(texts[call % PROMPTS])));
        });
        time("  embedding and reading of it", bytes, |call| {
            black_box(domain::inputs(black_box(texts[call % PROMPTS])));
        });
    }
}

fn time(name: &str, bytes: usize, mut call: impl FnMut(usize)) {
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
fn prompt(bytes: usize, seed: usize) -> String {
    const TEXTS: [&str; 4] = [
        include_str!("../src/lib.rs"),
        include_str!("../../../docs/api.md"),
        include_str!("../../../README.md"),
        include_str!("../src/registry.rs"),
    ];
    let all = TEXTS.concat().repeat(1 + bytes / 20_000);
    let start = all.ceil_char_boundary(seed * 997 % (all.len() - bytes));
    all[start..all.ceil_char_boundary(start + bytes)].to_owned()
}

fn request(text: &str) -> Request<'_> {
    Request {
        messages: vec![Message { role: MessageRole::User, text: text.into() }],
        max_output: Some(Tokens(256)),
        needs: Needs::default(),
        stream: true,
        choice: ModelChoice::Auto(Preference::Balanced),
        mode: Mode::Auto,
        preference: Preference::Balanced,
        data_class: DataClass::Internal,
        hop: 0,
        max_local_tokens: None,
        time_limit: None,
    }
}
