//! Finding and killing all descendants of this process. Must never read /proc/PID/cmdline or environ: they take the
//! target's memory lock and can hang.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;

use crate::exit::Ended;
use crate::lease::Moment;

/// What is alive so long after the first SIGKILL is named (measured: 50 fork chains take up to half a second).
const SURVIVORS_AFTER: Duration = Duration::from_secs(1);

/// Every descendant, parents before children, zombies included. Each thread of a process has a list of children of its
/// own, and a thread in an uninterruptible call hides its children from the list of the others: all are read.
pub fn descendants() -> Vec<i32> {
    let mut found = Vec::new();
    children_of("self", &mut found);
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        children_of(&pid.to_string(), &mut found);
        next += 1;
    }
    found
}

fn children_of(process: &str, found: &mut Vec<i32>) {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return };
    for task in tasks.flatten() {
        let Ok(children) = fs::read_to_string(task.path().join("children")) else { continue };
        for pid in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            // A process that is moved to another parent while we read may show up twice.
            if !found.contains(&pid) {
                found.push(pid);
            }
        }
    }
}

/// Not a zombie. The leader of a thread group may be one while other threads run.
pub fn is_alive(pid: i32) -> bool {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => shows_life(&String::from_utf8_lossy(&stat)),
        Err(_) => send(pid, 0) != Err(Errno::ESRCH), // hidden from us, perhaps (hidepid)
    }
}

/// proc_pid_stat(5). The name in parentheses may hold any bytes; behind the last one come state and, 17 fields on, the
/// number of threads.
fn shows_life(stat: &str) -> bool {
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let state = fields.next();
    let threads = fields.nth(16).and_then(|threads| threads.parse::<u64>().ok());
    !matches!((state, threads), (Some("Z" | "X") | None, None | Some(0..=1)))
}

pub fn living_descendants() -> Vec<i32> {
    descendants().into_iter().filter(|pid| is_alive(*pid)).collect()
}

/// Sends a signal to every descendant that is there now. Those that may not be signalled are named as survivors later.
pub fn signal_all(signal: i32) {
    for pid in descendants() {
        let _ = send(pid, signal);
    }
}

/// kill(2). Between reading a pid from /proc and this call it could only be reused if the whole range of pids went by.
pub fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers. libc's kill, because nix knows no real-time signals.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The work of ending everything below this process, pass by pass, until nothing is left.
pub struct Killing {
    since: Moment,
    passes: u32,
    named: bool,
}

impl Killing {
    pub fn new(now: Moment) -> Killing {
        Killing { since: now, passes: 0, named: false }
    }

    /// SIGKILL to all that is there now. Once, after a while, the pids of those that do not die of it come back.
    pub fn strike(&mut self, now: Moment) -> Option<Vec<i32>> {
        self.passes += 1;
        signal_all(libc::SIGKILL);
        if self.named || now.since(self.since) < SURVIVORS_AFTER {
            return None;
        }
        let survivors = living_descendants();
        self.named = !survivors.is_empty();
        self.named.then_some(survivors)
    }

    /// Until the next pass: a fork chain is caught by looking again at once; what SIGKILL does not end is looked at now
    /// and then.
    pub fn pause(&self) -> Duration {
        Duration::from_millis(1 << (self.passes / 100).min(6))
    }
}

/// The kernel's list of children must be readable and be about this pid namespace, or nothing below could be ended.
pub fn usable() -> Result<(), String> {
    let pid = std::process::id().to_string();
    match fs::read_link("/proc/self") {
        Err(error) => Err(format!("/proc: {error}; lockrun needs it to find what the command starts: mount it")),
        Ok(link) if link.as_os_str() != pid.as_str() => {
            Err("/proc: it belongs to another pid namespace; mount one for this namespace (unshare --mount-proc)".to_string())
        }
        Ok(_) => match fs::read_to_string(format!("/proc/self/task/{pid}/children")) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("/proc/self/task/{pid}/children: {error}; lockrun needs a kernel with CONFIG_PROC_CHILDREN")),
        },
    }
}

/// How a child changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Ended(i32, Ended),
    Stopped(i32),
    /// Children are there, none of them has changed.
    Nothing,
    NoChildren,
}

/// waitpid(2) for any child, without blocking. libc's, because nix reaps a child that died of a real-time signal and then
/// reports EINVAL.
pub fn wait_any(stopped_too: bool) -> Waited {
    let flags = libc::WNOHANG | if stopped_too { libc::WUNTRACED } else { 0 };
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match Errno::result(unsafe { libc::waitpid(-1, &mut status, flags) }) {
            Ok(0) => return Waited::Nothing,
            Ok(pid) if libc::WIFSTOPPED(status) => return Waited::Stopped(pid),
            Ok(pid) => return Waited::Ended(pid, ended(status)),
            Err(Errno::EINTR) => {}
            Err(_) => return Waited::NoChildren,
        }
    }
}

fn ended(status: i32) -> Ended {
    if libc::WIFSIGNALED(status) { Ended::Signal(libc::WTERMSIG(status)) } else { Ended::Code(libc::WEXITSTATUS(status)) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_zombie_is_told_by_its_state_and_threads_whatever_its_name(name: String, state in "[RSDZTtXIP]", threads in 0..4_u64) {
            let before = "1 ".repeat(16);
            let stat = format!("7 ({name}) {state} {before}{threads} 0 0\n");
            prop_assert_eq!(shows_life(&stat), !(threads <= 1 && ["Z", "X"].contains(&state.as_str())));
        }

        #[test]
        fn a_line_that_is_none_is_read_without_a_panic(stat: String) {
            shows_life(&stat);
        }
    }

    /// The name in /proc/PID/stat is the file's, up to 15 bytes of anything.
    #[test]
    fn a_process_of_any_name_is_alive_until_it_has_ended() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in [&b") R 1 (x"[..], b"\xff\xfe) Z", b"a\nb) X 0", b"((((", b" ", b") Z 1 1 1"] {
            let program = dir.path().join(OsStr::from_bytes(name));
            std::os::unix::fs::symlink("/bin/cat", &program).expect("a link");
            let mut child = Command::new(&program).stdin(std::process::Stdio::piped()).spawn().expect("cat");
            let pid = child.id() as i32;
            assert!(is_alive(pid), "{}", name.escape_ascii());
            drop(child.stdin.take());
            // SAFETY: an all-zero siginfo_t is a valid one and outlives the call, which leaves the child a zombie.
            unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT);
            }
            assert!(!is_alive(pid), "{}", name.escape_ascii());
            child.wait().expect("reaped");
            assert!(!is_alive(pid), "{}", name.escape_ascii());
        }
    }
}
