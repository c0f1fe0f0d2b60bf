//! Whole command lines and environments: parsed, or refused in one line with 125, and the command is passed on verbatim.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use lockrun::cli::{self, Parsed};
use lockrun::config::value;
use lockrun::config::{Config, Environment};
use lockrun::error::Failure;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::{check, hostile_text, is_one_line};

/// What execve(2) can pass on: any bytes but NUL.
fn os_string() -> impl Strategy<Value = OsString> {
    prop_oneof![vec(1..=255_u8, 0..12).prop_map(OsString::from_vec), hostile_text().prop_map(|text| OsString::from(text.replace('\0', ""))),]
}

fn value() -> impl Strategy<Value = OsString> {
    let good = [
        "x.db",
        "/dev/null/x.db",
        "sqlite:x.db",
        "beat",
        "60s",
        "5s",
        "0",
        "1d",
        "300ms",
        "TERM",
        "child",
        "group",
        "exit",
        "json",
        "75",
        "table_1",
        "18446744073709551615",
        "18446744073709551615s",
        "-1",
        "-5s",
        "--",
        "1e9",
        "status",
        "check",
        "pause",
        "kubernetes:x",
        "postgres://h/d",
        "127.0.0.1:8080",
        ":0",
        "",
    ];
    prop_oneof![4 => select(good.to_vec()).prop_map(OsString::from), 1 => os_string()]
}

const WITH_VALUE: [&str; 18] = [
    "--db",
    "--name",
    "--ttl",
    "--heartbeat",
    "--grace",
    "--table",
    "--wait",
    "-w",
    "--conflict-exit-code",
    "-E",
    "--on-lost",
    "--stop-signal",
    "--signal-to",
    "--kill-after",
    "--log-format",
    "--token",
    "--http",
    "--addr",
];
const ALONE: [&str; 11] = ["--allow-fs", "-n", "--nonblock", "-q", "-v", "-qq", "-vvv", "-nqw5", "--json", "--instance", "-k"];

fn words() -> impl Strategy<Value = Vec<OsString>> {
    let word = prop_oneof![
        6 => (select(&WITH_VALUE[..]), value()).prop_map(|(option, value)| vec![option.into(), value]),
        2 => (select(&WITH_VALUE[..]), value()).prop_map(|(option, value)| vec![OsString::from_vec([option.as_bytes(), b"=", value.as_bytes()].concat())]),
        3 => select(&ALONE[..]).prop_map(|option| vec![option.into()]),
        1 => value().prop_map(|value| vec![value]),
        1 => select(vec!["status", "check", "health", "--help", "--version", "-h", "-c", "--bogus"]).prop_map(|word| vec![word.into()]),
    ];
    vec(word, 0..6).prop_map(|words| words.concat())
}

fn environment() -> impl Strategy<Value = Vec<(OsString, OsString)>> {
    let names = [
        "LOCKRUN_DB",
        "LOCKRUN_DB_FILE",
        "LOCKRUN_NAME",
        "LOCKRUN_TTL",
        "LOCKRUN_HEARTBEAT",
        "LOCKRUN_GRACE",
        "LOCKRUN_WAIT",
        "LOCKRUN_ON_LOST",
        "LOCKRUN_INSTANCE",
        "LOCKRUN_HTTP",
        "LOCKRUN_LOG",
        "LOCKRUN_LOG_FORMAT",
        "LOCKRUN_TOKEN",
        "LOCKRUN_HOLDER",
        "LOCKRUN_HOLDERS",
        "LISTEN_PID",
        "LISTEN_FDS",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "PATH",
        "",
    ];
    vec((select(names.to_vec()).prop_map(OsString::from), value()), 0..4)
}

fn config(argv: &[OsString], variables: Vec<(OsString, OsString)>) -> Result<Option<Config>, Failure> {
    match cli::parse(argv)? {
        Parsed::Print(_) => Ok(None),
        Parsed::Cli(cli) => Config::new(*cli, Environment::new(variables), 1).map(Some),
    }
}

