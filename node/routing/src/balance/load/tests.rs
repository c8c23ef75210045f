//! The book and its guards, in virtual time.

use super::*;
use crate::testing::start;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn device(name: &str) -> UpstreamId {
    UpstreamId::Device(name.into())
}

#[test]
fn a_finished_request_leaves_its_times_and_frees_its_slot() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let mut guard = book.started(&a, &model, now);
    assert_eq!(book.in_flight(&a), 1);
    for step in 0..=10 {
        guard.token(now + ms(200 + 30 * step));
    }
    assert_eq!(guard.ttft(), Some(ms(200)));
    guard.finish(now + ms(600), true);
    let load = book.load(&a, &model, now + ms(700));
    assert_eq!((load.in_flight, load.ttft_ms, load.age), (0, Some(200.0), Some(ms(500))));
    assert!((load.ms_per_token.unwrap() - 30.0).abs() < 1e-9);
    assert!(!load.penalised && load.admits);
}

#[test]
fn an_answer_in_one_piece_does_not_pass_for_a_slow_first_token() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let whole = |at: Instant| {
        let mut guard = book.started(&a, &model, at);
        guard.whole_answer(at + ms(5_000), Tokens(100));
        guard.finish(at + ms(5_000), true);
        book.load(&a, "m", at + ms(5_000))
    };
    let unknown_before = whole(now);
    assert_eq!((unknown_before.ttft_ms, unknown_before.ms_per_token), (Some(50.0), Some(50.0)));
    let mut streamed = book.started(&a, &model, now + ms(6_000));
    streamed.token(now + ms(6_300));
    drop(streamed);
    assert_eq!(whole(now + ms(7_000)).ttft_ms, Some(300.0));
}

#[test]
fn a_cancelled_stream_is_load_until_it_drops_and_says_nothing_of_the_host() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let guards: Vec<_> = (0..3).map(|_| book.started(&a, &model, now)).collect();
    assert_eq!(book.load(&a, "m", now).in_flight, 3);
    drop(guards);
    assert_eq!(book.load(&a, "m", now), Load::UNKNOWN);
}

#[test]
fn slots_are_shared_by_all_models_of_an_upstream() {
    let (book, now, a) = (LoadBook::default(), start(), device("a"));
    let _one = book.started(&a, &Arc::from("m1"), now);
    let _two = book.started(&a, &Arc::from("m2"), now);
    assert_eq!(book.load(&a, "m1", now).in_flight, 2);
    assert_eq!(book.load(&a, "m3", now).in_flight, 2);
    assert_eq!(book.in_flight(&device("b")), 0);
}

#[test]
fn a_host_that_hangs_looks_slower_while_it_hangs() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let mut guard = book.started(&a, &model, now);
    guard.first_token(now + ms(100));
    guard.finish(now + ms(100), true);
    let hanging = book.started(&a, &model, now + ms(1_000));
    assert_eq!(book.load(&a, "m", now + ms(1_050)).ttft_ms, Some(100.0));
    let waited = book.load(&a, "m", now + ms(6_000)).ttft_ms.unwrap();
    assert!((waited - 5_000.0).abs() < 1.0, "{waited}");
    drop(hanging);
    assert_eq!(book.load(&a, "m", now + ms(6_000)).ttft_ms, Some(100.0));
}

#[test]
fn failures_keep_traffic_away_longer_each_time_and_a_success_forgives() {
    let (book, mut now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    for seconds in [1, 2, 4] {
        book.started(&a, &model, now).finish(now, false);
        assert!(book.load(&a, "m", now + ms(1_000 * seconds - 1)).penalised, "{seconds}");
        now += ms(1_000 * seconds);
        assert!(!book.load(&a, "m", now).penalised, "{seconds}");
    }
    book.started(&a, &model, now).finish(now, true);
    book.started(&a, &model, now).finish(now, false);
    assert!(!book.load(&a, "m", now + ms(1_000)).penalised);
}

#[test]
fn requests_that_fail_together_count_as_one_failure() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let together: Vec<_> = (0..4).map(|_| book.started(&a, &model, now)).collect();
    for guard in together {
        guard.finish(now + ms(10), false);
    }
    assert!(book.load(&a, "m", now + ms(1_009)).penalised);
    assert!(!book.load(&a, "m", now + ms(1_010)).penalised);
}

