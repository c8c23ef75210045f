//! The bar of balancing: close to perfect knowledge, ahead of every rival, on each trace; and runs that repeat.

use std::path::Path;

use shoal_loadtest::balance::{self, Options, Row, TRACES, policy::Policy};

fn options(seed: u64) -> Options {
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").join("data/traces");
    Options { traces, seeds: 3, seed, requests: 1_200, loads: vec![0.7] }
}

#[test]
fn the_99th_percentile_is_near_that_of_perfect_knowledge_and_ahead_of_every_rival() {
    let report = balance::play(&options(100)).expect("the traces are in the repository");
    let row = |trace: &str, policy: Policy| -> &Row {
        report
            .rows
            .iter()
            .find(|row| row.trace == trace && row.policy == policy)
            .expect("every policy is played")
    };
    for trace in TRACES {
        let ours = row(trace, Policy::Ours);
        assert!(ours.against_perfect[0] <= 1.3, "{ours:?}");
        assert!(ours.cut + ours.failed < 0.01, "{ours:?}");
        for rival in [Policy::TwoChoices, Policy::LeastConnections, Policy::RoundRobin, Policy::Random] {
            let rival = row(trace, rival);
            // The median may go to who spends the best devices on the short requests of this moment.
            assert!(ours.percentiles_s[0] <= 1.1 * rival.percentiles_s[0], "{ours:?} {rival:?}");
            assert!(ours.percentiles_s[1] < rival.percentiles_s[1], "{ours:?} {rival:?}");
            assert!(ours.percentiles_s[2] < 0.7 * rival.percentiles_s[2], "{ours:?} {rival:?}");
            assert!(ours.cut + ours.failed <= rival.cut + rival.failed, "{ours:?} {rival:?}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_tables_and_others_do_not() {
    let table = |seed| {
        let small = Options { seeds: 1, requests: 150, ..options(seed) };
        balance::play(&small).expect("the traces are in the repository").to_string()
    };
    assert_eq!(table(1), table(1));
    assert_ne!(table(1), table(2));
}
