//! The command that the copies run: it has flock(2) on a witness as long as it, or anything that it started, lives, and says
//! so if another tree has it. Must never run with an overlap unseen: what closes the inherited descriptors takes a lock of
//! its own first.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::exit;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, raise, signal};
use nix::unistd::{ForkResult, fork, pause, setsid};

use crate::faults::OWN_CODES;
use crate::history::{Event, History, now};
use crate::random::Random;
use crate::roster;

/// How often it shows that it lives.
const STAMP: Duration = Duration::from_millis(10);

/// A sign of life: the last one of the ring lies in the file `life`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    pub at: i64,
    pub token: i64,
    pub pid: i32,
    /// Its first one.
    pub since: i64,
}

impl Life {
    pub fn read(file: &File) -> Life {
        let mut bytes = [0; 32];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            return Life::default();
        }
        let number = |at: usize| i64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Life { at: number(0), token: number(8), pid: number(16) as i32, since: number(24) }
    }

    pub fn write(self, file: &File) {
        let words = [self.at, self.token, i64::from(self.pid), self.since];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        file.write_all_at(&bytes, 0).expect("a sign of life");
    }
}

pub fn open(dir: &Path, name: &str) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(dir.join(name)).expect("a file of the ring")
}

/// Some trees have a member that closes all descriptors, the kernel lock of lockrun among them.
pub fn has_closers(token: i64) -> bool {
    Random::new(token as u64).per_mille(500)
}

pub fn run(dir: &Path) -> ! {
    let token = std::env::var("LOCKRUN_TOKEN").ok().and_then(|token| token.parse().ok()).unwrap_or_default();
    let pid = std::process::id() as i32;
    let ring = dir.file_name().and_then(|name| name.to_str()).expect("a ring").to_string();
    let history = History::open(&dir.with_file_name("history")).expect("the history");
    let life = open(dir, "life");
    let idle_since = Life::read(&life).at;
    let (witness, closers) = (open(dir, "witness"), open(dir, "closers"));

    let alone = || lock(&witness, libc::LOCK_EX | libc::LOCK_NB) && lock(&closers, libc::LOCK_EX | libc::LOCK_NB);
    let first = alone();
    let since = now();
    history.add(since, &ring, Event::Start { token, pid, idle_since });
    if !first {
        let with = roster::describe(&roster::alive(dir));
        history.add(now(), &ring, Event::Overlap { token, pid, with });
        while !alone() {
            Life { at: now(), token, pid, since }.write(&life);
            std::thread::sleep(STAMP / 2);
        }
        history.add(now(), &ring, Event::Alone { token, pid });
    }
    drop(closers);

    let mut random = Random::new(token as u64 ^ (u64::from(std::process::id()) << 44));
    let own_end = random.of(&[Some(random.clone().within(0..=50)), Some(random.clone().within(300..=3000)), None, None]);
    let end = now() + 1000 * own_end.unwrap_or(random.within(4_000..=15_000)) as i64;
    Life { at: now(), token, pid, since }.write(&life);
    if random.per_mille(150) {
        ignore_stop_signals();
    }
    roster::enter(dir, &format!("{token}/main"));
    start_members(dir, token);
    while now() < end {
        Life { at: now(), token, pid, since }.write(&life);
        std::thread::sleep(STAMP);
    }
    exit(random.of(&OWN_CODES))
}

/// Descendants of every kind that a supervisor may lose sight of. None of them is waited for.
fn start_members(dir: &Path, token: i64) {
    let stay = |role: &str| -> ! {
        roster::enter(dir, &format!("{token}/{role}"));
        loop {
            pause();
        }
    };
    child(|| stay("same-group"));
    child(|| {
        let _ = setsid();
        child(|| stay("nested"));
        stay("setsid")
    });
    child(|| {
        let _ = setsid();
        child(|| stay("daemon"));
    });
    child(|| {
        ignore_stop_signals();
        stay("deaf")
    });
    child(|| {
        roster::enter(dir, &format!("{token}/stopped"));
        let _ = raise(Signal::SIGSTOP);
        stay("stopped-and-woken")
    });
    if has_closers(token) {
        child(|| {
            let _ = setsid();
            child(|| close_all(dir, token, "closed-daemon"));
            close_all(dir, token, "closed")
        });
    }
}

/// Takes a shared lock of its own, then closes all that it inherited.
fn close_all(dir: &Path, token: i64, role: &str) -> ! {
    roster::enter(dir, &format!("{token}/{role}"));
    let own = open(dir, "closers");
    assert!(lock(&own, libc::LOCK_SH));
    // SAFETY: numbers of this process's own; the two calls keep `own` open as 3 and nothing here uses another from 3 up.
    unsafe {
        libc::dup2(own.as_raw_fd(), 3);
        libc::close_range(4, u32::MAX, 0);
    }
    std::mem::forget(own);
    loop {
        pause();
    }
}

fn ignore_stop_signals() {
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { signal(ignored, SigHandler::SigIgn) }.expect("ignored");
    }
}

fn child(life: impl FnOnce()) {
    // SAFETY: the command has one thread.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        life();
        exit(0)
    }
}

fn lock(file: &File, how: i32) -> bool {
    // SAFETY: a descriptor that is open.
    unsafe { libc::flock(file.as_raw_fd(), how) == 0 }
}
