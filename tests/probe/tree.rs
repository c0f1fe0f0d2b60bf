//! A command with descendants of every kind that a supervisor may lose sight of. Must never say `ready` before all of
//! them are listed in DIR/pids and stand as their role says.

use std::path::Path;
use std::process::exit;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, raise, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause, setsid};

use crate::roster;

/// `main`, and these below it.
const DESCENDANTS: usize = 7;

pub fn run(dir: &Path, code: Option<i32>) -> ! {
    // A list of its own: an earlier tree may have stood in this folder.
    let _ = std::fs::remove_file(dir.join("pids"));
    roster::enter(dir, "main");
    child(|| stay(dir, "same-group"));
    child(|| {
        setsid().expect("a session");
        stay(dir, "setsid")
    });
    let between = child(|| {
        setsid().expect("a session");
        child(|| stay(dir, "daemon"));
        exit(0)
    });
    waitpid(between, None).expect("the process between");
    child(|| {
        for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { signal(ignored, SigHandler::SigIgn) }.expect("ignored");
        }
        stay(dir, "term-ignoring")
    });
    let stopped = child(|| {
        roster::enter(dir, "stopped");
        raise(Signal::SIGSTOP).expect("stopped");
        loop {
            pause();
        }
    });
    child(|| {
        setsid().expect("a session");
        child(|| {
            setsid().expect("a session");
            stay(dir, "nested-setsid")
        });
        stay(dir, "outer-setsid")
    });
    let status = waitpid(stopped, Some(WaitPidFlag::WUNTRACED)).expect("the stopped child");
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    while roster::all(dir).len() < 1 + DESCENDANTS {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::write(dir.join("ready"), "").expect("ready");
    match code {
        Some(code) => exit(code),
        None => loop {
            pause();
        },
    }
}

fn stay(dir: &Path, role: &str) -> ! {
    roster::enter(dir, role);
    loop {
        pause();
    }
}

fn child(life: impl FnOnce()) -> Pid {
    // SAFETY: this program has one thread.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            life();
            exit(0)
        }
    }
}