#[test]
fn a_host_that_falls_silent_has_one_fault_however_many_requests_it_had() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let nap = |at: Instant| {
        let all: Vec<_> = (0..20).map(|_| book.started(&a, &model, at)).collect();
        for mut guard in all {
            guard.host_is_silent();
            guard.finish(at + ms(700), false);
        }
        book.load(&a, "m", at + ms(700))
    };
    let load = nap(now);
    assert!(load.penalised, "others come first for a moment");
    assert_eq!((load.admits, load.breaker), (true, "closed"));
    for n in 1..5 {
        assert_eq!(nap(now + ms(60_000 * n)).breaker, if n < 4 { "closed" } else { "open" }, "{n}");
    }
}

#[test]
fn a_device_is_not_full_any_more_once_a_request_of_ours_has_run_to_its_end() {
    let (book, now, model) =
        (LoadBook::default(), start(), Arc::new(crate::registry::ModelSpec::new("m", "t")));
    let offer = Offer { slots: 2, ..Offer::new(device("a"), model) };
    let (mut runs, refused) =
        (book.begin(&offer, Work::UNKNOWN, now), book.begin(&offer, Work::UNKNOWN, now));
    book.refused(&offer, now);
    refused.finish(now, true);
    assert_eq!(book.of(&offer, now).ahead, 1, "the refused one ended, and freed nothing");
    runs.first_token(now);
    runs.finish(now, true);
    assert_eq!(book.of(&offer, now).ahead, 0);
}

#[test]
fn whole_answers_tell_that_a_host_became_slow_as_streams_do() {
    let (book, now, model) =
        (LoadBook::default(), start(), Arc::new(crate::registry::ModelSpec::new("m", "t")));
    let offer = Offer { slots: 8, ..Offer::new(device("a"), model) };
    let work = Work { prompt: Tokens(100), output: Tokens(8), ..Work::UNKNOWN };
    for n in 0..10 {
        let at = now + ms(n * 100);
        let mut guard = book.begin(&offer, work, at);
        for token in 0..8 {
            guard.token(at + ms(20 + 5 * token));
        }
        guard.finish(at + ms(60), true);
    }
    let forecast = |at| Forecast::of(work, &offer, &book.of(&offer, at)).unwrap().total_ms();
    let at = now + ms(2_000);
    let quick = forecast(at);
    assert!((50.0..70.0).contains(&quick), "{quick}");
    let mut guard = book.begin(&offer, work, at);
    guard.whole_answer(at + ms(570), Tokens(8));
    guard.finish(at + ms(570), true);
    let slow = forecast(at + ms(570));
    assert!(slow > 2.0 * quick, "{slow} after {quick}");
    // An answer that does not say how long it is tells nothing.
    let mut guard = book.begin(&offer, work, at + ms(600));
    guard.whole_answer(at + ms(60_000), Tokens(0));
    guard.finish(at + ms(60_000), true);
    assert!(forecast(at + ms(60_000)) < slow * 1.01);
}

#[test]
fn a_named_pause_is_kept_up_to_two_minutes_for_all_models_of_the_account() {
    let (book, now, a) = (LoadBook::default(), start(), device("a"));
    book.pause(&a, now, ms(600_000));
    for model in ["m", "another"] {
        assert!(book.load(&a, model, now + ms(119_999)).penalised, "{model}");
    }
    assert!(!book.load(&a, "m", now + ms(120_000)).penalised);
}

#[test]
fn a_dropped_probe_lets_the_next_one_through() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    for _ in 0..5 {
        book.started(&a, &model, now).finish(now, false);
    }
    assert!(!book.load(&a, "m", now).admits);
    let later = now + ms(10_000);
    let probe = book.started(&a, &model, later);
    assert!(!book.load(&a, "m", later).admits);
    drop(probe);
    assert!(book.load(&a, "m", later).admits);
}

