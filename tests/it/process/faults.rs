//! The table of faults: what of a tree is alive when the next copy may start, for each fault of the front and of the
//! guard. Where no fault of one of them is survived the entry must be 0; both at once is the documented rest.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::keeper::Keeper;
use super::roster::{self, Member};
use super::{DEAD_BY, assert_code, assert_found_nobody, lockrun, next_copy, pass_until, patient, probe, start_tree};
use crate::common::{Running, Scene, alive, signal, state, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    FrontKilled,
    FrontStopped,
    GuardKilled,
    GuardStopped,
    /// The database's file system is frozen: the front is in an uninterruptible call, the guard must not be.
    Frozen,
}

const FAULTS: [Fault; 5] = [Fault::FrontKilled, Fault::FrontStopped, Fault::GuardKilled, Fault::GuardStopped, Fault::Frozen];
const ROLES: [&str; 8] = ["main", "same-group", "setsid", "daemon", "term-ignoring", "stopped", "outer-setsid", "nested-setsid"];

/// Those alive when the next copy may start. With `closed` the tree has closed what it inherited but the witness, so that
/// the kernel lock keeps nobody out for its sake.
fn strike(fault: Fault, closed: bool) -> Vec<String> {
    let scene = Scene::new();
    if fault == Fault::Frozen {
        return freeze(&scene);
    }
    let holder = if closed { start_closed_tree(&scene) } else { start_tree(&scene, lockrun(&scene, [""; 0])) };
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    match fault {
        Fault::FrontKilled => holder.signal(Signal::SIGKILL),
        Fault::FrontStopped => holder.signal(Signal::SIGSTOP),
        Fault::GuardKilled => signal(holder.guard(), Signal::SIGKILL),
        Fault::GuardStopped => signal(holder.guard(), Signal::SIGSTOP),
        Fault::Frozen => unreachable!("done above"),
    }
    let next = next.finish();
    assert_eq!(next.code(), 0, "{fault:?}: {}", next.stderr);
    words(&next.stdout)
}

fn start_closed_tree(scene: &Scene) -> Running {
    let (probe, dir) = (probe(), scene.dir());
    let mut command = lockrun(scene, ["--", &probe, "witness"]);
    command.arg(dir).args([&probe, "only", "9", &probe, "tree"]).arg(dir);
    let holder = scene.start(&mut command);
    scene.wait_for_file("ready");
    holder
}

/// No other copy can start while the database is frozen, so the moment is `dead_by` by the clock.
fn freeze(scene: &Scene) -> Vec<String> {
    let disk = Keeper::ext4(scene, "disk");
    let mut command = scene.bare_lockrun(["--ttl", "3s", "--heartbeat", "250ms", "--grace", "300ms", "--db", "disk/x.db"]);
    super::detached(&mut command);
    let holder = start_tree(scene, command);
    let (front, guard) = (holder.pid(), holder.guard());
    disk.freeze(scene);
    let since = Instant::now();
    wait_until("a front in an uninterruptible call", || uninterruptible(front) || since.elapsed() > DEAD_BY);
    assert!(since.elapsed() < DEAD_BY, "the front never touched its database: {}", holder.stderr());
    wait_until("dead_by", || {
        let tree_alive = !roster::alive(scene.dir()).is_empty();
        assert!(!(tree_alive && state(guard) == Some('D')), "the guard waits for a disk while the tree is alive");
        since.elapsed() >= DEAD_BY
    });
    let found = roster::alive(scene.dir());
    disk.thaw(scene);
    if found.is_empty() {
        assert_code(&holder.finish(), 76);
    }
    found.into_iter().map(|member| member.role).collect()
}

/// Any thread of it is in state D.
fn uninterruptible(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok()).any(|stat| {
        // The name in parentheses may hold anything.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D'))
    })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().filter(|word| *word != "none").map(str::to_string).collect()
}

