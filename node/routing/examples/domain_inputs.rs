//! Prints the inputs of the domain classifier for prompts on standard input, parted by U+001E: what
//! `scripts/train_domain.py` trains on, computed by the code that production runs.

use std::io::{Read, Write};

fn main() -> std::io::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for prompt in text.split('\u{1e}') {
        let values = shoal_routing::domain::inputs(prompt).map(|value| value.to_string());
        writeln!(out, "{}", values.join(" "))?;
    }
    Ok(())
}