#[test]
fn upstreams_in_use_are_never_dropped_from_the_book() {
    let (book, now, model) = (LoadBook::default(), start(), Arc::from("m"));
    let held = book.started(&device("a"), &model, now);
    drop(book.started(&device("b"), &model, now));
    book.retain(|_| false);
    assert_eq!(book.in_flight(&device("a")), 1);
    drop(held);
    assert_eq!(book.in_flight(&device("a")), 0);
}

#[test]
fn nodes_and_upstreams_differ_in_jitter() {
    let jitters: Vec<f64> =
        (0..4).flat_map(|seed| ["a", "b"].map(|name| jitter(seed, &device(name)))).collect();
    assert!(jitters.iter().all(|j| (0.0..1.0).contains(j)));
    assert!(jitters.iter().enumerate().all(|(i, j)| !jitters[..i].contains(j)), "{jitters:?}");
}

#[test]
fn what_others_run_is_told_apart_from_what_this_node_adds() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let first = book.started(&a, &model, now);
    book.report(&a, (1, 1), 3, now);
    assert_eq!(book.load(&a, "m", now).in_flight, 3);
    let _second = book.started(&a, &model, now);
    assert_eq!(book.load(&a, "m", now).in_flight, 4, "one of ours was in the report, one was not");
    book.report(&a, (1, 1), 3, now);
    assert_eq!(book.load(&a, "m", now).in_flight, 4, "old news again");
    drop(first);
    book.report(&a, (1, 2), 1, now);
    assert_eq!(book.load(&a, "m", now).in_flight, 1);
}

#[test]
fn a_request_that_had_to_wait_does_not_make_the_host_look_slow() {
    let (book, now, model) =
        (LoadBook::default(), start(), Arc::new(crate::registry::ModelSpec::new("m", "t")));
    let offer = Offer { slots: 1, ..Offer::new(device("a"), model) };
    let work = Work { prompt: Tokens(1_000), output: Tokens(10), ..Work::UNKNOWN };
    let mut running = book.begin(&offer, work, now);
    let mut queued = book.begin(&offer, work, now);
    running.first_token(now + ms(500));
    running.finish(now + ms(600), true);
    queued.first_token(now + ms(5_000));
    queued.finish(now + ms(5_100), true);
    let learnt = book.of(&offer, now + ms(5_100)).prefill.unwrap().at(1_000.0);
    assert!((learnt - 500.0).abs() < 1.0, "{learnt}");
}

#[test]
fn who_waits_is_told_of_every_request_less() {
    let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    book.tell_when_freed(move |upstream| log.lock().unwrap().push(upstream.clone()));
    let (first, second) = (book.started(&a, &model, now), book.started(&a, &model, now));
    drop(first);
    second.finish(now, true);
    assert_eq!(told.lock().unwrap().len(), 2);
    book.report(&a, (1, 1), 3, now);
    assert_eq!(told.lock().unwrap().len(), 2, "that was more");
    book.report(&a, (1, 2), 1, now);
    assert_eq!(*told.lock().unwrap(), [a.clone(), a.clone(), a]);
}

#[test]
fn a_device_that_refused_is_full_for_a_second_or_until_it_reports() {
    let (book, now, model) =
        (LoadBook::default(), start(), Arc::new(crate::registry::ModelSpec::new("m", "t")));
    let offer = Offer { slots: 2, ..Offer::new(device("a"), model) };
    book.refused(&offer, now);
    assert_eq!(book.of(&offer, now).ahead, 1);
    assert_eq!(book.of(&offer, now + ms(1_000)).ahead, 0);
    book.refused(&offer, now);
    let _waits = book.queue(&offer, Work::UNKNOWN, now);
    assert_eq!(book.of(&offer, now).ahead, 2);
    book.report(&offer.upstream, (1, 1), 1, now);
    assert_eq!(book.of(&offer, now).ahead, 1, "one of others, one of ours that waits");
}

/// A device of one model with a measured line: 1 ms a token to read, 10 ms a token to write.
fn measured(book: &LoadBook, name: &str, now: Instant) -> Offer {
    let model = Arc::new(crate::registry::ModelSpec::new("m", "t"));
    let offer = Offer { slots: 4, ..Offer::new(device(name), model) };
    for prompt in [100, 500, 1_000, 2_000, 4_000] {
        let work = Work { prompt: Tokens(prompt), output: Tokens(20), ..Work::UNKNOWN };
        answer(book, &offer, work, u64::from(prompt), 20, now);
    }
    offer
}