fn argv(words: Vec<OsString>) -> Vec<OsString> {
    [OsString::from("lockrun")].into_iter().chain(words).collect()
}

#[test]
fn any_command_line_is_parsed_or_refused_in_one_line() {
    check(1_500, (words(), proptest::option::of(vec(os_string(), 0..4)), environment()), |(words, command, variables)| {
        let dashes = command.iter().flat_map(|command| [OsString::from("--")].into_iter().chain(command.iter().cloned()));
        let given_before = words.iter().any(|word| word == "--");
        let argv = argv(words.iter().cloned().chain(dashes).collect());
        match config(&argv, variables) {
            Err(failure) => {
                assert_eq!(failure.code, 125);
                assert!(is_one_line(&failure.line), "{:?}", failure.line);
            }
            Ok(Some(Config::Run(run))) => {
                let Some(command) = command.filter(|_| !given_before) else { return };
                assert_eq!(run.command, command);
                assert!(!run.target.lease().as_str().is_empty());
            }
            Ok(Some(Config::Status { .. } | Config::Check { .. } | Config::Health { .. }) | None) => {}
        }
    });
}

#[test]
fn everything_behind_the_dashes_reaches_the_command_verbatim() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = dir.path().join("x.db");
    let command = (os_string(), vec(prop_oneof![os_string(), value()], 0..6)).prop_map(|(first, rest)| [vec![first], rest].concat());
    check(800, (command, environment()), |(command, variables)| {
        let before = ["--db".into(), db.clone().into_os_string(), "--".into()];
        // With these two set there may be nothing to run.
        let mine = |name: &OsStr| name.as_bytes().starts_with(b"LOCKRUN_");
        let others: Vec<_> = variables.into_iter().filter(|(name, _)| !mine(name)).collect();
        match config(&argv(before.into_iter().chain(command.clone()).collect()), others.clone()) {
            Ok(Some(Config::Run(run))) => {
                assert_eq!(run.command, command);
                let kept = |(name, _): &&(OsString, OsString)| !["NOTIFY_SOCKET", "WATCHDOG_USEC"].iter().any(|other| name == other);
                assert!(others.iter().filter(kept).all(|variable| run.environment.contains(variable)));
                assert!(!run.environment.iter().any(|(name, _)| name == "NOTIFY_SOCKET" || name == "WATCHDOG_USEC"));
            }
            Ok(_) => panic!("not a run"),
            Err(failure) => assert!(command[0].is_empty(), "{failure}"),
        }
    });
}

#[test]
fn a_value_that_is_refused_is_named_with_its_option() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = dir.path().join("x.db").into_os_string();
    let pairs = [
        ("--name", "LOCKRUN_NAME"),
        ("--ttl", "LOCKRUN_TTL"),
        ("--heartbeat", "LOCKRUN_HEARTBEAT"),
        ("--grace", "LOCKRUN_GRACE"),
        ("--wait", "LOCKRUN_WAIT"),
        ("--on-lost", "LOCKRUN_ON_LOST"),
        ("--log-format", "LOCKRUN_LOG_FORMAT"),
        ("--stop-signal", ""),
        ("--kill-after", ""),
        ("--conflict-exit-code", ""),
        ("--table", ""),
    ];
    check(800, (select(pairs.to_vec()), any::<bool>(), os_string()), |((option, variable), by_variable, value)| {
        let by_variable = by_variable && !variable.is_empty() && !value.is_empty();
        let (given, variables) = match by_variable {
            true => (vec![], vec![(OsString::from(variable), value.clone())]),
            false => (vec![OsString::from_vec([option.as_bytes(), b"=", value.as_bytes()].concat())], vec![]),
        };
        let rest = ["--db".into(), db.clone(), "--".into(), "true".into()];
        let Err(failure) = config(&argv(given.into_iter().chain(rest).collect()), variables) else { return };
        let source = if by_variable { variable } else { option };
        assert!(is_one_line(&failure.line), "{:?}", failure.line);
        assert!(
            failure.line.contains(source) || failure.line.contains(&format!("{} ", option.trim_start_matches("--"))),
            "{source}: {failure}"
        );
        let shown = value.to_str().filter(|text| text.len() < 100 && is_one_line(text) && !text.contains([':', '=']));
        assert!(shown.is_none_or(|shown| failure.line.contains(shown) || failure.line.contains("must")), "{shown:?}: {failure}");
        assert!(failure.line.split(": ").count() > 1, "no reason: {failure}");
    });
}

