//! An application that holds its own table, written with Python's sqlite3, beside lockrun on the same table: each keeps the
//! other out while it lives, and takes over when it is dead. Must never judge by the rows alone: the flock of the harness's
//! witness is the proof.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::common::gate::Gate;
use crate::common::report::wait_until_it_waits;
use crate::common::tables::Table;
use crate::common::{Running, Scene, signal, state, wait_until};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/origin_app.py");

/// The application, which judges by `ttl` seconds.
fn application(scene: &Scene, ttl: &str, more: &[&str]) -> Command {
    let mut command = scene.command("/usr/bin/python3");
    command.arg(APP).arg(scene.db()).args([ttl, "0.2"]).args(more);
    command
}

/// lockrun on the application's table, with the application's TTL.
fn lockrun(scene: &Scene, ttl: &str, body: &str) -> Command {
    let mut command = scene.bare_lockrun(["--ttl", ttl, "--heartbeat", "200ms", "--grace", "200ms", "--table", "scheduler_lock", "--db"]);
    command.arg(scene.db()).args(["--", "sh", "-c"]).arg(scene.witness(body));
    command
}

fn events(scene: &Scene) -> String {
    fs::read_to_string(scene.path("app-events")).unwrap_or_default()
}

fn wait_for_event(scene: &Scene, event: &str, running: &Running) {
    let line = format!("{event} {}\n", running.pid());
    wait_until(&format!("the application's {line:?}"), || events(scene).contains(&line));
}

/// Waits until the holder has lived for longer than its TTL, which heartbeats alone can do.
fn wait_until_it_outlived_its_ttl(scene: &Scene, holder: &Running, ttl: f64) {
    wait_until("a holder older than its TTL", || {
        Table::App.row(scene).is_some_and(|row| row.pid == i64::from(holder.pid()) && row.heartbeat_at > row.created_at + ttl)
    });
}

#[test]
fn a_python_holder_keeps_lockrun_out_while_it_lives() {
    let scene = Table::App.scene();
    let python = scene.start(&mut application(&scene, "2", &[]));
    wait_for_event(&scene, "holding", &python);
    let waiter = scene.start(&mut lockrun(&scene, "2s", "true"));
    wait_until_it_waits(&waiter);
    wait_until_it_outlived_its_ttl(&scene, &python, 2.0);
    let refused =
        scene.run(scene.bare_lockrun(["-n", "--ttl", "2s", "--table", "scheduler_lock", "--db"]).arg(scene.db()).args(["--", "true"]));
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    assert!(refused.stderr.contains(&python.pid().to_string()), "{}", refused.stderr);
    assert_eq!(scene.starts(), [], "lockrun waited all the while");

    python.signal(Signal::SIGTERM);
    assert_eq!(python.finish().code(), 0);
    assert_eq!(waiter.finish().code(), 0);
    assert_eq!(scene.starts().len(), 1);
    scene.assert_exclusion();
}

#[test]
fn lockrun_keeps_a_python_program_out_while_it_lives() {
    let scene = Table::App.scene();
    let mut gate = Gate::new(&scene, "go");
    let holder = scene.start(&mut lockrun(&scene, "2s", "read gate <go"));
    scene.wait_for_starts(1);
    let python = scene.start(&mut application(&scene, "2", &[]));
    wait_for_event(&scene, "waiting", &python);
    wait_until_it_outlived_its_ttl(&scene, &holder, 2.0);
    assert!(!events(&scene).contains("holding"), "the application waited all the while");

    gate.open();
    assert_eq!(holder.finish().code(), 0);
    wait_for_event(&scene, "holding", &python);
    python.signal(Signal::SIGTERM);
    assert_eq!(python.finish().code(), 0);
    scene.assert_exclusion();
}

#[test]
fn lockrun_takes_over_from_a_crashed_python_program_after_the_ttl() {
    let scene = Table::App.scene();
    let python = scene.start(&mut application(&scene, "2", &[]));
    wait_for_event(&scene, "holding", &python);
    let mut gate = Gate::new(&scene, "go");
    let waiter = scene.start(&mut lockrun(&scene, "2s", "read gate <go"));
    wait_until_it_waits(&waiter);
    python.signal(Signal::SIGKILL);
    assert_eq!(python.finish().code(), 137);
    let dead = Table::App.row(&scene).expect("its row outlives it");

    scene.wait_for_starts(1);
    let row = Table::App.wait_for_holder(&scene, waiter.pid());
    assert!(row.created_at - dead.heartbeat_at > 1.999, "not before the TTL has run out: {dead:?} {row:?}");
    gate.open();
    assert_eq!(waiter.finish().code(), 0);
    scene.assert_exclusion();
}

/// Front, guard and command at once: stopped first, so that none of them can clear up for the others.
#[test]
fn a_python_program_takes_over_from_a_crashed_lockrun_after_the_ttl() {
    let scene = Table::App.scene();
    let holder = scene.start(&mut lockrun(&scene, "5s", "exec sleep 1000"));
    let command = scene.wait_for_starts(1)[0].1;
    let python = scene.start(&mut application(&scene, "5", &[]));
    wait_for_event(&scene, "waiting", &python);
    let guard = holder.guard();
    for pid in [holder.pid(), guard] {
        signal(pid, Signal::SIGSTOP);
        wait_until("a stopped process", || state(pid) == Some('T'));
    }
    for pid in [guard, holder.pid(), command] {
        signal(pid, Signal::SIGKILL);
    }
    let pid = holder.pid();
    assert_eq!(holder.finish().code(), 137);
    let dead = Table::App.row(&scene).expect("its row outlives it");
    assert_eq!(dead.pid, i64::from(pid));

    wait_for_event(&scene, "holding", &python);
    let row = Table::App.wait_for_holder(&scene, python.pid());
    assert!(row.created_at - dead.heartbeat_at > 4.999, "not before the TTL has run out: {dead:?} {row:?}");
    python.signal(Signal::SIGTERM);
    assert_eq!(python.finish().code(), 0);
    scene.assert_exclusion();
}

/// With a TTL of ten minutes nobody would live to see it run out.
#[test]
fn the_guards_last_will_lets_a_python_program_in_when_the_front_is_killed() {
    let scene = Table::App.scene();
    let holder = scene.start(&mut lockrun(&scene, "10m", "exec sleep 1000"));
    scene.wait_for_starts(1);
    let python = scene.start(&mut application(&scene, "600", &[]));
    wait_for_event(&scene, "waiting", &python);
    holder.signal(Signal::SIGKILL);
    wait_for_event(&scene, "holding", &python);
    python.signal(Signal::SIGTERM);
    assert_eq!(python.finish().code(), 0);
    scene.assert_exclusion();
}

#[test]
fn python_and_lockrun_take_turns_and_never_overlap() {
    const ROUNDS: usize = 8;
    let scene = Table::App.scene();
    let pythons: Vec<_> = (0..2).map(|_| scene.start(&mut application(&scene, "60", &["--rounds", &ROUNDS.to_string()]))).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let finished = scene.run(&mut lockrun(&scene, "60s", "true"));
                    assert_eq!(finished.code(), 0, "{}", finished.stderr);
                }
            });
        }
    });
    for python in pythons {
        assert_eq!(python.finish().code(), 0);
    }
    assert_eq!(scene.starts().len(), 2 * ROUNDS);
    assert_eq!(events(&scene).matches("round ").count(), 2 * ROUNDS);
    assert_eq!(Table::App.row(&scene), None);
    scene.assert_exclusion();
}
