//! Whatever comes from outside may be anything: values, command lines, records and databases that something else has
//! written, messages on the pipe. Nothing panics, nothing is taken for what it is not, and what is refused says why.
//!
//! `PROPTEST_CASES` says how many inputs there are (256 unless given; each test has its share of it). A failure prints the
//! smallest input that was found and the `PROPTEST_RNG_SEED` that finds it again.

mod command_line;
mod damaged;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "postgres")]
mod postgres;
mod records;
#[cfg(feature = "redis")]
mod redis;
mod secrets;
mod shown;
mod timing;
mod values;
mod wire;

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Runs `test` on `share` inputs (for PROPTEST_CASES=256), every one from a seed. `test` panics where the input fails.
fn check<S: Strategy>(share: u32, inputs: S, test: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("PROPTEST_CASES").unwrap_or(256).saturating_mul(share.into()).div_ceil(256);
    let seed = number("PROPTEST_RNG_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let config = Config {
        cases: u32::try_from(cases).unwrap_or(u32::MAX),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None, // the seed is printed, and no file is left behind
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&inputs, |input| {
        test(input);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}\nagain: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={}", number("PROPTEST_CASES").unwrap_or(256));
    }
}

/// One line that a terminal shows as it is.
fn is_one_line(line: &str) -> bool {
    !line.is_empty() && !line.contains(|c: char| c.is_control() || "\u{2028}\u{2029}\u{202e}\u{2066}".contains(c))
}

/// Text as nobody means it: any letters, with control characters, escapes and what reorders a line among them.
fn hostile_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => any::<String>(),
        2 => "[ -~]{0,12}",
        1 => proptest::sample::select(vec!["\n", "\r\n", "\x1b[2J", "\x1b]0;x\x07", "\u{9b}31m", "\u{202e}", "\u{2028}", "\0", "\t", "\u{7f}"])
            .prop_map(str::to_string),
    ];
    proptest::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
}
