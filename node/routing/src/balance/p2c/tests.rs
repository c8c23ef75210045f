//! Who is picked, case by case.

use std::time::Duration;

use super::*;
use crate::registry::{ModelSpec, Power, Route};
use crate::testing::{seeded, start};

fn offer(device: &str, slots: u32) -> Arc<Offer> {
    let spec = Arc::new(ModelSpec::new("m", "test"));
    Arc::new(Offer { slots, ..Offer::new(UpstreamId::Device(device.into()), spec) })
}

/// Runs a request on a host that took `ttft_ms`.
fn serve(book: &LoadBook, offer: &Offer, now: Instant, ttft_ms: u64) {
    let mut guard = book.started(&offer.upstream, &offer.model.id, now);
    let end = now + Duration::from_millis(ttft_ms);
    guard.first_token(end);
    guard.finish(end, true);
}

/// Counts how often each device is picked in 1,000 picks that change nothing.
fn shares(offers: &[Arc<Offer>], book: &LoadBook, now: Instant, excluded: &[UpstreamId]) -> Vec<usize> {
    let mut rng = seeded(1);
    let mut counts = vec![0; offers.len()];
    for _ in 0..1_000 {
        let picked = Balancer::default().pick(offers, book, now, &mut rng, excluded).unwrap();
        counts[offers.iter().position(|offer| offer.upstream == picked.upstream).unwrap()] += 1;
    }
    counts
}

#[test]
fn unknown_hosts_share_evenly() {
    let offers = [offer("a", 1), offer("b", 1), offer("c", 1)];
    let counts = shares(&offers, &LoadBook::default(), start(), &[]);
    assert!(counts.iter().all(|count| (280..390).contains(count)), "{counts:?}");
}

#[test]
fn the_faster_of_two_wins_until_it_is_busier_than_it_is_faster() {
    let (offers, book, now) = ([offer("a", 8), offer("b", 8)], LoadBook::default(), start());
    serve(&book, &offers[0], now, 100);
    serve(&book, &offers[1], now, 350);
    let soon = now + Duration::from_millis(400);
    assert_eq!(shares(&offers, &book, soon, &[]), [1_000, 0]);
    let _busy: Vec<_> = (0..4).map(|_| book.started(&offers[0].upstream, &"m".into(), soon)).collect();
    assert_eq!(shares(&offers, &book, soon, &[]), [0, 1_000]);
}

#[test]
fn full_hosts_are_used_only_when_all_are_full() {
    let (offers, book, now) = ([offer("a", 1), offer("b", 1)], LoadBook::default(), start());
    let _first = book.started(&offers[0].upstream, &"m".into(), now);
    assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
    let _second = book.started(&offers[1].upstream, &"m".into(), now);
    assert!(shares(&offers, &book, now, &[]).iter().all(|count| *count > 300));
}

#[test]
fn what_other_routers_run_on_a_device_fills_it_too() {
    let mut busy = offer("a", 2);
    Arc::make_mut(&mut busy).in_flight_reported = 2;
    assert_eq!(shares(&[busy, offer("b", 2)], &LoadBook::default(), start(), &[]), [0, 1_000]);
}

