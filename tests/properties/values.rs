//! One value at a time: durations, names, signals, numbers.

use std::time::Duration;

use lockrun::config::value;
use proptest::prelude::*;

use crate::{check, hostile_text};

/// Texts that are nearly a duration.
fn duration_like() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        "[0-9]{1,4}",
        "[0-9]{15,25}",
        "[0-9]{1,3}\\.[0-9]{0,12}",
        any::<u64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:e}")),
        proptest::sample::select(vec![
            "-5",
            "+5",
            "inf",
            "NaN",
            "-0",
            "1e99999",
            "٣",
            "五",
            "0x10",
            "1_000",
            ".",
            "..",
            "18446744073709549568"
        ])
        .prop_map(str::to_string),
    ];
    let unit = proptest::sample::select(vec![
        "", "", "ns", "us", "µs", "ms", "s", "sec", "m", "min", "h", "d", "w", "M", "y", "x", "S", " s", "\n",
    ]);
    let part = (number, unit).prop_map(|(number, unit)| format!("{number}{unit}"));
    prop_oneof![
        9 => (proptest::sample::select(vec!["", " "]), proptest::collection::vec(part, 1..4)).prop_map(|(space, parts)| parts.join(space)),
        1 => hostile_text(),
    ]
}

#[test]
fn a_duration_is_read_or_refused_with_the_ways_to_write_one() {
    check(3_000, duration_like(), |text| match value::duration(&text) {
        Ok(span) => assert_eq!(
            value::duration(&format!("{}ns", span.as_nanos().min(u64::MAX.into()))),
            Ok(span.min(Duration::from_nanos(u64::MAX)))
        ),
        Err(why) => assert!(why.contains("500ms, 0.5, 5s, 1m30s, 2h or 1d"), "{why}"),
    });
}

#[test]
fn a_duration_comes_back_however_it_is_written() {
    let parts = (0..400_u64, 0..24_u64, 0..60_u64, 0..60_u64, 0..1000_u64);
    check(800, parts, |(days, hours, minutes, seconds, millis)| {
        let whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
        let span = Duration::from_millis(whole * 1000 + millis);
        let written = [
            format!("{days}d{hours}h{minutes}m{seconds}s{millis}ms"),
            format!("{days}d {hours}h {minutes}m {seconds}s {millis}ms"),
            format!("{}ms", span.as_millis()),
            format!("{whole}.{millis:03}"),
        ];
        for text in written {
            let read = value::duration(&text).expect(&text);
            assert!(read.abs_diff(span) < Duration::from_micros(1), "{text}: {read:?}"); // a fraction is read as a float
        }
    });
}

#[test]
fn names_and_tables_are_what_the_rule_says_and_nothing_else() {
    let names = prop_oneof![
        hostile_text(),
        "[A-Za-z0-9._/-]{0,260}",
        "[A-Za-z0-9_]{0,245}",
        "(?i)(lockrun|sqlite)_[a-z]{0,3}",
        "[A-Za-z0-9._/-]{1,9}[ :@ä\n]"
    ];
    check(1_500, names, |text| {
        let good = (1..=253).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
        match value::lease_name(&text) {
            Ok(name) => assert!(good && name.as_str() == text, "{text:?}"),
            Err(why) => assert!(!good && why.contains("1 to 253 of A-Z a-z 0-9 . _ - /"), "{text:?}: {why}"),
        }
        if let Ok(table) = value::table(&text) {
            assert_eq!(table, text);
            assert!(table.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !table.is_empty(), "{table}");
            let lower = table.to_lowercase();
            assert!(!lower.starts_with("lockrun_") && !lower.starts_with("sqlite_"), "{table}");
        }
    });
}

#[test]
fn a_signal_is_one_that_a_command_can_act_on() {
    let edges = proptest::sample::select(vec![i32::MAX, i32::MAX - 33, i32::MIN, i32::MIN + 64, 0, 1, 30, -30]);
    let number = prop_oneof![
        Just(String::new()),
        edges.prop_map(|number| format!("{number:+}")),
        "[+-]?[0-9]{1,3}",
        any::<i32>().prop_map(|number| number.to_string())
    ];
    let name = proptest::sample::select(vec![
        "", "SIG", "sig", "TERM", "SIGTERM", "KILL", "SIGSTOP", "RTMIN", "SIGRTMIN", "rtmax", "SIGRTMAX", "USR", "SIGSIG",
    ]);
    let signals = prop_oneof![9 => (name, number).prop_map(|(name, number)| format!("{name}{number}")), 1 => hostile_text()];
    check(1_500, signals, |text| match value::signal(&text) {
        Ok(number) => assert!((1..=64).contains(&number) && ![9, 19, 32, 33].contains(&number), "{text:?}: {number}"),
        Err(why) => assert!(why.contains("take another") || why.contains("write TERM"), "{why}"),
    });
    for number in (1..=31).chain(34..=64).filter(|number| ![9, 19].contains(number)) {
        assert_eq!(value::signal(&number.to_string()), Ok(number));
    }
}

#[test]
fn numbers_and_words_are_read_or_refused_with_what_they_may_be() {
    let texts = prop_oneof![
        hostile_text(),
        any::<i64>().prop_map(|number| number.to_string()),
        "[+-]?[0-9]{1,21}",
        "(error|warn|info|debug|text|json|exit|wait| )?[a-z]?"
    ];
    check(1_500, texts, |text| {
        match value::exit_code(&text) {
            Ok(code) => {
                assert!((0..=255).contains(&code) && text.trim_start_matches(['+', '0']) == code.to_string().trim_start_matches('0'))
            }
            Err(why) => {
                assert!(why.contains("0 to 255") && !(text.len() < 3 && text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty()))
            }
        }
        match value::token(&text) {
            Ok(token) => assert_eq!(text.parse(), Ok(token)),
            Err(why) => assert!(why.contains("64-bit")),
        }
        assert_eq!(value::log_level(&text).is_ok(), ["error", "warn", "info", "debug"].contains(&text.as_str()));
        assert_eq!(value::log_format(&text).is_ok(), ["text", "json"].contains(&text.as_str()));
        assert_eq!(value::on_lost(&text).is_ok(), ["exit", "wait"].contains(&text.as_str()));
    });
}
