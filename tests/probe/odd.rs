//! Changes what a program inherits, then executes it in this same process: the pid stays. Must never fork.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;

use crate::inherit;

/// HUP, PIPE and TTIN ignored, USR1 and the real-time signal 37 blocked, descriptor 7 open on the file `odd-7`.
/// By the environment, in addition: IGNCHLD, BLKCHLD, BLKTERM, CLOSE0.
pub fn run(program: &[&str]) -> ! {
    let with = |name: &str| std::env::var_os(name).is_some();
    let mut ignored = vec![libc::SIGHUP, libc::SIGPIPE, libc::SIGTTIN];
    if with("IGNCHLD") {
        ignored.push(libc::SIGCHLD);
    }
    let mut blocked = vec![libc::SIGUSR1, 37];
    if with("BLKCHLD") {
        blocked.push(libc::SIGCHLD);
    }
    if with("BLKTERM") {
        blocked.push(libc::SIGTERM);
    }
    for signal in ignored {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the set is filled by sigemptyset before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in blocked {
            libc::sigaddset(&mut set, signal);
        }
        assert_eq!(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()), 0);
    }
    keep_at(7, fs::File::create("odd-7").expect("the file odd-7"));
    if with("CLOSE0") {
        // SAFETY: nothing here reads standard input.
        unsafe { libc::close(0) };
    }
    inherit::exec_as_is(program)
}

/// Closes all descriptors from 3 up but those named, as a daemon does that calls closefrom(3).
pub fn only(keep: &str, program: &[&str]) -> ! {
    let keep: Vec<i32> = keep.split(',').filter_map(|fd| fd.parse().ok()).collect();
    for fd in (3..4096).filter(|fd| !keep.contains(fd)) {
        // SAFETY: nothing of this program is open from 3 up.
        unsafe { libc::close(fd) };
    }
    inherit::exec(program)
}

/// Takes flock(2) on DIR/witness through descriptor 9, which all that PROGRAM starts inherits, writes a line to
/// DIR/overlaps if anybody still has it, and one to DIR/starts.
pub fn witness(dir: &Path, program: &[&str]) -> ! {
    let open = |name: &str| fs::File::options().append(true).create(true).open(dir.join(name)).expect("a file of the witness");
    let token = std::env::var("LOCKRUN_TOKEN").unwrap_or_default();
    let witness = open("witness");
    // SAFETY: a descriptor that is open.
    if unsafe { libc::flock(witness.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        writeln!(open("overlaps"), "overlap token {token}").expect("overlaps");
    }
    keep_at(9, witness);
    writeln!(open("starts"), "{token} {}", std::process::id()).expect("starts");
    inherit::exec(program)
}

/// Puts an open file at this number, to be inherited; its former number is closed at exec.
fn keep_at(number: i32, file: fs::File) {
    let fd = file.into_raw_fd();
    // SAFETY: both are numbers of this program's own; where they are equal dup2 would leave close-on-exec set.
    unsafe {
        if fd == number {
            libc::fcntl(fd, libc::F_SETFD, 0);
        } else {
            assert_eq!(libc::dup2(fd, number), number);
        }
    }
}
