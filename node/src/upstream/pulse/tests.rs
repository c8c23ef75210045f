//! A far end that says nothing of its own accord, and how long it is believed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::*;

/// A far end without words; it answers questions in turn, then no more.
#[derive(Default)]
struct Quiet {
    answers: std::sync::Mutex<Vec<Pulse>>,
    path: Vitals,
    datagrams: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl Quiet {
    fn that_says(answers: &[Pulse]) -> Self {
        Self { answers: std::sync::Mutex::new(answers.iter().rev().copied().collect()), ..Self::default() }
    }
}

impl Frames for Quiet {
    async fn next(&mut self) -> Result<Option<InferFrame>, Interrupted> {
        std::future::pending().await
    }

    fn vitals(&self) -> Vitals {
        Vitals { datagrams: self.datagrams.load(Ordering::Relaxed), ..self.path }
    }

    fn pulse(&self) -> BoxFuture<'static, Pulse> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.answers.lock().unwrap().pop() {
            Some(pulse) => Box::pin(std::future::ready(pulse)),
            None => Box::pin(std::future::pending()),
        }
    }
}

fn committed() -> Commitment {
    let commitment = Commitment::default();
    commitment.commit();
    commitment
}

async fn lost_after(mut quiet: Quiet, commitment: Commitment, host: Host) -> (Lost, Duration) {
    let began = Instant::now();
    let lost = next_frame(&mut quiet, &Listening::new(commitment, host, 0)).await.unwrap_err();
    (lost, began.elapsed())
}

/// Timers of the paused clock may be late by their granularity, once for each tick.
fn check(took: Duration, wanted_ms: u64) {
    let wanted = Duration::from_millis(wanted_ms);
    assert!(
        (wanted..wanted.mul_f64(1.02) + Duration::from_millis(60)).contains(&took),
        "{took:?}, not {wanted:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn how_long_silence_is_borne_follows_from_what_would_be_lost_and_from_the_host() {
    for (commitment, host, wanted_ms) in [
        (Commitment::default(), Host::Steady, 700),
        (committed(), Host::Steady, 1_200),
        (Commitment::of_last_resort(), Host::Steady, 9_000),
        (Commitment::default(), Host::Napping, 2_750),
        (committed(), Host::Napping, 9_000),
    ] {
        let (lost, took) = lost_after(Quiet::default(), commitment, host).await;
        assert_eq!(lost, Lost::Silent);
        check(took, wanted_ms);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_answers_is_waited_for_and_asked_no_more_than_needed() {
    let quiet = Quiet::that_says(&[Pulse::Working; 100]);
    let asked = quiet.asked.clone();
    let (lost, took) = lost_after(quiet, Commitment::default(), Host::Steady).await;
    assert_eq!(lost, Lost::Silent);
    assert!(took >= Duration::from_millis(100 * 300 + 700), "{took:?}");
    // One question for each silence, then those that get no answer.
    assert!(asked.load(Ordering::Relaxed) <= 103);
}

#[tokio::test(start_paused = true)]
async fn datagrams_break_the_silence_until_the_host_must_have_answered() {
    let quiet = Quiet::default();
    let (datagrams, asked) = (quiet.datagrams.clone(), quiet.asked.clone());
    let lively = async move {
        loop {
            tokio::time::sleep(Duration::from_millis(80)).await;
            datagrams.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = lively => {}
        (lost, took) = lost_after(quiet, Commitment::default(), Host::Steady) => {
            assert_eq!(lost, Lost::Silent);
            check(took, 10_000); // asked after 1 s, and 9 s to answer
            assert_eq!(asked.load(Ordering::Relaxed), 1, "it is not silent, so the question is not lost");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn long_and_lossy_ways_are_given_their_time() {
    let far = |rtt_ms, loss| Quiet {
        path: Vitals { datagrams: 0, rtt: Duration::from_millis(rtt_ms), loss },
        ..Quiet::default()
    };
    check(lost_after(far(20, 0.0), committed(), Host::Steady).await.1, 1_200);
    check(lost_after(far(200, 0.0), Commitment::default(), Host::Steady).await.1, 1_200);
    check(lost_after(far(200, 0.05), committed(), Host::Steady).await.1, 1_500);
    check(lost_after(far(600, 0.0), committed(), Host::Steady).await.1, 3_600);
}

#[tokio::test(start_paused = true)]
async fn ticks_that_this_process_missed_are_no_silence() {
    let listening = Listening::new(Commitment::default(), Host::Steady, 0);
    let mut watch = Watch::new(Vitals::default());
    let (tick, late) = (Host::Steady.tick(), STARVED);
    for _ in 0..MAX_EXCUSES {
        watch.tick(Vitals::default(), late, &listening).unwrap();
    }
    assert_eq!(watch.silence, Duration::ZERO);
    for _ in 0..6 {
        watch.tick(Vitals::default(), late, &listening).unwrap();
    }
    assert_eq!(watch.silence, tick * 6, "excuses end");
    assert_eq!(watch.tick(Vitals::default(), Duration::ZERO, &listening), Err(Lost::Silent));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_keeps_saying_that_it_knows_nothing_of_the_request_is_given_up() {
    let words = [[Pulse::Working; 2].as_slice(), &[Pulse::Unknown; 20]].concat();
    let (lost, took) = lost_after(Quiet::that_says(&words), Commitment::default(), Host::Steady).await;
    assert_eq!(lost, Lost::Unknown);
    // Not before all of it can have arrived, and not at its first word.
    assert!((ARRIVAL + UNKNOWN_FOR..ARRIVAL * 2).contains(&took), "{took:?}");
    let listening = Listening::new(Commitment::default(), Host::Steady, 500_000);
    let mut quiet = Quiet::that_says(&[Pulse::Unknown; 200]);
    let frame = tokio::time::timeout(ASK_AFTER * 11, next_frame(&mut quiet, &listening));
    assert!(frame.await.is_err(), "10 s at 50 kB/s, and 2 s for the way");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_be_asked_is_listened_to_as_before() {
    let mut quiet = Quiet::that_says(&[Pulse::Unasked]);
    let listening = Listening::new(Commitment::default(), Host::Steady, 0);
    let waited = next_frame(&mut quiet, &listening);
    assert!(tokio::time::timeout(Duration::from_secs(3600), waited).await.is_err());
}
