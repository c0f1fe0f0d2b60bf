//! What others wrote is shown as text: a line stays one line, a terminal obeys nothing of it, JSON stays JSON.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lockrun::config::Target;
use lockrun::lease::{Asked, Clocks, Timing};
use lockrun::status;
use lockrun::store::any::Address;
use lockrun::store::sqlite;
use proptest::prelude::*;
use proptest::sample::select;
use rusqlite::{Connection, params};
use serde_json::Value;

use crate::records::{Room, block_on};
use crate::{check, hostile_text, is_one_line};

/// The record of another holder, with its host name, command and name as anybody may choose them.
#[derive(Clone, Debug)]
struct Theirs {
    name: String,
    id: String,
    hostname: String,
    command: String,
    acquired_ms: i64,
    left_s: i64,
}

fn theirs() -> impl Strategy<Value = Theirs> {
    let command = prop_oneof![
        proptest::collection::vec(hostile_text(), 0..3).prop_map(|words| serde_json::to_string(&words).expect("JSON")),
        hostile_text(),
        Just("[".repeat(500)),
    ];
    let long = prop_oneof![9 => Just(1), 1 => Just(3000)];
    let hostname = (hostile_text(), long).prop_map(|(text, times)| text.repeat(times));
    let time = prop_oneof![any::<i64>(), select(vec![0, -1, i64::MIN, i64::MAX, 253_402_300_799_999, 253_402_300_800_000])];
    (prop_oneof![Just("default".to_string()), hostile_text()], hostile_text(), hostname, command, time, -9..1_000_000_000_i64)
        .prop_map(|(name, id, hostname, command, acquired_ms, left_s)| Theirs { name, id, hostname, command, acquired_ms, left_s })
}

/// Puts it into a database of its own.
fn put(room: &Room, theirs: &Theirs) -> (tempfile::TempDir, std::path::PathBuf) {
    let (dir, path) = room.fresh();
    let connection = Connection::open(&path).expect("a database");
    let asked = lockrun::clock::now().nanos() as i64 - 10_000_000_000;
    let sql = "UPDATE lockrun_lease SET name = ?1, holder = ?2, hostname = ?3, command = ?4, acquired_ms = ?5, renewed_ms = ?5, ttl_ms = ?6, \
               asked_boot_ns = ?7";
    let ttl_ms = (theirs.left_s + 10) * 1000;
    let Theirs { name, id, hostname, command, acquired_ms, .. } = theirs;
    connection.execute_batch("PRAGMA synchronous = OFF").expect("quick");
    assert_eq!(connection.execute(sql, params![name, id, hostname, command, acquired_ms, ttl_ms, asked]).expect("written"), 1);
    (dir, path)
}

fn target(path: &Path) -> Target {
    let place = sqlite::look(path, true).expect("a good place");
    let timing = Timing::new(Asked::default(), Clocks::OneKernel).expect("the default");
    Target { address: Address::Sqlite { place, app_table: None }, name: None, timing }
}

#[test]
fn status_shows_a_line_for_each_lease_and_nothing_that_moves_a_cursor() {
    let room = Room::new();
    check(300, theirs(), |theirs| {
        let (_dir, path) = put(&room, &theirs);
        let target = target(&path);
        let (text, json) = block_on(async {
            (status::status(&target, false).await.expect("readable").text, status::status(&target, true).await.expect("readable").text)
        });
        assert!(text.ends_with('\n') && is_one_line(text.trim_end_matches('\n')), "{text:?}");
        assert!(json.ends_with('\n') && is_one_line(json.trim_end_matches('\n')), "{json:?}");
        let answer: Value = serde_json::from_str(&json).expect("JSON");
        let lock = &answer["locks"][0];
        assert_eq!((lock["name"].as_str(), lock["holder"]["hostname"].as_str()), (Some(&*theirs.name), Some(&*theirs.hostname)));
        assert_eq!(lock["state"], if theirs.left_s > 0 { "held" } else { "expired" });
    });
}

#[test]
fn check_shows_a_path_of_any_letters_in_its_lines() {
    let room = Room::new();
    check(200, hostile_text(), |text| {
        let (dir, _) = room.fresh();
        let name: String = text.chars().filter(|c| !"/\0".contains(*c)).take(40).chain(".db".chars()).collect();
        let target = target(&dir.path().join(&name));
        let (text, json) = block_on(async {
            (
                status::check(&target, false, None).await.expect("usable").text,
                status::check(&target, true, None).await.expect("usable").text,
            )
        });
        assert!(text.lines().all(is_one_line) && text.lines().count() == 3 + target.address.warnings().len(), "{text:?}");
        let answer: Value = serde_json::from_str(&json).expect("JSON");
        assert!(is_one_line(json.trim_end()) && answer["path"].as_str().is_some_and(|path| path.ends_with(&name)), "{json:?}");
    });
}

fn try_once(path: &Path, format: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockrun"));
    let outside = std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("LOCKRUN_"));
    for (key, _) in outside {
        command.env_remove(key);
    }
    command.args(["-n", "--log-format", format, "--allow-fs", "--db"]).arg(path).args(["--", "true"]).output().expect("lockrun runs")
}

/// By the real lockrun, since only its end of the log knows how lines are written.
#[test]
fn the_log_names_a_holder_in_one_line() {
    let room = Room::new();
    let theirs = theirs().prop_map(|theirs| Theirs { name: "default".to_string(), left_s: theirs.left_s.max(600), ..theirs });
    check(20, theirs, |theirs| {
        let (_dir, path) = put(&room, &theirs);
        for format in ["text", "json"] {
            let output = try_once(&path, format);
            let stderr = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!((output.status.code(), &*output.stdout), (Some(75), &b""[..]), "{stderr}");
            let last = stderr.strip_suffix('\n').expect("a whole line").lines().last().expect("a line");
            assert!(stderr.lines().all(is_one_line) && last.contains("held by"), "{stderr:?}");
            if format == "json" {
                let line: Value = serde_json::from_str(last).expect("JSON");
                assert_eq!(
                    (line["name"].as_str(), line["event"].as_str(), line["holder"].as_str()),
                    (Some("default"), Some("waiting"), Some(&*theirs.id))
                );
            }
        }
    });
}

#[test]
fn a_refusal_longer_than_a_pipe_does_not_wait_for_its_reader() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockrun"));
    // Up to 128 KiB in one argument (execve(2)); a pipe takes 64, and nobody reads it.
    let mut child =
        command.args(["--ttl", &"9x".repeat(60_000), "--db", "x.db", "--", "true"]).stderr(writer).spawn().expect("lockrun runs");
    drop(command);
    let end = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().expect("waited") {
            Some(status) => break status,
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            None => {
                child.kill().expect("killed");
                panic!("it waits for its reader");
            }
        }
    };
    assert_eq!(status.code(), Some(125));
    let line = std::io::read_to_string(reader).expect("a line");
    assert!(
        line.starts_with("lockrun: --ttl 9x9x") && line.ends_with("write 500ms, 0.5, 5s, 1m30s, 2h or 1d\n") && line.len() < 4096,
        "{line}"
    );
}
