//! Starting the command: fork and exec by hand in the guard, which has one thread. Must never run in a process with more
//! (the command's PDEATHSIG follows the thread that forked it).

use std::ffi::{CString, OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getpgid, getpid, getppid, pipe2, setpgid};

use super::{inherited, tree};
use crate::lease::{SpawnError, Token};

/// Everything that is known about the command before the guard is forked.
#[derive(Debug)]
pub struct Job {
    pub argv: Vec<OsString>,
    /// The caller's environment with lockrun's own variables; only the token is added for each start.
    pub environment: Vec<(OsString, OsString)>,
    /// For a second start; the first one inherits it.
    pub directory: Option<PathBuf>,
    /// With a controlling terminal the command stays in lockrun's group, else it gets its own.
    pub terminal: bool,
    pub stop_signal: i32,
    /// From SIGKILL to everything reaped.
    pub kill_time: Duration,
    /// Signals reach the command's group, not the command alone.
    pub to_group: bool,
}

/// A child between fork and exec.
pub struct Starting {
    pub pid: i32,
    /// Closed by exec; before that it carries the step that failed and its errno.
    pub report: OwnedFd,
}

const STEP_EXEC: u8 = 0;
const STEP_DIRECTORY: u8 = 1;
const STEP_FORK: u8 = 2;

impl Starting {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Once readable: whether the command was executed.
    pub fn outcome(self) -> Result<(), SpawnError> {
        let mut bytes = Vec::new();
        let _ = std::fs::File::from(self.report).read_to_end(&mut bytes);
        match bytes.split_first() {
            None => Ok(()),
            Some((step, errno)) => {
                let errno = errno.try_into().map_or(libc::EIO, i32::from_le_bytes);
                Err(match *step {
                    STEP_DIRECTORY => SpawnError::Directory(errno),
                    STEP_FORK => SpawnError::Fork(errno),
                    _ => SpawnError::Exec(errno),
                })
            }
        }
    }
}

/// Forks. `again`: not the first start, so the working directory must be entered anew.
pub fn start(job: &Job, front: i32, token: Token, locks: &[OwnedFd], again: bool) -> Result<Starting, SpawnError> {
    let fork_failed = |errno: Errno| SpawnError::Fork(errno as i32);
    let argv: Vec<CString> = job.argv.iter().filter_map(|arg| CString::new(arg.as_bytes()).ok()).collect();
    let (report, failed) = pipe2(OFlag::O_CLOEXEC).map_err(fork_failed)?;
    let guard = getpid();
    let group = if job.terminal { getpgid(Some(Pid::from_raw(front))).unwrap_or(Pid::from_raw(0)) } else { Pid::from_raw(0) };
    let environment = |command| environment(job, front, command, token);
    // SAFETY: this process has one thread, so the child may allocate and call what it likes.
    match unsafe { fork() }.map_err(fork_failed)? {
        ForkResult::Parent { child } => Ok(Starting { pid: child.as_raw(), report }),
        ForkResult::Child => {
            let directory = job.directory.as_ref().filter(|_| again);
            let (step, errno) = child(guard, group, directory, locks, &argv, environment);
            let mut bytes = vec![step];
            bytes.extend((errno as i32).to_le_bytes());
            let _ = nix::unistd::write(&failed, &bytes);
            // SAFETY: no destructors are wanted in the child.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Returns only on failure: which step, and why.
fn child(
    guard: Pid,
    group: Pid,
    directory: Option<&PathBuf>,
    locks: &[OwnedFd],
    argv: &[CString],
    environment: impl Fn(Pid) -> Vec<CString>,
) -> (u8, Errno) {
    let _ = setpgid(Pid::from_raw(0), group);
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    if getppid() != guard {
        // The guard died before the line above: nobody would end this process.
        // SAFETY: no destructors are wanted in the child.
        unsafe { libc::_exit(127) }
    }
    if let Some(Err(errno)) = directory.map(nix::unistd::chdir) {
        return (STEP_DIRECTORY, errno);
    }
    for lock in locks {
        // Without it nobody would see that this command lives on.
        if let Err(errno) = keep_open(lock) {
            return (STEP_FORK, errno);
        }
    }
    let environment = environment(getpid());
    inherited::restore();
    match nix::unistd::execvpe(&argv[0], argv, &environment) {
        Ok(never) => match never {},
        Err(errno) => (STEP_EXEC, errno),
    }
}

/// A duplicate without close-on-exec, out of the way of the numbers that programs use, where the limit allows it. The
/// kernel lock lives as long as the last duplicate.
fn keep_open(lock: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: no pointers; the new descriptor is meant to stay open over exec.
    let duplicate = |lowest: libc::c_int| Errno::result(unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_DUPFD, lowest) });
    duplicate(100).or_else(|_| duplicate(3)).map(drop)
}

/// The token is set last, so that an outer lockrun's never wins.
fn environment(job: &Job, front: i32, command: Pid, token: Token) -> Vec<CString> {
    let front = front.to_string();
    let entry = |key: &OsStr, value: &OsStr| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok();
    let inherited = job.environment.iter().filter_map(|(key, value)| {
        // sd_listen_fds(3): sockets that were passed to lockrun are the command's.
        let own_sockets = key == "LISTEN_PID" && *value == *front;
        if own_sockets { entry(key, command.to_string().as_ref()) } else { entry(key, value) }
    });
    inherited.chain(entry("LOCKRUN_TOKEN".as_ref(), token.to_string().as_ref())).collect()
}

/// A signal to the command, or to its group where that is asked for and the group is its own.
pub fn signal(job: &Job, command: i32, number: i32) {
    let target = if job.to_group && !job.terminal { -command } else { command };
    let _ = tree::send(target, number);
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = OsString> {
        vec(1..=255_u8, 0..9).prop_map(OsString::from_vec)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_variable_is_passed_on_but_the_pid_of_our_own_sockets(
            others in vec((bytes(), bytes()), 0..4),
            listen_pid in prop_oneof![Just(OsString::from("42")), "[0-9 +]{0,4}".prop_map(OsString::from), bytes()],
            token: i64,
        ) {
            let variables = others.into_iter().chain([("LISTEN_PID".into(), listen_pid.clone())]).collect();
            let job = Job {
                argv: vec![],
                environment: variables,
                directory: None,
                terminal: false,
                stop_signal: libc::SIGTERM,
                kill_time: Duration::ZERO,
                to_group: false,
            };
            let passed = environment(&job, 42, Pid::from_raw(7), Token(token)).into_iter().map(CString::into_bytes);
            let passed: Vec<Vec<u8>> = passed.collect();
            let expected = job.environment.iter().map(|(key, value)| match key == "LISTEN_PID" && listen_pid == "42" {
                true => b"LISTEN_PID=7".to_vec(),
                false => [key.as_bytes(), b"=", value.as_bytes()].concat(),
            });
            prop_assert_eq!(passed, expected.chain([format!("LOCKRUN_TOKEN={token}").into_bytes()]).collect::<Vec<_>>());
        }
    }
}