#[test]
fn a_host_that_failed_just_now_gets_nothing_until_its_penalty_ends() {
    let (offers, book, now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
    book.started(&offers[0].upstream, &"m".into(), now).finish(now, false);
    let _busy: Vec<_> = (0..3).map(|_| book.started(&offers[1].upstream, &"m".into(), now)).collect();
    assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
    assert_eq!(shares(&offers, &book, now + Duration::from_secs(1), &[]), [1_000, 0]);
}

#[test]
fn the_last_host_is_used_although_its_breaker_is_open() {
    let (offers, book, now) = ([offer("a", 1), offer("b", 1)], LoadBook::default(), start());
    for _ in 0..5 {
        book.started(&offers[0].upstream, &"m".into(), now).finish(now, false);
    }
    assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
    let excluded = [offers[1].upstream.clone()];
    assert_eq!(shares(&offers, &book, now, &excluded), [1_000, 0]);
}

#[test]
fn of_equals_the_one_without_a_detour_is_used() {
    let (mut far, near, book, now) = (offer("a", 4), offer("b", 4), LoadBook::default(), start());
    Arc::make_mut(&mut far).routes = vec![Route::Via("n2".into())];
    let offers = [far, near];
    assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
    let _busy = book.started(&offers[1].upstream, &"m".into(), now);
    assert_eq!(shares(&offers, &book, now, &[]), [1_000, 0]);
}

#[test]
fn nothing_is_picked_when_all_are_excluded() {
    let offers = [offer("a", 1)];
    let excluded = [offers[0].upstream.clone()];
    let picked = Balancer::default().pick(&offers, &LoadBook::default(), start(), &mut seeded(1), &excluded);
    assert!(picked.is_none());
}

#[test]
fn a_host_that_was_slow_long_ago_is_asked_again() {
    let (offers, book, now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
    serve(&book, &offers[1], now, 1_000);
    let later = now + Duration::from_secs(900);
    serve(&book, &offers[0], later, 100);
    let soon = later + Duration::from_millis(100);
    assert_eq!(shares(&offers, &book, soon, &[])[1], 1_000);
    assert_eq!(shares(&offers, &book, now + Duration::from_secs(2), &[])[1], 0);
}

/// Runs a streamed request of a known prompt: `read_ms` to the first token, `token_ms` for each of ten more.
fn stream(book: &LoadBook, offer: &Offer, at: Instant, prompt: u32, read_ms: u64, token_ms: u64) {
    let mut guard = book.begin(offer, work(prompt), at);
    for step in 0..=10 {
        guard.token(at + Duration::from_millis(read_ms + token_ms * step));
    }
    guard.finish(at + Duration::from_millis(read_ms + token_ms * 10), true);
}

fn work(prompt: u32) -> Work {
    Work { prompt: Tokens(prompt), ..Work::UNKNOWN }
}

fn shares_of(balancer: Balancer, offers: &[Arc<Offer>], book: &LoadBook, now: Instant) -> Vec<usize> {
    let mut rng = seeded(1);
    let mut counts = vec![0; offers.len()];
    for _ in 0..200 {
        let picked = balancer.pick(offers, book, now, &mut rng, &[]).unwrap();
        counts[offers.iter().position(|offer| offer.upstream == picked.upstream).unwrap()] += 1;
    }
    counts
}

/// Two hosts: `a` reads ten times as fast as `b`, and writes half as fast.
fn reader_and_writer(slots: u32) -> ([Arc<Offer>; 2], LoadBook, Instant) {
    let (offers, book, mut now) = ([offer("a", slots), offer("b", slots)], LoadBook::default(), start());
    for round in 0..20u32 {
        let prompt = 100 + 200 * round;
        stream(&book, &offers[0], now, prompt, u64::from(prompt) / 10, 20);
        stream(&book, &offers[1], now, prompt, u64::from(prompt), 10);
        now += Duration::from_secs(10);
    }
    (offers, book, now)
}

#[test]
fn a_long_prompt_goes_where_reading_is_fast_and_a_short_one_where_writing_is() {
    let (offers, book, now) = reader_and_writer(4);
    assert_eq!(shares_of(Balancer::for_work(work(8_000)), &offers, &book, now), [200, 0]);
    assert_eq!(shares_of(Balancer::for_work(work(50)), &offers, &book, now), [0, 200]);
}

#[test]
fn the_forecast_is_the_sum_of_its_parts() {
    let (offers, book, now) = reader_and_writer(1);
    let forecast =
        |offer: &Offer| Balancer::for_work(work(2_000)).forecast(offer, &book.of(offer, now)).unwrap();
    let idle = forecast(&offers[0]);
    assert!((idle.prefill_ms - 200.0).abs() < 20.0, "{idle:?}");
    assert!((idle.decode_ms - 256.0 * 20.0).abs() < 256.0, "{idle:?}");
    assert_eq!((idle.queue_ms, idle.load_ms), (0.0, 0.0));
    // The one slot is taken by a request that was just predicted: waiting for it takes that long.
    let _running = book.begin(&offers[0], work(2_000), now);
    let queued = forecast(&offers[0]);
    assert!((queued.queue_ms - idle.total_ms()).abs() < 1.0, "{queued:?}");
    let mut cold = offers[0].clone();
    Arc::make_mut(&mut cold).resident = Some(false);
    assert!(forecast(&cold).load_ms >= 1_000.0);
}

#[test]
fn a_request_waits_for_a_quick_host_rather_than_go_to_a_slow_one_if_it_may() {
    let (offers, book, now) = ([offer("a", 1), offer("b", 1)], LoadBook::default(), start());
    stream(&book, &offers[0], now, 500, 100, 10);
    stream(&book, &offers[1], now, 500, 1_000, 100);
    let soon = now + Duration::from_secs(3);
    let _running = book.begin(&offers[0], work(500), soon);
    let balancer = Balancer::for_work(work(500));
    assert_eq!(shares_of(balancer.that_waits(), &offers, &book, soon), [200, 0]);
    assert_eq!(shares_of(balancer, &offers, &book, soon), [0, 200]);
}

#[test]
fn of_equals_the_better_condition_wins() {
    type Change = fn(&mut Offer);
    let worse: [(&str, Change); 6] = [
        ("cold", |offer| offer.resident = Some(false)),
        ("on battery", |offer| offer.power = Power::Battery(80)),
        ("charging", |offer| offer.power = Power::Charging),
        ("throttled", |offer| offer.throttled = true),
        ("short of cache", |offer| offer.kv_use = Some(0.97)),
        ("busy", |offer| offer.in_flight_reported = 1),
    ];
    for (what, change) in worse {
        let (mut offers, book, now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
        for offer in &offers {
            stream(&book, offer, now, 500, 100, 10);
        }
        Arc::make_mut(&mut offers[0]).power = Power::Mains;
        let even = shares_of(Balancer::for_work(work(500)), &offers, &book, now);
        assert!(even.iter().all(|share| *share > 50), "{what}: {even:?}");
        // Well beyond what chance decides: the better one is drawn, or cheaper.
        change(Arc::make_mut(&mut offers[0]));
        let shares = shares_of(Balancer::for_work(work(500)), &offers, &book, now);
        assert!(shares[1] >= 150, "{what}: {shares:?}");
    }
}

#[test]
fn a_session_stays_with_its_host_until_that_hurts() {
    let (offers, book, now) = ([0, 1, 2].map(|n| offer(&n.to_string(), 2)), LoadBook::default(), start());
    for offer in &offers {
        stream(&book, offer, now, 500, 100, 10);
    }
    let go = |session: u64| {
        shares_of(Balancer::for_work(work(500)).with_session(Some(session)), &offers, &book, now)
    };
    let mut homes = [0; 3];
    for session in 0..60 {
        let shares = go(session);
        let home = shares.iter().position(|share| *share == 200).expect("always the same host");
        homes[home] += 1;
    }
    assert!(homes.iter().all(|sessions| *sessions > 8), "{homes:?}");
    let home = go(7).iter().position(|share| *share == 200).unwrap();
    let _crowd: Vec<_> = (0..2).map(|_| book.begin(&offers[home], work(500), now)).collect();
    assert_eq!(go(7)[home], 0, "its host is full");
}

#[test]
fn a_host_of_unknown_capacity_is_left_alone_above_its_learnt_limit() {
    let (offers, book, now) = ([offer("a", 0), offer("b", 0)], LoadBook::default(), start());
    stream(&book, &offers[0], now, 500, 10, 1);
    stream(&book, &offers[1], now, 500, 100, 10);
    let busy: Vec<_> = (0..4).map(|_| book.begin(&offers[0], work(1), now)).collect();
    assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [200, 0]);
    book.refused(&offers[0], now);
    assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [0, 200]);
    drop(busy);
    assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [200, 0]);
}

#[test]
fn a_host_that_often_fails_costs_more_than_its_time() {
    let (offers, book, mut now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
    for round in 0..30 {
        stream(&book, &offers[0], now, 500, 100, 10);
        stream(&book, &offers[1], now, 500, 120, 12);
        if round % 3 == 0 {
            book.begin(&offers[0], work(500), now).finish(now, false);
        }
        now += Duration::from_secs(40);
    }
    assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [0, 200]);
}
