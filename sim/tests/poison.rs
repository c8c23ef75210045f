//! What a liar with a valid certificate costs the others: `shoal-sim --poison` in small.

use shoal_sim::poison;

/// Seeds of the fast tier; `--poison` over a thousand is the measurement, this finds a bound that is gone.
const SEEDS: u64 = 10;

/// How much more regret the fast tier allows: so few seeds differ by chance, and an unbounded liar costs ten times as
/// much.
const MORE: f64 = 1.5;

#[test]
fn a_router_that_praises_the_worst_model_is_not_followed() {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let found = poison::compare(0, SEEDS, jobs);
    assert!(found.clean > 0.0 && found.silent > 0.0, "{found}");
    assert!(found.poisoned <= MORE * found.clean, "{found}");
    assert!(found.bare <= MORE * found.silent, "{found}");
}
