//! Arrivals of a public trace: when, how long the prompt, how long the answer.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;

/// Longest trace that is read, unpacked.
const MAX_BYTES: u64 = 64 << 20;

/// One request of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Seconds after the first.
    pub at: f64,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the answer, at least 1.
    pub output: u32,
}

/// Reads a gzipped trace: a head `t_ms,in_tok,out_tok`, then one request a line, in order of time.
///
/// # Errors
/// When the file cannot be read, or a line is none of that.
pub fn read(path: &Path) -> Result<Vec<Arrival>> {
    let unpack = || {
        let mut text = String::new();
        GzDecoder::new(File::open(path)?).take(MAX_BYTES).read_to_string(&mut text)?;
        parse(&text)
    };
    unpack().with_context(|| format!("reading {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Arrival>> {
    let mut lines = text.lines().enumerate();
    let head = lines.next().map(|(_, head)| head);
    ensure!(head == Some("t_ms,in_tok,out_tok"), "the head is not t_ms,in_tok,out_tok");
    let mut arrivals: Vec<Arrival> = Vec::new();
    for (at, line) in lines {
        let fields: Vec<u64> = line.split(',').map_while(|field| field.trim().parse().ok()).collect();
        let [t_ms, prompt, output] = fields[..] else { bail!("line {}: not three numbers", at + 1) };
        let narrow = |n: u64| u32::try_from(n).with_context(|| format!("line {}: a count too large", at + 1));
        let arrival =
            Arrival { at: t_ms as f64 / 1e3, prompt: narrow(prompt)?, output: narrow(output)?.max(1) };
        ensure!(arrivals.last().is_none_or(|last| last.at <= arrival.at), "line {}: back in time", at + 1);
        arrivals.push(arrival);
    }
    ensure!(arrivals.len() > 1, "fewer than two requests");
    Ok(arrivals)
}

/// Takes `count` requests from the one at `offset` on, and stretches time so that `per_s` arrive a second on average:
/// the bursts of the trace stay as they are, in requests.
pub fn window(trace: &[Arrival], offset: usize, count: usize, per_s: f64) -> Vec<Arrival> {
    let count = count.min(trace.len());
    let offset = offset.min(trace.len() - count);
    let taken = &trace[offset..offset + count];
    let (Some(first), Some(last)) = (taken.first(), taken.last()) else { return Vec::new() };
    let stretch = count as f64 / per_s / (last.at - first.at).max(1e-3);
    taken.iter().map(|arrival| Arrival { at: (arrival.at - first.at) * stretch, ..*arrival }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_keeps_the_order_and_gets_the_rate() {
        let trace = parse("t_ms,in_tok,out_tok\n0,10,0\n1000,20,5\n1500,30,6\n9000,40,7\n").unwrap();
        assert_eq!(trace[0], Arrival { at: 0.0, prompt: 10, output: 1 });
        let taken = window(&trace, 1, 3, 0.5);
        assert_eq!(taken.iter().map(|arrival| arrival.prompt).collect::<Vec<_>>(), [20, 30, 40]);
        assert!((taken[2].at - 6.0).abs() < 1e-9 && (taken[1].at - 0.375).abs() < 1e-9, "{taken:?}");
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for text in ["", "a,b\n", "t_ms,in_tok,out_tok\n1,2\n1,2,3\n", "t_ms,in_tok,out_tok\n5,1,1\n4,1,1\n"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
