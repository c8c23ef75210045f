//! `shoal-sim`: runs seeds, or one of them with everything that happens in it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use shoal_sim::{Breakage, Options, poison, run, run_many};

/// Whole meshes in seeded virtual time: routing and membership under faults.
#[derive(Debug, Parser)]
#[command(name = "shoal-sim", version)]
struct Args {
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["from", "seeds"])]
    seed: Option<u64>,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// Threads; by default as many as there are processors.
    #[arg(long)]
    jobs: Option<usize>,
    /// Stop after so many violations.
    #[arg(long, default_value_t = 5)]
    stop_after: usize,
    /// Print all that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Carry a deliberate defect, to see it found.
    #[arg(long = "break", value_name = "NAME")]
    breakage: Option<Breakage>,
    /// Most routers of a mesh, at least 3; 0 = 100.
    #[arg(long, default_value_t = 0)]
    most_nodes: usize,
    /// Instead of meshes: what a router that lies about the worst model costs the others, over so many seeds.
    #[arg(long)]
    poison: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = std::io::stdout().lock();
    let options = Options { breakage: args.breakage, trace: args.trace, most_nodes: args.most_nodes };
    let started = Instant::now();
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if args.poison {
        let found = poison::compare(args.from, args.seeds, jobs);
        let _ = writeln!(out, "{found} in {:.1} s", started.elapsed().as_secs_f64());
        return if found.is_bounded() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let Some(seed) = args.seed {
        let report = run(seed, &options);
        for line in &report.lines {
            let _ = writeln!(out, "{line}");
        }
        let (nodes, requests, hash) = (report.nodes, report.requests, report.hash);
        let _ = writeln!(out, "seed {seed}: {nodes} routers, {requests} requests, trace {hash:016x}");
        return match report.complaint(&options) {
            Some(complaint) => {
                let _ = writeln!(out, "{complaint}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        };
    }
    let (found, requests) = run_many(args.from, args.seeds, jobs, args.stop_after, &options);
    for report in &found {
        let _ = writeln!(out, "{}", report.complaint(&options).unwrap_or_default());
    }
    let (seeds, took) = (args.seeds, started.elapsed().as_secs_f64());
    let _ = writeln!(out, "{} violations in {seeds} seeds, {requests} requests, {took:.1} s", found.len());
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
