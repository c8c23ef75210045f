//! The balancer against six unequal hosts in virtual time: one ten times slow, one that fails at once.
//!
//! Requests arrive at random, run for a while and end; nothing sleeps and nothing reads a clock, so half an hour
//! of traffic takes a moment and each seed gives the same run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::{Balancer, InFlight, LoadBook, ModelSpec, Offer, Tokens, UpstreamId};

const TOKENS: u32 = 50;
const HOSTS: usize = 6;
const SLOW: usize = 4;
const FAILING: usize = 5;
/// Requests of the first minute do not count.
const WARM_UP: Duration = Duration::from_secs(60);

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; tests only look at differences"
)]
fn start() -> Instant {
    Instant::now()
}

/// Time to first token and per token of each host.
fn speed(host: usize) -> (Duration, Duration) {
    let ms = |ttft, token| (Duration::from_millis(ttft), Duration::from_millis(token));
    [ms(100, 10), ms(120, 12), ms(150, 9), ms(200, 15), ms(1_500, 120), ms(1, 0)][host]
}

struct Running {
    guard: InFlight,
    host: usize,
    first_token: Instant,
}

/// Returns each host's share of the requests after warm-up, and the mean time to completion in seconds.
fn simulate(seed: u64, arrivals_per_s: f64, run: Duration) -> ([f64; HOSTS], f64) {
    let (origin, book, mut rng) = (start(), LoadBook::new(seed), StdRng::seed_from_u64(seed));
    let spec = Arc::new(ModelSpec::new("m", "sim"));
    let offers: Vec<Arc<Offer>> = (0..HOSTS)
        .map(|host| {
            let upstream = UpstreamId::Device(host.to_string().into());
            Arc::new(Offer { slots: 4, ..Offer::new(upstream, spec.clone()) })
        })
        .collect();
    let balancer = Balancer::for_output(Tokens(TOKENS));
    let mut running: BTreeMap<(Instant, u64), Running> = BTreeMap::new();
    let (mut counts, mut seconds) = ([0u32; HOSTS], 0.0);
    let (mut now, mut arrival) = (origin, 0u64);
    while now < origin + run {
        now += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() / arrivals_per_s);
        while let Some(entry) = running.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((end, _), done) = entry.remove_entry();
            let mut guard = done.guard;
            if done.host == FAILING {
                guard.finish(end, false);
                continue;
            }
            let (_, per_token) = speed(done.host);
            for token in 0..TOKENS {
                guard.token(done.first_token + per_token * token);
            }
            guard.finish(end, true);
        }
        let picked = balancer.pick(&offers, &book, now, &mut rng, &[]).expect("nothing is excluded");
        let host = offers.iter().position(|offer| Arc::ptr_eq(offer, &picked)).expect("it is one of them");
        let noise = rng.random_range(0.8..1.2);
        let (ttft, per_token) = speed(host);
        let first_token = now + ttft.mul_f64(noise);
        let end = first_token + per_token * (TOKENS - 1);
        if now >= origin + WARM_UP {
            counts[host] += 1;
            seconds += (end - now).as_secs_f64();
        }
        let guard = book.started(&picked.upstream, &spec.id, now);
        running.insert((end, arrival), Running { guard, host, first_token });
        arrival += 1;
    }
    drop(running);
    for offer in &offers {
        assert_eq!(book.in_flight(&offer.upstream), 0);
    }
    let total = f64::from(counts.iter().sum::<u32>());
    (counts.map(|count| f64::from(count) / total), seconds / total)
}

#[test]
fn the_slow_host_gets_little_and_the_failing_one_almost_nothing() {
    for seed in 0..10 {
        for arrivals_per_s in [2.0, 10.0] {
            let (shares, _) = simulate(seed, arrivals_per_s, Duration::from_secs(1_800));
            assert!(shares[SLOW] < 0.05, "seed {seed}, {arrivals_per_s}/s: {shares:?}");
            assert!(shares[FAILING] < 0.02, "seed {seed}, {arrivals_per_s}/s: {shares:?}");
            if arrivals_per_s > 5.0 {
                // More than the two quickest take: the others must help.
                assert!(shares[..SLOW].iter().all(|share| *share > 0.05), "seed {seed}: {shares:?}");
            }
        }
    }
}

#[test]
fn requests_finish_much_sooner_than_by_taking_turns() {
    // Taking turns over the five hosts that answer: the mean of their times, 2.04 s.
    let (_, mean_s) = simulate(1, 5.0, Duration::from_secs(600));
    assert!(mean_s < 1.0, "{mean_s}");
}
