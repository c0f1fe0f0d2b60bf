//! The process side, as a user sees it: exit codes, signals, what the command inherits, terminals, and that no process
//! lives on when another copy may start. Must never ask how lockrun does it: only `/proc`, files, pipes and exit codes.

mod container;
mod exit;
mod faults;
mod garbage;
mod inherit;
mod keeper;
mod lifetime;
mod pid1;
mod signals;
mod stdio;
mod terminal;
mod trouble;

// The helper program writes the list, the tests read it.
#[allow(dead_code)]
#[path = "../../probe/roster.rs"]
mod roster;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Finished, Running, Scene, probe_binary, wait_until};

/// The TTL of `lockrun`, and what stands after it is taken off at the latest: margin (0.5 s at most) from the contract.
const TTL: Duration = Duration::from_secs(3);
/// `dead_by` of a 3 s lease: at this time after the last good renewal nothing of the tree may be alive.
const DEAD_BY: Duration = Duration::from_millis(2500);

/// A session of its own, so without a terminal, wherever the tests are run from.
fn detached(command: &mut Command) -> &mut Command {
    // SAFETY: setsid is a plain system call, safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        })
    }
}

/// The harness's lockrun (TTL 3 s, heartbeat 250 ms, grace 300 ms), without a terminal.
fn lockrun<A: AsRef<OsStr>>(scene: &Scene, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = scene.lockrun(args);
    detached(&mut command);
    command
}

/// The same with a TTL so long that nothing in the test can come from its end.
fn patient<A: AsRef<OsStr>>(scene: &Scene, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = timed(scene, "600s");
    command.args(args);
    command
}

fn timed(scene: &Scene, ttl: &str) -> Command {
    let mut command = scene.bare_lockrun(["--ttl", ttl, "--heartbeat", "250ms", "--grace", "300ms", "--db"]);
    command.arg(scene.db());
    detached(&mut command);
    command
}

/// Any other program of the scene, without a terminal.
fn program(scene: &Scene, name: impl AsRef<OsStr>) -> Command {
    let mut command = scene.command(name);
    detached(&mut command);
    command
}

/// `lockrun … --` as words for a shell, for the scripts that need a shell around it.
fn shell_words(scene: &Scene, ttl: &str) -> String {
    let (binary, db) = (quoted(crate::common::lockrun_binary()), quoted(scene.db()));
    format!("{binary} --ttl {ttl} --heartbeat 250ms --grace 300ms --db {db}")
}

fn quoted(path: impl AsRef<Path>) -> String {
    format!("'{}'", path.as_ref().display())
}

fn probe() -> String {
    probe_binary().to_str().expect("a path in UTF-8").to_string()
}

/// The lines that `probe sigcatch` wrote, as (signal, si_code), `ready` left out.
fn caught(file: &Path) -> Vec<(i32, i32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // A line that is being written has no end yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .filter(|line| *line != "ready")
        .map(|line| {
            let mut numbers = line.split(' ').map(|number| number.parse().expect("a number"));
            (numbers.next().expect("a signal"), numbers.next().expect("a code"))
        })
        .collect()
}

fn times_caught(file: &Path, signal: i32) -> usize {
    caught(file).iter().filter(|(number, _)| *number == signal).count()
}

fn wait_for_catcher(file: &Path) {
    wait_until("sigcatch", || fs::read_to_string(file).unwrap_or_default().starts_with("ready\n"));
}

fn wait_for_signal(file: &Path, signal: i32) {
    wait_until(&format!("signal {signal} in {}", file.display()), || times_caught(file, signal) > 0);
}

/// Starts a tree of all kinds of descendants under lockrun and waits until it stands.
fn start_tree(scene: &Scene, mut lockrun: Command) -> Running {
    lockrun.args(["--", &probe(), "witness"]).arg(scene.dir()).args([&probe(), "tree"]).arg(scene.dir());
    let holder = scene.start(&mut lockrun);
    scene.wait_for_file("ready");
    holder
}

/// A second copy, waiting for the lease: it says which of the tree are alive at the moment when it may start.
fn next_copy(scene: &Scene, mut lockrun: Command) -> Running {
    lockrun.args(["--", &probe(), "witness"]).arg(scene.dir()).args([&probe(), "survivors"]).arg(scene.dir());
    let next = scene.start(&mut lockrun);
    next.wait_for_stderr("waiting");
    next
}

#[track_caller]
fn assert_found_nobody(scene: &Scene, next: Running) {
    let next = next.finish();
    assert_eq!((next.code(), next.stdout.trim_end()), (0, "none"), "the next copy found them alive; its stderr: {}", next.stderr);
    scene.assert_exclusion();
}

/// The lease is free this very moment.
#[track_caller]
fn assert_released(scene: &Scene) {
    let probe = scene.run(lockrun(scene, ["-n", "--", "true"]).stdin(std::process::Stdio::null()));
    assert_eq!(probe.code(), 0, "the lease is not free: {}", probe.stderr);
}

/// Passes the time in which a lease that is not renewed would have run out.
#[track_caller]
fn outlive_the_lease(running: &mut Running) {
    let end = Instant::now() + TTL + Duration::from_secs(1);
    wait_until("the end of a lease that nobody renews", || {
        assert!(running.is_running(), "it ended: {}", running.stderr());
        Instant::now() >= end
    });
}

fn pass_until(moment: Instant) {
    wait_until("a moment", || Instant::now() >= moment);
}

/// The processor time that it has used, in clock ticks of 10 ms (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name in parentheses").1.split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Watches a process for a second: one that has nothing to do uses no processor time.
#[track_caller]
fn assert_does_not_spin(pid: i32) {
    let (before, end) = (ticks(pid), Instant::now() + Duration::from_secs(1));
    pass_until(end);
    let used = ticks(pid) - before;
    assert!(used < 50, "process {pid} used {used} ticks of 10 ms in a second");
}

/// The pid of the scene's one live process of this name.
fn find(scene: &Scene, name: &str) -> i32 {
    let mut found = None;
    wait_until(&format!("a process named {name}"), || {
        found = scene.processes().into_iter().find(|pid| crate::common::comm(*pid) == name);
        found.is_some()
    });
    found.expect("just found")
}

#[track_caller]
fn assert_code(finished: &Finished, code: i32) {
    assert_eq!(finished.status.code(), Some(code), "{}; stderr: {}", finished.status, finished.stderr);
}

#[track_caller]
fn assert_died_of(finished: &Finished, signal: i32) {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(finished.status.signal(), Some(signal), "{}; stderr: {}", finished.status, finished.stderr);
}

/// Stops the front: by the deadline the guard alone has ended the whole tree.
fn assert_dead_in_time_when_stopped(scene: &Scene, holder: &Running) {
    holder.signal(nix::sys::signal::Signal::SIGSTOP);
    let since = Instant::now();
    pass_until(since + DEAD_BY);
    assert_eq!(roster::describe(&roster::alive(scene.dir())), "none", "alive {:?} after the last renewal", since.elapsed());
}
