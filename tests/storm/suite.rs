//! The judge of tests/torture is judged here by histories made by hand, and a short run of the real thing shows that it
//! passes with lockrun and fails without a lease.

// The harness uses all of them; the judge, a part.
#[allow(dead_code)]
mod faults;
#[allow(dead_code)]
mod history;
mod judge;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use faults::sqlite::{HEARTBEAT, KILL_TIME, TTL};
use faults::{SLACK, Table, server, sqlite};
use history::{ALL, Event, Line};
use judge::{Verdict, judge};

/// A line at so many milliseconds.
fn at(millis: i64, event: Event) -> Line {
    Line { t: millis * 1000, ring: "ring0".to_string(), event }
}

fn start(millis: i64, token: i64, idle_since: i64) -> Line {
    at(millis, Event::Start { token, pid: token as i32, idle_since: idle_since * 1000 })
}

fn fault(id: u64, kind: &str, from: i64, to: i64) -> [Line; 2] {
    [at(from, Event::Fault { id, kind: kind.to_string(), on: String::new() }), at(to, Event::Over { id })]
}

fn exit(millis: i64, code: i32) -> Line {
    at(millis, Event::Exit { copy: "ring0.0".to_string(), pid: 1, code })
}

fn overlap(from: i64, to: i64) -> [Line; 2] {
    let (token, pid) = (20, 20);
    [at(from, Event::Overlap { token, pid, with: "10/main".to_string() }), at(to, Event::Alone { token, pid })]
}

fn verdict(lines: impl IntoIterator<Item = Line>) -> Verdict {
    judge(&mut lines.into_iter().collect::<Vec<_>>(), &sqlite::TABLE)
}

fn on_server(lines: impl IntoIterator<Item = Line>) -> Verdict {
    judge(&mut lines.into_iter().collect::<Vec<_>>(), &server::TABLE)
}

fn assert_good(lines: impl IntoIterator<Item = Line>) {
    let verdict = verdict(lines);
    assert_eq!(verdict.problems, [], "{}", judge::describe(&verdict));
}

#[track_caller]
fn assert_only_problem(lines: impl IntoIterator<Item = Line>, words: &str) {
    let problems = verdict(lines).problems;
    assert!(problems.len() == 1 && problems[0].1.contains(words), "{problems:?}");
}

#[test]
fn a_history_in_which_each_command_follows_the_end_of_the_one_before_is_good() {
    let verdict = verdict([start(100, 10, 0), exit(5050, 0), start(5100, 11, 5000), at(9000, Event::Close { idle_since: 9_000_000 })]);
    assert_eq!((verdict.problems, verdict.starts, verdict.overlaps), (vec![], 2, 0));
}

#[test]
fn an_overlap_is_caught_whatever_fault_was_near() {
    assert_only_problem([start(100, 10, 0)].into_iter().chain([start(200, 20, 190)]).chain(overlap(200, 300)), "overlap");
    for rule in sqlite::TABLE.rules.iter().filter(|rule| rule.leaves != faults::Leaves::TwoForAMoment) {
        let lines = [start(100, 10, 0), start(200, 20, 190)].into_iter().chain(fault(1, rule.name, 150, 250)).chain(overlap(200, 300));
        assert_only_problem(lines, "overlap");
    }
}

#[test]
fn an_overlap_that_never_ends_counts_until_the_next_start() {
    let [began, _] = overlap(200, 300);
    assert_only_problem([start(100, 10, 0), start(200, 20, 190), began, start(4200, 30, 4100)], "for 4000 ms");
}

#[test]
fn two_may_run_for_a_moment_and_no_longer_when_record_and_lock_were_removed_at_once() {
    let lines =
        |until| [start(100, 10, 0), start(200, 20, 190)].into_iter().chain(fault(1, "all-removed", 150, 150)).chain(overlap(200, until));
    assert_good(lines(200 + HEARTBEAT + KILL_TIME));
    assert_eq!(verdict(lines(300)).excused, 1);
    assert_only_problem(lines(300 + 2 * HEARTBEAT + KILL_TIME + SLACK), "overlap");
    // Nor before it.
    let early = [start(100, 10, 0), start(120, 20, 110)].into_iter().chain(fault(1, "all-removed", 150, 150)).chain(overlap(120, 300));
    assert_only_problem(early, "overlap");
}

