//! What reaches the command: its arguments, its environment; and what lockrun itself writes: its log. Must never compare text
//! that a terminal or a shell has had in its hands where bytes are promised.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::common::gate::Gate;
use crate::common::report::{log_lines, only_lock, parse, subcommand, token_in_log};
use crate::common::tables::{Table, open, own_row};
use crate::common::{Finished, Scene, lockrun_binary};

/// Runs a command that copies its environment as the kernel has it, and reads that copy. No variable may be there twice.
fn environment_of_a_command(scene: &Scene, command: &mut Command) -> BTreeMap<String, String> {
    let finished = scene.run(command.args(["--", "cp", "/proc/self/environ", "environ"]));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let bytes = fs::read(scene.path("environ")).expect("the copy");
    let mut found = BTreeMap::new();
    for entry in String::from_utf8_lossy(&bytes).split_terminator('\0') {
        let (key, value) = entry.split_once('=').expect("KEY=VALUE");
        assert_eq!(found.insert(key.to_string(), value.to_string()), None, "{key} is there twice");
    }
    found
}

fn token_of_default(scene: &Scene) -> i64 {
    own_row(&open(&scene.db()), "default").expect("a record").token
}

#[test]
fn everything_after_the_two_dashes_is_passed_on_verbatim() {
    let scene = Scene::new();
    let arguments: [&[u8]; 13] =
        [b"-h", b"--db", b"", b"\xff", b"--", b"-n", b"--help", b"--version", b"a b", b"'\"$HOME`", b"*", b"\n", b"\xc3\xa4"];
    let mut command = scene.lockrun(["--", "sh", "-c", "for each; do printf '%s\\0' \"$each\"; done >arguments", "sh"]);
    let finished = scene.run(command.args(arguments.iter().map(|bytes| OsStr::from_bytes(bytes))));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let written = fs::read(scene.path("arguments")).expect("the arguments");
    let expected: Vec<u8> = arguments.iter().flat_map(|argument| [argument, &b"\0"[..]].concat()).collect();
    assert_eq!(written, expected, "{}", written.escape_ascii());
}