#[test]
fn t33_to_t37_no_single_fault_leaves_a_survivor_of_any_kind() {
    let mut table = format!("{:14} {:7}", "fault", "fds");
    for role in ROLES {
        table += &format!(" {role:>13}");
    }
    let mut survivors = 0;
    for fault in FAULTS {
        for closed in [false, true] {
            if closed && fault == Fault::Frozen {
                continue;
            }
            let alive = strike(fault, closed);
            table += &format!("\n{:14} {:7}", format!("{fault:?}"), if closed { "closed" } else { "kept" });
            for role in ROLES {
                table += &format!(" {:>13}", alive.iter().filter(|name| *name == role).count());
            }
            survivors += alive.len();
        }
    }
    println!("{table}");
    assert_eq!(survivors, 0, "\n{table}");
}

#[test]
fn t37_a_frozen_disk_leaves_nobody_and_lockrun_says_76_after_the_thaw() {
    let scene = Scene::new();
    assert_eq!(freeze(&scene), Vec::<String>::new());
}

fn member(scene: &Scene, role: &str) -> Member {
    roster::all(scene.dir()).into_iter().find(|member| member.role == role).expect("a role of the tree")
}

#[test]
fn t36_front_and_guard_both_killed_end_the_command_and_what_lives_on_keeps_the_next_one_out() {
    let scene = Scene::new();
    let holder = start_tree(&scene, lockrun(&scene, [""; 0]));
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    let guard = holder.guard();
    // Neither acts between the two kills. It is the front that is stopped: its death would wake a stopped guard, whose
    // process group it leaves orphaned (SIGHUP and SIGCONT, setpgid(2)).
    let front = holder.pid();
    signal(front, Signal::SIGSTOP);
    wait_until("a stopped front", || state(front) == Some('T'));
    signal(guard, Signal::SIGKILL);
    holder.signal(Signal::SIGKILL);
    let main = member(&scene, "main");
    wait_until("the end of the command", || !roster::is_alive(&main));
    let rest = roster::alive(scene.dir());
    println!("the documented rest: {}", roster::describe(&rest));
    let setsid = member(&scene, "setsid");
    assert!(rest.contains(&setsid), "more is ended than is documented: correct the documents and this test");
    // They have the kernel lock: the next copy says who they are, and does not start.
    next.wait_for_stderr(&setsid.pid.to_string());
    assert_eq!(scene.starts().len(), 1);
    for left in rest {
        signal(left.pid, Signal::SIGKILL);
    }
    assert_found_nobody(&scene, next);
}

#[test]
fn t36_front_and_guard_both_stopped_end_the_command_at_the_deadline_and_the_rest_when_the_front_wakes() {
    let scene = Scene::new();
    let holder = start_tree(&scene, lockrun(&scene, [""; 0]));
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    let guard = holder.guard();
    holder.signal(Signal::SIGSTOP);
    let since = Instant::now();
    signal(guard, Signal::SIGSTOP);
    pass_until(since + DEAD_BY);
    assert!(!alive(guard), "the guard's own timer ends it");
    let found = roster::alive(scene.dir());
    println!("the documented rest: {}", roster::describe(&found));
    assert!(!found.iter().any(|member| member.role == "main"), "the command outlived the guard");
    assert_eq!(scene.starts().len(), 1, "the next copy started beside the rest");
    holder.signal(Signal::SIGCONT);
    assert_code(&holder.finish(), 76);
    assert_eq!(roster::describe(&roster::alive(scene.dir())), "none");
    assert_found_nobody(&scene, next);
}

#[test]
fn t36_front_and_guard_both_killed_in_the_first_moments_of_a_run_leave_no_command() {
    for round in 0..20 {
        let scene = Scene::new();
        let (probe, dir) = (probe(), scene.dir().to_str().expect("UTF-8"));
        let holder = scene.start(&mut patient(&scene, ["--", &probe, "witness", dir, "sleep", "600"]));
        let guard = holder.guard();
        // A little later in each round, from before the claim to after the start.
        pass_until(Instant::now() + Duration::from_millis(2 * round));
        holder.signal(Signal::SIGKILL);
        signal(guard, Signal::SIGKILL);
        wait_until("the end of all", || scene.processes().is_empty());
    }
}
