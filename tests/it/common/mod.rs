//! What every black-box test needs: a temporary folder, the real lockrun in it, and the certainty that nothing that was
//! started lives on when the test ends, also when it fails. Must never sleep in place of an event: it waits for files,
//! pipes, processes and locks.

// Each test module uses some of it, none all of it.
#![allow(dead_code)]

pub mod gate;
pub mod report;
pub mod tables;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a test waits for what must happen. Long, because the machine may be loaded; a test that passes never waits it out.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Marks every process of a scene in its environment, so that the scene can find and end them all.
pub const MARK: &str = "LOCKRUN_TEST_SCENE";

/// A temporary folder and all that was started in it.
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Scene {
        Scene { dir: tempfile::Builder::new().prefix("lockrun-it-").tempdir().expect("a temporary folder") }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The database of this scene; it does not exist until lockrun makes it.
    pub fn db(&self) -> PathBuf {
        self.path("x.db")
    }

    /// Any program, marked as one of this scene, in the scene's folder, with no LOCKRUN_* of the outside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("LOCKRUN_") {
                command.env_remove(key);
            }
        }
        command.env(MARK, self.dir()).current_dir(self.dir()).stdin(Stdio::null());
        command
    }

    /// `lockrun ARGS`, nothing added.
    pub fn bare_lockrun<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(lockrun_binary());
        command.args(args);
        command
    }

    /// `lockrun --db x.db --ttl 3s --heartbeat 250ms --grace 300ms ARGS`: TERM 1.7 s, KILL 2.0 s, dead 2.5 s after the last good renewal.
    pub fn lockrun<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.bare_lockrun(["--ttl", "3s", "--heartbeat", "250ms", "--grace", "300ms", "--db"]);
        command.arg(self.db()).args(args);
        command
    }

    /// Starts it with stdout and stderr going to files of their own.
    pub fn start(&self, command: &mut Command) -> Running {
        let log = tempfile::Builder::new().prefix("log-").tempfile_in(self.dir()).expect("a log file");
        let (_, log) = log.keep().expect("kept");
        let (out, err) = (log.with_extension("out"), log.with_extension("err"));
        command.stdout(fs::File::create(&out).expect("stdout file")).stderr(fs::File::create(&err).expect("stderr file"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running { child, out, err }
    }

    /// Starts it and waits for its end.
    pub fn run(&self, command: &mut Command) -> Finished {
        self.start(command).finish()
    }

    /// Starts it with its stdout and stderr exactly as the caller set them.
    pub fn start_redirected(&self, command: &mut Command) -> Running {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running { child, out: PathBuf::new(), err: PathBuf::new() }
    }

    /// A shell script that proves exclusion by the kernel: it takes flock(1) on `witness` through descriptor 9, which all
    /// that it starts inherit, and writes a line to `overlaps` if anybody still has it. Then it runs `body`.
    pub fn witness(&self, body: &str) -> String {
        let dir = self.dir().display();
        format!(
            "exec 9>>'{dir}/witness'; flock -n 9 || echo \"overlap token $LOCKRUN_TOKEN\" >>'{dir}/overlaps'; \
             echo \"$LOCKRUN_TOKEN $$\" >>'{dir}/starts'; {body}"
        )
    }

    /// The (token, pid) of every start that `witness` has written, in their order.
    pub fn starts(&self) -> Vec<(i64, i32)> {
        let text = fs::read_to_string(self.path("starts")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let (token, pid) = line.split_once(' ').expect("token and pid");
                (token.parse().expect("a token"), pid.parse().expect("a pid"))
            })
            .collect()
    }

    pub fn wait_for_starts(&self, count: usize) -> Vec<(i64, i32)> {
        wait_until(&format!("{count} starts"), || self.starts().len() >= count);
        self.starts()
    }

    /// No two trees were alive at once, and tokens rose from start to start.
    pub fn assert_exclusion(&self) {
        let overlaps = fs::read_to_string(self.path("overlaps")).unwrap_or_default();
        assert_eq!(overlaps, "", "two commands of one lease were alive at once");
        let starts = self.starts();
        assert!(starts.windows(2).all(|pair| pair[0].0 < pair[1].0), "tokens must rise: {starts:?}");
    }

    pub fn wait_for_file(&self, name: &str) -> String {
        let path = self.path(name);
        wait_until(&format!("file {name}"), || path.exists());
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Every live process of this scene (this one excepted), zombies left out.
    pub fn processes(&self) -> Vec<i32> {
        let mark = format!("{MARK}={}", self.dir().display());
        all_pids()
            .into_iter()
            .filter(|pid| {
                let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) && alive(*pid)
            })
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Twice or more: a process may fork while it is looked for.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process that the test started and that it alone waits for.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The exit code as a shell shows it: 128+s for a death by signal s.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().expect("a code or a signal"))
    }
}

impl Running {
    /// The front: the process that the test started.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The guard: the front's child of that name.
    pub fn guard(&self) -> i32 {
        let front = self.pid();
        let mut found = None;
        wait_until("the guard", || {
            found = children(front).into_iter().find(|pid| comm(*pid) == "lockrun-guard");
            found.is_some()
        });
        found.expect("just found")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the front is there");
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub fn wait_for_stderr(&self, text: &str) {
        wait_until_or(|| self.stderr().contains(text), || panic!("{text:?} on stderr: not within {PATIENCE:?}: {}", self.stderr()));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waitable").is_none()
    }

    pub fn finish(mut self) -> Finished {
        let (pid, err) = (self.pid(), self.err.clone());
        let mut status = None;
        wait_until_or(
            || {
                status = self.child.try_wait().expect("waitable");
                status.is_some()
            },
            || panic!("process {pid} did not end; its stderr: {}", fs::read_to_string(err).unwrap_or_default()),
        );
        Finished { status: status.expect("ended"), stdout: self.stdout(), stderr: self.stderr() }
    }
}

pub fn lockrun_binary() -> &'static str {
    env!("CARGO_BIN_EXE_lockrun")
}

/// The helper program `tests/probe` (its first argument says which part it plays).
pub fn probe_binary() -> PathBuf {
    let path = PathBuf::from(lockrun_binary()).with_file_name("examples").join("probe");
    assert!(path.exists(), "{} is built by `cargo test`", path.display());
    path
}

/// Waits for a condition, looking often at first; panics with `what` when PATIENCE runs out.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_until_or(condition, || panic!("{what}: not within {PATIENCE:?}"));
}

fn wait_until_or(mut condition: impl FnMut() -> bool, otherwise: impl FnOnce()) {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    while !condition() {
        if Instant::now() >= end {
            return otherwise();
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

pub fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Present and not a zombie.
pub fn alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// The state letter of proc_pid_stat(5): R, S, D, T, Z …
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_string()
}

pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}
