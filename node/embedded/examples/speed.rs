//! Measures loading, prefill and decoding of a model file.
//!
//! `cargo run --release -p shoal-embedded --example speed -- MODEL.gguf [auto|never|q4_0|q8_0]`

#![allow(clippy::print_stdout, reason = "prints its measurements")]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use shoal_embedded::{ChatMessage, Engine, GenerateRequest, LoadOptions, Requantize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a model file")?;
    let requantize = match arguments.next().as_deref() {
        Some("never") => Requantize::Never,
        Some("q4_0") => Requantize::Q4_0,
        Some("q8_0") => Requantize::Q8_0,
        _ => Requantize::Auto,
    };
    let start = Instant::now();
    let engine = Engine::load(Path::new(&path), &LoadOptions { requantize, ..LoadOptions::default() })?;
    println!("{:?}\nloaded in {:.2} s", engine.info(), start.elapsed().as_secs_f64());
    let question = ChatMessage::new("user", "Explain in three sentences why the sky is blue.");
    let short = engine.render_chat(&[question], None)?;
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(50);
    for (name, prompt, max_tokens) in [("short", short, 128), ("long", long, 64)] {
        let request = GenerateRequest { prompt, max_tokens, temperature: 0.0, ..GenerateRequest::default() };
        let mut text = String::new();
        let mut logprobs = 0.0;
        let finished = engine.generate(&request, &|| false, &mut |token| {
            text += &token.text;
            logprobs += token.logprob;
            ControlFlow::Continue(())
        })?;
        println!(
            "{name}: prompt {} tokens at {:.1}/s, answer {} tokens at {:.1}/s, mean logprob {:.4}\n{text}\n",
            finished.prompt_tokens,
            finished.prompt_tokens as f64 / finished.prefill_ms * 1e3,
            finished.completion_tokens,
            finished.completion_tokens as f64 / finished.decode_ms * 1e3,
            logprobs / finished.completion_tokens as f32,
        );
    }
    Ok(())
}