/// Lets a request take so long to its first token, and 10 ms for each of the others.
fn answer(book: &LoadBook, offer: &Offer, work: Work, first_ms: u64, tokens: u32, now: Instant) {
    let mut guard = book.begin(offer, work, now);
    guard.first_token(now + ms(first_ms));
    let at = |token: u32| now + ms(first_ms + 10 * u64::from(token));
    (1..tokens).for_each(|token| guard.token(at(token)));
    guard.answered(Tokens(tokens));
    guard.finish(at(tokens), true);
}

fn talk(text: &str, tokens: u32) -> Work {
    let says = crate::request::Message { role: crate::request::MessageRole::User, text: text.into() };
    let prefix = crate::balance::Prefix::of(&[says], Tokens(tokens));
    Work { prompt: Tokens(tokens), prefix, ..Work::UNKNOWN }
}

#[test]
fn a_prompt_that_the_host_has_read_is_predicted_by_what_its_cache_proved_to_save() {
    let (book, now, text) = (LoadBook::default(), start(), "a talk ".repeat(1_000));
    let [caches, reads] = ["caches", "reads"].map(|name| measured(&book, name, now));
    let work = talk(&text, 2_000);
    let first_ms = |offer: &Offer, now: Instant| {
        Forecast::of(work, offer, &book.for_work(offer, &work, now)).unwrap().prefill_ms
    };
    let new = first_ms(&caches, now);
    assert!((1_900.0..2_200.0).contains(&new), "nobody has read it: {new}");
    for turn in 0..20 {
        let at = now + ms(5_000 * turn);
        answer(&book, &caches, work, if turn == 0 { 2_000 } else { 60 }, 20, at);
        answer(&book, &reads, work, 2_000, 20, at);
    }
    let at = now + ms(100_000);
    let (cached, read) = (first_ms(&caches, at), first_ms(&reads, at));
    assert!(cached < 300.0, "what is held is not read again: {cached}");
    assert!(
        (1_800.0..2_200.0).contains(&read),
        "an engine without a cache is not trusted to have one: {read}"
    );
    let other = talk(&"something else ".repeat(1_000), 2_000);
    let other = Forecast::of(other, &caches, &book.for_work(&caches, &other, at)).unwrap().prefill_ms;
    assert!((1_700.0..2_300.0).contains(&other), "a cache does not make the host look quick: {other}");
    let offers = [Arc::new(reads), Arc::new(caches)];
    for seed in 0..20 {
        let mut rng = crate::testing::seeded(seed);
        let chosen =
            crate::balance::Balancer::for_work(work).pick(&offers, &book, at, &mut rng, &[]).unwrap();
        assert_eq!(&**chosen.upstream.name(), "caches", "seed {seed}");
    }
    assert!(first_ms(&offers[1], at + ms(600_000)) > 1_500.0, "and is not trusted for ever");
}

#[test]
fn an_answer_is_expected_to_be_as_long_as_the_models_answers_are() {
    let (book, now) = (LoadBook::default(), start());
    let offer = measured(&book, "a", now);
    let work = Work { prompt: Tokens(100), task: crate::profile::Task::Code, ..Work::UNKNOWN };
    let decode_ms =
        |work: Work| Forecast::of(work, &offer, &book.for_work(&offer, &work, now)).unwrap().decode_ms;
    (0..50).for_each(|_| answer(&book, &offer, work, 100, 900, now));
    assert!((7_500.0..9_500.0).contains(&decode_ms(work)), "{}", decode_ms(work));
    let bounded = Work { most: Some(Tokens(100)), output: Tokens(100), ..work };
    assert!(decode_ms(bounded) <= 1_000.0, "no longer than was asked for: {}", decode_ms(bounded));
    // Given up after a few words: that says nothing of lengths.
    for _ in 0..50 {
        let mut guard = book.begin(&offer, work, now);
        guard.first_token(now + ms(100));
        guard.token(now + ms(110));
        guard.finish(now + ms(120), true);
    }
    assert!(decode_ms(work) > 7_500.0, "{}", decode_ms(work));
}
