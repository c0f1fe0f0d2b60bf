//! The command that all copies run: it says when it starts and when it ends, and holds a kernel lock meanwhile, so that an
//! overlap is a fact of the kernel and not of a log.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockrun::clock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, fork, mkfifo, setsid};

pub const ROLE: &str = "witness";
/// The witness also starts a process that leaves its group and its parent, with all that it inherited.
pub const WITH_DAEMON: &str = "with-daemon";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// `overlap`: something of an earlier witness was alive.
    Started {
        at_ns: u64,
        pid: i32,
        overlap: bool,
    },
    Ended {
        at_ns: u64,
    },
}

/// The bench's side. Witnesses end when it is dropped: it holds the other end of a pipe that they look at (not their stdin,
/// which etcdctl does not pass on).
pub struct Ear {
    socket: UnixDatagram,
    dir: PathBuf,
    _alive: File,
}

const SOCKET: &str = "ear";
const LOCK: &str = "witness";
const ALIVE: &str = "alive";

impl Ear {
    pub fn new(dir: &Path) -> Ear {
        for name in [SOCKET, LOCK, ALIVE] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        mkfifo(&dir.join(ALIVE), Mode::S_IRWXU).expect("a pipe");
        File::create(dir.join(LOCK)).expect("the witness's lock");
        // For both, so that it does not wait for a reader.
        let alive = File::options().read(true).write(true).open(dir.join(ALIVE)).expect("a pipe");
        Ear { socket: UnixDatagram::bind(dir.join(SOCKET)).expect("a socket"), dir: dir.to_path_buf(), _alive: alive }
    }

    /// Puts the witness behind a wrapper's own words.
    pub fn append(&self, wrapper: &mut Command, with_daemon: bool) {
        wrapper.arg(std::env::current_exe().expect("this program")).arg(ROLE).arg(&self.dir);
        wrapper.args(with_daemon.then_some(WITH_DAEMON)).stdin(Stdio::null());
    }

    /// What is said next, within `patience`.
    pub fn next(&self, patience: Duration) -> Option<Said> {
        self.socket.set_read_timeout(Some(patience)).expect("a time-out");
        let mut bytes = [0; 100];
        let length = self.socket.recv(&mut bytes).ok()?;
        let text = std::str::from_utf8(&bytes[..length]).expect("text");
        let words: Vec<u64> = text.split(' ').skip(1).map(|word| word.parse().expect("a number")).collect();
        Some(match words[..] {
            [at_ns, pid, overlap] => Said::Started { at_ns, pid: pid as i32, overlap: overlap == 1 },
            [at_ns] => Said::Ended { at_ns },
            _ => panic!("{text}"),
        })
    }

    /// The next start: when, by whom, and whether it overlaps.
    pub fn start(&self, patience: Duration) -> Option<(u64, i32, bool)> {
        let end = Instant::now() + patience;
        loop {
            match self.next(end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))? {
                Said::Started { at_ns, pid, overlap } => return Some((at_ns, pid, overlap)),
                Said::Ended { .. } => {}
            }
        }
    }
}

/// The command's side. Ends on SIGTERM, or with the bench.
pub fn play(args: &[String]) {
    let at = clock::now();
    let dir = Path::new(&args[0]);
    let lock = File::open(dir.join(LOCK)).expect("the witness's lock");
    // SAFETY: no pointers. The lock belongs to the open file, which a daemon shares.
    let overlap = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0;
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().expect("blocked");
    let signals = SignalFd::new(&term).expect("a signalfd");
    let alive = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(dir.join(ALIVE)).expect("a pipe");
    let socket = UnixDatagram::unbound().expect("a socket");
    let say = |text: String| socket.send_to(text.as_bytes(), dir.join(SOCKET));
    // SAFETY: one thread; the child only waits.
    let is_daemon = args.len() > 1 && matches!(unsafe { fork() }, Ok(ForkResult::Child));
    if is_daemon {
        setsid().expect("a session");
    } else if say(format!("start {} {} {}", at.nanos(), std::process::id(), u8::from(overlap))).is_err() {
        return; // the bench has ended
    }
    // Nobody writes into the pipe: it becomes ready when its last writer is gone.
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(alive.as_fd(), PollFlags::POLLIN)];
    while poll(&mut fds, PollTimeout::NONE).is_err() {}
    if fds[0].any().unwrap_or(false) && !is_daemon {
        let _ = say(format!("end {}", clock::now().nanos()));
    }
}
