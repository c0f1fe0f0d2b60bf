//! The wait: on the kernel lock alone, without a look at anything while nothing changes; and what comes of it when the side
//! file is taken away, cannot be used, or is in the hands of somebody who does not let go.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use crate::common::gate::Gate;
use crate::common::report::wait_until_it_waits;
use crate::common::tables::{Table, boottime_ns, open, own_row};
use crate::common::{Running, Scene, alive, lockrun_binary, signal, state, wait_until};

/// How often any thread of a process gave up or lost the processor: one that sleeps on does neither.
fn switches(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    let text: String = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok()).collect();
    let counts = text.lines().filter(|line| line.contains("ctxt_switches"));
    counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// What moves when a waiter wakes up. It does so for a line of its log; in between, never.
fn pulse(waiter: &Running) -> (usize, u64) {
    (waiter.stderr().lines().count(), switches(waiter.pid()) + switches(waiter.guard()))
}

/// It waits in its thread for the lock, and nothing of it is about to do anything.
fn sleeps(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    has_thread(pid, "lock") && tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).all(|thread| state(thread) == Some('S'))
}

fn copy(scene: &Scene, ttl: &str, body: &str) -> Running {
    let mut command = scene.bare_lockrun(["--ttl", ttl, "--heartbeat", "250ms", "--grace", "300ms", "--db"]);
    scene.start(command.arg(scene.db()).args(["--", "sh", "-c", &scene.witness(body)]))
}

/// With a TTL so long that a loaded machine does not end it.
fn start_holder(scene: &Scene, body: &str) -> Running {
    let holder = copy(scene, "60s", body);
    scene.wait_for_starts(1);
    holder
}

fn start_waiter(scene: &Scene, body: &str) -> Running {
    let waiter = copy(scene, "60s", body);
    wait_until_it_waits(&waiter);
    waiter
}

/// The process has the file open that lies at this path now.
fn has_open(pid: i32, path: &Path) -> bool {
    let Ok(there) = fs::metadata(path) else { return false };
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| fs::metadata(fd.path()).ok()).any(|open| (open.dev(), open.ino()) == (there.dev(), there.ino()))
}

#[test]
fn a_standby_does_not_wake_up_while_the_holder_renews() {
    const BEATS: u64 = 12;
    let scene = Scene::new();
    let holder = start_holder(&scene, "exec sleep 1000");
    let standby = start_waiter(&scene, "true");
    let mut row = Table::Own.row(&scene).expect("held");
    let mut of_holder = 0;
    wait_until("a dozen beats that the standby slept through", || {
        let (before, holder_before) = (pulse(&standby), switches(holder.guard()));
        (0..BEATS).for_each(|_| row = Table::Own.wait_for_renewal(&scene, &row));
        of_holder = switches(holder.guard()) - holder_before;
        pulse(&standby) == before
    });
    assert!((BEATS - 1..3 * BEATS).contains(&of_holder), "the holder's guard hears of each renewal, once: {of_holder}");
}

#[test]
fn a_hand_over_wakes_the_next_one_and_none_of_those_who_wait_on() {
    const WAITERS: usize = 20;
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let holder = start_holder(&scene, "read gate <go");
    let waiters: Vec<_> = (0..WAITERS).map(|_| start_waiter(&scene, "exec sleep 1000")).collect();
    wait_until("sleep", || waiters.iter().all(|waiter| sleeps(waiter.pid())));
    let before: Vec<_> = waiters.iter().map(pulse).collect();
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    scene.wait_for_starts(2);
    let next = Table::Own.row(&scene).expect("held").pid;
    let after: Vec<_> = waiters.iter().map(pulse).collect();
    let lines_of = |index: usize| (before[index].0, after[index].0);
    let others = (0..WAITERS).filter(|index| i64::from(waiters[*index].pid()) != next);
    let asleep: Vec<_> = others.filter(|index| lines_of(*index).0 == lines_of(*index).1).collect();
    assert!(!asleep.is_empty(), "all of them wrote a line just then");
    for index in asleep {
        assert_eq!(before[index], after[index], "waiter {index} of {WAITERS} woke up");
    }
}

#[test]
fn a_waiter_comes_to_the_side_file_that_the_holder_made_anew() {
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let holder = start_holder(&scene, "read gate <go");
    let waiter = start_waiter(&scene, "true");
    // Else it might be the one that makes the new file.
    wait_until("sleep", || sleeps(waiter.pid()));
    let side = scene.path("x.db-lockrun");
    fs::remove_file(&side).expect("it was there");
    wait_until("the waiter at the new one", || has_open(waiter.pid(), &side));
    assert_eq!(waiter.stderr().lines().count(), 1, "before it looked for another line: {}", waiter.stderr());
    wait_until("the holder's guard with the new one too", || has_open(holder.guard(), &side));
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert_eq!(waiter.finish().code(), 0);
    scene.assert_exclusion();
}

#[test]
fn a_turnstile_that_nobody_lets_go_of_holds_up_no_renewal_and_no_start() {
    let scene = Scene::new();
    let _holder = start_holder(&scene, "exec sleep 1000");
    let stopped = fs::OpenOptions::new().write(true).open(scene.path("x.db-lockrun")).expect("a side file");
    // SAFETY: an all-zero flock is a valid one.
    let mut byte: libc::flock = unsafe { std::mem::zeroed() };
    (byte.l_type, byte.l_len) = (libc::F_WRLCK as libc::c_short, 1);
    wait_until("the turnstile", || fcntl(&stopped, FcntlArg::F_OFD_SETLK(&byte)).is_ok());
    let mut row = Table::Own.row(&scene).expect("held");
    (0..8).for_each(|_| row = Table::Own.wait_for_renewal(&scene, &row));
    let finished = scene.run(&mut scene.lockrun(["--name", "other", "-n", "--", "true"]));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
}

