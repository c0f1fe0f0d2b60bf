//! Redis alone: who may come in and how, what it says of itself, and what comes of a server that forgets or refuses. Here is
//! what both parts need.

mod access;
mod keeping;

use crate::common::report::parse;
use crate::common::{Finished, Scene};
use crate::fixture::Server;
use crate::fixture::redis::Redis;

/// For what holds: TERM 4.6 s, KILL 4.9 s, dead 5.4 s after the last good renewal; a request may take 400 ms.
const TIMES: [&str; 6] = ["--ttl", "6s", "--heartbeat", "1s", "--grace", "300ms"];

fn with(scene: &Scene, url: &str, args: &[&str]) -> std::process::Command {
    let mut command = scene.bare_lockrun(args);
    command.env("LOCKRUN_DB", url).env_remove("REDISCLI_AUTH");
    command
}

/// `sh -c SCRIPT` under a lease that it holds for a short time.
fn brief(scene: &Scene, url: &str, script: &str) -> std::process::Command {
    with(scene, url, &[&TIMES[..], &["--name", "a", "--", "sh", "-c", script]].concat())
}

fn run(scene: &Scene, url: &str, args: &[&str]) -> Finished {
    scene.run(&mut with(scene, url, args))
}

/// The main form and `check` end with 125 and one line that has all of `words`; nothing was started.
fn refused(scene: &Scene, url: &str, words: &[&str]) {
    for args in [&["--name", "a", "--", "touch", "ran"][..], &["check"]] {
        let finished = run(scene, url, args);
        assert_eq!(finished.code(), 125, "{args:?}: {}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
        for word in words {
            assert!(finished.stderr.contains(word), "{word:?} in {}", finished.stderr);
        }
        assert!(!finished.stderr.contains("hunter2"), "{}", finished.stderr);
        assert!(!scene.path("ran").exists());
    }
}

/// 69 with such a line, for the time being.
fn unreachable(scene: &Scene, url: &str, words: &[&str]) {
    let finished = run(scene, url, &["--name", "a", "-n", "--", "touch", "ran"]);
    assert_eq!(finished.code(), 69, "{}", finished.stderr);
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} in {}", finished.stderr);
    }
    assert!(!scene.path("ran").exists());
}

fn works(scene: &Scene, url: &str) {
    let finished = run(scene, url, &["--name", "a", "-n", "-q", "--", "true"]);
    assert_eq!((finished.code(), finished.stderr.as_str()), (0, ""));
}

fn check(scene: &Scene, url: &str) -> serde_json::Value {
    let finished = run(scene, url, &["check", "--json"]);
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    parse(&finished.stdout)
}

fn url(credentials: &str, redis: &Redis) -> String {
    format!("redis://{credentials}127.0.0.1:{}", redis.port())
}
