//! The promise: no process that lockrun started is alive at the moment when another copy may start. Measured by the
//! other copy itself: it waits for the lease, and the first thing it does is to look.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::keeper::Keeper;
use super::trouble::lock_database;
use super::{
    DEAD_BY, assert_code, assert_dead_in_time_when_stopped, assert_died_of, assert_found_nobody, assert_released, lockrun, next_copy,
    pass_until, patient, probe, roster, start_tree, timed, times_caught, wait_for_catcher,
};
use crate::common::tables::own_row;
use crate::common::{Running, Scene, alive, comm, signal, state, wait_until};

#[test]
fn t30_what_an_exited_command_left_behind_is_ended_before_the_lease_is_free() {
    let scene = Scene::new();
    let probe = probe();
    let dir = scene.dir().to_str().expect("UTF-8");
    // The tree waits for `go`, so that the next copy waits before the command exits.
    let script = "until [ -e go ]; do sleep 0.05; done; exec \"$0\" \"$@\"";
    let args = ["--", "sh", "-c", script, &probe, "witness", dir, &probe, "tree", dir, "5"];
    let holder = scene.start(&mut patient(&scene, args));
    holder.wait_for_stderr("acquired");
    let next = next_copy(&scene, patient(&scene, [""; 0]));
    std::fs::write(scene.path("go"), "").expect("go");
    let holder = holder.finish();
    assert_code(&holder, 5);
    assert_eq!(roster::all(scene.dir()).len(), 8, "the tree stood");
    assert_found_nobody(&scene, next);
    assert!(holder.stderr.contains("left"), "it must be said: {}", holder.stderr);
}

#[test]
fn t32_an_unreachable_store_means_term_then_kill_before_the_lease_runs_out() {
    let scene = Scene::new();
    let holder = scene.start(&mut lockrun(&scene, ["--", &probe(), "sigcatch-pair", "caught", "child"]));
    wait_for_catcher(&scene.path("caught"));
    let locked = lock_database(&scene);
    let since = Instant::now();
    wait_until("TERM", || times_caught(&scene.path("caught"), libc::SIGTERM) == 1);
    pass_until(since + DEAD_BY);
    let left: Vec<i32> = scene.processes().into_iter().filter(|pid| comm(*pid) == "probe").collect();
    assert_eq!(left, Vec::<i32>::new(), "alive {:?} after the last renewal", since.elapsed());
    drop(locked);
    let holder = holder.finish();
    assert_code(&holder, 76);
    assert!(holder.stderr.contains("unreachable"), "it must be said: {}", holder.stderr);
    assert_released_soon(&scene);
}

#[test]
fn t32_a_record_that_is_gone_means_kill_at_once() {
    let scene = Scene::new();
    let holder = scene.start(&mut patient(&scene, ["--", &probe(), "sigcatch-pair", "caught", "child"]));
    wait_for_catcher(&scene.path("caught"));
    super::trouble::delete_records(&scene);
    let holder = holder.finish();
    assert_code(&holder, 76);
    assert!(holder.stderr.contains("lost"), "it must be said: {}", holder.stderr);
    let left: Vec<i32> = scene.processes().into_iter().filter(|pid| comm(*pid) == "probe").collect();
    assert_eq!(left, Vec::<i32>::new());
    for file in ["caught", "child"] {
        assert_eq!(times_caught(&scene.path(file), libc::SIGTERM), 0, "somebody may be running: there is no time for TERM");
    }
}

/// The lease runs out at the latest; a record that was not released does not keep others out for longer.
fn assert_released_soon(scene: &Scene) {
    assert_code(&scene.run(&mut lockrun(scene, ["--", "true"])), 0);
}

#[test]
fn t33_a_killed_front_leaves_nobody_and_the_lease_is_free_without_waiting_for_its_end() {
    let scene = Scene::new();
    // Ten minutes of TTL: a next copy that waits for its end does not start within the test's patience.
    let holder = start_tree(&scene, patient(&scene, [""; 0]));
    let guard = holder.guard();
    let next = next_copy(&scene, patient(&scene, [""; 0]));
    holder.signal(Signal::SIGKILL);
    assert_died_of(&holder.finish(), libc::SIGKILL);
    assert_found_nobody(&scene, next);
    wait_until("the end of the guard", || !alive(guard));
}

#[test]
fn t33_the_last_will_leaves_a_record_alone_that_has_another_holder() {
    let scene = Scene::new();
    // The next renewal, which would find it out first, is 50 s away.
    let mut command = scene.bare_lockrun(["--ttl", "600s", "--db"]);
    let holder = scene.start(command.arg(scene.db()).args(["--", "sh", "-c", "echo >started; sleep 1000"]));
    scene.wait_for_file("started");
    let guard = holder.guard();
    let database = lock_database(&scene);
    database.execute_batch("UPDATE lockrun_lease SET holder = 'another', token = token + 1, write_id = 'w'; COMMIT").expect("taken");
    holder.signal(Signal::SIGKILL);
    wait_until("the end of the guard", || !alive(guard));
    assert_eq!(own_row(&database, "default").expect("a record").holder.as_deref(), Some("another"));
}

#[test]
fn t33_a_front_that_dies_of_a_fault_leaves_nobody() {
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT] {
        let scene = Scene::new();
        let holder = start_tree(&scene, patient(&scene, [""; 0]));
        let next = next_copy(&scene, patient(&scene, [""; 0]));
        holder.signal(fault);
        assert_ne!(holder.finish().code(), 0);
        assert_found_nobody(&scene, next);
    }
}