#[test]
fn a_token_that_falls_or_comes_again_is_caught() {
    assert_only_problem([start(100, 10, 0), start(200, 9, 190)], "does not rise");
    assert_only_problem([start(100, 10, 0), start(200, 10, 190)], "does not rise");
    // Against the highest so far, not only the last.
    assert_eq!(verdict([start(100, 10, 0), start(200, 5, 190), start(300, 7, 290)]).tokens_fallen, 2);
}

#[test]
fn a_time_with_nobody_running_is_measured_by_the_faults_in_it() {
    let idle =
        |length: i64, faults: Vec<Line>| verdict([start(100, 10, 0), start(1000 + length, 11, 1000)].into_iter().chain(faults)).problems;
    assert_eq!(idle(SLACK, vec![]), []);
    assert!(idle(SLACK + 1, vec![])[0].1.contains("nobody ran"));
    // A killed front costs no TTL, a stopped one does, and one that is stopped for longer costs no more.
    let fault = |kind: &str, from, to| fault(1, kind, from, to).to_vec();
    assert_eq!(idle(KILL_TIME + SLACK, fault("kill-front", 1000, 1000)), []);
    assert_eq!(idle(KILL_TIME + SLACK + 1, fault("kill-front", 1000, 1000)).len(), 1);
    assert_eq!(idle(TTL + SLACK, fault("stop-front", 1000, 90_000)), []);
    assert_eq!(idle(TTL + SLACK + 1, fault("stop-front", 1000, 90_000)).len(), 1);
    // A busy database lasts as long as it lasts.
    assert_eq!(idle(20_000 + SLACK, fault("busy", 1000, 21_000)), []);
    assert_eq!(idle(20_001 + SLACK, fault("busy", 1000, 21_000)).len(), 1);
    // One that comes when the ring should have been well again excuses nothing.
    assert_eq!(idle(9000, fault("kill-front", 1000 + SLACK + 1, 1000 + SLACK + 1)).len(), 1);
    // Nor does one in another ring; one of the machine does.
    let elsewhere = |ring: &str| fault("busy", 1000, 21_000).into_iter().map(|line| Line { ring: ring.to_string(), ..line }).collect();
    assert_eq!(idle(20_000, elsewhere("ring1")).len(), 1);
    assert_eq!(idle(20_000, elsewhere(ALL)), []);
}

#[test]
fn a_ring_that_nobody_comes_back_to_is_caught_at_the_close() {
    assert_only_problem([start(100, 10, 0), at(9000, Event::Close { idle_since: 1_000_000 })], "nobody ran");
}

#[test]
fn an_exit_code_needs_a_fault_that_explains_it() {
    let good = |code, kind: &str| verdict(fault(1, kind, 1000, 2000).into_iter().chain([exit(2100, code)])).problems.is_empty();
    for code in [76, 137, 143] {
        assert_only_problem([exit(2100, code)], "no fault near");
        assert!(good(code, "stop-front"));
        let late = fault(1, "stop-front", 1000, 2000).into_iter().chain([exit(1000 + TTL + SLACK + 1, code)]);
        assert_only_problem(late, "no fault near");
    }
    assert!(!good(125, "stop-front") && good(125, "read-only") && good(125, "wal-removed"));
    assert!(!good(135, "wal-removed") && good(135, "shm-truncated"));
    for code in [1, 69, 75, 101, 126, 127, 134, 139] {
        assert!(sqlite::TABLE.rules.iter().all(|rule| !good(code, rule.name)), "{code}");
    }
    // Damage lasts until the database is made anew.
    assert!(verdict(fault(1, "shm-removed", 1000, 1000).into_iter().chain([exit(60_000, 125)])).problems.is_empty());
    let anew = fault(1, "shm-removed", 1000, 1000).into_iter().chain(fault(2, "deleted", 5000, 5000)).chain([exit(60_000, 125)]);
    assert_eq!(verdict(anew).problems.len(), 1);
}

