//! Seeds in numbers: invariants hold in all, the same seed is the same run, and every deliberate defect is found.

use shoal_sim::{Breakage, Options, run, run_many};

/// Seeds of the fast tier.
const SEEDS: u64 = 100;

/// Routers of a mesh of the fast tier at most: time grows with their square.
const SMALL: usize = 8;

/// Seeds within which a defect must be found.
const FOUND_WITHIN: u64 = 400;

fn small() -> Options {
    Options { most_nodes: SMALL, ..Options::default() }
}

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_invariant_holds_in_every_seed() {
    let (found, requests) = run_many(0, SEEDS, jobs(), 3, &small());
    let complaints: Vec<String> = found.iter().filter_map(|report| report.complaint(&small())).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
    assert!(requests > 50 * SEEDS, "{requests} requests are no load");
}

#[test]
fn the_same_seed_is_the_same_run_to_the_bit() {
    for seed in 0..6 {
        let [first, second] = [run(seed, &small()), run(seed, &small())];
        assert_eq!((first.hash, first.requests), (second.hash, second.requests), "seed {seed}");
    }
    assert_ne!(run(1, &small()).hash, run(2, &small()).hash);
}

#[test]
fn every_deliberate_defect_is_found() {
    for breakage in Breakage::ALL {
        let options = Options { breakage: Some(breakage), ..small() };
        let (found, _) = run_many(0, FOUND_WITHIN, jobs(), 1, &options);
        assert!(!found.is_empty(), "{breakage} stays hidden for {FOUND_WITHIN} seeds");
    }
}