#[test]
fn a_wait_of_nothing_is_no_wait() {
    use lockrun::lease::Wait;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = dir.path().join("x.db").into_os_string();
    let texts = ("0{1,5}", select(vec!["", "s", "ms", "d", ".0", ".000", "m0s"])).prop_map(|(zeros, rest)| zeros + rest);
    check(200, texts, |text| {
        let words = ["--wait".into(), text.clone().into(), "--db".into(), db.clone(), "--".into(), "true".into()];
        match config(&argv(words.into()), vec![]) {
            Ok(Some(Config::Run(run))) => assert_eq!(run.settings.wait, Wait::No, "{text}"),
            Ok(_) => panic!("not a run"),
            Err(failure) => panic!("{failure}"),
        }
    });
}

#[test]
fn a_store_is_a_path_byte_by_byte_or_refused() {
    use value::StoreUrl;
    let texts = prop_oneof![
        os_string(),
        value(),
        ("[a-z+.-]{0,9}", select(vec![":", "://", ":/", "//"]), os_string()).prop_map(|(scheme, separator, rest)| {
            OsString::from_vec([scheme.as_bytes(), separator.as_bytes(), rest.as_bytes()].concat())
        })
    ];
    check(1_500, texts, |text| match StoreUrl::parse(&text) {
        Ok(StoreUrl::Sqlite(path)) => {
            let bytes = text.as_bytes();
            assert_eq!(path.as_os_str().as_bytes(), bytes.strip_prefix(b"sqlite:").unwrap_or(bytes));
            assert!(!path.as_os_str().is_empty());
        }
        Ok(StoreUrl::Server(_, url)) => assert_eq!(Some(url.as_str()), text.to_str()),
        Err(why) => assert!(why.contains(':') && why.len() > 10, "{why}"),
    });
    // Whatever starts as a path does is one.
    check(300, (select(vec!["./", "../", "/"]), os_string()), |(start, rest)| {
        let path = OsString::from_vec([start.as_bytes(), rest.as_bytes()].concat());
        if !path.as_bytes().starts_with(b"//") {
            assert_eq!(StoreUrl::parse(&path), Ok(StoreUrl::Sqlite(path.clone().into())), "{path:?}");
        }
    });
}

#[test]
fn a_file_without_an_end_is_not_read_to_its_end() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, "x".repeat(1 << 20)).expect("a long line");
    let why = value::from_file(file.path().as_os_str()).expect_err("too long for a path");
    assert!(why.contains("one line") && why.len() < 500, "{}", why.len());
}

#[test]
fn a_file_that_should_hold_the_stores_url_may_hold_anything() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("url");
    let content = prop_oneof![
        vec(any::<u8>(), 0..64),
        value().prop_map(OsString::into_vec),
        (value(), select(vec!["\n", "\r\n", "\n\n"])).prop_map(|(value, end)| [value.as_bytes(), end.as_bytes()].concat())
    ];
    check(300, content, |content| {
        std::fs::write(&file, &content).expect("a file");
        let variables = vec![(OsString::from("LOCKRUN_DB_FILE"), file.clone().into_os_string())];
        match config(&argv(vec!["--".into(), "true".into()]), variables) {
            Err(failure) => {
                assert!(is_one_line(&failure.line) && failure.code == 125, "{:?}", failure.line);
                assert!(!failure.line.contains("postgres://h/d"), "{failure}");
            }
            Ok(config) => assert!(matches!(config, Some(Config::Run(_))), "{content:?}"),
        }
    });
}
