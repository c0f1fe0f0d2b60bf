//! What this process was given by the one that executed it, as it was before Rust's runtime touched it: the runtime
//! ignores SIGPIPE and opens /dev/null on a closed 0, 1 or 2 before `main`. Must never report the runtime's doing.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use super::fail;

struct Given {
    /// /proc/self/status
    status: String,
    open: Vec<i32>,
}

static GIVEN: OnceLock<Given> = OnceLock::new();

// The C library runs this list before Rust's runtime starts.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    // First, for reading the status opens a descriptor for a moment.
    // SAFETY: F_GETFD changes nothing and any number may be asked for.
    let open = (0..1024).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1).collect();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let _ = GIVEN.set(Given { status, open });
}

/// Lines of `key value`, to stdout or to a file (with stdout closed there is nothing else to write to).
pub fn report(to: Option<&Path>) {
    let given = GIVEN.get().expect("recorded before main");
    let mut text = String::new();
    for line in given.status.lines() {
        if let Some((key @ ("SigIgn" | "SigBlk"), mask)) = line.split_once(':') {
            let _ = writeln!(text, "{key} {}", mask.trim());
        }
    }
    let _ = writeln!(text, "pid {}", nix::unistd::getpid());
    let _ = writeln!(text, "ppid {}", nix::unistd::getppid());
    let _ = writeln!(text, "pgid {}", nix::unistd::getpgrp());
    let _ = writeln!(text, "sid {}", nix::unistd::getsid(None).expect("a session"));
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let _ = writeln!(text, "umask {:04o}", umask.bits());
    let _ = writeln!(text, "cwd {}", std::env::current_dir().unwrap_or_default().display());
    for fd in &given.open {
        let target = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        let _ = writeln!(text, "fd {fd} {}", target.display());
    }
    match to {
        Some(file) => {
            // Complete or not there: a test waits for the name.
            let draft = file.with_extension("draft");
            fs::write(&draft, text).expect("the report");
            fs::rename(draft, file).expect("the report's name");
        }
        None => print!("{text}"),
    }
}

/// Executes a program with SIGPIPE and 0 to 2 as this process was given them. Never returns.
pub fn exec(program: &[&str]) -> ! {
    let given = GIVEN.get().expect("recorded before main");
    let ignored = given.status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim).unwrap_or("0");
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    if ignored & (1 << (libc::SIGPIPE - 1)) == 0 {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    for fd in (0..3).filter(|fd| !given.open.contains(fd)) {
        // SAFETY: the runtime's /dev/null; nothing of this program uses it from here on, save a message that may be lost.
        unsafe { libc::close(fd) };
    }
    exec_as_is(program)
}

/// Executes a program with all that this process has now. Never returns.
pub fn exec_as_is(program: &[&str]) -> ! {
    let args: Vec<CString> = program.iter().map(|arg| CString::new(*arg).expect("no NUL in an argument")).collect();
    let Some(first) = args.first() else {
        fail(64, "probe: no program given");
    };
    let Err(error) = nix::unistd::execvp(first, &args);
    fail(127, &format!("probe: {}: {error}", program[0]))
}
