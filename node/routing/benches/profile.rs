//! What the profile of a request costs: `cargo bench -p shoal-routing --bench profile`.
//!
//! Prints p50 and p99 of single calls over prompts that differ, so that neither branch prediction nor caches know the
//! text. The bars are those of the whole decision (profile, policy and balance): 15 and 60 µs at 200 bytes, 100 and
//! 250 µs at 32 KiB; the profile may take two thirds.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and prints")]

mod common;

use std::hint::black_box;

use common::{PROMPTS, prompt, time};
use shoal_routing::{Embedding, Request, RequestProfile, Tokens, domain, tokens};

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

fn request(text: &str) -> Request<'_> {
    Request { max_output: Some(Tokens(256)), stream: true, ..Request::of_text(text) }
}