#[test]
fn what_a_copy_must_not_say_is_caught() {
    assert_only_problem([at(100, Event::Said { copy: "ring0.0".to_string(), text: "thread main panicked".to_string() })], "panicked");
}

#[test]
fn on_a_server_no_fault_excuses_an_overlap() {
    for rule in server::TABLE.rules {
        let lines = [start(100, 10, 0), start(200, 20, 190)].into_iter().chain(fault(1, rule.name, 150, 250)).chain(overlap(200, 300));
        let problems = on_server(lines).problems;
        assert!(problems.len() == 1 && problems[0].1.contains("overlap"), "{}: {problems:?}", rule.name);
    }
}

#[test]
fn on_a_server_a_time_with_nobody_running_is_measured_by_what_a_watched_record_takes() {
    let idle = |length: i64, faults: Vec<Line>| {
        on_server([start(100, 10, 0), start(1000 + length, 11, 1000)].into_iter().chain(faults)).problems.len()
    };
    let least = |most: i64, kind: &str, from: i64, to: i64| {
        let faults = || fault(1, kind, from, to).to_vec();
        assert_eq!((idle(most, faults()), idle(most + 1, faults())), (0, 1), "{kind} from {from} to {to}");
    };
    let watched = server::TTL * 11 / 10 + server::HEARTBEAT * 3 / 2 + SLACK;
    // The last will frees the record: that there is no kernel lock costs nothing.
    least(server::KILL_TIME + SLACK, "kill-front", 1000, 1000);
    least(server::KILL_TIME + SLACK, "kill-guard", 1000, 1000);
    // Nobody is there to write it, or to hear of it.
    least(watched, "kill-both", 1000, 1000);
    least(watched, "stop-both", 1000, 90_000);
    // For less than the lease or for longer: a last renewal may be seen, or even be made, at the end.
    for kind in ["server-killed", "server-frozen", "holder-cut-off", "waiter-cut-off", "all-cut-off", "slow", "replies-lost"] {
        least(500 + watched, kind, 1000, 1500);
        least(29_000 + watched, kind, 1000, 30_000);
    }
    // A reset is only that.
    least(2 * server::HEARTBEAT + SLACK, "reset", 1000, 1000);
    // None of them reaches back, nor to where the ring should have been well again.
    for rule in server::TABLE.rules {
        assert_eq!(idle(60_000, fault(1, rule.name, 1001 + SLACK, 1001 + SLACK).to_vec()), 1, "{}", rule.name);
    }
    assert_eq!(idle(SLACK + 1, fault(1, "reset", 90_000, 90_000).to_vec()), 1);
}

#[test]
fn on_a_server_no_copy_is_refused_and_none_is_ended_without_a_fault() {
    let good = |code, kind: &str| on_server(fault(1, kind, 1000, 2000).into_iter().chain([exit(2100, code)])).problems.is_empty();
    for code in [76, 137, 143] {
        assert_eq!(on_server([exit(2100, code)]).problems.len(), 1);
        assert!(good(code, "holder-cut-off") && good(code, "server-killed"));
        let most = 2000 + server::TTL * 11 / 10 + server::HEARTBEAT * 3 / 2 + SLACK;
        let at = |millis| on_server(fault(1, "holder-cut-off", 1000, 2000).into_iter().chain([exit(millis, code)])).problems.len();
        assert_eq!((at(most), at(most + 1)), (0, 1));
    }
    // A server that starts, or is away, or does not answer, has refused nothing.
    for code in [1, 69, 75, 101, 125, 126, 127, 134, 135, 139] {
        assert!(server::TABLE.rules.iter().all(|rule| !good(code, rule.name)), "{code}");
    }
}