/// A folder in its place: it can be neither made nor locked.
#[test]
fn without_a_kernel_lock_the_record_decides_and_that_is_said_once() {
    let scene = Scene::new();
    fs::create_dir(scene.path("x.db-lockrun")).expect("a folder");
    let holder = copy(&scene, "5s", "exec sleep 1000");
    scene.wait_for_starts(1);
    let command = scene.starts()[0].1;
    let refused = scene.run(&mut scene.lockrun(["-n", "--", "true"]));
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    let waiter = start_waiter(&scene, "true");
    let row = Table::Own.row(&scene).expect("held");
    Table::Own.wait_for_renewal(&scene, &row);
    let guard = holder.guard();
    signal(holder.pid(), Signal::SIGSTOP);
    wait_until("a stopped front", || state(holder.pid()) == Some('T'));
    let asked = own_row(&open(&scene.db()), "default").expect("held").asked_boot_ns;
    for pid in [guard, holder.pid(), command] {
        signal(pid, Signal::SIGKILL);
    }
    assert!(holder.stderr().matches("no kernel lock").count() == 1, "{}", holder.stderr());
    let finished = waiter.finish();
    assert_eq!((finished.code(), finished.stderr.matches("no kernel lock").count()), (0, 1), "{}", finished.stderr);
    assert!(boottime_ns() - asked >= 5_000_000_000, "not before the ttl has run out");
    scene.assert_exclusion();
}

/// As a version without the kernel lock would hold it: the record says held, the lock is free.
#[test]
fn a_holder_without_the_kernel_lock_is_waited_for_by_the_ttl_of_its_record() {
    const TTL: Duration = Duration::from_secs(4);
    let scene = Scene::new();
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
    let forget = || open(&scene.db()).execute("UPDATE lockrun_lease SET side = NULL", []).expect("written");
    Table::Own.put_other(&scene, Duration::ZERO, TTL);
    forget();
    let asked = own_row(&open(&scene.db()), "default").expect("held").asked_boot_ns;
    let waiter = start_waiter(&scene, "true");
    let second = start_waiter(&scene, "true");
    let (before, pid) = (switches(waiter.pid()), waiter.pid());
    let since = boottime_ns();
    wait_until("most of the ttl", || boottime_ns() > asked + 3_000_000_000);
    let looks = (boottime_ns() - since) / 250_000_000 + 1;
    let woken = switches(pid) - before;
    assert!(woken <= 10 * looks as u64, "{woken} wake-ups in the time of {looks} beats");
    assert_eq!(scene.starts(), []);
    for copy in [waiter, second] {
        let finished = copy.finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
    }
    assert!(boottime_ns() - asked >= TTL.as_nanos() as i64);
    scene.assert_exclusion();
}

/// Its user may have no more threads than lockrun has before it waits.
#[test]
fn a_waiter_that_can_start_no_thread_to_wait_with_takes_over_all_the_same() {
    let scene = Scene::new();
    // A user of its own, for what the limit counts: from the scene's folder, which no other scene has.
    let user = 1_000_000 + (fs::metadata(scene.dir()).expect("a folder").ino() % 1_000_000) as u32;
    // A copy that every user may run. Not written here, where another test may just fork: the file would be busy.
    assert_eq!(scene.run(scene.command("cp").args([lockrun_binary(), "lockrun"])).code(), 0);
    chown(scene.dir(), Some(user), Some(user)).expect("tests run as root");
    let start = |limit: Option<u64>, script: &str| {
        let mut command = scene.command(scene.path("lockrun"));
        command.uid(user).gid(user).args(["--ttl", "60s", "--heartbeat", "250ms", "--db", "x.db", "--", "sh", "-c", script]);
        let set = move || limit.map_or(Ok(()), |limit| setrlimit(Resource::RLIMIT_NPROC, limit, limit));
        // SAFETY: setrlimit(2) is a plain system call.
        unsafe { command.pre_exec(move || set().map_err(Into::into)) };
        scene.start(&mut command)
    };
    let threads = |pid: i32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) as u64;
    let mut gate = Gate::new(&scene, "go");
    chown(scene.path("go"), Some(user), Some(user)).expect("the gate");
    let holder = start(None, "echo >held; read gate <go");
    scene.wait_for_file("held");
    let (of_holder, of_command) = (threads(holder.pid()) + threads(holder.guard()), 1);
    let free = start(None, "true");
    wait_until_it_waits(&free);
    wait_until("the thread that waits", || has_thread(free.pid(), "lock"));
    let of_waiter = threads(free.pid()) + threads(free.guard());
    free.signal(Signal::SIGTERM);
    assert_eq!(free.finish().code(), 143);

    let waiter = start(Some(of_holder + of_command + of_waiter - 1), "echo >ran");
    wait_until_it_waits(&waiter);
    let before = switches(waiter.pid());
    wait_until("some tries", || switches(waiter.pid()) > before + 5);
    assert!(!has_thread(waiter.pid(), "lock"), "the test sets no limit");
    assert_eq!(waiter.stderr().lines().count(), 1, "tries, and no lines of the log: {}", waiter.stderr());
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    let finished = waiter.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert!(scene.path("ran").exists());
}

fn has_thread(pid: i32, name: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    alive(pid) && tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).any(|comm| comm.trim_end() == name)
}
