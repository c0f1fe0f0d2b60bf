//! A real APScheduler program, started three times under lockrun on one database. Must never pass for want of APScheduler:
//! without it these tests fail.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::common::report::wait_until_it_waits;
use crate::common::{Running, Scene, alive, wait_until};

const PYTHON: &str = "/usr/bin/python3";
const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scheduler_app.py");

/// One run of the job, as the program recorded it.
#[derive(Clone, Debug)]
struct Tick {
    slot: i64,
    token: i64,
    pid: i32,
    start: i64,
    end: i64,
}

/// Three copies, of which the first holds the lease.
struct Copies {
    scene: Scene,
    holder: Option<Running>,
    waiting: Vec<Running>,
}

impl Copies {
    fn start() -> Copies {
        let found = Command::new(PYTHON).args(["-c", "import apscheduler"]).output().is_ok_and(|output| output.status.success());
        assert!(found, "APScheduler is missing; run tests/run, which installs python3-apscheduler");
        let scene = Scene::new();
        let holder = scene.start(scene.lockrun(["--", PYTHON, APP]).env("TZ", "UTC"));
        wait_for_ticks(&scene, 3);
        let waiting: Vec<_> = (0..2).map(|_| scene.start(scene.lockrun(["--", PYTHON, APP]).env("TZ", "UTC"))).collect();
        waiting.iter().for_each(wait_until_it_waits);
        Copies { scene, holder: Some(holder), waiting }
    }

    fn holder(&mut self) -> Running {
        self.holder.take().expect("taken once")
    }

    /// Waits for the ticks of somebody who has a larger token than any before.
    fn wait_for_the_next(&self, after: i64) -> Tick {
        let mut first = None;
        wait_until("ticks of the next copy", || {
            let ticks = ticks(&self.scene);
            first = ticks.iter().find(|tick| tick.token > after).cloned();
            ticks.iter().filter(|tick| tick.token > after).count() >= 5
        });
        first.expect("just found")
    }
}

fn wait_for_ticks(scene: &Scene, count: usize) {
    wait_until(&format!("{count} ticks"), || ticks(scene).len() >= count);
}

fn ticks(scene: &Scene) -> Vec<Tick> {
    let text = fs::read_to_string(scene.path("ticks")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let fields: Vec<i64> = line.split(' ').map(|field| field.parse().expect("a number")).collect();
            Tick { slot: fields[0], token: fields[1], pid: fields[2] as i32, start: fields[3], end: fields[4] }
        })
        .collect()
}

/// No tick ran twice, none at the same time as another, and none was left out by the copy that had its turn.
fn assert_each_tick_ran_once(scene: &Scene) {
    let ticks = ticks(scene);
    let slots: HashSet<i64> = ticks.iter().map(|tick| tick.slot).collect();
    assert_eq!(slots.len(), ticks.len(), "a tick ran twice: {ticks:?}");
    for pair in ticks.windows(2) {
        let (one, next) = (&pair[0], &pair[1]);
        assert!(one.end <= next.start, "two ticks at once: {one:?} {next:?}");
        assert!(one.token <= next.token, "the token only grows: {one:?} {next:?}");
        assert_eq!(one.pid == next.pid, one.token == next.token, "a token for each start: {one:?} {next:?}");
        assert!(one.pid != next.pid || one.slot + 1 == next.slot, "a tick was left out: {one:?} {next:?}");
    }
    let overlaps = fs::read_to_string(scene.path("overlaps")).unwrap_or_default();
    assert_eq!(overlaps, "", "ticks held the flock at once");
}

#[test]
fn every_tick_runs_once_though_three_copies_are_started() {
    let mut copies = Copies::start();
    wait_for_ticks(&copies.scene, 20);
    let ticks = ticks(&copies.scene);
    assert!(ticks.iter().all(|tick| tick.pid == ticks[0].pid), "one copy runs them all: {ticks:?}");
    assert_each_tick_ran_once(&copies.scene);
    assert!(copies.holder().is_running() && copies.waiting.iter_mut().all(Running::is_running));
}

#[test]
fn when_the_holder_is_killed_the_next_copy_ticks_on() {
    let mut copies = Copies::start();
    let before = ticks(&copies.scene)[0].clone();
    let holder = copies.holder();
    holder.signal(Signal::SIGKILL);
    assert_eq!(holder.finish().code(), 137);
    let next = copies.wait_for_the_next(before.token);
    assert!(next.pid != before.pid && !alive(before.pid));
    assert_each_tick_ran_once(&copies.scene);
}

#[test]
fn on_a_stop_signal_the_program_shuts_down_in_order_and_another_copy_ticks_on() {
    let mut copies = Copies::start();
    let before = ticks(&copies.scene)[0].clone();
    let holder = copies.holder();
    holder.signal(Signal::SIGTERM);
    let finished = holder.finish();
    assert_eq!(finished.code(), 0, "the program's own exit code: {}", finished.stderr);

    let events = fs::read_to_string(copies.scene.path("events")).expect("an orderly shutdown");
    let at: i64 = events.strip_prefix(&format!("shutdown in order {} ", before.pid)).expect(&events).trim_end().parse().expect("a time");
    let next = copies.wait_for_the_next(before.token);
    assert!(at < next.start, "the next copy ticks after the shutdown");
    assert_each_tick_ran_once(&copies.scene);
}