#[test]
fn t34_a_stopped_front_keeps_nobody_alive_and_finds_its_lease_lost_when_it_wakes() {
    let scene = Scene::new();
    let mut holder = start_tree(&scene, lockrun(&scene, [""; 0]));
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    assert_dead_in_time_when_stopped(&scene, &holder);
    // The next copy runs while the front is still stopped: the guard alone gave the lease back.
    assert_found_nobody(&scene, next);
    assert!(holder.is_running() && state(holder.pid()) == Some('T'));
    holder.signal(Signal::SIGCONT);
    let holder = holder.finish();
    assert_code(&holder, 76);
    assert!(holder.stderr.contains("lost"), "it must be said: {}", holder.stderr);
}

#[test]
fn t35_a_killed_guard_leaves_nobody_and_lockrun_says_76_and_releases() {
    let scene = Scene::new();
    let holder = start_tree(&scene, patient(&scene, [""; 0]));
    let next = next_copy(&scene, patient(&scene, [""; 0]));
    signal(holder.guard(), Signal::SIGKILL);
    assert_code(&holder.finish(), 76);
    assert_found_nobody(&scene, next);
    assert_released(&scene);
}

#[test]
fn t35_a_stopped_guard_is_killed_by_its_own_timer_and_leaves_nobody() {
    let scene = Scene::new();
    let holder = start_tree(&scene, lockrun(&scene, [""; 0]));
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    let guard = holder.guard();
    signal(guard, Signal::SIGSTOP);
    assert_code(&holder.finish(), 76);
    assert!(!alive(guard), "the guard is alive");
    assert_found_nobody(&scene, next);
    assert_released(&scene);
}

/// Fifty fork chains. Only the witness stays open in them: a chain that is alive does not hold the next copy back, it shows
/// as an overlap.
fn start_bomb(scene: &Scene) -> Running {
    let (probe, dir) = (probe(), scene.dir().to_str().expect("UTF-8"));
    // Longer than the test looks, and no longer: a test that is killed leaves them behind.
    let bomb = [&probe, "witness", dir, &probe, "only", "9", &probe, "bomb", "50", "90", "ready"];
    let holder = scene.start(patient(scene, ["--"]).args(bomb));
    scene.wait_for_file("ready");
    holder
}

#[test]
fn t40_fifty_fork_chains_do_not_outrun_the_kill() {
    for round in 0..4 {
        let scene = Scene::new();
        let holder = start_bomb(&scene);
        let next = next_copy(&scene, patient(&scene, [""; 0]));
        // Front, guard, and the lease itself in turn: all ways to the kill.
        match round {
            0 => holder.signal(Signal::SIGKILL),
            1 => signal(holder.guard(), Signal::SIGKILL),
            2 => super::trouble::delete_records(&scene),
            _ => signal(scene.starts()[0].1, Signal::SIGKILL),
        }
        let next = next.finish();
        assert_eq!(next.code(), 0, "round {round}: {}", next.stderr);
        scene.assert_exclusion();
        wait_until("the end of all", || scene.processes().is_empty());
    }
}

/// The front is killed, and after a first pass of the kill the guard is held up for that time. It has a survivor then: one that
/// waits for a frozen disk does not die of SIGKILL before the thaw. Who else would end what is left?
fn hold_up_a_guard_with_a_survivor(lockrun: fn(&Scene, [&str; 3]) -> Command, time: Duration) {
    let scene = Scene::new();
    let disk = Keeper::ext4(&scene, "disk");
    disk.freeze(&scene);
    let holder = scene.start(lockrun(&scene, ["--", "sh", "-c"]).arg(scene.witness("echo >disk/file")));
    let command = scene.wait_for_starts(1)[0].1;
    wait_until("a command that waits for the disk", || state(command) == Some('D'));
    let next = next_copy(&scene, patient(&scene, [""; 0]));
    let guard = holder.guard();
    holder.signal(Signal::SIGKILL);
    wait_until("the first pass", || kill_is_pending(command));
    signal(guard, Signal::SIGSTOP);
    wait_until("the stop", || state(guard) == Some('T'));
    pass_until(Instant::now() + time);
    let held_up = state(guard);
    // Before anything can fail: what waits for the disk could not be ended.
    disk.thaw(&scene);
    assert_eq!(held_up, Some('T'), "the guard died of its own timer");
    signal(guard, Signal::SIGCONT);
    assert_code(&next.finish(), 0);
    scene.assert_exclusion();
    wait_until("the end of all", || scene.processes().is_empty());
}

fn kill_is_pending(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & (1 << (libc::SIGKILL - 1)) != 0)
}

/// Starved for a second between two passes is all that it takes: seen on a busy machine.
#[test]
fn t40_a_guard_that_is_held_up_while_it_kills_in_a_dead_fronts_place_does_not_give_up() {
    hold_up_a_guard_with_a_survivor(|scene, args| patient(scene, args), Duration::from_millis(1500));
}

/// As a container that is paused, or a machine that sleeps: what is left when it wakes up must not run for ever.
#[test]
fn t40_a_guard_that_is_held_up_past_the_deadline_ends_what_is_left_when_it_wakes() {
    let short = |scene: &Scene, args: [&str; 3]| {
        let mut command = timed(scene, "2s");
        command.args(args);
        command
    };
    hold_up_a_guard_with_a_survivor(short, Duration::from_secs(3));
}

#[test]
fn t34_a_front_stopped_in_the_first_moment_of_its_command_leaves_nobody() {
    for _ in 0..5 {
        let scene = Scene::new();
        let dir = scene.dir().to_str().expect("UTF-8");
        let probe = probe();
        let holder = scene.start(&mut lockrun(&scene, ["--", &probe, "witness", dir, "sleep", "600"]));
        scene.wait_for_starts(1);
        holder.signal(Signal::SIGSTOP);
        pass_until(Instant::now() + DEAD_BY);
        assert!(!alive(scene.starts()[0].1), "the deadline must reach the guard before the command starts");
    }
}
