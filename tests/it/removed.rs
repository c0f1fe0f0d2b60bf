//! What is taken away under a holder or a waiter: files of the database, the right to write, the guard. No two commands for
//! longer than the design allows, and no lease held for nothing.

use nix::sys::signal::Signal;

use crate::common::gate::Gate;
use crate::common::tables::{Table, open, own_row};
use crate::common::{Running, Scene, alive, signal, wait_until};

fn commands_alive(scene: &Scene) -> usize {
    scene.starts().iter().filter(|(_, pid)| alive(*pid)).count()
}

/// Starts a holder, runs `remove`, starts another copy: in the end one of them runs its command.
fn one_is_left_after(remove: impl FnOnce(&Scene)) {
    let scene = Scene::new();
    let script = scene.witness("exec sleep 1000");
    let holder = scene.start(&mut scene.lockrun(["--", "sh", "-c", &script]));
    scene.wait_for_starts(1);
    remove(&scene);
    let next = scene.start(&mut scene.lockrun(["--", "sh", "-c", &script]));
    // Either the newcomer waits, or it runs and the holder has found out.
    wait_until("a decision", || next.stderr().contains("waiting") || holder.stderr().contains("lost"));
    wait_until("one command", || commands_alive(&scene) == 1);
    let winner = scene.starts().into_iter().find(|(_, pid)| alive(*pid)).expect("one runs");
    assert!(winner.1 > 0 && commands_alive(&scene) == 1);
}

fn remove(scene: &Scene, endings: &[&str]) {
    for ending in endings {
        std::fs::remove_file(scene.path(&format!("x.db{ending}"))).expect("it was there");
    }
}

#[test]
fn a_log_and_a_side_file_that_were_removed_leave_one_command_running() {
    one_is_left_after(|scene| remove(scene, &["-wal", "-shm", "-lockrun"]));
}

#[test]
fn a_log_that_was_removed_leaves_one_command_running() {
    one_is_left_after(|scene| remove(scene, &["-wal", "-shm"]));
}

/// SQLite's own locks are in the index of the log (-shm): with two of them, neither side sees what the other one writes. Here
/// the record alone keeps the other copy out, as it does whenever the kernel lock came free for a moment.
#[test]
fn an_index_of_the_log_that_was_removed_hides_no_renewal_from_a_newcomer() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("x.db-lockrun")).expect("a folder: no kernel lock");
    let mut gate = Gate::new(&scene, "gate");
    let holder = scene.start(&mut scene.lockrun(["--", "sh", "-c", &scene.witness("read go <gate")]));
    scene.wait_for_starts(1);
    remove(&scene, &["-shm"]);
    let next = scene.start(&mut scene.lockrun(["--", "sh", "-c", &scene.witness("true")]));
    next.wait_for_stderr("waiting");
    let start = std::time::Instant::now();
    // Twice the TTL, in which the holder renews.
    wait_until("a second start, or the time for it", || scene.starts().len() > 1 || start.elapsed().as_secs() > 6);
    assert_eq!((scene.starts().len(), commands_alive(&scene)), (1, 1), "{}", holder.stderr());
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert_eq!(next.finish().code(), 0);
    scene.assert_exclusion();
}

/// Whoever has the kernel lock of the new side file is let in when the database goes too, however much later.
#[test]
fn a_side_file_that_was_removed_is_the_holders_again_also_when_another_copy_has_made_it_anew() {
    let scene = Scene::new();
    let script = scene.witness("exec sleep 1000");
    let slow = ["--ttl", "60s", "--heartbeat", "3s", "--grace", "1s", "--db", "x.db", "--", "sh", "-c", &script];
    let mut holder = scene.start(&mut scene.bare_lockrun(slow));
    scene.wait_for_starts(1);
    remove(&scene, &["-lockrun"]);
    let next = scene.start(&mut scene.bare_lockrun(slow));
    next.wait_for_stderr("waiting");
    assert!(scene.path("x.db-lockrun").exists(), "the other copy has made it anew");
    let guard = holder.guard();
    wait_until("the lock of the new side file", || {
        let fds = std::fs::read_dir(format!("/proc/{guard}/fd")).expect("its descriptors");
        fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == scene.path("x.db-lockrun")))
    });
    remove(&scene, &["", "-wal", "-shm"]);
    holder.wait_for_stderr("put back");
    assert!(holder.is_running() && commands_alive(&scene) == 1);
}

/// SQLite keeps the index of the removed log as long as anybody has it open.
#[test]
fn a_log_that_was_removed_alone_does_not_keep_the_waiting_copies_out_for_ever() {
    let scene = Scene::new();
    let script = scene.witness("exec sleep 1000");
    let start = || scene.start(&mut scene.lockrun(["--", "sh", "-c", &script]));
    let holder = start();
    scene.wait_for_starts(1);
    let waiters = [start(), start()];
    waiters.iter().for_each(|waiter| waiter.wait_for_stderr("waiting"));
    remove(&scene, &["-wal"]);
    holder.signal(Signal::SIGTERM);
    scene.wait_for_starts(2);
    scene.assert_exclusion();
}

#[test]
fn a_database_that_was_removed_whole_leaves_one_command_running() {
    one_is_left_after(|scene| remove(scene, &["", "-wal", "-shm", "-lockrun"]));
}

