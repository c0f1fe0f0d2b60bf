//! The times of a lease, for anything that can be asked for: what is accepted keeps every relation of the protocol.

use std::time::Duration;

use lockrun::lease::{Asked, Clocks, Moment, Timing};
use proptest::prelude::*;

use crate::{check, is_one_line};

fn span() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..700_000_u64).prop_map(Duration::from_millis),
        (0..40_000_000_000_u64).prop_map(Duration::from_nanos),
        (0..500 * 86_400_u64).prop_map(Duration::from_secs),
        any::<Duration>(),
        proptest::sample::select(vec![
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::MAX,
            Duration::from_secs(u64::MAX),
            Duration::from_secs(2)
        ]),
    ]
}

fn asked() -> impl Strategy<Value = (Asked, Clocks)> {
    let one = || proptest::option::weighted(0.7, span());
    let asked = (one(), one(), one()).prop_map(|(ttl, heartbeat, grace)| Asked { ttl, heartbeat, grace });
    (asked, proptest::sample::select(vec![Clocks::OneKernel, Clocks::Apart]))
}

#[test]
fn what_is_accepted_keeps_every_relation_and_what_was_given() {
    check(3_000, asked(), |(asked, clocks)| {
        let Ok(timing) = Timing::new(asked, clocks) else { return };
        let Timing { ttl, heartbeat, grace, margin, kill_time, attempt } = timing;
        assert!(asked.ttl.is_none_or(|given| given == ttl), "{timing:?}");
        assert!(asked.heartbeat.is_none_or(|given| given == heartbeat), "{timing:?}");
        assert!(asked.grace.is_none_or(|given| given == grace), "{timing:?}");
        assert!(
            ttl >= margin + kill_time + grace + heartbeat + 3 * attempt && heartbeat <= ttl / 3 && ttl >= Duration::from_secs(2),
            "{timing:?}"
        );
        assert!(!attempt.is_zero() && attempt <= heartbeat / 2 && attempt <= Duration::from_millis(2500), "{timing:?}");
        assert!(!margin.is_zero() && margin <= ttl / 6 && !kill_time.is_zero() && kill_time <= ttl / 6, "{timing:?}");
        if clocks == Clocks::Apart {
            assert!(margin >= ttl / 10, "{timing:?}");
        }
        for asked_at in [0, 1 << 40].map(Moment::from_nanos) {
            let [renew_at, term_at, kill_at, dead_by] =
                [timing.renew_at(asked_at), timing.term_at(asked_at), timing.kill_at(asked_at), timing.dead_by(asked_at)];
            assert!(
                asked_at < renew_at && renew_at < term_at && term_at <= kill_at && kill_at < dead_by && dead_by < asked_at + ttl,
                "{timing:?}"
            );
        }
        for random in [0, u128::MAX] {
            assert!(
                [0, 3, u32::MAX]
                    .into_iter()
                    .all(|failures| (Duration::from_micros(800)..=Duration::from_millis(1200)).contains(&timing.pause(failures, random)))
            );
        }
    });
}

#[test]
fn what_is_refused_names_the_relation_and_its_values() {
    check(3_000, asked(), |(asked, clocks)| {
        let Err(error) = Timing::new(asked, clocks) else { return };
        let line = error.to_string();
        assert!(is_one_line(&line), "{line:?}");
        let relations = [
            "must be 10ms or more",
            "must be 2s to 366d",
            "heartbeat ≤ ttl/3 must hold",
            "ttl ≥ margin + kill time + grace + heartbeat + 3 attempts must hold",
        ];
        assert!(relations.iter().any(|relation| line.contains(relation)), "{line}");
    });
}

/// Only given values can contradict each other: with the TTL left open, whatever fits into the longest one is accepted.
#[test]
fn a_ttl_that_was_not_given_is_the_least_whole_minute_that_holds_the_rest() {
    let day = 86_400_000_u64;
    let spans = prop_oneof![(0..600_000_u64), (0..day), (0..400 * day)];
    let spans = proptest::option::of(spans.prop_map(Duration::from_millis));
    check(300, (spans.clone(), spans), |(heartbeat, grace)| {
        let heartbeat = heartbeat.map(|span| (span / 20).max(Duration::from_millis(20)));
        let asked = Asked { ttl: None, heartbeat, grace };
        match Timing::new(asked, Clocks::OneKernel) {
            Ok(timing) => {
                assert!(timing.ttl.as_millis().is_multiple_of(60_000), "{timing:?}");
                let less = Asked { ttl: Some(timing.ttl - Duration::from_secs(60)), ..asked };
                assert!(timing.ttl == Duration::from_secs(60) || Timing::new(less, Clocks::OneKernel).is_err(), "{timing:?}");
            }
            Err(_) => assert!(grace.is_some_and(|grace| grace > Duration::from_secs(200 * 86_400)), "{asked:?}"),
        }
    });
}