#[test]
fn a_table_names_each_fault_once() {
    for table in [&sqlite::TABLE, &server::TABLE] {
        let mut names: Vec<_> = table.rules.iter().map(|rule| rule.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table.rules.len());
        assert!(table.asked(None).expect("the default").iter().all(|rule| rule.name != faults::CLOCK), "it is asked for by name");
        assert!(table.asked(Some("kill-front,nonsense")).is_err());
        assert!(table.asked(Some("clock,kill-front")).is_ok());
    }
    assert!(sqlite::TABLE.asked(Some("clock,deleted")).is_err());
    assert!(sqlite::TABLE.asked(Some("reset")).is_err() && server::TABLE.asked(Some("deleted")).is_err());
}

/// Built by tests/run, as all examples are.
fn storm(args: &[&str]) -> Output {
    let storm = Path::new(env!("CARGO_BIN_EXE_lockrun")).with_file_name("examples").join("storm");
    Command::new(storm).args(args).stdin(Stdio::null()).output().expect("the examples are built")
}

/// The folder that a failed run keeps.
fn kept(output: &str) -> PathBuf {
    PathBuf::from(output.split_once("are kept in ").expect("a folder").1.trim())
}

/// Each of them loads the machine as much as it should be.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn stands_a_short_storm(args: &[&str], table: &Table) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = storm(args);
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let injected = |rule: &&faults::Rule| {
        let row = text.lines().find(|line| line.split_whitespace().next() == Some(rule.name));
        row.and_then(|row| row.split_whitespace().nth(1)).is_some_and(|times| times != "0")
    };
    let asked = table.asked(None).expect("the default");
    let count = asked.iter().filter(|rule| injected(rule)).count();
    assert!(count > asked.len() / 2, "{count} kinds of fault came:\n{text}");
    let folder = text.split_once(", in ").expect("a folder").1.lines().next().expect("a line");
    assert!(!Path::new(folder).exists(), "nothing is left of it");
}

#[test]
fn the_real_lockrun_stands_a_short_storm() {
    stands_a_short_storm(&["30", "--seed", "4"], &sqlite::TABLE);
}

#[test]
fn the_real_lockrun_stands_a_short_storm_on_postgres() {
    stands_a_short_storm(&["25", "--store", "postgres", "--seed", "1"], &server::TABLE);
}

#[test]
fn the_real_lockrun_stands_a_short_storm_on_etcd() {
    stands_a_short_storm(&["25", "--store", "etcd", "--seed", "1"], &server::TABLE);
}

#[test]
fn the_real_lockrun_stands_a_short_storm_on_redis() {
    stands_a_short_storm(&["25", "--store", "redis", "--seed", "1"], &server::TABLE);
}

#[test]
fn a_store_that_forgets_what_it_confirmed_is_found_out() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = storm(&["20", "--store", "redis-in-memory", "--faults", "server-killed", "--seed", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("overlap: "), "{text}");
    std::fs::remove_dir_all(kept(&text)).expect("removed");
}

#[test]
fn a_wrapper_that_takes_no_lease_is_found_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let wrapper = dir.path().join("no-lease");
    let script = "#!/bin/bash\nwhile [ \"$1\" != -- ]; do shift; done; shift\nLOCKRUN_TOKEN=$(date +%s%N) exec \"$@\"\n";
    std::fs::write(&wrapper, script).expect("a script");
    let mut mode = std::fs::metadata(&wrapper).expect("there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&wrapper, mode).expect("executable");
    let output = storm(&["3", "--faults", "none", "--lockrun", wrapper.to_str().expect("UTF-8")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("overlap: "), "{text}");
    let history = history::read(&kept(&text).join("history")).expect("it is kept for a look");
    assert!(history.iter().any(|line| matches!(line.event, Event::Overlap { .. })));
    std::fs::remove_dir_all(kept(&text)).expect("removed");
}