#[test]
fn a_database_that_was_removed_alone_is_put_back_and_nobody_is_disturbed() {
    let scene = Scene::new();
    let script = scene.witness("exec sleep 1000");
    let mut holder = scene.start(&mut scene.lockrun(["--", "sh", "-c", &script]));
    let token = scene.wait_for_starts(1)[0].0;
    remove(&scene, &["", "-wal", "-shm"]);
    holder.wait_for_stderr("put back");
    let mut row = None;
    wait_until("the record", || {
        row = own_row(&open(&scene.db()), "default");
        row.is_some()
    });
    assert_eq!(row.expect("just found").token, token);
    let refused = scene.run(&mut scene.lockrun(["-n", "--", "sh", "-c", &script]));
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    assert!(holder.is_running() && commands_alive(&scene) == 1);
}

/// A holder that runs, and the database as it was before the holder came.
fn held_with_an_older_copy(scene: &Scene) -> (Running, i64) {
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
    open(&scene.db()).execute("VACUUM INTO ?1", [scene.path("old.db").to_str().expect("UTF-8")]).expect("a copy");
    let holder = scene.start(&mut scene.lockrun(["--", "sh", "-c", &scene.witness("exec sleep 1000")]));
    let token = scene.wait_for_starts(1)[0].0;
    (holder, token)
}

/// As a restore does it: the new file is put in place by a rename.
fn restore(scene: &Scene) {
    remove(scene, &["-wal", "-shm"]);
    std::fs::rename(scene.path("old.db"), scene.db()).expect("in place");
}

#[test]
fn a_database_that_was_replaced_by_an_older_copy_is_put_right_and_nobody_is_disturbed() {
    let scene = Scene::new();
    let (mut holder, token) = held_with_an_older_copy(&scene);
    restore(&scene);
    holder.wait_for_stderr("put back");
    // It is said before the write.
    wait_until("the record", || own_row(&open(&scene.db()), "default").is_some_and(|row| row.token == token));
    let refused = scene.run(&mut scene.lockrun(["-n", "--", "touch", "ran"]));
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    assert!(holder.is_running() && commands_alive(&scene) == 1 && !scene.path("ran").exists());
}

#[test]
fn a_database_that_was_removed_while_it_could_not_be_read_is_put_back() {
    let scene = Scene::new();
    let mut command = scene.bare_lockrun(["--ttl", "60s", "--heartbeat", "500ms", "--db"]);
    let mut holder = scene.start(command.arg(scene.db()).args(["--", "sh", "-c", &scene.witness("exec sleep 1000")]));
    scene.wait_for_starts(1);
    open(&scene.db()).execute_batch("ALTER TABLE lockrun_lease RENAME TO gone").expect("damaged");
    holder.wait_for_stderr("unreachable");
    remove(&scene, &["", "-wal", "-shm"]);
    holder.wait_for_stderr("put back");
    assert!(holder.is_running() && commands_alive(&scene) == 1);
}

#[test]
fn a_database_that_was_replaced_by_one_with_a_later_token_ends_the_command_and_is_said() {
    let scene = Scene::new();
    let (holder, token) = held_with_an_older_copy(&scene);
    let old = rusqlite::Connection::open(scene.path("old.db")).expect("the copy");
    old.execute("UPDATE lockrun_lease SET token = ?1", [token + 1]).expect("a later token");
    drop(old);
    restore(&scene);
    let finished = holder.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
    assert!(finished.stderr.contains("lost") && finished.stderr.contains("replaced"), "{}", finished.stderr);
    assert_eq!(commands_alive(&scene), 0);
    assert_eq!(scene.run(&mut scene.lockrun(["--", "sh", "-c", &scene.witness("true")])).code(), 0);
    scene.assert_exclusion();
    assert!(scene.starts()[1].0 > token + 1, "the token rises over the one that was found");
}

#[test]
fn an_applications_table_is_one_lease_however_its_name_is_spelt() {
    let scene = Table::App.scene();
    let mut gate = Gate::new(&scene, "go");
    let script = scene.witness("read gate <go");
    let holder = scene.start(&mut scene.lockrun(["--table", "scheduler_lock", "--", "sh", "-c", &script]));
    scene.wait_for_starts(1);
    let refused = scene.run(&mut scene.lockrun(["-n", "--table", "Scheduler_LOCK", "--", "sh", "-c", &script]));
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert_eq!(scene.starts().len(), 1);
}

#[test]
fn a_waiter_whose_guard_is_stopped_does_not_hold_the_lease_for_nothing() {
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let script = scene.witness("read gate <go");
    let holder = scene.start(&mut scene.lockrun(["--", "sh", "-c", &script]));
    scene.wait_for_starts(1);
    let stuck: Running = scene.start(&mut scene.lockrun(["--", "touch", "ran"]));
    stuck.wait_for_stderr("waiting");
    signal(stuck.guard(), Signal::SIGSTOP);
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert_eq!(stuck.finish().code(), 76);
    assert!(!scene.path("ran").exists());
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
}

#[test]
fn a_command_inherits_one_kernel_lock_however_long_the_database_was_busy_before() {
    let scene = Scene::new();
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
    let busy = open(&scene.db());
    busy.execute_batch("BEGIN EXCLUSIVE").expect("the right to write");
    let waiter = scene.start(&mut scene.lockrun(["--", "ls", "-l", "/proc/self/fd"]));
    waiter.wait_for_stderr("unreachable");
    // Each failed try gives the kernel lock back and takes it anew: three seconds are some ten of them.
    let since = std::time::Instant::now();
    wait_until("some tries", || since.elapsed() > std::time::Duration::from_secs(3));
    let fds = std::fs::read_dir(format!("/proc/{}/fd", waiter.guard())).expect("its descriptors");
    let locks = fds.flatten().filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == scene.path("x.db-lockrun"))).count();
    assert!(locks <= 2, "{locks} pile up in the guard"); // one, and one that is just coming
    drop(busy);
    let finished = waiter.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(finished.stdout.matches("x.db-lockrun").count(), 1, "{}", finished.stdout);
}
