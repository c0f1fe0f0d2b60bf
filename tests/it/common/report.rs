//! What lockrun says in JSON: `status --json`, `check --json` and the log. Must never accept a line that does not parse.

use serde_json::Value;

use super::{Finished, Running, Scene, wait_until};

/// `lockrun status --db x.db --json ARGS`, which must have an answer.
pub fn status(scene: &Scene, args: &[&str]) -> Value {
    let finished = subcommand(scene, "status", args);
    assert!(matches!(finished.code(), 0 | 1), "status: {} {}", finished.code(), finished.stderr);
    parse(&finished.stdout)
}

/// The one lease that `status --json ARGS` shows.
pub fn only_lock(scene: &Scene, args: &[&str]) -> Value {
    let status = status(scene, args);
    let locks = status["locks"].as_array().expect("a list of locks");
    assert_eq!(locks.len(), 1, "{status}");
    locks[0].clone()
}

/// `lockrun check --db x.db --json ARGS`, which must find the store usable.
pub fn check(scene: &Scene, args: &[&str]) -> Value {
    let finished = subcommand(scene, "check", args);
    assert_eq!(finished.code(), 0, "check {args:?}: {}", finished.stderr);
    let check = parse(&finished.stdout);
    assert_eq!(check["usable"], true, "{check}");
    check
}

/// `lockrun NAME --db x.db --json ARGS`
pub fn subcommand(scene: &Scene, name: &str, args: &[&str]) -> Finished {
    scene.run(scene.bare_lockrun([name, "--db"]).arg(scene.db()).arg("--json").args(args))
}

pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text:?}"))
}

/// The lines of a log in JSON.
pub fn log_lines(stderr: &str) -> Vec<Value> {
    stderr.lines().map(parse).collect()
}

/// The token of the `acquired` line of a log in text.
pub fn token_in_log(stderr: &str) -> Option<i64> {
    let after = stderr.split_once("acquired, token ")?.1;
    after.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Waits until this copy has said that it waits for the lease, or for the store.
pub fn wait_until_it_waits(running: &Running) {
    wait_until("a line that says it waits", || running.stderr().contains("waiting"));
}
