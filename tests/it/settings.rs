//! How settings are read: durations, variables and flags, and what follows from those that were given. Must never look at
//! times of the clock: `check --json` tells what was understood.

use std::process::Command;

use serde_json::Value;

use crate::common::Scene;
use crate::common::report::{check, parse};
use crate::common::tables::{Table, own_row};

/// A scene with a database that lockrun has made.
fn scene() -> Scene {
    let scene = Scene::new();
    let finished = scene.run(&mut scene.lockrun(["--", "true"]));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    scene
}

fn check_with(scene: &Scene, command: &mut Command) -> Value {
    let finished = scene.run(command.arg("--json"));
    assert_eq!(finished.code(), 0, "{command:?}: {}", finished.stderr);
    parse(&finished.stdout)
}

#[test]
fn durations_are_read_in_every_form_of_the_contract() {
    let scene = scene();
    for (text, ms) in [
        ("5s", 5_000),
        ("5", 5_000),
        ("2.5", 2_500),
        ("2500ms", 2_500),
        ("1m30s", 90_000),
        ("90", 90_000),
        ("10m", 600_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
    ] {
        assert_eq!(check(&scene, &["--ttl", text])["ttl_ms"], ms, "{text}");
    }
    for text in ["500ms", "0.5", "0.5s"] {
        assert_eq!(check(&scene, &["--heartbeat", text])["heartbeat_ms"], 500, "{text}");
    }
}

#[test]
fn the_times_of_the_contract_are_told() {
    let scene = scene();
    let times = |check: &Value| {
        ["ttl_ms", "heartbeat_ms", "grace_ms", "term_after_ms", "kill_after_ms", "dead_after_ms"].map(|key| check[key].as_u64().expect(key))
    };
    assert_eq!(times(&check(&scene, &[])), [60_000, 5_000, 10_000, 48_500, 58_500, 59_500]);
    let quick = check(&scene, &["--ttl", "3s", "--heartbeat", "250ms", "--grace", "300ms"]);
    assert_eq!(times(&quick), [3_000, 250, 300, 1_700, 2_000, 2_500]);
    let short = times(&check(&scene, &["--ttl", "2s"]));
    let close = |told: u64, ms: u64| told.abs_diff(ms) <= 2;
    assert!(close(short[3], 1_000) && close(short[4], 1_333) && close(short[5], 1_667), "{short:?}");
}

#[test]
fn what_was_not_given_bends_to_what_was() {
    let scene = scene();
    let long_grace = check(&scene, &["--grace", "60s"]);
    assert_eq!(long_grace["grace_ms"], 60_000, "{long_grace}");
    assert_eq!(long_grace["ttl_ms"], 120_000, "the least multiple of 60 s that holds it: {long_grace}");
    let short_ttl = check(&scene, &["--ttl", "12s"]);
    assert_eq!((&short_ttl["heartbeat_ms"], &short_ttl["grace_ms"]), (&Value::from(1_000), &Value::from(2_000)), "{short_ttl}");
}

#[test]
fn a_variable_counts_where_no_flag_is_given_and_a_flag_beats_it() {
    let scene = scene();
    let by = |args: &[&str]| {
        let mut command = scene.bare_lockrun(["check"]);
        command
            .args(args)
            .env("LOCKRUN_DB", scene.db())
            .env("LOCKRUN_TTL", "30s")
            .env("LOCKRUN_HEARTBEAT", "1s")
            .env("LOCKRUN_GRACE", "2s");
        check_with(&scene, &mut command)
    };
    let variables = by(&[]);
    assert_eq!([&variables["ttl_ms"], &variables["heartbeat_ms"], &variables["grace_ms"]], [30_000, 1_000, 2_000], "{variables}");
    let flags = by(&["--ttl", "40s", "--heartbeat", "2s", "--grace", "3s"]);
    assert_eq!([&flags["ttl_ms"], &flags["heartbeat_ms"], &flags["grace_ms"]], [40_000, 2_000, 3_000], "{flags}");
}

#[test]
fn an_empty_variable_is_unset() {
    let scene = scene();
    let mut command = scene.bare_lockrun(["check", "--db"]);
    command.arg(scene.db());
    for name in ["DB", "DB_FILE", "NAME", "TTL", "HEARTBEAT", "GRACE", "WAIT", "ON_LOST", "INSTANCE", "LOG_FORMAT", "LOG"] {
        command.env(format!("LOCKRUN_{name}"), "");
    }
    let check = check_with(&scene, &mut command);
    assert_eq!(check["ttl_ms"], 60_000, "{check}");

    let mut run = scene.lockrun(["--", "true"]);
    for name in ["DB", "DB_FILE", "NAME", "WAIT", "ON_LOST", "INSTANCE", "LOG_FORMAT", "LOG"] {
        run.env(format!("LOCKRUN_{name}"), "");
    }
    let finished = scene.run(&mut run);
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("default: acquired"), "the default name, level and format: {}", finished.stderr);
}

#[test]
fn the_store_comes_from_a_flag_a_variable_or_a_file_that_a_variable_names() {
    let scene = Scene::new();
    std::fs::write(scene.path("secret"), format!("{}\n", scene.path("file.db").display())).expect("a file");
    let other = scene.path("other.db");
    let runs = |expected: &str, command: &mut Command| {
        let finished = scene.run(command.args(["--", "true"]));
        assert_eq!(finished.code(), 0, "{expected}: {}", finished.stderr);
        assert!(scene.path(expected).exists(), "{expected}");
    };
    runs("flag.db", scene.bare_lockrun(["--db", "flag.db"]).env("LOCKRUN_DB", &other));
    runs("url.db", &mut scene.bare_lockrun(["--db", "sqlite:url.db"]));
    runs("variable.db", scene.bare_lockrun([] as [&str; 0]).env("LOCKRUN_DB", "variable.db"));
    runs("file.db", scene.bare_lockrun([] as [&str; 0]).env("LOCKRUN_DB_FILE", "secret"));
    assert!(!other.exists(), "the flag beats the variable");
}

/// The application's own row and tables are its own; lockrun's stand beside them under its prefix.
#[test]
fn an_applications_database_keeps_its_mode_and_gets_tables_of_lockruns_prefix_alone() {
    let scene = Table::App.scene();
    let finished = scene.run(scene.lockrun(Table::App.options()).args(["--", "true"]));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let connection = crate::common::tables::open(&scene.db());
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("a mode");
    assert_eq!(mode, "delete");
    let mut statement = connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").expect("a schema");
    let names: Vec<String> = statement.query_map([], |row| row.get(0)).expect("rows").map(|name| name.expect("a name")).collect();
    assert!(names.iter().all(|name| name == "scheduler_lock" || name.starts_with("lockrun_") || name.starts_with("sqlite_")), "{names:?}");
    let companion = own_row(&connection, "table:scheduler_lock").expect("a record of its own beside it");
    assert!(companion.token > 0);
}
