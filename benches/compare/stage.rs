//! The tools side by side: how each is started around the witness, how many wait, and that nothing of them is left over.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::fixture::etcd::{Etcd, said};
use crate::witness::Ear;
use crate::{LOCKRUN, tool};

/// Nothing that is waited for here takes so long, unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// For what a client of a server does before it sleeps: no two servers show in the same way that a watch stands.
pub const SETTLE: Duration = Duration::from_millis(200);

/// What the guard calls itself.
const GUARD: &str = "lockrun-guard";

/// A tool that runs one command at a time.
pub struct Tool<'a> {
    pub name: &'static str,
    wrapper: Box<dyn Fn() -> Command + 'a>,
    /// How many copies wait in the kernel or on the server.
    waiting: Box<dyn Fn() -> usize + 'a>,
}

pub fn lockrun<'a>(dir: &Path, options: &'a [&'a str]) -> Tool<'a> {
    let database = dir.join("x.db");
    let side = dir.join("x.db-lockrun");
    lockrun_at(database.into(), options, move || waiting_for(&side))
}

pub fn lockrun_at<'a>(db: OsString, options: &'a [&'a str], waiting: impl Fn() -> usize + 'a) -> Tool<'a> {
    let wrapper = move || {
        let mut command = Command::new(LOCKRUN);
        command.arg("-q").arg("--db").arg(&db).args(options).arg("--");
        command
    };
    Tool { name: "lockrun", wrapper: Box::new(wrapper), waiting: Box::new(waiting) }
}

fn of_a_file(name: &'static str, package: &str, dir: &Path) -> Option<Tool<'static>> {
    let (path, lock) = (tool(name, package)?, dir.join(name));
    fs::write(&lock, "").expect("a file");
    let of = lock.clone();
    let wrapper = move || {
        let mut command = Command::new(&path);
        command.arg(&lock);
        command
    };
    Some(Tool { name, wrapper: Box::new(wrapper), waiting: Box::new(move || waiting_for(&of)) })
}

pub fn flock(dir: &Path) -> Option<Tool<'static>> {
    of_a_file("flock", "util-linux", dir)
}

pub fn setlock(dir: &Path) -> Option<Tool<'static>> {
    of_a_file("s6-setlock", "s6", dir)
}

/// A server of its own, if it is installed.
pub fn etcd() -> Option<Etcd> {
    tool("etcd", "etcd-server")?;
    tool("etcdctl", "etcd-client").map(|_| Etcd::on_disk())
}

pub fn etcdctl(etcd: &Etcd) -> Tool<'_> {
    // What is killed leaves its key until its lease runs out: a name of its own for each table.
    let name = format!("bench-{}", lockrun::clock::now().nanos());
    let prefix = format!("{name}/");
    let wrapper = move || etcd.etcdctl(&["lock", &name]);
    let waiting = move || {
        std::thread::sleep(SETTLE);
        let keys = said(&mut etcd.etcdctl(&["get", "--prefix", "--keys-only", &prefix]));
        keys.lines().filter(|line| !line.is_empty()).count().saturating_sub(1)
    };
    Tool { name: "etcdctl lock", wrapper: Box::new(wrapper), waiting: Box::new(waiting) }
}

/// Blocked on a lock of that file, by proc_locks(5). Byte 0 is lockrun's turnstile, where nobody waits for a lease.
fn waiting_for(file: &Path) -> usize {
    let Ok(metadata) = fs::metadata(file) else { return 0 };
    let inode = format!(":{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
    let waits = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[1] == "->" && !words.ends_with(&["0", "0"]) && words.iter().any(|word| word.ends_with(&inode))
    };
    locks.lines().filter(waits).count()
}

/// Copies of one tool. What is started is ended: the wrappers here by their pids, the witnesses with their ear.
pub struct Stage<'a> {
    tool: &'a Tool<'a>,
    pub ear: Ear,
    with_daemon: bool,
    copies: Vec<Child>,
    /// Of the witness that runs, and of the copy around it.
    pub command: i32,
}

impl<'a> Stage<'a> {
    /// One copy that runs, and so many that wait.
    pub fn new(tool: &'a Tool<'a>, dir: &Path, waiters: usize, with_daemon: bool) -> Stage<'a> {
        let mut stage = Stage { tool, ear: Ear::new(dir), with_daemon, copies: vec![], command: 0 };
        stage.add();
        stage.started();
        stage.fill(waiters);
        stage
    }

    fn add(&mut self) {
        let mut command = (self.tool.wrapper)();
        self.ear.append(&mut command, self.with_daemon);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.copies.push(spawn(&mut command));
    }

    /// The next start: when (ns), and whether it overlaps.
    pub fn started(&mut self) -> (u64, bool) {
        let (at_ns, pid, overlap) = self.ear.start(PATIENCE).unwrap_or_else(|| panic!("{}: nobody starts", self.tool.name));
        self.command = pid;
        (at_ns, overlap)
    }

    fn bury(&mut self) {
        self.copies.retain_mut(|copy| !matches!(copy.try_wait(), Ok(Some(_))));
    }

    /// Copies up to one that runs and `waiters` that wait, once they do.
    pub fn fill(&mut self, waiters: usize) {
        let end = Instant::now() + PATIENCE + Duration::from_millis(waiters as u64 * 50);
        loop {
            self.bury();
            // A client that gave up by itself on a busy machine is started again.
            while self.copies.len() < waiters + 1 {
                self.add();
            }
            let waiting = (self.tool.waiting)();
            // The last holder may have been on its way out, and counted.
            self.bury();
            if waiting >= waiters && self.copies.len() > waiters {
                return;
            }
            assert!(Instant::now() < end, "{}: {waiting} of {waiters} wait", self.tool.name);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The copy around the command, and for lockrun its guard.
    pub fn holder(&self) -> Option<(i32, Option<i32>)> {
        if self.copies.iter().any(|copy| copy.id() as i32 == self.command) {
            return Some((self.command, None)); // it became the command
        }
        let parent = parent_of(self.command)?;
        if comm(parent) == GUARD { Some((parent_of(parent)?, Some(parent))) } else { Some((parent, None)) }
    }

    /// The pid of a copy that waits, and for lockrun its guard's.
    pub fn waiter(&self) -> (i32, Option<i32>) {
        let holder = self.holder().map(|(holder, _)| holder);
        let copy = self.copies.iter().map(|copy| copy.id() as i32).find(|pid| Some(*pid) != holder).expect("somebody waits");
        (copy, children_of(copy).into_iter().find(|child| comm(*child) == GUARD))
    }

    pub fn end_command(&self) {
        send(self.command, Signal::SIGTERM);
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // Last the one that runs: or each waiter would start a command in its turn. A front that is gone takes its guard along.
        let holder = self.holder().map(|(holder, _)| holder);
        self.copies.sort_by_key(|copy| Some(copy.id() as i32) == holder);
        for copy in &mut self.copies {
            let children = children_of(copy.id() as i32);
            let _ = copy.kill();
            let _ = copy.wait();
            for child in children {
                if comm(child) != GUARD {
                    send(child, Signal::SIGKILL);
                }
                let _ = waitpid(Pid::from_raw(child), None); // an orphan is ours: `main` has seen to it
            }
        }
    }
}

/// Dies with this program, whatever ends that.
pub fn spawn(command: &mut Command) -> Child {
    // SAFETY: between fork and exec it makes one system call.
    unsafe { command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub fn send(pid: i32, signal: Signal) {
    assert!(pid > 1, "a pid");
    let _ = kill(Pid::from_raw(pid), signal);
}

pub fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: state, then the parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

pub fn children_of(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_string()
}