#[test]
fn a_subcommands_name_after_the_two_dashes_is_a_command_to_run() {
    let scene = Scene::new();
    fs::create_dir(scene.path("bin")).expect("a folder");
    let path = format!("{}:{}", scene.path("bin").display(), std::env::var("PATH").expect("a PATH"));
    for name in ["status", "check", "health", "history", "pause", "resume", "handover", "release", "generate", "help"] {
        let program = scene.path("bin").join(name);
        fs::write(&program, "#!/bin/sh\necho \"$0\" >>ran\nexit 42\n").expect("a program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
        let finished = scene.run(scene.lockrun(["--", name]).env("PATH", &path));
        assert_eq!(finished.code(), 42, "{name}: {}", finished.stderr);
    }
    assert_eq!(scene.wait_for_file("ran").lines().count(), 10);
}

#[test]
fn the_command_knows_its_token_name_and_holder() {
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let script = "cp /proc/self/environ environ.new; mv environ.new environ; read gate <go";
    let running = scene.start(&mut scene.lockrun(["--name", "a/B-1._x", "--", "sh", "-c", script]));
    let text = scene.wait_for_file("environ");
    let get = |key: &str| text.split('\0').find_map(|entry| entry.strip_prefix(&format!("{key}="))).unwrap_or_else(|| panic!("no {key}"));
    let lock = only_lock(&scene, &["--name", "a/B-1._x"]);
    assert_eq!(get("LOCKRUN_NAME"), "a/B-1._x");
    assert_eq!(get("LOCKRUN_TOKEN"), lock["token"].to_string());
    assert_eq!(lock["holder"]["id"], get("LOCKRUN_HOLDER"));
    assert!(get("LOCKRUN_HOLDERS").contains(get("LOCKRUN_HOLDER")), "for a lockrun inside, this one is an outer one");
    gate.open();
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn values_of_an_outer_environment_do_not_win() {
    let scene = Scene::new();
    let mut command = scene.lockrun(["--name", "mine"]);
    command.env("LOCKRUN_TOKEN", "1").env("LOCKRUN_NAME", "theirs").env("LOCKRUN_HOLDER", "them").env("LOCKRUN_HOLDERS", "them");
    let environment = environment_of_a_command(&scene, &mut command);
    let own = own_row(&open(&scene.db()), "mine").expect("a record");
    assert_eq!(environment["LOCKRUN_NAME"], "mine");
    assert_eq!(environment["LOCKRUN_TOKEN"], own.token.to_string());
    assert_ne!(environment["LOCKRUN_HOLDER"], "them");
    let holders = &environment["LOCKRUN_HOLDERS"];
    assert!(holders.contains("them") && holders.contains(&environment["LOCKRUN_HOLDER"]), "outer ones stay known: {holders}");
}

#[test]
fn what_systemd_tells_lockrun_does_not_reach_the_command_and_all_else_does() {
    let scene = Scene::new();
    let mut command = scene.lockrun([] as [&str; 0]);
    command.env("NOTIFY_SOCKET", scene.path("notify")).env("WATCHDOG_USEC", "30000000").env("WATCHDOG_PID", "1").env("COLOUR", "blue");
    let environment = environment_of_a_command(&scene, &mut command);
    let taken_out: Vec<_> = environment.keys().filter(|key| *key == "NOTIFY_SOCKET" || key.starts_with("WATCHDOG_")).collect();
    assert_eq!(taken_out, [] as [&String; 0]);
    assert_eq!(environment["COLOUR"], "blue");
    assert_eq!(environment["PATH"], std::env::var("PATH").expect("a PATH"));
}

#[test]
fn tokens_rise_from_run_to_run() {
    let scene = Scene::new();
    let script = scene.witness("exit 0");
    for _ in 0..5 {
        assert_eq!(scene.run(&mut scene.lockrun(["-n", "--", "sh", "-c", &script])).code(), 0);
    }
    assert_eq!(scene.starts().len(), 5);
    scene.assert_exclusion();
    assert_eq!(token_of_default(&scene), scene.starts()[4].0, "a release keeps the token");
}

#[test]
fn lockrun_inside_lockrun_on_the_same_lease_is_refused_at_once() {
    let scene = Scene::new();
    let db = scene.db();
    let inner = [lockrun_binary(), "--db", db.to_str().expect("UTF-8"), "--", "touch", "ran"];
    let finished = scene.run(scene.lockrun(["--"]).args(inner));
    assert_eq!(finished.code(), 125, "it would wait for itself: {}", finished.stderr);
    assert!(!scene.path("ran").exists());
    assert_eq!(Table::Own.row(&scene), None);
}

#[test]
fn lockrun_inside_two_lockruns_is_refused_the_outermost_lease_too() {
    let scene = Scene::new();
    let db = scene.db();
    let db = db.to_str().expect("UTF-8");
    let inner = |name: &'static str| [lockrun_binary(), "--db", db, "--name", name, "--"];
    let finished = scene.run(scene.lockrun(["--name", "one", "--"]).args(inner("two")).args(inner("one")).args(["touch", "ran"]));
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert!(!scene.path("ran").exists());
}

#[test]
fn lockrun_inside_lockrun_ignores_the_outer_name() {
    let scene = Scene::new();
    let db = scene.db();
    let inner = [lockrun_binary(), "--db", db.to_str().expect("UTF-8"), "--", "sh", "-c", "echo $LOCKRUN_NAME; exit 42"];
    let finished = scene.run(scene.lockrun(["--name", "outer", "--"]).args(inner));
    assert_eq!((finished.code(), finished.stdout.as_str()), (42, "default\n"), "{}", finished.stderr);
}

#[test]
fn a_subcommand_inside_lockrun_reads_the_outer_name() {
    let scene = Scene::new();
    let db = scene.db();
    let db = db.to_str().expect("UTF-8");
    assert_eq!(scene.run(&mut scene.lockrun(["--name", "another", "--", "true"])).code(), 0);
    let finished = scene.run(&mut scene.lockrun(["--name", "outer", "--", lockrun_binary(), "status", "--db", db, "--json"]));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let status = parse(&finished.stdout);
    let names: Vec<_> = status["locks"].as_array().expect("locks").iter().map(|lock| &lock["name"]).collect();
    assert_eq!(names, ["outer"]);
}

#[test]
fn the_name_variable_names_the_lease_of_an_outermost_lockrun() {
    let scene = Scene::new();
    let environment = environment_of_a_command(&scene, scene.lockrun([] as [&str; 0]).env("LOCKRUN_NAME", "nightly"));
    assert_eq!(environment["LOCKRUN_NAME"], "nightly");
}

#[test]
fn db_and_name_are_accepted_before_and_after_a_subcommands_name() {
    let scene = Scene::new();
    assert_eq!(scene.run(&mut scene.lockrun(["--name", "beat", "--", "true"])).code(), 0);
    let db = scene.db();
    let db = db.to_str().expect("UTF-8");
    for args in [
        ["--db", db, "--name", "beat", "status", "--json"],
        ["status", "--db", db, "--name", "beat", "--json"],
        ["--name", "beat", "status", "--json", "--db", db],
        ["--db", db, "status", "--name", "beat", "--json"],
    ] {
        let finished = scene.run(&mut scene.bare_lockrun(args));
        assert_eq!(finished.code(), 1, "{args:?}: it is free: {}", finished.stderr);
        assert_eq!(parse(&finished.stdout)["locks"][0]["name"], "beat", "{args:?}");
    }
}

#[test]
fn stdout_belongs_to_the_command_alone() {
    let scene = Scene::new();
    let spoken = scene.run(&mut scene.lockrun(["-v", "-v", "--", "printf", "a\\nb"]));
    assert_eq!((spoken.code(), spoken.stdout.as_str()), (0, "a\nb"));
    assert_ne!(spoken.stderr, "", "what lockrun has to say goes to stderr");
    let refused = scene.run(&mut scene.lockrun(["--", "/no/such/program"]));
    assert_eq!((refused.code(), refused.stdout.as_str()), (127, ""));
}

#[test]
fn a_log_line_names_lockrun_the_lease_and_the_event() {
    let scene = Scene::new();
    let finished = scene.run(&mut scene.lockrun(["--name", "beat", "--", "true"]));
    let token = own_row(&open(&scene.db()), "beat").expect("a record").token;
    let acquired = format!("lockrun: beat: acquired, token {token}");
    assert!(finished.stderr.lines().any(|line| line.starts_with(&acquired)), "{acquired:?} in {:?}", finished.stderr);
    assert_eq!(token_in_log(&finished.stderr), Some(token));
    assert!(finished.stderr.lines().any(|line| line.starts_with("lockrun: beat: released")), "{:?}", finished.stderr);
    assert!(!finished.stderr.contains('\x1b'), "no colour but on a terminal: {:?}", finished.stderr);
}

fn assert_json_log(finished: &Finished, token: i64) {
    let lines = log_lines(&finished.stderr);
    for line in &lines {
        for key in ["ts", "level", "event", "name", "msg"] {
            assert!(line[key].is_string(), "{key} in {line}");
        }
        let known = ["ts", "level", "event", "name", "token", "holder", "reason", "msg"];
        assert!(line.as_object().expect("an object").keys().all(|key| known.contains(&key.as_str())), "{line}");
        assert_eq!(line["name"], "beat", "{line}");
    }
    let event = |name: &str| -> &Value { lines.iter().find(|line| line["event"] == name).unwrap_or_else(|| panic!("{name} in {lines:?}")) };
    assert_eq!(event("acquired")["token"], token);
    assert!(event("acquired")["holder"].is_string());
    assert_eq!(event("acquired")["level"].as_str().map(str::to_lowercase).as_deref(), Some("info"));
    assert_eq!(event("released")["token"], token);
}

#[test]
fn a_json_log_has_one_object_for_each_line() {
    let scene = Scene::new();
    let by_flag = scene.run(&mut scene.lockrun(["--name", "beat", "--log-format", "json", "--", "true"]));
    assert_json_log(&by_flag, own_row(&open(&scene.db()), "beat").expect("a record").token);
    let by_variable = scene.run(scene.lockrun(["--name", "beat", "--", "true"]).env("LOCKRUN_LOG_FORMAT", "json"));
    assert_json_log(&by_variable, own_row(&open(&scene.db()), "beat").expect("a record").token);
}

#[test]
fn under_cron_lockrun_is_quiet_unless_asked() {
    let scene = Scene::new();
    for quiet in [&["-n"][..], &["-w", "10m"], &["-w", "0"], &["-q"]] {
        let finished = scene.run(scene.lockrun(quiet).args(["--", "true"]));
        assert_eq!((finished.code(), finished.stderr.as_str()), (0, ""), "{quiet:?}");
    }
    let asked = scene.run(&mut scene.lockrun(["-n", "-v", "--", "true"]));
    assert_ne!(token_in_log(&asked.stderr), None, "-v says more: {:?}", asked.stderr);
    let asked = scene.run(scene.lockrun(["-n", "--", "true"]).env("LOCKRUN_LOG", "info"));
    assert_ne!(token_in_log(&asked.stderr), None, "LOCKRUN_LOG beats the default of -n: {:?}", asked.stderr);
    let less = scene.run(scene.lockrun(["--", "true"]).env("LOCKRUN_LOG", "error"));
    assert_eq!(less.stderr, "");
}

#[test]
fn status_for_people_names_the_lease_and_its_holder() {
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let script = scene.witness("read gate <go");
    let running = scene.start(&mut scene.lockrun(["--name", "beat", "--", "sh", "-c", &script]));
    scene.wait_for_starts(1);
    let finished = scene.run(scene.bare_lockrun(["status", "--db"]).arg(scene.db()));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert!(finished.stdout.contains("beat") && finished.stdout.contains(&running.pid().to_string()), "{}", finished.stdout);
    gate.open();
    assert_eq!(running.finish().code(), 0);
}

/// Every key of the contract is there, whether or not anybody holds the lease.
#[test]
fn status_in_json_has_every_field_also_of_a_free_lease() {
    let scene = Scene::new();
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
    let finished = subcommand(&scene, "status", &[]);
    let status = parse(&finished.stdout);
    let lock = status["locks"][0].as_object().expect("a lock");
    let fields = ["name", "state", "token", "holder", "acquired_at", "renewed_at", "ttl_ms", "expires_in_ms", "stopping", "paused"];
    for field in fields.iter().chain(&["blocked_by_pids", "waiters"]) {
        assert!(lock.contains_key(*field), "{field} in {status}");
    }
    assert_eq!(lock["token"], token_of_default(&scene), "a free lease keeps its token");
    assert_eq!((&lock["holder"], &lock["paused"], &lock["waiters"]), (&Value::Null, &Value::Null, &Value::Null));
    assert_eq!(lock["blocked_by_pids"], Value::Array(Vec::new()));
}
